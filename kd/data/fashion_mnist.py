"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): 70,000 gray images, 28x28 pixels, 10 classes."""

from torchvision import datasets

from kd.data.torchvision_reader import IDX


class FashionMNIST(IDX):
    """The official 60,000 training and 10,000 test images."""

    reader = datasets.FashionMNIST
    folder = "FashionMNIST/raw"
    origin = f"{reader.mirrors[0]} (unzipped)"
