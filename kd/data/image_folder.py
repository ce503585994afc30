"""Any folder of images, with class folders or a label file; with train, val and test or without."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from kd.data.base import Images, Source, one_of
from kd.data.file_source import FileSource
from kd.data.folder import (
    PARTS,
    Layout,
    count_top_images,
    find_images,
    given_layout,
    image_names,
    kind_of,
    layout,
    part_of_name,
    plain,
    subfolders,
)
from kd.data.image_bytes import ImagePaths
from kd.data.label_file import find_files, read_label_file
from kd.data.texts import Texts
from kd.errors import UserError
from kd.log import number_of

LabelTask = Literal["multiclass", "multilabel"]


class LabelledFiles(NamedTuple):
    """Image files in columns, as an object for each takes ten times the memory.

    Attributes:
        paths: of the files.
        parts: of each, as its place in `PARTS`; int8 [N].
        labels: as in `kd.data.images.Images`.
        names: in lists.
    """

    paths: Texts
    parts: Tensor
    labels: Tensor
    names: Texts


Listing = dict[str, Texts]  # image files by class name, as paths from the class's folder


class ImageFolder(FileSource):
    """Images whose class is the name of their folder, at any depth below it.

    Args:
        root: holds `train`, and optionally `val` and `test`, each with one folder per class; or the
            class folders themselves. Missing parts are carved out of train.
        parts: folders of train, val and test, as paths from `root`. None finds them by their names,
            such as `Training_Set` or `seg_test`.
        group_pattern: regular expression for the group (patient, scene) in a file name: its capture
            group, or the whole match. A group is never split between parts. A file without a match
            is its own group.
        label_file: a table with the label of each image, in the place of class folders; see
            `kd.data.label_file`. A path that is not there is looked for in `root`. Images without a
            row are left out. Parts are those of the table's column `part`, or the folders train,
            val and test; other images are of train.
        image_column, label_column: of that table; None finds them by the usual names.
        task: `multilabel` where an image may have several labels or none; needs `label_file`.
        options: those of `kd.data.file_source.FileSource`.

    Attributes:
        known_files: names of files beside class folders that are read for something else.
    """

    known_files: tuple[str, ...] = ()

    def __init__(
        self,
        root: str | None = None,
        parts: Mapping[str, str] | None = None,
        group_pattern: str | None = None,
        label_file: str | None = None,
        image_column: str | None = None,
        label_column: str | list[str] | None = None,
        task: LabelTask = "multiclass",
        **options: Any,
    ) -> None:
        if root is None:
            raise UserError(
                "data.root: must be given: a folder of class folders, or of train, val and "
                "test with those"
            )
        super().__init__(root, **options)
        try:
            self.group_pattern = re.compile(group_pattern) if group_pattern is not None else None
        except re.error as error:
            raise UserError(
                f"data.group_pattern: {group_pattern!r} is no regular expression: {error}"
            ) from error
        self.given = parts
        self.label_file = Path(label_file).expanduser() if label_file else None
        self.columns = (image_column, label_column)
        if self.label_file is None and self.columns != (None, None):
            raise UserError("data.label_column, data.image_column: are of data.label_file, not set")
        self.several = one_of("task", task, get_args(LabelTask)) == "multilabel"
        if self.several and self.label_file is None:
            raise UserError(
                "data.task: multilabel needs data.label_file, a table with the labels of each image"
            )

    def read(self) -> Source:
        """List the images, check that the parts' classes agree, and decode the files."""
        files, classes = self._by_folders() if self.label_file is None else self._by_table()
        images = ImagePaths(files.paths)
        pixels, good = self.decode(images, self.image_size, self.channels, "data.root")
        of_part = files.parts[good]
        labels = files.labels[good]
        for i, part in enumerate(PARTS):
            there = classes_of(files.labels[files.parts == i], len(classes))
            gone = there & ~classes_of(labels[of_part == i], len(classes))
            for label in gone.nonzero()[:1, 0].tolist():
                where = f"{part}, class {classes[label]!r}"
                raise UserError(f"data.root: no image of {where} can be decoded")
        groups = None
        if self.group_pattern:
            each = zip(good.tolist(), of_part.tolist(), strict=True)
            groups = [self.group(images.path(i), PARTS[part]) for i, part in each]
        every = Images(pixels, labels, groups, files.names.at(good.numpy()))
        parts = {
            part: every.at(mine.nonzero()[:, 0])
            for i, part in enumerate(PARTS)
            if (mine := of_part == i).any()
        }
        return Source(parts["train"], parts.get("test"), classes, parts.get("val"))

    def _by_folders(self) -> tuple[LabelledFiles, tuple[str, ...]]:
        """List the images of the class folders, and the classes.

        Raises:
            UserError: the parts have other classes.
        """
        folders = self.parts()
        listings = {part: self._list(folder) for part, folder in folders.items()}
        check_classes(listings, folders)
        if self.root not in folders.values():
            self._note_skipped_files(self.root, Counter())
        classes = tuple(listings["train"])
        tops = {part: subfolders(folder) for part, folder in folders.items()}
        each = [(part, label, name) for part in folders for label, name in enumerate(classes)]
        counts = torch.tensor([len(listings[part][name]) for part, _, name in each])
        files = LabelledFiles(
            Texts(
                os.path.join(tops[part][name], inner)
                for part, _, name in each
                for inner in listings[part][name]
            ),
            torch.tensor([PARTS.index(part) for part, _, _ in each]).repeat_interleave(counts),
            torch.tensor([label for _, label, _ in each]).repeat_interleave(counts),
            Texts(
                _name(part, f"{name}/{inner}")
                for part, _, name in each
                for inner in listings[part][name]
            ),
        )
        return files, self.class_names(classes)

    def class_names(self, folders: Sequence[str]) -> tuple[str, ...]:
        """Return the name of each class, given its folder's."""
        return tuple(folders)

    def _by_table(self) -> tuple[LabelledFiles, tuple[str, ...]]:
        """List the images that the label file names, and the classes.

        Raises:
            UserError: a row has no image, or a class none in train.
        """
        assert self.label_file is not None
        if not self.root.is_dir():
            raise UserError(f"data.root: no folder {self.root.absolute()}")
        inside = self.root / self.label_file
        file = inside if not self.label_file.exists() and inside.exists() else self.label_file
        rows, classes = read_label_file(file, *self.columns, self.several)
        passed = Counter[str]()
        paths = image_names(self.root, passed)
        if file.is_relative_to(self.root):
            passed -= Counter([kind_of(file.suffix)])  # the table itself
        self.note_omission(self.root, passed)
        places = find_files(rows, [plain(path) for path in paths])
        if left := len(paths) - len(set(places)):
            self.note(f"{left} of {len(paths)} images have no row in {file.name}: left out")
        folders = {} if self.given is None else given_layout(self.root, self.given).parts
        parts = []
        names = []
        for row, i in zip(rows, places, strict=True):
            part, inner = _part_of(self.root / paths[i], Path(paths[i]), folders)
            parts.append(PARTS.index(row.part or part))
            names.append(_name(row.part or part, inner.as_posix()))
        files = LabelledFiles(
            Texts(str(self.root / paths[i]) for i in places),
            torch.tensor(parts),
            self._labels([row.labels for row in rows], len(classes)),
            Texts(names),
        )
        of_train = files.labels[files.parts == PARTS.index("train")]
        there = classes_of(of_train, len(classes)).tolist()
        if lacking := [name for name, any_of in zip(classes, there, strict=True) if not any_of]:
            raise UserError(
                f"data.label_file: train lacks class{'es' * (len(lacking) > 1)} "
                f"{', '.join(lacking[:5])}, which {file.name} gives to images of other parts"
            )
        return files, classes

    def _labels(self, said: Sequence[tuple[int, ...]], classes: int) -> Tensor:
        """Return the labels as `Images` has them."""
        if not self.several:
            return torch.tensor([label for (label,) in said])
        found = torch.zeros(len(said), classes, dtype=torch.int8)
        for row, labels in zip(found, said, strict=True):
            row[list(labels)] = 1
        return found

    def parts(self) -> dict[str, Path]:
        """Return the folders of train and, if present, val and test.

        Raises:
            UserError: `root` is missing, or the parts are ambiguous.
        """
        if not self.root.is_dir():
            raise UserError(f"data.root: no folder {self.root.absolute()}")
        found = self.layout(self.root)
        if "train" not in found.parts:
            raise UserError(
                f"data.root: {self.root.absolute()} has {', '.join(found.parts)}, but no "
                "folder train"
            )
        return found.parts

    def layout(self, root: Path) -> Layout:
        """Read the folder layout under `root` and note image folders that are not used.

        Raises:
            UserError: the layout is ambiguous.
        """
        found = layout(root) if self.given is None else given_layout(root, self.given)
        for name, path in found.left_out.items():
            if count := len(find_images(path)):
                read = ", ".join(plain(each.name) for each in found.parts.values())
                images = number_of(count, "image")
                self.note(
                    f"the folder {name} with {images} is none of the parts ({read}): left out"
                )
        return found

    def group(self, path: Path, part: str) -> str:
        """Return the group of a file; see `group_pattern`."""
        assert self.group_pattern is not None
        match = self.group_pattern.search(plain(path.name))
        return next(filter(None, match.groups()), match[0]) if match else plain(str(path))

    def _list(self, folder: Path) -> Listing:
        passed = Counter[str]()
        tops = subfolders(folder)
        listing = {name: Texts(image_names(path, passed)) for name, path in tops.items()}
        if len(listing) < 2:
            found = ", ".join(listing) or "none"
            raise UserError(
                f"data.root: {folder.absolute()} must hold a folder of images for each of two "
                f"classes or more; found folders: {found}"
            )
        self._note_skipped_files(folder, passed)
        for name, files in listing.items():
            if not files:
                raise UserError(
                    f"data.root: no image in the class folder {plain(str(folder / name))}"
                )
        return listing

    def _note_skipped_files(self, folder: Path, passed: Counter[str]) -> None:
        """Note the files of a part that are not read, those beside its class folders too."""
        loose = count_top_images(folder, passed)
        passed -= Counter(
            kind_of(Path(name).suffix) for name in self.known_files if (folder / name).exists()
        )
        self.note_omission(folder, passed)
        if loose:
            self.note(
                f"{number_of(loose, 'image')} in {plain(folder.name)} lie in no class "
                "folder and were left out"
            )


