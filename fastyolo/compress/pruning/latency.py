# SPDX-License-Identifier: AGPL-3.0-or-later
"""The latency of a network in ONNX Runtime on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fastyolo.bench.timing import Call, CpuContender, take_turns
from fastyolo.integrations.ultralytics.pruning import with_network
from fastyolo.runtime.engines import OnnxRuntime

SECONDS = 3.0  # of measuring for each network
MIN_ROUNDS = 10


class LatencyMeter:
    """Measures networks in turns with a reference, so that what else the machine does meets both alike.

    Args:
        model: the YOLO object that the networks are made from, with the reference as its network.
        imgsz: side of the input, in pixels.
        threads: of ONNX Runtime.

    Attributes:
        reference_ms: median milliseconds of a run of the reference for one image.
    """

    def __init__(self, model: Any, imgsz: int, threads: int) -> None:
        self._model, self._imgsz, self._threads = model, imgsz, threads
        self._image = np.random.default_rng(0).random((1, 3, imgsz, imgsz), dtype=np.float32)
        self._reference = self._run(model.model)
        samples = take_turns({"reference": CpuContender([self._reference])}, seconds=SECONDS, min_rounds=MIN_ROUNDS)
        self.reference_ms = float(np.median(samples["reference"])) * 1e3

    def ms(self, network: Any) -> float:
        """Milliseconds of a network: the median of its ratios to the reference in the same round, times that one's."""
        contenders = {"reference": CpuContender([self._reference]), "network": CpuContender([self._run(network)])}
        samples = take_turns(contenders, seconds=2 * SECONDS, min_rounds=MIN_ROUNDS)
        ratios = np.array(samples["network"]) / np.array(samples["reference"])
        return float(np.median(ratios)) * self.reference_ms

    def _run(self, network: Any) -> Call:
        from fastyolo.export import export

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.onnx"
            export(with_network(self._model, network), "onnx", outputs="maps", imgsz=self._imgsz, path=file)
            engine = OnnxRuntime(file, self._threads)
        return lambda: engine.run(self._image)
