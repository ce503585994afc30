"""Whole runs of feature methods: chains of two stages, the teacher's last layer, several ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from composed import composed, tiny
from processes import CONTEXT, Process
from safetensors.torch import load_file
from torch import Tensor, nn

from kd.config.schema import check
from kd.data.digits import Digits
from kd.errors import UserError
from kd.losses.crd import CRD
from kd.nets.build import build_net
from kd.nets.simkd import SimKD
from kd.nets.torchvision import torchvision_net
from kd.runs.reader import open_run
from kd.runs.run import run
from kd.shape import Shape
from kd.stages.chain import chain_of
from kd.stages.try_out import taps_of, try_out

CNN = {"_target_": "kd.nets.cnn.CNN", "width": 4}
RESNET = {"_target_": "kd.nets.resnet.ResNet", "depth": 18, "width": 4}
SHAPE = Shape(1, 8, 10)
SMALL = ("model=resnet18_to_cnn", "teacher.net.width=4", "student.net.width=4")


def stages_of(folder: Path) -> dict[str, Path]:
    """Return the finished stages in a store, by name."""
    found = (folder / "store").glob("*/stage.json")
    return {json.loads(path.read_text())["name"]: path.parent for path in found}


class Twice(nn.Module):
    """Net whose last layer also gets the image."""

    taps = ("maps",)

    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 4, 3, padding=1)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.maps(x).mean((2, 3)) + x.mean((1, 2, 3))[:, None])


class Depends(Twice):
    """Net whose control flow depends on its input."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        return self.fc(maps.mean((2, 3)) if maps.mean() > 9 else maps.amax((2, 3)))


class Flat(nn.Module):
    """Net whose last layer takes the whole maps."""

    taps = ("maps",)

    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 4, 3, padding=1)
        self.fc = nn.Linear(4 * image_size**2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.maps(x).flatten(1))


def wide(depth: int, widen: int) -> dict[str, Any]:
    return {"_target_": "kd.nets.wide_resnet.WideResNet", "depth": depth, "widen": widen}


def of_torchvision(name: str) -> dict[str, Any]:
    return {"_target_": "kd.nets.torchvision.torchvision_net", "name": name}


SMALL_RESNET = {"_target_": "kd.nets.resnet_cifar.ResNetCIFAR", "depth": 8}
SMALL_VGG = {"_target_": "kd.nets.vgg.VGG", "depth": 8, "width": 8}
AS_THE_TEACHER = [
    (wide(10, 2), wide(16, 2), "block3"),
    (wide(10, 1), wide(16, 3), "block3"),  # of another width
    (SMALL_RESNET, wide(16, 2), "block3"),
    (wide(10, 1), SMALL_RESNET, "layer3"),
    (SMALL_VGG, SMALL_RESNET, "layer3"),
    (SMALL_RESNET, SMALL_VGG, "block5"),
    (SMALL_RESNET, of_torchvision("densenet121"), "features.norm5"),
    (SMALL_RESNET, of_torchvision("mobilenet_v3_small"), "features.12"),
]
OWN = ("net.conv", "net.bn1", "net.layer", "net.block", "net.features")


