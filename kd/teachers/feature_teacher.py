"""Teacher with features: asked live, or cached where they are stored."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from kd.config.precision import Precision
from kd.nets.hooks import HEAD, LISTS, FeatureHooks, NetOutput
from kd.nets.layer_paths import FeaturePaths
from kd.teachers.frozen_teacher import FrozenTeacher
from kd.teachers.live_teacher import LiveTeacher, Outputs, computing_in, in_chunks, round_to


class FeatureTeacher(LiveTeacher):
    """Asks the net about every batch, for logits and hooked features, in one pass.

    Args:
        answers: the net; it gets hooks.
        paths: layers to hook.
        kinds: those of `kd.nets.hooks.KINDS` to record.
        outputs: type that logits are rounded to.
        precision: precision of the net.
        top_k: see `LiveTeacher`.
        stored: whether features are rounded to float16, to be stored. On a CPU they then do not
            depend on the batch.
    """

    def __init__(
        self,
        answers: FrozenTeacher,
        paths: FeaturePaths,
        kinds: Collection[str],
        outputs: Outputs = "float16",
        precision: Precision = "32-true",
        top_k: int | None = None,
        *,
        stored: bool = False,
    ) -> None:
        super().__init__(answers, outputs, precision, top_k)
        self.paths: FeaturePaths | None = paths
        self.hooks = FeatureHooks(answers.net, paths, kinds)
        self.stored = stored

    @torch.no_grad()
    def __call__(self, x: Tensor, index: Tensor, view: int) -> NetOutput:
        """Compute float32 logits [B, classes] and the features for x [B, C, H, W] in [0, 1]."""
        with computing_in(self.precision, x.device):
            output = self._in_chunks(x) if self.stored else self.hooks(self.answers, x)
        return output._replace(logits=self._round(output.logits).float())

    def complete(self, stored: NetOutput) -> NetOutput:
        """Return a stored answer with the last layer, where it is asked for."""
        if HEAD not in self.hooks.kinds or self.hooks.paths.head is None:
            return stored
        head = self.hooks.net.get_submodule(self.hooks.paths.head)
        return stored._replace(features={**stored.features, HEAD: head})

    def _in_chunks(self, x: Tensor) -> NetOutput:
        """Ask in batches of one size on a CPU, as `LiveTeacher` does; round the features."""
        chunks = in_chunks(x) if x.device.type == "cpu" else [(x, len(x))]
        return _join([_first(self.hooks(self.answers, chunk), count) for chunk, count in chunks])


def _first(output: NetOutput, count: int) -> NetOutput:
    """Copy the first images of a batch, their features as float16 keeps them."""

    def part(value: object) -> object:
        if isinstance(value, list):
            return [part(each) for each in value]
        return (
            round_to(value[:count], torch.float16).float() if isinstance(value, Tensor) else value
        )

    features = {kind: part(value) for kind, value in output.features.items()}
    return NetOutput(output.logits[:count].float(), features)


def _join(outputs: Sequence[NetOutput]) -> NetOutput:
    """Concatenate the outputs of several batches."""
    features: dict[str, object] = {}
    for kind, value in outputs[0].features.items():
        every: list[Any] = [each.features[kind] for each in outputs]
        if kind in LISTS:
            features[kind] = [torch.cat(each) for each in zip(*every, strict=True)]
        else:
            features[kind] = torch.cat(every) if isinstance(value, Tensor) else value
    return NetOutput(torch.cat([each.logits for each in outputs]), features)
