# SPDX-License-Identifier: AGPL-3.0-or-later
"""What became slower between results of `fastyolo bench`, told apart from what the machine did meanwhile."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Verdict = Literal["slower", "faster", "same", "unclear"]
Document = Mapping[str, Any]

THRESHOLD = 0.05  # the change that matters to somebody, unless they say otherwise
_SIGMAS = 3  # that the change of an operator must exceed, and of a row among few
_SIGMAS_OF_ROW = 8  # of a row among many, since what disturbs one of them is rare and large
_FEW = 6  # values, fewer of which do not tell how much they vary
_NEXT = 3  # visits after the quietest, by which its error is judged, or as many as there are
_EXACT = 1e-6  # relative error that a time has at least
_PROCESS = 0.03  # relative, what differs from process to process (bench/NOTES.md), where too few rows tell it
_KEYS = ("device", "threads", "environment", "results")
_MEDIAN = 1.2533  # times the standard error of a mean: that of a median, of normal values


@dataclass(frozen=True)
class Change:
    """Of a measurement that both sides have, or of all rows of an operator or runtime.

    Attributes:
        name: of the case, or of the operator or runtime.
        before: median, microseconds; of an operator, None.
        after: median, microseconds; of an operator, None.
        change: of the time, relative, after the machine's was divided out: 0.1 is 10 % slower.
        noise: the change that nothing but the machine may have brought about.
        verdict: "slower" or "faster" if the change exceeds the threshold and the noise, "unclear" if it exceeds the
            threshold alone, else "same".
    """

    name: str
    before: float | None
    after: float | None
    change: float
    noise: float
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """All changes, and the names of the rows that one of the sides lacks.

    Attributes:
        groups: the median change of the rows of each operator or runtime that has several.
        drift: what the machine became slower by, relative: by the references. None: there are none, or they vary too
            much to tell.
        level: the median change of the operators or runtimes that was divided out in its place. None: it was not.
        remarks: what differs between the two sides beside the code, a sentence each.
    """

    rows: tuple[Change, ...]
    groups: tuple[Change, ...]
    missing: tuple[str, ...]
    drift: float | None
    level: float | None
    remarks: tuple[str, ...]

    @property
    def is_slower(self) -> bool:
        return any(change.verdict == "slower" for change in (*self.rows, *self.groups))

    def of(self, verdict: Verdict) -> list[Change]:
        return [row for row in self.rows if row.verdict == verdict]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Measured:
    """A row of one run, in logarithms.

    Attributes:
        group: its operator or runtime.
        level: median of the quietest visit, or of all samples where the visits are not known.
        error: of the level; None: not known.
        references: levels of what was measured beside it, by a name that rows may have in common.
    """

    group: str
    level: float
    error: float | None
    references: Mapping[str, float]


_Runs = Mapping[str, Sequence[_Measured]]  # by the name of the row


def compare(before: Sequence[Document], after: Sequence[Document], *, threshold: float = THRESHOLD) -> Comparison:
    """Compare documents of `fastyolo bench ops` or of `fastyolo bench model`, of one or several runs on each side.

    What the machine became slower by is the median change of all references, which are not fastyolo's: of operators,
    the peers and the pass over memory, which are many, so that it does not matter that each varies more than what it is
    a reference for (bench/NOTES.md); of models, a product of matrices. Where even their median is uncertain, as on a
    machine that others use, the median change of the operators takes its place if they are many: a change of one of
    them then shows, one of all does not.

    The time of a row is that of its quietest visit, since what else a machine does can only make a visit slower. Its
    error is told by how far the next visits are from it, and by how much several runs differ; all errors are then
    multiplied by one factor, so that they explain the changes of all rows as a whole; few rows do not tell the factor,
    so their errors have a least value. The change of an operator is the median of its rows', whose error is less, the
    more rows there are, and is calibrated likewise among the operators. Noise is a multiple of these errors.

    Args:
        before: documents of earlier runs.
        after: of later ones.
        threshold: relative change from which on a row or operator counts as slower or faster.

    Raises:
        ValueError: the documents are of another kind, or have no row in common, or were measured on other devices.
    """
    _check(before, after)
    old, new = _runs(before), _runs(after)
    common = [name for name in old if name in new]
    if not common:
        raise ValueError("before and after must have a case in common, and have none.")
    changes = {name: _mean(new[name]) - _mean(old[name]) for name in common}
    raw = {name: math.hypot(_error(old[name]), _error(new[name])) for name in common}
    if len(common) < _FEW:
        raw = {name: max(raw[name], _PROCESS * math.sqrt(1 / len(old[name]) + 1 / len(new[name]))) for name in common}
    sigmas_of_row = _SIGMAS if len(common) < _FEW else _SIGMAS_OF_ROW
    errors = _calibrated(changes, _moderated(raw, changes))
    groups: dict[str, list[str]] = {}
    for name in common:
        groups.setdefault(old[name][0].group, []).append(name)
    levels = {group: float(np.median([changes[name] for name in names])) for group, names in groups.items()}
    of_levels = _calibrated(
        levels, {group: _error_of_median([errors[name] for name in names]) for group, names in groups.items()}
    )

    references = _reference_changes(old, new, common)
    drift, uncertainty = _median(references)
    by_level = _SIGMAS * uncertainty > threshold and len(levels) >= _FEW
    if by_level:
        drift, uncertainty = _median([*levels.values()])

    def judged(
        name: str, change: float, error: float, sigmas: float, before: float | None = None, after: float | None = None
    ) -> Change:
        noise = math.expm1(math.hypot(sigmas * error, _SIGMAS * uncertainty))
        verdict = _verdict(change - drift, noise, threshold)
        return Change(name, before, after, math.expm1(change - drift), noise, verdict)

    rows = []
    for name in common:
        times = (math.exp(_mean(side[name])) for side in (old, new))
        rows.append(judged(name, changes[name], errors[name], sigmas_of_row, *times))
    of_groups = [
        judged(group, levels[group], of_levels[group], _SIGMAS) for group, names in groups.items() if len(names) > 1
    ]
    return Comparison(
        tuple(rows),
        tuple(of_groups),
        tuple(sorted(set(old) ^ set(new))),
        math.expm1(drift) if references and not by_level else None,
        math.expm1(drift) if by_level else None,
        tuple(_remarks(before, after)),
    )


def _check(before: Sequence[Document], after: Sequence[Document]) -> None:
    for name, documents in (("before", before), ("after", after)):
        if not documents:
            raise ValueError(f"{name} must be at least one result, got none.")
        for document in documents:
            if str(document.get("kind")) not in _ROWS:
                raise ValueError(
                    f"{name} must be a result of 'bench ops' or 'bench model', got one of kind "
                    f"{document.get('kind')!r}{_of(document)}."
                )
            if lacking := [key for key in _KEYS if key not in document]:
                raise ValueError(
                    f"{name} must be a whole result of 'bench {document['kind']}', got one without {lacking[0]}"
                    f"{_of(document)}."
                )
            try:
                _facts(document)
            except (AttributeError, KeyError, TypeError) as error:
                fault = f"without {error}" if isinstance(error, KeyError) else "of other types"
                raise ValueError(
                    f"{name} must be a whole result of 'bench {document['kind']}', got one with an environment "
                    f"{fault}{_of(document)}."
                ) from error
    first = before[0]
    for name, documents in (("before", before), ("after", after)):
        for document in documents:
            for key in ("kind", "device"):
                if document[key] != first[key]:
                    whose = "the others" if name == "before" else "before"
                    raise ValueError(
                        f"{name} must have the {key} of {whose}, {first[key]!r}, got {document[key]!r}{_of(document)}."
                    )


def _of(document: Document) -> str:
    """The file of a document that says from which it was read."""
    return f" in {document['file']}" if "file" in document else ""


def _runs(documents: Sequence[Document]) -> _Runs:
    rows: dict[str, list[_Measured]] = {}
    for document in documents:
        try:
            measured = list(_ROWS[document["kind"]](document))
        except (AttributeError, KeyError, TypeError) as error:
            lacking = f"one without {error}" if isinstance(error, KeyError) else "others"
            raise ValueError(
                f"The rows of a result must be as 'bench {document['kind']}' writes them, got {lacking}{_of(document)}."
            ) from error
        for name, each in measured:
            rows.setdefault(name, []).append(each)
    return rows


def _ops(document: Document) -> Iterator[tuple[str, _Measured]]:
    for row in document["results"]:
        times = {name: (time["median_us"], time.get("parts_us")) for name, time in row["contenders"].items()}
        if row.get("memory_us"):
            times["memory"] = (row["memory_us"], row.get("memory_parts_us"))
        level, error = _level(*times.pop("fastyolo"))
        name = f"{row['op']} {row['case']}"
        references = {f"{peer} of {name}": _level(*time)[0] for peer, time in times.items()}
        yield name, _Measured(row["op"], level, error, references)


def _model(document: Document) -> Iterator[tuple[str, _Measured]]:
    for row in document["results"]:
        # Documents of schema 1 have no other settings than the size.
        settings = [row["model"], f"batch {row['batch']}", f"{row['threads']} threads"] if "model" in row else []
        references = {}
        if product := row.get("matrix_product"):  # which all rows of this batch and number of threads have in common
            level, _ = _level(product["median_ms"], product["parts_ms"])
            references = {f"matrix product, {', '.join(settings[1:])}": level}
        for runtime, time in row["latency"].items():
            level, error = _level(time["median_ms"], time.get("parts_ms"))
            name = ", ".join([f"{runtime} at {row['imgsz']}", *settings])
            yield name, _Measured(runtime, level + math.log(1e3), error, references)


def _level(median: float, visits: Sequence[float] | None) -> tuple[float, float | None]:
    """The logarithm of the time of the quietest visit, and its error, by how far the next ones are from it.

    Raises:
        ValueError: a time is not above 0.
    """
    if not min((median, *(visits or ()))) > 0:
        raise ValueError("before and after must have times above 0, and one has others; measure it again.")
    if visits is None or len(visits) < 2:
        return math.log(median), None
    ordered = np.sort(np.log(visits))[: _NEXT + 1]
    return float(ordered[0]), float(ordered[-1] - ordered[0]) / 2


_ROWS = {"ops": _ops, "model": _model}


def _reference_changes(old: _Runs, new: _Runs, names: Sequence[str]) -> list[float]:
    changes = {}
    for name in names:
        before, after = (
            {reference: np.mean([run.references[reference] for run in runs]) for reference in _common(runs)}
            for runs in (old[name], new[name])
        )
        changes.update({reference: float(after[reference] - before[reference]) for reference in before.keys() & after})
    return [*changes.values()]


def _common(runs: Sequence[_Measured]) -> list[str]:
    return [name for name in runs[0].references if all(name in run.references for run in runs)]


def _median(values: Sequence[float]) -> tuple[float, float]:
    """The median and its standard error; of no values, 0."""
    if not values:
        return 0.0, 0.0
    spread = _spread(values)
    if len(values) < _FEW:  # which may be alike by chance
        spread = max(math.sqrt(2) * _PROCESS, float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)
    return float(np.median(values)), _MEDIAN * spread / math.sqrt(len(values))


def _mean(runs: Sequence[_Measured]) -> float:
    return float(np.mean([run.level for run in runs]))


def _error(runs: Sequence[_Measured]) -> float:
    """Of the mean of the levels: from each run's own, or from how much the runs differ if that is more."""
    known = [run.error for run in runs if run.error is not None]
    own = math.sqrt(float(np.mean(np.square(known))) / len(runs)) if known else 0.0
    if len(runs) < 2:
        return own
    return max(own, float(np.std([run.level for run in runs], ddof=1)) / math.sqrt(len(runs)))


