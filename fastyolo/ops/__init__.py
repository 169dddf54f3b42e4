# SPDX-License-Identifier: AGPL-3.0-or-later
"""The operators, as torch functions. Importing this module registers torch.ops.fastyolo."""

from fastyolo import _library

_library.load()

from fastyolo.ops.batched_nms import batched_nms, multiclass_nms, nms  # noqa: E402
from fastyolo.ops.decode_nms import decode_nms  # noqa: E402
from fastyolo.ops.detections import Detections  # noqa: E402
from fastyolo.ops.dfl_decode import dfl_decode  # noqa: E402
from fastyolo.ops.dw_sppf import dw_sppf  # noqa: E402
from fastyolo.ops.eca import eca  # noqa: E402
from fastyolo.ops.sppf_pool import sppf_pool  # noqa: E402

__all__ = [
    "Detections",
    "batched_nms",
    "decode_nms",
    "dfl_decode",
    "dw_sppf",
    "eca",
    "multiclass_nms",
    "nms",
    "sppf_pool",
]
