# SPDX-License-Identifier: AGPL-3.0-or-later
"""The latency of exported models in the runtimes of this machine's CPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fastyolo._machine import installed_version
from fastyolo.bench.timing import CpuContender, take_turns
from fastyolo.compress.pipeline.summary import RUNTIMES, Runtime
from fastyolo.runtime.engines import ENGINES

SECONDS = 2.0  # of measuring for each model
MIN_ROUNDS = 20

Key = TypeVar("Key")


def runtimes() -> list[Runtime]:
    """Those that are installed."""
    return [runtime for runtime in RUNTIMES if installed_version(runtime)]


def take_times(
    models: Mapping[Key, tuple[Path, Runtime]], imgsz: int, threads: int
) -> dict[Key, npt.NDArray[np.float64]]:
    """Milliseconds of the networks for one image, in turns, so that the samples of one index belong together.

    Args:
        models: ONNX files or folders of OpenVINO, and what runs them.
    """
    image = np.random.default_rng(0).random((1, 3, imgsz, imgsz), dtype=np.float32)
    contenders, names = {}, dict(enumerate(models))
    for index, key in names.items():
        file, runtime = models[key]
        contenders[str(index)] = CpuContender([partial(ENGINES[runtime](file, threads).run, image)])
    samples = take_turns(contenders, seconds=SECONDS * len(contenders), min_rounds=MIN_ROUNDS)
    return {key: np.array(samples[str(index)]) * 1e3 for index, key in names.items()}
