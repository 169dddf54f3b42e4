# SPDX-License-Identifier: AGPL-3.0-or-later
from collections.abc import Sequence
from typing import TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

_Floats: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]
_Float32: TypeAlias = npt.NDArray[np.float32]
_Int32: TypeAlias = npt.NDArray[np.int32]
_Int64: TypeAlias = npt.NDArray[np.int64]

# num_dets [B], boxes [B, max_det, 4], scores [B, max_det], labels [B, max_det], indices [B, max_det]
_Detections: TypeAlias = tuple[_Int32, _Float32, _Float32, _Int32, _Int32]

class _BuildInfo(TypedDict):
    version: str
    cpu_isa: str  # in use
    cpu_isas: tuple[str, ...]  # compiled
    cuda: bool
    cuda_version: str | None
    cuda_architectures: tuple[str, ...]
    compiler: str
    build_type: str

__version__: str

def decode_nms(
    box_maps: Sequence[_Floats],
    cls_maps: Sequence[_Floats],
    strides: Sequence[float],
    *,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.7,
    max_det: int = 300,
    max_candidates: int = 30000,
    multi_label: bool = False,
    class_agnostic: bool = False,
    classes: Sequence[int] | None = None,
) -> _Detections: ...
def multiclass_nms(
    boxes: _Floats,
    scores: _Floats,
    *,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.7,
    max_det: int = 300,
    max_candidates: int = 30000,
    multi_label: bool = False,
    class_agnostic: bool = False,
    classes: Sequence[int] | None = None,
) -> _Detections: ...
def batched_nms(
    boxes: _Floats,
    scores: _Floats,
    idxs: npt.NDArray[np.integer] | None,
    iou_threshold: float,
    max_det: int | None = None,
) -> _Int64: ...
def nms(boxes: _Floats, scores: _Floats, iou_threshold: float, max_det: int | None = None) -> _Int64: ...
def dfl_decode(logits: _Floats, anchor_points: _Floats, strides: _Floats) -> _Floats: ...
def eca(x: _Floats, weight: _Floats) -> _Floats: ...
def dw_sppf(
    x: _Floats, weight: _Floats, bias: _Floats | None = None, *, dilation: int = 2, activation: str = "identity"
) -> _Floats: ...
def sppf_pool(x: _Floats, *, kernel_size: int = 5) -> _Floats: ...
def set_num_threads(num_threads: int) -> None: ...
def get_num_threads() -> int: ...
def build_info() -> _BuildInfo: ...
