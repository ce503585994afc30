"""Several processes of one launch: what torchrun and srun start, and how it ends."""

import fcntl
import importlib.util
import json
import os
import pickle
import re
import resource
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composed import TINY, composed
from lightning.pytorch.strategies import FSDPStrategy
from processes import CONTEXT, ROOT, Process
from safetensors.torch import load_file
from torch import Tensor

import kd.files.checkpoints
import kd.ranks
from kd.config.schema import check
from kd.data.digits import Digits
from kd.data.images import Images
from kd.errors import CommandError, DropRequest, UserError
from kd.files.checkpoints import WholeCheckpoints, last_good, remove_checkpoint
from kd.files.locks import check_exclusion, hold
from kd.measure.metrics import ask
from kd.ranks import Launch, find_launch, on_all_ranks
from kd.runs.preflight import check_beside
from kd.stages.chain import chain_of
from kd.stages.stage import make_stage
from kd.stages.try_out import depends_on_batch
from kd.training.callbacks import History
from kd.training.devices import devices_of, resolve_devices, world_size
from kd.training.optim import make_optimizer
from kd.training.processes import _launches, on_devices
from kd.training.trainer import construct_trainer

# Convolutions without batch norm, which would see other images with two ranks.
STUDENT = ("student=cnn", "student.net.width=4", "student.net.batch_norm=false")
RUN = (
    *("model=mlp_to_mlp", "data=digits", *TINY[:-1], *STUDENT),
    *("trainer=ddp", "trainer.accelerator=cpu"),
)
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_JOB_ID": "70",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


@pytest.mark.parametrize(
    ("variables", "words", "found"),
    [
        (TORCHRUN, [], (3, 8, 4)),
        ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1"}, [], None),
        (SRUN, ["trainer=ddp"], (3, 4, 2)),
        (SRUN, ["seed=1", "trainer.strategy=ddp"], (3, 4, 2)),
        (SRUN, ["seed=1"], None),  # tasks with a config each
        ({**SRUN, "SLURM_STEP_ID": ""}, ["trainer=ddp"], None),  # sbatch's own script
        ({}, ["trainer=ddp"], None),
    ],
)
def test_find_launch(
    variables: dict[str, str], words: list[str], found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    launch = find_launch(words)
    assert (launch and (launch.rank, launch.size, launch.local_size)) == found
    if launch and "SLURM_JOB_ID" in variables:
        assert launch.nodes == 2
        assert launch.variables["LOCAL_RANK"] == "1"
        assert launch.variables["MASTER_PORT"] == str(15000 + 70 + 2)


def test_nodes_with_unequal_numbers_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TORCHRUN, "WORLD_SIZE": "7"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="7 processes, 4 of them on this node"):
        find_launch([])


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Pretend to be rank 0 of so many processes, so many on each node."""

    def pretend(size: int, local_size: int) -> None:
        ranks = SimpleNamespace(launch=Launch(0, size, local_size))
        monkeypatch.setattr(kd.ranks, "_current", ranks)

    return pretend


def test_the_launch_says_how_many_devices_there_are(launched: Callable[[int, int], None]) -> None:
    launched(8, 4)
    cpu = {"accelerator": "cpu"}
    for asked in (
        {},
        {"devices": "auto"},
        {"devices": 4, "num_nodes": 2},
        {"strategy": "ddp"},
        {"strategy": "ddp_spawn"},
    ):
        options, place = resolve_devices({**cpu, **asked})
        assert {"devices": 4, "num_nodes": 2, "strategy": "ddp"}.items() <= options.items()
        assert type(place).__name__ == "TorchElasticEnvironment"
        assert world_size({**cpu, **asked}) == 8
    options, _ = resolve_devices({**cpu, "strategy": "ddp_fork_find_unused_parameters_true"})
    assert options["strategy"] == "ddp_find_unused_parameters_true"
    with pytest.raises(UserError, match=r"trainer.devices: found 2, but 4 processes"):
        resolve_devices({**cpu, "devices": 2})
    with pytest.raises(UserError, match=r"trainer.num_nodes: found 3, but .* on 2"):
        resolve_devices({**cpu, "num_nodes": 3})


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_available", True), ("device_count", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)


@pytest.mark.usefixtures("two_gpus")
def test_fsdp_is_lightnings_and_its_checkpoint_is_one_file(
    launched: Callable[[int, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its parts are put together on rank 0, so that the store's file is that of one device."""
    launched(2, 2)
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    options = {"accelerator": "gpu", "strategy": "fsdp", "precision": "bf16-mixed"}
    trainer = construct_trainer({**options, "logger": False, "enable_checkpointing": False})
    assert isinstance(trainer.strategy, FSDPStrategy)
    assert trainer.strategy._state_dict_type == "full"
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpoints)
    assert trainer.world_size == 2


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    "word",
    ["ema=0.9", "swa=0.5", "gradient_clip=1.0", "optim=muon", "optim=timm optim.name=lamb"],
)
def test_what_needs_whole_parameters_is_refused_beside_fsdp(
    word: str, launched: Callable[[int, int], None], digits: Digits
) -> None:
    launched(2, 2)
    (plan,) = chain_of(check(composed("stages=[baseline]", *word.split())))
    check_beside(plan, {"strategy": "ddp"}, digits)
    name, _, value = word.split()[-1].replace(".name", "").partition("=")
    with pytest.raises(UserError, match=f"^{name}: found {value}, which needs whole parameters"):
        check_beside(plan, {"strategy": "fsdp"}, digits)


