"""Other teachers: an ONNX file, a Hugging Face folder, answers alone, a backbone without labels."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from composed import plan, tiny
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

from kd.config.construct import construct
from kd.config.schema import Config, check
from kd.data.base import DataModule
from kd.errors import UserError
from kd.files.answer_tables import read_answers
from kd.files.store import StageResult, Store
from kd.nets.answers import Answers
from kd.nets.build import build_net
from kd.nets.head import head_tensors
from kd.nets.onnx_graph import OnnxGraph
from kd.runs.reader import open_run
from kd.runs.run import run
from kd.stages.chain import chain_of
from kd.stages.complete import complete
from kd.stages.result import load_net, load_teacher
from kd.stages.stage import make_stage

HIDDEN = ("student.net.hidden=[8]",)
PLAIN = "teacher.normalization={mean: [0.0], std: [1.0]}"
RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.normal(0, 0.3, (12, 64)), RNG.normal(0, 0.3, 12)  # float64


def write(path: Path, classes: int = 10, softmax: bool = False, batch: int | str = "N") -> Path:
    """A linear classifier of 8x8 gray images, with a second output beside its answer."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["raw"], transB=1),
        helper.make_node("Softmax" if softmax else "Identity", ["raw"], ["answer"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 8, 8])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, size])
        for name, size in (("answer", classes), ("flat", 64))
    ]
    tensors = [
        numpy_helper.from_array(WEIGHT[:classes].astype(np.float32), "w"),
        numpy_helper.from_array(BIAS[:classes].astype(np.float32), "b"),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [given], ends, tensors),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    onnx.save(model, str(path))
    return path


def damaged(path: Path) -> Path:
    """The same with a weight that is NaN."""
    model = onnx.load(str(write(path)))
    weight = WEIGHT[:10].astype(np.float32)
    weight[3, 5] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, str(path))
    return path


def config(out: Path, *overrides: str) -> Config:
    return check(tiny(out, *HIDDEN, "epochs=1", "trainer.precision=32-true", *overrides))


def done(made: Config) -> tuple[StageResult, DataModule]:
    data: DataModule = construct(made.data, "data")
    stage = make_stage(plan(made, "teacher"), made, data, {})
    return complete(stage, Store(Path(made.output_dir) / "store"), data)[0], data


def by_hand(x: torch.Tensor, classes: int = 10) -> np.ndarray:
    return x.double().flatten(1).numpy() @ WEIGHT[:classes].T + BIAS[:classes]


@pytest.mark.parametrize("batch", ["N", 3])
@pytest.mark.parametrize("softmax", [False, True])
def test_an_onnx_file_answers_as_its_formula(
    softmax: bool, batch: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    load = onnx.load
    monkeypatch.setattr(onnx, "load", lambda path, **k: parsed.append(path) or load(path, **k))
    file = write(tmp_path / "a.onnx", softmax=softmax, batch=batch)
    onnx_teacher = ("teacher=onnx", f"teacher.path={file}", "teacher.net.output=answer", PLAIN)
    result, data = done(config(tmp_path, *onnx_teacher))
    assert parsed == [str(file)]
    file.unlink()  # its content is in the store
    x = data.split.val.pixels[torch.arange(7)].float() / 255
    wanted = by_hand(x)
    found = load_teacher(result)(x).double().numpy()
    if softmax:
        wanted = wanted - np.log(np.exp(wanted).sum(1, keepdims=True))
    assert np.abs(found - wanted).max() < 1e-4
    val = data.split.val
    right = by_hand(val.pixels[:].float() / 255).argmax(1) == val.labels.numpy()
    assert result.record.val.accuracy("best") == pytest.approx(right.mean(), abs=1e-6)
    assert result.record.loaded


def test_outputs_of_other_classes_are_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "a.onnx", classes=12)
    names = "teacher.classes=[x,9,8,7,6,5,4,3,2,1,0,y]"
    result, data = done(
        config(
            tmp_path,
            "teacher=onnx",
            f"teacher.path={file}",
            "teacher.net.output=answer",
            PLAIN,
            names,
        )
    )
    x = data.split.val.pixels[torch.arange(4)].float() / 255
    wanted = by_hand(x, 12)[:, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]]
    assert np.abs(load_net(result)(x).numpy() - wanted).max() < 1e-4


