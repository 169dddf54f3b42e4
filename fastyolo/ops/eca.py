# SPDX-License-Identifier: AGPL-3.0-or-later
"""eca: efficient channel attention, differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastyolo import _library
from fastyolo.ops.feature_map import concatenated


def eca(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, C, H, W], weight [k] -> y [B, C, H, W], each channel scaled by its attention.

    y = x * sigmoid(z) with z[b, c] = sum_j weight[j] * m[b, c + j - k // 2], where m[b, c] is the mean of x[b, c] and 0
    beyond the channels: the efficient channel attention of ECA-Net (Wang et al. 2020, https://arxiv.org/abs/1910.03151).
    Means, convolution and sigmoid are computed in float32, or in float64 for float64 x.

    The backward pass recomputes the attention: nothing but x and weight is kept for it, and there is no second
    derivative. Autocast leaves the operator alone, it runs in the dtype of x.

    Args:
        x: float32, float16 or bfloat16 on CUDA; float32, bfloat16 or float64 on the CPU. Any strides, never copied.
        weight: the kernel of the convolution over channels, k odd, at most 31; of the dtype of x, or float32 beside
            float16 and bfloat16.

    Returns:
        Of the dtype and memory format (contiguous or channels_last) of x.

    Raises:
        RuntimeError: a shape, dtype or device is not as above, or a second derivative is asked for; the message names
            it.
    """
    y: Tensor = torch.ops.fastyolo.eca.default(x, weight)
    return y


def _eca_fake(x: Tensor, weight: Tensor) -> Tensor:
    return concatenated(x)


def _eca_backward_fake(grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return concatenated(x), weight.new_empty(weight.shape)


def _save_for_backward(ctx: Any, output: Tensor) -> None:
    ctx.save_for_backward(*ctx.tensors)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight = torch.ops.fastyolo.eca_backward.default(grad_y, *ctx.saved_tensors)
    return grad_x, grad_weight


torch.library.register_fake("fastyolo::eca", _eca_fake)
torch.library.register_fake("fastyolo::eca_backward", _eca_backward_fake)
_library.register_autograd("eca", _backward, _save_for_backward)
