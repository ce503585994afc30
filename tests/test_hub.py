"""A run's student as a Hugging Face folder: written, pushed, and loaded back."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from composed import composed_command
from shipped import CLASSES, SIZE, Shipped

import kd
from kd.errors import UserError
from kd.run_commands import command_of, read_request
from kd.runs.reader import open_run
from kd.shipping import hub
from kd.shipping.hub import publish
from kd.shipping.requests import Publish


def request(run: Path, *words: str) -> Publish:
    cfg = composed_command("publish", f"run={run}", *words)
    return read_request(command_of("publish"), cfg, set())  # type: ignore[return-value]


@pytest.fixture
def run(shipped: Shipped, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped.run, tmp_path / "run"))


@pytest.mark.slow
def test_the_folder_has_weights_config_and_card(run: Path) -> None:
    folder = publish(open_run(run), request(run, "license=mit"), "")
    assert sorted(each.name for each in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    about = json.loads((folder / "config.json").read_text())
    assert about["id2label"] == {str(i): name for i, name in enumerate(CLASSES)}
    assert about["shape"] == [3, SIZE, len(CLASSES)]
    _, front, card = (folder / "README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(front)
    assert (said["license"], said["pipeline_tag"]) == ("mit", "image-classification")
    report = json.loads((run / "report.json").read_text())
    (accuracy,) = said["model-index"][0]["results"][0]["metrics"]
    assert accuracy["value"] == pytest.approx(report["models"][-1]["test"]["accuracy"], abs=1e-6)
    assert "# Model card: shipped" in card
    images = torch.rand(3, 3, SIZE, SIZE)
    assert torch.equal(kd.load(folder)(images), kd.load(run)(images))


def test_pushing_makes_the_model_and_uploads_the_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"^push: nobody is logged in .*hf auth login"):
        publish(open_run(run), request(run, "push=me/small"), "")
    assert not (run / "huggingface").exists()
    calls: list[tuple[str, str, Any]] = []

    class Hub:
        def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
            calls.append(("create", name, private))

        def upload_folder(self, folder_path: Path, repo_id: str) -> None:
            calls.append(("upload", repo_id, folder_path.name))

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(hub, "_has_network", lambda: True)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    folder = publish(open_run(run), request(run, "push=me/small", "private=true"), "")
    assert calls == [("create", "me/small", True), ("upload", "me/small", "huggingface")]
    assert 'load("hf:me/small")' in (folder / "README.md").read_text()


def test_a_model_on_the_hub_needs_a_network(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_has_network", lambda: False)
    with pytest.raises(UserError, match=r"^path: hf:no/such is not on this machine, and there is"):
        kd.load("hf:no/such")
    with pytest.raises(UserError, match=r"^path: found 'hf:small'; accepted is hf:USER/NAME$"):
        kd.load("hf:small")
    with pytest.raises(UserError, match=r"^push: found 'small'; accepted are null and USER/NAME$"):
        request(run, "push=small")
    file = run / "student.safetensors"
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(file))
    assert kd.load("hf:me/small").classes == CLASSES
