"""`python -m kd.predict model=PATH images=PATH`: predict each image's class and all probabilities.

python -m kd.predict model=outputs/runs/RUN images=photos out=preds.csv
python -m kd.predict model=outputs/runs/RUN/export/student.int8.onnx images=photos/cat.jpg
python -m kd.predict model=student.safetensors 'images=[a.png,b.png]' out=preds.json
"""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import NoReturn

import hydra
from omegaconf import DictConfig
from pydantic import ValidationInfo, field_validator

from kd.command import folder_of, job, run_command
from kd.config.checking import check_as
from kd.config.schema import Command
from kd.data.folder import find_images, omission_note
from kd.errors import CommandError, UserError, nearest_beside
from kd.log import say


class Predict(Command):
    """Config of `kd.predict`; see conf/predict/predict.yaml."""

    model: str
    images: str | list[str]
    out: str | None
    device: str

    @field_validator("out")
    @classmethod
    def _kind(cls, found: str | None, info: ValidationInfo) -> str | None:
        if found is None:
            return None
        path = Path(found).expanduser()
        if path.suffix not in (".csv", ".json"):
            raise UserError(
                f"out: found {found!r}; accepted are null and names that end in .csv or .json"
            )
        if not path.parent.is_dir():
            raise UserError(f"out: there is no folder {path.parent.absolute()}")
        if path.is_dir():
            raise UserError(f"out: {path.absolute()} is a folder; name a file")
        return found


def _read_request(cfg: DictConfig, typed: set[str]) -> Predict:
    return check_as(Predict, cfg)


def files_of(images: str | list[str]) -> list[Path]:
    """Return the image files of the config's `images`; those of a folder sorted by name.

    A missing file of a list is kept: its row in the output says so.

    Raises:
        UserError: there are none, or no such file or folder.
    """
    if isinstance(images, list):
        entries = [Path(each).expanduser() for each in images]
    else:
        path = Path(images).expanduser()
        if not path.exists():
            raise UserError(
                f"images: there is no file or folder {path.absolute()}{nearest_beside(path)}"
            )
        entries = _read_list(path) if path.suffix.lower() == ".txt" and path.is_file() else [path]
    try:
        passed = Counter[str]()
        found = [
            file
            for each in entries
            for file in (find_images(each, passed) if each.is_dir() else [each])
        ]
    except OSError as error:
        raise UserError(f"images: cannot read {error.filename}: {error.strerror}") from error
    if not found:
        where = ", ".join(str(each.absolute()) for each in entries) or repr(images)
        raise UserError(
            f"images: no image in {where}; looked for files with an image's ending, at any depth"
        )
    if passed:
        say(f"images: {omission_note(passed)}")
    return found


def _read_list(path: Path) -> list[Path]:
    try:
        # Windows writes a byte-order mark
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"images: {path} is no list of paths: {error}") from error
    return [Path(line.strip()).expanduser() for line in lines if line.strip()]


@hydra.main(version_base="1.3", config_path=str(folder_of("predict")), config_name="predict")
@partial(job, checked=_read_request)
def main(config: Predict) -> None:
    """Predict, and write the table."""
    files = files_of(config.images)
    # Importing torch takes seconds; first report missing files
    from kd.shipping.predictions import predict

    failed = predict(config.model, files, config.out, device=config.device, trust=config.trust)
    if failed:
        raise CommandError(f"{failed} of {len(files)} images could not be read; their rows say why")


def start() -> NoReturn:
    """Run the command."""
    run_command(main, "kd.predict", Predict)


if __name__ == "__main__":
    start()
