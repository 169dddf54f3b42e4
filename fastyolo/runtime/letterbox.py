# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images to the network's input and boxes back, to the bit as ultralytics' LetterBox and scale_boxes do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from fastyolo.runtime.metadata import Preprocessing

Image = npt.NDArray[np.uint8]  # [H, W, 3] BGR, as OpenCV reads it
Float32 = npt.NDArray[np.float32]
Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network's input; pixels.

    Attributes:
        image: height and width of the image.
        resized: height and width in the input.
        top, left: its first row and column in the input.
    """

    image: Size
    resized: Size
    top: int
    left: int

    def to_image(self, boxes: Float32) -> Float32:
        """Boxes [N, 4] xyxy in pixels of the input to pixels of the image, clipped to it."""
        height, width = self.image
        gain = np.array([self.resized[1] / width, self.resized[0] / height] * 2, np.float32)
        shift = np.array([self.left, self.top] * 2, np.float32)
        limits = np.array([width, height] * 2, np.float32)
        return ((boxes - shift) / gain).clip(0, limits)


def place(image: Size, target: Size, stride: int | None = None) -> tuple[Placement, Size]:
    """The largest placement of an image, centred, in an input of `target` pixels; and the size of the input.

    With `stride`, the input is cut down to the image plus what makes its sides multiples of `stride` (those of
    `target` are).
    """
    gain = min(target[0] / image[0], target[1] / image[1])
    height, width = max(round(image[0] * gain), 1), max(round(image[1] * gain), 1)
    below, beside = target[0] - height, target[1] - width
    if stride:
        below, beside = below % stride, beside % stride
    # Of an odd margin, the smaller half comes first.
    return Placement(image, (height, width), below // 2, beside // 2), (height + below, width + beside)


class Letterbox:
    """Writes images into the tensor that a network takes."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        # Rounded once, from float64, so that a table of x * (1 / 255) is that of x / 255.
        self._values = (np.arange(256) * preprocessing.scale).astype(np.float32)
        self._padding = self._values[preprocessing.padding]
        self._channels = (2, 1, 0) if preprocessing.color == "RGB" else (0, 1, 2)

    def __call__(
        self, images: Sequence[Image], target: Size, stride: int | None, batch: int
    ) -> tuple[Float32, list[Placement]]:
        """The tensor [batch, 3, H, W] whose first images are these; all of them get the same input size.

        Args:
            images: at most `batch`; of one shape if `stride` is given.
            target: height and width of the input.
            stride: as for `place`.
            batch: what lies past the images is padding.
        """
        placed = [place((image.shape[0], image.shape[1]), target, stride) for image in images]
        tensor = np.full((batch, 3, *placed[0][1]), self._padding, np.float32)
        for planes, image, (placement, _) in zip(tensor, images, placed, strict=False):
            self._write(image, placement, planes)
        return tensor, [placement for placement, _ in placed]

    def _write(self, image: Image, placement: Placement, planes: Float32) -> None:
        height, width = placement.resized
        if placement.resized != placement.image:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
        rows = slice(placement.top, placement.top + height)
        columns = slice(placement.left, placement.left + width)
        channels = cv2.split(image)
        for plane, channel in zip(planes, self._channels, strict=True):
            cv2.LUT(channels[channel], self._values, dst=plane[rows, columns])
