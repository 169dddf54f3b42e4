# SPDX-License-Identifier: AGPL-3.0-or-later
"""ultralytics models with fastyolo's operators, and their raw outputs.

`accelerate` swaps the class of a `YOLO` object for one that differs in two places: it predicts with
`AcceleratedPredictor` and validates with `AcceleratedValidator`. Both work on the private copy of the network that
ultralytics makes for each of them, in which they replace the SPPF block by `FusedSPPF` and have the Detect head return
the raw maps of its branches, which `decode_nms` turns into detections. The object's own network is never touched, so
training, export, saving and fusing are ultralytics' own, and what they write can be read without fastyolo.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.engine.model import Model
from ultralytics.engine.results import Results
from ultralytics.models.yolo.detect import DetectionPredictor, DetectionValidator
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.modules.block import DFL, SPPF
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import BaseModel
from ultralytics.utils import ASSETS, LOGGER, ops
from ultralytics.utils.torch_utils import get_flops, unwrap_model

import fastyolo
from fastyolo.integrations.ultralytics.models import PRUNED
from fastyolo.nn import FusedSPPF
from fastyolo.nn.sppf import why_not_fused
from fastyolo.ops import decode_nms
from fastyolo.runtime.metadata import MAX_CANDIDATES

__all__ = [
    "ASSETS",
    "LOGGER",
    "YOLO",
    "AcceleratedPredictor",
    "AcceleratedValidator",
    "HeadMaps",
    "HeadTap",
    "accelerate",
    "describe",
    "fuse_sppf",
    "head_maps",
    "is_accelerated",
    "predictor_of",
    "why_not_accelerated",
]

# What a Detect head computes between its branches and the decoded predictions. A head that overrides any of these
# means something else by its maps, or has more outputs than boxes and classes.
_DETECT_METHODS = ("forward", "forward_head", "one2many", "_inference", "_get_decode_boxes", "decode_bboxes")


def accelerate(model: Model) -> Model:
    """Let an ultralytics model predict and validate with fastyolo's operators; results and API stay the same.

    `decode_nms` goes from the raw outputs of the head to detections, `sppf_pool` pools in the SPPF block.

    Args:
        model: a `YOLO` object of a detection model with ultralytics' Detect head (YOLOv8 to YOLO12, YOLO26 with NMS,
            and heads that keep Detect's decoding). Changed in place.

    Returns:
        The same object. A model that cannot be accelerated is returned as it is, with a warning that says why.

    Raises:
        TypeError: `model` is not an ultralytics model.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be an ultralytics YOLO object, got {type(model).__name__}.")
    if is_accelerated(model):
        return model
    if reason := why_not_accelerated(model):
        warnings.warn(f"accelerate() leaves this model as it is: {reason}.", stacklevel=2)
        return model
    model.__class__ = _accelerated(model.__class__)
    if type(model.predictor) is DetectionPredictor:
        model.predictor = None  # built before the swap; the next predict() builds its successor
    return model


def is_accelerated(model: Model) -> bool:
    """Whether `accelerate` changed this object; single runs may still say that they are not accelerated."""
    return isinstance(model, _Accelerated)


def why_not_accelerated(model: Model) -> str | None:
    """The reason why `accelerate` leaves `model` as it is, as a clause without a full stop, or None."""
    if reason := _why_not(model.model):
        return reason
    predictor = model._smart_load("predictor")
    if predictor not in (DetectionPredictor, AcceleratedPredictor):
        return f"it predicts with its own {predictor.__name__}"
    return None


def _why_not(network: nn.Module | str | Path) -> str | None:
    if not isinstance(network, nn.Module):
        return f"{str(network)!r} is an exported model, which does not show its head's branches"
    if not isinstance(network, BaseModel):
        return f"{type(network).__name__} is not one of ultralytics' own networks"
    head = network.model[-1]
    if not isinstance(head, Detect):
        return f"its last layer is {type(head).__name__}, not a Detect head"
    for name in _DETECT_METHODS:
        if getattr(type(head), name) is not getattr(Detect, name) or name in vars(head):
            return f"its head {type(head).__name__} has its own {name} in place of Detect's"
    if head.cv2 is None:
        return "its one-to-many branches were removed by fusion, so it runs end to end and needs no NMS"
    if not _is_expectation(head.dfl, head.reg_max):
        return (
            f"its head decodes boxes with {type(head.dfl).__name__}, not with the expectation over {head.reg_max} bins"
        )
    return None


