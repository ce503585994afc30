"""`report.html`: one run for people, in one file: gain, comparison, pictures."""

from collections.abc import Mapping, Sequence

import yaml
from matplotlib.figure import Figure

from kd.files.report_file import Report
from kd.log import number_of, short
from kd.measure.metrics import CONFUSION
from kd.reports.page import Picture, image, picture, render
from kd.reports.run_report import verdict
from kd.reports.table import Cell, Table
from kd.reports.units import count_text, selection_data, training_images


def as_page(report: Report, figures: Mapping[str, Figure]) -> str:
    """Render the page of a run.

    Args:
        report: contents of `report.json`.
        figures: by name, as from `kd.reports.run_figures.figures_of_run` and
            `kd.reports.tasks.pictures`; may be empty.
    """
    groups = [
        _tasks(figures),
        _curves(figures),
        _by_role(report, figures, "confusion"),
        _by_role(report, figures, "reliability"),
        _looks(figures),
        _doubts(report, figures),
    ]
    return render(
        "run.html.jinja",
        report=report,
        said=verdict(report),
        training=training_images(report.data),
        chosen=selection_data(report),
        quality=quality_table(report),
        costs=cost_table(report),
        groups=[each for each in groups if each[1]],
        gallery=_gallery(report, figures),
        config=yaml.safe_dump(report.config, sort_keys=False, allow_unicode=True),
    )


def quality_table(report: Report) -> Table:
    """Make the models' quality, one row each, measured on the test part except for one column."""
    words = ("", "net")
    several = report.multilabel
    balance = ("mAP, %", "macro F1, %") if several else ("balanced accuracy, %",)
    numbers = (
        "accuracy, % [95 %]",
        *balance,
        "agrees with the teacher, %",
        "NLL, nats",
        "ECE, %",
    )
    cells = []
    for model in report.models:
        test = model.test
        low, high = (100 * bound for bound in test.accuracy_ci95)
        accuracy = Cell(f"{100 * test.accuracy:.2f} [{low:.1f}, {high:.1f}]", test.accuracy)
        shares = (test.map, test.f1_macro) if several else (test.balanced_accuracy,)
        balanced = map(_percent, shares)
        agreement, ece = map(_percent, (test.agreement, test.ece))
        nll = Cell(f"{test.nll:.3f}", test.nll)
        best = _percent(model.val.best)
        cells.append(
            [Cell(model.role), Cell(model.net), accuracy, *balanced, agreement, nll, ece, best]
        )
    return Table((*words, *numbers, "validation accuracy, %"), cells, words=(0, 1))


def cost_table(report: Report) -> Table:
    """Make the models' costs, one row each, with ratios to the teacher's."""
    columns = (
        "",
        "net",
        "parameters",
        "MACs an image",
        "file",
        "latency, ms",
        "95th percentile, ms",
        "training",
    )
    teacher = report.model("teacher")
    cells = []
    for model in report.models:
        latency = model.latency_ms
        than = None if model is teacher else teacher
        times = than.latency_ms.median / latency.median if than else None
        cells.append(
            [
                Cell(model.role),
                Cell(model.net),
                Cell(
                    short(model.params) + _less(than.params / model.params if than else None),
                    model.params,
                ),
                Cell(
                    count_text(model.macs)
                    + _less(than.macs / max(1, model.macs) if than else None),
                    model.macs,
                ),
                Cell(
                    f"{short(model.bytes)}B" + _less(than.bytes / model.bytes if than else None),
                    model.bytes,
                ),
                Cell(f"{latency.median:.2f}{_less(times)}", latency.median),
                Cell(f"{latency.p95:.2f}", latency.p95),
                Cell(f"{number_of(model.epochs, 'epoch')}, {model.seconds:.0f} s", model.seconds),
            ]
        )
    return Table(columns, cells, words=(0, 1))


def _percent(share: float | None) -> Cell:
    return Cell("") if share is None else Cell(f"{100 * share:.2f}", share)


def _less(ratio: float | None) -> str:
    """Format the ratio to the teacher's value, for a cell; nothing where it is unknown."""
    if not ratio:
        return ""
    return f" (1/{ratio:.3g})" if ratio >= 1 else f" (×{1 / ratio:.3g})"


Group = tuple[str, Sequence[Picture]]


def _tasks(figures: Mapping[str, Figure]) -> Group:
    captions = {
        "accuracy_matrix": "Test accuracy in per cent on each task (columns) after each task "
        "learned (rows).",
        "accuracy_by_task": "Test accuracy on all classes seen so far, after each task learned.",
    }
    title = "What is still known of each task"
    return title, [
        picture(figures[name], captions[name], captions[name])
        for name in captions
        if name in figures
    ]


def _curves(figures: Mapping[str, Figure]) -> Group:
    caption = (
        "Accuracy and cross-entropy on the validation images after each epoch, by model; without a "
        "validation part, accuracy and loss on the training views."
    )
    found = figures.get("learning_curves")
    return "Learning curves", [picture(found, caption, "Learning curves by model")] if found else []


def _looks(figures: Mapping[str, Figure]) -> Group:
    caption = (
        "The test images on which teacher and student choose different classes and are furthest "
        "apart. Bright: the places that speak for the class that the net chose (Grad-CAM on its "
        "last maps, Selvaraju et al. 2017)."
    )
    found = figures.get("grad_cam")
    title = "Where teacher and student look"
    return title, [picture(found, caption, title)] if found else []


def _doubts(report: Report, figures: Mapping[str, Figure]) -> Group:
    title = "Labels that the teacher doubts"
    found = figures.get("doubts")
    if not found or not report.doubts:
        return title, []
    caption = (
        f"Of {report.doubts.asked:,} training images those that the teacher is surest to be of "
        "another class than their label, which stands first. Many such labels are wrong. A teacher "
        "that was trained on a wrong label may have learned it by heart and not doubt it."
    )
    return title, [image(found, caption, title)]


def _by_role(report: Report, figures: Mapping[str, Figure], kind: str) -> Group:
    titles = {
        "confusion": "What they confuse",
        "reliability": "How far their confidence can be trusted",
    }
    captions = {
        "confusion": "Rows are true classes, columns the classes chosen, on the {n} test images.",
        "reliability": "Accuracy of the test images in each bin of confidence; on the diagonal a "
        "net is as sure as it is right. Below, how many of the {n} images are in each bin.",
    }
    roles = [model.role for model in report.models if f"{kind}/{model.role}" in figures]
    if kind == "confusion" and len(report.data.classes) > CONFUSION:
        kind_caption = (
            "The classes found least often, and the pairs confused most, of {n} test images."
        )
    else:
        kind_caption = captions[kind]
    caption = kind_caption.format(n=report.data.test)
    return titles[kind], [
        picture(
            figures[f"{kind}/{role}"], f"{role.capitalize()}. {caption}", f"{kind} of the {role}"
        )
        for role in roles
    ]


def _gallery(report: Report, figures: Mapping[str, Figure]) -> Picture | None:
    caption = (
        f"Of the {report.data.test} test images those on which the models' probabilities "
        "differ most, with the probability that each model gives to the true class and to those "
        "that it takes for likelier."
    )
    found = figures.get("disagreement")
    return image(found, caption, "Test images on which the models disagree") if found else None
