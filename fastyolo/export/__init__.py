# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checkpoints to files for other runtimes: ONNX, TensorRT, OpenVINO, NCNN. Light until something is exported."""

from __future__ import annotations

import errno
import importlib.util
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from fastyolo import _arguments
from fastyolo.export import folders

if TYPE_CHECKING:
    from fastyolo.integrations.ultralytics.export import YOLO, Form, Input
    from fastyolo.runtime.metadata import Nms, Outputs

__all__ = ["FORMATS", "PLUGINS", "Format", "Plugin", "export", "onnx_of", "target_of"]

Format = Literal["onnx", "tensorrt-onnx", "engine", "openvino", "ncnn"]
FORMATS: tuple[Format, ...] = get_args(Format)

Plugin = Literal["eca", "dw_sppf", "sppf_pool"]
PLUGINS: tuple[Plugin, ...] = get_args(Plugin)

# What each format can put out, its default first.
_OUTPUTS: dict[Format, tuple[Outputs, ...]] = {
    "onnx": ("maps", "boxes", "detections"),
    "tensorrt-onnx": ("detections", "maps", "boxes"),
    "engine": ("detections", "maps", "boxes"),
    "openvino": ("boxes",),
    "ncnn": ("boxes",),
}
_SUFFIXES: dict[Format, str] = {
    "onnx": ".onnx",
    "tensorrt-onnx": ".onnx",
    "engine": ".engine",
    "openvino": "_openvino_model",
    "ncnn": "_ncnn_model",
}
# What the folders of a format hold, ultralytics' own among them.
_FILES: dict[Format, frozenset[str]] = {
    "openvino": frozenset({"metadata.yaml", "model.bin", "model.xml"}),
    "ncnn": frozenset({"metadata.yaml", "model.ncnn.bin", "model.ncnn.param", "model_ncnn.py"}),
}
_PACKAGES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxslim"),
    "tensorrt-onnx": ("onnx", "onnxslim"),
    "engine": ("onnx", "onnxslim"),  # TensorRT itself is wanted when the ONNX file is there
    "openvino": ("openvino",),
    "ncnn": ("ncnn", "pnnx"),
}
_MAX_WORKSPACE = 1024  # GiB, more than any GPU has


