# SPDX-License-Identifier: AGPL-3.0-or-later
"""Detection models of ultralytics as ONNX graphs, and its own exporters to OpenVINO and NCNN.

A graph is traced from a private copy of the network whose batch normalisations are folded into the convolutions and
whose Detect head returns what is asked for. The network itself is the root of the trace, so that nodes have the names
that ultralytics' exporter gives them: /model.2/cv1/conv/Conv is the convolution of `model.model[2].cv1`.
"""

from __future__ import annotations

import copy
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import ultralytics
from torch import Tensor
from ultralytics import YOLO
from ultralytics.engine.exporter import Exporter
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.modules.block import C2f
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import ASSETS, LOGGER, YAML

from fastyolo import __version__
from fastyolo.export import Plugin
from fastyolo.integrations.ultralytics.acceleration import fuse_sppf, why_not_accelerated
from fastyolo.integrations.ultralytics.models import PRUNED
from fastyolo.integrations.ultralytics.weights import read_checkpoint
from fastyolo.nn import DWSPPF, ECA, FusedSPPF
from fastyolo.nn.export import Exportable
from fastyolo.runtime.engines import openvino_core
from fastyolo.runtime.metadata import INPUT_NAME, Metadata, Nms, Outputs, output_names

__all__ = [
    "LOGGER",
    "YOLO",
    "Form",
    "Input",
    "convert",
    "deployed",
    "graph",
    "load",
    "metadata_of",
    "origin",
    "properties",
]

# What a traced graph puts out: `output_names`' maps in float32, or in the network's dtype for a plugin that reads
# either; ultralytics' boxes; or boxes [B, A, 4] as two corners and class logits [B, C, A], to be suppressed.
Form = Literal["maps", "raw maps", "boxes", "candidates"]

_PLUGIN_MODULES: dict[Plugin, type[Exportable]] = {"eca": ECA, "dw_sppf": DWSPPF, "sppf_pool": FusedSPPF}

# How far scores and box sides in pixels may be from torch's where the score is above _FOUND: of a float32 model, the
# noise of another order of summation; of a float16 one, what its 11 bits leave after some sixty layers.
_FOUND = 0.25
_TOLERANCES = {False: (1e-3, 0.1), True: (0.05, 4.0)}


@dataclass(frozen=True)
class Input:
    """What goes into an exported network.

    Attributes:
        imgsz: height and width, multiples of the largest stride.
        batch: images per run.
        dynamic: batch, height and width are free; the above are examples.
        half: weights and maps are float16. Input, decoding and outputs stay float32, since float16 has steps of half a
            pixel above 512.
    """

    imgsz: tuple[int, int]
    batch: int
    dynamic: bool
    half: bool


def load(weights: str | Path | YOLO) -> YOLO:
    """A detection model that can be exported.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        TypeError: `weights` is neither a path nor a `YOLO` object.
        ValueError: it cannot be read, or is not a detection model with ultralytics' Detect head and NMS, for three
            colour channels.
    """
    model = weights if isinstance(weights, YOLO) else read_checkpoint(weights)
    if model.task != "detect":
        raise ValueError(f"weights must be a detection model, got one for the task {model.task!r}; pass another.")
    if reason := why_not_accelerated(model):
        raise ValueError(f"weights must be a model with ultralytics' Detect head and NMS, but {reason}; pass another.")
    channels = model.model.yaml.get("channels", 3)
    if channels != 3:
        raise ValueError(f"weights must be a model for images of 3 channels, got one for {channels}; pass another.")
    return model


def origin(model: YOLO) -> Path:
    """The checkpoint that a model comes from; of one made from a YAML file, a file of that name in this folder."""
    return Path(model.ckpt_path or Path(model.model_name).name)


def deployed(model: YOLO) -> DetectionModel:
    """A copy of the model's network for inference on the CPU in float32, its normalisations folded."""
    network = copy.deepcopy(model.model).cpu().float().eval().requires_grad_(False)
    network.end2end = False  # fusion drops the branches that are not used
    network.fuse(verbose=False)
    network.model[-1].export = True
    return network


def metadata_of(network: DetectionModel, outputs: Outputs, imgsz: tuple[int, int], nms: Nms | None) -> Metadata:
    head = network.model[-1]
    strides = tuple(int(stride) for stride in head.stride.tolist())
    return Metadata(
        outputs=outputs,
        names=tuple(network.names[index] for index in range(head.nc)),
        imgsz=imgsz,
        max_stride=max(strides),
        strides=strides,
        reg_max=head.reg_max,
        nms=nms,
    )


