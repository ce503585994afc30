"""Carving parts out of a set of images: seeded, stratified by class, no group torn apart."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from kd.data.images import Images
from kd.errors import UserError


def check_counts(images: Images, carved: Sequence[str], classes: tuple[str, ...]) -> None:
    """Check that each class has enough images (or groups) to be in train and in each part that is carved out of it.

    Raises:
        UserError: one has not; names it.
    """
    labels = images.labels.numpy()
    groups = np.arange(len(images)) if images.groups is None else np.array(images.groups)
    parts = ["train", *carved]
    for label, name in enumerate(classes):
        if carved and (count := len(np.unique(groups[labels == label]))) < len(parts):
            unit = "image" if images.groups is None else "group of images"
            raise UserError(
                f"data: class {name!r} has {count} {unit}{'s' * (count != 1)} to share out between "
                f"{', '.join(parts[:-1])} and {parts[-1]}; at least {len(parts)} are needed"
            )


def hold_out(
    images: Images, share: float, what: str, classes: tuple[str, ...], seed: int, least: int = 1
) -> tuple[Images, Images]:
    """Carve a share out: what stays and what was taken, each in its old order, each with all classes in it.

    A group counts as one, under the rarest of its classes.

    Args:
        share: of the images, or of the groups where the images have groups; in (0, 1).
        what: the part's name, for messages.
        least: images (or groups) of each class that stay.

    Raises:
        UserError: there are too few images (or groups).
    """
    labels = images.labels.numpy()
    totals = np.bincount(labels, minlength=len(classes))
    _, group = np.unique(
        np.arange(len(images)) if images.groups is None else images.groups, return_inverse=True
    )
    order = np.lexsort(
        (labels, totals[labels], group)
    )  # the first image of a group is of its rarest class
    first = order[np.unique(group[order], return_index=True)[1]]
    labels_of_groups = images.labels[torch.from_numpy(first)]
    stay, taken = stratified(
        labels_of_groups, max(round(share * len(first)), len(classes)), what, seed, least
    )
    return images.at(np.flatnonzero(np.isin(group, stay)).tolist()), images.at(
        np.flatnonzero(np.isin(group, taken)).tolist()
    )


def stratified(
    labels: Tensor, count: int, what: str, seed: int, least: int = 0
) -> tuple[list[int], list[int]]:
    """Positions that stay and `count` that are taken, with the shares of the classes kept, each in order.

    One of each class is taken, even where its share is less than half an image.

    Args:
        least: of each class that stay.

    Raises:
        UserError: there are too few.
    """
    try:
        stay, taken = train_test_split(
            range(len(labels)), test_size=count, stratify=labels.numpy(), random_state=seed
        )
    except ValueError as error:
        raise UserError(
            f"data: cannot carve a {what} part of {count} out of {len(labels)} images, stratified by class: {error}"
        ) from error
    _at_least(labels, 1, taken, stay)
    _at_least(labels, least, stay, taken)
    return sorted(stay), sorted(taken)


def _at_least(labels: Tensor, least: int, here: list[int], there: list[int]) -> None:
    """Swap positions so that `here` has so many of each class, where there are; the most frequent class gives way."""
    for label in range(int(labels.max()) + 1):
        while (counts := torch.bincount(labels[here], minlength=label + 1))[label] < least:
            wanted, plenty = (
                (labels[there] == label).nonzero(),
                (labels[here] == counts.argmax()).nonzero(),
            )
            if not len(wanted):
                break
            here[plenty[0]], there[wanted[0]] = there[wanted[0]], here[plenty[0]]


def assert_apart(parts: Mapping[str, Images]) -> None:
    """Check that no group has images in two parts, or a net would be tested on patients that it was trained on.

    Raises:
        UserError: one has; names it and the parts.
    """
    seen: dict[str, str] = {}
    for part, images in parts.items():
        for group in dict.fromkeys(images.groups or ()):
            if group in seen:
                raise UserError(
                    f"data.group_pattern: group {group!r} has images in {seen[group]} and in {part}; a group must be "
                    "in one part alone. Mend the folders or the pattern"
                )
            seen[group] = part
