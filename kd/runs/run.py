"""A run: the chain of stages, then the report, in a folder that appears complete."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import yaml
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from kd.config.schema import Config
from kd.data.base import DataModule
from kd.data.trial import shorten
from kd.files.header import SCHEMA, STUDENT
from kd.files.report_file import LabelDoubts, Report
from kd.files.run_folder import RunFolder
from kd.files.store import StageResult, Store
from kd.files.tensors import save_tensors
from kd.log import say
from kd.reports.label_doubts import doubts_figure
from kd.reports.model_card import model_card
from kd.reports.opening import opening
from kd.reports.run_events import begin, finish
from kd.reports.run_figures import figures_of_run
from kd.reports.run_page import as_page
from kd.reports.run_report import as_markdown, as_table, make_report, verdict
from kd.runs.duration import outlook, within_budget
from kd.runs.frame import RunFrame
from kd.runs.looks import looks
from kd.runs.preflight import pending_plans, preflight
from kd.stages.answers import only_answers
from kd.stages.batch import suit_to_data
from kd.stages.chain import LABELS_ONLY, Role, StagePlan, chain_of
from kd.stages.open_data import open_data
from kd.stages.result import keeps_logits, knows, role_logits
from kd.stages.stage import logger_nodes, make_stage
from kd.training.processes import on_devices
from kd.training.remaining import Outlook


def run(
    config: Config,
    command: str,
    *,
    data: DataModule | None = None,
    folder: RunFolder | None = None,
    since: datetime | None = None,
    out: Console | None = None,
) -> Path:
    """Finish the run's stages, measure their nets, and write the run folder.

    Args:
        command: command line that repeats the run.
        data: the images; None for those of the config.
        folder: to be filled; None for a new one in `runs` in the output folder.
        since: with `force`, stages finished after that time are not trained again.
        out: console for the comparison; None for stdout.

    Returns:
        the run folder.

    Raises:
        UserError: a user's error, found before training where possible.
        StopRequest: by Ctrl-C; finished stages are kept.
    """
    config = config.resolve()
    frame = RunFrame(config, folder, since, out)
    chain = chain_of(config)  # also reads the losses, before the data
    loss = next((plan.loss for plan in chain if plan.loss.node is config.loss), LABELS_ONLY)
    data = data or open_data(config)
    config, chain = _fit_config(config, data, frame.store, chain)
    if left := _pending(chain, config, data, frame.store):
        preflight(left, config, data)
        for line in opening(chain, data):
            say(line)
    several = on_devices({} if not left and keeps_logits(data) else config.trainer)
    with several, frame.open_folder() as folder, begin(folder.events, config, data) as events:
        ahead = partial(outlook, left=left, config=config, data=data, command=command)
        stages = _finish_stages(frame, folder, chain, config, data, ahead)
        results = _with_answers(by_role(chain, stages), data)
        logits = role_logits(results, data)
        report = make_report(results, logits, data, config=config, command=command)
        figures = dict(figures_of(results, logits, data, report.doubts)) if config.pictures else {}
        write_run(folder.path, report, figures, results, data)
        shown = _own_figures(figures, chain, folder)
        finish(events, config, loss, report, shown)
        _log_report(report, config, folder)
    return frame.show(folder, as_table(report), verdict(report))


def _finish_stages(
    frame: RunFrame,
    folder: RunFolder,
    chain: Sequence[StagePlan],
    config: Config,
    data: DataModule,
    ahead: Callable[[StagePlan], Outlook | None],
) -> dict[str, StageResult]:
    """Train or fetch the stages in turn; returns their results by name.

    Args:
        ahead: says what the run does after a stage.
    """
    stages: dict[str, StageResult] = {}
    for plan in chain:
        stage = replace(make_stage(plan, config, data, stages), outlook=ahead(plan))
        stages[plan.name], how = frame.finish(stage, data, folder)
        accuracy = stages[plan.name].record.val.accuracy("best")
        said = "" if accuracy is None else f", validation accuracy {100 * accuracy:.2f} %"
        say(f"{plan.name}: {how}{said} ({stage.key})")
    return stages


def _log_report(report: Report, config: Config, folder: RunFolder) -> None:
    """Log the models' figures on the test images, as a run `report` beside those of the stages."""
    if not set(config.logger) - {"tensorboard"}:
        return
    from kd.training.loggers import log_once  # Lightning

    values = {
        f"{model.role}/test/{name}": value
        for model in report.models
        for name in ("accuracy", "balanced_accuracy", "nll", "ece", "agreement", "map", "f1_macro")
        if (value := getattr(model.test, name)) is not None
    }
    with tempfile.TemporaryDirectory() as made:
        log_once(logger_nodes(config, "report"), Path(made), values)
        folder.keep_csv("report", Path(made))


