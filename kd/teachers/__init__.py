"""Teachers: nets that map x [B, C, H, W] in [0, 1] to logits [B, num_classes], live or cached."""
