"""Any folder of images: with train, val and test folders, or class folders only."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kd.data.base import Images, Source
from kd.data.decode import endings
from kd.data.file_source import FileSource
from kd.data.folder import (
    Layout,
    find_images,
    given_layout,
    layout,
    omission_note,
    plain,
    subfolders,
)
from kd.errors import UserError

Listing = dict[str, list[Path]]  # image files by class name


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
        options: those of `kd.data.file_source.FileSource`.
    """

    def __init__(
        self,
        root: str | None = None,
        parts: Mapping[str, str] | None = None,
        group_pattern: str | None = None,
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

    def read(self) -> Source:
        """List the folders, check that their classes agree, and decode the files."""
        folders = self.parts()
        listings = {part: self._list(folder) for part, folder in folders.items()}
        check_classes(listings, folders)
        classes = tuple(listings["train"])
        entries: list[tuple[str, int, Path]] = []
        for part, listing in listings.items():
            for label, name in enumerate(classes):
                entries += [(part, label, path) for path in listing[name]]
        pixels, good = self.decode(
            [path for *_, path in entries], self.image_size, self.channels, "data.root"
        )
        entries = [entries[i] for i in good]
        left = {(part, label) for part, label, _ in entries}
        for part, label in ((part, label) for part in listings for label in range(len(classes))):
            if (part, label) not in left:
                folder = plain(str(folders[part] / classes[label]))
                raise UserError(f"data.root: no image in the class folder {folder} can be decoded")
        groups = (
            [self.group(path, part) for part, _, path in entries] if self.group_pattern else None
        )
        names = [
            f"{part}/{plain(path.relative_to(folders[part]).as_posix())}"
            for part, _, path in entries
        ]
        every = Images(pixels, torch.tensor([label for _, label, _ in entries]), groups, names)
        found = {
            name: every.at([i for i, (part, *_) in enumerate(entries) if part == name])
            for name in listings
        }
        return Source(found["train"], found.get("test"), classes, found.get("val"))

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
                images = f"{count} image{'s' * (count != 1)}"
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
        listing = {name: find_images(path, passed) for name, path in subfolders(folder).items()}
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
        """Note the files of a part that are not read."""
        if passed:
            self.note(f"in {plain(folder.name)} {omission_note(passed)}")
        loose = sum(path.suffix.lower() in endings() for path in folder.iterdir() if path.is_file())
        if loose:
            self.note(
                f"{loose} image{'s' * (loose != 1)} in {plain(folder.name)} lie in no class "
                "folder and were left out"
            )


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
