# SPDX-License-Identifier: AGPL-3.0-or-later
"""The table of a `bench model` document: a line for each model, input, batch, number of threads and runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastyolo.bench.runtimes import LABELS, PYTORCH

_RECALL = {"small": "S", "medium": "M", "large": "L"}
_HEADERS = (
    *("model", "imgsz", "batch", "threads", "runtime", "ms: median", "90 %", "99 %", "images/s", "peak MB", "file MB"),
    *("mAP50-95", "mAP50", *(f"recall {letter}" for letter in _RECALL.values())),
)
_SETTINGS = ("model", "batch", "threads")  # left out where all lines have the same
NAMES = ("model", "runtime")  # the columns that are no numbers
_DIGITS = {"images_per_s": 1, "peak_mb": 0, "file_mb": 2}
NOTHING = "-"


def table(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and lines, without the columns that say nothing."""
    lines = [line for row in document["results"] for line in _lines(row)]
    kept = [
        index
        for index, header in enumerate(_HEADERS)
        if any(line[index] != NOTHING for line in lines)
        and not (header in _SETTINGS and len({line[index] for line in lines}) == 1)
    ]
    return [_HEADERS[index] for index in kept], [[line[index] for index in kept] for line in lines]


def _lines(row: Mapping[str, Any]) -> Iterator[list[str]]:
    accuracies = _accuracies(row)
    for runtime, time in row["latency"].items():
        of_runtime = {name: row.get(name, {}).get(runtime) for name in _DIGITS}
        accuracy = accuracies.get(runtime, {})
        recalls = accuracy.get("recall", {})
        yield [
            *(str(row.get(name, NOTHING)) for name in ("model", "imgsz", "batch", "threads")),
            LABELS[runtime],
            *(_number(time.get(f"{name}_ms"), 1) for name in ("median", "p90", "p99")),
            *(_number(of_runtime[name], digits) for name, digits in _DIGITS.items()),
            *(_number(accuracy.get(name), 3) for name in ("mAP50-95", "mAP50")),
            *(_number(recalls.get(size, {}).get("recall"), 3) for size in _RECALL),
        ]


def _accuracies(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """By runtime. Documents of schema 1 have PyTorch's in the row."""
    accuracies: Mapping[str, Any] = row.get("accuracy", {PYTORCH: row})
    return accuracies


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def markdown(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Names to the left, numbers to the right."""
    first, *rest = (f"| {' | '.join(line)} |\n" for line in (headers, *lines))
    sides = "|".join("---" if header in NAMES else "--:" for header in headers)
    return "".join([first, f"|{sides}|\n", *rest])


def threads_text(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def explanation(document: Mapping[str, Any]) -> str:
    """What the columns mean, for below a table."""
    text = "Milliseconds of a call, letterbox and NMS included."
    if any(PYTORCH in row["latency"] for row in document["results"]):
        text += " PyTorch: accelerated by fastyolo."
    if any("peak_mb" in row for row in document["results"]):
        text += (
            " Peak: of the resident memory of a process that does nothing else, with torch for PyTorch, and for NCNN "
            "and TensorRT, which ultralytics runs."
        )
    if any("recall" in accuracy for row in document["results"] for accuracy in _accuracies(row).values()):
        at = document["recall_at"]
        text += (
            " S, M, L: recall of objects below 32² pixels in the image file, below 96², and of the rest, at score "
            f"{at['score']:g} and IoU {at['iou']:g}."
        )
    return text


def setting(document: Mapping[str, Any]) -> str:
    """The models, the data, and what all lines have in common."""
    parts = [document["weights"]]
    if document["data"]:
        parts.append(f"{document['images']} images of {document['data']}")
    for name, text in (("batch", "batch {}".format), ("threads", threads_text)):
        values = {row[name] for row in document["results"] if name in row}
        if len(values) == 1:
            parts.append(text(values.pop()))
    return "; ".join(parts)
