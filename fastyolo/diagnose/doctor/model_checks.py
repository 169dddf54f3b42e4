# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where a model fails on a data set, and whether it is the model or the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastyolo.diagnose.doctor import suspects
from fastyolo.diagnose.doctor.findings import Finding, Severity, counted, share
from fastyolo.diagnose.doctor.model_facts import areas, calibration, confusion, statistics, threshold
from fastyolo.diagnose.doctor.outcomes import Detections, Kind, outcomes
from fastyolo.diagnose.doctor.samples import Description, Sample, Settings
from fastyolo.diagnose.doctor.suspects import Shown
from fastyolo.integrations.ultralytics.accuracy import SIZES
from fastyolo.integrations.ultralytics.examination import Curves, curves

_NAMED = 5  # classes in a sentence
_USELESS = 0.05  # mAP50
_FEW = 10  # objects or detections of a class: of fewer, single images decide
_FEW_OF_SIZE = 20
_WEAK = 0.5  # of the share of all objects that are found
_WRONG = 0.5  # of the detections of a class
_CONFUSED = 0.1  # of the objects of a class
_LEAST_CONFUSED = 5
_DUPLICATE, _MISPLACED = 0.05, 0.2  # of all detections
_BIASED = 0.04  # of a box's sides: no IoU is above 1 / 1.04^2, 0.92, then
_LEAST_BIASED = 100  # boxes: of so many, sides that scatter by a tenth are known to a hundredth
_GAP = 0.15  # mAP50
_GAIN = 0.03  # F1
_CALIBRATED = 0.15  # of the difference between score and share of right detections
_LEAST_CALIBRATED = 200
_OVERFLOW = 65504.0  # the largest float16
_RESIZED = 1.5  # of the ratio of two sizes


class Model(Protocol):
    """What is examined; see `ExaminedModel`."""

    name: str
    names: tuple[str, ...]
    imgsz: int
    trained_imgsz: int | None
    strides: tuple[int, ...]
    activations: dict[str, float]

    def find(self, image: npt.NDArray[np.uint8]) -> Detections: ...

    def not_finite(self) -> list[str]: ...


def renumbering(model: Model, description: Description) -> npt.NDArray[np.intp]:
    """[classes of the model] their numbers in the data set, -1 for none: the same ones, or by name where the lists are
    of different lengths."""
    if len(model.names) == len(description.names):
        return np.arange(len(model.names))
    numbers = {name: index for index, name in enumerate(description.names)}
    return np.array([numbers.get(name, -1) for name in model.names], np.intp)


def check(
    samples: Sequence[Sample], description: Description, settings: Settings, model: Model
) -> tuple[list[Finding], dict[str, Any]]:
    """The findings, and facts of what the model finds.

    Args:
        samples: of which those that the model was shown count.
    """
    findings = [*_of_checkpoint(model), *_of_names(model, description)]
    names = description.names
    shown = _shown(samples, settings)
    precise = {split: _curves(members) for split, members in shown.items()}
    sound = dict(shown)
    for split, members in shown.items():
        if wrong := list(suspects.systematic(members, split, names)):
            findings += wrong
            del sound[split]
    if (renumbering(model, description) >= 0).any():
        for split, members in sound.items():
            if precise[split].map50 >= _USELESS:
                findings += suspects.single(members, split, names, settings)
        if "val" in sound:
            findings += _of_accuracy(sound["val"], precise["val"], names, settings)
        if len(sound) > 1:
            findings += _of_splits(sound, precise)
    facts = {
        "weights": model.name,
        "imgsz": model.imgsz,
        "conf": settings.conf,
        "images": {split: len(members) for split, members in shown.items()},
        "mAP50": {split: round(found.map50, 4) for split, found in precise.items()},
    }
    if "val" in shown:
        facts |= statistics(shown["val"], precise["val"], names, settings)
    return findings, facts


