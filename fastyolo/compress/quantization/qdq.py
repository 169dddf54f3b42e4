# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where a detector's ONNX graph is quantised to INT8, and the QuantizeLinear and DequantizeLinear nodes there.

What a convolution takes is quantised, and what it puts out is not, so that Conv, Sigmoid and Mul stay one kernel of
TensorRT; the next QuantizeLinear comes after the activation. What moves values without changing them (Concat, MaxPool,
Resize, Split, Slice, Reshape, Transpose) has one scale at all of its ends, and so have the two inputs of a residual
Add: otherwise int8 maps are converted on the way. These are the places that NVIDIA's guide to quantised YOLOv7 found
fastest (https://github.com/NVIDIA-AI-IOT/yolo_deepstream). The convolutions whose outputs are decoded, that of the DFL
and those of the gates of ECA and of the global context stay float.

OpenVINO fuses the same places into int8 kernels. ONNX Runtime does not on x86: its integer convolution needs another
QuantizeLinear before the activation, and is fast with maps in uint8, which TensorRT does not take. Of a graph in the
form above it computes what the file says, with convolutions in float32 and the time of the rounding on top. So there is
a second form for it, in which what convolutions put out is quantised too, and Sigmoid and Mul become tables and integer
products (`plan(activations=True)`, `insert` with zero points).
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

MAXIMUM = 127  # of int8 that is symmetric; -128 stays unused

_FADED = np.float32(1e-4)  # weights below this share of a convolution's largest compute nothing

_OPSET = 13  # the first whose QuantizeLinear takes a scale for each channel

_OF_INT8 = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"})

# They put out values that they were given, so that int8 goes through them as it is.
_MOVES = frozenset({"Concat", "MaxPool", "Resize", "Split", "Slice", "Reshape", "Transpose"})

_MEANS = frozenset({"GlobalAveragePool", "ReduceMean"})


@dataclass(frozen=True)
class Plan:
    """What is quantised in a graph.

    Attributes:
        convolutions: names of the Conv nodes that are computed in int8, in the graph's order.
        groups: names of the tensors that are quantised. Those of a group share one scale; no tensor is in two groups.
        sources: of each group, the tensors whose values the others take over, so that the range of a group is that of
            its sources: those that alone need calibration.
        consumers: of each quantised tensor, the nodes that read it in int8; others read it in float.
    """

    convolutions: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    sources: tuple[tuple[str, ...], ...]
    consumers: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Counts:
    """Of a quantised graph.

    Attributes:
        convolutions: those in int8, and those in all.
        pairs: of QuantizeLinear and DequantizeLinear on maps.
        edges: maps in int8 that enter an operator which only moves values, or an Add.
        reformat_free: those of these edges where no map is converted from one scale to another: the operator's ends,
            of an Add its inputs, have one scale.
    """

    convolutions: tuple[int, int]
    pairs: int
    edges: int
    reformat_free: int


def plan(model: ModelProto, *, keep_float: Collection[str] = (), activations: bool = False) -> Plan:
    """Which convolutions of a graph are quantised, and which tensors.

    Args:
        model: a float32 graph of `fastyolo export`, with any outputs. It is not changed.
        keep_float: layers to leave in float, by the names of torch's modules: "model.4" means the whole block,
            "model.22.cv3.0" a branch, "model.22.cv3.0.0.conv" a convolution.
        activations: quantise what convolutions put out too, and what their SiLU puts out, as ONNX Runtime wants it.

    Raises:
        TypeError: keep_float is a string.
        ValueError: no convolution belongs to one of these layers, or none is left; or the graph is quantised already,
            in float16, of an opset below 13, or holds nodes of plugins.
    """
    _require_float32(model)
    graph = _Graph(model.graph)
    excluded = _last_convolutions(graph) | _gates(graph) | _kept(layers(model), keep_float)
    convolutions = [node for node in graph.convolutions if node.name not in excluded]
    if not convolutions:
        raise ValueError("keep_float must leave a convolution to quantise, and none is left; name fewer layers.")
    quantised = _quantised(graph, convolutions)
    activated = _activated(graph, convolutions) if activations else set()
    movers = [node for node in graph.movers if quantised.issuperset((*_maps(node), *node.output))]
    adds = [node for node in graph.adds if quantised.issuperset(node.input)]

    consumers: dict[str, list[str]] = {tensor: [] for tensor in graph.tensors if tensor in quantised | activated}
    for node in (*convolutions, *movers, *adds):
        for tensor in dict.fromkeys(_maps(node)):
            if tensor not in activated:
                consumers[tensor].append(node.name)
    for tensor in activated:
        consumers[tensor] += dict.fromkeys(node.name for node in graph.readers[tensor])
    shared = _Partition(consumers)
    for node in movers:
        shared.join(*_maps(node), *node.output)
    for node in adds:
        shared.join(*node.input)
    moved = {tensor for node in movers for tensor in node.output}
    groups = shared.groups()
    return Plan(
        convolutions=tuple(node.name for node in convolutions),
        groups=groups,
        sources=tuple(tuple(tensor for tensor in group if tensor not in moved) for group in groups),
        consumers={tensor: tuple(names) for tensor, names in consumers.items()},
    )


def layers(model: ModelProto) -> dict[str, str]:
    """Of each Conv node, by its name, torch's name of the module: {"/model.4/cv1/conv/Conv": "model.4.cv1.conv"}.

    Those that `plan` never quantises are among them. Of a convolution that a module computes without a module for it,
    the name is that of the former.
    """
    return {node.name: layer_of(node.name) for node in model.graph.node if node.op_type == "Conv"}


def layer_of(node: str) -> str:
    """torch's name of the module that a node comes from, by the node's name.

    torch's exporter writes a scope for each module on the way, and that of a container's item as m/m.0.
    """
    names: list[str] = []
    for scope in node.split("/")[1:-1]:
        if names and scope.startswith(f"{names[-1]}."):
            names.pop()
        names.append(scope)
    return ".".join(names)


def scales(plan: Plan, ranges: Mapping[str, float]) -> list[float]:
    """The steps for `insert`, of which each group's largest range makes 127.

    Args:
        plan: as above.
        ranges: the largest absolute value that is to be reached, for each of the plan's sources at least. A tensor that
            is 0 everywhere may have any step.
    """
    return [max(ranges[tensor] for tensor in sources) / MAXIMUM or 1.0 for sources in plan.sources]


def asymmetric(plan: Plan, intervals: Mapping[str, tuple[float, float]]) -> tuple[list[float], list[int]]:
    """The steps and the zero points for `insert`, of which each group's interval makes 0 to 255.

    A SiLU's values are above -0.28, so that of symmetric int8 nearly half would be unused.

    Args:
        plan: as above.
        intervals: least and largest value that is to be reached, for each of the plan's sources at least.
    """
    steps, zeros = [], []
    for sources in plan.sources:
        low = min(0.0, *(intervals[tensor][0] for tensor in sources))
        high = max(0.0, *(intervals[tensor][1] for tensor in sources))
        steps.append((high - low) / 255 or 1.0)
        zeros.append(round(-low / steps[-1]))
    return steps, zeros


def insert(
    model: ModelProto, plan: Plan, scales: Sequence[float], zero_points: Sequence[int] | None = None
) -> ModelProto:
    """A copy of the graph with QuantizeLinear and DequantizeLinear where the plan says.

    Maps have one scale each; weights are int8 with a scale for each output channel from its largest absolute value;
    biases stay float.

    Args:
        model: the graph that the plan was made for.
        plan: as above.
        scales: a positive step for each of `plan.groups`: the largest absolute value that int8 is to reach, over 127.
        zero_points: in [0, 255], of maps in uint8. None: maps in int8 with the zero point 0.

    Raises:
        ValueError: the number of scales is not that of the groups, or a scale is not positive and finite.
    """
    if len(scales) != len(plan.groups):
        raise ValueError(f"scales must be one for each of {len(plan.groups)} groups of tensors, got {len(scales)}.")
    for group, scale in zip(plan.groups, scales, strict=True):
        if not 0 < np.float32(scale) < np.inf:
            raise ValueError(f"scales must be positive and finite, got {scale} for {group[0]!r}; calibrate again.")
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:]
    del result.graph.value_info[:]  # sizes of inner maps, which readers infer
    insertion = _Insertion(model.graph, plan, scales, zero_points)
    result.graph.node.extend(insertion.nodes())
    read = {tensor for node in result.graph.node for tensor in node.input}
    result.graph.initializer.extend(item for item in model.graph.initializer if item.name in read)
    result.graph.initializer.extend(insertion.constants)
    onnx.checker.check_model(result, full_check=True)
    return result


