"""Views from the cache against PIL and torchvision per image."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROUNDS
from in_turn import THREADS, Row, compared, in_turn
from loop import VIEWS
from part_of_cifar10 import PartOfCIFAR10
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from kd.data.base import DataModule
from kd.data.image_folder import ImageFolder
from kd.data.views import make_views

ORIGINALS = os.environ.get("KD_BENCH_ORIGINALS")


def an_epoch(data: DataModule, batch: int) -> Callable[[], None]:
    """Make all views of an epoch from the arrays in memory."""
    loader = data.train_loader(batch, seed=0)

    def views() -> None:
        for pixels, _, index in loader:
            make_views(pixels, index, seed=0, view=0, augment=data.augment)

    return views


def test_cifar10(cifar10: str, tell: Callable[[Row], None]) -> None:
    count = 2048
    data = PartOfCIFAR10(cifar10, count=count, augment={"crop_padding": 4, "horizontal_flip": True})
    images = Subset(datasets.CIFAR10(cifar10, transform=VIEWS), range(count))
    loader = DataLoader(images, 128, shuffle=True, drop_last=True)
    found = in_turn(
        {"ours": an_epoch(data, 128), "PIL": lambda: [None for _ in loader]}, 3 * ROUNDS
    )
    told = compared(
        "CIFAR-10 views / PIL",
        found["ours"],
        found["PIL"],
        target=0.1,
        unit="us/image",
        scale=1e6 / count,
    )
    tell(told)


def test_x_rays_at_full_size(tell: Callable[[Row], None], tmp_path: Path) -> None:
    """Crop and mirror the same images at 224 pixels: decoded once into the cache, or in each
    epoch.
    """
    if not ORIGINALS:
        pytest.skip(
            "KD_BENCH_ORIGINALS names no folder of full-size images with a folder for each class"
        )
    data = ImageFolder(
        ORIGINALS, image_size=224, cache="ram", cache_dir=str(tmp_path), val_fraction=0.2,
        test_fraction=0.2,
        augment={"resized_crop": 0.08, "horizontal_flip": True},
    )  # fmt: skip
    kept = len(data.split.train)
    views = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    images = datasets.ImageFolder(ORIGINALS, views)
    loader = DataLoader(images, 8, shuffle=True)
    found = in_turn(
        {"ours": an_epoch(data, min(8, kept)), "PIL": lambda: [None for _ in loader]}, 3 * ROUNDS
    )
    made = kept // min(8, kept) * min(8, kept)
    ours = [seconds / made for seconds in found["ours"]]
    other = [seconds / len(images) for seconds in found["PIL"]]
    tell(
        compared(
            "X-ray views at 224 / ImageFolder", ours, other, target=0.1, unit="ms/image", scale=1000
        )
    )


def test_streaming(tell: Callable[[Row], None]) -> None:
    """Decode the images of an epoch at 64 pixels anew, on all cores for each side."""
    if not ORIGINALS:
        pytest.skip(
            "KD_BENCH_ORIGINALS names no folder of full-size images with a folder for each class"
        )
    least = transforms.Compose([transforms.Resize((64, 64)), transforms.PILToTensor()])
    images = datasets.ImageFolder(ORIGINALS, least)
    loader = DataLoader(images, 8, num_workers=THREADS - 1)

    def streamed(draft: bool) -> Callable[[], None]:
        options = {"val_fraction": 0.2, "test_fraction": 0.2, "cache": "stream", "draft": draft}
        data = ImageFolder(ORIGINALS, image_size=64, **options)
        split = data.split
        parts = (split.train, split.val, split.test)
        return lambda: [part.pixels[:] for part in parts] and None

    found = in_turn(
        {
            "stream": streamed(False),
            "draft": streamed(True),
            "torchvision": lambda: [None for _ in loader],
        },
        3 * ROUNDS,
    )
    per = {"unit": "ms/image", "scale": 1000 / len(images)}
    for ours, target in (("stream", None), ("draft", 1 / 1.3)):
        what = f"{ours} at 64 / ImageFolder"
        tell(compared(what, found[ours], found["torchvision"], target=target, **per))
