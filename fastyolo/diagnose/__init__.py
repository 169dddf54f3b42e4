# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is wrong, and where: `verify` compares an exported model with its checkpoint."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastyolo.diagnose import parity
    from fastyolo.diagnose.parity import IncomparableError, Report, Stage, verify

__all__ = ["IncomparableError", "Report", "Stage", "parity", "verify"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # loads ultralytics
        module = importlib.import_module("fastyolo.diagnose.parity")
        return module if name == "parity" else getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
