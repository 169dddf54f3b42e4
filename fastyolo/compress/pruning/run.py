# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pruning from the given checkpoint to the final one: choosing and removing channels, and training in between."""

from __future__ import annotations

import copy
import json
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fastyolo import _files
from fastyolo._machine import cores
from fastyolo.compress.pruning import channels as finding
from fastyolo.compress.pruning import selection
from fastyolo.compress.pruning.latency import LatencyMeter
from fastyolo.compress.pruning.report import Costs, Layer, Report
from fastyolo.integrations.ultralytics import pruning as ultralytics
from fastyolo.integrations.ultralytics import runs
from fastyolo.integrations.ultralytics.export import load, origin
from fastyolo.integrations.ultralytics.facts import check_sizes, cost
from fastyolo.train import Trainer
from fastyolo.train.settings import closing_epochs

# In the folder of a run: what it was asked for; in the folder of each step, the network to train.
STATE = "prune.json"
PRUNED = "pruned.pt"
_CONTENT = "content of weights"
_MISSED = 1.05  # of a latency: more than the noise of measuring it twice


class UnreachableTargetError(ValueError):
    """No choice of channels meets the target; the message says what can be met."""


@dataclass(frozen=True)
class Options:
    """The arguments of `fastyolo.compress.pruning.prune` that its result depends on; the target is `kind`, `value`."""

    kind: str
    value: float
    ranking: str
    importance: str
    parts: tuple[str, ...]
    head_first: bool
    multiple: int
    imgsz: int
    steps: int
    epochs: int
    sparsity: float
    sparsity_epochs: int
    distill: bool
    data: str | None
    training: dict[str, Any]

    def state(self, weights: Path) -> dict[str, Any]:
        """As JSON holds it."""
        source = {"weights": str(weights.resolve()), _CONTENT: _files.digest(weights)}
        arguments = asdict(self)
        target = {**dict.fromkeys(("ratio", "flops", "latency")), arguments.pop("kind"): arguments.pop("value")}
        document: dict[str, Any] = json.loads(json.dumps({**source, **target, **arguments}))
        return document


def run(
    model: Any,
    options: Options,
    sparse: bool,
    path: str | Path | None,
    folder: str | Path | None,
    threads: int | None,
    say: Callable[[str], None],
) -> Report:
    """As `fastyolo.compress.pruning.prune`, whose arguments are checked, of a model that `load` has read.

    Args:
        sparse: whether a training with sparsity comes first, or came before.
    """
    source = origin(model)
    target = source.with_name(f"{source.stem}-pruned.pt") if path is None else Path(path)
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"path must be another file than the weights, got {str(target)!r}.")
    if options.data is not None:
        _check_training(model, options)
    check_sizes(model, [options.imgsz])
    past = "after a training" if sparse else "without a training"
    say(f"Channels are ranked by {options.importance}, {options.ranking}, {past} with sparsity")
    aim = _Aim(model, options, threads, say)
    aim.check()
    if options.data is None:
        network = aim.approach(aim.original, 1.0)
        ultralytics.save(network, model, target)
        steps: list[dict[str, float]] = [{"flops": aim.flops(network)}]
    else:
        place = target.with_suffix("") if folder is None else Path(folder)
        if not (place / STATE).exists() and _files.holds_files(place):
            raise ValueError(f"folder must be new, empty or that of the same run, and {place} holds something else.")
        with _files.locked(place, "folder"):
            best, steps = _train_in_steps(aim, source, place)
        network = ultralytics.prunable(load(best))
        with _files.replacing(target) as temporary:
            shutil.copyfile(best, temporary)
    return Report(
        weights=str(source),
        path=str(target),
        imgsz=options.imgsz,
        target={options.kind: options.value},
        importance=options.importance,
        ranking=options.ranking,
        sparse=sparse,
        before=aim.costs(aim.original),
        after=aim.costs_in_the_end(network),
        layers=_changed(aim.original, network),
        steps=tuple(steps),
    )


def _check_training(model: Any, options: Options) -> None:
    """Refuse what the trainings would refuse, before anything long begins."""
    runs.check_names(options.training)
    runs.check_values(options.training)
    # single_cls makes one class of those of the data, which the trainer compares by itself.
    if options.distill and not {"distill_model", "single_cls"} & set(options.training):
        ultralytics.check_teaches(model, str(options.data))


