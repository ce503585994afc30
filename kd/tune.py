"""`python -m kd.tune`: searches for the best setting on validation, then compares it with the recipe's own on test.

python -m kd.tune                                       temperature and alpha of the default run, 20 trials
python -m kd.tune data=cifar10 loss=dkd n_trials=30     any run of kd.train
python -m kd.tune 'search.space.temperature={choices: [1, 2, 4]}' '~search.space.alpha'
python -m kd.tune search=optim                          the knobs and ranges of conf/search/optim.yaml
python -m kd.tune 'search.space.optim.lr={low: 0.001, high: 0.01, log: true}' 'search.space.loss={choices: [kd, dist]}'
python -m kd.tune n_trials=40                           goes on from 20: a search is resumed by its own command
"""

import functools
import re
import sys
from typing import NoReturn

import hydra

from kd.command import CONF, job, run_command, this_command
from kd.tuning.request import OF_SPACE, Request, Tuned, accept


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="tune")
@functools.partial(job, checked=accept)
def main(request: Request) -> None:
    """Search, and compare."""
    from kd.tuning.search import tune  # torch takes seconds to import

    tune(request, this_command("kd.tune"))


def start() -> NoReturn:
    """Run the command. Any knob may be put into the space, so Hydra's `++` for keys that are new need not be typed."""
    sys.argv[1:] = [
        re.sub(rf"^(?={re.escape(OF_SPACE)})", "++", argument) for argument in sys.argv[1:]
    ]
    run_command(main, "kd.tune", Tuned)


if __name__ == "__main__":
    start()
