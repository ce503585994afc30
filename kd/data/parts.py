"""Splitting images into parts: seeded, stratified by class, groups kept whole."""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import train_test_split
from torch import Tensor

from kd.data.images import Images
from kd.errors import UserError


def same_pixels(digests: Tensor) -> NDArray[np.int64]:
    """Number images so that equal pixels get equal numbers, int64 [N], from 0 without gaps.

    Args:
        digests: uint8 [N, 16], as in `kd.data.images.Facts`.
    """
    halves = np.ascontiguousarray(digests.numpy()).view(np.uint64)  # [N, 2]
    if (np.diff(np.sort(halves[:, 0])) > 0).all():  # the usual case, in a tenth of the time
        return np.arange(len(halves))
    order = np.lexsort(halves.T)
    another = (halves[order][1:] != halves[order][:-1]).any(1)
    found = np.zeros(len(order), np.int64)
    found[order[1:]] = np.cumsum(another)
    return found


def units(images: Images) -> NDArray[np.int64]:
    """Number the group of each image, or the image itself; int64 [N], from 0 without gaps."""
    if images.groups is None:
        return np.arange(len(images))
    return np.unique(images.groups, return_inverse=True)[1]


def with_copies(images: Images, unit: NDArray[np.int64]) -> NDArray[np.int64]:
    """Merge units that share an image, pixel for pixel; int64 [N], from 0 without gaps."""
    same = same_pixels(images.pixels.facts.digests)
    if same.max(initial=-1) == len(same) - 1:  # all images differ
        return unit
    ends = (unit, unit.max() + 1 + same)
    nodes = int(ends[1].max()) + 1
    links = coo_array((np.ones(len(unit)), ends), (nodes, nodes))
    found = connected_components(links, directed=False)[1][unit]
    return np.unique(found, return_inverse=True)[1]


def strata(labels: Tensor, least: int = 4) -> Tensor:
    """Return the class by which each image is stratified, int64 [N].

    Of several labels it is the rarest, and of none one class more. Those of fewer than `least`
    images go with the largest.

    Args:
        labels: int64 [N], or 0 and 1 [N, classes].
    """
    if labels.ndim == 1:
        return labels
    held = labels > 0
    totals = held.sum(0)
    rarest = torch.where(held, totals, len(labels) + 1).argmin(1)
    found = torch.where(held.any(1), rarest, labels.shape[1])
    sizes = torch.bincount(found)
    return torch.where(sizes[found] < least, sizes.argmax(), found)


