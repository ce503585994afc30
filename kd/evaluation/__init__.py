"""How good the nets of a finished run are, and what they cost: kd.evaluate and kd.benchmark."""
