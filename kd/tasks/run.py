"""A run over tasks: one stage per task, each from the last one's net, then the report."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from kd.config.construct import construct
from kd.config.fields import Node
from kd.config.schema import Recipe
from kd.config.trainer import batches_of, trial_note
from kd.data.base import DataModule, Images
from kd.data.trial import shorten
from kd.errors import UserError
from kd.files.report_file import EpochAccuracies, IncrementalReport, Report, TaskEvaluation
from kd.files.run_folder import RunFolder
from kd.files.store import StageResult
from kd.log import say
from kd.nets.build import build_net, fresh_node
from kd.reports.figures import export
from kd.reports.run_report import make_report
from kd.reports.tasks import EVALUATIONS, PICTURES, as_markdown, as_table, pictures
from kd.runs.frame import RunFrame
from kd.runs.preflight import check_beside, check_single
from kd.runs.run import figures_of, write_run
from kd.shape import Shape
from kd.stages.batch import fit_recipe
from kd.stages.chain import LABELS_ONLY, Role, StagePlan, check_recipe
from kd.stages.result import logits_of, role_logits
from kd.stages.stage import Stage, logger_nodes, make_stage
from kd.tasks.data import TaskData
from kd.tasks.exemplars import Memory, features_of, nearest_mean
from kd.tasks.forgetting import evaluation
from kd.tasks.schedule import IncrementalConfig, make_tasks
from kd.training.devices import world_size
from kd.training.loggers import check_loggers
from kd.training.loss_spec import FEATURES, LossSpec, read_loss
from kd.training.objective import Objective
from kd.training.optim import make_optimizer
from kd.training.processes import on_devices
from kd.training.trainer import check_trainer

ACCEPTED = "accepted are lwf, lwf_bce, lwf_mix, icarl, der, and others of logits alone"


class TaskSchedule:
    """The tasks of a run: training data and stage of each.

    Args:
        config: of the run.
        data: the whole data set.

    Raises:
        UserError: the classes cannot be divided as the config asks.
    """

    def __init__(self, config: IncrementalConfig, data: DataModule) -> None:
        for name in ("unlabeled", "labels", "omit", "val_labels"):
            if getattr(data, name) is not None:
                raise UserError(
                    f"data.{name}: tasks take all images with their labels; accepted is null"
                )
        if not data.split.val:
            raise UserError(
                "data.val_fraction: found 0, but each task is measured on validation images; "
                "accepted is a number between 0 and 1"
            )
        shorten(data, config.trainer, len(data.classes))
        self.config = config
        self.asked = config.incremental
        self.source = TaskData(data, make_tasks(self.asked, data.classes))
        self.memory = Memory(self.source, self.asked)
        self.loss = read_loss(config.loss)
        self.start_loss = read_loss(start) if (start := self.asked.start_loss) else LABELS_ONLY

    def __len__(self) -> int:
        return len(self.source.tasks)

    def plan(self, task: int) -> StagePlan:
        """Return the stage plan of a task."""
        loss = self.start_loss if task == 0 else self.loss
        before = f"task_{task}" if task else None
        net = self.config.student.net
        node: Node = {
            "_target_": "kd.nets.grow.Grown",
            "net": fresh_node(net) if task else net,
            "blocks": [len(each) for each in self.source.tasks[: task + 1]],
        }
        return StagePlan(
            f"task_{task + 1}",
            None,
            node,
            "student.net",
            check_recipe(
                Recipe(**{k: getattr(self.config, k) for k in Recipe.model_fields}),
                "",
                world_size(self.config.trainer),
            ),
            "",
            loss,
            precision=self.config.precision,
            teacher=before if loss.teacher else None,
            start=before,
        )

    def data(self, results: Sequence[StageResult]) -> DataModule:
        """Return the training data of the task after these."""
        task = len(results)
        if self.asked.keep_data:
            return self.source.until(task)
        return self.source.task(task, self._exemplars(results))

    def _exemplars(self, results: Sequence[StageResult]) -> Images | None:
        if not results or not self.asked.exemplars:
            return None
        first, *rest = self.memory.images(results)
        for each in rest:
            first = first.join(each)
        return first

    def stage(self, data: DataModule, results: Sequence[StageResult]) -> Stage:
        """Return the stage of the task after these."""
        plan = fit_recipe(self.plan(len(results)), data, self.config.trainer)
        stage = make_stage(
            plan, self.config, data, {f"task_{i}": each for i, each in enumerate(results, start=1)}
        )
        # It knows fewer classes, so agreement means nothing
        stage = replace(stage, reference=None)
        if not results:
            return stage
        if self.asked.align:
            stage.spec.align = True
        if self.asked.replay == "stored" and stage.teacher:
            stage.spec.stored = True
            new = len(self.source.task(len(results)).split.train)
            return replace(stage, stored=self.memory.stored_logits(results, new))
        return stage

    def scores(self, results: Sequence[StageResult], images: Images) -> list[torch.Tensor]:
        """Compute the classifier's scores after each task: [N, classes seen so far]."""
        data = self.source.data
        if self.asked.classifier == "logits":
            return [logits_of(stage, data, images) for stage in results]
        return [
            nearest_mean(features_of(stage, data, images), self.memory.means(results[: i + 1]))
            for i, stage in enumerate(results)
        ]


