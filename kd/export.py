"""`python -m kd.export run=PATH`: write a finished run's student to files that run without kd.

Each file is checked against the student.

python -m kd.export run=outputs/runs/RUN                    ONNX, ONNX in int8, and torch.export
python -m kd.export run=outputs/runs/RUN formats=[int8] calibration=1000
python -m kd.export run=outputs/runs/RUN formats=[onnx] role=teacher out=elsewhere
"""

from functools import partial
from typing import NoReturn

import hydra
from omegaconf import DictConfig

from kd.command import CONF, job, run_command, this_command
from kd.config.checking import as_floats, check_as
from kd.runs.reader import open_run
from kd.shipping.requests import Export


def _read_request(cfg: DictConfig, typed: set[str]) -> Export:
    as_floats(cfg, ["tolerance", "max_loss"])
    return check_as(Export, cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="export")
@partial(job, checked=_read_request)
def main(config: Export) -> None:
    """Write, verify, and print the outcome."""
    finished = open_run(config.run, trust=config.trust)
    # Importing torch takes seconds; first refuse what is no run
    from kd.shipping.export_run import export

    export(finished, config, this_command("kd.export"))


def start() -> NoReturn:
    """Run the command."""
    run_command(main, "kd.export", Export)


if __name__ == "__main__":
    start()
