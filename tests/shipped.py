"""A tiny run on photographs of one's own, and its student in every format."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from composed import TINY, composed
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from kd.command import CONF
from kd.config.schema import check
from kd.run_commands import command_of, read_request
from kd.runs.reader import open_run
from kd.runs.run import run
from kd.shipping.export_run import export
from kd.shipping.requests import Export

SIZE = 12
CLASSES = ("cat", "dog", "error")  # the last one equals a column name of the predictions


class Shipped(NamedTuple):
    """Paths of the exported files."""

    run: Path
    photos: Path

    @property
    def files(self) -> Path:
        """The exported ones."""
        return self.run / "export"

    def config(self, *overrides: str) -> Export:
        """The config of an export of it."""
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return read_request(
                command_of("export"), compose("export", [f"run={self.run}", *overrides]), set()
            )


def make_photos(folder: Path, each: int = 30) -> Path:
    """Colour photographs of three classes, in two sizes, JPEG and PNG."""
    draw = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = draw.integers(0, 160, (20 + i % 2, 16, 3), dtype=np.uint8)
            pixels[..., label] += 60
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.{'png' if i % 3 else 'jpg'}")
    return folder


def ship(folder: Path) -> Shipped:
    """Train it with a loss that has parameters, and export it."""
    torch.set_num_threads(1)
    photos = make_photos(folder / "photos")
    data = (
        "data=image_folder",
        f"data.root={photos}",
        f"data.image_size={SIZE}",
        "data.license=CC0",
    )
    small = (
        "student=cnn",
        "student.net.width=8",
        "student.net.pools=[1,2]",
        "min_steps=0",
        "teacher.min_steps=0",
        "gradient_clip=null",
        "teacher.gradient_clip=null",
        "drop_last=true",
        "teacher.drop_last=true",
        "data/augment=standard",
        "loss=ctkd",
        "epochs=4",
        "batch_size=10",
        "teacher.batch_size=10",
    )
    overrides = [
        each
        for each in TINY
        if "student" not in each and "data" not in each and "batch" not in each
    ]
    config = composed(
        *data, *overrides, *small, "trainer=cpu", "name=shipped", f"output_dir={folder / 'out'}"
    )
    found = Shipped(run(check(config), "python -m kd.train"), photos)
    export(open_run(found.run), found.config(), "python -m kd.export")
    return found
