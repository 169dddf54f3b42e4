# SPDX-License-Identifier: AGPL-3.0-or-later
"""decode_nms: the raw head maps of a YOLOv8-style detector to final detections, in one operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastyolo import _library
from fastyolo.ops.detections import Detections, fake_detections


def decode_nms(
    box_maps: Sequence[Tensor],
    cls_maps: Sequence[Tensor],
    strides: Sequence[float],
    *,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.7,
    max_det: int = 300,
    max_candidates: int = 30000,
    multi_label: bool = False,
    class_agnostic: bool = False,
    classes: Sequence[int] | None = None,
) -> Detections:
    """box_maps [B, 4R, H_l, W_l], cls_maps [B, C, H_l, W_l] -> Detections of at most max_det rows per image.

    The maps are what the head's last convolutions give: no sigmoid, softmax, concatenation or transpose before this.
    An anchor is a cell of a level; anchors are numbered level by level, row by row. Its candidates are the classes
    whose sigmoid(cls) is above score_threshold, or only the best class. Its box is the expectation of each side's
    distribution over R bins (distribution focal loss, https://arxiv.org/abs/2006.04388), in cells from the centre of
    its cell; with R = 1 the map holds the distances themselves. Candidates are ranked by logit, ties by the lower
    anchor and then the lower class. The best max_candidates go through greedy non-maximum suppression per class, which
    drops a box whose IoU with a better kept one is above iou_threshold, and the best max_det that are left stay.

    These are the detections of ultralytics' `non_max_suppression` with torchvision's `nms`, without the rounding of
    its class offsets and without its time limit. A NaN logit is never a detection; an infinite one ranks first. A box
    with NaN coordinates neither suppresses nor is suppressed.

    No gradient passes through this operator. On CUDA it does not synchronise with the host.

    Args:
        box_maps: one tensor of logits per level, with 4 x R channels: left, top, right, bottom. float32, float16 or
            bfloat16 on CUDA; float32, bfloat16 or float64 on the CPU. Any strides, never copied.
        cls_maps: one tensor of class logits per level, of the same dtype, device, batch and H_l x W_l.
        strides: pixels per cell of each level.
        score_threshold: in [0, 1]; a score must be above it.
        iou_threshold: in [0, 1].
        max_det: rows of the result, 0 to 65536.
        max_candidates: 1 to 2^20.
        multi_label: an anchor is a candidate for every class above the threshold, not for its best class only.
        class_agnostic: a kept box suppresses boxes of all classes.
        classes: report only these. Without multi_label, an anchor whose best class is another one is dropped.

    Raises:
        RuntimeError: a shape, dtype, device or setting is not as above; the message names it.
    """
    if not box_maps:  # Without a tensor, torch finds no kernel that could say it.
        raise RuntimeError("box_maps must hold 1 to 8 levels, got 0")
    return Detections(
        *torch.ops.fastyolo.decode_nms.default(
            box_maps,
            cls_maps,
            strides,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_det=max_det,
            max_candidates=max_candidates,
            multi_label=multi_label,
            class_agnostic=class_agnostic,
            classes=classes,
        )
    )


def _decode_nms_fake(
    box_maps: Sequence[Tensor], cls_maps: Sequence[Tensor], strides: Sequence[float], *, max_det: int = 300, **_: object
) -> Detections:
    return fake_detections(box_maps[0], max_det)


torch.library.register_fake("fastyolo::decode_nms", _decode_nms_fake)
_library.register_without_gradient("decode_nms")
