"""Muon: orthogonalised momentum for convolutions and hidden linear layers."""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

# Coefficients of the quintic iteration that brings all singular values near 1; Jordan 2024.
A = 3.4445
B = -4.7750
C = 2.0315


class Muon(Optimizer):
    """Muon for weights of two or more dimensions, AdamW for the others and the last layer.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". The Nesterov
    momentum of a weight, reshaped to [output channels, rest], is replaced by the nearest orthogonal
    matrix, times sqrt(max(1, rows / columns)). `torch.optim.Muon` takes matrices only.

    Args:
        params: groups, as for any optimiser.
        lr: of Muon, about ten times SGD's.
        momentum: in [0, 1).
        weight_decay: decoupled, of both; >= 0.
        adam_lr: of AdamW.
        outer: further weights for AdamW.
        steps: iterations of the orthogonalisation, > 0.

    Raises:
        ValueError: a number out of range, or no weight for Muon.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        adam_lr: float = 0.002,
        outer: Collection[Tensor] = (),
        steps: int = 5,
    ) -> None:
        for name, value, low in (("lr", lr, 0), ("adam_lr", adam_lr, 0), ("steps", steps, 1)):
            if value < low:
                raise ValueError(f"{name}: found {value}, accepted is a number from {low}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: found {momentum}, accepted is a number from 0 to below 1")
        left = {id(each) for each in outer}
        groups = [each if isinstance(each, dict) else {"params": [each]} for each in params]
        inner = []
        others = []
        for group in groups:
            own = [p for p in group["params"] if p.ndim > 1 and id(p) not in left]
            rest = [p for p in group["params"] if p.ndim <= 1 or id(p) in left]
            inner += [{**group, "params": own}] if own else []
            others += [{**group, "params": rest}] if rest else []
        if not inner:
            raise ValueError("there is no convolution or hidden linear layer for it to train")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps}
        super().__init__(inner, defaults)
        self.adam = AdamW(others, lr=adam_lr, weight_decay=weight_decay) if others else None
        self.param_groups += self.adam.param_groups if self.adam else []
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load a state, AdamW's part included."""
        super().__setstate__(state)
        if "adam" in self.__dict__:
            self._share()

    def _share(self) -> None:
        """Share AdamW's groups and the state of all with AdamW."""
        if self.adam:
            self.adam.state = self.state
            self.adam.param_groups = [each for each in self.param_groups if "betas" in each]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"] if "betas" not in group else ():
                if p.grad is not None:
                    self._move(p, p.grad, group)
        if self.adam:
            self.adam.step()
        return loss

    def _move(self, p: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        direction = grad.lerp(buffer, group["momentum"]).flatten(1)
        rows, columns = direction.shape
        orthogonal = nearest_orthogonal(direction, group["steps"]).reshape(p.shape)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(orthogonal, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def nearest_orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V^T of matrix = U S V^T by Newton-Schulz: singular values of 0.7 to 1.2.

    Args:
        matrix: [rows, columns]; bfloat16 on a GPU, which is precise enough.

    Returns:
        [rows, columns].
    """
    x: Tensor = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = A * x + (B * gram + C * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
