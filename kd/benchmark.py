"""`python -m kd.benchmark run=PATH`: measure size, memory and time of a finished run's nets.

python -m kd.benchmark run=outputs/runs/RUN
python -m kd.benchmark run=outputs/runs/RUN backends=[eager] threads=1
python -m kd.benchmark run=outputs/runs/RUN batches=[1,16,256] seconds=5
"""

from typing import NoReturn

from kd.run_commands import start_command


def start() -> NoReturn:
    """Run the command."""
    start_command("benchmark", __doc__)


if __name__ == "__main__":
    start()
