"""`python -m kd.store`: list what the output folder holds, its size, and which runs need it.

python -m kd.store                          list stages, teachers' outputs and decoded images
python -m kd.store --check                  also read all of it, and verify the checksums
python -m kd.store prune --unused           remove what no run refers to; asks first
python -m kd.store prune --days 30 --yes    remove what was not used for 30 days, without asking
python -m kd.store prune --gigabytes 50     remove the least recently used until 50 GB are left
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from kd.command import run_command
from kd.errors import CommandError, UserError
from kd.files.inventory import DAY, Check, Kind, StoreItem, inventory, remove, select
from kd.log import bytes_of, number_of, printable


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
    parser.add_argument("--check", action="store_true", help="read all and verify the checksums")
    parser.add_argument("--unused", action="store_true", help="what no run refers to")
    parser.add_argument("--days", type=amount, help="entries unused for this many days")
    parser.add_argument(
        "--gigabytes", type=amount, help="least recently used entries, until this size is left"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    asked = parser.parse_args()
    output = asked.output.expanduser()
    if not output.is_dir():
        raise UserError(f"--output: there is no folder {output.absolute()}")
    entries = inventory(output, checks() if asked.check else None)
    if asked.verb == "list":
        show(entries)
        return
    if not (asked.unused or asked.days is not None or asked.gigabytes is not None):
        raise UserError("prune: say what to remove, by --unused, --days or --gigabytes")
    prune(
        select(entries, unused=asked.unused, days=asked.days, gigabytes=asked.gigabytes), asked.yes
    )


def amount(text: str) -> float:
    """Read a number from 0 on."""
    found = float(text)  # argparse names the option where it is none
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"found {text}; accepted are numbers from 0")
    return found


def checks() -> Mapping[Kind, Check]:
    """Return what reads and verifies an entry of each cache."""
    # Importing them takes a second
    from kd.data import cache
    from kd.teachers import view_files

    return {"decoded images": cache.damage_of, "teacher answers": view_files.damage_of}


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
            bytes_of(entry.bytes),
            f"{days:.0f} days ago",
            printable(runs),
            printable(about),
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    kinds = dict.fromkeys(entry.kind for entry in entries)
    for kind in kinds:
        own = [entry for entry in entries if entry.kind == kind]
        console.print(f"{kind}: {len(own)}, {bytes_of(sum(entry.bytes for entry in own))}")


def prune(entries: list[StoreItem], yes: bool) -> None:
    """Remove entries, after confirmation.

    Raises:
        UserError: there is nobody to ask.
        CommandError: another process holds some of them.
    """
    if not entries:
        print("Nothing to remove.")
        return
    show(entries)
    if not (yes or _consent(entries)):
        print("Nothing was removed.")
        return
    kept = [entry.path.name for entry in entries if not remove(entry)]
    print(f"Removed {number_of(len(entries) - len(kept), 'folder')}.")
    if kept:
        raise CommandError(f"in use by another process, so not removed: {', '.join(kept)}")


def _consent(entries: list[StoreItem]) -> bool:
    size = bytes_of(sum(entry.bytes for entry in entries))
    try:
        said = input(f"Remove {number_of(len(entries), 'folder')}, {size}? [y/N] ")
    except EOFError:
        raise UserError("prune: nobody answers; --yes removes without asking") from None
    return said.strip().lower() == "y"


def start() -> NoReturn:
    """Run the command."""
    run_command(main, "kd.store")


if __name__ == "__main__":
    start()
