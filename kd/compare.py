"""`python -m kd.compare`: methods side by side, each tuned with the same number of trials.

python -m kd.compare loss=kd,dkd,dist                   tuned on validation, three seeds each
python -m kd.compare loss=kd,at model=resnet18_to_cnn,resnet34_to_cnn seed=1,2,3,4,5 n_trials=20
python -m kd.compare loss=kd,dkd dry_run=true           how long it would take, from measured steps
python -m kd.compare experiment=cifar100_crd_protocol loss=kd,dkd n_trials=0      published numbers
python -m kd.compare loss=kd,dkd search=optim           the learning rate instead of the loss's own
python -m kd.compare loss=kd,dkd hydra/launcher=joblib  a pool of processes; again: resumes
"""

import sys
from functools import partial
from typing import NoReturn

import hydra

from kd.command import CONF, job, run_command
from kd.comparison.request import CompareConfig, check
from kd.runs.names import sweep_name  # noqa: F401 - named in conf/train.yaml
from kd.tuning.request import with_new_ranges


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="compare")
@partial(job, checked=check)
def main(config: CompareConfig) -> None:
    """Do nothing: the jobs are run by the callback that conf/compare.yaml names."""


def start() -> NoReturn:
    """Run the command, as a sweep."""
    sys.argv[1:] = with_new_ranges(sys.argv[1:])
    asks = {"-h", "--help", "-c", "--cfg", "-i", "--info", "-m", "--multirun"}
    if not asks & set(sys.argv):
        sys.argv.insert(1, "-m")
    run_command(main, "kd.compare", CompareConfig)


if __name__ == "__main__":
    start()
