# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `fastyolo bench ops` measures: each operator at the sizes that matter, and the peers that do the same work."""

from collections.abc import Callable, Iterator

from fastyolo.bench.cases.case import OURS, Case, DisagreementError
from fastyolo.bench.cases.dfl_decode import dfl_decode_cases
from fastyolo.bench.cases.feature_maps import dw_sppf_cases, eca_cases, sppf_pool_cases
from fastyolo.bench.cases.inputs import IMAGE_SIZE, STRIDES, Inputs, Maps
from fastyolo.bench.cases.nms import batched_nms_cases, decode_nms_cases, nms_cases

__all__ = ["CASES", "COMPILED_PEERS", "IMAGE_SIZE", "OURS", "STRIDES", "Case", "DisagreementError", "Inputs", "Maps"]

CASES: dict[str, Callable[[Inputs, bool], Iterator[Case]]] = {
    "decode_nms": decode_nms_cases,
    "nms": nms_cases,
    "batched_nms": batched_nms_cases,
    "dfl_decode": dfl_decode_cases,
    "eca": eca_cases,
    "dw_sppf": dw_sppf_cases,
    "sppf_pool": sppf_pool_cases,
}
COMPILED_PEERS = frozenset({"eca", "dw_sppf", "sppf_pool"})  # operators that torch.compile, too, has a version of
