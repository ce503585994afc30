"""Several processes of one launch: rank 0 runs the command, the others join each training.

torchrun and srun start a command once for each device. Rank 0 alone finds, claims, publishes and
reports. For a training it sends the others a function with its arguments, and all call it
together (`Ranks.call`); then they wait for the next. So the others never wait for a lock.
Starting, watching and ending the processes is torchrun's or SLURM's. On one machine without either
a command starts them itself, see `kd.training.processes`.
"""

import json
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

from kd.errors import CommandError, RankLostError, UserError
from kd.log import console

MEET = 600.0  # seconds in which all processes must have come
PATIENCE = 10.0  # seconds for another process to say what went wrong
HEARS = 120.0  # seconds for all to hear of a call, between two trainings
LONGEST = timedelta(hours=2)  # of waiting for another process inside a training
Call = tuple[Callable[..., None], tuple[object, ...]]  # a function, with its arguments

CALL = "call"  # announces a call; what announces the end is the exit code
LOST = (
    "another process of this training has ended; the same command goes on from the last finished "
    "epoch"
)
POLL = 0.05  # seconds between two looks, so that a signal is heeded meanwhile

# What on srun's command line asks its tasks to train together; others are runs of their own.
TOGETHER = re.compile(r"\+*trainer(\.strategy)?=(ddp|fsdp|deepspeed)")


@dataclass(frozen=True)
class Launch:
    """This process's place among those of one launch.

    Attributes:
        rank: from 0, among all.
        size: how many there are, 2 or more.
        local_size: how many on each node.
        variables: of the environment, as torch wants them set.
        gpu: its number, of those that this process sees.
        starter: the process that started it, with which it ends; None where something else sees to
            that.
    """

    rank: int
    size: int
    local_size: int
    variables: Mapping[str, str] = field(default_factory=dict)
    gpu: int = 0
    starter: int | None = None

    @property
    def nodes(self) -> int:
        """How many machines take part."""
        return self.size // self.local_size


