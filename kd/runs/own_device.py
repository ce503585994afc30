"""Own GPUs for each process of a pool on one machine."""

import getpass
import itertools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from filelock import Timeout

from kd.files.locks import Lock, lock_at

# Of this machine, so that the pools of several sweeps share its GPUs too.
RESERVATIONS = Path(tempfile.gettempdir()) / f"kd-gpus-of-{getpass.getuser()}"

_held: list[Lock] = []  # until the process ends


def reserve_devices(options: Mapping[str, object], folder: Path = RESERVATIONS) -> list[str]:
    """Reserve as many GPUs as a training asks for; this process then sees only these.

    Takes the GPUs that the fewest others have reserved. Does nothing where a job asks for all GPUs,
    for certain ones or for a CPU, nor where a launcher chose them, as SLURM and Ray do.
    A process keeps its GPUs to its end, as CUDA looks at them once.

    Args:
        options: of the Trainer.
        folder: for the locks.

    Returns:
        the GPUs as in CUDA_VISIBLE_DEVICES; empty if nothing was done.
    """
    import torch

    asked = options.get("devices", 1)
    on_gpu = str(options.get("accelerator", "auto")) in ("auto", "gpu", "cuda")
    if _held or not on_gpu or not isinstance(asked, int) or asked < 1:
        return []
    count = torch.cuda.device_count()  # not `is_available`, which makes CUDA look
    if asked >= count:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    names = [name.strip() for name in visible.split(",")][:count]
    folder.mkdir(parents=True, exist_ok=True)
    taken = list[str]()
    for others in itertools.count():  # how many may have reserved it before
        for name in names:
            if len(taken) < asked and name not in taken:
                lock = lock_at(folder / f"{name.replace('/', '-')}.{others}")
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                _held.append(lock)
                taken.append(name)
        if len(taken) == asked:
            break
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
    return taken
