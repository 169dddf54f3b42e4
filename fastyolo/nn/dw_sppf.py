# SPDX-License-Identifier: AGPL-3.0-or-later
"""SPPF with depthwise convolutions in place of its max pools."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastyolo.nn.conv import Conv
from fastyolo.nn.export import Exportable

STAGES = 3

# He's gain, 1 / sqrt(E[act(z)^2]) for standard normal z. Filters of this norm, and not only of this norm on average, as
# normal ones would be, keep more channels from fading over three stages: each output has but one filter of k * k taps.
_GAINS = {"identity": 1.0, "relu": math.sqrt(2), "silu": 1.6765}


class DWSPPF(Exportable):
    """x [B, c1, H, W] -> [B, c2, H, W]: spatial pyramid pooling with learnt windows.

    SPPF's layout (1x1 convolution to c = c1 // 2 channels, three chained stages, concatenation of all four, 1x1
    convolution to c2; batch normalisation and SiLU after both), where a stage is a depthwise convolution instead of a
    max pool. With k = 3 and dilation = 2 the stages see the 5x5, 9x9 and 13x13 pixels that SPPF's pools see.
    `cv1` and `cv2` have the shapes and parameter names of SPPF's, so those of a trained detector can be loaded.

    Args:
        c1: channels of x.
        c2: channels of the result.
        k: side of the depthwise filters, 3 or 5.
        dilation: 1 or 2.
        activation: of the stages: "silu", "relu" or "identity".

    Attributes:
        weight: [3, c, k, k], the stages' filters; at first of random directions and of a norm that lets all four
            concatenated maps start with about the same second moment.
        bias: [3, c], 0 at first.

    Raises:
        ValueError: k, dilation or activation is not as above.
    """

    def __init__(self, c1: int, c2: int, k: int = 3, dilation: int = 2, activation: str = "silu") -> None:
        super().__init__()
        if k not in (3, 5):
            raise ValueError(f"k must be 3 or 5, got {k}")
        if dilation not in (1, 2):
            raise ValueError(f"dilation must be 1 or 2, got {dilation}")
        if activation not in _GAINS:
            raise ValueError(f"activation must be one of {', '.join(_GAINS)}, got {activation!r}")
        hidden = c1 // 2
        self.dilation = dilation
        self.activation = activation
        self.cv1 = Conv(c1, hidden)
        directions = torch.randn(STAGES, hidden, k, k)
        norms = torch.linalg.vector_norm(directions, dim=(2, 3), keepdim=True)
        self.weight = nn.Parameter(_GAINS[activation] * directions / norms)
        self.bias = nn.Parameter(torch.zeros(STAGES, hidden))
        self.cv2 = Conv((STAGES + 1) * hidden, c2)

    def forward(self, x: Tensor) -> Tensor:
        stages = self._operators().dw_sppf(
            self.cv1(x), self.weight, self.bias, dilation=self.dilation, activation=self.activation
        )
        y: Tensor = self.cv2(stages)
        return y

    def fuse(self) -> DWSPPF:
        """Fold both batch normalisations into their convolutions, for inference. Returns the module itself.

        Raises:
            RuntimeError: the module is in training mode.
        """
        self.cv1.fuse()
        self.cv2.fuse()
        return self

    def extra_repr(self) -> str:
        return f"k={self.weight.shape[-1]}, dilation={self.dilation}, activation={self.activation!r}"
