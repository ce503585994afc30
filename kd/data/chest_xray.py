"""Chest X-rays of children, normal or with pneumonia (Kermany et al. 2018), in Kaggle's layout."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd.data.base import Source
from kd.data.folder import find_images, part_of_name, subfolders
from kd.data.image_folder import ImageFolder
from kd.errors import UserError

# Patient in a name like person12_virus_34.jpeg, IM-0115-0001.jpeg or
# NORMAL2-IM-0529-0001-0002.jpeg.
PATIENT = r"^(person\d+)_|^((?:NORMAL2-)?IM-\d+)-"
PATIENT_AND_KIND = re.compile(r"^person\d+_[a-z]+|^(?:NORMAL2-)?IM-\d+")


class ChestXRay(ImageFolder):
    """5,856 images: `train`, `val` and `test`, each with `NORMAL` and `PNEUMONIA`.

    The official validation part has 16 images, too few for selection. It joins train, and a new
    part is carved out by patient.

    Args:
        root: holds the folder `chest_xray`, or is that folder.
    """

    def __init__(self, root: str = "data", group_pattern: str = PATIENT, **options: Any) -> None:
        super().__init__(root, group_pattern=group_pattern, **options)

    def parts(self) -> dict[str, Path]:
        """Return the folders of train, val and test.

        Raises:
            UserError: they are missing; says how to get them.
        """
        for folder in (self.root / "chest_xray", self.root):
            if not folder.is_dir():
                continue
            if self.given or {"train", "test"} <= {
                part_of_name(name) for name in subfolders(folder)
            }:
                return self.layout(folder).parts
        raise UserError(
            f"data.root: no chest X-rays in {(self.root / 'chest_xray').absolute()}: expected "
            "there are the folders train, val and test, each with NORMAL and PNEUMONIA.\n  "
            "Get them from "
            "https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia and "
            "unpack them there, or point data.root or KD_DATA_DIR at a folder that holds "
            "chest_xray."
        )

    def group(self, path: Path, part: str) -> str:
        """Return the patient. The test part numbers its patients from 1 again.

        person1 has three images of a virus in test and two of bacteria in train. No (number, kind)
        is in both.
        """
        name = super().group(path, part)
        return f"test {name}" if part == "test" else name

    def read(self) -> Source:
        """Read all images; the official validation part joins train."""
        check_test_patients(self.parts())
        source = super().read()
        train = source.train.join(source.val) if source.val else source.train
        return replace(source, train=train, val=None)


def check_test_patients(folders: Mapping[str, Path]) -> None:
    """Check that no patient of test is in train or val, by number and kind; numbers alone repeat.

    Raises:
        UserError: one is; names the files.
    """
    seen: dict[str, Path] = {}
    for part in ("train", "val", "test"):
        for file in find_images(folders[part]) if part in folders else ():
            match = PATIENT_AND_KIND.search(file.name)
            if match and part != "test":
                seen[match[0]] = file
            elif match and match[0] in seen:
                raise UserError(
                    f"data.root: {file} and {seen[match[0]]} are of one patient; test needs "
                    "others than train"
                )
