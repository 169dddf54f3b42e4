# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which layer of an exported graph departs from its checkpoint, apart from what only follows from it.

Each module of the checkpoint is given the very tensors that enter its nodes in the graph, and its output is compared
with the tensor that leaves them. So a difference is the layer's own: what came from above is in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastyolo.diagnose.culprits import PREPARATIONS, Array, Difference, Finding, factor_text, of_input, reordered
from fastyolo.diagnose.graph import Block, Graph, Precision

if TYPE_CHECKING:
    from fastyolo.integrations.ultralytics.parity import Layer, Reference

# Of the tensors that are held at one time.
MEMORY = 256 * 2**20

# Relative, in one layer; rounding alone stays ten times below in floating point. For int8 it is what is left when the
# output is compared on the steps that it is rounded to.
TOLERANCES = {"float32": 5e-5, "float16": 5e-3, "int8": 0.2}

# Relative: how much of a layer's values its own steps may cost and count as chosen so. A Concat gives one scale to all
# that it joins, and so twelve steps instead of 127 to a layer whose values are a tenth of its neighbours'.
_COARSEST_STEPS = 0.35

# Of the largest difference: what float16 cannot resolve of values near zero.
FLOORS = {"float32": 0.0, "float16": 1e-5, "int8": 1e-5}

_FLOAT16_MAX = 65504


class IncomparableError(ValueError):
    """A file cannot be read, or it is not of the checkpoint's model, so that there is nothing to compare."""


@dataclass(frozen=True)
class Departure:
    """A layer that, given equal inputs, computes something else than the checkpoint's.

    Attributes:
        path: of the module.
        kind: of the module.
        nodes: of the graph, by name.
        difference: of its output.
        cause: "layer", or one of those of `culprits`.
        reason: a clause that says more, or "".
    """

    path: str
    kind: str
    nodes: tuple[str, ...]
    difference: Difference
    cause: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Every layer of a graph against the checkpoint's.

    Attributes:
        compared: how many.
        convolutions: how many of them are convolutions.
        difference: over all of them.
        departures: in the order of the graph; of a module and its parts, the parts.
        finding: what this means, if anything departs.
    """

    compared: int
    convolutions: int
    difference: Difference
    departures: tuple[Departure, ...]
    finding: Finding | None


def compare(reference: Reference, graph: Graph, tensor: Array, prepared: Array) -> Comparison:
    """Compare the layers of `graph` with those of the checkpoint on one image.

    Args:
        reference: the checkpoint.
        graph: the exported file.
        tensor: [1, 3, H, W], the input of the graph.
        prepared: [1, 3, H, W], what the first layer must get: `tensor`, unless the graph prepares its input itself.

    Raises:
        IncomparableError: the layers are of other sizes.
    """
    layers = reference.layers(prepared)
    blocks = [block for block in graph.blocks if block.path in layers]
    tolerance, floor = TOLERANCES[graph.precision], FLOORS[graph.precision]
    departures: list[Departure] = []
    largest = Difference(0.0, 0.0, 0.0)
    for chunk in _chunks(blocks, layers):
        values = graph.run(tensor, (name for block in chunk for name in (*block.inputs, block.output)))
        for block in chunk:
            inputs = [values[name] for name in block.inputs]
            layer, output = layers[block.path], values[block.output]
            _check_sizes(block, layer, inputs, output)
            if not all(np.isfinite(x).all() for x in inputs):
                continue  # what made them so is above
            expected = reference.call(block.path, layer, inputs)
            difference = _difference(output, expected, block.step)
            if difference.maximum > floor:
                largest |= difference
            if difference.relative > tolerance and difference.maximum > floor:
                why = _reason(reference, block, layer, inputs, output, expected, tolerance)
                departures.append(Departure(block.path, layer.kind, block.nodes, difference, *why))
    innermost = tuple(x for x in departures if not any(y.path.startswith(x.path + ".") for y in departures))
    convolutions = sum(layers[block.path].kind == "Conv2d" for block in blocks)
    finding = _entry(graph, blocks, tensor, prepared, tolerance) or _finding(innermost, convolutions, graph.precision)
    return Comparison(len(blocks), convolutions, largest, innermost, finding)


def _difference(output: Array, expected: Array, step: float | None) -> Difference:
    """Of a layer's output, which is rounded to multiples of `step`: what that rounding does not explain."""
    difference = Difference.between(output, expected)
    if not step:
        return difference
    rounded = np.round(expected / step) * step
    if Difference.between(rounded, expected).relative > _COARSEST_STEPS:
        return difference
    return min(difference, Difference.between(output, rounded), key=lambda x: x.relative)


