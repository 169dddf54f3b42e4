# SPDX-License-Identifier: AGPL-3.0-or-later
"""The terms of distillation: what a student's raw outputs and features lose against a teacher's, as scalars.

B batch, A anchors, C classes, R bins of a distance; `student` and `teacher` have one shape. Gradients belong to the
student; the teacher's tensors are expected without. Whatever the dtype, terms are computed in float32 (float64 if that
is given). The class and box terms are means over the anchors, weighted by a mask, so that a weight of the term means
the same with every mask; they are 0 if the mask is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastyolo.train.losses import full_precision

_FEATURE_EPS = 1e-6


def anchor_masks(
    kind: str, student_logits: Tensor, teacher_logits: Tensor, foreground: Tensor, min_confidence: float
) -> tuple[Tensor, Tensor]:
    """How much each anchor counts in the class term, and in the box term.

    Args:
        kind: "confidence", by the teacher's best class score, so that its background counts little. In the class term
            by the student's where that is higher, or it would never unlearn what it alone sees. "positives", 1 where
            `foreground` holds; "all", 1 everywhere.
        student_logits, teacher_logits: [B, C, A], class scores before the sigmoid.
        foreground: [B, A] bool, whether an object is assigned to the anchor.
        min_confidence: scores below it count as 0.

    Returns:
        [B, A], [B, A], in [0, 1], without gradients.
    """
    if kind == "confidence":
        student, teacher = (_confidence(x.detach(), min_confidence) for x in (student_logits, teacher_logits))
        return torch.maximum(student, teacher), teacher
    mask = foreground.float() if kind == "positives" else torch.ones_like(foreground, dtype=torch.float32)
    return mask, mask


def _confidence(logits: Tensor, least: float) -> Tensor:
    scores = full_precision(logits).amax(1).sigmoid()
    return torch.where(scores < least, 0.0, scores)


def class_term(student: Tensor, teacher: Tensor, mask: Tensor, *, kind: str, temperature: float) -> Tensor:
    """T^2 times the divergence of the class scores, summed over the classes.

    Args:
        student, teacher: [B, C, A], class scores before the sigmoid; both are divided by the temperature.
        mask: [B, A].
        kind: "bce", the binary cross-entropy of each class less the teacher's own entropy, which has no gradient, so
            that the term is 0 where the two agree; "kl", the Kullback-Leibler divergence of the softmax over the
            classes, which says which class an anchor shows, and not whether it shows one.
        temperature: T. Its square keeps the gradients' size (https://arxiv.org/abs/1503.02531).
    """
    student, teacher = full_precision(student) / temperature, full_precision(teacher) / temperature
    if kind == "kl":
        divergence = _kl(student, teacher, dim=1)
    else:
        target = teacher.sigmoid()
        cross, own = (
            functional.binary_cross_entropy_with_logits(x, target, reduction="none") for x in (student, teacher)
        )
        divergence = (cross - own).sum(1)
    return _masked_mean(divergence, mask) * temperature**2


def box_term(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float) -> Tensor:
    """T^2 times the Kullback-Leibler divergence of the distances' distributions, averaged over the four sides.

    A box is learnt as four distributions over bins, whose shape also tells how sure the teacher is of each side
    (localization distillation, https://arxiv.org/abs/2102.12252).

    Args:
        student, teacher: [B, 4R, A], logits of the R bins of the distances to left, top, right and bottom.
        mask: [B, A].
        temperature: T, by which both are divided.
    """
    student, teacher = (torch.unflatten(full_precision(x), 1, (4, -1)) / temperature for x in (student, teacher))
    return _masked_mean(_kl(student, teacher, dim=2).mean(1), mask) * temperature**2


def feature_term(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - the Pearson correlation of the two maps, averaged over their channels.

    Each channel is brought to zero mean and unit variance over batch and positions, whereupon half the mean squared
    difference is that (PKD, https://arxiv.org/abs/2207.02039). So the pattern of a map is learnt and not its magnitude,
    which differs between teacher and student, and between levels.

    Args:
        student, teacher: [B, C, H, W].
    """
    student, teacher = (
        functional.batch_norm(full_precision(x), None, None, training=True, eps=_FEATURE_EPS)
        for x in (student, teacher)
    )
    return functional.mse_loss(student, teacher) / 2


def ramp(epoch: float, epochs: float) -> float:
    """The share of its full weight that a term has in `epoch`, counted from 0: rising linearly over `epochs`."""
    return min(1.0, epoch / epochs) if epochs else 1.0


def _kl(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    pair = student.log_softmax(dim), teacher.log_softmax(dim)
    return functional.kl_div(*pair, reduction="none", log_target=True).sum(dim)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[B, A], [B, A] -> scalar. A mask whose sum is below 1 weakens the term, as in the loss of the labels."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