def test_an_onnx_file_for_rectangles(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 6])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph(nodes, "g", [given], [answer])
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "a.onnx")
    net = OnnxGraph(3, 3, (4, 6))
    net.read_file(tmp_path / "a.onnx", "teacher.path", None)
    x = torch.rand(5, 3, 4, 6)
    assert torch.allclose(net(x), x.mean((2, 3)), atol=1e-6)
    with pytest.raises(UserError, match=r"takes x .*4, 6\], the data gives images"):
        OnnxGraph(3, 3, (6, 4)).read_file(tmp_path / "a.onnx", "teacher.path", None)


def test_a_run_from_an_onnx_file_is_the_same_without_the_cache(tmp_path: Path) -> None:
    file = write(tmp_path / "a.onnx")
    words = ("teacher=onnx", f"teacher.path={file}", "teacher.net.output=answer", PLAIN)
    folder = run(config(tmp_path / "one", *words), "")
    report = json.loads((folder / "report.json").read_text())
    teacher = next(model for model in report["models"] if model["role"] == "teacher")
    assert teacher["net"] == "OnnxGraph(output=answer)"
    assert teacher["params"] == 64 * 10 + 10
    assert report["teaching"]
    live = run(config(tmp_path / "two", *words, "teacher.cache=off"), "")
    one, two = (load_file(each / "student.safetensors") for each in (folder, live))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert list((tmp_path / "one" / "cache" / "teacher").glob("*/view-0"))


Refusal = tuple[Callable[[Path], Path], list[str], str]


@pytest.mark.parametrize(
    ("make", "more", "words"),
    [
        (write, [], r"teacher.path: .*its outputs are answer, flat"),
        (write, ["teacher.net.output=anser"], r"found 'anser', its outputs are answer, flat"),
        (
            lambda path: write(path, classes=12),
            ["teacher.net.output=answer"],
            r"gives \[2, 12\] for two images, needed are \[2, 10\] for 10 classes; teacher.classes",
        ),
        (
            write,
            ["teacher.net.output=answer", "teacher.classes=[0,1,2,3,4,5,6,7,8,9,x]"],
            r"gives \[2, 10\] for two images, needed are \[2, 11\] for 11 classes",
        ),
        (write, ["data=image_folder", "data.root=nowhere"], r"nowhere"),
        (write, ["teacher.finetune=all"], r"teacher.finetune: OnnxGraph has nothing to train"),
        (write, ["teacher.net.output=answer", "loss=at"], r"OnnxGraph shows no layers"),
        (write, ["teacher.net.output=answer", "loss=pkt"], r"loss: asks for the embedding"),
        (write, ["teacher.state=ema"], r"has no state dict"),
        (write, ["teacher.net.gives=foo"], r"net.gives: found 'foo'; accepted are null, logits"),
        (
            write,
            ["teacher.net.output=answer", "teacher.net.gives=probabilities"],
            r"net.gives: found probabilities, but a.onnx gives -",
        ),
        (damaged, ["teacher.net.output=answer"], r"a.onnx answers NaN or infinity for random"),
        (lambda path: path.write_bytes(b"x" * 99) and path, [], r"no ONNX file, or a damaged one"),
    ],
)
def test_what_an_onnx_file_cannot_do_is_one_message(
    make: Callable[[Path], Path], more: list[str], words: str, tmp_path: Path
) -> None:
    file = make(tmp_path / "a.onnx")
    with pytest.raises(UserError, match=words):
        run(config(tmp_path, "teacher=onnx", f"teacher.path={file}", PLAIN, *more), "")
    with pytest.raises(UserError, match=r"teacher.finetune: OnnxGraph has nothing to train"):
        run(config(tmp_path, "teacher=onnx"), "")


