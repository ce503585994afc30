"""Make RESULTS.md and its pictures from the tables in this folder, or run the commands of one.

    python -m results.make                  write RESULTS.md and docs/img from the files here
    python -m results.make run NAME...      run or resume their commands, write the CSV files
    python -m results.make run --estimate   hours that each table took, from its own rows

A table is two files. `NAME.yaml` has the claim, the commands and the columns; `NAME.csv` has a line
for each run, as `kd.report` wrote it. No figure is written by hand.
"""

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from kd.summary.significance import Gain, gain_of, t_interval

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PICTURES = ROOT / "docs" / "img"
KEPT = (  # what is kept of kd.report's summary.csv, beside the knobs that differ
    *("name", "seed", "git"),
    *(
        f"{role}.{name}"
        for role in ("teacher", "baseline", "student")
        for name in (
            *("net", "params", "macs", "bytes", "latency_ms.median", "precision", "epochs"),
            *(
                f"test.{each}"
                for each in ("accuracy", "balanced_accuracy", "nll", "ece", "agreement", "auroc")
            ),
            *("val.best", "val.last", "seconds"),
        )
    ),
    *(
        f"comparison.{name}"
        for name in ("gain", "gain_ci95.low", "gain_ci95.high", "p_value", "gap_closed")
    ),
    *(f"environment.{name}" for name in ("device", "threads", "torch")),
)
GAIN, PAIRED = "comparison.gain", ".paired"
Runs = Sequence[dict[str, str]]


class Strict(BaseModel):
    """Refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Headline(Strict):
    """The row and the figure that answer the claim.

    Attributes:
        where: the row's knobs.
        of: a column of the CSV; a fraction.
        target: the least value that bears the claim out, a fraction; None where only "more than 0"
            is asked.
    """

    where: dict[str, str] = {}
    of: str = GAIN
    target: float | None = None


class Picture(Strict):
    """A picture of the table.

    Attributes:
        file: its name in docs/img.
        x: the knob along the axis.
        y: the knob down a heat map; None for lines with bands over the seeds.
    """

    file: str
    x: str
    y: str | None = None


class Spec(Strict):
    """A table.

    Attributes:
        order: its place in RESULTS.md.
        claim: what is claimed, and by whom.
        commands: that make its runs; they go on where they stopped.
        folders: where the runs are, below the output folder.
        rows: knobs by which runs are grouped; those of a group differ by their seed alone.
        columns: heading to a column of the CSV, and how it is shown: `%`, `points`, or plain.
        row: what a row is called where several tables stand in one; `{knob}` is the row's value.
        against: the knob's value of the runs that others of the same seed are compared with; gives
            each measure that `columns` or `headline` asks for as `MEASURE.paired`, the difference.
    """

    title: str
    order: int
    claim: str
    commands: list[str]
    folders: list[str]
    rows: list[str]
    columns: dict[str, str]
    caption: str
    row: str = ""
    against: dict[str, str] = {}
    headline: Headline = Headline()
    picture: Picture | None = None


def specs() -> dict[str, Spec]:
    """All tables by name, in their order."""
    found = {path.stem: Spec(**yaml.safe_load(path.read_text())) for path in HERE.glob("*.yaml")}
    return dict(sorted(found.items(), key=lambda item: item[1].order))


def runs_of(name: str) -> Runs:
    """The lines of a table's CSV; none where it was not run yet."""
    path = HERE / f"{name}.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


def paired(spec: Spec, runs: Runs) -> Runs:
    """The runs, each with its differences from the run of the same seed that it is compared with.

    Runs that others are compared with have none.
    """
    if not spec.against:
        return runs
    asked = {each.partition(" ")[0] for each in (*spec.columns.values(), spec.headline.of)}
    measures = [each.removesuffix(PAIRED) for each in asked if each.endswith(PAIRED)]
    others = {run["seed"]: run for run in runs if spec.against.items() <= run.items()}
    return [
        run
        if run is (other := others[run["seed"]])
        else {
            **run,
            **{name + PAIRED: str(float(run[name]) - float(other[name])) for name in measures},
        }
        for run in runs
    ]


