"""Image folders: file kinds, layouts, and clear messages for the rest."""

import errno
import json
import os
import pickle
import shutil
import struct
import sys
import tracemalloc
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import exit_code
from PIL import Image, ImageOps
from torchvision.transforms import v2

from kd.data.batches import EpochOrder
from kd.data.cache import Cache
from kd.data.chest_xray import ChestXRay
from kd.data.decode import DecodeError, Reading, decode, endings
from kd.data.folder import find_images
from kd.data.image_bytes import ImagePaths
from kd.data.image_folder import ImageFolder
from kd.data.images import Pixels
from kd.data.stream import FileRows
from kd.errors import DamagedError, UserError

SIZE = 16


def scene(
    width: int = 20, height: int = 12, top: tuple[int, int, int] = (200, 40, 90)
) -> Image.Image:
    """An image with a coloured upper half and a black lower half."""
    levels = np.zeros((height, width, 3), np.uint8)
    levels[: height // 2] = top
    return Image.fromarray(levels)


def save(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or scene()).save(path, **options)
    return path


def folder(root: Path, counts: dict[str, int], name: str = "{i}.png") -> Path:
    """Class folders with that many different images each."""
    for c, (label, count) in enumerate(counts.items()):
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            save(root / label / name.format(i=i), scene(top=(10 + 3 * i, 60 * c, 100)))
    return root


def noise(width: int, height: int) -> Image.Image:
    """An image of random pixels, equal each time."""
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def with_exif(image: Image.Image, orientation: int) -> dict[str, Any]:
    exif = image.getexif()
    exif[0x0112] = orientation
    return {"exif": exif}


def transparent() -> Image.Image:
    image = scene().convert("RGBA")
    alpha = np.full((12, 20), 255, np.uint8)
    alpha[6:] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


def palette_with_transparency() -> Image.Image:
    image = scene().quantize(4)
    image.info["transparency"] = image.getpixel((0, 11))
    return image


GRAY = np.repeat(np.array([[51 * 257]] * 6 + [[0]] * 6, np.uint16), 20, axis=1)

# name, image, save options, colours of top and bottom
KINDS: list[tuple[str, Image.Image, dict[str, Any], tuple[int, int, int], tuple[int, int, int]]] = [
    ("rgb.png", scene(), {}, (200, 40, 90), (0, 0, 0)),
    ("upper.PNG", scene(), {}, (200, 40, 90), (0, 0, 0)),
    ("rgb.bmp", scene(), {}, (200, 40, 90), (0, 0, 0)),
    ("rgb.tiff", scene(), {}, (200, 40, 90), (0, 0, 0)),
    ("rgb.TIF", scene(), {"compression": "tiff_lzw"}, (200, 40, 90), (0, 0, 0)),
    ("rgb.webp", scene(), {"lossless": True}, (200, 40, 90), (0, 0, 0)),
    ("rgb.JPEG", scene(), {"quality": 100, "subsampling": 0}, (200, 40, 90), (0, 0, 0)),
    ("gray.png", scene(top=(90, 90, 90)).convert("L"), {}, (90, 90, 90), (0, 0, 0)),
    ("bilevel.png", scene(top=(255, 255, 255)).convert("1"), {}, (255, 255, 255), (0, 0, 0)),
    ("palette.png", scene().quantize(4), {}, (200, 40, 90), (0, 0, 0)),
    ("palette.gif", scene().quantize(4), {}, (200, 40, 90), (0, 0, 0)),
    ("see_through_palette.png", palette_with_transparency(), {}, (200, 40, 90), (255, 255, 255)),
    ("see_through.png", transparent(), {}, (200, 40, 90), (255, 255, 255)),
    ("gray_alpha.png", transparent().convert("LA"), {}, (94, 94, 94), (255, 255, 255)),
    ("cmyk.jpg", scene().convert("CMYK"), {"quality": 100}, (200, 40, 90), (0, 0, 0)),
    ("cmyk.tif", scene().convert("CMYK"), {}, (200, 40, 90), (0, 0, 0)),
    ("gray16.png", Image.fromarray(GRAY), {}, (51, 51, 51), (0, 0, 0)),
    ("gray16.tif", Image.fromarray(GRAY), {}, (51, 51, 51), (0, 0, 0)),
    (
        "turned.jpg",
        scene(),
        {"quality": 100, "subsampling": 0, **with_exif(scene(), 3)},
        (0, 0, 0),
        (200, 40, 90),
    ),
    ("turned.png", scene(), with_exif(scene(), 3), (0, 0, 0), (200, 40, 90)),
    ("Füße_猫.png", scene(), {}, (200, 40, 90), (0, 0, 0)),
    *(
        (f"other.{kind}", scene(), {}, (200, 40, 90), (0, 0, 0))
        for kind in ("tga", "jp2", "dds", "pcx", "ico", "sgi", "apng", "mpo", "qoi", "dib")
    ),
    ("other.avif", scene(), {"quality": 100}, (200, 40, 90), (0, 0, 0)),
    ("other.xbm", scene(top=(255, 255, 255)).convert("1"), {}, (255, 255, 255), (0, 0, 0)),
    # A transparent colour in a PNG is white, of however many bits.
    ("clear16.png", Image.fromarray(GRAY), {"transparency": 0}, (51, 51, 51), (255, 255, 255)),
    ("clear8.png", scene().convert("L"), {"transparency": 0}, (94, 94, 94), (255, 255, 255)),
]


@pytest.mark.parametrize("kind", KINDS, ids=[kind[0] for kind in KINDS])
def test_any_kind_of_picture_is_decoded(kind: Any, tmp_path: Path) -> None:
    name, image, options, top, bottom = kind
    path = save(tmp_path / name, image, **options)
    assert find_images(tmp_path) == [path]
    rgb = decode(path, SIZE, 3)
    assert rgb.shape == (3, SIZE, SIZE)
    assert rgb.dtype == np.uint8
    for row, colour in ((2, top), (SIZE - 3, bottom)):
        assert np.abs(rgb[:, row, 5].astype(int) - colour).max() <= 6
    gray = decode(path, SIZE, 1)
    assert gray.shape == (1, SIZE, SIZE)
    assert abs(int(gray[0, 2, 5]) - np.dot(top, (0.299, 0.587, 0.114))) <= 6


def chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


@pytest.mark.parametrize(
    ("colour", "bits", "row", "clear", "wanted"),
    [
        (2, 16, struct.pack(">6H", 1000, 40000, 65535, 0, 0, 0), (1000, 40000, 65535), [255, 0]),
        (0, 16, struct.pack(">2H", 1000, 514), (1000,), [255, 2]),
        (0, 4, b"\x12", (1,), [255, 2 * 17]),
        (0, 2, b"\x60", (1,), [255, 2 * 85]),  # levels 1 and 2, then padding
        (0, 1, b"\x40", (0,), [255, 255]),  # levels 0 and 1
    ],
)
def test_a_png_with_a_transparent_colour_of_any_depth(
    colour: int, bits: int, row: bytes, clear: tuple[int, ...], wanted: list[int], tmp_path: Path
) -> None:
    """Two pixels in a row, the first transparent; written by hand, as Pillow cannot."""
    path = tmp_path / "a.png"
    header = chunk(b"IHDR", struct.pack(">2I5B", 2, 2, bits, colour, 0, 0, 0))
    clear_chunk = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
    pixels = chunk(b"IDAT", zlib.compress(2 * (b"\0" + row)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + clear_chunk + pixels + chunk(b"IEND", b""))
    assert decode(path, 2, 3)[0].tolist() == [wanted, wanted]


def test_twelve_bits_in_sixteen(tmp_path: Path) -> None:
    levels = np.linspace(0, 4095, 16, dtype=np.uint16).reshape(4, 4)
    path = save(tmp_path / "a.png", Image.fromarray(levels))
    decoded = Cache().decode_files([path], 4, 1)
    (note,) = decoded.notes
    assert decoded.store.array.max() == round(4095 / 65535 * 255)
    assert "level 4095 of 65535, so 16 of 255; data.bit_depth=12" in note
    full = Cache().decode_files([path], 4, 1, Reading(12))
    assert not full.notes
    assert full.store.array.flatten().tolist() == [
        round(v / 4095 * 255) for v in levels.flatten().tolist()
    ]
    with pytest.raises(
        DecodeError, match=r"to 4095, accepted are 0 to 2047, the range of data\.bit_depth=11"
    ):
        decode(path, 4, 1, Reading(11))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "box"])