def find_launch(words: Sequence[str]) -> Launch | None:
    """What torchrun or srun started; None for a process that runs the command by itself.

    Args:
        words: the command line. Tasks of srun train together only where it says `trainer=ddp`.

    Raises:
        UserError: nodes with different numbers of processes.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
        rank, size, local, gpu = (int(env.get(name, "1")) for name in names)
        launch = Launch(rank, size, local, gpu=gpu, starter=os.getppid())
    elif env.get("SLURM_STEP_ID") and any(map(TOGETHER.match, words)):
        launch = _of_srun()
    else:
        return None
    if launch.size == 1:
        return None
    if launch.size % launch.local_size:
        raise UserError(
            f"{launch.size} processes, {launch.local_size} of them on this node; each node needs "
            "the same number"
        )
    return launch


def _of_srun() -> Launch:
    """The place of a task of srun, with torch's names for it."""
    env = os.environ
    size = int(env.get("SLURM_NTASKS", "1"))
    nodes = int(env.get("SLURM_NNODES", "1"))
    step = int(env["SLURM_JOB_ID"]) + int(env["SLURM_STEP_ID"])
    variables = {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(max(1, size // nodes)),
        "GROUP_RANK": env.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": env.get("MASTER_ADDR", ""),
        "MASTER_PORT": env.get("MASTER_PORT", str(15000 + step % 10000)),
    }
    return Launch(
        int(env["SLURM_PROCID"]),
        size,
        max(1, size // nodes),
        variables,
        gpu=int(env["SLURM_LOCALID"]),
    )


def current() -> "Ranks | None":
    """The launch's processes, as rank 0 sees them; None in a command that runs by itself."""
    return _current


_current: "Ranks | None" = None


def lead(launch: Launch, command: Callable[[], int]) -> int:
    """Run a command as rank 0, and let the others go with its exit code; returns that.

    Raises:
        CommandError: the others have not come.
    """
    with leading(launch) as ranks:
        ranks.code = command()
    return ranks.code


@contextmanager
def leading(launch: Launch) -> Iterator["Ranks"]:
    """Be rank 0, and let the others go at the end.

    Raises:
        CommandError: the others have not come.
    """
    global _current
    _current = ranks = Ranks(launch)
    try:
        yield ranks
    finally:
        _current = None
        ranks.end()


def follow(launch: Launch) -> int:
    """Join rank 0 in all that it calls, in silence; returns its exit code."""
    global _current
    console.quiet = True
    logging.disable()
    warnings.simplefilter("ignore")
    try:
        _current = Ranks(launch)
        return _current.follow()
    except KeyboardInterrupt:
        return 130
    except CommandError as error:
        print(f"kd: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if is_lost(error):  # rank 0, which has a message for it or was killed
            return 1
        raise


def on_all_ranks(function: Callable[..., None], *args: object) -> None:
    """Call a function on all ranks of the launch at once, see `Ranks.call`; else just call it."""
    if _current is None:
        function(*args)
    else:
        _current.call(function, *args)


class Ranks:
    """The processes of a launch, and their common store of small values.

    Attributes:
        busy: whether rank 0 needs the others just now.
        code: the exit code of the command.

    Raises:
        CommandError: they have not all come within `MEET` seconds.
    """

    def __init__(self, launch: Launch) -> None:
        from torch.distributed import DistError
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        self.launch = launch
        self.number = 0
        self.busy = False
        self.code = 1
        os.environ.update(launch.variables)
        if not os.environ.get("MASTER_ADDR"):
            os.environ["MASTER_ADDR"] = _first_node()
        try:
            store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=MEET)))
        except DistError as error:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            first = str(error).partition("\n")[0]
            raise CommandError(
                f"rank {launch.rank} of {launch.size}: the processes did not meet at {place} "
                f"({first}); set MASTER_ADDR and MASTER_PORT to a place that all nodes reach"
            ) from error
        if launch.starter is not None:
            threading.Thread(target=_stop_with, args=(launch.starter,), daemon=True).start()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = PrefixStore(f"kd-{attempt}", store)

    def call(self, function: Callable[..., None], *args: object) -> None:
        """Call a function on all ranks at once; on rank 0 alone.

        Args:
            function: may use `torch.distributed`; found by its name on the other ranks.
            args: what can be pickled.

        Raises:
            RankLostError: another process has ended.
            CommandError, UserError: what went wrong on another rank, in its words.
        """
        number = self.number
        self.number += 1
        self.busy = True
        self.store.set(f"next-{number}", CALL)
        try:
            self._check_present(number)
            self._meet(number, (function, args))
        except BaseException as error:
            if (cause := self._cause(error, number)) is error:
                raise
            raise cause from error
        finally:
            self.busy = False
            self._set(f"over-{number}")

    def end(self) -> None:
        """Let the others go; stay until they have, as this process may host the store."""
        self._set(f"next-{self.number}", str(self.code))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return
        until = time.monotonic() + PATIENCE
        for rank in range(1, self.launch.size):
            with suppress(RuntimeError):
                self._wait(f"left-{rank}", until - time.monotonic())

    def follow(self) -> int:
        """Join in call after call; returns the exit code that rank 0 ends with."""
        while True:
            said = (self._wait(f"next-{self.number}") or b"").decode()
            if said != CALL:
                self._set(f"left-{self.launch.rank}")
                return int(said)
            number = self.number
            self.number += 1
            self._set(f"here-{number}-{self.launch.rank}")
            try:
                self._meet(number)
            except SystemExit:  # how Lightning leaves after Ctrl-C
                return 130
            except Exception as error:
                if not is_lost(error):
                    self._set(f"error-{number}", self._as_message(error))
                if self._wait(f"over-{number}", 2 * PATIENCE) is None:
                    return 1  # rank 0 hangs, or is gone; whoever started us ends it with us

    def _check_present(self, number: int) -> None:
        """Wait until the others have heard of a call; they do nothing else meanwhile.

        Raises:
            RankLostError: one has not.
        """
        until = time.monotonic() + HEARS
        for rank in range(1, self.launch.size):
            if self._wait(f"here-{number}-{rank}", until - time.monotonic()) is None:
                raise RankLostError(
                    f"rank {rank} does not answer; the same command goes on from here"
                )

    def _meet(self, number: int, given: Call | None = None) -> None:
        """Call what rank 0 has sent, in a process group made for it."""
        import torch
        from torch import distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore

        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore(f"group-{number}", self.store),
            rank=self.launch.rank,
            world_size=self.launch.size,
            timeout=LONGEST,
        )
        try:
            box = [given]
            dist.broadcast_object_list(box, device=torch.device("cpu"))
            assert box[0] is not None  # rank 0 has one
            function, args = box[0]
            function(*args)
            dist.all_reduce(torch.zeros(1))  # who leaves first would cut the others off
        finally:
            dist.destroy_process_group()

    def _cause(self, error: BaseException, number: int) -> BaseException:
        """What another rank says it is, where an error is only that this one was left alone."""
        lost = is_lost(error)
        if not lost and not isinstance(error, KeyboardInterrupt | SystemExit):
            return error
        said = None
        with suppress(RuntimeError):
            said = self._wait(f"error-{number}", PATIENCE if lost else 0.0)
        if said:
            found = json.loads(said)
            return (UserError if found["code"] == 2 else CommandError)(found["text"])
        if not lost:
            return error
        return RankLostError(LOST)

    def _as_message(self, error: Exception) -> str:
        """An error for rank 0; one that is no user's with its traceback."""
        if isinstance(error, UserError):
            return json.dumps({"code": 2, "text": str(error)})
        lines = "".join(traceback.format_exception(error))
        return json.dumps({"code": 1, "text": f"rank {self.launch.rank}: {error}\n{lines}"})

    def _set(self, key: str, value: str = "") -> None:
        with suppress(RuntimeError):  # where whoever has the store is gone, nobody asks any more
            self.store.set(key, value)

    def _wait(self, key: str, seconds: float | None = None) -> bytes | None:
        """A value of the store, once it is there; None where that takes longer."""
        until = time.monotonic() + (float("inf") if seconds is None else seconds)
        while not self.store.check([key]):
            if time.monotonic() > until:
                return None
            time.sleep(POLL)
        return bytes(self.store.get(key))


def _stop_with(starter: int) -> None:
    """Interrupt this process once its starter has ended: it would train on alone."""
    while os.getppid() == starter:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2 * PATIENCE)
    os._exit(1)  # it waits for another process on a GPU, where no signal is heeded


def is_lost(error: BaseException) -> bool:
    """Whether an error is that another process is not there any more."""
    from torch.distributed import DistError

    words = r"gloo|NCCL|Connection (closed|reset)|Broken pipe"
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and bool(re.search(words, str(error)))
    )


def _first_node() -> str:
    """The first of the step's nodes, as Lightning reads SLURM's list."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    names = (os.environ.get(f"SLURM_{name}") for name in ("STEP_NODELIST", "NODELIST"))
    return SLURMEnvironment.resolve_root_node_address(next(filter(None, names), "127.0.0.1"))
