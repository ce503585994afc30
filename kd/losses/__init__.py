"""Distillation losses: one file per method, a plain function of tensors that imports torch only.

A loss names its inputs as parameters and receives those:

- `logits_s`, `logits_t`: logits of student and teacher, [B, C].
- `strong_s`, `strong_t`: the same of a strong view of the images, as the loss's `strong` says.
- `target`: labels, int64 [B], or soft labels [B, C].
- `index`: indices of the images in the training set, [B].
- `x`: input of the student, [B, channels, H, W].
- `epoch`: int, from 0. `progress`: share of training done, in [0, 1].
- `feats_s`, `feats_t`: outputs of the hooked layers, a list of tensors [B, ...].
- `preacts_s`, `preacts_t`: the same, taken before the last activation of each hooked layer.
- `pooled_s`, `pooled_t`: inputs of the last linear layer, [B, D].
- `head_s`, `head_t`: the last linear layer, a module.
- `maps_s`, `maps_t`: the maps whose mean over height and width is `pooled`, [B, D, H, W].

A method that learns has an `nn.Module` class beside its function. Its parameters are optimised and
checkpointed with the student but are no part of it. It may put numbers into its mapping `logged`;
those are logged. Its constructor may ask for:

- `shapes_s`, `shapes_t`: feature shapes of one image, per hooked layer.
- `width_s`, `width_t`: embedding widths.
- `labels`: of all training images, int64 [N], -1 for none.
- `batch_size`: images that a device sees at once, at most.
- `num_classes`, `in_channels`, `image_size`.

A loss that asks for `target` does not see unlabelled images (`data.labels`, `data.unlabeled`). It
gets the labelled images of the batch and counts 0 in a batch without any. With the attribute
`takes_unlabeled = True` it sees all images. Their target is then -1, or a row of zeros where labels
are soft.

A loss of logits or labels that makes sense where an image may have several labels says so with the
attribute `multilabel = True`. Its target is then int8 [B, C], 1 for each label.

`from kd.losses import NAME_loss` finds the function in `kd/losses/NAME.py`; a new file needs no
entry here.
"""

import importlib
import pkgutil

__all__ = [
    f"{module.name}_loss" for module in pkgutil.iter_modules(__path__) if module.name[0] != "_"
]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module(f"kd.losses.{name.removesuffix('_loss')}"), name)
    raise AttributeError(f"kd.losses has no {name!r}; it has {', '.join(__all__)}")
