# SPDX-License-Identifier: AGPL-3.0-or-later
"""Graphs in int8 as OpenVINO computes them rightly on every processor.

Maps that are quantised symmetrically, as TensorRT wants them, are int8. On a processor without AMX, OpenVINO 2026.4
computes convolutions of such maps wrongly behind a Concat or a Split: the detections are noise. With 128 added, as
uint8 with that zero point, the same numbers come out right, and no more slowly.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

_ZERO_POINT = "fastyolo_zero_point_128"


def readable(file: Path) -> Path | bytes:
    """What OpenVINO is to read in place of a file: the file itself, or an ONNX graph in int8 with its maps in uint8.

    Raises:
        ModuleNotFoundError: the graph is in int8, and the package onnx is missing.
    """
    if file.suffix.lower() != ".onnx" or b"QuantizeLinear" not in file.read_bytes():
        return file
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{file} is in int8, which fastyolo prepares for OpenVINO with the package onnx; pip install onnx.",
            name=error.name,
        ) from error
    try:
        model = onnx.load(file)
    except DecodeError:  # a damaged file, which OpenVINO is to refuse
        return file
    make_unsigned(model)
    contents: bytes = model.SerializeToString()
    return contents


def make_unsigned(model: ModelProto) -> None:
    """Turn maps in int8 with a zero point of 0 into uint8 with one of 128, in place: the same numbers come out.

    Constants, zero points for each channel, and int8 that other nodes than DequantizeLinear read, stay.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {item.name: item for item in graph.initializer}

    def is_symmetric(names: list[str]) -> bool:
        if len(names) < 3 or names[2] not in constants:
            return False
        value = numpy_helper.to_array(constants[names[2]])
        return value.dtype == np.int8 and value.size == 1 and not value.any()

    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    changed = {
        node.output[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear"
        and node.input[0] not in constants
        and is_symmetric(list(node.input))
        and set(readers.get(node.output[0], ())) == {"DequantizeLinear"}
    }
    for node in graph.node:
        quantises = node.op_type == "QuantizeLinear" and node.output[0] in changed
        if quantises or (node.op_type == "DequantizeLinear" and node.input[0] in changed):
            node.input[:] = [*node.input[:2], _ZERO_POINT]
    if changed:
        graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), _ZERO_POINT))
    kept = [info for info in graph.value_info if info.name not in changed]  # those of the others say int8
    del graph.value_info[:]
    graph.value_info.extend(kept)
