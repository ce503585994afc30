"""`python -m kd.evaluate run=PATH`: measure how good a finished run's nets are, with intervals.

python -m kd.evaluate run=outputs/runs/RUN                      on the run's own test part
python -m kd.evaluate run=outputs/runs/RUN corruptions=true     and under noise, blur, light, JPEG
python -m kd.evaluate run=outputs/runs/RUN operating_point.sensitivity=0.95   threshold for X-rays
python -m kd.evaluate run=outputs/runs/RUN data=image_folder data.root=photos
"""

from functools import partial
from typing import NoReturn

import hydra
from omegaconf import DictConfig

from kd.command import CONF, job, run_command, this_command
from kd.config.checking import check_as
from kd.evaluation.requests import Evaluate
from kd.runs.reader import open_run


def _read_request(cfg: DictConfig, typed: set[str]) -> Evaluate:
    config = check_as(Evaluate, cfg)
    config._typed = frozenset(typed)
    return config


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
@partial(job, checked=_read_request)
def main(config: Evaluate) -> None:
    """Measure, print and write."""
    finished = open_run(config.run, trust=config.trust)
    # Importing torch takes seconds; first refuse what is no run
    from kd.evaluation.evaluation import evaluate

    evaluate(finished, config, this_command("kd.evaluate"))


def start() -> NoReturn:
    """Run the command."""
    run_command(main, "kd.evaluate", Evaluate)


if __name__ == "__main__":
    start()
