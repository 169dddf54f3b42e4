# SPDX-License-Identifier: AGPL-3.0-or-later
"""Smaller and faster models that keep the accuracy: pruning, INT8, what each layer loses by it, and the whole path."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastyolo.compress.pipeline import compress
    from fastyolo.compress.pruning import prune
    from fastyolo.compress.quantization import quantize
    from fastyolo.compress.quantization.sensitivity import sensitivity

__all__ = ["compress", "prune", "quantize", "sensitivity"]

_HOMES = {
    "compress": "fastyolo.compress.pipeline",
    "prune": "fastyolo.compress.pruning",
    "quantize": "fastyolo.compress.quantization",
    "sensitivity": "fastyolo.compress.quantization.sensitivity",  # which loads ONNX Runtime
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
