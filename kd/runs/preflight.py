"""Checks of a run before anything is trained."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from kd.config.schema import Config
from kd.config.trainer import batches_of
from kd.data.base import DataModule
from kd.errors import UserError
from kd.files.store import StageResult, Store
from kd.nets.batch_norms import batch_norms
from kd.nets.build import build_net
from kd.nets.head import head_of
from kd.shape import Shape
from kd.stages.chain import StagePlan
from kd.stages.multilabel import check_multilabel
from kd.stages.stage import logger_nodes, make_stage
from kd.stages.start import file_of, try_start
from kd.stages.try_out import try_out
from kd.training.devices import SHARDED, world_size
from kd.training.optim import make_optimizer, needs_whole


def pending_plans(
    chain: Sequence[StagePlan], config: Config, data: DataModule, store: Store
) -> Sequence[StagePlan]:
    """Return the chain from its first missing stage on; finished stages need no trial."""
    stages: dict[str, StageResult] = {}
    for i, plan in enumerate(chain):
        result = store.find(make_stage(plan, config, data, stages).key)
        if result is None:
            return chain[i:]
        stages[plan.name] = result
    return []


def preflight(chain: Sequence[StagePlan], config: Config, data: DataModule) -> None:
    """Build every stage's parts once as a trial, so that errors of the last show before the first.

    Raises:
        UserError: something cannot be built.
    """
    # Lightning, half of all imports
    from kd.training.loggers import check_loggers
    from kd.training.trainer import check_trainer

    check_multilabel(chain, config, data)
    check_trainer(config.trainer)
    check_loggers(logger_nodes(config, "preflight"))
    ranks = world_size(config.trainer)
    for plan in chain:
        learns = False
        at = plan.recipe_at
        recipe = plan.recipe
        seen = data.for_stage(plan.sees)
        if plan.loss.terms:
            objective = try_out(plan, seen)
            learns = any(True for _ in objective.parameters())
        if plan.trains == "loss" and not learns:
            raise UserError(
                f"stage.{plan.name}.trains: found 'loss', but its loss learns nothing; "
                "accepted is all"
            )
        check_beside(plan, config.trainer, seen)
        file = file_of(plan)
        most = file.stat().st_size if file and plan.trains == "none" else None
        net = build_net(
            plan.net,
            seen.shape,
            plan.where,
            load=not (plan.path or plan.start),
            most=most,
            trained=plan.trains != "none",
        )
        if file and plan is not chain[0]:  # that of the first is loaded next
            try_start(net, plan, file, seen)
        if plan.trains == "none":
            continue
        check_parts(net, plan, seen)
        make_optimizer(net, 2, optim=recipe.optim, schedule=recipe.lr_schedule, where=f"{at}optim")
        loader = seen.train_loader(
            recipe.batch_size, recipe.seed, ranks, f"{at}batch_size", recipe.drop_last
        )
        batches_of(config.trainer, "limit_train_batches", len(loader))
        if recipe.batch_size == ranks and plan.trains != "frozen_norms":  # one image on each device
            check_single(net, seen.shape, f"{at}batch_size")


def check_beside(plan: StagePlan, trainer: Mapping[str, object], data: DataModule) -> None:
    """Refuse options of a stage that do not go together: optimiser, loss, strategy, data.

    Args:
        trainer: the config's options of the Trainer.
        data: as the stage sees it.

    Raises:
        UserError: names the option.
    """
    from kd.training.dot import refuse_beside_dot  # Lightning
    from kd.training.strong_views import refuse_beside_strong

    if plan.trains == "none":
        return
    _check_early_stopping(plan, data)
    _check_shards(plan, str(trainer.get("strategy", "auto")))
    refuse_beside_dot(plan.recipe, plan.precision, trainer, plan.recipe_at)
    refuse_beside_strong(plan.loss.strong, data)


def _check_early_stopping(plan: StagePlan, data: DataModule) -> None:
    """Refuse early stopping where no validation label may decide."""
    at = plan.recipe_at
    found = plan.recipe.early_stopping
    if found and not data.selects(plan.sees):
        off = "data.val_labels=0" if data.split.val else "data.val_fraction=0"
        other = "data.val_labels=null" if data.split.val else "data.val_fraction=0.1"
        raise UserError(
            f"{at}early_stopping: found {found}, which validation labels decide; {off} lets them "
            f"decide nothing. Accepted together are {at}early_stopping=null or {other}"
        )


def _check_shards(plan: StagePlan, strategy: str) -> None:
    """Refuse what needs whole parameters beside FSDP and DeepSpeed, which keep parts of them."""
    if not strategy.startswith(SHARDED):
        return
    at = plan.recipe_at
    names = ["ema", "swa", *(["gradient_clip"] if strategy.startswith("fsdp") else [])]
    found = {name: getattr(plan.recipe, name) for name in names}
    optim = plan.recipe.optim
    if needs_whole(optim, f"{at}optim"):
        kind = str(optim["_target_"]).rpartition(".")[2].lower()
        found["optim"] = optim.get("name", kind)
    for name, value in found.items():
        if value is not None:
            raise UserError(
                f"{at}{name}: found {value}, which needs whole parameters; trainer.strategy="
                f"{strategy} keeps parts of them. Choose another {name}, or trainer=ddp"
            )


def check_parts(net: nn.Module, plan: StagePlan, data: DataModule) -> None:
    """Refuse to train what a net does not have.

    Raises:
        UserError: it has no parameters, no last layer, or no batch norms.
    """
    at = plan.start_prefix
    kind = type(net).__name__
    if not any(True for _ in net.parameters()):
        raise UserError(
            f"{at}finetune: {kind} has nothing to train; accepted is {at}path=FILE with "
            f"{at}finetune=none"
        )
    if plan.trains == "head":
        check_head(net, data, at)
    if plan.trains == "frozen_norms" and not batch_norms(net):
        raise UserError(
            f"{at}finetune: found 'frozen_norms', but {kind} has no batch norms; accepted are "
            "all, head"
        )


def check_single(net: nn.Module, shape: Shape, where: str) -> None:
    """Refuse batches of one image for a net with batch norm over a single value per channel.

    Raises:
        UserError: the net needs two images or more.
    """
    x = torch.randn(1, *shape.pixels)
    try:
        net.train()(x)
    except ValueError as error:  # raised by torch's batch norm
        raise UserError(
            f"{where}: found 1; this net has batch norm where its maps are 1 by 1, so it "
            f"needs 2 images or more ({error})"
        ) from error


def check_head(net: nn.Module, data: DataModule, at: str) -> None:
    """Refuse to train only the last layer of a net that has no such layer.

    Raises:
        UserError: it has none.
    """
    try:
        head_of(net, data.shape)
    except ValueError as error:
        raise UserError(
            f"{at}finetune: head cannot be trained alone: {error}; accepted is all"
        ) from error
