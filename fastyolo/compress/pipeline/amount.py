# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much has to be pruned for the file to ship to meet its targets.

Candidates are pruned without training and brought into the form that ships, INT8 included, whose size and latency do
not depend on the weights. So nothing is extrapolated from float32; only what the machine does meanwhile is uncertain.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastyolo._quiet import quiet
from fastyolo.compress.pipeline.latency import take_times
from fastyolo.compress.pipeline.settings import Options
from fastyolo.compress.pruning import prune
from fastyolo.compress.pruning.run import UnreachableTargetError
from fastyolo.compress.quantization import MIN_IMAGES, quantize
from fastyolo.export import export

STEP = 0.05  # of the FLOPs, between the amounts that are tried
MARGIN = 0.05  # of the latency that is asked for, which another measurement may come out higher by


@dataclass(frozen=True)
class Amount:
    """How much to prune.

    Attributes:
        flops: the share of the FLOPs to remove; None: the targets are met without pruning.
        note: what was found, or why a target cannot be met.
    """

    flops: float | None
    note: str

    def as_result(self) -> dict[str, Any]:
        return {**asdict(self), "files": []}


def find(weights: Path, prunable: Callable[[], Path], options: Options, say: Callable[[str], None]) -> Amount:
    """The least amount, in steps of STEP, with which the targets are met that can be; `options.flops` if none can.

    Args:
        weights: of the model as it is.
        prunable: makes what channels are to be removed from, a training perhaps; called if some have to be.
        say: called with a line for each candidate.
    """
    with tempfile.TemporaryDirectory(prefix="fastyolo-") as folder:
        return _Search(weights, prunable, options, Path(folder), say).amount()


@contextmanager
def _silence() -> Iterator[None]:
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of networks that are not trained
        yield


@dataclass(frozen=True)
class _Cost:
    """Of a file: megabytes, and milliseconds in the runtime; None: not asked for."""

    size: float
    latency: float | None

    def __str__(self) -> str:
        return f"{self.size:.2f} MB" + ("" if self.latency is None else f", {self.latency:.1f} ms")


class _Search:
    def __init__(
        self, weights: Path, prunable: Callable[[], Path], options: Options, folder: Path, say: Callable[[str], None]
    ) -> None:
        self._prunable, self._options, self._folder, self._say = prunable, options, folder, say
        self._reference_ms: float | None = None
        self._costs: dict[float, _Cost | None] = {}  # of the candidates, by their share; None: so much cannot go
        self._reference = self._shipped(weights, "reference")

    def amount(self) -> Amount:
        options = self._options
        if options.target_latency is not None:
            times = take_times({"reference": (self._reference, options.runtime)}, options.imgsz, options.threads)
            self._reference_ms = float(np.median(times["reference"]))
        whole = _Cost(self._reference.stat().st_size / 1e6, self._reference_ms)
        self._say(f"Without pruning: {whole}")
        missed = {target: met for target, met in self._targets().items() if not met(whole)}
        if not missed:
            return Amount(None, f"The targets are met without pruning ({whole}).")
        least = {target: self._least(met) for target, met in missed.items()}
        share = max((share for share in least.values() if share is not None), default=options.flops)
        if None not in least.values():
            return Amount(share, f"An untrained candidate came to {self._costs[share]}.")
        beyond = " and ".join(target for target, share in least.items() if share is None)
        reached = "little can be removed"
        if known := [tried for tried, cost in self._costs.items() if cost]:
            reached = f"with {max(known):.0%} of the FLOPs removed it is {self._costs[max(known)]}"
        return Amount(share, f"Pruning cannot meet the target of {beyond}: {reached}.")

    def _targets(self) -> dict[str, Callable[[_Cost], bool]]:
        """Whether a cost meets each of the targets."""
        size, latency = self._options.target_size, self._options.target_latency
        tests: dict[str, Callable[[_Cost], bool]] = {}
        if size is not None:
            tests["size"] = lambda cost: cost.size <= size
        if latency is not None:
            tests["latency"] = lambda cost: cost.latency is not None and cost.latency <= latency * (1 - MARGIN)
        return tests

    def _least(self, met: Callable[[_Cost], bool]) -> float | None:
        """The least share with which a target is met; None if there is none."""
        shares = [round(STEP * step, 2) for step in range(1, round(1 / STEP))]
        low, high = 0, len(shares)
        while low < high:  # the least that meets it, or is more than can be removed
            middle = (low + high) // 2
            cost = self._cost(shares[middle])
            if cost is None or met(cost):
                high = middle
            else:
                low = middle + 1
        return shares[high] if high < len(shares) and self._costs[shares[high]] else None

    def _cost(self, share: float) -> _Cost | None:
        """Of a candidate, which is made once; None if so much cannot be removed."""
        if share not in self._costs:
            self._costs[share] = cost = self._measured(share)
            self._say(f"{share:.0%} of the FLOPs removed: {cost or 'more than can be removed'}")
        return self._costs[share]

    def _measured(self, share: float) -> _Cost | None:
        options = self._options
        weights, pruned = self._prunable(), self._folder / "pruned.pt"
        try:
            with _silence():
                prune(weights, flops=share, imgsz=options.imgsz, path=pruned)
        except UnreachableTargetError:
            return None
        file = self._shipped(pruned, "candidate")
        latency = None
        if self._reference_ms is not None:
            models = {"reference": (self._reference, options.runtime), "candidate": (file, options.runtime)}
            times = take_times(models, options.imgsz, options.threads)
            latency = float(np.median(times["candidate"] / times["reference"])) * self._reference_ms
        return _Cost(file.stat().st_size / 1e6, latency)

    def _shipped(self, weights: Path, name: str) -> Path:
        """A model in the form that ships; its ranges are of no matter."""
        options = self._options
        file = self._folder / f"{name}.onnx"
        with _silence():
            if not options.wants("int8"):
                return export(weights, "onnx", outputs="maps", imgsz=options.imgsz, path=file)
            return quantize(
                weights,
                options.data,
                calibrator="minmax",
                target="onnxruntime" if options.runtime == "onnxruntime" else "tensorrt",
                images=MIN_IMAGES,
                imgsz=options.imgsz,
                path=file,
                cache=self._folder / "calibration",
            )
