# SPDX-License-Identifier: AGPL-3.0-or-later
"""sppf_pool: three chained max pools and the concatenation of all stages, differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastyolo import _library
from fastyolo.ops.feature_map import concatenated

_OUTPUTS = 4  # x and three stages


def sppf_pool(x: Tensor, *, kernel_size: int = 5) -> Tensor:
    """x [B, C, H, W] -> concat(x, y1, y2, y3) over channels, [B, 4C, H, W].

    y_i = max_pool2d(y_{i-1}, kernel_size, stride=1, padding=kernel_size // 2) with y_0 = x: the middle of the SPPF
    block of YOLOv5 and YOLOv8 (https://github.com/ultralytics/ultralytics). The values are torch's, NaN included, and
    so is the choice of the pixel that the gradient of a window goes to: the first of its largest in row-major order, or
    the last NaN.

    The backward pass finds the pixels again. It keeps the result alone, of which the first C channels are x: no memory
    of its own where what follows keeps the result too, as a convolution does. There is no second derivative. Autocast
    leaves the operator alone, it runs in the dtype of x.

    Args:
        x: float32, float16 or bfloat16 on CUDA; float32, bfloat16 or float64 on the CPU. Any strides, never copied.
        kernel_size: pixels a side of each window, odd, at most 15.

    Returns:
        Of the dtype and memory format (contiguous or channels_last) of x.

    Raises:
        RuntimeError: a shape, dtype or setting is not as above, or a second derivative is asked for; the message names
            it.
    """
    out: Tensor = torch.ops.fastyolo.sppf_pool.default(x, kernel_size=kernel_size)
    return out


def _sppf_pool_fake(x: Tensor, *, kernel_size: int = 5) -> Tensor:
    return concatenated(x, _OUTPUTS)


def _sppf_pool_backward_fake(grad_out: Tensor, x: Tensor, *, kernel_size: int) -> Tensor:
    return concatenated(x)


def _save_for_backward(ctx: Any, output: Tensor) -> None:
    ctx.save_for_backward(output)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor]:
    (out,) = ctx.saved_tensors
    x = out[:, : out.shape[1] // _OUTPUTS]
    return (torch.ops.fastyolo.sppf_pool_backward.default(grad_out, x, **ctx.settings),)


torch.library.register_fake("fastyolo::sppf_pool", _sppf_pool_fake)
torch.library.register_fake("fastyolo::sppf_pool_backward", _sppf_pool_backward_fake)
_library.register_autograd("sppf_pool", _backward, _save_for_backward)
