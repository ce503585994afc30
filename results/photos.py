"""Make the folders of photographs that the table `folders` trains on, from data at hand.

    python -m results.photos          below outputs/photos, or KD_OUTPUT_DIR/photos

Needs CIFAR-10, CIFAR-100 and the chest X-rays in KD_DATA_DIR. CIFAR-10's images become JPEGs of 533
by 400 pixels, so that reading them takes as long as reading photographs. They show no more than 32
by 32 pixels do.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

from results.make import ROOT

DATA = Path(os.environ.get("KD_DATA_DIR", ROOT / "data"))
PHOTOS = Path(os.environ.get("KD_OUTPUT_DIR", ROOT / "outputs")) / "photos"
Save = Callable[[int, Path], object]


def put(
    labels: Iterable[int], classes: list[str], each: int | None, folder: Path, save: Save
) -> None:
    """Save so many images of each class, drawn with seed 0; all where `each` is None."""
    order = list(enumerate(labels))
    random.Random(0).shuffle(order)
    left = dict.fromkeys(range(len(classes)), len(order) if each is None else each)
    for index, label in order:
        if left[label]:
            left[label] -= 1
            path = folder / classes[label] / str(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            save(index, path)


def cifar(data: CIFAR10, size: tuple[int, int] | None) -> Save:
    """Saving of a CIFAR image, enlarged to a JPEG where a size is given."""

    def save(index: int, path: Path) -> None:
        image = Image.fromarray(data.data[index])
        if size:
            image.resize(size, Image.Resampling.BICUBIC).save(path.with_suffix(".jpg"), quality=90)
        else:
            image.save(path.with_suffix(".png"))

    return save


def main() -> None:
    """Write the folders that are not there yet."""
    for name, kind, size, counts in (
        ("cifar10_600", CIFAR10, (533, 400), {"train": 60, "test": 100}),
        ("cifar100_5000", CIFAR100, None, {"train": 50, "test": 20}),
    ):
        for part, each in counts.items():
            data = kind(DATA, train=part == "train")
            if not (folder := PHOTOS / name / part).exists():
                put(data.targets, data.classes, each, folder, cifar(data, size))
    for part, number in (("train", 100), ("test", None)):
        files = ImageFolder(DATA / "chest_xray" / part)
        if not (folder := PHOTOS / "xrays_200" / part).exists():

            def save(index: int, path: Path, files: ImageFolder = files) -> None:
                shutil.copy(files.samples[index][0], path.parent)

            put(files.targets, files.classes, number, folder, save)


if __name__ == "__main__":
    main()
