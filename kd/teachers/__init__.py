"""Teachers: nets that answer x [B, C, H, W] in [0, 1] with logits [B, num_classes], each time or once and for all."""
