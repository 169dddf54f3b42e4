# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a run came to, in words and in the cells of tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastyolo.compress.pipeline.summary import File, Runtime, Stage, Summary

RUNTIMES: dict[Runtime, str] = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}

_LISTED = 8  # classes
_MINUS = "\N{MINUS SIGN}"
_PERCENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Gain:
    """Of a stage against the baseline; `good` is None if they are the same."""

    text: str
    good: bool | None


@dataclass(frozen=True)
class Quantity:
    """A column of the table of stages.

    Attributes:
        of: its value for a stage, in `unit`; None: not measured.
        accuracy: more is better, and gains are differences; else it is a cost, whose gains are in percent.
    """

    name: str
    unit: str
    of: Callable[[Stage], float | None]
    accuracy: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def value(self, stage: Stage) -> str:
        value = self.of(stage)
        if value is None:
            return "-"
        return f"{value:.3f}" if self.accuracy else significant(value)

    def gain(self, stage: Stage, summary: Summary) -> Gain | None:
        """None where there is nothing to compare."""
        first = baseline(summary)
        if first is None or stage is first:
            return None
        before, now = self.of(first), self.of(stage)
        if before is None or now is None:
            return None
        change = round(now - before, 3) if self.accuracy else round(now / before - 1, 2)
        text = f"{change:+.3f}" if self.accuracy else f"{100 * change:+.0f}{_PERCENT}"
        return Gain(text.replace("-", _MINUS), (change > 0) == self.accuracy if change else None)


def runtimes(summary: Summary) -> dict[Runtime, str]:
    """Those in which something was measured, with their names for readers."""
    measured = {runtime for stage in summary.stages for runtime in stage.latency}
    return {runtime: name for runtime, name in RUNTIMES.items() if runtime in measured}


def quantities(summary: Summary) -> list[Quantity]:
    """The columns that have a value for some stage."""
    columns = [
        Quantity("Parameters", "M", lambda stage: _scaled(stage.parameters, 1e6)),
        Quantity("FLOPs", "G", lambda stage: _scaled(stage.flops, 1e9)),
        Quantity("Size", "MB", lambda stage: _scaled(stage.bytes, 1e6)),
        *(Quantity(name, "ms", _latency(runtime)) for runtime, name in RUNTIMES.items()),
        Quantity("mAP50", "", lambda stage: stage.accuracy.map50 if stage.accuracy else None, accuracy=True),
        Quantity("mAP50-95", "", lambda stage: stage.accuracy.map50_95 if stage.accuracy else None, accuracy=True),
    ]
    return [column for column in columns if any(column.of(stage) is not None for stage in summary.stages)]


def baseline(summary: Summary) -> Stage | None:
    """What gains are against; None if it was skipped."""
    return next((stage for stage in summary.stages if stage.name == "baseline" and stage.files), None)


def final(summary: Summary) -> Stage | None:
    """The last stage that has a model."""
    return next((stage for stage in reversed(summary.stages) if stage.files), None)


def result(summary: Summary) -> str:
    """What was reached against the baseline, in a few sentences."""
    first, last = baseline(summary), final(summary)
    if last is None:
        return "No model was made."
    if first is None or first is last:
        return f"There is nothing to compare the last model ({last.title}) with."
    costs = [
        f"{verb} {_percent(now, before)} {noun}"
        for verb, noun, now, before in (
            ("has", "parameters", last.parameters, first.parameters),
            ("needs", "FLOPs", last.flops, first.flops),
            ("takes", "bytes", last.bytes, first.bytes),
        )
        if now and before and _change(now, before)
    ]
    sentences = [f"The model to ship {_row(costs)} than the baseline."] if costs else []
    speeds = [
        f"{first.latency[runtime].median_ms / last.latency[runtime].median_ms:.1f} times as fast in {name}"
        for runtime, name in RUNTIMES.items()
        if runtime in first.latency and runtime in last.latency
    ]
    if speeds:
        sentences.append(f"It is {' and '.join(speeds)} as the baseline.")
    if first.accuracy and last.accuracy:
        map50 = _compared(last.accuracy.map50, first.accuracy.map50)
        map50_95 = _compared(last.accuracy.map50_95, first.accuracy.map50_95)
        sentences.append(f"Its mAP50 on the validation images is {map50}, its mAP50-95 {map50_95}.")
    return " ".join(sentences)


