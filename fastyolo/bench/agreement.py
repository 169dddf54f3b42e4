# SPDX-License-Identifier: AGPL-3.0-or-later
"""Are two sets of detections the same, but for decisions that hang on a rounding error?

ultralytics separates the classes of an image by shifting the boxes of class c by 7680 c pixels before NMS. In float32
that rounds them: by up to 1/32 pixel at class 79, which changes the IoU of small boxes by several thousandths. So two
exact implementations differ from it where the IoU of two candidates lies close to the threshold, and NMS passes such a
difference on to the boxes that follow. `compare` therefore looks for the pairs behind a difference among the candidates
themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-5  # of a score or an IoU that lies at its threshold

_CLASS_OFFSET = 7680  # ultralytics' max_wh
_SAME_PIXELS = 0.02  # boxes of one anchor, decoded in another order of operations
_SAME_SCORE = 1e-5


@dataclass(frozen=True)
class Agreement:
    """How the detections of some images compare.

    Attributes:
        images: that were compared.
        detections: of the peer.
        differing: detections that only one of the two has.
        differing_images: in which there are any.
        close_pairs: pairs of candidates behind them: of one class, with an IoU within TOLERANCE of the threshold.
        rounded_pairs: further pairs that are on one side of it, and in ultralytics' shifted float32 boxes on the other.
        close_scores: differing detections with a score within TOLERANCE of the threshold.
        unexplained: differing detections beyond these, in images without such a pair.
    """

    images: int = 0
    detections: int = 0
    differing: int = 0
    differing_images: int = 0
    close_pairs: int = 0
    rounded_pairs: int = 0
    close_scores: int = 0
    unexplained: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def compare(
    ours: Iterable[Tensor],
    peers: Iterable[Tensor],
    predictions: Tensor,
    *,
    conf: float,
    iou: float,
    multi_label: bool,
    shifted: bool,
) -> Agreement:
    """Compare the detections of a batch: [n, 6] for each image, as x1, y1, x2, y2, score, class.

    Args:
        ours: of fastyolo.
        peers: of ultralytics.
        predictions: [B, 4 + C, A], boxes xywh and scores: what the peer's detections were selected from.
        conf: score threshold of both.
        iou: IoU threshold of both.
        multi_label: whether an anchor is a candidate for every class above the threshold.
        shifted: whether to accept pairs that the peer's class offsets round across the threshold.
    """
    total = Agreement()
    for mine, theirs, prediction in zip(ours, peers, predictions, strict=True):
        differing = _differing(mine.double(), theirs.double())
        image = Agreement(images=1, detections=len(theirs))
        if len(differing):
            close_scores = int(((differing[:, 4] - conf).abs() <= TOLERANCE).sum())
            close_pairs, rounded_pairs = _pairs_at_the_threshold(prediction, conf, iou, multi_label)
            rounded_pairs *= shifted
            image += Agreement(
                differing=len(differing),
                differing_images=1,
                close_pairs=close_pairs,
                rounded_pairs=rounded_pairs,
                close_scores=close_scores,
                unexplained=0 if close_pairs or rounded_pairs else len(differing) - close_scores,
            )
        total += image
    return total


def _differing(mine: Tensor, theirs: Tensor) -> Tensor:
    same = (
        ((mine[:, None, :4] - theirs[None, :, :4]).abs() <= _SAME_PIXELS).all(2)
        & ((mine[:, None, 4] - theirs[None, :, 4]).abs() <= _SAME_SCORE)
        & (mine[:, None, 5] == theirs[None, :, 5])
    )
    return torch.cat((mine[~same.any(1)], theirs[~same.any(0)]))


def _pairs_at_the_threshold(prediction: Tensor, conf: float, iou: float, multi_label: bool) -> tuple[int, int]:
    """prediction [4 + C, A] -> pairs with an IoU close to the threshold, others that the shift of the classes moves
    across it."""
    scores = prediction[4:]
    if not multi_label:
        best = scores.max(0)
        scores = torch.zeros_like(scores).scatter_(0, best.indices[None], best.values[None])
    labels, anchors = torch.where(scores > conf)
    centres, extents = prediction[:2, anchors].T, prediction[2:4, anchors].T
    boxes = torch.cat((centres - extents / 2, centres + extents / 2), 1)
    close = rounded = 0
    for label in set(labels.tolist()):
        exact = boxes[labels == label]
        overlap = _pairwise_iou(exact.double())
        shifted = _pairwise_iou(exact.float() + label * _CLASS_OFFSET)
        at_threshold = (overlap - iou).abs() <= TOLERANCE
        close += int(at_threshold.sum())
        rounded += int((((overlap > iou) != (shifted > iou)) & ~at_threshold).sum())
    return close, rounded


def _pairwise_iou(boxes: Tensor) -> Tensor:
    """boxes [N, 4] -> IoU of each unordered pair [N (N - 1) / 2], rounded as torchvision's nms rounds it."""
    first, second = torch.triu_indices(len(boxes), len(boxes), 1, device=boxes.device)
    a, b = boxes[first], boxes[second]
    extent = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    intersection = extent.prod(1)
    areas = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    return intersection / (areas[0] + areas[1] - intersection)