def export(
    weights: str | Path | YOLO,
    format: Format = "onnx",  # noqa: A002 - ultralytics' name
    *,
    outputs: Outputs | None = None,
    imgsz: int | tuple[int, int] = 640,
    batch: int = 1,
    dynamic: bool = False,
    half: bool = False,
    conf: float | None = None,
    iou: float | None = None,
    max_det: int | None = None,
    multi_label: bool = False,
    agnostic_nms: bool = False,
    plugins: Sequence[Plugin] = (),
    runtime_thresholds: bool = False,
    workspace: float | None = None,
    timing_cache: str | Path | None = None,
    path: str | Path | None = None,
    on_onnx: Callable[[Path, Path], None] = lambda file, engine: None,
) -> Path:
    """Write a detection model for another runtime.

    Every file says by itself how to use it: `fastyolo.runtime.metadata.Metadata` and ultralytics' own entries.

    - onnx: ONNX's standard operators only.
    - tensorrt-onnx: for TensorRT with fastyolo's plugin library. Detections come from the plugin FastYoloDecodeNMS.
    - engine: that, which stays beside it, built by the `tensorrt` package for the GPU of this machine.
    - openvino, ncnn: a folder by ultralytics' exporter, whose output on a picture is then compared with torch's.

    Args:
        weights: a checkpoint of a detection model, or a `YOLO` object, which stays as it is.
        format: as above.
        outputs: "maps", "boxes" or "detections", see `fastyolo.runtime.metadata.output_names`. `None` means maps for
            onnx, detections for the two of TensorRT, and boxes for openvino and ncnn, which have no other.
        imgsz: side, or height and width, of the input in pixels. Rounded up to multiples of the model's largest stride.
        batch: images per run.
        dynamic: leave the batch, the height and the width of the input free. Those of an engine can be up to `batch`
            and `imgsz`, for which it is optimised.
        half: weights and maps in float16. Input and outputs stay float32, and boxes are decoded in float32.
        conf: for outputs "detections": score that a detection must exceed. `None` means 0.25.
        iou: for outputs "detections": IoU above which the lesser box is dropped. `None` means 0.7.
        max_det: for outputs "detections": rows of the result. `None` means 300.
        multi_label: for outputs "detections": report every class of an anchor above `conf`, not the best only, as
            validation does.
        agnostic_nms: for outputs "detections": let boxes suppress boxes of other classes.
        plugins: for the two formats of TensorRT: modules to put out as nodes of fastyolo's plugins.
        runtime_thresholds: for the two formats of TensorRT: add the input `thresholds` [2] float32 for score and IoU,
            in place of `conf` and `iou`.
        workspace: for engine: most scratch memory of a layer, GiB. `None` means all of the GPU's.
        timing_cache: for engine: a file of measurements that makes the next build faster; made if it is not there.
        path: of the file or folder, which replaces one that is there, but no folder that holds files of others. `None`
            means beside the checkpoint.
        on_onnx: for engine: called before the build, with the ONNX file, which is there, and the path of the engine.

    Returns:
        The path of the file or folder.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        TypeError: an argument is of another type.
        ValueError: an argument is not as above or not for this format or these outputs, or the model is none that can
            be exported.
        ImportError: a package that the format needs is missing.
        OSError: the path cannot be written.
        RuntimeError: the result of ultralytics' exporter does not agree with torch, or TensorRT refuses the model.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    outputs = _OUTPUTS[format][0] if outputs is None else outputs
    if outputs not in _OUTPUTS[format]:
        raise ValueError(f"outputs must be {' or '.join(_OUTPUTS[format])} for format {format!r}, got {outputs!r}.")
    imgsz = _arguments.size("imgsz", imgsz)
    batch = _arguments.integer("batch", batch, 1)
    _arguments.boolean("dynamic", dynamic)
    _arguments.boolean("half", half)
    _arguments.optional_path("path", path)
    _check_tensorrt(format, outputs, plugins, runtime_thresholds)
    _check_engine(format, workspace, timing_cache)
    nms = _nms(outputs, conf, iou, max_det, multi_label, agnostic_nms)
    if format == "ncnn" and (dynamic or batch > 1):
        raise ValueError("dynamic and batch are not for format 'ncnn', which runs one image of one size; drop them.")
    _require_packages(format)
    from fastyolo.integrations.ultralytics import export as ultralytics

    model = ultralytics.load(weights)
    target = target_of(model, format, path)
    size = _rounded(imgsz, int(model.model.stride.max()))
    given = ultralytics.Input(size, batch, dynamic, half)
    _require_writable(format, target)
    if format in _FILES:
        _convert(model, format, given, target)
        return target
    file = onnx_of(target) if format == "engine" else target
    _write_onnx(model, format, outputs, given, nms, plugins, runtime_thresholds, file)
    if format == "engine":
        from fastyolo.export import engine

        on_onnx(file, target)
        cache = Path(timing_cache) if timing_cache is not None else None
        engine.build(file, target, half=half, workspace=workspace, timing_cache=cache)
    return target


def target_of(model: YOLO, format: Format, path: str | Path | None = None) -> Path:  # noqa: A002
    """The file or folder that `export` writes.

    Raises:
        ValueError: `path` does not end as the format's files do.
    """
    suffix = _SUFFIXES[format]
    if path is not None:
        name = Path(path).name
        if not (name.lower() if suffix.startswith(".") else name).endswith(suffix):
            raise ValueError(f"path must end in {suffix!r} for format {format!r}, got {str(path)!r}.")
        return Path(path)
    from fastyolo.integrations.ultralytics.export import origin

    checkpoint = origin(model)
    engine = checkpoint.with_suffix(".engine")
    return onnx_of(engine) if format == "tensorrt-onnx" else checkpoint.with_name(f"{checkpoint.stem}{suffix}")


def onnx_of(engine: Path) -> Path:
    """The ONNX file that an engine is built from."""
    return engine.with_name(f"{engine.stem}-tensorrt.onnx")


def _write_onnx(
    model: YOLO,
    kind: Format,
    outputs: Outputs,
    given: Input,
    nms: Nms | None,
    plugins: Sequence[Plugin],
    runtime_thresholds: bool,
    target: Path,
) -> None:
    import onnx

    from fastyolo._files import replacing
    from fastyolo.export import graph
    from fastyolo.integrations.ultralytics import export as ultralytics

    network = ultralytics.deployed(model)
    metadata = ultralytics.metadata_of(network, outputs, given.imgsz, nms)
    properties = ultralytics.properties(network, metadata, given, graph.OPSET)
    by_plugin = kind != "onnx"
    form = _form(outputs, by_plugin)
    document = ultralytics.graph(network, form, given, graph.OPSET, plugins)
    if nms and by_plugin:
        graph.append_decode_nms(document, nms, metadata.strides, runtime_thresholds=runtime_thresholds)
    elif nms:
        graph.append_nms(document, nms)
    graph.finish(document, properties, portable=not by_plugin)
    with replacing(target) as temporary:
        onnx.save(document, temporary)


def _form(outputs: Outputs, by_plugin: bool) -> Form:
    if outputs != "detections":
        return outputs
    return "raw maps" if by_plugin else "candidates"


def _convert(model: YOLO, kind: Format, given: Input, target: Path) -> None:
    from fastyolo.integrations.ultralytics import export as ultralytics

    network = ultralytics.deployed(model)
    metadata = ultralytics.metadata_of(network, "boxes", given.imgsz, None)
    with tempfile.TemporaryDirectory(prefix=".fastyolo.", dir=target.parent) as name:
        scratch = Path(name).resolve()
        folder = ultralytics.convert(model, network, metadata, kind, given, scratch)
        _require_writable(kind, target)  # someone may have put notes there meanwhile
        folders.put(folder, target)


def _require_packages(kind: Format) -> None:
    missing = [package for package in _PACKAGES[kind] if importlib.util.find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"format {kind!r} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed; pip install {' '.join(missing)}."
        )


def _require_writable(kind: Format, target: Path) -> None:
    """Find out before the work of an export, and of a folder once more when it is to be replaced."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
        if kind in _FILES:
            folders.require_replaceable(target, _FILES[kind])
        elif target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
    except OSError as error:
        raise type(error)(f"path {str(target)!r} cannot be written ({error.strerror}); name another.") from error


