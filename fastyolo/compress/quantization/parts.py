# SPDX-License-Identifier: AGPL-3.0-or-later
"""A detector's graph with only some of its parts quantised, and the noise that this makes in the head's raw maps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx
from onnx import ModelProto

from fastyolo.compress.quantization import qdq
from fastyolo.runtime.engines import onnx_session
from fastyolo.runtime.letterbox import Float32

if TYPE_CHECKING:
    from fastyolo.compress.quantization.ptq import Calibrated


class Variants:
    """A calibrated float graph, and what becomes of it when some of its parts are quantised.

    Args:
        found: the graph, with a scale for each tensor that is quantised when everything is.
        per_layer: whether a part is a layer, instead of one of the modules that the network lists, with the head taken
            apart into its branches.

    Attributes:
        model: the float graph.
        parts: the number of convolutions of each part, by its name.
        head: the tensors of the head's raw maps, by branch and level, as in {"model.22.cv2.0": "/model.22/..."}.

    Raises:
        ValueError: the graph has no maps of ultralytics' Detect head.
    """

    def __init__(self, found: Calibrated, *, per_layer: bool = False) -> None:
        self.model = found.source.graph
        # Of every tensor of a group, as which of them a range is taken from depends on what else is quantised.
        self._ranges = {
            tensor: scale * qdq.MAXIMUM
            for group, scale in zip(found.plan.groups, found.scales, strict=True)
            for tensor in group
        }
        self._keep_float = found.note.keep_float
        layers = qdq.layers(self.model)
        never = layers.keys() - set(qdq.plan(self.model).convolutions)
        maps = {
            match[1]: node.output[0]
            for node in self.model.graph.node
            if node.name in never and (match := re.fullmatch(r"(model\.\d+\.cv[23]\.\d+)\.\d+", layers[node.name]))
        }
        if not maps:
            raise ValueError(
                "The graph has no maps of ultralytics' Detect head by the names of its nodes; export the checkpoint "
                "with 'fastyolo export --format onnx'."
            )
        self.head = dict(sorted(maps.items()))
        quantised = [layers[node] for node in found.plan.convolutions]
        names = quantised if per_layer else [self._block(layer) for layer in quantised]
        # keep_float takes prefixes, so a layer within another one belongs to it.
        outer = [name for name in dict.fromkeys(names) if not any(name.startswith(f"{other}.") for other in names)]
        self.parts = {name: sum(f"{layer}.".startswith(f"{name}.") for layer in quantised) for name in outer}

    def only(self, part: str) -> ModelProto:
        """With this part quantised."""
        return self.without(other for other in self.parts if other != part)

    def without(self, parts: Iterable[str]) -> ModelProto:
        """With all but these parts quantised."""
        plan = qdq.plan(self.model, keep_float=(*self._keep_float, *parts))
        return qdq.insert(self.model, plan, qdq.scales(plan, self._ranges))

    def _block(self, layer: str) -> str:
        """model.4.cv1.conv -> model.4; of the head, model.22.cv3.0.1.conv -> model.22.cv3.0."""
        branch = next((branch for branch in self.head if layer.startswith(f"{branch}.")), None)
        return branch or ".".join(layer.split(".")[:2])


class Noise:
    """The noise that quantisation adds to the head's raw maps of some images.

    Signal and noise are summed over all maps, so that each value of each anchor counts alike.

    Args:
        variants: of the network.
        images: inputs of it, [B, 3, H, W].

    Attributes:
        levels: numbers of the head's levels.
    """

    def __init__(self, variants: Variants, images: Sequence[Float32]) -> None:
        self._images = images
        self._tensors = list(variants.head.values())
        self._level_of = [int(branch.rpartition(".")[2]) for branch in variants.head]
        self.levels = sorted(set(self._level_of))
        self._expected = list(self._maps(variants.model))
        self._signal = [sum(_power(_centred(x)) for x in maps) for maps in zip(*self._expected, strict=True)]

    def powers(self, model: ModelProto) -> list[float]:
        """Of the noise in each map of a variant."""
        noise = [0.0] * len(self._tensors)
        for maps, expected in zip(self._maps(model), self._expected, strict=True):
            noise = [sum_ + _power(x - y) for sum_, x, y in zip(noise, maps, expected, strict=True)]
        return noise

    def decibels(self, powers: Sequence[float], level: int | None = None) -> float:
        """The ratio of the signal to noise of these powers, of one level or of all; at most 120."""
        chosen = [level is None or own == level for own in self._level_of]
        noise, signal = (sum(compress(values, chosen)) for values in (powers, self._signal))
        return -10 * math.log10(max(noise / signal, 1e-12)) if signal else 0.0

    def _maps(self, model: ModelProto) -> Iterator[list[Float32]]:
        probe = ModelProto()
        probe.CopyFrom(model)
        del probe.graph.output[:]
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._tensors)
        session = onnx_session(probe.SerializeToString())
        (source,) = session.get_inputs()
        for image in self._images:
            yield session.run(self._tensors, {source.name: image})


def _centred(maps: Float32) -> Float32:
    """Without the mean of each channel, which is most of a map of class logits and says nothing of any place."""
    return cast(Float32, maps - maps.mean((2, 3), keepdims=True))


def _power(values: Float32) -> float:
    return float(np.square(values, dtype=np.float64).sum())
