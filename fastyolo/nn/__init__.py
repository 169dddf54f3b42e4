# SPDX-License-Identifier: AGPL-3.0-or-later
"""Building blocks of detectors as torch modules, on fastyolo's operators."""

from fastyolo.nn.conv import Conv, DSConv
from fastyolo.nn.dw_sppf import DWSPPF
from fastyolo.nn.eca import ECA
from fastyolo.nn.gelan import GELAN
from fastyolo.nn.pruned import PruningNote
from fastyolo.nn.split import SplitC2f, SplitC2PSA
from fastyolo.nn.sppf import FusedSPPF

__all__ = ["DWSPPF", "ECA", "GELAN", "Conv", "DSConv", "FusedSPPF", "PruningNote", "SplitC2PSA", "SplitC2f"]
