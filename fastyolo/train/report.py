# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which gains of the loss are out of balance, and which objects and levels the assigner leaves without positives.

A loss is a sum, so a term's share of it tells roughly how much of each gradient step is that term's. Shares need not be
equal: in a run of YOLOv8s from scratch on DeepPCB, with ultralytics' gains, those of box, cls and dfl were 0.41, 0.38
and 0.21 in the second epoch and 0.46, 0.30 and 0.24 in the eighteenth. So the report speaks up only where a term is
clearly outside of such a range:

- above `DOMINANT`, where it counts twice as much as all others together and they hardly steer the training;
- below `STARVED` of an equal share, where the noise of the other terms hides its gradient. With the three terms of
  YOLOv8 that is a share of 0.08, with three more of distillation 0.04.

The gains that it suggests bring the former to a half and the latter to half of an equal share, well inside the range,
so that one change suffices. They are a rule of thumb: what gradients a value stands for differs from term to term
(https://arxiv.org/abs/1711.02257 balances the gradients themselves).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

DOMINANT = 2 / 3
STARVED = 1 / 4


@dataclass(frozen=True)
class LossTerm:
    """A term of the loss.

    Attributes:
        name: the argument that is its gain.
        gain: the gain that it had.
        value: its mean, the gain included; None if that is not finite.
        share: of the sum of all terms; None if that is not finite.
        suggested_gain: a gain that brings it into balance with the others; None to leave it as it is.
        reason: for the suggestion, or what is wrong with the term where no gain helps; None if all is well.
    """

    name: str
    gain: float
    value: float | None
    share: float | None
    suggested_gain: float | None = None
    reason: str | None = None

    def __str__(self) -> str:
        if self.value is None or self.share is None:
            return f"{self.name}: {self.reason}"
        text = f"{self.name}: {self.value:.4g}, {self.share:.0%} of the loss"
        if self.suggested_gain is not None:
            return f"{text}, {self.reason}; change {self.name} from {self.gain:g} to {self.suggested_gain:g}"
        return f"{text}, {self.reason}" if self.reason else text


@dataclass(frozen=True)
class Coverage:
    """Objects of a size, and how many of them got no positive."""

    objects: int
    without: int


@dataclass(frozen=True)
class Positives:
    """What the assigner did in these epochs, in this process.

    Attributes:
        images: as augmented, each as often as it was seen.
        by_level: positives of each level, by its stride in pixels.
        objects: by size in pixels of the network's input, with COCO's bounds.
    """

    images: int
    by_level: dict[str, int]
    objects: dict[str, Coverage]

    def __str__(self) -> str:
        total = sum(self.by_level.values())
        levels = ", ".join(
            f"{count / max(total, 1):.0%} of them at stride {stride}" for stride, count in self.by_level.items()
        )
        objects = ", ".join(
            f"{coverage.without:,} of {coverage.objects:,} {size}" for size, coverage in self.objects.items()
        )
        return f"{total / max(self.images, 1):.1f} positives an image, {levels}; objects without any: {objects}"


@dataclass(frozen=True)
class LossReport:
    """The terms of the loss, in the order in which they came, and the number of epochs that they are means of; the
    positives, if they were counted."""

    epochs: int
    terms: tuple[LossTerm, ...]
    positives: Positives | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"  {term}" for term in self.terms]
        if not any(term.reason for term in self.terms):
            lines.append("  The gains are in balance.")
        if self.positives:
            lines.append(f"  {self.positives}.")
        return "\n".join(
            [f"Loss terms, as means over {self.epochs} {'epoch' if self.epochs == 1 else 'epochs'}:", *lines]
        )


def loss_report(epochs: Sequence[Mapping[str, float]], gains: Mapping[str, float]) -> LossReport:
    """Compare the terms of a loss and suggest gains for those that are out of balance.

    Args:
        epochs: for each epoch the mean of each term, its gain included. The first is left out if there are others: in
            it the learning rate begins at 0, and the class term falls from what the initial weights make of it.
        gains: of each term. One with a gain of 0 was switched off, and is neither listed nor counted.
    """
    epochs = epochs[1:] or epochs
    values = {name: sum(epoch[name] for epoch in epochs) / len(epochs) for name, gain in gains.items() if gain}
    total = sum(values.values())
    if not math.isfinite(total):
        return LossReport(len(epochs), tuple(_diverged(name, gains[name], value) for name, value in values.items()))
    factors, reasons = _balance(values)
    return LossReport(
        len(epochs),
        tuple(
            LossTerm(
                name=name,
                gain=gains[name],
                value=value,
                share=value / total if total else 0.0,
                suggested_gain=float(f"{gains[name] * factors[name]:.2g}") if name in factors else None,
                reason=reasons.get(name),
            )
            for name, value in values.items()
        ),
    )


def _diverged(name: str, gain: float, value: float) -> LossTerm:
    if math.isfinite(value):
        return LossTerm(name, gain, value, None, reason="finite, while others are not")
    return LossTerm(name, gain, None, None, reason="not finite: the training diverged; lower lr0, or set amp=false")


def _balance(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, str]]:
    """By what to multiply the gains of terms that are out of balance, and the reason for each that is."""
    factors = {}
    active = {name: value for name, value in values.items() if value}
    reasons = dict.fromkeys(values.keys() - active, "which no gain will change")
    total = sum(active.values())
    for name, value in active.items():
        if value > DOMINANT * total and len(active) > 1:
            # Lowered first: terms that look starved beside it may not be so beside each other.
            factors[name] = (total - value) / value
            reasons[name] = "which drowns the other terms"
            active[name] = total - value
            total = sum(active.values())
            break
    equal = 1 / len(active) if active else 0.0
    for name, value in active.items():
        if value < STARVED * equal * total:
            others, share = total - value, equal / 2
            factors[name] = share / (1 - share) * others / value
            reasons[name] = "which the other terms drown"
    return factors, reasons
