"""What a run on multi-label data cannot do, found before anything is trained."""

from collections.abc import Sequence

from kd.config.schema import Config
from kd.data.base import DataModule
from kd.errors import UserError
from kd.stages.chain import StagePlan
from kd.training.loss_spec import TermSpec

# Signals of one class among others; losses of features alone do not care
OF_ONE_CLASS = {"logits_s", "logits_t", "target", "head_s", "head_t"}
ACCEPTED = "loss=mld, mse_logits, or a loss of features alone such as at, embedding or rkd"


def check_multilabel(chain: Sequence[StagePlan], config: Config, data: DataModule) -> None:
    """Refuse in one message what makes no sense where an image may have several labels.

    Raises:
        UserError: lists each key with what is accepted.
    """
    if not data.split.train.multilabel:
        return
    found = [
        f"{term.where}: {term.path} is for classes that exclude each other; accepted are {ACCEPTED}"
        for plan in chain
        for term in plan.loss.terms
        if not fits(term)
    ]
    for plan in chain:
        if plan.recipe.label_smoothing and plan.trains != "none":
            found.append(f"{plan.recipe_at}label_smoothing: accepted is 0")
    off = ("class_weights", "sampler", "logit_adjustment", "omit", "teacher_data")
    for name in off:
        if getattr(data, name):
            key = "teacher.data" if name == "teacher_data" else f"data.{name}"
            found.append(f"{key}: accepted is null")
    if data.augment.mixes:
        found.append("data.augment.mixup, data.augment.cutmix: accepted is 0")
    if config.teacher.members:
        found.append("teacher.members: accepted is null")
    if found:
        lines = "\n".join(f"  {line}" for line in dict.fromkeys(found))
        raise UserError(f"data.task: multilabel does not go with\n{lines}")


def fits(term: TermSpec) -> bool:
    """Whether a loss makes sense with several labels: its module says so, or it sees features."""
    asked = {*term.signals, *term.build_arguments}
    return not asked & {*OF_ONE_CLASS, "labels"} or getattr(term.target, "multilabel", False)
