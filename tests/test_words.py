"""Plain English: short sentences, lines of at most 100 columns, shapes of tensors."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KD = ROOT / "kd"
FOLDERS = sorted({path.relative_to(KD).parts[0] for path in KD.rglob("*.py")})
Function = ast.FunctionDef | ast.AsyncFunctionDef
VARIOUS = {"Mapping", "dict", "Callable"}
# A shape such as [B, C, H, W], [N], [...] or [].
SHAPE = re.compile(r"\[[A-Za-z0-9_., *+/()-]*\]|\bscalars?\b")


def files_of(folder: str) -> list[Path]:
    path = KD / folder
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def docstrings(folder: str) -> list[str]:
    nodes = (ast.walk(parsed(path)) for path in files_of(folder))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for each in nodes for node in each if isinstance(node, kinds))
    return [each for each in found if each]


def sentences(docstring: str) -> list[str]:
    """Split at full stops, blank lines, and items of lists and of Args, Returns and Raises.

    Commas, colons and semicolons end no sentence. Commands and headings are left out.
    """
    text = re.sub(r"^(Args|Returns|Raises|Yields|Attributes):$", "", docstring, flags=re.M)
    text = re.sub(r"^ *python -m.*$", "", text, flags=re.M)
    text = re.sub(r"\b(al|eq|e\.g|i\.e|Fig|vs)\.", r"\1", text)
    items = re.split(r"\n\s*\n|\n\s*- |\n    (?=\w[\w, ]*:)", text)
    ends = (each for item in items for each in re.split(r"[.!?]\s", item))
    return [each for each in ends if re.search(r"\w", each)]


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def test_a_sentence_ends_at_a_full_stop_or_with_its_item() -> None:
    text = "Follow Tian et al. 2020; one thought.\n\nArgs:\n    x: in pixels\n    y: [B, C]. Twice."
    assert [words(each) for each in sentences(text)] == [7, 3, 3, 1]


@pytest.mark.parametrize("folder", FOLDERS)
def test_sentences_of_docstrings_are_short(folder: str) -> None:
    lengths = [words(each) for text in docstrings(folder) for each in sentences(text)]
    assert sum(lengths) / max(1, len(lengths)) < 15
    assert max(lengths, default=0) <= 35


def test_lines_of_yaml_have_at_most_100_columns() -> None:
    """Hold for YAML what ruff's E501 holds for Python."""
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("conf", "results", "tests")
        for path in sorted((ROOT / folder).rglob("*.yaml"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line) > 100
    ]
    assert long == []


def holds_tensors(annotation: ast.expr | None) -> bool:
    """Whether a tensor is among the values; not in a mapping or a function, whose shapes vary."""
    if isinstance(annotation, ast.Name):
        return annotation.id == "Tensor"
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in VARIOUS:
        return False
    inner = ast.iter_child_nodes(annotation) if annotation else ()
    return any(holds_tensors(each) for each in inner if isinstance(each, ast.expr))


def tensor_functions(folder: str) -> Iterator[tuple[str, str]]:
    """Yield each public function that takes or gives a tensor, with its docstring."""
    for path in files_of(folder):
        tree = parsed(path)
        private = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, Function | ast.ClassDef)
            for inner in ast.walk(node)
            if inner is not node and (isinstance(node, Function) or node.name.startswith("_"))
        }
        for node in ast.walk(tree):
            if not isinstance(node, Function) or node.name.startswith("_") or id(node) in private:
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if any(map(holds_tensors, [each.annotation for each in arguments] + [node.returns])):
                yield f"{path.stem}.{node.name}", ast.get_docstring(node) or ""


@pytest.mark.parametrize("folder", FOLDERS)
def test_functions_of_tensors_say_their_shapes(folder: str) -> None:
    found = dict(tensor_functions(folder))
    assert [name for name, text in found.items() if not SHAPE.search(text)] == []
