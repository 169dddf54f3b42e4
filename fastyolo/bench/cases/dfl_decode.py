# SPDX-License-Identifier: AGPL-3.0-or-later
"""dfl_decode: against the DFL module and dist2bbox of ultralytics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastyolo import ops
from fastyolo.bench.cases.case import OURS, Case, dtype_name, require_agreement, with_backward
from fastyolo.bench.cases.inputs import Inputs
from fastyolo.bench.environment import installed_version
from fastyolo.bench.timing import Call


def dfl_decode_cases(inputs: Inputs, quick: bool) -> Iterator[Case]:
    for batch in (1,) if quick else (1, 16):
        for backward in (False, True):
            yield _dfl_decode(inputs, batch, backward)


def _dfl_decode(inputs: Inputs, batch: int, backward: bool) -> Case:
    first = inputs.logits(batch, 16, 0)
    sets = [first, *(inputs.logits(batch, 16, seed) for seed in range(1, inputs.rotation(first[0].nbytes)))]
    implementations: dict[str, Callable[..., Call]] = {OURS: lambda *x: lambda: ops.dfl_decode(*x)}
    if installed_version("ultralytics"):
        from fastyolo.integrations.ultralytics.stock import stock_dfl_decode

        implementations["ultralytics"] = stock_dfl_decode
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
        f"batch {batch}, {'forward + backward' if backward else 'forward'}",
        calls,
        frozenset(calls),
        moved,
        check,
        {"batch": batch, "anchors": first[0].shape[2], "dtype": dtype_name(inputs.dtype)},
    )


def _gradient(prepare: Callable[..., Call], logits: Tensor, points: Tensor, strides: Tensor) -> Call:
    logits = logits.detach().requires_grad_()
    forward = prepare(logits, points, strides)
    return with_backward(forward, [logits], torch.ones_like(forward()))
