# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pruning of ultralytics' detection models: blocks that can be pruned, tracing, checkpoints, and further training."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import ultralytics
from torch import Tensor, nn
from torch.nn import functional
from ultralytics import YOLO
from ultralytics.nn.modules.block import C2PSA, AAttn, Attention, C2f
from ultralytics.nn.tasks import DetectionModel

from fastyolo import __version__, _files
from fastyolo.integrations.ultralytics.acceleration import HeadTap
from fastyolo.integrations.ultralytics.data import class_names
from fastyolo.integrations.ultralytics.facts import layer_parts
from fastyolo.integrations.ultralytics.models import PRUNED
from fastyolo.nn import DWSPPF, ECA, GELAN, PruningNote, SplitC2f, SplitC2PSA

__all__ = [
    "check_teaches",
    "forward",
    "is_pruned",
    "is_sparse",
    "part_of",
    "prunable",
    "rebuilt",
    "save",
    "traceable",
    "widths",
    "with_network",
]


def prunable(model: YOLO) -> DetectionModel:
    """A copy of a model's network, on the CPU in float32, whose blocks are in the form that can be pruned.

    It computes what the model computes, bit for bit.

    Raises:
        ValueError: the model has an end-to-end head, or its normalisations are folded.
    """
    network = copy.deepcopy(model.model).cpu().float().eval().requires_grad_(True)
    if getattr(network.model[-1], "one2one_cv2", None) is not None:
        raise ValueError("weights must be a model whose head needs NMS, got one with an end-to-end head; pass another.")
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise ValueError("weights must have batch normalisations, got a fused model; pass the checkpoint of training.")
    for name, module in list(network.named_modules()):
        # A subclass that means something else by its parts has a forward of its own.
        if isinstance(module, C2f) and type(module).forward is C2f.forward:
            _replace(network, name, SplitC2f(module))
        elif type(module) is C2PSA:
            _replace(network, name, SplitC2PSA(module))
    return network


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another, with what ultralytics noted there about a layer of the network."""
    old = vars(network.get_submodule(name))
    vars(module).update({key: old[key] for key in ("f", "i", "np") if key in old})
    if "type" in old:
        vars(module)["type"] = f"{type(module).__module__}.{type(module).__name__}"
    network.set_submodule(name, module)


@dataclass(frozen=True)
class Trace:
    """What there is to know about a network beside its graph.

    Attributes:
        fixed: names of the convolutions whose outputs are those of the network.
        shuffled: names of grouped convolutions whose input is shuffled.
    """

    fixed: tuple[str, ...]
    shuffled: tuple[str, ...]


@contextmanager
def traceable(network: DetectionModel) -> Iterator[Trace]:
    """A context in which a network has no operators that hide where its channels go.

    ECA and the shuffles, which `Trace` tells about, are left out; the filters of DWSPPF are convolutions, and what
    happens to these happens to it; self-attention is a layer of an unknown kind, so that its channels stay.
    """
    head = network.model[-1]
    blocks = [(name, module) for name, module in network.named_modules() if isinstance(module, GELAN)]
    trace = Trace(
        fixed=tuple(f"model.{len(network.model) - 1}.{kind}.{i}.2" for kind in ("cv2", "cv3") for i in range(head.nl)),
        shuffled=tuple(f"{name}.m.{i}.conv" for name, block in blocks if block.shuffle for i in range(1, len(block.m))),
    )
    shuffles = [(block, block.shuffle) for _, block in blocks]
    for block, _ in shuffles:
        block.shuffle = False
    hidden = [(name, m) for name, m in network.named_modules() if isinstance(m, (ECA, DWSPPF, Attention, AAttn))]
    for name, module in hidden:
        _replace(network, name, _stand_in(module))
    try:
        with HeadTap(head):
            yield trace
    finally:
        for name, module in hidden:
            if isinstance(module, DWSPPF):
                network.get_submodule(name).return_filters(module)
            network.set_submodule(name, module)
        for block, shuffle in shuffles:
            block.shuffle = shuffle


def forward(network: DetectionModel, images: Tensor) -> list[Tensor]:
    """The maps of the head's branches, of a network within `traceable`."""
    maps = network(images)
    return [*maps.box_maps, *maps.cls_maps]


def _stand_in(module: Any) -> nn.Module:
    if isinstance(module, ECA):
        return nn.Identity()
    if isinstance(module, DWSPPF):
        return _Stages(module)
    channels = module.proj.conv.out_channels
    return _Opaque(channels, channels, 1)


class _Opaque(nn.Conv2d):
    """A layer that pruning knows nothing about."""