def test_weight_decay_is_by_the_dimensions_of_whole_parameters() -> None:
    """FSDP leaves one-dimensional parts of all parameters, some of them empty."""
    net = torch.nn.Linear(3, 2)
    whole = {net.weight: 2, net.bias: 1}
    net.weight.data = net.weight.data.flatten()[:4]
    optim = {"_target_": "torch.optim.AdamW", "lr": 0.1, "decay_norms": False, "weight_decay": 0.5}
    optimizer, _ = make_optimizer(net, 2, optim=optim, schedule="constant", dimensions=whole)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {id(net.weight): 0.5, id(net.bias): 0.0}


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="has DeepSpeed")
def test_deepspeed_asks_for_its_package(launched: Callable[[int, int], None]) -> None:
    launched(2, 2)
    with pytest.raises(UserError, match="pip install -U deepspeed"):
        construct_trainer({"accelerator": "gpu", "strategy": "deepspeed_stage_2"})


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_2"])
def test_shards_need_a_launcher(strategy: str) -> None:
    line = f"torchrun --nproc-per-node 2 -m kd.train trainer.strategy={strategy} "
    with pytest.raises(UserError, match=line):
        resolve_devices({"accelerator": "gpu", "devices": "auto", "strategy": strategy})


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({}, 1),
        ({"devices": "auto"}, 1),
        ({"devices": "auto", "strategy": "ddp"}, 2),
        ({"devices": -1, "strategy": "ddp"}, 2),
        ({"devices": [0, 2, 3]}, 3),
    ],
)
def test_how_many_devices_are_asked_for(asked: dict[str, Any], count: int) -> None:
    assert devices_of({"accelerator": "cpu", **asked}) == count


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"devices": [0, 1]}, r"trainer.devices: found \[0, 1\] on a cpu; a list names GPUs"),
        ({"num_nodes": 2}, r"trainer.num_nodes: found 2 in a .* --nnodes 2 --nproc-per-node 1 "),
        ({"strategy": "ddp", "devices": 3, "num_nodes": 2}, "--nproc-per-node 3 .* trainer=ddp"),
        ({"strategy": "fsdp"}, "trainer.strategy: found 'fsdp' on a cpu"),
        ({"strategy": "deepspeed_stage_2"}, "trainer.strategy: found 'deepspeed_stage_2' on a cpu"),
    ],
)
def test_what_cannot_be_started_is_refused_before_anything_is_read(
    asked: dict[str, Any], message: str
) -> None:
    """So it is refused too where all stages are done, and no Trainer is built."""
    with pytest.raises(UserError, match=message):
        chain_of(check(composed()).model_copy(update={"trainer": {"accelerator": "cpu", **asked}}))


def test_each_process_of_a_list_of_devices_has_its_own() -> None:
    launches = _launches({"devices": [0, 2, 3]}, 3)
    assert [each.gpu for each in launches] == [0, 2, 3]
    assert [each.variables["RANK"] for each in launches] == ["0", "1", "2"]
    assert {each.variables["MASTER_ADDR"] for each in launches} == {"127.0.0.1"}


def spec(*words: str) -> dict[str, Any]:
    """What the baseline's key is made of."""
    config = check(composed("data.limit=200", "batch_size=48", "stages=[baseline]", *words))
    (plan,) = chain_of(config)
    return make_stage(plan, config, Digits(limit=200), {}).spec.model_dump(exclude_unset=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "share"), [(("student=mlp",), None), (("student=cnn", "student.net.width=4"), 6)]
)
def test_how_the_world_is_split_is_no_part_of_the_key(
    words: tuple[str, ...], share: int | None, launched: Callable[[int, int], None]
) -> None:
    """But the images that a device sees at once are, for a net with batch norm: 48 / 8."""
    alone, found = spec(*words), []
    for size, local_size in ((8, 8), (8, 4)):
        launched(size, local_size)
        found.append(spec(*words, "trainer=ddp"))
    assert found[0] == found[1]
    assert found[0].pop("batch_size_per_device", None) == share
    assert found[0] == alone
    per_device = spec(*words, "trainer=ddp", "batch_size_per_device=6")
    assert per_device == found[1]


