# SPDX-License-Identifier: AGPL-3.0-or-later
"""Detection models in INT8, as ONNX with QuantizeLinear and DequantizeLinear. Light until something is quantised."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fastyolo import _arguments

if TYPE_CHECKING:
    from fastyolo.compress.quantization.ptq import Calibrated
    from fastyolo.runtime.metadata import Outputs

__all__ = ["CALIBRATORS", "METHODS", "Calibrator", "Method", "quantize", "target_of"]

Method = Literal["ptq", "qat"]
METHODS: tuple[Method, ...] = get_args(Method)

Calibrator = Literal["entropy", "percentile", "minmax"]
CALIBRATORS: tuple[Calibrator, ...] = get_args(Calibrator)

Target = Literal["tensorrt", "onnxruntime"]
TARGETS: tuple[Target, ...] = get_args(Target)

MIN_IMAGES = 8

# Arguments of a training that follow from those of `quantize`.
TAKEN = {"data", "exist_ok", "imgsz", "model", "name", "project", "resume", "save_dir"}

Progress = Callable[[int, int], None]


def quantize(
    weights: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    method: Method = "ptq",
    calibrator: Calibrator = "percentile",
    target: Target = "tensorrt",
    images: int = 300,
    keep_float: Sequence[str] = (),
    outputs: Outputs | None = None,
    imgsz: int | tuple[int, int] | None = None,
    dynamic: bool | None = None,
    path: str | Path | None = None,
    cache: str | Path | None = None,
    on_image: Progress = lambda done, total: None,
    save_dir: str | Path | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write a detection model in INT8, for TensorRT 10 and 11, OpenVINO and ONNX Runtime.

    Convolutions are computed in int8, with a scale for each output channel of a weight and one for each map, and what
    moves maps between them stays int8; `fastyolo.compress.quantization.qdq` says where exactly. Input and outputs stay
    float32, and the file says of itself what the float32 file said, so that whatever reads that reads this.

    Args:
        weights: a checkpoint, or an ONNX file of `fastyolo export` or of ultralytics, in float32.
        data: images to calibrate on: a folder, a glob, a list of files, or the YAML file of a data set, whose training
            images are taken.
        method: "ptq" chooses ranges for the model as it is. "qat" trains it for them; `weights` must be a checkpoint
            then, and `data` a YAML file.
        calibrator: how the range of a map is chosen. "percentile": so that all but 0.01 % of its values are inside;
            "entropy": by the least loss of information, which can cut off the few large values that small objects
            have; "minmax": so that all values are inside.
        target: "tensorrt": for TensorRT and OpenVINO, and correct but slower than float32 in ONNX Runtime on x86.
            "onnxruntime": maps in uint8 and more of them, which ONNX Runtime computes in integers throughout; TensorRT
            does not take it. For method "ptq".
        images: at most, from `data`. 100 to 500 are enough.
        keep_float: layers to leave in float, by the names of torch's modules: "model.4", "model.22.cv3.0". "auto:N"
            adds the N most sensitive ones, as `fastyolo.compress.sensitivity` ranks them.
        outputs: of a checkpoint: as `fastyolo.export.export` takes it. None: maps.
        imgsz: side, or height and width, of the input in pixels. None: 640 for a checkpoint; what an ONNX file says.
        dynamic: of a checkpoint: leave the batch, the height and the width free. None: no.
        path: of the ONNX file to write. None: that of `weights` with -int8.onnx at its end.
        cache: folder that keeps what calibration counted, so that it goes on after an interruption and need not be done
            again for the same model and images. None: fastyolo/calibration in the user's cache.
        on_image: called with the number of calibration images that are done, and of all.
        save_dir: for "qat": folder of the training's run; one that is there goes on. None: that of `path` without its
            suffix.
        training: for "qat": arguments of ultralytics and settings of fastyolo, as `fastyolo.train.Trainer` takes them.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: `weights` or `data` does not exist.
        TypeError: an argument is of another type.
        ValueError: an argument is not as above; less than eight images can be read; the model is no detection model,
            is quantised already, or is in float16; or no layer has a name in `keep_float`.
        ImportError: a package that this needs is missing.
        OSError: the path or the cache cannot be written.
    """
    _check(method, calibrator, target, keep_float, path, cache)
    count = _arguments.integer("images", images, MIN_IMAGES)
    size = None if imgsz is None else _arguments.size("imgsz", imgsz)
    written = target_of(weights, path)
    named, automatic = _automatic(keep_float)
    _check_training(method, weights, data, save_dir, training)
    _require_packages(method)
    from fastyolo.compress.quantization import domain, ptq

    form = {"outputs": outputs, "dynamic": dynamic}
    files = ptq.images_of(data, count)
    source = ptq.load(weights, imgsz=size, **form)
    domain.warn(weights, source, files)
    store = None if cache is None else Path(cache)
    calibrate = partial(
        ptq.calibrated, source, files, method=method, calibrator=calibrator, cache=store, on_image=on_image
    )
    if automatic:
        from fastyolo.compress.quantization.sensitivity import keep_worst

        kept = keep_worst(calibrate(keep_float=named), files, automatic, cache=store, on_part=on_image)
        found = calibrate(target=target, keep_float=(*named, *kept.names))
        found = replace(found, note=replace(found.note, snr=(kept.snr_before, kept.snr)))
    else:
        found = calibrate(target=target, keep_float=named)
    if method == "qat":
        folder = written.with_suffix("") if save_dir is None else Path(save_dir)
        found = _trained(found, str(weights), str(data), folder, training or {}, form)
    ptq.write(found.quantized(), written)
    return written


