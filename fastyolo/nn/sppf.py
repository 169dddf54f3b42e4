# SPDX-License-Identifier: AGPL-3.0-or-later
"""ultralytics' SPPF with its pools and concatenation in one operator."""

from __future__ import annotations

from torch import Tensor, nn

from fastyolo.nn.export import Exportable

_STAGES = 3
_MAX_KERNEL = 15


class FusedSPPF(Exportable):
    """x [B, c1, H, W] -> [B, c2, H, W]: what the SPPF block that it is made from computes, by fastyolo.ops.sppf_pool.

    Spatial pyramid pooling as in YOLOv5 to YOLO26: a 1x1 convolution, three chained max pools, the concatenation of
    their input and outputs, and another 1x1 convolution, in some models with a residual connection around all of it.

    The block's sub-modules, hooks and attributes are shared, not copied: weights and names in the state_dict stay as
    they are, and a module that is replaced in one is replaced in both.

    Args:
        sppf: a block with SPPF's attributes `cv1`, `cv2` and `m` (its max pool), and its optional `n` and `add`.

    Raises:
        ValueError: the block's pools are others than those of fastyolo.ops.sppf_pool.
    """

    cv1: nn.Module
    cv2: nn.Module
    m: nn.MaxPool2d

    def __init__(self, sppf: nn.Module) -> None:
        super().__init__()
        if reason := why_not_fused(sppf):
            raise ValueError(f"sppf must be a block of three max pools that keep the size, but {reason}")
        vars(self).update(vars(sppf))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(self._operators().sppf_pool(self.cv1(x), kernel_size=self.m.kernel_size))
        return y + x if getattr(self, "add", False) else y  # blocks of older checkpoints have no such attribute


def why_not_fused(sppf: nn.Module) -> str | None:
    """The reason why `FusedSPPF` cannot take the place of an SPPF block, as a clause, or None."""
    if "forward" in vars(sppf):
        return "its forward is replaced"
    if (stages := getattr(sppf, "n", _STAGES)) != _STAGES:
        return f"it has {stages} of them"
    pool = getattr(sppf, "m", None)
    if type(pool) is not nn.MaxPool2d:
        return f"it pools with {type(pool).__name__}"
    kernel = pool.kernel_size
    if not isinstance(kernel, int) or kernel not in range(1, _MAX_KERNEL + 1, 2):
        return f"its kernel of {kernel} is not odd and at most {_MAX_KERNEL}"
    settings = (pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices)
    if settings != (1, kernel // 2, 1, False, False):
        return f"its pool is {pool}"
    return None
