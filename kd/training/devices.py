"""How many processes train together, and where Lightning is to find them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kd.config.precision import device_of
from kd.errors import UserError
from kd.ranks import Launch, current

if TYPE_CHECKING:  # a run that finds everything needs no Lightning: 2 of its 4 s of imports
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

USUAL = ("auto", "ddp", "ddp_spawn", "ddp_fork", "fsdp", "deepspeed_stage_2")  # strategies
# Those that keep a part of the net on each GPU, for nets that do not fit on one.
SHARDED = ("fsdp", "deepspeed")
WHOLE = ", ".join(each for each in USUAL if not each.startswith(SHARDED))


def world_size(options: Mapping[str, object]) -> int:
    """Return how many processes train together under these options of the Trainer.

    Raises:
        UserError: what is asked for is not what was started, or not possible here.
    """
    strategy = str(options.get("strategy", "auto"))
    device = device_of(str(options.get("accelerator", "auto")))
    if strategy.startswith(SHARDED) and device != "cuda":
        raise UserError(
            f"trainer.strategy: found {strategy!r} on a {device}; it spreads a net over GPUs; "
            f"accepted here are {WHOLE}"
        )
    found = options.get("devices", 1)
    if isinstance(found, list) and device != "cuda":
        raise UserError(
            f"trainer.devices: found {found} on a {device}; a list names GPUs; accepted here are a "
            "whole number from 1, auto, -1"
        )
    ranks = current()
    if ranks is not None:
        _check_launch(options, ranks.launch)
        return ranks.launch.size
    _check_alone(options, strategy)
    return devices_of(options)


def devices_of(options: Mapping[str, object]) -> int:
    """How many devices `trainer.devices` asks for; `auto` and -1 are all GPUs.

    On a CPU they are one process, or two where the strategy is there for several.
    """
    found = options.get("devices", 1)
    if isinstance(found, list):
        return len(found)
    if isinstance(found, int) and found != -1:
        return found
    device = device_of(str(options.get("accelerator", "auto")))
    if device == "cuda":
        return max(1, torch.cuda.device_count())
    several = str(options.get("strategy", "auto")) != "auto"
    return 2 if several and device == "cpu" else 1


def resolve_devices(options: Mapping[str, Any]) -> tuple[dict[str, Any], ClusterEnvironment]:
    """Return the options with devices, nodes and strategy as this process was started, and its
    place.

    Raises:
        UserError: as `world_size`.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    count = world_size(options)
    several = {} if isinstance(options.get("devices"), list) else {"devices": count}
    ranks = current()
    if ranks is None:
        return {**options, **several}, LightningEnvironment()
    strategy = str(options.get("strategy", "auto"))
    started = {
        "num_nodes": ranks.launch.nodes,
        "strategy": "ddp" if strategy == "auto" else re.sub("_(spawn|fork|notebook)", "", strategy),
    }
    if several:
        started["devices"] = ranks.launch.local_size
    return {**options, **started}, TorchElasticEnvironment()


def _check_alone(options: Mapping[str, object], strategy: str) -> None:
    """Refuse what a command that no launcher started cannot start itself."""
    nodes = options.get("num_nodes", 1)
    word = f"trainer.strategy={strategy}" if strategy.startswith(SHARDED) else "trainer=ddp"
    count = devices_of(options)
    if nodes != 1:
        raise UserError(
            f"trainer.num_nodes: found {nodes} in a single process; start one for each device with "
            f"srun, or with torchrun --nnodes {nodes} --nproc-per-node {count} "
            f"--rdzv-backend c10d --rdzv-endpoint HOST:PORT -m kd.train {word} ..."
        )
    if count > 1 and not strategy.startswith(("auto", "ddp")):
        raise UserError(
            f"trainer.strategy: found {strategy!r} for {count} devices in a single process; start "
            f"one for each: torchrun --nproc-per-node {count} -m kd.train {word} ..."
        )


def _check_launch(options: Mapping[str, object], launch: Launch) -> None:
    """Refuse numbers of devices and nodes that the launcher did not start."""
    found = options.get("devices", 1)
    if found not in (1, "auto", -1) and devices_of(options) != launch.local_size:
        raise UserError(
            f"trainer.devices: found {found!r}, but {launch.local_size} processes were started on "
            "each node; leave it out"
        )
    if (nodes := options.get("num_nodes", 1)) not in (1, launch.nodes):
        raise UserError(
            f"trainer.num_nodes: found {nodes}, but processes were started on {launch.nodes}; "
            "leave it out"
        )
