"""A run's own TensorBoard events: its row in the table of runs, figures, texts.

The curves are in the stages' events only; the charts of the Custom Scalars tab use those.
"""

import inspect
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from kd.config.knobs import in_a_name
from kd.config.rates import rate_in_words
from kd.config.schedules import make_schedule
from kd.config.schema import Config
from kd.data.base import DataModule
from kd.files.events import silence_writer_traceback
from kd.files.report_file import Report
from kd.reports.figures import as_array
from kd.reports.run_report import as_markdown
from kd.reports.view_grid import view_grid
from kd.training.loss_spec import LossSpec

# Charts by category. A chart has a line for each chosen run with a tag of this pattern.
LAYOUT = {
    "Student, baseline, teacher": {
        "validation accuracy": ["Multiline", ["^val/acc$"]],
        "validation loss": ["Multiline", ["^val/loss$"]],
        "agreement with the teacher on validation": ["Multiline", ["^val/agreement$"]],
    },
    "Loss": {
        "loss": ["Multiline", ["^train/loss$"]],
        "its terms, unweighted": ["Multiline", ["^train/loss_"]],
    },
    "Schedules": {
        "temperature": ["Multiline", ["^train/.+_temperature$"]],
        "weights of the terms (alpha: the teacher's side)": ["Multiline", ["^train/weight_"]],
        "learning rate": ["Multiline", ["^lr$"]],
    },
    "The teacher's soft labels": {
        "entropy": ["Multiline", ["^teacher/entropy$"]],
        "probability of the true class": ["Multiline", ["^teacher/label_probability$"]],
    },
}

# Columns of the table of runs, with names and value types. Those in SHOWN are visible at first, the
# others on a click.
SHOWN = ("alpha", "method", "seed", "student", "temperature")
KNOBS: Mapping[str, tuple[str, type]] = {
    "data": ("data", str),
    "train_images": ("training images", float),
    "teacher": ("teacher", str),
    "student": ("student", str),
    "method": ("method", str),
    "temperature": ("T", float),
    "alpha": ("alpha", float),
    "schedules": ("schedules", str),
    "seed": ("seed", float),
    "epochs": ("epochs", float),
    "batch_size": ("batch size", float),
    "optimizer": ("optimizer", str),
    "lr": ("learning rate", float),
    "lr_schedule": ("learning-rate schedule", str),
    "teacher_epochs": ("teacher's epochs", float),
}
RESULTS = {
    "test_accuracy": "test accuracy",
    "val_accuracy": "validation accuracy",
    "gain": "gain",
    "agreement": "agreement",
    "gap_closed": "gap closed",
    "ece": "ECE",
    "nll": "NLL",
    "baseline_test_accuracy": "baseline's test accuracy",
    "teacher_test_accuracy": "teacher's test accuracy",
    "params": "parameters",
    "latency_ms": "latency in ms",
    "speedup": "speedup",
}


def begin(folder: Path, config: Config, data: DataModule) -> SummaryWriter:
    """Open a run's events with what is known before training: charts, config, views of some images.

    Args:
        folder: gets the event file.
    """
    silence_writer_traceback()
    events = SummaryWriter(str(folder))
    events.add_custom_scalars(LAYOUT)
    plain = yaml.safe_dump(config.model_dump(), sort_keys=False)
    events.add_text("config", f"```yaml\n{plain}\n```")
    events.add_image("views", view_grid(data, config.seed))
    events.flush()
    return events


def finish(
    events: SummaryWriter,
    config: Config,
    loss: LossSpec,
    report: Report,
    figures: Mapping[str, Figure],
) -> None:
    """Add the finished run: report, figures by name, and its row in the table of runs.

    Args:
        loss: the one that `loss=` names.
    """
    events.add_text("report", as_markdown(report))
    for name, figure in figures.items():
        events.add_image(name, as_array(figure), dataformats="HWC")
    found = {
        f"result/{name}": value for name, value in results(report).items() if value is not None
    }
    for name, value in found.items():
        events.add_scalar(name, value)
    add_row(events, knobs(config, loss, report))


