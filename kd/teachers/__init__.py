"""Teachers: how a teacher answers. Each is a callable `x [B, C, H, W] in [0, 1] -> logits [B, num_classes]`."""
