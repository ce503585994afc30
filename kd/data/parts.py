"""Carving parts out of a set of images: seeded, stratified by class, no group torn apart."""

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from kd.data.images import Images
from kd.errors import UserError


def hold_out(images: Images, share: float, what: str, classes: tuple[str, ...], seed: int) -> tuple[Images, Images]:
    """Carve a share out: what stays and what was taken, each in its old order.

    A group counts as one, under the rarest of its classes.

    Args:
        share: of the images, or of the groups where the images have groups; in (0, 1).
        what: the part's name, for messages.

    Raises:
        UserError: a class has too few images (or groups) to be in both parts.
    """
    labels = images.labels.numpy()
    totals = np.bincount(labels, minlength=len(classes))
    _, group = np.unique(np.arange(len(images)) if images.groups is None else images.groups, return_inverse=True)
    for label, name in enumerate(classes):
        if (count := len(set(group[labels == label]))) < 2:
            unit = "image" if images.groups is None else "group of images"
            raise UserError(
                f"data: class {name!r} has {count} {unit}{'s' * (count != 1)} to share out between train and {what}; "
                "at least 2 are needed"
            )
    order = np.lexsort((labels, totals[labels], group))  # the first image of a group is of its rarest class
    first = order[np.unique(group[order], return_index=True)[1]]
    labels_of_groups = images.labels[torch.from_numpy(first)]
    stay, taken = stratified(labels_of_groups, max(round(share * len(first)), len(classes)), what, seed)
    return images.at(np.flatnonzero(np.isin(group, stay)).tolist()), images.at(
        np.flatnonzero(np.isin(group, taken)).tolist()
    )


def stratified(labels: Tensor, count: int, what: str, seed: int) -> tuple[list[int], list[int]]:
    """Positions that stay and `count` that are taken, with the shares of the classes kept, each in order.

    Raises:
        UserError: there are too few.
    """
    try:
        stay, taken = train_test_split(range(len(labels)), test_size=count, stratify=labels.numpy(), random_state=seed)
    except ValueError as error:
        raise UserError(
            f"data: cannot carve a {what} part of {count} out of {len(labels)} images, stratified by class: {error}"
        ) from error
    return sorted(stay), sorted(taken)


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
