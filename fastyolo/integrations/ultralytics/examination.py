# SPDX-License-Identifier: AGPL-3.0-or-later
"""A checkpoint under examination: what it finds in images, what it was trained for, and where float16 ends."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from ultralytics.data.augment import LetterBox
from ultralytics.engine.model import Model
from ultralytics.utils.metrics import ap_per_class, smooth

from fastyolo._machine import cores
from fastyolo.diagnose.doctor.outcomes import Detections
from fastyolo.integrations.ultralytics.facts import check_sizes

__all__ = ["Curves", "ExaminedModel", "curves"]

_LEAST_SCORE = 0.001  # as in validation
_MEASURED = 4  # images on which activations are


class ExaminedModel:
    """A detection model of ultralytics, to be shown single images.

    Args:
        model: it, accelerated or not.
        imgsz: longer side of the network's input in pixels; None: as it was trained.
        device, iou, max_det: as for its predict().

    Raises:
        ValueError: the model is an exported one, which does not show its layers, or does not take squares of this side.

    Attributes:
        name: of its file.
        names: of its classes.
        imgsz: longer side of the network's input in pixels.
        trained_imgsz: the one of its training; None if the checkpoint does not tell.
        strides: of its levels in pixels, ascending.
        activations: the largest absolute value that each convolution, its normalisation apart, put out for the first
            images, in float32.
    """

    def __init__(
        self, model: Model, imgsz: int | None = None, *, device: str | None = None, iou: float = 0.7, max_det: int = 300
    ) -> None:
        if not isinstance(model.model, nn.Module):
            raise ValueError(
                f"weights (--weights) must be a checkpoint, got {str(model.model)!r}; compare an exported model with "
                "its checkpoint (--deployed)."
            )
        network: Any = model.model
        self.name = Path(str(model.ckpt_path or "model")).name
        self.names = tuple(model.names[index] for index in sorted(model.names))
        trained = (getattr(model, "ckpt", None) or {}).get("train_args", {}).get("imgsz")
        self.trained_imgsz = int(trained) if isinstance(trained, int | float) else None
        self.imgsz = imgsz or self.trained_imgsz or 640
        check_sizes(model, [self.imgsz])
        self.strides = tuple(sorted(int(stride) for stride in network.stride.tolist()))
        self.activations: dict[str, float] = {}
        self._unfused: nn.Module | None = copy.deepcopy(network).float().cpu().eval()  # predict() folds normalisations
        self._shown = 0
        self._model = model
        self._settings = {
            "imgsz": self.imgsz,
            "device": device,
            "conf": _LEAST_SCORE,
            "iou": iou,
            "max_det": max_det,
            "verbose": False,
        }
        self._turn = threading.Lock()

    def not_finite(self) -> list[str]:
        """The parameters and statistics that hold NaN or infinite values."""
        state = self._model.model.state_dict() if self._unfused is None else self._unfused.state_dict()
        return [name for name, value in state.items() if not torch.isfinite(value.float()).all()]

    def find(self, image: npt.NDArray[np.uint8]) -> Detections:
        """The detections in a BGR image [H, W, 3] with a score above 0.001; one thread at a time."""
        with self._turn:
            torch.set_num_threads(cores())  # ultralytics leaves a core free, and here that is idle
            if self._unfused is not None:
                self._measure(image)
            (result,) = self._model.predict(image, **self._settings)
        rows = result.boxes.data.cpu().numpy().astype(np.float64)
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
        height, width = image.shape[:2]
        return Detections(rows[:, :4] / [width, height, width, height], rows[:, 4], rows[:, 5].astype(np.intp))

    def _measure(self, image: npt.NDArray[np.uint8]) -> None:
        network = self._unfused
        assert network is not None

        def observe(path: str) -> Any:
            def hook(_: nn.Module, __: Any, output: Tensor) -> None:
                self.activations[path] = max(self.activations.get(path, 0.0), float(output.abs().max()))

            return hook

        handles = [
            module.register_forward_hook(observe(path))
            for path, module in network.named_modules()
            if isinstance(module, nn.Conv2d)
        ]
        square = LetterBox((self.imgsz, self.imgsz))(image=image)
        tensor = torch.from_numpy(np.ascontiguousarray(square[..., ::-1].transpose(2, 0, 1)[None]))
        try:
            with torch.inference_mode():
                network(tensor.float() / 255)
        finally:
            for handle in handles:
                handle.remove()
        self._shown += 1
        if self._shown == _MEASURED:
            self._unfused = None


@dataclass(frozen=True)
class Curves:
    """
    Attributes:
        ap50: average precision at an IoU of 0.5, by class; of classes with objects.
        f1: [1000] F1 score over thresholds from 0 to 1, likewise.
    """

    ap50: dict[int, float]
    f1: dict[int, npt.NDArray[np.float64]]

    @property
    def map50(self) -> float:
        return float(np.mean(list(self.ap50.values()))) if self.ap50 else 0.0


def curves(
    hits: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    classes: npt.NDArray[np.intp],
    objects: npt.NDArray[np.intp],
) -> Curves:
    """As ultralytics' validator makes them, F1 smoothed as there, of detections [n] and the classes [m] of objects."""
    if not len(objects):
        return Curves({}, {})
    *_, ap, present, _, _, f1, _, _ = ap_per_class(hits[:, None], scores, classes, objects)
    known: Sequence[int] = present.tolist()
    return Curves(
        {label: float(values[0]) for label, values in zip(known, ap, strict=True)},
        {label: smooth(values, 0.1) for label, values in zip(known, f1, strict=True)},
    )