def _check_sizes(block: Block, layer: Layer, inputs: Sequence[Array], output: Array) -> None:
    found = tuple(x.shape for x in (*inputs, output))
    if layer.shapes and found != layer.shapes:
        sizes = (", ".join("x".join(map(str, shape)) for shape in shapes) for shapes in (found, layer.shapes))
        raise IncomparableError(
            f"The file is of another model than the checkpoint: the inputs and the output of its layer {block.path} "
            f"are {' where the checkpoint has '.join(sizes)}; pass the checkpoint that it was exported from."
        )


def _chunks(blocks: Sequence[Block], layers: Mapping[str, Layer]) -> Iterator[list[Block]]:
    chunk: list[Block] = []
    nbytes = 0
    for block in blocks:
        if chunk and nbytes + layers[block.path].nbytes > MEMORY:
            yield chunk
            chunk, nbytes = [], 0
        chunk.append(block)
        nbytes += layers[block.path].nbytes
    if chunk:
        yield chunk


def _reason(
    reference: Reference,
    block: Block,
    layer: Layer,
    inputs: Sequence[Array],
    output: Array,
    expected: Array,
    tolerance: float,
) -> tuple[str, str]:
    """Cause and reason of a departure."""

    def agrees(values: Array) -> bool:
        return Difference.between(output, values).relative <= tolerance

    if not np.isfinite(output).all():
        peak = float(np.abs(expected).max())
        if peak > _FLOAT16_MAX:
            return "float16 overflow", f"its values reach {peak:.3g}, and float16 ends at {_FLOAT16_MAX}"
        return "layer", "its values are not finite"
    if agrees(inputs[0]):
        return "layer", "it returns its input unchanged"
    if inputs[0].shape[1] == 3:  # only the network's own input has three channels
        for preparation in PREPARATIONS:
            if agrees(reference.call(block.path, layer, [preparation.apply(inputs[0])])):
                ((cause, clause), *_) = preparation.findings
                return cause, f"it is right for another input, in which {clause}"
    if reordered(output, expected, tolerance):
        classes = block.path.startswith(reference.branches[1])
        return "class order" if classes else "layer", "its output channels are in another order"
    at_zero = reference.call(block.path, layer, [np.zeros_like(x) for x in inputs])
    for base, what in ((at_zero, "weights are"), (np.zeros_like(expected), "output is")):
        signal = (expected - base).astype(np.float64)
        power = float(np.square(signal).sum())
        factor = float((signal * (output - base)).sum() / power) if power else 1.0
        if agrees(base + factor * signal):
            return "layer", f"its {what} multiplied by {factor_text(factor)}"
    return "layer", ""


def _entry(graph: Graph, blocks: Sequence[Block], tensor: Array, prepared: Array, tolerance: float) -> Finding | None:
    """What the graph does to its input before the first layer."""
    if not blocks or (blocks[0].inputs[0] == graph.input and tensor is prepared):
        return None
    entering = graph.run(tensor, [blocks[0].inputs[0]])[blocks[0].inputs[0]]
    if Difference.between(entering, prepared).within(tolerance):
        return None
    ((cause, clause), *_) = of_input(entering, prepared, {}, tolerance) or (("preparation", "its values are changed"),)
    return Finding(
        cause,
        f"The graph changes its input before the first layer, {blocks[0].path}: {clause}; remove these nodes, or the "
        f"same step from the preparation of the images.",
    )


def _finding(departures: Sequence[Departure], convolutions: int, precision: Precision) -> Finding | None:
    if not departures:
        return None
    wrong = sum(departure.kind == "Conv2d" for departure in departures)
    if wrong > 2 and wrong > convolutions / 2:
        return Finding(
            "other weights",
            f"{wrong} of {convolutions} convolutions have other weights than the checkpoint: the file was exported "
            f"from another one; export it again from this checkpoint.",
        )
    first = departures[0]
    reason = f": {first.reason}" if first.reason else ""
    advice = "export the model again"
    if first.cause == "float16 overflow":
        advice = "keep this layer in float32"
    elif precision == "int8":
        advice = f"keep it in float (--keep-float {first.path}), or calibrate on images like those that it will see"
    further = len(departures) - 1
    others = f" {further} further layer{'s depart' if further > 1 else ' departs'} too." if further else ""
    return Finding(
        first.cause,
        f"The first layer that departs given equal inputs is {first.path} ({first.kind}, node {first.nodes[-1]})"
        f"{reason}; {advice}.{others}",
    )
