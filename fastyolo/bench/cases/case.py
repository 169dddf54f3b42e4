# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a case of the benchmark is, and what the cases share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastyolo.bench.timing import Call

OURS = "fastyolo"

_TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest value


class DisagreementError(Exception):
    """Two implementations gave different answers to the same question: their times would mean nothing."""


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        calls: name of a contender -> its calls, one for each set of inputs. The first contender is fastyolo.
        capturable: contenders that a CUDA graph can hold, since they do not wait for the device.
        bytes_moved: that any implementation has to read and write, in one call.
        check: raises DisagreementError.
        facts: what else the inputs are.
    """

    op: str
    name: str
    calls: Mapping[str, Sequence[Call]]
    capturable: frozenset[str]
    bytes_moved: int
    check: Callable[[], None]
    facts: Mapping[str, Any] = field(default_factory=dict)


def with_backward(forward: Call, leaves: Sequence[Tensor], gradient: Tensor) -> Call:
    """A call of `forward` and of its backward pass, which returns the gradients of the leaves."""
    return lambda: torch.autograd.grad(forward(), leaves, gradient)


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