class TestSimKD:
    def test_ends_in_the_teachers_last_layer(self) -> None:
        torch.manual_seed(0)
        teacher = build_net(RESNET, SHAPE, "net")
        net = build_net(
            {"_target_": "kd.nets.simkd.SimKD", "student": CNN, "teacher": RESNET}, SHAPE, "net"
        ).eval()
        assert isinstance(net, SimKD)
        net.inherit(teacher.state_dict())
        assert torch.equal(net.net.fc.weight, teacher.fc.weight)
        assert torch.equal(net.net.fc.bias, teacher.fc.bias)
        assert not any(p.requires_grad for p in net.net.fc.parameters())
        x = torch.randn(3, 1, 8, 8)
        body = build_net(CNN, SHAPE, "net").eval()
        own = {
            k: v
            for k, v in net.net.state_dict().items()
            if not k.startswith(("features.relu4", "fc"))
        }
        missing = body.load_state_dict(own, strict=False).missing_keys
        assert missing == ["fc.weight", "fc.bias"]  # the student's own layers are all there
        relu, pool, projector = net.net.features.relu4
        # The teacher's 8-pixel maps become 1 pixel there; the student's become 4
        assert pool.output_size == (1, 1)
        maps = projector(pool(body.features(x)))
        assert maps.shape == (3, 32, 1, 1)
        torch.testing.assert_close(net(x), teacher.fc(maps.flatten(1)))
        assert relu(torch.tensor(-1.0)) == 0

    def test_counts_all_that_is_kept(self) -> None:
        net = SimKD(CNN, RESNET, 10, 1, 8)
        body = sum(p.numel() for p in build_net(CNN, SHAPE, "net").features.parameters())
        projector = 8 * 16 + 16 * 16 * 9 + 16 * 32 + 2 * (16 + 16 + 32)
        assert sum(p.numel() for p in net.parameters()) == body + projector + 32 * 10 + 10

    @pytest.mark.parametrize(
        ("student", "message"),
        [
            (
                {"_target_": "kd.nets.mlp.MLP"},
                r"student.net: MLP does not end in the average of its last maps",
            ),
            (
                {"_target_": "kd.nets.cnn_shallow.ShallowCNN"},
                "ShallowCNN does not end in the average",
            ),
            ({**CNN, "pretrained": True}, "starts from scratch"),
        ],
    )
    def test_refused(self, student: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            build_net(
                {"_target_": "kd.nets.simkd.SimKD", "student": student, "teacher": RESNET},
                SHAPE,
                "loss.net",
            )

    def test_of_torchvisions(self) -> None:
        node = {"_target_": "kd.nets.torchvision.torchvision_net", "name": "resnet18"}
        net = SimKD(CNN, node, 5, 3, 64)
        net.inherit(torchvision_net("resnet18", 5).state_dict())
        assert net(torch.randn(2, 3, 64, 64)).shape == (2, 5)
        with pytest.raises(UserError, match=r"loss.net.teacher: is another net than the teacher"):
            net.inherit(build_net(RESNET, SHAPE, "net").state_dict())

    @pytest.mark.parametrize(("student", "teacher", "tap"), AS_THE_TEACHER)
    def test_answers_as_the_teacher_on_the_teachers_maps(
        self, student: dict[str, Any], teacher: dict[str, Any], tap: str
    ) -> None:
        torch.manual_seed(0)
        shape = Shape(3, 32, 7)
        taught = build_net(teacher, shape, "net").eval()
        for module in taught.modules():  # statistics as after a training
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.3, 2.0)
                nn.init.normal_(module.bias, 0, 0.3)
        net = build_net(
            {"_target_": "kd.nets.simkd.SimKD", "student": student, "teacher": teacher},
            shape,
            "net",
        )
        net.inherit(taught.state_dict())
        maps: list[Tensor] = []
        taught.get_submodule(tap).register_forward_hook(lambda *seen: maps.append(seen[2].clone()))
        x = torch.randn(2, 3, 32, 32)
        logits = taught(x)
        place = net.get_submodule(net.taps[0])
        place.register_forward_hook(lambda *seen: maps[-1].clone())
        before = {name: each.clone() for name, each in net.state_dict().items()}
        for mode in (False, True):  # what is the teacher's stays as it is in training too
            torch.testing.assert_close(net.train(mode)(x), logits)
        frozen = [name for name in before if not name.startswith(tuple(OWN))]
        assert all(torch.equal(net.state_dict()[name], before[name]) for name in frozen)
        grown = net.net.get_submodule(net.taps[0].removeprefix("net."))[-1]
        gives_negatives = grown(torch.randn(2, grown[0].in_channels, 8, 8)).min() < 0
        assert gives_negatives == (maps[-1].min() < 0)

    @pytest.mark.parametrize(
        ("teacher", "message"),
        [
            ({"_target_": "kd.nets.mlp.MLP"}, "teacher.net: MLP does not end in"),
            ({"_target_": "test_feature_runs.Twice"}, "needs more than what 'maps' returns"),
            ({"_target_": "test_feature_runs.Depends"}, "its forward pass cannot be followed"),
            ({"_target_": "test_feature_runs.Flat"}, "its last maps are of 1x1 pixels"),
        ],
    )
    def test_a_teacher_that_cannot_be_cut_is_refused(
        self, teacher: dict[str, Any], message: str
    ) -> None:
        small = {"_target_": "kd.nets.resnet.ResNet", "depth": 18, "width": 4}
        node = {"_target_": "kd.nets.simkd.SimKD", "student": small, "teacher": teacher}
        with pytest.raises(UserError, match=message):
            build_net(node, SHAPE, "loss.net")

    def test_pairs_its_projector_with_the_teachers_last_maps(self, digits: Digits) -> None:
        chain = {plan.name: plan for plan in chain_of(check(composed(*SMALL, "loss=simkd")))}
        assert taps_of(chain["distill"], digits) == {
            "student": ["net.features.relu4"],
            "teacher": ["layer4"],
        }
        assert chain["distill"].role == "student"
        assert chain["baseline"].net["_target_"] == "kd.nets.cnn.CNN"

    def test_a_run_is_read_back_from_its_header(self, tmp_path: Path) -> None:
        folder = run(check(tiny(tmp_path, *SMALL, "loss=simkd", "epochs=1")), "a test")
        student = open_run(folder).net("student")
        teacher = load_file(stages_of(tmp_path)["teacher"] / "weights.safetensors")
        assert torch.equal(student.net.fc.weight, teacher["fc.weight"])  # after training too
        report = json.loads((folder / "report.json").read_text())
        (model,) = (each for each in report["models"] if each["role"] == "student")
        assert model["params"] == sum(p.numel() for p in student.parameters())
        assert model["net"] == "SimKD(student=CNN(width=4), teacher=ResNet(depth=18, width=4))"
        assert model["training_params"] == 0


