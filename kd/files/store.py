"""The store: finished stages, each in a folder named by its key, complete or absent."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from kd.errors import DamagedError, UserError
from kd.files.locks import hold
from kd.files.records import Record, read_record
from kd.files.writing import writing

SCHEMA = 1


@dataclass(frozen=True)
class StageResult:
    """A finished stage.

    Attributes:
        folder: holds `weights.safetensors`, `stage.json` and `tensorboard/`.
        record: contents of `stage.json`: schema, key, spec, `val` (metrics of the `best` and the
            `last` epoch), `history` (metrics by epoch), epochs, seconds, sha256 of the weights.
            `total` adds the epochs and seconds of the stage it started from. `taught` has the final
            value of its teacher's soft labels, and is empty without a teacher.
    """

    key: str
    folder: Path
    record: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Load the net's state dict, verified against its checksum.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / "weights.safetensors"
        if checksum(path) != self.record["sha256"]:
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
            read_record(path, Record, SCHEMA, "stage")
            record = json.loads(path.read_bytes())
            if key_of(record.get("spec", {})) != key:
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

    def publish(self, key: str, record: dict[str, Any]) -> StageResult:
        """Turn the working folder of `key` into a finished stage, replacing an older one."""
        partial = self.root / f"{key}.partial"
        final = self.root / key
        record = {
            "schema": SCHEMA,
            "key": key,
            **record,
            "sha256": checksum(partial / "weights.safetensors"),
        }
        with writing(final, "a finished stage"):
            (partial / "stage.json").write_text(json.dumps(record, indent=1))
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


def key_of(spec: dict[str, Any]) -> str:
    """Compute a stage's key: 16 hexadecimal digits of the SHA-256 of its spec in canonical JSON."""
    plain = json.loads(json.dumps(spec))  # makes all keys strings, as in a file
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
