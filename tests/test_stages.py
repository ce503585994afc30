"""Keys cover everything that a result depends on, and nothing else; a stage is trained once."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import plan
from processes import CONTEXT
from safetensors.torch import load_file

from kd.config.construct import construct
from kd.config.schema import Config, Recipe
from kd.data.base import DataModule
from kd.errors import UserError
from kd.files.store import StageResult, Store, checksum, key_of
from kd.files.writing import whole
from kd.measure.metrics import predict_logits
from kd.stages.chain import chain_of
from kd.stages.complete import complete
from kd.stages.result import logits_of
from kd.stages.stage import make_stage

Make = Callable[..., Config]


def keys(config: Config) -> dict[str, str]:
    """Compute each stage's key without training: the teacher's key replaces its result."""
    data = construct(config.data, "data")
    plans = {
        plan.name: plan
        for plan in chain_of(
            config.model_copy(update={"stages": ["teacher", "baseline", "distill"]})
        )
    }
    done = {"teacher": StageResult(make_stage(plans["teacher"], config, data, {}).key, Path(), {})}
    return {
        name: make_stage(plan, config, data, done if name != "teacher" else {}).key
        for name, plan in plans.items()
    }


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("temperature=7", {"distill"}),
        ("alpha=0.3", {"distill"}),
        ("student.net.hidden=[9]", {"baseline", "distill"}),
        ("epochs=3", {"baseline", "distill"}),
        ("seed=1", {"baseline", "distill"}),
        ("optim.lr=0.011", {"baseline", "distill"}),
        ("lr_schedule=cosine", {"baseline", "distill"}),
        ("gradient_clip=1.0", {"baseline", "distill"}),
        ("ema=0.9", {"baseline", "distill"}),
        ("swa=0.5", {"baseline", "distill"}),
        ("label_smoothing=0.1", {"baseline", "distill"}),
        ("teacher.label_smoothing=0.1", {"teacher", "distill"}),
        ("optim.decay_norms=true", {"baseline", "distill"}),
        ("early_stopping=3", {"baseline", "distill"}),
        ("keep=last", {"baseline", "distill"}),
        ("batch_size=40", {"baseline", "distill"}),
        ("teacher.net.hidden=[17]", {"teacher", "distill"}),
        ("teacher.seed=1", {"teacher", "distill"}),
        ("teacher.epochs=3", {"teacher", "distill"}),
        ("data.labels=50", {"baseline", "distill"}),
        ("data.labels_seed=1", set()),  # all labels are kept
        ("data.limit=190", {"teacher", "baseline", "distill"}),
        ("data.split_seed=1", {"teacher", "baseline", "distill"}),
        ("data.augment.crop_padding=2", {"teacher", "baseline", "distill"}),
        ("data.views=2", {"teacher", "baseline", "distill"}),
        ("trainer.precision=bf16-mixed", {"baseline", "distill"}),
        ("teacher.precision=bf16-mixed", {"teacher", "distill"}),
        ("trainer.devices=2", set()),
        ("batch_size_per_device=50", set()),
        ("+trainer.limit_train_batches=2", {"teacher", "baseline", "distill"}),
        ("teacher.outputs=float32", {"distill"}),
        ("teacher.top_k=5", {"distill"}),
        ("teacher.cache_features=true", set()),  # of a loss that asks for none
        ("teacher.cache=off", set()),
        ("teacher.cache_limit=1", set()),
        ("trainer.log_every_n_steps=3", set()),
        ("trainer.accelerator=cpu", set()),
        ("data.num_workers=1", set()),
        ("data.root=/elsewhere", set()),
        ("name=other", set()),
        ("force=true", set()),
        ("debug=true", set()),
        ("stages=[teacher]", set()),
    ],
)
def test_keys(make_config: Make, override: str, changed: set[str]) -> None:
    before, after = keys(make_config()), keys(make_config(override))
    assert {name for name in before if before[name] != after[name]} == changed


def test_the_whole_recipe_is_in_the_key(make_config: Make) -> None:
    config = make_config()
    data = construct(config.data, "data")
    spec = make_stage(plan(config, "teacher"), config, data, {}).spec
    # Where they matter alone; or they have become epochs and the batch size
    elsewhere = {"batch_size_per_device", "drop_last", "min_batches", "min_steps"}
    own = set(Recipe.model_fields) - elsewhere
    assert own <= spec.model_fields_set


def test_key_does_not_depend_on_order() -> None:
    assert key_of({"a": 1, "b": {"c": [1, 2], "d": 0}}) == key_of(
        {"b": {"d": 0, "c": [1, 2]}, "a": 1}
    )
    assert key_of({"a": [1, 2]}) != key_of({"a": [2, 1]})


def test_key_follows_a_users_own_code(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from kd.nets.mlp import MLP\n\n\nclass Mine(MLP):\n    pass\n"
    module = tmp_path / "own_net_of_mine.py"
    monkeypatch.syspath_prepend(tmp_path)

    def baseline(code: str) -> str:
        module.write_text(code)
        return keys(make_config("student.net._target_=own_net_of_mine.Mine"))["baseline"]

    first = baseline(source)
    assert (
        baseline(
            '"""Doc."""\n# a comment\n' + source.replace("    pass", '    """Doc."""\n    pass')
        )
        == first
    )
    assert baseline(source + "\n\nWIDTH = 3\n") != first


def test_key_follows_what_a_users_own_code_imports(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "own_package_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text(
        "from kd.nets.mlp import MLP\nfrom .parts import WIDE\nfrom . import more\n\n\nclass "
        "Mine(MLP):\n    pass\n"
    )
    installed = tmp_path / "site-packages"
    installed.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(installed)

    def baseline(parts: str = "", more: str = "", deep: str = "", library: str = "") -> str:
        (installed / "library_of_theirs.py").write_text(library)
        (package / "parts.py").write_text(f"import own_package_of_mine.deep\nWIDE = 3\n{parts}")
        (package / "more.py").write_text(
            f"import math\ntry:\n    import not_there\nexcept ImportError:\n    pass\n{more}"
        )
        (package / "deep.py").write_text(
            f"import own_package_of_mine.parts, library_of_theirs\n{deep}"
        )
        return keys(make_config("student.net._target_=own_package_of_mine.net.Mine"))["baseline"]

    first = baseline()
    assert baseline(parts="# a comment") == baseline(library="A = 1") == first
    assert (
        len({first, baseline(parts="A = 1"), baseline(more="A = 1"), baseline(deep="A = 1")}) == 4
    )


def done(config: Config, name: str = "teacher", **options: bool) -> tuple[StageResult, bool]:
    data: DataModule = construct(config.data, "data")
    return complete(
        make_stage(plan(config, name), config, data, {}),
        Store(Path(config.output_dir) / "store"),
        data,
        **options,
    )


def test_a_stage_is_trained_once_unless_forced(make_config: Make) -> None:
    config = make_config()
    first, reused = done(config)
    assert not reused
    assert first.record.epochs == 2
    again, reused = done(config)
    assert reused
    assert again.record == first.record
    forced, reused = done(config, force=True)
    assert not reused
    assert forced.record.finished != first.record.finished
    assert {p.name for p in first.folder.parent.iterdir()} == {first.key, f"{first.key}.lock"}


def test_same_seed_same_weights_and_zero_is_a_seed(make_config: Make) -> None:
    results = {}
    for seed in ("0", "0 ", "1"):
        torch.manual_seed(len(results))  # whatever happened before in the process
        results[seed], _ = done(make_config(f"teacher.seed={seed.strip()}"), force=True)
    checksums = [result.record.sha256 for result in results.values()]
    assert checksums[0] == checksums[1]
    assert checksums[0] != checksums[2]


def test_baseline_and_student_start_from_the_same_weights(make_config: Make) -> None:
    config = make_config("epochs=0")
    data = construct(config.data, "data")
    store = Store(Path(config.output_dir) / "store")
    teacher, _ = complete(make_stage(plan(config, "teacher"), config, data, {}), store, data)
    made = [
        complete(make_stage(plan(config, name), config, data, {"teacher": teacher}), store, data)[0]
        for name in ("baseline", "distill")
    ]
    assert made[0].key != made[1].key
    assert made[0].record.sha256 == made[1].record.sha256


def test_a_fresh_net_may_start_from_the_training_images_as_it_will_see_them(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_start.py").write_text(
        """
