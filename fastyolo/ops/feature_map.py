# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the fake kernels of eca, dw_sppf and sppf_pool share."""

from __future__ import annotations

import torch
from torch import Tensor


def concatenated(x: Tensor, stages: int = 1) -> Tensor:
    """x [B, C, H, W] -> [B, stages * C, H, W] in the memory format of x.

    It is torch.cat that the operators follow: channels_last if the strides of x are in that order, even if x is a part
    of a larger map, and contiguous otherwise.
    """
    return torch.cat([x] * stages, 1)
