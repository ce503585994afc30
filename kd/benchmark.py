"""`python -m kd.benchmark run=PATH`: what the nets of a finished run cost: size, memory, time.

python -m kd.benchmark run=outputs/runs/RUN
python -m kd.benchmark run=outputs/runs/RUN backends=[eager] threads=1
python -m kd.benchmark run=outputs/runs/RUN batches=[1,16,256] seconds=5
"""

from functools import partial
from typing import Annotated

import hydra
from omegaconf import DictConfig
from pydantic import AfterValidator, Field, PositiveFloat

from kd.checking import as_floats, check_as
from kd.command import CONF, job, run_command, this_command
from kd.config import Command
from kd.errors import UserError, nearest
from kd.finished import open_run

# How a net may be run: PyTorch as it is, compiled by PyTorch, by ONNX Runtime, and that in whole numbers of 8 bits.
BACKENDS = ("eager", "compile", "onnx", "onnx_int8")


def _backends(found: list[str]) -> list[str]:
    for name in found:
        if name not in BACKENDS:
            raise UserError(f"backends: found {name!r}; accepted are {', '.join(BACKENDS)}{nearest(name, BACKENDS)}")
    return list(dict.fromkeys(found))


class Benchmark(Command):
    """The config of `kd.benchmark`; see conf/benchmark.yaml."""

    run: str
    out: str | None
    backends: Annotated[list[str], Field(min_length=1), AfterValidator(_backends)]
    batches: Annotated[list[Annotated[int, Field(gt=0, le=2**16)]], Field(min_length=1)]
    seconds: PositiveFloat
    threads: Annotated[int, Field(gt=0, le=4096)] | None


def _checked(cfg: DictConfig, typed: set[str]) -> Benchmark:
    as_floats(cfg, ["seconds"])
    return check_as(Benchmark, cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="benchmark")
@partial(job, checked=_checked)
def main(config: Benchmark) -> None:
    """Measure, show, and write."""
    finished = open_run(config.run, trust=config.trust)
    from kd.measure.costs_of_run import benchmark  # torch takes seconds to import; what is no run is refused before

    benchmark(finished, config, this_command("kd.benchmark"))


if __name__ == "__main__":
    run_command(main, "kd.benchmark")
