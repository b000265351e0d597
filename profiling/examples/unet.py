"""A small U-Net, as a model of one's own: ``python -m profiling capture --model profiling.examples.unet:unet``.

After Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation" (2015), with
batch norm after each convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unet() -> nn.Module:
    """For images [N, 3, H, W] with H and W multiples of 8; 14 batch norm layers."""
    return UNet(channels=3, classes=2, width=16, levels=4)


class UNet(nn.Module):
    """Images [N, channels, H, W] to scores [N, classes, H, W]; each level halves H and W and doubles ``width``."""

    def __init__(self, channels: int, classes: int, width: int, levels: int) -> None:
        super().__init__()
        widths = [width << level for level in range(levels)]
        self.down = nn.ModuleList(_block(*pair) for pair in zip([channels, *widths[:-1]], widths, strict=True))
        self.widen = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.up = nn.ModuleList(_block(2 * w, w) for w in reversed(widths[:-1]))
        self.scores = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)
            skipped.append(x)
        for widen, block, skip in zip(self.widen, self.up, reversed(skipped[:-1]), strict=True):
            x = block(torch.cat((skip, widen(x)), dim=1))
        scores: Tensor = self.scores(x)
        return scores


def _block(before: int, after: int) -> nn.Sequential:
    """Convolution, batch norm and ReLU, twice."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        convolution = nn.Conv2d(channels, after, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
