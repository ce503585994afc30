"""What write-ups get wrong, as written, to measure beside the corrected form: RESULTS.md has the commands."""
