# SPDX-License-Identifier: AGPL-3.0-or-later
"""Training: settings and presets, the trainer, the losses of distillation, the report of the loss terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastyolo.train.report import LossReport, LossTerm, loss_report
from fastyolo.train.settings import Settings

if TYPE_CHECKING:
    from fastyolo.integrations.ultralytics.trainer import Trainer

__all__ = ["LossReport", "LossTerm", "Settings", "Trainer", "loss_report"]


def __getattr__(name: str) -> Any:
    if name == "Trainer":  # loads ultralytics
        from fastyolo.integrations.ultralytics.trainer import Trainer

        return Trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
