"""`python -m kd.incremental`: learn classes in tasks; the net before each task teaches the next.

python -m kd.incremental                                       the digits in five tasks, with LwF
python -m kd.incremental incremental.method=icarl              lwf_bce, lwf_mix, wa, der, joint, ...
python -m kd.incremental incremental.tasks=2 incremental.weight=2
python -m kd.incremental 'incremental.tasks=[[0,1],[2,3,4]]'   classes by name, in this order
python -m kd.incremental data=cifar100 incremental.first=50 incremental.step=10 student=resnet18
python -m kd.incremental -m incremental.method=lwf,icarl seed=0,1
python -m kd.incremental experiment=class_incremental_lwf      from conf/incremental/experiment
python -m kd.incremental trainer=smoke                         two batches of everything, as a trial
"""

import sys
from functools import partial
from typing import NoReturn

import hydra

from kd.command import CONF, job, run_command, this_command
from kd.runs.names import sweep_name  # noqa: F401 - named in conf/incremental.yaml
from kd.tasks.schedule import IncrementalConfig, check

# Typed prefixes, and the config group of each.
GROUPS = {"incremental.method=": "incremental/method=", "experiment=": "incremental/experiment="}


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="incremental")
@partial(job, checked=check)
def main(config: IncrementalConfig) -> None:
    """Learn task after task, and report."""
    # Importing torch takes seconds, so `--help` and a misspelt key do without
    from kd.tasks.run import run

    run(config, this_command("kd.incremental"))


def as_group(arguments: list[str]) -> list[str]:
    """Translate short names of methods and recipes to config groups."""
    for typed, group in GROUPS.items():
        arguments = [
            group + word.removeprefix(typed) if word.startswith(typed) else word
            for word in arguments
        ]
    return arguments


def start() -> NoReturn:
    """Run the command, with the groups' short names."""
    sys.argv = as_group(sys.argv)
    run_command(main, "kd.incremental", IncrementalConfig)


if __name__ == "__main__":
    start()
