"""TensorBoard event files: behaviour when writing fails."""

import threading

from tensorboard.summary.writer import event_file_writer


def silence_writer_traceback() -> None:
    """Silence the writer thread's traceback; the next write raises instead."""
    threading.excepthook = _hide_writer_error


def _hide_writer_error(failed: threading.ExceptHookArgs) -> None:
    theirs = type(failed.thread).__module__ == event_file_writer.__name__
    if not (theirs and isinstance(failed.exc_value, OSError)):
        threading.__excepthook__(failed)
