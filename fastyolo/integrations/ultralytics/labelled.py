# SPDX-License-Identifier: AGPL-3.0-or-later
"""mAP of whatever finds objects in the network's input: ultralytics' metrics without ultralytics' models."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo.detect import DetectionValidator

from fastyolo._names import distinct_names
from fastyolo.integrations.ultralytics.data import build_dataset

__all__ = ["Accuracy", "LabelledImages", "fingerprint"]

Finder: TypeAlias = "Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]"
"""From the network's input [1, 3, S, S] to detections [n, 6]: x1, y1, x2, y2 in its pixels, score, class."""


@dataclass(frozen=True)
class Accuracy:
    """mAP as ultralytics' validator measures it.

    Attributes:
        by_class: AP50-95 of the classes that have objects, by name, and by number too where several have one name.
    """

    map50_95: float
    map50: float
    by_class: Mapping[str, float]


class LabelledImages(DetectionValidator):
    """The validation images of a data set, letterboxed to squares, and how well objects are found in them.

    Args:
        data: YAML file of the data set.
        imgsz: side of the network's input in pixels.
        names: of the classes that the network knows.
        skip_bad_labels: the setting of that name, as a training had it.

    Raises:
        FileNotFoundError: the data set has no such file, or no validation images.
        ValueError: it is no data set of detection, has other classes, or labels that cannot be used.
    """

    args: Any
    data: Any
    metrics: Any
    seen: Any

    def __init__(self, data: str | Path, imgsz: int, names: Sequence[str], *, skip_bad_labels: bool = False) -> None:
        settings = {"imgsz": imgsz, "rect": False, "batch": 1, "workers": 0, "device": "cpu", "mode": "val"}
        with tempfile.TemporaryDirectory() as scratch:  # ultralytics makes a folder in any case
            super().__init__(args={**settings, "data": str(data), "plots": False}, save_dir=Path(scratch))
        vars(self.args)["skip_bad_labels"] = skip_bad_labels
        self.device = torch.device("cpu")
        self.training = False
        self.stride = 32  # of no consequence without rect
        self._names = dict(enumerate(distinct_names(names)))
        self.data = _checked(str(data), len(names))
        self.dataloader = self.get_dataloader(self.data["val"], 1)

    def __len__(self) -> int:
        return len(self.dataloader.dataset)

    def digest(self) -> str:
        """A hash of the images and of their labels."""
        return fingerprint(self.dataloader.dataset)

    def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> Any:
        return build_dataset(self.args, img_path, batch, self.data, mode=mode, rect=False, stride=self.stride)

    def measure(self, find: Finder, on_image: Callable[[], None] = lambda: None) -> Accuracy:
        """mAP of what `find` finds; `on_image` is called after each image."""
        self.init_metrics(SimpleNamespace(names=self._names))
        for batch in self._batches():
            rows = torch.from_numpy(np.asarray(find(batch["img"].numpy()), np.float32))
            found = {"bboxes": rows[:, :4], "conf": rows[:, 4], "cls": rows[:, 5], "extra": rows[:, 6:]}
            self.update_metrics([found], batch)
            on_image()
        self.get_stats()
        box = self.metrics.box
        by_class = {self._names[index]: float(ap) for index, ap in zip(box.ap_class_index, box.ap, strict=True)}
        return Accuracy(float(box.map), float(box.map50), by_class)

    def _batches(self) -> Iterator[dict[str, Any]]:
        for batch in self.dataloader:
            yield self.preprocess(batch)


def fingerprint(dataset: Any) -> str:
    """A hash of the images of one of ultralytics' data sets and of their labels, in whatever order they are."""
    images = []
    for file, label in zip(dataset.im_files, dataset.labels, strict=True):
        digest = hashlib.sha256(Path(file).read_bytes())
        digest.update(np.column_stack([label["cls"], label["bboxes"]]).astype(np.float32).tobytes())
        images.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(images))).hexdigest()[:32]


def _checked(data: str, classes: int) -> dict[str, Any]:
    expected = "data (--data) must be the YAML file of a detection data set"
    try:
        found = check_det_dataset(data, split="val")
    except Exception as error:  # ultralytics has one for each mistake, some without a message
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(f"{expected}, got {data!r} ({reason}).") from error
    if found["nc"] != classes:
        raise ValueError(f"{expected} with the model's {classes} classes, got {found['nc']} in {data!r}.")
    return dict(found)
