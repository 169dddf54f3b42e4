# SPDX-License-Identifier: AGPL-3.0-or-later
"""A checkpoint as the reference that exported files of it are compared with: ultralytics' own way, stage by stage."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import nms, ops
from ultralytics.utils.metrics import DetMetrics
from ultralytics.utils.patches import imread

from fastyolo.integrations.ultralytics.acceleration import ASSETS, HeadTap, predictor_of, why_not_accelerated
from fastyolo.integrations.ultralytics.stock import stock_predictions
from fastyolo.integrations.ultralytics.weights import read_checkpoint
from fastyolo.runtime.metadata import Nms

__all__ = ["ASSETS", "Accuracy", "Layer", "Placement", "Reference"]

Array = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
Placement = Literal["image", "padded", "swapped"]
"""Of boxes: in pixels of the image, the same without the letterbox's offset subtracted, or with y before x."""
Finder: TypeAlias = "Callable[[Image], npt.NDArray[Any]]"
"""From a BGR image to its detections [n, 6]: x1, y1, x2, y2 in its pixels, score, class."""


@dataclass(frozen=True)
class Layer:
    """A module that takes one tensor, or one list of them, and returns one.

    Attributes:
        kind: name of its class.
        takes_list: whether its argument is a list.
        shapes: of its inputs and its output; of a module in several places, none.
    """

    kind: str
    takes_list: bool
    shapes: tuple[tuple[int, ...], ...]

    @property
    def nbytes(self) -> int:
        """Of its inputs and its output in float32."""
        return 4 * sum(map(math.prod, self.shapes))


@dataclass(frozen=True)
class Accuracy:
    """mAP as ultralytics' validator measures it."""

    map50_95: float
    map50: float


