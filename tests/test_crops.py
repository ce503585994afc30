"""Random crops of the originals: torchvision's boxes and pixels, from files and from arrays."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from kd.data.crops import crop_boxes, read_pixels
from kd.data.decode import DecodeError, decode
from kd.data.draws import Draw, uniform
from kd.data.image_folder import ImageFolder
from kd.data.images import Images
from kd.data.views import views_of
from kd.errors import DamagedError

SIZE = 48
CROPS = {"resized_crop": 0.08}
SIDES = ((640, 480), (97, 131), (300, 31), (50, 50))


def smooth(width: int, height: int, seed: int) -> Image.Image:
    """A picture with structure at several scales."""
    levels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of JPEG and PNG files of several sizes, gray ones, and one turned by its EXIF."""
    root = tmp_path_factory.mktemp("photos")
    for label in ("cat", "dog"):
        (root / label).mkdir()
        for i, (width, height) in enumerate(SIDES * 2):
            image = smooth(width, height, i + len(label) * ord(label[0]))
            exif = Image.Exif()
            exif[0x0112] = 6 if i == 0 else 1
            kind = "png" if i % 2 else "jpg"
            image = image.convert("L") if i == 2 else image
            image.save(root / label / f"{i}.{kind}", exif=exif, quality=95)
    return root


def module(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(str(root), **{"image_size": SIZE, "augment": CROPS, **options})


def drawn_box(height: int, width: int, image: int, seed: int, view: int) -> tuple[int, ...]:
    """`RandomResizedCrop.get_params` of torchvision, with our draws."""
    for attempt in range(10):
        area, ratio, top, left = (
            float(uniform(seed, view, torch.tensor([image]), purpose + 256 * attempt))
            for purpose in (Draw.AREA, Draw.RATIO, Draw.TOP, Draw.LEFT)
        )
        target = height * width * (0.08 + 0.92 * area)
        low, high = math.log(3 / 4), math.log(4 / 3)
        aspect = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.slow
def test_boxes_are_those_of_torchvision() -> None:
    draw = np.random.default_rng(0)
    sizes = torch.from_numpy(draw.integers(1, 900, (300, 2)))
    sizes[:40] = torch.tensor([20, 900])  # none fits: the centre
    found = crop_boxes(sizes, torch.arange(300), 5, 2, 0.08)
    wanted = [drawn_box(*size, i, 5, 2) for i, size in enumerate(sizes.tolist())]
    assert found.tolist() == [list(each) for each in wanted]
    # What is drawn for one image does not depend on how often the others are drawn again
    alone = torch.cat([crop_boxes(sizes[[i]], torch.tensor([i]), 5, 2, 0.08) for i in (3, 50, 299)])
    assert torch.equal(alone, found[[3, 50, 299]])
    # Their ranges are those of its own transform
    transform = v2.RandomResizedCrop(SIZE)
    assert transform.scale == (0.08, 1.0)
    assert transform.ratio == (3 / 4, 4 / 3)
    other = transform.make_params([torch.zeros(3, 20, 900, dtype=torch.uint8)])
    centre = [0, (900 - 27) // 2, 20, 27]
    assert [other[name] for name in ("top", "left", "height", "width")] == centre
    assert centre in found.tolist()


def torchvision_crops(file: Path, box: list[int], size: list[int], method: str) -> list[Tensor]:
    """What torchvision's v2 makes of a file: cropped as a PIL image, and as a uint8 tensor."""
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    how = v2.InterpolationMode[method]
    kinds = image, v2.functional.pil_to_tensor(image)
    return [
        v2.functional.to_image(v2.functional.resized_crop(each, *box, size, how, antialias=True))
        for each in kinds
    ]


def agrees_with_torchvision(data: ImageFolder, root: Path, method: str = "BILINEAR") -> None:
    train = data.split.train
    size = list(train.pixels.shape[2:])
    index = torch.arange(len(train))
    for view in range(3):
        found = read_pixels(train, index, seed=4, view=view, smallest=0.08)
        for i, name in enumerate(train.names):
            file = root / name.partition("/")[2]
            wide, high = ImageOps.exif_transpose(Image.open(file)).size
            box = list(drawn_box(high, wide, i, 4, view))
            first, second = torchvision_crops(file, box, size, method)
            # Bilinear is as of tensors, others as of PIL. Bicubic, those two differ by up to 2
            most = {"BILINEAR": (1, 1), "BICUBIC": (0, 2)}[method]
            off = [int((found[i].int() - each.int()).abs().max()) for each in (first, second)]
            assert off[0] <= most[0], (file, box)
            assert off[1] <= most[1], (file, box)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["ram", "disk", "stream", "off"])
def test_crops_are_of_the_original_wherever_the_images_are(
    cache: Any, photos: Path, tmp_path: Path
) -> None:
    agrees_with_torchvision(module(photos, cache=cache, cache_dir=str(tmp_path)), photos)


@pytest.mark.slow
def test_crops_use_the_interpolation_that_is_asked_for(photos: Path) -> None:
    agrees_with_torchvision(module(photos, interpolation="bicubic"), photos, "BICUBIC")


def test_a_jpeg_has_the_same_pixels_by_simplejpeg_and_by_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    image = smooth(333, 211, 7)
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    kinds: dict[str, dict[str, Any]] = {
        **{f"subsampling {i}": {"subsampling": i} for i in range(3)},
        "progressive": {"progressive": True, "quality": 50},
        "stored as RGB": {"keep_rgb": True},
        "turned": {"exif": turned},
    }
    files = {}
    for name, options in kinds.items():
        image.save(file := tmp_path / f"{name}.jpg", **options)
        files[name] = file.read_bytes()
    for mode in ("L", "CMYK"):
        image.convert(mode).save(file := tmp_path / f"{mode}.jpg")
        files[mode] = file.read_bytes()
    files["damaged"] = files["subsampling 2"][:3000] + bytes(9) + files["subsampling 2"][3009:]
    used = []

    def counted(*arguments: Any) -> Any:
        used.append(len(arguments))
        return of_simplejpeg(*arguments)

    of_simplejpeg = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", counted)
    box = (10, 20, 150, 101)
    fast = {(name, n): decode(file, 48, n, box=box) for name, file in files.items() for n in (1, 3)}
    # All but the turned one and CMYK; of those with colours, not when gray is wanted
    assert len(used) == 5 + 2 + 1
    monkeypatch.setattr("kd.data.decode.simplejpeg", None)
    for (name, channels), found in fast.items():
        assert found.shape == (channels, 48, 48)
        assert (found == decode(files[name], 48, channels, box=box)).all(), name
    with pytest.raises(DecodeError, match="truncated"):  # Pillow's own words
        decode(files["L"][:900], 48, 3, box=box)


def test_crops_of_real_x_rays() -> None:
    """Photographs of up to 2,090 pixels, each a crop of its own."""
    root = Path(os.environ.get("KD_DATA_DIR", "")) / "chest_xray_original" / "train"
    if not root.is_dir():
        pytest.skip("KD_DATA_DIR has no folder chest_xray_original with full-size images")
    agrees_with_torchvision(module(root, limit=6), root)


def test_a_drafted_crop_is_nearly_the_same(photos: Path) -> None:
    index = torch.tensor([i for i, name in enumerate(module(photos).split.train.names)])
    whole, drafted = (
        read_pixels(
            module(photos, image_size=16, draft=draft).split.train,
            index,
            seed=0,
            view=0,
            smallest=0.5,
        ).int()
        for draft in (False, True)
    )
    assert 0 < int((whole - drafted).abs().max()) < 16


def test_arrays_are_cropped_as_torchvision_does() -> None:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8, generator=draw)
    images = Images(pixels, torch.zeros(60))
    index = torch.arange(60)
    found = read_pixels(images, index, seed=4, view=1, smallest=0.08)
    for i in range(60):
        box = drawn_box(32, 32, i, 4, 1)
        wanted = v2.functional.resized_crop(pixels[i], *box, [32, 32], antialias=True)
        assert int((found[i].int() - wanted.int()).abs().max()) <= 1


