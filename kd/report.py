"""`python -m kd.report PATH...`: compare the runs in these folders, mean and spread over seeds.

python -m kd.report outputs/runs                    all runs
python -m kd.report outputs/sweeps/SWEEP            the jobs of a sweep
python -m kd.report outputs/runs/A outputs/runs/B   these two
"""

import argparse
from typing import NoReturn

from kd.command import folder_at, run_command


def main() -> None:
    """Put many runs into one table."""
    parser = argparse.ArgumentParser(
        "python -m kd.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=folder_at,
        metavar="PATH",
        help="a run's folder, or one that holds runs",
    )
    paths = parser.parse_args().paths
    # Scipy and matplotlib take a second, so `--help` does without
    from kd.summary import write_summary

    print(write_summary(paths), end="")


def start() -> NoReturn:
    """Run the command."""
    run_command(main, "kd.report")


if __name__ == "__main__":
    start()
