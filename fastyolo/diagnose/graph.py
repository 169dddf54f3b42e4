# SPDX-License-Identifier: AGPL-3.0-or-later
"""An ONNX graph taken apart into the modules that it was exported from.

torch.onnx.export names a node by the path of the module that called its operator: /model.2/cv1/conv/Conv belongs to the
module model.2.cv1.conv. The tensors that enter and leave the nodes below a path are then the module's input and output.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from fastyolo.runtime.engines import onnx_session, openvino_core

Precision = Literal["float32", "float16", "int8"]

# Their outputs depend on the sizes of their inputs alone.
_SHAPE_OPERATORS = ("Shape", "Size")


@dataclass(frozen=True)
class Block:
    """The nodes of one module.

    Attributes:
        path: of the module, as in torch's named_modules().
        inputs: names of the tensors that enter it, in the order of their use, without constants.
        output: name of the one tensor that leaves it.
        nodes: their names.
        step: between the values that the output can have, if it leaves through a DequantizeLinear with one scale.
    """

    path: str
    inputs: tuple[str, ...]
    output: str
    nodes: tuple[str, ...]
    step: float | None


class Graph:
    """An ONNX file, to look at and to run with any of its tensors as outputs.

    Attributes:
        input: name of its input.
        properties: what the file says of itself.

    Raises:
        ValueError: the file is not an ONNX model.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._model = onnx.load(file)
        except Exception as error:  # protobuf raises its own for whatever the bytes suggest
            raise ValueError(f"{file} is not an ONNX model ({error}).") from error
        self._nodes = list(self._model.graph.node)
        if not self._nodes or not self._model.graph.input:
            raise ValueError(f"{file} is not an ONNX model: it has no nodes or no input.")
        self.input = self._model.graph.input[0].name
        self._latest: tuple[tuple[str, ...], Any] | None = None
        sizes = self._model.graph.input[0].type.tensor_type.shape.dim
        self._batch = sizes[0].dim_value if sizes else 0  # 0: free
        self.properties = {entry.key: entry.value for entry in self._model.metadata_props}

    @property
    def precision(self) -> Precision:
        """Of the weights; int8 if anything is quantised."""
        if any(node.op_type in ("QuantizeLinear", "ConvInteger", "QLinearConv") for node in self._nodes):
            return "int8"
        types = {tensor.data_type for tensor in self._model.graph.initializer if len(tensor.dims) > 1}
        return "float16" if onnx.TensorProto.FLOAT16 in types else "float32"

    @functools.cached_property
    def blocks(self) -> list[Block]:
        """The modules with one output, in the order in which it is computed, the inner ones first."""
        members: dict[str, list[int]] = {}
        for index, node in enumerate(self._nodes):
            for path in _paths(node.name):
                members.setdefault(path, []).append(index)
        data = self._data()
        consumers = self._consumers()
        blocks = []
        for path, indices in members.items():
            if block := self._block(path, indices, data, consumers):
                blocks.append((max(i for i in indices if block.output in self._nodes[i].output), -len(path), block))
        return [block for *_, block in sorted(blocks, key=lambda item: item[:2])]

    def run(self, tensor: npt.NDArray[np.float32], names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """The values of tensors, by name, for one image [1, 3, H, W], in ONNX Runtime on the CPU.

        Only what they need is computed. A model of a fixed batch gets the image several times.
        """
        values = {self.input: tensor}
        wanted = tuple(dict.fromkeys(name for name in names if name != self.input))
        if wanted:
            session = self._session(wanted)
            dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
            images = np.repeat(tensor.astype(dtype), max(self._batch, 1), 0)
            for name, value in zip(wanted, session.run(wanted, {self.input: images}), strict=True):
                values[name] = value[:1] if value.shape[:1] == (self._batch,) else value
        return values

    def _session(self, outputs: tuple[str, ...]) -> Any:
        """The latest session is kept: image after image asks for the same outputs."""
        if self._latest is None or self._latest[0] != outputs:
            self._latest = (outputs, onnx_session(self._with_outputs(outputs)))
        return self._latest[1]

    def _with_outputs(self, names: Sequence[str]) -> bytes:
        outputs = self._model.graph.output
        own = list(outputs)
        del outputs[:]
        outputs.extend(onnx.ValueInfoProto(name=name) for name in names)
        try:
            content: bytes = self._model.SerializeToString()
            return content
        finally:
            del outputs[:]
            outputs.extend(own)

    def _data(self) -> set[str]:
        """The tensors that the values of the input reach, rather than its sizes alone."""
        data = {self.input}
        for node in self._nodes:
            if node.op_type not in _SHAPE_OPERATORS and not data.isdisjoint(node.input):
                data.update(node.output)
        return data

    def _consumers(self) -> Mapping[str, set[int]]:
        consumers: dict[str, set[int]] = {}
        for index, node in enumerate(self._nodes):
            for name in node.input:
                consumers.setdefault(name, set()).add(index)
        for output in self._model.graph.output:
            consumers.setdefault(output.name, set()).add(-1)
        return consumers

    def _block(
        self, path: str, indices: Sequence[int], data: set[str], consumers: Mapping[str, set[int]]
    ) -> Block | None:
        nodes = [self._nodes[index] for index in indices]
        made = {name for node in nodes for name in node.output}
        inputs = tuple(dict.fromkeys(x for node in nodes for x in node.input if x in data and x not in made))
        leaving = [name for name in made if name in data and consumers.get(name, set()) - set(indices)]
        if len(leaving) != 1 or not inputs:
            return None
        (last,) = (node for node in nodes if leaving[0] in node.output)
        scale = self._constants.get(last.input[1]) if last.op_type == "DequantizeLinear" else None
        step = float(scale.item()) if scale is not None else None
        return Block(path, inputs, leaving[0], tuple(node.name for node in nodes), step)

    @functools.cached_property
    def _constants(self) -> dict[str, npt.NDArray[Any]]:
        """The tensors of one element, by name."""
        tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}
        for node in self._nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                tensors[node.output[0]] = node.attribute[0].t
        return {
            name: onnx.numpy_helper.to_array(tensor) for name, tensor in tensors.items() if math.prod(tensor.dims) == 1
        }


def _paths(name: str) -> Iterator[str]:
    """/model.2/cv1/conv/Conv -> model.2, model.2.cv1, model.2.cv1.conv."""
    parts = name.split("/")
    if parts[0] or len(parts) < 3:
        return
    path: list[str] = []
    for part in parts[1:-1]:
        if path and part.startswith(path[-1] + "."):  # the parts of a Sequential in a ModuleList repeat its name
            path.pop()
        path.append(part)
        yield ".".join(path)


def openvino_precision(file: Path) -> Precision:
    """As `Graph.precision`, of an OpenVINO folder or .xml file."""
    import openvino

    (xml, *_) = sorted(file.glob("*.xml")) if file.is_dir() else [file]
    operators = openvino_core().read_model(xml).get_ops()
    if any(operator.get_type_name() == "FakeQuantize" for operator in operators):
        return "int8"
    weights = [x for x in operators if x.get_type_name() == "Constant" and len(x.output(0).partial_shape) > 1]
    return "float16" if any(x.output(0).element_type == openvino.Type.f16 for x in weights) else "float32"
