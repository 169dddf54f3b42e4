# SPDX-License-Identifier: AGPL-3.0-or-later
"""What graphs cost: bytes of their files, and time in ONNX Runtime on this machine's processor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from random import Random
from typing import Any

import numpy as np
from onnx import ModelProto

from fastyolo.runtime.engines import onnx_session
from fastyolo.runtime.letterbox import Size

Make = Callable[[], ModelProto]

_AT_ONCE = 6  # graphs in turns with the reference: each holds weights and maps
_SECONDS = 1.5  # of each graph,
_ROUNDS = 10  # and at least so many turns


@dataclass(frozen=True)
class Latency:
    """Time of a run of one batch.

    Attributes:
        milliseconds: lower quartile, as a busy machine only adds to it.
        ratio: to that of the reference in the same turns.
    """

    milliseconds: float
    ratio: float


def latencies(
    reference: ModelProto, others: Mapping[str, Make], imgsz: Size, on_graph: Callable[[], None] = lambda: None
) -> dict[str, Latency]:
    """Times of graphs on this machine's processor, in turns with a reference.

    Args:
        reference: what the others are compared with.
        others: functions that make graphs; a few of these are held at a time.
        imgsz: height and width of the input in pixels.
        on_graph: called after each of the others.
    """
    names = iter(others)
    first = _run(reference, imgsz)
    found = {}
    while some := list(islice(names, _AT_ONCE)):
        samples = _samples([first, *(_run(others[name](), imgsz) for name in some)])
        base, *times = (statistics.quantiles(of_graph, method="inclusive")[0] for of_graph in samples)
        for name, own in zip(some, times, strict=True):
            found[name] = Latency(own * 1e3, own / base)
            on_graph()
    return found


def _samples(runs: Sequence[Callable[[], Any]]) -> list[list[float]]:
    """Seconds of each run, in turns of a random order: where cores are shared, some are taken away periodically."""
    for run in runs:
        run()
    samples: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    random = Random(0)
    deadline = time.perf_counter() + _SECONDS * len(runs)
    while time.perf_counter() < deadline or len(samples[0]) < _ROUNDS:
        random.shuffle(order)
        for index in order:
            start = time.perf_counter()
            runs[index]()
            samples[index].append(time.perf_counter() - start)
    return samples


def _run(model: ModelProto, imgsz: Size) -> Callable[[], Any]:
    runs = onnx_session(model.SerializeToString())
    (source,) = runs.get_inputs()
    batch = source.shape[0] if isinstance(source.shape[0], int) else 1
    image = np.random.default_rng(0).random((batch, 3, *imgsz), np.float32)
    return partial(runs.run, None, {source.name: image})