@pytest.mark.parametrize("sides", [(400, 533), (97, 64), (64, 64), (31, 90)])
@pytest.mark.parametrize(("size", "ratio"), [(224, 0.875), (33, 1.0), (64, 0.9)])
def test_a_crop_is_that_of_torchvision(
    sides: tuple[int, int], size: int, ratio: float, interpolation: Any, tmp_path: Path
) -> None:
    path = save(tmp_path / "a.png", noise(*sides))
    found = decode(path, size, 3, Reading(16, "crop", ratio, interpolation))
    shorter = int(size / ratio)
    scaled = v2.functional.resize(
        Image.open(path), [shorter], v2.InterpolationMode[interpolation.upper()]
    )
    wanted = np.asarray(v2.functional.center_crop(scaled, [size, size])).transpose(2, 0, 1)
    assert (found == wanted).all()


def test_a_draft_is_nearly_the_same(tmp_path: Path) -> None:
    smooth = noise(12, 9).resize((1200, 900), Image.Resampling.BICUBIC)
    path = save(tmp_path / "a.jpg", smooth, quality=95)
    for reading in (Reading(), Reading(16, "crop", 0.875)):
        whole = decode(path, 64, 3, reading).astype(int)
        drafted = decode(path, 64, 3, replace(reading, draft=True)).astype(int)
        # Decoded at an eighth, 150x113, would be below twice the result: a quarter it is.
        assert 0 < abs(whole - drafted).max() < 8


def test_padding_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (60, 30), "white"))
    rows = decode(path, 16, 1, Reading(resize="pad"))[0][:, 0].tolist()
    assert rows == [0] * 4 + [255] * 8 + [0] * 4  # 60x30 becomes 16x8
    (stretched,) = decode(path, 16, 1)
    assert stretched.min() == 255


def test_geometry_is_part_of_what_is_cached_and_checked(tmp_path: Path) -> None:
    path = save(tmp_path / "set" / "a.png", noise(40, 20))
    cache = Cache(tmp_path / "cache")
    readings = [
        Reading(),
        Reading(resize="crop"),
        Reading(resize="pad"),
        Reading(interpolation="box"),
    ]
    arrays = [cache.decode_files([path], 8, 3, reading).store.array for reading in readings]
    assert len({each.numpy().tobytes() for each in arrays}) == 4
    for bad, key in (
        ({"resize": "zoom"}, "data.resize"),
        ({"resize": "crop", "crop_ratio": 1.2}, "data.crop_ratio: found 1.2"),
        ({"crop_ratio": 0.875}, "set data.resize=crop"),
        ({"interpolation": "cubic"}, "data.interpolation.*bicubic"),
    ):
        with pytest.raises(UserError, match=key):
            ImageFolder(str(tmp_path), **bad)