import torch
from kd.nets.mlp import MLP

class Mine(MLP):
    def __init__(self, num_classes, in_channels, image_size, hidden, count=200):
        super().__init__(num_classes, in_channels, image_size, hidden)
        self.register_buffer("seen", torch.zeros(count, in_channels, image_size, image_size))

    def start_from(self, images):
        self.seen.copy_(images)

class Holds(torch.nn.Module):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.net = Mine(num_classes, in_channels, image_size, [4])

    def forward(self, x):
        return self.net(x)
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = ("teacher.net._target_=own_start.Mine", "teacher.epochs=1")
    first, _ = done(make_config(*mine))
    seen = first.weights()["seen"]
    pixels = construct(make_config().data, "data").split.train.pixels[:].double() / 255
    normalized = (pixels - pixels.mean()) / pixels.std(correction=0)
    torch.testing.assert_close(seen.double(), normalized, atol=1e-4, rtol=1e-4)
    held = make_config("teacher.net={_target_: own_start.Holds}", "~teacher.net.hidden", mine[1])
    assert torch.equal(done(held)[0].weights()["net.seen"], seen)
    monkeypatch.setattr("kd.stages.start.STARTING", 8 * 8 * 50 + 1)
    few, _ = done(make_config(*mine, "+teacher.net.count=50", "teacher.seed=1"))
    assert torch.equal(few.weights()["seen"], seen[::4])
    loaded = make_config(*mine, f"teacher.path={first.folder}/weights.safetensors")
    assert torch.equal(done(loaded)[0].weights()["seen"], seen)  # 50 would not fit


