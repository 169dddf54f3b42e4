# SPDX-License-Identifier: AGPL-3.0-or-later
"""Loads the compiled torch operators, or says how to build them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastyolo
from fastyolo import _C

_DIFFERENTIABLE = ("dfl_decode", "dw_sppf", "eca", "sppf_pool")
_OPERATORS = (
    "batched_nms",
    "decode_nms",
    "multiclass_nms",
    *_DIFFERENTIABLE,
    *(f"{name}_backward" for name in _DIFFERENTIABLE),
)
_registrations = torch.library.Library("fastyolo", "FRAGMENT")  # type: ignore[no-untyped-call]


def load() -> None:
    """Register torch.ops.fastyolo.

    Raises:
        ImportError: the library is missing, cannot be loaded, or is of another version than these Python files.
    """
    # Beside the compiled module: an editable install keeps both in site-packages, away from the sources.
    path = Path(_C.__file__).parent / "libfastyolo_torch.so"
    if not path.exists():
        raise ImportError(
            f"fastyolo's torch operators are not built: {path} is missing; build them with: {fastyolo.BUILD_COMMAND}"
        )
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"fastyolo's torch operators cannot be loaded by torch {torch.__version__} (2.11 or later is needed): "
            f"{error}; build them again with: {fastyolo.BUILD_COMMAND}"
        ) from error
    missing = [name for name in ("_build_version", *_OPERATORS) if not hasattr(torch.ops.fastyolo, name)]
    version = None if missing else torch.ops.fastyolo._build_version()
    if version != fastyolo.__version__:
        found = f"has no operator {missing[0]}" if missing else f"is of version {version}"
        raise ImportError(
            f"fastyolo's torch library is stale: {path} {found}, the Python files are of version "
            f"{fastyolo.__version__}; build it again with: {fastyolo.BUILD_COMMAND}"
        )


def register_without_gradient(name: str) -> None:
    """Makes the outputs of an operator constants to autograd: by default, they would require a gradient that never
    comes."""
    _registrations.impl(name, torch.library.fallthrough_kernel, "Autograd")  # type: ignore[no-untyped-call]


def refuse_second_derivative(name: str) -> None:
    """Answers a second backward pass through an operator with one sentence."""

    def backward_twice(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{name} has a first derivative only, got a second backward pass through it")

    torch.library.register_autograd(f"fastyolo::{name}_backward", backward_twice)