def test_warnings_of_pillow_name_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    files = [save(tmp_path / f"{i}.png") for i in range(8)]
    straight = ImageOps.exif_transpose
    files[0].write_bytes(save(tmp_path / "wide.png", noise(30, 12)).read_bytes())

    def odd(image: Image.Image) -> Image.Image:
        if image.width != 30:
            warnings.warn_explicit("odd", UserWarning, "x.py", 1, module="PIL.Image")
        return straight(image)

    monkeypatch.setattr("kd.data.decode.ImageOps.exif_transpose", odd)
    cache = Cache(tmp_path / "cache")
    (note,) = cache.decode_files(files, SIZE, 3).notes
    assert note.startswith(f"Pillow warns of 7 images: {files[1]}: odd; {files[2]}: odd; ")
    assert note.endswith(f"{files[5]}: odd; and 2 more")
    assert cache.decode_files(files, SIZE, 3).notes == [note]  # which are not decoded again
    assert not recwarn.list
    with pytest.warns(UserWarning, match="odd"):
        decode(files[1], SIZE, 3)


def test_quarter_turn_by_exif(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", scene(), quality=100, subsampling=0, **with_exif(scene(), 6))
    rgb = decode(path, SIZE, 3)  # shown a quarter turn clockwise: what was on top is on the right
    assert rgb[0, 8, SIZE - 3] > 180
    assert rgb[0, 8, 2] < 20


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as without pytest
@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "float", "huge", "gone", "folder"])
def test_a_bad_file_has_a_reason(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = tmp_path / "bad.png", ""
    match kind:
        case "truncated":
            noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
            save(path, Image.fromarray(noise))
            path.write_bytes(path.read_bytes()[:3000])
            said = "truncated"
        case "empty":
            path.touch()
            said = "empty file"
        case "text":
            path.write_text("hello")
            said = "not an image"
        case "float":
            path = save(tmp_path / "bad.tif", Image.fromarray(np.ones((4, 4), np.float32)))
            said = "floating-point"
        case "huge":
            save(path, Image.new("L", (50, 50)))
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
            said = "too many pixels, accepted are up to 2000"
        case "gone":
            path.symlink_to(tmp_path / "nowhere")
            said = "No such file"
        case "folder":
            path.mkdir()
            said = "directory"
    with pytest.raises(DecodeError, match=said):
        decode(path, SIZE, 3)


def test_what_pillow_only_warns_of_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "phone.png", Image.new("L", (50, 50), 7))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    assert (decode(path, SIZE, 1) == 7).all()


def test_one_folder_is_split(tmp_path: Path) -> None:
    data = ImageFolder(
        str(folder(tmp_path, {"cat": 30, "dog": 20})), image_size=SIZE, test_fraction=0.2
    )
    split = data.split
    assert split.classes == ("cat", "dog")
    assert (len(split.train), len(split.val), len(split.test)) == (36, 4, 10)
    assert torch.bincount(split.test.labels).tolist() == [6, 4]
    assert data.shape == (3, SIZE, 2)


def test_given_parts_stay_what_they_are(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("Validation", 2), ("test", 3)):
        folder(tmp_path / part, {"cat": count, "dog": count})
    split = ImageFolder(str(tmp_path), image_size=SIZE).split
    assert (len(split.train), len(split.val), len(split.test)) == (12, 4, 6)


def test_nested_linked_and_other_files(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"cat": 4, "dog": 4})
    save(root / "cat" / "deep" / "er" / "x.JPG")
    (root / "cat" / "deep" / "notes.txt").write_text("hello")
    (root / "cat" / ".hidden.png").write_text("hello")
    (root / "Thumbs.db").write_text("hello")
    (root / ".git").mkdir()
    folder(tmp_path / "elsewhere", {"bird": 5})
    (root / "bird").symlink_to(tmp_path / "elsewhere" / "bird", target_is_directory=True)
    (root / "dog" / "linked.png").symlink_to(root / "cat" / "0.png")
    (root / "dog" / "round").symlink_to(root / "dog", target_is_directory=True)
    source = ImageFolder(str(root), image_size=SIZE).read()
    assert source.classes == ("bird", "cat", "dog")
    assert torch.bincount(source.train.labels).tolist() == [5, 5, 5]


