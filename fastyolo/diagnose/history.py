# SPDX-License-Identifier: AGPL-3.0-or-later
"""A log of accuracies, one JSON object a line, and its picture.

Results can be compared only if images, labels and settings were the same, so each entry names these, the images and
labels by a hash of their content. Only such results are joined by a line.
"""

from __future__ import annotations

import datetime
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastyolo._files import digest, replacing

METRICS = ("mAP50-95", "mAP50")  # that are plotted

_FIELDS: dict[str, dict[str, Any]] = {
    "weights": {"name": str},
    "data": dict.fromkeys(("name", "split", "fingerprint"), str),
    "settings": {"imgsz": int},
    "metrics": dict.fromkeys(METRICS, int | float),
}  # that are read again


def entry(
    weights: Path,
    data: Mapping[str, str],
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
    by_class: Mapping[str, float],
) -> dict[str, Any]:
    """
    Args:
        weights: file of the model, or the folder of an exported one.
        data: name, split and fingerprint of the data set.
        settings: of the validation, such as imgsz.
        metrics: mAP50-95, mAP50, precision and recall.
        by_class: AP50-95 of each class that has objects.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "weights": {"name": str(weights), "sha256": digest(weights)},
        "data": dict(data),
        "settings": dict(settings),
        "metrics": dict(metrics),
        "AP50-95": dict(by_class),
    }


def check(file: Path) -> None:
    """
    Raises:
        ValueError: the file holds something else than results.
    """
    if file.exists() and (lines := _lines(file)) and not any(map(_entry, lines)):
        raise ValueError(
            f"history (--history) must be a new file or a log of results, and {file} holds something else; name "
            "another one."
        )


def append(file: Path, result: Mapping[str, Any]) -> None:
    """Add a line, in one write and to disk; after a line that a kill cut short, on a line of its own."""
    line = json.dumps(result, allow_nan=False).encode() + b"\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if (size := os.fstat(log).st_size) and os.pread(log, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(log, line)
        os.fsync(log)
    finally:
        os.close(log)


def read(file: Path) -> list[dict[str, Any]]:
    """The entries; invalid lines are skipped with a warning."""
    found = list(map(_entry, _lines(file)))
    if broken := [number for number, result in enumerate(found, 1) if result is None]:
        warnings.warn(
            f"{file} has lines that are no results and are passed over, first line {broken[0]}.", stacklevel=2
        )
    return [result for result in found if result is not None]


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def _entry(line: str) -> dict[str, Any] | None:
    try:
        result = json.loads(line)
        known = isinstance(result["date"], str) and all(
            isinstance(result[field][name], kind) for field, kinds in _FIELDS.items() for name, kind in kinds.items()
        )
        return result if known else None
    except (KeyError, TypeError, ValueError):
        return None


def comparable(entries: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The latest entry that a result can be compared with."""
    return next((other for other in reversed(entries) if _series(other) == _series(result)), None)


def _series(result: Mapping[str, Any]) -> str:
    return json.dumps([result["data"]["fingerprint"], result["data"]["split"], result["settings"]], sort_keys=True)


def draw(entries: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Accuracy over versions, in the order of the log; PNG, SVG or PDF by the file's suffix."""
    from matplotlib.figure import Figure

    series: dict[str, list[int]] = {}
    for index, result in enumerate(entries):
        series.setdefault(_series(result), []).append(index)
    figure = Figure(figsize=(max(6.0, 2.5 + 0.5 * len(entries)), 4.8), layout="constrained")
    axes = figure.subplots()
    for number, members in enumerate(series.values()):
        colour = f"C{number % 10}"
        for metric, line in zip(METRICS, ("-", "--"), strict=True):
            values = [entries[index]["metrics"][metric] for index in members]
            label = f"{_label(entries[members[0]])}: {metric}"
            axes.plot(members, values, line, marker="o", markersize=4, color=colour, label=label)
    names = [f"{short_name(result)}\n{result['date'][:10]}" for result in entries]
    axes.set_xticks(range(len(entries)), names, rotation=45, ha="right", fontsize=8)
    axes.set_ylim(0, 1)
    axes.set_ylabel("average precision")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=120, format=file.suffix[1:].lower())


def short_name(result: Mapping[str, Any]) -> str:
    """That of the weights' file; of best.pt and last.pt of a training run, that of the run."""
    path = Path(result["weights"]["name"])
    return path.parents[1].name if path.parent.name == "weights" and len(path.parents) > 2 else path.name


def _label(result: Mapping[str, Any]) -> str:
    data, settings = result["data"], result["settings"]
    return f"{data['name']} {data['split']} {data['fingerprint'][:8]}, imgsz {settings['imgsz']}"
