"""One run for people: comparison, page, figures, model card, TensorBoard."""
