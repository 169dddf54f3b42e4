# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `fastyolo bench ops` measures: each operator at the sizes that matter, and the peers that do the same work."""

from collections.abc import Callable, Iterator

from fastyolo.bench.cases.case import OURS, Case, Choice, DisagreementError
from fastyolo.bench.cases.dfl_decode import dfl_decode_cases
from fastyolo.bench.cases.feature_maps import WIDTHS, dw_sppf_cases, eca_cases, sppf_pool_cases
from fastyolo.bench.cases.inputs import IMAGE_SIZE, STRIDES, Inputs, Maps
from fastyolo.bench.cases.nms import batched_nms_cases, decode_nms_cases, multiclass_nms_cases, nms_cases
from fastyolo.bench.cases.onnx_nms import PACKAGES as ONNX_PACKAGES

__all__ = [
    "CASES",
    "IMAGE_SIZE",
    "OURS",
    "PEERS",
    "STRIDES",
    "WIDTHS",
    "Case",
    "Choice",
    "DisagreementError",
    "Inputs",
    "Maps",
]

CASES: dict[str, Callable[[Inputs, Choice], Iterator[Case]]] = {
    "decode_nms": decode_nms_cases,
    "multiclass_nms": multiclass_nms_cases,
    "nms": nms_cases,
    "batched_nms": batched_nms_cases,
    "dfl_decode": dfl_decode_cases,
    "eca": eca_cases,
    "dw_sppf": dw_sppf_cases,
    "sppf_pool": sppf_pool_cases,
}
PEERS: dict[str, tuple[str, ...]] = {  # what their peers need beside torch
    "decode_nms": ("ultralytics",),
    "multiclass_nms": ("ultralytics", *ONNX_PACKAGES),
    "nms": ("torchvision", "opencv", *ONNX_PACKAGES),
    "batched_nms": ("torchvision", "opencv", *ONNX_PACKAGES),
    "dfl_decode": ("ultralytics", "torch.compile"),
    "eca": ("torch.compile",),
    "dw_sppf": ("torch.compile",),
    "sppf_pool": ("ultralytics", "torch.compile"),
}
