"""Schema of the config, and construction of objects from it."""