def test_a_file_of_weights_is_summed_once_while_it_stays_as_it_is(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, read = tmp_path / "weights.pt", []
    monkeypatch.setattr(
        "kd.stages.start.checksum", lambda path: read.append(path) or checksum(path)
    )
    found = []
    for tensor in (torch.zeros(3), torch.ones(3)):
        torch.save({"layers.1.bias": tensor}, file)
        found.append([keys(make_config(f"teacher.path={file}"))["teacher"] for _ in range(2)])
        time.sleep(0.02)  # a clock of files may tick every few milliseconds only
    assert len(read) == 2
    assert [len(set(each)) for each in found] == [1, 1]
    assert found[0] != found[1]


def test_weights_from_a_file(make_config: Make, tmp_path: Path) -> None:
    trained, _ = done(make_config())
    path = trained.folder / "weights.safetensors"
    loaded, _ = done(make_config(f"teacher.path={path}"))
    assert loaded.record.epochs == 0
    assert loaded.record.sha256 == trained.record.sha256
    plain = tmp_path / "plain.pt"
    torch.save(load_file(path), plain)
    assert done(make_config(f"teacher.path={plain}"))[0].record.sha256 == trained.record.sha256


def test_a_teacher_that_is_taken_as_it_is_says_once_what_it_makes_of_validation(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, _ = done(make_config())
    asked = []

    def ask(*args: Any) -> torch.Tensor:
        asked.append(args)
        return predict_logits(*args)

    monkeypatch.setattr("kd.stages.answers.predict_logits", ask)
    config = make_config(f"teacher.path={trained.folder / 'weights.safetensors'}")
    data: DataModule = construct(config.data, "data")
    loaded, _ = done(config)
    found = logits_of(loaded, data, data.split.val)
    assert len(asked) == 1
    assert torch.equal(found, logits_of(trained, data, data.split.val))


def test_who_finds_it_done_leaves_no_trace(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.claim("k", "teacher") as folder:
        assert folder.is_dir()
    with store.claim("k", "teacher") as folder:
        (folder / "last.ckpt").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"k.lock", "k.partial"}
    with store.claim("done", "teacher"):
        pass
    assert not (tmp_path / "done.partial").exists()


def test_a_damaged_file_is_not_used(make_config: Make) -> None:
    trained, _ = done(make_config())
    path = trained.folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        trained.weights()


def test_a_later_schema_is_refused(make_config: Make) -> None:
    trained, _ = done(make_config())
    record = trained.record.plain() | {"schema": 99}
    (trained.folder / "stage.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="schema 99"):
        Store(trained.folder.parent).find(trained.key)


def test_of_equally_good_epochs_the_last_is_kept(make_config: Make) -> None:
    slow = ("optim=sgd", "epochs=3", "lr_schedule=constant")
    records = {}
    for keep, rate in (("best", 1e-6), ("last", 1e-6), ("best", 30.0), ("last", 30.0)):
        records[keep, rate], _ = done(
            make_config(*slow, f"optim.lr={rate}", f"keep={keep}"), "baseline"
        )
    tied, early = records["best", 1e-6].record, records["best", 30.0].record
    assert len({row["val/acc"] for row in tied.history}) == 1
    assert tied.val.best["epoch"] == 2
    assert tied.sha256 == records["last", 1e-6].record.sha256
    assert (
        max(early.history, key=lambda row: row["val/acc"])["epoch"] == early.val.best["epoch"] < 2
    )
    assert early.sha256 != records["last", 30.0].record.sha256


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def fail_half_way() -> None:
        with whole(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    with whole(path) as temporary:
        temporary.write_text("all")
        assert not path.exists()
    assert path.read_text() == "all"


def _hold(root: Path, seconds: float) -> None:
    with Store(root).claim("k", "teacher"):
        (root / "held").touch()
        time.sleep(seconds)


@pytest.mark.slow
def test_two_processes_take_turns_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    other = CONTEXT.Process(target=_hold, args=(tmp_path, 60.0))
    other.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.05)
    waiting = CONTEXT.Process(target=_hold, args=(tmp_path, 0.0))
    waiting.start()
    waiting.join(3)
    assert waiting.is_alive(), "it must wait while the other holds the stage"
    other.kill()
    waiting.join(60)
    assert waiting.exitcode == 0, "a dead process's lock must be free"
