"""Teacher outputs are computed once per view, and cached ones equal live ones bit for bit."""

import copy
import errno
import json
import multiprocessing
import os
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composed import TINY, composed
from PIL import Image
from processes import CONTEXT, Process
from safetensors.torch import load_file
from stopping import stop_before
from torch import Tensor

from kd.config.construct import construct
from kd.config.schema import Config, check
from kd.data.base import DataModule, Images
from kd.data.digits import Digits
from kd.data.views import Augment, make_views
from kd.errors import StopRequest, UserError
from kd.nets.mlp import MLP
from kd.nets.resnet import ResNet
from kd.runs.run import run
from kd.teachers.answer_record import AnswerRecord
from kd.teachers.cached_teacher import CachedTeacher
from kd.teachers.frozen_teacher import FrozenTeacher
from kd.teachers.live_teacher import CHUNK, LiveTeacher, TeacherNet, chunk_of
from kd.teachers.sized_teacher import TeacherViews
from kd.teachers.view_files import LOGITS, MANIFEST, Room, ViewFiles

Make = Callable[..., Config]
AUGMENT = Augment(crop_padding=1, rotation=10)


class Sums:
    """Teacher that sums an image's pixels, and counts the images it gets."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, x: Tensor) -> Tensor:
        # Not the blank images that fill a batch
        self.asked += int((x.flatten(1).sum(1) > 0).sum())
        return torch.stack([x.double().sum((1, 2, 3)), -x.double().amax((1, 2, 3))], dim=1).float()

    def to(self, device: torch.device) -> None:
        pass


def images(count: int = 100) -> Images:
    generator = torch.Generator().manual_seed(0)
    return Images(
        torch.randint(1, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8),
        torch.zeros(count),
    )


def cached(
    folder: Path,
    answers: Any = None,
    key: str = "key",
    limit: float = 1.0,
    seed: int = 0,
    views: int = 0,
) -> CachedTeacher:
    part = images()
    files = ViewFiles(Room(folder, limit), key, len(part), AnswerRecord(2, "float32"))
    answers = LiveTeacher(answers or Sums(), "float32")
    return CachedTeacher(answers, TeacherViews(part, AUGMENT, seed), files=files, needed=views)


def batch(view: int, *index: int) -> tuple[Tensor, Tensor, int]:
    """The teacher's input in training."""
    where = torch.tensor(index)
    return (
        make_views(images().pixels[where % 100], where, seed=0, view=view, augment=AUGMENT),
        where,
        view,
    )


def folder_of(teacher: CachedTeacher, view: int) -> Path:
    return teacher.files.folder / f"view-{view}"


@pytest.mark.parametrize(("side", "count"), [(8, CHUNK), (32, CHUNK), (224, 20), (4000, 1)])
def test_fewer_large_pictures_are_asked_about_at_once(side: int, count: int) -> None:
    assert chunk_of(side, side) == count


class TestLive:
    @pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16)])
    @pytest.mark.parametrize("autocast", [False, True])
    def test_logits_do_not_depend_on_the_batch(
        self, channels: int, size: int, autocast: bool
    ) -> None:
        torch.manual_seed(0)
        net = ResNet(10, 18, channels, size, width=8)
        x = torch.rand(150, channels, size, size)
        net(x)  # moves the batch norms
        live = LiveTeacher(FrozenTeacher(net, (0.5,) * channels, (0.2,) * channels), "float32")
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            whole = live.ask(x)
            for size_of_batch in (1, 2, 7, 50, 64, 128):
                order = torch.randperm(150)
                found = torch.empty_like(whole)
                for index in torch.split(order, size_of_batch):
                    found[index] = live.ask(x[index].contiguous(memory_format=torch.channels_last))
                assert torch.equal(found, whole), size_of_batch

    def test_rounds_to_nearest_and_stays_finite(self) -> None:
        class Fixed(Sums):
            def __call__(self, x: Tensor) -> Tensor:
                return torch.tensor([[0.1, 1 / 3, 1e5, -1e5]]).expand(len(x), 4)

        x = torch.zeros(3, 1, 2, 2)
        expected = [float(np.float16(0.1)), float(np.float16(1 / 3)), 65504.0, -65504.0]
        half = LiveTeacher(Fixed(), "float16")(x, torch.arange(3), 0).logits
        assert half.dtype == torch.float32
        assert half.tolist() == [expected] * 3
        single = LiveTeacher(Fixed(), "float32")(x, torch.arange(3), 0).logits
        assert torch.equal(single, Fixed()(x))

    def test_a_net_is_given_batches_of_one_size_and_layout(self) -> None:
        seen = []

        class Spy(Sums):
            def __call__(self, x: Tensor) -> Tensor:
                seen.append((tuple(x.shape), x.stride()))
                return super().__call__(x)

        for count in (1, 64, 65, 200):
            x = torch.rand(count, 3, 4, 4)
            LiveTeacher(Spy()).ask(x)
            LiveTeacher(Spy()).ask(x.contiguous(memory_format=torch.channels_last))
        assert len(set(seen)) == 1
        assert seen[0][0] == (CHUNK, 3, 4, 4)
        seen.clear()
        LiveTeacher(Spy()).ask(torch.rand(30, 1, 224, 224))
        assert [shape[0] for shape, _ in seen] == [20, 20]


