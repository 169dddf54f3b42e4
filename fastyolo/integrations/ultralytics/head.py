# SPDX-License-Identifier: AGPL-3.0-or-later
"""The head of the light model."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn
from ultralytics.nn.modules.head import Detect

from fastyolo.nn import DSConv
from fastyolo.nn.gelan import round_up


class LightDetect(Detect):
    """ultralytics' Detect head with depthwise separable branches of settable width.

    On every level, a branch is two 3x3 `DSConv` and a 1x1 convolution. With c0 channels on the first level, the box
    branches have width * max(c0 / 2, 2 * reg_max) channels and the class branches width * max(3 / 4 * c0, min(nc, 64)),
    each rounded up to a multiple of 8. All that follows the branches is Detect's.

    In a model file its arguments are `[nc, width]`, the levels those that it comes from, any of P2 to P5, and
    `reg_max` and `end2end` stand beside `nc`, as for Detect.

    Args:
        nc: number of classes.
        width: of the branches, as a multiple.
        reg_max: bins of each distance; 1: distances without a distribution.
        end2end: add one-to-one branches, for detection without NMS.
        ch: channels of each level.

    Raises:
        ValueError: width is not above 0, or ch is empty.
    """

    def __init__(
        self,
        nc: int = 80,
        width: float = 1.0,
        reg_max: int = 16,
        end2end: bool = False,
        ch: Sequence[int] = (),
    ) -> None:
        if not ch:
            raise ValueError(
                "ch must hold the channels of at least one level, got none; in a model file, LightDetect's arguments "
                "are [nc, width]"
            )
        if width <= 0:
            raise ValueError(f"width must be above 0, got {width}")
        super().__init__(nc, reg_max, ch=[1] * len(ch))  # its branches go, so they may be of any width
        box_width = round_up(width * max(ch[0] / 2, 2 * reg_max))
        cls_width = round_up(width * max(0.75 * ch[0], min(nc, 64)))
        self.cv2 = nn.ModuleList(_branch(c, box_width, 4 * reg_max) for c in ch)
        self.cv3 = nn.ModuleList(_branch(c, cls_width, nc) for c in ch)
        if end2end:
            self.one2one_cv2 = copy.deepcopy(self.cv2)
            self.one2one_cv3 = copy.deepcopy(self.cv3)


def _branch(channels: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(DSConv(channels, width), DSConv(width, width), nn.Conv2d(width, outputs, 1))