@pytest.mark.skipif(sys.platform == "darwin", reason="this file system composes names itself")
def test_class_names_agree_however_unicode_writes_them(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"u\u0308ber": 4, "dog": 4})
    folder(tmp_path / "test", {"\u00fcber": 2, "dog": 2})
    assert ImageFolder(str(tmp_path), image_size=SIZE).split.classes == ("dog", "\u00fcber")


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (["train_data", "val_data"], {"train": "train_data", "val": "val_data"}),
        (["Training_Set", "TestSet"], {"train": "Training_Set", "test": "TestSet"}),
        (["seg_train", "seg_test", "seg_pred"], {"train": "seg_train", "test": "seg_test"}),
        (["images-train2017", "imgs.valid"], {"train": "images-train2017", "val": "imgs.valid"}),
        (["TRAIN", "Validation images"], {"train": "TRAIN", "val": "Validation images"}),
        (["archive/data/train", "archive/data/test"], {"train": "train", "test": "test"}),
        (
            ["training_set/training_set", "test_set/test_set"],
            {"train": "training_set", "test": "test_set"},
        ),
    ],
)
def test_parts_by_their_usual_names(
    folders: list[str], parts: dict[str, str], tmp_path: Path
) -> None:
    for name in folders:
        folder(tmp_path / name, {"cat": 4, "dog": 4} if "pred" not in name else {})
    if "seg_pred" in folders:
        save(tmp_path / "seg_pred" / "1.png")
    data = ImageFolder(str(tmp_path), image_size=SIZE)
    assert {part: path.name for part, path in data.parts().items()} == parts
    assert data.split.classes == ("cat", "dog")
    assert len(data.split.test if "test" in parts else data.split.val) == 8


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    folder(tmp_path, {"train": 4, "bus": 4, "car": 4})
    assert ImageFolder(str(tmp_path), image_size=SIZE).split.classes == ("bus", "car", "train")


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (
            ["fold1", "fold2"],
            "fold1, fold2, and each of them holds cat, dog"
            r".*'data.parts={train: fold1, test: fold2}'"
            r".*'data.parts={train: .}'",
        ),
        (
            ["training", "evaluation"],
            "holds evaluation with class folders beside training; "
            "say .*'data.parts={train: training}'",
        ),
        (
            ["train", "val", "valid"],
            "holds val, valid, each of which may be val; "
            "say .*'data.parts={train: train, val: val}'",
        ),
        (["train", "Train"], r"holds Train, train, each of which may be train"),
        (
            ["cat2/train", "dog2/train", "cat2/test", "dog2/test"],
            r"each of them holds test, train; needed .* as in train/cat2",
        ),
    ],
)
def test_unclear_parts_are_refused(folders: list[str], said: str, tmp_path: Path) -> None:
    for name in folders:
        folder(tmp_path / name, {"cat": 4, "dog": 4})
    with pytest.raises(UserError, match=said):
        _ = ImageFolder(str(tmp_path), image_size=SIZE).split


def test_parts_that_are_named(tmp_path: Path) -> None:
    for i, name in enumerate(("fold1", "fold2", "fold3")):
        folder(tmp_path / name, {"cat": 4 + i, "dog": 4 + i})

    def sizes(parts: dict[str, str]) -> tuple[int, int]:
        data = ImageFolder(str(tmp_path), image_size=SIZE, parts=parts)
        source = data.read()
        assert source.classes == (
            ("fold1", "fold2", "fold3") if parts["train"] == "." else ("cat", "dog")
        )
        assert ["fold2" in note and "10 images" in note for note in data.notes] == (
            [True] if "test" in parts else []
        )
        return len(source.train), len(source.test or [])

    assert sizes({"train": "fold1", "test": "fold3"}) == (8, 12)
    assert sizes({"train": "."}) == (30, 0)
    for wrong, said in (
        ({"test": "fold1"}, "needed is train"),
        ({"train": "fold1", "tset": "fold2"}, "accepted are also val and test"),
        ({"train": "fold4"}, "data.parts.train: no folder .*did you mean 'fold"),
        ({"train": ".", "test": "fold1"}, r"test \(fold1\) is or lies in train \(.\)"),
    ):
        with pytest.raises(UserError, match=said):
            sizes(wrong)


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "train", {"cat": 6, "dog": 6})
    for name in ("notes.txt", "a.heic", "b.HEIC"):
        (tmp_path / "train" / "cat" / name).write_text("hello")
    save(tmp_path / "train" / "loose.png")
    (tmp_path / "train" / "about.pdf").write_text("hello")
    (tmp_path / "README.md").write_text("hello")
    folder(tmp_path / "extra", {"more": 3})
    (tmp_path / "docs").mkdir()
    data = ImageFolder(str(tmp_path), image_size=SIZE)
    assert len(data.read().train) == 12
    assert data.notes == [
        "the folder extra with 3 images is none of the parts (train): left out",
        "in train 4 files were passed over, of no kind that this Pillow decodes: "
        "2 .heic, 1 .txt, 1 .pdf",
        "1 image in train lie in no class folder and were left out",
        f"in {tmp_path.name} 1 file was passed over, of no kind that this Pillow decodes: 1 .md",
    ]
    said = capsys.readouterr().err
    assert all(f"data: {note}\n" in said for note in data.notes)


def bad_folder(root: Path) -> Path:
    folder(root, {"cat": 6, "dog": 6})
    (root / "cat" / "a.png").write_text("hello")
    (root / "dog" / "b.jpg").touch()
    return root