class TestOnce:
    def test_the_first_to_need_a_view_computes_it_and_all_others_read(self, tmp_path: Path) -> None:
        first, second = cached(tmp_path), cached(tmp_path)
        for view in (0, 1, 0, 1):
            for teacher in (first, second):
                teacher.prepare(view)
                found = teacher(*batch(view, 3, 99, 3, 0)).logits
                assert torch.equal(found, cached(tmp_path).live(*batch(view, 3, 99, 3, 0)).logits)
        assert first.live.answers.asked == 200  # 100 images in 2 views
        assert second.live.answers.asked == 0

    def test_what_is_read_was_kept_by_index_and_view(self, tmp_path: Path) -> None:
        teacher = cached(tmp_path)
        teacher.prepare(1)
        x, index, view = batch(1, 5, 6)
        assert torch.equal(
            teacher(torch.full_like(x, torch.nan), index, view).logits,
            teacher.live(x, index, view).logits,
        )

    def test_another_view_than_the_prepared_one_is_asked_about(self, tmp_path: Path) -> None:
        teacher = cached(tmp_path)
        teacher.prepare(0)
        assert torch.equal(teacher(*batch(7, 5)).logits, teacher.live(*batch(7, 5)).logits)

    def test_a_further_round_of_an_epoch_is_another_view(self, tmp_path: Path) -> None:
        teacher = cached(tmp_path)
        teacher.prepare(1)
        x, index, view = batch(1, 3, 103)
        x[1] = 0.5
        found = teacher(x, index, view).logits
        assert torch.equal(found, torch.cat([teacher(*batch(1, 3)).logits, Sums()(x[1:])]))

    def test_copies_share_it_and_another_process_opens_it_anew(self, tmp_path: Path) -> None:
        teacher = cached(tmp_path)
        teacher.prepare(0)
        assert copy.deepcopy(teacher) is teacher
        sent = pickle.loads(pickle.dumps(teacher))
        assert sent.rows is None
        assert isinstance(teacher.rows, np.memmap)
        sent.prepare(0)
        assert torch.equal(sent(*batch(0, 1)).logits, teacher(*batch(0, 1)).logits)

    def test_a_file_is_mapped_and_never_read_whole(self, tmp_path: Path) -> None:
        rows, classes = 400_000, 100  # 80 MB
        files = ViewFiles(Room(tmp_path, 1.0), "key", rows, AnswerRecord(classes))
        with files.claim(0):
            files.write(0, (np.full((rows // 100, classes), i, np.float16) for i in range(100)))
        if not Path("/proc/self/statm").exists():
            pytest.skip("no way to tell the memory in use")

        def resident() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        before = resident()
        mapped = files.open(0)
        assert mapped is not None
        assert mapped[np.array([0, 4_000, 399_999])][:, 7].tolist() == [0, 1, 99]
        assert resident() - before < 8_000_000

    def test_layout_and_manifest(self, tmp_path: Path) -> None:
        teacher = cached(tmp_path)
        teacher.prepare(4)
        folder = tmp_path / "key-cpu" / "view-4"
        assert {path.name for path in folder.iterdir()} == {LOGITS, MANIFEST}
        manifest = json.loads((folder / MANIFEST).read_text())
        assert {k: manifest[k] for k in ("rows", "classes", "dtype")} == {
            "rows": 100,
            "classes": 2,
            "dtype": "float32",
        }
        assert np.load(folder / LOGITS).shape == (100, 2)


def flip(folder: Path) -> None:
    content = bytearray((folder / LOGITS).read_bytes())
    content[-3] ^= 1
    (folder / LOGITS).write_bytes(content)


def cut(folder: Path) -> None:
    with (folder / LOGITS).open("r+b") as file:
        file.truncate(500)


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | changes))

    return change


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped bit": flip,
    "truncated": cut,
    "empty": lambda folder: (folder / LOGITS).write_bytes(b""),
    "no logits": lambda folder: (folder / LOGITS).unlink(),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "manifest is no JSON": lambda folder: (folder / MANIFEST).write_text("{"),
    "manifest is a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "manifest without keys": lambda folder: (folder / MANIFEST).write_text("{}"),
    "other rows": edit(rows=99),
    "other type": edit(dtype="float16"),
    "other checksum": edit(sha256="0" * 64),
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
    def test_a_damaged_view_is_named_and_computed_again(
        self, damage: Callable[[Path], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        writer, reader = cached(tmp_path / "a"), cached(tmp_path / "b")
        writer.prepare(0)
        damage(folder_of(writer, 0))
        folder_of(reader, 0).parent.mkdir(parents=True)
        # A path that this process has not verified yet
        shutil.copytree(folder_of(writer, 0), folder_of(reader, 0))
        expected = reader.live(*batch(0, 1, 2)).logits
        reader.live.answers.asked = 0
        reader.prepare(0)
        assert torch.equal(reader(*batch(0, 1, 2)).logits, expected)
        assert reader.live.answers.asked == 100
        said = capsys.readouterr().err
        assert "view-0 is damaged (" in said
        again = cached(tmp_path / "b")
        again.prepare(0)
        assert again.live.answers.asked == 0
        assert "damaged" not in capsys.readouterr().err

    def test_damage_after_the_first_opening_is_found(self, tmp_path: Path) -> None:
        teacher = cached(tmp_path)
        teacher.prepare(0)
        teacher.prepare(1)
        flip(folder_of(teacher, 0))
        teacher.prepare(0)
        assert teacher.live.answers.asked == 300

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_an_interrupted_write_leaves_nothing(
        self, error: type[BaseException], tmp_path: Path
    ) -> None:
        class Breaks(Sums):
            def __call__(self, x: Tensor) -> Tensor:
                if self.asked:
                    raise error
                return super().__call__(x)

        broken = cached(tmp_path, Breaks())
        with pytest.raises(error):
            broken.prepare(0)
        assert list((tmp_path / "key-cpu").glob("view*")) == []
        teacher = cached(tmp_path)
        teacher.prepare(0)
        assert teacher.live.answers.asked == 100


class Slow(Sums):
    """Leave a mark for each batch, slowly."""

    def __init__(self, folder: Path, seconds: float) -> None:
        super().__init__()
        self.folder, self.seconds = folder, seconds

    def __call__(self, x: Tensor) -> Tensor:
        (self.folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(self.seconds)
        return super().__call__(x)


def _prepare(folder: Path, marks: Path, seconds: float) -> None:
    teacher = cached(folder, Slow(marks, seconds))
    teacher.prepare(0)
    assert teacher.rows is not None
    (marks.parent / f"sum-{os.getpid()}").write_text(repr(float(teacher.rows.sum())))


def at_work(folder: Path, seconds: float) -> tuple[Any, Path]:
    """Start a process that computes view 0; returns it and the folder of its marks."""
    (marks := folder / "marks").mkdir()
    job = CONTEXT.Process(target=_prepare, args=(folder / "cache", marks, seconds))
    job.start()
    while not list(marks.iterdir()):
        time.sleep(0.01)
    return job, marks


@pytest.mark.slow
class TestSeveralProcesses:
    def test_one_computes_and_the_others_wait(self, tmp_path: Path) -> None:
        (marks := tmp_path / "marks").mkdir()
        jobs = [
            CONTEXT.Process(target=_prepare, args=(tmp_path / "cache", marks, 0.3))
            for _ in range(2)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(120)
        assert [job.exitcode for job in jobs] == [0, 0]
        assert len(list(marks.iterdir())) == -(-100 // CHUNK)
        assert len({path.read_text() for path in tmp_path.glob("sum-*")}) == 1

    def test_who_has_to_wait_computes_what_comes_next(self, tmp_path: Path) -> None:
        job, marks = at_work(tmp_path, 1.0)
        teacher = cached(tmp_path / "cache", views=3)
        teacher.prepare(0)
        assert teacher.view == 0
        assert torch.equal(
            teacher(*batch(0, 3)).logits, LiveTeacher(Sums(), "float32")(*batch(0, 3)).logits
        )
        job.join(60)
        assert teacher.live.answers.asked == 200, "the other two"
        assert len(list(marks.iterdir())) == -(-100 // CHUNK)
        assert {path.name for path in teacher.files.folder.glob("view*")} == {
            "view-0",
            "view-1",
            "view-2",
        }
        teacher.prepare(2)
        assert torch.equal(
            teacher(*batch(2, 3)).logits, LiveTeacher(Sums(), "float32")(*batch(2, 3)).logits
        )
        assert teacher.live.answers.asked == 200

    def test_no_room_for_what_comes_next_is_no_reason_not_to_wait(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job, _ = at_work(tmp_path, 0.3)
        teacher = cached(tmp_path / "cache", views=3, limit=1.5 * TestLimit.SIZE / 1e9)
        teacher.prepare(0)
        job.join(60)
        assert teacher.rows is not None
        assert teacher.live.answers.asked == 0
        assert "cannot keep" not in capsys.readouterr().err

    def test_a_killed_process_holds_nothing_and_its_half_is_not_used(self, tmp_path: Path) -> None:
        job, _ = at_work(tmp_path, 600.0)
        job.kill()
        job.join(60)
        assert list((tmp_path / "cache" / "key-cpu").glob("view-0.partial"))
        teacher = cached(tmp_path / "cache")
        teacher.prepare(0)
        assert teacher.live.answers.asked == 100
        assert [path.name for path in (tmp_path / "cache" / "key-cpu").glob("view*")] == ["view-0"]


def _prepare_as(rank: int, folder: Path) -> None:
    """One of two ranks of a training, which prepare two views; the disk is full for the second."""
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    teacher = cached(folder / "cache", limit=1.5 * TestLimit.SIZE / 1e9)
    teacher.prepare(0)
    assert teacher.rows is not None
    asked = teacher.live.answers.asked
    teacher.prepare(1)
    assert teacher.rows is None
    torch.save((asked, teacher.live.answers.asked), folder / f"asked-{rank}")


def test_each_rank_computes_its_share_of_a_view(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_prepare_as, args=(rank, tmp_path)) for rank in (0, 1)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(60)
    assert [each.exitcode for each in ranks] == [0, 0]
    assert [torch.load(tmp_path / f"asked-{rank}") for rank in (0, 1)] == [(50, 50)] * 2
    teacher = cached(tmp_path / "cache")
    teacher.prepare(0)
    assert teacher.live.answers.asked == 0
    (x, index, view) = batch(0, *range(100))
    alone = LiveTeacher(Sums(), "float32")
    assert torch.equal(teacher(x, index, view).logits, alone(x, index, view).logits)


class TestNoRoom:
    def check_live(
        self,
        teacher: CachedTeacher,
        capsys: pytest.CaptureFixture[str],
        reason: str,
        asked: int = 0,
    ) -> None:
        for view in (0, 1, 2):
            teacher.prepare(view)
            assert teacher.rows is None
            assert torch.equal(
                teacher(*batch(view, 3, 9)).logits,
                LiveTeacher(Sums(), "float32")(*batch(view, 3, 9)).logits,
            )
        said = capsys.readouterr().err
        assert said.count("teacher.cache: cannot keep") == 1
        assert reason in said
        assert teacher.live.answers.asked == 6 + asked
        assert list(teacher.files.folder.glob("view*")) == []

    def test_disk_full_is_seen_before_computing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=800)
        monkeypatch.setattr("kd.teachers.view_files.shutil.disk_usage", lambda path: usage)
        self.check_live(cached(tmp_path), capsys, os.strerror(errno.ENOSPC))

    def test_disk_full_while_writing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def full(*args: Any) -> str:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("kd.teachers.view_files.checksum", full)
        self.check_live(cached(tmp_path), capsys, os.strerror(errno.ENOSPC), asked=100)

    def test_unwritable(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "cache").touch()  # a file where a folder should be: holds for root too
        self.check_live(cached(tmp_path / "cache"), capsys, os.strerror(errno.ENOTDIR))

    def test_what_is_there_is_read_even_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cached(tmp_path).prepare(1)
        usage = shutil.disk_usage(tmp_path)._replace(free=0)
        monkeypatch.setattr("kd.teachers.view_files.shutil.disk_usage", lambda path: usage)
        teacher = cached(tmp_path)
        found = []
        for view in (0, 1, 2):
            teacher.prepare(view)
            found.append(teacher.rows is not None)
        assert found == [False, True, False]


class TestLimit:
    SIZE = 100 * 2 * 4 + 128  # bytes of a view's file

    def test_least_recently_used_views_of_others_go_first(self, tmp_path: Path) -> None:
        limit = 3.5 * self.SIZE / 1e9
        old, new = (
            cached(tmp_path, key="old", limit=limit),
            cached(tmp_path, key="new", limit=limit),
        )
        old.prepare(0)
        old.prepare(1)
        old.prepare(2)
        for age, view in ((300, 1), (200, 0), (100, 2)):
            used = time.time() - age
            os.utime(folder_of(old, view) / MANIFEST, (used, used))
        old.prepare(1)  # the oldest no more
        new.prepare(0)
        left = {path.name for path in old.files.folder.glob("view*")}
        assert left == {"view-1", "view-2"}
        assert folder_of(new, 0).exists()
        again = cached(tmp_path, key="old", limit=limit)
        again.prepare(1)
        assert again.live.answers.asked == 0

    def test_its_own_are_never_removed(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        teacher = cached(tmp_path, limit=2.5 * self.SIZE / 1e9)
        for view in range(5):
            teacher.prepare(view)
            assert torch.equal(
                teacher(*batch(view, 3)).logits,
                LiveTeacher(Sums(), "float32")(*batch(view, 3)).logits,
            )
        assert {path.name for path in teacher.files.folder.glob("view*")} == {"view-0", "view-1"}
        said = capsys.readouterr().err
        assert said.count("teacher.cache: cannot keep") == 1
        assert "teacher.cache_limit" in said
        teacher.prepare(0)
        assert teacher.rows is not None

    def test_a_mapped_view_that_another_process_removes_stays_readable(
        self, tmp_path: Path
    ) -> None:
        teacher = cached(tmp_path, limit=1.5 * self.SIZE / 1e9)
        teacher.prepare(0)
        before = teacher(*batch(0, 3, 50)).logits
        cached(tmp_path, key="other", limit=1.5 * self.SIZE / 1e9).prepare(0)
        assert not folder_of(teacher, 0).exists()
        assert torch.equal(teacher(*batch(0, 3, 50)).logits, before)


RESNET = ("teacher=resnet18", "teacher.net.width=4", "student=cnn", "student.net.width=2")
CHAIN = ("name=test", "trainer=cpu", "stages=[teacher,distill]", "teacher.epochs=1", "epochs=2")
# Batches of one image, where the last bit of a net's logits differs most from larger batches.
SINGLE = ("data.limit=20", "batch_size=1", "teacher.batch_size=20", *RESNET)


class Counting:
    """Teacher that wraps another and counts how often it gets each image, by pixels."""

    def __init__(self, answers: TeacherNet, counts: Counter[bytes]) -> None:
        self.answers, self.counts = answers, counts

    def __call__(self, x: Tensor) -> Tensor:
        # Blank images fill the batch
        self.counts.update(each.numpy().tobytes() for each in x.contiguous() if each.any())
        return self.answers(x)

    def to(self, device: torch.device) -> None:
        self.answers.to(device)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """Count how often teachers got each view of an image in training."""
    counts: Counter[bytes] = Counter()
    original = LiveTeacher.__init__

    def count(self: LiveTeacher, answers: TeacherNet, *args: Any) -> None:
        original(self, Counting(answers, counts), *args)

    monkeypatch.setattr(LiveTeacher, "__init__", count)
    return counts


def student(folder: Path, *overrides: str) -> dict[str, Tensor]:
    made = run(check(composed(*CHAIN, f"output_dir={folder}", *overrides)), "a test")
    return load_file(made / "student.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Images without labels."""
    (folder := tmp_path / "pool").mkdir()
    for i in range(30):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)).save(
            folder / f"{i}.png"
        )
    return folder


class TestStudent:
    def check_same(self, tmp_path: Path, asked: Counter[bytes], *overrides: str) -> None:
        on = student(tmp_path / "on", *SINGLE, *overrides)
        assert list((tmp_path / "on" / "cache" / "teacher").glob("*/view-0/logits.npy"))
        asked.clear()
        again = student(tmp_path / "on", *SINGLE, *overrides, "force=true")
        assert not asked, "the teacher was trained to the same weights, so all is there"
        off = student(tmp_path / "off", *SINGLE, *overrides, "teacher.cache=off")
        assert asked
        assert not (tmp_path / "off" / "cache" / "teacher").exists()
        assert same(on, off)
        assert same(on, again)

    def test_the_same_bits_with_and_without(self, tmp_path: Path, asked: Counter[bytes]) -> None:
        self.check_same(tmp_path, asked)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "overrides",
        [
            ("teacher.outputs=float32",),
            ("teacher.outputs=float32", "data.views=2"),
            ("data.augment.mixup=1.0", "data.augment.cutmix=1.0"),
            ("POOL",),
            ("POOL", "data.augment.mixup=1.0"),
            ("trainer.precision=bf16-mixed", "teacher.precision=bf16-mixed"),
            ("ema=0.9", "loss=dkd"),
            ("batch_size=7", "student=mlp", "teacher=mlp"),
            ("loss=tfkd_self", "stages=[baseline,distill]"),
        ],
        ids=" ".join,
    )
    def test_the_same_bits_in_all_settings(
        self,
        overrides: tuple[str, ...],
        tmp_path: Path,
        pool: Path,
        asked: Counter[bytes],
    ) -> None:
        named = (each.replace("POOL", f"data.unlabeled={pool}") for each in overrides)
        if "student=mlp" in overrides:
            options = [
                each for each in SINGLE if "net.width" not in each and "teacher=" not in each
            ]
            on, off = (
                student(
                    tmp_path / cache,
                    *options,
                    *overrides,
                    f"teacher.cache={cache}",
                )
                for cache in ("auto", "off")
            )
            assert same(on, off)
            return
        self.check_same(tmp_path, asked, *named)

    @pytest.mark.slow
    def test_rounding_is_part_of_the_result(self, tmp_path: Path) -> None:
        half, single = (
            student(tmp_path, *SINGLE, f"teacher.outputs={each}") for each in ("float16", "float32")
        )
        assert not same(half, single)

    @pytest.mark.slow
    def test_a_sweep_asks_once_about_each_view_of_each_image(
        self, tmp_path: Path, asked: Counter[bytes]
    ) -> None:
        settings = [(t, a) for t in (1, 2, 4, 8) for a in (0.3, 0.6, 0.9)]
        students = [
            student(tmp_path, *TINY, "epochs=3", f"temperature={t}", f"alpha={a}")
            for t, a in settings
        ]
        assert len({tuple(each["fc.bias"].tolist()) for each in students}) == 12
        data: DataModule = construct(check(composed(*CHAIN, *TINY)).data, "data")
        every = torch.arange(200)
        expected: Counter[bytes] = Counter()
        for view in range(3):
            x = make_views(
                data.split.train.pixels[every], every, seed=0, view=view, augment=data.augment
            )
            expected.update(each.numpy().tobytes() for each in x)
        assert sum(asked.values()) == 200 * 3
        assert asked == expected

    @pytest.mark.slow
    def test_views_are_computed_once_in_a_run_that_repeats_them(
        self, tmp_path: Path, asked: Counter[bytes]
    ) -> None:
        student(tmp_path, *TINY, "epochs=5", "data.views=2", "loss=dkd")
        student(
            tmp_path, *TINY, "epochs=3", "data.views=2", "student.net.hidden=[9]", "batch_size=33"
        )
        assert sum(asked.values()) == 200 * 2

    @pytest.mark.parametrize(
        "override",
        [
            "seed=1",
            "data.augment.crop_padding=0",
            "data.limit=190",
            "data.split_seed=1",
            "teacher.seed=1",
            "teacher.outputs=float32",
            "teacher.precision=bf16-mixed",
        ],
    )
    def test_other_views_or_another_teacher_are_other_outputs(
        self, override: str, tmp_path: Path, asked: Counter[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # An untrained teacher and one normalisation: neither depends on the images or augmentation.
        monkeypatch.setattr(DataModule, "statistics", ((0.3,), (0.4,)))
        student(tmp_path, *TINY, "epochs=1", "teacher.epochs=0")
        asked.clear()
        student(tmp_path, *TINY, "epochs=1", "teacher.epochs=0", override)
        assert sum(asked.values()) == (190 if "limit" in override else 200)

    def test_a_trial_run_does_not_compute_whole_views(
        self, tmp_path: Path, asked: Counter[bytes]
    ) -> None:
        student(tmp_path, *TINY, "trainer=smoke", "trainer.accelerator=cpu")
        assert sum(asked.values()) == 2 * 32  # batches of a trial
        assert not (tmp_path / "cache" / "teacher").exists()


@pytest.mark.parametrize(
    ("override", "views"),
    [("epochs=3", 3), ("data.views=2", 2), ("data.views=7", 4), ("early_stopping=2", 0)],
)
def test_how_many_views_will_be_needed(
    override: str, views: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    class Spy(CachedTeacher):
        def __init__(self, *args: Any, needed: int = 0, **options: Any) -> None:
            found.append(needed)
            super().__init__(*args, needed=needed, **options)

    monkeypatch.setattr("kd.stages.teaching.CachedTeacher", Spy)
    student(tmp_path, *TINY, "teacher.epochs=0", "epochs=4", override)
    assert found == [views]


@pytest.mark.slow
def test_a_resumed_training_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Counter[bytes]
) -> None:
    budget = (*TINY, "epochs=4", "teacher.epochs=0")
    whole = student(tmp_path / "off", *budget, "teacher.cache=off")
    asked.clear()
    with monkeypatch.context() as patch:
        stop_before(2, patch)
        with pytest.raises(StopRequest):
            student(tmp_path / "on", *budget)
    resumed = student(tmp_path / "on", *budget)
    assert same(whole, resumed)
    assert sum(asked.values()) == 200 * 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.cache=on", "teacher.cache: found"),
        ("teacher.outputs=float64", "teacher.outputs: found 'float64'"),
        ("teacher.cache_limit=0", "teacher.cache_limit: found"),
    ],
)
def test_wrong_settings_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(composed(override))


def test_off_may_be_written_without_quotes_in_yaml() -> None:
    cfg = composed()
    cfg.teacher.cache = False  # what YAML makes of it
    assert check(cfg).teacher.cache == "off"


def test_digits_views_are_what_the_teacher_is_asked_about(tmp_path: Path) -> None:
    data = Digits(limit=200, augment={"crop_padding": 1, "mixup": 1.0})
    part = data.split.train
    net = ResNet(10, 18, 1, 8, width=4)
    live = LiveTeacher(FrozenTeacher(net, *data.statistics), "float32")
    files = ViewFiles(Room(tmp_path, 1.0), "key", len(part), AnswerRecord(10, "float32"))
    teacher = CachedTeacher(live, TeacherViews(part, data.augment, 5), files=files)
    teacher.prepare(3)
    index = torch.tensor([7, 199, 0])
    x = make_views(part.pixels[index], index, seed=5, view=3, augment=data.augment, pool=part)
    assert torch.equal(teacher(x, index, 3).logits, live.ask(x))


@pytest.mark.slow
def test_two_ranks_share_the_files_and_end_as_without(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(MLP(10, 1, 8, [16]).state_dict(), tmp_path / "teacher.pth")
    ranks = (
        "trainer=ddp",
        "trainer.strategy=ddp_fork",
        "trainer.accelerator=cpu",
        "batch_size=20",
        f"teacher.path={tmp_path / 'teacher.pth'}",
    )
    found = {}
    for cache in ("auto", "off"):
        options = [
            *CHAIN,
            *TINY,
            *ranks,
            f"teacher.cache={cache}",
            f"output_dir={tmp_path / cache}",
        ]
        done = Process("kd.train", "model=mlp_to_mlp", *options).wait()
        assert done.returncode == 0, done.stderr
        found[cache] = load_file(next((tmp_path / cache / "runs").glob("*/student.safetensors")))
    assert same(found["auto"], found["off"])
    views = (tmp_path / "auto" / "cache" / "teacher").glob("*/view-*")
    assert {path.name for path in views} == {"view-0", "view-1"}
