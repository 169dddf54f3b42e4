# SPDX-License-Identifier: AGPL-3.0-or-later
"""eca, dw_sppf and sppf_pool: against the same in torch's operators, eager and compiled, and YOLOv8n's SPPF block."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastyolo import ops
from fastyolo.bench.cases.case import OURS, Case, dtype_name, require_agreement, with_backward
from fastyolo.bench.cases.inputs import Inputs
from fastyolo.bench.environment import installed_version, why_not_compiled
from fastyolo.bench.timing import Call
from fastyolo.nn import FusedSPPF, standard
from fastyolo.nn.eca import eca_kernel_size

COPY = "copy"  # of x: the floor of an operator whose result has its size

_NCHW, _NHWC = torch.contiguous_format, torch.channels_last
_LAYOUTS = {_NCHW: [], _NHWC: ["channels last"]}

# Channels, height, width of YOLOv8s's feature maps P3 to P5 at 640 x 640, and of what its SPPF block pools.
_P3, _P4, _P5 = (128, 80, 80), (256, 40, 40), (512, 20, 20)
_POOLED = (256, 20, 20)


@dataclass(frozen=True)
class _Variant:
    """Inputs and settings that are measured in every batch size and dtype, forward and with backward."""

    size: tuple[int, int, int]  # C, H, W
    layout: torch.memory_format = _NCHW
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Operator:
    """An operator of feature maps: x [B, C, H, W] and parameters -> [B, maps * C, H, W].

    Attributes:
        ours: fastyolo's.
        peer: the same in torch's operators.
        parameters: their shapes for C channels.
        variants: the first one is that of a quick run.
    """

    name: str
    ours: Callable[..., Tensor]
    peer: Callable[..., Tensor]
    parameters: Callable[[int], list[tuple[int, ...]]]
    maps: int
    variants: tuple[_Variant, ...]


_ECA = _Operator(
    "eca",
    lambda *x: ops.eca(*x),
    standard.eca,
    lambda channels: [(eca_kernel_size(channels),)],
    1,
    (_Variant(_P5), _Variant(_P4), _Variant(_P3), _Variant(_P4, _NHWC)),
)
_POOLING = (_Variant(_POOLED), _Variant(_P5), _Variant(_P4), _Variant(_P3), _Variant(_POOLED, _NHWC))
_DW_SPPF = _Operator(
    "dw_sppf",
    lambda *x, **settings: ops.dw_sppf(*x, **settings),
    standard.dw_sppf,
    lambda channels: [(3, channels, 3, 3), (3, channels)],
    4,
    (*_POOLING, _Variant(_POOLED, settings={"activation": "silu"})),
)
_SPPF_POOL = _Operator("sppf_pool", lambda x: ops.sppf_pool(x), standard.sppf_pool, lambda _: [], 4, _POOLING)


def eca_cases(inputs: Inputs, quick: bool) -> Iterator[Case]:
    return _cases(_ECA, inputs, quick)


def dw_sppf_cases(inputs: Inputs, quick: bool) -> Iterator[Case]:
    return _cases(_DW_SPPF, inputs, quick)


def sppf_pool_cases(inputs: Inputs, quick: bool) -> Iterator[Case]:
    yield from _cases(_SPPF_POOL, inputs, quick)
    if installed_version("ultralytics"):
        for layout, batch in itertools.product((_NHWC, _NCHW), _batches(inputs, quick)):
            yield _sppf_block(inputs, batch, layout)


def _batches(inputs: Inputs, quick: bool) -> tuple[int, ...]:
    if quick:
        return (1,)
    return (1, 8) if inputs.device.type == "cpu" else (1, 32)


def _cases(operator: _Operator, inputs: Inputs, quick: bool) -> Iterator[Case]:
    variants, dtypes = operator.variants, inputs.feature_dtypes
    if quick:
        variants, dtypes = variants[:1], dtypes[:1]
    compiled = not quick and why_not_compiled(inputs.device) is None
    for choice in itertools.product(variants, _batches(inputs, quick), dtypes, (False, True)):
        yield _case(operator, inputs, *choice, compiled=compiled)


def _case(
    operator: _Operator,
    inputs: Inputs,
    variant: _Variant,
    batch: int,
    dtype: torch.dtype,
    backward: bool,
    *,
    compiled: bool,
) -> Case:
    channels, height, width = variant.size
    shape = (batch, channels, height, width)
    generator = torch.Generator().manual_seed(0)
    parameters = [  # of a scale that keeps the values' through the stages
        (torch.randn(size, generator=generator) / 3).to(inputs.device, dtype).requires_grad_(backward)
        for size in operator.parameters(channels)
    ]
    first = inputs.feature_map(shape, dtype, variant.layout, 0)
    maps = [first]
    maps += [inputs.feature_map(shape, dtype, variant.layout, i) for i in range(1, inputs.rotation(first.nbytes))]
    outputs = (batch, operator.maps * channels, height, width)

    def call(function: Callable[..., Tensor], x: Tensor) -> Call:
        leaves = [x.detach().requires_grad_(backward), *parameters]

        def forward() -> Tensor:
            return function(*leaves, **variant.settings)

        if not backward:
            return forward
        return with_backward(forward, leaves, inputs.feature_map(outputs, dtype, variant.layout, 0))

    functions = {OURS: operator.ours, "torch": operator.peer}
    if compiled:
        torch.compiler.reset()  # or the limit of recompilations would end in eager calls under another name
        functions["torch.compile"] = torch.compile(operator.peer, dynamic=False, fullgraph=True)
    calls = {name: [call(function, x) for x in maps] for name, function in functions.items()}
    peers = list(calls)

    def check() -> None:
        require_agreement(operator.name, {name: calls[name][0]() for name in peers})

    if operator.maps == 1:
        target = torch.empty_like(first)
        calls[COPY] = [_copy(target, x) for x in maps]
    # Forward reads x and writes the result; backward reads its gradient and x and writes the gradient of x.
    moved = (1 + operator.maps + backward * (operator.maps + 2)) * first.nbytes
    facts = {
        "inputs": ", ".join(["x".join(map(str, shape)), *variant.settings.values(), *_LAYOUTS[variant.layout]]),
        "dtype": dtype_name(dtype),
        "pass": "forward + backward" if backward else "forward",
    }
    return Case(operator.name, ", ".join(facts.values()), calls, frozenset(calls), moved, check, facts)


def _copy(target: Tensor, x: Tensor) -> Call:
    return lambda: target.copy_(x)


def _sppf_block(inputs: Inputs, batch: int, layout: torch.memory_format) -> Case:
    """YOLOv8n's whole block as it predicts: 1x1 convolution, pools, concatenation, 1x1 convolution."""
    from fastyolo.integrations.ultralytics.stock import stock_sppf

    stock = stock_sppf().to(inputs.device, inputs.dtype, memory_format=layout)
    fused = FusedSPPF(stock)
    shape = (batch, 256, 20, 20)
    first = inputs.feature_map(shape, inputs.dtype, layout, 0)
    maps = [first]
    maps += [inputs.feature_map(shape, inputs.dtype, layout, i) for i in range(1, inputs.rotation(first.nbytes))]

    def call(block: torch.nn.Module, x: Tensor) -> Call:
        def forward() -> Any:
            with torch.inference_mode():
                return block(x)

        return forward

    calls = {name: [call(block, x) for x in maps] for name, block in ((OURS, fused), ("ultralytics", stock))}
    return Case(
        "sppf_pool",
        ", ".join(["block of YOLOv8n", "x".join(map(str, shape)), *_LAYOUTS[layout]]),
        calls,
        frozenset(calls),
        2 * first.nbytes + sum(p.nbytes for p in stock.parameters()),
        lambda: require_agreement("FusedSPPF", {name: calls[name][0]() for name in calls}),
        {"dtype": dtype_name(inputs.dtype)},
    )
