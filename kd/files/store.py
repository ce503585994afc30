"""The store: finished stages, each in a folder named by its key, complete or absent."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from kd.errors import DamagedError, UserError
from kd.files.locks import hold
from kd.files.records import read_record
from kd.files.stage_record import SCHEMA, StageRecord
from kd.files.writing import writing

WEIGHTS = "weights.safetensors"  # the net's, in a stage's folder

# The net's weights of the epoch that is not kept: the last, or the best on validation
OTHER_EPOCH = "other_epoch.safetensors"

# Parameters of the stage's loss, where it has any, for a stage that starts from it
LEARNED = "learned.safetensors"


@dataclass(frozen=True)
class StageResult:
    """A finished stage.

    Attributes:
        folder: holds `weights.safetensors`, `stage.json` and `tensorboard/`.
        record: contents of `stage.json`.
    """

    key: str
    folder: Path
    record: StageRecord

    def weights(self) -> dict[str, Tensor]:
        """Load the net's state dict, verified against its checksum.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / WEIGHTS
        if checksum(path) != self.record.sha256:
            raise DamagedError(
                f"{path} is damaged (its checksum is wrong); force=true trains the stage again"
            )
        return load_file(path)


class Store:
    """Finished stages by key, under `root`. Safe for several processes on one file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str) -> StageResult | None:
        """Return the finished stage of this key, or None."""
        path = self.root / key / "stage.json"
        if not path.exists():
            return None
        try:
            record = read_record(path, StageRecord, SCHEMA, "stage")
            if key_of(record.spec.plain()) != key:
                raise DamagedError(f"{path} is damaged: its spec is another stage's")
            return StageResult(key, path.parent, record)
        except DamagedError as error:
            raise UserError(f"{error}; remove {path.parent} to train the stage again") from error

    @contextmanager
    def claim(self, key: str, name: str) -> Iterator[Path]:
        """Hold the exclusive right to make this stage; yields its folder, perhaps with earlier
        work.

        Waits while another process holds it. The operating system releases a dead process's lock.
        """
        folder = self.root / f"{key}.partial"
        with hold(self.root / f"{key}.lock", name, "is training it"):
            with writing(folder):
                folder.mkdir(exist_ok=True)
            try:
                yield folder
            finally:
                with suppress(OSError):  # an attempt's files stay, so that the next one can resume
                    folder.rmdir()

    def publish(self, record: StageRecord) -> StageResult:
        """Turn the working folder of a stage into a finished one, replacing an older one."""
        key = record.key
        partial = self.root / f"{key}.partial"
        final = self.root / key
        with writing(final, "a finished stage"):
            (partial / "stage.json").write_text(record.text())
            put(partial, final)
        return StageResult(key, final, record)


def put(folder: Path, final: Path) -> None:
    """Rename a complete folder, replacing an older one."""
    if not final.exists():
        folder.rename(final)
        return
    old = final.with_name(f"{final.name}.old.partial")
    shutil.rmtree(old, ignore_errors=True)
    final.rename(old)
    folder.rename(final)
    shutil.rmtree(old)


def key_of(spec: Mapping[str, object]) -> str:
    """Compute a stage's key: 16 hexadecimal digits of the SHA-256 of its spec in canonical JSON."""
    plain = json.loads(json.dumps(spec))  # makes all keys strings, as in a file
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