def run(
    config: IncrementalConfig,
    command: str,
    *,
    folder: RunFolder | None = None,
    since: datetime | None = None,
    out: Console | None = None,
) -> Path:
    """Learn task after task, measure all nets, and write the run folder.

    Args:
        command: command line that repeats the run.
        folder: to be filled; None for a new one in `runs` in the output folder.
        since: with `force`, stages finished after that time are not trained again.
        out: console for the result; None for stdout.

    Returns:
        the run folder.

    Raises:
        UserError: a user's error, found before training where possible.
        StopRequest: by Ctrl-C; finished stages are kept.
    """
    config = config.resolve()
    frame = RunFrame(config, folder, since, out)
    schedule = TaskSchedule(config, construct(config.data, "data"))
    preflight(schedule)
    with on_devices(config.trainer), frame.open_folder() as folder:
        results: list[StageResult] = []
        for _ in schedule.source.tasks:
            results.append(_learn(schedule, results, frame, folder))
        net: dict[Role, StageResult] = {"student": in_data_order(schedule, results[-1])}
        logits = role_logits(net, schedule.source.as_it_is())
        report = _report(schedule, results, net, logits, command)
        _write(folder.path, report, schedule, net, logits)
    return frame.show(folder, as_table(report), trial_note(config.trainer))


def _report(
    schedule: TaskSchedule,
    results: Sequence[StageResult],
    net: Mapping[Role, StageResult],
    logits: Mapping[Role, Tensor],
    command: str,
) -> Report:
    """Build the report of the last net, with the task results as `incremental`."""
    config = schedule.config
    whole = schedule.source.as_it_is()
    report = make_report(net, logits, whole, config=config, command=command)
    last = schedule.source.until(len(schedule) - 1)
    sizes = [len(task) for task in schedule.source.tasks]

    def measure(images: Images) -> TaskEvaluation:
        scores = schedule.scores(results, images)
        both = {
            name: evaluation(scores, images.labels, sizes, told)
            for name, told in EVALUATIONS.items()
        }
        return TaskEvaluation(**both)

    asked = schedule.asked
    count = range(1, len(schedule) + 1)
    keeps = asked.exemplars and not asked.keep_data
    test = measure(last.split.test)
    val = measure(last.split.val)
    found = IncrementalReport(
        method=asked.method,
        tasks=[
            [last.classes[place] for place in schedule.source.places(task)]
            for task in range(len(schedule))
        ],
        classifier=asked.classifier,
        exemplars=[
            sum(map(len, schedule.memory.images(results[:i]))) if keeps else 0 for i in count
        ],
        stages=[stage.key for stage in results],
        seconds=[stage.record.seconds for stage in results],
        class_incremental=test.class_incremental,
        task_incremental=test.task_incremental,
        validation=val,
    )
    # Ranking value of a sweep: the last stage's own validation covers only its own classes.
    final = val.class_incremental.after[-1]
    net_of_all = report.models[0].model_copy(
        update={"val": EpochAccuracies(best=final, last=final)}
    )
    return report.model_copy(update={"incremental": found, "models": [net_of_all]})


