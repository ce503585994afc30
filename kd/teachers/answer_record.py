"""What is stored of a teacher's answer for one image: all logits, the largest, or features too."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.nets.hooks import LISTS, NetOutput

Sizes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class AnswerRecord:
    """Layout of the stored answer for one image.

    Attributes:
        classes: logits of the teacher.
        dtype: of a logit: float16 or float32.
        top_k: how many logits are stored, each with its class (2 bytes up to 65,536 classes), and
            one that all other classes share; see `kd.teachers.top_answers`. None stores all.
        features: shape of each feature of one image, in float16: `pooled`, `maps`, `feats_0`,
            `feats_1` and so on.
    """

    classes: int
    dtype: str = "float16"
    top_k: int | None = None
    features: Sizes = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of one image's answer."""
        return self.layout[0].itemsize * int(np.prod(self.layout[1]))

    @property
    def layout(self) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
        """Type and shape of an image's row; logits alone are a plain array."""
        if self.top_k is None and not self.features:
            return np.dtype(self.dtype), (self.classes,)
        index = np.uint16 if self.classes <= 2**16 else np.uint32
        count = self.classes if self.top_k is None else self.top_k
        fields: list[tuple[str, object, tuple[int, ...]]] = [("logits", self.dtype, (count,))]
        if self.top_k is not None:
            fields += [("classes", index, (count,)), ("rest", self.dtype, ())]
        fields += [(name, np.float16, size) for name, size in self.features.items()]
        return np.dtype(fields), ()

    @property
    def manifest(self) -> dict[str, object]:
        """Entries of a view's manifest, which must be the same where it is read."""
        found: dict[str, object] = {"classes": self.classes, "dtype": self.dtype}
        if self.top_k is not None:
            found["top_k"] = self.top_k
        if self.features:
            found["features"] = {name: list(size) for name, size in self.features.items()}
        return found

    def pack(self, output: NetOutput) -> NDArray[Any]:
        """Convert a batch's answers to rows; logits of `top_k` have one value but for the kept."""
        dtype, shape = self.layout
        logits = output.logits.cpu()
        if not dtype.names:
            return logits.numpy().astype(dtype)
        rows: NDArray[Any] = np.empty((len(logits), *shape), dtype)
        if self.top_k is None:
            rows["logits"] = logits
        else:
            kept = logits.topk(self.top_k)
            rows["logits"] = kept.values
            rows["classes"] = kept.indices
            rows["rest"] = logits.amin(1)
        for name in self.features:
            rows[name] = _feature(output, name).cpu()
        return rows

    def unpack(self, rows: NDArray[Any], device: torch.device) -> NetOutput:
        """Convert rows to float32 logits [B, classes] and features, on a device."""
        if not rows.dtype.names:
            return NetOutput(torch.from_numpy(rows).to(device).float())
        logits = _tensor(rows["logits"])
        if self.top_k is not None:
            index = torch.from_numpy(rows["classes"].astype(np.int64))
            whole = _tensor(rows["rest"])[:, None].repeat(1, self.classes)
            logits = whole.scatter(1, index, logits)
        features: dict[str, object] = {}
        for name in self.features:
            kind, _, place = name.partition("_")
            if not place:
                features[kind] = _tensor(rows[name]).to(device)
                continue
            several = features.setdefault(kind, [])
            assert isinstance(several, list)
            several.append(_tensor(rows[name]).to(device))
        return NetOutput(logits.to(device), features)


def sizes_of(output: NetOutput) -> Sizes:
    """Return the shape of each feature of one image, for `AnswerRecord.features`."""
    found: dict[str, tuple[int, ...]] = {}
    for kind, value in output.features.items():
        if kind in LISTS:
            assert isinstance(value, list)
            found |= {f"{kind}_{i}": tuple(each.shape[1:]) for i, each in enumerate(value)}
        elif isinstance(value, Tensor):  # not the last layer itself
            found[kind] = tuple(value.shape[1:])
    return found


def _feature(output: NetOutput, name: str) -> Tensor:
    kind, _, place = name.partition("_")
    found = output.features[kind]
    if isinstance(found, list):
        found = found[int(place)]
    assert isinstance(found, Tensor)
    return found


def _tensor(column: NDArray[Any]) -> Tensor:
    """Copy a column of rows, which may lie at odd addresses, to float32."""
    return torch.from_numpy(column.astype(np.float32))
