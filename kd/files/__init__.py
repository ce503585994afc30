"""Files on disk: atomic writes, detection of damage, locks between processes."""
