"""Image classifiers of `transformers`, an extra of this project (pip install "kd[huggingface]")."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from torch import nn

from kd.errors import UserError
from kd.files.header import HUB_CONFIG
from kd.files.state_dicts import StateDict

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Keys of a config.json that say nothing of the net, or that would fetch code or weights
LEFT_OUT = {"architectures", "auto_map", "dtype", "torch_dtype", "num_labels", "model_type"}
LEFT_OUT |= {"id2label", "label2id", "transformers_version", "problem_type", "return_dict"}
LEFT_OUT |= {"attn_implementation", "use_kernels", "use_pretrained_backbone", "backbone_kwargs"}


def huggingface_net(
    name: str,
    num_classes: int,
    config: Mapping[str, object],
    statistics: Mapping[str, Sequence[float]],
) -> nn.Module:
    """Build an image classifier from what its `config.json` says, with fresh weights.

    Input [B, C, H, W], output logits [B, num_classes]. No code of the folder is run, and nothing is
    downloaded.

    Args:
        name: `model_type` of the config, such as `vit`.
        config: the rest of `config.json`.
        statistics: `mean` and `std` of `preprocessor_config.json`; empty where it has none.

    Raises:
        UserError: transformers is not installed.
        ValueError: it has no image classifier of this type.
    """
    transformers = _transformers(name)
    about = _config(transformers, name, config, num_classes)
    net: nn.Module = transformers.AutoModelForImageClassification.from_config(about)
    if statistics:
        net.normalization = (tuple(statistics["mean"]), tuple(statistics["std"]))  # type: ignore[assignment]
    net.read_states = partial(read_states, name, config)  # type: ignore[assignment]
    return net.float()


def read_states(name: str, config: Mapping[str, object], file: Path, where: str) -> list[StateDict]:
    """Read the tensors of a folder's `model.safetensors` under the names of today's net.

    transformers knows which names it gave them when the file was written.

    Args:
        name, config: as of `huggingface_net`.
        file: in a folder with `config.json`, which says for how many classes it is.
        where: config key of the path, for messages.

    Raises:
        UserError: it cannot be read.
    """
    transformers = _transformers(name)
    transformers.utils.logging.disable_progress_bar()
    classes = json.loads(file.with_name(HUB_CONFIG).read_text()).get("id2label") or (0, 1)
    try:
        net, found = transformers.AutoModelForImageClassification.from_pretrained(
            str(file.parent),
            config=_config(transformers, name, config, len(classes)),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"{where}: transformers cannot read {file}: {reason}") from error
    missing = set(found["missing_keys"])
    state = net.float().state_dict()
    tensors = {key: tensor for key, tensor in state.items() if key not in missing}
    return [StateDict((), tensors, tuple(found["unexpected_keys"]))]


def _transformers(name: str) -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"{name}: its net needs transformers, which is not installed; install it: "
            "pip install transformers"
        ) from error
    return transformers


def _config(
    transformers: ModuleType, name: str, config: Mapping[str, object], num_classes: int
) -> "PretrainedConfig":
    """Return the config that builds a net.

    Raises:
        ValueError: the net is one of timm, or of no known type.
    """
    if name == "timm_wrapper":
        raise ValueError("config: the net is one of timm; take it by teacher=timm")
    kept = {k: v for k, v in config.items() if k not in LEFT_OUT and not k.startswith("_")}
    found: PretrainedConfig = transformers.AutoConfig.for_model(
        name, **kept, num_labels=num_classes
    )
    return found
