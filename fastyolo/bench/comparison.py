# SPDX-License-Identifier: AGPL-3.0-or-later
"""What became slower between two result files of `fastyolo bench`, told apart from what the machine did meanwhile."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Verdict = Literal["slower", "faster", "same", "unclear"]

THRESHOLD = 0.05  # the change that matters to somebody, unless they say otherwise
_SIGMAS = 4  # that a change must exceed: chance takes one of a hundred rows that far once in 150 comparisons
_FEW = 6  # rows, fewer of which do not tell how much rows vary


@dataclass(frozen=True)
class Row:
    """A measurement that both files have.

    Attributes:
        name: of the case.
        before: median, microseconds.
        after: median, microseconds.
        change: of the time, relative, after that of the references was divided out: 0.1 is 10 % slower.
        noise: the change that nothing but the machine may have brought about.
        verdict: "slower" or "faster" if the change exceeds the threshold and the noise, "unclear" if it exceeds the
            threshold alone, else "same".
    """

    name: str
    before: float
    after: float
    change: float
    noise: float
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """All rows, and the names of those that one of the files lacks.

    Attributes:
        drift: change of the references' times: what the machine did, relative. None without references.
        remarks: what differs between the two runs beside the code, a sentence each.
    """

    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    drift: float | None
    remarks: tuple[str, ...]

    def of(self, verdict: Verdict) -> list[Row]:
        return [row for row in self.rows if row.verdict == verdict]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Measured:
    """Times in microseconds: the median, the medians of consecutive parts, and the same of what ran in turns."""

    median: float
    parts: Sequence[float]
    references: Mapping[str, tuple[float, Sequence[float]]]


def compare(before: Mapping[str, Any], after: Mapping[str, Any], *, threshold: float = THRESHOLD) -> Comparison:
    """Compare two documents of `fastyolo bench ops` or of `fastyolo bench model`.

    A row's references are what took turns with it in the same run and is not fastyolo's: peers, and the pass over
    memory. How much their times changed is divided out, so that a machine that was slower throughout, or for a while,
    is not taken for slower code. Noise is the larger of two: the standard error of a row from the consecutive parts of
    its samples, and the spread of all rows' changes around their median, by the median absolute deviation, which a few
    changed rows do not move.

    Args:
        before: a document of an earlier run.
        after: one of a later run.
        threshold: relative change from which on a row counts as slower or faster.

    Raises:
        ValueError: the documents are of another kind, or have no row in common, or were measured on other devices.
    """
    for name, document in (("before", before), ("after", after)):
        if document.get("kind") not in _ROWS:
            raise ValueError(
                f"{name} must be a result of 'bench ops' or 'bench model', got one of kind {document.get('kind')!r}."
            )
    for key in ("kind", "device"):
        if before[key] != after[key]:
            raise ValueError(f"after must have the {key} of before, {before[key]!r}, got {after[key]!r}.")
    old, new = (dict(_ROWS[document["kind"]](document)) for document in (before, after))
    common = [name for name in old if name in new]
    if not common:
        raise ValueError("before and after must have a case in common, and have none.")
    drifts = [_drift(old[name], new[name]) for name in common]
    changes = [
        math.log(new[name].median / old[name].median) - (0.0 if drift is None else drift)
        for name, drift in zip(common, drifts, strict=True)
    ]
    spread = _spread(changes)
    rows = []
    for name, change in zip(common, changes, strict=True):
        noise = _SIGMAS * max(spread, math.hypot(_error(old[name]), _error(new[name])))
        verdict = _verdict(change, math.expm1(noise), threshold)
        row = Row(name, old[name].median, new[name].median, math.expm1(change), math.expm1(noise), verdict)
        rows.append(row)
    known = [drift for drift in drifts if drift is not None]
    return Comparison(
        tuple(rows),
        tuple(sorted(set(old) ^ set(new))),
        math.expm1(float(np.median(known))) if known else None,
        tuple(_remarks(before, after)),
    )


def _ops(document: Mapping[str, Any]) -> Iterator[tuple[str, _Measured]]:
    for row in document["results"]:
        times = {name: (time["median_us"], time.get("parts_us", ())) for name, time in row["contenders"].items()}
        median, parts = times.pop("fastyolo")
        if row.get("memory_us"):
            times["memory"] = (row["memory_us"], ())
        yield f"{row['op']} {row['case']}", _Measured(median, parts, times)


def _model(document: Mapping[str, Any]) -> Iterator[tuple[str, _Measured]]:
    for row in document["results"]:
        for runtime, time in row["latency"].items():
            parts = [value * 1e3 for value in time.get("parts_ms", ())]
            yield f"{runtime} at {row['imgsz']}", _Measured(time["median_ms"] * 1e3, parts, {})


_ROWS = {"ops": _ops, "model": _model}


def _drift(old: _Measured, new: _Measured) -> float | None:
    """Logarithm of the references' change: the mean of those that both have."""
    common = [name for name in old.references if name in new.references]
    if not common:
        return None
    return float(np.mean([math.log(new.references[name][0] / old.references[name][0]) for name in common]))


def _error(measured: _Measured) -> float:
    """Standard error of the logarithm of the median, relative to the references where parts of those are known."""
    if len(measured.parts) < 2:
        return 0.0  # the spread of the rows has to do
    logs = np.log(measured.parts)
    others = [np.log(parts) for _, parts in measured.references.values() if len(parts) == len(logs)]
    if others:
        logs = logs - np.mean(others, axis=0)
    return float(logs.std(ddof=1) / math.sqrt(len(logs)))


def _spread(changes: Sequence[float]) -> float:
    """Robust standard deviation; 0 where there are too few."""
    if len(changes) < _FEW:
        return 0.0
    return 1.4826 * float(np.median(np.abs(np.array(changes) - np.median(changes))))


def _verdict(change: float, noise: float, threshold: float) -> Verdict:
    relative = math.expm1(change)
    size = max(relative, math.expm1(-change))  # twice as fast is as much as twice as slow
    if size > max(threshold, noise):
        return "slower" if change > 0 else "faster"
    return "unclear" if size > threshold else "same"


def _remarks(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    old, new = before["environment"], after["environment"]
    facts = {
        "threads": (before["threads"], after["threads"]),
        "processor": (old["cpu"]["model"], new["cpu"]["model"]),
        "cores": (old["cpu"]["cores"], new["cpu"]["cores"]),
        "GPU": tuple(", ".join(gpu["model"] for gpu in environment["gpus"]) or "none" for environment in (old, new)),
        **{
            name: (old["versions"].get(name), new["versions"].get(name))
            for name in sorted({*old["versions"], *new["versions"]} - {"fastyolo"})
        },
    }
    for name, (was, now) in facts.items():
        if was != now:
            yield f"{name} was {was} and is {now}."
    if any(not time.parts for document in (before, after) for _, time in _ROWS[document["kind"]](document)):
        yield "A file does not say how its samples varied, so noise is judged by the spread of the rows alone."
