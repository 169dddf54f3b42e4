# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo's modules and model files among ultralytics' own.

ultralytics has no registry of modules: parse_model() looks their names up among the globals of its file, and tells by
sets of classes which of them scale with a model's width and which take a number of repeats. `register` rebinds four of
that file's functions; what they do with models that hold nothing of fastyolo's stays as it is. This module is imported
while ultralytics itself still is, so it imports only what ultralytics.nn.tasks imports too.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.torch_utils import fuse_conv_and_bn, intersect_dicts

import fastyolo.nn
from fastyolo.integrations.ultralytics.head import LightDetect
from fastyolo.integrations.ultralytics.hooks import require_reads
from fastyolo.nn import DWSPPF, ECA, GELAN, Conv, DSConv, PruningNote, SplitC2f, SplitC2PSA

PRUNED = "pruned"
"""The entry of a network's YAML that tells that it no longer describes the network."""

MODELS = Path(fastyolo.nn.__file__).parent / "models"

# What model files may name, each with modules of ultralytics whose rows parse_model() treats in the same way: scaled
# with the width and given the repeats, scaled with the width, given the levels. One that a file does not name lends its
# place in the sets of classes.
_MODULES: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "GELAN": (GELAN, ("C3TR", "C3x", "C3Ghost")),
    "DSConv": (DSConv, ("ADown", "AConv", "Focus")),
    "DWSPPF": (DWSPPF, ("SPPELAN", "SPP", "PSA")),
    "LightDetect": (LightDetect, ("YOLOEDetect", "OBB26", "Pose26")),
}


def register(tasks: Any) -> None:
    """Make fastyolo's modules, model files and checkpoints known to ultralytics; once is enough.

    Models that name the modules of this package are built, fused, loaded and, with ULTRALYTICS_SAFE_LOAD=1, unpickled
    as ultralytics' own are.

    Args:
        tasks: the module ultralytics.nn.tasks.

    Raises:
        ImportError: ultralytics no longer tells modules apart in the way that this builds on.
    """
    if tasks.parse_model.__module__ == __name__:
        return
    require_reads(
        {place for _, places in _MODULES.values() for place in places if hasattr(tasks, place)},
        "ultralytics.nn.tasks.parse_model",
        tasks.parse_model.__code__,
    )
    tasks.parse_model = _parser(tasks, tasks.parse_model)
    tasks.check_yaml = _finder(tasks.check_yaml)
    tasks.BaseModel.fuse = _fusing(tasks.BaseModel.fuse)
    tasks.BaseModel.load = _loading(tasks.BaseModel.load)
    torch.serialization.add_safe_globals(
        [Conv, DSConv, DWSPPF, ECA, GELAN, LightDetect, PruningNote, SplitC2f, SplitC2PSA]
    )


def _parser(tasks: Any, stock: FunctionType) -> Callable[..., Any]:
    def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
        """As ultralytics.nn.tasks.parse_model, with fastyolo's modules.

        Raises:
            ValueError: a module is unknown, the file sets an activation, which fastyolo's modules do not take, or it is
                that of a network that was pruned since.
        """
        if PRUNED in d:
            raise ValueError(
                "This network was pruned, so that it cannot be built from its YAML; train its checkpoint with "
                "'fastyolo train' or trainer=fastyolo.train.Trainer, without pretrained."
            )
        namespace = _namespace(vars(tasks), d)
        parse = FunctionType(stock.__code__, namespace, stock.__name__, stock.__defaults__, stock.__closure__)
        return parse(d, ch, verbose)

    return parse_model