def test_all_bad_files_are_listed_with_their_reasons(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        _ = ImageFolder(str(bad_folder(tmp_path)), image_size=SIZE).split
    message = str(caught.value)
    assert "2 of 14" in message
    assert "cat/a.png: not an image" in message
    assert "dog/b.jpg: empty file" in message
    assert "data.on_bad_image=skip" in message


@pytest.mark.parametrize("cache", ["ram", "disk", "stream", "off"])
def test_bad_files_are_skipped_and_noted(
    cache: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "2 of 14 image files in data.root cannot be decoded and are left out: "
    note += "cat/a.png, dog/b.jpg"
    root = bad_folder(tmp_path / "set")
    for _ in range(2):  # the second time from the cache
        data = ImageFolder(
            str(root),
            image_size=SIZE,
            on_bad_image="skip",
            cache=cache,
            cache_dir=str(tmp_path / "cache"),
        )
        split = data.split
        assert len(split.train) + len(split.val) + len(split.test) == 12
        assert [Path(each["file"]).name for each in data.skipped] == ["a.png", "b.jpg"]
        assert data.notes.count(note) == 1
        assert capsys.readouterr().err.count(f"data: {note}\n") == 1
        assert not (split.train.pixels[:] == 0).flatten(1).all(1).any()  # no blank row slipped in
    with pytest.raises(UserError, match="2 of 14"):
        _ = ImageFolder(
            str(root), image_size=SIZE, cache=cache, cache_dir=str(tmp_path / "cache")
        ).split


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (
            {"cat": 5, "dog": 1},
            None,
            "'dog' has 1 image to share out between train, validation and test",
        ),
        ({"cat": 50, "dog": 2}, None, "'dog' has 2 images to share .* at least 3"),
        ({"cat": 5, "dog": 0}, None, "no image in the class folder .*dog"),
        ({"cat": 5}, None, "two classes or more; found folders: cat"),
        ({"cat": 5, "dog": 5}, {"cat": 2, "dog": 2, "fox": 2}, "class fox, which train lacks"),
        ({"cat": 5, "dog": 5, "fox": 5}, {"cat": 2, "dog": 2}, "lacks class fox of train"),
    ],
)
def test_folders_that_cannot_be_trained_on(
    train: dict[str, int], test: dict[str, int] | None, said: str, tmp_path: Path
) -> None:
    if test is None:
        folder(tmp_path, train)
    else:
        folder(tmp_path / "train", train)
        folder(tmp_path / "test", test)
    with pytest.raises(UserError, match=said):
        _ = ImageFolder(str(tmp_path), image_size=SIZE).split


@pytest.mark.slow
def test_a_rare_class_is_in_every_part(tmp_path: Path) -> None:
    for dogs in (3, 4):
        folder(tmp_path / str(dogs), {"cat": 60, "dog": dogs})
        for seed in range(5):
            data = ImageFolder(
                str(tmp_path / str(dogs)),
                image_size=4,
                split_seed=seed,
                limit=5 if dogs == 4 else None,
            )
            assert torch.bincount(data.split.test.labels).tolist() == [12, 1]
            assert torch.bincount(data.split.val.labels).tolist() == [4, 1]
            assert torch.bincount(data.split.train.labels).tolist() == (
                [4, 1] if dogs == 4 else [44, 1]
            )


def test_a_class_of_which_no_file_can_be_decoded(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        folder(tmp_path / part, {"cat": 2, "dog": 2})
    for i in range(2):
        (tmp_path / "train" / "dog" / f"{i}.png").write_text("hello")
    with pytest.raises(UserError, match=r"no image of train, class .dog. can be decoded"):
        _ = ImageFolder(str(tmp_path), image_size=4, on_bad_image="skip").split


def xray_folder(root: Path) -> Path:
    """The Kaggle layout, with several images per patient, and numbers that recur in test."""
    for i in range(20):
        for j in range(2):
            save(
                root / "train" / "PNEUMONIA" / f"person{i}_bacteria_{j}.jpeg",
                scene(top=(12 * i, 200 * j, 0)),
            )
            save(
                root / "train" / "NORMAL" / f"IM-{i:04}-000{j}.jpeg",
                scene(top=(12 * i, 200 * j, 90)),
            )
    save(root / "val" / "PNEUMONIA" / "person3_virus_1.jpeg", scene())
    save(root / "val" / "NORMAL" / "NORMAL2-IM-0003-0001.jpeg", scene())
    save(root / "test" / "PNEUMONIA" / "person3_fungus_1.jpeg", scene())
    save(root / "test" / "NORMAL" / "IM-0100-0001.jpeg", scene())
    return root


@pytest.mark.slow
def test_validation_of_xrays_is_carved_out_of_train_and_val_by_patient(tmp_path: Path) -> None:
    xray_folder(tmp_path / "chest_xray")
    for seed in range(5):
        split = ChestXRay(str(tmp_path), image_size=4, split_seed=seed).split
        assert split.classes == ("NORMAL", "PNEUMONIA")
        assert len(split.train) + len(split.val) == 82
        assert len(split.test) == 2
        train, val = set(split.train.groups or ()), set(split.val.groups or ())
        assert not train & val
        assert len(train | val) == 41  # person3 of train and of val is one patient
        assert len(val) == 4


def test_a_patient_of_test_who_is_in_train_is_refused(tmp_path: Path) -> None:
    xray_folder(tmp_path)
    save(tmp_path / "test" / "PNEUMONIA" / "person3_virus_9.jpeg", scene())
    with pytest.raises(
        UserError,
        match=r"test/PNEUMONIA/person3_virus_9.jpeg and .*person3_virus_1.jpeg are of one",
    ):
        _ = ChestXRay(str(tmp_path), image_size=4).split


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"root": "nowhere"}, "data.root: no folder"),
        ({"root": None}, "data.root: must be given"),
        ({"channels": 4}, "data.channels: found 4"),
        ({"image_size": 0}, "data.image_size: found 0"),
        ({"group_pattern": "("}, "data.group_pattern"),
        ({"on_bad_image": "skp"}, "did you mean 'skip'"),
        ({"cache": "dsk"}, "did you mean 'disk'"),
        ({"cache": "disk", "cache_dir": None}, "needs data.cache_dir"),
        ({"class_weights": "balance"}, "did you mean 'balanced'"),
        (
            {"class_weights": "balanced", "sampler": "balanced"},
            "data.sampler: found 'balanced' beside data.class_weights",
        ),
        ({"sampler": "balanced", "logit_adjustment": 1.0}, "data.logit_adjustment: found 1.0"),
        ({"unlabeled": "nowhere"}, "data.unlabeled: no image in"),
    ],
)
def test_wrong_options_are_named(keywords: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder(tmp_path, {"cat": 9, "dog": 9})
    with pytest.raises(UserError, match=said):
        _ = ImageFolder(**{"root": str(tmp_path), "image_size": SIZE, **keywords}).split


@pytest.mark.slow
def test_groups_stay_together(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for patient in range(12):
            for i in range(1 + patient % 4):
                save(
                    tmp_path / label / f"{label}{patient}_{i}.png",
                    scene(top=(patient * 9, i * 30, 5)),
                )
    for seed in range(5):
        data = ImageFolder(
            str(tmp_path),
            image_size=4,
            group_pattern=r"^(\w+?\d+)_",
            split_seed=seed,
            test_fraction=0.2,
        )
        parts = [
            set(part.groups or ()) for part in (data.split.train, data.split.val, data.split.test)
        ]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 24
        assert all(parts)


def test_a_group_in_two_given_parts_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"cat": 8, "dog": 8}, "p{i}_a.png")
    folder(tmp_path / "test", {"cat": 1, "dog": 1}, "p{i}_b.png")
    with pytest.raises(UserError, match=r"group 'p0' has images in .* and in test"):
        _ = ImageFolder(str(tmp_path), image_size=4, group_pattern=r"(p\d+)_").split
    _ = ImageFolder(str(tmp_path), image_size=4).split