def _is_expectation(dfl: Any, bins: int) -> bool:
    if bins == 1:
        return type(dfl) is nn.Identity
    return type(dfl) is DFL and dfl.conv.weight.flatten().tolist() == list(range(bins))


def _why_not_now(backend: AutoBackend) -> str | None:
    """What, beyond the network itself, keeps this run of a loaded model from being accelerated."""
    if backend.format != "pt":
        return f"a model of format {backend.format!r} does not show its head's branches"
    if backend.end2end:
        return "with nms=False it runs end to end, without NMS"
    if reason := _why_not(backend.model):
        return reason
    device = backend.device.type
    if device not in ("cpu", "cuda"):
        return f"fastyolo has kernels for CPU and CUDA, not for {device!r}"
    if device == "cuda" and not fastyolo.build_info()["cuda"]:
        return "this fastyolo was built without CUDA; build it again where nvcc is found, with FASTYOLO_CUDA=on"
    if device == "cuda":
        capability = torch.cuda.get_device_capability(backend.device)
        architectures = fastyolo.build_info()["cuda_architectures"]
        if not _has_code_for(capability, architectures):
            return (
                f"this fastyolo was built for the CUDA architectures {', '.join(architectures)}, and this GPU has "
                f"compute capability {capability[0]}.{capability[1]}; build it again with "
                "CMAKE_CUDA_ARCHITECTURES=native"
            )
    return None


def _has_code_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether one of CMake's architectures runs on a GPU: machine code within its major version, or PTX up to it."""
    for architecture in architectures:
        number, _, kind = architecture.partition("-")
        if not number.isdigit():  # native, all, or one with features of its own
            return True
        of_code = divmod(int(number), 10)
        has_code = kind != "virtual" and of_code[0] == capability[0]
        has_ptx = kind != "real"
        if (has_code or has_ptx) and of_code <= capability:
            return True
    return False


class _Accelerated:
    """Mixed into the class of an accelerated model, in front of it."""

    _stock_class: type

    def _smart_load(self, key: str) -> Any:
        stock = super()._smart_load(key)  # type: ignore[misc]
        return {DetectionPredictor: AcceleratedPredictor, DetectionValidator: AcceleratedValidator}.get(stock, stock)

    def __reduce__(self) -> tuple[Callable[[type], Model], tuple[type], dict[str, Any]]:
        return _new_accelerated, (self._stock_class,), vars(self)


@functools.cache
def _accelerated(stock: type) -> type:
    return type(f"Accelerated{stock.__name__}", (_Accelerated, stock), {"_stock_class": stock, "__module__": __name__})


def _new_accelerated(stock: type) -> Model:
    """What pickle and copy start from, since a class made at run time cannot be found by its name."""
    return object.__new__(_accelerated(stock))


@dataclass(frozen=True, eq=False)
class HeadMaps:
    """What the branches of a Detect head put out, before anything is concatenated or decoded.

    Neither a tuple nor a list, since AutoBackend takes those apart.

    Attributes:
        box_maps: one [B, 4R, H_l, W_l] per level, logits of the distance bins.
        cls_maps: one [B, C, H_l, W_l] per level, logits of the classes.
    """

    box_maps: list[Tensor]
    cls_maps: list[Tensor]


