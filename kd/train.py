"""`python -m kd.train`: train teacher, baseline and distilled student, and compare them.

python -m kd.train                                      ResNet-18 to a small CNN, built-in digits
python -m kd.train data=cifar10 temperature=8 alpha=0.7
python -m kd.train model=resnet34_to_cnn student.net.width=16
python -m kd.train teacher=torchvision teacher.net.name=resnet50 student=mlp
python -m kd.train loss=dkd 'temperature={schedule: cosine, start: 8, end: 2}'
python -m kd.train -m temperature=1,2,4,8 alpha=0.1,0.5,0.9   12 runs, one teacher; again: resumes
python -m kd.train sweep=methods seed=0,1,2             all methods
python -m kd.train trainer=smoke                        two batches of everything, as a trial
"""

from functools import partial
from typing import NoReturn

import hydra

from kd.command import CONF, job, run_command, this_command
from kd.config.schema import Config, check
from kd.runs.names import sweep_name  # noqa: F401 - named in conf/train.yaml


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
@partial(job, checked=check)
def main(config: Config) -> None:
    """Run the stages, and report."""
    # Importing torch takes seconds, so `--help` and a misspelt key do without
    from kd.runs.run import run

    run(config, this_command("kd.train"))


def start() -> NoReturn:
    """Run the command."""
    run_command(main, "kd.train", Config)


if __name__ == "__main__":
    start()
