"""What a loss sees of a net besides its logits."""
