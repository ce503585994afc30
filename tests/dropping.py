"""Net that draws random numbers in training."""

from torch import Tensor, nn


class Dropping(nn.Module):
    """Perceptron with dropout, for 8x8 images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


AS_STUDENT = ("~student.net", "+student.net={_target_: dropping.Dropping}")
