# SPDX-License-Identifier: AGPL-3.0-or-later
"""A detection data set of shapes of random colours, sizes and turns on cluttered ground.

Only its outline tells what a shape is, so that a network has to learn outlines, and does within a minute on two cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fastyolo.runtime.letterbox import Image

SIZE = 96  # of an image, in pixels
IMAGES = {"train": 320, "val": 96}

# The corners of each class, by angle in degrees and distance from the centre.
_OUTLINES = {
    "disc": [(angle, 1.0) for angle in range(0, 360, 10)],
    "triangle": [(angle, 1.0) for angle in (0, 120, 240)],
    "cross": [
        (arm + angle, distance) for arm in (0, 90, 180, 270) for angle, distance in ((-18, 1), (18, 1), (45, 0.45))
    ],
}
NAMES = tuple(_OUTLINES)
_DESCRIPTION = "train: images/train\nval: images/val\nnames:\n" + "".join(
    f"  {label}: {name}\n" for label, name in enumerate(NAMES)
)

_SHAPES = 6  # in an image, at most
_RADII = (7, 24)
_CONTRAST = 80  # of a shape's colour to the ground, in the channel where it is highest
_BITS = 4  # that OpenCV draws fractions of a pixel with

Corners = npt.NDArray[np.float64]  # [n, 2] of x and y, in pixels
Random = np.random.Generator


def write(folder: Path) -> Path:
    """Write the data set in YOLO's layout unless it is there. The same files come out every time.

    Returns:
        Its YAML file, `folder`/data.yaml.

    Raises:
        FileExistsError: the folder holds something else.
    """
    file = folder / "data.yaml"
    if file.is_file() and file.read_bytes() == _DESCRIPTION.encode():
        return file
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds something else than the generated data set; choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        made = Path(scratch) / "made"
        for split, count in IMAGES.items():
            _write_split(made, split, count, np.random.default_rng(list(split.encode())))
        (made / file.name).write_text(_DESCRIPTION, encoding="utf-8")
        made.rename(folder)
    return file


def _write_split(folder: Path, split: str, count: int, random: Random) -> None:
    images, labels = folder / "images" / split, folder / "labels" / split
    for part in (images, labels):
        part.mkdir(parents=True)
    for number in range(count):
        image, lines = _ground(random), []
        for label, corners in _shapes(random):
            _draw(image, corners, random)
            low, high = corners.min(0) / SIZE, corners.max(0) / SIZE
            lines.append(" ".join(map(str, (label, *((low + high) / 2).round(6), *(high - low).round(6)))) + "\n")
        noisy = (image + random.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
        if not cv2.imwrite(file := str(images / f"{number:03}.png"), noisy):
            raise OSError(f"{file} could not be written; look at the space that is left.")
        (labels / f"{number:03}.txt").write_text("".join(lines), encoding="utf-8")


def _ground(random: Random) -> Image:
    """Soft patches of colour, with thin lines across."""
    patches = random.integers(90, 166, (4, 4, 3), np.uint8)
    image = cv2.resize(patches, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
    for _ in range(random.integers(3, 9)):
        start, end = random.integers(0, SIZE, (2, 2)).tolist()
        cv2.line(image, start, end, random.integers(0, 256, 3).tolist(), 1, cv2.LINE_AA)
    return image


def _shapes(random: Random) -> Iterator[tuple[int, Corners]]:
    """Classes and outlines of shapes that lie in the image and apart from each other."""
    taken = np.zeros((SIZE, SIZE), bool)
    for _ in range(random.integers(1, _SHAPES + 1)):
        label = int(random.integers(len(NAMES)))
        radius = np.exp(random.uniform(*np.log(_RADII)))  # small ones are as many as large ones
        angles, distances = np.array(_OUTLINES[NAMES[label]]).T
        angles = np.radians(angles + random.uniform(0, 360))
        centre = random.uniform(radius, SIZE - radius, 2)
        corners = centre + radius * distances[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)
        (left, top), (right, bottom) = corners.min(0).astype(int), corners.max(0).astype(int) + 1
        if not taken[top:bottom, left:right].any():
            taken[top:bottom, left:right] = True
            yield label, corners


def _draw(image: Image, corners: Corners, random: Random) -> None:
    """Fill an outline with a colour that stands out from the ground."""
    x, y = corners.mean(0).astype(int)
    colour = random.integers(0, 256, 3)
    while np.abs(colour - image[y, x]).max() < _CONTRAST:
        colour = random.integers(0, 256, 3)
    points = ((corners - 0.5) * 2**_BITS).round().astype(np.int32)  # OpenCV counts from the centre of a pixel
    cv2.fillPoly(image, [points], colour.tolist(), cv2.LINE_AA, _BITS)
