"""Any folder of images: with train, val and test folders of class folders, or class folders alone."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kd.data.base import DataModule, Images, Source
from kd.data.decode import Reading, endings
from kd.data.folder import Layout, find_images, given_layout, layout, passed_over, plain, subfolders
from kd.errors import UserError

LARGEST = 8192  # side of an image, in pixels; some 200 MB each
Listing = dict[str, list[Path]]  # image files by class name


class ImageFolder(DataModule):
    """Images whose class is the name of their folder, at any depth below it.

    Args:
        root: holds `train`, and where there are any `val` and `test`, each with a folder for each class; or the class
            folders themselves. What is missing of validation and test is carved out of train.
        parts: folders of train, val and test by those names, as paths from `root`; None finds them by their names,
            which may be such as `Training_Set` or `seg_test`.
        image_size: height and width that images are stretched to, in pixels.
        channels: 3 for RGB, 1 for gray.
        bit_depth: of gray levels that are stored in 16 bits, 9 to 16; see `kd.data.decode.Reading`.
        group_pattern: regular expression that finds a group (a patient, a scene) in a file's name, in its brackets or
            as a whole; no group is in two parts. A file in whose name it finds nothing is a group of its own.
        options: those of every source, see `kd.data.base.DataModule`.
    """

    def __init__(
        self,
        root: str | None = None,
        image_size: int = 64,
        channels: int = 3,
        parts: Mapping[str, str] | None = None,
        bit_depth: int = 16,
        group_pattern: str | None = None,
        **options: Any,
    ) -> None:
        if root is None:
            raise UserError(
                "data.root: must be given: a folder of class folders, or of train, val and test with those"
            )
        super().__init__(root, **options)
        if not 1 <= image_size <= LARGEST:
            raise UserError(
                f"data.image_size: found {image_size}, accepted is a number of pixels from 1 to {LARGEST}"
            )
        if channels not in (1, 3):
            raise UserError(f"data.channels: found {channels!r}, accepted are 1 (gray) and 3 (RGB)")
        try:
            self.group_pattern = re.compile(group_pattern) if group_pattern is not None else None
        except re.error as error:
            raise UserError(
                f"data.group_pattern: {group_pattern!r} is no regular expression: {error}"
            ) from error
        if not 9 <= bit_depth <= 16:
            raise UserError(f"data.bit_depth: found {bit_depth}, accepted are 9 to 16")
        self.reading = Reading(bit_depth)
        self.image_size, self.channels, self.given = image_size, channels, parts

    def read(self) -> Source:
        """List the folders, check that their classes agree, decode the files."""
        folders = self.parts()
        listings = {part: self._list(folder) for part, folder in folders.items()}
        check_classes(listings, folders)
        classes = tuple(listings["train"])
        entries = [
            (part, label, path)
            for part, listing in listings.items()
            for label, name in enumerate(classes)
            for path in listing[name]
        ]
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
        """The folders of train and, where there are any, val and test.

        Raises:
            UserError: there is no such folder as `root`, or which folders are the parts is not clear.
        """
        if not self.root.is_dir():
            raise UserError(f"data.root: no folder {self.root.absolute()}")
        found = self.layout(self.root)
        if "train" not in found.parts:
            raise UserError(
                f"data.root: {self.root.absolute()} has {', '.join(found.parts)}, but no folder train"
            )
        return found.parts

    def layout(self, root: Path) -> Layout:
        """What the folders under `root` are. Those that hold images and are not read are noted.

        Raises:
            UserError: that is not clear.
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
        """The group that a file of a part belongs to; see `group_pattern`."""
        assert self.group_pattern is not None
        match = self.group_pattern.search(plain(path.name))
        return next(filter(None, match.groups()), match[0]) if match else plain(str(path))

    def _list(self, folder: Path) -> Listing:
        passed = Counter[str]()
        listing = {name: find_images(path, passed) for name, path in subfolders(folder).items()}
        if len(listing) < 2:
            found = ", ".join(listing) or "none"
            raise UserError(
                f"data.root: {folder.absolute()} must hold a folder of images for each of two classes or more; found "
                f"folders: {found}"
            )
        self._note_passed(folder, passed)
        for name, files in listing.items():
            if not files:
                raise UserError(
                    f"data.root: no image in the class folder {plain(str(folder / name))}"
                )
        return listing

    def _note_passed(self, folder: Path, passed: Counter[str]) -> None:
        """Note what files of a part are not read."""
        if passed:
            self.note(f"in {plain(folder.name)} {passed_over(passed)}")
        loose = sum(path.suffix.lower() in endings() for path in folder.iterdir() if path.is_file())
        if loose:
            self.note(
                f"{loose} image{'s' * (loose != 1)} in {plain(folder.name)} lie in no class folder and were left out"
            )


def check_classes(listings: Mapping[str, Listing], folders: Mapping[str, Path]) -> None:
    """Check that each part has the classes of train.

    Raises:
        UserError: one lacks a class, or has one more.
    """
    train = listings["train"]
    for part, listing in listings.items():
        extra, lacking = (
            [n for n in a if n not in b] for a, b in ((listing, train), (train, listing))
        )
        if extra:
            raise UserError(
                f"data.root: {folders[part].absolute()} has class{'es' * (len(extra) > 1)} {', '.join(extra)}, which "
                f"train lacks; the classes of train are {', '.join(train)}"
            )
        if lacking:
            raise UserError(
                f"data.root: {folders[part].absolute()} lacks class{'es' * (len(lacking) > 1)} {', '.join(lacking)} of "
                f"train; train and {part} need the same classes"
            )
