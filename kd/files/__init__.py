"""Files on disk: written whole, told when they are damaged, and held by one process at a time."""
