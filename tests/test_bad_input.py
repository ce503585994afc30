"""User errors, by command: exit code 2, one message with the remedy, and nothing is written.

A case is a command, its arguments, and words of the message. It runs in a folder with what `lab`
puts there. Commands that train also get a tiny budget.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import NAMES, exit_code, unchanged
from composed import TINY
from PIL import Image

Case = tuple[str, str, tuple[str, ...]]


# Arguments, and words of the message. Two spaces separate arguments, as one may contain spaces.
TRAIN: list[tuple[str, tuple[str, ...]]] = [
    # names of files and of keys
    ("data=cifar11", ("data", "'cifar11'", "digits, ", "cifar10")),
    ("model=resnet18_to_cn", ("model", "resnet18_to_cnn")),
    ("teacher=resnet19", ("teacher", "resnet18")),
    ("teacher=none  alpha=1", ("teacher: there is no 'none'; accepted are answers, checkpoint",)),
    ("student=cnnn", ("student", "'cnn'")),
    ("loss=kdd", ("loss", "'kd'")),
    ("loss=null", ("loss: found None, accepted are the files ab, at",)),
    ("loss=3", ("loss: found 3, accepted are the files",)),
    ("optim=sdg", ("optim", "'sgd'")),
    ("trainer=gpuu", ("trainer", "'gpu'")),
    ("experiment=cifar10_gpu", ("experiment", "cifar10_cpu")),
    ("data=[]", ("data: cannot do without it",)),
    ("temprature=3", ("temprature", "'temperature'")),
    ("student.net.hiden=[3]", ("student.net.hiden", "'student.net.hidden'")),
    ("data.batch_size=3", ("data.batch_size", "'batch_size'")),
    ("+foo=1", ("foo",)),
    ("--config-dir=nowhere", ("nowhere", "not found")),
    ("--config-name=nowhere", ("--config-name: there is no 'nowhere'; accepted are train",)),
    # syntax of the command line
    ("alpha=[b", ("alpha=[b",)),
    ("alpha", ("alpha: not an override of the form KEY=VALUE",)),
    ("alpha=1,2", ("alpha", "add -m to sweep over the values")),
    ("-m  --cfg=job", ("Only one of", "--multirun, --cfg")),
    ("-m  alpha=range(1,2,0)", ("range()",)),
    ("-m  temperature=0,-1", ("temperature: found 0.0, accepted is a number above 0",)),
    ("-m  loss=null,3", ("loss", "accepted are the files")),
    ("-m  hydra.sweep.dir=file  seed=1,2", ("hydra.sweep.dir: cannot write into", "file")),
    ("alpha=${nothing}", ("alpha: refers to nothing, and there is no such key",)),
    ("alpha=${temprature}", ("alpha: refers to temprature", "did you mean 'temperature'?")),
    (
        "experiment=ft  loss=at",
        ("stage.paraphrase.loss.terms.ft.loss.rate: refers to", "has the terms at;", "loss=ft"),
    ),
    ("alpha=${oc.env:NOT_THERE}", ("NOT_THERE",)),
    ("data.root=${data.root}", ("data.root: Recursive interpolation",)),
    # numbers, their types and ranges
    ("alpha=1.5", ("alpha", "1.5", "a number from 0 to 1")),
    ("alpha=-0.1", ("alpha", "-0.1", "a number from 0 to 1")),
    ("alpha=nan", ("alpha: found nan", "a number from 0 to 1")),
    (
        "alpha={schedule: liner, start: 0, end: 1}",
        ("alpha.schedule: found 'liner'", "did you mean 'linear'"),
    ),
    ("alpha={schedule: linear, start: 0, end: 2}", ("alpha: it is 1.02 at progress 0.51",)),
    ("alpha={schedule: linear, start: low, end: 1}", ("alpha.start: found 'low'", "valid number")),
    ("alpha={_target_: nothing.at.all}", ("alpha._target_: cannot import 'nothing.at.all'",)),
    (
        "alpha=0.5  loss=dkd",
        ("alpha: the chosen loss does not use it", "loss.terms.dkd.loss.target_weight"),
    ),
    ("temperature=0", ("temperature", "a number above 0")),
    ("temperature=-1", ("temperature", "-1")),
    ("temperature=warm", ("temperature", "'warm'", "number")),
    ("temperature={schedule: one_minus, of: 3}", ("temperature: it is -2 at progress 0",)),
    ("epochs=-1", ("epochs", "-1")),
    ("epochs=1.5", ("epochs", "1.5", "integer")),
    ("epochs=abc", ("epochs", "'abc'")),
    ("seed=-1", ("seed", "-1")),
    ("seed=null", ("seed", "None")),
    (
        "seed=18446744073709551616",
        ("seed: found 18446744073709551616", "less than 9223372036854775808"),
    ),
    ("force=maybe", ("force", "'maybe'")),
    ("batch_size=0", ("batch_size",)),
    ("lr_schedule=linear", ("lr_schedule", "'linear'", "onecycle")),
    ("ema=1.0", ("ema", "1.0")),
    ("gradient_clip=inf", ("gradient_clip: found inf", "finite number")),
    (
        "optim._target_=kd.data.digits.Digits  ~optim.lr  ~optim.weight_decay",
        ("optim._target_: kd.data.digits.Digits gave a Digits",),
    ),
    ("optim.lr=-1", ("optim", "-1")),
    ("optim.lr=fast", ("optim.lr: found 'fast'", "valid number")),
    ("optim.lr=inf", ("optim.lr: found inf", "finite number")),
    ("+optim.weight_decy=0.5", ("optim.weight_decy", "'weight_decay'")),
    ("student.net.hidden=8", ("student.net.hidden: found 8",)),
    ("student.net.hidden=[-8]", ("student.net", "negative dimension")),
    ("student.net.hidden=[0]", ("student.net: kd.nets.mlp.MLP would have layers of no width",)),
    ("student.net.hidden=[wide]", ("student.net.hidden[0]: found 'wide'", "valid integer")),
    ("teacher.cache_limit=0", ("teacher.cache_limit", "0")),
    ("trainer.precision=17", ("trainer", "17")),
    ("trainer.devices=0", ("trainer.devices: found 0; accepted is a whole number from 1",)),
    ("trainer.devices=[0,0]", ("trainer.devices: found [0, 0]; accepted is", "a list of GPUs")),
    ("trainer.devices=all", ("trainer.devices: found 'all'; accepted is", "auto or -1 for all")),
    ("+trainer.max_epochs=x", ("trainer.max_epochs: found 'x'",)),
    ("+trainer.limit_val_batches=0", ("trainer.limit_val_batches: found 0",)),
    ("+trainer.logger=true", ("trainer.logger: kd sets it",)),
    ("+trainer.epoch=17", ("trainer.epoch",)),
    ("trainer.log_every_n_steps=x", ("trainer.log_every_n_steps: found 'x'", "valid integer")),
    ("trainer.accelerator=tpuu", ("trainer", "tpuu")),
    # stages and losses, and their combinations
    ("stages=[distill]", ("stages", "teacher")),
    ("stages=[teacher,teacher]", ("stages",)),
    ("stages=[teach]", ("stages", "'teach'", "teacher")),
    ("stages=[]", ("stages",)),
    ("stage.distill.start=distill", ("distill builds on distill, which must come before it",)),
    (
        "+stage.distill.trains=loss",
        ("stage.distill.trains: found 'loss', but its loss learns nothing",),
    ),
    ("+loss.terms.kd.loss.temprature=1", ("loss.terms.kd.loss.temprature", "'temperature'")),
    ("loss.terms.kd.loss._target_=kd.losses.kd.kd", ("loss.terms.kd.loss", "kd.losses.kd.kd")),
    ("loss.terms.kd.weight=-1", ("loss.terms.kd.weight", "-1")),
    (
        "loss.terms.kd=null",
        ("loss.terms.kd: found None, accepted is a mapping with the keys weight, loss",),
    ),
    ("loss.terms=3", ("loss.terms: found 3",)),
    ("loss.terms.kd.loss=3", ("loss.terms.kd.loss: needs a `_target_`", "found 3")),
    (
        "loss=dkd  loss.terms.dkd.loss.target_weight=big",
        ("loss.terms.dkd.loss.target_weight: found 'big'",),
    ),
    ("loss=fitnet  student.taps=[nope]", ("student.taps: the net has no module 'nope'",)),
    (
        "loss=fitnet  student.taps=[hidden.0,hidden.1]  teacher.taps=[hidden.0]",
        ("student.taps: found 2", "in pairs"),
    ),
    ("loss=simkd", ("loss.net: student.net: MLP does not end in the average",)),
    ("student.net._target_=kd.nets.mlp.MLPP", ("student.net._target_", "MLPP")),
    ("student.net._target_=nothing.at.all", ("student.net._target_", "nothing.at.all")),
    ("student=torchvision  student.net.name=resnet15", ("student.net", "resnet15", "resnet18")),
    ("student=torchvision  student.net.name=3", ("student.net.name: found 3", "valid string")),
    ("teacher=ensemble  teacher.members=[{net: 3}]", ("teacher.members[0].net: found 3",)),
    (
        "teacher=ensemble  teacher.members=[{sed: 1}]",
        ("teacher.members[0].sed: no such key; did you mean 'seed'",),
    ),
    (
        "teacher=ensemble  teacher.weights=[1,2]",
        ("teacher.weights: found [1.0, 2.0], needed is one for each",),
    ),
    # names and paths
    ("name=a/b", ("name", "a/b")),
    ("name=..", ("name: found '..'; accepted is a folder's name",)),
    ("name=" + 200 * "x", ("name", "up to 160 bytes")),
    ("output_dir=file/out", ("output_dir: cannot write into", "file/out")),
    ("output_dir=loop", ("output_dir: cannot write into", "loop")),
    ("output_dir=", ("output_dir: found ''",)),
    # images
    ("data.limit=0", ("data.limit", "0")),
    ("data.limit=5", ("data", "5")),
    ("data.imbalance=1", ("data.imbalance: found 1", "greater than 1")),
    ("data.val_fraction=1.5", ("data.val_fraction", "1.5")),
    ("data.val_fraction=some", ("data.val_fraction: found 'some'", "valid number")),
    ("data.split_seed=-1", ("data.split_seed: found -1",)),
    ("data.num_workers=-1", ("data.num_workers: found -1",)),
    ("data.augment.crop_padding=-1", ("data.augment.crop_padding", "-1")),
    ("data.augment.flip=true", ("data.augment.flip",)),
    ("data.labels=201", ("data.labels: found 201; accepted are 10", "to 200")),
    ("data.labels=9", ("data.labels: found 9; accepted are 10",)),
    ("data.labels=[1,2]", ("data.labels",)),
    (
        "data.omit=[33]",
        ("data.omit: there is no class '33'", "accepted are 0, 1", "did you mean '3'"),
    ),
    ("teacher.image_size=0", ("teacher.image_size: found 0; input should be greater than or",)),
    ("data.omit=3", ("data.omit: found 3", "array, such as [3]")),
    (
        "data.omit=[3.0]",
        ("data.omit[0]: found 3.0; input should be a valid string, or a valid int",),
    ),
    (
        "teacher.data=3",
        ("teacher.data: found 3; input should be a valid string, or a valid dictionary",),
    ),
    ("data.labels=true", ("data.labels: found True", "a valid integer, or a valid number, or a")),
    ("data.val_labels=-1", ("data.val_labels: found -1", "0 for none")),
    ("data.augment.erase=1.5", ("data.augment.erase: found 1.5; input should be less than",)),
    ("data.omit=[0,1,2,3,4,5,6,7,8]", ("data.omit: found 9 of 10 classes", "at least two")),
    (
        "data.val_labels=3",
        ("data.val_labels: found 3; accepted are 0 (none; the last weights are kept), 10",),
    ),
    ("data.val_labels=0  early_stopping=3", ("early_stopping: found 3", "data.val_labels=0")),
    ("data.labels=nowhere.txt", ("data.labels: cannot read", "nowhere.txt", "No such file")),
    ("data.unlabeled=empty", ("data.unlabeled: no image in", "empty")),
    ("data.cache=disk  data.cache_dir=null", ("data.cache: disk needs data.cache_dir",)),
    (
        "data=cifar10  data.root=/nowhere  data.limit=null",
        ("/nowhere/cifar-10-batches-py", "data_batch_1", "KD_DATA_DIR"),
    ),
    ("data=image_folder", ("data.root: must be given",)),
    ("data=image_folder  data.root=", ("data.root: found '', accepted is a folder",)),
    ("data=image_folder  data.root=nowhere", ("data.root: no folder", "nowhere")),
    ("data=image_folder  data.root=loop", ("data.root: no folder", "loop")),
    (
        "data=image_folder  data.root=photos/cat",
        ("data.root", "photos/cat must hold a folder of images for each of"),
    ),
    (
        "data=image_folder  data.root=photos  data.cache=off",
        ("1 of 5 image files", "photos/dog/1.png: not an image"),
    ),
    ("data=image_folder  data.root=photos  data.image_size=0", ("data.image_size: found 0",)),
    (
        "data=image_folder  data.root=photos  data.image_size=1000000",
        ("data.image_size: found 1000000",),
    ),
    ("data=image_folder  data.root=photos  data.channels=2", ("data.channels: found 2",)),
    (
        "data=image_folder  data.root=photos  data.group_pattern='('",
        ("data.group_pattern", "no regular expression"),
    ),
    # weights
    ("teacher.path=/nowhere.pt", ("teacher.path", "/nowhere.pt")),
    ("teacher.path=loop", ("teacher.path: there is no file", "loop")),
    ("teacher.path=empty", ("teacher.path: the folder", "has no student.safetensors")),
    ("teacher.path=run", ("teacher.path", "of another net: hidden [8] where teacher.net has [16]")),
    ("teacher=checkpoint", ("teacher.path: found None, needed is the file",)),
    (
        "teacher=checkpoint  teacher.path=text.pt",
        ("text.pt does not name its net", "teacher=resnet18 teacher.path="),
    ),
    ("teacher=checkpoint  teacher.path=other/header_mean", ("header is damaged: mean.0",)),
    (
        "teacher=checkpoint  teacher.path=other/header_wide",
        ("teacher.net: kd.nets.mlp.MLP would have", "numbers, the file has room for"),
    ),
]

OF_RUNS: list[
    tuple[str, tuple[str, ...]]
] = [  # of evaluate, benchmark and export alike; shared out
    ("", ("run: must be given",)),
    ("run=zzz", ("run: there is no folder", "zzz; the latest runs are ", "run")),
    ("run=runn", ("did you mean 'run'?",)),
    ("run=x.partial", ("is not finished",)),
    ("run=empty", ("has no report.json, so it is no run's",)),
    ("run=run  out=file", ("out: cannot write into", "file")),
    ("run=run  tust=[a]", ("tust: no such key; did you mean 'trust'?",)),
    ("run=other/later", ("run: ", "written by a later kd (schema 2; this one reads 1)")),
    ("run=other/deep", ("run: ", "damaged")),
    ("run=other/stage", ("damaged", "models.0.stage")),
    ("run=other/classes", ("damaged", "data.classes")),
    ("run=other/config", ("damaged", "config.output_dir")),
]

CASES: list[Case] = [
    *(("train", typed, words) for typed, words in TRAIN),
    ("tune", "n_trial=3", ("n_trial", "'n_trials'")),
    ("tune", "n_trials=0", ("n_trials", "0")),
    ("tune", "timeout=inf", ("timeout: found inf",)),
    ("tune", "seeds=[1,1]", ("seeds",)),
    ("tune", "seeds=[]", ("seeds",)),
    ("tune", "study=a/b", ("study",)),
    ("tune", "search=kdd", ("search", "'kd'")),
    ("tune", "storage=nonsense://x", ("storage", "nonsense")),
    ("tune", "temperature=0", ("temperature", "above 0")),
    (
        "tune",
        "search.space.temprature={low: 1, high: 2}",
        ("search.space.temprature", "'temperature'"),
    ),
    (
        "tune",
        "search.space.temperature={choices: [1, 2], low: 1}",
        ("search.space.temperature", "choices"),
    ),
    ("tune", "search.space.loss={choices: [kd, dkdd]}", ("loss", "dkdd", "'dkd'")),
    (
        "tune",
        "loss=dkd  search=kd",
        ("search.space.alpha", "does not use it", "loss.terms.dkd.loss.target_weight"),
    ),
    (
        "tune",
        "loss=dkd  search.space.alpha={low: 0.1, high: 0.5}",
        ("search.space.alpha", "does not use it"),
    ),
    ("tune", "loss=dml", ("search.space", "nothing to search", "loss.terms.dml.weight")),
    ("tune", "stages=[baseline]", ("stages", "distill")),
    ("tune", "force=true", ("force",)),
    (
        "incremental",
        "incremental.tasks=11",
        ("incremental.tasks: found 11, the data has 10 classes",),
    ),
    ("incremental", "incremental.tasks=0", ("incremental.tasks: found 0",)),
    (
        "incremental",
        "incremental.tasks=[[0,1],[1]]",
        ("incremental.tasks: class '1' is in task 1 and in task 2",),
    ),
    (
        "incremental",
        "incremental.tasks=[[0,1],[12]]",
        ("incremental.tasks[1]: there is no class '12'",),
    ),
    ("incremental", "incremental.exemplars=9", ("incremental.exemplars: found 9 for 10 classes",)),
    ("incremental", "incremental.first=4", ("incremental.first: also needs incremental.step",)),
    ("incremental", "incremental.method=lwff", ("incremental/method: there is no 'lwff'",)),
    (
        "incremental",
        "incremental.taks=4",
        ("incremental.taks: no such key; did you mean 'incremental.tasks'",),
    ),
    (
        "incremental",
        "incremental.method=finetune  loss=kd",
        ("loss: kd does not support a teacher with fewer classes (",),
    ),
    (
        "incremental",
        "incremental.method=finetune  incremental.weight=1",
        ("incremental.weight", "does not use it"),
    ),
    (
        "incremental",
        "+student.taps=[hidden]",
        ("student.taps: a net that grows is tapped nowhere",),
    ),
    (
        "incremental",
        "data.unlabeled=photos",
        ("data.unlabeled: tasks take all images with their labels",),
    ),
    ("incremental", "data.labels=50", ("data.labels: tasks take all images",)),
    ("incremental", "data.omit=[3]", ("data.omit: tasks take all images",)),
    ("incremental", "data.val_labels=0", ("data.val_labels: tasks take all images",)),
    ("tune", "data.val_labels=0", ("data.val_labels: found 0", "a search chooses on validation")),
    ("compare", "n_trials=-1", ("n_trials: found -1",)),
    ("compare", "search.space.temprature={low: 1, high: 2}", ("temprature", "'temperature'")),
    ("compare", "dry_runs=true", ("dry_runs", "'dry_run'")),
    ("compare", "force=true", ("force: found true; a search does not retrain",)),
    ("incremental", "student.net.hiden=[3]", ("student.net",)),
    *(
        (("evaluate", "benchmark", "export")[i % 3], typed, words)
        for i, (typed, words) in enumerate(OF_RUNS)
    ),
    (
        "evaluate",
        "run=run  corruption=true",
        ("corruption: no such key; did you mean 'corruptions'?",),
    ),
    (
        "evaluate",
        "run=run  corruptions=[nois]",
        ("corruptions: found 'nois'", "did you mean 'noise'"),
    ),
    ("evaluate", "run=run  corruptions=[[noise]]", ("corruptions: found ['noise']",)),
    ("evaluate", "run=run  severities=[6]", ("severities", "found 6")),
    ("evaluate", "run=run  data=null", ("data: found None, accepted are the files",)),
    ("evaluate", "run=run  +data.rooot=x", ("data.rooot: no such parameter", "'root'")),
    (
        "benchmark",
        "run=run  backends=[eagre]",
        ("backends: found 'eagre'; accepted are eager, compile, ",),
    ),
    ("benchmark", "run=run  thread=2", ("thread: no such key; did you mean 'threads'?",)),
    ("benchmark", "run=run  threads=0", ("threads: found 0",)),
    ("benchmark", "run=run  threads=99999999999", ("threads: found 99999999999",)),
    ("benchmark", "run=run  batches=[0]", ("batches.0: found 0",)),
    ("benchmark", "run=run  batches=[]", ("batches: found []",)),
    ("benchmark", "run=run  seconds=inf", ("seconds: found inf",)),
    (
        "export",
        "run=run  formats=[onxx]",
        ("formats: found 'onxx'; accepted are onnx, fp16, int8, pt2", "mean 'onnx'?"),
    ),
    ("export", "run=run  formats=[]", ("formats: found",)),
    ("export", "run=run  calibration=0", ("calibration: found 0",)),
    ("export", "run=run  tolerance=nan", ("tolerance: found nan",)),
    ("export", "run=run  role=techer", ("has no techer", "did you mean 'teacher'")),
    ("export", "run=other/header_wide", ("would have", "numbers, the file has room for")),
    ("predict", "model=run", ("images: must be given",)),
    ("predict", "model=empty  images=photos", ("has no report.json, so it is no run's",)),
    ("predict", "model=x.partial  images=photos", ("is not finished",)),
    (
        "predict",
        "model=text.pt  images=photos",
        ("text.pt is no model of ours", "student.safetensors"),
    ),
    (
        "predict",
        "model=text.onnx  images=photos",
        ("model: text.onnx is no ONNX file, or a damaged one",),
    ),
    ("predict", "model=run/report.json  images=photos", ("is no model of ours",)),
    ("predict", "model=loop  images=photos", ("model: there is no folder", "loop")),
    ("predict", "model=other/later  images=photos", ("model: ", "written by a later kd")),
    ("predict", "model=other/header_mean  images=photos", ("header is damaged: mean.0",)),
    ("predict", "model=other/header_shape  images=photos", ("header is damaged: shape",)),
    ("predict", "model=other/header_later  images=photos", ("written by a later kd (schema 9",)),
    (
        "predict",
        "model=other/header_wide  images=photos",
        ("would have", "numbers, the file has room for"),
    ),
    ("predict", "model=run  images=empty", ("images: no image in", "empty")),
    ("predict", "model=run  images=list.txt", ("images: no image in", "list.txt")),
    ("predict", "model=run  images=[]", ("images: no image in",)),
    ("predict", "model=run  images=photoss", ("did you mean 'photos'",)),
    ("predict", "model=run  images=photos  out=x.xls", ("names that end in .csv or .json",)),
    ("predict", "model=run  images=photos  out=no/x.csv", ("out: there is no folder", "no")),
    ("predict", "model=run  images=photos  device=gpuu", ("device: found 'gpuu'",)),
    ("predict", "model=run  images=photos  otu=x.csv", ("otu: no such key; did you mean 'out'",)),
    ("report", "zzz", ("zzz: there is no such folder; the latest runs are ", "run")),
    ("report", "runn", ("runn: there is no such folder; did you mean 'run'?",)),
    ("report", "loop", ("loop: there is no such folder",)),
    ("report", "empty", ("empty: no report.json in there",)),
    ("report", "text.pt", ("text.pt is damaged, or no report of kd",)),
    ("report", "other/later", ("other/later/report.json was written by a later kd (schema 2",)),
    (
        "report",
        "other/schema",
        ("other/schema/report.json is damaged, or no report of kd", "schema"),
    ),
    ("report", "other/deep", ("other/deep/report.json is damaged",)),
    ("report", "other/list", ("other/list/report.json is damaged",)),
    ("report", "other/brace", ("other/brace/report.json is damaged",)),
    ("report", "other/none", ("models",)),
    ("report", "other/seed", ("seed",)),
    ("report", "other/accuracy", ("models.0.test.accuracy",)),
    ("store", "--output=nowhere", ("--output: there is no folder", "nowhere")),
    ("dashboard", "nowhere", ("nowhere: there is no such folder",)),
    ("dashboard", "file", ("file: there is no such folder",)),
]

BUDGET = {
    "train": ["model=mlp_to_mlp", *TINY],
    "tune": ["model=mlp_to_mlp", *TINY, "study=s", "seeds=[1,2]"],
    "compare": ["model=mlp_to_mlp", *TINY, "loss=kd,dkd"],
    "incremental": [
        "student=mlp",
        "student.net.hidden=[8]",
        "data.limit=100",
        "epochs=1",
        "batch_size=10",
        "pictures=false",
    ],
}


@pytest.fixture(scope="module")
def lab(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run, damaged runs and files, and images of which one is undecodable."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("empty", "x.partial"):
        (folder / name).mkdir()
    (folder / "file").touch()
    (folder / "list.txt").write_text("\n")
    for name in ("text.pt", "text.onnx"):
        (folder / name).write_text("hello")
    (folder / "loop").symlink_to("loop")
    for i, name in enumerate(("cat/0", "cat/1", "dog/0", "dog/2")):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(folder / "photos" / f"{name}.png")
    (folder / "photos" / "dog" / "1.png").write_text("hello")
    shutil.copytree(finished, folder / "run")
    for name, edit in REPORTS.items():
        with_report(folder, name, edit)
    for name, change in HEADERS.items():
        shutil.copytree(finished, folder / "other" / name)
        with_header(folder / "other" / name / "student.safetensors", change)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def edit_models(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    def edit(report: dict[str, Any]) -> None:
        for model in report["models"]:
            model.update(changes)

    return edit


# Changes of a report, or its replacement.
REPORTS: dict[str, Callable[[dict[str, Any]], Any] | str] = {
    "later": lambda report: report.update(schema=2),
    "schema": lambda report: report.update(schema="one"),
    "seed": lambda report: report.update(seed="one"),
    "none": lambda report: report.update(models=[]),
    "stage": edit_models(stage="../../elsewhere"),
    "accuracy": edit_models(test={"accuracy": None}),
    "classes": lambda report: report["data"].update(classes=None),
    "config": lambda report: report["config"].pop("output_dir"),
    "deep": '{"schema": 1, "name": ' + 100_000 * "[",
    "list": "[]",
    "brace": "{",
}

HEADERS: dict[str, dict[str, Any]] = {
    "header_mean": {"mean": ["x"]},
    "header_shape": {"shape": [1, -8, 10]},
    "header_later": {"schema": 9},
    "header_wide": {"net": {"_target_": "kd.nets.mlp.MLP", "hidden": [10**9, 10**9]}},
}


def with_report(folder: Path, name: str, edit: Callable[[dict[str, Any]], Any] | str) -> None:
    shutil.copytree(folder / "run", folder / "other" / name)
    file = folder / "other" / name / "report.json"
    if isinstance(edit, str):
        file.write_text(edit)
        return
    report = json.loads(file.read_text())
    edit(report)
    file.write_text(json.dumps(report))


def with_header(file: Path, change: dict[str, Any]) -> None:
    """Change the header of a student's file."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = {**json.loads(header["__metadata__"]["kd"]), **change}
    del about["sha256"]  # as an informed attacker would
    header["__metadata__"]["kd"] = json.dumps(about)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def arguments(name: str, typed: str, out: Path) -> list[str]:
    """Add the command's small budget, unless the arguments set it."""
    words = [word for word in typed.split("  ") if word]
    given = {word.lstrip("+").partition("=")[0] for word in words}
    budget = [word for word in BUDGET.get(name, []) if word.partition("=")[0] not in given]
    if {"student", "teacher", "model"} & given:
        budget = [
            word for word in budget if not word.startswith(("student.", "teacher.net", "model"))
        ]
    if name in BUDGET and "output_dir" not in given:
        budget.append(f"output_dir={out}")
    flags = [word for word in words if word.startswith("-")]
    return [*flags, *budget, *(word for word in words if word not in flags)]


