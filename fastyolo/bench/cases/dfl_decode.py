# SPDX-License-Identifier: AGPL-3.0-or-later
"""dfl_decode: against the DFL module and dist2bbox of ultralytics, and with backward also what its loss has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

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

DECODE_FLOPS = 6  # per logit: maximum, difference, exponential, sum, and the product and sum of the expectation
_BACKWARD_FLOPS = DECODE_FLOPS + 3  # the same once more, and p_i (i - E) g


def dfl_decode_cases(inputs: Inputs, choice: Choice) -> Iterator[Case]:
    dtypes = choice.pick(choice.dtypes, (inputs.dtype,))
    compiled = not choice.quick and why_not_compiled(inputs.device) is None
    for backward, batch, dtype in itertools.product((False, True), choice.pick(choice.batches, (1, 16)), dtypes):
        yield _dfl_decode(inputs, batch, dtype, backward, compiled=compiled)


def _dfl_decode(inputs: Inputs, batch: int, dtype: torch.dtype, backward: bool, *, compiled: bool) -> Case:
    first = inputs.logits(batch, 16, 0, dtype)
    sets = [first, *(inputs.logits(batch, 16, seed, dtype) for seed in range(1, inputs.rotation(first[0].nbytes)))]
    implementations: dict[str, Callable[..., Call]] = {OURS: lambda *x: lambda: ops.dfl_decode(*x)}
    if installed_version("ultralytics"):
        from fastyolo.integrations.ultralytics.stock import stock_dfl_decode, stock_loss_decode

        implementations["ultralytics"] = stock_dfl_decode
        if backward:
            implementations["ultralytics loss"] = stock_loss_decode
        if compiled:
            implementations["torch.compile"] = lambda *x: compiled_by_torch(stock_dfl_decode(*x))
    calls = {
        name: [_gradient(prepare, *x) if backward else prepare(*x) for x in sets]
        for name, prepare in implementations.items()
    }

    def check() -> None:
        require_agreement("dfl_decode", {name: calls[name][0]() for name in calls})

    box_bytes = batch * 4 * first[0].shape[2] * first[0].element_size()
    grid_bytes = first[1].nbytes + first[2].nbytes
    # Backward reads the logits and the boxes' gradient and writes the logits' gradient.
    moved = first[0].nbytes + box_bytes + grid_bytes + backward * (2 * first[0].nbytes + box_bytes)
    return Case(
        "dfl_decode",
        f"batch {batch}, {'forward + backward' if backward else 'forward'}"
        + (f", {dtype_name(dtype)}" if dtype != inputs.dtype else ""),
        calls,
        frozenset(calls),
        moved,
        check,
        {"batch": batch, "anchors": first[0].shape[2], "dtype": dtype_name(dtype)},
        first[0].numel() * (DECODE_FLOPS + backward * _BACKWARD_FLOPS),
    )


def _gradient(prepare: Callable[..., Call], logits: Tensor, points: Tensor, strides: Tensor) -> Call:
    logits = logits.detach().requires_grad_()
    forward = prepare(logits, points, strides)
    return with_backward(forward, [logits], torch.ones_like(forward()))
