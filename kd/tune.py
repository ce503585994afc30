"""`python -m kd.tune`: search settings on validation, then test the best against the recipe.

python -m kd.tune                                       temperature and alpha, 20 trials
python -m kd.tune data=cifar10 loss=dkd n_trials=30     any run of kd.train
python -m kd.tune 'search.space.temperature={choices: [1, 2, 4]}' '~search.space.alpha'
python -m kd.tune search=optim                          knobs and ranges of conf/search/optim.yaml
python -m kd.tune 'search.space.optim.lr={low: 0.001, high: 0.01, log: true}'
python -m kd.tune 'search.space.loss={choices: [kd, dist]}'
python -m kd.tune n_trials=40                           continues from 20: same command, same search
"""

import functools
import sys
from typing import NoReturn

import hydra

from kd.command import CONF, job, run_command, this_command
from kd.tuning.request import Request, TuneConfig, accept, with_new_ranges


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="tune")
@functools.partial(job, checked=accept)
def main(request: Request) -> None:
    """Search, and compare."""
    from kd.tuning.search import tune  # importing torch takes seconds

    tune(request, this_command("kd.tune"))


def start() -> NoReturn:
    """Run the command."""
    sys.argv[1:] = with_new_ranges(sys.argv[1:])
    run_command(main, "kd.tune", TuneConfig)


if __name__ == "__main__":
    start()
