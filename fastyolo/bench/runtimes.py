# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can run a detector here: PyTorch, ONNX Runtime, OpenVINO, NCNN and TensorRT. Light until one is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy.typing as npt

from fastyolo._machine import installed_version
from fastyolo._quiet import quiet

if TYPE_CHECKING:
    from fastyolo.export import Format
    from fastyolo.runtime.engines import Engine, EngineName

Images: TypeAlias = "Sequence[npt.NDArray[Any]]"
"""uint8, BGR, [H, W, 3]."""
Detect: TypeAlias = "Callable[[Images], Any]"
"""Letterbox, network and NMS of a batch of images."""

PYTORCH = "pytorch"


@dataclass(frozen=True)
class Runtime:
    """What runs an exported model.

    Attributes:
        label: its name in tables.
        format: what a checkpoint is exported to for it.
        suffix: of the file or folder.
        packages: that it needs, beside those of the export.
        exporters: that the export needs.
        batches: whether a run of the network takes several images.
    """

    label: str
    format: Format
    suffix: str
    packages: tuple[str, ...]
    exporters: tuple[str, ...]
    batches: bool = True


# OpenVINO reads the ONNX file, so that both run the same graph, with the head's maps for fastyolo to decode.
RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": Runtime("ONNX Runtime", "onnx", ".onnx", ("onnxruntime",), ("onnx", "onnxslim")),
    "openvino": Runtime("OpenVINO", "onnx", ".onnx", ("openvino",), ("onnx", "onnxslim")),
    "ncnn": Runtime("NCNN", "ncnn", "_ncnn_model", ("ncnn",), ("pnnx",), batches=False),
    "tensorrt": Runtime("TensorRT", "engine", ".engine", ("tensorrt",), ("onnx", "onnxslim")),
}
NAMES = (PYTORCH, *RUNTIMES)
LABELS = {PYTORCH: "PyTorch", **{name: runtime.label for name, runtime in RUNTIMES.items()}}


def why_not(name: str, *, export: bool) -> str | None:
    """What keeps a runtime from being measured here, as a clause, or None.

    Args:
        name: one of NAMES.
        export: whether a checkpoint has to be exported for it; False: there is none.
    """
    if name == PYTORCH:
        return None if export else "it runs a checkpoint, which --weights names"
    runtime = RUNTIMES[name]
    for package in (*runtime.packages, *(runtime.exporters if export else ())):
        if installed_version(package) is None:
            return f"{package} is not installed"
    if name == "tensorrt":
        import torch

        return None if torch.cuda.is_available() else "torch sees no GPU"
    return None


def runtimes_of(file: Path) -> tuple[str, ...]:
    """The runtimes that take a file, by its suffix, or by what is in a folder.

    Raises:
        ValueError: none does.
    """
    suffix = file.suffix.lower()
    if suffix == ".onnx":
        return ("onnxruntime", "openvino")
    if suffix == ".engine":
        return ("tensorrt",)
    if suffix == ".xml" or any(file.glob("*.xml")):
        return ("openvino",)
    if any(file.glob("*.param")):
        return ("ncnn",)
    raise ValueError(
        f"model must be an .onnx or .engine file, or the folder of an OpenVINO or NCNN model, got {str(file)!r}."
    )


def engine_of(name: str) -> EngineName | type[Engine]:
    """As `fastyolo.runtime.Detector` takes it."""
    if name in ("onnxruntime", "openvino"):
        return name  # type: ignore[return-value]
    from fastyolo.integrations.ultralytics.backends import Ncnn, TensorRT

    return Ncnn if name == "ncnn" else TensorRT


def load(
    name: str, file: str | Path, *, imgsz: int | None, threads: int, device: str = "cpu", batch: int = 1
) -> Detect:
    """A checkpoint, for PyTorch with fastyolo's operators, or an exported file, ready to detect.

    Args:
        name: one of NAMES.
        file: checkpoint for PyTorch, or a file or folder that the runtime takes.
        imgsz: side of the square that images are letterboxed to; None: what the file says.
        threads: cores to use; PyTorch's number is set for the process.
        device: of PyTorch.
        batch: images per call.
    """
    if name != PYTORCH:
        from fastyolo.runtime import Detector

        return Detector(file, engine=engine_of(name), threads=threads, imgsz=imgsz).batch
    import torch

    from fastyolo.integrations.ultralytics.acceleration import YOLO, accelerate, predictor_of

    with quiet():
        model = accelerate(YOLO(file))
    predictor = predictor_of(model, imgsz=imgsz, rect=False, device=device, batch=batch, verbose=False, save=False)
    torch.set_num_threads(threads)  # which the predictor has set to a number of its own
    return lambda images: predictor(source=list(images))


def photograph(file: str | Path) -> npt.NDArray[Any] | None:
    """An image file, padded to a square; None: it cannot be read.

    Detectors with free sizes cut the padding of a wide image, and would have less to compute than the others.
    """
    import cv2

    image = cv2.imread(str(file))
    if image is None:
        return None
    height, width = image.shape[:2]
    side = max(height, width)
    return cv2.copyMakeBorder(image, 0, side - height, 0, side - width, cv2.BORDER_CONSTANT)


def num_bytes(file: Path) -> int:
    """Of a file, with OpenVINO's weights beside its .xml, or of all files of a folder."""
    if file.is_dir():
        return sum(path.stat().st_size for path in file.rglob("*") if path.is_file())
    parts = (file, file.with_suffix(".bin")) if file.suffix.lower() == ".xml" else (file,)
    return sum(path.stat().st_size for path in parts)
