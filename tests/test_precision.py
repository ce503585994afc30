"""Number formats of stages and teachers, and the choice of `auto`."""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from composed import composed
from torch import Tensor, nn

from kd.config.construct import construct
from kd.config.precision import _say_slow, resolve_precision
from kd.config.schema import Config, check
from kd.errors import UserError
from kd.files.store import StageResult, Store
from kd.nets.resnet import ResNet
from kd.nets.resnet_cifar import ResNetCIFAR
from kd.nets.torchvision import torchvision_net
from kd.runs.run import run
from kd.shape import Shape
from kd.stages.chain import chain_of
from kd.stages.complete import complete
from kd.stages.stage import make_stage
from kd.teachers.frozen_teacher import FrozenTeacher
from kd.teachers.live_teacher import LiveTeacher
from kd.training.callbacks import RemainingTime
from kd.training.distiller import Distiller
from kd.training.layout import layout_of
from kd.training.optim import make_optimizer
from kd.training.remaining import Outlook, duration
from kd.training.trainer import check_compiler

Make = Callable[..., Config]
AUTO = ("trainer=cpu", "trainer.precision=auto", "teacher.precision=auto")


def machine(
    monkeypatch: pytest.MonkeyPatch, *flags: str, cuda: bool = False, bf16: bool = False
) -> None:
    """Simulate a machine with these CPU flags, with or without a GPU with bf16 units."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: dict.fromkeys(flags, True))
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: bf16)


@pytest.mark.parametrize(
    ("flags", "accelerator", "gpu", "expected"),
    [
        (("avx2", "avx512_f"), "auto", None, "32-true"),
        (("avx512_f", "avx512_bf16"), "auto", None, "bf16-mixed"),
        (("avx512_f", "amx_bf16"), "cpu", None, "bf16-mixed"),
        (("avx2",), "auto", "A100", "bf16-mixed"),
        (("avx512_bf16",), "auto", "V100", "32-true"),
        (("avx512_bf16",), "gpu", "V100", "32-true"),
        (("avx512_bf16",), "cpu", "V100", "bf16-mixed"),
        (("avx2",), "cpu", "A100", "32-true"),
    ],
)
def test_auto_is_what_the_device_has_units_for(
    flags: tuple[str, ...],
    accelerator: str,
    gpu: str | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, *flags, cuda=gpu is not None, bf16=gpu == "A100")
    assert resolve_precision("auto", accelerator, "trainer.precision") == expected
    assert resolve_precision("32-true", accelerator, "trainer.precision") == "32-true"


@pytest.mark.parametrize(("flags", "slow"), [(("avx2",), True), (("avx512_bf16",), False)])
def test_bf16_without_units_is_said_to_be_slow_once(
    flags: tuple[str, ...],
    slow: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine(monkeypatch, *flags)
    _say_slow.cache_clear()
    for key in ("trainer.precision", "teacher.precision"):
        assert resolve_precision("bf16-mixed", "auto", key) == "bf16-mixed"
        resolve_precision("auto", "auto", key)
    said = capsys.readouterr().err
    assert said.count("no units for bfloat16") == slow


def test_auto_is_the_default() -> None:
    cfg = composed("~trainer.precision", "+trainer.precision=auto")  # the tests' own is another
    assert cfg.teacher.precision == "32-true"
    root = Path(__file__).parents[1] / "conf"
    assert yaml.safe_load((root / "trainer" / "auto.yaml").read_text())["precision"] == "auto"
    assert yaml.safe_load((root / "base" / "teacher.yaml").read_text())["precision"] == "auto"
    for name in ("cpu", "gpu", "ddp", "smoke"):
        assert "precision" not in yaml.safe_load((root / "trainer" / f"{name}.yaml").read_text())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "trainer.precision",
            "bf16-true",
            "accepted are auto, 32-true, bf16-mixed, 16-mixed; did you mean 'bf16-mixed'?",
        ),
        ("trainer.precision", "17", "accepted are auto, 32-true, bf16-mixed, 16-mixed"),
        ("teacher.precision", "float16", "accepted are auto"),
        ("teacher.precision", "null", "accepted are auto"),
    ],
)
def test_an_unknown_precision(key: str, value: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}: found .*; {said}".replace("?", r"\?")):
        check(composed(f"{key}={value}"))


@pytest.mark.parametrize("key", ["trainer.precision", "teacher.precision"])
def test_a_precision_that_the_device_cannot_do(
    key: str, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the Trainer would turn 16-mixed into bf16-mixed under the same name."""
    machine(monkeypatch)
    monkeypatch.setattr("kd.runs.run.open_data", pytest.fail)  # before any data is read
    with pytest.raises(
        UserError, match=rf"^{key}: found '16-mixed' on a CPU.* 32-true, bf16-mixed$"
    ):
        run(make_config(f"{key}=16-mixed"), "")