def test_fsp_compares_the_flow_from_the_stem_too(digits: Digits) -> None:
    pair = ("model=resnet56_to_resnet20", "student.net.depth=8", "teacher.net.depth=8")
    seen = {"fsp": ["relu", "layer1", "layer2", "layer3"], "nst": ["layer1", "layer2", "layer3"]}
    for loss, paths in seen.items():
        chain = chain_of(check(composed(*pair, f"loss={loss}")))
        assert taps_of(chain[-1], digits) == {"student": paths, "teacher": paths}
    stages = check(composed(*pair, "experiment=fsp")).stage
    flow = stages["flow"].loss
    assert isinstance(flow, dict)
    assert (flow["ce_weight"], flow["terms"]["fsp"]["weight"]) == (0.0, 1.0)  # as in Tian et al.


def test_what_training_added_is_reported_and_no_part_of_the_student(tmp_path: Path) -> None:
    folder = run(check(tiny(tmp_path, *SMALL, "loss=vid", "epochs=1")), "a test")
    report = json.loads((folder / "report.json").read_text())
    model = {each["role"]: each for each in report["models"]}
    # Three 1x1 and the variances, twice
    added = (8 * 16 + 16 * 16 + 16 * 16 + 16) + (8 * 32 + 32 * 32 + 32 * 32 + 32)
    assert model["student"]["training_params"] == added
    assert model["student"]["params"] == model["baseline"]["params"]
    assert model["baseline"]["training_params"] == 0
    assert set(load_file(folder / "student.safetensors")) == set(
        build_net(CNN, SHAPE, "net").state_dict()
    )
    assert (
        f"- student: training had {added:,} parameters more, which are no part of the net."
        in (folder / "report.md").read_text()
    )
    assert model["student"]["step_ms"] > 0


def test_the_paraphraser_is_trained_first_and_then_stays(tmp_path: Path) -> None:
    options = ("experiment=ft", "epochs=1", "stage.paraphrase.epochs=1", *SMALL)
    run(
        check(
            composed(
                "trainer=cpu",
                f"output_dir={tmp_path}",
                "data.limit=200",
                "teacher.epochs=1",
                *options,
            )
        ),
        "a test",
    )
    found = stages_of(tmp_path)
    before, after = (
        load_file(found[name] / "learned.safetensors") for name in ("paraphrase", "distill")
    )
    folded = [name for name in before if name.startswith("ft.paraphraser.")]
    assert len(folded) == len(before)
    assert all(torch.equal(before[name], after[name]) for name in folded)
    assert any("translator" in name for name in after)
    torch.manual_seed(0)
    fresh = build_net(CNN, SHAPE, "net").state_dict()
    student = load_file(found["paraphrase"] / "weights.safetensors")
    # Meanwhile the student is frozen
    assert all(torch.equal(fresh[name], student[name]) for name in fresh)
    assert not torch.equal(
        student["fc.weight"], load_file(found["distill"] / "weights.safetensors")["fc.weight"]
    )


