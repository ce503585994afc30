"""Views as a pure function of (seed, view, index)."""

import copy
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from composed import CONF, composed
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.stats import beta, chisquare, kstest
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

from kd.data.digits import Digits
from kd.data.draws import Draw, uniform
from kd.data.images import Images
from kd.data.trivial import OPERATIONS, trivial_augment
from kd.data.views import (
    Augment,
    make_augment,
    make_views,
    mixed_target,
    normalize,
    partners,
    to_unit,
    views_of,
)
from kd.errors import UserError
from kd.reports.view_grid import view_grid

SIZE, CLASSES, COUNT = 12, 4, 40
STRONG = Augment(
    crop_padding=0.125,
    horizontal_flip=True,
    rotation=15,
    resized_crop=0.5,
    brightness=0.3,
    contrast=0.3,
    erase=0.5,
    mixup=0.4,
    cutmix=1.0,
)
ONE_BY_ONE = {
    "crop": Augment(crop_padding=2),
    "reflect": Augment(crop_padding=2, pad_with="reflect"),
    "flip": Augment(horizontal_flip=True),
    "alternating": Augment(horizontal_flip="alternating"),
    "rotation": Augment(rotation=20),
    "resized_crop": Augment(resized_crop=0.3),
    "vertical_flip": Augment(vertical_flip=True),
    "trivial": Augment(trivial=True),
    "saturation": Augment(saturation=0.9),
    "hue": Augment(hue=0.2),
    "blur": Augment(blur=2.0),
    "brightness": Augment(brightness=0.4),
    "contrast": Augment(contrast=0.4),
    "erase": Augment(erase=1.0),
    "mixup": Augment(mixup=1.0),
    "cutmix": Augment(cutmix=1.0),
    "strong": STRONG,
}


def random_images(channels: int = 3, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(
        0, 256, (COUNT, channels, SIZE, SIZE), generator=generator, dtype=torch.uint8
    )
    return Images(pixels, torch.arange(COUNT) % CLASSES)


POOL = random_images()


def views(
    index: list[int], seed: int = 3, view: int = 0, augment: Augment = STRONG
) -> torch.Tensor:
    where = torch.tensor(index)
    return views_of(POOL, where, seed=seed, view=view, augment=augment, pool=POOL)


@pytest.mark.parametrize("augment", ONE_BY_ONE.values(), ids=ONE_BY_ONE.keys())
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_a_view_is_the_same_in_any_batch_and_any_place(
    augment: Augment, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 2**63 - 1))
    view = data.draw(st.integers(0, 1000))
    batch = data.draw(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=COUNT))
    found = views(batch, seed, view, augment)
    place = data.draw(st.integers(0, len(batch) - 1))
    assert torch.equal(found[place], views([batch[place]], seed, view, augment)[0])
    assert found.dtype == torch.float32
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("augment", ONE_BY_ONE.values(), ids=ONE_BY_ONE.keys())
def test_other_views_seeds_and_images_differ(augment: Augment) -> None:
    every = list(range(COUNT))
    one = views(every, 3, 0, augment)
    for other in (
        views(every, 3, 1, augment),
        views(every, 4, 0, augment),
        views(every, 3 + 2**32, 0, augment),
    ):
        changed = (one != other).flatten(1).any(1)
        assert changed.float().mean() > 0.3  # a flip changes half of them
    assert not torch.equal(one, to_unit(POOL.pixels[:]))


def test_no_augmentation_is_the_image_itself() -> None:
    assert torch.equal(views([5, 2], augment=Augment()), to_unit(POOL.pixels[torch.tensor([5, 2])]))


