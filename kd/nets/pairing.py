"""Pairing of the student's and the teacher's hooked layers, those named or the nets' own."""

from torch import Tensor, nn

from kd.errors import UserError
from kd.nets.layer_paths import dry_pass
from kd.shape import Shape

MOST = 4  # hooked layers where the net names none


def default_taps(net: nn.Module, shape: Shape, *, stem: bool = False) -> list[str]:
    """Choose the layers to hook where none are named, in forward order, at most a few.

    They are those of the net's own `taps`, or timm's `feature_info`. For other nets they are the
    last module with parameters at each resolution, at most two levels deep.

    Args:
        stem: also take the layer named in `stem`, before the first stage.
    """
    own = getattr(net, "taps", None)
    if isinstance(own, (tuple, list)):
        first = [net.stem] if stem and isinstance(getattr(net, "stem", None), str) else []
        return [str(path) for path in (*first, *own)]
    if info := getattr(net, "feature_info", None):
        modules = dict(net.named_modules())
        named = [str(each["module"]) for each in info if each.get("module") in modules]
        if named:
            step = max(1, len(named) // MOST) if len(named) > MOST + 1 else 1
            return named[::-1][::step][:MOST][::-1]
    last: dict[tuple[int, ...], str] = {}
    record = dry_pass(net, shape, training=False)
    for path in record.order:
        output = record.outputs[path]
        deep = path.count(".") > 1 or not path
        if deep or not isinstance(output, Tensor) or output.ndim < 3:
            continue
        if next(net.get_submodule(path).parameters(), None) is not None:
            size = output.shape[2:] if output.ndim == 4 else output.shape[1:2]
            last.pop(tuple(size), None)  # moves it behind those met before
            last[tuple(size)] = path
    return list(last.values())[-MOST:]


def pair(
    student: nn.Module,
    teacher: nn.Module | None,
    taps_s: list[str] | None,
    taps_t: list[str] | None,
    shape: Shape,
    teacher_shape: Shape | None = None,
    *,
    stem: bool = False,
) -> tuple[list[str], list[str]]:
    """Pair the hooked layers of student and teacher, equally many of each.

    If the config names those of one net or none, the end of the longer list is used.

    Args:
        teacher: None if no loss uses its features.
        taps_s, taps_t: paths from the config; None for the net's own.
        shape, teacher_shape: of the nets; None for one shape.
        stem: as in `default_taps`.

    Raises:
        UserError: the config names unequal numbers; or none are named and none are found.
    """
    one = _some(student, taps_s, shape, stem, "student.taps")
    if teacher is None:
        return one, []
    two = _some(teacher, taps_t, teacher_shape or shape, stem, "teacher.taps")
    if taps_s and taps_t and len(one) != len(two):
        raise UserError(
            f"student.taps: found {len(one)} ({', '.join(one)}), teacher.taps has {len(two)} "
            f"({', '.join(two)}); they are taken in pairs"
        )
    for named, other, where in ((taps_s, two, "teacher.taps"), (taps_t, one, "student.taps")):
        if named and len(named) > len(other):
            raise UserError(
                f"{where}: must be given: the net has {len(other)} of its own, the other net "
                f"{len(named)}"
            )
    count = min(len(one), len(two))
    return one[-count:], two[-count:]


def _some(
    net: nn.Module, named: list[str] | None, shape: Shape, stem: bool, where: str
) -> list[str]:
    found = named or default_taps(net, shape, stem=stem)
    if not found:
        modules = [name for name, _ in net.named_modules() if name]
        if not modules:
            raise UserError(
                f"{where}: {type(net).__name__} shows no layers, so a loss that looks inside it "
                "cannot be used; accepted are losses of logits, such as loss=kd"
            )
        raise UserError(
            f"{where}: must be given: {type(net).__name__} has no maps to look at by itself; "
            f"its modules are {', '.join(modules[:40])}{' ...' if len(modules) > 40 else ''}"
        )
    return found
