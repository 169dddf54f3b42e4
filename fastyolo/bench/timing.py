# SPDX-License-Identifier: AGPL-3.0-or-later
"""Times of calls, taken in turns so that a slow moment of the machine meets every contender alike."""

from __future__ import annotations

import ctypes
import random
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastyolo._quiet import silent_profiler

Call = Callable[[], Any]

VISITS = 8
_SLOW = 0.1  # seconds of a call, from which on one is enough to warm up
_GRAPH_SECONDS = 1e-3  # of the calls in a graph, whose own launch takes some microseconds
_MAX_PASSES = 16
_WARM_UPS = 3
_SHORT = 0.01  # seconds of a call, up to which what ran before it shows: in the caches, and in threads that sleep


@dataclass(frozen=True)
class Timing:
    """Microseconds per call: median and quartiles over the samples, and the medians of the visits or parts of them.

    Contenders that took turns have the same parts, so that what slowed the machine down for a while shows in all.
    """

    median_us: float
    low_us: float
    high_us: float
    samples: int
    parts_us: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        numbers = asdict(self)
        parts = [round(value, 2) for value in numbers.pop("parts_us")]
        return {**{name: round(value, 2) for name, value in numbers.items()}, "parts_us": parts}


class Contender(ABC):
    """Calls of one implementation on several inputs, one after the other.

    Attributes:
        mode: "call", or on CUDA "graph" or "stream".
    """

    mode: str

    @abstractmethod
    def sample(self) -> float:
        """Seconds per call."""


class CpuContender(Contender):
    mode = "call"

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._next = 0

    def sample(self) -> float:
        call = self._calls[self._next]
        self._next = (self._next + 1) % len(self._calls)
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


class CudaContender(Contender):
    """Device time of passes over all inputs, between two events; as one graph if the calls can be captured.

    Sets of inputs that together exceed the L2 cache, and the results of a pass, which have memory of their own, have
    each call find its input in memory as it would in a pipeline. Of a single set, what fits the cache stays there.

    Args:
        calls: one for each set of inputs.
        capturable: whether a graph should hold them.
        required: whether it is an error if it cannot; if not, they go to the stream one by one, as `mode` says.
    """

    def __init__(self, calls: Sequence[Call], capturable: bool, required: bool = True) -> None:
        self._calls = calls
        self._timed = len(calls)
        self.mode = "stream"
        if capturable:
            try:
                passes = _passes(calls)
                self._calls = [_captured(calls, passes)]
                self._timed *= passes
                self.mode = "graph"
            except RuntimeError:
                if required:
                    raise
                torch.cuda.synchronize()

    def sample(self) -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        if self.mode == "graph":  # busy with it, the device waits for no launch of what is timed
            self._run()
        start.record()
        self._run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / self._timed

    def _run(self) -> None:
        for call in self._calls:
            call()


def _passes(calls: Sequence[Call]) -> int:
    """How many in a graph take long enough that what a graph costs by itself is nothing beside them."""
    for _ in range(_WARM_UPS):
        calls[0]()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for call in calls:
        call()
    torch.cuda.synchronize()
    return max(1, min(round(_GRAPH_SECONDS / (time.perf_counter() - start)), _MAX_PASSES))


def _captured(calls: Sequence[Call], passes: int) -> Call:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    results = deque[Any](maxlen=len(calls))  # freed at once, one result's memory would be the next one's, in the cache
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(passes):
            for call in calls:
                results.append(call())
    return graph.replay


def interleave(contenders: Mapping[str, Contender], *, seconds: float, min_rounds: int) -> dict[str, Timing]:
    """Sample the contenders in turns for `seconds` and at least `min_rounds` rounds; see `take_turns`."""
    samples = take_turns(contenders, seconds=seconds, min_rounds=min_rounds)
    return {name: _timing(values, medians_of_parts(values)) for name, values in samples.items()}


