"""Commands in processes of their own.

They are forked from a process with imported libraries, which is most of a start: over six seconds
of CPU time for a command that trains for one. One command of `tests/test_train.py` is started as
users do.
"""

import atexit
import importlib.util
import io
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["kd.runs.run", "kd.training.fit", "kd.training.distiller"])


class Process:
    """`python -m MODULE ARGUMENTS` in a process of its own.

    Attributes:
        returncode: its exit code, negative where a signal ended it; None while it runs.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        said = Path(mkdtemp(prefix="kd-test-"))
        weakref.finalize(self, shutil.rmtree, said, ignore_errors=True)
        self._out, self._err = said / "out", said / "err"
        variables = {"OMP_NUM_THREADS": "1", **(os.environ if environment is None else environment)}
        given = (module, arguments, str(cwd), variables, str(self._out), str(self._err))
        self.process = CONTEXT.Process(target=_run, args=given)
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        """Return all output so far."""
        return self._out.read_text() if self._out.exists() else ""

    @property
    def stderr(self) -> str:
        """Return all output so far."""
        return self._err.read_text() if self._err.exists() else ""

    def lines(self) -> Iterator[str]:
        """Iterate over the lines of stderr until the process ends."""
        seen = 0
        while True:
            ended = self.returncode is not None
            *whole, _ = self.stderr[seen:].split("\n")
            for line in whole:
                seen += len(line) + 1
                yield line
            if ended:
                return
            time.sleep(0.01)

    def wait(self, timeout: float = 300) -> "Process":
        """Wait for the end; a process that hangs is killed and fails the test."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {timeout} s:\n{self.stderr}")
        return self

    def send_signal(self, number: int) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)


def _run(
    module: str,
    arguments: tuple[str, ...],
    cwd: str,
    environment: Mapping[str, str],
    out: str,
    err: str,
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w"), write_through=True) for number in (1, 2)
    )
    sys.path[:0] = [cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    spec = importlib.util.find_spec(module)
    assert spec
    assert spec.origin
    sys.argv = [spec.origin, *arguments]
    # Background jobs of a shell ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Its own processes start as they would outside a test.
    multiprocessing.set_start_method(None, force=True)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    # As an interpreter does at exit and multiprocessing does not: joblib stops its processes here.
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
