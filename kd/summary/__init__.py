"""Comparison of many runs: runs that differ only in seed form a row, with spread and tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd.files.writing import whole
from kd.log import say
from kd.reports.escape import in_markdown
from kd.summary.groups import Row, group
from kd.summary.labels import label_curves
from kd.summary.reports import find_runs
from kd.summary.significance import Gain, correct_gains, finite, gain_of
from kd.summary.tables import (
    accuracy_table,
    as_csv,
    as_markdown,
    class_table,
    conclusions,
    cost_table,
    in_common,
    measurement_setup,
    trial_lines,
)

if TYPE_CHECKING:
    from kd.reports.page import Picture

NOTES = (
    "Rows are ranked by the student's validation accuracy, which settings are chosen by; "
    "test is shown beside it. ± is the standard deviation over the seeds; none is shown "
    "where all seeds have the same value.",
    "Gain: student over the baseline of the same seed. With several seeds, the interval is "
    "Student's t of the mean and "
    "p that of the paired t-test, both over the seeds (Wilcoxon's signed ranks cannot go below p "
    "= 0.05 with five or "
    "fewer). With one seed, interval (bootstrap) and p (McNemar) are over the test images. All p "
    "are two-sided; those "
    "corrected are Holm's over all rows, which also holds for rows that share a baseline.",
)


def write_summary(paths: Sequence[Path]) -> str:
    """Compare all runs in and under these folders.

    Writes `summary.csv`, `summary.md` and `summary.html` into the first; and `labels.svg`, accuracy
    against the number of labels, if the runs differ in that.

    Returns:
        the Markdown.

    Raises:
        UserError: there is nothing to read, no permission to write, or no space.
    """
    rows, aside = group(find_runs(paths))
    gains = correct_gains([gain_of_row(row) for row in rows])
    folder = paths[0] if paths[0].is_dir() else paths[0].parent
    title = f"Summary of {folder.resolve().name}"
    about = (
        f"{sum(len(row.runs) for row in rows)} runs in {len(rows)} rows; the runs of a row "
        "differ only in seed."
    )
    if aside:
        about += f" {aside} were set aside: a later run has the same settings and seed."
    markdown = markdown_of(title, about, rows, gains, conclusions(rows, gains))
    texts = {
        "summary.csv": as_csv(rows, gains),
        "summary.md": markdown,
        "summary.html": page_of(title, about, rows, gains, conclusions(rows, gains)),
    }
    texts |= _drawings(rows)
    write_texts(texts, folder)
    return markdown


def write_texts(texts: Mapping[str, str], folder: Path) -> None:
    """Write files, each whole, and log their names.

    Raises:
        UserError: no permission to write, or no space.
    """
    for name, text in texts.items():
        with whole(folder / name, "the summary") as temporary:
            temporary.write_text(text)
    say(f"Written to {folder}: {', '.join(texts)}")


def _drawings(rows: Sequence[Row]) -> dict[str, str]:
    """Draw the pictures that are separate files."""
    curves = label_curves(rows)
    if not curves:
        return {}
    from kd.reports.page import as_svg  # importing matplotlib takes a second
    from kd.summary.figures import label_plot

    return {"labels.svg": as_svg(label_plot(curves[0]))}


def gain_of_row(row: Row) -> Gain:
    """Compute a row's gain, paired by seed."""
    both = [each for run in row.runs if finite([(each := run.report.comparison).gain])]
    images = [(each.gain_ci95, each.p_value) for each in both]
    return gain_of(finite(each.gain for each in both), images)


def markdown_of(
    title: str, about: str, rows: Sequence[Row], gains: Sequence[Gain], said: Sequence[str]
) -> str:
    """Format rows for people, as Markdown.

    Args:
        said: sentences that state the result.
    """
    from kd.summary.tasks import task_table  # importing matplotlib takes a second

    common = " ".join(f"`{knob}={value}`" for knob, value in in_common(rows).items())
    parts = [
        f"# {in_markdown(title)}",
        about,
        "\n".join(f"- {in_markdown(line)}" for line in [*trial_lines(rows), *said]),
        f"The same in all runs: {in_markdown(common)}" if common else "",
        as_markdown(accuracy_table(rows, gains)).rstrip(),
        *NOTES,
        as_markdown(tasks).rstrip() if (tasks := task_table(rows)) else "",
        as_markdown(classes).rstrip() if (classes := class_table(rows)) else "",
        as_markdown(cost_table(rows)).rstrip(),
        f"Latency: one image, measured on "
        f"{in_markdown('; '.join(measurement_setup(rows)) or 'an unknown machine')}.",
    ]
    return "\n\n".join(each for each in parts if each) + "\n"


def page_of(
    title: str,
    about: str,
    rows: Sequence[Row],
    gains: Sequence[Gain],
    said: Sequence[str],
    more: "Sequence[Picture]" = (),
) -> str:
    """Format rows as a page in one file.

    Args:
        said: sentences that state the result.
        more: pictures to show before the usual ones.
    """
    from kd.reports.page import render  # importing matplotlib takes a second
    from kd.summary.figures import pictures
    from kd.summary.tasks import task_picture, task_table

    return render(
        "summary.html.jinja",
        title=title,
        about=about,
        said=[*trial_lines(rows), *said],
        common=in_common(rows),
        all_common=in_common(rows, all_knobs=True),
        accuracy=accuracy_table(rows, gains),
        classes=class_table(rows),
        cost=cost_table(rows),
        notes=NOTES,
        tasks=task_table(rows),
        pictures=[*more, *pictures(rows, gains), *filter(None, [task_picture(rows)])],
        places=measurement_setup(rows),
    )