@pytest.mark.parametrize(
    ("experiment", "first"), [("fitnet", "hints"), ("ab", "boundaries"), ("fsp", "flow")]
)
def test_a_first_stage_learns_the_teachers_inside_alone(
    experiment: str, first: str, digits: Digits
) -> None:
    chain = {
        plan.name: plan for plan in chain_of(check(composed(*SMALL, f"experiment={experiment}")))
    }
    assert list(chain) == ["teacher", "baseline", first, "distill"]
    assert chain[first].loss.node["ce_weight"] == 0
    assert list(chain[first].loss.node["terms"]) == [experiment]
    assert (chain[first].recipe.keep, chain["distill"].start) == ("last", first)
    assert [plan.role for plan in chain.values()][-1] == "student"
    try_out(chain[first], digits)


def test_the_chosen_method_follows_the_hints() -> None:
    chain = {
        plan.name: plan
        for plan in chain_of(check(composed(*SMALL, "experiment=fitnet", "loss=dkd")))
    }
    assert list(chain["distill"].loss.node["terms"]) == ["dkd"]


def test_other_training_images_join_in(digits: Digits) -> None:
    """Each method is tried before training, with labels of all images it will meet."""
    chain = chain_of(check(composed(*SMALL, "loss=crd")))
    crd = try_out(chain[-1], digits).terms[0].loss
    assert isinstance(crd, CRD)
    assert len(crd.bank_s) == len(digits.split.train)


LABELS = torch.arange(12) % 3


def batch_of(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(rank)
    return (
        torch.randn(4, 5, generator=g),
        torch.randn(4, 7, generator=g),
        torch.arange(4) + 4 * rank,
    )


def remember(rank: int, folder: str) -> None:
    """A rank of two, with its half of the images."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    crd = CRD(5, 7, LABELS, feat_dim=6, nce_k=8)
    loss = crd(*batch_of(rank))
    torch.save({"loss": loss.detach(), **crd.state_dict()}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_have_the_same_memory(tmp_path: Path) -> None:
    """The loss of both ranks, as one process would compute it from both batches."""
    ranks = [CONTEXT.Process(target=remember, args=(rank, str(tmp_path))) for rank in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(120)
    assert [each.exitcode for each in ranks] == [0, 0]
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for name in ("bank_s", "bank_t", "scale"):
        assert torch.equal(one[name], two[name]), name
    assert one["loss"] != two["loss"]
    torch.manual_seed(0)
    alone = CRD(5, 7, LABELS, feat_dim=6, nce_k=8)
    before = alone.bank_s.clone()
    alone(*(torch.cat([a, b]) for a, b in zip(batch_of(0), batch_of(1), strict=True)))
    torch.testing.assert_close(one["bank_s"], alone.bank_s)
    torch.testing.assert_close(one["bank_t"], alone.bank_t)
    assert not torch.equal(before[:8], alone.bank_s[:8])
    assert torch.equal(before[8:], alone.bank_s[8:])


@pytest.mark.slow
def test_two_ranks_train(tmp_path: Path) -> None:
    """Hooks, adapters and memories under DDP, where a parameter without gradient would stop the
    run.
    """
    torch.save(build_net(RESNET, SHAPE, "net").state_dict(), tmp_path / "teacher.pth")
    more = "+loss.terms.reviewkd={weight: 1.0, loss: {_target_: kd.losses.reviewkd.ReviewKD}}"
    options = [
        *(
            "trainer=ddp",
            "trainer.strategy=ddp_fork",
            "trainer.accelerator=cpu",
            "data.limit=200",
            "batch_size=20",
            "epochs=2",
        ),
        *("loss=crd", more, f"teacher.path={tmp_path / 'teacher.pth'}", "stages=[teacher,distill]"),
        *("pictures=false", f"output_dir={tmp_path}"),
    ]
    done = Process("kd.train", *SMALL, *options).wait()
    assert done.returncode == 0, done.stderr[-2000:]
    assert (stages_of(tmp_path)["distill"] / "learned.safetensors").exists()
