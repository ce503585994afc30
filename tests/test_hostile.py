"""Malicious files: their code never runs, nothing outside is written, and nothing shows as
markup.
"""

import html.parser
import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from commands import exit_code, unchanged
from composed import TINY
from PIL import Image
from shipped import Shipped
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_bad_input import with_header

from kd.command import CONF
from kd.config.schema import Config, check
from kd.errors import UserError
from kd.files.store import key_of
from kd.runs.reader import open_run
from kd.runs.run import run
from kd.shipping.model import load_model

TARGETS = [
    "os.system",
    "builtins.open",
    "torch.hub.load",
    "subprocess.run",
    "subprocess.Popen",
    "kd.runs.run.run",
]
MARKUP = "<script>alert(1)</script>"
ABOUT_RUNS = {
    "evaluate": [],
    "benchmark": ["backends=[eager]", "seconds=0.001", "batches=[1]"],
    "export": ["formats=[pt2]"],
}


class Evil:
    """Object that creates a folder when unpickled, as evidence."""

    def __init__(self, made: Path) -> None:
        self.made = str(made)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.made,)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished run with its store, to be modified."""
    shutil.copytree(finished.parents[1] / "store", tmp_path / "out" / "store")
    return Path(shutil.copytree(finished, tmp_path / "out" / "runs" / "run"))


def edit_report(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "report.json"
    report = json.loads(file.read_text())
    edit(report)
    file.write_text(json.dumps(report))


def _rename_stage(old: str, new: str, report: dict[str, Any]) -> None:
    for model in report["models"]:
        if model["stage"] == old:
            model["stage"] = new


class TestCode:
    @pytest.mark.parametrize("name", ["teacher.pt", "teacher.pth", "teacher.ckpt"])
    def test_in_a_teachers_file(
        self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save({"state_dict": {"fc.weight": Evil(tmp_path / "owned")}}, tmp_path / name)
        words = [
            "model=mlp_to_mlp",
            *TINY,
            f"output_dir={tmp_path / 'out'}",
            f"teacher.path={tmp_path / name}",
        ]
        assert exit_code("train", *words) == 2
        said = capsys.readouterr().err
        assert "is a pickle that needs more than tensors to load (" in said
        assert "so it could run any code; refused" in said
        assert not (tmp_path / "owned").exists()

    @pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model.onnx"])
    def test_in_a_model_to_predict_with(self, name: str, tmp_path: Path) -> None:
        torch.save(Evil(tmp_path / "owned"), tmp_path / name)
        Image.new("L", (8, 8)).save(tmp_path / "a.png")
        assert exit_code("predict", f"model={tmp_path / name}", f"images={tmp_path / 'a.png'}") == 2
        assert not (tmp_path / "owned").exists()

    def test_in_a_checkpoint_of_a_training_that_was_stopped(
        self, make_config: Callable[..., Config], tmp_path: Path
    ) -> None:
        config = make_config("stages=[baseline]", "epochs=1")
        folder = run(config, "")
        stage = json.loads((folder / "report.json").read_text())["models"][0]["stage"]
        partial = Path(config.output_dir) / "store" / f"{stage}.partial"
        shutil.rmtree(partial.with_suffix(""))
        partial.mkdir()
        for name in ("last.ckpt", "best.ckpt"):
            torch.save({"epoch": Evil(tmp_path / "owned")}, partial / name)
        with suppress(Exception):  # it may be refused, or training may begin anew
            run(config, "")
        assert not (tmp_path / "owned").exists()

    @pytest.mark.parametrize("command", ABOUT_RUNS)
    @pytest.mark.parametrize("target", TARGETS)
    def test_in_the_config_of_a_run(
        self, command: str, target: str, copied: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def plant(report: dict[str, Any]) -> None:
            report["config"]["data"] = {
                "_target_": target,
                "command": "true",
                "args": ["true"],
                "name": "x",
            }

        edit_report(copied, plant)
        with_header(
            copied / "student.safetensors",
            {"net": {"_target_": "kd.nets.mlp.MLP", "x": {"_target_": target}}},
        )
        for stage in (copied.parents[1] / "store").glob("*/stage.json"):
            record = json.loads(stage.read_text())
            record["spec"]["net"] = {"_target_": "kd.nets.grow.Grown", "net": {"_target_": target}}
            stage.write_text(json.dumps(record))
            key = key_of(record["spec"])  # as whoever plants it would see to
            stage.parent.rename(stage.parents[1] / key)
            edit_report(copied, partial(_rename_stage, stage.parent.name, key))
        out = copied.parents[2] / "elsewhere"
        assert exit_code(command, f"run={copied}", f"out={out}", *ABOUT_RUNS[command]) == 2
        said = capsys.readouterr().err
        assert f"names '{target}'" in said
        assert "a file may choose among" in said

    @pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
    def test_in_a_net_of_a_library_that_would_read_a_file(
        self, command: str, copied: Path, tmp_path: Path
    ) -> None:
        torch.save(Evil(tmp_path / "owned"), tmp_path / "evil.pth")
        node = {
            "_target_": "kd.nets.timm.timm_net",
            "name": "resnet18",
            "checkpoint_path": str(tmp_path / "evil.pth"),
        }
        with_header(copied / "student.safetensors", {"net": node})
        with pytest.raises(UserError, match="with checkpoint_path, which would read other files"):
            open_run(copied).net("student")
        Image.new("L", (8, 8)).save(tmp_path / "a.png")
        which = f"model={copied}" if command == "predict" else f"run={copied}"
        more = [f"images={tmp_path / 'a.png'}"] if command == "predict" else ABOUT_RUNS[command]
        if command != "evaluate":  # which goes on with the others
            assert exit_code(command, which, *more) == 2
        assert not (tmp_path / "owned").exists()

    def test_a_class_of_ours_that_is_no_data_set(self, copied: Path) -> None:
        edit_report(
            copied, lambda report: report["config"].update(data={"_target_": "kd.data.cache.Cache"})
        )
        with pytest.raises(UserError, match="which is no data set"):
            open_run(copied).data()

    def test_what_a_config_refers_to_is_not_looked_up(
        self, copied: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET", "hunter2")
        edit_report(
            copied, lambda report: report["config"]["data"].update(license="${oc.env:SECRET}")
        )
        assert open_run(copied).data().license == "${oc.env:SECRET}"
        out = copied.parents[2] / "elsewhere"
        assert exit_code("evaluate", f"run={copied}", f"out={out}") == 0
        assert not any("hunter2" in path.read_text() for path in out.iterdir())

    def test_config_yaml_is_for_people_alone(self, copied: Path) -> None:
        bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n"
            for i in range(9)
        )
        (copied / "config.yaml").write_text(
            f"{bomb}z: !!python/object/apply:os.mkdir [{copied / 'owned'}]\n"
        )
        out = copied.parents[2] / "elsewhere"
        assert exit_code("evaluate", f"run={copied}", f"out={out}") == 0
        assert exit_code("report", str(copied)) == 0
        assert not (copied / "owned").exists()


class TestSize:
    def test_an_image_bomb(
        self, shipped: Shipped, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = tmp_path / "photos"
        for i in range(8):
            (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 30 * i).save(root / "ab"[i % 2] / f"{i}.png")
        bomb(root / "a" / "bomb.png")
        words = [
            "data=image_folder",
            f"data.root={root}",
            "data.image_size=8",
            f"output_dir={tmp_path / 'out'}",
        ]
        assert exit_code("train", "model=mlp_to_mlp", *words, "data.cache=off") == 2
        assert re.search(
            r"1 of 9 image files cannot.*\n.*bomb\.png: .*too many.*178956970",
            capsys.readouterr().err,
        )
        assert exit_code("predict", f"model={shipped.run}", f"images={root}") == 1
        assert (
            "bomb.png,,,,,too many pixels, accepted are up to"
            in capsys.readouterr().out.replace('"', "")
        )

    @pytest.mark.parametrize("size", [2**62, 2**40, 100_000_000])
    def test_a_header_that_says_it_is_huge(self, size: int, copied: Path, tmp_path: Path) -> None:
        file = copied / "student.safetensors"
        file.write_bytes(size.to_bytes(8, "little") + file.read_bytes()[8:])
        with pytest.raises(UserError, match=r"student\.safetensors"):
            load_model(copied, "model")
        words = [
            "model=mlp_to_mlp",
            *TINY,
            f"output_dir={tmp_path / 'new'}",
            f"teacher.path={file}",
        ]
        assert exit_code("train", *words) == 2

    def test_tensors_that_say_they_are_huge(self, copied: Path) -> None:
        text = json.dumps(
            {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
        ).encode()
        (copied / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
        words = ["model=mlp_to_mlp", *TINY, f"output_dir={copied / 'new'}"]
        assert exit_code("train", *words, f"teacher.path={copied / 'x.safetensors'}") == 2

    def test_a_checkpoint_that_unpacks_to_gigabytes(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save({"fc.weight": torch.zeros(10, 16)}, tmp_path / "small.pt")
        with (
            zipfile.ZipFile(tmp_path / "small.pt") as small,
            zipfile.ZipFile(tmp_path / "big.pt", "w") as big,
        ):
            for each in small.infolist():
                packed = zipfile.ZIP_DEFLATED if "/data/" in each.filename else zipfile.ZIP_STORED
                content = bytes(50_000_000) if packed == zipfile.ZIP_DEFLATED else small.read(each)
                big.writestr(each.filename, content, packed)
        assert (tmp_path / "big.pt").stat().st_size < 100_000
        words = [
            "model=mlp_to_mlp",
            *TINY,
            f"output_dir={tmp_path / 'out'}",
            f"teacher.path={tmp_path / 'big.pt'}",
        ]
        assert exit_code("train", *words) == 2
        assert "kd: teacher.path" in capsys.readouterr().err

    def test_a_net_that_its_file_has_no_room_for(self, copied: Path) -> None:
        with_header(
            copied / "student.safetensors",
            {"net": {"_target_": "kd.nets.mlp.MLP", "hidden": [40_000, 40_000]}},
        )
        with pytest.raises(
            UserError, match=r"would have 1,60\d,\d+,\d+ numbers, the file has room for"
        ):
            open_run(copied).net("student")


def bomb(path: Path) -> None:
    """20,000 x 20,000 gray pixels in 400 kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    side = (20_000).to_bytes(4)
    packer, rows = zlib.compressobj(9), bytes(20_001 * 100)
    pixels = b"".join(packer.compress(rows) for _ in range(200)) + packer.flush()
    head = chunk(b"IHDR", side + side + bytes([8, 0, 0, 0, 0]))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


