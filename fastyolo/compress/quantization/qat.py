# SPDX-License-Identifier: AGPL-3.0-or-later
"""What training for INT8 has to know of a plan for a network's ONNX graph: the same places in terms of torch's modules.

The training rounds where the plan quantises, in the ranges that calibration found, and the file is made by the same
plan from the weights that it leaves. That batch normalisations are folded into the weights meanwhile changes nothing:
they multiply an output channel and its step by the same number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from fastyolo.compress.quantization.qdq import MAXIMUM, Plan, layer_of


@dataclass(frozen=True)
class Quantization:
    """Where, and in which ranges, a network is quantised.

    Attributes:
        ranges: of each group of tensors with one scale, by the name of its first in the graph, the largest absolute
            value that int8 reaches.
        convolutions, sums: the places, as `fastyolo.integrations.modelopt.quantize` takes them.
        keep_float: layers that stay float, as `plan` takes them.
    """

    ranges: Mapping[str, float]
    convolutions: Mapping[str, Sequence[int]]
    sums: Mapping[str, Sequence[int | None]]
    keep_float: Sequence[str]

    def scales(self, plan: Plan) -> list[float]:
        """The steps for `fastyolo.compress.quantization.qdq.insert`.

        Raises:
            ValueError: the plan is that of another network, or its tensors have other names.
        """
        if [group[0] for group in plan.groups] != list(self.ranges):
            raise ValueError(
                "The graph has other tensors than the one that the ranges were measured in; quantise the checkpoint "
                "again with the versions of torch and onnxslim of its training, or train again."
            )
        return [largest / MAXIMUM for largest in self.ranges.values()]


def quantization(
    model: ModelProto, plan: Plan, scales: Sequence[float], keep_float: Collection[str] = ()
) -> Quantization:
    """A plan in terms of torch's modules.

    Args:
        model: the graph that the plan was made for.
        plan: as `fastyolo.compress.quantization.qdq.plan` returns it.
        scales: the step of each of its groups.
        keep_float: what it was made with.
    """
    group_of = {tensor: index for index, group in enumerate(plan.groups) for tensor in group}
    constants = {item.name for item in model.graph.initializer}
    convolutions: dict[str, list[int]] = defaultdict(list)
    sums: dict[str, list[int | None]] = defaultdict(list)
    for node in model.graph.node:
        in_int8 = node.name in plan.consumers.get(node.input[0], ())
        if node.op_type == "Conv" and in_int8:
            convolutions[layer_of(node.name)].append(group_of[node.input[0]])
        elif node.op_type == "Add" and constants.isdisjoint(node.input):
            sums[layer_of(node.name)].append(group_of[node.input[0]] if in_int8 else None)
    rounded = tuple(f"{name}." for name, groups in sums.items() if set(groups) != {None})
    return Quantization(
        ranges={group[0]: float(scale) * MAXIMUM for group, scale in zip(plan.groups, scales, strict=True)},
        convolutions={name: tuple(groups) for name, groups in convolutions.items()},
        sums={name: tuple(groups) for name, groups in sums.items() if f"{name}.".startswith(rounded)},
        keep_float=tuple(keep_float),
    )
