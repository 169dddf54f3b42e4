# SPDX-License-Identifier: AGPL-3.0-or-later
"""Labels that a model contradicts: systematically, or one by one where it is sure of itself.

A detection is sure if its score is above the mean score of the right detections of its class, as in confident learning
(https://arxiv.org/abs/1911.00068), and above 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastyolo.diagnose.doctor.findings import Case, Finding, Severity, counted, share
from fastyolo.diagnose.doctor.outcomes import HIT, NEAR, Detections, Kind, Outcomes
from fastyolo.diagnose.doctor.samples import Sample, Settings, as_boxes

_SURE = 0.5  # at least; and where a class has no right detections
_PAIRS = 20  # of detections and labels, for words on what they have in common
_SHIFT = 0.05  # of a box's sides
_SCALE = 1.2  # of the ratio of the sides
_SPREAD = 0.25  # of a box's sides, around the median: what is further away does not share the shift
_COMMON = 0.5  # of the pairs, which share it
_SWAPPED = 0.5  # of the sure detections on the labels of a class
_LEAST_OF_CLASS = 5  # of these
_PLAIN = 0.9  # likewise, where too few labels have the other class to tell what becomes of them
_SAME_BOX = 0.7  # IoU
_RELIABLE = 0.9  # of the objects of a class and size found: then one without any detection is suspicious
_MANY = 0.02  # of the labels: on sets that are clean, errors of the models themselves came to 0.011


@dataclass(frozen=True)
class Shown:
    """An image that the model was shown."""

    sample: Sample
    detections: Detections
    outcomes: Outcomes

    def case(self, detections: Sequence[int], names: Sequence[str] | None) -> Case:
        """Detections to be drawn, over the labels; with class and score, if the names of the classes are given."""
        found = self.detections
        captions = tuple(
            f"{names[found.classes[index]]} {found.scores[index]:.2f}" if names else "" for index in detections
        )
        boxes, labels = as_boxes(found.boxes[list(detections)]), as_boxes(self.sample.labels.corners)
        return Case(self.sample.file, boxes, captions, labels)


def systematic(shown: Sequence[Shown], split: str, names: Sequence[str]) -> Iterator[Finding]:
    """What all labels of a split, or all of some classes, have in common; next to it, little else can be said.

    Each of the two faults can look like the other one on some of the labels, so the one that more of them bear out is
    meant.
    """
    sure = sureness(shown, len(names))
    found = [*_shifted(shown, split, sure), *_swapped(shown, split, names)]
    yield from sorted(found, key=lambda finding: -finding.count)[:1]


def single(shown: Sequence[Shown], split: str, names: Sequence[str], settings: Settings) -> Iterator[Finding]:
    """Labels to look at."""
    sure = sureness(shown, len(names))
    total = sum(len(item.sample.labels.boxes) for item in shown)

    def of_detections(name: str, what: str, remedy: str, choose: Callable[[Shown], list[int]]) -> Iterator[Finding]:
        chosen = [(item, indices) for item in shown if (indices := choose(item))]
        if not chosen:
            return
        chosen.sort(key=lambda pair: -float(pair[0].detections.scores[pair[1]].sum()))
        count = sum(len(indices) for _, indices in chosen)
        yield Finding.about(
            Severity.warning if count > _MANY * total else Severity.note,
            name,
            f"In {split} the model is sure of {counted(count, 'detection')} {what}, {share(count, total)} of the "
            f"{total:,} labels",
            f"Look at the pictures (--save-dir) and {remedy}; what is right as it is shows where the model errs.",
            [item.sample.file for item, _ in chosen],
            count=count,
            cases=[item.case(indices, names) for item, indices in chosen],
        )

    def trusted(item: Shown) -> list[int]:
        return [int(index) for index in _trusted(item, sure) if index < len(item.outcomes.kinds)]

    yield from of_detections(
        "label likely missing",
        "without a label",
        "label what was forgotten",
        lambda item: [i for i in trusted(item) if item.outcomes.overlaps[i] < NEAR],
    )
    yield from of_detections(
        "class likely wrong",
        "on a label of another class",
        "correct the classes",
        lambda item: [i for i in trusted(item) if item.outcomes.kinds[i] is Kind.wrong_class and _alone(item, i)],
    )
    yield from of_detections(
        "box likely wrong",
        "with an IoU between 0.1 and 0.5 with the label",
        "redraw the boxes",
        lambda item: [i for i in trusted(item) if item.outcomes.kinds[i] is Kind.misplaced],
    )
    yield from _superfluous(shown, split, total, settings)


def sureness(shown: Sequence[Shown], classes: int) -> npt.NDArray[np.float64]:
    """[classes] the scores from which the model is sure."""
    sums, counts = np.zeros(classes), np.zeros(classes)
    for item in shown:
        right = [index for index, kind in enumerate(item.outcomes.kinds) if kind is Kind.hit]
        np.add.at(sums, item.detections.classes[right], item.detections.scores[right])
        np.add.at(counts, item.detections.classes[right], 1)
    scores: npt.NDArray[np.float64] = np.maximum(sums / counts.clip(1), _SURE)
    return scores


def _alone(item: Shown, index: int) -> bool:
    """Whether the label under a detection is framed as tightly, and not found as what it is."""
    label = item.outcomes.objects[index]
    return bool(item.outcomes.overlaps[index] >= _SAME_BOX and not item.outcomes.found[label])


@dataclass(frozen=True)
class _Displacement:
    """How the labels of a split lie beside what the model is sure of.

    Attributes:
        pairs: of an image, a detection and a label.
        stretch: [2] by which the coordinates of the detections were multiplied first.
        shift: [2] median, in widths and heights of the detections' boxes.
        pixels: [2] median, of the images.
        ratio: [2] median, of widths and of heights.
        common: share of the pairs that the medians hold for.
    """

    pairs: list[tuple[Shown, int, int]]
    stretch: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]
    pixels: npt.NDArray[np.float64]
    ratio: npt.NDArray[np.float64]
    common: float

    @property
    def stretched(self) -> bool:
        return bool((self.stretch != 1).any())

    @property
    def large(self) -> bool:
        scaled = max(np.abs(np.log(self.ratio)).max(), np.abs(np.log(self.stretch)).max())
        return bool(np.abs(self.shift).max() >= _SHIFT or scaled >= math.log(_SCALE))


def _shifted(shown: Sequence[Shown], split: str, sure: npt.NDArray[np.float64]) -> Iterator[Finding]:
    # If all coordinates were divided by another image size, the sizes alone tell by which factor.
    trusted = np.concatenate([item.detections.boxes[_trusted(item, sure)] for item in shown])
    sides = trusted[:, 2:] - trusted[:, :2]
    sides = sides[(sides > 0).all(1)]  # a broken model may find points
    labels = np.concatenate([item.sample.labels.boxes for item in shown])
    labels = labels[_with_area(labels)]
    if len(sides) < _PAIRS or not len(labels):
        return
    factor = np.median(labels[:, 2:], 0) / np.median(sides, 0)
    stretches = [np.ones(2), np.where(np.abs(np.log(factor)) < math.log(_SCALE), 1.0, factor)]
    found = [_displacement(shown, sure, stretch) for stretch in stretches[: 2 if (stretches[1] != 1).any() else 1]]
    best = max((one for one in found if one), key=lambda one: one.common, default=None)
    if best is None or best.common < _COMMON or not best.large:
        return
    indices: dict[str, list[int]] = {}
    for item, index, _ in best.pairs:
        indices.setdefault(item.sample.file, []).append(index)
    items = {item.sample.file: item for item, *_ in best.pairs}
    order = sorted(indices, key=lambda file: -len(indices[file]))
    if best.stretched:
        evidence = (
            f"The coordinates of the labels of {split} are {best.stretch[0]:.2f} (x) and {best.stretch[1]:.2f} (y) "
            f"times those of what the model is sure of, sizes included"
        )
    else:
        (x, y), (across, down) = (_signed(value, 2) for value in best.shift), map(_signed, best.pixels)
        evidence = (
            f"The labels of {split} lie {x} widths and {y} heights of their box beside what the model is sure of "
            f"({across} and {down} pixels) and are {best.ratio[0]:.2f} times as wide and {best.ratio[1]:.2f} times as "
            f"high"
        )
    yield Finding.about(
        Severity.error,
        "shifted labels",
        f"{evidence}, as medians over {len(best.pairs):,} pairs",
        f"{_of_shift(best)}; this holds if the model was trained on other labels than these.",
        order,
        count=round(best.common * len(best.pairs)),
        cases=[items[file].case(indices[file], None) for file in order],
    )


def _displacement(
    shown: Sequence[Shown], sure: npt.NDArray[np.float64], stretch: npt.NDArray[np.float64]
) -> _Displacement | None:
    pairs = [(item, *pair) for item in shown for pair in _nearest(item, sure, stretch)]
    if len(pairs) < _PAIRS:
        return None
    sides = np.array([[item.sample.image.width, item.sample.image.height] for item, *_ in pairs])
    found = np.array([item.detections.boxes[i] for item, i, _ in pairs]).reshape(-1, 2, 2) * stretch
    given = np.array([item.sample.labels.corners[j] for item, _, j in pairs]).reshape(-1, 2, 2)
    size, label_size = (np.maximum(boxes[:, 1] - boxes[:, 0], 1e-9) for boxes in (found, given))
    shift = given.mean(1) - found.mean(1)  # shares of the image
    of_box = shift / size
    # What a wrong conversion does is the same in shares of the box, or of the image.
    spreads = (np.abs(of_box - np.median(of_box, 0)), np.abs(shift - np.median(shift, 0)) / size)
    return _Displacement(
        pairs,
        stretch,
        np.median(of_box, 0),
        np.median(shift * sides, 0),
        np.median(label_size / size, 0),
        max(float((spread.max(1) < _SPREAD).mean()) for spread in spreads),
    )


def _signed(value: float, digits: int = 0) -> str:
    return f"{round(float(value), digits) + 0.0:+.{digits}f}"  # not -0


def _of_shift(found: _Displacement) -> str:
    if found.stretched:
        return "Divide by the width and height of the image that the labels were drawn on"
    if np.allclose(np.abs(found.shift), 0.5, atol=0.1) and np.allclose(found.ratio, 1, atol=_SCALE - 1):
        return "Write the centre of each box, where the files have a corner"
    if np.abs(found.shift).max() < _SHIFT:
        return "Write whole widths and heights, as shares of the image's"
    return "See whether the images were cropped, padded or resized after they were labelled"


def _trusted(item: Shown, sure: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    return np.flatnonzero(item.detections.scores >= sure[item.detections.classes])


def _with_area(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """[n, 4] of centres and sides -> [n]; of the others there is a finding of their own."""
    return np.asarray((boxes[:, 2:] > 0).all(1))


def _nearest(item: Shown, sure: npt.NDArray[np.float64], stretch: npt.NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Sure detections and labels of one class that are each other's nearest, however far apart."""
    found, labels = item.detections, item.sample.labels
    trusted = _trusted(item, sure)
    if not len(trusted) or not len(labels.boxes):
        return
    centres = (found.boxes[trusted, :2] + found.boxes[trusted, 2:]) / 2 * stretch
    offsets = (centres[:, None] - labels.boxes[:, :2]) * [item.sample.image.width, item.sample.image.height]
    distances = np.hypot(offsets[..., 0], offsets[..., 1])
    distances[(found.classes[trusted][:, None] != labels.classes) | ~_with_area(labels.boxes)] = np.inf
    for row, column in enumerate(distances.argmin(1)):
        if np.isfinite(distances[row, column]) and distances[:, column].argmin() == row:
            yield int(trusted[row]), int(column)


