# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a detector returns: arrays with names, as JSON, and drawn into the image."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fastyolo.runtime.letterbox import Float32, Image
from fastyolo.runtime.sources import to_bgr


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of one image, by descending score; unpacks as `boxes, scores, labels`.

    Attributes:
        boxes: [N, 4] float32, xyxy in pixels of the image, clipped to it.
        scores: [N] float32.
        labels: [N] int32, class of each.
        names: of all classes.
    """

    boxes: Float32
    scores: Float32
    labels: npt.NDArray[np.int32]
    names: tuple[str, ...]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return iter((self.boxes, self.scores, self.labels))

    def to_json(self) -> list[dict[str, Any]]:
        """A dictionary of class, name, score and box for each, of JSON's types."""
        rows = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [{"class": label, "name": self.names[label], "score": score, "box": box} for label, score, box in rows]

    def draw(self, image: npt.NDArray[Any]) -> Image:
        """A copy of the image, as BGR, with boxes, names and scores; '?' for characters that OpenCV's font lacks.

        Raises:
            TypeError, ValueError: it is not an array that a detector takes.
        """
        canvas: Image = to_bgr(image).copy()
        thickness = max(round(sum(image.shape[:2]) * 0.0015), 2)
        for box, score, label in reversed(list(zip(*self, strict=True))):  # the surest on top
            left, top, right, bottom = box.round().astype(int).tolist()
            color, text_color = _colors(int(label))
            cv2.rectangle(canvas, (left, top), (right, bottom), color, thickness, cv2.LINE_AA)
            _write(canvas, f"{self.names[label]} {score:.2f}", left, top, thickness, color, text_color)
        return canvas


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a stream with its detections.

    Attributes:
        path: of the file; the number or the URL of a camera.
        number: of the frame in a video or from a camera; 0 for an image.
        total: frames of the video as it announces them, or images of the source; None for a camera.
        rate: frames per second of a video or camera; None for an image.
        image: [H, W, 3] uint8 BGR.
        detections: of the image.
        milliseconds: of preprocess, inference and postprocess.
    """

    path: str
    number: int
    total: int | None
    rate: float | None
    image: Image
    detections: Detections
    milliseconds: dict[str, float]


def _write(
    canvas: Image,
    text: str,
    left: int,
    top: int,
    thickness: int,
    color: tuple[int, ...],
    text_color: tuple[int, ...],
) -> None:
    font, scale, stroke = cv2.FONT_HERSHEY_SIMPLEX, thickness / 3, max(thickness - 1, 1)
    (width, height), below = cv2.getTextSize(text, font, scale, stroke)
    left = max(min(left, canvas.shape[1] - width), 0)
    baseline = max(top - below, height + 1)  # inside the image if there is no room above the box
    cv2.rectangle(canvas, (left, baseline - height - 1), (left + width, baseline + below), color, cv2.FILLED)
    cv2.putText(canvas, text, (left, baseline), font, scale, text_color, stroke, cv2.LINE_AA)


def _colors(label: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """BGR of a class's boxes and of the text on them. Hues a golden section apart are never near each other."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 0.95)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.6
    return (round(255 * blue), round(255 * green), round(255 * red)), ((255,) * 3 if dark else (0,) * 3)
