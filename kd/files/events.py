"""TensorBoard's event files: what is told where one cannot be written, and whether one is as it was written."""

import threading
from pathlib import Path

from tensorboard.compat.tensorflow_stub.errors import DataLossError, OpError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.summary.writer import event_file_writer


def tell_once() -> None:
    """Have no traceback of TensorBoard's thread that cannot write: who gives it something to write next is told."""
    threading.excepthook = _told_elsewhere


def _told_elsewhere(failed: threading.ExceptHookArgs) -> None:
    theirs = type(failed.thread).__module__ == event_file_writer.__name__
    if not (theirs and isinstance(failed.exc_value, OSError)):
        threading.__excepthook__(failed)


def damage_in(file: Path) -> str | None:
    """What is wrong with an event file, by the checksum of each of its records; None where nothing is."""
    if not file.stat().st_size:
        return "it is empty"
    reader = PyRecordReader_New(str(file))
    try:
        while True:
            reader.GetNext()
    except DataLossError as error:
        return str(error.message).removeprefix(f"{file} ")
    except OpError:  # the end
        return None