class _Stages(nn.Module):
    """A DWSPPF whose filters are those of three convolutions."""

    def __init__(self, block: DWSPPF) -> None:
        super().__init__()
        self.cv1, self.cv2 = block.cv1, block.cv2
        _, channels, kernel, _ = block.weight.shape
        padding = kernel // 2 * block.dilation
        self.stages = nn.ModuleList()
        for weight, bias in zip(block.weight, block.bias, strict=True):
            stage = nn.Conv2d(channels, channels, kernel, 1, padding, block.dilation, groups=channels)
            stage.weight, stage.bias = nn.Parameter(weight.detach()[:, None]), nn.Parameter(bias.detach())
            self.stages.append(stage)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.cv1(x)]
        for stage in self.stages:
            maps.append(functional.silu(stage(maps[-1])))  # whichever activation: none moves channels
        y: Tensor = self.cv2(torch.cat(maps, 1))
        return y

    def return_filters(self, block: DWSPPF) -> None:
        stages: Any = self.stages
        block.weight = nn.Parameter(torch.stack([stage.weight.detach()[:, 0] for stage in stages]))
        block.bias = nn.Parameter(torch.stack([stage.bias.detach() for stage in stages]))


def part_of(network: DetectionModel, layer: str) -> str:
    """The part of `facts.PARTS` that a layer, given by its name, belongs to."""
    return layer_parts(network)[int(layer.split(".")[1])]


def save(network: DetectionModel, model: YOLO, path: Path) -> None:
    """Write a pruned network as a checkpoint of ultralytics.

    Args:
        network: what to write.
        model: what it was pruned from, whose training arguments the checkpoint keeps.
    """
    network.yaml[PRUNED] = PruningNote(f"by fastyolo {__version__}; its YAML tells the widths before")
    network = copy.deepcopy(network).half().requires_grad_(False)
    network.criterion = None
    checkpoint = {
        "epoch": -1,
        "best_fitness": None,
        "model": network,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": (model.ckpt or {}).get("train_args", {}),
        "date": datetime.now().astimezone().isoformat(),
        "version": ultralytics.__version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
    }
    with _files.replacing(path) as temporary:
        torch.save(checkpoint, temporary)


def with_network(model: YOLO, network: DetectionModel) -> YOLO:
    """A shallow copy of a model with another network."""
    changed = copy.copy(model)
    vars(changed)["_modules"] = {**model._modules}  # which the copy would share, the network in it
    changed.model = network
    return changed


def widths(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Input and output channels of each convolution, by name; its filters' in DWSPPF."""
    found = {n: (m.in_channels, m.out_channels) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    for name, module in network.named_modules():
        if isinstance(module, DWSPPF):
            channels = module.weight.shape[1]
            found[f"{name}.weight"] = channels, channels
    return found


def is_sparse(model: YOLO) -> bool:
    """Whether the checkpoint of a model is that of a training with sparsity."""
    return bool((model.ckpt or {}).get("train_args", {}).get("sparsity"))


def check_teaches(model: YOLO, data: str) -> None:
    """Refuse a data set of which a model cannot be the teacher, since it has other classes.

    Raises:
        ValueError: as above, or the data set cannot be used.
    """
    ours, names = list(model.names.values()), class_names(data)
    if len(ours) == len(names) == 1 or sorted(ours) == sorted(names):
        return
    missing, extra = Counter(ours) - Counter(names), Counter(names) - Counter(ours)
    difference = f"no {next(iter(missing))!r}" if missing else f"{next(iter(extra))!r} besides"
    raise ValueError(
        f"data must have the classes of the weights, which teach the pruned network, got {len(names)} with "
        f"{difference}; take weights trained on such data, or no teacher (distill=False, --no-distill)."
    )


def is_pruned(network: Any) -> bool:
    return PRUNED in getattr(network, "yaml", {})


def rebuilt(network: DetectionModel, data: Mapping[str, Any], *, remap: bool = True) -> DetectionModel:
    """A copy of a pruned network to train further, for the classes of a data set.

    Args:
        remap: classes that both have keep their outputs, whichever place they have in the two; ultralytics' cls_remap.

    Raises:
        ValueError: the images of the data set have another number of channels.
    """
    if (channels := network.yaml.get("channels", 3)) != data["channels"]:
        raise ValueError(
            f"data must have images of {channels} channels, for which the model was pruned, got {data['channels']}."
        )
    model = copy.deepcopy(network).float().requires_grad_(True)
    head, classes = model.model[-1], data["nc"]
    if classes != head.nc:
        for branch in head.cv3:
            branch[-1] = nn.Conv2d(branch[-1].in_channels, classes, 1)
        head.nc, head.no = classes, classes + 4 * head.reg_max
        head.bias_init()
        model.yaml["nc"] = classes
    if remap:
        model.names = data["names"]
    model.load(network)
    return model
