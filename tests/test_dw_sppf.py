# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import DTYPES, Case, channels_last, dw_sppf_inputs, in_float64
from torch import Tensor

from fastyolo import reference
from fastyolo.ops import dw_sppf

OPS = ("dw_sppf",)


def test_matches_reference(case: Case, device: str, dtype: torch.dtype) -> None:
    inputs = case.inputs(device, dtype)
    case.check(case.run(inputs), inputs)


def test_gradients_match_reference(case: Case, device: str, dtype: torch.dtype) -> None:
    case.check_gradients(case.inputs(device, dtype))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["identity", "silu"])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_gradcheck(kernel: int, dilation: int, activation: str, bias: bool) -> None:
    inputs = dw_sppf_inputs(
        torch.Generator().manual_seed(0),
        batch=1,
        channels=2,
        size=(3, 3),
        kernel=kernel,
        dilation=dilation,
        activation=activation,
        bias=bias,
    )
    x, weight, shift = (None if value is None else value.double().requires_grad_() for value in [*inputs.values()][:3])
    for layout in (torch.clone, channels_last):
        assert torch.autograd.gradcheck(
            lambda *given: dw_sppf(*given, dilation=dilation, activation=activation), (layout(x), weight, shift)
        )


def test_defaults(device: str) -> None:
    x, weight = torch.randn(1, 2, 9, 9, device=device), torch.randn(3, 2, 3, 3, device=device)
    assert torch.equal(dw_sppf(x, weight), dw_sppf(x, weight, None, dilation=2, activation="identity"))


@pytest.mark.parametrize(("kernel", "dilation", "fields"), [(3, 2, (5, 9, 13)), (5, 1, (5, 9, 13)), (3, 1, (3, 5, 7))])
def test_receptive_fields(device: str, kernel: int, dilation: int, fields: tuple[int, int, int]) -> None:
    """One pixel spreads over the fields of SPPF, to all sides alike."""
    x = torch.zeros(1, 1, 17, 17, device=device)
    x[0, 0, 8, 8] = 1
    weight = torch.ones(3, 1, kernel, kernel, device=device)
    for stage, field in zip(dw_sppf(x, weight, dilation=dilation)[0, 1:], fields, strict=True):
        rows, columns = stage.nonzero().unbind(1)
        for positions in (rows, columns):
            assert (positions.min().item(), positions.max().item()) == (8 - field // 2, 8 + field // 2)


def test_padding_is_of_zeros_and_not_of_the_bias(device: str) -> None:
    """A sum over 3 x 3 of ones in each stage, and a bias of 1: corners see four pixels."""
    x, weight = torch.zeros(1, 1, 2, 2, device=device), torch.ones(3, 1, 3, 3, device=device)
    out = dw_sppf(x, weight, torch.ones(3, 1, device=device), dilation=1)
    assert out.flatten(2)[0].tolist() == [[0.0] * 4, [1.0] * 4, [5.0] * 4, [21.0] * 4]


def test_stages_hand_over_unrounded_values(device: str) -> None:
    """Each value of the result is rounded once: rounding every stage would add up."""
    case = dw_sppf_inputs(torch.Generator().manual_seed(0), channels=8, size=(19, 19), activation="identity")
    for dtype in DTYPES["dw_sppf"][device]:
        inputs = {
            name: value.to(device, dtype) if isinstance(value, torch.Tensor) else value for name, value in case.items()
        }
        on_host = {
            name: value.cpu() if isinstance(value, torch.Tensor) else value
            for name, value in in_float64(inputs).items()
        }
        expected = reference.dw_sppf(**on_host)
        half_ulp = max(torch.finfo(dtype).eps / 2, 1e-6)
        torch.testing.assert_close(dw_sppf(**inputs).cpu().double(), expected, rtol=1.01 * half_ulp, atol=1e-5)


def test_a_nan_stays_in_its_receptive_field(device: str) -> None:
    inputs = dw_sppf_inputs(torch.Generator().manual_seed(0), size=(20, 20), activation="relu")
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    clean = dw_sppf(**inputs)
    inputs["weight"] += (inputs["weight"] == 0) * 0.5  # so that no tap hides it
    inputs["x"][1, 2, 9, 9] = float("nan")
    spoiled = dw_sppf(**inputs)
    assert spoiled.isnan().sum().item() == 1 + 9 + 25 + 49
    assert torch.equal(spoiled[0].isnan(), torch.zeros_like(clean[0], dtype=torch.bool))


def test_an_infinity_spoils_only_the_taps_that_it_meets(device: str) -> None:
    """At the right edge of a width that is no multiple of a vector: what lies beyond it has no product with it."""
    x = torch.randn(1, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    x[0, 0, 2, 5] = float("inf")
    weight = torch.ones(3, 1, 3, 3)

    def gradient(function: Callable[..., Tensor], dtype: torch.dtype, device: str) -> Tensor:
        leaf = weight.to(device, dtype).requires_grad_()
        stages = function(x.to(device, dtype), leaf)
        (grad,) = torch.autograd.grad(stages[:, :2].sum(), leaf)  # of the first stage: the others meet infinities
        return grad[0].double().cpu()

    expected = gradient(reference.dw_sppf, torch.float64, "cpu")
    assert expected.isfinite().sum() == 3  # the column of taps to the left
    torch.testing.assert_close(gradient(dw_sppf, torch.float32, device), expected, rtol=1e-5, atol=1e-5)