def _shown(samples: Sequence[Sample], settings: Settings) -> dict[str, list[Shown]]:
    """By split, those with objects; what both splits name is of validation."""
    own = {sample.file: sample for sample in sorted(samples, key=lambda sample: sample.split == "val")}
    shown: dict[str, list[Shown]] = {}
    for sample in own.values():
        if (found := sample.detections) is not None:
            outcome = outcomes(found, sample.labels.corners, sample.labels.classes, settings.conf)
            shown.setdefault(sample.split, []).append(Shown(sample, found, outcome))
    return {split: members for split, members in shown.items() if any(len(s.sample.labels.boxes) for s in members)}


def _curves(members: Sequence[Shown]) -> Curves:
    return curves(
        np.concatenate([s.outcomes.hits for s in members]),
        np.concatenate([s.detections.scores for s in members]),
        np.concatenate([s.detections.classes for s in members]),
        np.concatenate([s.sample.labels.classes for s in members]),
    )


# ---- the checkpoint by itself


def _of_checkpoint(model: Model) -> Iterator[Finding]:
    if bad := model.not_finite():
        yield Finding(
            Severity.error,
            "weights are not finite",
            f"{counted(len(bad), 'tensor')} of {model.name} hold NaN or infinite values, first {bad[0]}.",
            "Train again with amp=bf16 or amp=false, or go back to an earlier checkpoint: float16 overflows at 65504.",
            len(bad),
        )
    large = {path: value for path, value in model.activations.items() if not value <= _OVERFLOW}
    if large and not bad:
        worst = max(large, key=lambda path: large[path])
        yield Finding(
            Severity.error,
            "overflow in float16",
            f"{counted(len(large), 'convolution')} of {model.name} put out values beyond float16's largest, 65504, the "
            f"most {worst} with {large[worst]:.3g}.",
            "Train with amp=bf16 or amp=false, and see with --deployed whether a float16 export, which has the "
            "normalisations folded in, is spared; a lower lr0 or more weight_decay keeps weights small.",
            len(large),
        )
    if model.trained_imgsz and model.trained_imgsz != model.imgsz:
        ratio = model.imgsz / model.trained_imgsz
        yield Finding(
            Severity.note if 1 / _RESIZED < ratio < _RESIZED else Severity.warning,
            "other input size than in training",
            f"{model.name} was trained at imgsz {model.trained_imgsz} and is examined at {model.imgsz}: objects are "
            f"{ratio:.2g} times as large as it knows them.",
            f"Predict at imgsz {model.trained_imgsz}, or train at the size of deployment.",
        )


