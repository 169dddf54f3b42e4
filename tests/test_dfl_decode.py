# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import math

import pytest
import torch
from cases import DTYPES, Case, channels_last, cropped, dfl_inputs

from fastyolo.ops import dfl_decode

OPS = ("dfl_decode",)


def test_matches_reference(case: Case, device: str, dtype: torch.dtype) -> None:
    inputs = case.inputs(device, dtype)
    case.check(case.run(inputs), inputs)


def test_gradient_matches_reference(case: Case, device: str, dtype: torch.dtype) -> None:
    case.check_gradients(case.inputs(device, dtype))


@pytest.mark.parametrize("bins", [1, 2, 8, 16, 19])
def test_gradcheck(bins: int) -> None:
    inputs = dfl_inputs(torch.Generator().manual_seed(bins), batch=1, bins=bins, anchors=3)
    logits, points, strides = (x.double() for x in inputs.values())
    for layout in (torch.clone, channels_last):
        assert torch.autograd.gradcheck(dfl_decode, (layout(logits).requires_grad_(), points, strides))


@pytest.mark.parametrize("bins", [2, 16, 17, 256])
def test_even_distribution_is_half_way(device: str, bins: int) -> None:
    points = torch.tensor([[100.0], [200.0]], device=device)
    boxes = dfl_decode(torch.zeros(1, 4 * bins, 1, device=device), points, torch.tensor([2.0], device=device))
    middle = (bins - 1) / 2
    corners = torch.tensor([100 - middle, 200 - middle, 100 + middle, 200 + middle])
    torch.testing.assert_close(boxes[0, :, 0].cpu(), 2 * corners, rtol=1e-6, atol=0)


@pytest.mark.parametrize("offset", [1e4, -1e4, 3e38])
def test_softmax_does_not_overflow(device: str, offset: float) -> None:
    logits = torch.full((1, 64, 3), offset, device=device)
    points, strides = torch.zeros(2, 3, device=device), torch.ones(3, device=device)
    expected = torch.tensor([-7.5, -7.5, 7.5, 7.5]).view(1, 4, 1).expand(1, 4, 3)
    torch.testing.assert_close(dfl_decode(logits, points, strides).cpu(), expected)


def test_one_certain_bin(device: str) -> None:
    logits = torch.full((1, 4, 16, 1), -math.inf, device=device)
    for side, distance in enumerate((3, 0, 15, 7)):
        logits[0, side, distance] = 2.0
    points = torch.tensor([[10.5], [20.5]], device=device)
    boxes = dfl_decode(logits.flatten(1, 2), points, torch.tensor([8.0], device=device))
    assert boxes[0, :, 0].tolist() == [60.0, 164.0, 204.0, 220.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_logit_spoils_its_own_side_only(device: str, value: float) -> None:
    inputs = {name: x.to(device) for name, x in dfl_inputs(torch.Generator().manual_seed(0)).items()}
    clean = dfl_decode(**inputs)
    inputs["logits"][1, 40, 32] = value  # bin 8 of the right side of the last anchor
    spoiled = dfl_decode(**inputs)
    assert spoiled[1, 2, 32].isnan()
    spoiled[1, 2, 32] = clean[1, 2, 32]
    assert torch.equal(spoiled, clean)


def test_gradient_keeps_the_layout_of_the_logits(device: str) -> None:
    """The training layout [B, A, 4R], and a gradient that is not contiguous either."""
    inputs = {name: x.to(device) for name, x in dfl_inputs(torch.Generator().manual_seed(0)).items()}
    logits = channels_last(inputs.pop("logits")).requires_grad_()
    dfl_decode(logits, **inputs).sum().backward()
    assert logits.grad is not None
    assert logits.grad.stride() == logits.stride()
    dense = logits.detach().contiguous().requires_grad_()
    dfl_decode(dense, **inputs).sum().backward()
    torch.testing.assert_close(logits.grad, dense.grad)


def test_gradient_of_a_view(device: str) -> None:
    inputs = {name: x.to(device) for name, x in dfl_inputs(torch.Generator().manual_seed(0)).items()}
    frame = cropped(inputs.pop("logits"))
    expected = frame.contiguous().requires_grad_()
    actual = frame.requires_grad_()
    for logits in (actual, expected):
        dfl_decode(logits, **inputs).square().sum().backward()
    torch.testing.assert_close(actual.grad, expected.grad)


def test_strided_grid(device: str) -> None:
    """Anchor points [A, 2] as ultralytics makes them, transposed, and strides that are one value."""
    inputs = {name: x.to(device) for name, x in dfl_inputs(torch.Generator().manual_seed(0)).items()}
    inputs["strides"] = torch.full_like(inputs["strides"], 8.0)
    expected = dfl_decode(**inputs)
    points = inputs["anchor_points"].T.contiguous().T
    strides = torch.tensor(8.0, device=device).expand(33)
    assert torch.equal(dfl_decode(inputs["logits"], points, strides), expected)


def test_grid_keeps_its_precision(device: str) -> None:
    """A centre at 160.5 cells does not exist in bfloat16; only the corner in pixels is rounded to it."""
    points = torch.tensor([[160.5], [130.5]], device=device)
    strides = torch.tensor([2.0], device=device)
    for dtype in DTYPES["dfl_decode"][device]:
        points, strides = (x.double() if dtype == torch.float64 else x for x in (points, strides))
        boxes = dfl_decode(torch.zeros(1, 4, 1, dtype=dtype, device=device), points, strides)
        assert torch.equal(boxes[0, :2, 0].cpu(), torch.tensor([321.0, 261.0]).to(dtype))


@pytest.mark.parametrize("name", ["anchor_points", "strides"])
def test_gradient_of_the_grid_is_refused(device: str, name: str) -> None:
    inputs = {name: x.to(device) for name, x in dfl_inputs(torch.Generator().manual_seed(0)).items()}
    inputs[name].requires_grad_()
    boxes = dfl_decode(**inputs)
    with pytest.raises(RuntimeError, match="must not require a gradient"):
        boxes.sum().backward()