def _namespace(stock: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """The globals with which parse_model() builds `model`; names that ultralytics has by itself remain its own."""
    named = dict.fromkeys(row[2] for row in [*model["backbone"], *model["head"]])
    namespace = dict(stock)
    for name, (module, places) in _MODULES.items():
        if name in named and name not in stock:
            if model.get("activation"):
                raise ValueError(f"activation: {name} always has SiLU, got {model['activation']!r}; remove that line.")
            free = [place for place in places if place in stock and place not in named]
            if not free:
                raise ValueError(f"{name} cannot be in one model file with all of {', '.join(places)}; remove one.")
            namespace[name] = namespace[free[0]] = module
    for name in named:
        _require_known(name, namespace)
    return namespace


def _require_known(name: str, namespace: Mapping[str, Any]) -> None:
    if name.startswith("torchvision.ops."):
        return  # parse_model() imports it
    if hasattr(nn, name[3:]) if name.startswith("nn.") else isinstance(namespace.get(name), type):
        return
    known = [*_MODULES, *(key for key, value in namespace.items() if isinstance(value, type))]
    nearest = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "correct its name in the model file."
    raise ValueError(f"module {name!r} is unknown to both ultralytics and fastyolo; {hint}")


def _finder(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def check_yaml(file: str | Path, *args: Any, **kwargs: Any) -> Any:
        ours = MODELS / file
        return str(ours) if ours.is_file() and not Path(file).exists() else stock(file, *args, **kwargs)

    return check_yaml


def _fusing(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def fuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        for module in self.model.modules():
            if isinstance(module, Conv) and isinstance(module.bn, nn.BatchNorm2d):
                # Not Conv.fuse(): ultralytics fuses in training mode too, and scales the ranges of quantised weights.
                module.conv = fuse_conv_and_bn(module.conv, module.bn)
                module.bn = nn.Identity()
        return stock(self, *args, **kwargs)

    return fuse


def _loading(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def load(self: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
        source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        heads = [_last_layer(network) for network in (self, source)]
        if any(isinstance(head, LightDetect) for head in heads) and _branches(heads[0]) != _branches(heads[1]):
            weights = _WithoutBranches(source)
        return stock(self, weights, *args, **kwargs)

    return load


class _WithoutBranches:
    """A network as the source of BaseModel.load(), which puts the class branches of a source's head in the place of
    the model's own if they differ in width: meant for another number of classes, wrong for another kind of head."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.model = [None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def _last_layer(network: Any) -> Any:
    return getattr(network, "model", [None])[-1]


def _branches(head: Any) -> tuple[type, int | None]:
    """What must be the same in two heads for one to take the other's branches; the width of a box branch does not
    depend on the number of classes."""
    boxes = head.cv2 if isinstance(head, Detect) else None
    return type(head), boxes[0][-1].in_channels if boxes else None


@dataclass(frozen=True)
class Transfer:
    """How much of a network's state a source gave it.

    Attributes:
        tensors: entries of its state_dict that the source gave, of `all_tensors`.
        parameters: elements of its parameters that the source gave, of `all_parameters`.
        backbone: the share of the backbone's parameters that the source gave.
        source: name of the source.
    """

    tensors: int
    all_tensors: int
    parameters: int
    all_parameters: int
    backbone: float
    source: str

    def __str__(self) -> str:
        share = self.parameters / self.all_parameters
        return (
            f"{self.tensors} of {self.all_tensors} tensors, {share:.1%} of the parameters, were taken over from "
            f"{self.source}"
        )


def transfer(network: Any, weights: Any) -> Transfer:
    """What network.load(weights) took over: the tensors of the same name and shape.

    To be called after it, since it may first give the head branches of the source's width.

    Args:
        network: the model that was loaded.
        weights: the source, a model of ultralytics or a checkpoint's dict.
    """
    source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
    state = network.state_dict()
    taken = intersect_dicts(source.state_dict(), state)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    layers = tuple(f"model.{index}." for index in range(len(network.yaml["backbone"])))
    backbone = {name: size for name, size in sizes.items() if name.startswith(layers)}
    return Transfer(
        tensors=len(taken),
        all_tensors=len(state),
        parameters=sum(sizes.get(name, 0) for name in taken),
        all_parameters=sum(sizes.values()),
        backbone=sum(backbone.get(name, 0) for name in taken) / sum(backbone.values()),
        source=Path(getattr(source, "pt_path", None) or "another model").name,
    )