@pytest.mark.slow
def test_the_loader_shows_the_views_of_its_epoch(photos: Path) -> None:
    """With processes that decode ahead, and where two views take turns."""
    augment = {**CROPS, "horizontal_flip": True, "mixup": 1.0}
    for workers in (0, 2):
        data = module(photos, augment=augment, views=2, cache="stream", num_workers=workers)
        loader = data.train_loader(4, seed=9)
        for epoch in (0, 3):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            for pixels, _, index in loader:
                how: Any = {"seed": 9, "view": epoch % 2, "smallest": 0.08}
                assert torch.equal(pixels, read_pixels(data.split.train, index, **how))


@pytest.mark.slow
def test_the_originals_are_in_the_key_of_a_training_that_crops_them(
    photos: Path, tmp_path: Path
) -> None:
    """Two files that look the same at the nets' size give other crops."""
    roots = [tmp_path / name for name in ("small", "large")]
    for root, scale in zip(roots, (1, 2), strict=True):
        for file in sorted(photos.rglob("*.*")):
            image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
            image = image.resize((SIZE, SIZE)).resize((SIZE * scale,) * 2, Image.Resampling.NEAREST)
            (root / file.parent.name).mkdir(parents=True, exist_ok=True)
            image.save((root / file.parent.name / file.name).with_suffix(".png"))
    plain, cropped = (
        [module(root, augment=augment, interpolation="box") for root in roots]
        for augment in ({}, CROPS)
    )
    assert plain[0].key() == plain[1].key()
    assert cropped[0].key() != cropped[1].key()
    assert cropped[0].view_key() != cropped[1].view_key()
    kept = module(roots[0], cache="stream", interpolation="box")
    assert kept.key() == cropped[0].key()


def test_a_file_that_changes_is_noticed_before_it_is_cropped(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for file in photos.rglob("*.*"):
        (root / file.parent.name).mkdir(parents=True, exist_ok=True)
        (root / file.parent.name / file.name).write_bytes(file.read_bytes())
    data = module(root, cache="ram", cache_dir=str(tmp_path / "cache"))
    train = data.split.train
    views_of(train, torch.tensor([1]), seed=0, view=0, augment=data.augment)  # it is checked again
    for number in (0, 1):
        smooth(60, 60, 99).save(root / train.names[number].partition("/")[2])
        with pytest.raises(DamagedError, match="changed since it was read first"):
            views_of(train, torch.tensor([number]), seed=0, view=0, augment=data.augment)
