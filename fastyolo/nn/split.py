# SPDX-License-Identifier: AGPL-3.0-or-later
"""ultralytics' blocks that halve the output of their first convolution, with two convolutions in its place.

Both compute what the block that they are made from computes, bit for bit. Each of the two convolutions can then lose
channels by itself, which a chunk into equal halves rules out.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class _Split(nn.Module):
    cv0: nn.Module
    cv1: nn.Module
    cv2: nn.Module
    m: Any

    def __init__(self, block: Any) -> None:
        super().__init__()
        half = block.cv1.conv.out_channels // 2
        self.cv0 = _outputs(block.cv1, slice(0, half))
        self.cv1 = _outputs(block.cv1, slice(half, None))
        self.m = block.m
        self.cv2 = block.cv2
        self.train(block.training)


class SplitC2f(_Split):
    """x [B, c1, H, W] -> [B, c2, H, W]: what the C2f or C3k2 block that it is made from computes.

    Args:
        block: a block with C2f's attributes `cv1`, a 1x1 convolution, normalisation and activation; `m`, the chained
            modules; and `cv2`. The latter two are shared, `cv1` is copied by halves.
    """

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.cv0(x), self.cv1(x)]
        maps.extend(module(maps[-1]) for module in self.m)
        y: Tensor = self.cv2(torch.cat(maps, 1))
        return y


class SplitC2PSA(_Split):
    """x [B, c1, H, W] -> [B, c1, H, W]: what the C2PSA block that it is made from computes.

    Args:
        block: as for `SplitC2f`, with the attention in `m`.
    """

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(torch.cat((self.cv0(x), self.m(self.cv1(x))), 1))
        return y


def _outputs(conv: Any, channels: slice) -> Any:
    """A copy of a convolution with normalisation that computes some of its output channels."""
    part = copy.deepcopy(conv)
    for layer, names in ((part.conv, ("weight",)), (part.bn, ("weight", "bias"))):
        for name in names:
            parameter = getattr(layer, name)
            setattr(layer, name, nn.Parameter(parameter.detach()[channels].clone(), parameter.requires_grad))
    for name in ("running_mean", "running_var"):
        setattr(part.bn, name, getattr(part.bn, name)[channels].clone())
    part.conv.out_channels = part.bn.num_features = len(part.conv.weight)
    return part
