"""Hugging Face: a finished run's student as a folder for its hub, pushed there, and loaded back."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import yaml
from rich.console import Console

from kd.errors import UserError
from kd.files.header import HUB_CONFIG, HUB_WEIGHTS, STUDENT, header_of
from kd.files.report_file import Report
from kd.files.writing import whole
from kd.reports.model_card import model_card
from kd.runs.reader import FinishedRun
from kd.shipping.requests import HUB_NAME, Publish

T = TypeVar("T")
LIBRARY = "kd"


def publish(finished: FinishedRun, config: Publish, command: str) -> Path:
    """Write the folder, and push it where that is asked for; prints where it is.

    Args:
        command: command line that repeats it; the run's own is in the card.

    Returns:
        the folder.

    Raises:
        UserError: the run has no student, nobody is logged in, or the hub does not answer.
    """
    header = header_of(finished.folder / STUDENT)
    if header is None or "student" not in finished.roles:
        raise UserError(f"{finished.folder}: the run has no student in {STUDENT} to publish")
    if config.push:
        _check_login()
    folder = finished.room(config.out, "huggingface")
    with whole(folder / HUB_WEIGHTS) as temporary:
        shutil.copyfile(finished.folder / STUDENT, temporary)
    texts = {
        HUB_CONFIG: json.dumps(_config(header), indent=2) + "\n",
        "README.md": _card(finished.report, config),
    }
    for name, text in texts.items():
        with whole(folder / name) as temporary:
            temporary.write_text(text)
    console = Console()
    console.print(f"Written: {folder}", highlight=False, markup=False, soft_wrap=True)
    if config.push:
        _push(folder, config.push, config.private)
        console.print(
            f"Pushed: https://huggingface.co/{config.push}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return folder


def _config(header: dict[str, object]) -> dict[str, object]:
    """Return `config.json`: what a reader without kd needs. The weights' header has it too."""
    classes = header["classes"]
    assert isinstance(classes, list)
    return {
        "library_name": LIBRARY,
        "architectures": [header["net"]],
        "num_labels": len(classes),
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
        **{name: header.get(name) for name in ("shape", "mean", "std", "reading", "multilabel")},
    }


def _card(report: Report, config: Publish) -> str:
    """Return the model card, with the metadata that the hub reads at its top."""
    student = report.student
    task = {"type": "image-classification", "name": "Image classification"}
    measured = [("accuracy", "Accuracy", student.test.accuracy)]
    if student.test.map is not None:
        measured.append(("mean_average_precision", "Mean average precision", student.test.map))
    metrics = [{"type": a, "value": round(value, 6), "name": b} for a, b, value in measured]
    result = {
        "task": task,
        "dataset": {"type": report.data.name, "name": report.data.name, "split": "test"},
        "metrics": metrics,
    }
    about = {
        **({"license": config.license} if config.license else {}),
        "library_name": LIBRARY,
        "pipeline_tag": "image-classification",
        "tags": ["knowledge-distillation", "image-classification"],
        "metrics": [each["type"] for each in metrics],
        "model-index": [{"name": report.name, "results": [result]}],
    }
    place = f"hf:{config.push}" if config.push else "PATH/TO/THIS/FOLDER"
    front = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{model_card(report, place)}"


def _check_login() -> None:
    _import_hub("push")
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(
            "push: nobody is logged in to Hugging Face; type `hf auth login`, or set HF_TOKEN"
        )
    if not _has_network():
        raise UserError("push: there is no network to the Hugging Face hub")


def _push(folder: Path, name: str, private: bool) -> None:
    from huggingface_hub import HfApi

    api = HfApi()

    def upload() -> None:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name)

    _answer(upload, f"push: {name}")


def download(name: str, where: str) -> Path:
    """Return the weights of a model on the Hugging Face hub, from its cache where they are there.

    Args:
        name: USER/NAME, or with a revision USER/NAME@REVISION.
        where: name of the path, for messages.

    Raises:
        UserError: there is no such model, or the hub does not answer.
    """
    model, _, revision = name.partition("@")
    if not HUB_NAME.fullmatch(model):
        raise UserError(f"{where}: found 'hf:{name}'; accepted is hf:USER/NAME")
    _import_hub(where)
    from huggingface_hub import hf_hub_download

    online = _has_network()
    at = revision or None
    try:
        found = _answer(
            lambda: hf_hub_download(model, HUB_WEIGHTS, revision=at, local_files_only=not online),
            f"{where}: hf:{name}",
        )
    except UserError as error:
        if online:
            raise
        raise UserError(
            f"{where}: hf:{name} is not on this machine, and there is no network to the Hugging "
            "Face hub"
        ) from error
    return Path(found)


def _answer(ask: Callable[[], T], where: str) -> T:
    """Return the hub's answer, its errors as one message."""
    try:
        return ask()
    except Exception as error:  # its own kinds, and those of the network below it
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"{where}: the Hugging Face hub did not answer: {reason}") from error


def _has_network() -> bool:
    """Whether the hub's name is known here; without, huggingface_hub tries for half a minute."""
    from huggingface_hub.constants import ENDPOINT

    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def _import_hub(where: str) -> None:
    try:
        import huggingface_hub  # noqa: F401 - only whether it is there
    except ImportError:
        raise UserError(
            f"{where}: huggingface_hub is not installed: pip install 'kd[huggingface]'"
        ) from None
