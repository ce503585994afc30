"""Result of an export as text and tables, for the terminal and `export.md`."""

from rich import box
from rich.table import Table

from kd.files.export_file import ExportedFile, ExportRecord
from kd.log import number_of, short
from kd.reports.escape import as_code, escape_record

COLUMNS = (
    "file",
    "size",
    "largest difference",
    "accuracy on test [95 %]",
    "in float32",
    "same class",
)
WORTH_SAYING = 0.5  # points of accuracy that int8 may lose without a remark


def rows(found: ExportRecord) -> list[list[str]]:
    """Make a row per file, in the order of `COLUMNS`."""
    return [_row(each) for each in found.files]


def _row(each: ExportedFile) -> list[str]:
    if each.bytes is None:
        return [each.file, "refused", "", "", "", ""]
    size = "refused" if each.refused else f"{short(each.bytes)}B"
    worst = "" if each.max_difference is None else f"{each.max_difference:.2g}"
    if each.test is None:
        return [each.file, size, worst, "", "", ""]
    low, high = (100 * bound for bound in each.test.accuracy_ci95)
    return [
        each.file,
        size,
        worst,
        f"{100 * each.test.accuracy:.2f} % [{low:.1f}, {high:.1f}]",
        f"{100 * each.test.float32:.2f} %",
        f"{100 * each.test.same_class:.1f} %",
    ]


def sentences(found: ExportRecord) -> list[str]:
    """List remarks on the files."""
    fed = "pixels in [0, 1]" if found.normalizes else "pixels that are normalised already"
    lines = [
        f"They take {fed}, float32 [batch, channels, height, width], and give logits [batch, "
        f"classes]."
    ]
    if found.without_data:
        lines.append(f"Checked only on random pixels, as the data is missing: {found.without_data}")
    for each in found.files:
        if each.refused:
            lines.append(f"{each.file} is refused and removed: {each.refused}.")
        elif each.val and each.test:
            val = 100 * (each.val.accuracy - each.val.float32)
            test = 100 * (each.test.accuracy - each.test.float32)
            lines.append(
                f"{each.format} next to float32: {val:+.2f} points on {each.val.images} validation "
                f"images, {test:+.2f} on {each.test.images} test images."
            )
            if each.format == "int8" and val < -WORTH_SAYING:
                lines.append(
                    f"That is a loss of more than {WORTH_SAYING} points; try calibration=1000, "
                    f"or experiment=quantize."
                )
    return lines


def _nets(found: ExportRecord) -> list[str]:
    """Say of each net among the files how large it is, and which run it is of."""
    nets = dict.fromkeys((each.role, each.run, each.params) for each in found.files)
    return [
        f"- The {role}: {params:,} parameters as it is exported, of {run}."
        for role, run, params in nets
        if params is not None
    ]


def as_table(found: ExportRecord) -> Table:
    """Make the table for the terminal, within 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, column in enumerate(COLUMNS):
        table.add_column(
            column.replace(" [", "\n\\["), justify="left" if i == 0 else "right", overflow="fold"
        )
    for row in rows(found):
        table.add_row(*(cell.replace(" [", "\n\\[") for cell in row))
    return table


def as_markdown(found: ExportRecord) -> str:
    """Format `export.md`."""
    command, found = as_code(found.command), escape_record(found)
    env = found.environment
    checked = ", ".join(f"{count} {name}" for name, count in found.checked_on.items())
    runs = {each.run for each in found.files} - {None}
    packages = ", ".join(f"{name} {found.versions[name]}" for name in sorted(found.versions))
    lines = [
        f"# Exported from {found.run}" if len(runs) == 1 else "# Exported files",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "|".join("---" if i == 0 else "---:" for i in range(len(COLUMNS))) + "|",
        *("| " + " | ".join(row) + " |" for row in rows(found)),
        "",
        *(f"- {line}" for line in sentences(found)),
        f"- The difference is that of the logits from PyTorch's, accepted in float32 is "
        f"{found.tolerance}. Images "
        f"to check on: {checked}; float32 on up to 512 of each part. In float16 a hundredth of the "
        "largest logit is accepted.",
        *_nets(found),
        f"- Last command: {command}, {found.finished}, commit {found.git or 'unknown'}.",
        f"- Python {env.python}, torch {env.torch}{', ' + packages if packages else ''}, "
        f"{env.device}, "
        f"{number_of(env.threads, 'thread')}.",
        "",
    ]
    return "\n".join(lines)