class TestPlaces:
    def test_an_onnx_file_with_numbers_elsewhere(self, shipped: Shipped, tmp_path: Path) -> None:
        secret = tmp_path / "secret.bin"
        secret.write_bytes(np.arange(4096, dtype=np.float32).tobytes())
        (tmp_path / "models").mkdir()
        for location in ("../secret.bin", str(secret), "inside.bin"):
            model = onnx.load(shipped.files / "student.onnx")
            tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=location)
            path = tmp_path / "models" / "m.onnx"
            path.write_bytes(model.SerializeToString())
            with pytest.raises(
                UserError, match=f"takes tensors from another file .{re.escape(location)}"
            ):
                load_model(path, "model")

    def test_links_in_a_runs_folder_are_not_written_through(
        self, copied: Path, tmp_path: Path
    ) -> None:
        precious = tmp_path / "precious"
        precious.mkdir()
        names = [
            "summary.csv",
            "summary.md",
            "summary.html",
            "evaluation.json",
            "evaluation.md",
            ".write_test",
        ]
        names += ["benchmark.json", "benchmark.md", "benchmark.png", "benchmark.svg"]
        names += [f".{name}.{os.getpid()}" for name in names]
        for name in names:
            (precious / name).write_text("mine")
            (copied / name).symlink_to(precious / name)
        (copied / "export").symlink_to(precious)
        with unchanged(precious):
            assert exit_code("report", str(copied)) == 0
            for command, more in ABOUT_RUNS.items():
                assert exit_code(command, f"run={copied}", *more) == (
                    2 if command == "export" else 0
                )
        assert not (copied / "summary.csv").is_symlink()

    def test_a_stage_that_is_a_path(self, copied: Path, tmp_path: Path) -> None:
        shutil.copytree(
            next((copied.parents[1] / "store").glob("*/stage.json")).parent, tmp_path / "elsewhere"
        )

        def plant(report: dict[str, Any]) -> None:
            for model in report["models"]:
                model["stage"] = "../../elsewhere"

        edit_report(copied, plant)
        with pytest.raises(UserError, match=r"models\.0\.stage"):
            open_run(copied)

    def test_a_link_out_of_the_data_is_read_as_what_it_shows_and_no_more(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root, outside = tmp_path / "photos", tmp_path / "outside"
        outside.mkdir()
        (outside / "secret.txt").write_text("hunter2")
        Image.new("L", (8, 8)).save(outside / "far.png")
        for name in ("a", "b"):
            (root / name).mkdir(parents=True)
            (root / name / "all").symlink_to(root)  # into itself
        (root / "a" / "secret.png").symlink_to(outside / "secret.txt")
        (root / "a" / "far.png").symlink_to(outside / "far.png")
        (root / "b" / "gone.png").symlink_to(outside / "gone.png")
        words = [
            "data=image_folder",
            f"data.root={root}",
            "data.image_size=8",
            f"output_dir={tmp_path / 'out'}",
        ]
        with unchanged(outside), unchanged(root):
            assert exit_code("train", "model=mlp_to_mlp", *words, "data.cache=off") == 2
        said = capsys.readouterr().err
        assert "secret.png: not an image" in said
        assert "gone.png: No such file" in said
        assert "hunter2" not in said

    @pytest.mark.parametrize(
        "name", ["..", ".", "a/../../b", "/abs", "a\\b", "a\nb", ".hidden", "x.partial"]
    )
    def test_a_name_that_leads_elsewhere(
        self, name: str, make_config: Callable[..., Config]
    ) -> None:
        from omegaconf import OmegaConf

        cfg = OmegaConf.create(make_config().model_dump())
        cfg.name = name
        with pytest.raises(UserError, match=r"name: found .*accepted is a folder's name"):
            check(cfg)


class Seen(html.parser.HTMLParser):
    """Collect the tags of a page, its scripts and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


NASTY = [
    MARKUP,
    '"><img src=x onerror=alert(1)>',
    "a|b `c` $d$ $\\frac{",
    "new\nline",
    "\x1b[31mred\x07",
    "=HYPERLINK(A1)",
    "[x](javascript:alert(1))",
]


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on folders with such names, each with an undecodable file, evaluated and
    benchmarked.
    """
    from composed import composed

    tmp = tmp_path_factory.mktemp("nasty")
    root = tmp / "photos"
    for label, name in enumerate(NASTY):
        # A file name cannot hold a slash; this character looks like one.
        folder = root / name.replace("/", "∕")
        folder.mkdir(parents=True)
        for i in range(6):
            Image.new("L", (8, 8), 30 * label + i).save(folder / f"{i}{name.replace('/', '∕')}.png")
        (folder / f"bad{name.replace('/', '∕')}.png").write_text("no image")
    words = [
        "data=image_folder",
        f"data.root={root}",
        "data.image_size=8",
        "data.channels=1",
        "data.limit=20",
    ]
    words += [
        "data.on_bad_image=skip",
        "epochs=1",
        "teacher.epochs=1",
        "batch_size=5",
        "teacher.batch_size=5",
    ]
    words += [
        "pictures=true",
        "teacher.net.hidden=[4]",
        "student.net.hidden=[4]",
        f"output_dir={tmp / 'out'}",
    ]
    config = composed(*words)
    config.name, config.data.license = "<b>$x$` run", f"{MARKUP}\n# mine"
    folder = run(check(config), f"python -m kd.train `x` {MARKUP}\n# mine")
    torch.set_num_threads(1)
    for command, more in ABOUT_RUNS.items():
        assert exit_code(command, f"run='{folder}'", *more) == 0
    assert exit_code("report", str(folder)) == 0
    return folder


class TestWords:
    def test_pages(self, nasty: Path) -> None:
        for name in ("report.html", "summary.html"):
            seen = Seen()
            seen.feed((nasty / name).read_text())
            assert seen.tags.count("script") == 1, "the page's own"
            assert "b" not in seen.tags
            assert not seen.handlers
            assert all(
                tag not in seen.tags for tag in ("iframe", "object", "embed", "base", "form")
            )

    def test_markdown(self, nasty: Path) -> None:
        files = [*nasty.glob("*.md"), *nasty.glob("export/*.md")]
        names = {
            "report.md",
            "MODEL_CARD.md",
            "summary.md",
            "evaluation.md",
            "benchmark.md",
            "export.md",
        }
        assert {file.name for file in files} == names
        for file in files:
            text = file.read_text()
            outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
            outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", outside)  # code is shown as it is
            assert "<script" not in outside
            assert "<img" not in outside
            assert "<b>" not in outside
            assert "](java" not in outside
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
            assert "\n# mine" not in text
            for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
                columns = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
                assert len(columns) == 1, table

    def test_the_event_files_text(self, nasty: Path) -> None:
        events = EventAccumulator(str(nasty / "tensorboard")).Reload()
        (report,) = events.Tensors("report/text_summary")
        assert "<script" not in re.sub(r"(`+).*?\1", "", report.tensor_proto.string_val[0].decode())

    def test_terminals(
        self,
        nasty: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        exit_code("evaluate", f"run='{nasty}'")
        exit_code("evaluate", f"run='{nasty}'", "data=digits")
        exit_code(
            "predict",
            f"model='{nasty}'",
            f"images='{next(iter(nasty.parents[2].glob('photos/*red*')))}'",
        )
        exit_code("predict", f"model='{nasty}'", "images=\x1b[31mred")
        said = "".join(capsys.readouterr())
        assert "red" in said
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", said)

    def test_tables_for_spreadsheets(self, nasty: Path, tmp_path: Path) -> None:
        out = tmp_path / "p.csv"
        photos = next(iter(nasty.parents[2].glob("photos/=HYPER*")))
        exit_code("predict", f"model='{nasty}'", f"images='{photos}'", f"out={out}")
        head = out.read_text().splitlines()[0]
        assert "'=HYPERLINK(A1)" in head
        for file in (out, nasty / "summary.csv"):
            cells = re.findall(r'(?:^|,)"?([^,"\n]*)', file.read_text(), re.M)
            assert not [cell for cell in cells if re.match(r"[=+@]|-(?![\d.])", cell)]

    def test_reports_of_others(
        self, nasty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A report with content that kd never writes."""
        planted = tmp_path / "x"
        shutil.copytree(nasty, planted)

        def plant(report: dict[str, Any]) -> None:
            report["name"] = report["command"] = f"={MARKUP}|"
            report["config"]["temperature"] = f"$x_{{ {MARKUP}"
            for model in report["models"]:
                model["net"] = f"{MARKUP}[/red]$\\frac"
            report["environment"]["device"] = MARKUP

        edit_report(planted, plant)
        assert exit_code("report", str(tmp_path)) == 0
        assert "<script" not in capsys.readouterr().out
        seen = Seen()
        seen.feed((tmp_path / "summary.html").read_text())
        assert seen.tags.count("script") == 1
        assert not (tmp_path / "summary.md").read_text().count("<script")
        for control in ("\x1b[31m", "a\nb"):
            edit_report(planted, lambda report, text=control: report.update(name=text))
            assert exit_code("report", str(tmp_path)) == 2
        assert "\x1b" not in capsys.readouterr().err


def test_the_code_that_reads_is_the_one_that_is_safe() -> None:
    """The tested ways to unpickle, load YAML or run text from a file are the only ones."""
    banned = re.compile(
        r"weights_only=False|pickle\.load|yaml\.(unsafe_|full_)?load\(|(?<![.\w])(eval|exec)\(|shell=True"
    )
    for path in (CONF.parent / "kd").rglob("*.py"):
        text = path.read_text()
        found = [line for line in text.splitlines() if banned.search(line)]
        # What a message advises
        assert not [line for line in found if "x = torch.load(PATH" not in line], path
        assert text.count("torch.load(") <= text.count("weights_only=True") + text.count(
            "torch.load(PATH"
        ), path
