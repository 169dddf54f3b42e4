# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which channels of a network can only be removed together, what they cost and matter, and their removal.

torch-pruning's dependency graph (DepGraph, https://arxiv.org/abs/2301.12900) finds the groups. They are kept here as
names and indices, so that a choice of channels can be costed without a network and applied to any copy of it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

Indices = NDArray[np.int64]

LEAST_KEPT = 0.1  # the share of its channels that every layer keeps, since a network that is cut through is none

# What importance is measured by: the factors of the normalisations, as they are (Network Slimming,
# https://arxiv.org/abs/1708.06519); or the norms of all filters and normalisations that the channel has a part in, as
# multiples of their mean in the coupling (DepGraph).
IMPORTANCES: dict[str, Callable[[], Callable[[Any], Tensor | None]]] = {
    "gamma": lambda: tp.importance.BNScaleImportance(normalizer=None),
    "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1, normalizer=None),
    "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2, normalizer=None),
}

# Operators of a graph behind which a channel is found elsewhere than before.
_MOVING = {tp.ops.OPTYPE.SPLIT, tp.ops.OPTYPE.RESHAPE, tp.ops.OPTYPE.SLICE, tp.ops.OPTYPE.UNBIND, tp.ops.OPTYPE.EXPAND}


@dataclass(frozen=True)
class Member:
    """One side of a layer that a coupling reaches.

    Attributes:
        layer: its name in the network.
        side: "out" or "in"; "both" of normalisations and depthwise convolutions, whose outputs are their inputs.
        channels: of that side of the layer.
        roots: the channel of the coupling that each of them belongs to.
    """

    layer: str
    side: str
    channels: Indices
    roots: Indices


@dataclass(frozen=True)
class Coupling:
    """Channels that several layers have in common: each is removed from all of them or from none.

    Attributes:
        name: of the convolution that puts them out; of several, the first in the network.
        channels: how many there are.
        members: the layers.
        importance: [channels], comparable to that of others.
        groups: of the grouped convolutions among the members, 1 without any.
        shuffled: whether one of them takes its input through a channel shuffle.
        multiple: what the channels of each group are rounded to.
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    importance: NDArray[np.float64]
    groups: int
    shuffled: bool
    multiple: int

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The numbers of channels that it may be left with, descending from what there are."""
        each = self.multiple * self.groups
        least = max(each, math.ceil(self.channels * LEAST_KEPT))
        start = (self.channels - 1) // each * each
        fitting = [count for count in range(start, least - 1, -each) if self._fits(count)]
        return (self.channels, *fitting)

    def kept(self, count: int) -> NDArray[np.bool_]:
        """Which channels remain, [channels], if `count` of them do: the most important ones of each cell."""
        cells = _cells(self.channels, self.groups, self.shuffled)
        wanted = np.bincount(_cells(count, self.groups, self.shuffled), minlength=cells.max() + 1)
        kept = np.zeros(self.channels, dtype=bool)
        for cell, size in enumerate(wanted):
            inside = np.flatnonzero(cells == cell)
            kept[inside[np.argsort(-self.importance[inside], kind="stable")[:size]]] = True
        return kept

    def _fits(self, count: int) -> bool:
        cells, wanted = (np.bincount(_cells(n, self.groups, self.shuffled)) for n in (self.channels, count))
        return len(cells) == len(wanted) and bool((wanted <= cells).all())


def _cells(channels: int, groups: int, shuffled: bool) -> Indices:
    """[channels]: sets that must keep the sizes that they have in a network with fewer channels.

    A grouped convolution needs as many channels in each of its groups. Behind a shuffle, channel j of group g is at
    j * groups + g, in another group of the next convolution; with the sizes right, it stays in that group.
    """
    each = channels // groups
    group = np.arange(channels) // each
    if not shuffled:
        return group
    return group * groups + _shuffled(channels, groups) // each


def _shuffled(channels: int, groups: int) -> Indices:
    """[channels]: where each channel is behind `fastyolo.nn.gelan.channel_shuffle`."""
    index = np.arange(channels)
    each = channels // groups
    return index % each * groups + index // each


@dataclass(frozen=True)
class Convolution:
    """What the cost of a convolution follows from: its channels and what they are multiplied by."""

    inputs: int
    outputs: int
    groups: int
    factor: int  # 2 * kernel size * pixels

    def flops(self, inputs: int, outputs: int, groups: int) -> float:
        return self.factor * outputs * inputs / groups


