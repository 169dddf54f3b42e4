# SPDX-License-Identifier: AGPL-3.0-or-later
"""Latency of exported files in the runtimes that compute int8 on a CPU, in turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastyolo._machine import cores
from fastyolo.bench.timing import CpuContender, interleave
from fastyolo.runtime.engines import onnx_session, openvino_core, openvino_model

MIN_ROUNDS = 20


def latencies(files: dict[str, Path], imgsz: int, seconds: float) -> dict[str, float]:
    """Median milliseconds of a run, by "RUNTIME NAME"."""
    image = np.random.default_rng(0).random((1, 3, imgsz, imgsz), np.float32)
    contenders = {
        f"{runtime} {name}": CpuContender([load(file, image)])
        for runtime, load in RUNTIMES.items()
        for name, file in files.items()
        if runtime in runtimes_of(file)
    }
    timings = interleave(contenders, seconds=seconds, min_rounds=MIN_ROUNDS)
    return {name: round(timing.median_us / 1e3, 3) for name, timing in timings.items()}


def runtimes_of(file: Path) -> list[str]:
    """Those that read it: ONNX files both, and OpenVINO its own."""
    return [runtime for runtime in RUNTIMES if runtime == "openvino" or file.suffix == ".onnx"]


def in_onnxruntime(file: Path, image: np.ndarray[Any, Any]) -> Callable[[], Any]:
    return partial(onnx_session(file).run, None, {"images": image})


def in_openvino(file: Path, image: np.ndarray[Any, Any]) -> Callable[[], Any]:
    # What is not int8 in float32: OpenVINO takes bfloat16 by itself on a processor that is fast in it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cores()}
    return partial(openvino_core().compile_model(openvino_model(file), "CPU", settings), {0: image})


RUNTIMES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}
