"""Reference distillation loop: DataLoader, transforms per image, live teacher, plain PyTorch.

It has its best reasonable settings (`test_settings_of_the_loop` compares them): channels-last, a
fused optimiser, mixed precision where the machine has bf16 units, and a teacher in evaluation mode
without gradient. Prints a JSON list: temperature,
alpha, seconds and test accuracy of each job.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from part_of_cifar10 import parts_of
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import CIFAR10

from kd.config.precision import resolve_precision
from kd.nets.cnn import CNN
from kd.nets.resnet import ResNet

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
AS_IS = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
VIEWS = transforms.Compose(
    [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), *AS_IS.transforms]
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--teacher", required=True, help="weights of a ResNet-18, safetensors")
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--temperatures", default="4")
    parser.add_argument("--alphas", default="0.9")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument(
        "--layout", choices=["contiguous_format", "channels_last"], default="channels_last"
    )
    auto = resolve_precision("auto", "cpu", "--precision")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default=auto)
    return parser.parse_args()


def datasets_of(root: str, images: int) -> tuple[Subset, Subset, Subset]:
    """Training images with augmentation, validation and test images without."""
    train, val, test = (part.tolist() for part in parts_of(images))
    return (
        Subset(CIFAR10(root, train=True, transform=VIEWS), train),
        Subset(CIFAR10(root, train=True, transform=AS_IS), val),
        Subset(CIFAR10(root, train=False, transform=AS_IS), test),
    )


def nets_of(teacher: str, layout: str) -> tuple[nn.Module, nn.Module]:
    """The frozen teacher, and a fresh student."""
    torch.manual_seed(0)
    big, small = ResNet(10, 18, image_size=32), CNN(10)
    big.load_state_dict(load_file(Path(teacher)))
    big.eval().requires_grad_(False)
    into = getattr(torch, layout)
    return big.to(memory_format=into), small.to(memory_format=into)


def mixed(options: argparse.Namespace) -> torch.autocast:
    """Autocast to bf16 if that is asked for."""
    return torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16-mixed")


@torch.no_grad()
def accuracy(net: nn.Module, loader: DataLoader, options: argparse.Namespace) -> float:
    net.eval()
    with mixed(options):
        right = sum(int((net(x).argmax(1) == y).sum()) for x, y in loader)
    return right / len(loader.dataset)


def jobs(options: argparse.Namespace) -> Iterator[tuple[float, float]]:
    numbers = (
        [float(each) for each in given.split(",")]
        for given in (options.temperatures, options.alphas)
    )
    return itertools.product(*numbers)


def distil(options: argparse.Namespace, temperature: float, alpha: float) -> float:
    """One job; gives the accuracy on test."""
    teacher, student = nets_of(options.teacher, options.layout)
    train, val, test = datasets_of(options.root, options.images)
    more = {"num_workers": options.workers, "persistent_workers": options.workers > 0}
    loader = DataLoader(train, options.batch, shuffle=True, drop_last=True, **more)
    quiet = {name: DataLoader(part, 500) for name, part in (("val", val), ("test", test))}
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.004, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.004, total_steps=options.epochs * len(loader), cycle_momentum=True
    )
    layout = getattr(torch, options.layout)
    for _ in range(options.epochs):
        student.train()
        for x, y in loader:
            x = x.contiguous(memory_format=layout)
            with torch.no_grad(), mixed(options):
                answers = teacher(x)
            with mixed(options):
                logits = student(x).float()
            soft = F.softmax(answers.float() / temperature, 1)
            soft_loss = F.kl_div(
                F.log_softmax(logits / temperature, 1), soft, reduction="batchmean"
            )
            loss = (1 - alpha) * F.cross_entropy(logits, y) + alpha * temperature**2 * soft_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        accuracy(student, quiet["val"], options)
    return accuracy(student, quiet["test"], options)


def tell(distil: Callable[[argparse.Namespace, float, float], float]) -> None:
    """Do all jobs, and print what each took and gave."""
    options = arguments()
    told = []
    for temperature, alpha in jobs(options):
        started = time.perf_counter()
        right = distil(options, temperature, alpha)
        seconds = time.perf_counter() - started
        told.append(
            {"temperature": temperature, "alpha": alpha, "seconds": seconds, "accuracy": right}
        )
    print(json.dumps(told))


if __name__ == "__main__":
    tell(distil)