def _own_figures(
    figures: Mapping[str, Figure], chain: Sequence[StagePlan], folder: RunFolder
) -> dict[str, Figure]:
    """Return the run's figures without those of a model whose curves another run shows."""
    own = {plan.role for plan in chain if plan.role and folder.shows(plan.name)}
    return {
        name: each
        for name, each in figures.items()
        if "/" not in name or name.rpartition("/")[2] in own
    }


def _fit_config(
    config: Config, data: DataModule, store: Store, read: Sequence[StagePlan]
) -> tuple[Config, list[StagePlan]]:
    """Choose by the data what depends on it, cut the data for a trial, and epochs to the budget."""
    shorten(data, config.trainer)  # first: what a stage sees is made of it once
    config, chain = suit_to_data(config, data, read)
    if config.budget is None:
        return config, chain
    config = within_budget(config, chain, _pending(chain, config, data, store), data)
    return suit_to_data(config, data)


def _pending(
    chain: Sequence[StagePlan], config: Config, data: DataModule, store: Store
) -> Sequence[StagePlan]:
    """Return the stages that are to be trained."""
    return chain if config.force else pending_plans(chain, config, data, store)


def by_role(
    chain: Sequence[StagePlan], stages: Mapping[str, StageResult]
) -> dict[Role, StageResult]:
    """Return the stages to compare; of several students the last, which builds on the others."""
    return {plan.role: stages[plan.name] for plan in chain if plan.role}


def _with_answers(
    results: Mapping[Role, StageResult], data: DataModule
) -> Mapping[Role, StageResult]:
    """Return the roles without a teacher whose file has no answers for the test images."""
    teacher = results.get("teacher")
    if teacher is None or not only_answers(teacher) or knows(teacher, data, data.split.test):
        return results
    say("teacher: its file does not answer for all test images, so it is not compared")
    return {role: each for role, each in results.items() if role != "teacher"}


def figures_of(
    results: Mapping[Role, StageResult],
    logits: Mapping[Role, Tensor],
    data: DataModule,
    doubts: LabelDoubts | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Draw the figures of a run's models, each with its name; see `kd.reports.figures`."""
    test = data.split.test
    histories = {str(role): each.record.history for role, each in results.items()}
    by_role = {str(role): each for role, each in logits.items()}
    yield from figures_of_run(histories, by_role, test.pixels, test.labels, data.classes)
    if (figure := looks(results, logits, data)) is not None:
        yield "grad_cam", figure
    if doubts and (figure := doubts_figure(doubts, data)) is not None:
        yield "doubts", figure


def write_run(
    folder: Path,
    report: Report,
    figures: Mapping[str, Figure],
    results: Mapping[Role, StageResult],
    data: DataModule,
) -> None:
    """Write the files of a run: report, config, and the student with a header that describes it."""
    (folder / "report.json").write_text(report.text())
    (folder / "report.md").write_text(as_markdown(report))
    (folder / "report.html").write_text(as_page(report, figures))
    (folder / "config.yaml").write_text(yaml.safe_dump(report.config, sort_keys=False))
    if "student" in results:
        (folder / "MODEL_CARD.md").write_text(
            model_card(report, folder.name.removesuffix(".partial"))
        )
        mean, std = results["student"].record.normalization
        about = {
            "schema": SCHEMA,
            "net": results["student"].record.spec.net,
            "shape": list(data.shape),
            "classes": list(data.classes),
            "multilabel": data.split.train.multilabel,
            "mean": mean,
            "std": std,
            "reading": asdict(data.reading),
        }
        save_tensors(results["student"].weights(), folder / STUDENT, about)