@dataclass(frozen=True)
class Remark:
    """A sentence on something that was asked for; `good` is None if nobody knows."""

    good: bool | None
    text: str


def remarks(summary: Summary) -> list[Remark]:
    """What is not as it should be, what is, and what nobody knows."""
    found = [Remark(False, problem) for problem in summary.problems]
    found += [
        Remark(
            True,
            f"The target {target.name} of {target.asked:g} {target.unit} is met, with {target.reached:.3g} "
            f"{target.unit}. {target.note}",
        )
        for target in summary.targets
        if target.met
    ]
    verdicts = [file.verification.verdict if file.verification else "unknown" for file in summary.ships]
    if "unknown" in verdicts:
        unknown = ", ".join(
            file.path for file, verdict in zip(summary.ships, verdicts, strict=True) if verdict == "unknown"
        )
        found.append(Remark(None, f"Whether a file computes what its checkpoint does was not found out for {unknown}."))
    elif verdicts and "departs" not in verdicts:
        found.append(Remark(True, "Every file to ship computes what its checkpoint computes."))
    return found


@dataclass(frozen=True)
class ClassRow:
    """AP50-95 of a class, of the baseline and of the model to ship."""

    name: str
    before: float
    after: float


def classes(summary: Summary) -> list[ClassRow]:
    """Those that lost most, the worst first."""
    first, last = baseline(summary), final(summary)
    if first is last or not (first and first.accuracy and last and last.accuracy):
        return []
    after = last.accuracy.by_class
    rows = [ClassRow(name, value, after[name]) for name, value in first.accuracy.by_class.items() if name in after]
    return sorted(rows, key=lambda row: row.after - row.before)[:_LISTED]


def on_the_way(summary: Summary) -> list[File]:
    """The files that do not ship."""
    return [file for stage in summary.stages for file in stage.files if not file.ships]


def facts(summary: Summary) -> list[tuple[str, str]]:
    """Settings and environment, by name."""
    data, environment = summary.data, summary.environment
    cpu = environment["cpu"]
    settings = {name.replace("_", " "): _plain(value) for name, value in summary.settings.items()}
    return [
        ("data set", data.path),
        ("objects", f"{data.train_objects:,} in training, {data.val_objects:,} in validation"),
        ("classes", _plain(data.classes)),
        ("digest of the data set", data.digest),
        *((name, text) for name, text in settings.items() if text),
        ("processor", f"{cpu['model']}, {cpu['cores']} cores, {cpu['isa']}"),
        ("GPUs", _plain([gpu["model"] for gpu in environment["gpus"]]) or "none"),
        ("threads for latency", str(summary.threads)),
        ("versions", _plain({name: version for name, version in environment["versions"].items() if version})),
        ("commit of fastyolo", environment["commit"] or "not from a repository"),
        ("date", environment["date"]),
    ]


def significant(value: float) -> str:
    """With three significant digits, and no exponent."""
    decimals = max(2 - math.floor(math.log10(value)), 0) if value > 0 else 0
    return f"{value:,.{decimals}f}"


def _latency(runtime: Runtime) -> Callable[[Stage], float | None]:
    return lambda stage: stage.latency[runtime].median_ms if runtime in stage.latency else None


def _scaled(value: int | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _change(now: int, before: int) -> int:
    """In percent."""
    return round(100 * (now / before - 1))


def _percent(now: int, before: int) -> str:
    change = _change(now, before)
    return f"{abs(change)}{_PERCENT} {'more' if change > 0 else 'fewer'}"


def _row(clauses: list[str]) -> str:
    *others, last = clauses
    return f"{', '.join(others)} and {last}" if others else last


def _compared(now: float, before: float) -> str:
    change = round(now - before, 3)
    if not change:
        return f"{now:.3f} (the same)"
    return f"{now:.3f} ({abs(change):.3f} {'higher' if change > 0 else 'lower'})"


def _plain(value: Any) -> str:
    """A JSON value for readers; empty if there is nothing in it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "" if value is None else str(value)