def _learn(
    schedule: TaskSchedule,
    results: Sequence[StageResult],
    frame: RunFrame,
    folder: RunFolder,
) -> StageResult:
    task = len(results)
    data = schedule.data(results)
    stage = schedule.stage(data, results)
    result, how = frame.finish(stage, data, folder)
    names = ", ".join(data.classes[place] for place in schedule.source.places(task))
    accuracy = 100 * (result.record.val.accuracy("last") or 0.0)
    say(
        f"{stage.name} ({names}): {how}, validation accuracy on what it trained on "
        f"{accuracy:.2f} % ({stage.key})"
    )
    return result


def preflight(schedule: TaskSchedule) -> None:
    """Build every stage's parts once as a trial, so that errors of the last show before the first.

    Raises:
        UserError: something cannot be built, or a loss needs a teacher of all classes.
    """
    config = schedule.config
    ranks = world_size(config.trainer)
    check_trainer(config.trainer)
    check_loggers(logger_nodes(config, "preflight"))
    for task in range(len(schedule)):
        data = schedule.source.task(task)
        images = max(ranks, data.images_an_epoch - data.images_an_epoch % ranks)
        recipe = schedule.plan(task).recipe
        size = min(recipe.batch_size, images)
        batches = len(data.train_loader(size, config.seed, ranks, drop_last=recipe.drop_last))
        batches_of(config.trainer, "limit_train_batches", batches)
    for task in {0, len(schedule) - 1}:
        plan = schedule.plan(task)
        data = schedule.source.until(task)
        check_beside(plan, config.trainer, data)
        shape = data.shape
        net = build_net(plan.net, shape, plan.where, trained=True)
        make_optimizer(net, 2, optim=config.optim, schedule=config.lr_schedule)
        if plan.recipe.batch_size == ranks:  # one image on each device
            check_single(net, shape, "batch_size")
        _try_loss(plan.loss, shape, known=sum(map(len, schedule.source.tasks[:task])))


def _try_loss(loss: LossSpec, shape: Shape, known: int) -> None:
    """Refuse a loss of features, or one that does not support a teacher with fewer classes.

    Args:
        known: number of the teacher's classes.
    """
    names = ", ".join(term.name for term in loss.terms)
    if loss.signals & {*FEATURES}:
        raise UserError(
            f"loss: {names} compares features, and a net that grows shows none; {ACCEPTED}"
        )
    objective = Objective(loss, shape)
    classes = shape.num_classes
    given = {
        "logits_s": torch.zeros(2, classes, requires_grad=True),
        "logits_t": torch.zeros(2, known),
        "strong_s": torch.zeros(2, classes),
        "strong_t": torch.zeros(2, known),
        "target": torch.tensor([0, classes - 1]),
        "index": torch.arange(2),
        "x": torch.zeros(2, *shape.pixels),
        "epoch": 0,
        "progress": 0.0,
    }
    try:
        objective(given)
    except (RuntimeError, IndexError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(
            f"loss: {names} does not support a teacher with fewer classes ({known} of {classes}: "
            f"{first}); {ACCEPTED}"
        ) from error


def in_data_order(schedule: TaskSchedule, result: StageResult) -> StageResult:
    """Return the last net with its outputs in the data's class order."""
    order = sorted(range(len(schedule.source.order)), key=schedule.source.order.__getitem__)
    spec = result.record.spec
    net = {**fresh_node(spec.net), "order": order}
    record = result.record.model_copy(update={"spec": spec.model_copy(update={"net": net})})
    return StageResult(result.key, result.folder, record)


def _write(
    folder: Path,
    report: Report,
    schedule: TaskSchedule,
    net: Mapping[Role, StageResult],
    logits: Mapping[Role, Tensor],
) -> None:
    """Write the usual files of a run folder, and this run's figures."""
    data = schedule.source.as_it_is()
    figures = dict[str, Figure]()
    if schedule.config.pictures:
        figures = {**pictures(report), **dict(figures_of(net, logits, data))}
    write_run(folder, report, figures, net, data)
    (folder / "report.md").write_text(as_markdown(report))
    for name in PICTURES if figures else ():
        export(figures[name], folder / f"{name}.png")
