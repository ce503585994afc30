"""Contents of an output folder: stages, teacher outputs, decoded images, and who needs them."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kd.files.locks import free
from kd.files.store import checksum
from kd.log import number_of

Kind = Literal["stage", "unfinished stage", "teacher answers", "decoded images"]
DAY = 86_400.0
UNKNOWN = "not noted"
Check = Callable[[Path], str]  # returns what is wrong with a folder, empty if nothing is


@dataclass(frozen=True)
class StoreItem:
    """A folder that may be removed as a whole.

    Attributes:
        bytes: size of all files in it.
        used: time of the last write or read, in seconds since 1970.
        needed_by: names of the runs made from it. Of a cache, those that would fill it again;
            `UNKNOWN` where it was filled before that was noted.
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


def inventory(output: Path, checks: Mapping[Kind, Check] | None = None) -> list[StoreItem]:
    """List all entries of an output folder, the largest first.

    Args:
        checks: of the caches, which read a view of a teacher's answers or a set of decoded images;
            with them weights are verified too. None looks at records and names alone.
    """
    runs = [*_runs(output)]
    needed = _runs_by_stage(output, runs)
    found = [
        *_stages(output / "store", needed, checks is not None),
        *_answers(output / "cache" / "teacher", needed, (checks or {}).get("teacher answers")),
        *_images(output / "cache", runs, (checks or {}).get("decoded images")),
    ]
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
        unused: what no run refers to, and what is unfinished or damaged.
        days: entries unused for this many days.
        gigabytes: least recently used entries, until the rest is no larger than this (10^9 bytes).
    """
    found = [
        entry
        for entry in entries
        if (unused and (not entry.needed_by or entry.damage))
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


@dataclass(frozen=True)
class _Run:
    """What a run's report says of its needs.

    Attributes:
        stages: keys of its models' stages.
        folders: of its images.
    """

    name: str
    stages: tuple[str, ...]
    folders: tuple[Path, ...]


def _runs(output: Path) -> Iterator[_Run]:
    for path in sorted(output.glob("*/**/report.json")):
        try:
            report = json.loads(path.read_text())
            stages = tuple(str(model["stage"]) for model in report["models"])
            config = report.get("config") or {}
            data = config.get("data") or {}
            other = (config.get("teacher") or {}).get("data") or {}
            said = (data.get("root"), data.get("unlabeled"), other.get("root"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        folders = tuple(Path(each).expanduser().absolute() for each in said if each)
        yield _Run(path.parent.name, stages, folders)


def _runs_by_stage(output: Path, runs: Sequence[_Run]) -> dict[str, list[str]]:
    """Map each stage key to the names of runs that need it, directly or through later stages."""
    found: dict[str, list[str]] = {}
    for run in runs:
        left = [*run.stages]
        seen: set[str] = set()
        while left:
            key = left.pop()
            if key not in seen:
                seen.add(key)
                found.setdefault(key, []).append(run.name)
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


def _answers(
    teachers: Path, needed: dict[str, list[str]], check: Check | None
) -> Iterator[StoreItem]:
    """Iterate over what is stored of teachers; each folder holds one teacher's views."""
    for folder in sorted(teachers.glob("*/")):
        views = sorted(folder.glob("view-*/"))
        manifests = [found for view in views if (found := _manifest(view)) is not None]
        teacher = next((each["teacher"] for each in manifests if each.get("teacher")), None)
        runs = (UNKNOWN,) if teacher is None else tuple(needed.get(teacher, ()))
        about = number_of(len(manifests), "view")
        if manifests and "rows" in manifests[0]:
            about += f" of {number_of(manifests[0]['rows'], 'image')}"
        about += f" by {teacher}" if teacher else ""
        yield StoreItem(
            folder, "teacher answers", *_size(folder), runs, about, _first_damage(views, check)
        )


def _images(cache: Path, runs: Sequence[_Run], check: Check | None) -> Iterator[StoreItem]:
    """Iterate over sets of decoded images."""
    for folder in sorted(cache.glob("*/")):
        if folder.name == "teacher":
            continue
        manifest = _manifest(folder) or {}
        place = manifest.get("place")
        needed = (
            (UNKNOWN,)
            if place is None
            else tuple(run.name for run in runs if any(_is_in(place, top) for top in run.folders))
        )
        about = ""
        if place is not None:
            count, *sizes = manifest["shape"]
            about = f"{number_of(count, 'image')} of {'x'.join(map(str, sizes))} from {place}"
        damage = "unfinished or incomplete" if _is_incomplete(folder) else ""
        if check and not damage:
            damage = check(folder)
        yield StoreItem(folder, "decoded images", *_size(folder), needed, about, damage)


def _is_in(place: str, folder: Path) -> bool:
    """Whether images lie in a run's folder, the first of them where they lie in several.

    Where the run names a file, or a pattern of files, they lie in the folder around it.
    """
    first = Path(place.partition(", ")[0]).absolute()
    return first.is_relative_to(folder) or folder.is_relative_to(first)


def _first_damage(views: Sequence[Path], check: Check | None) -> str:
    """Say what is wrong with the first view that is not whole; empty if all are."""
    for view in views:
        if _is_incomplete(view):
            return f"{view.name} is unfinished or incomplete"
        if check and (damage := check(view)):
            return f"{view.name}: {damage}"
    return ""


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a finished entry of a cache; None where there is none."""
    try:
        found = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and folder.suffix != ".partial" else None


def _is_incomplete(folder: Path) -> bool:
    """Whether an entry of a cache was left unfinished, or lacks its manifest."""
    return _manifest(folder) is None


def _size(folder: Path) -> tuple[int, float]:
    """Return the bytes of all files in a folder, and the time of the last write or use."""
    states = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(each.st_size for each in states), max(
        (each.st_mtime for each in states), default=folder.stat().st_mtime
    )
