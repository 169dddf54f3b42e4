# SPDX-License-Identifier: AGPL-3.0-or-later
"""How well a detection model finds the objects of a data set: mAP, and recall by their size."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics.engine.model import Model
from ultralytics.utils import ops
from ultralytics.utils.metrics import box_iou

__all__ = ["IOU", "SCORE", "SIZES", "Accuracy", "Recall", "evaluate"]

SCORE, IOU = 0.25, 0.5  # what a detection must exceed, and reach, to count as a find
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # areas in pixels, as in COCO


@dataclass
class Recall:
    """Objects of a size, and how many of them are found."""

    objects: int = 0
    found: int = 0

    @property
    def value(self) -> float | None:
        return self.found / self.objects if self.objects else None


@dataclass
class Accuracy:
    """mAP is ultralytics'. An object is found if a detection of its class with a score above SCORE overlaps it by an
    IoU of IOU or more, each detection finding one object. Its size is that of its box in pixels of the image file.
    """

    map50: float = 0.0
    map50_95: float = 0.0
    images: list[str] = field(default_factory=list)
    recall: dict[str, Recall] = field(default_factory=lambda: {size: Recall() for size in SIZES})

    def count(self, boxes: Tensor, labels: Tensor, objects: Tensor, object_labels: Tensor, areas: Tensor) -> None:
        """Add the objects of one image to the recall.

        Args:
            boxes: [N, 4] xyxy of the detections by descending score, and their classes in `labels` [N].
            objects: [M, 4] xyxy in the same pixels, with `object_labels` [M] and, in pixels of the file, `areas` [M].
        """
        overlaps = box_iou(boxes, objects).where(labels[:, None] == object_labels, 0.0)
        hit = matched(overlaps.cpu()).to(areas.device)  # whose loop would wait for a GPU at every detection
        for size, (low, high) in SIZES.items():
            of_size = (areas >= low) & (areas < high)
            self.recall[size].objects += int(of_size.sum())
            self.recall[size].found += int((of_size & hit).sum())


def matched(overlaps: Tensor) -> Tensor:
    """Which objects (columns) are found: each detection (rows, by descending score) takes its best one that is free."""
    found = torch.zeros(overlaps.shape[1], dtype=torch.bool, device=overlaps.device)
    if found.numel() == 0:
        return found
    for row in overlaps:
        best = int(row.masked_fill(found, 0.0).argmax())
        found[best] |= bool(row[best] >= IOU)
    return found


def evaluate(
    model: Model,
    data: str,
    imgsz: int,
    *,
    device: str | None = None,
    on_batch: Callable[[float], None] = lambda share: None,
) -> Accuracy:
    """Accuracy on the validation images, letterboxed to imgsz x imgsz, in one pass of ultralytics' validator.

    Args:
        data: data set, as ultralytics describes it.
        on_batch: called after each batch with the share of the images that is done.
    """
    accuracy = Accuracy()
    base: Any = model._smart_load("validator")  # that of an accelerated model is accelerated

    class Validator(base):
        def update_metrics(self, preds: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
            for index, found in enumerate(preds):
                truth = self._prepare_batch(index, batch)
                sure = found["conf"] > SCORE
                boxes = truth["bboxes"]
                in_file = ops.scale_boxes(truth["imgsz"], boxes.clone(), truth["ori_shape"], truth["ratio_pad"])
                areas = (in_file[:, 2:] - in_file[:, :2]).prod(1)
                accuracy.count(found["bboxes"][sure], found["cls"][sure], boxes, truth["cls"], areas)
            super().update_metrics(preds, batch)
            accuracy.images += batch["im_file"]
            on_batch(self.seen / len(self.dataloader.dataset))

    with tempfile.TemporaryDirectory() as scratch:  # ultralytics makes a folder in any case
        settings = {"imgsz": imgsz, "rect": False, "device": device, "plots": False, "save_dir": scratch}
        metrics = model.val(validator=Validator, data=data, **settings, verbose=False)
    accuracy.map50, accuracy.map50_95 = float(metrics.box.map50), float(metrics.box.map)
    return accuracy
