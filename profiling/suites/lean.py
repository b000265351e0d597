"""A ResNet that keeps less for the backward pass: batch norms in place, 1x1 convolutions without their outputs.

Per block of width w, in units of the w channels of one image, plain training keeps 2 each around the first two batch
norms (the convolution's output, and the activation's), 4 before the third and 4 behind the addition: 12. In place, the
first two keep 1 each, and where the third convolution runs anew in the backward pass, the 4 before its batch norm go
as well: 6.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

import my_ops
from profiling.measure.networks import Bottleneck, ResNet

SLOPE = 0.01


def leaky_resnet(depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64) -> ResNet:
    """ResNet-50, by default, with an activation that has an inverse."""
    return ResNet(depths, width, activation=lambda: nn.LeakyReLU(SLOPE, inplace=True))


def lean(model: ResNet) -> ResNet:
    """The same network with the same parameters, which runs in less memory; in place."""
    model.bn1, model.relu = _in_place(model.bn1), nn.Identity()
    for stage in model.stages:
        assert isinstance(stage, nn.Sequential)
        for index, block in enumerate(stage):
            assert isinstance(block, Bottleneck)
            stage[index] = _LeanBottleneck(block)
    return model


class _LeanBottleneck(nn.Module):
    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1, self.bn1 = block.conv1, _in_place(block.bn1)
        self.conv2, self.bn2 = block.conv2, _in_place(block.bn2)
        self.last = my_ops.ConvBatchNorm2d.of(block.conv3, block.bn3)
        self.downsample = block.downsample and my_ops.ConvBatchNorm2d.of(*block.downsample)

    def forward(self, x: Tensor) -> Tensor:
        out = self.last(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return F.leaky_relu_(out, SLOPE)


def _in_place(norm: nn.BatchNorm2d) -> my_ops.InPlaceBatchNormAct2d:
    """With the same parameters and buffers."""
    module = my_ops.InPlaceBatchNormAct2d(norm.num_features, norm.eps, norm.momentum, slope=SLOPE, device="meta")
    module.weight, module.bias = norm.weight, norm.bias
    module._buffers.update(norm._buffers)
    return module
