"""One run for people: the comparison, its page, its figures, its card, what TensorBoard shows."""
