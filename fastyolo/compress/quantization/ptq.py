# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a checkpoint or a float32 ONNX file to an INT8 one, with ranges from calibration."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, helper

from fastyolo._files import replacing
from fastyolo.compress.quantization import Calibrator, Method, Progress, Target, calibration, domain, qdq
from fastyolo.export import export
from fastyolo.runtime.letterbox import Size
from fastyolo.runtime.metadata import Metadata, QuantizationNote

PERCENTILE = 99.99  # of a map's values, which int8 reaches; 0.01 % are cut off


@dataclass(frozen=True)
class Float32:
    """A model that can be quantised.

    Attributes:
        graph: with its metadata.
        metadata: what it says of itself.
        imgsz: height and width in pixels to calibrate with.
    """

    graph: ModelProto
    metadata: Metadata
    imgsz: Size


@dataclass(frozen=True)
class Calibrated:
    """A model, where it is to be quantised and with which scales.

    Attributes:
        source: the model.
        plan: of its graph.
        scales: of the plan's groups.
        zero_points: of maps in uint8; None: of those in int8.
        note: for the file's metadata.
    """

    source: Float32
    plan: qdq.Plan
    scales: Sequence[float]
    note: QuantizationNote
    zero_points: Sequence[int] | None = None

    def quantized(self) -> ModelProto:
        graph = qdq.insert(self.source.graph, self.plan, self.scales, self.zero_points)
        properties = {entry.key: entry.value for entry in graph.metadata_props}
        helper.set_model_props(graph, properties | self.note.properties())
        return graph


def load(weights: str | Path, *, imgsz: Size | None = None, **settings: Any) -> Float32:
    """A checkpoint, by way of an export, or an ONNX file.

    Args:
        weights: a checkpoint or an ONNX file.
        imgsz: height and width to calibrate with. None: 640 for a checkpoint, and what an ONNX file says.
        settings: of `fastyolo.export.export`, for a checkpoint; None is the default of each.

    Raises:
        FileNotFoundError, ValueError: as `fastyolo.compress.quantize`.
    """
    arguments: dict[str, Any] = {"imgsz": imgsz, **settings}
    given = {name: value for name, value in arguments.items() if value is not None}
    if Path(weights).suffix.lower() != ".onnx":
        with tempfile.TemporaryDirectory(prefix="fastyolo-") as folder:
            file = export(weights, path=Path(folder) / "float32.onnx", **given)
            return _read(file, str(weights))  # which says what became of a size that is no multiple of the stride
    if not Path(weights).is_file():
        raise FileNotFoundError(f"The model {str(weights)!r} does not exist.")
    for name in given.keys() - {"imgsz"}:
        raise ValueError(f"{name} is for checkpoints, and built into {str(weights)!r}; leave it out.")
    return _read(Path(weights), str(weights), imgsz)


def _read(file: Path, name: str, imgsz: Size | None = None) -> Float32:
    try:
        graph = onnx.load(file)
        onnx.checker.check_model(graph)
    except Exception as error:  # protobuf and the checker have their own, which derive from Exception alone
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} is not an ONNX model, or is damaged ({reason}); export it again.") from error
    metadata = Metadata.read({entry.key: entry.value for entry in graph.metadata_props}, name)
    sides = [side.dim_value for side in graph.graph.input[0].type.tensor_type.shape.dim[2:]]
    size = imgsz or metadata.imgsz
    if any(side and side != wanted for side, wanted in zip(sides, size, strict=True)):
        raise ValueError(f"imgsz is built into {name} as {sides[0]}x{sides[1]}, got {size[0]}x{size[1]}; leave it out.")
    if any(side % metadata.max_stride for side in size):
        raise ValueError(f"imgsz must be multiples of {metadata.max_stride} for {name}, got {size[0]}x{size[1]}.")
    return Float32(graph, metadata, size)


def images_of(data: str | Path | Sequence[str | Path], count: int) -> list[Path]:
    """The images to calibrate on: of a data set's YAML file, those of its training.

    Raises:
        FileNotFoundError, ValueError: there are none, or less than eight.
    """
    if isinstance(data, str | Path) and Path(data).suffix.lower() in (".yaml", ".yml"):
        from fastyolo.integrations.ultralytics.data import training_images

        return calibration.choose_images(training_images(data), count)
    return calibration.choose_images(data, count)


def calibrated(
    source: Float32,
    images: Sequence[Path],
    *,
    method: Method,
    calibrator: Calibrator,
    target: Target = "tensorrt",
    keep_float: Sequence[str],
    cache: Path | None,
    on_image: Progress,
) -> Calibrated:
    """Ranges for the tensors that are to be int8, from images.

    Raises:
        ValueError, OSError: as `fastyolo.compress.quantize`.
    """
    for_onnxruntime = target == "onnxruntime"
    plan = qdq.plan(source.graph, keep_float=keep_float, activations=for_onnxruntime)
    known = {source.graph.graph.input[0].name: 255 * source.metadata.preprocessing.scale}
    known |= {node.output[0]: 1.0 for node in source.graph.graph.node if node.op_type == "Sigmoid"}
    tensors = [tensor for group in plan.sources for tensor in group if tensor not in known]
    found = calibration.calibrate(
        source.graph,
        tensors,
        images,
        source.imgsz,
        source.metadata.preprocessing,
        cache=cache,
        on_image=on_image,
    )
    for sentence in domain.of_values(found, tensors):
        warnings.warn(sentence, stacklevel=3)
    zero_points = None
    if for_onnxruntime:
        positive = {name: (0.0, largest) for name, largest in known.items()}
        scales, zero_points = qdq.asymmetric(plan, positive | found.intervals(calibrator, PERCENTILE))
    else:
        scales = qdq.scales(plan, known | found.ranges(calibrator, PERCENTILE))
    size = source.graph.ByteSize()
    note = QuantizationNote(method, calibrator, found.images, found.key, tuple(keep_float), size, target=target)
    return Calibrated(source, plan, scales, note, zero_points)


def write(model: ModelProto, target: Path) -> None:
    with replacing(target) as temporary:
        onnx.save(model, temporary)
