"""ImageNet in its own layout: `train` and `val`, each with a folder per synset (n01440764)."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd.data.folder import plain
from kd.data.image_folder import ImageFolder
from kd.errors import UserError

SYNSET = re.compile(r"n\d{8}")
OFFICIAL = 1000  # classes of ILSVRC 2012
# The last is where Kaggle's archive has them
PLACES = (".", "imagenet", "ILSVRC/Data/CLS-LOC")
META = "meta.bin"  # names, as torchvision writes them
# Files of lines with a synset and its names: of Kaggle, and of WordNet
NAME_FILES = ("LOC_synset_mapping.txt", "words.txt")


class ImageNet(ImageFolder):
    """ImageNet-1k, or any part of ImageNet in folders by synset.

    The official validation part is the test part, as in the literature; the images that select
    weights are held out of train. Labels are in the order of the synsets, which is that of
    torchvision's and timm's weights. A class has the first of its synset's names.

    Names are those of torchvision's `meta.bin`, of `LOC_synset_mapping.txt` or `words.txt` in
    `root`; else torchvision's own where there are 1,000 classes, or the synsets themselves.

    Args:
        root: holds `train` and `val`, or `imagenet` with them.
        options: those of `kd.data.image_folder.ImageFolder`.
    """

    known_files = (*NAME_FILES, META)

    def __init__(
        self, root: str = "data", parts: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        super().__init__(root, parts=parts or {"train": "train", "test": "val"}, **options)

    def parts(self) -> dict[str, Path]:
        """Return the folders of train and test.

        Raises:
            UserError: they are missing; says how to get them.
        """
        assert self.given is not None
        for place in PLACES:
            if (self.root / place / self.given["train"]).is_dir():
                self.home = self.root / place
                return self.layout(self.home).parts
        raise UserError(
            f"data.root: no ImageNet in {self.root.absolute()}: expected there are the folders "
            "train and val, each with a folder per synset such as n01440764.\n  Of the archives "
            "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz "
            "from https://image-net.org they are made by torchvision.datasets.ImageNet(ROOT, "
            "'train') and (ROOT, 'val')."
        )

    def class_names(self, folders: Sequence[str]) -> tuple[str, ...]:
        """Return each synset's first name; with the synset where several have that name."""
        known = _names([self.home, self.root], folders)
        names = [known.get(folder, folder) for folder in folders]
        shared = {name for name, count in Counter(names).items() if count > 1}
        return tuple(
            f"{name} ({folder})" if name in shared else name
            for name, folder in zip(names, folders, strict=True)
        )


def _names(places: Sequence[Path], synsets: Sequence[str]) -> dict[str, str]:
    """Find the first name of each synset.

    Args:
        places: folders with files of names; the first is that of the images.

    Raises:
        UserError: a folder is no synset, or `meta.bin` is damaged.
    """
    if strange := [name for name in synsets if not SYNSET.fullmatch(name)]:
        raise UserError(
            f"data.root: {places[0].absolute()} holds the class folder {strange[0]}, which is no "
            "synset such as n01440764; data=image_folder reads folders of any name"
        )
    for root in (place for place in places if (place / META).exists()):
        from torchvision.datasets.imagenet import load_meta_file

        try:
            meta, _ = load_meta_file(root)
        except Exception as error:  # torch.load raises many
            raise UserError(
                f"data.root: {root / META} is damaged; remove it to have other names"
            ) from error
        return {synset: plain(str(names[0])) for synset, names in meta.items()}
    for file in (place / name for place in places for name in NAME_FILES):
        if file.exists():
            lines = (line.split(maxsplit=1) for line in file.read_text().splitlines())
            return {
                pair[0]: plain(pair[1].partition(",")[0].strip()) for pair in lines if len(pair) > 1
            }
    if len(synsets) != OFFICIAL:
        return {}
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return dict(zip(synsets, _IMAGENET_CATEGORIES, strict=True))
