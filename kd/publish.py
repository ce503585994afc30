"""`python -m kd.publish run=PATH`: write a finished run's student as a Hugging Face folder.

It has model.safetensors, config.json and a README.md with the model card. `push=` uploads it.

python -m kd.publish run=outputs/runs/RUN license=mit
python -m kd.publish run=outputs/runs/RUN push=USER/NAME private=true
"""

from typing import NoReturn

from kd.run_commands import start_command


def start() -> NoReturn:
    """Run the command."""
    start_command("publish", __doc__)


if __name__ == "__main__":
    start()
