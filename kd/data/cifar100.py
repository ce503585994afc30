"""CIFAR-100 (Krizhevsky 2009): 60,000 colour images of 32x32 pixels in 100 classes."""

from torchvision import datasets

from kd.data.torchvision_reader import CIFAR


class CIFAR100(CIFAR):
    """The official 50,000 training and 10,000 test images, with the fine labels."""

    reader = datasets.CIFAR100
    folder = reader.base_folder
    files = (*(name for name, _ in reader.train_list + reader.test_list), reader.meta["filename"])
    origin = f"{reader.url} (unpacked)"
