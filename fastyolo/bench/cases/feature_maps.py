# SPDX-License-Identifier: AGPL-3.0-or-later
"""eca, dw_sppf and sppf_pool: against the same in torch's operators, eager and compiled, and YOLOv8's SPPF block."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastyolo import ops
from fastyolo._machine import installed_version
from fastyolo.bench.cases.case import (
    OURS,
    Case,
    Choice,
    compiled_by_torch,
    dtype_name,
    require_agreement,
    with_backward,
)
from fastyolo.bench.cases.inputs import Inputs
from fastyolo.bench.environment import why_not_compiled
from fastyolo.bench.timing import Call
from fastyolo.nn import FusedSPPF, standard
from fastyolo.nn.eca import eca_kernel_size

COPY = "copy"  # of x: the floor of an operator whose result has its size

_NCHW, _NHWC = torch.contiguous_format, torch.channels_last
_LAYOUTS = {_NCHW: [], _NHWC: ["channels last"]}

# Channels of YOLOv8's feature maps P3 to P5 by scale. Its SPPF block pools half of those of P5.
WIDTHS = {
    "n": (64, 128, 256),
    "s": (128, 256, 512),
    "m": (192, 384, 576),
    "l": (256, 512, 512),
    "x": (320, 640, 640),
}
_SIDES = (80, 40, 20)  # of these maps, of an image of 640 x 640 pixels


@dataclass(frozen=True)
class _Variant:
    """Inputs and settings that are measured in every batch size and dtype, forward and with backward.

    Attributes:
        level: 0 to 2 for P3 to P5, 3 for what the SPPF block pools.
    """

    level: int
    layout: torch.memory_format = _NCHW
    settings: dict[str, str] = field(default_factory=dict)

    def size(self, scale: str) -> tuple[int, int, int]:
        """C, H, W."""
        widths = WIDTHS[scale]
        channels = (*widths, widths[-1] // 2)[self.level]
        side = (*_SIDES, _SIDES[-1])[self.level]
        return channels, side, side


_P3, _P4, _P5, _POOLED = range(4)


@dataclass(frozen=True)
class _Operator:
    """An operator of feature maps: x [B, C, H, W] and parameters -> [B, maps * C, H, W].

    Attributes:
        ours: fastyolo's.
        peer: the same in torch's operators.
        parameters: their shapes for C channels.
        variants: the first one is that of a quick run.
        flops: per element of x, forward, and the same of the backward pass.
    """

    name: str
    ours: Callable[..., Tensor]
    peer: Callable[..., Tensor]
    parameters: Callable[[int], list[tuple[int, ...]]]
    maps: int
    variants: tuple[_Variant, ...]
    flops: tuple[int, int]


_ECA = _Operator(
    "eca",
    lambda *x: ops.eca(*x),
    standard.eca,
    lambda channels: [(eca_kernel_size(channels),)],
    1,
    (_Variant(_P5), _Variant(_P4), _Variant(_P3), _Variant(_P4, _NHWC)),
    (2, 4),  # sum and product; sums of the gates' gradient, products and the mean's share
)
_POOLING = (_Variant(_POOLED), _Variant(_P5), _Variant(_P4), _Variant(_P3), _Variant(_POOLED, _NHWC))
_DW_SPPF = _Operator(
    "dw_sppf",
    lambda *x, **settings: ops.dw_sppf(*x, **settings),
    standard.dw_sppf,
    lambda channels: [(3, channels, 3, 3), (3, channels)],
    4,
    (*_POOLING, _Variant(_POOLED, settings={"activation": "silu"})),
    (54, 108),  # three convolutions of nine products and sums; those of x's gradient and of the weights'
)
_SPPF_POOL = _Operator("sppf_pool", lambda x: ops.sppf_pool(x), standard.sppf_pool, lambda _: [], 4, _POOLING, (0, 0))


def eca_cases(inputs: Inputs, choice: Choice) -> Iterator[Case]:
    return _cases(_ECA, inputs, choice)


def dw_sppf_cases(inputs: Inputs, choice: Choice) -> Iterator[Case]:
    return _cases(_DW_SPPF, inputs, choice)


def sppf_pool_cases(inputs: Inputs, choice: Choice) -> Iterator[Case]:
    yield from _cases(_SPPF_POOL, inputs, choice)
    if installed_version("ultralytics"):
        scales, dtypes = choice.scales or ("n",), choice.pick(choice.dtypes, (inputs.dtype,))
        for picked in itertools.product(scales, (_NHWC, _NCHW), _batches(inputs, choice), dtypes):
            yield _sppf_block(inputs, *picked)


def _batches(inputs: Inputs, choice: Choice) -> Sequence[int]:
    return choice.pick(choice.batches, (1, 8) if inputs.device.type == "cpu" else (1, 32))


def _cases(operator: _Operator, inputs: Inputs, choice: Choice) -> Iterator[Case]:
    variants = operator.variants[:1] if choice.quick else operator.variants
    dtypes = choice.pick(choice.dtypes, inputs.feature_dtypes)
    compiled = not choice.quick and why_not_compiled(inputs.device) is None
    sizes: dict[tuple[Any, ...], tuple[_Variant, tuple[int, int, int]]] = {}  # scales may have some in common
    for scale, variant in itertools.product(choice.scales or ("s",), variants):
        size = variant.size(scale)
        sizes.setdefault((size, variant.layout, *variant.settings.values()), (variant, size))
    for (variant, size), *rest in itertools.product(sizes.values(), _batches(inputs, choice), dtypes, (False, True)):
        yield _case(operator, inputs, variant, size, *rest, compiled=compiled)


def _case(
    operator: _Operator,
    inputs: Inputs,
    variant: _Variant,
    size: tuple[int, int, int],
    batch: int,
    dtype: torch.dtype,
    backward: bool,
    *,
    compiled: bool,
) -> Case:
    channels, height, width = size
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
    gradients = [inputs.feature_map(outputs, dtype, variant.layout, i) if backward else None for i in range(len(maps))]

    def call(function: Callable[..., Tensor], x: Tensor, gradient: Tensor | None) -> Call:
        leaves = [x.detach().requires_grad_(backward), *parameters]

        def forward() -> Tensor:
            return function(*leaves, **variant.settings)

        return forward if gradient is None else with_backward(forward, leaves, gradient)

    functions = {OURS: operator.ours, "torch": operator.peer}
    if compiled:
        functions["torch.compile"] = compiled_by_torch(operator.peer)
    calls = {
        name: [call(function, *pair) for pair in zip(maps, gradients, strict=True)]
        for name, function in functions.items()
    }
    peers = list(calls)

    def check() -> None:
        require_agreement(operator.name, {name: calls[name][0]() for name in peers})

    if operator.maps == 1:
        calls[COPY] = [_copy(torch.empty_like(x), x) for x in maps]
    # Forward reads x and writes the result; backward reads its gradient and x and writes the gradient of x.
    moved = (1 + operator.maps + backward * (operator.maps + 2)) * first.nbytes
    facts = {
        "inputs": ", ".join(["x".join(map(str, shape)), *variant.settings.values(), *_LAYOUTS[variant.layout]]),
        "dtype": dtype_name(dtype),
        "pass": "forward + backward" if backward else "forward",
    }
    flops = first.numel() * (operator.flops[0] + backward * operator.flops[1])
    return Case(operator.name, ", ".join(facts.values()), calls, frozenset(calls), moved, check, facts, flops)


def _copy(target: Tensor, x: Tensor) -> Call:
    return lambda: target.copy_(x)


def _sppf_block(inputs: Inputs, scale: str, layout: torch.memory_format, batch: int, dtype: torch.dtype) -> Case:
    """YOLOv8's whole block as it predicts: 1x1 convolution, pools, concatenation, 1x1 convolution."""
    from fastyolo.integrations.ultralytics.stock import stock_sppf

    stock = stock_sppf(f"yolov8{scale}.yaml").to(inputs.device, dtype, memory_format=layout)
    fused = FusedSPPF(stock)
    channels, side = WIDTHS[scale][-1], _SIDES[-1]
    shape = (batch, channels, side, side)
    first = inputs.feature_map(shape, dtype, layout, 0)
    maps = [first]
    maps += [inputs.feature_map(shape, dtype, layout, i) for i in range(1, inputs.rotation(first.nbytes))]

    def call(block: torch.nn.Module, x: Tensor) -> Call:
        def forward() -> Any:
            with torch.inference_mode():
                return block(x)

        return forward

    calls = {name: [call(block, x) for x in maps] for name, block in ((OURS, fused), ("ultralytics", stock))}
    return Case(
        "sppf_pool",
        ", ".join(
            [
                f"block of YOLOv8{scale}",
                "x".join(map(str, shape)),
                *_LAYOUTS[layout],
                *([dtype_name(dtype)] if dtype != inputs.dtype else []),
            ]
        ),
        calls,
        frozenset(calls),
        2 * first.nbytes + sum(p.nbytes for p in stock.parameters()),
        lambda: require_agreement("FusedSPPF", {name: calls[name][0]() for name in calls}),
        {"dtype": dtype_name(dtype)},
        2 * first[:, 0].numel() * sum(p.numel() for p in stock.parameters() if p.ndim == 4),  # of the convolutions
    )
