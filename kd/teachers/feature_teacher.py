"""Teacher with features: always asked live, because features are not cached."""

from collections.abc import Collection

import torch
from torch import Tensor

from kd.config.precision import Precision
from kd.nets.hooks import FeatureHooks, NetOutput
from kd.nets.layer_paths import FeaturePaths
from kd.teachers.frozen_teacher import FrozenTeacher
from kd.teachers.live_teacher import LiveTeacher, Outputs, computing_in


class FeatureTeacher(LiveTeacher):
    """Asks the net about every batch, for logits and hooked features, in one pass.

    Args:
        answers: the net; it gets hooks.
        paths: layers to hook.
        kinds: those of `kd.nets.hooks.KINDS` to record.
        outputs: type that logits are rounded to; features are not rounded.
        precision: precision of the net.
    """

    def __init__(
        self,
        answers: FrozenTeacher,
        paths: FeaturePaths,
        kinds: Collection[str],
        outputs: Outputs = "float16",
        precision: Precision = "32-true",
    ) -> None:
        super().__init__(answers, outputs, precision)
        self.paths: FeaturePaths | None = paths
        self.hooks = FeatureHooks(answers.net, paths, kinds)

    @torch.no_grad()
    def __call__(self, x: Tensor, index: Tensor, view: int) -> NetOutput:
        """Compute float32 logits [B, classes] and the features for x [B, C, H, W] in [0, 1]."""
        with computing_in(self.precision, x.device):
            output = self.hooks(self.answers, x)
        return output._replace(logits=self._round(output.logits).float())