@pytest.mark.slow
@pytest.mark.parametrize("name", [32, "32", "32-true"])
def test_short_names_are_the_same_setting(name: Any) -> None:
    assert check(composed(f"trainer.precision={name}")).trainer["precision"] == "32-true"
    assert check(composed("trainer.precision=bf16")).trainer["precision"] == "bf16-mixed"


def keys(config: Config) -> dict[str, str]:
    """Return the keys of a chain whose stages are finished on the way."""
    data: Any = construct(config.data, "data")
    done: dict[str, StageResult] = {}
    for plan in chain_of(config):
        done[plan.name], _ = complete(
            make_stage(plan, config, data, done), Store(Path(config.output_dir) / "store"), data
        )
    return {name: each.key for name, each in done.items()}


@pytest.mark.slow
def test_auto_has_the_key_of_what_it_means(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, "avx512_bf16")
    in_bf16 = keys(make_config(*AUTO, "epochs=0", "teacher.epochs=0"))
    named = ("trainer.precision=bf16-mixed", "teacher.precision=bf16-mixed")
    assert in_bf16 == keys(make_config(*named, "epochs=0", "teacher.epochs=0"))
    machine(monkeypatch)
    in_float32 = keys(make_config(*AUTO, "epochs=0", "teacher.epochs=0"))
    assert not set(in_bf16.values()) & set(in_float32.values())
    assert in_float32 == keys(make_config("epochs=0", "teacher.epochs=0"))


@pytest.mark.slow
def test_the_report_says_what_was_trained_in(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, "avx512_bf16")
    config = make_config("trainer=cpu", "trainer.precision=auto", "teacher.precision=32-true")
    folder = run(config, "")
    report = json.loads((folder / "report.json").read_text())
    assert {model["role"]: model["precision"] for model in report["models"]} == {
        "teacher": "32-true",
        "baseline": "bf16-mixed",
        "student": "bf16-mixed",
    }
    assert report["config"]["trainer"]["precision"] == "bf16-mixed"
    assert yaml.safe_load((folder / "config.yaml").read_text())["teacher"]["precision"] == "32-true"
    assert "- baseline: 2 epochs in 0 s in bf16-mixed, validation" in (
        (folder / "report.md").read_text().replace(" in 1 s", " in 0 s")
    )