def properties(network: DetectionModel, metadata: Metadata, given: Input, opset: int) -> dict[str, str]:
    """Entries of a model file: those of ultralytics' exporter, and the metadata."""
    name = Path(network.yaml.get("yaml_file", "detector")).stem + (", pruned" if PRUNED in network.yaml else "")
    arguments = {
        "batch": given.batch,
        "dynamic": given.dynamic,
        "quantize": 16 if given.half else None,
        "opset": opset,
        "nms": None,
    }
    entries = {
        "description": f"{name}, exported by fastyolo {__version__}",
        "author": "Ultralytics",
        "date": datetime.now().astimezone().isoformat(),
        "version": ultralytics.__version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        "stride": metadata.max_stride,
        "task": "detect",
        "head": type(network.model[-1]).__name__,
        "batch": given.batch,
        "imgsz": list(metadata.imgsz),
        "names": dict(enumerate(metadata.names)),
        "args": arguments,
        "channels": 3,
        "end2end": False,
    }
    return {key: str(value) for key, value in entries.items()} | metadata.properties()


def graph(network: DetectionModel, form: Form, given: Input, opset: int, plugins: Sequence[Plugin] = ()) -> Any:
    """The onnx.ModelProto of a deployed network, which is changed on the way and of no use afterwards.

    Raises:
        ValueError: the network has no module that one of `plugins` could stand for.
    """
    import onnx
    import onnxslim

    head = network.model[-1]
    head.dynamic, head.shape = given.dynamic, None
    head.xyxy = form == "candidates"
    head.forward = partial(_FORWARDS[form], head)
    for module in network.modules():
        if isinstance(module, C2f):
            module.forward = module.forward_split  # one Split for chunk's Shape, Gather, Div and Slices
    if plugins:
        _use_plugins(network, plugins)
    images = torch.zeros(given.batch, 3, *given.imgsz)
    network(images)  # for the grid of anchors, so that it is a constant of a static trace, and in float32
    if given.half:
        network.half()
        head.dfl.float()
        network.register_forward_pre_hook(lambda _, inputs: tuple(x.half() for x in inputs))
    names = _names(form, head.nl)
    with _without_tracer_warnings(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            network,
            (images,),
            file,
            input_names=[INPUT_NAME],
            output_names=names,
            dynamic_axes=_free_sizes(form, names, head.stride.int().tolist()) if given.dynamic else {},
            opset_version=opset,
            dynamo=False,  # the other exporter does not name nodes by their modules
        )
        return onnxslim.slim(onnx.load(file))  # folds constants; names stay


def _use_plugins(network: DetectionModel, plugins: Sequence[Plugin]) -> None:
    from fastyolo.export import plugin_nodes

    if "sppf_pool" in plugins:
        fuse_sppf(network)
    for plugin in plugins:
        modules = [module for module in network.modules() if isinstance(module, _PLUGIN_MODULES[plugin])]
        if not modules:
            raise ValueError(f"plugins: the model has no module that {plugin!r} could stand for; leave it out.")
        for module in modules:
            module.operators = plugin_nodes


def _names(form: Form, levels: int) -> list[str]:
    if form == "candidates":
        return ["candidate_boxes", "candidate_logits"]
    return output_names("boxes" if form == "boxes" else "maps", levels)


def _free_sizes(form: Form, names: Sequence[str], strides: Sequence[int]) -> dict[str, dict[int, str]]:
    sizes = {INPUT_NAME: {0: "batch", 2: "height", 3: "width"}}
    if form == "boxes":
        sizes[names[0]] = {0: "batch", 2: "anchors"}
    elif form == "candidates":
        sizes |= {names[0]: {0: "batch", 1: "anchors"}, names[1]: {0: "batch", 2: "anchors"}}
    else:
        for name, stride in zip(names, [*strides, *strides], strict=True):
            sizes[name] = {0: "batch", 2: f"height_{stride}", 3: f"width_{stride}"}
    return sizes