class HeadTap:
    """A context in which the Detect head of a network returns `HeadMaps`; the head's hooks run as ever.

    Attributes:
        strides: pixels per cell of each level.
    """

    def __init__(self, head: Detect) -> None:
        self._head = head
        self.strides: list[float] = head.stride.tolist()

    def __enter__(self) -> HeadTap:
        self._outer = vars(self._head).get("forward")  # of another tap
        self._head.forward = self._forward  # hides the method of the class
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._outer is None:
            del self._head.forward
        else:
            self._head.forward = self._outer

    def _forward(self, features: Sequence[Tensor]) -> HeadMaps:
        branches = self._head.one2many
        return HeadMaps(
            [branch(x) for branch, x in zip(branches["box_head"], features, strict=True)],
            [branch(x) for branch, x in zip(branches["cls_head"], features, strict=True)],
        )

    def detect(
        self,
        maps: HeadMaps,
        *,
        conf: float,
        iou: float,
        max_det: int,
        multi_label: bool,
        agnostic: bool,
        classes: int | Sequence[int] | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What `ultralytics.utils.nms.non_max_suppression` returns for the decoded `maps`, with `return_idxs=True`.

        Returns:
            For each image, its detections [n, 6] float32 (x1, y1, x2, y2 in input pixels, score, class) by descending
            score, and their anchor indices [n] int64.
        """
        if classes is not None:  # as ultralytics: one or several, of which those that the model lacks mean nothing
            wanted = set(np.atleast_1d(classes).tolist())
            classes = [label for label in range(maps.cls_maps[0].shape[1]) if label in wanted]
        found = decode_nms(
            maps.box_maps,
            maps.cls_maps,
            self.strides,
            score_threshold=conf,
            iou_threshold=iou,
            max_det=min(max_det, MAX_CANDIDATES),
            max_candidates=MAX_CANDIDATES,
            multi_label=multi_label,
            class_agnostic=agnostic,
            classes=classes,
        )
        rows = torch.cat((found.boxes, found.scores[..., None], found.labels[..., None]), 2)
        counts = found.num_dets.tolist()  # the one synchronisation with the host
        return (
            [row[:count].clone() for row, count in zip(rows, counts, strict=True)],
            [index[:count].long() for index, count in zip(found.indices, counts, strict=True)],
        )


def _prepare(model: nn.Module) -> HeadTap | None:
    """Fuse the SPPF blocks of a loaded model and tap its head, or None and a warning."""
    backend = unwrap_model(model)  # what torch.compile wraps
    if reason := _why_not_now(backend):
        warnings.warn(f"This run of an accelerated model is not accelerated: {reason}.", stacklevel=2)
        return None
    fuse_sppf(backend.model)
    return HeadTap(backend.model.model[-1])


def fuse_sppf(network: nn.Module) -> None:
    """Replace the SPPF blocks of a network that `FusedSPPF` can take the place of."""
    for name, module in list(network.named_modules()):
        # A subclass that means something else by its parts has a forward of its own.
        if isinstance(module, SPPF) and type(module).forward is SPPF.forward and not why_not_fused(module):
            network.set_submodule(name, FusedSPPF(module))


class AcceleratedPredictor(DetectionPredictor):
    """A DetectionPredictor that pools in one operator, and goes from the head's branches to detections in another."""

    _tap: HeadTap | None = None

    def setup_model(self, model: Any, verbose: bool = True) -> None:
        super().setup_model(model, verbose)
        self._tap = _prepare(self.model)

    def inference(self, im: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._tap is None or self._needs_decoded_predictions():
            return super().inference(im, *args, **kwargs)
        with self._tap:
            return super().inference(im, *args, **kwargs)

    def _needs_decoded_predictions(self) -> bool:
        args = self.args
        # TrackTrack suppresses the decoded predictions of a frame a second time, for which it wraps postprocess().
        recovers = args.mode == "track" and hasattr(self, "_orig_postprocess")
        return bool(args.augment or args.embed or args.visualize or recovers)

    def postprocess(self, preds: Any, img: Tensor, orig_imgs: Any, **kwargs: Any) -> list[Results]:
        if not isinstance(preds, HeadMaps):
            return super().postprocess(preds, img, orig_imgs, **kwargs)
        assert self._tap is not None
        rows, anchors = self._tap.detect(
            preds,
            conf=self.args.conf,
            iou=kwargs.pop("iou", self.args.iou),
            max_det=self.args.max_det,
            multi_label=False,
            agnostic=self.args.agnostic_nms,
            classes=self.args.classes,
        )
        if not isinstance(orig_imgs, list):
            orig_imgs = ops.convert_torch2numpy_batch(orig_imgs)[..., ::-1]
        results = self.construct_results(rows, img, orig_imgs, **kwargs)
        features = getattr(self, "_feats", None)  # a tracker's hook on the head leaves the head's inputs here
        if features is not None:
            for result, feature in zip(results, self.get_obj_feats(features, anchors), strict=True):
                result.feats = feature
        return results


class AcceleratedValidator(DetectionValidator):
    """A DetectionValidator with the operators of AcceleratedPredictor; stock inside training."""

    _tap: HeadTap | None = None

    def __call__(self, trainer: Any = None, model: Any = None, **kwargs: Any) -> Any:
        with ExitStack() as self._run:
            return super().__call__(trainer, model, **kwargs)

    def init_metrics(self, model: nn.Module) -> None:
        super().init_metrics(model)
        if self.training or self.args.augment:
            return
        self._tap = _prepare(model)
        if self._tap is not None:
            self._run.enter_context(self._tap)

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        if not isinstance(preds, HeadMaps):
            return super().postprocess(preds)
        assert self._tap is not None
        rows, _ = self._tap.detect(
            preds,
            conf=self.args.conf,
            iou=self.args.iou,
            max_det=self.args.max_det,
            multi_label=True,
            agnostic=self.args.single_cls or self.args.agnostic_nms,
        )
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in rows]


def predictor_of(model: Model, **settings: Any) -> DetectionPredictor:
    """The predictor that model.predict(**settings) calls.

    model.predict() itself takes any program whose name ends in "yolo" and that has an argument "predict" for
    ultralytics' own command line, and returns nothing to it.
    """
    overrides = {**model.overrides, "mode": "predict", "rect": True, **settings}
    predictor = model._smart_load("predictor")(overrides=overrides, _callbacks=model.callbacks)
    predictor.setup_model(model.model, verbose=False)
    return predictor


def head_maps(
    model: Model, images: Sequence[str | Path], *, imgsz: int = 640, device: str = "cpu", half: bool = False
) -> tuple[HeadMaps, list[float]]:
    """The raw maps of a detection model on a batch of images, letterboxed to imgsz x imgsz; strides of the levels.

    Raises:
        ValueError: `accelerate` does not apply to the model.
    """
    if reason := why_not_accelerated(model):
        raise ValueError(f"model must have ultralytics' Detect head with NMS: {reason}.")
    settings = {"imgsz": imgsz, "device": device, "quantize": 16 if half else None, "batch": len(images)}
    predictor = predictor_of(model, **settings, rect=False, verbose=False)
    predictor.setup_source([str(image) for image in images])
    _, frames, _ = next(iter(predictor.dataset))
    tap = HeadTap(predictor.model.model.model[-1])
    with torch.inference_mode(), tap:
        return predictor.model(predictor.preprocess(frames)), tap.strides


def describe(model: Model, imgsz: int) -> dict[str, Any]:
    """Task, classes, parameters, GFLOPs at imgsz x imgsz and strides of a model, and whether it was pruned; of an
    exported one, its task.

    Raises:
        ValueError: a file or folder is none that ultralytics exports.
    """
    network: Any = model.model
    facts: dict[str, Any] = {"task": model.task}
    if isinstance(network, str):
        from ultralytics.engine.exporter import export_formats

        suffixes = tuple(filter(None, export_formats()["Suffix"]))
        if not network.endswith(suffixes) and not Path(network, "metadata.yaml").is_file():
            raise ValueError(f"The model must be a checkpoint, a YAML file or an exported model, got {network!r}.")
    if not isinstance(network, str):
        facts["head"] = type(network.model[-1]).__name__
        facts["classes"] = len(model.names)
        facts["parameters"] = sum(p.numel() for p in network.parameters())
        facts["gflops"] = round(get_flops(network, imgsz), 2)
        facts["strides"] = [int(stride) for stride in network.stride.tolist()]
        if PRUNED in network.yaml:
            facts["pruned"] = network.yaml[PRUNED]
    return facts