def test_a_class_with_one_group_cannot_be_shared_out(tmp_path: Path) -> None:
    folder(tmp_path, {"cat": 6}, "a{i}_1.png")
    folder(tmp_path, {"dog": 6}, "b_{i}.png")
    with pytest.raises(UserError, match="'dog' has 1 group of images to share"):
        _ = ImageFolder(str(tmp_path), image_size=4, group_pattern=r"(\w+?)_").split


def test_files_without_a_match_are_groups_of_their_own(tmp_path: Path) -> None:
    folder(tmp_path, {"cat": 8, "dog": 8})
    groups = ImageFolder(str(tmp_path), image_size=4, group_pattern="person").read().train.groups
    assert len(set(groups or ())) == 16


def files_of(root: Path) -> list[Path]:
    return sorted(root.rglob("*.png"))


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record the files decoded from now on."""
    seen: list[Path] = []

    read = ImagePaths.read

    def counted(self: ImagePaths, number: int) -> bytes:
        seen.append(self.path(number))
        return read(self, number)

    monkeypatch.setattr(ImagePaths, "read", counted)
    return seen


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_files_are_decoded_once(mode: Any, tmp_path: Path, decodes: list[Path]) -> None:
    files = files_of(folder(tmp_path / "set", {"cat": 5, "dog": 5}))
    cache = Cache(tmp_path / "cache", mode)
    first, second = (cache.decode_files(files, SIZE, 3) for _ in range(2))
    assert sorted(decodes) == files
    assert torch.equal(first.store.array, second.store.array)
    assert torch.equal(
        first.store.array, torch.stack([torch.from_numpy(decode(f, SIZE, 3)) for f in files])
    )
    assert torch.equal(first.store.facts.digests, second.store.facts.digests)
    assert (second.store.file is not None) == (mode == "disk")
    assert cache.decode_files(files, SIZE, 1).store.array.shape == (10, 1, SIZE, SIZE)
    assert len(decodes) == 20


def test_off_keeps_nothing(tmp_path: Path) -> None:
    files = files_of(folder(tmp_path / "set", {"cat": 2}))
    Cache(tmp_path / "cache", "off").decode_files(files, SIZE, 3)
    assert not (tmp_path / "cache").exists()


def test_a_large_set_stays_on_disk_or_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = files_of(folder(tmp_path / "set", {"cat": 2}))
    assert Cache(tmp_path / "cache").decode_files(files, SIZE, 3).store.file is None
    said = "data.cache=auto: ram, as the images take 1 MB once decoded"
    assert capsys.readouterr().err.count(said) == 1
    monkeypatch.setattr("kd.data.cache.LARGE", 2 * 3 * SIZE * SIZE - 1)
    assert Cache(tmp_path / "cache").decode_files(files, SIZE, 3).store.file is not None
    assert "data.cache=auto: disk" in capsys.readouterr().err
    assert Cache(None).decode_files(files, SIZE, 3).store.file is None
    too_small = Cache(tmp_path / "other", limit=1e-9)
    assert isinstance(too_small.decode_files(files, SIZE, 3).store, FileRows)
    assert "data.cache=auto: stream" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [True, False])
def test_streamed_images_are_the_same_and_no_pixels_stay(kept: bool, tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"cat": 6, "dog": 6})
    options = {"image_size": SIZE, "cache_dir": str(tmp_path / "cache") if kept else None}
    whole = ImageFolder(str(root), **options, cache="off").split.train
    for _ in range(2):
        streamed = ImageFolder(str(root), **options, cache="stream").split.train
        assert streamed.fingerprint == whole.fingerprint
        assert torch.equal(streamed.pixels[:], whole.pixels[:])
        assert streamed.moments() == whole.moments()
    assert not [*tmp_path.rglob("pixels.npy")]
    again = pickle.loads(pickle.dumps(streamed.pixels))  # as loader processes get them
    assert torch.equal(again[torch.tensor([3, 1])], whole.pixels[torch.tensor([3, 1])])
    assert (
        ImageFolder(str(root), **options, cache="ram").split.train.fingerprint == whole.fingerprint
    )


def test_what_is_known_of_many_files_takes_little_memory(tmp_path: Path) -> None:
    """Listing, naming and fingerprinting a file take less than 500 bytes at any time, where a
    Path, a str and a Future of each took 2.4 kB; 160 stay: two names of 40, and 80 of numbers."""
    count = 2000
    root = tmp_path / "data/of/some/length/imagenet/train"
    for i in range(count):
        file = root / f"n{i % 50:08}" / f"{i:08}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    data = ImageFolder(str(root))
    endings()  # imports Pillow's plugins
    tracemalloc.start()
    try:
        files, _ = data._by_folders()
        images = ImagePaths(files.paths)
        images.fingerprint()
        order = iter(EpochOrder(count, 8, seed=0))
        next(order)
        used, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert images.path(41) == root / "n00000001" / "00000051.JPEG"
    assert files.names[41] == "train/n00000001/00000051.JPEG"
    assert files.names.at(np.array([40, 41]))[-1] == files.names[41]
    assert used / count < 300
    assert peak / count < 500


def test_a_file_that_changes_while_it_is_streamed_is_noticed(tmp_path: Path) -> None:
    files = files_of(folder(tmp_path / "set", {"cat": 3}))
    rows = Cache(mode="stream").decode_files(files, SIZE, 3).store
    save(files[1], noise(20, 20))
    files[2].unlink()
    assert len(rows.read(torch.tensor([0]))) == 1
    with pytest.raises(DamagedError, match=r"1\.png changed since"):
        rows.read(torch.tensor([0, 1]))
    with pytest.raises(DamagedError, match=r"2\.png: No such file"):
        rows.read(torch.tensor([2]))


def test_changed_added_and_removed_files_are_noticed(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"cat": 8, "dog": 8})

    def fingerprint() -> str:
        return (
            ImageFolder(str(root), image_size=SIZE, cache_dir=str(tmp_path / "cache"))
            .read()
            .train.fingerprint
        )

    before = fingerprint()
    assert fingerprint() == before
    size = (root / "cat/0.png").stat().st_size
    save(root / "cat/0.png", scene(top=(11, 0, 100)))
    assert (root / "cat/0.png").stat().st_size == size  # only its time tells
    changed = fingerprint()
    written = (root / "cat/1.png").stat().st_mtime_ns
    save(root / "cat/1.png", scene(top=(14, 0, 101)))
    os.utime(root / "cat/1.png", ns=(written, written))  # as a copy that keeps times does
    assert (root / "cat/1.png").stat().st_size == size
    kept_time = fingerprint()
    save(root / "cat/new.png", scene(top=(1, 2, 3)))
    added = fingerprint()
    (root / "dog/3.png").unlink()
    assert len({before, changed, kept_time, added, fingerprint()}) == 5


def test_a_folder_that_was_moved_linked_or_staged_is_not_decoded_again(
    tmp_path: Path, decodes: list[Path]
) -> None:
    root = folder(tmp_path / "set", {"cat": 5, "dog": 5})
    cache = Cache(tmp_path / "cache")
    first = cache.decode_files(files_of(root), SIZE, 3)
    shutil.copytree(root, tmp_path / "linked", copy_function=os.link)
    shutil.copytree(root, tmp_path / "node" / "staged")  # with the files' times
    for copied in ("linked", "node/staged"):
        found = cache.decode_files(files_of(tmp_path / copied), SIZE, 3)
        assert torch.equal(found.store.array, first.store.array)
    assert len(decodes) == 10
    (tmp_path / "linked" / "cat" / "0.png").rename(tmp_path / "linked" / "cat" / "00.png")
    cache.decode_files(files_of(tmp_path / "linked"), SIZE, 3)
    assert len(decodes) == 20


def later(cache: Path) -> None:
    """Make all entries ten seconds older."""
    for manifest in cache.glob("images-*/manifest.json"):
        used = manifest.stat().st_mtime - 10
        os.utime(manifest, (used, used))


def test_the_cache_has_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With space for two sets of three images, the third evicts the least recently used one."""
    sets = [files_of(folder(tmp_path / name, {"cat": 3})) for name in "abc"]
    size = 3 * 3 * SIZE * SIZE
    cache = Cache(tmp_path / "cache", limit=2.5 * size / 1e9)
    left = tmp_path / "cache" / "images-killed.partial"
    left.mkdir(parents=True)
    for i in (0, 1, 0, 2):
        cache.decode_files(sets[i], SIZE, 3)
        later(tmp_path / "cache")
    assert len([*(tmp_path / "cache").glob("images-*/")]) == 2
    capsys.readouterr()
    cache.decode_files(sets[0], SIZE, 3)
    assert "decoding" not in capsys.readouterr().err
    later(tmp_path / "cache")
    cache.decode_files(sets[1], SIZE, 3)
    assert "decoding 3 images" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"data.cache_limit is 1e-06 GB"):
        Cache(tmp_path / "cache", "disk", limit=1e-6).decode_files(sets[2], SIZE, 3)