def _train_in_steps(aim: _Aim, source: Path, folder: Path) -> tuple[Path, list[dict[str, float]]]:
    """The last checkpoint and the FLOPs and accuracy of each step. What is there of an interrupted run is not repeated.

    Raises:
        ValueError: the folder holds a run with other arguments or of other weights.
    """
    options, say = aim.options, aim.say
    _claim(folder, options.state(source))
    common = {"data": options.data, "imgsz": options.imgsz, **options.training}
    current = source
    if options.sparsity:
        say(f"Training for sparsity, {options.sparsity_epochs} epochs")
        arguments = {"epochs": options.sparsity_epochs, "sparsity": options.sparsity, **common}
        train(current, folder / "sparsity", arguments)
        current = folder / "sparsity" / "weights" / "last.pt"  # the best one may be from before the channels faded
    if options.distill:
        common.setdefault("distill_model", str(source.resolve()))
    steps = []
    for number in range(1, options.steps + 1):
        place = folder / f"step-{number}"
        pruned = place / PRUNED
        if not pruned.exists():
            model = load(current)
            network = aim.approach(ultralytics.prunable(model), number / options.steps)
            ultralytics.save(network, model, pruned)
        say(f"Step {number} of {options.steps}: training, {options.epochs} epochs")
        own = {"epochs": options.epochs, "close_geometry": closing_epochs(options.epochs)}
        accuracy = train(pruned, place / "train", {**own, **common})
        current = place / "train" / "weights" / "best.pt"
        steps.append({"flops": aim.flops(load(current).model), **accuracy})
    return current, steps


def train(weights: Path, folder: Path, arguments: dict[str, Any]) -> dict[str, float]:
    """Accuracy of a training in `folder`, which is begun, continued or finished already."""
    last = folder / "weights" / "last.pt"
    if (accuracy := runs.finished(folder)) is not None:
        return accuracy
    if last.exists():
        trainer = Trainer(overrides={"resume": str(last)})
    else:
        place = {"model": str(weights), "save_dir": str(folder), "exist_ok": True}
        trainer = Trainer(overrides={**arguments, **place})
    trainer.train()
    return runs.metrics(trainer)


def _claim(folder: Path, state: dict[str, Any]) -> None:
    """Note in a folder which run it is of; of other arguments, only if nothing has been trained with these."""
    note = folder / STATE
    if note.exists():
        kept = json.loads(note.read_text(encoding="utf-8"))
        if "kind" in kept:  # as earlier versions wrote the target
            kept |= {**dict.fromkeys(("ratio", "flops", "latency")), kept.pop("kind"): kept.pop("value")}
        kept.setdefault(_CONTENT, state[_CONTENT])  # which they did not note
        changed = [name for name in state if state[name] != kept.get(name)]
        if changed and any(folder.rglob("weights/*.pt")):
            values = ", ".join(
                name if name == _CONTENT else f"{name} ({kept[name]}, not {state[name]})" for name in changed
            )
            raise ValueError(
                f"folder (--save-dir) must be that of a run with the same arguments, and {folder} has other values of "
                f"{values}; choose another folder or repeat these."
            )
        if changed:
            for pruned in folder.glob(f"*/{PRUNED}"):
                pruned.unlink()
    _files.write_json(note, state)


