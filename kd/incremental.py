"""`python -m kd.incremental`: classes that come in tasks, and a net that is taught by what it was before they came.

python -m kd.incremental                                       the digits in five tasks, Learning without Forgetting
python -m kd.incremental incremental.method=icarl              or lwf_bce, lwf_mix, wa, der, finetune, joint
python -m kd.incremental incremental.tasks=2 incremental.weight=2
python -m kd.incremental 'incremental.tasks=[[0,1],[2,3,4]]'   classes by name, in this order
python -m kd.incremental data=cifar100 incremental.first=50 incremental.step=10 student=resnet18
python -m kd.incremental -m incremental.method=lwf,icarl seed=0,1
python -m kd.incremental experiment=class_incremental_lwf      a recipe of conf/incremental/experiment
python -m kd.incremental trainer=smoke                         two batches of everything, to see that it runs
"""

import sys
from functools import partial
from typing import NoReturn

import hydra

from kd.command import CONF, job, run_command, this_command
from kd.runs.names import sweep_name  # noqa: F401 - named in conf/incremental.yaml
from kd.tasks.schedule import IncrementalConfig, check

# What is typed, and the group that it chooses a file of.
GROUPS = {"incremental.method=": "incremental/method=", "experiment=": "incremental/experiment="}


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="incremental")
@partial(job, checked=check)
def main(config: IncrementalConfig) -> None:
    """Learn task after task, and report."""
    from kd.tasks.run import (
        run,  # torch takes seconds to import, so `--help` and a misspelt key do without
    )

    run(config, this_command("kd.incremental"))


def as_group(arguments: list[str]) -> list[str]:
    """What is typed, with its files found: a method is one, though typed with a dot, and so is a recipe."""
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