def visit_in_turns(
    groups: Sequence[Mapping[str, Contender]],
    *,
    seconds: float,
    visits: int = VISITS,
    min_visits: int,
    on_visit: Callable[[int], None] = lambda index: None,
    on_failure: Callable[[int, Exception], None],
) -> list[dict[str, Timing]]:
    """`interleave` for several groups, in `visits` with all other groups in between, so that they lie minutes apart.

    The parts of the timings are the visits. A group whose time is used up has no more of them than `min_visits`;
    `on_visit` is called before each with the index of the group. A group in which a call fails has no timings:
    `on_failure` is called with its index and the error.
    """
    failed: set[int] = set()
    taken: list[list[dict[str, list[float]]]] = [[] for _ in groups]
    spent = [0.0] * len(groups)
    for visit in range(visits):
        for index, group in enumerate(groups):
            if index in failed or (visit >= min_visits and spent[index] > seconds):
                continue
            on_visit(index)
            start = time.perf_counter()
            try:
                taken[index].append(take_turns(group, seconds=seconds / visits, min_rounds=1))
            except Exception as error:  # of whatever a contender calls
                failed.add(index)
                on_failure(index, error)
            spent[index] += time.perf_counter() - start
    return [
        {
            name: _timing([value for part in parts for value in part[name]], [np.median(part[name]) for part in parts])
            for name in group
        }
        if index not in failed
        else {}
        for index, (group, parts) in enumerate(zip(groups, taken, strict=True))
    ]


def take_turns(contenders: Mapping[str, Contender], *, seconds: float, min_rounds: int) -> dict[str, list[float]]:
    """Seconds per call of each contender, a sample in each round.

    Each round has another order, in which none follows itself; and a short call is made twice, of which the second is
    timed. So all are timed warm, whoever ran before.
    """
    last: dict[str, float] = {}
    for name, contender in contenders.items():
        if contender.sample() < _SLOW:
            last[name] = contender.sample()
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    orders = _orders([*contenders])
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or min(map(len, samples.values())) < min_rounds:
        for name in next(orders):
            if last.get(name, _SLOW) < _SHORT:
                contenders[name].sample()
            last[name] = contenders[name].sample()
            samples[name].append(last[name])
    return samples


def _orders(names: Sequence[str]) -> Iterator[list[str]]:
    """Of all names, at random, the same every time."""
    generator = random.Random(0)
    previous = ""
    while True:
        order = generator.sample(names, len(names))
        if order[0] == previous:
            order.append(order.pop(0))
        previous = order[-1]
        yield order


def _timing(samples: Sequence[float], parts: Sequence[float]) -> Timing:
    low, median, high = (np.quantile(samples, (0.25, 0.5, 0.75)) * 1e6).tolist()
    return Timing(median, low, high, len(samples), tuple(float(value) * 1e6 for value in parts))


def medians_of_parts(samples: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Of VISITS consecutive parts, or of each sample where there are fewer."""
    return [float(np.median(part)) for part in np.array_split(samples, min(VISITS, len(samples)))]


def keep_freed_memory() -> None:
    """CPU: have the allocator keep what is freed, as it does on its own below 32 MB.

    Larger results would be new pages of the system at every call or not, depending on what ran before, and to zero
    those takes longer than most operators. Only glibc's allocator is known to need this, and to offer it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def memory_passes(num_bytes: int) -> dict[str, Contender]:
    """CPU: what moves so many bytes with all threads: a reading of an array, and a copy of one of half the size."""
    elements = max(num_bytes // 4, 2)
    source, target = torch.zeros(elements), torch.empty(elements // 2)
    half = source[: elements // 2]
    return {"read": CpuContender([source.amax]), "copy": CpuContender([lambda: target.copy_(half)])}


def copy_bandwidth() -> float:
    """CUDA: bytes per second, read and written, of a copy of 1 GB."""
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    copy = CudaContender([lambda: target.copy_(source)], capturable=True)
    return 2 * source.nbytes / interleave({"copy": copy}, seconds=0.2, min_rounds=10)["copy"].median_us * 1e6


def peak_extra_bytes(call: Call, device: torch.device) -> int:
    """Memory that `call` holds at its peak, its result included, beyond what was allocated before."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        silent_profiler(),
        torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile,
    ):
        call()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
