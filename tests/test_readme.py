"""Instructions of README and docs work."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hydra import compose, initialize_config_dir
from nbclient import NotebookClient
from PIL import Image
from processes import Process
from shipped import CLASSES, Shipped

from kd.command import CONF, folder_of
from kd.config.checking import check_as
from kd.config.schema import Command, check
from kd.evaluation.requests import Benchmark, Evaluate
from kd.incremental import as_group
from kd.predict import Predict
from kd.shipping.requests import Export
from kd.tasks.schedule import check as check_tasks

ROOT = CONF.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    path: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", "\n".join(PAGES.values()), flags=re.M | re.S)
OWN = re.findall(r"^```(\w+)\n(.*?)^```", PAGES[ROOT / "docs" / "own.md"], flags=re.M | re.S)
COMMANDS = [
    line.partition("  #")[0].strip()
    for kind, text in BLOCKS
    if kind == "bash"
    for line in text.replace("\\\n", " ").splitlines()
    if line.startswith("python -m kd.train") and "/RUN" not in line  # a run that is not there
]


def test_the_two_commands_are_within_twenty_lines() -> None:
    first = README.splitlines()[:20]
    assert any(line.startswith("make train") for line in first)
    assert any(line.startswith("make test") for line in first)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str) -> None:
    overrides = [word for word in shlex.split(command)[3:] if "=" in word]
    overrides = [word for word in overrides if not word.startswith("hydra")]
    if " -m kd.train -m " in command or "sweep=" in command:  # of a sweep, its first job
        overrides = [word.partition(",")[0] for word in overrides]
    if "--config-dir" in command:
        overrides = [
            word
            for word in overrides
            if not word.startswith(("loss=", "student=", "data=", "experiment="))
        ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        check(compose("train", [*overrides, "name=test"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"), [("evaluate", Evaluate), ("benchmark", Benchmark), ("export", Export)]
)
def test_commands_about_a_run_compose(name: str, model: type[Command]) -> None:
    lines = [
        line.partition("  #")[0]
        for _, text in BLOCKS
        for line in text.splitlines()
        if f"kd.{name} run=" in line
    ]
    assert lines
    for line in lines:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            check_as(model, compose(name, shlex.split(line)[3:]))


@pytest.mark.slow
def test_commands_for_new_classes_compose() -> None:
    lines = [
        line.partition("  #")[0]
        for _, text in BLOCKS
        for line in text.splitlines()
        if "kd.incremental" in line
    ]
    assert len(lines) > 3
    for line in lines:
        words = [
            word.partition(",")[0] if " -m inc" in line else word
            for word in as_group(shlex.split(line)[3:])
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            check_tasks(
                compose("incremental", [*(word for word in words if "=" in word), "name=test"])
            )


def test_predict_lines_compose() -> None:
    lines = [
        line for _, text in BLOCKS for line in text.splitlines() if "kd.predict model=" in line
    ]
    assert lines
    for line in lines:
        with initialize_config_dir(str(folder_of("predict")), version_base="1.3"):
            check_as(
                Predict,
                compose(
                    "predict", shlex.split(line.replace("preds.csv", str(CONF / "preds.csv")))[3:]
                ),
            )


@pytest.mark.slow
def test_the_five_lines_of_python_run(shipped: Shipped, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (text for kind, text in BLOCKS if kind == "python" and "from kd import load" in text)
    assert len([line for line in block.splitlines() if line]) <= 5
    at = {"outputs/runs/RUN": shipped.run, "photos/cats/0": shipped.photos / "cat/01"}
    at["photos/dogs/0"] = shipped.photos / "dog/01"
    for written, real in at.items():
        assert written in block
        block = block.replace(written, str(real))
    exec(block, {})
    said = ast.literal_eval(capsys.readouterr().out)
    assert len(said) == 2
    assert set(said) <= set(CLASSES)


def test_make_targets_exist() -> None:
    makefile = (CONF.parent / "Makefile").read_text()
    for target in re.findall(
        r"\bmake ([a-z-]+)", "\n".join(text for kind, text in BLOCKS if kind == "bash")
    ):
        assert re.search(rf"^{target}:.*## ", makefile, flags=re.MULTILINE), target


@pytest.mark.slow
def test_own_files_run(tmp_path: Path) -> None:
    written = 0
    for kind, text in OWN:
        name = re.match(r"(?:# @package _global_\n)?# (\S+\.(?:py|yaml))\n", text)
        if kind in ("python", "yaml") and name:
            path = tmp_path / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            written += 1
    assert written >= 4
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(100):
            Image.new("RGB", (40, 30), (i, 100 if name == "cats" else 200, 0)).save(
                tmp_path / f"photos/{name}/{i}.png"
            )
    runs = [
        text.splitlines()[1:] for kind, text in OWN if kind == "bash" and text.startswith("# run\n")
    ]
    assert runs
    for line in runs[0]:
        words = [
            *shlex.split(line.partition("  #")[0])[2:],
            "batch_size=32",
            "teacher.batch_size=32",
        ]
        # A ResNet-18 takes a minute
        words += ["pictures=false", *(["teacher.net.width=8"] if "mlp" not in line else [])]
        done = Process(
            *words, cwd=tmp_path, environment={**os.environ, "PYTHONPATH": str(tmp_path)}
        ).wait()
        assert done.returncode == 0, done.stderr
        assert "Report: " in done.stdout


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[page]):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kd_loss" in (tmp_path / "api" / "index.html").read_text()


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    for cell in notebook.cells:  # as written it trains for half a minute
        cell.source = cell.source.replace("range(15)", "range(1)").replace("epochs=15", "epochs=1")
    done = NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    said = "".join(
        output.get("text", "") for cell in done.cells for output in cell.get("outputs", [])
    )
    assert "student" in said
    assert "torch.Size([2, 10])" in said