@dataclass(frozen=True)
class Channels:
    """The channels of a network that can be removed.

    Attributes:
        couplings: sets of channels that are independent of each other.
        convolutions: all of the network, by name.
    """

    couplings: tuple[Coupling, ...]
    convolutions: dict[str, Convolution]

    @property
    def full(self) -> list[int]:
        """The number of channels of each coupling."""
        return [coupling.channels for coupling in self.couplings]

    def flops(self, counts: Sequence[int]) -> float:
        """Of all convolutions if each coupling is left with so many channels, for the image that was traced."""
        removed: dict[tuple[str, str], int] = defaultdict(int)
        for coupling, count in zip(self.couplings, counts, strict=True):
            for member in coupling.members:
                share = len(member.channels) * (coupling.channels - count) // coupling.channels
                removed[member.layer, member.side] += share
        total = 0.0
        for name, conv in self.convolutions.items():
            both, inputs, outputs = (removed[name, side] for side in ("both", "in", "out"))
            groups = conv.groups - both  # only depthwise convolutions have members of this kind
            total += conv.flops(conv.inputs - inputs - both, conv.outputs - outputs - both, groups)
        return total


def find(
    network: nn.Module,
    images: Tensor,
    forward: Callable[[nn.Module, Tensor], Sequence[Tensor]],
    *,
    importance: str = "gamma",
    multiple: int = 16,
    fixed: Collection[str] = (),
    shuffled: Collection[str] = (),
) -> Channels:
    """The channels of a network that can be removed, by running it on images.

    Args:
        network: in evaluation mode, its parameters requiring gradients, of modules that torch-pruning knows.
        images: what it is run on, [B, C, H, W].
        forward: called with both, returns the outputs that depend on everything there is to prune.
        importance: one of IMPORTANCES.
        multiple: what the channels that remain are rounded to, in each group of grouped convolutions.
        fixed: names of layers whose output channels stay.
        shuffled: names of grouped convolutions before which the channels are shuffled, though not in this run.

    Raises:
        ValueError: an operator takes channels apart, so that it cannot be told which of them belong together.
    """
    names = {module: name for name, module in network.named_modules()}
    positions = {name: position for position, name in enumerate(names.values())}
    pixels: dict[str, int] = {}

    def observe(module: nn.Module, _: Any, output: Tensor) -> None:
        pixels[names[module]] = output.shape[2] * output.shape[3]

    hooks = [m.register_forward_hook(observe) for m in network.modules() if isinstance(m, nn.Conv2d)]
    try:
        graph = tp.DependencyGraph().build_dependency(network, images, forward_fn=forward, verbose=False)
    finally:
        for hook in hooks:
            hook.remove()
    if moving := next((node for node in graph.module2node.values() if node.type in _MOVING), None):
        raise ValueError(
            "weights must be a model whose blocks keep their channels together, such as YOLOv8, YOLO11 or yolov8-fast, "
            f"and this one takes them apart ({moving.type.name.lower()}); pass another."
        )
    estimate = IMPORTANCES[importance]()
    couplings = []
    for group in graph.get_all_groups(ignored_layers=[network.get_submodule(name) for name in fixed]):
        members = _members(group, names)
        values = estimate(group)
        if members is None or values is None:
            continue  # of layers that cannot be sliced, or without a normalisation to tell what matters
        # torch-pruning returns zeros behind the channels' own values if a concatenation has several copies of them.
        values = values[: 1 + max(int(member.roots.max()) for member in members)]
        if not all(_is_whole(member, len(values)) for member in members):
            continue  # a layer ties some of the channels to others, as Ghost convolutions do
        if importance != "gamma":
            values = values / values.mean()
        layers: list[Any] = [network.get_submodule(member.layer) for member in members]
        groups = {conv.groups for conv in layers if _is_grouped(conv)}
        if len(groups) <= 1:
            couplings.append(
                Coupling(
                    name=min((m.layer for m in members if m.side == "out"), key=positions.__getitem__),
                    channels=len(values),
                    members=members,
                    importance=values.double().numpy(),
                    groups=next(iter(groups), 1),
                    shuffled=any(member.layer in shuffled and member.side == "in" for member in members),
                    multiple=multiple,
                )
            )
    convolutions = {
        name: Convolution(conv.in_channels, conv.out_channels, conv.groups, 2 * math.prod(conv.kernel_size) * count)
        for name, count in pixels.items()
        if isinstance(conv := network.get_submodule(name), nn.Conv2d)
    }
    return Channels(tuple(couplings), convolutions)


