"""Views from the cache against PIL and torchvision per image."""

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROUNDS
from in_turn import Row, compared, in_turn
from loop import VIEWS
from part_of_cifar10 import PartOfCIFAR10
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms
from torchvision.transforms import v2

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


PHOTO = (500, 375)  # width and height that are usual for ImageNet, of files of some 100 KB


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of JPEGs: real images of KD_BENCH_ORIGINALS as they are, or enlarged ones."""
    if ORIGINALS:
        return Path(ORIGINALS)
    root = tmp_path_factory.mktemp("photos")
    source = os.environ.get("KD_DATA_DIR", "data")
    if not (Path(source) / "cifar-10-batches-py").is_dir():
        pytest.skip("neither KD_BENCH_ORIGINALS nor KD_DATA_DIR with CIFAR-10 to make photos of")
    arrays = datasets.CIFAR10(source).data
    for i in range(128):  # four by three real images side by side, with noise as of a camera
        rows = [np.concatenate(arrays[12 * i + 4 * j : 12 * i + 4 * j + 4], 1) for j in range(3)]
        whole = Image.fromarray(np.concatenate(rows)).resize(PHOTO, Image.Resampling.BICUBIC)
        noise = np.random.default_rng(i).normal(0, 6, (PHOTO[1], PHOTO[0], 3))
        folder = root / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        found = (np.asarray(whole) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(found).save(folder / f"{i}.jpg", quality=92)
    return root


@pytest.fixture
def one_core() -> Iterator[None]:
    """Keep to one core: kd decodes on all, where a second thread may slow the first."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("size", [64, 224])
def test_streaming(
    size: int, photos: Path, tell: Callable[[Row], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random crops of an epoch straight from the files, beside torchvision's; CPU time a core."""
    theirs = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    images = datasets.ImageFolder(str(photos), theirs)
    loader = DataLoader(images, 8, shuffle=True)

    def streamed(draft: bool) -> Callable[[], float]:
        crops = {"resized_crop": 0.08, "horizontal_flip": True}
        data = ImageFolder(
            str(photos), image_size=size, cache="stream", draft=draft, augment=crops,
            val_fraction=0.1, test_fraction=0.1,
        )  # fmt: skip
        batches = data.train_loader(8, seed=0)
        shown = len(batches) * 8

        def epoch() -> float:
            started = time.process_time()
            for pixels, _, index in batches:
                make_views(pixels, index, seed=0, view=0, augment=data.augment)
            return (time.process_time() - started) / shown

        return epoch

    def epoch() -> float:
        started = time.process_time()
        for _ in loader:
            pass
        return (time.process_time() - started) / len(images)

    plain = streamed(False)

    def by_pillow() -> float:
        with monkeypatch.context() as hidden:
            hidden.setattr("kd.data.decode.simplejpeg", None)
            return plain()

    sides = {"stream": plain, "draft": streamed(True), "Pillow": by_pillow, "torchvision": epoch}
    found = in_turn(sides, 3 * ROUNDS)
    for ours in ("stream", "draft", "Pillow"):
        what = f"{ours} at {size} / ImageFolder and v2"
        other = found["torchvision"]
        target = None if ours == "Pillow" else 1 / 1.3
        tell(compared(what, found[ours], other, target=target, unit="ms/image", scale=1000))


def test_decoders(photos: Path, tell: Callable[[Row], None]) -> None:
    """Decode whole JPEGs by simplejpeg, and by Pillow as kd does."""
    simplejpeg = pytest.importorskip("simplejpeg")
    files = [path.read_bytes() for path in sorted(photos.rglob("*.jpg"))[:64]]

    def by_pillow() -> None:
        for data in files:
            np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def by_simplejpeg() -> None:
        for data in files:
            simplejpeg.decode_jpeg(data)

    found = in_turn({"simplejpeg": by_simplejpeg, "Pillow": by_pillow}, 3 * ROUNDS)
    ours, other = found["simplejpeg"], found["Pillow"]
    scale = 1000 / len(files)
    tell(compared("simplejpeg / Pillow", ours, other, unit="ms/image", scale=scale))
