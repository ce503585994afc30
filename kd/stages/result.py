"""What later steps need of a finished stage: its net, cached logits, and its name for people."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kd.config.construct import resolve_target
from kd.data.base import DataModule, Images
from kd.data.rendering import as_read
from kd.data.views import Augment, views_of
from kd.errors import DamagedError, WriteError
from kd.files.report_file import EpochAccuracies
from kd.files.store import OTHER_EPOCH, StageResult, key_of
from kd.files.tensors import load_tensors, save_tensors
from kd.log import say
from kd.measure.costs import count_macs
from kd.measure.metrics import is_right
from kd.nets.build import build_net, set_normalization
from kd.nets.grow import Grown
from kd.shape import Shape
from kd.stages.answers import known_logits, only_answers
from kd.stages.chain import Role
from kd.teachers.diagnosis import TeacherDiagnosis
from kd.teachers.ensemble import Ensemble
from kd.teachers.frozen_teacher import FrozenTeacher

# Bytes of student logits that are still stored: 10,000 images of 400 classes.
SMALL = 2**24

# Training images for the teacher's stability; a few hundred suffice.
DIAGNOSIS_VIEWS = 256


def load_net(result: StageResult) -> nn.Module:
    """Load the net of a finished stage, in evaluation mode."""
    spec = result.record.spec
    net = build_net(spec.net, Shape.of(spec.shape), f"{result.record.name}.net", load=False)
    net.load_state_dict(result.weights())
    copy_normalization(net, result)
    return net.eval()


def load_teacher(result: StageResult) -> FrozenTeacher:
    """Load a finished stage as a frozen teacher."""
    mean, std = result.record.normalization
    return FrozenTeacher(load_net(result), tuple(mean), tuple(std))


def knows(result: StageResult, data: DataModule, images: Images) -> bool:
    """Whether a finished stage has logits for all of these images, of which there are some."""
    return bool(images) and not bool(logits_of(result, data, images).isnan().any())


def copy_normalization(net: nn.Module, result: StageResult) -> None:
    """Set the normalisation that a finished stage's net was trained with."""
    mean, std = result.record.normalization
    set_normalization(net, (tuple(mean), tuple(std)), len(mean), result.key)


def classes_of(result: StageResult) -> int:
    """Return the number of classes of a finished stage's net."""
    return Shape.of(result.record.spec.shape).num_classes


def logits_of(result: StageResult, data: DataModule, images: Images) -> Tensor:
    """Return a finished stage's logits [N, C] for unaugmented images, stored with its weights."""
    own = as_read(images, result.record.spec.reads)
    return compute_once(result, logits_name(own), lambda: known_logits(load_net(result), data, own))


def role_logits(results: Mapping[Role, StageResult], data: DataModule) -> dict[Role, Tensor]:
    """Return each role's logits [N, C] for the test images; nothing else reads the test part.

    Many students share a teacher and a baseline, whose logits are stored with their weights. A
    student's are needed once, so only small ones are stored.
    """
    test = data.split.test
    found = dict[Role, Tensor]()
    for role, each in results.items():
        if role != "student" or keeps_logits(data):
            found[role] = logits_of(each, data, test)
        else:
            own = as_read(test, each.record.spec.reads)
            found[role] = known_logits(load_net(each), data, own)
    return found


def keeps_logits(data: DataModule) -> bool:
    """Whether a student's test logits are small enough to be stored."""
    return 4 * len(data.split.test) * len(data.classes) <= SMALL


def accuracies_by_epoch(result: StageResult, kept: Tensor, data: DataModule) -> EpochAccuracies:
    """Return test accuracies of a stage's last epoch and of the one best on validation.

    Never of the epoch best on test. Empty for a net that was not trained here.

    Args:
        kept: logits [N, C] of the weights that the stage keeps, for the test images.
    """
    record = result.record
    if not record.spec.epochs:
        return EpochAccuracies()
    test = as_read(data.split.test, record.spec.reads)
    selects = record.val.accuracy("best") is not None
    weights = result.folder / OTHER_EPOCH
    other = kept
    if weights.exists():
        net = load_net(result)
        net.load_state_dict(load_tensors(weights))
        name = f"{logits_name(test)}-other_epoch"
        other = compute_once(result, name, lambda: known_logits(net, data, test))
    own, others = (float(is_right(each, test.labels).double().mean()) for each in (kept, other))
    last, best = (own, others) if record.spec.keep == "last" else (others, own)
    return EpochAccuracies(last=last, best=best if selects else None)


