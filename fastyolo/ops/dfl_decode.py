# SPDX-License-Identifier: AGPL-3.0-or-later
"""dfl_decode: the logits of distribution focal loss to boxes, differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastyolo import _library


def dfl_decode(logits: Tensor, anchor_points: Tensor, strides: Tensor) -> Tensor:
    """logits [B, 4R, A], anchor_points [2, A], strides [A] -> boxes [B, 4, A], xyxy in pixels.

    d_s = sum_i i softmax(logits_s)_i for the sides s = left, top, right, bottom, in grid cells, and the box is
    (x - d_0, y - d_1, x + d_2, y + d_3) times the stride: the decoding of distribution focal loss
    (https://arxiv.org/abs/2006.04388). With R = 1 the logits are the distances themselves.

    The gradient of the logits, softmax_i (i - d_s) times the side's gradient, is recomputed from them: nothing else is
    kept for the backward pass. Points and strides are constants, and there is no second derivative.

    Args:
        logits: float32, float16 or bfloat16 on CUDA; float32, bfloat16 or float64 on the CPU. Any strides without a
            copy: pass the training layout [B, A, 4R] as `x.transpose(1, 2)`.
        anchor_points: x and y of each anchor in grid cells, cell centres at .5; float32, or float64 with float64
            logits.
        strides: pixels per cell of each anchor, of the dtype of anchor_points.

    Returns:
        Boxes of the dtype of logits.

    Raises:
        RuntimeError: a shape, dtype or device is not as above, or a derivative is asked for that there is not; the
            message names it.
    """
    boxes: Tensor = torch.ops.fastyolo.dfl_decode.default(logits, anchor_points, strides)
    return boxes


def _dfl_decode_fake(logits: Tensor, anchor_points: Tensor, strides: Tensor) -> Tensor:
    return logits.new_empty((logits.shape[0], 4, logits.shape[2]))


def _dfl_decode_backward_fake(grad_boxes: Tensor, logits: Tensor, strides: Tensor) -> Tensor:
    return torch.empty_like(logits)


def _save_for_backward(ctx: Any, output: Tensor) -> None:
    logits, _, strides = ctx.tensors
    ctx.save_for_backward(logits, strides)


def _backward(ctx: Any, grad_boxes: Tensor) -> tuple[Tensor, None, None]:
    if any(ctx.needs_input_grad[2:]):
        raise RuntimeError("anchor_points and strides of dfl_decode must not require a gradient: they are constants")
    return torch.ops.fastyolo.dfl_decode_backward.default(grad_boxes, *ctx.saved_tensors), None, None


torch.library.register_fake("fastyolo::dfl_decode", _dfl_decode_fake)
torch.library.register_fake("fastyolo::dfl_decode_backward", _dfl_decode_backward_fake)
_library.register_autograd("dfl_decode", _backward, _save_for_backward)
