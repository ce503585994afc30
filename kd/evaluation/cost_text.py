"""Costs of nets as text and tables, for the terminal and `benchmark.md`."""

from collections.abc import Sequence
from typing import TypeVar

from rich import box
from rich.markup import escape
from rich.table import Table

from kd.files.benchmark_file import BenchmarkRecord, TimingPlace
from kd.log import number_of, short
from kd.reports.escape import as_code, escape_record
from kd.reports.table import TextRows
from kd.shape import height_and_width

Timing = TypeVar("Timing", bound=TimingPlace)

LATENCY = (
    *("on", "backend", "batch", "net"),
    *("median, ms", "p95, ms", "passes", "images/s", "times as fast"),
)


def tables(found: BenchmarkRecord) -> list[Table]:
    """Make the tables for the terminal, within 80 columns: sizes and latencies by role."""
    roles = found.roles
    return [
        _table(["", *roles], cost_rows(found), 1),
        _table(LATENCY, latency_rows(found), 4, lines=True),
    ]


def _table(header: Sequence[str], rows: TextRows, left: int, lines: bool = False) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(escape(name), justify="left" if i < left else "right", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(
            *map(escape, row),
            end_section=lines and i + 1 < len(rows) and rows[i + 1][:3] != row[:3],
        )
    return table


def cost_rows(found: BenchmarkRecord) -> TextRows:
    """Make a row per cost: its name, then each role's value with its ratio to the teacher's."""
    models = found.models
    both = [(model, model.to_teacher) for model in models]
    rows = [
        ["net", *(model.net for model in models)],
        ["parameters", *(f"{short(m.params)}{_less(r.params if r else None)}" for m, r in both)],
        ["MACs", *(f"{short(m.macs)}{_less(r.macs if r else None)}" for m, r in both)],
        ["safetensors", *(f"{short(m.bytes)}B{_less(r.bytes if r else None)}" for m, r in both)],
        *_size_row("ONNX, float32", [model.onnx_bytes for model in models]),
        *_size_row("ONNX, int8", [model.onnx_int8_bytes for model in models]),
    ]
    for device, batches in models[0].peak_activation_bytes.items():
        for batch in batches:
            cells = [
                f"{short(m.peak_activation_bytes[device][batch])}B"
                f"{_less(r.peak_activation_bytes[device][batch] if r else None)}"
                for m, r in both
            ]
            rows.append([f"activations, {device}, batch {batch}", *cells])
    return rows


def _size_row(name: str, sizes: Sequence[int | None]) -> TextRows:
    """Make the row of a file's size, if any net has one."""
    if not any(size is not None for size in sizes):
        return []
    return [[name, *("-" if size is None else f"{short(size)}B" for size in sizes)]]


def _less(ratio: float | None) -> str:
    if ratio is None or ratio == 1:
        return ""
    return f" ({ratio:.3g}x less)" if ratio >= 1 else f" ({1 / ratio:.3g}x more)"


def latency_rows(found: BenchmarkRecord) -> TextRows:
    """Make a row per latency, in the order of `LATENCY`, grouped by device, backend and batch."""
    rows = []
    for place in places(found):
        for model in found.models:
            each = at(model.latency, place)
            if each is None:
                continue
            ratio = at(model.to_teacher.latency, place) if model.to_teacher else None
            faster = "" if ratio is None or model.role == "teacher" else f"{ratio.ratio:.3g}x"
            numbers = [
                f"{each.median:.3g}",
                f"{each.p95:.3g}",
                f"{each.passes:,}",
                short(each.images_per_second),
                faster,
            ]
            rows.append([place[0], place[1], str(place[2]), model.role, *numbers])
    return rows


def places(found: BenchmarkRecord) -> list[tuple[str, str, int]]:
    """List device, backend and batch of all latencies, by device, then batch, then backend."""
    known = list(dict.fromkeys(row.place for model in found.models for row in model.latency))
    return sorted(
        known, key=lambda place: (place[0], place[2], [each[1] for each in known].index(place[1]))
    )


def at(rows: Sequence[Timing], place: tuple[str, str, int]) -> Timing | None:
    """Return the row of a device, backend and batch, if there is one."""
    return next((row for row in rows if row.place == place), None)


def sentences(found: BenchmarkRecord) -> list[str]:
    """List notes for reading the tables."""
    env = found.environment
    threads = number_of(env.threads, "thread")
    gpu = "" if env.device == env.cpu else f"; {env.device}"
    lines = [
        f"{env.cpu}, {threads}{gpu}; warm, about {found.seconds:g} s for each row, in "
        f"{found.rounds} rounds of turns. In brackets and in the last column: relative to "
        "the teacher. Median and p95 (95th percentile) are over the passes of this one process.",
        "Activations: the most that is held at once beyond weights and images, in PyTorch as it "
        "is.",
    ]
    lines += [f"No {role}: {reason}" for role, reason in found.missing.items()]
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for each in found.unavailable:
        reasons.setdefault((each.device, each.backend, each.reason), []).append(each.role)
    for (device, backend, reason), roles in reasons.items():
        lines.append(
            f"Not run: {backend} on {device} ({', '.join(dict.fromkeys(roles))}): {reason}"
        )
    return lines


def as_markdown(found: BenchmarkRecord) -> str:
    """Format `benchmark.md`: all results, and how to repeat them."""
    command, run, found = as_code(found.command), as_code(found.run), escape_record(found)
    roles = found.roles
    env = found.environment
    stages = ", ".join(f"{model.role} {model.stage}" for model in found.models)
    channels, size, _ = found.shape
    height, width = height_and_width(size)
    parts = [
        [f"# Costs of the nets of {found.name}"],
        _markdown(["", *roles], cost_rows(found), 1),
        _markdown(LATENCY, latency_rows(found), 4),
        ["![Latencies](benchmark.png)"],
        [f"- {line}" for line in sentences(found)],
        [
            "## How",
            "",
            f"- Command: {command}",
            f"- Run: {run}; stages {stages}; images of {channels}x{height}x{width}.",
            "- MACs: multiply-accumulates of convolutions, matrix products and attention for "
            "one image. The ONNX files normalise the images themselves; int8 is calibrated "
            "on random images, which changes its outputs, not its speed.",
            f"- Finished {found.finished}, commit {found.git or 'unknown'}; Python "
            f"{env.python}, torch "
            f"{env.torch}.",
        ],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def _markdown(header: Sequence[str], rows: TextRows, left: int) -> list[str]:
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return ["| " + " | ".join(line) + " |" for line in [header, rule, *rows]]
