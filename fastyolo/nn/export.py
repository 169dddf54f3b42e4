# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which operators a module calls: fastyolo's own, or torch's for graphs that leave torch."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import nn

from fastyolo import ops
from fastyolo.nn import standard


class Exportable(nn.Module):
    """A module that `torch.onnx.export` and `torch.jit.trace` turn into standard operators.

    `torch.compile` and `torch.export` keep fastyolo's operators. Programs of `torch.export` for runtimes that do not
    know these (ExecuTorch, LiteRT) need `export`.
    """

    export: bool = False
    """True: standard operators always. The name is that of ultralytics' heads."""
    operators: ModuleType | None = None
    """What it calls instead of those two, with their signatures."""

    def _operators(self) -> ModuleType:
        if self.operators is not None:
            return self.operators
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        return standard if self.export or tracing or torch.onnx.is_in_onnx_export() else ops
