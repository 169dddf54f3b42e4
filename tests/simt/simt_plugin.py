# SPDX-License-Identifier: AGPL-3.0-or-later
"""A pytest plugin that puts the stand-in in the place of the CPU kernels and runs the tests that have a device:

    PYTHONPATH=tests/simt python -m pytest -p simt_plugin --simt checked tests/test_decode_nms.py

The operators get the CUDA entries' dtypes. Each call runs once in each of the thread orders (--orders), and the
results must be equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import simt
import torch
from torch import Tensor

from fastyolo.ops.feature_map import concatenated

ORDERS = (0, 2, 1, 3)  # ascending, a shuffle, descending, another shuffle
_LIBRARY = pytest.StashKey[torch.library.Library]()


class Kernels:
    """The operators' CPU implementations, with the signatures of their schemas."""

    def __init__(self, module: ModuleType, orders: Sequence[int] = ORDERS) -> None:
        self.module = module
        self.orders = orders

    def unwritten(self, x: Tensor) -> Any:
        dtype = getattr(self.module.DType, str(x.dtype).removeprefix("torch."))
        return self.module.DeviceArray(x.data_ptr(), dtype, x.shape, x.stride())

    def upload(self, x: Tensor) -> Any:
        array = self.unwritten(x)
        array.upload(x.data_ptr())
        return array

    def in_every_order(self, outputs: Sequence[Tensor], run: Callable[..., None]) -> None:
        """run(*device arrays of outputs), in every order; fills outputs."""
        results = []
        for order in self.orders:
            self.module.set_order(order)
            arrays = [self.unwritten(x) for x in outputs]
            run(*arrays)
            for array, x in zip(arrays, outputs, strict=True):
                array.download(x.data_ptr())
            results.append([x.clone(memory_format=torch.contiguous_format).view(torch.uint8) for x in outputs])
        for order, result in zip(self.orders[1:], results[1:], strict=True):
            assert all(map(torch.equal, results[0], result)), f"thread order {order} changes the answer"

    def detections(
        self, entry: Callable[..., None], arguments: tuple[Any, ...], like: Tensor, *, max_det: int = 300, **_: object
    ) -> tuple[Tensor, ...]:
        batch = like.shape[0]
        outputs = (
            torch.empty(batch, dtype=torch.int32),
            torch.empty(batch, max_det, 4),
            torch.empty(batch, max_det),
            torch.empty(batch, max_det, dtype=torch.int32),
            torch.empty(batch, max_det, dtype=torch.int32),
        )
        self.in_every_order(outputs, lambda *arrays: entry(*arguments, arrays))
        return outputs

    def settings(
        self,
        score_threshold: float = 0.25,
        iou_threshold: float = 0.7,
        max_det: int = 300,
        max_candidates: int = 30000,
        multi_label: bool = False,
        class_agnostic: bool = False,
        classes: Sequence[int] | None = None,
        thresholds: Tensor | None = None,
    ) -> Any:
        limits = (score_threshold, iou_threshold, max_det, max_candidates, multi_label, class_agnostic, classes)
        return self.module.NmsSettings(*limits, None if thresholds is None else self.upload(thresholds))

    def decode_nms(
        self, box_maps: Sequence[Tensor], cls_maps: Sequence[Tensor], strides: Sequence[float], **settings: Any
    ) -> tuple[Tensor, ...]:
        maps = ([self.upload(x) for x in box_maps], [self.upload(x) for x in cls_maps])
        arguments = (*maps, strides, self.settings(**settings))
        return self.detections(self.module.decode_nms, arguments, box_maps[0], **settings)

    def multiclass_nms(self, boxes: Tensor, scores: Tensor, **settings: Any) -> tuple[Tensor, ...]:
        arguments = (self.upload(boxes), self.upload(scores), self.settings(**settings))
        return self.detections(self.module.multiclass_nms, arguments, boxes, **settings)

    def batched_nms(
        self, boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, *, max_det: int | None = None
    ) -> tuple[Tensor, Tensor]:
        count = boxes.shape[0]
        limit = count if max_det is None else min(max_det, count)
        groups = None if idxs is None else self.upload(idxs.contiguous())
        arguments = (self.upload(boxes.contiguous()), self.upload(scores.contiguous()), groups, iou_threshold, limit)
        keep, num_keep = torch.empty(count, dtype=torch.int64), torch.empty(1, dtype=torch.int32)
        self.in_every_order([keep, num_keep], lambda *out: self.module.batched_nms(*arguments, *out))
        return keep, num_keep

    def dfl_decode(self, logits: Tensor, anchor_points: Tensor, strides: Tensor) -> Tensor:
        arguments = (self.upload(logits), self.upload(anchor_points.contiguous()), self.upload(strides.contiguous()))
        boxes = logits.new_empty(logits.shape[0], 4, logits.shape[2])
        self.in_every_order([boxes], lambda out: self.module.dfl_decode(*arguments, out))
        return boxes

    def dfl_decode_backward(self, grad_boxes: Tensor, logits: Tensor, strides: Tensor) -> Tensor:
        arguments = (self.upload(grad_boxes.contiguous()), self.upload(logits), self.upload(strides.contiguous()))
        grad_logits = torch.empty_like(logits)
        self.in_every_order([grad_logits], lambda out: self.module.dfl_decode_backward(*arguments, out))
        return grad_logits

    def eca(self, x: Tensor, weight: Tensor) -> Tensor:
        arguments = (self.upload(x), self.upload(weight.contiguous()))
        y = concatenated(x)
        self.in_every_order([y], lambda out: self.module.eca(*arguments, out))
        return y

    def eca_backward(self, grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        arguments = (self.upload(grad_y), self.upload(x), self.upload(weight.contiguous()))
        grads = concatenated(x), weight.new_empty(weight.shape)
        self.in_every_order(grads, lambda *out: self.module.eca_backward(*arguments, *out))
        return grads

    def dw_sppf(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        dilation: int = 2,
        activation: str = "identity",
    ) -> Tensor:
        arguments = (self.upload(x), *self.parameters(weight, bias), dilation, activation)
        result = concatenated(x, 4)
        self.in_every_order([result], lambda out: self.module.dw_sppf(*arguments, out))
        return result

    def dw_sppf_backward(
        self, grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: int, activation: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        maps = (self.upload(grad_out), self.upload(x))
        arguments = (*maps, *self.parameters(weight, bias), dilation, activation)
        grad_bias = weight.new_empty(0 if bias is None else len(bias), x.shape[1])
        grads = concatenated(x), weight.new_empty(weight.shape), grad_bias
        self.in_every_order(grads, lambda *out: self.module.dw_sppf_backward(*arguments, *out))
        return grads

    def parameters(self, weight: Tensor, bias: Tensor | None) -> tuple[Any, Any]:
        return self.upload(weight.contiguous()), None if bias is None else self.upload(bias.contiguous())

    def sppf_pool(self, x: Tensor, *, kernel_size: int = 5) -> Tensor:
        arguments = (self.upload(x), kernel_size)
        result = concatenated(x, 4)
        self.in_every_order([result], lambda out: self.module.sppf_pool(*arguments, out))
        return result

    def sppf_pool_backward(self, grad_out: Tensor, x: Tensor, *, kernel_size: int) -> Tensor:
        arguments = (self.upload(grad_out), self.upload(x), kernel_size)
        grad_x = concatenated(x)
        self.in_every_order([grad_x], lambda out: self.module.sppf_pool_backward(*arguments, out))
        return grad_x


OPS = (
    "decode_nms",
    "multiclass_nms",
    "batched_nms",
    "dfl_decode",
    "dfl_decode_backward",
    "eca",
    "eca_backward",
    "dw_sppf",
    "dw_sppf_backward",
    "sppf_pool",
    "sppf_pool_backward",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--simt", choices=simt.BUILDS, default="checked", help="the build that takes the CPU's place")
    parser.addoption("--orders", type=int, choices=range(1, 5), default=4, help="thread orders that each call runs in")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    from cases import DTYPES

    kernels = Kernels(simt.load(config.getoption("--simt")), ORDERS[: config.getoption("--orders")])
    library = torch.library.Library("fastyolo", "IMPL")
    for op in OPS:
        library.impl(op, getattr(kernels, op), "CPU", allow_override=True)
    config.stash[_LIBRARY] = library  # the implementations live as long as it does
    for dtypes in DTYPES.values():
        dtypes["cpu"] = dtypes["cuda"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = [item for item in items if hasattr(item, "callspec") and item.callspec.params.get("device") == "cpu"]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen
