# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a data set consists of, and what its checks are held to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastyolo.diagnose.doctor.findings import Box, Case, Finding
from fastyolo.diagnose.doctor.images import Image
from fastyolo.diagnose.doctor.labels import Labels
from fastyolo.diagnose.doctor.outcomes import Detections


@dataclass(frozen=True)
class Pair:
    """An image file and the file in which its labels are looked for."""

    image: str
    labels: str


@dataclass(frozen=True)
class Description:
    """A data set's YAML file, resolved as ultralytics does.

    Attributes:
        names: of the classes.
        splits: the images of "train" and of "val", where they exist.
        unused: label files without an image.
        findings: what is wrong with the YAML file itself.
    """

    names: tuple[str, ...]
    splits: dict[str, tuple[Pair, ...]]
    unused: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        imgsz: side of the network's input, in pixels.
        strides: of its levels, ascending.
        max_det: detections per image, at most.
        min_objects: a class with fewer in training is rare.
        conf: score that a detection of a model must exceed to count as one.
    """

    imgsz: int = 640
    strides: tuple[int, ...] = (8, 16, 32)
    max_det: int = 300
    min_objects: int = 20
    conf: float = 0.25


@dataclass(frozen=True)
class Sample:
    """An image of a split, read.

    Attributes:
        detections: what the model finds; None if it was not shown the image.
    """

    split: str
    file: str
    labels_file: str
    image: Image
    labels: Labels
    detections: Detections | None = None

    def scale(self, imgsz: int) -> npt.NDArray[np.float64]:
        """[4], by which shares of its width and height are pixels of the network's input."""
        size = np.array([self.image.width, self.image.height] * 2, np.float64)
        return size * (imgsz / float(size.max()))

    def pixels(self, imgsz: int) -> npt.NDArray[np.float64]:
        """[n, 4] xyxy of its objects in the letterboxed square input."""
        size = self.scale(imgsz)
        return self.labels.corners * size + (imgsz - size) / 2

    def case(self, indices: npt.NDArray[np.intp] | list[int] | None = None, caption: str = "") -> Case:
        """The objects `indices`, or all of them, to be drawn."""
        boxes = as_boxes(self.labels.corners if indices is None else self.labels.corners[indices])
        return Case(self.file, boxes, (caption,) * len(boxes))


def as_boxes(corners: npt.NDArray[np.float64]) -> tuple[Box, ...]:
    """[n, 4] as `Case` holds them."""
    return tuple((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in corners)
