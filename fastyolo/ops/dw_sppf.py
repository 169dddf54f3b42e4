# SPDX-License-Identifier: AGPL-3.0-or-later
"""dw_sppf: spatial pyramid pooling with depthwise convolutions in the place of the pools, differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastyolo import _library
from fastyolo.ops.feature_map import concatenated

_OUTPUTS = 4  # x and three stages


def dw_sppf(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 2, activation: str = "identity"
) -> Tensor:
    """x [B, C, H, W], weight [3, C, K, K], bias [3, C] -> concat(x, y1, y2, y3) over channels, [B, 4C, H, W].

    y_i = activation(depthwise(y_{i-1}, weight[i-1]) + bias[i-1]) with y_0 = x, zero-padded to the same H x W: the SPPF
    block of YOLOv5 and YOLOv8 (https://github.com/ultralytics/ultralytics) with a depthwise convolution in the place of
    each max pool. K = 3 with dilation 2 sees the same 5, 9 and 13 pixels a side as three chained pools of 5. The stages
    hand unrounded values to each other: float32, or float64 for float64 x.

    The backward pass recomputes the stages. It keeps weight, bias and the result, of which the first C channels are x:
    no memory of its own where what follows keeps the result too, as a convolution does. There is no second derivative.
    Autocast leaves the operator alone, it runs in the dtype of x.

    Args:
        x: float32, float16 or bfloat16 on CUDA; float32, bfloat16 or float64 on the CPU. Any strides, never copied.
        weight: K of 3 or 5; of the dtype of x, or float32 beside float16 and bfloat16.
        bias: of the dtype of weight; None: no bias.
        dilation: pixels from one tap to the next, 1 or 2.
        activation: "identity", "relu" or "silu".

    Returns:
        Of the dtype and memory format (contiguous or channels_last) of x.

    Raises:
        RuntimeError: a shape, dtype, device or setting is not as above, or a second derivative is asked for; the
            message names it.
    """
    out: Tensor = torch.ops.fastyolo.dw_sppf.default(x, weight, bias, dilation=dilation, activation=activation)
    return out


def _dw_sppf_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 2, activation: str = "identity"
) -> Tensor:
    return concatenated(x, _OUTPUTS)


def _dw_sppf_backward_fake(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: int, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    grad_bias = weight.new_empty((0 if bias is None else weight.shape[0], x.shape[1]))
    return concatenated(x), weight.new_empty(weight.shape), grad_bias


def _save_for_backward(ctx: Any, output: Tensor) -> None:
    _, weight, bias = ctx.tensors
    ctx.save_for_backward(output, weight, bias)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    out, weight, bias = ctx.saved_tensors
    x = out[:, : weight.shape[1]]
    grad_x, grad_weight, grad_bias = torch.ops.fastyolo.dw_sppf_backward.default(
        grad_out, x, weight, bias, **ctx.settings
    )
    return grad_x, grad_weight, None if bias is None else grad_bias


torch.library.register_fake("fastyolo::dw_sppf", _dw_sppf_fake)
torch.library.register_fake("fastyolo::dw_sppf_backward", _dw_sppf_backward_fake)
_library.register_autograd("dw_sppf", _backward, _save_for_backward)
