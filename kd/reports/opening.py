"""Plain-language outline of a run's comparison, before anything is trained."""

from collections.abc import Sequence

from kd.data.base import DataModule
from kd.stages.chain import Link
from kd.stages.result import name_of_net


def opening(chain: Sequence[Link], data: DataModule) -> list[str]:
    """Describe what each net of the run learns from, then what all are measured on; one line
    each.
    """
    compared = [link for link in chain if link.role]
    width = max((len(link.name) for link in compared), default=0) + 1
    lines = [f"  {link.name + ':':<{width}} {_learns_from(link, chain, data)}" for link in compared]
    test = f"{len(data.split.test):,} test images, on which nothing is chosen."
    return [f"Compared on {data.name}:", *lines, f"  All are measured on {test}"]


def _learns_from(link: Link, chain: Sequence[Link], data: DataModule) -> str:
    seen = data.seen_by(link.sees)
    before = [each for each in chain[: chain.index(link)] if each.role in ("baseline", "student")]
    net = "the same net" if any(each.net == link.net for each in before) else name_of_net(link.net)
    labels, images = int((seen.split.train.labels >= 0).sum()), len(seen.trained_on)
    if link.trains == "none":
        return f"{net}, {'with the weights in ' + link.path if link.path else 'as it is'}"
    if link.start:
        net = f"goes on from {link.start}"
    if link.teacher is None and link.sees != "transfer":
        of_other = (
            f" of {seen.name} in {seen.root}" if link.sees == "all" and seen is not data else ""
        )
        return f"{net}, learns from {labels:,} images{of_other} with their labels"
    known = "the labels of all" if labels == images else f"the labels of {labels:,}"
    told = f", and what the {link.teacher} says of each" if link.teacher else ""
    return f"{net}, learns from {images:,} images, {known}{told}"
