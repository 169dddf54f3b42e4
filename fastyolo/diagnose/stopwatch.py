# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the time of repeated work goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.profiler import record_function

OTHER = "other"


class Stopwatch:
    """Seconds by stage, round by round. A stage does not count what runs in stages inside it.

    Stages show in what torch.profiler records meanwhile. On a GPU it waits for the device wherever a stage begins or
    ends, so that time counts where the work was asked for; copies and kernels then no longer overlap with the host's
    work.

    Attributes:
        device: as given.
        rounds: finished rounds, the seconds of each stage; OTHER is what was in none.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.rounds: list[dict[str, float]] = []
        self.device = device
        self._clock = clock
        self._open: list[tuple[str, record_function]] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._since = clock()

    def start(self) -> None:
        """Begin a round, and forget what ran since the last."""
        self._tick()
        self._seconds.clear()

    def lap(self) -> None:
        """End a round and begin the next; stages that are open go on in it."""
        self._tick()
        self.rounds.append(dict(self._seconds))
        self._seconds.clear()

    @property
    def current(self) -> str:
        """The stage that was entered last and is open, or OTHER."""
        return self._open[-1][0] if self._open else OTHER

    def enter(self, stage: str) -> None:
        self._tick()
        mark = record_function(stage)
        mark.__enter__()  # type: ignore[no-untyped-call]
        self._open.append((stage, mark))

    def leave(self, stage: str) -> None:
        """
        Raises:
            RuntimeError: another stage was entered last.
        """
        self._tick()
        if self.current != stage:
            raise RuntimeError(f"stage must be {self.current!r}, which was entered last, got {stage!r}.")
        self._open.pop()[1].__exit__(None, None, None)

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        self.enter(stage)
        try:
            yield
        finally:
            self.leave(stage)

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose calls are a stage."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(stage):
                return function(*args, **kwargs)

        return call

    def _tick(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = self._clock()
        self._seconds[self.current] += now - self._since
        self._since = now
