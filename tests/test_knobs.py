"""A knob that the chosen method does not use is an error, wherever it is set."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from composed import METHODS, OF_TASKS, composed, loss_node
from processes import Process

from kd.command import typed_keys
from kd.config.knobs import uses
from kd.config.schema import check
from kd.errors import UnusedError, UserError
from kd.stages.chain import chain_of

USED = {
    "alpha": {
        "kd",
        "kd_dist",
        "mld",
        "mse_logits",
        "soft_ce",
        "ctkd",
        "mlkd",
        "mlkd_views",
        "tfkd_reg",
        "tfkd_self",
        "label_smoothing",
        "normkd",
        "deit_hard",
    },
    "temperature": {
        *(
            "kd",
            "kd_standardized",
            "kd_dist",
            "mld",
            "semckd",
            "crld",
            "soft_ce",
            "dkd",
            "nkd",
            "dist",
            "ofa",
            "tfkd_reg",
            "tfkd_self",
        ),
        *("wttm", "normkd", "rld", "ldrld", "wkd_l", "sdd", "byot"),
        *("lwf", "lwf_bce", "lwf_mix"),
    },
}


@pytest.mark.parametrize("method", OF_TASKS)
def test_a_method_for_tasks_is_refused_elsewhere(method: str) -> None:
    """Found by the function of a term, wherever that is named."""
    config = check(composed("data=digits"))
    own = {"loss": {"ce_weight": 1.0, "terms": loss_node(method)["terms"]}}
    distill = config.stage["distill"].model_copy(update=own)
    inline = config.model_copy(update={"stage": {**config.stage, "distill": distill}})
    for config, where in (
        (check(composed(f"loss={method}")), "loss"),
        (inline, "stage.distill.loss"),
    ):
        with pytest.raises(
            UserError, match=rf"^{where}\.terms\.\w+\.loss: .* for classes .* -m kd\.incremental"
        ):
            chain_of(config)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in OF_TASKS])
def test_which_method_uses_which(method: str) -> None:
    cfg = composed(f"loss={method}", *(f"{knob}=0.5" for knob in USED))
    for knob, methods in USED.items():
        assert uses(cfg, knob) == (method in methods)
        assert cfg[knob] == 0.5  # looking turned nothing
        if method in methods:
            check(cfg, [knob])
        else:
            with pytest.raises(
                UserError, match=f"{knob}: the chosen loss does not use it.*; it has loss.ce_weight"
            ):
                check(cfg, [knob])
    check(cfg)  # not typed: the default stands there for other methods


def test_a_schedule_is_never_a_mere_default() -> None:
    with pytest.raises(UnusedError, match="temperature: the chosen loss does not use it"):
        check(composed("loss=mse_logits", "experiment=temperature_falls"))
    with pytest.raises(UnusedError, match="temperature: the chosen loss does not use it"):
        check(
            composed("loss=mse_logits", "experiment=temperature_falls", "temperature=3"),
            ["temperature"],
        )


@pytest.mark.parametrize("method", sorted(USED["alpha"]))
def test_alpha_is_the_weight_of_the_teachers_side(method: str) -> None:
    node = loss_node(method, "alpha=0.3")
    name = "kd" if method == "kd_dist" else method
    assert (node["ce_weight"], node["terms"][name]["weight"]) == (pytest.approx(0.7), 0.3)


def test_the_name_shows_the_knobs_that_count() -> None:
    names = {
        method: check(composed(f"loss={method}")).name
        for method in ("kd", "dkd", "mse_logits", "dml")
    }
    assert names == {
        "kd": "digits_mlp_to_mlp_kd_T2.0_a0.5_s0",
        "dkd": "digits_mlp_to_mlp_dkd_T4.0_s0",
        "mse_logits": "digits_mlp_to_mlp_mse_logits_a0.9_s0",
        "dml": "digits_mlp_to_mlp_dml_s0",
    }


def test_the_name_shows_the_recipe() -> None:
    assert (
        check(composed("experiment=finetune", "seed=3")).name
        == "digits_few_mlp_to_mlp_kd_T2.0_a0.5_finetune_s3"
    )


def test_methods_bring_their_authors_values_and_the_command_line_wins() -> None:
    assert check(composed("loss=tfkd_self")).temperature == 6.0
    assert check(composed("loss=tfkd_self")).alpha == 0.95
    assert (
        check(composed("loss=tfkd_self", "temperature=2")).loss["terms"]["tfkd_self"]["loss"][
            "temperature"
        ]
        == 2.0
    )


def test_typed_keys() -> None:
    overrides = [
        "temperature=3",
        "+alpha=1",
        "teacher.epochs=2",
        "~finetune",
        "temperature.end=4",
        "loss=kd",
    ]
    keys = {"temperature", "alpha", "teacher", "finetune", "loss"}
    assert typed_keys(overrides) == keys | {"teacher.epochs", "temperature.end"}


def command(*arguments: str) -> Process:
    return Process("kd.train", "model=mlp_to_mlp", "trainer=smoke", *arguments).wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("data=image_folder", "data.root={}/phots"),
            "data.root: no folder .* mean 'photos'",
        ),
        (("data=webdataset", "data.root={}/phots"), "data.root: no file or folder"),
        (("data=webdataset", "data.root={}/x-*.tar"), None),  # for the source to read
        (("data=cifar10", "data.root={}/new"), None),  # is downloaded there
        (("data.unlabeled={}/phots",), "data.unlabeled: no .*did you mean 'photos'"),
        (("teacher.path={}/a.p",), "teacher.path: there is no file .*did you mean 'a.pt'"),
        (("student.path={}/a.p",), "student.path: there is no file .*did you mean 'a.pt'"),
        (("teacher=answers", "teacher.path={}/a.csv"), "teacher.path: there is no file"),
    ],
)
def test_a_wrong_path_is_found_in_the_config(
    words: tuple[str, ...], said: str | None, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.pt").touch()
    typed = [word.format(tmp_path) for word in words]
    with pytest.raises(UserError, match=said) if said else nullcontext():
        check(composed(*typed), typed_keys(typed))


def test_a_sweeps_jobs_are_checked_too(tmp_path: Path) -> None:
    done = command(
        "hydra.mode=MULTIRUN", "loss=mse_logits", "temperature=2,3", f"output_dir={tmp_path}"
    )
    assert done.returncode != 0
    assert "temperature: the chosen loss does not use it" in done.stderr


@pytest.mark.slow
def test_a_sweep_over_methods_leaves_out_those_that_a_recipe_does_not_concern(
    tmp_path: Path,
) -> None:
    sweep = ["sweep=methods", "loss=mse_logits,kd", "seed=0", "experiment=temperature_falls"]
    done = command(*sweep, f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out of the sweep: loss=mse_logits seed=0") == 1
    (report,) = tmp_path.glob("sweeps/*/*/report.json")
    assert "_kd_Tcosine-8.0-2.0" in json.loads(report.read_text())["name"]
