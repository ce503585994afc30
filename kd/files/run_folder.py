"""Run folder, which appears complete or not at all."""

import contextlib
import itertools
import shutil
import time
from pathlib import Path

from kd.files.locks import free
from kd.files.store import put


class RunFolder:
    """`<root>/<time>_<name>`, called `<time>_<name>.partial` until it is complete.

    While a stage trains, the folder links to its TensorBoard events, so that a dashboard over
    `<root>` shows live curves under a readable name. The finished folder holds the events
    themselves. A stage shared by several runs appears in one of them: twelve runs with one teacher
    show its curves once.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.final = root / f"{time.strftime('%Y%m%d-%H%M%S')}_{name}"
        self._held = contextlib.ExitStack()

    @property
    def path(self) -> Path:
        """Folder during the run."""
        return self.final.with_name(self.final.name + ".partial")

    @property
    def events(self) -> Path:
        """TensorBoard folder, with the run's own events and one subfolder per stage."""
        return self.path / "tensorboard"

    def __enter__(self) -> "RunFolder":
        self.final.parent.mkdir(parents=True, exist_ok=True)
        # Of killed runs; their links claim stages' events
        for left in self.final.parent.glob("*.partial"):
            with _filling(left) as dead:
                if dead:
                    shutil.rmtree(left, ignore_errors=True)
        stem = self.final.name
        for i in itertools.count(2):  # another process may take the name in the same second
            taken = self._held.enter_context(_filling(self.path))
            if taken and not self.final.exists() and not self.path.exists():
                break
            self._held.close()
            self.final = self.final.with_name(f"{stem}_{i}")
        self.events.mkdir(parents=True)
        return self

    def follow(self, stage: str, events: Path) -> None:
        """Show a stage's events under its name."""
        link = self.events / stage
        link.unlink(missing_ok=True)
        link.symlink_to(events.resolve(), target_is_directory=True)

    def settle(self, stage: str, events: Path, output: Path) -> None:
        """Show a finished stage's events, unless another run in the output folder shows them.

        Args:
            output: holds `runs` and `sweeps`.
        """
        (self.events / stage).unlink(missing_ok=True)
        # An earlier run of this name may be gone
        own = (self.path.resolve(), self.final.resolve())
        names = [file.name for file in events.glob("*tfevents*")]
        places = [
            f"{runs}/tensorboard/*/{name}" for name in names for runs in ("runs/*", "sweeps/*/*")
        ]
        shown = (
            file.absolute().parents[2].resolve() for place in places for file in output.glob(place)
        )
        if all(run in own for run in shown):
            self.follow(stage, events)

    def keep_csv(self, name: str, made: Path) -> None:
        """Copy what a logger wrote into a folder `csv` in `made`, if it did."""
        if (made / "csv").is_dir():
            shutil.copytree(made / "csv", self.path / "csv" / name)

    def shows(self, stage: str) -> bool:
        """Whether a stage's events are in this folder."""
        return (self.events / stage).is_symlink()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self._held:
            if kind is not None:
                shutil.rmtree(self.path, ignore_errors=True)
                return
            for link in [each for each in self.events.iterdir() if each.is_symlink()]:
                events = link.resolve()
                link.unlink()
                if events.is_dir():
                    shutil.copytree(events, link)
            put(self.path, self.final)


def _filling(folder: Path) -> contextlib.AbstractContextManager[bool]:
    """Lock a folder for filling, if nobody else does; a dead process's lock is free."""
    return free(folder.with_name(f".{folder.name}.lock"))


class JobFolder(RunFolder):
    """Folder of one sweep job: its name is given, and it replaces an older one.

    Only one process at a time may fill it.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "JobFolder":
        shutil.rmtree(self.path, ignore_errors=True)  # left by a killed attempt
        (self.path / "tensorboard").mkdir(parents=True)
        return self
