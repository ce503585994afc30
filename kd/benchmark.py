"""`python -m kd.benchmark run=PATH`: measure size, memory and time of a finished run's nets.

python -m kd.benchmark run=outputs/runs/RUN
python -m kd.benchmark run=outputs/runs/RUN backends=[eager] threads=1
python -m kd.benchmark run=outputs/runs/RUN batches=[1,16,256] seconds=5
"""

from functools import partial
from typing import NoReturn

import hydra
from omegaconf import DictConfig

from kd.command import CONF, job, run_command, this_command
from kd.config.checking import as_floats, check_as
from kd.evaluation.requests import Benchmark
from kd.runs.reader import open_run


def _read_request(cfg: DictConfig, typed: set[str]) -> Benchmark:
    as_floats(cfg, ["seconds"])
    return check_as(Benchmark, cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="benchmark")
@partial(job, checked=_read_request)
def main(config: Benchmark) -> None:
    """Measure, print and write."""
    finished = open_run(config.run, trust=config.trust)
    # Importing torch takes seconds; first refuse what is no run
    from kd.evaluation.costs_of_run import benchmark

    benchmark(finished, config, this_command("kd.benchmark"))


def start() -> NoReturn:
    """Run the command."""
    run_command(main, "kd.benchmark", Benchmark)


if __name__ == "__main__":
    start()
