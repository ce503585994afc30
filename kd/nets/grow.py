"""Net whose last layer grows: one block of outputs per task; earlier blocks keep their logits."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kd.nets.build import build_net
from kd.nets.head import head_of
from kd.shape import ImageSize, Shape


class Blocks(nn.Module):
    """Parallel layers on one input; features [B, F, ...] -> [B, sum of the layers' outputs, ...].

    They are computed one by one. A matrix product with more rows may round its old rows
    differently. One large layer would then not reproduce the old classes' logits bit for bit.

    Args:
        layers: of one kind and with equal inputs.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the layers' outputs for features [B, F, ...]."""
        dim = -1 if isinstance(self.layers[0], nn.Linear) else 1
        return torch.cat([layer(x) for layer in self.layers], dim)


class Grown(nn.Module):
    """Net with one block of outputs per task; x [B, C, H, W] -> logits [B, sum of the blocks].

    Args:
        net: `_target_` and keywords of the inner net; its last layer must be linear or a
            convolution.
        blocks: number of classes of each task.
        order: position of each output among the blocks' outputs; None keeps the blocks' order.

    Raises:
        ValueError: the blocks do not add up to the classes, or the net has no such last layer.
    """

    order: Tensor

    def __init__(
        self,
        net: Mapping[str, object],
        blocks: Sequence[int],
        num_classes: int,
        in_channels: int,
        image_size: ImageSize,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if sum(blocks) != num_classes or min(blocks) < 1:
            raise ValueError(
                f"blocks: found {list(blocks)}, needed are counts that add up to "
                f"{num_classes} classes"
            )
        shape = Shape(in_channels, image_size, blocks[0])
        inner = build_net(net, shape, "net", trained=True)
        heads = head_of(inner, shape)
        if len(heads) != 1 or not isinstance(
            head := next(iter(heads.values())), (nn.Linear, nn.Conv2d)
        ):
            raise ValueError(
                f"net: {type(inner).__name__} ends in no single linear layer or convolution, "
                "so it cannot grow"
            )
        layers = [head, *(_wider(head, classes) for classes in blocks[1:])]
        self.path = next(iter(heads))
        inner.set_submodule(self.path, Blocks(layers))
        self.net = inner
        self.blocks = list(blocks)
        if isinstance(own := getattr(inner, "normalization", None), tuple):
            self.normalization = own
        self.register_buffer(
            "order", torch.tensor(order if order else range(num_classes)), persistent=False
        )
        self.ordered = bool(order)

    @property
    def head(self) -> Blocks:
        """Last layer."""
        head = self.net.get_submodule(self.path)
        assert isinstance(head, Blocks)
        return head

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.net(x)
        return logits[:, self.order] if self.ordered else logits

    def features(self, x: Tensor) -> Tensor:
        """Compute the input of the last layer for x [B, C, H, W]: [B, number of features]."""
        met: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: met.append(inputs[0]))
        try:
            self.net(x)
        finally:
            hook.remove()
        return met[0].flatten(1)

    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights of the same net with fewer blocks; new blocks keep their fresh weights.

        Raises:
            ValueError: the weights belong to another net.
        """
        own = self.state_dict()
        fresh = {f"net.{self.path}.layers.{i}." for i in range(len(self.blocks))}
        missing = [name for name in own if name not in state]
        new = [name for name in missing if any(name.startswith(prefix) for prefix in fresh)]
        if missing != new or not state.keys() <= own.keys():
            raise ValueError(
                f"missing: {sorted(set(missing) - set(new))}, unexpected: "
                f"{sorted(state.keys() - own.keys())}"
            )
        self.load_state_dict({**own, **state})


def _wider(head: nn.Linear | nn.Conv2d, classes: int) -> nn.Module:
    """Build a fresh layer like the head with another number of classes."""
    if isinstance(head, nn.Linear):
        return nn.Linear(head.in_features, classes, bias=head.bias is not None)
    layer = copy.deepcopy(head)
    layer.out_channels = classes
    layer.weight = nn.Parameter(torch.empty(classes, *head.weight.shape[1:]))
    if head.bias is not None:
        layer.bias = nn.Parameter(torch.empty(classes))
    layer.reset_parameters()
    return layer


@torch.no_grad()
def align(head: Blocks) -> float:
    """Rescale the last block to the earlier blocks' mean weight norm per class; returns the factor.

    Weight aligning, Zhao et al. 2020, "Maintaining Discrimination and Fairness in Class Incremental
    Learning". With few exemplars the new classes' weights grow longer and win. Biases are
    unchanged. The paper also keeps weights positive in training, which is not done here.
    """
    *earlier, last = (layer.weight.flatten(1) for layer in head.layers)  # type: ignore[operator]
    factor = torch.cat(list(earlier)).norm(dim=1).mean() / last.norm(dim=1).mean()
    head.layers[-1].weight.mul_(factor)  # type: ignore[operator]
    return float(factor)
