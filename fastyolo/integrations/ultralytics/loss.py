# SPDX-License-Identifier: AGPL-3.0-or-later
"""YOLOv8's training criterion, with the assigner and the class loss that the settings ask for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.tal import TaskAlignedAssigner, make_anchors

from fastyolo.integrations.ultralytics.accuracy import SIZES
from fastyolo.train.losses import class_loss
from fastyolo.train.report import Coverage, Positives
from fastyolo.train.settings import Settings


class PositiveCounter:
    """Sums of what an assigner does, kept on its device so that nothing waits for them.

    Args:
        strides: of the levels, in pixels.
    """

    def __init__(self, strides: Sequence[float]) -> None:
        self._strides = tuple(strides)
        self._images = 0
        self._levels: Tensor | int = 0  # [levels] positives
        self._objects: Tensor | int = 0  # [2, sizes]: all objects, and those without positives

    def add(self, boxes: Tensor, real: Tensor, strides: Tensor, positive: Tensor, targets: Tensor) -> None:
        """
        Args:
            boxes: [B, n, 4] xyxy in pixels of the input.
            real: [B, n, 1], 0 for those that fill up.
            strides: [A] of the anchors.
            positive: [B, A] whether an anchor is one.
            targets: [B, A] the objects of those that are.
        """
        batch, count = boxes.shape[:2]
        self._images += batch
        # Not positive[:, strides == stride]: on a GPU, an index of truth values waits for its size.
        of_level = torch.stack([positive & (strides == stride) for stride in self._strides])
        self._levels = self._levels + of_level.sum((1, 2))
        targets = torch.where(positive, targets.long(), count)
        covered = torch.zeros(batch, count + 1, dtype=torch.bool, device=boxes.device).scatter_(1, targets, True)
        real, left = real.squeeze(-1).bool(), ~covered[:, :count]
        areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
        of_size = torch.stack([real & (areas >= low) & (areas < high) for low, high in SIZES.values()])
        self._objects = self._objects + torch.stack([of_size.sum((1, 2)), (of_size & left).sum((1, 2))])

    def total(self) -> Positives | None:
        """None without images."""
        if not isinstance(self._levels, Tensor) or not isinstance(self._objects, Tensor):
            return None
        levels, (objects, without) = self._levels.tolist(), self._objects.tolist()
        return Positives(
            self._images,
            {f"{stride:g}": count for stride, count in zip(self._strides, levels, strict=True)},
            {size: Coverage(*counts) for size, *counts in zip(SIZES, objects, without, strict=True)},
        )


class Assigner(TaskAlignedAssigner):
    """ultralytics' task-aligned assigner, whose candidates may be limited to the middle of an object's box.

    With a radius, an anchor is a candidate for an object only if, in x and in y, it lies within `radius` strides of its
    own level of the centre of the object's box (centre sampling, https://arxiv.org/abs/2006.09214), besides being a
    candidate of ultralytics'. An object that would lose all its candidates, as one smaller than the cells around it
    can, keeps those that it had.

    Args:
        radius: in strides; 0: no limit.
        topk: how many anchors an object gets; all, if there are fewer.
        kwargs: TaskAlignedAssigner's.

    Attributes:
        counter: of what is assigned in training, but not in validation; None to count nothing.
    """

    def __init__(self, *, radius: float, topk: int, **kwargs: Any) -> None:
        super().__init__(topk=topk, **kwargs)
        self.radius = radius
        self.wanted_topk = topk
        self.counter: PositiveCounter | None = None

    def forward(
        self,
        pd_scores: Tensor,
        pd_bboxes: Tensor,
        anc_points: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        mask_gt: Tensor,
        anc_strides: Tensor,
    ) -> tuple[Tensor, ...]:
        """TaskAlignedAssigner's, given the strides [A] of the anchors, in pixels."""
        self.anc_strides = anc_strides
        self.topk = self.topk2 = min(self.wanted_topk, len(anc_points))  # small images have few anchors
        assigned = super().forward(pd_scores, pd_bboxes, anc_points, gt_labels, gt_bboxes, mask_gt)
        if self.counter and torch.is_grad_enabled():
            *_, positive, targets = assigned
            self.counter.add(gt_bboxes, mask_gt, anc_strides, positive, targets)
        return assigned

    def select_candidates_in_gts(
        self, xy_centers: Tensor, gt_bboxes: Tensor, mask_gt: Tensor, eps: float = 1e-9
    ) -> Tensor:
        candidates = super().select_candidates_in_gts(xy_centers, gt_bboxes, mask_gt, eps)
        if not self.radius:
            return candidates
        centres = (gt_bboxes[..., :2] + gt_bboxes[..., 2:]) / 2  # [B, objects, 2]
        distances = (xy_centers - centres[:, :, None]).abs().amax(-1)  # [B, objects, A]
        central = candidates & (distances <= self.radius * self.anc_strides)
        return torch.where(central.any(-1, keepdim=True), central, candidates)


class DetectionLoss(v8DetectionLoss):
    """ultralytics' v8DetectionLoss under `settings`; with default settings it computes exactly the same.

    Args:
        model: as v8DetectionLoss takes it: not wrapped, and with `args`.
        settings: of them, those that begin with tal_ and cls_, label_smoothing and class_weights.

    Raises:
        ValueError: the model has a one-to-one head; class_weights are not one for each class, or come on top of
            ultralytics' `cls_pw`.
    """

    def __init__(self, model: DetectionModel, settings: Settings) -> None:
        if getattr(model.model[-1], "one2one_cv2", None) is not None:
            raise ValueError(
                "model must have no one-to-one branches, got an end-to-end head; model.init_criterion() has its losses."
            )
        super().__init__(model)
        self.assigner = Assigner(
            radius=settings.tal_radius,
            topk=settings.tal_topk,
            num_classes=self.nc,
            alpha=settings.tal_alpha,
            beta=settings.tal_beta,
            stride=self.stride.tolist(),
        )
        if settings.cls_loss != "bce" or settings.label_smoothing:
            self.bce = functools.partial(class_loss, settings=settings)
        if settings.class_weights is not None:
            self.class_weights = self._weights(settings.class_weights)

    def _weights(self, weights: Any) -> Tensor:
        if len(weights) != self.nc:
            raise ValueError(
                f"class_weights must be one for each of the {self.nc} classes, got {len(weights)}; list them in the "
                "order of the data set's names."
            )
        if self.class_weights is not None:
            raise ValueError("class_weights must not be given with cls_pw, which weights the classes too; drop one.")
        return torch.tensor(weights, dtype=torch.float32, device=self.device).view(1, 1, -1)

    def get_assigned_targets_and_loss(
        self, preds: dict[str, Any], batch: dict[str, Any], **assign_kwargs: Any
    ) -> tuple[Any, ...]:
        strides = make_anchors(preds["feats"], self.stride)[1].squeeze(-1)
        return super().get_assigned_targets_and_loss(preds, batch, anc_strides=strides, **assign_kwargs)