def logits_name(images: Images) -> str:
    """Return the file name of a stage's logits for these images."""
    return f"logits-{images.fingerprint[:16]}"


def macs_of(result: StageResult, net: nn.Module) -> int:
    """Return a finished stage's multiply-accumulates per image, computed once and stored with its
    weights.

    Args:
        net: the stage's.
    """
    shape = Shape.of(result.record.spec.shape)
    return int(compute_once(result, "macs", lambda: torch.tensor(count_macs(net, shape)), "macs"))


def diagnose(result: StageResult, data: DataModule) -> TeacherDiagnosis:
    """Return a teacher's logits for validation images and some training views, stored."""
    val = data.split.val
    reads = result.record.spec.reads
    train = as_read(data.split.train, reads)
    drawn_at = data.split.train.pixels.shape[2:]
    augment = data.augment
    # A mixed view is no view of one image
    alone = augment.model_copy(update={"mixup": 0, "cutmix": 0})
    count = min(DIAGNOSIS_VIEWS, len(train), len(val))  # a trial's validation part is small
    some = torch.linspace(0, len(train) - 1, count).long()

    def views(which: Sequence[int], augment: Augment) -> Tensor:
        def compute() -> Tensor:
            if only_answers(result):  # one answer stands for all views
                one = known_logits(load_net(result), data, train.at(some))
                return torch.stack([one for _ in which])
            teacher = load_teacher(result)
            parts = torch.split(some, train.pixels.batch)
            make = partial(views_of, train, seed=0, augment=augment, pool=train, drawn_at=drawn_at)
            return torch.stack(
                [torch.cat([teacher(make(i, view=v)) for i in parts]) for v in which]
            )

        sources = {"images": train.fingerprint, "originals": train.source_fingerprint}
        about = {
            **sources,
            **({"drawn_at": drawn_at} if reads else {}),
            "augment": augment.model_dump(mode="json"),
        }
        return compute_once(
            result, f"views-{key_of({**about, 'views': list(which), 'count': count})}", compute
        )

    two = views((0, 1), alone)
    seen = views((0,), augment)[0] if augment.mixes else two[0]
    return TeacherDiagnosis(logits_of(result, data, val), val.labels, two, train.labels[some], seen)


def compute_once(
    result: StageResult, name: str, compute: Callable[[], Tensor], what: str = "logits"
) -> Tensor:
    """Return a tensor of any shape [...] computed from a finished stage and stored beside it.

    Args:
        what: name of the tensor in the file.
    """
    path = result.folder / f"{name}.safetensors"
    if path.exists():
        try:
            return load_tensors(path)[what]
        except (OSError, SafetensorError, DamagedError, KeyError) as error:
            say(f"{path} cannot be used ({error}); asking the net again")
    found = compute()
    try:
        save_tensors({what: found}, path)
    except WriteError as error:
        say(f"{error}; going on without keeping it")
    return found


def name_of(result: StageResult) -> str:
    """Format a net's name for people: its builder with the non-default options."""
    return name_of_net(result.record.spec.net)


def name_of_net(node: Mapping[str, object]) -> str:
    """Format the name of a net's config node."""
    target, options = resolve_target(node, "net")
    members = options.get("members")
    if target is Ensemble and isinstance(members, list):
        return f"Ensemble of {len(members)}: {', '.join(map(name_of_net, members))}"
    inner = options.get("net")
    if target is Grown and isinstance(inner, Mapping):
        return name_of_net(inner)
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
        if not isinstance(v, Mapping) or "_target_" in v
    }
    return f"{name}({', '.join(f'{k}={v}' for k, v in changed.items())})" if changed else name


def _items(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else ()
