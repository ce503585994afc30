"""Nets: plain modules, `x [B, C, H, W] -> logits [B, num_classes]`, that know neither role nor loss.

A net is any callable that returns such a module. Of `num_classes`, `in_channels` and `image_size` it is given those
that it has parameters for; everything else comes from its YAML file in `conf/student` or `conf/teacher`.
"""
