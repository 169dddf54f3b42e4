# SPDX-License-Identifier: AGPL-3.0-or-later
"""Data sets of small images for the tests of doctor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 160, 120

Row = tuple[float, ...]
"""Class, x, y, width and height of an object."""


def scene(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth noise: as different from that of other seeds as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def write_labels(file: Path, rows: Sequence[Row]) -> None:
    file.write_text("".join(" ".join(f"{value:.6g}" for value in row) + "\n" for row in rows))


def read_labels(file: Path) -> list[Row]:
    return [(int(label), *map(float, box)) for label, *box in map(str.split, file.read_text().splitlines())]
