"""The code behind a config's `_target_`s, as part of a stage's key.

Somebody's own net or loss may be edited between two runs; the result of the old code must not pass for that of the new.
"""

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

INSTALLED = tuple(sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib"))


def code_of(*nodes: Mapping[str, Any]) -> dict[str, str]:
    """A hash for each module that a `_target_` lives in; comments, docstrings and layout do not change it.

    Installed packages are left out: their versions stand in the report.
    """
    files = (_source_file(str(node.get("_target_", ""))) for node in nodes)
    return {
        name: hashlib.sha256(_bare(path.read_text()).encode()).hexdigest()[:16] for name, path in filter(None, files)
    }


def _source_file(target: str) -> tuple[str, Path] | None:
    """The module that a dotted path starts with, and its file; None for an installed or built-in one."""
    module = target.rpartition(".")[0]
    while module:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None  # not a module but a class in one: look one step up
        if spec and spec.origin:
            mine = spec.origin.endswith(".py") and not spec.origin.startswith(INSTALLED)
            return (module, Path(spec.origin)) if mine else None
        module = module.rpartition(".")[0]
    return None


def _bare(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
