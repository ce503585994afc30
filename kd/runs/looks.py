"""Grad-CAM of teacher and student on test images where they differ."""

from collections.abc import Mapping

import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from kd.data.base import DataModule
from kd.data.rendering import as_read
from kd.data.views import normalize, to_unit
from kd.files.store import StageResult
from kd.log import say
from kd.measure.grad_cam import grad_cam, last_maps
from kd.reports.gallery import disagreement
from kd.reports.grad_cam_figure import grad_cam_figure
from kd.shape import Shape
from kd.stages.chain import Role
from kd.stages.result import load_net

SHOWN = 6
BOTH: tuple[Role, Role] = ("teacher", "student")


def looks(
    results: Mapping[Role, StageResult], logits: Mapping[Role, Tensor], data: DataModule
) -> Figure | None:
    """Draw Grad-CAM of teacher and student on the images where they differ most.

    Args:
        logits: per role, [N, C] for the test images.

    Returns:
        None if a role is missing or has no maps, if both predict the same everywhere, or of
        multi-label data.
    """
    if data.split.test.multilabel:
        return None
    if not set(BOTH) <= results.keys() or logits["teacher"].shape != logits["student"].shape:
        return None
    said = [logits[role] for role in BOTH]
    differ = (said[0].argmax(1) != said[1].argmax(1)).nonzero()[:, 0]
    if not len(differ):
        return None
    apart = disagreement([each[differ] for each in said])
    shown = differ[apart.argsort(descending=True, stable=True)[:SHOWN]]
    pixels = data.split.test.pixels[shown]
    maps = {}
    for role in BOTH:
        net = load_net(results[role])
        spec = results[role].record.spec
        if (path := last_maps(net, Shape.of(spec.shape))) is None:
            return None
        own = as_read(data.split.test, spec.reads).pixels[shown]
        x = normalize(to_unit(own), *map(tuple, results[role].record.normalization))
        try:
            found = grad_cam(net, x, logits[role][shown].argmax(1), path)
            maps[str(role)] = F.interpolate(found[:, None], pixels.shape[2:], mode="area")[:, 0]
        except RuntimeError as error:  # a failed figure must not fail a finished training
            say(f"no Grad-CAM of the {role}: {str(error).partition(chr(10))[0]}")
            return None
    sure = {str(role): logits[role][shown].double().softmax(1) for role in BOTH}
    labels = data.split.test.labels[shown]
    return grad_cam_figure(pixels, shown.tolist(), labels, sure, maps, data.classes)
