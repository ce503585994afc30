"""Processes that a command starts itself on one machine, one for each further device."""

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import torch
from hydra.core.utils import env_override

from kd.command import stop_on_signal
from kd.ranks import LOST, PATIENCE, Launch, current, follow, leading
from kd.training.devices import devices_of

FORKS = ("ddp_fork", "ddp_notebook")  # strategies that start a process as a copy of this one


@contextmanager
def on_devices(options: Mapping[str, object]) -> Iterator[None]:
    """Have a process for each device that the Trainer's options ask for; this one is rank 0.

    They end with the block. None is started for a single device, nor inside another such block,
    under torchrun or srun, whose processes do.
    """
    count = devices_of(options)
    if count == 1 or current():
        yield
        return
    from torch.multiprocessing.spawn import start_processes

    launches = _launches(options, count)
    threads = torch.get_num_threads()
    own = threads if "OMP_NUM_THREADS" in os.environ else max(1, threads // count)
    over = threading.Event()
    forks = str(options.get("strategy")).startswith(FORKS)
    with env_override({**launches[0].variables, "OMP_NUM_THREADS": str(own)}):
        torch.set_num_threads(own)
        others: list[BaseProcess] = start_processes(  # type: ignore[no-untyped-call]
            _join, (launches,), count - 1, join=False, start_method="fork" if forks else "spawn"
        ).processes
        watch = threading.Thread(target=_watch, args=(others, over), daemon=True)
        watch.start()
        try:
            with leading(launches[0]):
                yield
        finally:
            over.set()
            watch.join()
            for each in others:
                each.join(PATIENCE)
                each.kill()
            torch.set_num_threads(threads)


def _launches(options: Mapping[str, object], count: int) -> list[Launch]:
    """Give each process its place."""
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0"}
    found = options.get("devices")
    return [
        Launch(
            rank,
            count,
            count,
            {**place, **size, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            gpu=found[rank] if isinstance(found, list) else rank,
            starter=os.getpid() if rank else None,
        )
        for rank in range(count)
    ]


def _join(index: int, launches: Sequence[Launch]) -> None:
    """Be one of the others."""
    with stop_on_signal():
        follow(launches[index + 1])


def _watch(others: Sequence[BaseProcess], over: threading.Event) -> None:
    """End this process some time after another has, where it does not notice, as on a GPU."""
    seconds = 0
    while not over.wait(1.0):
        needed = (ranks := current()) is None or ranks.busy
        ended = wait([each.sentinel for each in others], 0)
        seconds = seconds + 1 if needed and ended else 0
        if seconds > 2 * PATIENCE:
            print(f"kd: {LOST}", file=sys.stderr)
            for each in others:
                each.kill()
            os._exit(1)