def grouped(runs: Runs, knobs: Sequence[str]) -> dict[tuple[str, ...], Runs]:
    """Runs by the values of these knobs, in the order of the CSV."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for run in runs:
        groups.setdefault(tuple(run[knob] for knob in knobs), []).append(run)
    return dict(groups)


def numbers(runs: Runs, column: str) -> list[float]:
    """The column's numbers; a run that has none is left out."""
    return [float(run[column]) for run in runs if run.get(column)]


def gain(runs: Runs, column: str = GAIN) -> Gain:
    """The student's gain over the baseline of the same seed, or another column of differences."""
    values = numbers(runs, column)
    low, high, p = (
        numbers(runs, f"comparison.{name}") if column == GAIN else []
        for name in ("gain_ci95.low", "gain_ci95.high", "p_value")
    )
    images = [((low[0], high[0]) if low else None, p[0] if p else None)] * len(values)
    return gain_of(values, images)


def cell(runs: Runs, asked: str) -> str:
    """A cell: mean, standard deviation over the seeds, and for a gain its 95 % interval."""
    column, _, kind = asked.partition(" ")
    if column == "n":
        return str(len(runs))
    if kind == "points":
        found = gain(runs, column)
        if found.mean is None:
            return ""
        interval = (
            found.interval and f" [{100 * found.interval[0]:+.2f}, {100 * found.interval[1]:+.2f}]"
        )
        return f"{100 * found.mean:+.2f}{spread(found.values, 100)}{interval or ''}"
    if kind:
        scale, digits = (100.0, 2) if kind == "%" else (1.0, int(kind))
        values = numbers(runs, column)
        return (
            f"{scale * statistics.fmean(values):.{digits}f}{spread(values, scale, digits)}"
            if values
            else ""
        )
    return ", ".join(dict.fromkeys(run[column] for run in runs))


def spread(values: Sequence[float], scale: float, digits: int = 2) -> str:
    """The standard deviation, where there are several values that differ."""
    if len(set(values)) < 2:
        return ""
    return f" ± {scale * statistics.stdev(values):.{digits}f}"


def found(spec: Spec, runs: Runs) -> tuple[str, str, str, str]:
    """What answers the claim: the figure, n, its interval, and the verdict."""
    chosen = [
        run
        for run in paired(spec, runs)
        if all(run.get(key) == value for key, value in spec.headline.where.items())
    ]
    values = numbers(chosen, spec.headline.of)
    if not values:  # a table may be made in parts
        return "not run yet", "", "", ""
    points = spec.headline.of == GAIN or spec.headline.of.endswith(PAIRED)
    mean, sign = statistics.fmean(values), "+" if points else ""
    interval = gain(chosen, spec.headline.of).interval if points else t_interval(values)
    shown = f"{100 * interval[0]:{sign}.2f} to {100 * interval[1]:{sign}.2f}" if interval else ""
    unit = "points" if points else "%"
    return (
        f"{100 * mean:{sign}.2f} {unit}",
        str(len(values)),
        shown,
        verdict(spec.headline.target, mean, interval),
    )


def verdict(target: float | None, mean: float, interval: tuple[float, float] | None) -> str:
    """Whether the claim is borne out."""
    if target is not None:
        return "reached" if mean >= target else "not reached"
    if interval is None:
        return "one run, or no spread: not known"
    if interval[0] > 0:
        return "a gain beyond chance"
    return "a loss beyond chance" if interval[1] < 0 else "no difference shown"


