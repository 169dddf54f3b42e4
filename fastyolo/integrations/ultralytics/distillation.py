# SPDX-License-Identifier: AGPL-3.0-or-later
"""Distillation of one ultralytics detector into another: class scores, distance distributions and features."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils.torch_utils import copy_attr

from fastyolo.train import distillation as terms
from fastyolo.train.settings import Settings

LOSS_NAMES = ("kd_cls", "kd_box", "kd_feat")


def load_teacher(path: str | Path, student: DetectionModel) -> DetectionModel:
    """The detector in a checkpoint of ultralytics, fused, to be the teacher of `student`.

    Args:
        path: the argument `distill_model`: a .pt file, or the name of one of ultralytics' own, which is downloaded.
        student: tells how many channels the images have.

    Raises:
        ValueError: the file cannot be read, or holds no detection model with ultralytics' Detect head that takes the
            student's images.
    """
    if Path(str(path)).suffix != ".pt":
        raise ValueError(f"distill_model must be a checkpoint (.pt) of ultralytics, got {str(path)!r}.")
    try:
        model = load_checkpoint(path)[0]
    except FileNotFoundError as error:
        raise ValueError(f"distill_model must be a checkpoint of ultralytics, but there is no file {path}.") from error
    except Exception as error:  # whatever unpickling a damaged or foreign file can end in
        raise ValueError(
            f"distill_model must be a checkpoint of ultralytics, but {path} cannot be read as one "
            f"({type(error.__cause__ or error).__name__})."
        ) from error
    teacher = getattr(model, "student_model", model)  # of a distillation that was interrupted
    if reason := _why_no_teacher(teacher):
        raise ValueError(f"distill_model must be a detection model with a Detect head, but {path} {reason}.")
    channels = [model.yaml.get("channels", 3) for model in (student, teacher)]
    if channels[0] != channels[1]:
        raise ValueError(
            f"distill_model must take images of {channels[0]} channels, as the student does, but {path} takes "
            f"{channels[1]}."
        )
    teacher.end2end = False  # so that fusing keeps the one-to-many branches
    return teacher.fuse(verbose=False)


def _why_no_teacher(model: nn.Module) -> str | None:
    if not isinstance(model, DetectionModel):
        return f"holds a {type(model).__name__}"
    head = model.model[-1]
    plain = isinstance(head, Detect) and all(
        getattr(type(head), name) is getattr(Detect, name) for name in ("forward", "forward_head", "one2many")
    )
    if not plain:
        return f"has a {type(head).__name__} head"
    if head.cv2 is None:
        return "lost its one-to-many branches when it was fused"
    return None


class Distillation(DistillationModel):
    """A student in training, together with its frozen teacher and the adapters between their features.

    Called with a batch it returns the student's own loss, to which those of `fastyolo.train.distillation` are appended;
    called with images, what the student predicts. Of the heads, the one-to-many branches are compared, at the levels
    whose stride both have. In a checkpoint the teacher is None; it is no submodule, so neither the optimizer nor
    DistributedDataParallel nor `state_dict()` know of it.

    Args:
        student: the model to train, with `args`, on its device.
        teacher: as `load_teacher` returns it.
        settings: of them, those that begin with kd_.

    Attributes:
        student_model, teacher_model: see above.
        projector: the adapters, a 1x1 convolution per shared level; none without kd_feat.
        epoch: of the training, counted from 0, by which the weights are ramped up. The trainer sets it.

    Raises:
        ValueError: the two have no stride in common, differ in their classes, or cannot be compared as the settings
            ask.
    """

    # ultralytics' own __init__ sets up hooks, adapters and a loss of which this class has no use.
    def __init__(self, student: DetectionModel, teacher: DetectionModel, settings: Settings) -> None:
        nn.Module.__init__(self)
        _check_settings(settings, student, teacher)
        self.student_model = student
        self.__dict__["teacher_model"] = teacher  # hidden from nn.Module
        self.settings = settings
        self.epoch = 0.0
        self._freeze_teacher()
        self._levels = _shared_levels(student, teacher)
        self.register_buffer("_class_order", _class_order(student, teacher), persistent=False)
        self.projector = _adapters(student, teacher, self._levels) if settings.kd_feat else nn.ModuleList()
        copy_attr(self, student)

    def _freeze_teacher(self) -> None:
        if self.teacher_model is not None:
            self.teacher_model.eval().requires_grad_(False)
            # Detect returns its raw maps in training mode, which its layers are not in, and decodes boxes otherwise.
            self.teacher_model.model[-1].training = True

    def _remove_feature_hooks(self) -> None:
        """Nothing: the raw outputs of a head hold the maps that entered it, so there are no hooks."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training and isinstance(x, Tensor) and self.teacher_model is not None:
            self._teach(x)  # for AutoBatch, which alone calls it so, to measure the memory
        return super().forward(x, *args, **kwargs)

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of the student and, in training, those of the distillation.

        Args:
            batch: as ultralytics' trainer makes it.
            preds: the student's raw outputs for `batch["img"]`, if they are known already.

        Returns:
            The losses to be summed, multiplied by the batch size, and the same by name, as they are. Without kd_labels
            those of the student are named with their values, but count nothing. In evaluation mode the teacher is not
            asked and its losses are 0.
        """
        if preds is None:
            preds = self.student_model(batch["img"])
        if not self.training:
            loss, items = self.student_model.loss(batch, preds)
            return self._joined(loss, items, loss.new_zeros(len(LOSS_NAMES)), 1)
        if getattr(self.student_model, "criterion", None) is None:
            self.criterion = self.init_criterion()
        with _foreground(self.criterion) as found:
            loss, items = self.student_model.loss(batch, preds)
        if not self.settings.kd_labels:
            loss = torch.zeros_like(loss)
        return self._joined(loss, items, self._terms(batch["img"], _one_to_many(preds), found[0]), len(batch["img"]))

    @staticmethod
    def _joined(
        loss: Tensor, items: dict[str, Tensor], distillation: Tensor, batch_size: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        named = dict(zip(LOSS_NAMES, distillation.detach(), strict=True))
        return torch.cat((loss, distillation * batch_size)), {**items, **named}

    def _terms(self, images: Tensor, student: dict[str, Any], foreground: Tensor) -> Tensor:
        """kd_cls, kd_box and kd_feat: [3], weighted."""
        settings = self.settings
        teacher = self._teach(images)
        ours, theirs = zip(*self._levels, strict=True)
        sizes = [student["feats"][level].shape[2:] for level in ours]
        cls, box, feature = torch.zeros(len(LOSS_NAMES), device=images.device)
        scores = _anchors(student["scores"], student["feats"], ours, sizes)
        wanted = _anchors(teacher["scores"], teacher["feats"], theirs, sizes)
        if self._class_order is not None:
            wanted = wanted[:, self._class_order]
        foreground = _anchors(foreground, student["feats"], ours, sizes)
        masks = terms.anchor_masks(settings.kd_mask, scores, wanted, foreground, settings.kd_min_confidence)
        if settings.kd_cls:
            cls = settings.kd_cls * terms.class_term(
                scores, wanted, masks[0], kind=settings.kd_cls_loss, temperature=settings.kd_cls_temperature
            )
        if settings.kd_box:
            box = settings.kd_box * terms.box_term(
                _anchors(student["boxes"], student["feats"], ours, sizes),
                _anchors(teacher["boxes"], teacher["feats"], theirs, sizes),
                masks[1],
                temperature=settings.kd_box_temperature,
            )
        if settings.kd_feat:
            levels = [
                terms.feature_term(adapter(student["feats"][i]), teacher["feats"][j][..., :height, :width])
                for adapter, i, j, (height, width) in zip(self.projector, ours, theirs, sizes, strict=True)
            ]
            feature = settings.kd_feat * torch.stack(levels).mean()
        return terms.ramp(self.epoch, settings.kd_ramp_epochs) * torch.stack((cls, box, feature))

    # Not torch.inference_mode: autograd saves the teacher's maps for the student's backward pass.
    @torch.no_grad()
    def _teach(self, images: Tensor) -> dict[str, Any]:
        """The teacher's raw one-to-many outputs, in the trainer's autocast; on CUDA in that precision altogether."""
        half = images.is_cuda and torch.is_autocast_enabled("cuda")
        dtype = torch.get_autocast_dtype("cuda") if half else torch.float32
        weight = next(self.teacher_model.parameters())
        if (weight.device, weight.dtype) != (images.device, dtype):
            self.teacher_model.to(images.device, dtype)
        stride = round(max(self.teacher_model.stride.tolist()))
        height, width = images.shape[2:]  # multiples of the student's largest stride, and perhaps not of the teacher's
        images = functional.pad(images.to(dtype), (0, -width % stride, 0, -height % stride))
        with torch.autocast("cuda", enabled=False) if half else contextlib.nullcontext():
            return _one_to_many(self.teacher_model(images))


# What the checkpoint of an unfinished run holds beyond its student, for ULTRALYTICS_SAFE_LOAD=1.
torch.serialization.add_safe_globals([Distillation, Settings])


def _one_to_many(preds: dict[str, Any]) -> dict[str, Any]:
    return preds.get("one2many", preds)


@contextlib.contextmanager
def _foreground(criterion: Any) -> Iterator[list[Tensor]]:
    """A context whose list takes the foreground mask [B, A] of each assignment of objects to anchors."""
    found: list[Tensor] = []
    assigner = getattr(criterion, "one2many", criterion).assigner
    handle = assigner.register_forward_hook(lambda module, inputs, outputs: found.append(outputs[3]))
    try:
        yield found
    finally:
        handle.remove()


def _anchors(
    values: Tensor, features: Sequence[Tensor], levels: Sequence[int], sizes: Sequence[Sequence[int]]
) -> Tensor:
    """[..., A] -> [..., A']: the anchors of some levels, each cropped to height and width, in that order."""
    shapes = [feature.shape[2:] for feature in features]
    parts = torch.split(values, [shape.numel() for shape in shapes], dim=-1)
    crops = [
        torch.unflatten(parts[level], -1, shapes[level])[..., :height, :width].flatten(-2)
        for level, (height, width) in zip(levels, sizes, strict=True)
    ]
    return torch.cat(crops, -1)


def _check_settings(settings: Settings, student: DetectionModel, teacher: DetectionModel) -> None:
    if not settings.kd_labels:
        if settings.kd_mask == "positives":
            raise ValueError(
                "kd_mask must not be 'positives', which the labels tell, when kd_labels is false; use 'confidence'."
            )
        if not (settings.kd_cls and settings.kd_box):
            raise ValueError(
                "kd_labels must be true when kd_cls or kd_box is 0, or that branch of the head learns from nothing."
            )
    head, other = student.model[-1], teacher.model[-1]
    if settings.kd_cls and settings.kd_cls_loss == "kl" and head.nc == 1:
        raise ValueError("kd_cls_loss must be 'bce' for a single class, whose softmax is always 1, got 'kl'.")
    if settings.kd_box and head.reg_max != other.reg_max:
        raise ValueError(
            f"distill_model must have the student's reg_max of {head.reg_max}, got {other.reg_max}; choose another "
            "model, or set kd_box to 0."
        )
    if settings.kd_box and head.reg_max == 1:
        raise ValueError(
            "kd_box must be 0 for heads with reg_max 1, which learn distances and not their distributions, got "
            f"{settings.kd_box}."
        )


def _shared_levels(student: DetectionModel, teacher: DetectionModel) -> list[tuple[int, int]]:
    """Indices of the levels with one stride, in the student and in the teacher."""
    ours, theirs = student.model[-1].stride.tolist(), teacher.model[-1].stride.tolist()
    levels = [(i, theirs.index(stride)) for i, stride in enumerate(ours) if stride in theirs]
    if not levels:
        raise ValueError(
            f"distill_model must have a level of one of the student's strides ({_listed(ours)}), got {_listed(theirs)}."
        )
    return levels


def _listed(strides: list[float]) -> str:
    return ", ".join(f"{stride:g}" for stride in strides)


def _class_order(student: DetectionModel, teacher: DetectionModel) -> Tensor | None:
    """[C] int64: the teacher's index of each of the student's classes; None if all are their own."""
    ours, theirs = ([model.names[i] for i in range(len(model.names))] for model in (student, teacher))
    if ours == theirs or len(ours) == len(theirs) == 1:  # single_cls renames the student's class
        return None
    if sorted(ours) != sorted(theirs):
        missing, extra = Counter(ours) - Counter(theirs), Counter(theirs) - Counter(ours)
        difference = f"no {next(iter(missing))!r}" if missing else f"{next(iter(extra))!r} besides"
        raise ValueError(
            f"distill_model must have the student's {len(ours)} {'class' if len(ours) == 1 else 'classes'}, in any "
            f"order, but it has {difference}."
        )
    # Sorting pairs classes of the same name in the order in which they come.
    pairs = zip(*(sorted(range(len(names)), key=names.__getitem__) for names in (ours, theirs)), strict=True)
    return torch.tensor([j for _, j in sorted(pairs)], device=next(student.parameters()).device)


def _adapters(student: DetectionModel, teacher: DetectionModel, levels: list[tuple[int, int]]) -> nn.ModuleList:
    """Convolutions from the student's width to the teacher's. A bias would be lost in the normalisation after it."""
    ours, theirs = (_widths(model) for model in (student, teacher))
    adapters = nn.ModuleList(nn.Conv2d(ours[i], theirs[j], 1, bias=False) for i, j in levels)
    return adapters.to(next(student.parameters()).device)


def _widths(model: DetectionModel) -> list[int]:
    """Channels of the maps that enter the head, by level: those of the first convolution of its branches."""
    return [
        next(layer for layer in branch.modules() if isinstance(layer, nn.Conv2d)).in_channels
        for branch in model.model[-1].cv2
    ]
