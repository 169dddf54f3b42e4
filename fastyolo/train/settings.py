# SPDX-License-Identifier: AGPL-3.0-or-later
"""What fastyolo's training adds to ultralytics' arguments."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

CLS_LOSSES = ("bce", "focal", "varifocal")
KD_CLS_LOSSES = ("bce", "kl")
KD_MASKS = ("confidence", "positives", "all")


@dataclass(frozen=True)
class Settings:
    """Settings of a training run beyond ultralytics' own; as they are by default, the run is ultralytics', except that
    data sets with files that cannot be used, or a split without objects, are refused (`skip_bad_labels`).

    They stand beside ultralytics' arguments in presets, configuration files, `--set`, args.yaml and checkpoints, so no
    name is one of ultralytics'. Distillation begins with ultralytics' argument `distill_model`, the teacher.

    Attributes:
        kd_cls: weight of the class term of distillation.
        kd_cls_loss: "bce", per class, as YOLOv8 scores them; or "kl", of the softmax over the classes.
        kd_cls_temperature: divides the class logits of both models.
        kd_box: weight of the box term, the KL divergence of the distance distributions of each side.
        kd_box_temperature: divides the logits of the distance bins of both models.
        kd_feat: weight of the feature term, between the maps that enter the heads.
        kd_mask: where the class and box terms count: "confidence", by the teacher's best score, and in the class term
            by the student's where that is higher; "positives", where an object is assigned; "all", everywhere alike.
        kd_min_confidence: scores below it count as 0 in the mask "confidence".
        kd_ramp_epochs: epochs over which the three weights rise from 0.
        kd_labels: False leaves the ground truth out, so that the teacher is all there is to learn from.
        tal_topk: anchors that the task-aligned assigner gives an object.
        tal_alpha: exponent of the class score in its metric.
        tal_beta: exponent of the IoU in its metric.
        tal_radius: an anchor is a candidate only within this many strides of the object's centre, in x and in y; 0: all
            of the object's box.
        cls_loss: "bce", "focal" (https://arxiv.org/abs/1708.02002) or "varifocal" (https://arxiv.org/abs/2008.13367).
        cls_gamma: focusing exponent of the focal and varifocal losses.
        cls_alpha: weight of the positives in the focal loss (0: no weights), of the negatives in the varifocal loss.
        label_smoothing: share of a positive's target that is spread over all classes.
        class_weights: weight of each class in the class loss. ultralytics' `cls_pw` takes them from the counts instead.
        head_lr: the head's learning rate as a multiple of that of the rest.
        freeze_backbone: keep the backbone's parameters and statistics as they are.
        close_geometry: number of last epochs in which images are letterboxed and no more: no mosaic or mixture, no
            rotation, shift, scaling, shear or perspective. Objects then have the sizes, and images the borders, that
            they have in deployment, which boxes depend on (https://arxiv.org/abs/1906.06423). Flips, colours and
            multi_scale stay.
        sparsity: weight of an L1 term on the factors of the normalisations, so that channels fade that can be pruned
            then (https://arxiv.org/abs/1708.06519). With SGD, a factor that nothing holds shrinks by
            lr * sparsity / (1 - momentum) in each step.
        sparsity_final: share of that weight in the last epoch, to which it changes evenly from the first.
        sparsity_backbone: multiple of that weight in the backbone.
        sparsity_neck: multiple of that weight in the neck.
        sparsity_head: multiple of that weight in the head.
        report_epochs: epochs after which the loss terms are compared and gains suggested; 0: never.
        skip_bad_labels: leave out images that cannot be read and those with malformed labels, as ultralytics does, and
            validate even where no image has an object; False refuses the data set.
        tensorboard: log the losses, metrics and learning rates for TensorBoard too.
    """

    kd_cls: float = 1.0
    kd_cls_loss: str = "bce"
    kd_cls_temperature: float = 1.0
    kd_box: float = 1.0
    kd_box_temperature: float = 1.0
    kd_feat: float = 1.0
    kd_mask: str = "confidence"
    kd_min_confidence: float = 0.05
    kd_ramp_epochs: float = 0.0
    kd_labels: bool = True
    tal_topk: int = 10
    tal_alpha: float = 0.5
    tal_beta: float = 6.0
    tal_radius: float = 0.0
    cls_loss: str = "bce"
    cls_gamma: float = 2.0
    cls_alpha: float = 0.75
    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    head_lr: float = 1.0
    freeze_backbone: bool = False
    close_geometry: int = 0
    sparsity: float = 0.0
    sparsity_final: float = 1.0
    sparsity_backbone: float = 1.0
    sparsity_neck: float = 1.0
    sparsity_head: float = 1.0
    report_epochs: int = 3
    skip_bad_labels: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        distillation = ("kd_cls", "kd_box", "kd_feat", "kd_ramp_epochs")
        assigner = ("tal_alpha", "tal_beta", "tal_radius")
        sparsity = ("sparsity", "sparsity_final", "sparsity_backbone", "sparsity_neck", "sparsity_head")
        for name in (*distillation, *assigner, *sparsity, "cls_gamma"):
            self._require(name, "a number that is 0 or more", _is_number(value := getattr(self, name)) and value >= 0)
        for name in ("kd_cls_temperature", "kd_box_temperature", "head_lr"):
            self._require(name, "a number above 0", _is_number(value := getattr(self, name)) and value > 0)
        for name in ("kd_min_confidence", "cls_alpha", "label_smoothing"):
            self._require(name, "a number in [0, 1]", _is_number(value := getattr(self, name)) and 0 <= value <= 1)
        for name, choices in (("kd_cls_loss", KD_CLS_LOSSES), ("kd_mask", KD_MASKS), ("cls_loss", CLS_LOSSES)):
            self._require(name, f"one of {', '.join(choices)}", getattr(self, name) in choices)
        for name in ("kd_labels", "freeze_backbone", "skip_bad_labels", "tensorboard"):
            self._require(name, "true or false", isinstance(getattr(self, name), bool))
        for name, least in (("tal_topk", 1), ("close_geometry", 0), ("report_epochs", 0)):
            value = getattr(self, name)
            self._require(name, f"an integer of at least {least}", type(value) is int and value >= least)
        weights = self.class_weights
        if weights is not None:
            holds = isinstance(weights, (list, tuple)) and all(_is_number(weight) and weight >= 0 for weight in weights)
            self._require("class_weights", "a list of a weight of 0 or more for each class", holds)

    def _require(self, name: str, expected: str, holds: bool) -> None:
        if not holds:
            raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}.")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML holds them."""
        return asdict(self)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def closing_epochs(epochs: int) -> int:
    """`close_geometry` for a training whose last epochs alone may differ from ultralytics': a third, 10 at most.

    10 is ultralytics' `close_mosaic`.
    """
    return min(10, math.ceil(epochs / 3))


NAMES = frozenset(field.name for field in fields(Settings))


def explained() -> Iterator[tuple[str, str, str]]:
    """Name, default, as YAML has it, and meaning of each setting."""
    lines = inspect.getdoc(Settings).partition("Attributes:\n")[2]  # type: ignore[union-attr]
    meanings = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", lines, re.MULTILINE))
    for field in fields(Settings):
        yield field.name, json.dumps(field.default).strip('"'), " ".join(meanings[field.name].split())


def split(arguments: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """The settings among `arguments`, and the others, which are ultralytics'.

    Raises:
        ValueError: a setting has a value that it cannot have.
    """
    ours = {name: value for name, value in arguments.items() if name in NAMES}
    return Settings(**ours), {name: value for name, value in arguments.items() if name not in NAMES}


def unknown_name(name: str, known: Sequence[str]) -> str:
    """One sentence for a name that is neither a setting nor one of `known`, ultralytics' arguments."""
    nearest = difflib.get_close_matches(name, [*NAMES, *known], 1)
    return f"There is no training argument {name!r}" + (f"; the nearest is {nearest[0]!r}." if nearest else ".")