class TestHuggingFace:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A tiny ViT of 12 classes, as `save_pretrained` writes it."""
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(3)
        names = {i: f"{9 - i}" if i < 10 else f"more {i}" for i in range(12)}
        made = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            image_size=8, patch_size=4, num_channels=1, id2label=names,
            label2id={name: i for i, name in names.items()},
        )  # fmt: skip
        self.net = transformers.ViTForImageClassification(made).eval()
        self.net.save_pretrained(tmp_path / "vit")
        shown = {"do_normalize": True, "image_mean": [0.25], "image_std": [0.5]}
        (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(shown))
        return tmp_path / "vit"

    def test_it_answers_as_transformers_does(self, folder: Path, tmp_path: Path) -> None:
        made = config(tmp_path, "teacher=huggingface", f"teacher.path={folder}")
        result, data = done(made)
        x = data.split.val.pixels[torch.arange(5)].float() / 255
        with torch.no_grad():
            wanted = self.net((x - 0.25) / 0.5).logits[:, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]]
        assert torch.allclose(load_teacher(result)(x), wanted, atol=1e-5)
        assert result.record.normalization == ([0.25], [0.5])

    def test_a_run_that_trains_it_on(self, folder: Path, tmp_path: Path) -> None:
        how = ("teacher=huggingface", f"teacher.path={folder}", "teacher.finetune=head")
        report = json.loads((run(config(tmp_path, *how), "") / "report.json").read_text())
        teacher = next(model for model in report["models"] if model["role"] == "teacher")
        assert teacher["net"] == "vit"
        before = self.net.state_dict()
        after = load_file(tmp_path / "store" / teacher["stage"] / "weights.safetensors")
        moved = {name for name in after if not torch.equal(before[name], after[name])}
        assert moved == {"classifier.weight", "classifier.bias"}

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"model_type": "nothing"}, "nothing"),
            ({"model_type": "timm_wrapper"}, "teacher=timm"),
            ({"image_size": 16}, r"cannot take 1x8x8 images"),
        ],
    )
    def test_another_folder_is_refused(
        self, more: dict[str, object], words: str, folder: Path, tmp_path: Path
    ) -> None:
        about = json.loads((folder / "config.json").read_text()) | more
        (folder / "config.json").write_text(json.dumps(about))
        with pytest.raises(UserError, match=words):
            run(config(tmp_path, "teacher=huggingface", f"teacher.path={folder}"), "")


class TestAnswers:
    """Random answers about the digits, by their number in the source."""

    logits = np.random.default_rng(1).normal(0, 3, (1797, 10))

    def write(self, path: Path, kind: str) -> Path:
        logits = self.logits
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        if path.suffix == ".npz":
            arrays = {kind: logits if kind == "logits" else shares}
            np.savez(path, index=np.arange(len(logits)), **arrays)
            return path
        columns: dict[str, list[object]] = {"index": list(range(len(logits)))}
        if kind == "top":
            order = (-shares).argsort(1)
            for rank in (1, 2):
                best = order[:, rank - 1]
                columns[f"class_{rank}"] = best.tolist()
                columns[f"probability_{rank}"] = shares[np.arange(len(best)), best].tolist()
        else:
            columns |= {str(c): logits[:, c].tolist() for c in range(10)}
        if path.suffix == ".parquet":
            pa = pytest.importorskip("pyarrow")
            pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), path)
        else:
            rows = [columns, *zip(*columns.values(), strict=True)]
            path.write_text("\n".join(",".join(map(str, row)) for row in rows))
        return path

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("a.csv", "wide"),
            ("a.parquet", "wide"),
            ("a.npz", "logits"),
            ("a.npz", "probabilities"),
            ("a.csv", "top"),
        ],
    )
    def test_each_kind_of_file_gives_its_answers(
        self, name: str, kind: str, tmp_path: Path
    ) -> None:
        logits = self.logits
        file = self.write(tmp_path / name, kind)
        result, data = done(config(tmp_path, "teacher=answers", f"teacher.path={file}"))
        net = load_net(result)
        assert isinstance(net, Answers)
        wanted = logits[[int(n) for n in data.split.train.names]]
        found = net.answers_for(data.split.train.names).double().numpy()
        if kind in ("probabilities", "top"):
            wanted = wanted - np.log(np.exp(wanted).sum(1, keepdims=True))
        if kind == "top":  # two classes as they are, eight share the rest
            order = (-wanted).argsort(1)
            rest = np.log((1 - np.exp(np.take_along_axis(wanted, order[:, :2], 1)).sum(1)) / 8)
            np.put_along_axis(wanted, order[:, 2:], np.repeat(rest[:, None], 8, 1), 1)
        assert np.abs(found - wanted).max() < 1e-4
        val = logits[[int(n) for n in data.split.val.names]].argmax(1)
        right = (val == data.split.val.labels.numpy()).mean()
        assert result.record.val.accuracy("best") == pytest.approx(right, abs=1e-6)

    def test_a_run_learns_from_them_and_compares_them_where_they_answer_for_the_test(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data: DataModule = construct(config(tmp_path).data, "data")
        split = data.split
        seen = sorted(int(name) for part in (split.train, split.val) for name in part.names)
        every = list(range(1797))
        models = []
        for name, rows in (("a", seen), ("b", every)):
            np.savez(tmp_path / f"{name}.npz", index=rows, logits=self.logits[rows])
            words = ("teacher=answers", f"teacher.path={tmp_path / f'{name}.npz'}", "alpha=1.0")
            folder = run(config(tmp_path / name, *words), "")
            report = json.loads((folder / "report.json").read_text())
            models.append({model["role"]: model["test"]["accuracy"] for model in report["models"]})
            assert f"teacher:  the answers in {tmp_path / name}.npz\n" in capsys.readouterr().err
        # The other commands have no net to ask
        finished = open_run(folder)
        with pytest.raises(UserError, match=r"the teacher is a file of answers"):
            finished.net("teacher")
        assert set(finished.nets()[0]) == {"baseline", "student"}
        assert [set(each) for each in models] == [
            {"baseline", "student"},
            {"teacher", "baseline", "student"},
        ]
        assert models[0]["student"] == models[1]["student"]
        chosen = self.logits[[int(name) for name in split.test.names]].argmax(1)
        right = (chosen == split.test.labels.numpy()).mean()
        assert models[1]["teacher"] == pytest.approx(right, abs=1e-9)

    @pytest.mark.parametrize(
        ("change", "more", "words"),
        [
            (
                lambda a: a[:-400],
                [],
                r"answers, but none for \d+ of the \d+ training images: \d+, .* and \d+ more. "
                r"Its own images are 0, 1, 2, \.\.\.\. Add the missing rows, or",
            ),
            (lambda a: a[:, :9], [], r"its logits are \[\d+, 9\], needed are \[images, 10\]"),
            (lambda a: a * np.nan, [], r"no finite answer for index 0"),
            (lambda a: a, ["data.augment.mixup=0.5"], r"answers are for single images"),
            (lambda a: a, ["loss=at"], r"Answers shows no layers"),
            (lambda a: a, ["loss=pkt"], r"loss: asks for the embedding"),
            (lambda a: a, ["teacher.finetune=all"], r"Answers has nothing to train"),
            (lambda a: a, ["+teacher.members=[{seed: 1},{}]"], r"members: a file of answers is no"),
        ],
    )
    def test_what_does_not_fit_is_one_message(
        self,
        change: Callable[[np.ndarray], np.ndarray],
        more: list[str],
        words: str,
        tmp_path: Path,
    ) -> None:
        found = change(self.logits)
        np.savez(tmp_path / "a.npz", index=np.arange(len(found)), logits=found)
        with pytest.raises(UserError, match=words):
            run(
                config(tmp_path, "teacher=answers", f"teacher.path={tmp_path / 'a.npz'}", *more), ""
            )


@pytest.mark.parametrize(
    ("image", "row"),
    [
        ("NORMAL/1.png", 0),
        ("train/A/2.png", 1),
        ("train/B/3.png", 2),  # B/3.png, not C/3.png
        ("C/3.png", 3),
        ("train/one/5.png", 4),  # as `find` prints it, where the root holds the class folders
        ("train/one/6.png", 5),
        ("train/two/7.png", None),  # the file's is of folder one
        ("train/a/8.png", None),  # b/8.png may be meant as well
        ("train/D/4.png", None),  # 4.png is the end of two
    ],
)
def test_images_are_matched_by_name_or_by_an_end_that_only_one_has(
    image: str, row: int | None
) -> None:
    net = Answers(2)
    names = ["NORMAL/1.png", "2.png", "B/3.png", "C/3.png", "/home/me/photos/one/5.png"]
    names += ["./one/6.png", "one/7.png", "8.png", "x/D/4.png", "y/D/4.png"]
    net.rows = torch.arange(2.0 * len(names)).reshape(-1, 2)
    net.images = torch.frombuffer(bytearray("\n".join(names).encode()), dtype=torch.uint8)
    found = net.answers_for([image], others=[image, "train/b/8.png", "test/one/9.png"])[0]
    assert found.isnan().all() if row is None else found.tolist() == net.rows[row].tolist()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("image,a,b\n", r"a\.csv has no rows"),
        ("image,a,b\n1,0.5,0.5\n2,0.9,0.1\n3,1.2,-0.2\n", r"but not for image 3"),
        ("image,class_1,probability_1,class_2,probability_2\n1,a,0.5,a,0.5\n", r"a twice for 1"),
        ("image,class_1,probability_1\n1,a,0.5\n2,a,1.5\n", r"of 2 are no shares of 1"),
    ],
)
def test_a_table_that_contradicts_itself_is_one_message(
    table: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(table)
    with pytest.raises(UserError, match=words):
        read_answers(tmp_path / "a.csv", ["a", "b"], "teacher.path")


def test_arrays_of_other_lengths_or_two_kinds_are_refused(tmp_path: Path) -> None:
    half = np.full((2, 2), 0.5)
    np.savez(tmp_path / "a.npz", index=[0, 1, 2], logits=half)
    with pytest.raises(UserError, match=r"3 values of index, and 2 of logits"):
        read_answers(tmp_path / "a.npz", ["a", "b"], "teacher.path")
    np.savez(tmp_path / "a.npz", index=[0, 1], logits=half, probabilities=half)
    with pytest.raises(UserError, match=r"has logits and probabilities; accepted is one"):
        read_answers(tmp_path / "a.npz", ["a", "b"], "teacher.path")


def test_a_row_may_have_fewer_answers_and_the_names_may_be_those_of_predict(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.csv").write_text(
        "path,class_1,probability_1,class_2,probability_2\none/1.png,a,0.8,b,0.2\n2.png,b,1,,\n"
    )
    found = read_answers(tmp_path / "a.csv", ["a", "b"], "teacher.path")
    assert found.images == ["one/1.png", "2.png"]
    assert np.exp(found.logits) == pytest.approx(np.array([[0.8, 0.2], [0, 1]]), abs=1e-6)


def test_numbers_of_test_images_begin_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("index,part,a,b\n0,train,1,-2\n0,test,3,-4\n")
    net = Answers(2)
    net.read_file(file, "teacher.path", ["b", "a"], None)
    assert net.answers_for(["0"]).tolist() == [[-2, 1]]
    assert net.answers_for(["0"], of_test=True).tolist() == [[-4, 3]]


@pytest.mark.parametrize("loss", ["embedding", "queue"])
def test_from_a_backbone_to_a_small_net(loss: str, tmp_path: Path) -> None:
    """Embeddings without labels leave the last layer; the probe then trains that alone."""
    pytest.importorskip("timm")
    words = [
        "experiment=foundation_to_small",
        "data=digits",
        "student=cnn",
        "student.net.width=8",
        "epochs=1",
        "teacher.net.name=test_resnet",
        "teacher.net.pretrained=false",
        "teacher.epochs=1",
        "stage.probe.epochs=1",
        "stage.finetune.epochs=1",
        f"loss={loss}",
    ]
    made = check(tiny(tmp_path, *words))
    data: DataModule = construct(made.data, "data")
    store = Store(tmp_path / "store")
    results: dict[str, StageResult] = {}
    for each in chain_of(made):
        results[each.name] = complete(make_stage(each, made, data, results), store, data)[0]
    assert list(results) == ["teacher", "baseline", "embed", "probe", "finetune"]
    start = make_stage(plan(made, "baseline"), made, data, {}).spec.seed
    assert results["embed"].record.spec.seed == start
    torch.manual_seed(start)
    net = build_net(made.student.net, data.shape, "student.net", trained=True)
    first = net.state_dict()
    embed, probe, tuned = (results[name].weights() for name in ("embed", "probe", "finetune"))
    head = {*head_tensors(net, data.shape)}
    assert head == {"fc.weight", "fc.bias"}

    def moved(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
        return {name for name in a if not torch.equal(a[name], b[name])}

    # Weight decay shrinks the last layer's weights, and nothing turns them
    assert moved(first, embed) == first.keys() - {"fc.bias"}
    shrunk = float(embed["fc.weight"].norm() / first["fc.weight"].norm())
    assert shrunk < 1
    assert torch.allclose(embed["fc.weight"], shrunk * first["fc.weight"], atol=1e-6)
    assert moved(embed, probe) == head
    assert moved(probe, tuned) >= {name for name in tuned if name.endswith("weight")}
    assert results["embed"].record.training_params > 0
