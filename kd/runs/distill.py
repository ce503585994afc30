"""Distillation from Python: nets and datasets as objects, with the stages of `kd.train`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from torch import nn

from kd.command import CONF, explain
from kd.config.schema import check
from kd.data.dataset import MapStyle, TorchDataset
from kd.errors import UserError
from kd.files.header import STUDENT
from kd.files.tensors import load_tensors
from kd.nets.given import given_net, register
from kd.runs.run import run


@dataclass(frozen=True)
class DistillResult:
    """Result of a distillation.

    Attributes:
        student: with the distilled weights, in evaluation mode; the net passed in is unchanged.
        folder: run folder, with report.html and student.safetensors.
        report: contents of `report.json`.
    """

    student: nn.Module
    folder: Path
    report: Mapping[str, object]


def distill(
    teacher: nn.Module,
    student: nn.Module,
    train: MapStyle,
    val: MapStyle | None = None,
    test: MapStyle | None = None,
    *,
    loss: str = "kd",
    temperature: float | None = None,
    alpha: float | None = None,
    epochs: int = 40,
    seed: int = 0,
    name: str = "distilled",
    output_dir: str = "outputs",
    classes: tuple[str, ...] | None = None,
    overrides: tuple[str, ...] = (),
) -> DistillResult:
    """Train the student alone and with the teacher, and compare the three nets.

    Args:
        teacher: gives logits [B, C] for images [B, C', H, W]; it is copied and frozen. Its
            attribute `normalization`, ((mean, ...), (std, ...)) for pixels in [0, 1], says how it
            was trained; without it the training images' statistics are used.
        student: likewise; baseline and student both start from its weights.
        train: gives (image, label); see `kd.data.dataset.TorchDataset`. Leave out random transforms
            and Normalize.
        val: selects the weights; None carves a tenth of `train`.
        test: is read once per net, at the end; None carves a fifth of `train`.
        loss: a file of conf/loss.
        temperature: T > 0; None for the loss's own.
        alpha: weight of the teacher's side, in [0, 1]; None for the loss's own.
        epochs: passes over the training images, of baseline and student each.
        output_dir: holds the store of finished stages, and the run folder.
        classes: names in the order of the labels.
        overrides: any others of `kd.train`, such as "batch_size=64" or "data/augment=standard".

    Returns:
        the distilled student, the run folder and its report.

    Raises:
        kd.errors.UserError: images or settings do not fit.
    """
    nets = {"teacher": register(teacher, "teacher"), "student": register(student, "student")}
    knobs = {"temperature": temperature, "alpha": alpha, "epochs": epochs, "seed": seed}
    typed = {key: value for key, value in knobs.items() if value is not None}
    words = [f"{key}={value}" for key, value in typed.items()]
    words += [f"loss={loss}", f"name={name}", f"output_dir='{output_dir}'", "teacher.finetune=none"]
    words = ["data=digits", *words, *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            cfg = compose("train", words)
        except HydraException as error:
            raise UserError(explain(error, "train", words)) from error
    for role, node in nets.items():
        cfg[role].net = node
    config = check(cfg, set(typed))
    own = {key: value for key, value in config.data.items() if key not in ("_target_", "root")}
    try:
        data = TorchDataset(train, val, test, classes, **{**own, "test_fraction": 0.2})
    except TypeError as error:
        raise UserError(f"data: {error}") from error
    folder = run(config, f"kd.distill(name={name!r}, ...)", data=data)
    net = given_net(nets["student"]["name"], data.shape.num_classes)
    net.load_state_dict(load_tensors(folder / STUDENT))
    report = json.loads((folder / "report.json").read_text())
    return DistillResult(net.eval(), folder, report)