@pytest.mark.slow
def test_images_without_a_label_make_the_share_matter(
    launched: Callable[[int, int], None],
) -> None:
    """The mean of each device is over those that have one."""
    launched(2, 2)
    config = check(composed("data.limit=200", "stages=[teacher,distill]"))
    (_, plan) = chain_of(config)
    assert not depends_on_batch(plan, Digits(limit=200), {})
    few = Digits(limit=200, labels=50).for_stage(plan.sees)
    assert depends_on_batch(plan, few, {})


# By their definitions; `rkd` and the others relate the images of a batch to each other.
COMPARING = {"rkd": True, "sp": True, "cc": True, "pkt": True, "dist": True, "crd": True}
SINGLE = {"kd": False, "dkd": False, "nkd": False, "mse_logits": False, "at": False, "vid": False}


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "compares"), [*COMPARING.items(), *SINGLE.items()])
def test_losses_that_compare_images_are_found(loss: str, compares: bool) -> None:
    small = ("teacher.net.hidden=[16]", "student.net.hidden=[8]")
    config = check(composed(f"loss={loss}", "stages=[teacher,distill]", *small))
    (_, plan) = chain_of(config)
    assert depends_on_batch(plan, Digits(limit=200), {}) == compares


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def tasks(*words: str) -> list[Process]:
    """Two tasks of one step of SLURM, as srun starts them."""
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
    step |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    found = []
    for rank in ("0", "1"):
        own = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0"}
        environment = {**os.environ, **step, **own}
        found.append(Process("kd.train", *RUN, *words, environment=environment))
    return found


def torchrun(
    *words: str, nodes: int, each: int, flags: tuple[str, ...] = (), forks: bool = True
) -> list[Process]:
    """Launchers of torchrun that meet on this machine, one for each node.

    Args:
        forks: they fork the ranks, which then need not import torch again: 7 s of CPU time less for
            each.
    """
    place = ("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    size = (f"--nnodes={nodes}", f"--nproc-per-node={each}")
    script = ["-m", "kd.train"]
    if forks:
        script = ["--run-path", "--start-method=fork", str(ROOT / "kd" / "train.py")]
    command = (*size, *place, "--local-addr=127.0.0.1", *flags, *script, *RUN, *words)
    return [Process("torch.distributed.run", *command) for _ in range(nodes)]


def results(out: Path) -> tuple[dict[str, str], dict[str, Any], list[Any]]:
    """Keys and weights of the stages by name, and the models of the only report."""
    records = {file.parent: json.loads(file.read_text()) for file in out.glob("store/*/stage.json")}
    keys = {record["name"]: record["key"] for record in records.values()}
    weights = {
        record["name"]: load_file(folder / "weights.safetensors")
        for folder, record in records.items()
    }
    (report,) = out.glob("runs/*/report.json")
    return keys, weights, json.loads(report.read_text())["models"]


class Noting(torch.nn.Module):
    """A linear net that notes the batches that each rank asks it about."""

    def __init__(self, notes: Path) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(9, 3)
        self.notes = notes

    def forward(self, x: Tensor) -> Tensor:
        with (self.notes / f"rank{os.environ.get('RANK')}").open("a") as file:
            file.write(f"{len(x)} ")
        return self.linear(x.flatten(1))


def asked_about(notes: Path) -> tuple[Noting, Images]:
    torch.manual_seed(0)
    pixels = torch.randint(256, (9 * 64 + 5, 1, 3, 3), dtype=torch.uint8)
    return Noting(notes), Images(pixels, torch.zeros(len(pixels), dtype=torch.int64))


def fail_on_one() -> None:
    if torch.distributed.get_rank() == 1:
        raise ZeroDivisionError("a defect")


def ask_on_two(folder: Path) -> None:
    """Start a second process and ask a net together; then that process fails."""
    torch.set_num_threads(1)
    with on_devices({"accelerator": "cpu", "devices": 2, "strategy": "ddp_fork"}):
        net, images = asked_about(folder)
        torch.save(ask(net, images, ((0.5,), (0.25,))), folder / "logits.pt")
        with pytest.raises(CommandError, match=r"^rank 1: a defect\nTraceback"):
            on_all_ranks(fail_on_one)
    assert "RANK" not in os.environ


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="counts a CPU's batches")
def test_each_rank_asks_a_net_about_its_share(tmp_path: Path) -> None:
    """Ten batches, the last of five images: five for each of two ranks, and the same bits."""
    (command := CONTEXT.Process(target=ask_on_two, args=(tmp_path,))).start()
    command.join(120)
    assert command.exitcode == 0
    assert (tmp_path / "rank0").read_text() == "64 " * 5
    assert (tmp_path / "rank1").read_text() == "64 " * 4 + "5 "
    net, images = asked_about(tmp_path)
    x = (images.pixels[:].float() / 255 - 0.5) / 0.25
    expected = torch.cat([net(part).detach() for part in x.split(64)])
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def spawn(*words: str) -> list[Process]:
    """The command by itself, which spawns the second process."""
    return [Process("kd.train", *RUN, *words)]


