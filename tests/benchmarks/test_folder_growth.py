"""Growth with the number of small JPEGs, made of CIFAR-10's images: CPU time and memory.

KD_BENCH_FILES=10000,40000,320000 says how many. Every size has processes of its own: one that
decodes all, one that finds them decoded, and one that streams. CPU time is counted, not wall time,
so that other jobs on the machine matter less.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import OUT
from in_turn import Row
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image
from torchvision import datasets

SIZES = [int(size) for size in os.environ.get("KD_BENCH_FILES", "1000,2000,4000").split(",")]
SIDE = 64  # of the files, in pixels
SHOWN = 2048  # images of an epoch that are read

START = """
import json, sys, time
from kd.data.image_folder import ImageFolder

root, cache, folder = sys.argv[1:4]
crops = {"resized_crop": 0.08, "horizontal_flip": True}
data = ImageFolder(root, image_size=32, cache=cache, cache_dir=folder, augment=crops)
def memory(what="RssAnon"):  # of this process itself: pages of a mapped file are the system's
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1e3

imported = (memory(), time.process_time())
data.split.train.fingerprint
started = (memory(), time.process_time())
shown = 0
for pixels, _, index in data.train_loader(64, seed=0):
    shown += len(index)
    if shown >= int(sys.argv[4]):
        break
done = (memory(), time.process_time())
print(json.dumps({
    "start": started[1] - imported[1], "each": (done[1] - started[1]) / shown,
    "megabytes": done[0] - imported[0],
    "peak": memory("VmHWM"),  # getrusage's counts the parent of a forked process too
}))
"""


def make_files(root: Path, count: int, cifar10: str) -> Path:
    """Write class folders of JPEGs: CIFAR-10's images enlarged, each round cut at another place."""
    arrays = datasets.CIFAR10(cifar10, train=True)
    for i in range(count):
        turn, number = divmod(i, len(arrays.data))
        image = Image.fromarray(arrays.data[number]).resize((SIDE + 16,) * 2)
        top, left = (4 * each for each in divmod(turn, 4))
        folder = root / arrays.classes[arrays.targets[number]]
        folder.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        image.crop((left, top, left + SIDE, top + SIDE)).save(file, "jpeg", quality=90)
        (folder / f"{i:07}.jpg").write_bytes(file.getvalue())
    return root


def started(root: Path, cache: str, folder: Path) -> dict[str, float]:
    """Start in a process of its own, and read some images."""
    command = [sys.executable, "-c", START, str(root), cache, str(folder), str(SHOWN)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(out)
    return found


def test_growth_with_files(cifar10: str, tell: Callable[[Row], None], tmp_path: Path) -> None:
    found: dict[str, list[dict[str, float]]] = {"decoded": [], "again": [], "stream": []}
    for size in SIZES:
        root = make_files(tmp_path / str(size), size, cifar10)
        cache = tmp_path / f"cache-{size}"
        found["decoded"].append(started(root, "disk", cache))
        found["again"].append(started(root, "disk", cache))
        # The facts of the images are there by now, as after the first start
        found["stream"].append(started(root, "stream", cache))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "growth_files.json").write_text(json.dumps({"sizes": SIZES, **found}, indent=1))
    x = np.array(SIZES, float)
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, what, unit in zip(
        figure.subplots(1, 2), ("start", "megabytes"), ("CPU seconds to start", "MB"), strict=True
    ):
        for name, rows in found.items():
            values = np.array([row[what] for row in rows])
            slope, first = np.polyfit(x, values, 1)
            axes.plot(x, values, "o-", label=f"{name}: {1000 * slope:.3g} per 1,000")
            off = float(np.abs(np.polyval((slope, first), x) - values).max() / values.max())
            note = f"{first:.3g} + {1000 * slope:.4g} for each 1,000; {values.round(2).tolist()}"
            label = f"files, {name}, {unit}: off a line"
            tell(Row(label, off, 1, "", off, off, off, 0.25, len(SIZES), note))
        axes.set(xlabel="files", ylabel=unit, ylim=(0, None))
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.legend()
    figure.savefig(OUT / "growth_files.png", dpi=120)
    for name in ("again", "stream"):
        each = [row["each"] for row in found[name]]
        assert max(each) < 2 * min(each), f"{name}: time to read an image grows with the set"
