# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every operator in plain torch: the specification that the tests compare with. Simple, slow, any float dtype.

Functions have the signatures of fastyolo.ops. Half precision is widened to float32, as the kernels do; pass float64 for
results that serve as exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastyolo.ops.detections import Detections


def decode_nms(
    box_maps: Sequence[Tensor],
    cls_maps: Sequence[Tensor],
    strides: Sequence[float],
    *,
    score_threshold: float = 0.25,
    **settings: Any,
) -> Detections:
    """As fastyolo.ops.decode_nms: dfl_decode of all anchors, then greedy NMS of the best logits."""
    boxes, logits = decode_maps(box_maps, cls_maps, strides)
    detections = _detect(boxes, logits, logit(score_threshold), **settings)
    return detections._replace(scores=detections.scores.sigmoid() * (detections.labels >= 0))


def multiclass_nms(boxes: Tensor, scores: Tensor, *, score_threshold: float = 0.25, **settings: Any) -> Detections:
    """As fastyolo.ops.multiclass_nms."""
    return _detect(_widen(boxes), _widen(scores).transpose(1, 2), score_threshold, **settings)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, max_det: int | None = None) -> Tensor:
    """As fastyolo.ops.nms."""
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold, max_det)


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, max_det: int | None = None
) -> Tensor:
    """As fastyolo.ops.batched_nms."""
    order = scores.sort(descending=True, stable=True).indices
    kept = greedy_nms(_widen(boxes)[order], idxs[order], iou_threshold, len(boxes) if max_det is None else max_det)
    return order[kept]


def dfl_decode(logits: Tensor, anchor_points: Tensor, strides: Tensor) -> Tensor:
    """As fastyolo.ops.dfl_decode; differentiable by torch, any number of times."""
    batch, channels, anchors = logits.shape
    bins = channels // 4
    sides = _widen(logits).reshape(batch, 4, bins, anchors)
    if bins == 1:
        distances = sides[:, :, 0]
    else:
        positions = torch.arange(bins, dtype=sides.dtype, device=sides.device)
        distances = (sides.softmax(2) * positions[:, None]).sum(2)
    boxes = torch.cat([anchor_points - distances[:, :2], anchor_points + distances[:, 2:]], 1) * strides
    return boxes.to(logits.dtype)


