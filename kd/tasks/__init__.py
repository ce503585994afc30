"""Classes that come in tasks.

Which when, their data, exemplars, the chain of them, what was forgotten.
"""
