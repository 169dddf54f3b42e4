# SPDX-License-Identifier: AGPL-3.0-or-later
"""Efficient channel attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastyolo.nn.export import Exportable


class ECA(Exportable):
    """x [B, C, H, W] -> x * sigmoid(conv1d(mean of x over H and W)), of the shape of x.

    Efficient channel attention (https://arxiv.org/abs/1910.03151): each channel is scaled by a gate that depends on the
    means of its k nearest channels. The convolution over the channels has one filter and no bias.

    Args:
        channels: C, from which k follows: the odd number nearest to log2(C) / 2 + 1 / 2, the upper one of two.
        kernel_size: k, odd and at most 31, instead of that rule.

    Attributes:
        weight: [k], uniform in +-1 / sqrt(k) at first, as torch.nn.Conv1d begins.

    Raises:
        ValueError: kernel_size is not as above.
    """

    def __init__(self, channels: int, kernel_size: int | None = None) -> None:
        super().__init__()
        if kernel_size is None:
            kernel_size = eca_kernel_size(channels)
        elif kernel_size not in range(1, 32, 2):
            raise ValueError(f"kernel_size must be odd and in [1, 31], got {kernel_size}")
        self.weight = nn.Parameter(torch.empty(kernel_size))
        nn.init.uniform_(self.weight, -(kernel_size**-0.5), kernel_size**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._operators().eca(x, self.weight)
        return y

    def extra_repr(self) -> str:
        return f"kernel_size={len(self.weight)}"


def eca_kernel_size(channels: int) -> int:
    """k of the paper's rule: with t = (log2(C) + 1) / 2, the odd number of 2 floor(t / 2) and its successor."""
    return channels.bit_length() // 4 * 2 + 1  # bit_length() is floor(log2(C)) + 1, so this is exact
