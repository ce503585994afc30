"""The code behind a config's `_target_`s, as part of a stage's key.

Somebody's own net or loss may be edited between two runs; the result of the old code must not pass for that of the new.
"""

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

# Part of every key. Raise it when a change to the project changes what training gives.
RECIPE = 7

PACKAGES = {
    "site-packages",
    "dist-packages",
}  # of a user or of the system, which sysconfig does not tell
INSTALLED = tuple(sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib"))


def code_of(*nodes: Mapping[str, Any]) -> dict[str, str]:
    """A hash for each module that a `_target_` lives in and those it imports, whatever their comments and docstrings.

    Nor does a class's `taps` change it, its choice of where to be looked at: those in use are in the key themselves.

    Installed packages are left out: their versions stand in the report. So is what is imported from `kd`, for which
    `RECIPE` stands.
    """
    found: dict[str, str] = {}
    left = [str(node.get("_target_", "")) for node in nodes]
    while left:
        if not (file := _source_file(left.pop())) or file[0] in found:
            continue
        try:
            tree = ast.parse(file[1].read_bytes())
        except (SyntaxError, ValueError):
            continue  # not what is used, since Python could not read it either
        left += [each for each in _imported(tree, *file) if each.partition(".")[0] != __package__]
        found[file[0]] = hashlib.sha256(_bare(tree).encode()).hexdigest()[:16]
    return found


def _imported(tree: ast.Module, name: str, path: Path) -> list[str]:
    """What a module imports, as `_source_file` takes it; of `from a import b`, b may be a module or something in a."""
    inside = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) - node.level + 1] if node.level else []
            whole = ".".join([*start, *([node.module] if node.module else [])])
            found += [f"{whole}.{alias.name}" for alias in node.names]
    return [f"{each}._" for each in found]


def _source_file(target: str) -> tuple[str, Path] | None:
    """The module that a dotted path starts with, and its file; None for an installed or built-in one."""
    package, *names = target.split(".")[:-1] or [""]
    spec = _spec(package, None)
    for name in names:  # step by step, so that nothing is imported: torch takes seconds
        inner = _spec(f"{spec.name}.{name}", spec.submodule_search_locations) if spec else None
        if inner is None:
            break  # not a module but a class in one
        spec = inner
    if (
        spec is None
        or not spec.origin
        or not spec.origin.endswith(".py")
        or spec.origin.startswith(INSTALLED)
    ):
        return None
    path = Path(spec.origin)
    return None if PACKAGES & set(path.parts) else (spec.name, path)


def _spec(name: str, inside: list[str] | None) -> ModuleSpec | None:
    """Where a module is; one of a package is looked for in the package's folders."""
    if "." in name:
        return PathFinder.find_spec(name, inside) if inside else None
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _bare(tree: ast.Module) -> str:
    """A module's text without comments, docstrings and `taps`; takes them out of the tree."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.ClassDef):
            node.body = [each for each in node.body if not _is_taps(each)] or [ast.Pass()]
    return ast.unparse(tree)


def targets(node: Any) -> list[Mapping[str, Any]]:
    """All nodes in a config that name code, at any depth."""
    if isinstance(node, list):
        return [found for each in node for found in targets(each)]
    if not isinstance(node, Mapping):
        return []
    own = (
        [node]
        if "_target_" in node
        else [{"_target_": f"kd.config.schedules.{node['schedule']}"}]
        if "schedule" in node
        else []
    )
    return own + [found for each in node.values() for found in targets(each)]


def _is_taps(statement: ast.stmt) -> bool:
    names = [statement.name] if isinstance(statement, ast.FunctionDef) else []
    if isinstance(statement, ast.Assign):
        names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return names == ["taps"]
