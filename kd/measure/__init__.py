"""What nets can do and what they cost: metrics, calibration, corruptions; parameters, memory, time."""