class Dtypes(nn.Module):
    """Record the number format of a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.seen: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(x.flatten(1))
        self.seen.add(found.dtype)
        return found


@pytest.mark.parametrize("around", [True, False], ids=["student in bf16", "student in float32"])
@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]
)
def test_a_teacher_answers_in_its_own(precision: Any, dtype: torch.dtype, around: bool) -> None:
    frozen = FrozenTeacher(Dtypes(), (0.5,), (0.5,))
    x = torch.rand(3, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        answers = LiveTeacher(frozen, "float16", precision)(x, torch.arange(3), 0).logits
    assert (answers.dtype, frozen.net.seen) == (torch.float32, {dtype})


def test_float16_holds_what_bf16_says_exactly() -> None:
    """float16 has 11 significant bits against 8: rounding an answer for the cache loses nothing."""
    logits = (torch.randn(10_000) * 10).bfloat16()
    logits = logits[logits.abs() > 2.0**-14]  # below, float16 has fewer bits
    assert torch.equal(logits.half().float(), logits.float())


@pytest.mark.slow
def test_each_net_trains_in_its_own(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """All losses are computed in float32 too."""
    found: list[tuple[torch.dtype, ...]] = []
    step = Distiller.training_step

    def note(self: Distiller, *args: Any) -> dict[str, Any]:
        handle = self.net.register_forward_hook(lambda *each: seen.append(each[-1].dtype))
        seen: list[torch.dtype] = []
        result = step(self, *args)
        handle.remove()
        found.append((*seen, result["loss"].dtype))
        return result

    monkeypatch.setattr(Distiller, "training_step", note)
    config = make_config("trainer=cpu", "trainer.precision=bf16", "stages=[teacher,baseline]")
    run(config, "")
    half = len(found) // 2
    assert set(found[:half]) == {(torch.float32, torch.float32)}
    assert set(found[half:]) == {(torch.bfloat16, torch.float32)}


@pytest.mark.slow
def test_switching_the_students_leaves_the_teacher(make_config: Make) -> None:
    first = keys(make_config("epochs=0", "teacher.epochs=0"))
    other = keys(make_config("epochs=0", "teacher.epochs=0", "trainer.precision=bf16-mixed"))
    assert {name for name in first if first[name] != other[name]} == {"baseline", "distill"}


@pytest.mark.slow
def test_a_given_teacher_is_the_same_in_all(make_config: Make, tmp_path: Path) -> None:
    """No part of it is trained, and it is measured in float32."""
    net = construct(make_config().teacher.net, "net", num_classes=10, in_channels=1, image_size=8)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    given = ("stages=[teacher]", f"teacher.path={tmp_path / 'weights.pt'}")
    assert keys(make_config(*given)) == keys(make_config(*given, "teacher.precision=bf16-mixed"))


def test_members_may_differ(make_config: Make) -> None:
    members = "+teacher.members=[{precision: bf16-mixed},{seed: 1}]"
    chain = {plan.name: plan for plan in chain_of(make_config(members, "stages=[teacher]"))}
    assert (chain["teacher_1"].precision, chain["teacher_2"].precision) == ("bf16-mixed", "32-true")


@pytest.mark.parametrize(
    ("widths", "flag", "precision", "device", "last"),
    [
        ([13, 13, 26, 52], "amx_bf16", "bf16-mixed", "cpu", False),
        ([13, 13, 26, 52], "avx512_bf16", "bf16-mixed", "cpu", True),
        ([13, 13, 26, 52], "amx_bf16", "32-true", "cpu", True),
        ([13, 13, 26, 52], "amx_bf16", "bf16-mixed", "meta", True),
        ([16, 16, 32, 64], "amx_bf16", "bf16-mixed", "cpu", True),
        ([13, 16, 32, 64], "amx_bf16", "bf16-mixed", "cpu", True),
    ],
)
def test_channels_last_but_for_odd_widths_in_tiles(
    widths: list[int],
    flag: str,
    precision: str,
    device: str,
    last: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, flag)
    net = ResNetCIFAR(10, 14, widths=widths)
    found = layout_of(net, precision, torch.device(device), Shape(3, 32, 10))
    assert found == (torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize(("size", "last"), [(16, False), (17, True)])
def test_contiguous_where_a_depthwise_stride_meets_one_pixel(size: int, last: bool) -> None:
    """Of 16 pixels 8, 4, 2 and 1 are left before MobileNetV3-small's last stride, of 17 two."""
    net = torchvision_net("mobilenet_v3_small", 10).train()
    net.features[1].eval()  # type: ignore[index, union-attr]
    modes = [each.training for each in net.modules()]
    for precision, here in (("bf16-mixed", last), ("32-true", True)):
        found = layout_of(net, precision, torch.device("cpu"), Shape(3, size, 10))
        assert found == (torch.channels_last if here else torch.contiguous_format)
    assert [each.training for each in net.modules()] == modes


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("flags", "width", "last"),
    [(("avx2",), 4, False), (("avx2",), 8, True), (("avx2", "avx512_f"), 4, True)],
)
def test_contiguous_where_a_stride_reads_few_channels(
    flags: tuple[str, ...], width: int, last: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels-last the process would end without AVX-512; a ResNet's shortcuts are such."""
    machine(monkeypatch, *flags)
    net = ResNet(10, depth=18, in_channels=1, image_size=8, width=width)
    found = layout_of(net, precision, torch.device("cpu"), Shape(1, 8, 10))
    assert found == (torch.channels_last if last else torch.contiguous_format)


@pytest.mark.slow
def test_images_come_as_the_net_lies(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, at the net's first layer; its weights keep their layout."""
    machine(monkeypatch, "amx_bf16")
    seen: list[tuple[bool, bool]] = []

    def note(net: nn.Module, x: tuple[Tensor, ...]) -> None:
        if net.training and torch.is_autocast_enabled("cpu"):  # no try-out
            last = {"memory_format": torch.channels_last}
            seen.append((x[0].is_contiguous(**last), net.weight.is_contiguous(**last)))

    build = ResNetCIFAR.__init__

    @wraps(build)
    def hooked(self: ResNetCIFAR, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        inner = [m for m in self.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 8]
        inner[0].register_forward_pre_hook(note)

    monkeypatch.setattr(ResNetCIFAR, "__init__", hooked)
    net = "{_target_: kd.nets.resnet_cifar.ResNetCIFAR, depth: 8, widths: [%s]}"
    for widths in ("13,13,26,52", "16,16,32,64"):
        words = [f"+stage.odd={{net: {net % widths}, loss: labels}}", "stages=[odd]", "epochs=1"]
        run(make_config("trainer=cpu", "trainer.precision=bf16-mixed", *words), "")
    half = len(seen) // 2
    assert set(seen[:half]) == {(False, False)}
    assert set(seen[half:]) == {(True, True)}


@pytest.mark.parametrize(("size", "stride"), [(32, 1), (63, 1), (64, 2), (224, 2)])
def test_an_automatic_stem_halves_pictures_from_64_pixels_on(size: int, stride: int) -> None:
    first = next(
        m for m in ResNet(10, 18, image_size=size, width=8).modules() if isinstance(m, nn.Conv2d)
    )
    assert first.stride == (stride, stride)


@pytest.mark.slow
def test_compiling_is_for_student_and_teacher(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes no key. With a compiler that does nothing the result is bit-identical."""
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    words = ("teacher.cache=off", "stages=[teacher,distill]")
    plain = keys(make_config(*words))
    assert keys(make_config(*words, "trainer.compile=true")) == plain
    assert not compiled  # all was there already
    keys(make_config(*words, "trainer.compile=true", "seed=1", "teacher.seed=1"))
    assert len(compiled) == 3


@pytest.mark.parametrize(("device", "needed"), [("cpu", r"a C\+\+ compiler"), ("cuda", "Triton")])
def test_compiling_without_a_compiler(
    device: str, needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"^trainer\.compile: found true, which needs {needed}"):
        check_compiler(device)


@pytest.mark.parametrize(
    ("device", "clips", "fused"),
    [("cuda", False, True), ("cuda", True, None), ("cpu", False, None)],
)
def test_optimisers_are_fused_on_a_gpu(
    device: str, clips: bool, fused: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def built(node: Any, where: str, **build_arguments: Any) -> Any:
        seen.update(build_arguments)
        return torch.optim.SGD(build_arguments["params"], 0.1)

    class There(nn.Linear):
        def parameters(self, recurse: bool = True) -> Any:
            return iter([Somewhere(each) for each in super().parameters(recurse)])

    class Somewhere:
        def __init__(self, parameter: nn.Parameter) -> None:
            self.device, self.ndim = torch.device(device), parameter.ndim

    monkeypatch.setattr("kd.training.optim.construct", built)
    optim = {"_target_": "torch.optim.SGD", "lr": 0.1}
    make_optimizer(There(2, 2), 5, optim=optim, schedule="constant", clips=clips)
    assert seen.get("fused") is fused


class FakeTrainer:
    """At a step of a stage of 60 epochs of 100 steps."""

    is_global_zero, max_epochs, estimated_stepping_batches = True, 60, 6000
    progress_bar_callback = None

    def __init__(self, step: int) -> None:
        self.global_step = step


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (
            0,
            [
                "teacher: about 1 h 40 min left of 1 h 40 min; teacher.epochs=18 would take "
                "half an hour",
                "teacher: about 1 h 37 min left of 1 h 40 min",
            ],
        ),
        (
            1000,
            [
                "teacher: about 83 min left of 83 min",
                "teacher: about 80 min left of 83 min",
            ],
        ),
    ],
)
def test_how_long_a_stage_still_takes(
    first: int,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One step per second, of 6,000 or from step 1,000 on; logged after 20 and 200 seconds."""
    now = [50.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    callback: Any = RemainingTime("teacher")
    callback.on_train_start(FakeTrainer(first), None)
    for step in range(1, 300):
        now[0] += 1
        callback.on_train_batch_end(FakeTrainer(first + step), None, None, None, 0)
    assert capsys.readouterr().err.splitlines() == expected


def test_a_view_that_the_teacher_was_asked_about_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 s for each of two views, then 0.1 s a step, of 6,000 in 60 epochs."""
    now = [50.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    views = SimpleNamespace(number=lambda epoch: epoch % 2)
    module = Mock(spec=Distiller, teacher="asked", views=views, current_epoch=0)
    callback: Any = RemainingTime("distill")
    callback.on_train_start(FakeTrainer(0), module)
    callback.on_train_epoch_start(FakeTrainer(0), module)
    now[0] += 100
    for step in range(100):
        callback.on_train_batch_start(FakeTrainer(step), module, None, step)
        now[0] += 0.1
        callback.on_train_batch_end(FakeTrainer(step + 1), module, None, None, step)
    # At step 50: 5,950 steps and one more view
    assert capsys.readouterr().err == "distill: about 12 min left of 13 min\n"


@pytest.mark.parametrize("bar", [None, "a bar"])
def test_how_long_the_run_still_takes(
    bar: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step a second, of 600, then longer stages; a bar shows it after the first line."""
    now = [50.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(FakeTrainer, "estimated_stepping_batches", 600)
    monkeypatch.setattr(FakeTrainer, "progress_bar_callback", bar)
    callback: Any = RemainingTime("teacher", Outlook(lambda seconds: 2.5 * seconds, "kd budget"))
    callback.on_train_start(FakeTrainer(0), None)
    for step in range(1, 300):
        now[0] += 1
        callback.on_train_batch_end(FakeTrainer(step), None, None, None, 0)
    first = "teacher: about 10 min left of 10 min, 35 min of the run; half an hour in all:"
    later = "teacher: about 7 min left of 10 min, 32 min of the run"
    said = capsys.readouterr().err.splitlines()
    assert said == [first, "  kd budget", *([] if bar else [later])]
    assert callback.left == "5 min, 30 min of the run"


def test_lengths_of_time() -> None:
    assert [duration(each) for each in (40, 720, 12_000)] == ["40 s", "12 min", "3 h 20 min"]
