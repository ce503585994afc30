"""Distillation losses: one file per method, each a plain function of tensors that imports torch only.

A loss names its inputs as parameters and is given those: `logits_s` and `logits_t` (student's and teacher's logits,
[B, C]), `target` (labels, int64 [B], or soft labels [B, C]), `index` (the images' indices in the training set, [B]),
`x` (the student's input, [B, channels, H, W]), `epoch` (int, from 0), `progress` (share of training done, in [0, 1]).

A method that learns is an `nn.Module` beside its function: what it owns is optimised and checkpointed with the student
and is no part of it. What it puts into its `logged`, a mapping of names to numbers, is logged.

`from kd.losses import NAME_loss` finds the function in `kd/losses/NAME.py`; a new file needs no entry here.
"""

import importlib
import pkgutil
from typing import Any

__all__ = [f"{module.name}_loss" for module in pkgutil.iter_modules(__path__)]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"kd.losses.{name.removesuffix('_loss')}"), name)
    raise AttributeError(f"kd.losses has no {name!r}; it has {', '.join(__all__)}")
