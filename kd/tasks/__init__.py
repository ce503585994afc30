"""Classes that come in tasks: which when, their data, exemplars, the chain of them, what was forgotten."""
