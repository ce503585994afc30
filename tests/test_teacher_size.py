"""A teacher at its own image size: the same views in geometry, made from the originals."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composed import TINY, composed, composed_command
from PIL import Image
from torchvision.transforms import v2

from kd.config.schema import check
from kd.data.crops import crop_boxes
from kd.data.decode import Reading
from kd.data.digits import Digits
from kd.data.image_folder import ImageFolder
from kd.data.images import Images
from kd.data.rendering import as_read
from kd.data.views import Augment, make_views, views_of
from kd.errors import UserError
from kd.evaluation.evaluation import evaluate
from kd.reports.opening import opening
from kd.run_commands import command_of, read_request
from kd.runs.reader import open_run
from kd.runs.run import run
from kd.shipping.export_run import export
from kd.shipping.model import load_model
from kd.stages.chain import chain_of
from kd.stages.open_data import open_data

SMALL, LARGE = 32, 72
BILINEAR, BICUBIC = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.BICUBIC


def reads(size: Any, **options: Any) -> dict[str, Any]:
    return {"image_size": size, **asdict(Reading(**options))}


def arrays(count: int = 20) -> Images:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, SMALL, SMALL), dtype=torch.uint8, generator=draw)
    return Images(pixels, torch.arange(count) % 2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for i in range(12):
        folder = root / ("cat" if i % 2 else "dog")
        folder.mkdir(exist_ok=True)
        image = Image.fromarray(draw.integers(0, 256, (8, 11, 3), np.uint8))
        size = (150 + 9 * i, 230 - 11 * i)
        image.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return root


def torchvision_crop(image: Any, box: list[int], side: int, how: Any) -> torch.Tensor:
    found = v2.functional.resized_crop(image, *box, [side, side], how, antialias=True)
    return v2.functional.to_image(found)


def views(images: Images, augment: Augment, drawn_at: Any = None) -> torch.Tensor:
    index = torch.arange(len(images))
    how = {"seed": 3, "view": 1, "augment": augment, "pool": images, "drawn_at": drawn_at}
    return views_of(images, index, **how)


def test_a_file_is_cropped_in_one_place_at_both_sizes(photos: Path) -> None:
    """From the original at each size, not from the smaller image."""
    augment = {"resized_crop": 0.08}
    data = ImageFolder(str(photos), image_size=SMALL, augment=augment, cache="stream")
    train = data.split.train
    large = as_read(train, reads(LARGE, interpolation="bicubic"))
    boxes = crop_boxes(train.pixels.original_sizes, torch.arange(len(train)), 3, 1, 0.08)
    for images, side, how in ((train, SMALL, BILINEAR), (large, LARGE, BICUBIC)):
        found = views(images, data.augment, (SMALL, SMALL))
        for i, name in enumerate(images.names):
            image = Image.open(photos / name.partition("/")[2])
            wanted = torchvision_crop(image, boxes[i].tolist(), side, how)
            assert float((255 * found[i] - wanted).abs().max()) <= 1


def test_an_array_is_enlarged_from_the_same_box() -> None:
    images = arrays()
    large = as_read(images, reads(LARGE))
    boxes = crop_boxes(images.pixels.original_sizes, torch.arange(20), 3, 1, 0.3)
    found = views(large, Augment(resized_crop=0.3), (SMALL, SMALL))
    for i in range(20):
        wanted = torchvision_crop(images.pixels[[i]][0], boxes[i].tolist(), LARGE, BILINEAR)
        assert float((255 * found[i] - wanted).abs().max()) <= 1


def test_evaluation_images_come_as_the_teacher_reads_them(photos: Path) -> None:
    data = ImageFolder(str(photos), image_size=SMALL)
    large = as_read(data.split.test, reads(LARGE, resize="crop", crop_ratio=0.875))
    for i, name in enumerate(large.names):
        image = Image.open(photos / name.partition("/")[2])
        scaled = v2.functional.resize(image, [int(LARGE / 0.875)], BILINEAR)
        wanted = v2.functional.to_image(v2.functional.center_crop(scaled, [LARGE, LARGE]))
        assert torch.equal(large.pixels[[i]][0], wanted)
    assert as_read(large, reads(LARGE, resize="crop", crop_ratio=0.875)).pixels.shape[2:] == (
        LARGE,
        LARGE,
    )


def test_shifts_and_mirror_images_are_shares_of_the_side() -> None:
    """At twice the size, padded by twice as much and cut twice as far from the corner."""
    images = arrays()
    large = as_read(images, reads(2 * SMALL))
    augment = Augment(crop_padding=4, horizontal_flip=True)
    found = views(large, augment, (SMALL, SMALL))
    small = views(images, augment)
    for i in range(20):
        # Of the 81 shifts and their mirror images, exactly one gives the student's view
        matches = []
        for top in range(9):
            for left in range(9):
                for flip in (False, True):
                    one, two = (
                        v2.functional.crop(
                            v2.functional.pad(each.pixels[[i]][0], [4 * times]),
                            top * times,
                            left * times,
                            SMALL * times,
                            SMALL * times,
                        )
                        for each, times in ((images, 1), (large, 2))
                    )
                    one, two = ((x.flip(2) if flip else x) for x in (one, two))
                    if torch.equal(one / 255, small[i]):
                        matches.append(two / 255)
        assert len(matches) == 1
        assert torch.equal(matches[0], found[i])


@pytest.mark.parametrize(
    "augment", [Augment(erase=1.0), Augment(cutmix=1.0), Augment(blur=3.0), Augment(rotation=30)]
)
def test_rectangles_and_radii_are_shares_of_the_side(augment: Augment) -> None:
    """What is done to an image enlarged by pixel is the enlarged view."""
    flat = torch.zeros(20, 1, SMALL, SMALL, dtype=torch.uint8)
    flat[:, :, 8:24, 8:24] = (12 * torch.arange(20))[:, None, None, None]
    images = Images(flat, torch.zeros(20))
    large = Images(flat.repeat_interleave(2, 2).repeat_interleave(2, 3), torch.zeros(20))
    small = views(images, augment)
    found = views(large, augment, (SMALL, SMALL))
    found = torch.nn.functional.avg_pool2d(found, 2)
    exact = augment.erase or augment.cutmix
    # A smooth edge is sampled at other points
    assert float((found - small).abs().mean()) <= (1e-6 if exact else 0.01)
    assert not torch.equal(small, make_views(flat, torch.arange(20), seed=4, view=1,
        augment=augment, pool=images))  # fmt: skip


def test_another_size_without_a_change_of_it_is_the_same_view() -> None:
    images = arrays()
    augment = Augment(crop_padding=3, trivial=True, rotation=9, erase=0.5, blur=1, cutmix=1.0)
    assert torch.equal(views(images, augment), views(images, augment, (SMALL, SMALL)))


def test_a_run_asks_the_teacher_at_its_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kd.nets.mlp import MLP

    seen: list[tuple[int, int]] = []
    forward = MLP.forward

    def spy(self: MLP, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x.shape[2], int):  # else it is traced, not computed
            seen.append((x.shape[2], len(self.hidden)))
        return forward(self, x)

    monkeypatch.setattr(MLP, "forward", spy)
    words = (
        *TINY,
        f"output_dir={tmp_path}",
        "teacher=mlp",
        "teacher.net.hidden=[12,12]",
        "student=mlp",
        "student.net.hidden=[8]",
        "teacher.image_size=12",
        "data/augment=standard",
    )
    run(check(composed(*words)), "a test")
    # 4 modules in the teacher's hidden layers, 2 in the student's
    assert set(seen) == {(12, 4), (8, 2)}
    keys = {each.parent.name for each in (tmp_path / "store").rglob("stage.json")}
    run(check(composed(*words, "temperature=2", "teacher.interpolation=bicubic")), "a test")
    later = {each.parent.name for each in (tmp_path / "store").rglob("stage.json")}
    assert len(later - keys) == 2, "teacher and student are others; the baseline is not"


def test_the_cache_of_answers_changes_nothing(tmp_path: Path) -> None:
    students = []
    for cache in ("auto", "off"):
        words = (*TINY, f"output_dir={tmp_path / cache}", f"teacher.cache={cache}")
        folder = run(check(composed(*words, "teacher.image_size=12")), "a test")
        students.append((folder / "student.safetensors").read_bytes())
    assert students[0] == students[1]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("teacher.image_size=0", "teacher.image_size"),
        ("teacher.resize=zoom", "teacher.resize"),
        ("teacher.crop_ratio=1.5", "teacher.crop_ratio"),
        ("teacher.crop_ratio=0.5", "set teacher.resize=crop"),
    ],
)
def test_bad_values_are_named(word: str, said: str) -> None:
    def reads_of_teacher() -> object:
        data = check(composed(word)).data
        return Digits(limit=100, teacher_reading=data["teacher_reading"]).teacher_reads

    with pytest.raises(UserError, match=said):
        reads_of_teacher()


def test_images_need_not_be_square(photos: Path, tmp_path: Path) -> None:
    """From the folder to the shipped model, with a teacher at another size and shape."""
    folder = run(
        check(
            composed(
                *TINY,
                f"output_dir={tmp_path}",
                "data=image_folder",
                f"data.root={photos}",
                "data.limit=null",
                "data.image_size=[12,20]",
                "data.val_fraction=0.3",
                "data.test_fraction=0.3",
                "data/augment=strong",
                "teacher=mlp",
                "teacher.net.hidden=[16]",
                "teacher.image_size=[30,18]",
                "student=mlp",
                "student.net.hidden=[8]",
                "batch_size=2",
                "teacher.batch_size=2",
            )
        ),
        "a test",
    )
    model = load_model(folder, "model")
    assert (model.channels, model.image_size) == (3, (12, 20))
    file = next(photos.rglob("*.png"))
    (pixels,) = model.read(file)
    wanted = Image.open(file).resize((20, 12), Image.Resampling.BILINEAR)
    assert torch.equal(pixels, v2.functional.to_image(wanted))
    assert model.probabilities(pixels[None]).sum() == pytest.approx(1)
    report = json.loads((folder / "report.json").read_text())
    macs = {each["role"]: each["macs"] for each in report["models"]}
    assert macs["student"] == 3 * 12 * 20 * 8 + 8 * 2
    assert macs["teacher"] == 3 * 30 * 18 * 16 + 16 * 2
    # kd.evaluate and kd.export ask it about images of its own size
    finished = open_run(folder)
    of_run = (f"run={folder}", f"output_dir={tmp_path}")
    asked = read_request(command_of("evaluate"), composed_command("evaluate", *of_run), set())
    found = json.loads(evaluate(finished, asked, "").read_text())  # type: ignore[arg-type]
    for one, other in zip(found["models"], report["models"], strict=True):
        assert one["test"]["nll"] == pytest.approx(other["test"]["nll"], abs=1e-5)
    of_teacher = composed_command("export", *of_run, "role=teacher", "formats=[onnx]")
    asked = read_request(command_of("export"), of_teacher, set())
    (row,) = json.loads(export(finished, asked, "").read_text())["files"]  # type: ignore[arg-type]
    assert row["refused"] is None
    assert load_model(folder / "export" / "teacher.onnx", "model").image_size == (30, 18)


RESNET50 = ("teacher=torchvision", "teacher.net.name=resnet50", "teacher.net.pretrained=true")
VIT = ("teacher=timm", "teacher.net.name=vit_small_patch16_224", "teacher.net.pretrained=true")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        # Of torchvision's metadata: resize to 232, then crop 224, bilinear
        (RESNET50, reads(224, resize="crop", crop_ratio=0.9655)),
        # Of timm's: crop_pct 0.9, so 248
        (VIT, reads(224, resize="crop", crop_ratio=0.9032, interpolation="bicubic")),
        (
            (*VIT, "+teacher.net.img_size=96", "teacher.interpolation=box"),
            reads(96, resize="crop", crop_ratio=0.9032, interpolation="box"),
        ),
        ((*RESNET50, "teacher.image_size=64", "teacher.resize=pad"), reads(64, resize="pad")),
        ((*RESNET50, "teacher.image_size=32", "teacher.resize=stretch"), None),  # as the student
        ((*RESNET50, "teacher.net.pretrained=false"), None),
        ((*RESNET50, "teacher.path=own.safetensors"), None),
        (("teacher=resnet18",), None),  # the recipe for folders: what weights there are
    ],
)
def test_a_pretrained_teacher_reads_as_its_weights_were_published(
    words: tuple[str, ...], wanted: Any, photos: Path
) -> None:
    if words[0] == "teacher=timm":
        pytest.importorskip("timm")
    folder = ("data=image_folder", f"data.root={photos}", "data.image_size=32", "data.cache=off")
    data = open_data(check(composed(*folder, *words)))
    assert data.teacher_reads == wanted
    said = [note for note in data.notes if "published" in note]
    assert len(said) == (wanted is not None)
    assert all(f"teacher.image_size={wanted['image_size']} " in note for note in said)


def test_of_arrays_the_published_reading_is_a_hint() -> None:
    own = ("teacher.image_size=224", "teacher.resize=crop", "teacher.crop_ratio=0.9655")

    def hints(*more: str) -> list[str]:
        config = check(composed(*RESNET50, *more, "data.limit=100"))
        return [line for line in opening(chain_of(config), open_data(config)) if "publi" in line]

    assert hints() == [f"  The teacher's weights were published for {' '.join(own)}"]
    assert hints(*own) == []
    assert int(224 / 0.9655) == 232
