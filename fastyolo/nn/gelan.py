# SPDX-License-Identifier: AGPL-3.0-or-later
"""The block of the light model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastyolo.nn.conv import Conv
from fastyolo.nn.eca import ECA


class GELAN(nn.Module):
    """x [B, c1, H, W] -> [B, c2, H, W]: a generalised efficient layer aggregation network of grouped convolutions.

    Two 1x1 convolutions take x to c = c2 * e channels, rounded up to a multiple of 8; n grouped 3x3 convolutions follow
    on the second, each on the one before. All n + 2 maps are concatenated and go through a 1x1 convolution to c2. Each
    convolution has batch normalisation and SiLU. It takes the place of YOLOv8's C2f, whose single 1x1 convolution and
    chunk into halves are two convolutions here, so that each can be pruned by itself.

    - Aggregation of every stage: YOLOv9's GELAN (https://arxiv.org/abs/2402.13616).
    - shuffle: the channels are shuffled before each grouped convolution but the first, so that the groups mix, as in
      ShuffleNet (https://arxiv.org/abs/1707.01083). The first has no need: the order of a 1x1 convolution's outputs
      means nothing.
    - context: the last of the chained maps is scaled, channel by channel, by a gate of the global context: from its
      mean over H and W by two 1x1 convolutions with a bottleneck of an eighth, ReLU and sigmoid between and after them.
      That is the squeeze-and-excitation form (https://arxiv.org/abs/1709.01507) of GCNet's block
      (https://arxiv.org/abs/1904.11492), on c of the channels that are concatenated.
    - attention: efficient channel attention at the output, `ECA`.

    Args:
        c1: channels of x.
        c2: channels of the result.
        n: number of chained convolutions.
        shortcut: add each chained convolution's input to its output.
        g: groups of the chained convolutions.
        e: c as a share of c2, before it is rounded.
        shuffle: False leaves the channel shuffle out.
        context: False leaves the global-context gate out.
        attention: False leaves ECA out.

    Raises:
        ValueError: n or g is less than 1, e is not above 0, or g does not divide c.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = False,
        g: int = 2,
        e: float = 0.375,
        shuffle: bool = True,
        context: bool = True,
        attention: bool = True,
    ) -> None:
        super().__init__()
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if e <= 0:
            raise ValueError(f"e must be above 0, got {e}")
        c = round_up(c2 * e)
        if g < 1 or c % g:
            raise ValueError(f"g must divide the {c} channels of the chained convolutions, got {g}")
        self.shortcut = shortcut
        self.shuffle = shuffle
        self.groups = g
        self.cv1 = Conv(c1, c)
        self.cv2 = Conv(c1, c)
        self.m = nn.ModuleList(Conv(c, c, 3, groups=g) for _ in range(n))
        self.cv3 = Conv((n + 2) * c, c2)
        self.context = global_context(c) if context else None
        self.attention = ECA(c2) if attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.cv1(x), self.cv2(x)]
        for i, conv in enumerate(self.m):
            before = maps[-1]
            after = conv(channel_shuffle(before, self.groups) if i and self.shuffle else before)
            maps.append(before + after if self.shortcut else after)
        if self.context is not None:
            maps[-1] = maps[-1] * self.context(maps[-1])
        y: Tensor = self.attention(self.cv3(torch.cat(maps, 1)))
        return y


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """x [B, C, H, W] -> the first channel of each group, the second of each, and so on.

    As torch.nn.functional.channel_shuffle, which torch.onnx cannot export.
    """
    return torch.unflatten(x, 1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def global_context(channels: int) -> nn.Sequential:
    """x [B, C, H, W] -> gates in (0, 1), [B, C, 1, 1], from the means of x."""
    bottleneck = max(8, channels // 8)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(channels, bottleneck, 1),
        nn.ReLU(),
        nn.Conv2d(bottleneck, channels, 1),
        nn.Sigmoid(),
    )


def round_up(channels: float, multiple: int = 8) -> int:
    """The least multiple of `multiple` that is not below `channels`: what kernels of 8 or 16 lanes compute anyway."""
    return math.ceil(channels / multiple) * multiple
