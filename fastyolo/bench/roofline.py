# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a machine can do at most: the two limits of the roofline model (https://doi.org/10.1145/1498765.1498785)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastyolo.bench.timing import Contender, CpuContender, CudaContender, take_turns

# As small as reaches the rate, so that among many samples some are not disturbed.
_SIDES = {"cpu": 512, "cuda": 4096}  # of the matrices
_CHANNELS, _SIZE = 128, 64  # of the convolution
_BYTES = 1 << 28  # of the copy, more than any cache holds


@dataclass(frozen=True)
class Roofline:
    """Measured limits.

    Attributes:
        flops: floating-point operations per second in float32, of whichever is faster in torch here: a product of
            matrices, or on a CPU a convolution.
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
    return Roofline(_flops(device), 2 * _BYTES / _least(_contender(lambda: target.copy_(source), device)))


def _flops(device: torch.device) -> float:
    side = _SIDES[device.type]
    rate = 2 * side**3 / _least(matrix_product(device, side))
    if device.type == "cuda":  # where cuDNN may convolve with fewer operations than are counted
        return rate
    # Products are MKL's, which leaves processors that are not Intel's at AVX2; convolutions are oneDNN's.
    weight = torch.rand(_CHANNELS, _CHANNELS, 3, 3).contiguous(memory_format=torch.channels_last)
    x = torch.rand(1, _CHANNELS, _SIZE, _SIZE).contiguous(memory_format=torch.channels_last)
    convolution = CpuContender([lambda: torch.nn.functional.conv2d(x, weight, padding=1)])
    return max(rate, 2 * weight.numel() * _SIZE**2 / _least(convolution))


def _least(contender: Contender) -> float:
    (samples,) = take_turns({"": contender}, seconds=0.3, min_rounds=5).values()
    return min(samples)


def matrix_product(device: torch.device, side: int = 1024) -> Contender:
    """Of two float32 matrices: 2 * side^3 operations."""
    a, b = torch.rand(2, side, side, device=device)
    return _contender(lambda: a @ b, device)


def _contender(call: Callable[[], Any], device: torch.device) -> Contender:
    return CudaContender([call], capturable=True) if device.type == "cuda" else CpuContender([call])
