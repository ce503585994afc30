"""Stored answers of other forms: the K largest logits, and features."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from composed import TINY, composed
from numpy.typing import NDArray
from safetensors.torch import load_file

from kd.config.schema import check
from kd.errors import UserError
from kd.nets.hooks import NetOutput
from kd.runs.run import run
from kd.teachers.answer_record import AnswerRecord, sizes_of
from kd.teachers.top_answers import divergence_bound, spread_rest
from kd.teachers.view_files import Room, ViewFiles

IMAGENET, EPOCHS = 1_281_167, 300


def softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def logits(classes: int, scale: float, count: int = 200) -> torch.Tensor:
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("k", [1, 5, 9])
def test_the_largest_probabilities_stay_and_the_others_share_the_rest(k: int) -> None:
    given = logits(10, 3.0)
    found = softmax(spread_rest(given, k).double().numpy())
    for row, now in zip(softmax(given.double().numpy()), found, strict=True):
        order = np.argsort(-row)
        assert now[order[:k]] == pytest.approx(row[order[:k]], rel=1e-5)
        assert now[order[k:]] == pytest.approx((1 - row[order[:k]].sum()) / (10 - k), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
@pytest.mark.parametrize(("classes", "k"), [(100, 1), (100, 5), (1000, 5), (1000, 50)])
def test_the_divergence_is_within_its_bound(
    classes: int, k: int, scale: float, temperature: float
) -> None:
    given = logits(classes, scale)
    spread = spread_rest(given, k)
    p, q = (softmax(each.double().numpy() / temperature) for each in (given, spread))
    divergence = (p * np.log(p / q)).sum(1)
    bound = divergence_bound(spread, k, temperature).numpy()
    assert (divergence <= bound * (1 + 1e-5) + 1e-6).all()
    if temperature == 1:
        left = 1 - np.sort(p)[:, -k:].sum(1)
        assert (bound <= left * math.log(classes - k) * (1 + 1e-5) + 1e-6).all()


def test_the_bound_is_reached() -> None:
    """Where two others are as large as the smallest kept logit, and the rest as good as nothing."""
    row = torch.full((1, 102), -60.0)
    row[0, :4] = torch.tensor([3.0, 1.0, 1.0, 1.0])
    for temperature in (1.0, 3.0):
        spread = spread_rest(row, 2)
        p, q = (softmax(each.double().numpy() / temperature) for each in (row, spread))
        exact = float((p * np.log(p / q)).sum())
        bound = float(divergence_bound(spread, 2, temperature))
        assert bound == pytest.approx(exact, rel=1e-3 if temperature == 1 else 1.0)
        assert bound >= exact - 1e-6
    # At temperature 1: a mass of 2e / (e^3 + 3e), spread over 100 instead of two classes
    mass = 2 * math.e / (math.e**3 + 3 * math.e)
    assert float(divergence_bound(spread, 2)) == pytest.approx(mass * math.log(50), rel=1e-3)


def test_five_answers_for_each_view_of_imagenet_fit_40_gb(tmp_path: Path) -> None:
    """Per image five logits, their classes, and one logit for the rest, of two bytes each."""
    record = AnswerRecord(1000, top_k=5)
    assert record.bytes == 2 * (5 + 5 + 1)
    assert IMAGENET * EPOCHS * record.bytes < 40e9
    assert IMAGENET * EPOCHS * AnswerRecord(1000).bytes > 700e9
    assert AnswerRecord(70_000, top_k=5).bytes == 2 * (5 + 1) + 4 * 5  # as many classes need 4
    files = ViewFiles(Room(tmp_path, 1.0), "key", 300, record)
    given = torch.cat([logits(1000, 4.0), logits(1000, 1.0, 100)]).half()
    kept = spread_rest(given, 5).half().float()
    with files.claim(0):
        files.write(0, (record.pack(NetOutput(part)) for part in kept.split(128)))
    size = (tmp_path / "key-cpu" / "view-0" / "logits.npy").stat().st_size
    assert size - 300 * record.bytes < 1000  # the file's own header
    rows = files.open(0)
    assert rows is not None
    index = np.array([299, 0, 0, 150])
    found = record.unpack(rows[index], torch.device("cpu")).logits
    assert torch.equal(found, kept[index])
    five = given.float().topk(5).values
    assert torch.equal(kept.topk(5).values, five), "the largest keep their eleven bits"


def test_features_are_stored_beside_the_logits() -> None:
    draw = torch.Generator().manual_seed(1)
    maps = [torch.randn(6, c, 4, 4, generator=draw).half().float() for c in (3, 5)]
    features = {"feats": maps, "pooled": torch.ones(6, 7), "head": torch.nn.Linear(7, 4)}
    given = NetOutput(logits(4, 1.0, 6).half().float(), features)
    sizes = sizes_of(given)
    assert sizes == {"feats_0": (3, 4, 4), "feats_1": (5, 4, 4), "pooled": (7,)}
    for top_k in (None, 2):
        record = AnswerRecord(4, "float32", top_k, sizes)
        own = given if top_k is None else given._replace(logits=spread_rest(given.logits, 2))
        found = record.unpack(record.pack(own), torch.device("cpu"))
        assert torch.equal(found.logits, own.logits)
        assert torch.equal(found.features["pooled"], features["pooled"])  # type: ignore[arg-type]
        for one, two in zip(found.features["feats"], maps, strict=True):  # type: ignore[call-overload]
            assert torch.equal(one, two)
        head = 4 * 4 if top_k is None else 4 * 3 + 2 * 2
        assert record.bytes == head + 2 * (3 * 16 + 5 * 16 + 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("teacher.top_k=3",),
        ("teacher.cache_features=true", "loss=fitnet", "teacher.top_k=2", "teacher.image_size=9"),
    ],
)
def test_the_student_is_the_same_with_and_without_the_cache(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    students = []
    for cache in ("auto", "off"):
        own = (f"output_dir={tmp_path / cache}", f"teacher.cache={cache}", "data.limit=100")
        folder = run(check(composed(*TINY, *own, *words, "stages=[teacher,distill]")), "")
        students.append(load_file(folder / "student.safetensors"))
    first, second = students
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(list((tmp_path / "auto" / "cache" / "teacher").glob("*/view-*/logits.npy"))) == 2
    said = "bytes = " in capsys.readouterr().err
    assert said == ("teacher.cache_features=true" in words)


@pytest.mark.slow
def test_as_many_as_there_are_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="accepted are 1 to 9, or null"):
        run(check(composed(*TINY, f"output_dir={tmp_path}", "teacher.top_k=10")), "")