WAYS: dict[str, Callable[..., list[Process]]] = {
    "srun": tasks,
    "torchrun": partial(torchrun, nodes=2, each=1),
    "spawn": spawn,
}


@pytest.mark.slow
def test_launched_by_torchrun_by_srun_and_alone_it_is_the_same(tmp_path: Path) -> None:
    """Two processes add the gradient up in another order: within 1e-5 after these steps.

    The metrics too, those of validation over 101 images, which two ranks cannot share evenly. With
    batch norm the weights would differ: each sees the statistics of its own 25 images.
    """
    words = ("data.val_fraction=0.075",)
    alone = tmp_path / "alone"
    done = Process("kd.train", *RUN, *words, "trainer.devices=1", f"output_dir={alone}").wait()
    assert done.returncode == 0, done.stderr
    keys, weights, models = results(alone)
    losses = history(alone)
    assert {(each["devices"], each["batch_size_per_device"]) for each in models} == {(1, 50)}
    for name, start in WAYS.items():
        out = tmp_path / name
        ended = [each.wait() for each in start(*words, f"output_dir={out}")]
        assert not any(each.returncode for each in ended), [each.stderr for each in ended]
        # Not by length: the launcher that does not hold torchrun's store may end with a traceback
        # of its own, longer than the report, where the other one ended first.
        spoken = [each.stdout + each.stderr for each in ended]
        *silent, said = sorted(spoken, key=lambda text: "Report:" in text)
        assert not re.search("Report:|teacher|Warning", "".join(silent)), silent
        assert said.count("Report:") == 1
        own_keys, own_weights, own = results(out)
        assert own_keys == keys
        torch.testing.assert_close(own_weights, weights, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(history(out), losses, rtol=1e-4, atol=1e-5)
        for mine, theirs in zip(own, models, strict=True):
            accuracy = theirs["test"]["accuracy"]
            assert mine["test"]["accuracy"] == pytest.approx(accuracy, abs=2 / 449)
            assert (mine["devices"], mine["batch_size_per_device"]) == (2, 25)
        (text,) = (each.read_text() for each in out.glob("runs/*/report.md"))
        assert text.count("on 2 devices, 25 images each a step") == len(models)
        assert not list(out.glob("store/*.partial"))


def history(out: Path) -> dict[str, list[dict[str, float]]]:
    """What each epoch measured, by the names of the stages."""
    found = {}
    for file in out.glob("store/*/stage.json"):
        record = json.loads(file.read_text())
        found[record["name"]] = [
            {name: value for name, value in row.items() if "/" in name} for row in record["history"]
        ]
    return found


def ranks_of(launcher: Process) -> list[int]:
    """The processes that a launcher has started, in the order of their ranks."""
    pid = launcher.process.pid
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def fill_disk(pid: int) -> None:
    """Any write to a file fails."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))


# What happens in the third epoch, given the launcher and its two ranks; and the exit code. Zero:
# the training goes on without a new command.
FAULTS: dict[str, tuple[Callable[[Process, list[int]], None], int]] = {
    "rank 1 killed": (lambda _, ranks: kill(ranks[1]), 1),
    "rank 0 killed": (lambda _, ranks: kill(ranks[0]), 1),
    "all ranks killed": (lambda _, ranks: kill(*ranks), 1),
    "launcher killed": (lambda run, _: run.send_signal(signal.SIGKILL), -signal.SIGKILL),
    "SIGTERM to the job": (lambda run, _: run.send_signal(signal.SIGTERM), 1),
    "--max-restarts": (lambda _, ranks: kill(ranks[1]), 0),
    "rank 0's disk full": (lambda _, ranks: fill_disk(ranks[0]), 1),
    "rank 1's disk full": (lambda _, ranks: fill_disk(ranks[1]), 0),
    # Without a launcher: the second process, and the command itself, which is rank 0.
    "alone, rank 1 killed": (lambda _, ranks: kill(*ranks), 1),
    "alone, rank 0 killed": (lambda run, _: run.send_signal(signal.SIGKILL), -signal.SIGKILL),
    "alone, SIGTERM to rank 0": (lambda run, _: run.send_signal(signal.SIGTERM), 130),
}
TRIED = list(FAULTS) if os.environ.get("KD_FAULTS") else ["rank 1 killed"]
LONGER = ("stages=[baseline]", "epochs=12")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of two ranks that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed")
    for each in tasks(*LONGER, f"output_dir={out}"):
        assert each.wait().returncode == 0, each.stderr
    weights: dict[str, Tensor] = results(out)[1]["baseline"]
    return weights


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/thread-self/children").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("fault", TRIED)
def test_a_fault_ends_all_ranks_and_the_same_command_goes_on(
    fault: str, undisturbed: dict[str, Tensor], tmp_path: Path
) -> None:
    """To the same bits. `KD_FAULTS=1` tries all faults, half a minute of CPU time each."""
    happens, code = FAULTS[fault]
    words = (*LONGER, f"output_dir={tmp_path}")
    flags = ("--max-restarts=2",) if fault == "--max-restarts" else ()
    if fault.startswith("alone"):
        run = Process("kd.train", *RUN, "trainer.strategy=ddp_fork", *words)
    else:
        forks = fault != "launcher killed"  # torch has a forked rank end with it, others not
        (run,) = torchrun(*words, nodes=1, each=2, flags=flags, forks=forks)
    assert any("epoch 2/" in line for line in run.lines()), run.stderr
    ranks = ranks_of(run)
    happens(run, ranks)
    began = time.monotonic()
    assert run.wait(120).returncode == code, run.stderr
    while not all(map(is_gone, ranks)):
        assert time.monotonic() - began < 30
        time.sleep(0.1)
    if code:
        assert time.monotonic() - began < 30
        assert len(re.findall("^kd: ", run.stderr, re.M)) <= 1, run.stderr
        for each in tasks(*words):
            assert each.wait().returncode == 0, each.stderr
            assert "goes on" not in each.stderr
    weights = results(tmp_path)[1]["baseline"]
    assert all(torch.equal(weights[name], it) for name, it in undisturbed.items())


def drop(row: Mapping[str, float]) -> None:
    raise DropRequest(f"epoch {row['epoch']}")


def test_all_ranks_stop_where_the_first_one_drops_a_stage() -> None:
    """The others watch nothing; they hear of it by broadcast."""
    first = History("net", watch=drop)
    first.rows = [{"epoch": 1.0, "seconds": 2.0}]  # of an earlier attempt
    other = pickle.loads(pickle.dumps(first))
    asked: list[bool] = []

    def broadcast(mine: bool) -> bool:
        asked.append(mine)
        return True

    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(broadcast=broadcast))
    with pytest.raises(DropRequest, match="epoch 1"):
        first.on_train_start(trainer, Any)
    with pytest.raises(DropRequest):
        other.on_train_start(trainer, Any)
    assert asked == [True, False]


def test_a_lock_that_does_not_exclude_another_process_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system whose locks stay on one machine."""
    with hold(tmp_path / "k.lock", "teacher", "is training it"):
        check_exclusion(tmp_path / "k.lock")
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)
        with pytest.raises(
            UserError, match=r"output_dir: rank 0 holds .*k.lock, but .* pass locks"
        ):
            check_exclusion(tmp_path / "k.lock")


def test_deepspeeds_folder_of_shards_is_read_as_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning puts it together; the folder stays for a resume, and goes with the stage's end."""
    whole = {"epoch": 3, "state_dict": {"net.w": torch.ones(2)}}
    asked = []

    def convert(folder: Path, file: Path) -> dict[str, Any]:
        asked.append(folder)
        file.write_bytes(b"shards together")
        return whole

    monkeypatch.setattr(kd.files.checkpoints, "convert_zero_checkpoint_to_fp32_state_dict", convert)
    (last := tmp_path / "last.ckpt").mkdir()
    assert last_good(last, None) is whole
    assert asked == [last]
    assert list(tmp_path.iterdir()) == [last]
    remove_checkpoint(last)
    assert not last.exists()
