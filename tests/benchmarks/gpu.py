"""Benchmarks for a GPU: bare steps against the card's peak, stages, several processes on one
card.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from kd.measure.costs import count_macs
from kd.nets.cnn import CNN
from kd.nets.resnet import ResNet
from kd.nets.resnet_cifar import ResNetCIFAR
from kd.reports.provenance import cpu_name
from kd.shape import Shape

NETS: dict[str, Callable[[], nn.Module]] = {
    "CNN of width 32": lambda: CNN(10, 3, 32),
    "ResNet-20": lambda: ResNetCIFAR(10, 20),
    "ResNet-18": lambda: ResNet(10, 18, image_size=32),
}
WAYS = {"float32": (False, False), "bf16": (True, False), "bf16, compiled": (True, True)}
ROOT = Path(__file__).resolve().parents[2]


def per_second(step: Callable[[], object], device: str, seconds: float) -> float:
    """Measure steps per second, after three warm-up steps."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    wait()
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds or not count:
        for _ in range(5 if device == "cuda" else 1):
            step()
            count += 1
        wait()
    return count / passed if passed else count / (time.perf_counter() - started)


def training_step(net: nn.Module, device: str, batch: int, bf16: bool) -> Callable[[], object]:
    """Run forward, backward and SGD on one resident batch of 32x32."""
    net = net.to(device).to(memory_format=torch.channels_last)
    x = torch.rand(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,), device=device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=device == "cuda")

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = net(x)
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def peak(device: str, seconds: float) -> float:
    """Measure the FLOP/s of a large bf16 matrix product on this card."""
    side = 8192 if device == "cuda" else 512
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return 2.0 * side**3 * per_second(lambda: a @ a, device, seconds)


def bare_steps(device: str, batch: int, seconds: float) -> list[str]:
    """Make rows of images per second and the share of the peak."""
    whole = peak(device, seconds)
    rows = [f"A large product in bf16: {whole / 1e12:.3g} TFLOP/s, which counts as the peak.", ""]
    rows += ["| net | way | images a second | share of the peak |", "|---|---|---:|---:|"]
    for name, make in NETS.items():
        macs = count_macs(make().eval(), Shape(3, 32, 10))
        for way, (bf16, compiled) in WAYS.items():
            if compiled and device != "cuda":
                continue
            net = make()
            if compiled:
                net.compile()
            rate = batch * per_second(training_step(net, device, batch, bf16), device, seconds)
            rows.append(f"| {name} | {way} | {rate:,.0f} | {100 * 6 * macs * rate / whole:.2g} % |")
    return rows


def side_by_side(device: str, batch: int, seconds: float, counts: list[int]) -> list[str]:
    """Make rows of the total images per second of several processes, for the CNN in bf16."""
    rows = ["| processes | images a second, together |", "|---:|---:|"]
    options = ["--device", device, "--seconds", str(seconds), "--batch", str(batch), "--alone"]
    for count in counts:
        command = [sys.executable, __file__, *options]
        started = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        found = [float(each.communicate()[0]) for each in started]
        rows.append(f"| {count} | {sum(found):,.0f} |")
    return rows


def stages(device: str, epochs: int) -> list[str]:
    """Make rows of ms per step inside kd: with cached and live teacher outputs, compiled or not,
    and in mixed precision under torchrun.
    """
    data = Path(os.environ.get("KD_DATA_DIR", "data")) / "cifar-10-batches-py"
    source = ["data=cifar10"] if data.is_dir() else ["data=digits"]
    rows = [f"{source[0]}, ResNet-18 to the CNN, batches of 512.", ""]
    rows += ["| setting | role | ms a step, validation included |", "|---|---|---:|"]
    settings = [["data.views=1"], ["teacher.cache=off"]]
    if device == "cuda":
        settings += [["teacher.cache=off", "trainer.compile=true"]]
        settings += [["trainer=ddp", f"trainer.precision={each}-mixed"] for each in ("bf16", "16")]
    for words in settings:
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node=1"]
        launcher = launcher if "trainer=ddp" in words else []
        with tempfile.TemporaryDirectory() as out:
            accelerator = "gpu" if device == "cuda" else "cpu"
            command = ["-m", "kd.train", *source, *words, f"epochs={epochs}", "teacher.epochs=1"]
            command += [f"trainer.accelerator={accelerator}", "batch_size=512", "pictures=false"]
            command += [
                "teacher.batch_size=512",
                "trainer.deterministic=false",
                f"output_dir={out}",
            ]
            command += [] if device == "cuda" else ["data.limit=600", "teacher.net.width=8"]
            command = [sys.executable, *launcher, *command]
            subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
            (file,) = Path(out).glob("runs/*/report.json")
            for model in json.loads(file.read_text())["models"]:
                rows.append(f"| {' '.join(words)} | {model['role']} | {model['step_ms']:.2f} |")
    return rows


def main() -> None:
    """Measure all of it, and write the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=5, help="of the stages inside kd")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/benchmarks/gpu.md")
    parser.add_argument("--alone", action="store_true", help="one process of several")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: there is no GPU here; --device cpu tries the script out")
    device, batch, seconds = asked.device, asked.batch, asked.seconds
    if asked.alone:
        step = training_step(NETS["CNN of width 32"](), device, batch, True)
        print(batch * per_second(step, device, seconds))
        return
    card = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    lines = [f"# {card}, torch {torch.__version__}", ""]
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], list[str]]] = {
        f"Bare steps, batches of {batch}": lambda: bare_steps(device, batch, seconds),
        "Processes side by side": lambda: side_by_side(device, batch, seconds, asked.processes),
        "Stages of kd": lambda: stages(device, asked.epochs),
    }
    for title, part in parts.items():
        lines += [f"## {title}", "", *part(), ""]
        asked.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
