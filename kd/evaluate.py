"""`python -m kd.evaluate run=PATH`: how good the nets of a finished run are, and how sure that is.

python -m kd.evaluate run=outputs/runs/RUN                      on the run's own test part
python -m kd.evaluate run=outputs/runs/RUN corruptions=true     and under noise, blur, brightness and JPEG
python -m kd.evaluate run=outputs/runs/RUN data=image_folder data.root=photos
"""

from functools import partial
from typing import Annotated, Any

import hydra
from omegaconf import DictConfig
from pydantic import AfterValidator, Field

from kd.checking import check_as
from kd.command import CONF, job, run_command, this_command
from kd.config import Command, Node, Seed
from kd.errors import UserError, nearest
from kd.finished import open_run


def _corruptions(found: Any) -> list[str]:
    """The corruptions that are asked for, by name."""
    from kd.measure.corruptions import CORRUPTIONS

    if isinstance(found, bool):
        return list(CORRUPTIONS) if found else []
    names = found if isinstance(found, list) else [found]
    for name in names:
        if not isinstance(name, str) or name not in CORRUPTIONS:
            known = ", ".join(CORRUPTIONS)
            raise UserError(
                f"corruptions: found {name!r}; accepted are true, false, or a list of {known}"
                f"{nearest(str(name), CORRUPTIONS)}"
            )
    return list(dict.fromkeys(names))


class Evaluate(Command):
    """The config of `kd.evaluate`; see conf/evaluate.yaml."""

    run: str
    data: Node
    out: str | None
    corruptions: Annotated[Any, AfterValidator(_corruptions)]
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1)]
    seed: Seed
    output_dir: str


def _checked(cfg: DictConfig, typed: set[str]) -> Evaluate:
    return check_as(Evaluate, cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
@partial(job, checked=_checked)
def main(config: Evaluate) -> None:
    """Measure, show, and write."""
    finished = open_run(config.run, trust=config.trust)
    from kd.measure.evaluation import evaluate  # torch takes seconds to import; what is no run is refused before

    evaluate(finished, config, this_command("kd.evaluate"))


if __name__ == "__main__":
    run_command(main, "kd.evaluate")
