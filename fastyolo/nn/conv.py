# SPDX-License-Identifier: AGPL-3.0-or-later
"""Convolutions with batch normalisation and SiLU, whole and depthwise separable."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Conv(nn.Module):
    """x [B, c1, H, W] -> SiLU(batch_norm(convolution of x)) [B, c2, ceil(H / s), ceil(W / s)].

    Its parameters have the names that ultralytics' Conv gives them, and its batch normalisation has the constants that
    ultralytics sets, so weights can be passed from one to the other.

    Weights start from a normal distribution of standard deviation 0.02, ConvNeXt's (https://arxiv.org/abs/2201.03545),
    and not from torch's, which is wider the fewer inputs a filter has. The normalisation behind it makes the size of
    the weights meaningless to the result, but not to training: Adam moves each weight by about the learning rate,
    however large it is, so the wide weights of depthwise, grouped and narrow convolutions turn several times more
    slowly than those of the dense ones that learning rates are chosen for.

    Args:
        c1: channels of x.
        c2: channels of the result.
        k: side of the filters, odd.
        s: stride.
        groups: groups of channels that are convolved apart from each other, a divisor of c1 and c2.
        act: False leaves the SiLU out.

    Raises:
        ValueError: k is even, or groups does not divide c1 and c2.
    """

    bn: nn.Module
    act: nn.Module

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, groups: int = 1, act: bool = True) -> None:
        super().__init__()
        if k % 2 == 0:
            raise ValueError(f"k must be odd, got {k}")
        if groups < 1 or c1 % groups or c2 % groups:
            raise ValueError(f"groups must divide c1 and c2, got {groups} for {c1} and {c2} channels")
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=groups, bias=False)
        nn.init.normal_(self.conv.weight, std=0.02)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU() if act else nn.Identity()

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


class DSConv(nn.Module):
    """x [B, c1, H, W] -> [B, c2, ceil(H / s), ceil(W / s)]: a depthwise separable convolution.

    A depthwise k x k convolution of stride s and a 1x1 convolution to c2 channels, with batch normalisation after both.
    SiLU comes at the end only: Xception (https://arxiv.org/abs/1610.02357) learnt faster and better without an
    activation between the two.

    Args:
        c1: channels of x.
        c2: channels of the result.
        k: side of the depthwise filters, odd.
        s: stride.
    """

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1) -> None:
        super().__init__()
        self.depthwise = Conv(c1, c1, k, s, groups=c1, act=False)
        self.pointwise = Conv(c1, c2)

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution that x enters: ultralytics reads from it how many channels a branch of a head takes."""
        return self.depthwise.conv

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(x))
        return y
