# SPDX-License-Identifier: AGPL-3.0-or-later
"""Results that outgrow the caches are written past them, line by line; smaller ones of the same channels are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fastyolo import ops

THREADS = 2
CACHES = THREADS << 20  # bytes
SIZE = (61, 67)  # planes begin and end within a cache line
OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dw_sppf": lambda x, weight: ops.dw_sppf(x, weight),
    "sppf_pool": lambda x, _: ops.sppf_pool(x),
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("channels", [288, 284])  # whole lines of each pixel in channels_last, and not
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("operator", OPERATORS)
def test_equals_what_parts_give(
    operator: str, dtype: torch.dtype, layout: torch.memory_format, channels: int, backward: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, channels, 3, 3, generator=generator, dtype=dtype) / 3

    def result(begin: int, end: int) -> Tensor:
        x = whole[:, begin:end].clone(memory_format=layout).requires_grad_(backward)
        out = OPERATORS[operator](x, weight[:, begin:end].contiguous())
        if not backward:
            return out.unflatten(1, (4, end - begin))
        return torch.autograd.grad(out, x, gradient[:, :, begin:end].flatten(1, 2).contiguous(memory_format=layout))[0]

    whole = torch.randn(1, channels, *SIZE, generator=generator, dtype=dtype)
    gradient = torch.randn(1, 4, channels, *SIZE, generator=generator, dtype=dtype)
    large = result(0, channels)
    assert large.nbytes > CACHES
    small = [result(begin, min(begin + 16, channels)) for begin in range(0, channels, 16)]
    assert max(part.nbytes for part in small) < CACHES
    assert torch.equal(large, torch.cat(small, -3))
