# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two sets of detections of one image: the same, but for decisions that hang on a rounding error?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fastyolo.diagnose.culprits import Difference
from fastyolo.runtime.metadata import Nms

# Usual thresholds, among which the settings that detections come from are looked for.
_IOUS = (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9)
_CONFS = (0.001, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)

Rows: TypeAlias = npt.NDArray[np.floating[Any]]  # [n, 6]: x1, y1, x2, y2, score, class
_Float = TypeVar("_Float", bound=np.floating[Any])


@dataclass(frozen=True)
class Match:
    """How the detections of a file compare with the checkpoint's.

    Attributes:
        pairs: detections that both have: of one class, with boxes that overlap but for `margin`.
        boxes: difference of the boxes of these, in pixels.
        scores: difference of the scores of these.
        close: candidates of the checkpoint that only one detected, whose score or IoU lies near a threshold or near
            another's.
        unexplained: further detections that only one has.
    """

    pairs: int
    boxes: Difference
    scores: Difference
    close: int
    unexplained: int

    def __or__(self, other: Match) -> Match:
        return Match(
            self.pairs + other.pairs,
            self.boxes | other.boxes,
            self.scores | other.scores,
            self.close + other.close,
            self.unexplained + other.unexplained,
        )


def match(candidate: Rows, reference: Rows, pool: Rows, nms: Nms, margin: float) -> Match:
    """Compare the detections of one image.

    Args:
        candidate: of the file.
        reference: of the checkpoint.
        pool: what the checkpoint's were selected from.
        nms: settings of both.
        margin: of scores and IoU that count as close to a threshold, or to each other.
    """
    ours, theirs = _pairs(_same(candidate, reference, margin))
    a, b = candidate[ours], reference[theirs]
    lone_ours = np.delete(candidate, ours, 0)
    lone_theirs = np.delete(reference, theirs, 0)
    known = _same(lone_ours, pool, margin).any(1) if len(pool) else np.zeros(len(lone_ours), bool)
    close = _close(lone_ours[known], lone_theirs, b, nms, margin)
    return Match(
        len(ours),
        Difference.between(a[:, :4], b[:, :4]),
        Difference.between(a[:, 4], b[:, 4]),
        close,
        len(lone_ours) + len(lone_theirs) - close,
    )


def _same(a: Rows, b: Rows, margin: float) -> Rows:
    """[n, m]: the IoU of detections that may be one and the same, elsewhere 0."""
    overlap = box_iou(a, b)
    return np.where((a[:, None, 5] == b[None, :, 5]) & (overlap > 1 - margin), overlap, 0)


def _pairs(overlap: Rows) -> tuple[list[int], list[int]]:
    """overlap [n, m] -> rows and columns of its largest elements above 0, each row and column once."""
    ours: list[int] = []
    theirs: list[int] = []
    left = overlap.copy()
    while left.size and left.max() > 0:
        row, column = np.unravel_index(left.argmax(), left.shape)
        ours.append(int(row))
        theirs.append(int(column))
        left[row], left[:, column] = 0, 0
    return ours, theirs


def _close(ours: Rows, theirs: Rows, common: Rows, nms: Nms, margin: float) -> int:
    """How many detections that only one side has are explained.

    One is missing on the other side because its score is at most the threshold there, because a better box suppresses
    it, because its anchor's best class is another, or because `max_det` cuts it off. The first and the last hang on
    scores, the others on the pair that it forms with a detection of the other side: on their IoU, if the other is
    common to both and so near the threshold; on the order of their scores; or on that detection's own fate.
    """
    lone = np.concatenate((ours, theirs))
    side = np.repeat((0, 1), (len(ours), len(theirs)))
    if not len(lone):
        return 0
    explained = np.abs(lone[:, 4] - nms.score_threshold) <= margin
    full = max(len(ours), len(theirs)) + len(common) >= nms.max_det
    if full:
        explained |= lone[:, 4] - min(lone[:, 4].min(), common[:, 4].min(initial=1)) <= margin
    same_class = (
        np.ones((len(lone), len(common)), bool) if nms.class_agnostic else lone[:, None, 5] == common[None, :, 5]
    )
    to_common = box_iou(lone, common)
    near = same_class & (
        (np.abs(to_common - nms.iou_threshold) <= margin)
        | ((to_common > nms.iou_threshold) & (np.abs(lone[:, None, 4] - common[None, :, 4]) <= margin))
    )
    explained |= near.any(1)
    to_lone = box_iou(lone, lone)
    rivals = (side[:, None] != side[None, :]) & (to_lone > nms.iou_threshold - margin)
    tied = np.abs(lone[:, None, 4] - lone[None, :, 4]) <= margin
    explained |= (rivals & tied).any(1)
    if not nms.class_agnostic:
        rivals &= lone[:, None, 5] == lone[None, :, 5]
    while True:
        spread = explained | (rivals & explained[None, :]).any(1)
        if (spread == explained).all():
            return int(explained.sum())
        explained = spread


def box_iou(a: npt.NDArray[_Float], b: npt.NDArray[_Float]) -> npt.NDArray[_Float]:
    """a [n, 4+], b [m, 4+], xyxy -> [n, m]; it does not matter in which unit x is, and in which y."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    intersection = (high - low).clip(0).prod(2)
    areas = [(x[:, 2:4] - x[:, :2]).prod(1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - intersection
    overlap: npt.NDArray[_Float] = intersection / np.where(union > 0, union, 1)
    return overlap


def neighbours(nms: Nms, rows: Sequence[Rows], expected: Sequence[int]) -> Iterator[list[Nms]]:
    """Settings that may explain detections, those of as many changes together, the fewest first.

    Args:
        nms: the settings asked for.
        rows: detections of each image.
        expected: how many there should be of each image.
    """
    lowest = min((float(x[:, 4].min()) for x in rows if len(x)), default=1.0)
    confs = {nms.score_threshold, max((conf for conf in _CONFS if conf <= lowest), default=_CONFS[0])}
    found = [
        replace(nms, score_threshold=conf, iou_threshold=iou, multi_label=multi_label, class_agnostic=agnostic)
        for conf in sorted(confs)
        for iou in sorted({nms.iou_threshold, *_IOUS})
        for multi_label in (False, True)
        for agnostic in (False, True)
    ]
    # One image with fewer detections than expected could always be one that a limit cuts off.
    limit = max(map(len, rows), default=0)
    if sum(len(x) == limit < count for x, count in zip(rows, expected, strict=True)) > 1:
        found += [replace(other, max_det=limit) for other in found]
    original = asdict(nms).items()
    changes = [len(original - asdict(other).items()) for other in found]
    for count in range(1, max(changes) + 1):
        yield [other for other, number in zip(found, changes, strict=True) if number == count]


def describe(nms: Nms, others: Sequence[Nms]) -> str:
    """What `others` change in `nms`: iou_threshold 0.4 or 0.45 instead of 0.7, or class_agnostic True ..."""
    groups: dict[Nms, list[float]] = {}
    for other in others:
        groups.setdefault(replace(other, iou_threshold=nms.iou_threshold), []).append(other.iou_threshold)
    clauses = []
    for other, ious in groups.items():
        changed = {name: str(value) for name, value in asdict(other).items() if value != getattr(nms, name)}
        if ious != [nms.iou_threshold]:
            changed["iou_threshold"] = " or ".join(f"{iou:g}" for iou in ious)
        clauses.append(" and ".join(f"{name} {got} instead of {getattr(nms, name)}" for name, got in changed.items()))
    return ", or with ".join(clauses)
