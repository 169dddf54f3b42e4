# SPDX-License-Identifier: AGPL-3.0-or-later
"""The libraries that run a network on a CPU, behind one interface. Each is imported when it is asked for."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fastyolo._machine import cores
from fastyolo.runtime.letterbox import Float32
from fastyolo.runtime.unsigned import readable

EngineName = Literal["onnxruntime", "openvino"]

_AGAIN = "export it again with 'fastyolo export'"


class Engine(Protocol):
    """A loaded network.

    Attributes:
        properties: what the file says of itself.
        input_shapes: of each input; None: free.
        output_shapes: of each output; None: free. Empty where the library does not say.
    """

    properties: Mapping[str, Any]
    input_shapes: list[list[int | None]]
    output_shapes: list[list[int | None]]

    def __init__(self, file: Path, threads: int, callers: int = 1) -> None:
        """Load `file` for `callers` threads that run it at the same time, with `threads` cores for all of them."""

    def run(self, tensor: Float32) -> list[npt.NDArray[Any]]:
        """The outputs, in the file's order; those of float16 as float32."""


def onnx_session(model: Path | bytes, threads: int | None = None) -> Any:
    """An onnxruntime.InferenceSession on the CPU, with so many of its cores, by default all that this process has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: warnings tell of outputs without a declared type
    options.intra_op_num_threads = threads or cores()
    # Threads that wait for work by spinning take the cores from reading, from drawing and from other programs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxRuntime:
    def __init__(self, file: Path, threads: int, callers: int = 1) -> None:
        if file.is_dir() or file.suffix.lower() == ".xml":
            raise ValueError(f"{file} is not an ONNX file; run OpenVINO's with engine='openvino'.")
        try:
            self._session = onnx_session(file, max(threads // callers, 1))
        except ImportError:
            raise
        except Exception as error:  # its own classes, which derive from Exception alone
            raise ValueError(_unloadable(file, "ONNX Runtime", error)) from error
        inputs = self._session.get_inputs()
        if not inputs:
            raise ValueError(f"{file} must take an image, but has no inputs; {_AGAIN}.")
        self._input, self._dtype = inputs[0].name, _NUMPY.get(inputs[0].type)
        if self._dtype is None:
            raise ValueError(f"{file} must take float32 or float16, got an input of {inputs[0].type}; {_AGAIN}.")
        self.properties = self._session.get_modelmeta().custom_metadata_map
        self.input_shapes = [_sides(item.shape) for item in inputs]
        self.output_shapes = [_sides(item.shape) for item in self._session.get_outputs()]

    def run(self, tensor: Float32) -> list[npt.NDArray[Any]]:
        outputs = self._session.run(None, {self._input: tensor.astype(self._dtype, copy=False)})
        return [_float32(output) for output in outputs]


class OpenVino:
    """Reads OpenVINO's folders and .xml files, and ONNX files, those in int8 with the package onnx."""

    def __init__(self, file: Path, threads: int, callers: int = 1) -> None:
        try:
            model = openvino_model(_xml(file) if file.is_dir() else file)
            self._model = openvino_core().compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_NUM_THREADS": threads,
                    "NUM_STREAMS": callers,
                    # On processors with bfloat16, the default is not what the model was exported in.
                    "INFERENCE_PRECISION_HINT": "f32",
                },
            )
        except RuntimeError as error:
            raise ValueError(_unloadable(file, "OpenVINO", error)) from error
        self.properties = _openvino_properties(model, file)
        self.input_shapes, self.output_shapes = (
            [_openvino_sides(item.partial_shape) for item in items] for items in (model.inputs, model.outputs)
        )
        self._of_thread = threading.local()

    def run(self, tensor: Float32) -> list[npt.NDArray[Any]]:
        if not hasattr(self._of_thread, "request"):  # a request is for one caller at a time
            self._of_thread.request = self._model.create_infer_request()
        outputs = self._of_thread.request.infer({0: tensor})
        return [_float32(outputs[index]) for index in range(len(self.output_shapes))]


@functools.cache
def openvino_core() -> Any:
    """The process's one openvino.Core.

    On processors with AMX, each Core gives the thread a stack for signal handlers, and puts its predecessor's back when
    it is deleted, whether that is still there or not: after two that overlapped, Ctrl-C can be a segmentation fault.
    """
    import openvino

    return openvino.Core()


def openvino_model(file: Path) -> Any:
    """A file as openvino.Model; an ONNX graph in int8 as OpenVINO computes it rightly, see `fastyolo.runtime.unsigned`.

    Raises:
        ModuleNotFoundError: the graph is in int8, and the package onnx is missing.
    """
    source = readable(file)
    return openvino_core().read_model(*((source, b"") if isinstance(source, bytes) else (source,)))


ENGINES: dict[EngineName, type[Engine]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}

_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def _sides(shape: Sequence[Any]) -> list[int | None]:
    """Of ONNX Runtime, whose free sides are names, None or negative."""
    return [side if isinstance(side, int) and side > 0 else None for side in shape]


def _openvino_sides(shape: Any) -> list[int | None]:
    return [side.get_length() if side.is_static else None for side in shape] if shape.rank.is_static else []


def _float32(output: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return output.astype(np.float32) if output.dtype == np.float16 else output


def _unloadable(file: Path, runtime: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if "fastyolo" in reason and "FastYolo" in reason:
        return f"{file} has nodes that only TensorRT's plugins run, not {runtime}; export it with --format onnx."
    return f"{file} is not a model that {runtime} can load, or is damaged ({reason}); {_AGAIN}."


def _xml(folder: Path) -> Path:
    files = sorted(folder.glob("*.xml"))
    if not files and any(folder.glob("*.param")):
        raise ValueError(f"{folder} is a model for NCNN; export it with --format openvino or onnx to run it here.")
    if len(files) != 1:
        raise ValueError(f"{folder} must hold one .xml file of OpenVINO, got {len(files)}; {_AGAIN}.")
    return files[0]


def _openvino_properties(model: Any, file: Path) -> Mapping[str, Any]:
    """What ultralytics writes beside the .xml, or ONNX's metadata_props, which OpenVINO keeps."""
    if file.suffix.lower() == ".onnx":
        info = model.get_rt_info()
        return {key: value.astype(str) for key, value in info["framework"].items()} if "framework" in info else {}
    import yaml  # type: ignore[import-untyped]

    metadata = (file if file.is_dir() else file.parent) / "metadata.yaml"
    if not metadata.is_file():
        raise ValueError(f"{file} needs its metadata.yaml beside it to say what model it is; {_AGAIN}.")
    try:
        document = yaml.safe_load(metadata.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} has a metadata.yaml that is damaged; {_AGAIN}.") from error
    return document if isinstance(document, dict) else {}