def _of_names(model: Model, description: Description) -> Iterator[Finding]:
    ours, theirs = model.names, description.names
    if ours == theirs:
        return
    if len(ours) != len(theirs):
        shared = len(set(ours) & set(theirs))
        yield Finding(
            Severity.error,
            "other classes than the model's",
            f"{model.name} has {len(ours)} classes and the data set {len(theirs)}, {shared} of the same name"
            f"{', by which they are compared here' if shared else ''}; ultralytics compares them by number.",
            "Validate with the data set that the model was trained for, or number the labels as the model does.",
        )
        return
    different = [index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
    first = different[0]
    yield Finding(
        Severity.error if sorted(ours) == sorted(theirs) else Severity.warning,
        "names in another order" if sorted(ours) == sorted(theirs) else "other names than the model's",
        f"{counted(len(different), 'class has', 'classes have')} another name in the data set than in {model.name}, "
        f"first number {first}: {theirs[first]!r} instead of {ours[first]!r}.",
        "Write the names in the order that the labels and the model have.",
        len(different),
    )


# ---- accuracy


def _of_accuracy(
    members: Sequence[Shown], precise: Curves, names: Sequence[str], settings: Settings
) -> Iterator[Finding]:
    if precise.map50 < _USELESS:
        total = sum(len(item.sample.labels.boxes) for item in members)
        yield Finding.about(
            Severity.error,
            "objects are not found",
            f"mAP50 is {precise.map50:.3f} on the {total:,} objects of validation: model and labels have nothing in "
            f"common",
            "See in the pictures (--save-dir) whether the labels fit; if so, see that the model was trained on such "
            "images, and at this imgsz.",
            [item.sample.file for item in members],
            cases=[item.case(range(min(len(item.outcomes.kinds), 20)), names) for item in members],
        )
        return
    yield from _missed(members, names, settings)
    yield from _wrong(members, names)
    yield from _confused(members, names)
    for kind, limit, what, remedy in (
        (
            Kind.duplicate,
            _DUPLICATE,
            "are on an object that a better one is on already",
            "Lower iou of NMS, or see whether objects are labelled twice or in parts.",
        ),
        (
            Kind.misplaced,
            _MISPLACED,
            "mean an object and overlap it by an IoU under 0.5",
            "See in the pictures whether labels are drawn tightly; for small objects, train at a larger imgsz.",
        ),
    ):
        total = sum(len(item.outcomes.kinds) for item in members)
        count = sum(len(item.outcomes.of(kind)) for item in members)
        if count > limit * total and count >= _FEW:
            yield _about_detections(
                members,
                names,
                f"{kind.value}{'es' if kind is Kind.misplaced else 's'}",
                f"{counted(count, 'detection')} of {total:,} ({share(count, total)}) {what}",
                remedy,
                _of_kind(kind),
            )
    yield from _of_sides(members, names)
    yield from _of_scores(members, precise, names, settings)


def _missed(members: Sequence[Shown], names: Sequence[str], settings: Settings) -> Iterator[Finding]:
    classes = np.concatenate([item.sample.labels.classes for item in members])
    found = np.concatenate([item.outcomes.found for item in members])
    overall = float(found.mean())
    weak = {
        label: float(found[classes == label].mean())
        for label in range(len(names))
        if (classes == label).sum() >= _FEW and found[classes == label].mean() < _WEAK * overall
    }
    if weak:
        worst_first = sorted(weak, key=lambda label: weak[label])
        listed = ", ".join(f"{names[label]!r} {weak[label]:.0%}" for label in worst_first[:_NAMED])
        yield _about_misses(
            members,
            "missed classes",
            f"Of {counted(len(weak), 'class', 'classes')} the model finds less than half the share that it finds of "
            f"all objects, {overall:.0%}: {listed}",
            "Label more images with them, raise their weight (class_weights), or lower their threshold.",
            lambda item: np.isin(item.sample.labels.classes, worst_first),
            len(weak),
        )

    def of_size(item: Shown, size: str) -> npt.NDArray[np.bool_]:
        low, high = SIZES[size]
        pixels = areas(item.sample.labels.corners, item.sample, settings.imgsz)
        return (pixels >= low) & (pixels < high)

    recalls = {}
    for size in SIZES:
        chosen = np.concatenate([of_size(item, size) for item in members])
        if chosen.sum() >= _FEW_OF_SIZE:
            recalls[size] = float(found[chosen].mean())
    worst = min(recalls, key=lambda size: recalls[size], default="")
    if worst and recalls[worst] < _WEAK * max(recalls.values()):
        yield _about_misses(
            members,
            "missed sizes",
            f"The model finds {', '.join(f'{recall:.0%} of the {size}' for size, recall in recalls.items())} objects "
            f"(COCO's sizes, in pixels at imgsz {settings.imgsz})",
            "Train at a larger imgsz, on tiles, or with a level of stride 4."
            if worst == "small"
            else "Train with more objects of this size, or with stronger scale augmentation.",
            lambda item: of_size(item, worst),
        )


def _about_misses(
    members: Sequence[Shown],
    name: str,
    evidence: str,
    remedy: str,
    choose: Callable[[Shown], npt.NDArray[np.bool_]],
    count: int | None = None,
) -> Finding:
    """
    Args:
        choose: which objects of an image it is about, [m].
        count: None for that of the missed objects.
    """
    missed = [(item, np.flatnonzero(choose(item) & ~item.outcomes.found)) for item in members]
    missed = sorted((pair for pair in missed if len(pair[1])), key=lambda pair: -len(pair[1]))
    return Finding.about(
        Severity.warning,
        name,
        evidence,
        remedy,
        [item.sample.file for item, _ in missed],
        count=sum(len(indices) for _, indices in missed) if count is None else count,
        cases=[item.sample.case(indices, "missed") for item, indices in missed],
    )


def _of_kind(kind: Kind) -> Callable[[Shown], list[int]]:
    return lambda item: item.outcomes.of(kind)


def _about_detections(
    members: Sequence[Shown],
    names: Sequence[str],
    name: str,
    evidence: str,
    remedy: str,
    choose: Callable[[Shown], list[int]],
    count: int | None = None,
) -> Finding:
    """
    Args:
        choose: which detections in an image it is about.
        count: None for that of the detections.
    """
    chosen = [(item, indices) for item in members if (indices := choose(item))]
    chosen.sort(key=lambda pair: -len(pair[1]))
    return Finding.about(
        Severity.warning,
        name,
        evidence,
        remedy,
        [item.sample.file for item, _ in chosen],
        count=sum(len(indices) for _, indices in chosen) if count is None else count,
        cases=[item.case(indices, names) for item, indices in chosen],
    )


def _wrong(members: Sequence[Shown], names: Sequence[str]) -> Iterator[Finding]:
    """Classes most of whose detections are wrong."""
    right, total = np.zeros(len(names), np.intp), np.zeros(len(names), np.intp)
    for item in members:
        above = item.detections.classes[: len(item.outcomes.kinds)]
        np.add.at(total, above, 1)
        np.add.at(right, above[[kind is Kind.hit for kind in item.outcomes.kinds]], 1)
    bad = [label for label in range(len(names)) if total[label] >= _FEW and right[label] < _WRONG * total[label]]
    if not bad:
        return
    bad.sort(key=lambda label: right[label] / total[label])
    listed = ", ".join(f"{names[label]!r} {total[label] - right[label]} of {total[label]}" for label in bad[:_NAMED])
    chosen = frozenset(bad)
    yield _about_detections(
        members,
        names,
        "false alarms of classes",
        f"Most detections of {counted(len(bad), 'class', 'classes')} are wrong: {listed}",
        "Raise their threshold, add images without them that look alike, and see whether their labels are complete.",
        lambda item: [
            i
            for i, kind in enumerate(item.outcomes.kinds)
            if kind is not Kind.hit and item.detections.classes[i] in chosen
        ],
        len(bad),
    )


def _confused(members: Sequence[Shown], names: Sequence[str]) -> Iterator[Finding]:
    matrix = confusion(members, len(names))[:-1]
    objects = matrix.sum(1)
    pairs = [
        (int(matrix[a, b]), a, b)
        for a, b in zip(*np.nonzero(matrix[:, :-1]), strict=True)
        if a != b and matrix[a, b] >= max(_LEAST_CONFUSED, _CONFUSED * objects[a])
    ]
    if not pairs:
        return
    pairs.sort(reverse=True)
    chosen = {(a, b) for _, a, b in pairs}
    listed = ", ".join(f"{count} of {objects[a]} {names[a]!r} as {names[b]!r}" for count, a, b in pairs[:_NAMED])
    yield _about_detections(
        members,
        names,
        "confused classes",
        f"The model takes {listed}",
        "See in the pictures whether the labels tell these classes apart; if so, add examples, else merge them.",
        lambda item: [
            i
            for i in item.outcomes.of(Kind.wrong_class)
            if (item.sample.labels.classes[item.outcomes.objects[i]], item.detections.classes[i]) in chosen
        ],
        sum(count for count, *_ in pairs),
    )


def _of_sides(members: Sequence[Shown], names: Sequence[str]) -> Iterator[Finding]:
    """Boxes on objects that are larger or smaller than these, all in all."""
    factors = np.concatenate([_factors(item) for item in members])
    if len(factors) < _LEAST_BIASED:
        return
    factor = float(np.median(factors))
    if abs(np.log(factor)) <= np.log1p(_BIASED):
        return
    word = "larger" if factor > 1 else "smaller"
    yield _about_detections(
        members,
        names,
        f"boxes {word} than the objects",
        f"The {len(factors):,} boxes that are on an object are {factor:.2f} times as wide and high as its label in the "
        f"median, which lowers mAP50-95",
        "Let the last epochs of training see images as they are in deployment (close_geometry): zoom and borders tell "
        "a model how large objects are; or see whether the labels of training are drawn as tightly as these.",
        _of_kind(Kind.hit),
    )


def _factors(item: Shown) -> npt.NDArray[np.float64]:
    """[n] of the detections that hit: how many times as wide and high as the object each is, on (geometric) average."""
    hits = item.outcomes.of(Kind.hit)
    corners = item.detections.boxes[hits], item.sample.labels.corners[item.outcomes.objects[hits]]
    found, true = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in corners)
    factors: npt.NDArray[np.float64] = np.sqrt(found / true)
    return factors


