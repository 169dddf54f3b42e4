# SPDX-License-Identifier: AGPL-3.0-or-later
"""The operators of fastyolo.nn, with the signatures of fastyolo.ops, as nodes of TensorRT plugins.

torch.onnx.export(dynamo=False) writes a node for each call; what torch computes meanwhile is its own operators' result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastyolo.export.graph import DOMAIN, PLUGIN_FIELDS
from fastyolo.nn import standard

_STAGES = 4  # maps of the input's channels in the output of either SPPF


def eca(x: Tensor, weight: Tensor) -> Tensor:
    """As fastyolo.ops.eca."""
    y: Tensor = _Eca.apply(x, weight)
    return y


def dw_sppf(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 2, activation: str = "identity"
) -> Tensor:
    """As fastyolo.ops.dw_sppf."""
    y: Tensor = _DwSppf.apply(x, weight, bias, dilation, activation)
    return y


def sppf_pool(x: Tensor, *, kernel_size: int = 5) -> Tensor:
    """As fastyolo.ops.sppf_pool."""
    y: Tensor = _SppfPool.apply(x, kernel_size)
    return y


class _Eca(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return standard.eca(x, weight)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any) -> Any:
        return _node(g, "FastYoloECA", x, weight)


class _DwSppf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, activation: str) -> Tensor:
        return standard.dw_sppf(x, weight, bias, dilation=dilation, activation=activation)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, dilation: int, activation: str) -> Any:
        inputs = (weight,) if bias is None else (weight, bias)
        return _node(g, "FastYoloDWSPPF", x, *inputs, stages=_STAGES, dilation_i=dilation, activation_s=activation)


class _SppfPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel_size: int) -> Tensor:
        return standard.sppf_pool(x, kernel_size=kernel_size)

    @staticmethod
    def symbolic(g: Any, x: Any, kernel_size: int) -> Any:
        return _node(g, "FastYoloSPPF", x, stages=_STAGES, kernel_size_i=kernel_size)


def _node(g: Any, plugin: str, x: Any, *inputs: Any, stages: int = 1, **fields: Any) -> Any:
    fields |= {f"{name}_s": value for name, value in PLUGIN_FIELDS.items()}
    batch, channels, height, width = x.type().varyingSizes()
    node = g.op(f"{DOMAIN}::{plugin}", x, *inputs, **fields)
    return node.setType(x.type().with_sizes([batch, channels * stages, height, width]))
