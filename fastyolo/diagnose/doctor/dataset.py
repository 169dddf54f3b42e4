# SPDX-License-Identifier: AGPL-3.0-or-later
"""Examines a data set: each image and each label file is read once, and everything is checked on what was read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

from fastyolo.diagnose.doctor import image_checks, label_checks, object_checks
from fastyolo.diagnose.doctor.findings import Report
from fastyolo.diagnose.doctor.images import Image
from fastyolo.diagnose.doctor.images import read as read_image
from fastyolo.diagnose.doctor.labels import Labels
from fastyolo.diagnose.doctor.labels import read as read_labels
from fastyolo.diagnose.doctor.samples import Description, Sample, Settings

_THREADS = 4  # decoders and reading release Python's lock


@dataclass(frozen=True)
class _Files:
    image: Image
    labels: Labels


def examine(
    description: Description,
    settings: Settings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Everything that data alone can tell.

    Args:
        progress: called with the images that are read and their number.
    """
    samples = list(_read(description, progress))
    report = Report(facts=_facts(description, samples))
    report.add(description.findings)
    report.add(image_checks.check(samples))
    report.add(label_checks.check(samples, description, settings))
    usable = [sample for sample in samples if sample.image.problem is None]
    report.add(object_checks.check(usable, description, settings))
    report.facts["objects"] = object_checks.statistics(usable, description, settings)
    return report


def _read(description: Description, progress: Callable[[int, int], None]) -> Iterator[Sample]:
    """Each file once, though splits may share it."""
    pairs = {pair.image: pair.labels for split in description.splits.values() for pair in split}
    classes = len(description.names) or None
    read: dict[str, _Files] = {}
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # of broken EXIF and of very large images
        found = pool.map(lambda pair: _Files(read_image(pair[0]), read_labels(pair[1], classes)), pairs.items())
        for file, files in zip(pairs, found, strict=True):
            read[file] = files
            progress(len(read), len(pairs))
    for split, members in description.splits.items():
        for pair in members:
            files = read[pair.image]
            yield Sample(split, pair.image, pair.labels, files.image, files.labels)


def _facts(description: Description, samples: Sequence[Sample]) -> dict[str, Any]:
    sizes: Mapping[str, list[int]] = {
        "width": [sample.image.width for sample in samples if sample.image.width],
        "height": [sample.image.height for sample in samples if sample.image.height],
    }
    return {
        "classes": list(description.names),
        "images": {split: len(members) for split, members in description.splits.items()},
        "sizes": {
            side: {"least": min(values), "median": median(values), "most": max(values)}
            for side, values in sizes.items()
            if values
        },
    }
