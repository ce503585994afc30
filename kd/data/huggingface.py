"""Data sets of Hugging Face's `datasets`, as its `save_to_disk` leaves them in a folder."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from kd.data.file_source import LabelledImages
from kd.data.folder import PARTS, part_of_name, plain
from kd.data.image_bytes import state_of
from kd.data.images import Source
from kd.data.parquet import TableSource, column_of, labels_by_name
from kd.errors import UserError, nearest


class HuggingFace(TableSource):
    """A `Dataset`, or a `DatasetDict` of parts, with an image column and a label column.

    `root` is the folder of `save_to_disk`; `parts` are names of the splits that are train, val and
    test. Nothing is downloaded. `datasets` is an extra of this project: pip install "kd[datasets]".
    """

    def read(self) -> Source:
        """Open the tables, and decode the images."""
        found = {
            part: HuggingFaceImages(table, f"{self.root}/{name}", self.columns)
            for part, (name, table) in self._tables().items()
        }
        names = labels_by_name(found.values())
        return self.source(found, names)

    def _tables(self) -> dict[str, tuple[str, Any]]:
        """Load each part's table, with its name among the splits.

        Raises:
            UserError: `datasets` is not installed, the folder is none of its, or train is missing.
        """
        try:
            import datasets
        except ImportError as error:
            raise UserError(
                "data=huggingface needs datasets, which is not installed: "
                "pip install 'kd[datasets]'"
            ) from error
        try:
            whole = datasets.load_from_disk(str(self.root))
        except Exception as error:  # undocumented ones on damaged files
            reason = str(error).partition("\n")[0][:200]
            raise UserError(
                f"data.root: {self.root.absolute()} is no folder of datasets' save_to_disk, or a "
                f"damaged one: {reason}"
            ) from error
        if not isinstance(whole, dict):
            return {"train": ("train", whole)}
        usual = {part: name for name in reversed(whole) if (part := part_of_name(str(name)))}
        chosen = self.given or usual
        if "train" not in chosen or not set(chosen) <= set(PARTS):
            raise UserError(
                f"data.parts: found {', '.join(chosen) or 'nothing'}; needed is train, accepted "
                f"are also val and test. The splits are {', '.join(map(str, whole))}"
            )
        for part, name in chosen.items():
            if name not in whole:
                raise UserError(
                    f"data.parts.{part}: no split {name!r}{nearest(name, list(whole))}; found are "
                    f"{', '.join(map(str, whole))}"
                )
        return {part: (str(name), whole[name]) for part, name in chosen.items()}


class HuggingFaceImages(LabelledImages):
    """Images of a table of `datasets`, read from its Arrow files.

    Attributes:
        said: labels as they stand there.
        names: of the classes, if the table says them.

    Raises:
        UserError: it lacks a column or a label.
    """

    def __init__(self, table: Any, where: str, columns: Mapping[str, str | None]) -> None:
        from datasets import Image

        self.where = plain(where)
        self.image, label = (
            column_of(self.where, table.column_names, what, columns[what])
            for what in ("image", "label")
        )
        self.said: list[Any] = table[label][:]
        self.names: list[str] | None = getattr(table.features[label], "names", None)
        self.table = table.select_columns([self.image])
        if isinstance(table.features[self.image], Image):
            self.table = self.table.cast_column(self.image, Image(decode=False))
        if missing := [i for i, found in enumerate(self.said) if found is None]:
            raise UserError(f"data.root: {self.name(missing[0])} has no label")

    def __len__(self) -> int:
        return len(self.said)

    def read(self, number: int) -> bytes:
        """Return an image's bytes, from the table or from the file that it names."""
        value = self.table[number][self.image]
        data = value
        if isinstance(value, dict):
            data = value.get("bytes")
            if data is None and value.get("path"):
                return Path(value["path"]).read_bytes()
        if not isinstance(data, bytes):
            raise OSError(f"no image in column {self.image}")
        return data

    def name(self, number: int) -> str:
        """Return the split and the row."""
        return f"{self.where}, row {number}"

    def state(self, number: int) -> bytes:
        """Return the states of all Arrow files, and the row."""
        return self._state + f" {self.image} {number}".encode()

    @cached_property
    def _state(self) -> bytes:
        files = [Path(each["filename"]) for each in self.table.cache_files]
        return hashlib.sha256(b"".join(state_of(file) for file in files)).digest()

    @property
    def place(self) -> str:
        """The folder."""
        return self.where
