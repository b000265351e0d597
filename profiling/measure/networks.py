"""Two networks in plain torch, the shape of torchvision's: names, shared activations and all.

The last batch norm of each branch begins with gamma = 0, as in recipes for large batches: a fresh network multiplies
rounding errors by thousands on the way back otherwise, and no two ways of training it stay together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


class Bottleneck(nn.Module):
    """One activation module in three places, an addition in place."""

    def __init__(self, channels: int, width: int, stride: int, activation: Activation = _relu) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        nn.init.zeros_(self.bn3.weight)
        self.relu = activation()
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out


class ResNet(nn.Module):
    """ResNet-50 by default: 53 batch norms, 33 before an activation and 16 before an addition and an activation."""

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 4, 6, 3),
        width: int = 64,
        classes: int = 10,
        activation: Activation = _relu,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = activation()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, channels = [], width
        for stage, depth in enumerate(depths):
            wide = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (depth - 1)
            blocks = [Bottleneck(channels if i == 0 else 4 * wide, wide, s, activation) for i, s in enumerate(strides)]
            stages.append(nn.Sequential(*blocks))
            channels = 4 * wide
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        classes: Tensor = self.fc(self.stages(x).mean((2, 3)))
        return classes


class InvertedResidual(nn.Module):
    """No activation behind the last batch norm."""

    def __init__(self, channels: int, out: int, stride: int, expand: int, activation: Activation) -> None:
        super().__init__()
        hidden = channels * expand
        self.shortcut = stride == 1 and channels == out
        last = nn.BatchNorm2d(out)
        if self.shortcut:
            nn.init.zeros_(last.weight)
        wider = [nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), activation()] if expand > 1 else []
        self.conv = nn.Sequential(
            *wider,
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            activation(),
            nn.Conv2d(hidden, out, 1, bias=False),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """52 batch norms by default, 35 of them before an activation; the blocks as (expand, channels, count, stride)."""

    def __init__(
        self,
        blocks: tuple[tuple[int, int, int, int], ...] = MOBILENET_V2,
        stem: int = 32,
        last: int = 1280,
        classes: int = 10,
        activation: Activation = nn.ReLU6,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), activation())
        ]
        channels = stem
        for expand, out, count, stride in blocks:
            for i in range(count):
                layers.append(InvertedResidual(channels, out, stride if i == 0 else 1, expand, activation))
                channels = out
        layers.append(nn.Sequential(nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last), activation()))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        classes: Tensor = self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return classes