def _members(group: Any, names: dict[nn.Module, str]) -> tuple[Member, ...] | None:
    """The layers that a group of torch-pruning reaches; None if one of them is of an unknown kind."""
    members = []
    for item in group:
        layer, handler = item.dep.target.module, item.dep.handler
        if isinstance(layer, nn.BatchNorm2d) or _is_depthwise(layer):
            side = "both"
        elif type(layer) is nn.Conv2d:
            side = "in" if handler == tp.prune_conv_in_channels else "out"
        elif isinstance(layer, nn.Parameter) or (layer in names and any(True for _ in layer.parameters())):
            return None
        else:
            continue  # activations, additions and the like
        members.append(Member(names[layer], side, np.array(item.idxs), np.array(item.root_idxs)))
    return tuple(members)


def _is_whole(member: Member, channels: int) -> bool:
    """Whether the layer has as many channels of each root, so that what remains of it follows from their number."""
    copies = np.bincount(member.roots, minlength=channels)
    return bool((copies == copies[0]).all())


def _is_depthwise(layer: Any) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


def _is_grouped(layer: Any) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and not _is_depthwise(layer)


@torch.no_grad()
def remove(
    network: nn.Module, couplings: Sequence[Coupling], counts: Sequence[int], shuffled: Collection[str] = ()
) -> None:
    """Leave each coupling with so many of its channels, the most important ones, in place.

    Args:
        network: of the same structure as that in which the couplings were found.
        counts: for each of the couplings, one of its `counts`.
        shuffled: as for `find`.
    """
    kept: dict[str, dict[str, NDArray[np.bool_]]] = defaultdict(dict)
    for coupling, count in zip(couplings, counts, strict=True):
        if count == coupling.channels:
            continue
        keeps = coupling.kept(count)
        for member in coupling.members:
            layer = network.get_submodule(member.layer)
            mask = kept[member.layer].setdefault(member.side, np.ones(_width(layer, member.side), dtype=bool))
            mask[member.channels] &= keeps[member.roots]
    for name, sides in kept.items():
        layer = network.get_submodule(name)
        if isinstance(layer, nn.BatchNorm2d):
            _slice_normalisation(layer, sides["both"])
        elif "both" in sides:
            _slice_depthwise(layer, sides["both"])  # type: ignore[arg-type]
        else:
            _slice_convolution(layer, sides.get("out"), sides.get("in"), name in shuffled)  # type: ignore[arg-type]


def _width(layer: Any, side: str) -> int:
    if isinstance(layer, nn.BatchNorm2d):
        return layer.num_features
    return int(layer.in_channels if side == "in" else layer.out_channels)


def _slice_normalisation(layer: nn.BatchNorm2d, kept: NDArray[np.bool_]) -> None:
    index = torch.from_numpy(np.flatnonzero(kept))
    for name in ("weight", "bias", "running_mean", "running_var"):
        _set(layer, name, getattr(layer, name)[index])
    layer.num_features = len(index)


def _slice_depthwise(layer: nn.Conv2d, kept: NDArray[np.bool_]) -> None:
    _slice_outputs(layer, kept)
    layer.in_channels = layer.groups = layer.out_channels


def _slice_convolution(
    layer: nn.Conv2d, outputs: NDArray[np.bool_] | None, inputs: NDArray[np.bool_] | None, shuffled: bool
) -> None:
    if inputs is not None:
        order = np.flatnonzero(inputs)
        if layer.groups > 1:
            _set(layer, "weight", _grouped_inputs(layer, order, shuffled))
        else:
            _set(layer, "weight", layer.weight[:, torch.from_numpy(order)])
        layer.in_channels = len(order)
    if outputs is not None:
        _slice_outputs(layer, outputs)


def _slice_outputs(layer: nn.Conv2d, kept: NDArray[np.bool_]) -> None:
    index = torch.from_numpy(np.flatnonzero(kept))
    for name in ("weight", "bias"):
        if getattr(layer, name) is not None:
            _set(layer, name, getattr(layer, name)[index])
    layer.out_channels = len(index)


def _grouped_inputs(layer: nn.Conv2d, kept: Indices, shuffled: bool) -> Tensor:
    """The weight [out, kept / groups, k, k] that reads the kept channels, in each group those that it has left."""
    positions = kept
    if shuffled:
        positions = np.empty_like(kept)
        positions[_shuffled(len(kept), layer.groups)] = _shuffled(layer.in_channels, layer.groups)[kept]
    each = layer.in_channels // layer.groups
    columns = positions.reshape(layer.groups, -1) - each * np.arange(layer.groups)[:, None]
    rows = layer.weight.chunk(layer.groups)
    return torch.cat([row[:, torch.from_numpy(column)] for row, column in zip(rows, columns, strict=True)])


def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by one of another shape."""
    old = getattr(layer, name)
    value = value.detach().clone()
    setattr(layer, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)
