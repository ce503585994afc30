"""Nets: plain modules, x [B, C, H, W] -> logits [B, num_classes], without role or loss.

A net is any callable that returns such a module. It receives `num_classes`, `in_channels` and
`image_size` if it has parameters of these names. Everything else comes from its YAML file in
`conf/student` or `conf/teacher`.
"""