def _swapped(shown: Sequence[Shown], split: str, names: Sequence[str]) -> Iterator[Finding]:
    """Classes whose labels the model mostly takes for another one, which itself is not found as what it is."""
    matrix = np.zeros((len(names), len(names)), np.intp)
    places: dict[tuple[int, int], list[tuple[Shown, int]]] = {}
    for item in shown:
        found = item.detections
        for index, kind in enumerate(item.outcomes.kinds):
            on_label = kind is Kind.hit or (kind is Kind.wrong_class and item.outcomes.overlaps[index] >= HIT)
            if on_label and found.scores[index] >= _SURE:
                pair = int(item.sample.labels.classes[item.outcomes.objects[index]]), int(found.classes[index])
                matrix[pair] += 1
                places.setdefault(pair, []).append((item, index))
    known = matrix.sum(1) >= _LEAST_OF_CLASS
    taken = {
        label: int(row.argmax())
        for label, row in enumerate(matrix)
        if known[label] and row.max() > _SWAPPED * row.sum()
    }
    plain = (matrix.max(1) > _PLAIN * matrix.sum(1)) & (matrix.sum(1) >= _PAIRS)
    swapped = {a: b for a, b in taken.items() if a != b and (taken.get(b) != b if known[b] else plain[a])}
    if not swapped:
        return
    pairs = ", ".join(
        f"{names[a]!r} as {names[b]!r} ({matrix[a, b]} of {matrix[a].sum()})" for a, b in list(swapped.items())[:5]
    )
    evidence = [place for pair in swapped.items() for place in places[pair]]
    yield Finding.about(
        Severity.error,
        "swapped classes",
        f"The model is sure of other classes than the labels of {split} have, systematically: it finds {pairs}",
        "See whether the names, in the YAML file or in the conversion of the labels, are in the order of the model's.",
        [item.sample.file for item, _ in evidence],
        count=len(evidence),
        cases=[item.case([index], names) for item, index in evidence],
    )


