# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pictures of the worst cases, with their boxes in red and, where these are not labels, the labels in green."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from fastyolo._files import replacing
from fastyolo.diagnose.doctor.findings import Box, Case, Report
from fastyolo.runtime.letterbox import Image
from fastyolo.runtime.sources import read_image

_SIDE = 960  # of a picture, at most
_COLOUR, _LABELS = (0, 0, 255), (0, 200, 0)


def save(report: Report, folder: Path) -> list[Path]:
    """Write the cases of each finding as FOLDER/finding-name/1-image.jpg, 2-..., and return the files.

    Images that OpenCV cannot read are left out with a warning.
    """
    written = []
    numbers: Counter[str] = Counter()
    problems: dict[str, None] = {}  # each once, though several findings may be about an image
    for finding in report.findings:
        for case in finding.cases:
            try:
                picture = _drawn(case)
            except (OSError, ValueError) as error:
                problems[str(error)] = None
                continue
            numbers[finding.name] += 1
            name = f"{numbers[finding.name]}-{Path(case.image).stem}.jpg"
            path = folder / finding.name.replace(": ", "-").replace(" ", "-") / name
            _, content = cv2.imencode(".jpg", picture)
            with replacing(path) as temporary:
                temporary.write_bytes(content.tobytes())
            written.append(path)
    for problem in problems:
        warnings.warn(f"A picture is left out: {problem}", stacklevel=2)
    return written


def _drawn(case: Case) -> Image:
    picture = read_image(case.image)
    scale = min(1.0, _SIDE / max(picture.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    for box in case.labels:
        cv2.rectangle(picture, *_ends(box, width, height), _LABELS, 1)
    for box, caption in zip(case.boxes, case.captions, strict=True):
        start, end = _ends(box, width, height)
        cv2.rectangle(picture, start, end, _COLOUR, 2)
        if caption:
            place = (start[0], max(start[1] - 4, 12))
            cv2.putText(picture, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, _COLOUR, 1, cv2.LINE_AA)
    return picture


def _ends(box: Box, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    x1, y1, x2, y2 = box
    return (round(x1 * width), round(y1 * height)), (round(x2 * width), round(y2 * height))
