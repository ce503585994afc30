"""Hashes of the code behind a config's `_target_`s, for a stage's key.

A user's net or loss may change between two runs; a result of the old code must not be reused.
"""

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

# Part of every key. Raise it when a change to the project changes what training gives.
RECIPE = 12

# Of users or the system; sysconfig does not list them
PACKAGES = {"site-packages", "dist-packages"}
INSTALLED = tuple(sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib"))


def code_of(*nodes: Mapping[str, object]) -> dict[str, str]:
    """Hash each module of a `_target_` and those it imports, without comments and docstrings.

    A class's `taps` do not count: the layers in use are in the key themselves.

    Installed packages are left out; their versions are in the report. So is what a module imports
    of `kd`, which `RECIPE` covers: a new message in `kd.errors` trains no teacher again.
    """
    found: dict[str, str] = {}
    left = [str(node.get("_target_", "")) for node in nodes]
    while left:
        if not (file := _source_file(left.pop())) or file[0] in found:
            continue
        try:
            tree = ast.parse(file[1].read_bytes())
        except (SyntaxError, ValueError):
            continue  # unused, since Python could not read it either
        left += [each for each in _imports(tree, *file) if not each.startswith("kd.")]
        found[file[0]] = hashlib.sha256(_bare(tree).encode()).hexdigest()[:16]
    return found


def _imports(tree: ast.Module, name: str, path: Path) -> list[str]:
    """List what a module imports, for `_source_file`; in `from a import b`, b may be a module."""
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
    """Find the module at the start of a dotted path, with its file; None if installed or built
    in.
    """
    package, *names = target.split(".")[:-1] or [""]
    spec = _spec(package, None)
    for name in names:  # step by step, so that nothing is imported: torch takes seconds
        inner = _spec(f"{spec.name}.{name}", spec.submodule_search_locations) if spec else None
        if inner is None:
            break  # a class inside the module
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
    """Find a module's spec; that of a submodule in its package's folders."""
    if "." in name:
        return PathFinder.find_spec(name, inside) if inside else None
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _bare(tree: ast.Module) -> str:
    """Return a module's source without comments, docstrings and `taps`; modifies the tree."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.ClassDef):
            node.body = [each for each in node.body if not _is_taps(each)] or [ast.Pass()]
    return ast.unparse(tree)


def targets(node: object) -> list[Mapping[str, object]]:
    """List all nodes of a config that name code, at any depth."""
    if isinstance(node, list):
        return [found for each in node for found in targets(each)]
    if not isinstance(node, Mapping):
        return []
    own: list[Mapping[str, object]] = []
    if "_target_" in node:
        own = [node]
    elif "schedule" in node:
        own = [{"_target_": f"kd.config.schedules.{node['schedule']}"}]
    return own + [found for each in node.values() for found in targets(each)]


def _is_taps(statement: ast.stmt) -> bool:
    names = [statement.name] if isinstance(statement, ast.FunctionDef) else []
    if isinstance(statement, ast.Assign):
        names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return names == ["taps"]