def eca(x: Tensor, weight: Tensor) -> Tensor:
    """As fastyolo.ops.eca; differentiable by torch, any number of times."""
    wide = _widen(x)
    means = wide.mean((2, 3), keepdim=True).squeeze(-1).transpose(1, 2)  # [B, 1, C]
    logits = functional.conv1d(means, _widen(weight).view(1, 1, -1), padding=len(weight) // 2)
    return (wide * logits.transpose(1, 2).unsqueeze(-1).sigmoid()).to(x.dtype)


def dw_sppf(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 2, activation: str = "identity"
) -> Tensor:
    """As fastyolo.ops.dw_sppf; differentiable by torch, any number of times."""
    stages, channels, kernel, _ = weight.shape
    settings = {"padding": dilation * (kernel // 2), "dilation": dilation, "groups": channels}
    outputs = [_widen(x)]
    for stage in range(stages):
        stage_bias = None if bias is None else _widen(bias[stage])
        z = functional.conv2d(outputs[-1], _widen(weight[stage]).unsqueeze(1), stage_bias, **settings)
        outputs.append(z if activation == "identity" else getattr(functional, activation)(z))
    return torch.cat(outputs, 1).to(x.dtype)


def sppf_pool(x: Tensor, *, kernel_size: int = 5) -> Tensor:
    """As fastyolo.ops.sppf_pool; differentiable by torch, any number of times."""
    outputs = [x]
    for _ in range(3):
        outputs.append(functional.max_pool2d(outputs[-1], kernel_size, stride=1, padding=kernel_size // 2))
    return torch.cat(outputs, 1)


def anchor_grid(sizes: Sequence[Sequence[int]], strides: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Heights and widths of the levels -> cell centres [2, A] as (x, y) in cells, strides [A] in pixels; float64."""
    points = [torch.empty(2, 0, dtype=torch.float64)]
    pixels = [torch.empty(0, dtype=torch.float64)]
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()]).double())
        pixels.append(torch.full((height * width,), stride, dtype=torch.float64))
    return torch.cat(points, 1), torch.cat(pixels)


def decode_maps(
    box_maps: Sequence[Tensor], cls_maps: Sequence[Tensor], strides: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Head maps -> boxes [B, A, 4] in pixels, class logits [B, A, C]."""
    logits = torch.cat([_widen(cls_map).flatten(2) for cls_map in cls_maps], 2)
    distributions = torch.cat([_widen(box_map).flatten(2) for box_map in box_maps], 2)
    points, pixels = anchor_grid([box_map.shape[2:] for box_map in box_maps], strides)
    boxes = dfl_decode(distributions, points.to(distributions), pixels.to(distributions))
    return boxes.transpose(1, 2), logits.transpose(1, 2)


def logit(probability: float) -> float:
    """The inverse of the sigmoid, also at 0 and 1."""
    if probability in (0, 1):
        return -math.inf if probability == 0 else math.inf
    return math.log(probability) - math.log1p(-probability)


def rank_candidates(
    values: Tensor, bound: float, max_candidates: int, multi_label: bool, classes: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """values [A, C] -> anchors and labels of the candidates, best first: values above bound, NaN never."""
    count = values.shape[1]
    values = values.masked_fill(values.isnan(), -math.inf)
    wanted = values.double() > bound
    if not multi_label:
        wanted &= torch.nn.functional.one_hot(values.argmax(1), count).bool()
    if classes is not None:
        wanted &= torch.tensor([label in classes for label in range(count)], device=values.device)
    anchors, labels = wanted.nonzero(as_tuple=True)  # by anchor, then by class: the order of equals
    best = values[anchors, labels].sort(descending=True, stable=True).indices[:max_candidates]
    return anchors[best], labels[best]


def iou(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of a box [4] with boxes [N, 4]; NaN for two boxes without area."""
    corner = torch.maximum(box[:2], boxes[:, :2])
    width, height = (torch.minimum(box[2:], boxes[:, 2:]) - corner).clamp(min=0).unbind(1)
    intersection = width * height
    area = (box[2] - box[0]) * (box[3] - box[1])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return intersection / (area + areas - intersection)


def greedy_nms(boxes: Tensor, groups: Tensor, iou_threshold: float, max_det: int) -> list[int]:
    """boxes [N, 4] best first, groups [N] -> positions of the first max_det that stay."""
    kept: list[int] = []
    suppressed = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for position in range(len(boxes)):
        if len(kept) == max_det:
            break
        if not suppressed[position]:
            kept.append(position)
            overlap = iou(boxes[position], boxes).double() > iou_threshold
            suppressed |= overlap & (groups == groups[position])
    return kept


def _detect(
    boxes: Tensor,
    values: Tensor,
    bound: float,
    *,
    iou_threshold: float = 0.7,
    max_det: int = 300,
    max_candidates: int = 30000,
    multi_label: bool = False,
    class_agnostic: bool = False,
    classes: Sequence[int] | None = None,
) -> Detections:
    """boxes [B, A, 4], values [B, A, C] -> Detections whose scores are the values."""
    batch = len(boxes)
    detections = Detections(
        num_dets=boxes.new_zeros(batch, dtype=torch.int32),
        boxes=boxes.new_zeros(batch, max_det, 4),
        scores=boxes.new_zeros(batch, max_det),
        labels=boxes.new_full((batch, max_det), -1, dtype=torch.int32),
        indices=boxes.new_full((batch, max_det), -1, dtype=torch.int32),
    )
    for b in range(batch):
        anchors, labels = rank_candidates(values[b], bound, max_candidates, multi_label, classes)
        groups = torch.zeros_like(labels) if class_agnostic else labels
        kept = greedy_nms(boxes[b, anchors], groups, iou_threshold, max_det)
        anchors, labels = anchors[kept], labels[kept]
        detections.num_dets[b] = len(kept)
        detections.boxes[b, : len(kept)] = boxes[b, anchors]
        detections.scores[b, : len(kept)] = values[b, anchors, labels]
        detections.labels[b, : len(kept)] = labels
        detections.indices[b, : len(kept)] = anchors
    return detections


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
