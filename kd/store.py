"""`python -m kd.store`: list what the output folder holds, its size, and which runs need it.

python -m kd.store                          list stages, teachers' outputs and decoded images
python -m kd.store --check                  also verify the checksums of all weights
python -m kd.store prune --unused           remove stages that no run refers to; asks first
python -m kd.store prune --days 30 --yes    remove what was not used for 30 days, without asking
python -m kd.store prune --gigabytes 50     remove the least recently used until 50 GB are left
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from kd.command import run_command
from kd.errors import CommandError, UserError
from kd.files.inventory import DAY, StoreItem, inventory, remove, select
from kd.log import printable
from kd.reports.units import short


def main() -> None:
    """List the contents of an output folder, or remove some."""
    parser = argparse.ArgumentParser(
        "python -m kd.store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", nargs="?", choices=["list", "prune"], default="list")
    parser.add_argument(
        "--output",
        type=Path,
        default=os.environ.get("KD_OUTPUT_DIR", "outputs"),
        help="the output folder; KD_OUTPUT_DIR or outputs if it is not given",
    )
    parser.add_argument("--check", action="store_true", help="read all weights and check them")
    parser.add_argument("--unused", action="store_true", help="stages that no run refers to")
    parser.add_argument("--days", type=float, help="entries unused for this many days")
    parser.add_argument(
        "--gigabytes", type=float, help="least recently used entries, until this size is left"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    asked = parser.parse_args()
    output = asked.output.expanduser()
    if not output.is_dir():
        raise UserError(f"--output: there is no folder {output.absolute()}")
    entries = inventory(output, check=asked.check)
    if asked.verb == "list":
        show(entries)
        return
    if not (asked.unused or asked.days is not None or asked.gigabytes is not None):
        raise UserError("prune: say what to remove, by --unused, --days or --gigabytes")
    prune(
        select(entries, unused=asked.unused, days=asked.days, gigabytes=asked.gigabytes), asked.yes
    )


def show(entries: list[StoreItem]) -> None:
    """Print the entries as a table, and their sum by kind."""
    table = Table("kind", "folder", "size", "last used", "needed by", "what it is")
    for entry in entries:
        days = (time.time() - entry.used) / DAY
        runs = (
            f"{entry.needed_by[0]}{', ...' if len(entry.needed_by) > 1 else ''}"
            if entry.needed_by
            else ""
        )
        about = f"DAMAGED: {entry.damage}" if entry.damage else entry.about
        table.add_row(
            entry.kind,
            entry.path.name,
            f"{short(entry.bytes)}B",
            f"{days:.0f} days ago",
            printable(runs),
            about,
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    kinds = dict.fromkeys(entry.kind for entry in entries)
    for kind in kinds:
        own = [entry for entry in entries if entry.kind == kind]
        console.print(f"{kind}: {len(own)}, {short(sum(entry.bytes for entry in own))}B")


def prune(entries: list[StoreItem], yes: bool) -> None:
    """Remove entries, after confirmation.

    Raises:
        CommandError: another process holds some of them.
    """
    if not entries:
        print("Nothing to remove.")
        return
    show(entries)
    whole = short(sum(entry.bytes for entry in entries))
    if (
        not yes
        and input(f"Remove these {len(entries)} folders, {whole}B? [y/N] ").strip().lower() != "y"
    ):
        print("Nothing was removed.")
        return
    kept = [entry.path.name for entry in entries if not remove(entry)]
    print(f"Removed {len(entries) - len(kept)} folders.")
    if kept:
        raise CommandError(f"in use by another process, so not removed: {', '.join(kept)}")


def start() -> NoReturn:
    """Run the command."""
    run_command(main, "kd.store")


if __name__ == "__main__":
    start()
