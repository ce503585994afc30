"""Parquet files with a column of encoded images, as Hugging Face's data sets have them."""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from kd.data.file_source import ContainedImages, FileSource, files_by_part
from kd.data.folder import plain
from kd.data.images import Source
from kd.errors import UserError, nearest


class TableSource(FileSource):
    """Tables with an image column and a label column.

    Args:
        root: where the tables are.
        parts: which of them are train, val and test; None goes by their names.
        image_column, label_column: their names; None finds them by the usual ones.
        options: those of `kd.data.file_source.FileSource`.
    """

    def __init__(
        self,
        root: str = "data",
        parts: Mapping[str, str] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.given = parts
        self.columns = {"image": image_column, "label": label_column}


class Parquet(TableSource):
    """Rows with an image (bytes, or Hugging Face's {bytes, path}) and a label.

    `root` is a folder of parquet files, one file, or a pattern of files. `train`, `val` or `test`
    in their names or folders say which part they are; files without such a word are of train.
    `parts` are patterns of the files of train, val and test, from `root`. Class names are those of
    Hugging Face's ClassLabel, or the labels themselves.
    """

    def read(self) -> Source:
        """Read the labels, and decode the images."""
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UserError(
                "data=parquet needs pyarrow, which is not installed: pip install 'kd[parquet]'"
            ) from error
        found = {
            part: ParquetImages(files, self.columns)
            for part, files in files_by_part(self.root, ".parquet", self.given).items()
        }
        return self.source(found, labels_by_name(found.values()))


class NamedLabels(Protocol):
    """Labels as a table has them, and its class names if it has any."""

    labels: Sequence[int]
    said: list[Any]
    names: list[str] | None


class ParquetImages(ContainedImages):
    """Images of parquet files.

    Attributes:
        said: labels as they stand there.
        names: of the classes, if the files say them.

    Raises:
        UserError: a file is damaged, or lacks a column.
    """

    def __init__(self, files: Sequence[Path], columns: Mapping[str, str | None]) -> None:
        import pyarrow
        from pyarrow import parquet

        self.files = files
        self.rows: list[tuple[int, int, int]] = []  # file, row group, row in it
        self.said: list[Any] = []
        self.names: list[str] | None = None
        for number, path in enumerate(files):
            try:
                file = parquet.ParquetFile(path)
                self.image = column_of(path, file.schema_arrow.names, "image", columns["image"])
                label = column_of(path, file.schema_arrow.names, "label", columns["label"])
                check_has_bytes(path, file, self.image)
                for group in range(file.num_row_groups):
                    values = file.read_row_group(group, columns=[label])[label].to_pylist()
                    self.said += values
                    self.rows += [(number, group, row) for row in range(len(values))]
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(
                    f"data.root: {path} is no parquet file, or damaged: {error}"
                ) from error
            self.names = self.names or _class_names(file.schema_arrow.metadata, label)
        if missing := [i for i, label in enumerate(self.said) if label is None]:
            raise UserError(f"data.root: {self.name(missing[0])} has no label")

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int) -> bytes:
        """Read an image; neighbours in its row group are read with it."""
        file, group, row = self.rows[number]
        value = _row_group(self.files[file], group, self.image)[row]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise OSError(f"no image in column {self.image}")
        return data

    def name(self, number: int) -> str:
        """Return the file and the row group and row in it."""
        file, group, row = self.rows[number]
        return plain(f"{self.files[file].name}, row {row} of group {group}")

    def state(self, number: int) -> bytes:
        """Return the state of the file, and the row."""
        file, *where = self.rows[number]
        return self.state_in(file, (self.image, where))


def check_has_bytes(path: Path, file: Any, image: str) -> None:
    """Check that a column holds encoded images, by the file's schema and statistics.

    Args:
        file: a `pyarrow.parquet.ParquetFile`.

    Raises:
        UserError: it holds texts, or paths without bytes, as of images beside the file.
    """
    import pyarrow

    kinds = pyarrow.types
    kind = file.schema_arrow.field(image).type
    held = (
        kind.field("bytes").type
        if kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0
        else kind
    )
    empty = kinds.is_string(held) or kinds.is_large_string(held) or kinds.is_null(held)
    groups = map(file.metadata.row_group, range(file.num_row_groups))
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    of_bytes = [each for each in chunks if each.path_in_schema == f"{image}.bytes"]
    if of_bytes and all(
        each.statistics and each.statistics.null_count == each.num_values for each in of_bytes
    ):
        empty = True
    if empty:
        raise UserError(
            f"data.root: column {image} of {path} holds paths and not the images' bytes; needed "
            "are the bytes, as Dataset.to_parquet of Hugging Face's datasets writes them. Images "
            "in files of their own are read by data=image_folder"
        )


def labels_by_name(tables: Collection[NamedLabels]) -> tuple[str, ...]:
    """Set the labels of each part; returns the class names.

    The names are the tables' own, whose numbers are then the labels; else the labels themselves,
    in order.
    """
    names = next(iter(tables)).names
    seen = {label for each in tables for label in each.said}
    numbers = all(isinstance(label, int) for label in seen)
    if names is None or not numbers:
        ordered = sorted(seen) if numbers else sorted(seen, key=str)
        names = [plain(str(label)) for label in ordered]
        places = {label: i for i, label in enumerate(ordered)}
    else:
        places = {label: label for label in seen}
    for each in tables:
        each.labels = [places[label] for label in each.said]
    return tuple(names)


def column_of(table: object, names: Sequence[str], what: str, asked: str | None) -> str:
    """Return the name of a table's column.

    Args:
        names: of all columns.
        what: `image` or `label`.

    Raises:
        UserError: there is none, or several may be it.
    """
    if asked is not None:
        usual = [asked]
    else:
        usual = ["image", "img", "jpg", "png"] if what == "image" else ["label", "labels", "cls"]
    found = [name for name in usual if name in names]
    if not found:
        raise UserError(
            f"data.{what}_column: {table} has the columns {', '.join(names)}, and none is "
            f"{' or '.join(usual)}{nearest(usual[0], names)}"
        )
    return found[0]


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str) -> list[str] | None:
    """Return the names that Hugging Face's metadata has for a column of class labels."""
    try:
        said = json.loads((metadata or {})[b"huggingface"])
        return [plain(str(name)) for name in said["info"]["features"][label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


@lru_cache(maxsize=4)
def _row_group(path: Path, group: int, column: str) -> list[Any]:
    from pyarrow import parquet

    found: list[Any] = parquet.ParquetFile(path).read_row_group(group, [column])[column].to_pylist()
    return found
