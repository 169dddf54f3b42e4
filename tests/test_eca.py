# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import pytest
import torch
from cases import DTYPES, TOLERANCE, Case, assert_close, channels_last, eca_inputs

from fastyolo import reference
from fastyolo.ops import eca

OPS = ("eca",)


def test_matches_reference(case: Case, device: str, dtype: torch.dtype) -> None:
    inputs = case.inputs(device, dtype)
    case.check(case.run(inputs), inputs)


def test_gradients_match_reference(case: Case, device: str, dtype: torch.dtype) -> None:
    case.check_gradients(case.inputs(device, dtype))


@pytest.mark.parametrize("taps", [1, 3, 9])
def test_gradcheck(taps: int) -> None:
    inputs = eca_inputs(torch.Generator().manual_seed(taps), channels=5, size=(3, 2), taps=taps)
    x, weight = (value.double().requires_grad_() for value in inputs.values())
    for layout in (torch.clone, channels_last):
        assert torch.autograd.gradcheck(eca, (layout(x), weight))


def test_weight_of_zeros_halves(device: str) -> None:
    x = torch.randn(2, 5, 3, 4, device=device)
    assert torch.equal(eca(x, torch.zeros(3, device=device)), x / 2)


def test_strided_weight(device: str) -> None:
    x, weight = (value.to(device) for value in eca_inputs(torch.Generator().manual_seed(0)).values())
    strided = weight.repeat_interleave(2)[::2]
    assert not strided.is_contiguous()
    assert torch.equal(eca(x, strided), eca(x, weight))


def test_attention_looks_at_the_neighbours(device: str) -> None:
    """weight[0] is of the channel before; beyond the first and the last channel there is nothing."""
    x = torch.tensor([0.0, 1.0, 3.0], device=device).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    weight = torch.tensor([10.0, 1.0, -1.0], device=device)
    logits = torch.tensor([0.0 - 1.0, 1.0 - 3.0, 10.0 + 3.0])
    expected = torch.tensor([0.0, 1.0, 3.0]) * logits.sigmoid()
    torch.testing.assert_close(eca(x, weight)[0, :, 1, 1].cpu(), expected)


@pytest.mark.parametrize("value", [3e4, -3e4])
def test_certain_attention(device: str, value: float) -> None:
    """No overflow in float16's sum, and none in the exponential."""
    for dtype in DTYPES["eca"][device]:
        x = torch.full((1, 3, 20, 20), value, dtype=dtype, device=device)
        y = eca(x, torch.tensor([0.0, 1.0, 0.0], dtype=dtype, device=device))
        torch.testing.assert_close(y, x if value > 0 else torch.zeros_like(x), rtol=0, atol=1e-30)


def test_a_nan_spoils_its_neighbours_of_the_same_image_only(device: str) -> None:
    x, weight = (value.to(device) for value in eca_inputs(torch.Generator().manual_seed(0), channels=8).values())
    clean = eca(x, weight)
    x[1, 4, 6, 8] = float("nan")
    spoiled = eca(x, weight)
    assert spoiled[1, 3:6].isnan().all()
    spoiled[1, 3:6] = clean[1, 3:6]
    assert torch.equal(spoiled, clean)


def test_mean_of_an_offset(device: str) -> None:
    """The sum over a large map loses nothing that counts."""
    x = 1000 + torch.randn(1, 2, 160, 160, generator=torch.Generator().manual_seed(0)).to(device)
    weight = torch.tensor([1e-3], device=device)
    assert_close(eca(x, weight).cpu(), reference.eca(x.cpu().double(), weight.cpu().double()), TOLERANCE[torch.float32])


def test_half_precision_rounds_once(device: str) -> None:
    """Only the result is rounded, neither the mean nor the attention."""
    for dtype in DTYPES["eca"][device]:
        x, weight = (value.to(device, dtype) for value in eca_inputs(torch.Generator().manual_seed(0)).values())
        expected = reference.eca(x.cpu().double(), weight.cpu().double())
        half_ulp = max(torch.finfo(dtype).eps / 2, 1e-6)
        torch.testing.assert_close(eca(x, weight).cpu().double(), expected, rtol=1.01 * half_ulp, atol=1e-6)
