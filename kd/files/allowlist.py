"""Allowlist of targets that a file may name: run folders and weights files may come from
anybody.
"""

import re
from collections.abc import Mapping, Sequence

from kd.errors import UserError

# Classes by their file, and the three functions that build library nets. Other functions are
# excluded: some of them build anything.
LIBRARIES = r"kd\.nets\.(torchvision\.torchvision_net|timm\.timm_net|huggingface\.huggingface_net)"
ACCEPTED = {
    "net": (
        "the nets in kd.nets",
        rf"kd\.nets\.\w+\.[A-Z]\w*|{LIBRARIES}|kd\.teachers\.ensemble\.Ensemble",
    ),
    "data": ("the data sets in kd.data", r"kd\.data\.\w+\.[A-Z]\w*"),
}


# Keywords with which a library reads weights or settings from any path.
READING = {
    "cache_dir",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "weights",
    "weights_backbone",
}


def check_allowlist(
    node: object,
    kind: str,
    where: str,
    trust: Sequence[str] = (),
    remedy: str = "trust=[PACKAGE] allows a package",
) -> None:
    """Refuse a node from a file that would import anything except the project's nets and data.

    Args:
        kind: `net` or `data`.
        where: source of the node, for messages.
        trust: further packages or modules that the user allows.
        remedy: how to allow it, for the message.

    Raises:
        UserError: it names something else.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            target = str(node["_target_"])
            if re.fullmatch(LIBRARIES, target) and (unsafe := READING & node.keys()):
                raise UserError(
                    f"{where}: {target} with {', '.join(sorted(unsafe))}, which would read "
                    "other files"
                )
            allowed = any(target.startswith(f"{name}.") for name in trust)
            if not allowed and not re.fullmatch(ACCEPTED[kind][1], target):
                raise UserError(
                    f"{where} names {target!r}; a file may choose among {ACCEPTED[kind][0]} only. "
                    f"Where you trust it, {remedy}"
                )
        for value in node.values():
            check_allowlist(value, kind, where, trust, remedy)
    elif isinstance(node, list):
        for value in node:
            check_allowlist(value, kind, where, trust, remedy)
