"""Plain-language outline of a run's comparison, before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from kd.data.base import DataModule
from kd.nets.build import pretrained_weights_of
from kd.stages.answers import is_answers
from kd.stages.chain import StagePlan
from kd.stages.result import name_of_net


def opening(chain: Sequence[StagePlan], data: DataModule) -> list[str]:
    """Describe what each net of the run learns from, then the measurement; one line each."""
    compared = [plan for plan in chain if plan.role]
    width = max((len(plan.name) for plan in compared), default=0) + 1
    lines = [
        f"  {plan.name + ':':<{width}} {_learns_from(plan, chain, data)}{_without(plan, data)}"
        for plan in compared
    ]
    test = f"{len(data.split.test):,} test images, on which nothing is chosen."
    hints = [hint for plan in chain if (hint := _hint(plan, data))]
    return [f"Compared on {data.name}:", *lines, *hints, f"  All are measured on {test}"]


def _hint(plan: StagePlan, data: DataModule) -> str | None:
    """Say how a pretrained teacher's images were read where its weights were published."""
    found = pretrained_weights_of(plan.net, plan.where) if plan.role == "teacher" else None
    if found is None:
        return None
    now = data.teacher_reads or {"image_size": data.shape.image_size, **asdict(data.reading)}
    words = [f"teacher.{k}={v}" for k, v in found.reading.items() if now[k] != v]
    return f"  The teacher's weights were published for {' '.join(words)}" if words else None


def _without(plan: StagePlan, data: DataModule) -> str:
    """Say which classes a net never sees."""
    if not data.omit or plan.sees == "all" or plan.trains == "none":
        return ""
    return f"; it never sees {', '.join(dict.fromkeys(map(str, data.omit)))}"


def _learns_from(plan: StagePlan, chain: Sequence[StagePlan], data: DataModule) -> str:
    seen = data.for_stage(plan.sees)
    before = [each for each in chain[: chain.index(plan)] if each.role in ("baseline", "student")]
    net = "the same net" if any(each.net == plan.net for each in before) else name_of_net(plan.net)
    labels = int(seen.split.train.has_label.sum())
    images = len(seen.training_images)
    if is_answers(plan.net):
        return f"the answers in {plan.path}"
    if plan.trains == "none":
        return f"{net}, {'with the weights in ' + plan.path if plan.path else 'as it is'}"
    if plan.start:
        net = f"goes on from {plan.start}"
    if plan.teacher is None and plan.sees != "transfer":
        of_other = (
            f" of {seen.name} in {seen.root}" if plan.sees == "all" and data.teacher_data else ""
        )
        return f"{net}, learns from {labels:,} images{of_other} with their labels"
    if not plan.loss.uses_labels:
        return (
            f"{net}, learns from {images:,} images without labels, by what the {plan.teacher} says"
        )
    known = "the labels of all" if labels == images else f"the labels of {labels:,}"
    told = f", and what the {plan.teacher} says of each" if plan.teacher else ""
    nets = [term.build.get("peer") for term in plan.loss.terms]
    peers = [name_of_net(peer) for peer in nets if isinstance(peer, Mapping)]
    told += f", and a peer that learns beside it ({', '.join(peers)})" if peers else ""
    return f"{net}, learns from {images:,} images, {known}{told}"