@pytest.mark.parametrize("harm", ["cut", "flip", "facts", "manifest", "no_manifest"])
def test_a_damaged_cache_is_never_used(harm: str, tmp_path: Path, decodes: list[Path]) -> None:
    files = files_of(folder(tmp_path / "set", {"cat": 5, "dog": 5}))
    cache = Cache(tmp_path / "cache", "disk")
    wanted = cache.decode_files(files, SIZE, 3).store.array.clone()
    entry = next(path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    pixels = entry / "pixels.npy"
    match harm:
        case "cut":
            pixels.write_bytes(pixels.read_bytes()[:-100])
        case "flip":
            content = bytearray(pixels.read_bytes())
            content[-1] ^= 1
            pixels.write_bytes(content)
        case "facts":
            content = bytearray((entry / "facts.safetensors").read_bytes())
            content[-1] ^= 1
            (entry / "facts.safetensors").write_bytes(content)
        case "manifest":
            (entry / "manifest.json").write_text(json.dumps({"bad": {}})[:5])
        case "no_manifest":
            (entry / "manifest.json").unlink()
    assert torch.equal(cache.decode_files(files, SIZE, 3).store.array, wanted)
    assert len(decodes) == 20


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_a_bit_that_the_disk_lost_is_noticed(
    mode: Any, tmp_path: Path, decodes: list[Path]
) -> None:
    """Its time is unchanged, as if nobody had written to the file."""
    files = files_of(folder(tmp_path / "set", {"cat": 5, "dog": 5}))
    cache = Cache(tmp_path / "cache", mode)
    wanted = cache.decode_files(files, SIZE, 3).store.array.clone()
    (pixels,) = (tmp_path / "cache").glob("*/pixels.npy")
    times, content = pixels.stat(), bytearray(pixels.read_bytes())
    content[-1] ^= 1  # of the last image
    pixels.write_bytes(content)
    os.utime(pixels, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = cache.decode_files(files, SIZE, 3).store
    if mode == "ram":  # all of it is read anyway
        assert torch.equal(again.array, wanted)
        assert len(decodes) == 20
        return
    rows = Pixels.whole(again)
    assert torch.equal(rows[:9], wanted[:9])  # not all of a large set is read before it is needed
    with pytest.raises(
        DamagedError,
        match=rf"{pixels} is damaged \(image 9\); remove {pixels.parent} to have it decoded",
    ):
        rows[torch.tensor([3, 9])]


def test_a_cache_that_was_only_touched_is_used(tmp_path: Path, decodes: list[Path]) -> None:
    files = files_of(folder(tmp_path / "set", {"cat": 5}))
    cache = Cache(tmp_path / "cache", "disk")
    cache.decode_files(files, SIZE, 3)
    os.utime(next((tmp_path / "cache").rglob("pixels.npy")))
    cache.decode_files(files, SIZE, 3)
    assert len(decodes) == 5


def test_an_interrupted_decoding_leaves_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(folder(tmp_path / "set", {"cat": 5}))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kd.data.cache.decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Cache(tmp_path / "cache", "disk").decode_files(files, SIZE, 3)
    assert not [
        path
        for path in (tmp_path / "cache").iterdir()
        if path.is_dir() and path.suffix != ".partial"
    ]
    assert len(Cache(tmp_path / "cache", "disk").decode_files(files, SIZE, 3).store.array) == 5


def test_a_full_disk_is_said_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(folder(tmp_path / "set", {"cat": 2}))
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("kd.data.cache.shutil.disk_usage", lambda path: usage)
    with pytest.raises(
        UserError, match=r"data\.cache: .* 1.54 kB are needed, 10 B are free; make room"
    ):
        Cache(tmp_path / "cache", "disk").decode_files(files, SIZE, 3)


def test_what_is_to_be_in_memory_needs_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = files_of(folder(tmp_path / "set", {"cat": 2}))
    wanted = Cache().decode_files(files, SIZE, 3).store.array

    def over_quota(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr("kd.data.cache.os.posix_fallocate", over_quota)
        assert torch.equal(
            Cache(tmp_path / "cache").decode_files(files, SIZE, 3).store.array, wanted
        )
        said = capsys.readouterr().err
        assert f"data.cache: cannot write decoded images: {tmp_path / 'cache'}" in said
        assert f"{os.strerror(errno.EDQUOT)}; decoding into memory" in said
        assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()], (
            "nothing takes room"
        )
    (tmp_path / "file").touch()
    assert torch.equal(
        Cache(tmp_path / "file" / "cache").decode_files(files, SIZE, 3).store.array, wanted
    )


@pytest.mark.slow
def test_a_folder_smaller_than_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A beginner's 2 x 30 images: 12 for test, 5 for validation, so 43 remain for a batch of 64."""
    folder(tmp_path / "photos", {"cat": 30, "dog": 30})
    words = ("data=image_folder", f"data.root={tmp_path / 'photos'}", "data.image_size=8")
    quick = ("model=mlp_to_mlp", "epochs=1", "teacher.epochs=1", "pictures=false")
    quick += ("min_batches=0", "teacher.min_batches=0")
    out = f"output_dir={tmp_path / 'out'}"
    assert exit_code("train", *words, *quick, out) == 0
    said = capsys.readouterr().err
    assert (
        "teacher: 43 training images do not fill teacher.batch_size=64, so its batches are of 43"
        in said
    )
    assert "distill: 43 training images do not fill batch_size=64" in said
    (run,) = (tmp_path / "out" / "runs").iterdir()
    config = json.loads((run / "report.json").read_text())["config"]
    assert (config["batch_size"], config["teacher"]["batch_size"]) == (43, 43)
    assert "batch_size: 43" in (run / "config.yaml").read_text()
    again = exit_code("train", *words, *quick, out, "batch_size=43", "teacher.batch_size=43")
    assert again == 0
    assert capsys.readouterr().err.count("already there") == 3  # so 43 is in the keys
