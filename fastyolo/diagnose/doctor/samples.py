# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a data set consists of, and what its checks are held to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastyolo.diagnose.doctor.findings import Case, Finding
from fastyolo.diagnose.doctor.images import Image
from fastyolo.diagnose.doctor.labels import Labels


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
    """

    imgsz: int = 640
    strides: tuple[int, ...] = (8, 16, 32)
    max_det: int = 300
    min_objects: int = 20


@dataclass(frozen=True)
class Sample:
    """An image of a split, read."""

    split: str
    file: str
    labels_file: str
    image: Image
    labels: Labels

    def pixels(self, imgsz: int) -> npt.NDArray[np.float64]:
        """[n, 4] xyxy of its objects in the letterboxed square input."""
        scale = imgsz / max(self.image.width, self.image.height)
        size = np.array([self.image.width, self.image.height] * 2) * scale
        padding = (imgsz - size) / 2
        return self.labels.corners * size + padding

    def case(self, indices: npt.NDArray[np.intp] | list[int] | None = None, caption: str = "") -> Case:
        """The objects `indices`, or all of them, to be drawn."""
        corners = self.labels.corners if indices is None else self.labels.corners[indices]
        boxes = tuple((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in corners)
        return Case(self.file, boxes, (caption,) * len(boxes))
