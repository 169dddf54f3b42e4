# SPDX-License-Identifier: AGPL-3.0-or-later
"""In which order channels go, and how many of them must go for a target to be met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastyolo.compress.pruning import PARTS
from fastyolo.compress.pruning.channels import Channels, Coupling


@dataclass(frozen=True)
class Step:
    """The removal of the least important channels of a coupling, as few of them as rounding allows.

    Attributes:
        coupling: its index.
        count: what it is left with.
    """

    coupling: int
    count: int


def order(
    channels: Channels,
    part: Callable[[str], str],
    *,
    ranking: str = "global",
    parts: Sequence[str] = PARTS,
    head_first: bool = False,
) -> list[Step]:
    """All removals that are possible, in the order in which they are to be made.

    Args:
        part: tells the part of PARTS that a layer belongs to.
        ranking: "global" removes the least important channels of the network; "per-layer" the same share of each
            layer, those with the least important channels first.
        parts: those that may lose channels.
        head_first: all removals in the head come before the others.
    """
    ranked = []
    for index, coupling in enumerate(channels.couplings):
        if (home := part(coupling.name)) not in parts:
            continue
        late = head_first and home != "head"
        highest = 0.0
        for before, count in zip(coupling.counts, coupling.counts[1:], strict=False):
            # What is removed from one coupling must stay in order, though cells can upset the importances a little.
            highest = max(highest, _lost(coupling, before, count))
            share = (coupling.channels - count) / coupling.channels
            key = (late, share, highest) if ranking == "per-layer" else (late, highest, share)
            ranked.append((key, index, Step(index, count)))
    return [step for *_, step in sorted(ranked, key=lambda entry: (*entry[:2], -entry[2].count))]


def _lost(coupling: Coupling, before: int, after: int) -> float:
    """Mean importance of the channels that go between two counts."""
    sums = [coupling.importance[coupling.kept(count)].sum() for count in (before, after)]
    return float(sums[0] - sums[1]) / (before - after)


def counts(channels: Channels, steps: Sequence[Step]) -> list[int]:
    """Channels of each coupling after these steps."""
    left = channels.full
    for step in steps:
        left[step.coupling] = step.count
    return left


def fewest(steps: Sequence[Step], measure: Callable[[Sequence[Step]], float], limit: float) -> list[Step]:
    """The least number of steps, from the first, after which `measure` is at most `limit`.

    Args:
        measure: falls with the steps, but for noise.

    Raises:
        Unreachable: not even all of them are enough.
    """
    low, high = 0, len(steps)
    if (best := measure(steps)) > limit:
        raise Unreachable(best)
    while low < high:
        middle = (low + high) // 2
        if measure(steps[:middle]) <= limit:
            high = middle
        else:
            low = middle + 1
    return list(steps[:high])


def without_needless(steps: Sequence[Step], measure: Callable[[Sequence[Step]], float], limit: float) -> list[Step]:
    """The steps but those, from the last on, without which `measure` is at most `limit` too."""
    left = list(steps)
    for index in range(len(left) - 1, -1, -1):
        others = left[:index] + left[index + 1 :]
        if measure(others) <= limit:
            left = others
    return left


class Unreachable(Exception):  # noqa: N818 - becomes one, in the words of the target
    """No choice of channels meets the target.

    Attributes:
        best: what the largest choice comes to.
    """

    def __init__(self, best: float) -> None:
        super().__init__(best)
        self.best = best
