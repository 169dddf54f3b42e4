# SPDX-License-Identifier: AGPL-3.0-or-later
"""The stock implementation, as a peer: what ultralytics does with the same maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from ultralytics import YOLO
from ultralytics.nn.modules.block import DFL, SPPF
from ultralytics.nn.modules.head import Detect
from ultralytics.utils import nms
from ultralytics.utils.tal import dist2bbox


def stock_predictions(
    box_maps: Sequence[Tensor], cls_maps: Sequence[Tensor], strides: Sequence[float]
) -> Callable[[], Tensor]:
    """A call that decodes the maps as ultralytics' Detect head does: [B, 4 + C, A], boxes xywh in pixels, scores."""
    bins, classes = box_maps[0].shape[1] // 4, cls_maps[0].shape[1]
    head = Detect(nc=classes, reg_max=bins, ch=[1] * len(strides)).eval().to(box_maps[0])
    head.stride = torch.tensor(strides)

    def call() -> Tensor:
        with torch.inference_mode():
            boxes = torch.cat([x.view(len(x), 4 * bins, -1) for x in box_maps], -1)
            scores = torch.cat([x.view(len(x), classes, -1) for x in cls_maps], -1)
            return head._inference({"boxes": boxes, "scores": scores, "feats": list(box_maps)})

    return call


def stock_nms(predictions: Tensor, *, conf: float, iou: float, max_det: int, multi_label: bool) -> list[Tensor]:
    """ultralytics' non_max_suppression without its time limit, which drops images: [n, 6] of each image."""
    import torchvision  # type: ignore[import-untyped] # noqa: F401 - what it runs on if loaded, as in predict and val

    found: list[Tensor] = nms.non_max_suppression(
        predictions, conf, iou, max_det=max_det, multi_label=multi_label, max_time_img=float("inf")
    )
    return found


def stock_dfl_decode(logits: Tensor, anchor_points: Tensor, strides: Tensor) -> Callable[[], Tensor]:
    """A call of the DFL module and dist2bbox of ultralytics' Detect head: [B, 4, A], xyxy in pixels."""
    dfl = DFL(logits.shape[1] // 4).to(logits)
    points, strides = anchor_points.to(logits)[None], strides.to(logits)
    return lambda: dist2bbox(dfl(logits), points, xywh=False, dim=1) * strides


def stock_loss_decode(logits: Tensor, anchor_points: Tensor, strides: Tensor) -> Callable[[], Tensor]:
    """A call that decodes as ultralytics' loss does in training, which has the anchors before the logits: [B, A, 4]."""
    bins = torch.arange(logits.shape[1] // 4).to(logits)
    points, strides = anchor_points.T.to(logits), strides.to(logits)[:, None]

    def call() -> Tensor:
        of_sides = logits.permute(0, 2, 1).contiguous().view(len(logits), len(points), 4, -1)
        return dist2bbox(of_sides.softmax(3).matmul(bins), points, xywh=False) * strides

    return call


def stock_sppf(weights: str = "yolov8n.yaml") -> SPPF:
    """The SPPF block of a detection model, its normalisations folded, in evaluation mode."""
    network = YOLO(weights).model.eval().fuse(verbose=False)
    return next(module for module in network.modules() if isinstance(module, SPPF))
