"""Distillation losses: one file per method, each a plain function of tensors that imports torch only.

A loss names its inputs as parameters and is given those: `logits_s` and `logits_t` (student's and teacher's logits,
[B, C]), `target` (labels, int64 [B], or soft labels [B, C]), `index` (the images' indices in the training set, [B]),
`x` (the student's input, [B, channels, H, W]), `epoch` (int, from 0), `progress` (share of training done, in [0, 1]).
Of what the nets compute on the way, with `_s` for the student's and `_t` for the teacher's: `feats` (a list of tensors
[B, ...], one for each tap), `preacts` (the same before each tap's last activation), `pooled` (what the last linear
layer gets, [B, D]), `head` (that layer, a module).

A method that learns is an `nn.Module` beside its function: what it owns is optimised and checkpointed with the student
and is no part of it. For layers that fit it may ask, when it is built, for `shapes_s`, `shapes_t` (of one image at each
tap), `width_s`, `width_t` (of the pooled embeddings) and `labels` (of all training images, int64 [N], -1 for none),
besides `num_classes`, `in_channels` and `image_size`. What it puts into its `logged`, a mapping of names to numbers,
is logged.

A loss that asks for `target` is not shown the images without a label (`data.labels`, `data.unlabeled`): it gets the
other images of the batch alone, and counts 0 in a batch without any. One with an attribute `takes_unlabeled = True` is
shown them too, with a target of -1, or a row of zeros where labels are soft.

`from kd.losses import NAME_loss` finds the function in `kd/losses/NAME.py`; a new file needs no entry here.
"""

import importlib
import pkgutil
from typing import Any

__all__ = [
    f"{module.name}_loss" for module in pkgutil.iter_modules(__path__) if module.name[0] != "_"
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"kd.losses.{name.removesuffix('_loss')}"), name)
    raise AttributeError(f"kd.losses has no {name!r}; it has {', '.join(__all__)}")