def _of_scores(
    members: Sequence[Shown], precise: Curves, names: Sequence[str], settings: Settings
) -> Iterator[Finding]:
    objects = np.bincount(np.concatenate([s.sample.labels.classes for s in members]), minlength=len(names))
    f1 = {label: curve for label, curve in precise.f1.items() if objects[label] >= _FEW}
    if len(f1) > 1:
        mean = np.mean(list(f1.values()), 0)
        own = float(np.mean([curve.max() for curve in f1.values()]))
        if own > mean.max() + _GAIN:
            low, high = (pick(f1, key=lambda label: f1[label].argmax()) for pick in (min, max))
            yield Finding(
                Severity.note,
                "one threshold does not suit all classes",
                f"The mean F1 is {mean.max():.3f} with the best common threshold, {threshold(mean):.2f}, and "
                f"{own:.3f} with the best one of each class, from {threshold(f1[low]):.2f} for {names[low]!r} to "
                f"{threshold(f1[high]):.2f} for {names[high]!r}.",
                "Set a threshold for each class, those under by_class in the JSON.",
            )
    table = calibration(members)
    gap = sum(row["detections"] * (row["score"] - row["right"]) for row in table)
    total = sum(row["detections"] for row in table)
    if total >= _LEAST_CALIBRATED and abs(gap) > _CALIBRATED * total:
        scores = sum(row["detections"] * row["score"] for row in table) / total
        yield Finding(
            Severity.note,
            "scores are no probabilities",
            f"The mean score of the {total:,} detections above {settings.conf:g} is {scores:.2f}, and "
            f"{scores - gap / total:.0%} of them are right.",
            "Set thresholds by measured precision (calibration in the JSON) and not by what a score seems to mean.",
        )


def _of_splits(shown: Mapping[str, Sequence[Shown]], precise: Mapping[str, Curves]) -> Iterator[Finding]:
    images = {split: f"{len(members):,}" for split, members in shown.items()}
    train, val = (precise[split].map50 for split in ("train", "val"))
    if train - val > _GAP:
        yield Finding(
            Severity.warning,
            "gap between train and val",
            f"mAP50 is {train:.3f} on {images['train']} training images and {val:.3f} on {images['val']} "
            f"of validation.",
            "The model knows its training images by heart, or validation shows other things: add images, strengthen "
            "augmentation, take a smaller model, and see that both splits are of the same kind.",
        )
    elif val - train > _GAP:
        yield Finding(
            Severity.warning,
            "validation easier than training",
            f"mAP50 is {val:.3f} on {images['val']} images of validation and {train:.3f} on "
            f"{images['train']} training images.",
            "See whether the training labels are worse, or validation is made of easy images.",
        )
