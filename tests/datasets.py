# SPDX-License-Identifier: AGPL-3.0-or-later
"""Data sets of small images for the tests of doctor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

WIDTH, HEIGHT = 160, 120

Row = tuple[float, ...]
"""Class, x, y, width and height of an object."""


def scene(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth noise: as different from that of other seeds as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def write_data_set(
    root: Path, counts: Mapping[str, int], objects: Callable[[], Iterable[Row]], names: Sequence[str], suffix: str
) -> None:
    """So many images for each split, numbered from 00, with what `objects` returns for each; and data.yaml."""
    seeds = itertools.count(1000)  # the first ones are for what tests put beside
    for split, count in counts.items():
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            scene(next(seeds)).save(root / "images" / split / f"{index:02}{suffix}", quality=90)
            write_labels(root / "labels" / split / f"{index:02}.txt", list(objects()))
    folders = {split: f"images/{split}" for split in counts}
    (root / "data.yaml").write_text(yaml.safe_dump({**folders, "names": dict(enumerate(names))}))


def write_labels(file: Path, rows: Sequence[Row]) -> None:
    file.write_text("".join(" ".join(f"{value:.6g}" for value in row) + "\n" for row in rows))


def read_labels(file: Path) -> list[Row]:
    return [(int(label), *map(float, box)) for label, *box in map(str.split, file.read_text().splitlines())]
