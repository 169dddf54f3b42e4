# SPDX-License-Identifier: AGPL-3.0-or-later
"""What became of each detection and of each object of an image.

The kinds of error are those of TIDE (https://arxiv.org/abs/2008.08115), with its overlaps of 0.5 and 0.1; a detection
that has both the class and the place wrong counts as a false alarm here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from fastyolo.diagnose.matching import box_iou

HIT = 0.5  # IoU from which a detection is on an object
NEAR = 0.1  # IoU from which it means the object

_SEEN = 0.05  # score from which a model has at least an idea of something


class Kind(str, Enum):
    """Of a detection."""

    hit = "hit"
    duplicate = "duplicate detection"
    wrong_class = "wrong class"
    misplaced = "badly placed box"
    false_alarm = "false alarm"


@dataclass(frozen=True)
class Detections:
    """What a model finds in an image.

    Attributes:
        boxes: [n, 4] xyxy, as shares of the image's width and height.
        scores: [n], descending.
        classes: [n].
    """

    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    classes: npt.NDArray[np.intp]


@dataclass(frozen=True)
class Outcomes:
    """
    Attributes:
        hits: [n] whether each detection, by descending score, is the first one of its class on an object.
        kinds: of the detections above the threshold, which are the first ones.
        objects: [n] the object that each detection is about; -1 for a false alarm.
        overlaps: [n] IoU with that object, or with whatever object is nearest.
        best: [m] of each object, the largest IoU with a detection of any class with a score of 0.05 or more.
        found: [m] whether a detection above the threshold hits the object.
        missed: [m] whether none above the threshold is about it.
    """

    hits: npt.NDArray[np.bool_]
    kinds: tuple[Kind, ...]
    objects: npt.NDArray[np.intp]
    overlaps: npt.NDArray[np.float64]
    best: npt.NDArray[np.float64]
    found: npt.NDArray[np.bool_]
    missed: npt.NDArray[np.bool_]

    def of(self, kind: Kind) -> list[int]:
        """The detections above the threshold that are of a kind."""
        return [index for index, other in enumerate(self.kinds) if other is kind]


def outcomes(
    detections: Detections, corners: npt.NDArray[np.float64], classes: npt.NDArray[np.intp], threshold: float
) -> Outcomes:
    """
    Args:
        corners: [m, 4] xyxy of the objects, as shares.
        classes: [m] of the objects.
        threshold: score that a detection must exceed to count as one.
    """
    overlaps = box_iou(detections.boxes, corners)
    same = overlaps * (detections.classes[:, None] == classes)
    hits, objects = _assigned(same)
    found = np.zeros(len(classes), bool)
    about = np.zeros(len(classes), bool)
    nearest = overlaps.max(1, initial=0.0)
    kinds = []
    for index in range(int((detections.scores > threshold).sum())):
        kind, target = Kind.hit, objects[index]
        if not hits[index]:
            kind, target = _error(same[index], overlaps[index])
        kinds.append(kind)
        if target >= 0:
            objects[index], nearest[index] = target, overlaps[index, target]
            found[target] |= kind is Kind.hit
            about[target] = True
    best = overlaps[detections.scores >= _SEEN].max(0, initial=0.0)
    return Outcomes(hits, tuple(kinds), objects, nearest, best, found, ~about)


def _assigned(same: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp]]:
    """Each detection, by descending score, takes the best object of its class that is free."""
    hits = np.zeros(len(same), bool)
    objects = np.full(len(same), -1, np.intp)
    free = np.ones(same.shape[1])
    for index in np.flatnonzero(same.max(1, initial=0.0) >= HIT):
        row = same[index] * free
        best = int(row.argmax())
        if row[best] >= HIT:
            hits[index], objects[index], free[best] = True, best, 0.0
    return hits, objects


def _error(same: npt.NDArray[np.float64], overlaps: npt.NDArray[np.float64]) -> tuple[Kind, int]:
    """Of a detection that hits nothing: its kind, and the object that it is about."""
    if not len(same):
        return Kind.false_alarm, -1
    own, other = int(same.argmax()), int(overlaps.argmax())
    if same[own] >= HIT:
        return Kind.duplicate, own
    if overlaps[other] >= HIT:
        return Kind.wrong_class, other
    return (Kind.misplaced, own) if same[own] >= NEAR else (Kind.false_alarm, -1)
