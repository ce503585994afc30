"""Evaluating a finished run: on which images, what of each net, and its nets in pairs."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor, nn

from kd.data.base import Images
from kd.data.views import normalize, to_unit
from kd.errors import UserError
from kd.evaluation.evaluation_set import Judged, of_other, of_own
from kd.evaluation.evaluation_text import as_markdown, sentences, tables
from kd.evaluation.requests import Evaluate
from kd.files.writing import whole
from kd.log import waiting
from kd.measure.calibration import fit_temperature
from kd.measure.corruptions import corrupt
from kd.measure.metrics import ask, paired, probability_metrics, row_blocks, summary
from kd.nets.build import normalization_of
from kd.reports.provenance import made
from kd.runs.reader import Finished, own_data

SCHEMA = 1
PAIRS = (("student", "baseline"), ("student", "teacher"), ("baseline", "teacher"))
UNSCALED = ((0.0,), (1.0,))


def evaluate(finished: Finished, config: Evaluate, command: str) -> Path:
    """Evaluate a run's nets; print what comes out, and write it as `evaluation.json` and `evaluation.md`.

    Args:
        command: the line that repeats it.

    Returns:
        the file `evaluation.json`, or `evaluation_<data>.json` for another data set than the run's.

    Raises:
        UserError: the run's files or the data are not there, or do not fit each other.
    """
    folder = finished.room(config.out)
    classes = tuple(finished.report["data"]["classes"])
    nets, missing = finished.nets()
    other = "_target_" in config.data
    own, lacking = own_data(finished, config.data, f"{config.output_dir}/cache", needed=not other)
    judged = of_other(config.data, classes, finished.shape, own) if other else of_own(own)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "run": str(finished.folder),
        "name": finished.report["name"],
        **made(command),
        "data": {
            **{
                key: getattr(judged, key)
                for key in ("name", "root", "part", "other", "left_out", "skipped")
            },
            "images": len(judged.images),
            "fingerprint": judged.images.fingerprint,
            "classes": list(classes),
        },
        "missing": missing,
        "calibrated_on": {"validation": len(own.split.val) if own else 0, "reason": lacking},
        **compare(
            nets, finished, judged.images, own.split.val if own else None, flips=config.flips
        ),
    }
    if config.corruptions:
        found["corruptions"] = under_corruptions(
            nets, judged.images, config.corruptions, sorted(set(config.severities)), config.seed
        )
    return _publish(found, judged, folder)


def compare(
    nets: Mapping[str, nn.Module],
    finished: Finished,
    images: Images,
    val: Images | None,
    *,
    flips: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """Each net's metrics, and the nets in pairs.

    Args:
        val: the validation images that temperatures are fitted on; None fits none.
        flips: whether to judge each net also by the mean of its logits for an image and for its mirror image.

    Returns:
        `models`, a dictionary for each role, and `paired`, one for each pair of roles.
    """
    said = {model["role"]: model for model in finished.report["models"]}
    logits = {role: ask(net, images, normalization_of(net, UNSCALED)) for role, net in nets.items()}
    models = [
        {
            **{key: said[role][key] for key in ("role", "net", "params", "stage")},
            "test": judge(logits[role], images.labels, logits.get("teacher")),
            "calibrated": _calibrated(nets[role], logits[role], images.labels, val),
            "flipped": _flipped(nets[role], logits[role], images) if flips else None,
        }
        for role in nets
    ]
    pairs = [versus(a, b, logits, images.labels) for a, b in PAIRS if {a, b} <= set(nets)]
    return {"models": models, "paired": pairs}


def judge(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> dict[str, Any]:
    """All metrics of logits [N, C] against labels [N].

    Returns:
        those of `kd.measure.metrics.summary`, and `kl`, the divergence KL(teacher || model) in nats, mean over the
        images (None without a teacher), and `per_class`: for each class `support` (images of it), `precision` (None
        where it is never chosen) and `recall` (None where there is no image of it).
    """
    truth, chosen = labels.numpy(), logits.argmax(1).numpy()
    precision, recall, _, support = precision_recall_fscore_support(
        truth, chosen, labels=range(logits.shape[1]), zero_division=np.nan
    )
    per_class = [
        {
            "support": int(n),
            "precision": None if np.isnan(p) else float(p),
            "recall": None if np.isnan(r) else float(r),
        }
        for n, p, r in zip(support, precision, recall, strict=True)
    ]
    return {**summary(logits, labels, teacher), "kl": _kl(logits, teacher), "per_class": per_class}


def _kl(logits: Tensor, teacher: Tensor | None) -> float | None:
    if teacher is None:
        return None
    total = 0.0
    for _, own, other in row_blocks(logits, teacher):
        log_p, log_t = own.log_softmax(1), other.log_softmax(1)
        total += float(F.kl_div(log_p, log_t, reduction="sum", log_target=True))
    return max(0.0, total / len(logits))


def _flipped(net: nn.Module, logits: Tensor, images: Images) -> dict[str, Any]:
    """The accuracy by the mean of the logits for each image and for its mirror image."""
    other = ask(net, images, normalization_of(net, UNSCALED), mirrored=True)
    found = summary((logits + other) / 2, images.labels)
    return {key: found[key] for key in ("accuracy", "accuracy_ci95", "nll")}


def _calibrated(
    net: nn.Module, logits: Tensor, labels: Tensor, val: Images | None
) -> dict[str, Any] | None:
    """What of the metrics temperature scaling changes; None where no temperature could be fitted."""
    if val is None:
        return None
    temperature = fit_temperature(ask(net, val, normalization_of(net, UNSCALED)), val.labels)
    if temperature is None:
        return None
    return {"temperature": temperature, **probability_metrics(logits, labels, temperature)}


def versus(first: str, second: str, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Any]:
    """Two nets on the same images: `difference` in accuracy (first - second) with interval and p, see `paired`.

    `only_first` and `only_second` are the images that only that one gets right, on which McNemar's test rests.
    """
    found = paired(logits[first], logits[second], labels)
    right, other = (logits[role].argmax(1) == labels for role in (first, second))
    return {
        "first": first,
        "second": second,
        "difference": found["gain"],
        "difference_ci95": found["gain_ci95"],
        "p_value": found["p_value"],
        "only_first": int((right & ~other).sum()),
        "only_second": int((other & ~right).sum()),
    }


@torch.no_grad()
def under_corruptions(
    nets: Mapping[str, nn.Module],
    images: Images,
    names: Sequence[str],
    severities: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """Accuracy of each net on corrupted images; see `kd.measure.corruptions`.

    Returns:
        `severities`, `seed`, `accuracy` by role, corruption and severity (as a string), and `mean` over both by role.
    """
    channels = images.pixels.shape[1]
    if channels not in (1, 3):
        raise UserError(
            f"corruptions: the images have {channels} channels; accepted are 1 (gray) and 3 (RGB)"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    right = {
        role: {name: dict.fromkeys(map(str, severities), 0) for name in names} for role in nets
    }
    size = images.pixels.batch
    steps = list(itertools.product(names, severities, range(0, len(images), size)))
    for net in nets.values():
        net.to(device).eval()
    for name, severity, i in waiting(steps, "corrupting images"):
        index = np.arange(i, min(i + size, len(images)))
        pixels = corrupt(images.pixels[i : i + size].numpy(), index, name, severity, seed)
        x, labels = to_unit(torch.from_numpy(pixels).to(device)), images.labels[i : i + size]
        for role, net in nets.items():
            chosen = net(normalize(x, *normalization_of(net, UNSCALED))).argmax(1).cpu()
            right[role][name][str(severity)] += int((chosen == labels).sum())
    for net in nets.values():
        net.cpu()
    accuracy = {
        role: {
            name: {level: n / len(images) for level, n in levels.items()}
            for name, levels in each.items()
        }
        for role, each in right.items()
    }
    mean = {
        role: float(np.mean([list(levels.values()) for levels in each.values()]))
        for role, each in accuracy.items()
    }
    return {"severities": list(severities), "seed": seed, "accuracy": accuracy, "mean": mean}


def _publish(found: Mapping[str, Any], judged: Judged, folder: Path) -> Path:
    file = _free_name(folder, judged, found)
    there = file.exists()
    for path, text in (
        (file, json.dumps(found, indent=1)),
        (file.with_suffix(".md"), as_markdown(found)),
    ):
        with whole(path) as temporary:
            temporary.write_text(text + "\n")
    console = Console()
    for table in tables(found):
        console.print(table)
    for line in sentences(found):
        console.print(line, highlight=False, markup=False)
    replaced = " (in place of an earlier one of the same images)" if there else ""
    console.print(
        f"Written: {file.with_suffix('.md')}{replaced}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return file


def _free_name(folder: Path, judged: Judged, found: Mapping[str, Any]) -> Path:
    """A name that no evaluation has, but one of the same run on the same images."""
    words = (
        [judged.name, Path(judged.root).name]
        if judged.other and judged.name == "image_folder"
        else [judged.name]
    )
    stem = "_".join(["evaluation", *(words if judged.other else [])])
    for i in itertools.count(1):
        file = folder / (f"{stem}.json" if i == 1 else f"{stem}_{i}.json")
        try:
            earlier = json.loads(file.read_text())
            same = (earlier["run"], earlier["data"]["fingerprint"]) == (
                found["run"],
                found["data"]["fingerprint"],
            )
        except FileNotFoundError:
            return file
        except (ValueError, KeyError, TypeError):
            same = False
        if same:
            return file
    raise AssertionError
