"""CIFAR-10 (Krizhevsky 2009): 60,000 colour images of 32x32 pixels in 10 classes."""

from torchvision import datasets

from kd.data.torchvision_reader import CIFAR


class CIFAR10(CIFAR):
    """The official 50,000 training and 10,000 test images."""

    reader = datasets.CIFAR10
    folder = reader.base_folder
    files = (*(name for name, _ in reader.train_list + reader.test_list), reader.meta["filename"])
    origin = f"{reader.url} (unpacked)"
