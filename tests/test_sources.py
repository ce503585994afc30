"""Images in tars, tables and ImageNet's folders: found, labelled, refused where damaged."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kd.data.base import Source
from kd.data.file_source import FileSource, LabelledImages
from kd.data.huggingface import HuggingFace
from kd.data.imagenet import ImageNet
from kd.data.parquet import Parquet
from kd.data.webdataset import WebDataset
from kd.errors import UserError

SIZE = 10
NAMES = ["bird", "cat"]


def png(number: int) -> bytes:
    """A picture of one colour, its own for each number."""
    file = io.BytesIO()
    Image.new("RGB", (14, 9), (number, 2 * number, 100)).save(file, "png")
    return file.getvalue()


def colours(images: Any) -> list[int]:
    return sorted(images.pixels[:][:, 0, 0, 0].tolist())


def tar(path: Path, numbers: range, form: str = "cls") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            label = NAMES[number % 2] if form == "names" else str(number % 2)
            text = json.dumps({"label": int(label)}) if form == "json" else label
            kind = "json" if form == "json" else "cls"
            for name, data in (
                (f"a/{number:03}.png", png(number)),
                (f"a/{number:03}.{kind}", text),
            ):
                content = data if isinstance(data, bytes) else data.encode()
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def table(path: Path, numbers: range, **columns: Any) -> Path:
    """A file as Hugging Face writes them, in row groups of three."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "image": [{"bytes": png(number), "path": None} for number in numbers],
        "label": [number % 2 for number in numbers],
        **columns,
    }
    label = {"names": NAMES, "_type": "ClassLabel"}
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    found = pyarrow.table({k: v for k, v in values.items() if v is not None})
    found = found.replace_schema_metadata({"huggingface": json.dumps(about)})
    parquet.write_table(found, path, row_group_size=3)
    return path


SYNSETS = ["n01440764", "n01443537", "n02012849"]


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Three synsets with eight images each to train on, and two of validation."""
    for place, synset in enumerate(SYNSETS):
        for part, count in (("train", 8), ("val", 2)):
            folder = tmp_path / "imagenet" / part / synset
            folder.mkdir(parents=True)
            for i in range(count):
                number = 60 * (part == "val") + 20 * place + i
                (folder / f"{i}.JPEG").write_bytes(png(number))
    return tmp_path / "imagenet"


@pytest.mark.parametrize("form", ["meta.bin", "LOC_synset_mapping.txt", "words.txt", "none"])
def test_imagenet_in_folders_by_synset(form: str, imagenet: Path) -> None:
    """Names in the order of the synsets; the official validation part is the test part."""
    names = [("tench", "Tinca tinca"), ("crane",), ("crane", "a bird")]
    lines = (f"{synset} {', '.join(each)}" for synset, each in zip(SYNSETS, names, strict=True))
    if form == "meta.bin":  # as torchvision's own class writes it
        torch.save((dict(zip(SYNSETS, names, strict=True)), [SYNSETS[0]]), imagenet / form)
    elif form != "none":
        text = "\n".join(lines)
        (imagenet / form).write_text(text.replace(" ", "\t", 1) if form == "words.txt" else text)
    for root in (imagenet, imagenet.parent):
        source = ImageNet(str(root), image_size=SIZE, cache="off").read()
        named = ("tench", "crane (n01443537)", "crane (n02012849)")
        assert source.classes == (tuple(SYNSETS) if form == "none" else named)
        assert source.test is not None
        assert source.val is None
        assert colours(source.test) == [60, 61, 80, 81, 100, 101]
        assert (source.train.pixels[:][:, 0, 0, 0] // 20).tolist() == source.train.labels.tolist()


@pytest.mark.parametrize("place", ["train", "."])
def test_names_in_kaggles_archive_or_beside_the_synsets(
    place: str, imagenet: Path, tmp_path: Path
) -> None:
    """The file of names counts as read, not as one that is no image."""
    images = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    images.parent.mkdir(parents=True)
    imagenet.rename(images)
    options, root = {}, tmp_path / "kaggle"
    if place == "train":
        options, root = {"parts": {"train": "."}}, images / place
    lines = [f"{synset} fish {i}, carp" for i, synset in enumerate(SYNSETS)]
    (root / "LOC_synset_mapping.txt").write_text("\n".join(lines))
    data = ImageNet(str(root), image_size=SIZE, cache="off", **options)
    assert data.read().classes == ("fish 0", "fish 1", "fish 2")
    assert not [note for note in data.notes if "passed over" in note]


def test_a_thousand_synsets_have_torchvisions_names() -> None:
    """They are sorted as its weights' outputs are."""
    from torchvision.models import ResNet18_Weights

    categories = ResNet18_Weights.DEFAULT.meta["categories"]
    data = ImageNet()
    data.home = Path("nowhere")
    assert data.class_names([f"n{i:08}" for i in range(1000)]) == tuple(categories)


