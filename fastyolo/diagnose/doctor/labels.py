# SPDX-License-Identifier: AGPL-3.0-or-later
"""Label files of YOLO's format: a line of class, x, y, width and height, or of class and polygon, for each object."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

# ultralytics takes coordinates that are so far beyond the image's border.
TOLERANCE = 0.01

_NOT_FINITE = "NaN or infinite label"


@dataclass(frozen=True)
class Flaw:
    """What ultralytics holds against a line: the name of a finding, and what was expected as a clause."""

    name: str
    clause: str


@dataclass(frozen=True)
class Labels:
    """What a label file says.

    Attributes:
        exists: an image may go without; it then counts as one without objects.
        readable: as text.
        classes: [n] of the lines without a flaw.
        boxes: [n, 4], their centres, widths and heights as shares of the image's; of polygons, the box around.
        polygons: how many of the lines are such.
        flaws: the others, by their numbers.
        repeated: lines that are there before.
    """

    exists: bool
    readable: bool = True
    classes: npt.NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    boxes: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 4)))
    polygons: int = 0
    flaws: tuple[tuple[int, Flaw], ...] = ()
    repeated: int = 0

    @property
    def empty(self) -> bool:
        return self.exists and self.readable and not len(self.boxes) and not self.flaws

    @property
    def mixed(self) -> bool:
        """Boxes and polygons are in one file, which ultralytics refuses."""
        return 0 < self.polygons < len(self.boxes)

    @property
    def corners(self) -> npt.NDArray[np.float64]:
        """[n, 4] xyxy, as shares of the image's width and height."""
        half = self.boxes[:, 2:] / 2
        return np.concatenate((self.boxes[:, :2] - half, self.boxes[:, :2] + half), 1)


def read(file: str, classes: int) -> Labels:
    """
    Args:
        classes: how many the data set has.
    """
    path = Path(file)
    if not path.is_file():
        return Labels(exists=False)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return Labels(exists=True, readable=False)
    flaws: list[tuple[int, Flaw]] = []
    rows: dict[tuple[float, ...], int] = {}
    repeated = 0
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if found := flaw(words, classes):
            flaws.append((number, found))
            continue
        row = tuple(map(float, words))
        repeated += row in rows
        rows.setdefault(row, number)
    polygons = sum(len(row) > 6 for row in rows)
    boxes = [row[1:] if len(row) == 5 else _around(row[1:]) for row in rows]
    return Labels(
        exists=True,
        classes=np.array([row[0] for row in rows], np.intp),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        polygons=polygons,
        flaws=tuple(flaws),
        repeated=repeated,
    )


def flaw(words: list[str], classes: int | None) -> Flaw | None:
    """What ultralytics holds against a line of a label file, a box or a polygon.

    Args:
        classes: how many the data set has; None if any class will do.
    """
    polygon = len(words) > 6
    if len(words) != 5 and not (polygon and len(words) % 2):
        return Flaw("wrong number of columns", f"expected 5 numbers, class, x, y, width and height, got {len(words)}")
    try:
        label, *coordinates = map(float, words)
    except ValueError:
        return Flaw("not a number", f"expected numbers, got {' '.join(words)!r}")
    finite = all(map(math.isfinite, (label, *coordinates)))
    if not (label >= 0 and label.is_integer() and (classes is None or label < classes)):
        expected = "0 or more" if classes is None else f"one of the data set's, 0 to {classes - 1}"
        name = "unknown class" if label.is_integer() else "class that is no integer"
        return Flaw(name if finite else _NOT_FINITE, f"expected a class that is {expected}, got {words[0]}")
    sizes = [] if polygon else coordinates[2:]
    bad = [value for value in coordinates if not -TOLERANCE <= value <= 1 + TOLERANCE]
    bad += [value for value in sizes if value < 0]
    if bad:
        clause = f"expected coordinates in [0, 1], as shares of the image's width and height, got {bad[0]:g}"
        return Flaw("coordinates out of range" if finite else _NOT_FINITE, clause)
    return None


def _around(points: tuple[float, ...]) -> tuple[float, ...]:
    """Centre, width and height of the box around x1, y1, x2, y2, ..."""
    x, y = points[::2], points[1::2]
    return (min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x), max(y) - min(y)
