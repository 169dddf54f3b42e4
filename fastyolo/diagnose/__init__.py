# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is wrong, and where: `verify` compares an exported model with its checkpoint, `profile` says what takes time."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastyolo.diagnose import parity, profile
    from fastyolo.diagnose.parity import IncomparableError, Report, Stage, verify

__all__ = ["IncomparableError", "Report", "Stage", "parity", "profile", "verify"]


def __getattr__(name: str) -> Any:
    if name in ("parity", "profile"):  # these load ultralytics
        return importlib.import_module(f"fastyolo.diagnose.{name}")
    if name in __all__:
        return getattr(importlib.import_module("fastyolo.diagnose.parity"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
