# SPDX-License-Identifier: AGPL-3.0-or-later
"""Keeps the images that a model fails on as a data set that grows from run to run.

    DIR/data.yaml       as ultralytics reads it, all images for training and for validation
    DIR/images/         copies, named by their content, so that none is there twice
    DIR/labels/         of the labels; they and data.yaml stay as they are once there, since they may be corrected
    DIR/reasons.json    for each image its source, and what which model failed on

Each file is replaced in one step, an image after its labels and reasons.json last, so that a run that is cut off leaves
a data set that can be read, and the next one completes it. An empty reasons.json comes first: it is what tells such a
folder from a data set of one's own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from fastyolo._files import replacing, write_json
from fastyolo.diagnose.doctor.outcomes import Kind, outcomes
from fastyolo.diagnose.doctor.samples import Sample
from fastyolo.diagnose.doctor.suspects import Shown

_MISSED = "missed"
_REASONS = "reasons.json"


def check(folder: Path, names: Sequence[str]) -> None:
    """
    Raises:
        ValueError: the folder holds something else, or hard cases with other classes or files that cannot be read.
    """
    if not (folder / _REASONS).exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"collect (--collect) must be a new folder or one of hard cases, and {folder} holds other files; "
                "choose another one."
            )
        return
    with _understood(folder / _REASONS):
        _read(folder)
    kept, description = list(names), folder / "data.yaml"
    if description.exists():
        with _understood(description):
            kept = _names(description)
    if kept != list(names):
        raise ValueError(
            f"collect (--collect) must be a folder whose classes are those of the data set, and {folder} has "
            f"{', '.join(map(str, kept[:5]))}; choose another one."
        )


def collect(
    samples: Sequence[Sample], folder: Path, names: Sequence[str], *, weights: str, conf: float, limit: int
) -> int:
    """Add the validation images that the model fails on most; see `severity`.

    Args:
        samples: all that were read.
        folder: new, or of an earlier call with the same classes.
        weights: name of the model.
        conf: score that a detection must exceed to count as one.
        limit: of the images of this call.

    Returns:
        How many images are new in the folder.
    """
    failures = []
    for sample in samples:
        if sample.split == "val" and sample.detections is not None:
            found = outcomes(sample.detections, sample.labels.corners, sample.labels.classes, conf)
            if reasons := list(_reasons(Shown(sample, sample.detections, found), names)):
                failures.append((severity(reasons), sample, reasons))
    failures.sort(key=lambda failure: (-failure[0], failure[1].file))
    cases = _read(folder)
    before = len(cases)
    if not before:
        _write(folder, cases)
    _describe(folder / "data.yaml", names)
    for value, sample, reasons in failures[:limit]:
        name = sample.image.digest.hex() + Path(sample.file).suffix.lower()
        _copy(sample, folder, name)
        cases[name] = {"source": sample.file, "weights": weights, "severity": value, "reasons": reasons}
    _write(folder, cases)
    return len(cases) - before


def severity(reasons: Sequence[Mapping[str, Any]]) -> float:
    """The number of missed objects and the sum of the scores of wrong detections."""
    return round(sum(float(reason.get("score", 1)) for reason in reasons), 4)


def _reasons(item: Shown, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each failure, with the boxes that it is about as shares, xyxy; what duplicates is none."""
    labels, found = item.sample.labels, item.detections
    for index in np.flatnonzero(item.outcomes.missed):
        yield {
            "kind": _MISSED,
            "class": names[labels.classes[index]],
            "box": [round(float(x), 5) for x in labels.corners[index]],
        }
    for number, kind in enumerate(item.outcomes.kinds):
        if kind in (Kind.wrong_class, Kind.misplaced, Kind.false_alarm):
            target = item.outcomes.objects[number]
            reason: dict[str, Any] = {
                "kind": kind.value,
                "class": names[found.classes[number]],
                "score": round(float(found.scores[number]), 4),
                "box": [round(float(x), 5) for x in found.boxes[number]],
            }
            if target >= 0:
                reason |= {
                    "label": names[labels.classes[target]],
                    "iou": round(float(item.outcomes.overlaps[number]), 3),
                }
            yield reason


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """By the name of the image."""
    file = folder / _REASONS
    if not file.exists():
        return {}
    cases = json.loads(file.read_text(encoding="utf-8"))
    return {case["image"]: {key: value for key, value in case.items() if key != "image"} for case in cases}


def _names(file: Path) -> list[str]:
    """Of a data.yaml, which may have been edited."""
    names = yaml.safe_load(file.read_bytes())["names"]
    if not isinstance(names, dict | list):
        raise TypeError("names are neither a list nor a mapping")
    return list(names.values() if isinstance(names, dict) else names)


@contextmanager
def _understood(file: Path) -> Iterator[None]:
    """
    Raises:
        ValueError: the file is not what `collect` writes.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"collect (--collect) must be a folder of hard cases, and {file} cannot be read "
            f"({' '.join(str(error).split())}); choose another one."
        ) from error


def _write(folder: Path, cases: Mapping[str, Mapping[str, Any]]) -> None:
    ranked = sorted(cases.items(), key=lambda item: (-item[1]["severity"], item[0]))
    write_json(folder / _REASONS, [{"image": name, **case} for name, case in ranked])


def _describe(file: Path, names: Sequence[str]) -> None:
    if file.exists():
        return
    # Without a path, ultralytics takes the folder of this file, so that the data set can be moved.
    document = {"train": "images", "val": "images", "names": dict(enumerate(names))}
    with replacing(file) as temporary:
        temporary.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _copy(sample: Sample, folder: Path, name: str) -> None:
    labels = (folder / "labels" / name).with_suffix(".txt")
    if not labels.exists():
        with replacing(labels) as temporary:
            if sample.labels.exists:
                shutil.copyfile(sample.labels_file, temporary)
            else:
                temporary.touch()
    if not (folder / "images" / name).exists():
        with replacing(folder / "images" / name) as temporary:
            shutil.copyfile(sample.file, temporary)
