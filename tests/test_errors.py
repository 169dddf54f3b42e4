# SPDX-License-Identifier: AGPL-3.0-or-later
"""Wrong arguments are answered with one sentence that names the argument, what was expected and what came."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastyolo
from fastyolo.ops import batched_nms, decode_nms, dfl_decode, dw_sppf, eca, multiclass_nms, nms, sppf_pool


def maps(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


dfl_decode_backward = torch.ops.fastyolo.dfl_decode_backward.default
eca_backward = torch.ops.fastyolo.eca_backward.default
dw_sppf_backward = torch.ops.fastyolo.dw_sppf_backward.default
sppf_pool_backward = torch.ops.fastyolo.sppf_pool_backward.default

# Good arguments, of which each row of the tables below spoils some.
ARGUMENTS: dict[Callable[..., Any], dict[str, Any]] = {
    decode_nms: {
        "box_maps": maps((2, 64, 8, 8), (2, 64, 4, 4)),
        "cls_maps": maps((2, 80, 8, 8), (2, 80, 4, 4)),
        "strides": [8.0, 16.0],
    },
    multiclass_nms: {"boxes": torch.zeros(2, 9, 4), "scores": torch.zeros(2, 80, 9)},
    batched_nms: {
        "boxes": torch.zeros(9, 4),
        "scores": torch.zeros(9),
        "idxs": torch.zeros(9, dtype=torch.int64),
        "iou_threshold": 0.5,
    },
    nms: {"boxes": torch.zeros(9, 4), "scores": torch.zeros(9), "iou_threshold": 0.5},
    dfl_decode: {"logits": torch.zeros(2, 64, 9), "anchor_points": torch.zeros(2, 9), "strides": torch.zeros(9)},
    dfl_decode_backward: {
        "grad_boxes": torch.zeros(2, 4, 9),
        "logits": torch.zeros(2, 64, 9),
        "strides": torch.zeros(9),
    },
    eca: {"x": torch.zeros(2, 8, 4, 5), "weight": torch.zeros(3)},
    eca_backward: {"grad_y": torch.zeros(2, 8, 4, 5), "x": torch.zeros(2, 8, 4, 5), "weight": torch.zeros(3)},
    dw_sppf: {"x": torch.zeros(2, 8, 4, 5), "weight": torch.zeros(3, 8, 3, 3), "bias": torch.zeros(3, 8)},
    dw_sppf_backward: {
        "grad_out": torch.zeros(2, 32, 4, 5),
        "x": torch.zeros(2, 8, 4, 5),
        "weight": torch.zeros(3, 8, 3, 3),
        "bias": torch.zeros(3, 8),
        "dilation": 2,
        "activation": "relu",
    },
    sppf_pool: {"x": torch.zeros(2, 8, 4, 5)},
    sppf_pool_backward: {"grad_out": torch.zeros(2, 32, 4, 5), "x": torch.zeros(2, 8, 4, 5), "kernel_size": 5},
}


def huge(*shape: int) -> Tensor:
    """More elements than 32 bits count, in four bytes of memory."""
    return torch.zeros(()).expand(shape)


FLOATS = "float32, float16, bfloat16 or float64"
SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"score_threshold": -0.1}, "score_threshold must be in [0, 1], got -0.1"),
    ({"score_threshold": 1.5}, "score_threshold must be in [0, 1], got 1.5"),
    ({"score_threshold": math.nan}, "score_threshold must be in [0, 1], got nan"),
    ({"iou_threshold": 45.0}, "iou_threshold must be in [0, 1], got 45"),
    ({"iou_threshold": math.inf}, "iou_threshold must be in [0, 1], got inf"),
    ({"max_det": -1}, "max_det must be in [0, 65536], got -1"),
    ({"max_det": 10**12}, "max_det must be in [0, 65536], got 1000000000000"),
    ({"max_candidates": 0}, "max_candidates must be in [1, 1048576], got 0"),
    ({"max_candidates": 2**20 + 1}, "max_candidates must be in [1, 1048576], got 1048577"),
    ({"classes": [0, 80]}, "classes[1] must be in [0, 80), got 80"),
    ({"classes": [-1]}, "classes[0] must be in [0, 80), got -1"),
]

Row = tuple[Callable[..., Any], dict[str, Any], str]
ROWS: list[Row] = [
    *((decode_nms, settings, message) for settings, message in SETTINGS),
    *((multiclass_nms, settings, message) for settings, message in SETTINGS),
    (decode_nms, {"box_maps": [], "cls_maps": [], "strides": []}, "box_maps must hold 1 to 8 levels, got 0"),
    (
        decode_nms,
        {"box_maps": 9 * maps((2, 64, 8, 8)), "cls_maps": 9 * maps((2, 80, 8, 8)), "strides": 9 * [8.0]},
        "box_maps must hold 1 to 8 levels, got 9",
    ),
    (decode_nms, {"strides": [8.0]}, "cls_maps and strides must hold 2 levels like box_maps, got 2 and 1"),
    (
        decode_nms,
        {"cls_maps": maps((2, 80, 8, 8))},
        "cls_maps and strides must hold 2 levels like box_maps, got 1 and 2",
    ),
    (
        decode_nms,
        {"box_maps": maps((2, 64, 8, 8), (64, 4, 4))},
        "box_maps[1] must have shape [B, 4R, H, W], got [64, 4, 4]",
    ),
    (decode_nms, {"cls_maps": maps((80, 64), (80, 16))}, "cls_maps[0] must have shape [B, C, H, W], got [80, 64]"),
    (decode_nms, {"box_maps": maps((2, 65, 8, 8), (2, 65, 4, 4))}, "box_maps[0] must have 4 x bins channels, got 65"),
    (decode_nms, {"box_maps": maps((2, 0, 8, 8), (2, 0, 4, 4))}, "box_maps[0] must have 4 x bins channels, got 0"),
    (
        decode_nms,
        {"box_maps": maps((2, 64, 8, 8), (2, 32, 4, 4))},
        "box_maps[1] must have shape [2, 64, H, W], got [2, 32, 4, 4]",
    ),
    (
        decode_nms,
        {"box_maps": maps((2, 64, 8, 8), (1, 64, 4, 4))},
        "box_maps[1] must have shape [2, 64, H, W], got [1, 64, 4, 4]",
    ),
    (
        decode_nms,
        {"cls_maps": maps((2, 80, 8, 8), (2, 79, 4, 4))},
        "cls_maps[1] must have shape [2, 80, H, W], got [2, 79, 4, 4]",
    ),
    (
        decode_nms,
        {"cls_maps": maps((3, 80, 8, 8), (3, 80, 4, 4))},
        "cls_maps[0] must have shape [2, 80, H, W], got [3, 80, 8, 8]",
    ),
    (
        decode_nms,
        {"cls_maps": maps((2, 80, 8, 8), (2, 80, 4, 5))},
        "cls_maps[1] must be 4x4 like box_maps[1], got 4x5",
    ),
    (decode_nms, {"cls_maps": maps((2, 0, 8, 8), (2, 0, 4, 4))}, "cls_maps must have at least 1 channel, got 0"),
    (
        decode_nms,
        {"box_maps": maps((2, 64, 8, 8)) + maps((2, 64, 4, 4), dtype=torch.float64)},
        "box_maps[1] must be float32 like box_maps[0], got float64",
    ),
    (
        decode_nms,
        {"cls_maps": maps((2, 80, 8, 8), (2, 80, 4, 4), dtype=torch.bfloat16)},
        "cls_maps[0] must be float32 like box_maps[0], got bfloat16",
    ),
    (
        decode_nms,
        {
            "box_maps": maps((2, 64, 8, 8), dtype=torch.int64),
            "cls_maps": maps((2, 80, 8, 8), dtype=torch.int64),
            "strides": [8.0],
        },
        f"box_maps[0] must be {FLOATS}, got int64",
    ),
    (
        decode_nms,
        {
            "box_maps": maps((2, 64, 8, 8), dtype=torch.float16),
            "cls_maps": maps((2, 80, 8, 8), dtype=torch.float16),
            "strides": [8.0],
        },
        "box_maps and cls_maps must be float32, bfloat16 or float64 on this device, got float16",
    ),
    (decode_nms, {"strides": [8.0, 0.0]}, "strides[1] must be a positive number of pixels, got 0"),
    (decode_nms, {"strides": [8.0, math.nan]}, "strides[1] must be a positive number of pixels, got nan"),
    (
        decode_nms,
        {"cls_maps": maps((2, 8193, 8, 8), (2, 8193, 4, 4)), "classes": [0]},
        "classes can filter models of at most 8192 classes, this one has 8193",
    ),
    (
        decode_nms,
        {"box_maps": [huge(2, 64, 4096, 4097)], "cls_maps": [huge(2, 80, 4096, 4097)], "strides": [8.0]},
        "box_maps[0] has more than 2^31 - 1 elements (2x64x4096x4097); split the batch",
    ),
    (
        decode_nms,
        {"box_maps": [huge(1, 4, 8192, 8192)], "cls_maps": [huge(1, 80, 8192, 8192)], "strides": [8.0]},
        "cls_maps[0] has more than 2^31 - 1 elements (1x80x8192x8192); split the batch",
    ),
    (
        decode_nms,
        {"box_maps": 5 * [huge(1, 4, 4096, 4096)], "cls_maps": 5 * [huge(1, 30, 4096, 4096)], "strides": 5 * [8.0]},
        "cls_maps have more than 2^31 - 1 scores per image (83886080 anchors x 30 classes)",
    ),
    (
        decode_nms,
        {"box_maps": [huge(9999, 4, 1, 1)], "cls_maps": [huge(9999, 1, 1, 1)], "strides": [8.0], "max_det": 65536},
        "boxes would have more than 2^31 - 1 elements (batch 9999, max_det 65536); split the batch",
    ),
    (multiclass_nms, {"boxes": torch.zeros(2, 9, 5)}, "boxes must have shape [B, N, 4], got [2, 9, 5]"),
    (multiclass_nms, {"boxes": torch.zeros(9, 4)}, "boxes must have shape [B, N, 4], got [9, 4]"),
    (multiclass_nms, {"scores": torch.zeros(2, 80, 8)}, "scores must have shape [2, C, 9], got [2, 80, 8]"),
    (multiclass_nms, {"scores": torch.zeros(2, 9)}, "scores must have shape [2, C, 9], got [2, 9]"),
    (multiclass_nms, {"scores": torch.zeros(2, 0, 9)}, "scores must have at least 1 class, got 0"),
    (multiclass_nms, {"scores": torch.zeros(2, 80, 9).double()}, "scores must be float32 like boxes, got float64"),
    (
        multiclass_nms,
        {"boxes": torch.zeros(2, 9, 4).int(), "scores": torch.zeros(2, 80, 9).int()},
        f"boxes must be {FLOATS}, got int32",
    ),
    (
        multiclass_nms,
        {"boxes": huge(1, 2**28, 4), "scores": huge(1, 80, 2**28)},
        "scores have more than 2^31 - 1 elements (1x80x268435456); split the batch",
    ),
    (batched_nms, {"boxes": torch.zeros(9, 5)}, "boxes must have shape [N, 4], got [9, 5]"),
    (batched_nms, {"boxes": torch.zeros(4)}, "boxes must have shape [N, 4], got [4]"),
    (batched_nms, {"scores": torch.zeros(8)}, "scores must have shape [9], got [8]"),
    (batched_nms, {"scores": torch.zeros(9, 1)}, "scores must have shape [9], got [9, 1]"),
    (batched_nms, {"scores": torch.zeros(9).half()}, "scores must be float32 like boxes, got float16"),
    (batched_nms, {"boxes": torch.zeros(9, 4).long()}, f"boxes must be {FLOATS}, got int64"),
    (batched_nms, {"idxs": torch.zeros(8).long()}, "idxs must have shape [9], got [8]"),
    (batched_nms, {"idxs": torch.zeros(9)}, "idxs must be int64, got float32"),
    (batched_nms, {"iou_threshold": 1.1}, "iou_threshold must be in [0, 1], got 1.1"),
    (batched_nms, {"iou_threshold": math.nan}, "iou_threshold must be in [0, 1], got nan"),
    (batched_nms, {"max_det": -1}, "max_det must not be negative, got -1"),
    (
        batched_nms,
        {"boxes": huge(2**29, 4), "scores": huge(2**29), "idxs": huge(2**29)},
        "boxes have more than 2^31 - 1 elements (536870912x4)",
    ),
    (nms, {"iou_threshold": -0.5}, "iou_threshold must be in [0, 1], got -0.5"),
    (dfl_decode, {"logits": torch.zeros(64, 9)}, "logits must have shape [B, 4R, A], got [64, 9]"),
    (dfl_decode, {"logits": torch.zeros(2, 66, 9)}, "logits must have 4 x bins channels, got 66"),
    (dfl_decode, {"logits": torch.zeros(2, 64, 9).int()}, f"logits must be {FLOATS}, got int32"),
    (
        dfl_decode,
        {"logits": torch.zeros(2, 64, 9).half()},
        "logits must be float32, bfloat16 or float64 on this device, got float16",
    ),
    (dfl_decode, {"anchor_points": torch.zeros(9, 2)}, "anchor_points must have shape [2, 9], got [9, 2]"),
    (dfl_decode, {"strides": torch.zeros(9, 1)}, "strides must have shape [9], got [9, 1]"),
    (dfl_decode, {"strides": torch.zeros(1)}, "strides must have shape [9], got [1]"),
    (
        dfl_decode,
        {"anchor_points": torch.zeros(2, 9).double()},
        "anchor_points must be float32 with float32 logits, got float64",
    ),
    (
        dfl_decode,
        {"logits": torch.zeros(2, 64, 9).bfloat16(), "strides": torch.zeros(9).bfloat16()},
        "strides must be float32 with bfloat16 logits, got bfloat16",
    ),
    (
        dfl_decode,
        {"logits": torch.zeros(2, 64, 9).double()},
        "strides must be float64 with float64 logits, got float32",
    ),
    (
        dfl_decode,
        {"logits": huge(4096, 64, 8400), "anchor_points": huge(2, 8400), "strides": huge(8400)},
        "logits have more than 2^31 - 1 elements (4096x64x8400); split the batch",
    ),
    *(
        (op, {"x": torch.zeros(8, 4, 5)}, "x must have shape [B, C, H, W], got [8, 4, 5]")
        for op in (eca, dw_sppf, sppf_pool, eca_backward, dw_sppf_backward, sppf_pool_backward)
    ),
    *((op, {"x": torch.zeros(2, 8, 4, 5).int()}, f"x must be {FLOATS}, got int32") for op in (eca, dw_sppf, sppf_pool)),
    (
        sppf_pool,
        {"x": torch.zeros(2, 8, 4, 5).half()},
        "x must be float32, bfloat16 or float64 on this device, got float16",
    ),
    (eca, {"weight": torch.zeros(1, 1, 3)}, "weight must have shape [k], got [1, 1, 3]"),
    (eca, {"weight": torch.zeros(4)}, "weight must have an odd number of elements up to 31, got 4"),
    (eca, {"weight": torch.zeros(33)}, "weight must have an odd number of elements up to 31, got 33"),
    (eca, {"weight": torch.zeros(0)}, "weight must have an odd number of elements up to 31, got 0"),
    (eca, {"weight": torch.zeros(3).long()}, f"weight must be {FLOATS}, got int64"),
    (eca, {"weight": torch.zeros(3).double()}, "weight must be float32 with x of float32, got float64"),
    (eca, {"weight": torch.zeros(3).bfloat16()}, "weight must be float32 with x of float32, got bfloat16"),
    (
        eca,
        {"x": torch.zeros(2, 8, 4, 5).bfloat16(), "weight": torch.zeros(3).half()},
        "weight must be float32 or bfloat16 with x of bfloat16, got float16",
    ),
    (eca, {"x": huge(2, 64, 4096, 4097)}, "x has more than 2^31 - 1 elements (2x64x4096x4097); split the batch"),
    (eca_backward, {"grad_y": torch.zeros(2, 8, 5, 4)}, "grad_y must have shape [2, 8, 4, 5], got [2, 8, 5, 4]"),
    (eca_backward, {"grad_y": torch.zeros(2, 8, 4, 5).double()}, "grad_y must be float32 like x, got float64"),
    (dw_sppf, {"weight": torch.zeros(8, 3, 3)}, "weight must have shape [3, 8, K, K], got [8, 3, 3]"),
    (dw_sppf, {"weight": torch.zeros(2, 8, 3, 3)}, "weight must have shape [3, 8, K, K], got [2, 8, 3, 3]"),
    (dw_sppf, {"weight": torch.zeros(3, 7, 3, 3)}, "weight must have shape [3, 8, K, K], got [3, 7, 3, 3]"),
    (dw_sppf, {"weight": torch.zeros(3, 8, 3, 5)}, "weight must have shape [3, 8, K, K], got [3, 8, 3, 5]"),
    (dw_sppf, {"weight": torch.zeros(3, 8, 7, 7)}, "weight must have kernels of 3x3 or 5x5, got 7x7"),
    (dw_sppf, {"weight": torch.zeros(3, 8, 3, 3).half()}, "weight must be float32 with x of float32, got float16"),
    (dw_sppf, {"bias": torch.zeros(8)}, "bias must have shape [3, 8], got [8]"),
    (dw_sppf, {"bias": torch.zeros(3, 8).double()}, "bias must be float32 like weight, got float64"),
    (dw_sppf, {"dilation": 3}, "dilation must be 1 or 2, got 3"),
    (dw_sppf, {"activation": "gelu"}, "activation must be identity, relu or silu, got gelu"),
    (dw_sppf, {"activation": ""}, "activation must be identity, relu or silu, got "),
    (
        dw_sppf,
        {"x": huge(2, 8, 8192, 8192)},
        "the result would have more than 2^31 - 1 elements (2x32x8192x8192); split the batch",
    ),
    (
        dw_sppf_backward,
        {"grad_out": torch.zeros(2, 8, 4, 5)},
        "grad_out must have shape [2, 32, 4, 5], got [2, 8, 4, 5]",
    ),
    (dw_sppf_backward, {"grad_out": torch.zeros(2, 32, 4, 5).half()}, "grad_out must be float32 like x, got float16"),
    (sppf_pool, {"kernel_size": 4}, "kernel_size must be an odd number up to 15, got 4"),
    (sppf_pool, {"kernel_size": 17}, "kernel_size must be an odd number up to 15, got 17"),
    (sppf_pool, {"kernel_size": -1}, "kernel_size must be an odd number up to 15, got -1"),
    (
        sppf_pool,
        {"x": huge(2, 8, 8192, 8192)},
        "the result would have more than 2^31 - 1 elements (2x32x8192x8192); split the batch",
    ),
    (
        sppf_pool_backward,
        {"grad_out": torch.zeros(2, 24, 4, 5)},
        "grad_out must have shape [2, 32, 4, 5], got [2, 24, 4, 5]",
    ),
    (dfl_decode_backward, {"grad_boxes": torch.zeros(2, 4, 8)}, "grad_boxes must have shape [2, 4, 9], got [2, 4, 8]"),
    (
        dfl_decode_backward,
        {"grad_boxes": torch.zeros(2, 4, 9).double()},
        "grad_boxes must be float32 like logits, got float64",
    ),
]


@pytest.mark.parametrize(("op", "arguments", "message"), ROWS, ids=[message[:60] for _, _, message in ROWS])
def test_message(op: Callable[..., Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError) as error:
        op(**{**ARGUMENTS[op], **arguments})
    assert str(error.value) == message


def test_views_that_span_too_much_memory_are_refused() -> None:
    """Few elements, but the last one is more than 2^31 elements away from the first."""
    storage = torch.empty(2**31 + 64, dtype=torch.bfloat16)  # never touched, so it takes no memory
    logits = storage.as_strided((2, 64, 1), (2**31, 1, 1))
    message = "logits spans more than 2^31 - 1 elements of memory, got shape [2, 64, 1]; split the batch or pass a copy"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        dfl_decode(logits, torch.zeros(2, 1), torch.zeros(1))
    message = message.replace("logits", "x").replace("[2, 64, 1]", "[2, 64, 1, 1]")
    with pytest.raises(RuntimeError, match=re.escape(message)):
        sppf_pool(logits.unsqueeze(3))


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("op", "name", "message"),
    [
        (decode_nms, "cls_maps", "cls_maps[0] must be on cuda:0 like box_maps[0], got cpu"),
        (multiclass_nms, "scores", "scores must be on cuda:0 like boxes, got cpu"),
        (batched_nms, "scores", "scores must be on cuda:0 like boxes, got cpu"),
        (batched_nms, "idxs", "idxs must be on cuda:0 like boxes, got cpu"),
        (dfl_decode, "strides", "strides must be on cuda:0 like logits, got cpu"),
        (dfl_decode, "anchor_points", "anchor_points must be on cuda:0 like logits, got cpu"),
        (dfl_decode_backward, "grad_boxes", "grad_boxes must be on cuda:0 like logits, got cpu"),
        (eca, "weight", "weight must be on cuda:0 like x, got cpu"),
        (eca_backward, "grad_y", "grad_y must be on cuda:0 like x, got cpu"),
        (dw_sppf, "weight", "weight must be on cuda:0 like x, got cpu"),
        (dw_sppf, "bias", "bias must be on cuda:0 like x, got cpu"),
        (dw_sppf_backward, "grad_out", "grad_out must be on cuda:0 like x, got cpu"),
        (sppf_pool_backward, "grad_out", "grad_out must be on cuda:0 like x, got cpu"),
    ],
)
def test_mixed_devices(op: Callable[..., Any], name: str, message: str) -> None:
    arguments = to_cuda(ARGUMENTS[op]) | {name: ARGUMENTS[op][name]}
    with pytest.raises(RuntimeError) as error:
        op(**arguments)
    assert str(error.value) == message


def to_cuda(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: to_cuda(item) for name, item in value.items()}
    if isinstance(value, list):
        return [to_cuda(item) for item in value]
    return value.cuda() if isinstance(value, Tensor) else value


@pytest.mark.cuda
@pytest.mark.skipif(fastyolo.build_info()["cuda"], reason="the CUDA kernels are built")
@pytest.mark.parametrize("op", ARGUMENTS)
def test_build_without_cuda(op: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError) as error:
        op(**to_cuda(ARGUMENTS[op]))
    assert str(error.value) == (
        "fastyolo was built without its CUDA kernels; rebuild it with nvcc on PATH: "
        "FASTYOLO_CUDA=on pip install --no-build-isolation -e ."
    )
