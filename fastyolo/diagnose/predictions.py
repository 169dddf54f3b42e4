# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an exported model says of its anchors, in one form whatever its outputs are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastyolo import _C
from fastyolo.diagnose.culprits import Array, to_xyxy
from fastyolo.runtime.metadata import Metadata, Nms

Outputs = Mapping[str, npt.NDArray[Any]]

_MOST_ANCHORS = 65536  # that a call of decode_nms can return


@dataclass(frozen=True)
class Predictions:
    """Boxes and scores of an image's anchors, of all or of those that were detected.

    Attributes:
        anchors: [n], by index.
        boxes: [n, 4] xyxy in input pixels.
        scores: [n, C], or [n] of the classes `labels`.
        labels: [n], or None.
        note: which anchors these are.
    """

    anchors: npt.NDArray[Any]
    boxes: Array
    scores: Array
    labels: npt.NDArray[Any] | None
    note: str

    def same_of(self, predictions: Array) -> tuple[Array, Array]:
        """The same boxes and scores out of predictions [4 + C, A]; zeros of anchors and classes that it lacks."""
        columns = _taken(predictions.T, self.anchors)
        boxes, scores = columns[:, :4], columns[:, 4:]
        if self.labels is not None:
            known = (self.labels >= 0) & (self.labels < scores.shape[1])
            scores = scores[np.arange(len(scores)), np.where(known, self.labels, 0)] * known
        return boxes, scores

    def classes_of(self, predictions: Array) -> npt.NDArray[np.floating[Any]]:
        """The scores [n, C] of all classes of the same anchors, out of predictions [4 + C, A]."""
        return _taken(predictions[4:].T, self.anchors)


def _taken(rows: Array, indices: npt.NDArray[Any]) -> Array:
    """[A, k] -> [n, k]; zeros where an index is not in 0 to A - 1."""
    known = (indices >= 0) & (indices < len(rows))
    return rows[np.where(known, indices, 0)] * known[:, None]


def predictions(metadata: Metadata, outputs: Outputs) -> Predictions:
    """Those of the first image of a run's outputs; of maps, as the kernel of `Detector` decodes them."""
    if metadata.outputs == "maps":
        return _of_maps(metadata, [output[:1] for output in outputs.values()])
    if metadata.outputs == "boxes":
        (output,) = outputs.values()
        boxes = to_xyxy(output[0, :4].T)
        return Predictions(np.arange(len(boxes)), boxes, output[0, 4:].T, None, f"{len(boxes)} anchors")
    count = int(outputs["num_dets"][0])
    anchors, boxes, scores, labels = (outputs[name][0, :count] for name in ("indices", "boxes", "scores", "labels"))
    return Predictions(anchors, boxes, scores, labels, "at the anchors of the detections")


def _of_maps(metadata: Metadata, maps: list[Array]) -> Predictions:
    levels = len(maps) // 2
    found = []
    first = 0  # anchor of the level
    for stride, box_map, cls_map in zip(metadata.strides, maps[:levels], maps[levels:], strict=True):
        height, width = box_map.shape[2:]
        rows = max(_MOST_ANCHORS // width, 1)
        for top in range(0, height, rows):
            strip = slice(top, top + rows)
            anchors, boxes, scores, labels = _of_strip(box_map[:, :, strip], cls_map[:, :, strip], stride)
            offset = np.array([0, top * stride] * 2, np.float32)
            found.append((anchors + first + top * width, boxes + offset, scores, labels))
        first += height * width
    anchors, boxes, scores, labels = map(np.concatenate, zip(*found, strict=True))
    return Predictions(anchors, boxes, scores, labels, f"{len(anchors)} anchors, the best class of each")


def _of_strip(box_map: Array, cls_map: Array, stride: int) -> tuple[npt.NDArray[Any], Array, Array, npt.NDArray[Any]]:
    """Anchors, boxes, scores and labels as in `Predictions`, as if the upper left cell were the image's."""
    anchors = box_map.shape[2] * box_map.shape[3]
    everything = Nms(0.0, 1.0, anchors, anchors, multi_label=False, class_agnostic=False)
    counts, boxes, scores, labels, indices = _C.decode_nms([box_map], [cls_map], [stride], **asdict(everything))
    found = slice(counts[0])
    return indices[0, found], boxes[0, found], scores[0, found], labels[0, found]