def count(model: ModelProto) -> Counts:
    """The counts of a quantised graph, whatever quantised it."""
    graph = _Graph(model.graph)
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}

    def scale(node: NodeProto | None, operator: str) -> bytes | None:
        return constants[node.input[1]].tobytes() if node is not None and node.op_type == operator else None

    edges = free = 0
    for node in (*graph.movers, *graph.adds):
        sources = [graph.producer.get(tensor) for tensor in _maps(node)]
        ends = {scale(source, "DequantizeLinear") for source in sources}
        if ends == {None}:
            continue
        if node.op_type != "Add":
            ends |= {scale(reader, "QuantizeLinear") for tensor in node.output for reader in graph.readers[tensor]}
        edges += len(sources)
        free += len(sources) * (len(ends) == 1)
    in_int8 = [
        node
        for node in graph.convolutions
        if all(scale(graph.producer.get(tensor), "DequantizeLinear") for tensor in node.input[:2])
    ]
    return Counts(
        convolutions=(len(in_int8), len(graph.convolutions)),
        pairs=sum(node.op_type == "QuantizeLinear" and node.input[0] not in constants for node in graph.nodes),
        edges=edges,
        reformat_free=free,
    )


class _Graph:
    """A graph's nodes, and who makes and reads each tensor."""

    def __init__(self, graph: GraphProto) -> None:
        constants = {item.name for item in graph.initializer}
        self.nodes: list[NodeProto] = list(graph.node)
        self.outputs = [item.name for item in graph.output]
        self.producer = {tensor: node for node in self.nodes for tensor in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for tensor in node.input:
                self.readers[tensor].append(node)
        self.tensors = [item.name for item in graph.input if item.name not in constants] + list(self.producer)
        self.convolutions = [node for node in self.nodes if node.op_type == "Conv"]
        self.movers = [node for node in self.nodes if _moves(node) and constants.isdisjoint(_maps(node))]
        self.adds = [node for node in self.nodes if node.op_type == "Add" and constants.isdisjoint(node.input)]


def _moves(node: NodeProto) -> bool:
    if node.op_type == "Resize":
        modes = [attribute.s for attribute in node.attribute if attribute.name == "mode"]
        return modes in ([], [b"nearest"])  # others interpolate
    return node.op_type in _MOVES


def _maps(node: NodeProto) -> list[str]:
    """The inputs of a node that can be maps: no weights, sizes or indices."""
    return list(node.input if node.op_type in ("Add", "Concat") else node.input[:1])


def _quantised(graph: _Graph, convolutions: Sequence[NodeProto]) -> set[str]:
    """The inputs of these convolutions; those of operators that only move values on the way there; and both inputs of
    residual Adds, which are those where one is quantised anyway."""
    found = {node.input[0] for node in convolutions}
    size = 0
    while size != len(found):
        size = len(found)
        for node in reversed(graph.movers):
            if found.issuperset(node.output):
                found.update(_maps(node))
        for node in graph.adds:
            if not found.isdisjoint(node.input):
                found.update(node.input)
    return found


def _activated(graph: _Graph, convolutions: Sequence[NodeProto]) -> set[str]:
    """What these convolutions put out; and of those with a SiLU, its sigmoid and its product."""
    found: set[str] = set()
    for node in convolutions:
        found.update(node.output)
        readers = {reader.op_type: reader for reader in graph.readers[node.output[0]]}
        if readers.keys() == {"Sigmoid", "Mul"} and readers["Sigmoid"].output[0] in readers["Mul"].input:
            found.update(readers["Sigmoid"].output, readers["Mul"].output)
    return found - set(graph.outputs)


def _last_convolutions(graph: _Graph) -> set[str]:
    """Those after which no other convolution comes, but for that of a DFL, which averages after a softmax."""
    found: set[str] = set()
    seen: set[str] = set()
    tensors = list(graph.outputs)
    while tensors:
        tensor = tensors.pop()
        node = graph.producer.get(tensor)
        if node is None or tensor in seen or node.op_type == "Shape":
            continue
        seen.add(tensor)
        if node.op_type == "Conv":
            found.add(node.name)
            before = graph.producer.get(node.input[0])
            if before is None or before.op_type != "Softmax":
                continue
        tensors.extend(node.input)
    return found


def _gates(graph: _Graph) -> set[str]:
    """Those that see nothing but means over a whole map. They cost nothing, and what they put out scales whole maps."""
    of_means: set[str] = set()
    for node in graph.nodes:
        inputs = [tensor for tensor in node.input if tensor in graph.producer]
        if node.op_type in _MEANS or (inputs and of_means.issuperset(inputs)):
            of_means.update(node.output)
    return {node.name for node in graph.convolutions if node.input[0] in of_means}


def _kept(known: Mapping[str, str], keep_float: Collection[str]) -> set[str]:
    """The nodes of `known` that belong to these layers."""
    if isinstance(keep_float, str):
        raise TypeError(f"keep_float must be a list of layers, got {keep_float!r}.")
    found: set[str] = set()
    for layer in keep_float:
        nodes = {node for node, name in known.items() if f"{name}.".startswith(f"{layer}.")}
        if not nodes:
            nearest = difflib.get_close_matches(layer, sorted(_prefixes(known.values())), n=1, cutoff=0)
            raise ValueError(
                f"keep_float must name layers with convolutions, got {layer!r}; the nearest is {nearest[0]!r}."
            )
        found |= nodes
    return found


def _prefixes(names: Iterable[str]) -> set[str]:
    """The layers that hold those of these names, and they themselves."""
    return {
        ".".join(parts[:length]) for parts in (name.split(".") for name in names) for length in range(2, len(parts) + 1)
    }


def _require_float32(model: ModelProto) -> None:
    again = "export the model again with 'fastyolo export --format onnx'"
    nodes = model.graph.node
    if any(node.op_type in _OF_INT8 for node in nodes):
        raise ValueError("The model is quantised already; pass the float32 file that it was made from.")
    if strangers := sorted({node.op_type for node in nodes if node.domain not in ("", "ai.onnx")}):
        raise ValueError(f"The model holds nodes of plugins ({', '.join(strangers)}); {again}.")
    types = {item.data_type for item in model.graph.initializer}
    if types & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        raise ValueError(f"The model must be in float32, got weights in float16; {again}, without --half.")
    opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    if opset < _OPSET:
        raise ValueError(f"The model must be of opset {_OPSET} or later, got {opset}; {again}.")
    weights = {item.name for item in model.graph.initializer}
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    if not convolutions or not all(node.name and node.input[1] in weights for node in convolutions):
        raise ValueError(f"The model must have convolutions with names and constant weights; {again}.")


class _Partition:
    """Disjoint sets, in the order in which their items are given."""

    def __init__(self, items: Iterable[str]) -> None:
        self._above = {item: item for item in items}

    def join(self, first: str, *others: str) -> None:
        for other in others:
            self._above[self._root(other)] = self._root(first)

    def groups(self) -> tuple[tuple[str, ...], ...]:
        found: dict[str, list[str]] = defaultdict(list)
        for item in self._above:
            found[self._root(item)].append(item)
        return tuple(map(tuple, found.values()))

    def _root(self, item: str) -> str:
        while self._above[item] != item:
            item = self._above[item]
        return item


class _Insertion:
    """The nodes of a quantised graph, and the constants that they read beside those of the graph."""

    def __init__(
        self, graph: GraphProto, plan: Plan, scales: Sequence[float], zero_points: Sequence[int] | None
    ) -> None:
        self.constants: list[TensorProto] = []
        self._graph = graph
        self._plan = plan
        self._weights = {item.name: item for item in graph.initializer}
        self._scales: dict[str, str] = {}
        self._zeros: dict[str, str] = {}
        zero = self._constant("quantization.zero_point", np.int8(0)) if zero_points is None else ""
        for index, (group, scale) in enumerate(zip(plan.groups, scales, strict=True)):
            if zero_points is not None:
                zero = self._constant(f"quantization.zero_point_{index}", np.uint8(zero_points[index]))
            self._scales |= dict.fromkeys(group, self._constant(f"quantization.scale_{index}", np.float32(scale)))
            self._zeros |= dict.fromkeys(group, zero)

    def nodes(self) -> Iterator[NodeProto]:
        """In an order in which they can run."""
        for value in self._graph.input:
            yield from self._of_map(value.name)
        convolutions = set(self._plan.convolutions)
        for original in self._graph.node:
            node = NodeProto()
            node.CopyFrom(original)
            for place, tensor in enumerate(original.input):
                if node.name in self._plan.consumers.get(tensor, ()):
                    node.input[place] = _dequantised(tensor)
            if node.name in convolutions:
                yield from self._of_weight(node)
            yield node
            for tensor in node.output:
                yield from self._of_map(tensor)

    def _of_map(self, tensor: str) -> Iterator[NodeProto]:
        if tensor in self._zeros:
            scale, zero, whole = self._scales[tensor], self._zeros[tensor], f"{tensor}_quantized"
            yield _node("QuantizeLinear", tensor, [tensor, scale, zero], whole)
            yield _node("DequantizeLinear", tensor, [whole, scale, zero], _dequantised(tensor))

    def _of_weight(self, convolution: NodeProto) -> Iterator[NodeProto]:
        """Lets the convolution read its weight in int8; two convolutions may have one."""
        name = convolution.input[1]
        convolution.input[1] = _dequantised(name)
        if name not in self._scales:
            whole, steps = _quantise(numpy_helper.to_array(self._weights[name]))
            self._scales[name] = self._constant(f"{name}_scale", steps)
            inputs = [
                self._constant(f"{name}_quantized", whole),
                self._scales[name],
                self._constant(f"{name}_zero_point", np.zeros(len(steps), np.int8)),
            ]
            yield _node("DequantizeLinear", name, inputs, _dequantised(name), axis=0)

    def _constant(self, name: str, value: npt.ArrayLike) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _dequantised(tensor: str) -> str:
    return f"{tensor}_dequantized"


def _node(operator: str, tensor: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, [output], name=f"{tensor}_{operator}", **attributes)


def _quantise(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """weight [O, ...] -> the same in int8, and the step [O] of each output channel.

    Channels of next to no weight, as pruning leaves them, take a step at which their bias still fits into the 32 bits
    that ONNX Runtime adds it in.
    """
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    steps = np.maximum(largest, _FADED * (largest.max() or 1)).astype(np.float32) / MAXIMUM
    whole = np.rint(weight / steps.reshape(-1, *[1] * (weight.ndim - 1)))
    return whole.astype(np.int8), steps
