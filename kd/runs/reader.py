"""Reads a finished run from its folder: report, nets, data. Nothing in it is trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from kd.errors import DamagedError, UserError, first_of, nearest
from kd.files.allowlist import check_allowlist
from kd.files.header import STUDENT, header_of
from kd.files.known_runs import which_runs
from kd.files.report_file import Report, read_report
from kd.files.writing import writable
from kd.log import say

if TYPE_CHECKING:  # importing torch takes seconds; first refuse a folder that is no run
    from torch import nn

    from kd.data.base import DataModule
    from kd.files.store import StageResult
    from kd.shape import Shape


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: as written by `kd.runs.run`.
        report: contents of its `report.json`.
        trust: packages whose nets and data may be built besides the project's own.
    """

    folder: Path
    report: Report
    trust: tuple[str, ...] = ()

    @property
    def roles(self) -> list[str]:
        """Those of teacher, baseline and student that the run has."""
        return [model.role for model in self.report.models]

    def stage(self, role: str) -> "StageResult":
        """Return the finished stage of a role.

        Raises:
            UserError: the run has no such role, or no store near the folder has the stage.
        """
        from kd.files.store import Store

        key = self._key(role)
        roots = self._stores()
        for root in roots:
            if result := Store(root).find(key):
                check_allowlist(result.record.spec.net, "net", str(result.folder), self.trust)
                return result
        looked = ", ".join(map(str, roots)) or "no folder called store near it"
        raise UserError(
            f"{self.folder}: the weights of the {role} (stage {key}) are not there; looked in "
            f"{looked}"
        )

    def _key(self, role: str) -> str:
        """Return the stage key of a role."""
        keys = {model.role: model.stage for model in self.report.models}
        if role not in keys:
            raise UserError(
                f"{self.folder}: the run has no {role}; it has "
                f"{', '.join(keys)}{nearest(role, keys)}"
            )
        return keys[role]

    def _stores(self) -> list[Path]:
        """Return the stores that may have its stages: near the run folder, or in the output
        folder.
        """
        written = Path(self.report.origin.output_dir).expanduser().resolve()
        around = [parent / "store" for parent in (*self.folder.parents, written)]
        return list(dict.fromkeys(root for root in around if root.is_dir()))

    def net(self, role: str) -> "nn.Module":
        """Load the net of a role in evaluation mode, with the attribute `normalization`.

        The student's weights are in the run folder, the others' in the store.

        Raises:
            UserError: it is missing or damaged, or names a net that is not trusted.
        """
        from kd.stages.answers import only_answers
        from kd.stages.result import load_net

        if role != "student":
            stage = self.stage(role)
            if only_answers(stage):
                raise UserError(
                    f"{self.folder}: the {role} is a file of answers about the run's images by "
                    "name, and no net that could be asked; its test metrics are in report.json"
                )
            return load_net(stage)
        self._key(role)
        file = self.folder / STUDENT
        if header_of(file) is None:
            raise UserError(
                f"{self.folder}: the run has no {STUDENT}, or it is damaged; it has "
                f"{', '.join(self.roles)}"
            )
        return read_student(file, str(self.folder), self.trust)[0]

    def nets(self) -> tuple[dict[str, "nn.Module"], dict[str, str]]:
        """Load the nets by role; also returns why any is missing, as after moving a run folder.

        Raises:
            UserError: there is none at all.
        """
        nets: dict[str, nn.Module] = {}
        missing: dict[str, str] = {}
        for role in self.roles:
            try:
                nets[role] = self.net(role)
            except UserError as error:
                missing[role] = str(error)
        if not nets:
            raise UserError("\n".join(missing.values()))
        for reason in missing.values():
            say(f"left out: {reason}")
        return nets, missing

    @property
    def shape(self) -> "Shape":
        """Shape that its nets were built for.

        Raises:
            UserError: it is not recorded anywhere.
        """
        from kd.shape import Shape

        if header := header_of(self.folder / STUDENT):
            return Shape.of(header["shape"])
        return Shape.of(self.stage(self.roles[0]).record.spec.shape)

    def shape_of(self, role: str) -> "Shape":
        """Shape that a role's net was built for."""
        from kd.shape import Shape

        if role == "student":
            return self.shape
        return Shape.of(self.stage(role).record.spec.shape)

    def reads(self, role: str) -> dict[str, object] | None:
        """How a role's net reads images, for `kd.data.rendering.as_read`; None: as the data."""
        return None if role == "student" else self.stage(role).record.spec.reads

    def room(self, out: str | None, inside: str = "") -> Path:
        """Return the folder for a command's results: the run's, or the config's `out`.

        Args:
            inside: subfolder of the run's.

        Raises:
            UserError: it is not writable, or a link to elsewhere; checked before anything is
                measured.
        """
        folder = Path(out).expanduser() if out is not None else self.folder / inside
        if out is None and not folder.resolve().is_relative_to(self.folder):
            raise UserError(f"out: {folder} is a link out of the run's folder; name another folder")
        return writable(folder, "out", "; name another folder").resolve()

    def data(self, **changes: object) -> "DataModule":
        """Build the data that the run was trained on.

        Args:
            changes: changed keys of the run's `data` node, such as `root`.

        Raises:
            UserError: it is missing, or names a source that is not trusted.
        """
        from kd.config.construct import construct
        from kd.data.base import DataModule

        node = {**self.report.origin.data, **changes}
        check_allowlist(node, "data", f"{self.folder}: its config", self.trust)
        try:
            data = construct(node, "data")
        except UserError as error:
            raise type(error)(
                f"{self.folder}: the data in its config cannot be built by this version of kd; "
                f"name the data anew, as in data=digits. {error}"
            ) from error
        if not isinstance(data, DataModule):
            raise UserError(
                f"{self.folder}: its config names {node['_target_']!r}, which is no data set"
            )
        return data


