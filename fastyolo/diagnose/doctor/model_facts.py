# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is counted of a model's detections."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastyolo._names import distinct_names
from fastyolo.diagnose.doctor.outcomes import Kind
from fastyolo.diagnose.doctor.samples import Sample, Settings
from fastyolo.diagnose.doctor.suspects import Shown
from fastyolo.integrations.ultralytics.accuracy import SIZES
from fastyolo.integrations.ultralytics.examination import Curves

_BINS = np.linspace(0, 1, 11)  # of scores


def statistics(members: Sequence[Shown], precise: Curves, names: Sequence[str], settings: Settings) -> dict[str, Any]:
    names = distinct_names(names)
    labels = np.concatenate([s.sample.labels.classes for s in members])
    found = np.concatenate([s.outcomes.found for s in members])
    missed = np.concatenate([s.outcomes.missed for s in members])
    above = np.concatenate([s.detections.classes[: len(s.outcomes.kinds)] for s in members])
    kinds = [kind for s in members for kind in s.outcomes.kinds]
    errors = {kind.value: np.array([other is kind for other in kinds], bool) for kind in Kind if kind is not Kind.hit}

    def counts(objects: npt.NDArray[np.bool_], detections: npt.NDArray[np.bool_]) -> dict[str, int]:
        return {
            "objects": int(objects.sum()),
            "found": int((objects & found).sum()),
            "missed": int((objects & missed).sum()),
            **{name: int((detections & errors[name]).sum()) for name in errors},
        }

    def by(measure: Any, bounds: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, int]]:
        of_objects = np.concatenate([measure(s.sample.labels.corners, s.sample, settings.imgsz) for s in members])
        of_found = np.concatenate(
            [measure(s.detections.boxes[: len(s.outcomes.kinds)], s.sample, settings.imgsz) for s in members]
        )
        return {
            name: counts((of_objects >= low) & (of_objects < high), (of_found >= low) & (of_found < high))
            for name, (low, high) in bounds.items()
        }

    edges = [0.0, *settings.strides, 4.0 * settings.strides[-1], np.inf]
    matrix = confusion(members, len(names))
    columns = [*names, "nothing"]
    return {
        "by_class": {
            names[label]: {
                **counts(labels == label, above == label),
                "AP50": round(ap, 4),
                "best_threshold": round(threshold(precise.f1[label]), 2),
            }
            for label, ap in precise.ap50.items()
        },
        "by_size": by(areas, SIZES),
        "by_shorter_side": by(
            _sides,
            {
                f"under {high:g}" if np.isfinite(high) else f"{low:g} and more": (low, high)
                for low, high in itertools.pairwise(edges)
            },
        ),
        "confusion": {
            columns[row]: {columns[column]: int(matrix[row, column]) for column in np.flatnonzero(matrix[row])}
            for row in np.flatnonzero(matrix.sum(1))
        },
        "calibration": calibration(members),
    }


def confusion(members: Sequence[Shown], classes: int) -> npt.NDArray[np.intp]:
    """[classes + 1, classes + 1] of labels and detections above the threshold, "nothing" last: a row is what objects of
    a class are found as."""
    matrix = np.zeros((classes + 1, classes + 1), np.intp)
    for item in members:
        labels, found = item.sample.labels.classes, item.detections.classes
        taken = item.outcomes.found.copy()
        for index, kind in enumerate(item.outcomes.kinds):
            target = item.outcomes.objects[index]
            if kind is Kind.hit:
                matrix[labels[target], found[index]] += 1
            elif kind is Kind.wrong_class and not taken[target]:
                matrix[labels[target], found[index]] += 1
                taken[target] = True
            elif kind is not Kind.duplicate:
                matrix[classes, found[index]] += 1
        np.add.at(matrix[:, classes], labels[~taken], 1)
    return matrix


def calibration(members: Sequence[Shown]) -> list[dict[str, Any]]:
    """Of the detections above the threshold, by tenths of the score."""
    scores = np.concatenate([s.detections.scores[: len(s.outcomes.kinds)] for s in members])
    right = np.array([kind is Kind.hit for s in members for kind in s.outcomes.kinds], bool)
    places = np.digitize(scores, _BINS[1:-1])
    return [
        {
            "detections": int((places == place).sum()),
            "score": float(scores[places == place].mean()),
            "right": float(right[places == place].mean()),
        }
        for place in np.unique(places)
    ]


def threshold(curve: npt.NDArray[np.float64]) -> float:
    return float(curve.argmax() / (len(curve) - 1))


def areas(boxes: npt.NDArray[np.float64], sample: Sample, imgsz: int) -> npt.NDArray[np.float64]:
    """[n] of boxes [n, 4] in shares, in pixels of the network's input."""
    pixels = boxes * sample.scale(imgsz)
    areas: npt.NDArray[np.float64] = (pixels[:, 2:] - pixels[:, :2]).prod(1)
    return areas


def _sides(boxes: npt.NDArray[np.float64], sample: Sample, imgsz: int) -> npt.NDArray[np.float64]:
    pixels = boxes * sample.scale(imgsz)
    sides: npt.NDArray[np.float64] = (pixels[:, 2:] - pixels[:, :2]).min(1, initial=np.inf)
    return sides
