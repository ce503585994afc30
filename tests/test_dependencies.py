"""All dependencies are pinned."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kd.command import CONF

ROOT = CONF.parent


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    return [
        each for each in map(Requirement, [*project["dependencies"], *extras]) if each.name != "kd"
    ]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    found = {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines)
    }
    assert len(found) == len(lines)
    return found


def test_each_dependency_is_pinned_to_a_version_that_is_accepted() -> None:
    pinned = pins()
    for each in declared():
        assert each.specifier.contains(pinned[canonicalize_name(each.name)]), each


@pytest.mark.slow
def test_what_those_depend_on_is_pinned_too() -> None:
    pinned = pins()
    open_ends, seen = [each.name for each in declared()], set[str]()
    while open_ends:
        name = canonicalize_name(open_ends.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = [Requirement(each) for each in requires(name) or ()]
        except PackageNotFoundError:
            continue  # an extra that is not installed here
        open_ends += [
            each.name
            for each in needed
            if each.marker is None or each.marker.evaluate({"extra": ""})
        ]
    assert not seen - pinned.keys() - {"setuptools"}


def test_releases_that_carried_malware_are_refused() -> None:
    (lightning,) = [each for each in declared() if each.name == "lightning"]
    assert not any(lightning.specifier.contains(bad) for bad in ("2.6.1", "2.6.2", "2.6.3"))
    assert lightning.specifier.contains("2.6.4")


@pytest.mark.slow
def test_a_wheel_has_the_configs_and_works_from_any_folder(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(tmp_path),
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert {
        each.name for each in (tmp_path / "site").iterdir() if not each.name.endswith(".dist-info")
    } == {"kd"}
    command = [
        sys.executable,
        "-m",
        "kd.train",
        "model=mlp_to_mlp",
        "--cfg",
        "job",
        "--package",
        "student.net",
    ]
    here = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kd.nets.mlp.MLP" in done.stdout