def _superfluous(shown: Sequence[Shown], split: str, total: int, settings: Settings) -> Iterator[Finding]:
    """Labels on which nothing at all is found, of a class and size of which nearly all are."""
    groups: dict[tuple[int, int], list[tuple[Shown, int]]] = {}
    for item in shown:
        corners = item.sample.pixels(settings.imgsz)
        level = np.digitize((corners[:, 2:] - corners[:, :2]).min(1, initial=np.inf), settings.strides)
        for index, label in enumerate(item.sample.labels.classes.tolist()):
            groups.setdefault((label, int(level[index])), []).append((item, index))
    chosen: dict[int, list[int]] = {}
    items: dict[int, Shown] = {}
    for members in groups.values():
        found = sum(bool(item.outcomes.found[index]) for item, index in members)
        if len(members) < _PAIRS or found < _RELIABLE * len(members):
            continue
        for item, index in members:
            if item.outcomes.best[index] < NEAR:
                chosen.setdefault(id(item), []).append(index)
                items[id(item)] = item
    if not chosen:
        return
    count = sum(map(len, chosen.values()))
    yield Finding.about(
        Severity.warning if count > _MANY * total else Severity.note,
        "label likely superfluous",
        f"On {counted(count, 'label')} of {total:,} in {split} the model finds nothing at all, though it finds "
        f"{_RELIABLE:.0%} of such objects and more",
        "Look at the pictures (--save-dir) and remove labels of nothing; what is there shows where the model errs.",
        [items[key].sample.file for key in chosen],
        count=count,
        cases=[items[key].sample.case(indices) for key, indices in chosen.items()],
    )
