"""The one DataModule: reads a source into uint8 arrays, splits it, serves batches of indices."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kd.data.batches import Batch, EpochOrder, Gather, GatherViews, InOrder, InViews, Loader
from kd.data.cache import Cache, Mode
from kd.data.decode import Reading
from kd.data.duplicates import Duplicates, OnDuplicate
from kd.data.folder import find_images, omission_note, plain
from kd.data.image_bytes import EncodedImages, ImagePaths
from kd.data.image_names import ImageNames
from kd.data.images import Images, Pixels, Source, Split
from kd.data.other_source import knobs_of, sized_source
from kd.data.rare_classes import BALANCE, check_balance, class_shares
from kd.data.split import make_split
from kd.data.teacher_images import reads_of_teacher, split_as_read, with_labels_of
from kd.data.texts import Texts
from kd.data.transfer import (
    OMITTED,
    UNLABELED,
    Labels,
    Sees,
    check_labels,
    check_sees_all,
    transfer_split,
)
from kd.data.views import Augment, make_augment
from kd.errors import UserError, nearest
from kd.log import say
from kd.shape import ImageSize, Shape, image_size

# For sources and their users
__all__ = [
    "Batch",
    "DataModule",
    "Images",
    "Source",
    "Split",
]

OnBad = Literal["stop", "skip"]
Weights = Literal["balanced"]
Order = Literal["balanced"]
T = TypeVar("T")

NO_LABEL = "-1"  # as tables often mark it


class DataModule(ABC):
    """Data set, split into train, validation and test, stratified by class and seeded.

    A subclass implements `read`. Everything else is here.

    Args:
        root: folder to look in.
        val_fraction: share of the training images (or groups) held out for model selection, in [0,
            1). Used where the source has no validation part. 0 holds out none: nothing is selected,
            and all nets keep the weights of their last epoch.
        test_fraction: the same for the final test, in (0, 1).
        split_seed: seed of the split and of `limit`. It is not the training seed: runs of several
            seeds then select on the same images and may share a teacher.
        limit: number of training images to use (stratified); validation and test stay whole. None
            uses all.
        imbalance: makes the training part a long tail with this many images of the first class for
            one of the last, above 1; see `kd.data.parts.long_tail`. Validation and test stay whole.
            None leaves the classes as they are.
        augment: keywords of `kd.data.views.Augment`, the augmentation of training images.
        views: None for a new view of each image in each epoch, V to cycle through V views.
        normalization: `mean` and `std` per channel, for pixels in [0, 1], of all nets without their
            own; None for those of the training images.
        class_weights: `balanced` weights the training cross-entropy by N / (classes * images of the
            class); None weights all classes equally.
        sampler: `balanced` shows each class equally often in an epoch, of as many images as
            without. An image that is shown again has another view. None shows each image once.
        logit_adjustment: adds this times the logarithm of a class's share of the training images to
            its logit in the training cross-entropy (Menon et al. 2021, eq. 10; they use 1). None
            adds nothing.
        focal_gamma: in the training cross-entropy, weights each logarithm by (1 - p) to this power
            (Lin et al. 2017, eq. 4; they use 2). None is the plain one.
        labels: how many training images keep their label for student and baseline: a count, a share
            below 1, or a file that lists them. The rest stays unlabelled. The teacher sees all.
            None keeps all.
        labels_seed: seed of that choice.
        omit: names of classes whose images student and baseline never see.
        val_labels: like `labels`, for the validation images that select the weights of student and
            baseline. 0 selects nothing and keeps the last epoch.
        unlabeled: folder of unlabelled images that join training with the teacher's signal only.
        teacher_data: builds another source with the same classes, on which the teacher trains; the
            config's `teacher.data`. None: it trains on this one.
        teacher_reading: the teacher's `image_size`, `resize`, `crop_ratio`, `interpolation`, those
            that differ from the data's; the config's `teacher.image_size` and so on.
        on_bad_image: `stop` refuses a folder with undecodable files and names them; `skip`
            continues without them and lists them in the report.
        license: licence of the images as the user states it, for the model card. No result depends
            on it.
        cache: where decoded files are kept: see `kd.data.cache.Cache`.
        cache_dir: folder of the cache; None decodes every time.
        cache_limit: size of the whole cache, in GB (10^9 bytes).
        num_workers: loader processes. The images are in memory, so 0 is usually best.
        on_duplicate: `warn` reports images that occur more than once, pixel for pixel; `drop`
            removes them from train, and from validation those in test; `stop` refuses.
    """

    source_names: Sequence[str] = ()  # of all images that the training part is carved from

    def __init__(
        self,
        root: str = "data",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
        limit: int | None = None,
        imbalance: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None,
        augment: Mapping[str, object] | None = None,
        views: int | None = None,
        normalization: dict[str, list[float]] | None = None,
        class_weights: Weights | None = None,
        sampler: Order | None = None,
        logit_adjustment: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None,
        focal_gamma: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None,
        labels: Labels = None,
        labels_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0,
        omit: list[str | int] | None = None,
        val_labels: Labels = None,
        unlabeled: str | None = None,
        teacher_data: dict[str, object] | None = None,
        teacher_reading: dict[str, Any] | None = None,
        on_bad_image: OnBad = "stop",
        license: str | None = None,
        cache: Mode = "auto",
        cache_dir: str | None = None,
        cache_limit: Annotated[float, Field(gt=0)] = 100,
        num_workers: NonNegativeInt = 0,
        on_duplicate: OnDuplicate = "warn",
    ) -> None:
        _check_fractions(val_fraction, test_fraction)
        for name, count in (("limit", limit), ("views", views)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise UserError(
                    f"data.{name}: found {count!r}, accepted is null or a whole number from 1"
                )
        check_labels(labels)
        if val_labels != 0 or val_labels is False:
            check_labels(val_labels, "data.val_labels")
        self.labels = labels
        self.labels_seed = labels_seed
        self.omit = omit
        self.val_labels = val_labels
        self.normalization = normalization
        self.class_weights = one_of("class_weights", class_weights, (None, *get_args(Weights)))
        self.sampler = one_of("sampler", sampler, (None, *get_args(Order)))
        self.logit_adjustment = logit_adjustment
        self.focal_gamma = focal_gamma
        check_balance(vars(self))
        self.on_bad_image = one_of("on_bad_image", on_bad_image, get_args(OnBad))
        if cache == "disk" and cache_dir is None:
            raise UserError(
                "data.cache: disk needs data.cache_dir, the folder to keep decoded images in"
            )
        self.cache = Cache(
            Path(cache_dir).expanduser() if cache_dir else None,
            one_of("cache", cache, get_args(Mode)),
            cache_limit,
        )
        self.augment = make_augment(augment or {})
        self.root = _folder(root)
        self.unlabeled = Path(unlabeled).expanduser() if unlabeled else None
        self.teacher_data = teacher_data
        self.teacher_reading = teacher_reading
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.limit = limit
        self.imbalance = imbalance
        self.views = views
        self.num_workers = num_workers
        self.license = license
        self.on_duplicate = one_of("on_duplicate", on_duplicate, get_args(OnDuplicate))
        self.reading = Reading()  # of files, for sources that have any
        # Files that could not be decoded, with reasons; and other remarks on the files.
        self.skipped: list[dict[str, str]] = []
        self.notes: list[str] = []
        self.duplicates = Duplicates()
        self.shown: Tensor | None = None  # positions of the training images in use; None: all
        self.length: int | None = None  # images per epoch; None: each once

    @property
    def name(self) -> str:
        """Name of the source, as in `data=NAME`: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def read(self) -> Source:
        """Read the source's files.

        Raises:
            UserError: files are missing or invalid; says where it looked and how to get them.
        """

    def decode(
        self,
        files: Sequence[Path] | EncodedImages,
        size: ImageSize,
        channels: int,
        where: str,
    ) -> tuple[Pixels, Tensor]:
        """Decode image files to pixels.

        Args:
            where: config key of the folder, for messages.

        Returns:
            pixels [N, channels, height, width], and the position in `files` of each, int64 [N].

        Raises:
            UserError: some cannot be decoded and `on_bad_image` is `stop`; lists them all.
        """
        images = files if isinstance(files, EncodedImages) else ImagePaths(files)
        decoded = self.cache.decode_files(images, size, channels, self.reading)
        for text in decoded.notes:
            self.note(text)
        bad = [{"file": images.name(i), "reason": reason} for i, reason in decoded.bad.items()]
        if bad and self.on_bad_image == "stop":
            lines = [f"  {each['file']}: {each['reason']}" for each in bad]
            raise UserError(
                "\n".join(
                    [
                        f"{where}: {len(bad)} of {len(files)} image files cannot be decoded:",
                        *lines,
                        "Repair or remove them, or set data.on_bad_image=skip to go on "
                        "without them.",
                    ]
                )
            )
        if bad:
            first = ", ".join("/".join(Path(each["file"]).parts[-2:]) for each in bad[:3])
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            self.note(
                f"{len(bad)} of {len(files)} image files in {where} cannot be decoded and are left "
                f"out: {first}{more}"
            )
        self.skipped += bad
        whole = torch.ones(len(files), dtype=torch.bool)
        whole[list(decoded.bad)] = False
        good = whole.nonzero()[:, 0]
        return Pixels.whole(decoded.store).at(good), good

    def note(self, text: str) -> None:
        """Log a remark on the data once, and put it into the report."""
        if text not in self.notes:
            self.notes.append(text)
            say(f"data: {text}")

    def note_omission(self, folder: Path, passed: Counter[str]) -> None:
        """Note the files of a folder that are no images, by kind, where there are any."""
        if passed:
            self.note(f"in {plain(folder.name)} {omission_note(passed)}")

    @cached_property
    def split(self) -> Split:
        """Train, validation and test parts. The official test set, and nothing else, is the test
        part.
        """
        source = self.read()
        if NO_LABEL in source.classes:
            self.note(
                f"{NO_LABEL} is a class here, as any other label. Where it marks images without a "
                "label, leave them out, or show them by data.unlabeled=FOLDER"
            )
        self.source_names = source.train.names
        split, self.duplicates = make_split(source, self._pool(source.train), self, self.note)
        return split

    def _pool(self, train: Images) -> Images | None:
        """Return the unlabelled images, at the shape of the training images."""
        if self.unlabeled is None:
            return None
        passed = Counter[str]()
        files = find_images(self.unlabeled, passed) if self.unlabeled.is_dir() else []
        if not files:
            raise UserError(f"data.unlabeled: no image in {self.unlabeled.absolute()}")
        self.note_omission(self.unlabeled, passed)
        _, channels, *size = train.pixels.shape
        pixels, good = self.decode(files, (size[0], size[1]), channels, "data.unlabeled")
        inner = (files[i].relative_to(self.unlabeled).as_posix() for i in good.tolist())
        none = torch.full((len(good), *train.labels.shape[1:]), UNLABELED).to(train.labels.dtype)
        return Images(pixels, none, names=Texts(plain(f"unlabeled/{name}") for name in inner))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, ordered by label."""
        return self.split.classes

    @property
    def shape(self) -> Shape:
        """Channels (1 gray, 3 RGB), height and width in pixels, number of classes."""
        _, channels, height, width = self.split.train.pixels.shape
        return Shape(channels, image_size(height, width), len(self.classes))

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over the training part, pixels in [0, 1].

        Raises:
            UserError: `normalization` names others that are not one number for each channel.
        """
        return self._statistics_of(self.split.train)

    def _statistics_of(self, images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
        said = self.normalization
        if said is None:
            return _statistics(images)
        channels = images.pixels.shape[1]
        fits = sorted(said) == ["mean", "std"] and {len(x) for x in said.values()} == {channels}
        if not fits or min(said["std"]) <= 0:
            raise UserError(
                f"data.normalization: found {said}; accepted are null or {{mean: [...], "
                f"std: [...]}} with a number for each of {channels} channels, std above 0"
            )
        return tuple(said["mean"]), tuple(said["std"])

    @property
    def loss_weights(self) -> tuple[float, ...] | None:
        """Weight of each class in the training cross-entropy; None if all are equal."""
        if self.class_weights is None:
            return None
        return tuple((1 / (len(self.classes) * self._class_shares)).tolist())

    @property
    def logit_offsets(self) -> tuple[float, ...] | None:
        """Offset of each class's logit in the training cross-entropy; None without offsets."""
        if self.logit_adjustment is None:
            return None
        return tuple((self.logit_adjustment * self._class_shares.log()).tolist())

    @property
    def _class_shares(self) -> Tensor:
        return class_shares(self.split.train.labels, len(self.classes))

    def for_stage(self, sees: Sees) -> "DataModule":
        """Return this data as a stage sees it: with its labels, and with unlabelled images.

        Positions are equal for all stages that see the same images, so they share views and teacher
        outputs.
        """
        if sees == "all":
            return self._for_teacher
        transfer = self._transfer
        return transfer if sees == "transfer" else transfer._labelled_part

    @property
    def teacher_reads(self) -> dict[str, Any] | None:
        """How the teacher reads images, for `kd.data.rendering.as_read`; None: as the student."""
        return reads_of_teacher(self.teacher_reading, self.reading, self.shape)

    @cached_property
    def teacher_shape(self) -> Shape:
        """Shape of the teacher's nets."""
        reads = self.teacher_reads
        return self.shape if reads is None else self.shape._replace(image_size=reads["image_size"])

    @property
    def teacher_source(self) -> "DataModule":
        """The images that the teacher trains on, at the student's size."""
        return self if self.teacher_data is None else self._of_teacher

    @cached_property
    def _of_teacher(self) -> "DataModule":
        """The other source that the teacher trains on, with the labels of this data.

        Raises:
            UserError: it has other classes, or shows the teacher only some labels.
        """
        assert self.teacher_data is not None
        where = "teacher.data"
        test = self.split.test
        with knobs_of(where):
            other = sized_source(DataModule, self.teacher_data, where, self.shape)
            check_sees_all(other, where)
            found = other.split
        other.split = with_labels_of(found, self.classes, self.shape, test, self._drops_test_images)
        for text in other.notes:
            self.note(f"{where}: {text}")
        return other

    def _drops_test_images(self, found: str) -> bool:
        """Whether the teacher's training images that are in test too are left out."""
        if self.on_duplicate == "stop":
            raise UserError(
                f"data.on_duplicate: found {found}. Set it to warn, or to drop, which leaves "
                "them out"
            )
        drop: bool = self.on_duplicate == "drop"
        self.note(f"{found}; {'dropped' if drop else 'data.on_duplicate=drop leaves them out'}")
        return drop

    @cached_property
    def _for_teacher(self) -> "DataModule":
        """The images that the teacher trains on, at its own size."""
        source = self.teacher_source
        reads = self.teacher_reads
        if reads is None:
            return source
        found = source.with_split(split_as_read(source.split, reads))
        found.statistics = source.statistics  # they hardly depend on the size
        found.reading = Reading(**{k: v for k, v in reads.items() if k != "image_size"})
        found._for_teacher = found
        return found

    @cached_property
    def _transfer(self) -> "DataModule":
        """Return the transfer set: the training part with the kept labels, then the unlabelled
        pool.
        """
        asked = (self.labels, self.labels_seed, self.omit, self.val_labels)
        parts = self.split  # before the names, which are read with it
        names = ImageNames(self.source_names, self.root, self.note)
        split, seen = transfer_split(parts, names, *asked)
        if split is self.split:
            return self
        found = self._with(split.train, split.val)
        if len(seen) < len(self.split.train):
            found.shown = (split.train.labels != OMITTED).nonzero()[:, 0]
            found.statistics = self._statistics_of(self.split.train.at(seen))
        return found

    @cached_property
    def _labelled_part(self) -> "DataModule":
        """Return the labelled training images, repeated up to the number of all images.

        A net that learns from labels only then takes as many steps per epoch as one that uses all
        images.
        """
        train = self.split.train
        chosen = train.has_label.nonzero()[:, 0]
        if len(chosen) == len(train):
            return self
        found = self._with(train, self.split.val)
        found.shown = chosen
        found.length = len(self.training_images)
        return found

    def with_split(self, split: Split) -> "DataModule":
        """Copy this data with other parts; nothing that was computed of the old ones is kept."""
        found = copy.copy(self)
        for name in vars(self):
            if isinstance(getattr(type(self), name, None), cached_property):
                del found.__dict__[name]
        found.split = split
        return found

    def with_augment(self, augment: Augment) -> "DataModule":
        """Copy this data with other views."""
        found = copy.copy(self)
        found.augment = augment
        return found

    def _with(self, train: Images, val: Images) -> "DataModule":
        """Copy this data with other training and validation parts."""
        found = copy.copy(self)
        for name in ("_transfer", "_labelled_part"):
            found.__dict__.pop(name, None)
        found.statistics = self.statistics  # the unlabelled pool does not change them
        found.split = replace(self.split, train=train, val=val)
        return found

    @property
    def training_images(self) -> Images:
        """Training images in use: the training part without images that are not shown."""
        return self.split.train if self.shown is None else self.split.train.at(self.shown)

    @property
    def mixing_pool(self) -> Images | None:
        """Source of the second image of a mixed view; None if views do not mix."""
        return self.training_images if self.augment.mixes else None

    def key(self) -> dict[str, object]:
        """Return everything in the data that a training depends on: not the folder, not the test
        part.
        """
        mean, std = self.statistics
        return {
            "train": self.split.train.fingerprint,
            "val": self.split.val.fingerprint,
            "mean": list(mean),
            "std": list(std),
            "augment": self.augment.model_dump(mode="json"),
            **self._crops_key(self.split.train),
            "views": self.views,
            "class_weights": self.class_weights,
            "shown": None if self.shown is None else _digest(self.shown),
            "length": self.length,
            # Left out where unused: keys of other results stay as they were
            **{name: used for name in BALANCE if (used := getattr(self, name)) is not None},
        }

    def _crops_key(self, images: Images) -> dict[str, object]:
        """Return what random crops of the originals depend on, where there are any."""
        if not self.augment.resized_crop:
            return {}
        return {"originals": images.source_fingerprint, "reading": asdict(self.reading)}

    def view_key(self) -> dict[str, object]:
        """Return everything that views depend on except the seed; labels are not included."""
        mixed = self.mixing_pool
        return {
            "images": self.split.train.pixel_fingerprint,
            **self._crops_key(self.split.train),
            "augment": self.augment.model_dump(mode="json"),
            "mixed_with": mixed.pixel_fingerprint if mixed else None,
        }

    def train_loader(
        self,
        batch_size: int,
        seed: int,
        ranks: int = 1,
        where: str = "batch_size",
        drop_last: bool = True,
    ) -> DataLoader[Batch]:
        """Return batches of consecutive epochs, each in its own order that depends on `seed` only.

        Args:
            batch_size: images per batch, over all ranks.
            ranks: processes that train together; each image is on one of them.
            where: config key of the batch size, for messages.
            drop_last: whether images that fill no batch are left out of an epoch.

        Raises:
            UserError: not one full batch can be made, or the ranks' shares differ.
        """
        images = self.split.train
        if batch_size % ranks:
            raise UserError(
                f"{where}: found {batch_size}, of which {ranks} devices have no equal shares; "
                f"accepted are multiples of {ranks}, or {where}_per_device=N"
            )
        order = EpochOrder(
            len(images),
            batch_size // ranks,
            seed,
            ranks,
            chosen=None if self.shown is None else self.shown.tolist(),
            length=self.length,
            drop_last=drop_last,
            stride=0 if self.views else len(images),  # an image has no more than V views
            labels=None if self.sampler is None else images.labels.tolist(),
        )
        if not len(order):
            raise UserError(
                f"{where}: {batch_size} leaves no batch of the {order.length} training images of "
                f"{self.name}; accepted are {ranks} to {order.length}"
            )
        dataset = GatherViews(images, seed, self.augment)
        return self._loader(dataset, InViews(order, self.views))

    def selects(self, sees: Sees) -> bool:
        """Whether validation labels select the weights of a stage that sees these images."""
        return bool(self.split.val) and (sees == "all" or self.val_labels != 0)

    @property
    def images_an_epoch(self) -> int:
        """Return the number of training images per epoch."""
        shown = self.split.train if self.shown is None else self.shown
        return len(shown) if self.length is None else self.length

    @property
    def evaluation_batch(self) -> int:
        """Batch size outside training; see `kd.data.images.Pixels.batch`."""
        return self.split.train.pixels.batch

    def val_loader(self, batch_size: int | None = None, ranks: int = 1) -> DataLoader[Batch]:
        """Return the validation part once, in order; each image on exactly one rank.

        Args:
            batch_size: images per batch on each rank; None for `evaluation_batch`.
            ranks: processes that validate together.
        """
        val = self.split.val
        return self._loader(
            Gather(val), InOrder(len(val), batch_size or self.evaluation_batch, ranks)
        )

    def _loader(self, batches: Dataset[Batch], order: Sampler[Any]) -> DataLoader[Batch]:
        # The sampler yields whole batches of positions: one gather instead of B items and a
        # collate.
        return Loader(
            batches,
            batch_size=None,
            sampler=order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),
        )


def _folder(root: str) -> Path:
    if not root:
        raise UserError("data.root: found '', accepted is a folder; `.` is the current one")
    return Path(root).expanduser()


def _check_fractions(val: float, test: float) -> None:
    """Refuse shares of the images that cannot be held out."""
    if not 0 <= val < 1:
        raise UserError(
            f"data.val_fraction: found {val}, accepted is a number from 0 (no validation part) to "
            "below 1"
        )
    if not 0 < test < 1:
        raise UserError(f"data.test_fraction: found {test}, accepted is a number between 0 and 1")


def one_of(name: str, found: T, accepted: Sequence[T]) -> T:
    """Return the value of `data.<name>` if it is accepted.

    Raises:
        UserError: it is not.
    """
    if found not in accepted:
        words = ["null" if each is None else str(each) for each in accepted]
        raise UserError(
            f"data.{name}: found {found!r}, accepted are "
            f"{', '.join(words)}{nearest(str(found), words)}"
        )
    return found


def _statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    means, deviations = images.moments()
    return tuple(round(m, 6) for m in means), tuple(round(max(s, 1e-3), 6) for s in deviations)


def _digest(positions: Tensor) -> str:
    return hashlib.sha256(positions.contiguous().numpy().tobytes()).hexdigest()
