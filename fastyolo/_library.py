# SPDX-License-Identifier: AGPL-3.0-or-later
"""Loads the compiled torch operators, or says how to build them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
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
_below_autograd = torch._C._AutoDispatchBelowAutograd


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


def register_autograd(
    name: str, backward: Callable[[Any, Tensor], tuple[Tensor | None, ...]], save: Callable[[Any, Tensor], None]
) -> None:
    """Differentiates an operator of one output, whose tensors are its positional arguments.

    It does what torch.library.register_autograd does in less time, which counts on small maps (bench/NOTES.md): it
    knows the kind of schema, and the backward operator is called below autograd unless a second derivative is asked
    for, which is answered with one sentence.

    Args:
        name: of the operator; that of its backward operator is `name`_backward.
        backward: from the context and the gradient of the output to those of the tensors, trailing ones of arguments
            that were left out included.
        save: keeps in the context, which has the inputs as `tensors` and the keyword arguments as `settings`, what
            `backward` needs.
    """
    operator = getattr(torch.ops.fastyolo, name).default
    arguments = operator._schema.arguments
    positional = sum(not argument.kwarg_only for argument in arguments)
    defaults = {argument.name: argument.default_value for argument in arguments if argument.kwarg_only}

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, settings: dict[str, Any], *tensors: Tensor | None) -> Tensor:
            with _below_autograd():
                output: Tensor = operator(*tensors, **settings)
            ctx.tensors = tensors
            ctx.settings = settings
            save(ctx, output)
            del ctx.tensors
            return output

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            with nullcontext() if torch.is_grad_enabled() else _below_autograd():
                return None, *backward(ctx, grad)

    def differentiable(*tensors: Tensor | None, **settings: Any) -> Any:
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
            # The dispatcher leaves out what is equal to its default.
            tensors += (None,) * (positional - len(tensors))
            return Differentiable.apply({**defaults, **settings}, *tensors)
        with _below_autograd():
            return operator(*tensors, **settings)

    def backward_twice(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{name} has a first derivative only, got a second backward pass through it")

    _registrations.impl(name, differentiable, "Autograd")  # type: ignore[no-untyped-call]
    torch.library.register_autograd(f"fastyolo::{name}_backward", backward_twice)
