# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import pytest
import torch
from cases import Case, as_it_is, channels_last
from torch import Tensor

from fastyolo import reference
from fastyolo.ops import sppf_pool

OPS = ("sppf_pool",)


def test_matches_reference(case: Case, device: str, dtype: torch.dtype) -> None:
    inputs = case.inputs(device, dtype)
    case.check(case.run(inputs), inputs)


def test_gradient_matches_reference(case: Case, device: str, dtype: torch.dtype) -> None:
    case.check_gradients(case.inputs(device, dtype))


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_gradcheck(kernel: int) -> None:
    # Distinct values, farther apart than the steps of the finite differences.
    x = torch.randperm(24, generator=torch.Generator().manual_seed(0)).view(1, 2, 3, 4).double()
    for layout in (as_it_is, channels_last):
        assert torch.autograd.gradcheck(lambda x: sppf_pool(x, kernel_size=kernel), layout(x).requires_grad_())


def test_default_kernel(device: str) -> None:
    x = torch.randn(1, 2, 9, 9, device=device)
    assert torch.equal(sppf_pool(x), sppf_pool(x, kernel_size=5))


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("kernel", [1, 5])
def test_empty_maps_in_channels_last(size: tuple[int, int], kernel: int) -> None:
    x = torch.empty_strided((1, 16, *size), (256, 1, 64, 16))
    assert sppf_pool(x, kernel_size=kernel).shape == (1, 64, *size)


def jacobian(function: object, x: Tensor) -> Tensor:
    """d function(x)[0, o] / d x[0, i] as [outputs, pixels]: each image of a batch gives one output's gradient."""
    outputs = 4 * x.numel()
    batch = x.expand(outputs, *x.shape[1:]).requires_grad_()
    result = function(batch)
    (grad,) = torch.autograd.grad(result, batch, torch.eye(outputs).to(x).view(result.shape))
    return grad.flatten(1).cpu()


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("values", ["distinct", "tied", "constant", "zeros", "-inf", "nan", "all-nan"])
def test_every_output_chooses_the_pixel_that_torch_chooses(device: str, values: str, kernel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, 5, 6)
    x = {
        "distinct": torch.randperm(30, generator=generator).view(shape).float(),
        "tied": torch.randint(3, shape, generator=generator).float(),
        "constant": torch.ones(shape),
        "zeros": torch.zeros(shape) * torch.randn(shape, generator=generator).sign(),  # of both signs
        "-inf": torch.full(shape, -torch.inf),
        "nan": torch.where(torch.rand(shape, generator=generator) < 0.2, torch.nan, 1.0),
        "all-nan": torch.full(shape, torch.nan),
    }[values]
    expected = jacobian(lambda x: reference.sppf_pool(x, kernel_size=kernel), x)
    assert (expected.count_nonzero(1) == 1).all()
    assert torch.equal(jacobian(lambda x: sppf_pool(x, kernel_size=kernel), x.to(device)), expected)


def test_windows_of_one_pixel_copy(device: str) -> None:
    x = torch.randn(2, 3, 5, 4, device=device)
    assert torch.equal(sppf_pool(x, kernel_size=1), torch.cat([x] * 4, 1))


def test_windows_wider_than_the_map(device: str) -> None:
    x = torch.randn(2, 3, 4, 5, device=device)
    largest = x.amax((2, 3), keepdim=True).expand_as(x)
    assert torch.equal(sppf_pool(x, kernel_size=9), torch.cat([x, largest, largest, largest], 1))
