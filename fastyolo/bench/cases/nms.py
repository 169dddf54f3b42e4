# SPDX-License-Identifier: AGPL-3.0-or-later
"""decode_nms, nms and batched_nms: against ultralytics and torchvision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastyolo import ops, reference
from fastyolo.bench import agreement
from fastyolo.bench.cases.case import OURS, Case, DisagreementError, dtype_name
from fastyolo.bench.cases.inputs import STRIDES, Inputs, Maps
from fastyolo.bench.environment import installed_version
from fastyolo.bench.timing import Call


def decode_nms_cases(inputs: Inputs, quick: bool) -> Iterator[Case]:
    yield _decode_nms(inputs, 1, conf=0.25, multi_label=False)  # as predict() does
    if not quick:
        yield _decode_nms(inputs, 32, conf=0.25, multi_label=False)
        yield _decode_nms(inputs, 1, conf=0.001, multi_label=True)
        yield _decode_nms(inputs, 32, conf=0.001, multi_label=True)  # as val() does


def _decode_nms(inputs: Inputs, batch: int, *, conf: float, multi_label: bool) -> Case:
    iou, max_det = 0.7, 300
    first = inputs.maps(batch, 0)
    class_bytes = sum(x.nbytes for x in first[1])
    sets = [first, *(inputs.maps(batch, seed) for seed in range(1, inputs.rotation(class_bytes)))]

    def ours(maps: Maps) -> ops.Detections:
        return ops.decode_nms(
            *maps, STRIDES, score_threshold=conf, iou_threshold=iou, max_det=max_det, multi_label=multi_label
        )

    calls: dict[str, list[Call]] = {OURS: [_bind(ours, maps) for maps in sets]}
    if installed_version("ultralytics"):
        calls["ultralytics"] = [_stock_detection(maps, conf, iou, max_det, multi_label) for maps in sets]

    def check() -> None:
        # Against ultralytics in float64, where its class offsets round nothing; without it, against the CPU.
        box_maps, cls_maps = ([x.double().cpu() for x in maps] for maps in first)
        boxes, logits = reference.decode_maps(box_maps, cls_maps, STRIDES)
        centres, extents = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        predictions = torch.cat((centres, extents, logits.sigmoid()), 2).transpose(1, 2)
        if "ultralytics" in calls:
            from fastyolo.integrations.ultralytics.stock import stock_nms

            peers = stock_nms(predictions, conf=conf, iou=iou, max_det=max_det, multi_label=multi_label)
        else:
            peers = _rows(ours((box_maps, cls_maps)))
        result = agreement.compare(
            _rows(ours(first)), peers, predictions, conf=conf, iou=iou, multi_label=multi_label, shifted=False
        )
        if result.unexplained:
            raise DisagreementError(f"decode_nms found other detections than it should: {result}")

    above = [x > math.log(conf / (1 - conf)) for x in first[1]]
    anchors = sum(int(x.any(1).sum()) for x in above)
    candidates = sum(int(x.sum()) for x in above) if multi_label else anchors
    survivors = anchors * first[0][0].shape[1] * first[0][0].element_size()
    outputs = batch * (4 + max_det * (16 + 4 + 4 + 4))
    return Case(
        "decode_nms",
        f"batch {batch}, conf {conf:g}, {'multi-label' if multi_label else 'best class'}",
        calls,
        frozenset({OURS}),
        class_bytes + survivors + outputs,
        check,
        {"batch": batch, "dtype": dtype_name(inputs.dtype), "candidates": candidates},
    )


def _rows(found: ops.Detections) -> list[Tensor]:
    rows = torch.cat((found.boxes, found.scores[..., None], found.labels[..., None]), 2).cpu()
    return [row[:count] for row, count in zip(rows, found.num_dets.tolist(), strict=True)]


def _stock_detection(maps: Maps, conf: float, iou: float, max_det: int, multi_label: bool) -> Call:
    from fastyolo.integrations.ultralytics.stock import stock_nms, stock_predictions

    decode = stock_predictions(*maps, STRIDES)
    return lambda: stock_nms(decode(), conf=conf, iou=iou, max_det=max_det, multi_label=multi_label)


def _bind(function: Callable[[Maps], Any], maps: Maps) -> Call:
    return lambda: function(maps)


def nms_cases(inputs: Inputs, quick: bool) -> Iterator[Case]:
    for count in (10_000,) if quick else (10_000, 30_000):
        for max_det in (300, None):
            yield _nms(inputs, count, max_det)


def batched_nms_cases(inputs: Inputs, quick: bool) -> Iterator[Case]:
    for count in (10_000,) if quick else (10_000, 30_000):
        yield _nms(inputs, count, None, groups=80)


def fixed_size_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, *, max_det: int | None
) -> tuple[Tensor, Tensor]:
    """The operator below ops.nms and ops.batched_nms, which wait for the device to know the size of their result."""
    keep, num_keep = torch.ops.fastyolo.batched_nms.default(boxes, scores, idxs, iou_threshold, max_det=max_det)
    return keep, num_keep


def _nms(inputs: Inputs, count: int, max_det: int | None, groups: int | None = None) -> Case:
    boxes, scores, labels = inputs.boxes(count, groups or 1)
    idxs = None if groups is None else labels

    def ours() -> tuple[Tensor, Tensor]:
        return fixed_size_nms(boxes, scores, idxs, 0.5, max_det=max_det)

    def kept() -> Tensor:
        keep, num_keep = ours()
        return keep[: int(num_keep)]

    calls: dict[str, list[Call]] = {OURS: [ours]}
    if installed_version("torchvision"):
        from torchvision.ops import batched_nms, nms  # type: ignore[import-untyped]

        if idxs is None:
            calls["torchvision"] = [lambda: nms(boxes, scores, 0.5)[:max_det]]
        else:
            calls["torchvision"] = [lambda: batched_nms(boxes, scores, idxs, 0.5)[:max_det]]

    def check() -> None:
        if "torchvision" not in calls:
            return
        peer = calls["torchvision"][0]()
        same = kept().equal(peer)
        if groups is not None:  # torchvision shifts the groups apart, which may round an IoU across the threshold
            same = len(set(kept().tolist()) ^ set(peer.tolist())) <= 1e-3 * len(peer)
        if not same:
            raise DisagreementError(f"nms of {count} boxes and torchvision kept different boxes")

    return Case(
        "nms" if groups is None else "batched_nms",
        f"{count:,} boxes" + (f", {groups} classes" if groups else "") + (f", max_det {max_det}" if max_det else ""),
        calls,
        frozenset({OURS}),
        boxes.nbytes + scores.nbytes + (0 if idxs is None else idxs.nbytes) + 8 * count,
        check,
        {"boxes": count, "kept": len(kept()), "dtype": "float32"},
    )
