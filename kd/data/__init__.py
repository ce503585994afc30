"""Data sources: one file each, all read through the DataModule in `base.py`."""
