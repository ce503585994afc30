"""Architecture rules."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

KD = Path(__file__).parents[1] / "kd"
FILES = sorted(KD.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_there_is_code_to_look_at() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(KD)))
def test_functions_are_short_and_names_say_what(path: Path) -> None:
    assert not {part.removesuffix(".py") for part in path.relative_to(KD).parts} & {
        "utils",
        "helpers",
        "common",
        "misc",
    }
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= 50, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("function", ["training/fit.py fit", "runs/run.py run"])
def test_the_two_ways_in_fit_on_a_screen(function: str) -> None:
    """With their docstrings; and what belongs together is one argument."""
    file, name = function.split()
    (node,) = (
        node
        for node in parsed(KD / file).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    assert (node.end_lineno or 0) - node.lineno + 1 < 50
    assert len([*node.args.args, *node.args.kwonlyargs]) <= 6


def test_the_training_class_is_small() -> None:
    assert len((KD / "training" / "distiller.py").read_text().splitlines()) <= 150


def test_the_training_step_neither_asks_for_types_nor_logs() -> None:
    """Teachers share a protocol, and `StepLog` decides what is logged."""
    tree = parsed(KD / "training" / "distiller.py")
    (step,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "training_step"
    )
    calls = {ast.unparse(node.func) for node in ast.walk(step) if isinstance(node, ast.Call)}
    assert "self.objective" in calls
    assert not calls & {"isinstance", "getattr", "type", "self.log", "self.log_dict"}


@pytest.mark.slow
def test_only_one_lightning_module() -> None:
    classes = [
        node.name
        for path in FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
        and any("LightningModule" in ast.unparse(base) for base in node.bases)
    ]
    assert classes == ["Distiller"]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize(
    "path", sorted((KD / "losses").glob("[!_]*.py")), ids=lambda path: path.stem
)
def test_losses_import_torch_only_and_have_their_yaml(path: Path) -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    foreign = {
        name
        for name in _imports(path)
        if name.split(".")[0] not in allowed and not name.startswith("kd.losses")
    }
    assert not foreign
    assert (KD.parent / "conf" / "loss" / f"{path.stem}.yaml").exists()


def test_nets_know_neither_role_nor_loss() -> None:
    for path in (KD / "nets").glob("*.py"):
        assert not {
            name
            for name in _imports(path)
            if name.startswith(("kd.losses", "kd.training.objective", "kd.teachers"))
        }


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "kd.train",
        "kd.report",
        "kd.summary",
        "kd.evaluate",
        "kd.benchmark",
        "kd.dashboard",
        "kd.export",
        "kd.publish",
        "kd.predict",
        "kd",
    ],
)
def test_training_code_is_not_imported_before_it_is_needed(module: str) -> None:
    # `--help`, a misspelt key and a table of many runs must not wait for torch.
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'lightning', 'sklearn') if m in "
        "sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=KD.parent
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.slow
def test_what_trains_nothing_needs_no_lightning() -> None:
    # Two thirds of all imports. A run that finds all its stages, and what reads finished runs.
    names = "kd.runs.run", "kd.evaluation.evaluation", "kd.shipping.export_run"
    slow = {"lightning", "torchmetrics", "torchvision"}
    code = f"import sys, {', '.join(names)}; print({slow} & sys.modules.keys() or False)"
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=KD.parent)
    assert out.stdout.strip() == "False"


# From the bottom up: a row may import only from rows before it.
FLOORS = [
    {"losses", "shape", "log", "errors"},
    {"files", "ranks"},
    {"config"},
    {"data", "command"},
    {"nets", "dashboard"},
    {"measure", "teachers"},
    {"training"},
    {"stages"},
    {"reports"},
    {"runs", "summary"},
    {"shipping", "tasks", "tuning"},
    {"evaluation", "comparison"},
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(KD)))
def test_folders_import_only_those_below_them(path: Path) -> None:
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    own = path.relative_to(KD).parts[0].removesuffix(".py")
    others = {f"{name}.".split(".")[1] for name in _imports(path) if name.startswith("kd.")} - {own}
    commands = len(FLOORS)
    assert all(floor.get(each, commands) < floor.get(own, commands + 1) for each in others)


def test_no_two_files_import_each_other() -> None:
    """Imports for type checkers alone count too."""
    names = {
        ".".join(path.relative_to(KD.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    graph = {name: (_imports(path) & set(names)) - {name} for name, path in names.items()}
    assert sum(map(len, graph.values())) > 500
    TopologicalSorter(graph).prepare()


@pytest.mark.slow
def test_no_name_of_a_class_or_type_stands_twice() -> None:
    """A type is a class, or a capitalised name in lower case letters that a module gives to another
    type.
    """
    places: dict[str, set[Path]] = {}
    for path in FILES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, set()).add(path)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                types = (ast.Subscript, ast.Name, ast.BinOp, ast.Attribute)
                if name[0].isupper() and not name.isupper() and isinstance(node.value, types):
                    places.setdefault(name, set()).add(path)
    assert not {name: where for name, where in places.items() if len(where) > 1}


# Participles that do not end in -ed, and words in -ed that are none.
# fmt: off
IRREGULAR = frozenset(
    {
        "begun",
        "bought",
        "broken",
        "brought",
        "built",
        "chosen",
        "done",
        "drawn",
        "found",
        "frozen",
        "given",
        "gone",
        "heard",
        "held",
        "hidden",
        "kept",
        "laid",
        "left",
        "lost",
        "made",
        "said",
        "seen",
        "sent",
        "shown",
        "sold",
        "spoken",
        "taken",
        "taught",
        "thought",
        "thrown",
        "told",
        "torn",
        "understood",
        "won",
        "worn",
        "written",
    }
)
# fmt: on
OTHER_IN_ED = {"embed", "feed", "need", "seed", "speed", "unlabeled", "unused"}
PREPOSITIONS = {
    "apart",
    "as",
    "at",
    "by",
    "elsewhere",
    "from",
    "in",
    "of",
    "on",
    "over",
    "to",
    "with",
}
# Targets that runs on disk and configs name.
PUBLIC = {"kd.nets.cnn_pooled", "kd.nets.given", "Grown"}


def _is_participle(word: str) -> bool:
    return (word.endswith("ed") and word not in OTHER_IN_ED) or word in IRREGULAR


def _ends_as_participle(name: str) -> bool:
    """`watched`, `_checked`, `Frozen` and `seen_by`; `is_rounded` asks a question and may."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)]
    if not words or words[0] in ("is", "has"):
        return False
    inner = any(_is_participle(a) and b in PREPOSITIONS for a, b in pairwise(words))
    return _is_participle(words[-1]) or inner


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("watched", True),
        ("_told", True),
        ("Frozen", True),
        ("seen_by", True),
        ("FrozenTeacher", False),
        ("speed", False),
        ("is_rounded", False),
        ("feed_forward", False),
    ],
)
def test_a_participle_is_recognised(name: str, expected: bool) -> None:
    assert _ends_as_participle(name) == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(KD)))