def _error_of_median(errors: Sequence[float]) -> float:
    """Standard error of the median of normal values, each with its own error: 1 / (2 f sqrt(n)), where f is the mean of
    their densities at the centre. Of two values the median is the mean."""
    if len(errors) < 3:
        return math.hypot(*errors) / len(errors)
    return _MEDIAN / (float(np.mean(np.reciprocal(errors))) * math.sqrt(len(errors)))


def _moderated(errors: Mapping[str, float], changes: Mapping[str, float]) -> dict[str, float]:
    """Errors drawn half-way to their median: a few visits do not tell well how much they vary, and one row in many has
    a small error by chance. Where none is known, all rows have the one that their changes show."""
    typical = float(np.median([*errors.values()])) or max(_spread([*changes.values()]), _EXACT)
    return {name: math.sqrt((error**2 + typical**2) / 2) for name, error in errors.items()}


def _calibrated(changes: Mapping[str, float], errors: Mapping[str, float]) -> dict[str, float]:
    """Errors multiplied by one factor so that, as a whole, they explain how much the changes differ.

    Visits of one run do not see what differs from process to process. The factor is the Birge ratio, which is not below
    1 (https://doi.org/10.1103/PhysRev.40.207), by the median absolute deviation in place of the mean square, so that
    those that did change do not count.
    """
    if len(changes) < _FEW:
        return dict(errors)
    middle = np.median([*changes.values()])
    ratio = max(1.0, 1.4826 * float(np.median([abs(changes[name] - middle) / errors[name] for name in changes])))
    return {name: ratio * error for name, error in errors.items()}


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


def _remarks(before: Sequence[Document], after: Sequence[Document]) -> Iterator[str]:
    facts = [_facts(document) for document in (*before, *after)]
    for name in dict.fromkeys(name for document in facts for name in document):
        was, now = (
            sorted({str(document[name]) for document in side if name in document})
            for side in (facts[: len(before)], facts[len(before) :])
        )
        if was and now and was != now:
            yield f"{name} was {' and '.join(was)} and is {' and '.join(now)}."
    for document in (*before, *after):
        if any(measured.error is None for _, measured in _ROWS[document["kind"]](document)):
            yield "A file does not say how its samples varied, so noise is judged by the spread of the rows alone."
            return


def _facts(document: Document) -> dict[str, Any]:
    environment = document["environment"]
    return {
        "threads": document["threads"],
        "processor": environment["cpu"]["model"],
        "cores": environment["cpu"]["cores"],
        "GPU": ", ".join(gpu["model"] for gpu in environment["gpus"]) or "none",
        **{name: version for name, version in sorted(environment["versions"].items()) if name != "fastyolo"},
    }
