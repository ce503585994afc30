"""A finished run, read back from its folder: what it says, its nets, its data. Nothing of it is run on trust."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.errors import UserError, nearest
from kd.files.allowlist import trusted
from kd.files.header import STUDENT, header_of
from kd.files.report_file import WholeReport, read_report
from kd.files.writing import writable
from kd.log import say

if TYPE_CHECKING:  # torch takes seconds to import; a folder that is no run is refused before
    from torch import nn

    from kd.data.base import DataModule
    from kd.files.store import Done
    from kd.shape import Shape


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        folder: as `kd.runs.run` wrote it.
        report: what its `report.json` says.
        trust: packages whose nets and data may be built besides the project's own.
    """

    folder: Path
    report: Mapping[str, Any]
    trust: tuple[str, ...] = ()

    @property
    def roles(self) -> list[str]:
        """Of teacher, baseline and student those that the run has."""
        return [model["role"] for model in self.report["models"]]

    def stage(self, role: str) -> "Done":
        """The finished stage of a role.

        Raises:
            UserError: the run has no such role, or the stage is in no store near the folder.
        """
        from kd.files.store import Store

        key = self._key(role)
        roots = self._stores()
        for root in roots:
            if done := Store(root).find(key):
                trusted(done.record["spec"]["net"], "net", str(done.folder), self.trust)
                return done
        looked = ", ".join(map(str, roots)) or "no folder called store near it"
        raise UserError(
            f"{self.folder}: the weights of the {role} (stage {key}) are not there; looked in {looked}"
        )

    def _key(self, role: str) -> str:
        """Of a role's stage."""
        keys = {model["role"]: model["stage"] for model in self.report["models"]}
        if role not in keys:
            raise UserError(
                f"{self.folder}: the run has no {role}; it has {', '.join(keys)}{nearest(role, keys)}"
            )
        return str(keys[role])

    def _stores(self) -> list[Path]:
        """Where its stages may be: beside the folder that the run is in, or where it was told to write."""
        written = Path(str(self.report["config"]["output_dir"])).expanduser().resolve()
        around = [parent / "store" for parent in (*self.folder.parents, written)]
        return list(dict.fromkeys(root for root in around if root.is_dir()))

    def net(self, role: str) -> "nn.Module":
        """The net of a role with its weights, in evaluation mode, with the `normalization` it wants as an attribute.

        The student's is in the run's folder; the others' are in the store.

        Raises:
            UserError: it is not there, is damaged, or names a net that is not trusted.
        """
        from kd.stages.result import load_net

        if role != "student":
            return load_net(self.stage(role))
        self._key(role)
        file = self.folder / STUDENT
        if header_of(file) is None:
            raise UserError(
                f"{self.folder}: the run has no {STUDENT}, or it is damaged; it has {', '.join(self.roles)}"
            )
        return read_student(file, str(self.folder), self.trust)[0]

    def nets(self) -> tuple[dict[str, "nn.Module"], dict[str, str]]:
        """The nets by role; and for those that are not to be had, as when a run was moved alone, the reason.

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
        """What its nets were built for.

        Raises:
            UserError: nothing says it any more.
        """
        from kd.shape import Shape

        if header := header_of(self.folder / STUDENT):
            return Shape(*header["shape"])
        return Shape(*self.stage(self.roles[0]).record["spec"]["shape"])

    def room(self, out: str | None, inside: str = "") -> Path:
        """The folder that a command's results go into: its own, or the one named by the config's `out`.

        Args:
            inside: the name of a folder in its own.

        Raises:
            UserError: nothing can be written there, or it is a link to elsewhere; to be told before anything is
                measured.
        """
        folder = Path(out).expanduser() if out is not None else self.folder / inside
        if out is None and not folder.resolve().is_relative_to(self.folder):
            raise UserError(f"out: {folder} is a link out of the run's folder; name another folder")
        return writable(folder, "out", "; name another folder").resolve()

    def data(self, **changes: Any) -> "DataModule":
        """The data that the run was trained on.

        Args:
            changes: keys of the run's `data` node that are to be otherwise, such as `root`.

        Raises:
            UserError: it is not there, or names a source that is not trusted.
        """
        from kd.config.construct import construct
        from kd.data.base import DataModule

        node = {**self.report["config"]["data"], **changes}
        trusted(node, "data", f"{self.folder}: its config", self.trust)
        data = construct(node, "data")
        if not isinstance(data, DataModule):
            raise UserError(
                f"{self.folder}: its config names {node['_target_']!r}, which is no data set"
            )
        return data


def read_student(
    file: Path, where: str, trust: Sequence[str] = ()
) -> tuple["nn.Module", "Shape", tuple[str, ...]]:
    """The net in a run's `student.safetensors`, which says itself what it is.

    Args:
        where: what the file is called, for messages.
        trust: packages whose nets may be built besides the project's own.

    Returns:
        the net with its weights, in evaluation mode, with the `normalization` it wants as an attribute; what it was
        built for; and its classes.

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
            f"{where}: {file} does not say what net it is for, as a run's {STUDENT} does, or is damaged"
        )
    trusted(header["net"], "net", str(file), trust)
    weights = read_weights(
        file, where
    )  # first, as the checksum is of the header too, which the net is built from
    try:
        shape, normalization = (
            Shape(*header["shape"]),
            (tuple(header["mean"]), tuple(header["std"])),
        )
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


def open_run(path: str | Path, where: str = "run", trust: Sequence[str] = ()) -> Finished:
    """The finished run in a folder.

    Args:
        where: the config's key for the path, for messages.
        trust: packages whose nets and data may be built besides the project's own.

    Raises:
        UserError: there is no such folder, it is no run's, the run is not finished, or a later kd wrote it.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        beside = [each.name for each in folder.parent.glob("*")] if folder.parent.is_dir() else []
        raise UserError(
            f"{where}: there is no folder {folder.absolute()}{nearest(folder.name, beside)}"
        )
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
        report = read_report(file, WholeReport)
    except UserError as error:
        raise type(error)(f"{where}: {error}") from error
    return Finished(folder, report, tuple(trust))


def own_data(
    finished: Finished, node: Mapping[str, Any], cache_dir: str, needed: bool
) -> "tuple[DataModule | None, str | None]":
    """The run's own data; or None and why it is not to be had, where something else is to be evaluated on.

    Args:
        node: the config's `data`; where it names no source, its keys say what is otherwise than in the run.
        needed: whether there is nothing else.

    Raises:
        UserError: it is needed and not there, or has other classes by now.
    """
    changes = (
        {}
        if "_target_" in node
        else {key: value for key, value in node.items() if value is not None}
    )
    try:
        own = finished.data(**changes, cache_dir=cache_dir)
        found, said = own.classes, tuple(finished.report["data"]["classes"])
        if found != said:
            raise UserError(
                f"data: {classes_text(found)}, but the run's nets tell apart {classes_text(said)}"
            )
    except UserError as error:
        if needed:
            raise
        return None, str(error)
    return own, None


def classes_text(names: Sequence[str]) -> str:
    """The number of classes and the first ten names."""
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} classes ({shown})"
