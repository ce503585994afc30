"""Batch norms of a net, and keeping them as they are."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(net: nn.Module) -> list[nn.Module]:
    """Return the batch norms of a net, of all dimensions and of the libraries' own subclasses."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


def freeze_norms(net: nn.Module) -> None:
    """Freeze the weights and biases of the batch norms, like `torchvision`'s `FrozenBatchNorm2d`.

    A weight and its statistics belong together: trained under statistics that no longer move, it
    could scale a channel that they describe badly without bound.
    """
    for module in batch_norms(net):
        module.requires_grad_(False)


def still_norms(net: nn.Module) -> None:
    """Put the batch norms into evaluation mode: stored statistics, which do not move."""
    for module in batch_norms(net):
        module.eval()
