# SPDX-License-Identifier: AGPL-3.0-or-later
"""ONNX's NonMaxSuppression, alone in a model, in the runtimes that are installed.

It keeps, for each class, boxes in the order of their scores, which must exceed the threshold; a box shares its position
with all classes; at most `max_output_boxes_per_class` stay of each (https://onnx.ai/onnx/operators).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastyolo._machine import installed_version
from fastyolo.bench.timing import Call
from fastyolo.runtime.engines import onnx_session, openvino_core

PACKAGES = ("onnx", "onnxruntime", "openvino")  # that give NMS a peer, the first one for all others

_OPSET, _IR = 17, 8

_Feeds: TypeAlias = "Sequence[npt.NDArray[np.float32]]"


def onnx_nms_calls(
    boxes: Tensor, scores: Tensor, *, iou_threshold: float, score_threshold: float, max_per_class: int
) -> dict[str, Call]:
    """Calls that return the kept [n, 3] as image, class and position, by the name of the runtime.

    Args:
        boxes: [B, N, 4] xyxy, float32 on the CPU.
        scores: [B, C, N].
    """
    if installed_version("onnx") is None:
        return {}
    feeds = [x.contiguous().numpy() for x in (boxes, scores)]
    settings = (max_per_class, iou_threshold, score_threshold)
    model = _model(feeds[0].shape, feeds[1].shape, settings)
    return {name: load(model, feeds) for name, load in _RUNTIMES.items() if installed_version(name)}


def _model(boxes: Sequence[int], scores: Sequence[int], settings: tuple[int, float, float]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    names = ("max_output_boxes_per_class", "iou_threshold", "score_threshold")
    limits = [np.array([value], np.int64 if isinstance(value, int) else np.float32) for value in settings]
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *names], ["selected"])
    graph = helper.make_graph(
        [node],
        "nms",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, boxes),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, scores),
        ],
        [helper.make_tensor_value_info("selected", TensorProto.INT64, [None, 3])],
        [numpy_helper.from_array(value, name) for name, value in zip(names, limits, strict=True)],
    )
    opset = helper.make_opsetid("", _OPSET)
    model: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=_IR).SerializeToString()
    return model


def _onnxruntime(model: bytes, feeds: _Feeds) -> Call:
    session = onnx_session(model, torch.get_num_threads())
    inputs = dict(zip(("boxes", "scores"), feeds, strict=True))
    return lambda: session.run(None, inputs)[0]


def _openvino(model: bytes, feeds: _Feeds) -> Call:
    core = openvino_core()
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(model, b""), "CPU", settings).create_infer_request()
    inputs = list(feeds)
    return lambda: request.infer(inputs, share_inputs=True)[0]  # as ONNX Runtime does; else they are copied first


_RUNTIMES: dict[str, Callable[[bytes, _Feeds], Any]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
