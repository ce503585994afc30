"""Write the table of losses in docs/methods.md, from the files in conf/loss and kd/losses.

    python -m results.methods

The cost is that of one pair of nets, ResNet-56 and ResNet-20 with 100 classes. Where a method shone
is read from the tables in results.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kd.command import CONF
from kd.config.schema import Config  # noqa: F401 # registers the resolvers that conf/ uses
from kd.nets.hooks import KINDS, FeatureHooks, as_signals, build_arguments
from kd.nets.layer_paths import FeaturePaths, study
from kd.nets.pairing import pair
from kd.nets.resnet_cifar import ResNetCIFAR
from kd.shape import Shape
from kd.summary.significance import LEVEL, correct_gains
from kd.training.loss_spec import FEATURES, LossSpec, read_loss
from kd.training.objective import Objective
from results.make import Runs, Spec, gain, grouped, runs_of, specs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
BLOCK = re.compile(r"(<!-- losses -->\n).*?(<!-- end -->)", re.DOTALL)
SHAPE = Shape(3, 32, 100)
IMAGES, BATCH = 50_000, 8
FULL_BATCH = 64  # for layers as wide as a batch
HEADER = (
    "| `loss=` | paper | asks for | teacher | it trains | it adds | where it shone |",
    "|---|---|---|---|---|---|---|",
)


def page() -> str:
    """Return docs/methods.md with the table as it is now."""
    text = PAGE.read_text()
    return BLOCK.sub(lambda found: found[1] + "\n".join([*HEADER, *rows()]) + "\n" + found[2], text)


def rows() -> Iterator[str]:
    """Yield a row for each loss that kd.train takes."""
    nets = Pair()
    won = successes()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        base = compose("train", ["model=resnet56_to_resnet20", "data=cifar100"])
    OmegaConf.set_struct(base, False)
    base.loss = {}
    for path in sorted((CONF / "loss").glob("*.yaml")):
        node = OmegaConf.to_container(
            OmegaConf.unsafe_merge(base.copy(), *files(path)).loss, resolve=True
        )
        assert isinstance(node, dict)
        spec = read_loss({str(key): value for key, value in node.items()})
        if not any(term.command for term in spec.terms):
            yield row(path, spec, nets, won.get(path.stem, {}))


def successes() -> dict[str, dict[str, float]]:
    """Return by method the titles of the tables in which it gained beyond chance, with the largest
    gain in points.

    A row of a table counts if its corrected p is below 5 %: Holm's correction is over all rows of
    all tables.
    """
    found = [
        (method_of(spec, runs), spec.title, gain(runs))
        for name, spec in specs().items()
        for runs in grouped(runs_of(name), spec.rows).values()
    ]
    sure = correct_gains([each for *_, each in found])
    won: dict[str, dict[str, float]] = {}
    for (method, title, _), each in zip(found, sure, strict=True):
        if each.corrected is None or each.corrected >= LEVEL or not each.mean or each.mean < 0:
            continue
        tables = won.setdefault(method, {})
        tables[title] = max(tables.get(title, 0.0), 100 * each.mean)
    return won


def method_of(spec: Spec, runs: Runs) -> str:
    """Return the file of conf/loss that a table's row used: in its CSV or its command, or `kd`."""
    if said := runs[0].get("loss"):
        return said
    typed = re.search(r"\bloss=(\w+)", " ".join(spec.commands))
    return typed[1] if typed else "kd"


def files(path: Path) -> Iterator[DictConfig]:
    """Yield the content of the files that a loss's file builds on, and its own."""
    content = OmegaConf.load(path)
    assert isinstance(content, DictConfig)
    for other in content.pop("defaults", []):
        if other != "_self_":
            yield from files(path.with_name(f"{other}.yaml"))
    yield content


