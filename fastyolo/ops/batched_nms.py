# SPDX-License-Identifier: AGPL-3.0-or-later
"""batched_nms, nms and multiclass_nms: greedy non-maximum suppression of boxes that are decoded already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastyolo import _library
from fastyolo.ops.detections import Detections, fake_detections


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, max_det: int | None = None) -> Tensor:
    """boxes [N, 4], scores [N] -> indices of the boxes that stay, by descending score, int64.

    `batched_nms` of a single group: the results of torchvision.ops.nms.
    """
    return _narrow(*torch.ops.fastyolo.batched_nms.default(boxes, scores, None, iou_threshold, max_det=max_det))


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, max_det: int | None = None
) -> Tensor:
    """boxes [N, 4], scores [N], idxs [N] -> indices of the boxes that stay, by descending score, int64.

    Greedy non-maximum suppression within each group of equal idxs: the best box stays and drops the boxes of its group
    whose IoU with it is above iou_threshold, then the best of the rest, and so on. These are the results of
    torchvision.ops.nms for each group, to the bit; torchvision.ops.batched_nms shifts the boxes of each group apart
    instead, which rounds their coordinates. Boxes with equal scores are ranked by their position, also on CUDA; NaN
    scores come first, as in torch.sort. A box with NaN coordinates neither suppresses nor is suppressed.

    The length of the result depends on the data, so on CUDA this waits for the device; `multiclass_nms` and the
    operator below it, torch.ops.fastyolo.batched_nms (keep [N] padded with -1, and their number), do not.

    Args:
        boxes: left, top, right, bottom; float32, bfloat16 or float64 on the CPU, float32, float16 or bfloat16 on CUDA.
        scores: of the same dtype.
        idxs: group of each box, any integers.
        iou_threshold: in [0, 1].
        max_det: stop after this many boxes, which saves most of the work when few are wanted.

    Raises:
        RuntimeError: a shape, dtype, device or setting is not as above; the message names it.
    """
    if idxs.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        idxs = idxs.long()
    return _narrow(*torch.ops.fastyolo.batched_nms.default(boxes, scores, idxs, iou_threshold, max_det=max_det))


def multiclass_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.7,
    max_det: int = 300,
    max_candidates: int = 30000,
    multi_label: bool = False,
    class_agnostic: bool = False,
    classes: Sequence[int] | None = None,
) -> Detections:
    """boxes [B, N, 4], scores [B, C, N] -> Detections of at most max_det rows per image.

    decode_nms for boxes that are decoded already: the settings have the same meaning, scores are probabilities and
    ranked as they are, and `indices` are positions in [0, N).

    Args:
        boxes: left, top, right, bottom in pixels; one box per position, shared by all classes. The dtypes are those of
            decode_nms. Any strides, never copied.
        scores: probability of each class at each position, of the same dtype.

    Raises:
        RuntimeError: a shape, dtype, device or setting is not as above; the message names it.
    """
    return Detections(
        *torch.ops.fastyolo.multiclass_nms.default(
            boxes,
            scores,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_det=max_det,
            max_candidates=max_candidates,
            multi_label=multi_label,
            class_agnostic=class_agnostic,
            classes=classes,
        )
    )


def _narrow(keep: Tensor, num_keep: Tensor) -> Tensor:
    return keep[: num_keep.item()]


def _batched_nms_fake(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, *, max_det: int | None = None
) -> tuple[Tensor, Tensor]:
    return boxes.new_empty((boxes.shape[0],), dtype=torch.int64), boxes.new_empty((1,), dtype=torch.int32)


def _multiclass_nms_fake(boxes: Tensor, scores: Tensor, *, max_det: int = 300, **_: object) -> Detections:
    return fake_detections(boxes, max_det)


torch.library.register_fake("fastyolo::batched_nms", _batched_nms_fake)
torch.library.register_fake("fastyolo::multiclass_nms", _multiclass_nms_fake)
_library.register_without_gradient("batched_nms")
_library.register_without_gradient("multiclass_nms")
