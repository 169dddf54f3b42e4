# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is wrong with the label files of a data set, and with single boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fastyolo.diagnose.doctor.findings import Finding, Severity, counted, share
from fastyolo.diagnose.doctor.labels import TOLERANCE
from fastyolo.diagnose.doctor.samples import Description, Sample, Settings
from fastyolo.diagnose.matching import box_iou

Where: TypeAlias = "dict[int, npt.NDArray[np.intp]]"
"""Boxes by the index of their image."""

_MANY_MISSING = 0.1  # of the images: more without a label file are hardly meant to be without objects
_MANY_EMPTY = 0.5

_TINY = 2  # pixels of the network's input: an error of one pixel in labelling halves the IoU
_WHOLE = 0.99  # of the image's sides
_MANY = 0.01  # of all boxes: fewer may be real objects
_EQUAL = 0.95  # IoU

_REMEDIES = {
    "wrong number of columns": "Write a line of class, x, y, width and height for each object.",
    "not a number": "Correct these lines.",
    "NaN or infinite label": "Correct these lines; look for a division by an image size of 0 in the conversion.",
    "class that is no integer": "Write classes as indices into the data set's names, from 0.",
    "unknown class": "Correct the classes, which count from 0, or add their names to the YAML file.",
    "coordinates out of range": "Divide by the image's width and height, and cut boxes off at its border.",
}


def check(samples: Sequence[Sample], description: Description, settings: Settings) -> Iterator[Finding]:
    yield from _of_files(samples, description)
    different = list({sample.file: sample for sample in samples}.values())
    yield from _of_lines(different)
    yield from _of_boxes([sample for sample in different if sample.image.problem is None], settings)


def _of_files(samples: Sequence[Sample], description: Description) -> Iterator[Finding]:
    for split in description.splits:
        members = [sample for sample in samples if sample.split == split]
        missing = [sample.labels_file for sample in members if not sample.labels.exists]
        empty = [sample.labels_file for sample in members if sample.labels.empty]
        if not any(len(sample.labels.boxes) for sample in members):
            yield Finding.about(
                Severity.error,
                "split without objects",
                f"None of the {counted(len(members), 'image')} of the split {split} has a label that can be used, "
                f"expected in files",
                "Put the label files where 'images' in an image's path is replaced by 'labels'.",
                [sample.labels_file for sample in members],
            )
            continue
        if missing:
            yield Finding.about(
                Severity.warning if len(missing) > _MANY_MISSING * len(members) else Severity.note,
                "missing label file",
                f"{counted(len(missing), 'image')} of the split {split}, {share(len(missing), len(members))}, "
                f"{'has' if len(missing) == 1 else 'have'} no label file and so no objects",
                "Write an empty file for images that are meant to have none, and label the others.",
                missing,
            )
        if empty:
            yield Finding.about(
                Severity.warning if len(empty) > _MANY_EMPTY * len(members) else Severity.note,
                "empty label file",
                f"{counted(len(empty), 'image')} of the split {split}, {share(len(empty), len(members))}, "
                f"{'is' if len(empty) == 1 else 'are'} marked as without objects",
                "Nothing, if it is so; images without objects teach a model not to see any.",
                empty,
            )
    if description.unused:
        yield Finding.about(
            Severity.warning,
            "labels without image",
            f"{counted(len(description.unused), 'label file belongs', 'label files belong')} to no image",
            "Restore the images or correct the names; these labels are not used.",
            description.unused,
        )


