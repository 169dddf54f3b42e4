# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a model costs, part by part: parameters, FLOPs and the memory of its activations, beside YOLOv8's.

The costs are those of one image in float32 in the form that is deployed, with the normalisations folded into the
convolutions. They follow from the shapes alone: the network runs on torch's meta device, which computes nothing.
"""

from __future__ import annotations

import copy
import re
import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary
from ultralytics.nn.tasks import BaseModel, DetectionModel

import fastyolo.ops  # noqa: F401 - registers torch.ops.fastyolo
from fastyolo import _arguments

__all__ = ["Cost", "baseline", "check_sizes", "cost", "layer_costs", "layer_parts"]

PARTS = ("backbone", "neck", "head")


def check_sizes(model: Any, sizes: Sequence[int]) -> None:
    """Refuse what cannot be measured layer by layer.

    Raises:
        TypeError: a side is no integer.
        ValueError: the model is an exported file, or its network does not take squares of these sides.
    """
    if isinstance(model.model, str):
        raise ValueError(f"weights must be a checkpoint, got {model.model!r}, which is exported already.")
    stride = int(max(model.model.stride.tolist()))
    for size in sizes:
        _arguments.integer("imgsz", size, 1)
    if wrong := [size for size in sizes if size < stride or size % stride]:
        raise ValueError(
            f"imgsz must be multiples of the model's largest stride, {stride}, got {', '.join(map(str, wrong))}."
        )


@dataclass
class Cost:
    """What a network or a part of it takes.

    Attributes:
        parameters: numbers that training learns, those of the normalisations included.
        flops: of convolutions and matrix products, two to a multiplication with its addition. ultralytics' own count is
            a few percent higher: it adds the element-wise work of normalisations before folding, activations and
            pooling, though it sees nothing of what fastyolo's operators compute.
        activation_bytes: all tensors that operators write, which is what inference has to bring to memory; views and
            results in place are none.
        peak_bytes: the most that tensors occupy at one time while eager torch runs it, the image and those that
            later layers wait for included, weights not.
    """

    parameters: int = 0
    flops: int = 0
    activation_bytes: int = 0
    peak_bytes: int = 0

    def add(self, other: Cost) -> None:
        self.parameters += other.parameters
        self.flops += other.flops
        self.activation_bytes += other.activation_bytes
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)


def cost(network: BaseModel, imgsz: int) -> dict[str, Any]:
    """Cost of a network at imgsz x imgsz, rounded up to a multiple of its largest stride.

    Returns:
        `imgsz`; the fields of `Cost` of the whole; and those of each of PARTS that it has, in `parts`.
    """
    stride = int(network.stride.max())
    imgsz = ceil(imgsz / stride) * stride
    parts = {name: Cost() for name in PARTS}
    for name, layer in zip(layer_parts(network), layer_costs(network, imgsz), strict=True):
        parts[name].add(layer)
    total = Cost()
    for part in parts.values():
        total.add(part)
    shares = {name: asdict(part) for name, part in parts.items() if part.activation_bytes}
    return {"imgsz": imgsz, **asdict(total), "parts": shares}


def baseline(network: BaseModel) -> tuple[str, DetectionModel] | None:
    """The YOLOv8 of a YOLOv8-like detector's scale, with its classes, and its name; of YOLOv8 itself, None."""
    scale = network.yaml.get("scale")
    stem = Path(network.yaml.get("yaml_file", "")).stem
    if not scale or type(network) is not DetectionModel or not re.match(rf"yolov8{scale}.", stem):
        return None
    name = f"yolov8{scale}"
    return name, DetectionModel(f"{name}.yaml", ch=_channels(network), nc=len(network.names), verbose=False)


def _channels(network: BaseModel) -> int:
    return int(network.yaml.get("channels", 3))


def layer_parts(network: BaseModel) -> list[str]:
    """The part that each layer belongs to: the YAML's backbone, its head up to the last layer, that layer."""
    layers, backbone = len(network.model), len(network.yaml["backbone"])
    return [PARTS[0]] * backbone + [PARTS[1]] * (layers - backbone - 1) + [PARTS[2]]


def layer_costs(network: BaseModel, imgsz: int) -> list[Cost]:
    """The cost of each layer."""
    deployed = copy.deepcopy(network).float().eval().fuse(verbose=False)
    strides = deployed.stride
    deployed.to("meta")
    deployed.model[-1].stride = strides  # the head computes anchors from the values
    costs = [Cost(sum(p.numel() for p in layer.parameters())) for layer in network.model]
    weights = [*deployed.parameters(), *deployed.buffers()]
    with ExitStack() as stack:
        flops = stack.enter_context(FlopCounterMode(display=False, custom_mapping=_FORMULAS))
        memory = stack.enter_context(_Memory(weights))
        stack.enter_context(torch.inference_mode())
        for layer, layer_cost in zip(deployed.model, costs, strict=True):
            _observe(layer, layer_cost, flops, memory)
        deployed(torch.empty(1, _channels(network), imgsz, imgsz, device="meta"))
    return costs


def _observe(layer: nn.Module, layer_cost: Cost, flops: FlopCounterMode, memory: _Memory) -> None:
    """Write to `layer_cost` what the next call of `layer` takes."""

    def before(*_: Any) -> None:
        layer_cost.flops = -flops.get_total_flops()
        layer_cost.activation_bytes = -memory.written
        memory.peak = memory.live

    def after(*_: Any) -> None:
        layer_cost.flops += flops.get_total_flops()
        layer_cost.activation_bytes += memory.written
        layer_cost.peak_bytes = memory.peak

    layer.register_forward_pre_hook(before)
    layer.register_forward_hook(after)


class _Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that operators make, beside those that are there already.

    Attributes:
        live: of those that exist now.
        peak: of those that existed at one time, at most.
        written: of all so far.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes = WeakIdKeyDictionary()
        for tensor in there:
            self._sizes[tensor.untyped_storage()] = 0
        self.live = self.peak = self.written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self._sizes:
                self._enter(leaf.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        size = self._sizes[storage] = storage.nbytes()
        weakref.finalize(storage, self._leave, size)
        self.live += size
        self.written += size
        self.peak = max(self.peak, self.live)

    def _leave(self, size: int) -> None:
        self.live -= size


def _dw_sppf(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(x) * prod(weight[2:]) * weight[0]


def _eca(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(x[:2]) * weight[0]


# Of the operators that multiply and add; sppf_pool compares.
_FORMULAS = {torch.ops.fastyolo.dw_sppf: _dw_sppf, torch.ops.fastyolo.eca: _eca}