def _check_tensorrt(kind: Format, outputs: Outputs, plugins: Sequence[Plugin], runtime_thresholds: bool) -> None:
    _arguments.choices("plugins", plugins, PLUGINS)
    _arguments.boolean("runtime_thresholds", runtime_thresholds)
    if (plugins or runtime_thresholds) and kind not in ("tensorrt-onnx", "engine"):
        name = "plugins" if plugins else "runtime_thresholds"
        raise ValueError(f"{name} is for the formats tensorrt-onnx and engine, got format {kind!r}; leave it out.")
    if runtime_thresholds and outputs != "detections":
        raise ValueError(f"runtime_thresholds is for outputs 'detections', got {outputs!r}; leave it out.")


def _check_engine(kind: Format, workspace: float | None, timing_cache: str | Path | None) -> None:
    for name, value in (("workspace", workspace), ("timing_cache", timing_cache)):
        if value is not None and kind != "engine":
            raise ValueError(f"{name} is for the format engine, got format {kind!r}; leave it out.")
    if workspace is not None:
        _arguments.number("workspace", workspace, 0, _MAX_WORKSPACE)
    _arguments.optional_path("timing_cache", timing_cache)


def _nms(
    outputs: Outputs,
    conf: float | None,
    iou: float | None,
    max_det: int | None,
    multi_label: bool,
    agnostic_nms: bool,
) -> Nms | None:
    multi_label = _arguments.boolean("multi_label", multi_label)
    agnostic_nms = _arguments.boolean("agnostic_nms", agnostic_nms)
    if outputs != "detections":
        numbers = {"conf": conf, "iou": iou, "max_det": max_det}
        flags = {"multi_label": multi_label or None, "agnostic_nms": agnostic_nms or None}
        for name, value in (numbers | flags).items():
            if value is not None:
                raise ValueError(f"{name} is for outputs 'detections', got {outputs!r}; leave it out.")
        return None
    from fastyolo.runtime.metadata import MAX_CANDIDATES, Nms

    return Nms(
        _arguments.number("conf", 0.25 if conf is None else conf, 0, 1),
        _arguments.number("iou", 0.7 if iou is None else iou, 0, 1),
        _arguments.integer("max_det", 300 if max_det is None else max_det, 1, 65536),
        MAX_CANDIDATES,
        multi_label,
        agnostic_nms,
    )


def _rounded(asked: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width, rounded up to multiples of `stride` as ultralytics does, with a warning."""
    height, width = (math.ceil(size / stride) * stride for size in asked)
    if (height, width) != asked:
        warnings.warn(
            f"imgsz {asked[0]}x{asked[1]} becomes {height}x{width}: sizes must be multiples of the stride {stride}.",
            stacklevel=3,
        )
    return height, width
