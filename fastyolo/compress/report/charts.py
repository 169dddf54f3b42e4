# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the lines, points and numbers of the report's charts stand; the template draws them.

Sizes are in the pixels of a chart that is shown at the width of a telephone, so that its numbers can be read there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from fastyolo.compress.pipeline.summary import Summary
from fastyolo.compress.report.words import RUNTIMES
from fastyolo.diagnose.doctor.run import read_results

WIDTH, HEIGHT = 340, 240
LEFT, RIGHT, TOP, BOTTOM = 44, 328, 12, 200  # of the area of the data

_LABEL = 14  # least distance of two labels
_BESIDE = 10  # their distance to the point
_LETTER = 7  # the width of a letter, more or less
_POINT = 4  # the radius of a point
_ROOM = 0.15  # beyond the least and most accurate point, as a share of their distance
_TERMS = ("box_loss", "cls_loss", "dfl_loss")  # which every training has; a teacher adds others

Point = tuple[float, float]
History = list[dict[str, float]]


@dataclass(frozen=True)
class Tick:
    position: float
    text: str


@dataclass(frozen=True)
class Label:
    """Where the name of a line begins (anchor "start") or ends ("end")."""

    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Line:
    """A line of a chart, in pixels.

    Attributes:
        stage: index of the stage, which gives the colour.
        name: for readers.
        label: None for a line that a legend names.
    """

    stage: int
    name: str
    points: tuple[Point, ...]
    dashed: bool = False
    label: Label | None = None

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Chart:
    """A chart to draw.

    Attributes:
        description: what it shows, for those who do not see it.
    """

    title: str
    description: str
    x_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def training(summary: Summary, folder: Path) -> list[Chart]:
    """The course of accuracy and of the loss over the epochs of all stages, one stage after the other."""
    histories = [
        [row for run in stage.runs for row in _history(folder / run / "results.csv")] for stage in summary.stages
    ]
    if not any(histories):
        return []
    starts = [sum(map(len, histories[:index])) for index in range(len(histories))]

    def curve(value: Callable[[dict[str, float]], float | None], dashed: bool = False) -> list[_Curve]:
        curves = []
        for index, (stage, start, history) in enumerate(zip(summary.stages, starts, histories, strict=True)):
            values = [(start + number, value(row)) for number, row in enumerate(history, 1)]
            points = [(float(x), y) for x, y in values if y is not None and math.isfinite(y)]
            if points:
                curves.append(_Curve(index, stage.title, points, dashed))
        return curves

    losses = [*curve(lambda row: _loss(row, "train")), *curve(lambda row: _loss(row, "val"), dashed=True)]
    charts = {
        "mAP50": curve(lambda row: row.get("metrics/mAP50(B)")),
        "mAP50-95": curve(lambda row: row.get("metrics/mAP50-95(B)")),
        "Loss (box, class, DFL); dashed: in validation": losses,
    }
    return [_chart(title, "epoch, all stages in a row", curves) for title, curves in charts.items() if curves]


def trade_offs(summary: Summary) -> list[Chart]:
    """Latency against accuracy of the stages, for each runtime that was measured."""
    charts = []
    for runtime, name in RUNTIMES.items():
        curves = [
            _Curve(index, stage.title, [(stage.latency[runtime].median_ms, stage.accuracy.map50_95)])
            for index, stage in enumerate(summary.stages)
            if runtime in stage.latency and stage.accuracy
        ]
        if curves:
            charts.append(_chart(f"mAP50-95 against latency in {name}", "ms for an image", curves, named=True))
    return charts


@dataclass(frozen=True)
class _Curve:
    """A line in the units of its quantities."""

    stage: int
    name: str
    points: Sequence[Point]
    dashed: bool = False


def _history(file: Path) -> History:
    """The rows of a run's results.csv; none if the file is gone."""
    return read_results(file) if file.exists() else []


def _loss(row: dict[str, float], split: str) -> float | None:
    terms = [row[key] for term in _TERMS if (key := f"{split}/{term}") in row]
    return sum(terms) if terms else None


def _chart(title: str, x_title: str, curves: Sequence[_Curve], *, named: bool = False) -> Chart:
    """
    Args:
        named: write names beside the points, of which each curve has one, and show their surroundings only.
    """
    columns, rows = zip(*(point for curve in curves for point in curve.points), strict=True)
    room = _ROOM * (max(rows) - min(rows))
    x_scale = _Scale((0, *columns), LEFT, RIGHT, whole=not named)
    y_scale = _Scale((max(min(rows) - room, 0), max(rows) + room) if named else (0, *rows), BOTTOM, TOP)
    lines = [
        Line(
            curve.stage,
            curve.name,
            tuple((x_scale.position(x), y_scale.position(y)) for x, y in curve.points),
            curve.dashed,
        )
        for curve in curves
    ]
    ends = [f"{curve.name}: {curve.points[-1][1]:.3g} at {curve.points[-1][0]:.3g}" for curve in curves]
    return Chart(
        title,
        f"{title}, by {x_title}. {'; '.join(ends)}.",
        x_title,
        x_scale.ticks,
        y_scale.ticks,
        tuple(_labelled(lines) if named else lines),
    )


class _Scale:
    """From the values of a quantity to pixels, between round numbers."""

    def __init__(self, values: Iterable[float], start: float, end: float, *, whole: bool = False) -> None:
        numbers = list(values)
        low, high = min(numbers), max(numbers)
        if low == high:
            low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(high) or 1)
        locator = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=whole)
        ticks = [float(tick) for tick in locator.tick_values(low, high)]
        self._low, self._high, self._start, self._end = ticks[0], ticks[-1], start, end
        self.ticks = tuple(Tick(self.position(tick), f"{tick:.4g}") for tick in ticks)

    def position(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)


def _labelled(lines: Sequence[Line]) -> list[Line]:
    """Points with their names beside them, none upon another."""
    heights: list[float] = []
    downwards = sorted(lines, key=lambda line: line.points[0][1])
    for line in downwards:
        heights.append(max(line.points[0][1], heights[-1] + _LABEL if heights else TOP))
    lowest = BOTTOM - _LABEL / 2
    for index in reversed(range(len(heights))):  # those that were pushed out of the chart push back
        heights[index] = min(heights[index], lowest)
        lowest = heights[index] - _LABEL
    points = [line.points[0] for line in lines]
    return [replace(line, label=_beside(line, y, points)) for line, y in zip(downwards, heights, strict=True)]


def _beside(line: Line, y: float, points: Sequence[Point]) -> Label:
    """On the side where the name covers no other point; of both such, or neither, on that with more room."""
    (own,) = line.points
    right = Label(own[0] + _BESIDE, y, "start")
    left = Label(own[0] - _BESIDE, y, "end")
    sides = (right, left) if own[0] < (LEFT + RIGHT) / 2 else (left, right)

    def covers(label: Label) -> bool:
        width = _LETTER * len(line.name)
        start = label.x if label.anchor == "start" else label.x - width
        inside = any(
            start - _POINT < x < start + width + _POINT and abs(height - y) < _LABEL / 2 + _POINT
            for x, height in points
            if (x, height) != own
        )
        return inside or start < LEFT or start + width > RIGHT

    return min(sides, key=covers)