def add_row(events: SummaryWriter, values: Mapping[str, str | float | None]) -> None:
    """Add the run as a row of the HParams tab.

    `SummaryWriter.add_hparams` would create another run, named by time, without display names for
    columns. All runs have the same columns, since TensorBoard takes them from any one.

    Args:
        values: of `KNOBS`; None leaves the field empty.
    """
    kinds = {str: api_pb2.DATA_TYPE_STRING, float: api_pb2.DATA_TYPE_FLOAT64}
    columns = [
        api_pb2.HParamInfo(name=name, display_name=called, type=kinds[kind], differs=name in SHOWN)
        for name, (called, kind) in KNOBS.items()
    ]
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"result/{name}"), display_name=called)
        for name, called in RESULTS.items()
    ]
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for name, value in values.items():
        if isinstance(value, str):
            start.hparams[name].string_value = value
        elif value is not None:
            start.hparams[name].number_value = value
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    content = {
        metadata.EXPERIMENT_TAG: {
            "experiment": api_pb2.Experiment(hparam_infos=columns, metric_infos=metrics)
        },
        metadata.SESSION_START_INFO_TAG: {"session_start_info": start},
        metadata.SESSION_END_INFO_TAG: {"session_end_info": end},
    }
    writer: Any = events.file_writer
    for tag, each in content.items():
        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**each))
        writer.add_summary(Summary(value=[Summary.Value(tag=tag, metadata=about)]))


def knobs(config: Config, loss: LossSpec, report: Report) -> dict[str, str | float | None]:
    """Return a run's settings, with the keys and types of `KNOBS`; None if missing.

    A scheduled knob shows its initial value; `schedules` has the schedule.
    """
    nets = {model.role: model.net for model in report.models}
    used = {knob: getattr(config, knob) for knob in config.loss_knobs}
    start = {knob: make_schedule(value, knob)(0.0) for knob, value in used.items()}
    moving = [
        f"{knob} {in_a_name(value)}" for knob, value in used.items() if isinstance(value, Mapping)
    ]
    lr = config.optim.get("lr")
    return {
        "data": report.data.name,
        "train_images": float(report.data.train),
        "teacher": nets.get("teacher", "none"),
        "student": nets.get("student", nets.get("baseline", "none")),
        "method": method(loss) if "student" in nets else "none",
        "temperature": start.get("temperature"),
        "alpha": start.get("alpha"),
        "schedules": ", ".join(moving) or "none",
        "seed": float(config.seed),
        "epochs": float(config.epochs),
        "batch_size": float(config.batch_size),
        "optimizer": str(config.optim["_target_"]).rpartition(".")[2],
        "lr": float(lr) if isinstance(lr, (int, float)) else None,
        "lr_schedule": rate_in_words(config.lr_schedule),
        "teacher_epochs": float(config.teacher.epochs) if "teacher" in nets else None,
    }


def method(loss: LossSpec) -> str:
    """Format a loss's terms with their non-default numbers: `dkd(non_target_weight=6)`."""
    parts = []
    for term in loss.terms:
        parameters = inspect.signature(term.target).parameters
        own = [
            f"{key}={value}"
            for key, value in {**term.build, **term.constants}.items()
            if key != "temperature"
            and not isinstance(value, (Mapping, list))
            and (key not in parameters or value != parameters[key].default)
        ]
        parts.append(f"{term.name}({', '.join(own)})" if own else term.name)
    return " + ".join(parts) or "labels"


def results(report: Report) -> dict[str, float | None]:
    """Return a run's results, with the keys of `RESULTS`; None if not measured.

    Accuracies are fractions.
    """
    tests = {model.role: model.test.accuracy for model in report.models}
    found: dict[str, float | None] = {
        **dict.fromkeys(RESULTS),
        "gain": report.comparison.gain,
        "gap_closed": report.comparison.gap_closed,
        "speedup": report.comparison.speedup,
        **{f"{role}_test_accuracy": tests.get(role) for role in ("baseline", "teacher")},
    }
    if student := report.model("student"):
        test = student.test
        found |= {"test_accuracy": test.accuracy, "val_accuracy": student.val.best}
        found |= {"agreement": test.agreement, "ece": test.ece, "nll": test.nll}
        found |= {"params": student.params, "latency_ms": student.latency_ms.median}
    return found
