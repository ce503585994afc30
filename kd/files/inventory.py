"""Contents of an output folder: stages, teacher outputs, decoded images, and who needs them."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kd.files.locks import free
from kd.files.store import checksum
from kd.log import number_of

Kind = Literal["stage", "unfinished stage", "teacher answers", "decoded images"]
DAY = 86_400.0


@dataclass(frozen=True)
class StoreItem:
    """A folder that may be removed as a whole.

    Attributes:
        bytes: size of all files in it.
        used: time of the last write or read, in seconds since 1970.
        needed_by: names of the runs made from it; empty for caches, which are rebuilt on demand.
        about: description for people.
        damage: what is wrong with it; empty if nothing is.
    """

    path: Path
    kind: Kind
    bytes: int
    used: float
    needed_by: tuple[str, ...] = ()
    about: str = ""
    damage: str = ""


def inventory(output: Path, *, check: bool = False) -> list[StoreItem]:
    """List all entries of an output folder, the largest first.

    Args:
        check: verify each stage's weights against their checksum, which reads them all.
    """
    needed = _runs_by_stage(output)
    found = [*_stages(output / "store", needed, check), *_caches(output / "cache")]
    return sorted(found, key=lambda entry: -entry.bytes)


def select(
    entries: Sequence[StoreItem],
    *,
    unused: bool = False,
    days: float | None = None,
    gigabytes: float | None = None,
) -> list[StoreItem]:
    """Choose the entries that these rules remove.

    Args:
        unused: stages that no run refers to, also unfinished and damaged ones.
        days: entries unused for this many days.
        gigabytes: least recently used entries, until the rest is no larger than this (10^9 bytes).
    """
    found = [
        entry
        for entry in entries
        if (unused and entry.kind.endswith("stage") and (not entry.needed_by or entry.damage))
        or (days is not None and time.time() - entry.used > days * DAY)
    ]
    if gigabytes is not None:
        left = [
            entry for entry in sorted(entries, key=lambda each: each.used) if entry not in found
        ]
        total = sum(entry.bytes for entry in left)
        for entry in left:
            if total <= gigabytes * 1e9:
                break
            found.append(entry)
            total -= entry.bytes
    return found


def remove(entry: StoreItem) -> bool:
    """Remove an entry unless another process holds it; returns whether it is gone."""
    name = entry.path.name.removesuffix(".partial")
    locks = [entry.path.parent / f"{name}.lock"]
    if entry.kind == "teacher answers":
        locks = [*entry.path.glob("lock-*")]  # one a view, while it is computed
    with ExitStack() as held:
        if not all(held.enter_context(free(lock)) for lock in locks):
            return False
        shutil.rmtree(entry.path, ignore_errors=True)
        return not entry.path.exists()


def _runs_by_stage(output: Path) -> dict[str, list[str]]:
    """Map each stage key to the names of runs that need it, directly or through later stages."""
    found: dict[str, list[str]] = {}
    for report in sorted(output.glob("*/**/report.json")):
        try:
            models = json.loads(report.read_text())["models"]
            left = [str(model["stage"]) for model in models]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        seen: set[str] = set()
        while left:
            key = left.pop()
            if key not in seen:
                seen.add(key)
                found.setdefault(key, []).append(report.parent.name)
                left += _parent_keys(output / "store" / key)
    return found


def _parent_keys(folder: Path) -> list[str]:
    """Return the keys of the stages named in a stage's spec."""
    try:
        spec = json.loads((folder / "stage.json").read_text())["spec"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    keys = [spec.get("teacher"), spec.get("start"), *(spec.get("members") or [])]
    return [key for key in keys if isinstance(key, str)]


def _stages(store: Path, needed: dict[str, list[str]], check: bool) -> Iterator[StoreItem]:
    for folder in sorted(store.glob("*/")):
        if folder.name.endswith(".partial"):
            yield StoreItem(folder, "unfinished stage", *_size(folder))
            continue
        about, damage = _look_at(folder, check)
        yield StoreItem(
            folder, "stage", *_size(folder), tuple(needed.get(folder.name, ())), about, damage
        )


def _look_at(folder: Path, check: bool) -> tuple[str, str]:
    """Describe a stage and its damage, if any."""
    try:
        record = json.loads((folder / "stage.json").read_text())
        net = str(record["spec"]["net"]["_target_"]).rpartition(".")[2]
        about = f"{net}, {number_of(record['epochs'], 'epoch')}"
        wanted = record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return "", "stage.json is missing or damaged"
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        return about, "weights.safetensors is missing"
    if check and checksum(weights) != wanted:
        return about, "the checksum of weights.safetensors is wrong"
    return about, ""


def _caches(cache: Path) -> Iterator[StoreItem]:
    for folder in sorted(cache.glob("teacher/*/")):
        views = len([*folder.glob("view-*/manifest.json")])
        broken = [each.name for each in sorted(folder.glob("view-*/")) if _is_incomplete(each)]
        damage = f"{broken[0]} is unfinished or incomplete" if broken else ""
        yield StoreItem(
            folder, "teacher answers", *_size(folder), about=f"{views} views", damage=damage
        )
    for folder in sorted(cache.glob("*/")):
        if folder.name != "teacher":
            damage = "unfinished or incomplete" if _is_incomplete(folder) else ""
            yield StoreItem(folder, "decoded images", *_size(folder), damage=damage)


def _is_incomplete(folder: Path) -> bool:
    """Whether an entry of a cache was left unfinished, or lacks its manifest."""
    if folder.name.endswith(".partial"):
        return True
    try:
        json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return True
    return False


def _size(folder: Path) -> tuple[int, float]:
    """Return the bytes of all files in a folder, and the time of the last write or use."""
    states = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(each.st_size for each in states), max(
        (each.st_mtime for each in states), default=0.0
    )
