# SPDX-License-Identifier: AGPL-3.0-or-later
"""The operators of these modules in torch's own, differentiable and exportable, with the signatures of fastyolo.ops.

Exported graphs hold them, and `fastyolo bench ops` times the kernels against them. Unlike fastyolo.reference, they keep
the dtype of x between the stages, as a model that is written in torch does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": functional.relu,
    "silu": functional.silu,
}


def eca(x: Tensor, weight: Tensor) -> Tensor:
    """As fastyolo.ops.eca."""
    means = x.mean((2, 3)).unsqueeze(1)
    gates = functional.conv1d(means, weight.to(x.dtype).view(1, 1, -1), padding="same").sigmoid()
    return x * gates.transpose(1, 2).unsqueeze(3)


def dw_sppf(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 2, activation: str = "identity"
) -> Tensor:
    """As fastyolo.ops.dw_sppf."""
    _, channels, kernel, _ = weight.shape
    biases = (None,) * len(weight) if bias is None else bias.to(x.dtype).unbind()
    stages = [x]
    for stage_weight, stage_bias in zip(weight.to(x.dtype).unsqueeze(2).unbind(), biases, strict=True):
        z = functional.conv2d(
            stages[-1], stage_weight, stage_bias, padding=kernel // 2 * dilation, dilation=dilation, groups=channels
        )
        stages.append(_ACTIVATIONS[activation](z))
    return torch.cat(stages, 1)


def sppf_pool(x: Tensor, *, kernel_size: int = 5) -> Tensor:
    """As fastyolo.ops.sppf_pool."""
    stages = [x]
    for _ in range(3):
        stages.append(functional.max_pool2d(stages[-1], kernel_size, stride=1, padding=kernel_size // 2))
    return torch.cat(stages, 1)
