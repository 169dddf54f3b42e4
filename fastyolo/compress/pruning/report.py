# SPDX-License-Identifier: AGPL-3.0-or-later
"""What pruning changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table


@dataclass(frozen=True)
class Costs:
    """What a network takes.

    Attributes:
        channels: that could be removed, or are left of these, in the parts that were asked for.
        parameters: numbers that training learns.
        flops: as `fastyolo info` counts them, for one image.
        latency_ms: in ONNX Runtime on this machine, for one image; None: not measured.
    """

    channels: int
    parameters: int
    flops: int
    latency_ms: float | None


@dataclass(frozen=True)
class Layer:
    """A convolution that has lost channels: [inputs, outputs] before and after."""

    name: str
    before: tuple[int, int]
    after: tuple[int, int]


@dataclass(frozen=True)
class Report:
    """What became of a network.

    Attributes:
        weights: the checkpoint that was pruned.
        path: the one that was written.
        imgsz: side of the input in pixels that FLOPs and latency are of.
        target: what was asked for: "ratio", "flops" or "latency", and its value.
        importance: what the channels were ranked by.
        ranking: "global" or "per-layer".
        sparse: whether a training with sparsity came before, which the two follow from unless they are given.
        before: the network as it was given.
        after: the pruned one.
        layers: those that have lost channels.
        steps: of each step, the FLOPs that it left and, where the network was trained, its accuracy then.
    """

    weights: str
    path: str
    imgsz: int
    target: Mapping[str, float]
    importance: str
    ranking: str
    sparse: bool
    before: Costs
    after: Costs
    layers: tuple[Layer, ...]
    steps: tuple[Mapping[str, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {"schema": 1, "kind": "pruning", **asdict(self)}

    def __rich__(self) -> Group:
        """Tables for a terminal."""
        layers = Table("convolution", box=SIMPLE_HEAD)
        for column in ("inputs", "outputs"):
            layers.add_column(column, justify="right")
        for layer in self.layers:
            layers.add_row(layer.name, *(_change(*pair) for pair in zip(layer.before, layer.after, strict=True)))
        costs = Table(box=SIMPLE_HEAD, caption=self._caption(), caption_justify="left")
        for column in ("", "before", "after", "removed"):
            costs.add_column(column, justify="right")
        rows: list[tuple[str, float, float, str, float]] = [
            ("channels", self.before.channels, self.after.channels, "{:,}", 1.0),
            ("parameters", self.before.parameters, self.after.parameters, "{:,}", 1.0),
            ("GFLOPs", self.before.flops, self.after.flops, "{:.2f}", 1e9),
        ]
        if self.before.latency_ms is not None and self.after.latency_ms is not None:
            rows.append(("ms in ONNX Runtime", self.before.latency_ms, self.after.latency_ms, "{:.1f}", 1.0))
        for name, before, after, form, unit in rows:
            values = [form.format(value if unit == 1 else value / unit) for value in (before, after)]
            costs.add_row(name, *values, f"{1 - after / before:.1%}")
        trained = [step for step in self.steps if "mAP50" in step]
        if not trained:
            return Group(layers, costs)
        steps = Table("step", "GFLOPs", "mAP50", "mAP50-95", box=SIMPLE_HEAD)
        for number, step in enumerate(trained, 1):
            accuracy = [f"{step[name]:.4f}" for name in ("mAP50", "mAP50-95")]
            steps.add_row(str(number), f"{step['flops'] / 1e9:.2f}", *accuracy)
        return Group(layers, costs, steps)

    def _caption(self) -> str:
        past = "after" if self.sparse else "without"
        return (
            f"One {self.imgsz} x {self.imgsz} image. Channels ranked by {self.importance}, {self.ranking}, {past} a "
            "training with sparsity."
        )


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} -> {after}"