def classes_of(labels: Tensor, count: int) -> Tensor:
    """Return which classes have images, bool [count].

    Args:
        labels: int64 [N], or 0 and 1 [N, count].
    """
    return labels.bool().any(0) if labels.ndim == 2 else labels.bincount(minlength=count) > 0


def _name(part: str, path: str) -> str:
    """Name an image by its part and its path there."""
    return f"{part}/{plain(path)}"


def _part_of(file: Path, path: Path, folders: Mapping[str, Path]) -> tuple[str, Path]:
    """Return the part of an image by its folder, and its path there; train for no part's folder.

    Args:
        path: from the data's folder.
        folders: of the parts; empty where their names say it.
    """
    for part, folder in folders.items():
        if file.is_relative_to(folder):
            return part, file.relative_to(folder)
    named = part_of_name(path.parts[0]) if len(path.parts) > 1 and not folders else None
    return (named, path.relative_to(path.parts[0])) if named else ("train", path)


def check_classes(listings: Mapping[str, Listing], folders: Mapping[str, Path]) -> None:
    """Check that each part has the classes of train.

    Raises:
        UserError: one lacks a class or has an extra one.
    """
    train = listings["train"]
    for part, listing in listings.items():
        extra, lacking = (
            [n for n in a if n not in b] for a, b in ((listing, train), (train, listing))
        )
        if extra:
            raise UserError(
                f"data.root: {folders[part].absolute()} has class{'es' * (len(extra) > 1)} "
                f"{', '.join(extra)}, which train lacks; the classes of train are "
                f"{', '.join(train)}"
            )
        if lacking:
            raise UserError(
                f"data.root: {folders[part].absolute()} lacks "
                f"class{'es' * (len(lacking) > 1)} {', '.join(lacking)} of train; train and "
                f"{part} need the same classes"
            )
