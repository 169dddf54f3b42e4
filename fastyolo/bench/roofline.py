# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a machine can do at most: the two limits of the roofline model (https://doi.org/10.1145/1498765.1498785)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastyolo.bench.timing import Contender, CpuContender, CudaContender, take_turns

# Of the matrices: as small as reaches the rate, so that among many products some are not disturbed.
_SIDES = {"cpu": 512, "cuda": 4096}
_BYTES = 1 << 28  # of the copy, more than any cache holds


@dataclass(frozen=True)
class Roofline:
    """Measured limits.

    Attributes:
        flops: floating-point operations per second of a product of float32 matrices, as torch computes it here.
        bytes: per second, read and written, of a copy.
    """

    flops: float
    bytes: float

    def seconds(self, flops: float, num_bytes: float) -> tuple[float, float]:
        """The least time that the operations take, and that the traffic takes."""
        return flops / self.flops, num_bytes / self.bytes


def measure(device: torch.device) -> Roofline:
    """Measure in about a second, with the threads and the float32 precision that torch is set to."""
    source = torch.ones(_BYTES // 4, device=device)
    target = torch.empty_like(source)
    side = _SIDES[device.type]
    product, copy = matrix_product(device, side), _contender(lambda: target.copy_(source), device)
    return Roofline(2 * side**3 / _least(product), 2 * _BYTES / _least(copy))


def _least(contender: Contender) -> float:
    (samples,) = take_turns({"": contender}, seconds=0.3, min_rounds=5).values()
    return min(samples)


def matrix_product(device: torch.device, side: int = 1024) -> Contender:
    """Of two float32 matrices: 2 * side^3 operations."""
    a, b = torch.rand(2, side, side, device=device)
    return _contender(lambda: a @ b, device)


def _contender(call: Callable[[], Any], device: torch.device) -> Contender:
    return CudaContender([call], capturable=True) if device.type == "cuda" else CpuContender([call])