def _raw_maps(head: Detect, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    branches = head.one2many
    return tuple(
        branch(x) for kind in ("box_head", "cls_head") for branch, x in zip(branches[kind], features, strict=True)
    )


def _maps(head: Detect, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(map(_float32, _raw_maps(head, features)))


def _predictions(head: Detect, features: Sequence[Tensor]) -> dict[str, Any]:
    predictions = head.forward_head(features, **head.one2many)
    return predictions | {name: _float32(predictions[name]) for name in ("boxes", "scores")}


def _boxes(head: Detect, features: Sequence[Tensor]) -> Tensor:
    return head._inference(_predictions(head, features))


def _candidates(head: Detect, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    predictions = _predictions(head, features)
    return head._get_decode_boxes(predictions).transpose(1, 2), predictions["scores"]


def _float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 else x.float()  # torch traces a Cast for float() in any case


_FORWARDS = {"maps": _maps, "raw maps": _raw_maps, "boxes": _boxes, "candidates": _candidates}


def convert(
    model: YOLO,
    network: DetectionModel,
    metadata: Metadata,
    kind: str,
    given: Input,
    scratch: Path,
) -> Path:
    """A folder in `scratch` that ultralytics' exporter to "openvino" or "ncnn" wrote, with our metadata and checked.

    Args:
        model: what to export.
        network: what `deployed` makes of it, to check against.
        scratch: an empty folder.

    Raises:
        RuntimeError: the exported model does not compute what the network does.
    """
    source = copy.deepcopy(model.model)
    source.pt_path = str(scratch / "model.pt")  # beside which the exporter writes
    settings = {"batch": given.batch, "quantize": 16 if given.half else None}
    if given.dynamic:
        settings["dynamic"] = True
    with _without_tracer_warnings(), _working_in(scratch), _interrupted_at_the_end():
        exporter = Exporter(overrides={"format": kind, "imgsz": list(given.imgsz), "device": "cpu", **settings})
        folder = Path(exporter(model=source))
    (folder / "model_ncnn.py").unlink(missing_ok=True)  # pnnx's example, with the paths of `scratch`
    file = folder / "metadata.yaml"
    YAML.save(file, YAML.load(file) | metadata.properties())
    _check(folder, network, kind, given)
    return folder


def _check(folder: Path, network: DetectionModel, kind: str, given: Input) -> None:
    images = _picture(given.imgsz).expand(given.batch, -1, -1, -1)
    want = network(images).numpy()
    got = _RUNS[kind](folder, images)
    if got.shape != want.shape:
        raise RuntimeError(
            f"{folder.name} puts out {got.shape} where torch puts out {want.shape}; nothing was written."
        )
    found = want[:, 4:].max(1) > _FOUND
    difference = np.abs(got - want)
    scores = float(difference[:, 4:].max())
    sides = float(difference[:, :4].max(1)[found].max(initial=0))
    most_scores, most_sides = _TOLERANCES[given.half]
    if not (scores <= most_scores and sides <= most_sides):
        raise RuntimeError(
            f"{folder.name} does not compute what torch does: on a picture, scores differ by {scores:.2g} and boxes by "
            f"{sides:.2g} pixels, more than {most_scores} and {most_sides}; nothing was written."
        )


def _run_openvino(folder: Path, images: Tensor) -> np.ndarray[Any, Any]:
    # In float32, since OpenVINO takes bfloat16 by itself on a CPU that is fast in it.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(next(folder.glob("*.xml")), "CPU", settings)
    return compiled(images.numpy())[0]


def _run_ncnn(folder: Path, images: Tensor) -> np.ndarray[Any, Any]:
    output = AutoBackend(str(folder), device=torch.device("cpu"), verbose=False)(images)
    return output.numpy()


_RUNS = {"openvino": _run_openvino, "ncnn": _run_ncnn}


def _picture(imgsz: tuple[int, int]) -> Tensor:
    """[1, 3, height, width] in [0, 1]: the street that comes with ultralytics."""
    file = str(ASSETS / "bus.jpg")
    image = cv2.imread(file)
    if image is None:
        raise FileNotFoundError(f"{file}, which comes with ultralytics, cannot be read; install ultralytics again.")
    image = cv2.resize(image, imgsz[::-1])[..., ::-1].transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None] / 255


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """With `folder` as the working directory, in which pnnx leaves files and from which the exporter deletes some."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _interrupted_at_the_end() -> Iterator[None]:
    """Keep Ctrl-C until then: OpenVINO, calling Python from C++, takes it for a failed conversion, or aborts."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    interrupts: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if interrupts:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _without_tracer_warnings() -> Iterator[None]:
    """Without the warnings of torch's tracer: that it has a successor, and that sizes become constants."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield
