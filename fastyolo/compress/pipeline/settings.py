# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a run of `fastyolo.compress.compress` is asked for, and the epochs that each of its stages gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

STAGES = ("baseline", "light", "distilled", "pruned", "int8")
SKIPPABLE = (*STAGES, "verify")
FORMATS = ("tensorrt-onnx", "engine", "openvino", "ncnn")  # beside ONNX

Int8 = Literal["qat", "ptq"]

# Epochs in proportion: what remains after pruning knows its task already, and INT8 moves the weights by about a step.
SHARES = {"baseline": 10, "light": 10, "distilled": 10, "pruned": 3, "int8": 1}

# Before channels are removed, half of that stage's epochs train for sparsity, if there are so many: of four it was no
# gain, of ten one (bench/NOTES.md).
SPARSITY = 0.001
MIN_EPOCHS_FOR_SPARSITY = 10


@dataclass(frozen=True)
class Options:
    """The arguments of `fastyolo.compress.compress`, checked; see there.

    Attributes:
        weights_digest: of the checkpoint that is the baseline; None: it is trained here.
        model_digest: of the file that the baseline begins from; None: one of ultralytics' own, by name.
        light: model file of the light model; None: there is none, and no stage that trains it.
        light_digest: of it; None: one of fastyolo's own, by name.
        epochs: of each stage that trains.
        digest: of the data set.
    """

    data: str
    digest: str
    weights: str | None
    weights_digest: str | None
    model: str
    model_digest: str | None
    light: str | None
    light_digest: str | None
    skip: frozenset[str]
    epochs: Mapping[str, int]
    flops: float
    target_latency: float | None
    target_size: float | None
    runtime: Literal["onnxruntime", "openvino"]
    int8: Int8
    formats: tuple[str, ...]
    imgsz: int
    threads: int
    training: Mapping[str, Any]

    @property
    def has_targets(self) -> bool:
        return self.target_latency is not None or self.target_size is not None

    def wants(self, stage: str) -> bool:
        return stage not in self.skip

    @property
    def sparse_epochs(self) -> int:
        """Of the epochs of the stage pruned, those before channels are removed."""
        epochs = self.epochs.get("pruned", 0)
        return epochs // 2 if epochs >= MIN_EPOCHS_FOR_SPARSITY else 0


def trained(skip: frozenset[str], *, given: bool, int8: str) -> list[str]:
    """The stages that train.

    Args:
        given: whether the baseline is trained already.
        int8: "qat" or "ptq", which trains nothing.
    """
    without = {*skip, *(["baseline"] if given else []), *(["int8"] if int8 == "ptq" else [])}
    return [stage for stage in STAGES if stage not in without]


def epochs_of(stages: Sequence[str], epochs: int | None, max_epochs: int | None) -> dict[str, int]:
    """The epochs of each stage: in proportion to SHARES, and at least one.

    Args:
        stages: those that train.
        epochs: of the baseline, from which those of the others follow, or
        max_epochs: of all together; each further epoch goes where the quotient of share and epochs is highest, as
            D'Hondt distributes seats.

    Raises:
        ValueError: `max_epochs` is less than one for each stage.
    """
    if max_epochs is None:
        full = 100 if epochs is None else epochs
        return {stage: max(1, round(full * SHARES[stage] / SHARES["baseline"])) for stage in stages}
    if max_epochs < len(stages):
        raise ValueError(
            f"max_epochs must be at least {len(stages)}, one for each of {', '.join(stages)}, got {max_epochs}; raise "
            f"it or skip stages."
        )
    shared = dict.fromkeys(stages, 1)
    for _ in range(max_epochs - len(stages) if stages else 0):
        shared[max(stages, key=lambda stage: SHARES[stage] / shared[stage])] += 1
    return shared