class _Aim:
    """The target of a run, and the ways to it.

    Args:
        model: the model as it was given.
        threads: of ONNX Runtime.

    Attributes:
        original: its network, in the form that can be pruned.
    """

    def __init__(self, model: Any, options: Options, threads: int | None, say: Callable[[str], None]) -> None:
        self.options, self.say = options, say
        self.original = ultralytics.prunable(model)
        self._stopwatch = None
        if options.kind == "latency":
            say("Measuring the latency")
            self._stopwatch = LatencyMeter(model, options.imgsz, threads or cores())
        self._choice = _Choice(self, self.original)
        if self._stopwatch:
            self._start, self._end = self._stopwatch.reference_ms, options.value
        else:
            self._start = self._choice.measure([])
            self._end = self._start * (1 - options.value)

    def check(self) -> None:
        """Raises ValueError if the target is met already or cannot be reached."""
        if self._start <= self._end:
            raise ValueError(
                f"latency must be less than the {self._start:.1f} ms that the model takes already, got "
                f"{self.options.value:g} ms."
            )
        if (least := self._choice.measure(self._choice.steps)) > self._end:
            raise self._unreachable(least)

    def approach(self, network: Any, progress: float) -> Any:
        """A copy of a network with so many channels removed that `progress` of the way to the target is made."""
        choice = self._choice_of(network)
        limit = self._start + (self._end - self._start) * progress
        try:
            steps = selection.fewest(choice.steps, choice.measure, limit)
        except selection.Unreachable as error:
            raise self._unreachable(error.best) from error
        if not self._stopwatch:  # its noise would tell nothing about single steps
            steps = selection.without_needless(steps, choice.measure, limit)
        pruned = choice.network_after(steps)
        channels = choice.removable(steps) / self._choice.removable([])
        flops = self.flops(pruned) / self.flops(self.original)
        self.say(f"Removed {1 - channels:.1%} of the channels, {1 - flops:.1%} of the FLOPs")
        return pruned

    def flops(self, network: Any) -> int:
        return int(cost(network, self.options.imgsz)["flops"])

    def costs(self, network: Any) -> Costs:
        return Costs(
            channels=self._choice_of(network).removable([]),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            flops=self.flops(network),
            latency_ms=self._stopwatch.ms(network) if self._stopwatch else None,
        )

    def costs_in_the_end(self, network: Any) -> Costs:
        """With a warning if its latency is not what it was when its channels were chosen."""
        costs = self.costs(network)
        if costs.latency_ms is not None and costs.latency_ms > _MISSED * self.options.value:
            warnings.warn(
                f"The pruned network takes {costs.latency_ms:.1f} ms, more than the {self.options.value:g} that were "
                "asked for and that it took when its channels were chosen; prune again while nothing else runs.",
                stacklevel=3,
            )
        return costs

    def milliseconds(self, network: Any) -> float:
        assert self._stopwatch
        return self._stopwatch.ms(network)

    def _choice_of(self, network: Any) -> _Choice:
        return self._choice if network is self.original else _Choice(self, network)

    def _unreachable(self, least: float) -> UnreachableTargetError:
        where = ", ".join(self.options.parts)
        kind, value = self.options.kind, self.options.value
        if kind == "latency":
            return UnreachableTargetError(
                f"latency must be at least about {least:.1f} ms, which is left without all that can be removed from "
                f"{where}, got {value:g} ms."
            )
        most = math.floor(1000 * (1 - least / self._start)) / 1000
        return UnreachableTargetError(
            f"{kind} must be at most {most}, all that can be removed from {where}, got {value:g}."
        )


class _Choice:
    """The channels of one network that can be removed.

    Attributes:
        channels: all of them.
        steps: their removals, in order.
    """

    def __init__(self, aim: _Aim, network: Any) -> None:
        options = aim.options
        self._aim, self._network = aim, network
        images = torch.zeros(1, 3, options.imgsz, options.imgsz)
        with ultralytics.traceable(network) as self._trace:
            self.channels = finding.find(
                network,
                images,
                ultralytics.forward,
                importance=options.importance,
                multiple=options.multiple,
                fixed=self._trace.fixed,
                shuffled=self._trace.shuffled,
            )
        self.steps = selection.order(
            self.channels,
            self._part,
            ranking=options.ranking,
            parts=options.parts,
            head_first=options.head_first,
        )

    def measure(self, steps: Sequence[selection.Step]) -> float:
        """Channels, FLOPs or milliseconds after some of the steps, whichever the target is of."""
        if self._aim.options.kind == "ratio":
            return self.removable(steps)
        if self._aim.options.kind == "flops":
            return self._other_flops + self.channels.flops(selection.counts(self.channels, steps))
        return self._aim.milliseconds(self.network_after(steps))

    @cached_property
    def _other_flops(self) -> float:
        """Of what is no convolution, or one that was hidden from the trace."""
        return self._aim.flops(self._network) - self.channels.flops(self.channels.full)

    def removable(self, steps: Sequence[selection.Step]) -> int:
        """The channels in the parts that may lose some, after some of the steps."""
        parts = self._aim.options.parts
        pairs = zip(self.channels.couplings, selection.counts(self.channels, steps), strict=True)
        return sum(count for coupling, count in pairs if self._part(coupling.name) in parts)

    def network_after(self, steps: Sequence[selection.Step]) -> Any:
        """A copy of the network without the channels that some of the steps remove."""
        network = copy.deepcopy(self._network)
        with ultralytics.traceable(network):
            finding.remove(
                network, self.channels.couplings, selection.counts(self.channels, steps), self._trace.shuffled
            )
        return network

    def _part(self, layer: str) -> str:
        return ultralytics.part_of(self._network, layer)


def _changed(before: Any, after: Any) -> tuple[Layer, ...]:
    old, new = ultralytics.widths(before), ultralytics.widths(after)
    return tuple(Layer(name, old[name], new[name]) for name in old if old[name] != new[name])