def row(path: Path, spec: LossSpec, nets: "Pair", won: Mapping[str, float]) -> str:
    """Return a loss's row.

    Args:
        won: gains in points, by the title of a table.
    """
    objective, added = nets.cost(spec)
    if spec.strong:
        added += nets.student_step
    asked = ", ".join(name for name in sorted(spec.signals))
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    kept = sum(value.numel() for value in objective.state_dict().values()) - sum(
        p.numel() for p in objective.parameters()
    )
    parts = [f"{trained:,}"] if trained else []
    if kept > 10_000:
        parts.append(f"keeps {kept:,}")
    share = f"{100 * added / nets.student_step:.1f} %" if added else "–"
    shone = "; ".join(f"{title}: {points:+.1f}" for title, points in won.items())
    first = (f"`{path.stem}`", paper(path), asked, teacher(spec), "; ".join(parts) or "–")
    return f"| {' | '.join((*first, share, shone))} |"


def paper(path: Path) -> str:
    """Return authors, year and title of a loss, as its file's comment has them; else how that
    begins.
    """
    lines = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    comment = " ".join(line for line in lines if not line.startswith("@"))
    found = re.search(r'([A-Z][^"(.]*(?: al\.)? (?:19|20)\d\d), "([^"]*)"', comment)
    return f"{found[1]}, {found[2]}" if found else re.split(r"[.:] ", comment)[0]


def teacher(spec: LossSpec) -> str:
    """Return how a loss's teacher answers."""
    if spec.teacher is None:
        return "none"
    if any(name in FEATURES for name in spec.signals if name.endswith("_t")):
        return "asked each step"
    return "the baseline, cached" if spec.teacher == "baseline" else "cached"


class Pair:
    """Two nets, and what a loss may ask for of them on a few random images."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.student = ResNetCIFAR(SHAPE.num_classes, 20)
        self.teacher = ResNetCIFAR(SHAPE.num_classes, 56).eval().requires_grad_(False)
        self.x = torch.randn(BATCH, *SHAPE.pixels)
        with FlopCounterMode(display=False) as counter:
            self.student(self.x).sum().backward()
        self.student_step = counter.get_total_flops()
        self.seen = {stem: self._look(stem) for stem in (False, True)}

    def _look(self, stem: bool) -> tuple[dict[str, Any], FeaturePaths, FeaturePaths]:
        signals: dict[str, Any] = {}
        paths = []
        taps = pair(self.student, self.teacher, None, None, SHAPE, stem=stem)
        for side, net, own in (("s", self.student, taps[0]), ("t", self.teacher, taps[1])):
            paths.append(study(net, own, SHAPE, where="taps"))
            output = FeatureHooks(net, paths[-1], KINDS)(net, self.x)
            signals |= as_signals(output, "s" if side == "s" else "t")
        return {name: _leaf(value) for name, value in signals.items()}, paths[0], paths[1]

    def cost(self, spec: LossSpec) -> tuple[Objective, int]:
        """Build a loss; return it, and the operations of a step in its terms and their gradient.

        Only matrix products and convolutions are counted.
        """
        seen, student, teacher = self.seen[spec.wants_stem]
        index = torch.arange(BATCH)
        signals = {"target": index, "index": index, "x": self.x, "epoch": 1, "progress": 0.5}
        labels = torch.arange(IMAGES) % SHAPE.num_classes
        sizes = build_arguments(student, teacher, labels, FULL_BATCH)
        if any(term.name == "deit_token" for term in spec.terms):
            logits = seen["logits_s"]  # its student's features are the logits of two heads
            seen = seen | {"feats_s": [logits, logits.detach().clone().requires_grad_()]}
            sizes = sizes | {"shapes_s": ((SHAPE.num_classes,),) * 2}
        signals |= {f"strong_{side}": seen[f"logits_{side}"] for side in "st"}
        objective = Objective(spec, SHAPE, build_arguments=sizes)
        with FlopCounterMode(display=False) as counter:
            objective(seen | signals)["loss"].backward()
        return objective, int(counter.get_total_flops())


def _leaf(value: Any) -> Any:
    if isinstance(value, list):
        return [_leaf(each) for each in value]
    if isinstance(value, nn.Module):
        return value
    assert isinstance(value, Tensor)
    return value.detach().requires_grad_()


if __name__ == "__main__":
    PAGE.write_text(page())
