"""`python -m kd.report PATH...`: the runs in and under these folders side by side, mean and spread over seeds."""

import argparse

from kd.command import folder_at, run_command


def main() -> None:
    """Put many runs into one table."""
    parser = argparse.ArgumentParser("python -m kd.report", description=main.__doc__)
    parser.add_argument(
        "paths",
        nargs="+",
        type=folder_at,
        metavar="PATH",
        help="a run's folder, or one that holds runs",
    )
    paths = parser.parse_args().paths
    from kd.summary import (
        write_summary,  # scipy and matplotlib take a second, so `--help` does without
    )

    print(write_summary(paths), end="")


if __name__ == "__main__":
    run_command(main, "kd.report")
