"""Metrics, calibration and corruptions, and the cost of a net: parameters, memory, time."""
