# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether the classes and the sizes of a data set's objects let a model learn them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastyolo._names import distinct_names
from fastyolo.diagnose.doctor.anchors import candidates
from fastyolo.diagnose.doctor.findings import Finding, Severity, counted, share
from fastyolo.diagnose.doctor.samples import Description, Sample, Settings

_NAMED = 5  # classes in a sentence
_IMBALANCE = 100  # times the objects of the rarest class that has any
_SHIFTED = 0.2  # total variation distance of the splits' classes: so much of one split would have to change class
_SIGNIFICANT = 3.0  # times what chance alone makes of that distance
_MANY_SMALL = 0.2  # of the objects
_DEAD = 0.01  # of the objects


def check(samples: Sequence[Sample], description: Description, settings: Settings) -> Iterator[Finding]:
    """
    Args:
        samples: whose images can be read.
    """
    counts = _counts(samples, description)
    if description.names and any(map(np.any, counts.values())):
        yield from _of_classes(counts, description.names, settings)
    yield from _of_sizes(_different(samples), settings)


def statistics(samples: Sequence[Sample], description: Description, settings: Settings) -> dict[str, Any]:
    """Objects by split and class, and their shorter sides in pixels of the network's input, of each image once."""
    sides = _sides(_different(samples), settings.imgsz)
    bins = [0, *settings.strides, 4 * settings.strides[-1], np.inf]
    histogram = np.histogram(sides, bins)[0]
    return {
        "by_class": {
            split: dict(zip(distinct_names(description.names), count.tolist(), strict=True))
            for split, count in _counts(samples, description).items()
        },
        "shorter_side": {
            f"under {high:g}" if np.isfinite(high) else f"{low:g} and more": int(number)
            for low, high, number in zip(bins[:-1], bins[1:], histogram, strict=True)
        },
    }


def _different(samples: Sequence[Sample]) -> list[Sample]:
    """An image that two splits name is there once."""
    return list({sample.file: sample for sample in samples}.values())


def _counts(samples: Sequence[Sample], description: Description) -> dict[str, npt.NDArray[np.intp]]:
    """[classes] of each split."""
    return {
        split: np.bincount(
            np.concatenate([s.labels.classes for s in samples if s.split == split] or [np.empty(0, np.intp)]),
            minlength=len(description.names),
        )
        for split in description.splits
    }


def _sides(samples: Sequence[Sample], imgsz: int) -> npt.NDArray[np.float64]:
    boxes = [sample.pixels(imgsz) for sample in samples]
    corners = np.concatenate(boxes) if boxes else np.empty((0, 4))
    sides: npt.NDArray[np.float64] = (corners[:, 2:] - corners[:, :2]).min(1)
    return sides


def _of_classes(counts: dict[str, npt.NDArray[np.intp]], names: Sequence[str], settings: Settings) -> Iterator[Finding]:
    def listed(indices: npt.NDArray[np.intp]) -> str:
        text = ", ".join(repr(names[index]) for index in indices[:_NAMED])
        return text if len(indices) <= _NAMED else f"{text} and {len(indices) - _NAMED} more"

    def classes(indices: npt.NDArray[np.intp]) -> str:
        return counted(len(indices), "class", "classes")

    train = counts.get("train")
    val = counts.get("val")
    if train is not None:
        absent = np.flatnonzero(train == 0)
        if len(absent):
            yield Finding(
                Severity.warning,
                "class missing from train",
                f"{classes(absent)} of {len(names)} {'has' if len(absent) == 1 else 'have'} no object in training: "
                f"{listed(absent)}.",
                "Label examples, or remove these names: what a model never saw it will not find.",
                len(absent),
            )
        rare = np.flatnonzero((train > 0) & (train < settings.min_objects))
        if len(rare):
            least = rare[train[rare].argsort(kind="stable")]
            yield Finding(
                Severity.warning,
                "rare class",
                f"{classes(rare)} of {len(names)} {'has' if len(rare) == 1 else 'have'} fewer than "
                f"{settings.min_objects} objects in training, the fewest {train[least[0]]}: {listed(least)}.",
                "Label more, or copy images that have them (copy_paste, repeated lines in a list of images).",
                len(rare),
            )
        present = train[train > 0]
        if len(present) and present.max() > _IMBALANCE * present.min():
            most, few = int(train.argmax()), int(np.flatnonzero(train == present.min())[0])
            yield Finding(
                Severity.note,
                "class imbalance",
                f"Class {names[most]!r} has {train[most]:,} objects in training and {names[few]!r} has {train[few]:,}.",
                "Judge the model by the AP of each class, and collect more of the rare ones.",
            )
    if val is not None and train is not None:
        unseen = np.flatnonzero((val == 0) & (train > 0))
        if len(unseen):
            yield Finding(
                Severity.warning,
                "class missing from val",
                f"{classes(unseen)} of {len(names)} {'is' if len(unseen) == 1 else 'are'} trained and not measured, "
                f"for lack of an object in validation: {listed(unseen)}.",
                "Move some images with these classes to the validation split.",
                len(unseen),
            )
        yield from _of_distribution(train, val, names)


