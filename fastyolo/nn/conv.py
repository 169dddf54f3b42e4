# SPDX-License-Identifier: AGPL-3.0-or-later
"""1x1 convolution, batch normalisation and SiLU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class PointwiseConv(nn.Module):
    """x [B, c1, H, W] -> SiLU(batch_norm(1x1 convolution of x)) [B, c2, H, W].

    Its parameters have the names that ultralytics' Conv gives them, and its batch normalisation has the constants that
    ultralytics sets, so weights can be passed from one to the other.
    """

    bn: nn.Module

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, 1, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y

    def fuse(self) -> None:
        """Fold the normalisation into the convolution, which gets a bias. Once is enough.

        Raises:
            RuntimeError: the module is in training mode, in which the statistics are those of each batch.
        """
        if self.training:
            raise RuntimeError("fuse() needs a module in evaluation mode, got one in training mode; call eval() first")
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.bn)
            self.bn = nn.Identity()
