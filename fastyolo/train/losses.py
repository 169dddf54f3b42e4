# SPDX-License-Identifier: AGPL-3.0-or-later
"""Losses of the class scores, per anchor and class, for targets between 0 and 1.

An anchor's target is 0 for every class where no object is assigned, else the quality of its box for the object's class
and 0 for the others, as the task-aligned assigner gives it (https://arxiv.org/abs/2108.07755). All functions take any
floating dtype and compute in float32, or in float64 if that is given.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastyolo.train.settings import Settings

# Below it |target - score| has no gradient of its own, since that of a power under 1 is infinite at 0.
_LEAST_DIFFERENCE = 1e-6


def class_loss(logits: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """The loss that `settings` choose by `cls_loss`, `cls_gamma`, `cls_alpha` and `label_smoothing`.

    Args:
        logits: [..., C], class scores before the sigmoid.
        targets: [..., C], in [0, 1].
        settings: see above.

    Returns:
        [..., C], not reduced.
    """
    smooth = smooth_labels(targets, settings.label_smoothing)
    if settings.cls_loss == "focal":
        return focal_loss(logits, smooth, gamma=settings.cls_gamma, alpha=settings.cls_alpha)
    if settings.cls_loss == "varifocal":
        return varifocal_loss(logits, smooth, gamma=settings.cls_gamma, alpha=settings.cls_alpha, positives=targets > 0)
    return _cross_entropy(logits, smooth)


def smooth_labels(targets: Tensor, share: float) -> Tensor:
    """targets [..., C] -> (1 - share) * targets + share / C * (sum of targets over the classes).

    Label smoothing (https://arxiv.org/abs/1512.00567) of a target whose sum over the classes is its weight: the sum
    stays, so anchors without an object keep targets of 0 and the normalisation of the loss does not change.
    """
    targets = full_precision(targets)
    return torch.lerp(targets, targets.mean(-1, keepdim=True), share)


def focal_loss(logits: Tensor, targets: Tensor, *, gamma: float, alpha: float) -> Tensor:
    """a |y - p|^gamma BCE(p, y) with p = sigmoid(logits), y = targets and a = alpha y + (1 - alpha) (1 - y).

    The focal loss (https://arxiv.org/abs/1708.02002), in the form that extends it to soft targets and that is least at
    p = y (quality focal loss, https://arxiv.org/abs/2006.04388); for targets of 0 and 1 the two are the same.

    Args:
        logits: of any shape.
        targets: of the shape of logits, in [0, 1].
        gamma: focusing exponent, 0 or more.
        alpha: weight of the positives, 1 - alpha that of the negatives; 0: no weights, a = 1.

    Returns:
        Of the shape of logits.
    """
    logits, targets = full_precision(logits), full_precision(targets)
    difference = (targets - logits.sigmoid()).abs().clamp(min=_LEAST_DIFFERENCE)
    loss = difference**gamma * _cross_entropy(logits, targets)
    return (alpha * targets + (1 - alpha) * (1 - targets)) * loss if alpha else loss


def varifocal_loss(
    logits: Tensor, targets: Tensor, *, gamma: float, alpha: float, positives: Tensor | None = None
) -> Tensor:
    """y BCE(p, y) for positives and alpha p^gamma BCE(p, y) for all else, with p = sigmoid(logits), y = targets.

    The varifocal loss (https://arxiv.org/abs/2008.13367), which plays down easy negatives, and weights positives by the
    quality of their boxes.

    Args:
        logits: of any shape.
        targets: of the shape of logits, in [0, 1].
        gamma: focusing exponent of the negatives, 0 or more.
        alpha: weight of the negatives.
        positives: bool, of the shape of logits; None: where targets > 0.

    Returns:
        Of the shape of logits.
    """
    logits, targets = full_precision(logits), full_precision(targets)
    if positives is None:
        positives = targets > 0
    negatives = alpha * torch.exp(gamma * functional.logsigmoid(logits))  # p^gamma, with a gradient where p underflows
    return torch.where(positives, targets, negatives) * _cross_entropy(logits, targets)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(
        full_precision(logits), full_precision(targets), reduction="none"
    )


def full_precision(x: Tensor) -> Tensor:
    """float64 as it is, anything else as float32."""
    return x if x.dtype == torch.float64 else x.float()