@pytest.mark.parametrize("channels", [1, 3])
def test_normalizing_is_the_same_in_either_layout(channels: int) -> None:
    x = torch.rand(4, channels, 5, 6)
    mean, std = (0.5, 0.4, 0.3)[:channels], (0.2, 0.25, 0.3)[:channels]
    found = [
        normalize(x.to(memory_format=layout), mean, std)
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    assert torch.equal(found[0], found[1])
    assert found[1].is_contiguous(memory_format=torch.channels_last)
    for i in range(channels):
        assert torch.equal(found[0][:, i], (x[:, i] - torch.tensor(mean[i])) / torch.tensor(std[i]))


def test_threads_do_not_change_a_view() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = views(list(range(COUNT)))
        torch.set_num_threads(2)
        assert torch.equal(one, views(list(range(COUNT))))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("draw", list(Draw))
def test_draws_are_uniform_over_images_and_over_views(draw: Draw) -> None:
    over_images = uniform(0, 7, torch.arange(20_000), draw)
    over_views = torch.cat([uniform(0, view, torch.tensor([11]), draw) for view in range(500)])
    over_seeds = torch.cat([uniform(seed, 0, torch.tensor([11]), draw) for seed in range(500)])
    for numbers in (over_images, over_views, over_seeds):
        assert kstest(numbers.numpy(), "uniform").pvalue > 1e-4


def test_draws_for_different_purposes_are_independent() -> None:
    numbers = np.stack([uniform(0, 0, torch.arange(20_000), draw).numpy() for draw in Draw])
    correlation = np.corrcoef(numbers) - np.eye(len(numbers))
    assert np.abs(correlation).max() < 5 / 20_000**0.5
    for other in (uniform(0, 1, torch.arange(20_000), 0), uniform(1, 0, torch.arange(20_000), 0)):
        assert abs(np.corrcoef(numbers[0], other.numpy())[0, 1]) < 5 / 20_000**0.5


def marked(count: int) -> Images:
    """Black images with one white pixel in the middle."""
    pixels = torch.zeros(count, 1, 9, 9, dtype=torch.uint8)
    pixels[:, :, 4, 4] = 255
    return Images(pixels, torch.zeros(count, dtype=torch.int64))


def test_crops_fall_on_each_place_alike() -> None:
    images, index = marked(5000), torch.arange(5000)
    x = make_views(images.pixels[:], index, seed=0, view=0, augment=Augment(crop_padding=2))
    places = x[:, 0].sum(0)[2:7, 2:7]
    assert places.sum() == 5000
    assert chisquare(places.flatten().numpy()).pvalue > 1e-3


def test_a_share_as_crop_padding_is_of_the_side() -> None:
    where = torch.arange(COUNT)
    by_pixels, by_share = (
        make_views(POOL.pixels[:], where, seed=0, view=0, augment=Augment(crop_padding=pad))
        for pad in (3, 0.25)
    )
    assert torch.equal(by_pixels, by_share)


def test_half_are_flipped() -> None:
    pixels = torch.zeros(4000, 1, 2, 2, dtype=torch.uint8)
    pixels[:, :, :, 0] = 255
    x = make_views(
        pixels, torch.arange(4000), seed=0, view=0, augment=Augment(horizontal_flip=True)
    )
    flipped = int((x[:, 0, 0, 1] == 1).sum())
    assert abs(flipped - 2000) < 4 * 1000**0.5


@pytest.mark.parametrize("padding", [0, 2])
def test_an_alternating_flip_shows_the_other_side_in_the_next_view(padding: int) -> None:
    pixels = torch.zeros(4000, 1, 10, 10, dtype=torch.uint8)
    pixels[:, :, 5, 4], pixels[:, :, 5, 5] = 255, 100  # a bright pixel left of a dim one
    augment = Augment(horizontal_flip="alternating", crop_padding=padding)

    def turned(view: int) -> torch.Tensor:
        x = make_views(pixels, torch.arange(4000), seed=5, view=view, augment=augment)[:, 0].sum(1)
        return (x == 1).long().argmax(1) > ((x > 0) & (x < 1)).long().argmax(1)

    first = turned(0)
    assert abs(int(first.sum()) - 2000) < 4 * 1000**0.5
    for view in range(1, 4):
        assert torch.equal(turned(view), first ^ (view % 2 == 1))


EVERY = torch.arange(COUNT)
Draws = Callable[[Draw], torch.Tensor]


def draws(seed: int, view: int) -> Draws:
    return lambda purpose: uniform(seed, view, EVERY, purpose).double()


def one_by_one(
    augment: Augment, change: Callable[[torch.Tensor, int, Draws], torch.Tensor], images: Images
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of all images, and torchvision's one by one, which `change` makes for the same
    draws.
    """
    found = make_views(images.pixels[:], EVERY, seed=8, view=4, augment=augment)
    draw = draws(8, 4)
    wanted = [change(to_unit(images.pixels[i : i + 1])[0], i, draw) for i in range(COUNT)]
    return found, torch.stack(wanted)


def flipped(x: torch.Tensor, i: int, draw: Draws) -> torch.Tensor:
    return F.vflip(x) if draw(Draw.VERTICAL_FLIP)[i] < 0.5 else x


def saturated(x: torch.Tensor, i: int, draw: Draws) -> torch.Tensor:
    return F.adjust_saturation(x, 1 + 0.7 * (2 * float(draw(Draw.SATURATION)[i]) - 1))


def turned_hue(x: torch.Tensor, i: int, draw: Draws) -> torch.Tensor:
    return F.adjust_hue(x, 0.4 * (2 * float(draw(Draw.HUE)[i]) - 1))


def blurred(x: torch.Tensor, i: int, draw: Draws) -> torch.Tensor:
    return F.gaussian_blur(x, [11, 11], [max(0.05, 1.5 * float(draw(Draw.BLUR)[i]))])


def erased(x: torch.Tensor, i: int, draw: Draws) -> torch.Tensor:
    if draw(Draw.ERASE)[i] >= 0.8:
        return x
    area, aspect = (
        0.02 + 0.18 * float(draw(Draw.ERASE_AREA)[i]),
        3 ** (float(draw(Draw.ERASE_RATIO)[i]) - 0.5),
    )
    high, wide = (round(area**0.5 * share * SIZE) for share in (aspect, 1 / aspect))
    top, left = (
        int(float(draw(which)[i]) * (SIZE - side + 1))
        for which, side in ((Draw.ERASE_TOP, high), (Draw.ERASE_LEFT, wide))
    )
    return F.erase(x, top, left, high, wide, x.mean())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("augment", "change"),
    [
        (Augment(vertical_flip=True), flipped),
        (Augment(saturation=0.7), saturated),
        (Augment(hue=0.4), turned_hue),
        (Augment(blur=1.5), blurred),
        (Augment(erase=0.8), erased),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_view_is_what_torchvision_makes_of_the_same_draw(
    augment: Augment, change: Callable[[torch.Tensor, int, Draws], torch.Tensor], channels: int
) -> None:
    images = random_images(channels)
    found, wanted = one_by_one(augment, change, images)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
    plain = channels == 1 and (augment.hue or augment.saturation)  # gray stays gray
    assert torch.equal(found, to_unit(images.pixels[:])) == bool(plain)


def test_hues_of_gray_pixels_and_of_ties_stay() -> None:
    pixels = torch.tensor([[9, 9, 9], [0, 0, 0], [255] * 3, [200, 200, 3], [3, 200, 200]])
    images = Images(pixels.to(torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4), torch.zeros(5))
    index = torch.arange(5)
    found = make_views(images.pixels[:], index, seed=0, view=0, augment=Augment(hue=0.5))
    turn = 0.5 * (2 * uniform(0, 0, index, Draw.HUE).double() - 1)
    wanted = [F.adjust_hue(to_unit(images.pixels[i : i + 1])[0], float(turn[i])) for i in index]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=2e-6)
    assert torch.equal(found[:3], to_unit(images.pixels[:3]))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_each_trivial_operation_is_torchvisions_at_each_strength(channels: int) -> None:
    generator = torch.Generator().manual_seed(1)
    dark = torch.randint(20, 160, (1, channels, 33, 33), generator=generator, dtype=torch.uint8)
    smooth = F.gaussian_blur(dark, [7, 7])
    flat = torch.full_like(dark, 77)
    space = TrivialAugmentWide()._augmentation_space(31)
    assert list(space) == list(OPERATIONS)
    for number, (name, (strengths, signed)) in enumerate(space.items()):
        for step in range(0, 31, 5):
            for sign in (0.2, 0.7):
                size = float(strengths[step]) if strengths.ndim else 0.0
                size = round(size, 5)  # there 16 pixels are 15.999999, of which `int` makes 15
                size = -size if signed and sign < 0.5 else size
                for image in (dark, smooth, flat):
                    numbers = ((number + 0.5) / 14, (step + 0.5) / 31, sign)
                    found = trivial_augment(
                        image, *(torch.tensor([u], dtype=torch.float64) for u in numbers)
                    )
                    wanted = _apply_op(image, name, size, InterpolationMode.NEAREST, None)
                    off = (found.int() - wanted.int()).abs()
                    # Sums and angles in another precision: one level here, at a tie the next pixel
                    # there.
                    few = 0.01 if name in ("Rotate", "ShearX", "ShearY") else 0
                    assert (off > 1).float().mean() <= few, (name, size)
                    assert (off > 0).float().mean() < 0.02, (name, size)


def test_operations_and_strengths_come_alike_often() -> None:
    pixels = torch.randint(0, 256, (1, 1, 6, 6), dtype=torch.uint8).expand(3000, -1, -1, -1)
    seen: dict[str, Counter[float]] = {name: Counter() for name in OPERATIONS}

    def note(name: str, x: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        seen[name].update(round(each, 4) for each in size.tolist())
        return x

    noted = {name: each._replace(apply=partial(note, name)) for name, each in OPERATIONS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd.data.trivial.OPERATIONS", noted)
        make_views(pixels, torch.arange(3000), seed=1, view=2, augment=Augment(trivial=True))
    counts = [each.total() for each in seen.values()]
    assert sum(counts) == 3000
    assert chisquare(counts).pvalue > 1e-3
    turns = seen["Rotate"]
    assert set(turns) <= {round(sign * 4.5 * step, 4) for step in range(31) for sign in (1, -1)}
    assert min(turns) < -90
    assert max(turns) > 90


def test_a_turn_goes_as_far_as_asked_and_no_further() -> None:
    pixels = torch.zeros(500, 1, 33, 33, dtype=torch.uint8)
    pixels[:, :, 16, 28:31] = 255  # a mark to the right of the middle
    x = make_views(pixels, torch.arange(500), seed=0, view=0, augment=Augment(rotation=30))[
        :, 0
    ].double()
    steps = torch.arange(33).double() - 16
    row, column = (
        (x * steps[:, None]).sum((1, 2)) / x.sum((1, 2)),
        (x * steps).sum((1, 2)) / x.sum((1, 2)),
    )
    angles = torch.rad2deg(torch.atan2(row, column))
    assert angles.abs().max() < 31
    assert kstest(((angles + 30) / 60).numpy(), "uniform").pvalue > 1e-3


def test_erased_share_and_area() -> None:
    pixels = torch.zeros(2000, 1, 32, 32, dtype=torch.uint8)
    pixels[:, :, ::2] = 200
    x = make_views(pixels, torch.arange(2000), seed=0, view=0, augment=Augment(erase=0.5))
    area = (x != to_unit(pixels)).float().mean((1, 2, 3))
    assert abs(float((area > 0).float().mean()) - 0.5) < 4 * 0.5 / 2000**0.5
    assert 0.01 < area[area > 0].min() < area.max() < 0.22
    assert torch.allclose(x[x != to_unit(pixels)], torch.tensor(100 / 255))  # the picture's mean


def test_brightness_and_contrast_are_what_they_say() -> None:
    pixels = torch.full((3000, 1, 4, 4), 127, dtype=torch.uint8)
    pixels[:, :, 0], pixels[:, :, 1] = 107, 147
    x = make_views(
        pixels, torch.arange(3000), seed=0, view=0, augment=Augment(brightness=0.2, contrast=0.5)
    ).double()
    shift, stretch = x.mean((1, 2, 3)) - 127 / 255, (x[:, 0, 1, 0] - x[:, 0, 0, 0]) / (40 / 255)
    assert kstest(((shift + 0.2) / 0.4).numpy(), "uniform").pvalue > 1e-3
    assert kstest((stretch - 0.5).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    "augment", [Augment(mixup=0.4), Augment(cutmix=1.0), Augment(mixup=0.4, cutmix=1.0)]
)
def test_labels_are_mixed_as_the_pictures_are(augment: Augment) -> None:
    """Images of one gray level per class: a view's mean shows each class's share."""
    labels = torch.arange(400) % 2
    pool = Images(
        (labels * 255).to(torch.uint8)[:, None, None, None].expand(400, 1, 16, 16).contiguous(),
        labels,
    )
    index = torch.arange(400)
    how = {"seed": 5, "view": 2, "augment": augment, "pool": pool}
    x = make_views(pool.pixels[index], index, **how)
    target = mixed_target(labels, index, 2, 16, **how)
    assert torch.allclose(x.mean((1, 2, 3)), target[:, 1], atol=1e-5)
    assert torch.allclose(target.sum(1), torch.ones(400))
    assert (target.max(1).values < 0.95).any()


def test_cutmix_takes_a_rectangle_from_the_other_picture() -> None:
    pool = Images(
        torch.arange(200, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 16, 16),
        torch.zeros(200).long(),
    )
    index = torch.arange(200)
    x = make_views(
        pool.pixels[index], index, seed=0, view=0, augment=Augment(cutmix=1.0), pool=pool
    )[:, 0]
    other = partners(index, 0, 0, 200)
    taken = x != (index / 255)[:, None, None]
    assert torch.equal(x[taken], (other / 255)[:, None, None].expand_as(x)[taken])
    rows, columns = taken.any(2), taken.any(1)
    assert torch.equal(taken, rows[:, :, None] & columns[:, None, :])
    for side in (rows, columns):
        assert (side.int().diff(dim=1) == 1).sum(1).max() <= 1  # in one piece


def test_mixup_ratios_are_of_the_beta_distribution() -> None:
    labels = torch.zeros(4000, dtype=torch.int64)
    labels[2000:] = 1
    pool = Images(torch.zeros(4000, 1, 2, 2, dtype=torch.uint8), labels)
    index = torch.arange(4000)
    target = mixed_target(
        labels, index, 2, 2, seed=0, view=0, augment=Augment(mixup=0.4), pool=pool
    )
    different = labels[partners(index, 0, 0, 4000)] != labels
    own = target.gather(1, labels[:, None])[different, 0].double().numpy()
    assert kstest(own, beta(0.4, 0.4).cdf).pvalue > 1e-3


def test_partners_are_any_image_alike() -> None:
    found = partners(torch.arange(20_000), 0, 0, 20)
    assert chisquare(torch.bincount(found, minlength=20).numpy()).pvalue > 1e-3


def test_a_mixed_view_without_a_label_in_it_has_none() -> None:
    labels = torch.tensor([0, 1, -1, -1])
    pool = Images(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels)
    index = torch.arange(4)
    for view in range(20):
        target = mixed_target(
            labels, index, 2, 2, seed=0, view=view, augment=Augment(mixup=1.0), pool=pool
        )
        lacks = (labels < 0) | (labels[partners(index, 0, view, 4)] < 0)
        assert torch.equal(target.sum(1) == 0, lacks)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"rotaton": 5}, "did you mean 'rotation'"),
        ({"rotation": 200}, "data.augment.rotation"),
        ({"mixup": -1}, "data.augment.mixup"),
        ({"crop_padding": -0.1}, "data.augment.crop_padding"),
        ({"erase": 1.5}, "data.augment.erase"),
    ],
)
def test_a_wrong_key_or_value_is_named(keywords: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make_augment(keywords)


def test_the_pool_is_not_copied_with_the_module_that_holds_it() -> None:
    assert copy.deepcopy({"pool": POOL})["pool"] is POOL


@pytest.mark.parametrize("count", [None, 2])
def test_the_grid_shows_images_and_their_views(count: int | None) -> None:
    data = Digits(test_fraction=0.25, limit=200, augment={"crop_padding": 1}, views=count)
    x = view_grid(data, seed=3)
    size, gap = 64, 2  # an 8x8 image enlarged eight times, and the frame between two
    assert x.shape == (3, 8 * (size + gap) + gap, 8 * (size + gap) + gap)
    for row, i in enumerate([0, 28, 56, 85, 113, 142, 170, 199]):
        for column in range(8):
            top, left = gap + row * (size + gap), gap + column * (size + gap)
            found = x[:, top : top + size : 8, left : left + size : 8]
            pixels, epoch = data.split.train.pixels[torch.tensor([i])], column - 1
            wanted = to_unit(pixels)
            if column:
                view = epoch if count is None else epoch % count
                wanted = make_views(
                    pixels, torch.tensor([i]), seed=3, view=view, augment=data.augment
                )
            assert torch.equal(found, wanted[0].expand(3, -1, -1))


@pytest.mark.parametrize(
    "path", sorted((CONF / "data" / "augment").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_file_of_augmentation_has_every_key(path: Path) -> None:
    found = OmegaConf.to_container(composed(f"data/augment={path.stem}").data.augment)
    assert list(found) == list(Augment.model_fields)
    if path.stem == "none":
        assert Augment(**found).model_dump_json() == Augment().model_dump_json()
    changed = {k: v for k, v in found.items() if v != Augment.model_fields[k].default}
    written = OmegaConf.load(path)
    assert changed == {k: v for k, v in written.items() if k != "defaults" and path.stem != "none"}