@pytest.mark.parametrize(
    ("name", "typed", "words"), CASES, ids=[f"{name} {typed}"[:80] for name, typed, _ in CASES]
)
def test_bad_input_is_one_message(
    name: str,
    typed: str,
    words: tuple[str, ...],
    lab: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_network(*args: object, **options: object) -> None:
        raise OSError("no network")

    def no_training(*args: object) -> None:
        raise AssertionError("nothing may be trained")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    if "trainer" not in typed:  # Lightning reports its options when a stage starts
        monkeypatch.setattr("kd.stages.complete._train", no_training)
    out = tmp_path / "out"
    torch.set_num_threads(1)
    with unchanged(lab):
        assert exit_code(name, *arguments(name, typed, out)) == 2
    said = capsys.readouterr()
    (message,) = re.findall(r"^kd: (.*?)\Z", said.err, re.M | re.S)
    assert "Traceback" not in said.err
    assert "Error getting object" not in said.out + said.err  # Hydra's words would be beside ours
    assert len(message.strip().splitlines()) <= 6
    for word in words:
        assert word in message
    assert not list(out.glob("store/*/*"))
    assert not list(out.glob("runs/*"))
    assert not list(out.glob("sweeps/*/*/*"))


def test_all_commands_are_in_the_table() -> None:
    assert {name for name, *_ in CASES} == set(NAMES)
    assert len({(name, typed) for name, typed, _ in CASES}) == len(CASES) >= 60
