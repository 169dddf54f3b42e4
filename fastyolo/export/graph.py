# SPDX-License-Identifier: AGPL-3.0-or-later
"""What follows a network in an ONNX graph: non-maximum suppression, the checks of the whole, and its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fastyolo.runtime.metadata import THRESHOLDS_NAME, Nms, output_names

OPSET = 17  # what TensorRT 8.6, OpenVINO and ONNX Runtime's quantiser all read
DOMAIN = "fastyolo"  # of the TensorRT plugins' nodes

PLUGIN_FIELDS = {"plugin_version": "1", "plugin_namespace": ""}  # the parser recognises plugins by these from 10.15 on


class _Operators:
    """Adds nodes to a graph: `add("Mul", a, b)` is the name of their product.

    Inputs are names of tensors, or constants as arrays, which become initializers. Nodes are named as torch's exporter
    names those of a module called `scope`.
    """

    def __init__(self, graph: onnx.GraphProto, scope: str) -> None:
        self._graph = graph
        self._scope = scope

    def __call__(
        self, operator: str, *inputs: str | np.ndarray[Any, Any], output: str | None = None, **attributes: Any
    ) -> str:
        return self.several(operator, *inputs, outputs=[output], **attributes)[0]

    def several(
        self, operator: str, *inputs: str | np.ndarray[Any, Any], outputs: Sequence[str | None], **attributes: Any
    ) -> list[str]:
        """The names of all outputs of a node: those given, and made up ones for None."""
        name = f"/{self._scope}/{operator}_{len(self._graph.node)}"
        names = [given or f"{name}_output_{index}" for index, given in enumerate(outputs)]
        values = [
            value if isinstance(value, str) else self._constant(f"{name}_constant_{index}", value)
            for index, value in enumerate(inputs)
        ]
        self._graph.node.append(helper.make_node(operator, values, names, name=name, **attributes))
        return names

    def _constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name


def append_nms(model: ModelProto, nms: Nms) -> None:
    """Turn a model of candidates into one of detections, by standard operators.

    The model's two outputs, boxes [B, A, 4] float32 (two opposite corners, in input pixels) and class logits [B, C, A]
    float32, become the five outputs of `fastyolo.ops.decode_nms`, with its meaning but for ties. Scores are ranked
    after the sigmoid, which in float32 makes equal some that differ as logits. Which of two equal scores suppresses the
    other is up to the runtime's NonMaxSuppression; of what it selects, they rank by lower anchor, then lower class.

    Raises:
        ValueError: `nms` asks for several classes of an anchor and suppression across classes. A box suppresses
            itself then, so this says no more than the best class of each anchor does.
    """
    if nms.multi_label and nms.class_agnostic:
        raise ValueError(
            "multi_label cannot be combined with agnostic_nms, which keeps the best class of an anchor only; drop one."
        )
    graph = model.graph
    boxes, logits = (output.name for output in graph.output)
    batch, classes, anchors = _sizes(graph.output[1])
    assert isinstance(classes, int)
    add = _Operators(graph, "detections")
    scores, label = _scores(add, logits, classes, anchors if isinstance(anchors, int) else None, nms)
    selected = add(
        "NonMaxSuppression",
        boxes,
        scores,
        _long(nms.max_det),
        _float(nms.iou_threshold),
        _float(nms.score_threshold),
    )  # [n, 3]: image, class, anchor
    values = add("GatherND", scores, selected)
    if label is None:
        kept = add("ScatterND", _zeros(add, scores), selected, values)
        kept = add("Reshape", add("Transpose", kept, perm=[0, 2, 1]), _long(0, -1))  # [B, A * C], classes innermost
    else:
        kept = add("ScatterND", _zeros(add, label), add("Gather", selected, _long(0, 2), axis=1), values)  # [B, A]
    _rank(add, boxes, kept, label, classes, nms.max_det)
    _set_detection_outputs(graph, batch, nms.max_det)


def _scores(add: _Operators, logits: str, classes: int, anchors: int | None, nms: Nms) -> tuple[str, str | None]:
    """The candidates' scores, others being 0, and the best class [B, A] of each anchor unless all count.

    Scores are [B, C, A], or [B, 1, A] across classes.
    """
    if nms.multi_label:
        return _best_candidates(add, add("Sigmoid", logits), classes, anchors, nms.max_candidates), None
    best = add("Sigmoid", add("ReduceMax", logits, axes=[1], keepdims=1))
    scores = _best_candidates(add, best, 1, anchors, nms.max_candidates)
    label = add("ArgMax", logits, axis=1, keepdims=1)
    if not nms.class_agnostic:
        own = add("Equal", label, np.arange(classes).reshape(-1, 1))
        scores = add("Where", own, scores, _float(0))
    return scores, add("Squeeze", label, _long(1))


def _best_candidates(add: _Operators, scores: str, rows: int, count: int | None, limit: int) -> str:
    """scores [B, rows, A] with those of an image beyond its best `limit` set to 0; `count` is A, if it is known."""
    if count is not None and rows * count <= limit:
        return scores
    flat = add("Reshape", scores, _long(0, -1))
    size = add("Min", add("Slice", add("Shape", flat), _long(1), _long(2)), _long(limit))
    best, place = add.several("TopK", flat, size, outputs=[None, None], axis=1)
    kept = add("ScatterElements", _zeros(add, flat), place, best, axis=1)
    return add("Reshape", kept, _long(0, rows, -1))


def _rank(add: _Operators, boxes: str, kept: str, label: str | None, classes: int, max_det: int) -> None:
    """The outputs, from scores of kept candidates [B, A], or [B, A * C] without `label`; those of others are 0."""
    padded = add("Pad", kept, _long(0, 0, 0, max_det))  # small images have fewer candidates than there are rows
    scores, place = add.several("TopK", padded, _long(max_det), outputs=["scores", None], axis=1)
    valid = add("Greater", scores, _float(0))  # as the score threshold is 0 at least
    place = add("Where", valid, place, _long(0))
    if label is None:
        anchor, label = add("Div", place, _long(classes)), add("Mod", place, _long(classes))
    else:
        anchor, label = place, add("GatherElements", label, place, axis=1)
    found = add("GatherND", boxes, add("Unsqueeze", anchor, _long(2)), batch_dims=1)
    add("ReduceSum", add("Cast", valid, to=TensorProto.INT32), _long(1), keepdims=0, output="num_dets")
    add("Where", add("Unsqueeze", valid, _long(2)), found, _float(0), output="boxes")
    add("Cast", add("Where", valid, label, _long(-1)), to=TensorProto.INT32, output="labels")
    add("Cast", add("Where", valid, anchor, _long(-1)), to=TensorProto.INT32, output="indices")


def _zeros(add: _Operators, like: str) -> str:
    return add("ConstantOfShape", add("Shape", like))


def _float(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


def _long(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def append_decode_nms(model: ModelProto, nms: Nms, strides: Sequence[int], *, runtime_thresholds: bool = False) -> None:
    """Turn a model of head maps into one of detections, by the TensorRT plugin FastYoloDecodeNMS.

    Args:
        model: its outputs are the box maps of all levels, then their class maps.
        runtime_thresholds: add the input `thresholds` [2] float32, whose score and IoU replace those of `nms`.
    """
    graph = model.graph
    batch = _sizes(graph.output[0])[0]
    inputs = [output.name for output in graph.output]
    if runtime_thresholds:
        graph.input.append(helper.make_tensor_value_info(THRESHOLDS_NAME, TensorProto.FLOAT, [2]))
        inputs.append(THRESHOLDS_NAME)
    fields: dict[str, Any] = {
        name: int(value) if isinstance(value, bool) else value for name, value in asdict(nms).items()
    }
    graph.node.append(
        helper.make_node(
            "FastYoloDecodeNMS",
            inputs,
            output_names("detections", len(strides)),
            name="/detections/FastYoloDecodeNMS",
            domain=DOMAIN,
            strides=[float(stride) for stride in strides],
            **fields,
            **PLUGIN_FIELDS,
        )
    )
    _require_domain(model)
    _set_detection_outputs(graph, batch, nms.max_det)


def finish(model: ModelProto, properties: Mapping[str, str], *, portable: bool) -> None:
    """Give a graph its metadata, and check it.

    Raises:
        RuntimeError: the graph is `portable` but holds operators that are not ONNX's own.
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: the graph is not a valid one.
    """
    strangers = sorted({node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    if portable and strangers:
        raise RuntimeError(
            f"the graph holds {', '.join(strangers)}, not operators of ONNX; export the model with format "
            f"'tensorrt-onnx' or without the modules that these come from."
        )
    helper.set_model_props(model, dict(properties))
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def _require_domain(model: ModelProto) -> None:
    if all(opset.domain != DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _sizes(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """The sizes of a tensor; of free ones, their names."""
    return tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim)


def _set_detection_outputs(graph: onnx.GraphProto, batch: int | str, max_det: int) -> None:
    names = output_names("detections", 0)
    types = (TensorProto.INT32, TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT32)
    shapes: tuple[tuple[int, ...], ...] = ((), (max_det, 4), (max_det,), (max_det,), (max_det,))
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(name, kind, (batch, *shape))
        for name, kind, shape in zip(names, types, shapes, strict=True)
    )
