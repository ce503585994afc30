"""`python -m kd.evaluate run=PATH`: measure how good a finished run's nets are, with intervals.

python -m kd.evaluate run=outputs/runs/RUN                      on the run's own test part
python -m kd.evaluate run=outputs/runs/RUN corruptions=true     and under noise, blur, light, JPEG
python -m kd.evaluate run=outputs/runs/RUN operating_point.sensitivity=0.95   threshold for X-rays
python -m kd.evaluate run=outputs/runs/RUN data=image_folder data.root=photos
"""

from typing import NoReturn

from kd.run_commands import start_command


def start() -> NoReturn:
    """Run the command."""
    start_command("evaluate", __doc__)


if __name__ == "__main__":
    start()
