# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an exported model file says of itself: how to prepare its input and what its outputs are.

The keys of ultralytics' exporters (names, stride, imgsz, task, ...) are there too, so that ultralytics reads such
files; those that it exported are understood by these keys alone.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

KEY = "fastyolo"  # in ONNX's metadata_props, OpenVINO's rt_info and metadata.yaml: the document below, as JSON
SCHEMA = 1
QUANTIZATION_KEY = "fastyolo_quantization"  # likewise, of INT8 models; apart, so that any fastyolo reads their files

Outputs = Literal["maps", "boxes", "detections"]

INPUT_NAME = "images"  # [B, 3, H, W] float32
THRESHOLDS_NAME = "thresholds"  # [2] float32, score and IoU, of models whose thresholds are set at run time

# Candidates of an image, by score, that NMS looks at: ultralytics' max_nms, which no setting changes.
MAX_CANDIDATES = 30000


def output_names(outputs: Outputs, levels: int) -> list[str]:
    """Names of a model's outputs, in order.

    - maps: raw outputs of the head's branches, box_maps_l [B, 4R, H_l, W_l] for each level, then cls_maps_l
      [B, C, H_l, W_l].
    - boxes: output0 [B, 4 + C, A], boxes xywh (centre, size) in input pixels, scores in [0, 1]; ultralytics' own form.
    - detections: what `decode_nms` returns. num_dets [B] int32, boxes [B, max_det, 4] float32 xyxy in input pixels,
      scores [B, max_det] float32, labels and indices [B, max_det] int32; past num_dets 0 and -1.
    """
    if outputs == "maps":
        return [f"{kind}_maps_{level}" for kind in ("box", "cls") for level in range(levels)]
    if outputs == "boxes":
        return ["output0"]
    return ["num_dets", "boxes", "scores", "labels", "indices"]


@dataclass(frozen=True)
class Preprocessing:
    """From an image to the network's input: letterbox, channel order, multiplication by `scale`.

    Attributes:
        color: order of the channels that the network was trained with.
        scale: factor on pixel values of 0 to 255.
        padding: pixel value of the letterbox's borders.
    """

    color: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1 / 255
    padding: int = 114


@dataclass(frozen=True)
class Nms:
    """The settings that are part of a model whose outputs are detections; as in `fastyolo.ops.decode_nms`."""

    score_threshold: float
    iou_threshold: float
    max_det: int
    max_candidates: int
    multi_label: bool
    class_agnostic: bool


@dataclass(frozen=True)
class Metadata:
    """What a model file says of itself.

    Attributes:
        outputs: what the model puts out (`output_names`).
        names: of the classes, by index.
        imgsz: height and width of the input in pixels; of a model with free sizes, those to letterbox to by default.
        strides: pixels per cell of each level; empty if the file does not say (ultralytics' files name the largest).
        max_stride: the largest; free sizes must be multiples of it.
        reg_max: bins of a side's distribution; 1 means distances. 0 if the file does not say.
        nms: for outputs "detections".
    """

    outputs: Outputs
    names: tuple[str, ...]
    imgsz: tuple[int, int]
    max_stride: int
    strides: tuple[int, ...] = ()
    reg_max: int = 0
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    nms: Nms | None = None

    def __post_init__(self) -> None:
        if self.outputs not in get_args(Outputs):
            raise ValueError(f"outputs must be one of {', '.join(get_args(Outputs))}, got {self.outputs!r}.")
        if self.outputs == "maps" and not (self.strides and self.reg_max):
            raise ValueError("strides and reg_max must be given for outputs 'maps'.")
        if (self.outputs == "detections") != (self.nms is not None):
            raise ValueError(f"nms must be given for outputs 'detections' and no other, got outputs {self.outputs!r}.")
        if self.max_stride < 1 or any(side < 1 for side in self.imgsz):
            raise ValueError(f"imgsz and max_stride must be positive, got {self.imgsz} and {self.max_stride}.")

    def properties(self) -> dict[str, str]:
        """The entries to write into a model file beside ultralytics' own."""
        return {KEY: json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True)}

    @staticmethod
    def read(properties: Mapping[str, Any], file: str) -> Metadata:
        """From the entries of a model file.

        Raises:
            ValueError: the entries are missing, damaged, of another fastyolo, or those of a model for another task.
        """
        try:
            return _own(properties[KEY]) if KEY in properties else _of_ultralytics(properties)
        except KeyError as error:
            raise ValueError(
                f"{file} does not say what model it is (its metadata has no {error.args[0]!r}); export it with "
                f"'fastyolo export' or with ultralytics."
            ) from error
        except _UnsuitableError as error:
            raise ValueError(f"{file} {error}") from error
        except (AttributeError, TypeError, ValueError, SyntaxError) as error:
            raise ValueError(
                f"{file} has metadata that cannot be read ({str(error).rstrip('.')}); export it again with "
                f"'fastyolo export'."
            ) from error


