# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the time of a detector goes, what bounds it, and which changes would help most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fastyolo._machine import cores
from fastyolo.bench.roofline import Roofline, measure
from fastyolo.diagnose.stopwatch import OTHER
from fastyolo.integrations.ultralytics import profiling
from fastyolo.integrations.ultralytics.profiling import Measured

Subject = Literal["inference", "training", "head"]
Bound = Literal["data", "post-processing", "drawing", "CPU", "launch overhead", "memory", "compute"]

NETWORK = "network"

# What the stages count to, in the order of the report; layers count to NETWORK.
_GROUPS = {
    "read": "data",
    "letterbox": "data",
    "to tensor": "data",
    "data": "data",
    "decode": "post-processing",
    "NMS": "post-processing",
    "decode and NMS": "post-processing",
    "results": "post-processing",
    "draw": "drawing",
    "teacher": NETWORK,
    "backward": NETWORK,
    "loss": "CPU",
    "assigner": "CPU",
    "optimiser": "CPU",
    "to device": "CPU",
    OTHER: "CPU",
}
_WAIT = 0.25  # of a batch's time: training that waits this long for data is bound by it, whatever else takes longer
_BUSY = 0.6  # share of its time in which a GPU must compute, or launching the kernels is what takes the time
_EFFICIENT = 0.1  # of what a CPU can do; one that reaches less in inference is busy with torch, not with numbers


@dataclass(frozen=True)
class Stage:
    """
    Attributes:
        name: of the stage; layers are one for each part of the network.
        group: what it counts to.
        seconds: median over the rounds.
        share: of the round.
    """

    name: str
    group: str
    seconds: float
    share: float


@dataclass(frozen=True)
class LayerCost:
    """A layer of the network: the median of its time, what it computes, and what bounds it on this machine.

    Attributes:
        efficiency: the time that the roofline allows, as a share of the time it took.
    """

    name: str
    part: str
    seconds: float
    gflops: float
    activation_mb: float
    bound: Literal["compute", "memory"]
    efficiency: float


@dataclass(frozen=True)
class Change:
    """Something to do.

    Attributes:
        saves: share of the time that it can save at most.
        what: to do, an order.
        why: a sentence.
    """

    saves: float
    what: str
    why: str


@dataclass(frozen=True)
class Profile:
    """
    Attributes:
        seconds: median of a round: an image, a batch, or a pass of the head.
        because: why `bound` is what bounds it, a sentence.
        changes: the two that would help most; fewer where nothing is known to help.
    """

    subject: Subject
    rounds: int
    seconds: float
    stages: tuple[Stage, ...]
    layers: tuple[LayerCost, ...]
    machine: Roofline
    bound: Bound
    because: str
    changes: tuple[Change, ...]
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def inference(model: Any, images: Sequence[str], **settings: Any) -> Profile:
    """Profile the prediction of single images; see `fastyolo.integrations.ultralytics.profiling.inference`."""
    measured = profiling.inference(model, images, **settings)
    lighter = profiling.lighter_share(model.model, measured.facts["imgsz"])
    return _profile(
        "inference", measured, lambda shares, launching: _inference_changes(shares, launching, measured, lighter)
    )


def head(model: Any, **settings: Any) -> Profile:
    """Profile the head alone; see `fastyolo.integrations.ultralytics.profiling.head`."""
    measured = profiling.head(model, **settings)
    return _profile("head", measured, lambda shares, _: _head_changes(shares, measured))


def training(arguments: Mapping[str, Any], **settings: Any) -> Profile:
    """Profile batches of a training run; see `fastyolo.integrations.ultralytics.profiling.training`."""
    measured = profiling.training(arguments, **settings)
    return _profile("training", measured, lambda shares, launching: _training_changes(shares, launching, measured))


Shares = Mapping[str, float]
"""Of the round, by stage and by group."""

Propose = Callable[[Shares, bool], Iterator[Change]]
"""Changes for these shares, and whether launch overhead is what bounds the whole."""


def _profile(subject: Subject, measured: Measured, propose: Propose) -> Profile:
    stages = _stages(measured)
    total = float(np.median([sum(each.values()) for each in measured.rounds]))
    machine = measure(measured.device)
    layers = tuple(_layer_costs(measured, machine))
    shares: dict[str, float] = {stage.name: stage.share for stage in stages}
    for stage in stages:
        shares[stage.group] = shares.get(stage.group, 0.0) + (stage.share if stage.group != stage.name else 0.0)
    bound, because = _bound(subject, shares, measured, layers)
    changes = sorted(propose(shares, bound == "launch overhead"), key=lambda change: -change.saves)
    best = tuple(change for change in changes if change.saves >= 0.02)[:2]
    return Profile(
        subject,
        len(measured.rounds),
        total,
        tuple(stages),
        layers,
        machine,
        bound,
        because,
        best,
        {**measured.facts, "device": measured.device.type},
    )


def _stages(measured: Measured) -> list[Stage]:
    """Stages in the order in which they first ran, the layers of a part as one."""
    parts = {layer.stage: layer.part for layer in measured.layers}
    names = list(dict.fromkeys(parts.get(name, name) for each in measured.rounds for name in each))
    rounds = [dict.fromkeys(names, 0.0) for _ in measured.rounds]
    for merged, each in zip(rounds, measured.rounds, strict=True):
        for name, seconds in each.items():
            merged[parts.get(name, name)] += seconds
    medians = {name: float(np.median([each[name] for each in rounds])) for name in names}
    total = sum(medians.values())
    in_network = {*parts.values()}
    return [
        Stage(name, NETWORK if name in in_network else _GROUPS.get(name, NETWORK), seconds, seconds / total)
        for name, seconds in medians.items()
    ]


def _layer_costs(measured: Measured, machine: Roofline) -> Iterator[LayerCost]:
    batch = measured.facts.get("batch", 1)
    for layer in measured.layers:
        seconds = float(np.median([each.get(layer.stage, 0.0) for each in measured.rounds]))
        traffic = 2 * layer.activation_bytes * batch + 4 * layer.parameters  # what one operator writes, another reads
        limits = machine.seconds(layer.flops * batch, traffic)
        yield LayerCost(
            layer.stage,
            layer.part,
            seconds,
            layer.flops / 1e9,
            layer.activation_bytes / 1e6,
            "compute" if limits[0] >= limits[1] else "memory",
            max(limits) / seconds if seconds else 0.0,
        )


def _bound(subject: Subject, shares: Shares, measured: Measured, layers: Sequence[LayerCost]) -> tuple[Bound, str]:
    if subject == "training" and shares["data"] >= _WAIT:
        return "data", f"the network waits for images for {shares['data']:.0%} of the time."
    groups = ("data", "post-processing", "drawing", "CPU", NETWORK)
    largest = max(groups, key=lambda name: shares.get(name, 0.0))
    share = shares.get(largest, 0.0)
    if largest == "data":
        return "data", f"reading, letterboxing and converting images takes {share:.0%} of the time."
    if largest == "post-processing":
        return "post-processing", f"from the network's outputs to boxes takes {share:.0%} of the time."
    if largest == "drawing":
        return "drawing", f"drawing the boxes takes {share:.0%} of the time."
    if largest == "CPU":
        return "CPU", f"what Python and small operators do around the network takes {share:.0%} of the time."
    return _network_bound(subject, share, measured, layers)


def _network_bound(
    subject: Subject, share: float, measured: Measured, layers: Sequence[LayerCost]
) -> tuple[Bound, str]:
    network = f"the network takes {share:.0%} of the time"
    if measured.busy is not None and measured.busy < _BUSY:
        return (
            "launch overhead",
            f"{network}, and the GPU computes in {measured.busy:.0%} of that.",
        )
    seconds = sum(layer.seconds for layer in layers)
    if not seconds:  # the head alone, whose stages are no layers
        return "compute", f"its branches take {share:.0%} of the time."
    reached = sum(layer.seconds * layer.efficiency for layer in layers) / seconds
    if measured.busy is None and reached < _EFFICIENT and subject == "inference":
        return "launch overhead", (
            f"{network}, and reaches {reached:.0%} of what this machine can do: its operators are so small that "
            "starting them takes longer than computing."
        )
    memory = sum(layer.seconds for layer in layers if layer.bound == "memory") / seconds
    if memory > 0.5:
        return "memory", f"{network}, {memory:.0%} of it in layers that move more than they compute."
    return "compute", f"{network}, {1 - memory:.0%} of it in layers that compute more than they move."


def _inference_changes(
    shares: Shares, launching: bool, measured: Measured, lighter: tuple[str, float] | None
) -> Iterator[Change]:
    facts = measured.facts
    data, network = shares["data"], shares[NETWORK]
    if cores() > 1 or measured.device.type == "cuda":
        yield Change(
            min(data, 1 - data),
            "read images in another thread while the network runs, as fastyolo.runtime.Detector.stream does",
            f"images take {data:.0%} of the time, which the network need not wait for.",
        )
    factor = facts["pixels"] / facts["imgsz"] ** 2
    if factor > 2:
        yield Change(
            (shares["read"] + shares["letterbox"]) * (1 - 1 / factor),
            f"store or request the images smaller, near {facts['imgsz']} pixels",
            f"they have {factor:.0f} times the pixels of the network's input; reading takes {shares['read']:.0%}.",
        )
    if not facts["accelerated"]:
        yield Change(
            shares.get("decode", 0.0) + shares.get("NMS", 0.0),
            "call fastyolo.accelerate(model), or leave out --stock",
            "decoding and NMS in Python take that long; decode_nms gives the same boxes in one operator.",
        )
    if facts["conf"] < 0.1:
        yield Change(
            shares.get("NMS", 0.0) + shares.get("decode and NMS", 0.0),
            f"raise conf from {facts['conf']:g} to what the application needs, such as 0.25",
            "every candidate above it goes through NMS.",
        )
    yield Change(shares["draw"], "draw and save only what somebody looks at", "results hold the boxes without drawing.")
    if launching:
        yield Change(
            network * (1 - (measured.busy or 0.0)),
            "export the model (fastyolo export) and run its graph as a whole, or run several images at once",
            "the network is many small operators, which eager torch starts one by one.",
        )
        return  # fewer operations in as many operators would not help
    smaller = _smaller(facts["imgsz"])
    yield Change(
        network * (1 - (smaller / facts["imgsz"]) ** 2),
        f"try imgsz {smaller} (fastyolo bench model --imgsz {smaller} {facts['imgsz']} --data ... shows what it costs)",
        "the operations of the network grow with the square of the side.",
    )
    if lighter:
        name, share = lighter
        yield Change(
            network * (1 - share),
            f"train {name} with this model as the teacher",
            f"it needs {share:.0%} of the operations of this network.",
        )


def _smaller(imgsz: int) -> int:
    """Three quarters of a side, as a multiple of 32."""
    return max(32, round(imgsz * 0.75 / 32) * 32)


def _head_changes(shares: Shares, measured: Measured) -> Iterator[Change]:
    stages = {name: share for name, share in shares.items() if name.startswith(("boxes of", "classes of"))}
    largest = max(stages, key=stages.__getitem__)
    branches = sum(stages.values())
    if measured.facts["lighter"]:
        name, share = measured.facts["lighter"]
        yield Change(
            branches * (1 - share),
            f"take the head of {name}, LightDetect",
            f"the branches take {branches:.0%} of the time, and it needs {share:.0%} of their operations.",
        )
    yield Change(
        branches / 2,
        "remove channels from the head (fastyolo prune --parts head)",
        f"the branches take {branches:.0%} of the time, {largest} the most ({stages[largest]:.0%}); half of their "
        "operations are half of it.",
    )
    yield Change(shares.get("decode", 0.0), "predict with fastyolo.accelerate(model)", "it skips this decoding.")


def _training_changes(shares: Shares, launching: bool, measured: Measured) -> Iterator[Change]:
    facts = measured.facts
    if facts["workers"] < cores():
        what = f"raise workers from {facts['workers']} towards the {cores()} cores"
    else:
        what = "keep the images in memory (cache=ram)" if not facts["cache"] else "store the images smaller"
    yield Change(shares["data"], what, f"batches are waited for {shares['data']:.0%} of the time.")
    network = shares[NETWORK]
    if launching:
        yield Change(
            network * (1 - (measured.busy or 0.0)),
            f"raise batch from {facts['batch']}, if memory allows",
            "larger batches give the GPU more to compute for each operator that is started.",
        )
    elif not facts["amp"]:
        how = "amp=true" if measured.device.type == "cuda" else "amp=bf16, on a processor with bfloat16 units,"
        yield Change(network / 2, f"train with {how} to halve what is moved", "float32 is used throughout.")
    yield Change(
        shares.get("backward", 0.0) * shares.get("backbone", 0.0) / max(_forward(shares), 1e-9) * (not facts["frozen"]),
        "freeze the backbone (freeze_backbone=true), if it is trained already",
        "its gradients need not be computed.",
    )
    if facts["teacher"]:
        yield Change(
            shares.get("teacher", 0.0),
            "take a smaller teacher, or none until the settings are found",
            "it runs forward on every batch beside the student.",
        )
    yield Change(
        shares.get("optimiser", 0.0) / 2,
        f"double nbs, the images to a step of the optimiser, to {2 * facts['nbs']}",
        "the step costs the same for any number of images; fewer steps learn less in an epoch.",
    )
    smaller = facts["imgsz"] if launching else _smaller(facts["imgsz"])
    yield Change(
        network * (1 - (smaller / facts["imgsz"]) ** 2),
        f"train at imgsz {smaller} until the settings are found",
        "the operations of the network grow with the square of the side.",
    )


def _forward(shares: Shares) -> float:
    return sum(shares.get(part, 0.0) for part in ("backbone", "neck", "head"))
