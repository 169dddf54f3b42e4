# SPDX-License-Identifier: AGPL-3.0-or-later
"""The usual reasons why an exported model departs from its checkpoint, each found by making the difference vanish.

A hypothesis is a transformation: applied to what the checkpoint computes, it must give what the file computes, within
the tolerance that the stage is held to. So a reason is named only if the data bear it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Finding:
    """What is wrong.

    Attributes:
        cause: in one or two words, the same ones whenever this is the reason.
        sentence: what it is and what to do.
    """

    cause: str
    sentence: str


@dataclass(frozen=True)
class Difference:
    """How far a file's values are from the checkpoint's.

    Attributes:
        maximum: the largest absolute difference; inf if values are not finite, or if the shapes differ.
        relative: the Euclidean norm of the difference over that of the checkpoint's values.
        scale: the largest absolute value of the checkpoint's.
    """

    maximum: float
    relative: float
    scale: float

    @staticmethod
    def between(candidate: Array, reference: Array) -> Difference:
        expected = reference.astype(np.float64)
        scale = float(np.abs(expected).max(initial=0))
        if candidate.shape != reference.shape or not np.isfinite(candidate).all():
            return Difference(float("inf"), float("inf"), scale)
        error = candidate.astype(np.float64) - expected
        norm = float(np.linalg.norm(error))
        size = float(np.linalg.norm(expected))
        relative = norm / size if size else (float("inf") if norm else 0.0)
        return Difference(float(np.abs(error).max(initial=0)), relative, scale)

    def limit(self, tolerance: float) -> float:
        """`tolerance`, or that share of the largest value if it is above 1."""
        return tolerance * max(1.0, self.scale)

    def within(self, tolerance: float) -> bool:
        """Whether the largest difference is within the limit."""
        return self.maximum <= self.limit(tolerance)

    def __or__(self, other: Difference) -> Difference:
        """Over the values of both, the relative difference being the larger one."""
        return Difference(
            max(self.maximum, other.maximum), max(self.relative, other.relative), max(self.scale, other.scale)
        )


def _agree(candidate: Array, reference: Array, tolerance: float) -> bool:
    return Difference.between(candidate, reference).within(tolerance)


# ---- the network's input


@dataclass(frozen=True)
class Preparation:
    """A way to get another input from an input [B, 3, H, W] of RGB values in 0 to 1, and what is wrong with it."""

    apply: Callable[[Array], Array]
    findings: tuple[tuple[str, str], ...]

    def after(self, other: Preparation) -> Preparation:
        return Preparation(lambda x: self.apply(other.apply(x)), (*other.findings, *self.findings))


_SWAP = Preparation(lambda x: x[:, ::-1], (("channel order", "the channels are in the order BGR, not RGB"),))
_UNSCALED = Preparation(
    lambda x: x * x.dtype.type(255), (("missing /255", "the values are 0 to 255, without the division by 255"),)
)
_TWICE = Preparation(lambda x: x / x.dtype.type(255), (("doubled /255", "the values are divided by 255 twice"),))
PREPARATIONS = (_SWAP, _UNSCALED, _TWICE, _UNSCALED.after(_SWAP), _TWICE.after(_SWAP))


def of_input(
    candidate: Array, reference: Array, variants: Mapping[str, Array], tolerance: float
) -> tuple[tuple[str, str], ...]:
    """Why an input differs from the checkpoint's: causes, each with a clause.

    Args:
        candidate: [B, 3, H, W].
        reference: [B, 3, H, W], RGB in 0 to 1.
        variants: what other ways to resize the images give, by a clause that says what is wrong with them.
        tolerance: as in `Difference.within`.
    """
    if candidate.shape != reference.shape:
        sizes = " instead of ".join("x".join(map(str, x.shape)) for x in (candidate, reference))
        return (("input size", f"the shape is {sizes}"),)
    for preparation in PREPARATIONS:
        if _agree(candidate, preparation.apply(reference), tolerance):
            return preparation.findings
    for clause, variant in variants.items():
        if _agree(candidate, variant, tolerance):
            return (("resizing", clause),)
    if padding := _padding(candidate, reference, tolerance):
        return padding
    return _affine(candidate, reference, tolerance)


def _padding(candidate: Array, reference: Array, tolerance: float) -> tuple[tuple[str, str], ...]:
    """The two differ where the reference has the constant of a border, and there alone, by another constant."""
    differ = np.abs(candidate - reference).max(1) > tolerance
    border, values = reference.transpose(0, 2, 3, 1)[differ], candidate.transpose(0, 2, 3, 1)[differ]
    if not len(border) or np.ptp(border) > tolerance or np.ptp(values) > tolerance:
        return ()
    return (("padding", f"the letterbox is padded with {values[0, 0] * 255:.0f} instead of {border[0, 0] * 255:.0f}"),)


def _affine(candidate: Array, reference: Array, tolerance: float) -> tuple[tuple[str, str], ...]:
    """The two differ by a factor and an offset in each channel."""
    fits = []
    for channel in range(reference.shape[1]):
        x, y = (values[:, channel].astype(np.float64).ravel() for values in (reference, candidate))
        if not np.ptp(x) or not np.isfinite(y).all():
            return ()
        factor, offset = np.polyfit(x, y, 1)
        if not _agree(factor * x + offset, y, tolerance):
            return ()
        fits.append((factor, offset))
    factors, offsets = zip(*fits, strict=True)
    clause = (
        f"the channels are multiplied by {', '.join(map(factor_text, factors))} with "
        f"{', '.join(f'{offset:.4g}' for offset in offsets)} added, after the division by 255"
    )
    return (("normalisation", clause),)


def factor_text(value: float) -> str:
    """Four digits, or as many as it takes to tell the number from 1."""
    digits = 4 if value == 1 else max(4, 2 - math.floor(math.log10(abs(value - 1))))
    return f"{value:.{digits}g}"


# ---- head maps and scores


def sigmoid(x: Array) -> Array:
    values: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return values


def of_scores(candidate: Array, reference: Array, tolerance: float) -> Finding | None:
    """Scores in 0 to 1 of the same anchors and classes: [n, C], or [n] of one class each."""
    if candidate.shape != reference.shape or not candidate.size:
        return None
    if _agree(sigmoid(candidate), reference, tolerance):
        return Finding(
            "missing sigmoid",
            "The scores are logits: the sigmoid after the class branches is missing; export the model again, with the "
            "whole head.",
        )
    if _agree(candidate, sigmoid(reference), tolerance):
        return Finding(
            "doubled sigmoid",
            "The scores went through the sigmoid twice, so none is below 0.5; remove the second one.",
        )
    return _of_class_order(candidate, reference, tolerance) if candidate.ndim > 1 else None


def of_labels(labels: npt.NDArray[Any], scores: Array, reference: Array, tolerance: float) -> Finding | None:
    """Labels [n] and scores [n] of detections, and the checkpoint's scores [n, C] of all classes at their anchors.

    The classes have other numbers if every score is that of one class of its anchor, always the same for a label.
    """
    if not len(labels):
        return None
    classes = np.abs(reference - scores[:, None]).argmin(1)
    pairs = sorted(set(zip(labels.tolist(), classes.tolist(), strict=True)))
    wrong = [(label, right) for label, right in pairs if label != right]
    right_scores = reference[np.arange(len(classes)), classes]
    if not wrong or len(pairs) > len(set(labels.tolist())) or not _agree(scores, right_scores, tolerance):
        return None
    return _class_order(*wrong[0])


def of_class_maps(candidate: Sequence[Array], reference: Sequence[Array], tolerance: float) -> Finding | None:
    """Logits [B, C, H_l, W_l] of the classes, level by level."""
    if [x.shape for x in candidate] != [x.shape for x in reference]:
        return None
    ours, theirs = (_rows(maps) for maps in (candidate, reference))
    if _agree(ours, sigmoid(theirs), tolerance):
        return Finding(
            "doubled sigmoid",
            "The class maps are scores, not logits: the graph has the sigmoid that post-processing applies again; "
            "export the maps without it.",
        )
    return _of_class_order(ours, theirs, tolerance)


def of_level_order(
    candidate: Sequence[Array], reference: Sequence[Array], strides: Sequence[int], tolerance: float
) -> Finding | None:
    """Maps of one kind, level by level."""
    orders = [_place(x, candidate, tolerance) for x in reference]
    if None in orders or orders == list(range(len(reference))) or len(set(orders)) < len(orders):
        return None
    order = [strides[orders.index(level)] for level in range(len(orders))]
    return Finding(
        "stride order",
        f"The levels are in the order of strides {_list(order)} where {_list(strides)} was expected; put the outputs "
        f"in the order of the strides.",
    )


def _place(array: Array, among: Sequence[Array], tolerance: float) -> int | None:
    return next((index for index, other in enumerate(among) if _agree(other, array, tolerance)), None)


def _of_class_order(candidate: Array, reference: Array, tolerance: float) -> Finding | None:
    """[..., C] -> the classes of the one are those of the other in another order."""
    order = reordered(np.moveaxis(candidate, -1, 1), np.moveaxis(reference, -1, 1), tolerance)
    if not order:
        return None
    return _class_order(*next((index, label) for index, label in enumerate(order) if index != label))


def _class_order(label: int, right: int) -> Finding:
    return Finding(
        "class order",
        f"The classes are in another order: class {label} of the file is class {right} of the checkpoint; "
        f"export the model again from this checkpoint.",
    )


def reordered(candidate: Array, reference: Array, tolerance: float) -> list[int]:
    """[B, C, ...]: which channel of the reference each one of the candidate is, if it is all of them in another order;
    else nothing."""
    if candidate.ndim < 2 or candidate.shape != reference.shape:
        return []
    ours, theirs = (np.moveaxis(x, 1, 0).reshape(x.shape[1], -1) for x in (candidate, reference))
    order = [int(np.abs(theirs - values).max(1).argmin()) for values in ours]
    if order == sorted(order) or len(set(order)) < len(order) or not _agree(ours, theirs[order], tolerance):
        return []
    return order


def _rows(maps: Sequence[Array]) -> Array:
    """[B, C, H_l, W_l] of each level -> [B, A, C]."""
    rows: Array = np.concatenate([x.reshape(*x.shape[:2], -1) for x in maps], 2).transpose(0, 2, 1)
    return rows


# ---- boxes


def to_xywh(boxes: Array) -> Array:
    """[..., 4]: x1, y1, x2, y2 -> centre and size."""
    return np.concatenate(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]), -1)


def to_xyxy(boxes: Array) -> Array:
    """[..., 4]: centre and size -> x1, y1, x2, y2."""
    return np.concatenate((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), -1)


def of_boxes(
    candidate: Array,
    reference: Array,
    levels: npt.NDArray[np.integer],
    strides: Sequence[int],
    size: tuple[int, int],
    tolerance: float,
) -> Finding | None:
    """Boxes [B, n, 4] xyxy in input pixels, as the file's format says that they are.

    Args:
        candidate: of the file.
        reference: of the checkpoint, for the same anchors.
        levels: [B, n] of each anchor.
        strides: of the levels.
        size: height and width of the input in pixels.
        tolerance: as in `Difference.within`.
    """
    if candidate.shape != reference.shape or not candidate.size or not np.isfinite(candidate).all():
        return None
    height, width = size
    formats = (
        (to_xywh, "centre and size (xywh) where corners (xyxy) are expected"),
        (to_xyxy, "corners (xyxy) where centre and size (xywh) are expected"),
        (lambda x: x[..., [1, 0, 3, 2]], "written with y before x"),
        (lambda x: x / np.array([width, height] * 2), "shares of the input's width and height, not pixels"),
    )
    for transform, clause in formats:
        if _agree(candidate, transform(reference), tolerance):
            return Finding("box format", f"The boxes are {clause}; export them in the documented form.")
    return _of_strides(candidate, reference, levels, strides, tolerance) or _of_anchors(
        candidate, reference, levels, strides, tolerance
    )


def _of_strides(
    candidate: Array, reference: Array, levels: npt.NDArray[np.integer], strides: Sequence[int], tolerance: float
) -> Finding | None:
    """The boxes of a level are those of the checkpoint times a factor: both anchor and distances count in strides."""
    used, factors = [], []
    for level, ours, theirs in _by_level(candidate, reference, levels):
        factor = float((ours * theirs).sum() / np.square(theirs).sum()) if theirs.any() else 1.0
        if not _agree(ours, factor * theirs, tolerance):
            return None
        used.append((strides[level], strides[level] * factor))
        factors.append(factor)
    wrong = [(right, got) for right, got in used if abs(got / right - 1) > tolerance]
    if not wrong:
        return None
    if len(factors) > 1 and np.ptp(factors) <= tolerance * max(factors):
        return Finding(
            "box scale",
            f"All boxes are multiplied by {factor_text(float(np.mean(factors)))}; export them in pixels of the input.",
        )
    clause = ", ".join(f"{float(factor_text(got / right)) * right:g} instead of {right}" for right, got in wrong)
    if len(wrong) > 1 and sorted(round(got, 3) for _, got in used) == sorted(float(right) for right, _ in used):
        return Finding("stride order", f"The strides are in the wrong order, {clause}; write them as {_list(strides)}.")
    return Finding("wrong stride", f"Boxes are decoded with stride {clause}; the strides are {_list(strides)}.")


def _of_anchors(
    candidate: Array, reference: Array, levels: npt.NDArray[np.integer], strides: Sequence[int], tolerance: float
) -> Finding | None:
    """All boxes are shifted by the same share of a cell."""
    shifts = []
    for level, ours, theirs in _by_level(candidate, reference, levels):
        shift = float((ours - theirs).mean())
        if not _agree(ours, theirs + shift, tolerance):
            return None
        shifts.append(shift / strides[level])
    if not shifts or np.ptp(shifts) > 0.01:
        return None
    return Finding(
        "anchor points",
        f"All boxes are shifted by {shifts[0]:.3g} cells: the anchor points must lie in the middle of the cells.",
    )


def _by_level(
    candidate: Array, reference: Array, levels: npt.NDArray[np.integer]
) -> Iterator[tuple[int, Array, Array]]:
    for level in np.unique(levels).tolist():
        chosen = levels == level
        yield level, candidate[chosen].astype(np.float64), reference[chosen].astype(np.float64)


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
