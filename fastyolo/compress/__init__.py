# SPDX-License-Identifier: AGPL-3.0-or-later
"""Smaller and faster models that keep the accuracy: pruning, INT8, and what each layer loses by it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastyolo.compress.pruning import prune
    from fastyolo.compress.quantization import quantize
    from fastyolo.compress.quantization.sensitivity import sensitivity

__all__ = ["prune", "quantize", "sensitivity"]

_HOMES = {
    "prune": "fastyolo.compress.pruning",
    "quantize": "fastyolo.compress.quantization",
    "sensitivity": "fastyolo.compress.quantization.sensitivity",  # which loads ONNX Runtime
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
