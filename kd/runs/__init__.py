"""One run, its sweep, its folder; reading a finished run."""