def _trained(
    found: Calibrated, weights: str, data: str, folder: Path, training: Mapping[str, Any], form: Mapping[str, Any]
) -> Calibrated:
    """The same with weights that were trained for these scales, if that gained anything."""
    from fastyolo.compress.quantization import ptq, qat, qdq
    from fastyolo.integrations.ultralytics import export, quantization

    keep_float = found.note.keep_float
    wanted = qat.quantization(found.source.graph, found.plan, found.scales, keep_float)
    given = {**training, "imgsz": max(found.source.imgsz)}
    best = quantization.train(export.load(weights), data, wanted, folder, given)
    source = ptq.load(best, imgsz=found.source.imgsz, **form)
    plan = qdq.plan(source.graph, keep_float=keep_float)
    return replace(found, source=source, plan=plan, scales=wanted.scales(plan))


def target_of(weights: str | Path, path: str | Path | None = None) -> Path:
    """The file that `quantize` writes.

    Raises:
        ValueError: `path` does not end in .onnx, or is that of `weights`.
    """
    _arguments.path("weights", weights)
    _arguments.optional_path("path", path)
    if path is None:
        return Path(weights).with_name(f"{Path(weights).stem}-int8.onnx")
    if Path(path).suffix.lower() != ".onnx":
        raise ValueError(f"path must end in '.onnx', got {str(path)!r}.")
    if Path(path).resolve() == Path(weights).resolve():
        raise ValueError(f"path must be another file than weights, got {str(path)!r} for both.")
    return Path(path)


def _check(
    method: str,
    calibrator: str,
    target: str,
    keep_float: Sequence[str],
    path: str | Path | None,
    cache: str | Path | None,
) -> None:
    choices = {"method": (method, METHODS), "calibrator": (calibrator, CALIBRATORS), "target": (target, TARGETS)}
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    if method == "qat" and target != "tensorrt":
        raise ValueError(f"target {target!r} is for method 'ptq', got method 'qat'; leave one of them out.")
    is_list = isinstance(keep_float, Sequence) and not isinstance(keep_float, str)
    if not (is_list and all(isinstance(layer, str) for layer in keep_float)):
        raise TypeError(f"keep_float must be a list of names of layers, got {keep_float!r}.")
    _arguments.optional_path("path", path)
    _arguments.optional_path("cache", cache)


def _automatic(keep_float: Sequence[str]) -> tuple[list[str], int]:
    """The names among `keep_float`, and the number of layers to choose, 0 without "auto:N"."""
    names = [name for name in keep_float if not name.startswith("auto")]
    counts = [re.fullmatch(r"auto:([1-9]\d*)", name) for name in keep_float if name.startswith("auto")]
    if len(counts) > 1 or None in counts:
        raise ValueError(
            f"keep_float must have 'auto:N' once, with a number of layers as in 'auto:2', got {list(keep_float)!r}."
        )
    return names, int(counts[0][1]) if counts and counts[0] else 0


def _check_training(method: Method, weights: Any, data: Any, save_dir: Any, training: Any) -> None:
    _arguments.optional_path("save_dir", save_dir)
    if method == "ptq":
        for name, value in (("save_dir", save_dir), ("training", training)):
            if value is not None:
                raise ValueError(f"{name} is for method 'qat', got method 'ptq'; leave it out.")
        return
    if Path(weights).suffix.lower() != ".pt":
        raise ValueError(f"weights must be a checkpoint (.pt) for method 'qat', got {str(weights)!r}.")
    if not isinstance(data, str | Path) or Path(data).suffix.lower() not in (".yaml", ".yml"):
        raise ValueError(f"data must be the YAML file of a data set for method 'qat', got {str(data)!r}.")
    if taken := sorted(TAKEN & set(training or {})):
        raise ValueError(f"training (--set) must not hold {', '.join(taken)}, which other arguments of quantize tell.")


def _require_packages(method: Method) -> None:
    wanted = {"onnx": "onnx", "onnxruntime": "onnxruntime"} | (
        {"modelopt": "nvidia-modelopt"} if method == "qat" else {}
    )
    missing = [package for module, package in wanted.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(f"method {method!r} needs {' and '.join(missing)}; pip install {' '.join(missing)}.")