def test_modules_classes_and_functions_are_nouns_or_verbs(path: Path) -> None:
    names = {
        node.name
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    module = ".".join(path.relative_to(KD.parent).with_suffix("").parts)
    if module not in PUBLIC:
        names.add(path.stem)
    assert not {name for name in names - PUBLIC if _ends_as_participle(name)}


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _loops(node: ast.AST) -> int:
    """How many `for` stand in each other in the comprehensions of an expression."""
    inner = max((_loops(child) for child in ast.iter_child_nodes(node)), default=0)
    return inner + (len(node.generators) if isinstance(node, COMPREHENSIONS) else 0)


def _is_chained(node: ast.AST) -> bool:
    """`a if x else b if y else c`."""
    branches = (node.body, node.orelse) if isinstance(node, ast.IfExp) else ()
    return any(isinstance(branch, ast.IfExp) for branch in branches)


def _is_several_assignments(node: ast.AST) -> bool:
    """`a, b = x, y`; unless they are exchanged (`a, b = b, a`), or literals of one kind."""
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Tuple):
        return False
    if not isinstance(node.value, ast.Tuple):
        return False
    targets, values = node.targets[0].elts, node.value.elts
    if any(isinstance(each, ast.Starred) for each in (*targets, *values)):
        return False
    if all(isinstance(each, ast.Constant) for each in values):
        return len({type(each.value) for each in values if isinstance(each, ast.Constant)}) > 1
    read = {ast.unparse(part) for each in values for part in ast.walk(each)}
    read |= {ast.unparse(p) for each in targets for p in list(ast.walk(each))[1:]}
    return not read & {ast.unparse(each) for each in targets}


@pytest.mark.parametrize(
    ("code", "flagged"),
    [
        ("a, b = f(), []", True),
        ("self.a, self.b = a, b", True),
        ("rows, start = None, 0", True),
        ("a, b = b, a", False),
        ("d[i], d[j] = d[j], d[i]", False),
        ("low, high = 0.1, 0.9", False),
        ("a, b = pair", False),
        ("x = 1 if a else 2 if b else 3", True),
        ("x = f(1 if a else 2) if b else 3", False),
        ("x = [i for a in b for i in a]", False),
        ("x = [[[i for i in j] for j in k] for k in l]", True),
    ],
)
def test_dense_code_is_recognised(code: str, flagged: bool) -> None:
    assert bool(_dense(ast.parse(code))) == flagged


def _dense(tree: ast.Module) -> list[str]:
    return [
        f"line {node.lineno}: {ast.unparse(node)[:90]}"
        for node in ast.walk(tree)
        if isinstance(node, ast.expr | ast.stmt)
        and (
            _is_chained(node)
            or _is_several_assignments(node)
            or (isinstance(node, COMPREHENSIONS) and _loops(node) > 2)
        )
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(KD)))
def test_one_thought_a_line(path: Path) -> None:
    assert not _dense(parsed(path))


# The share of annotations that mention `Any`, or a name given to a type with `Any` in it, at most.
ANY = 0.02


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Of arguments, results and names, each once."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            yield node.annotation
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            yield node.returns


def _words(node: ast.expr) -> set[str]:
    return set(re.findall(r"\w+", ast.unparse(node)))


@pytest.mark.slow
def test_few_annotations_mention_any() -> None:
    trees = [parsed(path) for path in FILES]
    names = {"Any"}
    for tree in trees:
        names |= {
            ast.unparse(node.targets[0])
            for node in tree.body
            if isinstance(node, ast.Assign) and "Any" in _words(node.value)
        }
    found = [each for tree in trees for each in _annotations(tree)]
    untyped = [each for each in found if names & _words(each)]
    assert len(found) > 4000
    assert len(untyped) / len(found) < ANY, f"{len(untyped)} of {len(found)}"
