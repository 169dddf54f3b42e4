# SPDX-License-Identifier: AGPL-3.0-or-later
"""Examines a data set: each image and each label file is read once, and everything is checked on what was read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from fastyolo.diagnose.doctor import image_checks, label_checks, model_checks, object_checks
from fastyolo.diagnose.doctor.findings import Report
from fastyolo.diagnose.doctor.images import Image
from fastyolo.diagnose.doctor.images import read as read_image
from fastyolo.diagnose.doctor.labels import Labels
from fastyolo.diagnose.doctor.labels import read as read_labels
from fastyolo.diagnose.doctor.model_checks import Model
from fastyolo.diagnose.doctor.outcomes import Detections
from fastyolo.diagnose.doctor.samples import Description, Sample, Settings
from fastyolo.runtime.sources import decode_image

_THREADS = 4  # decoders and reading release Python's lock
_TRAINING = 200  # images of the training split that a model is shown, at most


@dataclass(frozen=True)
class _Files:
    image: Image
    labels: Labels
    detections: Detections | None


@dataclass(frozen=True)
class Examination:
    """A data set, read, and what was found."""

    report: Report
    samples: tuple[Sample, ...]


def examine(
    description: Description,
    settings: Settings,
    model: Model | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Examination:
    """Everything that data alone can tell, and with a model, what the two tell of each other.

    Args:
        model: is shown the images of validation, and as many of training but 200 at most.
        progress: called with the images that are read and their number.
    """
    samples = tuple(_read(description, model, progress))
    report = Report(facts=_facts(description, samples))
    report.add(description.findings)
    report.add(image_checks.check(samples))
    report.add(label_checks.check(samples, description, settings))
    usable = [sample for sample in samples if sample.image.problem is None]
    report.add(object_checks.check(usable, description, settings))
    report.facts["objects"] = object_checks.statistics(usable, description, settings)
    if model:
        findings, report.facts["model"] = model_checks.check(usable, description, settings, model)
        report.add(findings)
    return Examination(report, samples)


def _read(description: Description, model: Model | None, progress: Callable[[int, int], None]) -> Iterator[Sample]:
    """Each file once, though splits may share it."""
    pairs = {pair.image: pair.labels for split in description.splits.values() for pair in split}
    show = _showing(model, description) if model else {}

    def files(pair: tuple[str, str]) -> _Files:
        file, labels = pair
        found: list[Detections] = []
        if find := show.get(file):
            image = read_image(file, lambda content: found.extend(find(content)))
        else:
            image = read_image(file)
        return _Files(image, read_labels(labels, len(description.names)), found[0] if found else None)

    read: dict[str, _Files] = {}
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # of broken EXIF and of very large images
        for file, found in zip(pairs, pool.map(files, pairs.items()), strict=True):
            read[file] = found
            progress(len(read), len(pairs))
    for split, members in description.splits.items():
        for pair in members:
            found = read[pair.image]
            yield Sample(split, pair.image, pair.labels, found.image, found.labels, found.detections)


def _showing(model: Model, description: Description) -> dict[str, Callable[[bytes], Iterator[Detections]]]:
    """By the file of each image that the model is shown, from its content to what is found in it, in the data set's
    classes; nothing of an image that OpenCV cannot decode."""
    splits = {split: [pair.image for pair in members] for split, members in description.splits.items()}
    train, val = splits.get("train", []), splits.get("val", [])
    count = min(len(train), len(val) or _TRAINING, _TRAINING)
    chosen = {train[index * len(train) // count] for index in range(count)} | set(val)
    numbers = model_checks.renumbering(model, description)

    def show(file: str) -> Callable[[bytes], Iterator[Detections]]:
        def find(content: bytes) -> Iterator[Detections]:
            try:
                image = decode_image(np.frombuffer(content, np.uint8), file)
            except ValueError:
                return
            found = model.find(image)
            classes = numbers[found.classes]
            known = classes >= 0
            yield Detections(found.boxes[known], found.scores[known], classes[known])

        return find

    return {file: show(file) for file in chosen}


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
