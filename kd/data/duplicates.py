"""Images that occur more than once, pixel for pixel at the size the nets see."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kd.data.images import Images, Source
from kd.data.parts import same_pixels
from kd.errors import UserError

OnDuplicate = Literal["warn", "drop", "stop"]

PARTS = ("test", "validation", "train", "unlabeled")  # duplicates are dropped from the later part


@dataclass(frozen=True)
class Duplicates:
    """Counts of duplicate images.

    Attributes:
        within: per part, images that repeat an earlier one of that part.
        across: per pair of parts, as `test in train`: images of the first that also occur in the
            second.
        contradicting: images that occur with more than one label.
        examples: two images with equal pixels, by part and name; one per pair of parts.
        dropped: images removed, per part.
    """

    within: dict[str, int] = field(default_factory=dict)
    across: dict[str, int] = field(default_factory=dict)
    contradicting: int = 0
    examples: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    def text(self, sizes: Mapping[str, int]) -> str:
        """Describe the duplicates, the worst first; empty if there are none.

        Args:
            sizes: images per part.
        """
        words = []
        for pair, count in self.across.items():
            first, second = pair.split(" in ")
            words.append(f"of {sizes[first]} in {first} {count} also in {second}")
        if self.contradicting:
            words.append(f"under more than one label: {self.contradicting}")
        words += [f"in {part} more than once: {count}" for part, count in self.within.items()]
        such = f" (such as {'; '.join(self.examples)})" if self.examples else ""
        return f"duplicate images: {'; '.join(words)}{such}" if words else ""


def find_duplicates(parts: Mapping[str, Images]) -> tuple[Duplicates, dict[str, Tensor]]:
    """Find the duplicates in and between the parts, and the positions that `drop` would keep.

    Train keeps what no other labelled part has: the first of equal images, and none if their labels
    contradict. Validation keeps what test does not have. The unlabelled images keep what no other
    part has. Test stays whole.

    Args:
        parts: by the names in `PARTS`, all of one image size.
    """
    names = [name for name in PARTS if name in parts]
    sizes = [len(parts[name]) for name in names]
    same = same_pixels(torch.cat([parts[name].pixels.facts.digests for name in names]))
    if same.max(initial=-1) == len(same) - 1:
        return Duplicates(), {name: torch.arange(len(parts[name])) for name in names}
    pictures = dict(zip(names, np.split(same, np.cumsum(sizes)[:-1]), strict=True))
    labels = np.concatenate([parts[name].labels.numpy() for name in names])
    known = np.concatenate([parts[name].has_label.numpy() for name in names])
    if labels.ndim == 2:
        labels = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    most = labels.max() + 1
    labelled = np.unique(same[known] * most + labels[known]) // most  # each image once per label
    torn = np.flatnonzero(np.bincount(labelled) > 1)
    within = {name: len(found) - len(np.unique(found)) for name, found in pictures.items()}
    across = {
        f"{one} in {other}": int(np.isin(pictures[one], pictures[other]).sum())
        for one, other in combinations(names, 2)
    }
    found = Duplicates(
        {name: count for name, count in within.items() if count},
        {pair: count for pair, count in across.items() if count},
        len(torn),
        [_example(pair, pictures, parts) for pair, count in across.items() if count],
    )
    return found, {name: _rows_to_keep(name, pictures, torn) for name in names}


def apply_policy(
    source: Source, pool: Images | None, policy: OnDuplicate, note: Callable[[str], None]
) -> tuple[Source, Images | None, Duplicates]:
    """Apply `data.on_duplicate` to a source and its unlabelled images, and tell what was found.

    Args:
        pool: the unlabelled images.
        note: receives a remark for people, where there are duplicates.

    Returns:
        the source and the unlabelled images, after `drop` without what it drops; the counts.

    Raises:
        UserError: there are duplicates and `policy` is `stop`, or `drop` empties a class.
    """
    given = {"train": source.train, "validation": source.val, "test": source.test}
    parts = {name: part for name, part in (given | {"unlabeled": pool}).items() if part is not None}
    found, kept = find_duplicates(parts)
    text = found.text({name: len(part) for name, part in parts.items()})
    if not text:
        return source, pool, found
    if policy == "stop":
        raise UserError(
            f"data.on_duplicate: found {text}. Repair the folders, or set data.on_duplicate to "
            "warn, or to drop, which takes them out of train"
        )
    if policy == "warn":
        out = "train" if pool is None else "train and unlabeled"
        note(f"{text}; data.on_duplicate=drop takes them out of {out}")
        return source, pool, found
    left = {name: part.at(kept[name]) for name, part in parts.items()}
    for name in {"train", "validation"} & set(left):
        labels = left[name].labels
        counts = torch.bincount(labels.flatten(), minlength=len(source.classes))
        if labels.ndim == 1 and (counts == 0).any():
            lost = source.classes[int(counts.argmin())]
            raise UserError(
                f"data.on_duplicate: drop leaves no image of class {lost!r} in {name}; found {text}"
            )
    counted = {name: len(parts[name]) - len(left[name]) for name in parts if name != "test"}
    dropped = {name: count for name, count in counted.items() if count}
    out = ", ".join(f"{count} of {name}" for name, count in dropped.items())
    note(f"{text}; dropped: {out or 'none, as test stays whole'}")
    whole = replace(source, train=left["train"], val=left.get("validation"))
    return whole, left.get("unlabeled"), replace(found, dropped=dropped)


def _example(pair: str, pictures: Mapping[str, np.ndarray], parts: Mapping[str, Images]) -> str:
    """Return the first image common to a pair of parts, by its name in each."""
    one, other = pair.split(" in ")
    first = int(np.isin(pictures[one], pictures[other]).argmax())
    second = int((pictures[other] == pictures[one][first]).argmax())
    names = {one: parts[one].names[first], other: parts[other].names[second]}
    # File names begin with their part; other names are numbers.
    return " = ".join(name if "/" in name else f"{part} {name}" for part, name in names.items())


def _rows_to_keep(name: str, pictures: Mapping[str, np.ndarray], torn: np.ndarray) -> Tensor:
    mine = pictures[name]
    before = [pictures[other] for other in PARTS[: PARTS.index(name)] if other in pictures]
    out = np.isin(mine, np.concatenate(before)) if before else np.zeros(len(mine), bool)
    if name in ("train", "unlabeled"):
        again = np.ones(len(mine), bool)
        again[np.unique(mine, return_index=True)[1]] = False
        out |= again
    if name == "train":
        out |= np.isin(mine, torn)
    return torch.from_numpy(np.flatnonzero(~out))
