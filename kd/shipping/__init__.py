"""The student outside the project: exported files, models loaded from them, predictions."""
