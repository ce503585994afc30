"""What nets can do and what they cost: metrics, calibration, corruptions.

Parameters, memory, time.
"""
