"""Data sources, one file each, read through the DataModule in `base.py`."""
