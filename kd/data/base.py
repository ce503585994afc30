"""The one DataModule: a source is read into uint8 arrays, split once, and served as batches of indices."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import torch
from pydantic import Field, NonNegativeInt, ValidationError
from torch.utils.data import DataLoader, Sampler

from kd.data.batches import Batch, EpochOrder, Gather, InOrder, Loader
from kd.data.cache import Cache, Mode
from kd.data.folder import find_images, plain
from kd.data.images import Images, Pixels, Source, Split
from kd.data.parts import assert_apart, check_counts, hold_out, stratified
from kd.data.views import Augment
from kd.errors import UserError, nearest
from kd.shape import Shape

__all__ = [
    "Batch",
    "DataModule",
    "Images",
    "Source",
    "Split",
]  # what a source, or whoever uses one, needs

OnBad = Literal["stop", "skip"]
Weights = Literal["balanced"]
T = TypeVar("T")


class DataModule(ABC):
    """A data set, split into train, validation and test, stratified by class and seeded.

    A subclass says how its files are read, in `read`. Everything else is here.

    Args:
        root: folder to look in.
        val_fraction: share of the training images held out for model selection, in (0, 1), where the source has no
            validation part of its own; of the groups, where images come in groups.
        test_fraction: the same for the final test.
        split_seed: seed of the split and of `limit`; not the training seed, so that runs of several seeds select on
            the same images and may share a teacher.
        limit: take this many training images (stratified); validation and test stay whole. None takes all.
        augment: what may happen to a training image; keywords of `kd.data.views.Augment`.
        views: None for a new view of each image in each epoch, V to cycle through V views.
        class_weights: `balanced` weighs an image's cross-entropy in training by N / (classes * images of its class);
            None weighs all alike.
        unlabeled: folder of images without labels that join training with the teacher's signal alone.
        on_bad_image: `stop` refuses a folder with files that cannot be decoded, naming them; `skip` goes on without
            them and lists them in the report.
        license: of the images, as the user states it, for the model card; no result depends on it.
        cache: where decoded files are kept: see `kd.data.cache.Cache`.
        cache_dir: folder for that; None decodes anew each time.
        num_workers: loader processes. The images are in memory, so 0 is best unless the machine says otherwise.
    """

    def __init__(
        self,
        root: str = "data",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
        limit: int | None = None,
        augment: Mapping[str, Any] | None = None,
        views: int | None = None,
        class_weights: Weights | None = None,
        unlabeled: str | None = None,
        on_bad_image: OnBad = "stop",
        license: str | None = None,
        cache: Mode | None = None,
        cache_dir: str | None = None,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 < fraction < 1:
                raise UserError(
                    f"data.{name}: found {fraction}, accepted is a number between 0 and 1"
                )
        for name, count in (("limit", limit), ("views", views)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise UserError(
                    f"data.{name}: found {count!r}, accepted is null or a whole number from 1"
                )
        self.class_weights = one_of("class_weights", class_weights, (None, *get_args(Weights)))
        self.on_bad_image = one_of("on_bad_image", on_bad_image, get_args(OnBad))
        if cache == "disk" and cache_dir is None:
            raise UserError(
                "data.cache: disk needs data.cache_dir, the folder to keep decoded images in"
            )
        self.cache = Cache(
            Path(cache_dir).expanduser() if cache_dir else None,
            one_of("cache", cache, (None, *get_args(Mode))),
        )
        self.augment = make_augment(augment or {})
        self.root = Path(root).expanduser()
        self.unlabeled = Path(unlabeled).expanduser() if unlabeled else None
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.split_seed, self.limit = split_seed, limit
        self.views, self.num_workers, self.license = views, num_workers, license
        self.skipped: list[
            dict[str, str]
        ] = []  # files that could not be decoded, with their reasons

    @property
    def name(self) -> str:
        """The source's name, as in `data=NAME`: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def read(self) -> Source:
        """Read the source's files.

        Raises:
            UserError: they are not there, or not what they should be; says where it looked and how to get them.
        """

    def decode(
        self, files: Sequence[Path], size: int, channels: int, where: str
    ) -> tuple[Pixels, list[int]]:
        """Image files as pixels [N, channels, size, size], and the positions of the files that they are of.

        Args:
            where: the config's key for the folder, for messages.

        Raises:
            UserError: some cannot be decoded and `on_bad_image` is `stop`; lists them all.
        """
        decoded = self.cache.decoded(files, size, channels)
        bad = [
            {"file": plain(str(files[i])), "reason": reason} for i, reason in decoded.bad.items()
        ]
        if bad and self.on_bad_image == "stop":
            lines = [f"  {each['file']}: {each['reason']}" for each in bad]
            raise UserError(
                "\n".join(
                    [
                        f"{where}: {len(bad)} of {len(files)} image files cannot be decoded:",
                        *lines,
                        "Mend or remove them, or set data.on_bad_image=skip to go on without them.",
                    ]
                )
            )
        self.skipped += bad
        good = [i for i in range(len(files)) if i not in decoded.bad]
        return Pixels.whole(decoded.store).at(torch.tensor(good, dtype=torch.int64)), good

    @cached_property
    def split(self) -> Split:
        """Train, validation and test. The official test set is the test part; nothing else ever goes into it."""
        source = self.read()
        rest, val, test = source.train, source.val, source.test
        check_counts(
            rest,
            [name for name, part in (("validation", val), ("test", test)) if part is None],
            source.classes,
        )
        if test is None:
            least = 1 if val else 2  # of each class must stay, as validation is still to come
            rest, test = hold_out(
                rest, self.test_fraction, "test", source.classes, self.split_seed, least
            )
        if val is None:
            rest, val = hold_out(
                rest, self.val_fraction, "validation", source.classes, self.split_seed
            )
        assert_apart({"train": rest, "validation": val, "test": test})
        if self.limit is not None and self.limit < len(rest):
            _, kept = stratified(rest.labels, self.limit, "limited training", self.split_seed)
            rest = rest.at(kept)
        return Split(rest, val, test, source.classes, self._pool(rest))

    def _pool(self, train: Images) -> Images | None:
        """The images without labels, of the training images' shape."""
        if self.unlabeled is None:
            return None
        files = find_images(self.unlabeled) if self.unlabeled.is_dir() else []
        if not files:
            raise UserError(f"data.unlabeled: no image in {self.unlabeled.absolute()}")
        _, channels, size, _ = train.pixels.shape
        pixels, good = self.decode(files, size, channels, "data.unlabeled")
        return Images(pixels, torch.full((len(good),), -1))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of their labels."""
        return self.split.classes

    @property
    def shape(self) -> Shape:
        """Channels (1 gray, 3 RGB), height and width in pixels, number of classes."""
        _, channels, size, _ = self.split.train.pixels.shape
        return Shape(channels, size, len(self.classes))

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over the labelled training part, pixels in [0, 1]."""
        means, deviations = self.split.train.moments()
        return tuple(round(m, 6) for m in means), tuple(round(max(s, 1e-3), 6) for s in deviations)

    @property
    def loss_weights(self) -> tuple[float, ...] | None:
        """What each class's cross-entropy is weighed by in training; None where all weigh the same."""
        if self.class_weights is None:
            return None
        counts = torch.bincount(self.split.train.labels, minlength=len(self.classes)).clamp(min=1)
        return tuple((len(self.split.train) / (len(counts) * counts.double())).tolist())

    def training(self, unlabeled: bool = False) -> Images:
        """The images to train on: the training part, and with `unlabeled` the pool after it, with labels -1."""
        pool = self.split.unlabeled if unlabeled else None
        return self.split.train.joined(pool) if pool else self.split.train

    def key(self, unlabeled: bool = False) -> dict[str, Any]:
        """All that a training result depends on in the data, and nothing else: not the folder, not the test part.

        Args:
            unlabeled: whether the training takes the pool of images without labels in.
        """
        mean, std = self.statistics
        pool = self.split.unlabeled if unlabeled else None
        return {
            "train": self.split.train.fingerprint,
            "val": self.split.val.fingerprint,
            "mean": list(mean),
            "std": list(std),
            "augment": self.augment.model_dump(mode="json"),
            "views": self.views,
            "class_weights": self.class_weights,
            "unlabeled": pool.fingerprint if pool else None,
        }

    def train_loader(
        self,
        batch_size: int,
        seed: int,
        ranks: int = 1,
        unlabeled: bool = False,
        where: str = "batch_size",
    ) -> DataLoader[Batch]:
        """Batches of one epoch after another, each epoch in an order of its own that depends on `seed` alone.

        Args:
            batch_size: images per batch on each rank.
            ranks: processes that train together; each image is on one of them.
            unlabeled: whether the pool of images without labels joins in.
            where: the config's key for the batch size, for messages.

        Raises:
            UserError: where not one full batch can be made.
        """
        images = self.training(unlabeled)
        order = EpochOrder(len(images), batch_size, seed, ranks)
        if not len(order):
            raise UserError(
                f"{where}: {batch_size} on {ranks} device(s) leaves no batch of the {len(images)} "
                f"training images of {self.name}; accepted are 1 to {len(images) // ranks}"
            )
        return self._loader(images, order)

    @property
    def evaluation_batch(self) -> int:
        """Images that a net is shown at once where it does not train; see `kd.data.images.Pixels.batch`."""
        return self.split.train.pixels.batch

    def val_loader(self, batch_size: int | None = None, ranks: int = 1) -> DataLoader[Batch]:
        """The validation part once, in order; each image on exactly one rank.

        Args:
            batch_size: images per batch on each rank; None for `evaluation_batch`.
            ranks: processes that validate together.
        """
        val = self.split.val
        return self._loader(val, InOrder(len(val), batch_size or self.evaluation_batch, ranks))

    def _loader(self, images: Images, batches: Sampler[list[int]]) -> DataLoader[Batch]:
        # The sampler yields whole batches of positions, so a batch is one gather instead of B items and a collate.
        return Loader(
            Gather(images),
            batch_size=None,
            sampler=batches,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),
        )


def one_of(name: str, found: T, accepted: Sequence[T]) -> T:
    """The value of `data.<name>` if it is among the accepted ones.

    Raises:
        UserError: it is not.
    """
    if found not in accepted:
        words = ["null" if each is None else str(each) for each in accepted]
        raise UserError(
            f"data.{name}: found {found!r}, accepted are {', '.join(words)}{nearest(str(found), words)}"
        )
    return found


def make_augment(keywords: Mapping[str, Any]) -> Augment:
    """The augmentation that `data.augment` asks for.

    Raises:
        UserError: for a key that it does not have, or a value out of range.
    """
    try:
        return Augment(**keywords)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"data.augment.{'.'.join(map(str, first['loc'][:1]))}: {first['msg']}; found {first['input']!r}, "
            f"accepted keys are {', '.join(Augment.model_fields)}{nearest(str(first['loc'][0]), Augment.model_fields)}"
        ) from None
