# SPDX-License-Identifier: AGPL-3.0-or-later
"""NCNN models and TensorRT engines, run by ultralytics' AutoBackend as engines of `fastyolo.runtime.Detector`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ultralytics.nn.autobackend import AutoBackend

from fastyolo.integrations.tensorrt import load_plugins
from fastyolo.runtime.metadata import THRESHOLDS_NAME, Metadata, output_names

__all__ = ["Ncnn", "TensorRT"]


class _Backend:
    """As `fastyolo.runtime.engines.Engine`; the metadata are those that ultralytics writes with the model.

    Raises:
        ValueError: the file cannot be loaded.
    """

    device = "cpu"

    def __init__(self, file: Path, threads: int, callers: int = 1) -> None:
        try:
            self._backend = AutoBackend(str(file), device=torch.device(self.device), verbose=False)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # each runtime has its own
            reason = " ".join(str(error).split())
            raise ValueError(f"{file} cannot be loaded ({reason}); export it again.") from error
        self.properties: Mapping[str, Any] = self._backend.metadata or {}
        self._metadata = metadata = Metadata.read(self.properties, str(file))
        self._lock = Lock()  # there is one set of buffers
        self._names = output_names(metadata.outputs, len(metadata.strides))
        self.output_shapes: list[list[int | None]] = [[] for _ in self._names]  # which AutoBackend does not tell
        fixed = [int(self.properties.get("batch", 1)), 3, *metadata.imgsz]
        self.input_shapes: list[list[int | None]] = [[None, 3, None, None] if self._backend.dynamic else [*fixed]]

    def run(self, tensor: npt.NDArray[np.float32]) -> list[npt.NDArray[Any]]:
        """The outputs in the order of `output_names`; AutoBackend's are in that of their names' letters."""
        with self._lock, torch.inference_mode():
            outputs = self._backend(torch.from_numpy(tensor).to(self._backend.device))
            values = outputs if isinstance(outputs, (list, tuple)) else [outputs]
            by_name = dict(zip(sorted(self._names), values, strict=True))
            arrays = [by_name[name].cpu().numpy() for name in self._names]
        return [array.astype(np.float32) if array.dtype == np.float16 else array for array in arrays]


class Ncnn(_Backend):
    """The folder of an NCNN model.

    Raises:
        ModuleNotFoundError: the package ncnn is missing.
    """

    def __init__(self, file: Path, threads: int, callers: int = 1) -> None:
        if find_spec("ncnn") is None:  # which ultralytics would install by itself
            raise ModuleNotFoundError(f"{file} needs the package ncnn, which is not installed; pip install ncnn.")
        super().__init__(file, threads, callers)
        self._backend.net.opt.num_threads = threads  # from the next run on


class TensorRT(_Backend):
    """A TensorRT engine, with or without fastyolo's plugins.

    Raises:
        ModuleNotFoundError: the package tensorrt is missing.
        ValueError: there is no GPU.
    """

    device = "cuda:0"

    def __init__(self, file: Path, threads: int, callers: int = 1) -> None:
        if not torch.cuda.is_available():
            raise ValueError(
                f"{file} runs on a GPU, and torch sees none; verify it on the machine that it was built for."
            )
        if b"FastYolo" in file.read_bytes():  # the names of its plugins
            load_plugins()
        super().__init__(file, threads, callers)
        nms = self._metadata.nms
        bindings = self._backend.backend.bindings
        if nms and THRESHOLDS_NAME in bindings:  # which AutoBackend, that knows of images alone, leaves as memory was
            bindings[THRESHOLDS_NAME].data.copy_(torch.tensor([nms.score_threshold, nms.iou_threshold]))