@dataclass(frozen=True)
class QuantizationNote:
    """How a model came to INT8, which nobody has to know to run it.

    Attributes:
        method: "ptq" or "qat".
        calibrator: what chose the ranges of the maps.
        images: that they were chosen on.
        calibration: a hash of the float32 graph, of these images and of the settings.
        keep_float: the layers that were left in float by request.
        float32_bytes: of the float32 file.
        snr: where layers were chosen by "auto:N", the ratio of signal to noise in the head's maps, in dB, with
            everything quantised and with these layers in float.
        target: the runtime that the quantisers stand in the right places for, "tensorrt" or "onnxruntime".
    """

    method: str
    calibrator: str
    images: int
    calibration: str
    keep_float: tuple[str, ...]
    float32_bytes: int
    snr: tuple[float, float] | None = None
    target: str = "tensorrt"

    def properties(self) -> dict[str, str]:
        """The entry to write into a model file."""
        return {QUANTIZATION_KEY: json.dumps(asdict(self), sort_keys=True)}


class _UnsuitableError(Exception):
    """What a file that can be read says of itself, and what to do: a sentence without its subject."""


_T = TypeVar("_T", Preprocessing, Nms, Metadata)


def _filled(kind: type[_T], entries: Mapping[str, Any]) -> _T:
    known = {item.name: item.default is MISSING and item.default_factory is MISSING for item in fields(kind)}
    if unknown := sorted(set(entries) - set(known)):
        raise _UnsuitableError(
            f"has entries in its metadata that this fastyolo does not know ({', '.join(unknown)}); update fastyolo, "
            f"or export it again."
        )
    for name, required in known.items():
        if required and name not in entries:
            raise KeyError(name)
    return kind(**entries)


def _own(text: str) -> Metadata:
    document = json.loads(text)
    schema = document.pop("schema")
    if schema != SCHEMA:
        raise _UnsuitableError(f"has metadata of schema {schema}, and this fastyolo reads {SCHEMA}; update fastyolo.")
    nms = document.pop("nms")
    return _filled(
        Metadata,
        {
            **document,
            "names": tuple(document["names"]),
            "imgsz": _pair(document["imgsz"]),
            "strides": tuple(document["strides"]),
            "preprocessing": _filled(Preprocessing, document["preprocessing"]),
            "nms": _filled(Nms, nms) if nms else None,
        },
    )


def _of_ultralytics(properties: Mapping[str, Any]) -> Metadata:
    task = properties["task"]
    if task != "detect":
        raise _UnsuitableError(f"is a model for the task {task!r}; pass one for detection.")
    channels = int(properties.get("channels", 3))
    if channels != 3:
        raise _UnsuitableError(f"takes images of {channels} channels; pass a model for colour images.")
    names = _literal(properties["names"])
    arguments = _literal(properties.get("args", "{}"))
    if _literal(properties.get("end2end", "False")) or arguments.get("nms"):
        raise _UnsuitableError(
            "puts out ultralytics' final detections; export it without nms=True, or with "
            "'fastyolo export --outputs detections'."
        )
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"names must number the classes from 0, got {sorted(names)}")
    return Metadata(
        outputs="boxes",
        names=tuple(names[index] for index in range(len(names))),
        imgsz=_pair(_literal(properties["imgsz"])),
        max_stride=int(properties["stride"]),
    )


def _literal(value: Any) -> Any:
    return ast.literal_eval(value) if isinstance(value, str) else value


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    height, width = sizes
    return int(height), int(width)
