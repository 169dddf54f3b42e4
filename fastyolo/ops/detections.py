# SPDX-License-Identifier: AGPL-3.0-or-later
"""What decode_nms and multiclass_nms return."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Detections(NamedTuple):
    """Final detections of B images, best first, in tensors of a size that does not depend on the data.

    Only the first num_dets[b] rows of image b are detections; the rest hold 0 in boxes and scores, -1 in labels and
    indices. With one image, `boxes[0, :num_dets[0]]` are its boxes.
    """

    num_dets: Tensor
    """[B] int32: detections in each image."""
    boxes: Tensor
    """[B, max_det, 4] float32: left, top, right, bottom in pixels."""
    scores: Tensor
    """[B, max_det] float32: probabilities, in descending order."""
    labels: Tensor
    """[B, max_det] int32: class of each detection."""
    indices: Tensor
    """[B, max_det] int32: the anchor or input box that each detection comes from, to look up masks or features."""


def fake_detections(like: Tensor, max_det: int) -> Detections:
    """The outputs' shapes and dtypes for a batch of like.shape[0] images: what a fake kernel returns."""
    batch = like.shape[0]
    return Detections(
        num_dets=like.new_empty((batch,), dtype=torch.int32),
        boxes=like.new_empty((batch, max_det, 4), dtype=torch.float32),
        scores=like.new_empty((batch, max_det), dtype=torch.float32),
        labels=like.new_empty((batch, max_det), dtype=torch.int32),
        indices=like.new_empty((batch, max_det), dtype=torch.int32),
    )
