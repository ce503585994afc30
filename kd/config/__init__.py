"""What may stand in the config, and building objects from it."""