def table(spec: Spec, runs: Runs) -> str:
    """The table in Markdown."""
    lines = [list(spec.columns), ["---", *["---:"] * (len(spec.columns) - 1)]]
    for group in grouped(paired(spec, runs), spec.rows).values():
        lines.append([cell(group, asked) for asked in spec.columns.values()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def joined(named: dict[str, Spec]) -> str:
    """Several tables as one, in Markdown: the columns that all have, and the name of each row."""
    first, *others = (spec.columns.items() for spec in named.values())
    columns = [column for column in first if all(column in each for each in others)]
    lines = [["", *(heading for heading, _ in columns)], ["---", *["---:"] * len(columns)]]
    for name, spec in named.items():
        for values, group in grouped(runs_of(name), spec.rows).items():
            row = spec.row
            for knob, value in zip(spec.rows, values, strict=True):
                row = row.replace(f"{{{knob}}}", f"{int(value):,}" if value.isdigit() else value)
            lines.append([row, *(cell(group, asked) for _, asked in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(page: str) -> str:
    """A page with each block `<!-- table NAME... --> ... <!-- end -->` as the tables are now."""
    tables = specs()

    def block(found: re.Match[str]) -> str:
        names = found[1].split()
        named = {name: tables[name] for name in names}
        one = len(names) == 1
        made = table(named[names[0]], runs_of(names[0])) if one else joined(named)
        return f"<!-- table {found[1]} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- table ([\w ]+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def pages() -> dict[Path, str]:
    """All that is made, but for the pictures: RESULTS.md, and the pages that show a table."""
    found = {ROOT / "RESULTS.md": document()}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        if "<!-- table " in text:
            found[path] = filled(text)
    return found


def section(name: str, spec: Spec) -> str:
    """A table of RESULTS.md."""
    runs = runs_of(name)
    lines = [
        f"## {spec.title}",
        f"*{spec.claim}*",
        "```bash\n" + "\n".join(spec.commands) + "\n```",
    ]
    lines.append(table(spec, runs))
    if spec.picture:
        lines.append(f"![{spec.title}](docs/img/{spec.picture.file})")
    return "\n\n".join([*lines, spec.caption.strip(), made(runs)])


def made(runs: Runs) -> str:
    """Where the runs of a table were made."""
    device, threads, torch = (
        ", ".join(dict.fromkeys(run.get(f"environment.{name}") or "?" for run in runs))
        for name in ("device", "threads", "torch")
    )
    commits = ", ".join(dict.fromkeys(run["git"][:7] for run in runs))
    return (
        f"{len(runs)} runs on {device}, {threads} thread(s), torch {torch}, commit {commits}; "
        f"{hours(runs):.1f} hours of training in all."
    )


def hours(runs: Runs) -> float:
    """Hours of training; a stage that several runs share counts once."""
    stages = {
        (role, run.get(f"{role}.val.best", "") + run[f"{role}.seconds"]): float(
            run[f"{role}.seconds"]
        )
        for run in runs
        for role in ("teacher", "baseline", "student")
        if run.get(f"{role}.seconds")
    }
    return sum(stages.values()) / 3600


def document() -> str:
    """RESULTS.md."""
    tables = specs()
    waiting = [
        f"- {spec.title} (`make results-run ARGS={name}`): {spec.claim}."
        for name, spec in tables.items()
        if not runs_of(name)
    ]
    tables = {name: spec for name, spec in tables.items() if runs_of(name)}
    rows = [
        "| "
        + " | ".join(
            [f"[{spec.title}](#{anchor(spec.title)})", spec.claim, *found(spec, runs_of(name))]
        )
        + " |"
        for name, spec in tables.items()
    ]
    head = (
        "# Results\n\nMade by `make results` from the files in `results/`; `make results-run "
        "ARGS=NAME` runs one again. Accuracies are on the test part, in per cent. Weights "
        "and recipes are chosen on validation. ± is the standard deviation over the seeds; "
        "intervals are 95 %, Student's t over the seeds, or over the test images where there "
        "is one seed.\n\n| table | claim | found | n | interval | verdict "
        "|\n|---|---|---:|---:|---|---|"
    )
    sections = [section(name, spec) for name, spec in tables.items()]
    if waiting:
        sections.append("## Not run yet\n\n" + "\n".join(waiting))
    return "\n\n".join(["\n".join([head, *rows]), *sections]) + "\n"


def anchor(title: str) -> str:
    """The anchor that Markdown gives a heading."""
    kept = "".join(each for each in title.lower() if each.isalnum() or each in " -_")
    return kept.replace(" ", "-")


def pictures() -> Iterator[tuple[str, bytes]]:
    """File names in docs/img and their SVG."""
    from results.figures import draw  # importing matplotlib takes a second

    for name, spec in specs().items():
        if spec.picture and (runs := runs_of(name)):
            yield spec.picture.file, draw(runs, spec.picture.x, spec.picture.y)


def write() -> None:
    """Write RESULTS.md, the tables in other pages, and the pictures."""
    for path, text in pages().items():
        path.write_text(text)
    for file, svg in pictures():
        PICTURES.mkdir(parents=True, exist_ok=True)
        (PICTURES / file).write_bytes(svg)


def run(name: str) -> None:
    """Run or resume a table's commands, and write its CSV."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in specs()[name].commands:
        subprocess.run(command, shell=True, check=True, cwd=ROOT, env={**os.environ, "PATH": path})
    collect(name)


def collect(name: str) -> None:
    """Write the lines of a table's finished runs to its CSV.

    Lines of runs that are not here stay, as a table may be made on several machines.
    """
    spec = specs()[name]
    output = Path(os.environ.get("KD_OUTPUT_DIR", ROOT / "outputs"))
    folders = [output / each for each in spec.folders if (output / each).is_dir()]
    subprocess.run(
        [sys.executable, "-m", "kd.report", *map(str, folders)],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    lines = list(csv.DictReader((folders[0] / "summary.csv").open()))
    for line in lines:
        for folder in folders:
            lacking = [knob for knob in spec.rows if not line.get(knob)]
            line |= measured(folder / line["name"], lacking)
    lines = added(lines, runs_of(name), [*spec.rows, "seed"])
    shown = [asked.partition(" ")[0] for asked in spec.columns.values()]
    shown = [each for each in shown if each != "n" and not each.endswith(PAIRED)]
    columns = dict.fromkeys([*spec.rows, *KEPT, *shown])
    with (HERE / f"{name}.csv").open("w") as file:
        writer = csv.DictWriter(
            file, [*columns], extrasaction="ignore", lineterminator="\n", restval=""
        )
        writer.writeheader()
        writer.writerows(
            sorted(
                lines,
                key=lambda line: [natural(line.get(knob, "")) for knob in [*spec.rows, "seed"]],
            )
        )


def added(lines: Runs, before: Runs, knobs: Sequence[str]) -> list[dict[str, str]]:
    """New lines, and those from before that none of them replaces, being of the same knobs."""
    new = {tuple(line.get(knob) for knob in knobs) for line in lines}
    return [
        *lines,
        *(line for line in before if tuple(line.get(knob) for knob in knobs) not in new),
    ]


def measured(run: Path, knobs: Sequence[str] = ()) -> dict[str, str]:
    """What a run's folder holds beside its line in the summary.

    The accuracy with test-time flips, that at the operating point, and that of the exported files.

    Args:
        knobs: whose values are wanted too; the summary has those alone that differ between runs.
    """
    found: dict[str, Any] = {}
    if (path := run / "report.json").exists():
        config = json.loads(path.read_text())["config"]
        for knob in knobs:
            value: Any = config
            for key in knob.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, str | int | float):
                found[knob] = value
    if (path := run / "evaluation.json").exists():
        evaluation = json.loads(path.read_text())
        for model in evaluation["models"]:
            if model.get("flipped"):
                found[f"{model['role']}.flipped.accuracy"] = model["flipped"]["accuracy"]
        for role, point in ((evaluation.get("operating_point") or {}).get("models") or {}).items():
            test = point["test"]
            found[f"{role}.point.balanced_accuracy"] = (
                test["sensitivity"] + test["specificity"]
            ) / 2
    if (path := run / "export" / "export.json").exists():
        for file in json.loads(path.read_text())["files"]:
            if file.get("test") and not file["refused"]:
                found[f"{file['role']}.{file['format']}.accuracy"] = file["test"]["accuracy"]
                found[f"{file['role']}.{file['format']}.bytes"] = file["bytes"]
    return {name: str(value) for name, value in found.items()}


def natural(text: str) -> tuple[float, str]:
    """Numbers by size, before words."""
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def main() -> None:
    """Write the document, or run tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", nargs="?", choices=["write", "run"], default="write")
    parser.add_argument(
        "names", nargs="*", help="tables to run; all those without a CSV if none is named"
    )
    parser.add_argument(
        "--estimate", action="store_true", help="say what each took, and run nothing"
    )
    asked = parser.parse_args()
    tables = specs()
    if unknown := set(asked.names) - set(tables):
        parser.error(f"unknown table {', '.join(sorted(unknown))}; there are {', '.join(tables)}")
    if asked.estimate:
        for name in tables:
            taken = hours(runs_of(name))
            print(f"{name:30} {f'{taken:.1f} h' if taken else 'not run yet'}")
        return
    for name in (
        (asked.names or [each for each in tables if not runs_of(each)])
        if asked.verb == "run"
        else ()
    ):
        run(name)
    write()


if __name__ == "__main__":
    main()
