"""Number format of training: accepted values, and the meaning of `auto` on this machine."""

from functools import cache
from typing import Literal, get_args

from pydantic_core import PydanticCustomError

from kd.errors import UserError, nearest
from kd.log import say

# Precision of a stage. Weights, gradient sums and losses are float32 in all of them.
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
ACCEPTED = ("auto", *get_args(Precision))
SHORT = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}  # Lightning accepts these too


def read_precision(found: object, key: str) -> str:
    """Normalise a precision from the config to one of `ACCEPTED`.

    Raises:
        PydanticCustomError: it is none of them.
    """
    name = SHORT.get(str(found), str(found))
    if name not in ACCEPTED:
        text = (
            f"{key}: found {found!r}; accepted are {', '.join(ACCEPTED)}{nearest(name, ACCEPTED)}"
        )
        raise PydanticCustomError("number", "{text}", {"text": text})
    return name


def resolve_precision(asked: str, accelerator: str, key: str) -> Precision:
    """Resolve `auto` for this machine.

    `auto` is bf16-mixed if the device has bfloat16 units, else 32-true. On a CPU its flags decide,
    not a measurement, so that equal machines compute equal stage keys. Where a CPU has none,
    bf16-mixed is accepted, and said once to be slow.

    Args:
        asked: one of `ACCEPTED`.
        accelerator: as `trainer.accelerator`.
        key: of the config, for messages.

    Raises:
        UserError: the device does not support it.
    """
    device = device_of(accelerator)
    if asked == "16-mixed" and device == "cpu":
        raise UserError(
            f"{key}: found '16-mixed' on a CPU, which trains in no float16; accepted there "
            "are auto, 32-true, bf16-mixed"
        )
    if asked == "auto":
        return "bf16-mixed" if has_bf16_units(device) else "32-true"
    if asked == "bf16-mixed" and device == "cpu" and not has_bf16_units(device):
        _say_slow()
    return asked  # type: ignore[return-value]


@cache
def _say_slow() -> None:
    say(
        "bf16-mixed: this processor has no units for bfloat16 (avx512_bf16 or amx_bf16), so it is "
        "several times slower than 32-true; trainer.precision=auto takes 32-true here"
    )


def device_of(accelerator: str) -> Literal["cuda", "mps", "cpu"]:
    """Return the device type that the Trainer picks for this `trainer.accelerator`."""
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def has_bf16_units(device: Literal["cuda", "mps", "cpu"]) -> bool:
    """Whether the device multiplies faster in bfloat16 than in float32."""
    import torch

    if device == "cpu":
        flags = torch.cpu.get_capabilities()
        return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
