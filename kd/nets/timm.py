"""Nets of timm by name; timm is an extra of this project (`pip install "kd[timm]"`)."""

import difflib
import math
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from kd.errors import UserError
from kd.nets.pretrained_weights import PretrainedWeights, hub_state, missing


def timm_net(
    name: str, num_classes: int, in_channels: int = 3, pretrained: bool = False, **options: Any
) -> nn.Module:
    """Build a net of timm, with fresh or pretrained weights.

    Input [B, in_channels, H, W], output logits [B, num_classes]. Pretrained weights fill all layers
    except the last, which starts fresh unless it has the same number of classes. For gray images
    timm sums the first convolution over colours. Pretrained weights want their own normalisation:
    see `pretrained_weights`.

    Args:
        name: as in `timm.list_models()`, with or without the weights' tag: `resnet18`,
            `resnet18.a1_in1k`.
        options: passed to timm, e.g. `drop_rate=0.1`, or `img_size=32` for a transformer.

    Raises:
        ValueError: unknown name; suggests the nearest.
        UserError: timm is not installed; the weights are not cached and cannot be downloaded.
    """
    timm = _timm(name)
    if not pretrained:
        fresh: nn.Module = timm.create_model(
            name, num_classes=num_classes, in_chans=in_channels, **options
        )
        _narrow_head(fresh)
        return fresh
    # Tensors are passed to timm, so that reading and its error messages are decided here.
    overlay = {"state_dict": _state(name, timm)}
    try:
        net: nn.Module = timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            num_classes=num_classes,
            in_chans=in_channels,
            **options,
        )
    except RuntimeError as error:
        raise ValueError(f"{name}, pretrained: {str(error).splitlines()[-1].strip()}") from error
    for kept in {"pretrained_cfg", "default_cfg"} & vars(
        net
    ).keys():  # else every copy of the net would hold them twice
        setattr(net, kept, {k: v for k, v in getattr(net, kept).items() if k != "state_dict"})
    if num_classes != _config(name, timm).num_classes:
        _narrow_head(net)
    return net


def _narrow_head(net: nn.Module) -> None:
    """Give a fresh last layer PyTorch's own initial weights, if timm's are far wider.

    In timm's EfficientNets and MobileNets their width goes by the number of outputs. With two
    classes on 1,280 trained features the logits are near 50, and the first steps spoil the net.
    """
    head = getattr(net, "get_classifier", lambda: None)()
    if isinstance(head, nn.Linear):
        usual = (3 * head.in_features) ** -0.5  # standard deviation
        if float(head.weight.detach().std()) > 2 * usual:
            head.reset_parameters()


def pretrained_weights(name: str, pretrained: bool = False, **_: Any) -> PretrainedWeights | None:
    """Return the weights and normalisation of `timm_net` for these keywords; None for none.

    Raises:
        ValueError: unknown name, or a net without weights.
        UserError: timm is not installed.
    """
    if not pretrained:
        return None
    cfg = _config(name, _timm(name))
    source = cfg.hf_hub_id or str(cfg.url).rpartition("/")[2]
    size = cfg.input_size[-1]
    return PretrainedWeights(
        f"timm {cfg.architecture or name}.{cfg.tag} {source}",
        tuple(cfg.mean),
        tuple(cfg.std),
        size,
        math.floor(size / cfg.crop_pct),
        cfg.interpolation,
    )


def _timm(name: str) -> ModuleType:
    """Return timm, if it is installed and has a net of this name."""
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"{name}: its nets need timm, which is not installed; install it: pip install timm"
        ) from error
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.4)
        raise ValueError(f"name: timm has no net {name!r}; nearest: {', '.join(close) or 'none'}")
    tags = [
        each.partition(".")[2] for each in timm.list_models(f"{architecture}.*", pretrained=True)
    ]
    if "." in name and name.partition(".")[2] not in tags:
        raise ValueError(
            f"name: timm has no weights {name!r}; {architecture} has {', '.join(tags) or 'none'}"
        )
    return timm


def _config(name: str, timm: ModuleType) -> Any:
    """Return timm's record of the net's weights."""
    cfg = timm.get_pretrained_cfg(name)
    # custom: not plain tensors there
    if cfg is None or not (cfg.hf_hub_id or (cfg.url and not cfg.custom_load)):
        raise ValueError(f"pretrained: timm has no weights for {name!r}")
    return cfg


def _state(name: str, timm: ModuleType) -> dict[str, Any]:
    """Load the tensors from Hugging Face's cache or hub; a few are only at torch.hub."""
    cfg = _config(name, timm)
    if not cfg.hf_hub_id:
        return hub_state(cfg.url, name)
    repository, _, revision = cfg.hf_hub_id.partition("@")
    file = _from_hub(repository, revision or None, name)
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{name}: {file} is no weights file, or a damaged one; remove it to download it again"
        ) from error


def _from_hub(repository: str, revision: str | None, name: str) -> Path:
    """Return the repository's tensor file from Hugging Face's cache, or download it."""
    import huggingface_hub as hub  # installed with timm

    file = "model.safetensors"
    cached = hub.try_to_load_from_cache(repository, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # One request without retries: without a network the download below would retry for half a
        # minute.
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, revision=revision))
        return Path(hub.hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # from the client, its HTTP library or the system
        folder = hub.constants.HF_HUB_CACHE
        copied = f"models--{repository.replace('/', '--')}"
        remedy = (
            f"run `hf download {repository} {file}`, and copy {copied} from its cache into this one"
        )
        raise missing(
            name, f"{repository}/{file}", "Hugging Face", folder, remedy, error
        ) from error
