# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the models on the way find in a few images, beside their labels."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fastyolo.compress.pipeline.summary import File, Summary
from fastyolo.compress.report.words import baseline
from fastyolo.diagnose.doctor import labels
from fastyolo.integrations.ultralytics.doctor import describe
from fastyolo.runtime import Detector
from fastyolo.runtime.letterbox import Image
from fastyolo.runtime.sources import read_image

Numbers = npt.NDArray[Any]

SCORE = 0.25  # that a detection must exceed to be drawn

_SIDE = 640  # of a picture, at most
_QUALITY = 85  # of JPEG


@dataclass(frozen=True)
class Box:
    """In shares of the image's width and height."""

    left: float
    top: float
    width: float
    height: float
    label: int
    caption: str


@dataclass(frozen=True)
class Panel:
    """What one model, or who labelled the image, found in it.

    Attributes:
        found: in words.
    """

    title: str
    boxes: tuple[Box, ...]
    found: str


@dataclass(frozen=True)
class Example:
    """An image of the validation split.

    Attributes:
        picture: a data URI of JPEG.
        width, height: of the image, in pixels.
        problem: why there is no picture; empty if there is one.
    """

    name: str
    picture: str = ""
    width: int = 0
    height: int = 0
    panels: tuple[Panel, ...] = ()
    problem: str = ""


def make(summary: Summary, folder: Path) -> list[Example]:
    """Of each example image: its labels, and the detections of the baseline, the last float32 and the INT8 model.

    Args:
        folder: of the run.
    """
    if not summary.data.examples:
        return []
    names = summary.data.classes
    objects = _labels(summary)
    detectors = {title: Detector(folder / file.path, conf=SCORE) for title, file in _models(summary).items()}
    examples = []
    for file in summary.data.examples:
        try:
            image = read_image(file)
        except (OSError, ValueError) as error:
            examples.append(Example(Path(file).name, problem=str(error)))
            continue
        height, width = image.shape[:2]
        label = objects.get(file)
        panels = [_panel("Label", *label, names) if label else Panel("Label", (), "not found")]
        for title, detector in detectors.items():
            boxes, scores, classes = detector(image)
            panels.append(_panel(title, boxes / [width, height, width, height], classes, names, scores))
        examples.append(Example(Path(file).name, _data_uri(image), width, height, tuple(panels)))
    return examples


def _models(summary: Summary) -> dict[str, File]:
    """By title, the files that stand for the baseline, for the last stage in float32, and for the last one in INT8."""
    measured = [stage for stage in summary.stages if stage.files]
    chosen: dict[str, File] = {}
    if first := baseline(summary):
        chosen["Baseline"] = first.files[0]
    for precision, title in (("float32", "Final float32"), ("int8", "INT8")):
        stages = [stage for stage in measured if stage.files[0].precision == precision]
        if stages and stages[-1] is not first:
            chosen[title] = stages[-1].files[0]
    return chosen


def _labels(summary: Summary) -> dict[str, tuple[Numbers, Numbers]]:
    """Corners and classes of the objects of the example images, by their paths in the summary."""
    pairs = {pair.image: pair.labels for split in describe(summary.data.path).splits.values() for pair in split}
    found = {}
    for file in summary.data.examples:
        if label_file := pairs.get(file):
            read = labels.read(label_file, len(summary.data.classes))
            found[file] = (read.corners, read.classes)
    return found


def _panel(
    title: str, corners: Numbers, classes: Numbers, names: Sequence[str], scores: Numbers | None = None
) -> Panel:
    """
    Args:
        corners: [n, 4] xyxy in shares of the image's width and height.
    """
    boxes = []
    for index, ((left, top, right, bottom), label) in enumerate(zip(corners.tolist(), classes.tolist(), strict=True)):
        caption = names[label] if scores is None else f"{names[label]} {scores[index]:.2f}"
        boxes.append(Box(left, top, right - left, bottom - top, label, caption))
    counts = Counter(names[box.label] for box in boxes)
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
    return Panel(title, tuple(boxes), found)


def _data_uri(image: Image) -> str:
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(content.tobytes()).decode('ascii')}"
