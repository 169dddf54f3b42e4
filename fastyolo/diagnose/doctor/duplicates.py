# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images that are the same: byte for byte, or but for compression, size and brightness."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fastyolo.diagnose.doctor.images import Image

# Of the correlation of two thumbnails. Copies of photographs and of circuit boards that were saved as JPEG of quality
# 40 came to 0.9997 and more, copies of half the size to 0.9966 and more, half of them above 0.9994. Different images
# of one board came to 0.9976 at most, different photographs to 0.73.
SAME = 0.999

_SIDES = 1.02  # by how much the sides' ratio of a resized copy differs at most
_ROWS = 2048  # of the matrix of correlations, at a time


def equal(images: Sequence[Image]) -> Iterator[tuple[int, ...]]:
    """Groups of images whose files are equal byte for byte, as indices."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        if image.digest:
            groups[image.digest].append(index)
    return (tuple(group) for group in groups.values() if len(group) > 1)


def similar(images: Sequence[Image]) -> Iterator[tuple[int, int]]:
    """Pairs of images that look the same and whose files are not equal, as indices."""
    known = [index for index, image in enumerate(images) if image.thumbnail is not None]
    if not known:
        return
    unit = _normalised(image.thumbnail for image in images if image.thumbnail is not None)
    for start in range(0, len(known), _ROWS):
        correlation = unit[start : start + _ROWS] @ unit[start:].T
        for row, column in zip(*np.nonzero(np.triu(correlation > SAME, 1)), strict=True):
            first, second = known[start + row], known[start + column]
            if images[first].digest != images[second].digest and _alike(images[first], images[second]):
                yield first, second


def _normalised(thumbnails: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    """[n, SIDE * SIDE], each of mean 0 and norm 1, so that a product is a correlation."""
    values = np.stack(list(thumbnails)).astype(np.float32)
    values -= values.mean(1, keepdims=True)
    normalised: npt.NDArray[np.float32] = values / np.linalg.norm(values, axis=1, keepdims=True)
    return normalised


def _alike(a: Image, b: Image) -> bool:
    ratio = a.width / a.height * b.height / b.width
    return 1 / _SIDES < ratio < _SIDES
