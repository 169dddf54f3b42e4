# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which anchors a box can get: the geometry of YOLOv8's task-aligned assigner, without a model.

An anchor is a candidate for a box if its centre lies in the box, whose sides are enlarged to the second level's stride
where they are smaller (ultralytics' TaskAlignedAssigner.select_candidates_in_gts). Of its candidates a box is given the
ten with the best predictions, and an anchor that two boxes claim goes to one of them. So boxes that have less than one
candidate each, all claims counted, cannot all be learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def candidates(
    boxes: npt.NDArray[np.float64], imgsz: int, strides: Sequence[int]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """How many anchors of each level are candidates, and how many of them are left for each box.

    Args:
        boxes: [n, 4] xyxy in pixels of the network's square input of the side `imgsz`.
        strides: of the levels, ascending.

    Returns:
        [levels, n] the candidates, and [n] the sum over them of 1 / (number of boxes that claim the anchor).
    """
    least = strides[1] if len(strides) > 1 else strides[0]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = np.maximum(boxes[:, 2:] - boxes[:, :2], least) / 2
    counts = np.zeros((len(strides), len(boxes)), np.intp)
    shares = np.zeros(len(boxes))
    for level, stride in enumerate(strides):
        cells = -(-imgsz // stride)
        # The centre of cell i is (i + 0.5) * stride, and must lie strictly inside.
        first = np.floor((centres - half) / stride - 0.5).astype(np.intp) + 1
        last = np.ceil((centres + half) / stride - 0.5).astype(np.intp)
        first, last = first.clip(0, cells), last.clip(0, cells)
        claims = np.zeros((cells, cells))
        for (x1, y1), (x2, y2) in zip(first, last, strict=True):
            claims[y1:y2, x1:x2] += 1
        counts[level] = (last - first).clip(0).prod(1)
        for index, ((x1, y1), (x2, y2)) in enumerate(zip(first, last, strict=True)):
            shares[index] += (1 / claims[y1:y2, x1:x2]).sum()
    return counts, shares
