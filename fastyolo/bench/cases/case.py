# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a case of the benchmark is, which of them to measure, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import _dynamo as dynamo

from fastyolo.bench.timing import Call

OURS = "fastyolo"

_TOLERANCES = {  # of the largest value
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}

T = TypeVar("T")


class DisagreementError(Exception):
    """Two implementations gave different answers to the same question: their times would mean nothing."""


@dataclass(frozen=True)
class Choice:
    """Which cases of the operators to measure; what is empty stays as it is by default.

    Attributes:
        scales: of YOLOv8, whose widths the feature maps have.
        batches: images per call.
        dtypes: of the inputs.
        quick: one of each kind, without what takes long.
    """

    scales: Sequence[str] = ()
    batches: Sequence[int] = ()
    dtypes: Sequence[torch.dtype] = ()
    quick: bool = False

    def pick(self, chosen: Sequence[T], default: Sequence[T]) -> Sequence[T]:
        """What was chosen, else the default, of which a quick run takes the first."""
        return chosen or (default[:1] if self.quick else default)


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        calls: name of a contender -> its calls, one for each set of inputs. The first contender is fastyolo.
        capturable: contenders that a CUDA graph can hold, since they do not wait for the device.
        bytes_moved: that any implementation has to read and write, in one call.
        check: raises DisagreementError.
        facts: what else the inputs are.
        flops: that any implementation has to compute, an exponential as one; 0 for operators without arithmetic, as NMS
            and pooling, whose work is comparisons.
    """

    op: str
    name: str
    calls: Mapping[str, Sequence[Call]]
    capturable: frozenset[str]
    bytes_moved: int
    check: Callable[[], None]
    facts: Mapping[str, Any] = field(default_factory=dict)
    flops: int = 0


def with_backward(forward: Call, leaves: Sequence[Tensor], gradient: Tensor) -> Call:
    """A call of `forward` and of its backward pass, which returns the gradients of the leaves."""
    return lambda: torch.autograd.grad(forward(), leaves, gradient)


def compiled_by_torch(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` for fixed shapes, in one graph."""
    # One function serves many cases; beyond the limit it would run eagerly under another name.
    dynamo.config.recompile_limit = dynamo.config.accumulated_recompile_limit = 1 << 16
    return torch.compile(function, dynamic=False, fullgraph=True)


def require_agreement(what: str, answers: Mapping[str, Any]) -> None:
    """Compare the tensors, or sequences of tensors, that contenders gave with those of the first contender.

    Raises:
        DisagreementError: they differ by more than rounding.
    """
    (ours, expected), *others = answers.items()
    for name, answer in others:
        for a, b in zip(_tensors(expected), _tensors(answer), strict=True):
            error, scale = float((a - b).abs().max()), float(b.abs().max())
            if not error <= _TOLERANCES[b.dtype] * scale:
                raise DisagreementError(f"{what}: {ours} and {name} differ by {error:.2g}, of at most {scale:.2g}")


def _tensors(answer: Any) -> Sequence[Tensor]:
    return (answer,) if isinstance(answer, Tensor) else answer


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
