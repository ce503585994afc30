"""Nets whose state is as long as the file that it came from."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ResizedBuffers(nn.Module):
    """Net that takes buffers of any size from a state dict."""

    def _load_from_state_dict(
        self, state: Mapping[str, Tensor], prefix: str, *rest: object
    ) -> None:
        for name, _ in list(self.named_buffers(recurse=False)):
            if (found := state.get(f"{prefix}{name}")) is not None:
                setattr(self, name, torch.zeros_like(found))
        super()._load_from_state_dict(state, prefix, *rest)
