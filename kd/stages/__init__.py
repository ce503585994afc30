"""Stages: their plans, keys and results; each is trained once."""