def _of_lines(samples: Sequence[Sample]) -> Iterator[Finding]:
    if bad := [sample.labels_file for sample in samples if not sample.labels.readable]:
        evidence = f"{counted(len(bad), 'label file')} cannot be read as UTF-8 text"
        yield Finding.about(Severity.error, "unreadable label file", evidence, "Write them again.", bad)
    for name, remedy in _REMEDIES.items():
        found = [(s, number, flaw) for s in samples for number, flaw in s.labels.flaws if flaw.name == name]
        if found:
            first, number, flaw = found[0]
            yield Finding.about(
                Severity.error,
                name,
                f"{counted(len(found), 'line')} of label files cannot be used, first line {number} of "
                f"{first.labels_file}: {flaw.clause}",
                remedy,
                [sample.labels_file for sample, *_ in found],
                count=len(found),
            )
    if mixed := [sample.labels_file for sample in samples if sample.labels.mixed]:
        yield Finding.about(
            Severity.error,
            "boxes and polygons mixed",
            f"{counted(len(mixed), 'label file has', 'label files have')} lines of both, which ultralytics refuses",
            "Write boxes only.",
            mixed,
        )
    elif polygons := [sample.labels_file for sample in samples if sample.labels.polygons]:
        yield Finding.about(
            Severity.note,
            "polygons instead of boxes",
            f"{counted(len(polygons), 'label file has', 'label files have')} polygons, of which detection takes the "
            f"boxes around",
            "Nothing, if these are segments of objects.",
            polygons,
        )
    if repeated := [sample for sample in samples if sample.labels.repeated]:
        count = sum(sample.labels.repeated for sample in repeated)
        yield Finding.about(
            Severity.warning,
            "duplicate label",
            f"{counted(count, 'line repeats', 'lines repeat')} another of the same file, which training leaves out",
            "Remove them, and see why they are written twice.",
            [sample.labels_file for sample in repeated],
            count=count,
        )


def _of_boxes(samples: Sequence[Sample], settings: Settings) -> Iterator[Finding]:
    """Boxes that can be read and look wrong all the same, the worst images first."""
    total = sum(len(sample.labels.boxes) for sample in samples)

    def finding(severity: Severity, name: str, what: str, remedy: str, of: Where) -> Finding:
        order = sorted(of, key=lambda index: -len(of[index]))
        count = sum(map(len, of.values()))
        return Finding.about(
            severity,
            name,
            f"{counted(count, 'box', 'boxes')} of {total:,} {what}",
            remedy,
            [samples[index].labels_file for index in order],
            count=count,
            cases=[samples[index].case(of[index]) for index in order],
        )

    flat: Where = {}
    tiny: Where = {}
    beyond: Where = {}
    whole: Where = {}
    twice: Where = {}
    for index, sample in enumerate(samples):
        corners, sizes = sample.labels.corners, sample.labels.boxes[:, 2:]
        pixels = sizes * [sample.image.width, sample.image.height]
        least = pixels.min(1) * (settings.imgsz / max(sample.image.width, sample.image.height))
        kinds = (
            (flat, np.flatnonzero(pixels.min(1) <= 0)),
            (tiny, np.flatnonzero((pixels.min(1) > 0) & (least < _TINY))),
            (beyond, np.flatnonzero((corners.min(1) < -TOLERANCE) | (corners.max(1) > 1 + TOLERANCE))),
            (whole, np.flatnonzero((sizes >= _WHOLE).all(1))),
            (twice, _of_two_classes(sample)),
        )
        for found, indices in kinds:
            if len(indices):
                found[index] = indices
    if flat:
        remedy = "Remove or redraw them: no prediction can overlap them."
        yield finding(Severity.error, "box without area", "with a width or height of 0", remedy, flat)
    if tiny:
        many = sum(map(len, tiny.values())) > _MANY * total
        yield finding(
            Severity.warning if many else Severity.note,
            "tiny box",
            f"with a side under {_TINY} pixels at imgsz {settings.imgsz}",
            "Remove those that are slips; for real objects of this size, train at a larger imgsz or on tiles.",
            tiny,
        )
    if beyond:
        remedy = "Cut them off at the border: training does, and then their centres are elsewhere."
        yield finding(Severity.warning, "box beyond the border", "beyond the image's border", remedy, beyond)
    if whole:
        many = sum(map(len, whole.values())) > _MANY * total
        remedy = "See whether they are labels of the image rather than of an object."
        severity = Severity.warning if many else Severity.note
        yield finding(severity, "box of the whole image", "as large as the whole image", remedy, whole)
    if twice:
        remedy = "Decide for one class each, or teach a common one: a box of two classes pulls both scores down."
        many = sum(map(len, twice.values())) > _MANY * total
        severity = Severity.warning if many else Severity.note
        yield finding(severity, "two classes on one box", "on an almost equal one of another class", remedy, twice)


def _of_two_classes(sample: Sample) -> npt.NDArray[np.intp]:
    """Indices of boxes that overlap one of another class almost wholly."""
    corners, classes = sample.labels.corners, sample.labels.classes
    overlap = (box_iou(corners, corners) > _EQUAL) & (classes[:, None] != classes[None, :])
    return np.flatnonzero(overlap.any(1))