def test_bad_imagenet(imagenet: Path) -> None:
    (imagenet / "meta.bin").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"meta\.bin is damaged"):
        ImageNet(str(imagenet), image_size=SIZE, cache="off").read()
    for part in ("train", "val"):
        (imagenet / part / SYNSETS[0]).rename(imagenet / part / "fish")
    with pytest.raises(UserError, match="folder fish, which is no synset"):
        ImageNet(str(imagenet), image_size=SIZE, cache="off").read()
    with pytest.raises(UserError, match=r"(?s)no ImageNet in .*torchvision\.datasets\.ImageNet"):
        ImageNet(str(imagenet / "train")).read()


def saved(path: Path, label: Any = None, **parts: range) -> Path:
    """A folder of Hugging Face's `save_to_disk`."""
    datasets = pytest.importorskip("datasets")
    kinds = {"image": datasets.Image(), "label": label or datasets.ClassLabel(names=NAMES)}
    tables = {
        part: datasets.Dataset.from_dict(
            {
                "image": [{"bytes": png(number), "path": None} for number in numbers],
                "label": [number % 2 for number in numbers],
            },
            features=datasets.Features(kinds),
        )
        for part, numbers in parts.items()
    }
    whole = datasets.DatasetDict(tables) if len(tables) > 1 else tables["train"]
    whole.save_to_disk(str(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["off", "stream", "disk"])
def test_what_save_to_disk_leaves(cache: Any, tmp_path: Path) -> None:
    saved(tmp_path / "own", train=range(20), validation=range(30, 36))
    data = HuggingFace(
        str(tmp_path / "own"), image_size=SIZE, cache=cache, cache_dir=str(tmp_path / "cache"),
        augment={"resized_crop": 0.5}, test_fraction=0.3,
    )  # fmt: skip
    source = data.read()
    assert source.classes == tuple(NAMES)
    assert source.val is not None
    assert source.test is None
    assert (colours(source.train), colours(source.val)) == ([*range(20)], [*range(30, 36)])
    assert (source.train.pixels[:][:, 0, 0, 0] % 2).tolist() == source.train.labels.tolist()
    pixels, labels, _ = next(iter(data.train_loader(4, 0)))  # crops of the originals
    assert torch.equal(pixels[:, 0, 0, 0] % 2, labels.to(torch.uint8))
    if cache == "stream":
        sent = pickle.loads(pickle.dumps(source.train))  # as loader processes get it
        assert torch.equal(sent.pixels[:], source.train.pixels[:])


def test_bad_folders_of_save_to_disk(tmp_path: Path) -> None:
    saved(tmp_path / "own", train=range(8), other=range(8))
    options: dict[str, Any] = {"image_size": SIZE, "cache": "off"}
    for where, more, said in (
        ("nix", {}, "is no folder of datasets' save_to_disk"),
        ("own", {"parts": {"train": "trian"}}, "no split 'trian'; did you mean 'train'"),
        ("own", {"parts": {"test": "other"}}, "data.parts: found test; needed is train"),
        ("own", {"label_column": "kind"}, "data.label_column: .* has the columns image, label"),
    ):
        with pytest.raises(UserError, match=said):
            HuggingFace(str(tmp_path / where), **options, **more).read()
    alone = saved(tmp_path / "alone", train=range(8))
    assert len(HuggingFace(str(alone), **options).read().train) == 8


@pytest.mark.parametrize("form", ["cls", "json", "names"])
def test_tars_are_read_where_they_lie(form: str, tmp_path: Path) -> None:
    tar(tmp_path / "shards-train-000.tar", range(10), form)
    tar(tmp_path / "shards-train-001.tar", range(10, 20), form)
    tar(tmp_path / "test" / "0.tar", range(30, 36), form)
    if form == "json":
        (tmp_path / "classnames.txt").write_text("bird\ncat\n")
    caches = ["off", "stream"]
    found = [WebDataset(str(tmp_path), image_size=SIZE, cache=cache).read() for cache in caches]
    for source in found:
        assert source.classes == (("0", "1") if form == "cls" else tuple(NAMES))
        assert source.test is not None
        assert (colours(source.train), colours(source.test)) == ([*range(20)], [*range(30, 36)])
        assert (source.train.pixels[:][:, 0, 0, 0] % 2).tolist() == source.train.labels.tolist()
    assert found[0].train.fingerprint == found[1].train.fingerprint
    assert found[0].train.names[0] == "shards-train-000.tar/a/000.png"
    some = WebDataset(str(tmp_path / "shards-*-001.tar"), image_size=SIZE, cache="off").read()
    assert colours(some.train) == [*range(10, 20)]


@pytest.mark.slow
def test_parquet_files_are_read_by_their_columns(tmp_path: Path) -> None:
    table(tmp_path / "data" / "train-00000-of-00002.parquet", range(10))
    table(tmp_path / "data" / "train-00001-of-00002.parquet", range(10, 20))
    table(tmp_path / "data" / "validation-00000-of-00001.parquet", range(30, 36))
    source = Parquet(str(tmp_path), image_size=SIZE, cache_dir=str(tmp_path / "cache")).read()
    assert source.classes == tuple(NAMES)
    assert source.val is not None
    assert source.test is None
    assert (colours(source.train), colours(source.val)) == ([*range(20)], [*range(30, 36)])
    assert (source.train.pixels[:][:, 0, 0, 0] % 2).tolist() == source.train.labels.tolist()


def test_plain_bytes_and_words_as_labels(tmp_path: Path) -> None:
    words = ["b" if number % 2 else "a" for number in range(12)]
    pictures = [png(number) for number in range(12)]
    table(tmp_path / "x.parquet", range(12), image=None, picture=pictures, label=words)
    options = {"image_size": SIZE, "image_column": "picture"}
    source = Parquet(str(tmp_path / "x.parquet"), **options).read()
    assert source.classes == ("a", "b")
    assert colours(source.train) == [*range(12)]


def test_a_source_of_ones_own_needs_a_length_labels_and_read() -> None:
    class Own(LabelledImages):
        labels = [0, 1] * 6

        def __len__(self) -> int:
            return 12

        def read(self, number: int) -> bytes:
            return png(number)

    class Data(FileSource):
        def read(self) -> Source:
            return self.source({"train": Own()}, ("a", "b"))

    crops = {"resized_crop": 0.2}
    data = Data(image_size=SIZE, val_fraction=0.3, test_fraction=0.3, augment=crops)
    assert data.split.train.pixels.shape[1:] == (3, SIZE, SIZE)
    pixels, labels, _ = next(iter(data.train_loader(4, 0)))
    assert torch.equal(pixels[:, 0, 0, 0] % 2, labels.to(torch.uint8))


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing", "data.root: no .tar file in"),
        ("cut", "is (damaged after|cut off in)"),
        ("noise", "is damaged after its start"),
        ("no class", r"has x\.png, but no class in x\.cls"),
        ("range", "has label 7, accepted are 0 to 1"),
        ("part", "data.parts.train: no file nix"),
        ("pattern", r"data.root: no file b-\*\.tar in"),
    ],
)
def test_bad_tars(what: str, said: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": SIZE}
    if what != "nothing":
        tar(tmp_path / "a.tar", range(10))
    if what == "cut":
        cut(tmp_path / "a.tar", 0.31)
    if what == "noise":
        noise = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
        (tmp_path / "a.tar").write_bytes(noise.tobytes())
    if what in ("no class", "range"):
        with tarfile.open(tmp_path / "b.tar", "w") as archive:
            for name, data in {"x.png": png(1), "x.cls": b"7"}.items():
                if name == "x.png" or what == "range":
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        (tmp_path / "classnames.txt").write_text("bird\ncat\n")
    if what == "part":
        options["parts"] = {"train": "nix*.tar"}
    root = tmp_path / "b-*.tar" if what == "pattern" else tmp_path
    with pytest.raises(UserError, match=said):
        WebDataset(str(root), **options).read()


def test_members_of_a_tar_that_give_no_image_are_told(tmp_path: Path) -> None:
    whole = tar(tmp_path / "all" / "a.tar", range(20))
    with tarfile.open(whole) as found, tarfile.open(tmp_path / "b.tar", "w") as archive:
        members = found.getmembers()
        for member in [*members, *members[:4]]:
            if member.name not in ("a/006.png", "a/007.png"):
                archive.addfile(member, found.extractfile(member))
    for cache in ("off", "stream"):
        data = WebDataset(str(tmp_path / "b.tar"), image_size=SIZE, cache=cache)
        assert len(data.read().train) == 18
        assert data.notes[-2:] == [
            "b.tar has 2 labels without an image: a/006, a/007",
            "b.tar has 2 names again; the last image counts",
        ]
    data = WebDataset(str(whole), image_size=SIZE, cache="off")
    data.read()
    assert not [note for note in data.notes if "a.tar" in note]


def test_a_label_of_minus_one_is_told(tmp_path: Path) -> None:
    """Tables often mark images without a label so."""
    for classes, told in (["-1", "0", "1"], True), (["0", "1", "2"], False):
        table(tmp_path / "a.parquet", range(30), label=classes * 10)
        data = Parquet(str(tmp_path), image_size=SIZE, cache="off")
        assert data.split.classes == tuple(classes)
        assert any("-1 is a class here" in note for note in data.notes) == told


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": None}, "data.image_column: .* has the columns label, and none is image or img"),
        ({"label": None}, "data.label_column: .* has the columns image, and none is label"),
        ({"image": ["a.png"] * 10}, "column image of .*a.parquet holds paths and not"),
        ({"image": [{"bytes": None, "path": "a.png"}] * 10}, "holds paths and not the images' by"),
        ({"label": [5] * 10}, "has label 5, accepted are 0 to 1"),
        ({"label": [0] * 9 + [None]}, "row 0 of group 3 has no label"),
        ("cut", "is no parquet file, or damaged"),
    ],
)
def test_bad_parquet_files(columns: Any, said: str, tmp_path: Path) -> None:
    file = table(tmp_path / "a.parquet", range(10), **({} if columns == "cut" else columns))
    if columns == "cut":
        cut(file, 0.5)
    with pytest.raises(UserError, match=said):
        Parquet(str(tmp_path), image_size=SIZE).read()


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    pictures = [png(number) for number in range(9)] + [b"no image"]
    table(tmp_path / "a.parquet", range(10), image=pictures)
    options = {"image_size": SIZE, "cache": "off"}
    with pytest.raises(UserError, match=r"a\.parquet, row 0 of group 3: not an image"):
        Parquet(str(tmp_path), **options).read()
    data = Parquet(str(tmp_path), on_bad_image="skip", **options)
    assert len(data.read().train) == 9
    assert data.skipped[0]["reason"].startswith("not an image")
