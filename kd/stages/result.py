"""What a trained stage gives to those after it: its net, what that says of images, its name for people."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kd.config.construct import resolve_target
from kd.data.base import DataModule, Images
from kd.data.views import Augment, make_views
from kd.errors import CannotWrite, Damaged
from kd.files.store import Done, key_of
from kd.files.tensors import load_tensors, save_tensors
from kd.log import say
from kd.measure.costs import count_macs
from kd.measure.metrics import predict_logits
from kd.nets.build import build_net, set_normalization
from kd.nets.grow import Grown
from kd.shape import Shape
from kd.stages.chain import Role
from kd.teachers.ensemble import Ensemble
from kd.teachers.frozen import Frozen
from kd.teachers.watch import Watched

# Logits up to which a student's are kept too, in bytes: 10,000 images of 400 classes.
SMALL = 2**24

# Training images of which a teacher is asked about two views; a few hundred tell its steadiness well enough.
WATCHED_VIEWS = 256


def load_net(done: Done) -> nn.Module:
    """The net of a finished stage with its weights, in evaluation mode."""
    spec = done.record["spec"]
    net = build_net(spec["net"], Shape(*spec["shape"]), f"{done.record['name']}.net", load=False)
    net.load_state_dict(done.weights())
    normalized_as(net, done)
    return net.eval()


def frozen(done: Done) -> Frozen:
    """A finished stage as a teacher."""
    mean, std = done.record["normalization"]
    return Frozen(load_net(done), tuple(mean), tuple(std))


def normalized_as(net: nn.Module, done: Done) -> None:
    """Feed a net as the finished stage's was."""
    mean, std = done.record["normalization"]
    set_normalization(net, (tuple(mean), tuple(std)), len(mean), done.key)


def classes_of(done: Done) -> int:
    """How many classes a finished stage's net knows."""
    return Shape(*done.record["spec"]["shape"]).num_classes


def logits_of(done: Done, data: DataModule, images: Images) -> Tensor:
    """A finished stage's logits [N, C] for images as they are, computed once and kept beside its weights."""
    return kept(done, logits_name(images), lambda: predict_logits(load_net(done), data, images))


def role_logits(done: Mapping[Role, Done], data: DataModule) -> dict[Role, Tensor]:
    """What each role's net says of the test images, [N, C]: here, and here alone, test is read.

    Many students share a teacher and a baseline, whose logits are kept beside their weights. A student's are asked for
    once, so they are kept only where they are small.
    """
    test, found = data.split.test, dict[Role, Tensor]()
    size = 4 * len(test) * len(data.classes)
    for role, each in done.items():
        if role != "student" or size <= SMALL:
            found[role] = logits_of(each, data, test)
        else:
            found[role] = predict_logits(load_net(each), data, test)
    return found


def logits_name(images: Images) -> str:
    """What a stage's logits for these images are kept under."""
    return f"logits-{images.fingerprint[:16]}"


def macs_of(done: Done) -> int:
    """A finished stage's multiply-accumulates for one image, counted once and kept beside its weights."""
    shape = Shape(*done.record["spec"]["shape"])
    return int(kept(done, "macs", lambda: torch.tensor(count_macs(load_net(done), shape)), "macs"))


def watched(done: Done, data: DataModule) -> Watched:
    """What a teacher says of the validation images, and of views of some training images; computed once."""
    val, train, augment = data.split.val, data.split.train, data.augment
    alone = augment.model_copy(update={"mixup": 0, "cutmix": 0})  # two pictures are no view of one
    count = min(WATCHED_VIEWS, len(train), len(val))  # of a trial's validation little is left
    some = torch.linspace(0, len(train) - 1, count).long()

    def views(which: Sequence[int], augment: Augment) -> Tensor:
        def compute() -> Tensor:
            teacher, parts = frozen(done), torch.split(some, data.evaluation_batch)
            make = partial(make_views, seed=0, augment=augment, pool=train)
            return torch.stack(
                [
                    torch.cat([teacher(make(train.pixels[i], i, view=v)) for i in parts])
                    for v in which
                ]
            )

        about = {"images": train.fingerprint, "augment": augment.model_dump(mode="json")}
        return kept(
            done, f"views-{key_of({**about, 'views': list(which), 'count': count})}", compute
        )

    two = views((0, 1), alone)
    seen = views((0,), augment)[0] if augment.mixes else two[0]
    return Watched(logits_of(done, data, val), val.labels, two, train.labels[some], seen)


def kept(done: Done, name: str, compute: Callable[[], Tensor], what: str = "logits") -> Tensor:
    """What a finished stage's net says, computed once and kept under a name beside its weights, where that can be.

    Args:
        what: the tensor's name in the file.
    """
    path = done.folder / f"{name}.safetensors"
    if path.exists():
        try:
            return load_tensors(path)[what]
        except (OSError, SafetensorError, Damaged, KeyError) as error:
            say(f"{path} cannot be used ({error}); asking the net again")
    found = compute()
    try:
        save_tensors({what: found}, path)
    except CannotWrite as error:
        say(f"{error}; going on without keeping it")
    return found


def name_of(done: Done) -> str:
    """A net's name for people: what builds it, with those options that are not the builder's defaults."""
    return name_of_net(done.record["spec"]["net"])


def name_of_net(node: Mapping[str, Any]) -> str:
    """The same of a net's config node."""
    target, options = resolve_target(node, "net")
    if target is Ensemble:
        return f"Ensemble of {len(options['members'])}: {', '.join(map(name_of_net, options['members']))}"
    if target is Grown:
        return name_of_net(options["net"])
    name = str(options.pop("name", target.__name__))
    defaults = {
        key: parameter.default for key, parameter in inspect.signature(target).parameters.items()
    }
    changed = {
        k: v
        for k, v in options.items()
        if v != defaults.get(k) and v != list(_items(defaults.get(k)))
    }
    changed = {
        k: name_of_net(v) if isinstance(v, Mapping) and "_target_" in v else v
        for k, v in changed.items()
    }
    return f"{name}({', '.join(f'{k}={v}' for k, v in changed.items())})" if changed else name


def _items(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()
