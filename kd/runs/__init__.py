"""One run, its sweep, its folder; a finished run read back."""
