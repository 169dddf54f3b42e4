# SPDX-License-Identifier: AGPL-3.0-or-later
"""Training: settings and presets, the losses of distillation, the report of the loss terms."""

from fastyolo.train.settings import Settings

__all__ = ["Settings"]
