"""The split of a source into train, validation and test parts."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from kd.data.duplicates import Duplicates, OnDuplicate, apply_policy, find_duplicates
from kd.data.images import Images, Source, Split
from kd.data.other_source import unseen
from kd.data.parts import assert_apart, check_counts, hold_out, long_tail, strata, stratify

Note = Callable[[str], None]


class Cuts(Protocol):
    """How to split; each as of `kd.data.base.DataModule`."""

    val_fraction: float
    test_fraction: float
    split_seed: int
    limit: int | None
    imbalance: float | None
    on_duplicate: OnDuplicate


def make_split(
    source: Source, pool: Images | None, how: Cuts, note: Note
) -> tuple[Split, Duplicates]:
    """Split a source; parts that it has are kept, the missing ones are carved from train.

    Args:
        pool: unlabelled images at the shape of the training images.
        note: takes a remark on the data.

    Raises:
        UserError: a class has too few images, or there are duplicates and `on_duplicate` is `stop`.
    """
    source, pool, duplicates = apply_policy(source, pool, how.on_duplicate, note)
    rest = source.train
    val = source.val
    test = source.test
    seed = how.split_seed
    carves_val = val is None and how.val_fraction > 0
    check_counts(
        rest,
        [*(["validation"] if carves_val else []), *(["test"] if test is None else [])],
        source.classes,
    )
    if test is None:
        # Minimum per class to keep for the validation part still to come
        least = 2 if carves_val else 1
        rest, test = hold_out(rest, how.test_fraction, "test", source.classes, seed, least)
    if val is None and not carves_val:
        val = rest.at([])
    elif val is None:
        rest, val = hold_out(rest, how.val_fraction, "validation", source.classes, seed)
    parts = {"train": rest, "validation": val, "test": test}
    assert_apart(parts)
    given = (source.val, source.test)
    carved = {name: part for name, part in parts.items() if part not in given}
    if pool:
        duplicates = _with_copies_in(pool, carved, duplicates, note)
    if duplicates.within.get("train"):
        _note_shared_images(carved, note)
    if how.imbalance is not None:
        rest = long_tail(rest, how.imbalance, seed)
    if how.limit is not None and how.limit < len(rest):
        rest = rest.at(stratify(strata(rest.labels), how.limit, "limited training", seed)[1])
    return Split(rest, val, test, source.classes, pool), duplicates


def _note_shared_images(parts: Mapping[str, Images], note: Note) -> None:
    """Note where the split separates copies of an image.

    Args:
        parts: the parts carved from train.
    """
    if across := find_duplicates(parts)[0].across:
        words = "; ".join(f"{pair}: {count}" for pair, count in across.items())
        note(f"carved parts share images ({words}), as a class has too few different ones")


def _with_copies_in(
    pool: Images, parts: Mapping[str, Images], known: Duplicates, note: Note
) -> Duplicates:
    """Add carved test and validation images that are unlabelled ones too, which nets see.

    Args:
        parts: those carved from train, which was compared with the pool as a whole.
    """
    for name in ("test", "validation"):
        if name in parts and (count := len(parts[name]) - len(unseen(parts[name], pool))):
            known = replace(known, across={**known.across, f"{name} in unlabeled": count})
            note(
                f"of {len(parts[name])} in {name} {count} also in unlabeled, which the student "
                "sees; data.on_duplicate=drop takes them out of there"
            )
    return known
