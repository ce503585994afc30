"""A student out of the project: exported files, a model from any of them, predictions."""
