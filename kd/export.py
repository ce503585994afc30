"""`python -m kd.export run=PATH`: write a finished run's student to files that run without kd.

Each file is checked against the student.

python -m kd.export run=outputs/runs/RUN                    ONNX, ONNX in int8, and torch.export
python -m kd.export run=outputs/runs/RUN formats=[int8] calibration=1000
python -m kd.export run=outputs/runs/RUN formats=[onnx] role=teacher out=elsewhere
"""

from typing import NoReturn

from kd.run_commands import start_command


def start() -> NoReturn:
    """Run the command."""
    start_command("export", __doc__)


if __name__ == "__main__":
    start()