class Reference:
    """A detection checkpoint on the CPU, in float32, its normalisations folded, as ultralytics runs it.

    Args:
        weights: checkpoint.
        imgsz: height and width of the network's input in pixels.

    Attributes:
        imgsz: as given.
        names: of the classes, by index.
        strides: pixels per cell of each level.
        branches: paths of the head's branches: of the boxes by level, and of the classes by level.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or it is no detector with ultralytics' Detect head.
    """

    def __init__(self, weights: str | Path, imgsz: tuple[int, int]) -> None:
        model = _load(weights)
        self.imgsz = imgsz
        self._model = model
        self.names = tuple(model.names[index] for index in range(len(model.names)))
        self._predictor = predictor_of(model, imgsz=list(imgsz), rect=False, device="cpu", verbose=False)
        network = self._predictor.model.model
        self._network = network.requires_grad_(False)
        self._modules = dict(network.named_modules(remove_duplicate=False))
        self.strides = tuple(int(stride) for stride in network.stride.tolist())
        paths = {module: path for path, module in self._modules.items()}
        heads = network.model[-1].one2many
        self.branches = tuple(tuple(paths[branch] for branch in heads[kind]) for kind in ("box_head", "cls_head"))

    def preprocess(self, image: Image, *, rect: bool) -> Array:
        """A BGR image [H, W, 3] -> [1, 3, H', W'], letterboxed, RGB in 0 to 1.

        Args:
            image: uint8.
            rect: cut the letterbox down to what the image and the largest stride need, as for free sizes.
        """
        self._predictor.args.rect = rect
        self._predictor.setup_source([image])
        return self._predictor.preprocess([image]).numpy()

    def misprepared(self, image: Image) -> dict[str, Array]:
        """What other ways to resize give, for fixed sizes, by a clause that says what is wrong with them."""
        ways = {
            "the image is stretched to its size, without letterbox": LetterBox(self.imgsz, scale_fill=True),
            "the image lies in its upper left corner, not in its middle": LetterBox(self.imgsz, center=False),
            "an image smaller than it is not enlarged": LetterBox(self.imgsz, scaleup=False),
        }
        return {
            clause: np.ascontiguousarray(way(image=image)[..., ::-1].transpose(2, 0, 1)[None]) / np.float32(255)
            for clause, way in ways.items()
        }

    def run(self, tensor: Array) -> tuple[list[Array], list[Array]]:
        """The raw maps of the head: for each level [B, 4R, H_l, W_l] of the boxes, and [B, C, H_l, W_l]."""
        with torch.inference_mode(), HeadTap(self._network.model[-1]):
            maps = self._network(torch.from_numpy(tensor))
        return [x.numpy() for x in maps.box_maps], [x.numpy() for x in maps.cls_maps]

    def rounded(self, tensor: Array, *, half: bool) -> tuple[list[Array], list[Array]]:
        """`run`, rounded in another way: the difference shows what rounding alone does to the maps.

        Args:
            tensor: as for `run`.
            half: round weights and the output of every module to float16; else compute in float64.
        """
        network = copy.deepcopy(self._network)
        network = network.half().float() if half else network.double()
        if half:
            for module in network.modules():
                module.register_forward_hook(_round_to_half)
        with torch.inference_mode(), HeadTap(network.model[-1]):
            maps = network(torch.from_numpy(tensor).to(torch.float32 if half else torch.float64))
        return [x.float().numpy() for x in maps.box_maps], [x.float().numpy() for x in maps.cls_maps]

    def decode(self, box_maps: Sequence[Array], cls_maps: Sequence[Array]) -> Array:
        """Boxes xyxy in input pixels and scores: [B, 4 + C, A]."""
        boxes, classes = ([torch.from_numpy(x) for x in maps] for maps in (box_maps, cls_maps))
        predictions = stock_predictions(boxes, classes, self.strides)()
        corners = ops.xywh2xyxy(predictions[:, :4].mT).mT
        return torch.cat((corners, predictions[:, 4:]), 1).numpy()

    def layers(self, tensor: Array) -> dict[str, Layer]:
        """The modules, by path, that can be called on their own, found in a run on [1, 3, H, W]."""
        seen: dict[nn.Module, Layer] = {}

        def observe(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            inputs = _tensors(args)
            if inputs and isinstance(output, Tensor):
                shapes = () if module in seen else tuple(tuple(x.shape) for x in (*inputs, output))
                seen[module] = Layer(type(module).__name__, not isinstance(args[0], Tensor), shapes)

        handles = [module.register_forward_hook(observe) for module in set(self._modules.values())]
        try:
            with torch.inference_mode():
                self._network(torch.from_numpy(tensor))
        finally:
            for handle in handles:
                handle.remove()
        return {path: seen[module] for path, module in self._modules.items() if module in seen}

    def call(self, path: str, layer: Layer, inputs: Sequence[Array]) -> Array:
        """The output of one of `layers` for given inputs."""
        tensors = [torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in inputs]
        with torch.inference_mode():
            output = self._modules[path](tensors if layer.takes_list else tensors[0])
        return output.numpy()

    def detect(self, predictions: Array, settings: Nms) -> list[npt.NDArray[np.float64]]:
        """Detections of `decode`'s predictions: [n, 6] for each image, x1, y1, x2, y2 in input pixels, score, class.

        In float64, where the shifts by which ultralytics' NMS separates the classes round nothing.
        """
        values = torch.from_numpy(predictions).double()
        values[:, :4] = ops.xyxy2xywh(values[:, :4].mT).mT
        return [rows.numpy() for rows in _suppressed(values, settings)]

    def to_image(
        self, boxes: npt.NDArray[Any], size: tuple[int, int], image: tuple[int, int], placement: Placement = "image"
    ) -> npt.NDArray[Any]:
        """Boxes xyxy [n, 4] in input pixels -> in pixels of the image, clipped to it; height and width of both.

        As one should, or in one of the ways in which it goes wrong.
        """
        placed = ops.scale_boxes(size, boxes.copy(), image, padding=placement != "padded")
        return placed[:, [1, 0, 3, 2]] if placement == "swapped" else placed

    def find(self, image: Image, settings: Nms, *, rect: bool) -> npt.NDArray[np.float64]:
        """Detections [n, 6] of one image: x1, y1, x2, y2 in its pixels, score, class; `rect` as in `preprocess`."""
        tensor = self.preprocess(image, rect=rect)
        (rows,) = self.detect(self.decode(*self.run(tensor)), settings)
        boxes = self.to_image(rows[:, :4], (tensor.shape[2], tensor.shape[3]), (image.shape[0], image.shape[1]))
        return np.column_stack((boxes, rows[:, 4:]))

    def check_data(self, data: str) -> None:
        """Whether `accuracies` can use a data set.

        Raises:
            ValueError: it is none, has no validation images, or has another number of classes.
        """
        expected = "data (--data) must be the YAML file of a detection data set"
        try:
            classes = len(check_det_dataset(data, split="val")["names"])
        except Exception as error:  # ultralytics has one for each mistake, some without a message
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise ValueError(f"{expected}, got {data!r} ({reason}).") from error
        if classes != len(self.names):
            raise ValueError(f"{expected} with the checkpoint's {len(self.names)} classes, got {classes} in {data!r}.")

    def accuracies(self, data: str, settings: Nms, finders: Sequence[Finder]) -> list[Accuracy]:
        """mAP on the validation images of a data set: of the checkpoint in ultralytics' validator, and of others.

        Args:
            data: YAML file of the data set.
            settings: of NMS in the validator, which letterboxes to squares.
            finders: what else finds detections, each to be measured in the same way.
        """
        arguments = {"data": data, "imgsz": self.imgsz[0], "rect": False, "batch": 1, "device": "cpu"}
        silent = {"plots": False, "verbose": False, "mode": "val"}
        with tempfile.TemporaryDirectory() as scratch:  # ultralytics makes a folder for the run in any case
            validator = _Validator(
                settings, finders, args={**self._model.overrides, **arguments, **silent}, save_dir=Path(scratch)
            )
            validator(model=self._model.model)
        return [Accuracy(float(x.box.map), float(x.box.map50)) for x in (validator.metrics, *validator.others)]


class _Validator(DetectionValidator):
    """Measures, beside the network, what `finders` find in the same images.

    Attributes:
        others: metrics of these.
    """

    metrics: Any
    seen: Any

    def __init__(self, settings: Nms, finders: Sequence[Finder], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._settings = settings
        self._finders = finders
        self.others = [DetMetrics() for _ in finders]

    def init_metrics(self, model: nn.Module) -> None:
        super().init_metrics(model)
        for metrics in self.others:
            metrics.names = model.names

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        predictions = preds[0] if isinstance(preds, (list, tuple)) else preds
        return [_columns(rows) for rows in _suppressed(predictions, self._settings)]

    def update_metrics(self, preds: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
        super().update_metrics(preds, batch)
        mine, seen = self.metrics, self.seen
        images = [imread(file) for file in batch["im_file"]]
        for find, metrics in zip(self._finders, self.others, strict=True):
            self.metrics = metrics
            found = [find(image) for image in images]
            super().update_metrics(
                [_columns(_in_input(rows, *place)) for rows, place in zip(found, batch["ratio_pad"], strict=True)],
                batch,
            )
        self.metrics, self.seen = mine, seen

    def get_stats(self) -> dict[str, Any]:
        for metrics in self.others:
            metrics.process(save_dir=self.save_dir, plot=False)
        return super().get_stats()


def _in_input(rows: npt.NDArray[Any], gain: tuple[float, float], padding: tuple[float, float]) -> Tensor:
    """Rows with boxes in pixels of the image -> in those of the validator's input, as its labels are."""
    placed = torch.from_numpy(rows).float()
    placed[:, :4] = placed[:, :4] * torch.tensor([gain[1], gain[0]] * 2) + torch.tensor([*padding] * 2)
    return placed


def _columns(rows: Tensor) -> dict[str, Tensor]:
    return {"bboxes": rows[:, :4], "conf": rows[:, 4], "cls": rows[:, 5], "extra": rows[:, 6:]}


def _suppressed(predictions: Tensor, settings: Nms) -> list[Tensor]:
    """predictions [B, 4 + C, A], boxes xywh -> [n, 6] of each image."""
    return nms.non_max_suppression(
        predictions,
        settings.score_threshold,
        settings.iou_threshold,
        agnostic=settings.class_agnostic,
        multi_label=settings.multi_label,
        max_det=settings.max_det,
        max_nms=settings.max_candidates,
        max_time_img=float("inf"),
    )


def _round_to_half(_: nn.Module, __: Any, output: Any) -> Any:
    return output.half().float() if isinstance(output, Tensor) else output


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    """The tensors of a call with one tensor or one list of tensors; of another call, none."""
    if len(args) != 1:
        return []
    values = list(args[0]) if isinstance(args[0], (list, tuple)) else [args[0]]
    return values if all(isinstance(value, Tensor) for value in values) else []


def _load(weights: str | Path) -> YOLO:
    model = read_checkpoint(weights)
    if model.task != "detect":
        raise ValueError(f"weights must be a detection checkpoint, got one for the task {model.task!r}; pass another.")
    if why_not := why_not_accelerated(model):
        raise ValueError(f"The weights {str(weights)!r} cannot be compared stage by stage: {why_not}.")
    return model
