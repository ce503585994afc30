"""The table of a comparison, with intervals, corrected tests and ranks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from kd.comparison.critical_difference import MeanRanks, critical_difference_plot, ranks_of
from kd.comparison.request import CompareConfig
from kd.files.report_file import Report
from kd.reports.page import as_svg, svg_picture
from kd.summary import gain_of_row, markdown_of, page_of, write_texts
from kd.summary.groups import Row, accuracy_on_test, part, settings_of
from kd.summary.reports import Run
from kd.summary.significance import LEVEL, Gain, correct_gains
from kd.summary.tables import as_csv, p_text

BASELINE = "labels only"  # the baseline among the methods
Cells = dict[tuple[str, str], dict[int, Run]]  # by nets and method, a run per seed


def write_table(
    configs: Sequence[CompareConfig],
    reports: Sequence[Report],
    folders: Sequence[Path],
    folder: Path,
) -> str:
    """Write `comparison.md`, `.html` and `.csv`, and `critical_difference.svg`.

    Args:
        configs: of the finished jobs.
        reports, folders: of their runs.
        folder: to write into.

    Returns:
        the Markdown.
    """
    cells: Cells = {}
    knobs: dict[tuple[str, str], dict[str, str]] = {}
    for config, report, place in zip(configs, reports, folders, strict=True):
        at = (config.nets, config.method)
        cells.setdefault(at, {})[config.seed] = Run(place, report)
        knobs[at] = _setting(config, report)
    rows = [_row(at, cells[at], knobs[at]) for at in cells]
    rows.sort(key=lambda row: (row.parts["nets"], -(row.validation or 0.0)))
    gains = correct_gains([gain_of_row(row) for row in rows])
    ranks = ranks_of(_scores(cells))
    said = [*_findings(rows, gains), *(_of_ranks(ranks) if ranks else ())]
    title = f"Comparison {folder.name}"
    about = _about(configs)
    texts = {
        "comparison.md": markdown_of(title, about, rows, gains, said),
        "comparison.csv": as_csv(rows, gains),
    }
    more = []
    if ranks:
        plot = critical_difference_plot(ranks)
        svg = texts["critical_difference.svg"] = as_svg(plot)
        caption = f"Mean ranks by test accuracy. {_of_ranks(ranks)[-1]}"
        more.append(
            svg_picture(svg, caption, "Critical differences", round(96 * plot.get_figwidth()))
        )
    texts["comparison.html"] = page_of(title, about, rows, gains, said, more)
    write_texts(texts, folder)
    return texts["comparison.md"]


def _setting(config: CompareConfig, report: Report) -> dict[str, str]:
    """Return the numbers that the search chose, as the run's config has them."""
    if not config.n_trials:
        return {}
    found = OmegaConf.create(report.config)
    names = (knob.name for knob in config.request().space.knobs if not knob.of_group)
    return dict(part(name, OmegaConf.select(found, name)) for name in names)


def _row(at: tuple[str, str], runs: Mapping[int, Run], knobs: Mapping[str, str]) -> Row:
    nets, method = at
    ordered = [runs[seed] for seed in sorted(runs)]
    return Row(settings_of(ordered[0]), {"nets": nets, "loss": method, **knobs}, ordered)


def _about(configs: Sequence[CompareConfig]) -> str:
    first = configs[0]
    how = (
        f"Each method's numbers were chosen on validation by {first.n_trials} trials for each pair "
        f"of nets, all with seed {first.trial_seed}; the first trial has the numbers of its file."
        if first.n_trials
        else "Each method has the numbers of its file, or the published ones where the experiment "
        "has a table of them; nothing was tuned."
    )
    kept = "the last epoch" if first.keep == "last" else "the epoch best on validation"
    return (
        f"{how} Test was read once for each run. `{BASELINE}` is the baseline: the same recipe, "
        f"not tuned. Accuracy is that of {kept}."
    )


def _scores(cells: Cells) -> dict[str, list[float]]:
    """Return test accuracies by method over the problems that all methods have.

    A problem is a pair of nets with a seed.
    """
    methods = list(dict.fromkeys(method for _, method in cells))
    by_problem: dict[tuple[str, int], dict[str, Run]] = {}
    for (nets, method), runs in cells.items():
        for seed, run in runs.items():
            by_problem.setdefault((nets, seed), {})[method] = run
    whole = [runs for runs in by_problem.values() if len(runs) == len(methods)]
    found = {
        method: [accuracy_on_test(runs[method].report.student) for runs in whole]
        for method in methods
    }
    baselines = [_baseline(runs) for runs in whole]
    if all(each is not None for each in baselines):
        found[BASELINE] = [each for each in baselines if each is not None]
    return found


def _baseline(runs: Mapping[str, Run]) -> float | None:
    model = next(iter(runs.values())).model("baseline")
    return accuracy_on_test(model) if model else None


def _findings(rows: Sequence[Row], gains: Sequence[Gain]) -> list[str]:
    """State for each pair of nets which method is best on validation, and the tests' outcome."""
    found = []
    for nets in dict.fromkeys(row.parts["nets"] for row in rows):
        mine = [i for i, row in enumerate(rows) if row.parts["nets"] == nets]
        row = rows[mine[0]]
        if row.validation is not None and len(mine) > 1:
            gain = gains[mine[0]]
            over = f", {100 * gain.mean:+.2f} points over the baseline" if gain.mean else ""
            found.append(f"{nets}: best on validation is {row.parts['loss']}{over} on test.")
    tested = [gain for gain in gains if gain.corrected is not None]
    sure = [gain for gain in tested if gain.corrected is not None and gain.corrected < LEVEL]
    if tested:
        found.append(
            f"Of {len(tested)} rows tested against the baseline, {len(sure)} differ beyond chance, "
            f"at {100 * LEVEL:.0f} % for any false finding among all (Holm)."
        )
    return found


def _of_ranks(ranks: MeanRanks) -> list[str]:
    means = ", ".join(f"{name} {mean:.2f}" for name, mean in ranks.means.items())
    test = f"Friedman's p is {p_text(ranks.p)}" if ranks.p is not None else "two methods"
    bars = "; ".join(" and ".join((names[0], names[-1])) for names in ranks.alike)
    apart = f"not shown to differ: from {bars}" if bars else "all differ"
    return [
        f"Mean ranks over {ranks.problems} problems (a pair of nets with a seed): {means}.",
        f"{ranks.problems} problems, {test}; mean ranks differ if they are "
        f"{ranks.difference:.2f} or more apart (Nemenyi, 5 %): {apart}.",
    ]