def read_student(
    file: Path, where: str, trust: Sequence[str] = ()
) -> tuple["nn.Module", "Shape", tuple[str, ...]]:
    """Load the net in a run's `student.safetensors`, whose header describes it.

    Args:
        where: name of the file, for messages.
        trust: packages whose nets may be built besides the project's own.

    Returns:
        the net in evaluation mode, with the attribute `normalization`; its shape; and its classes.

    Raises:
        UserError: it is no such file, is damaged, or names a net that is not trusted.
    """
    from kd.data.folder import plain
    from kd.files.state_dicts import read_weights
    from kd.nets.build import build_net, set_normalization
    from kd.nets.weights import put_weights
    from kd.shape import Shape

    header = header_of(file)
    if header is None:
        raise UserError(
            f"{where}: {file} does not say what net it is for, as a run's {STUDENT} does, or "
            "is damaged"
        )
    check_allowlist(header["net"], "net", str(file), trust)
    # first, because the checksum covers the header, from which the net is built
    weights = read_weights(file, where)
    try:
        shape = Shape.of(header["shape"])
        normalization = (tuple(header["mean"]), tuple(header["std"]))
        classes = tuple(map(plain, header["classes"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: its header is damaged ({error!r})") from error
    if len(classes) != shape.num_classes:
        raise UserError(
            f"{file}: its header names {len(classes)} classes for a net of {shape.num_classes}"
        )
    net = build_net(header["net"], shape, str(file), load=False, most=file.stat().st_size)
    put_weights(net, weights, file, str(file))
    set_normalization(net, normalization, shape.channels, str(file))
    return net.eval(), shape, classes


def open_run(path: str | Path, where: str = "run", trust: Sequence[str] = ()) -> FinishedRun:
    """Open the finished run in a folder.

    Args:
        where: config key of the path, for messages.
        trust: packages whose nets and data may be built besides the project's own.

    Raises:
        UserError: the folder is missing or no run folder, the run is not finished, or a later kd
            wrote it.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{where}: there is no folder {folder.absolute()}{which_runs(folder)}")
    folder = folder.resolve()
    file = folder / "report.json"
    if folder.name.endswith(".partial"):
        raise UserError(
            f"{where}: {folder} is not finished; the command that began it goes on where it stopped"
        )
    if not file.is_file():
        inside = sorted(each.parent.name for each in folder.glob("*/report.json"))
        hint = f"; these folders in it are: {', '.join(inside[-5:])}" if inside else ""
        raise UserError(f"{where}: {folder} has no report.json, so it is no run's{hint}")
    try:
        report = read_report(file)
        _check_origin(report, file)
    except UserError as error:
        raise type(error)(f"{where}: {error}") from error
    return FinishedRun(folder, report, tuple(trust))


def _check_origin(report: Report, file: Path) -> None:
    try:
        _ = report.origin
    except ValidationError as error:
        raise DamagedError(
            f"{file} is damaged, or no report of kd: config.{first_of(error)}"
        ) from None


def own_data(
    finished: FinishedRun, node: Mapping[str, object], cache_dir: str, needed: bool
) -> "tuple[DataModule | None, str | None]":
    """Build the run's own data; or return None and the reason, if other data is to be used.

    Args:
        node: the config's `data`; without `_target_`, its keys override the run's data config.
        needed: whether there is no other data.

    Raises:
        UserError: it is needed and missing, or its classes have changed.
    """
    changes = (
        {}
        if "_target_" in node
        else {key: value for key, value in node.items() if value is not None}
    )
    try:
        from kd.data.other_source import classes_text

        own = finished.data(**changes, cache_dir=cache_dir)
        found = own.classes
        said = tuple(finished.report.data.classes)
        if found != said:
            raise UserError(
                f"data: {classes_text(found)}, but the run's nets are for {classes_text(said)}"
            )
    except UserError as error:
        if needed:
            raise
        return None, str(error)
    return own, None