def _of_distribution(train: npt.NDArray[np.intp], val: npt.NDArray[np.intp], names: Sequence[str]) -> Iterator[Finding]:
    if not train.sum() or not val.sum():
        return
    a, b = train / train.sum(), val / val.sum()
    distance = float(np.abs(a - b).sum() / 2)
    # What two samples of one distribution differ by: the mean of |x| of a normal variable is sqrt(2 / pi) sigma.
    mean = (train + val) / (train.sum() + val.sum())
    sigma = np.sqrt(mean * (1 - mean) * (1 / train.sum() + 1 / val.sum()))
    chance = float(np.sqrt(2 / np.pi) * sigma.sum() / 2)
    if distance > max(_SHIFTED, _SIGNIFICANT * chance):
        worst = int(np.abs(a - b).argmax())
        yield Finding(
            Severity.warning,
            "splits of different classes",
            f"Classes are spread differently over the splits: {names[worst]!r} is {a[worst]:.0%} of the objects in "
            f"training and {b[worst]:.0%} in validation.",
            "Split again at random, by scene, unless validation is meant to be like deployment.",
        )


def _of_sizes(samples: Sequence[Sample], settings: Settings) -> Iterator[Finding]:
    sides = _sides(samples, settings.imgsz)
    finest = settings.strides[0]
    labelled = [sample for sample in samples if len(sample.labels.boxes)]
    small = int((sides < finest).sum())
    if small > _MANY_SMALL * len(sides):
        worst = sorted(labelled, key=lambda s: -np.mean(_sides([s], settings.imgsz) < finest))
        yield Finding.about(
            Severity.warning,
            "small objects",
            f"{counted(small, 'object')} of {len(sides):,} ({share(small, len(sides))}) have a side under {finest} "
            f"pixels at imgsz {settings.imgsz}, less than a cell of the finest level",
            "Train at a larger imgsz, on tiles, or with a level of stride 4.",
            [sample.file for sample in worst if (_sides([sample], settings.imgsz) < finest).any()],
            count=small,
            cases=[sample.case() for sample in worst],
        )
    crowded = sorted(
        (s for s in labelled if len(s.labels.boxes) > settings.max_det), key=lambda s: -len(s.labels.boxes)
    )
    if crowded:
        yield Finding.about(
            Severity.warning,
            "more objects than detections",
            f"{counted(len(crowded), 'image has', 'images have')} more objects than the {settings.max_det} detections "
            f"that are kept, up to {len(crowded[0].labels.boxes):,}",
            "Raise max_det for validation and prediction, or cut the images into tiles.",
            [sample.file for sample in crowded],
            cases=[sample.case() for sample in crowded],
        )
    yield from _of_anchors(labelled, settings)


def _of_anchors(labelled: Sequence[Sample], settings: Settings) -> Iterator[Finding]:
    """Objects and levels that the assigner leaves without anchors."""
    with_some = np.zeros(len(settings.strides), np.intp)
    starved: list[tuple[Sample, list[int]]] = []
    total = 0
    for sample in labelled:
        counts, left = candidates(sample.pixels(settings.imgsz), settings.imgsz, settings.strides)
        with_some += (counts > 0).sum(1)
        total += len(left)
        if len(few := np.flatnonzero(left < 1)):
            starved.append((sample, few.tolist()))
    if not total:
        return
    if starved:
        starved.sort(key=lambda pair: -len(pair[1]))
        count = sum(len(few) for _, few in starved)
        yield Finding.about(
            Severity.warning if count > _DEAD * total else Severity.note,
            "starved objects",
            f"{counted(count, 'object')} of {total:,} ({share(count, total)}) have less than one anchor each at imgsz "
            f"{settings.imgsz}, because others next to them claim the same ones",
            "Train at a larger imgsz, on tiles, or with a level of stride 4.",
            [sample.file for sample, _ in starved],
            count=count,
            cases=[sample.case(few) for sample, few in starved],
        )
    for stride, some in zip(settings.strides, with_some.tolist(), strict=True):
        if some < _DEAD * total:
            yield Finding(
                Severity.warning,
                "level without objects",
                f"Only {counted(some, 'object')} of {total:,} can get an anchor of the level of stride {stride} at "
                f"imgsz {settings.imgsz}, so that this level learns next to nothing.",
                "Train at a larger imgsz, or use a model without this level.",
                total - some,
            )