def per_class(labels: Tensor, unit: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count the units of each class, int64 [classes].

    Args:
        labels: int64 [N].
        unit: int64 [N], as from `units`.
        classes: number of classes.
    """
    distinct = np.unique(labels.numpy() * (len(unit) + 1) + unit) // (len(unit) + 1)
    return np.bincount(distinct, minlength=classes)


def check_counts(images: Images, carved: Sequence[str], classes: tuple[str, ...]) -> None:
    """Check that each class has enough images (or groups) for train and each carved part.

    Raises:
        UserError: one has not; names it.
    """
    parts = ["train", *carved]
    if images.multilabel:
        found = [units(images)[column > 0] for column in images.labels.T.numpy()]
        counts = np.array([len(np.unique(each)) for each in found])
    else:
        counts = per_class(images.labels, units(images), len(classes))
    for name, count in zip(classes, counts.tolist(), strict=True):
        if carved and count < len(parts):
            unit = "image" if images.groups is None else "group of images"
            raise UserError(
                f"data: class {name!r} has {count} {unit}{'s' * (count != 1)} to share out between "
                f"{', '.join(parts[:-1])} and {parts[-1]}; at least {len(parts)} are needed"
            )


def hold_out(
    images: Images, share: float, what: str, classes: tuple[str, ...], seed: int, least: int = 1
) -> tuple[Images, Images]:
    """Carve out a share, stratified by class; order is kept in both results.

    A group counts as one, under the rarest of its classes. Images with equal pixels, and groups
    that share some, also stay together, unless that leaves a class too small for both parts.

    Args:
        share: of the images, or of the groups if there are any; in (0, 1).
        what: name of the part, for messages.
        least: minimum of images (or groups) per class that stay.

    Returns:
        the images that stay, and those taken.

    Raises:
        UserError: too few images (or groups).
    """
    of_class = strata(images.labels)
    labels = of_class.numpy()
    alone = units(images)
    unit = with_copies(images, alone)
    if per_class(of_class, unit, len(classes)).min() <= least:
        unit = alone
    totals = np.bincount(labels, minlength=len(classes))
    # The first image of a unit is of its rarest class
    order = np.lexsort((labels, totals[labels], unit))
    first = order[np.unique(unit[order], return_index=True)[1]]
    count = max(round(share * len(first)), len(classes))
    _, taken = stratify(of_class[torch.from_numpy(first)], count, what, seed, least)
    out = torch.from_numpy(np.isin(unit, taken))
    return images.at((~out).nonzero()[:, 0]), images.at(out.nonzero()[:, 0])


def stratify(
    labels: Tensor, count: int, what: str, seed: int, least: int = 0
) -> tuple[list[int], list[int]]:
    """Choose `count` positions to take, stratified by class; both results are sorted.

    One of each class is taken, even where its share is less than half an image.

    Args:
        labels: int64 [N].
        least: minimum per class that stay.

    Returns:
        the positions that stay, and those taken.

    Raises:
        UserError: too few images.
    """
    try:
        stay, taken = train_test_split(
            np.arange(len(labels)), test_size=count, stratify=labels.numpy(), random_state=seed
        )
    except ValueError as error:
        raise UserError(
            f"data: cannot carve a {what} part of {count} out of {len(labels)} images, "
            f"stratified by class: {error}"
        ) from error
    _at_least(labels.numpy(), 1, taken, stay)
    _at_least(labels.numpy(), least, stay, taken)
    return np.sort(stay).tolist(), np.sort(taken).tolist()


def long_tail(images: Images, ratio: float, seed: int) -> Images:
    """Return fewer images of each class than of the one before it, an exponential long tail.

    Of class c of C there are ratio^(-c / (C - 1)) times those of the largest class, rounded down
    (Cui et al. 2019, "Class-Balanced Loss", section 5.1), or all that it has. Order is kept.

    Args:
        ratio: images of the first class for one of the last; above 1.
        seed: of the choice; a smaller ratio keeps the images of a larger one.

    Raises:
        UserError: the images may have several labels.
    """
    if images.multilabel:
        raise UserError(
            f"data.imbalance: found {ratio:g} with data.task=multilabel, whose images belong to no "
            "class alone; accepted is null"
        )
    counts = torch.bincount(images.labels)
    steps = torch.arange(len(counts), dtype=torch.float64) / max(1, len(counts) - 1)
    wanted = (counts.max() * ratio**-steps).floor().clamp(min=1).long().tolist()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    kept = [order[images.labels[order] == c][:n] for c, n in enumerate(wanted)]
    return images.at(torch.cat(kept).sort().values)


def _at_least(
    labels: NDArray[np.int64], least: int, here: NDArray[np.int64], there: NDArray[np.int64]
) -> None:
    """Swap positions so that `here` has `least` of each class if possible."""
    counts = np.bincount(labels[here], minlength=int(labels.max()) + 1)
    rare = np.flatnonzero(counts < least)
    if not len(rare):
        return
    ours = _by_class(labels[here])
    theirs = _by_class(labels[there])
    for label in rare.tolist():
        while counts[label] < least and theirs.get(label):
            most = int(counts.argmax())
            i = ours[most].popleft()
            j = theirs[label].popleft()
            here[i], there[j] = there[j], here[i]
            counts[label] += 1
            counts[most] -= 1


def _by_class(labels: NDArray[np.int64]) -> dict[int, deque[int]]:
    """Return the positions of each class."""
    order = np.argsort(labels, kind="stable")
    found, first = np.unique(labels[order], return_index=True)
    return {
        int(label): deque(places.tolist())
        for label, places in zip(found, np.split(order, first[1:]), strict=True)
    }


def assert_apart(parts: Mapping[str, Images]) -> None:
    """Check that no group has images in two parts, such as a patient in train and in test.

    Raises:
        UserError: one has; names it and the parts.
    """
    seen: dict[str, str] = {}
    for part, images in parts.items():
        for group in dict.fromkeys(images.groups or ()):
            if group in seen:
                raise UserError(
                    f"data.group_pattern: group {group!r} has images in {seen[group]} and in "
                    f"{part}; a group must be in one part only. Repair the folders or the "
                    "pattern"
                )
            seen[group] = part
