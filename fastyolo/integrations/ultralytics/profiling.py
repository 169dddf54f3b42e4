# SPDX-License-Identifier: AGPL-3.0-or-later
"""The time of prediction, of training and of the head alone, stage by stage, as ultralytics runs them."""

from __future__ import annotations

import copy
import itertools
import os
import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import predict as detection
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.torch_utils import select_device, unwrap_model

from fastyolo import _arguments, _files
from fastyolo._quiet import silent_profiler
from fastyolo.diagnose.stopwatch import Stopwatch
from fastyolo.integrations.ultralytics.acceleration import AcceleratedPredictor, is_accelerated, predictor_of
from fastyolo.integrations.ultralytics.distillation import Distillation
from fastyolo.integrations.ultralytics.facts import check_sizes, cost, layer_costs, layer_parts
from fastyolo.integrations.ultralytics.trainer import Trainer

__all__ = ["Layer", "Measured", "head", "inference", "lighter_share", "training"]

WARMUP = 3  # rounds that are not counted


@dataclass(frozen=True)
class Layer:
    """A layer of the network, and what it computes for one image.

    Attributes:
        stage: its name among the stages.
        kind: name of its class.
        part: backbone, neck or head.
        flops: of convolutions and matrix products.
        activation_bytes: that its operators write, in float32.
        parameters: numbers that training learns.
    """

    stage: str
    kind: str
    part: str
    flops: int
    activation_bytes: int
    parameters: int


@dataclass(frozen=True)
class Measured:
    """Rounds of stages, in seconds, and the layers among the stages.

    Attributes:
        rounds: of one image, or of one batch in training.
        layers: in order; of the head alone, none.
        device: on which the network ran.
        facts: what else the advice depends on.
        busy: share of the network's time in which the GPU computed; None on a CPU.
    """

    rounds: list[dict[str, float]]
    layers: list[Layer]
    device: torch.device
    facts: dict[str, Any] = field(default_factory=dict)
    busy: float | None = None


def inference(
    model: YOLO,
    images: Sequence[str],
    *,
    imgsz: int,
    rounds: int,
    trace: str | os.PathLike[str] | None = None,
    on_round: Callable[[], None] = lambda: None,
    **settings: Any,
) -> Measured:
    """Profile predict(): reading, letterbox, tensor, layers, decoding, NMS, results, drawing.

    Args:
        images: files, which take turns.
        imgsz: side of the square that they are letterboxed to.
        rounds: images to measure, after WARMUP others.
        trace: where to write a Chrome trace of a few more.
        on_round: called after each image.
        settings: of ultralytics' predictor: conf, iou, device, half...

    Raises:
        TypeError: an argument of another type.
        ValueError: no images, one that cannot be read, or what the network does not take.
    """
    _check(rounds, trace)
    if isinstance(images, str) or not images:
        raise ValueError(f"images must be a list of image files, got {images!r}.")
    check_sizes(model, [imgsz])
    threads = torch.get_num_threads()
    predictor = predictor_of(model, imgsz=imgsz, rect=False, batch=1, verbose=False, save=False, **settings)
    torch.set_num_threads(threads)  # of which ultralytics leaves one out
    network = unwrap_model(predictor.model.model)
    device = predictor.device
    layers = _layers(network, imgsz)
    watch = Stopwatch(device)
    pixels: list[int] = []

    def run(count: int) -> None:
        for image in itertools.islice(itertools.cycle(images), count):
            predictor.setup_source(image)
            frames = iter(predictor.dataset)
            watch.start()
            with watch.stage("read"):
                predictor.batch = next(frames, None)
            if predictor.batch is None:
                raise ValueError(f"images must be images, and {image} cannot be read as one.")
            originals = predictor.batch[1]
            with watch.stage("to tensor"):
                tensor = predictor.preprocess(originals)
            maps = predictor.inference(tensor)
            with watch.stage("results"):
                results = predictor.postprocess(maps, tensor, originals)
            with watch.stage("draw"):
                results[0].plot()
            watch.lap()
            pixels.append(originals[0].shape[0] * originals[0].shape[1])
            on_round()

    with ExitStack() as undo:
        undo.enter_context(torch.inference_mode())
        undo.enter_context(_layers_timed(network, layers, watch))
        undo.enter_context(_postprocessing_timed(predictor, network.model[-1], watch))
        predictor.pre_transform = watch.timed("letterbox", predictor.pre_transform)
        run(WARMUP)
        watch.rounds.clear()
        pixels.clear()
        run(rounds)
        measured = list(watch.rounds)
        busy = _traced(lambda: run(min(rounds, 5)), watch, layers, device, trace)
    facts = {
        "accelerated": is_accelerated(model),
        "conf": predictor.args.conf,
        "half": bool(predictor.model.fp16),
        "imgsz": imgsz,
        "pixels": sum(pixels[:rounds]) / rounds,
        "threads": threads,
    }
    return Measured(measured, layers, device, facts, busy)


def head(
    model: YOLO,
    *,
    imgsz: int,
    rounds: int,
    device: str = "cpu",
    trace: str | os.PathLike[str] | None = None,
    on_round: Callable[[], None] = lambda: None,
) -> Measured:
    """Profile the head alone, on random features of the shapes that an image of imgsz x imgsz gives it.

    The stages are its branches, level by level, and the decoding of their outputs. They are those that prediction runs:
    with folded normalisation, and of an end-to-end head the one-to-one branches.
    """
    _check(rounds, trace)
    check_sizes(model, [imgsz])
    threads = torch.get_num_threads()
    network = copy.deepcopy(model.model).float().eval().fuse(verbose=False).to(select_device(device, verbose=False))
    torch.set_num_threads(threads)  # of which ultralytics leaves one out
    last = network.model[-1]
    features = _features(network, imgsz)
    watch = Stopwatch(next(network.parameters()).device)

    def run(count: int) -> None:
        for _ in range(count):
            watch.start()
            with watch.stage("concatenate"):
                last(list(features))  # which the head overwrites
            watch.lap()
            on_round()

    with ExitStack() as undo:
        undo.enter_context(torch.inference_mode())
        branches = last.one2one if last.end2end else last.one2many
        for kind, name in (("box_head", "boxes"), ("cls_head", "classes")):
            for level, (branch, stride) in enumerate(zip(branches[kind], last.stride.tolist(), strict=True)):
                undo.enter_context(_timed(branch, f"{name} of P{level_name(stride, level)}", watch))
        undo.enter_context(_method_timed(last, "_inference", "decode", watch))
        undo.enter_context(_method_timed(last, "postprocess", "top-k", watch))  # of an end-to-end head
        run(WARMUP)
        watch.rounds.clear()
        run(rounds)
        measured = list(watch.rounds)
        busy = _traced(lambda: run(min(rounds, 5)), watch, [], watch.device, trace)
    lighter = lighter_share(model.model, imgsz, "head")
    return Measured(measured, [], watch.device, {"imgsz": imgsz, "lighter": lighter, "threads": threads}, busy)


def level_name(stride: float, level: int) -> str:
    """3 of stride 8, as in P3; the level's index where the stride is no power of two."""
    power = int(stride).bit_length() - 1
    return str(power) if 2**power == stride else f"?{level}"


def training(
    arguments: Mapping[str, Any],
    *,
    rounds: int,
    trace: str | os.PathLike[str] | None = None,
    on_round: Callable[[], None] = lambda: None,
) -> Measured:
    """Profile batches of a training run, which is then given up; nothing of it is kept.

    Args:
        arguments: of `Trainer`, ultralytics' own and fastyolo's settings.
        rounds: batches to measure, after WARMUP others.
        trace: where to write a Chrome trace of a few more.
        on_round: called after each batch.

    Raises:
        ValueError: as `Trainer` does, or several devices are asked for.
    """
    _check(rounds, trace)
    with tempfile.TemporaryDirectory() as folder:
        kept = {"save_dir": folder, "exist_ok": True, "val": False, "plots": False, "save": False, "verbose": False}
        endless = {"epochs": 10**6, "patience": 0, "report_epochs": 0, "warmup_epochs": 0}
        batch = arguments.get("batch", DEFAULT_CFG.batch)
        if not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch must be a number of images, at least 1, got {batch!r}.")
        threads = torch.get_num_threads()  # of which ultralytics leaves one out
        # A step after every batch, so that few batches are enough; its time is divided by the batches of a real step.
        trainer = Trainer(overrides={**arguments, **kept, **endless, "nbs": batch})
        if trainer.world_size > 1:
            raise ValueError(f"device must be one device, got {trainer.args.device!r}; profile a single process.")
        accumulate = max(round(arguments.get("nbs", DEFAULT_CFG.nbs) / trainer.batch_size), 1)
        run = _TrainingRun(trainer, rounds, accumulate, trace, on_round)
        try:
            trainer.train()
        except _Enough:
            pass
        finally:
            run.close()
            torch.set_num_threads(threads)
    return run.measured()


def _check(rounds: int, trace: str | os.PathLike[str] | None) -> None:
    _arguments.integer("rounds", rounds, 1)
    _arguments.optional_path("trace", trace)


class _Enough(Exception):  # noqa: N818 - no error
    """All batches that were asked for are measured."""


class _TrainingRun:
    """Watches a trainer through its callbacks, and stops it."""

    def __init__(
        self,
        trainer: Trainer,
        rounds: int,
        accumulate: int,
        trace: str | os.PathLike[str] | None,
        on_round: Callable[[], None],
    ) -> None:
        self._trainer = trainer
        self._rounds = rounds
        self._accumulate = accumulate
        self._trace = trace
        self._on_round = on_round
        self._undo = ExitStack()
        self._profiler: Any = None
        self._busy: float | None = None
        self._threads = 0
        self._measured: list[dict[str, float]] = []
        self._layers: list[Layer] = []
        self._watch = Stopwatch(trainer.device)
        for event in ("on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end"):
            trainer.add_callback(event, getattr(self, f"_{event.removeprefix('on_train_')}"))
        trainer.add_callback("on_train_epoch_end", lambda _: self._leave("data"))

    def measured(self) -> Measured:
        trainer = self._trainer
        facts = {
            "accumulate": self._accumulate,
            "amp": trainer.args.amp == "bf16" if trainer.device.type == "cpu" else bool(trainer.amp),
            "batch": trainer.batch_size,
            "cache": bool(trainer.args.cache),
            "frozen": trainer.settings.freeze_backbone,
            "imgsz": trainer.args.imgsz,
            "nbs": self._accumulate * trainer.batch_size,
            "teacher": trainer.args.distill_model is not None,
            "threads": self._threads,
            "workers": trainer.train_loader.num_workers,
        }
        rounds = [{**each, "optimiser": each["optimiser"] / self._accumulate} for each in self._measured]
        return Measured(rounds, self._layers, trainer.device, facts, self._busy)

    def close(self) -> None:
        self._undo.close()
        for loader in (getattr(self._trainer, name, None) for name in ("train_loader", "test_loader")):
            if loader is not None:
                loader.close()  # ends its processes

    def _start(self, trainer: Any) -> None:
        model, watch = unwrap_model(trainer.model), self._watch
        self._threads = torch.get_num_threads()
        student = model.student_model if isinstance(model, Distillation) else model
        self._layers = _layers(student, trainer.args.imgsz)
        self._undo.enter_context(_layers_timed(student, self._layers, watch))
        self._undo.enter_context(_timed(trainer.model, "loss", watch, then=lambda: watch.enter("backward")))
        if isinstance(model, Distillation):
            self._undo.enter_context(_timed(model.teacher_model, "teacher", watch))
        criterion = student.criterion
        for one in (criterion, *(getattr(criterion, name, None) for name in ("one2many", "one2one"))):
            if isinstance(assigner := getattr(one, "assigner", None), nn.Module):
                self._undo.enter_context(_timed(assigner, "assigner", watch))
        trainer.preprocess_batch = watch.timed("to device", trainer.preprocess_batch)
        step = watch.timed("optimiser", trainer.optimizer_step)

        def optimizer_step() -> None:
            self._leave("backward")
            step()

        trainer.optimizer_step = optimizer_step

    def _epoch_start(self, _: Trainer) -> None:
        self._watch.start()
        self._watch.enter("data")

    def _batch_start(self, _: Trainer) -> None:
        self._leave("data")

    def _batch_end(self, _: Trainer) -> None:
        self._leave("backward")
        watch = self._watch
        watch.lap()
        done = len(watch.rounds)
        if not self._measured:
            self._on_round()
            if done == WARMUP + self._rounds:
                self._measured = watch.rounds[WARMUP:]
                self._begin_trace()
        elif done == WARMUP + self._rounds + 3:
            self._end_trace()
            raise _Enough
        watch.enter("data")

    def _begin_trace(self) -> None:
        if self._trace is None and self._watch.device.type != "cuda":
            raise _Enough
        self._profiler = self._undo.enter_context(_profiler(self._watch.device))

    def _end_trace(self) -> None:
        self._undo.close()
        stages = {layer.stage for layer in self._layers} | {"backward"}
        self._busy = _busy(self._profiler, self._watch.rounds[-3:], stages, self._watch.device)
        if self._trace:
            _write_trace(self._profiler, self._trace)

    def _leave(self, stage: str) -> None:
        if self._watch.current == stage:
            self._watch.leave(stage)


def lighter_share(network: DetectionModel, imgsz: int, part: str | None = None) -> tuple[str, float] | None:
    """The light model that takes the place of a YOLOv8, and its FLOPs as a share of that one's; None for others.

    Args:
        part: backbone, neck or head, for that part's FLOPs.
    """
    scale, file = network.yaml.get("scale"), Path(network.yaml.get("yaml_file", "")).stem
    if not scale or file not in (f"yolov8{scale}", "yolov8"):
        return None
    name = f"yolov8{scale}-fast"
    light = DetectionModel(f"{name}.yaml", nc=len(network.names), verbose=False)
    costs = [cost(each, imgsz) for each in (light, network)]
    ours, theirs = (each["parts"][part]["flops"] if part else each["flops"] for each in costs)
    return name, ours / theirs


def _layers(network: DetectionModel, imgsz: int) -> list[Layer]:
    modules, parts = network.model, layer_parts(network)
    return [
        Layer(f"{index} {type(module).__name__}", type(module).__name__, part, each.flops, each.activation_bytes, n)
        for index, (module, part, each) in enumerate(zip(modules, parts, layer_costs(network, imgsz), strict=True))
        for n in [each.parameters]
    ]


@contextmanager
def _layers_timed(network: DetectionModel, layers: Sequence[Layer], watch: Stopwatch) -> Iterator[None]:
    with ExitStack() as undo:
        for module, layer in zip(network.model, layers, strict=True):
            undo.enter_context(_timed(module, layer.stage, watch))
        yield


@contextmanager
def _timed(module: nn.Module, stage: str, watch: Stopwatch, then: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Calls of the module are a stage, after which `then` is called."""

    def after(*_: Any) -> None:
        watch.leave(stage)
        then()

    hooks = (
        module.register_forward_pre_hook(lambda *_: watch.enter(stage)),
        module.register_forward_hook(after),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _method_timed(thing: Any, name: str, stage: str, watch: Stopwatch) -> Iterator[None]:
    """Calls of a method of this object are a stage."""
    setattr(thing, name, watch.timed(stage, getattr(thing, name)))
    try:
        yield
    finally:
        delattr(thing, name)  # which hid that of the class


@contextmanager
def _postprocessing_timed(predictor: Any, last: Detect, watch: Stopwatch) -> Iterator[None]:
    tap = predictor._tap if isinstance(predictor, AcceleratedPredictor) else None
    with ExitStack() as undo:
        if tap is not None:
            undo.enter_context(_method_timed(tap, "detect", "decode and NMS", watch))
        else:
            undo.enter_context(_method_timed(last, "_inference", "decode", watch))
            stock = detection.nms.non_max_suppression
            detection.nms.non_max_suppression = watch.timed("NMS", stock)
            undo.callback(setattr, detection.nms, "non_max_suppression", stock)
        yield


def _features(network: DetectionModel, imgsz: int) -> list[Tensor]:
    """Random features of the shapes that the head gets."""
    shapes: list[torch.Size] = []

    def keep(_: nn.Module, args: tuple[list[Tensor]]) -> None:
        shapes.extend(x.shape for x in args[0])

    hook = network.model[-1].register_forward_pre_hook(keep)
    weight = next(network.parameters())
    with torch.inference_mode():
        network(weight.new_zeros(1, int(network.yaml.get("channels", 3)), imgsz, imgsz))
    hook.remove()
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(weight) for shape in shapes]


@contextmanager
def _profiler(device: torch.device) -> Iterator[Any]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with (
        silent_profiler(),
        torch.profiler.profile(activities=activities, record_shapes=True, acc_events=True) as profiler,
    ):
        yield profiler


def _traced(
    run: Callable[[], None],
    watch: Stopwatch,
    layers: Sequence[Layer],
    device: torch.device,
    trace: str | os.PathLike[str] | None,
) -> float | None:
    """Run under torch's profiler where there is something to learn from it; how busy the GPU was."""
    if trace is None and device.type != "cuda":
        return None
    before = len(watch.rounds)
    with _profiler(device) as profiler:
        run()
    if trace:
        _write_trace(profiler, trace)
    return _busy(profiler, watch.rounds[before:], {layer.stage for layer in layers}, device)


def _write_trace(profiler: Any, path: str | os.PathLike[str]) -> None:
    with _files.replacing(Path(path)) as temporary:
        profiler.export_chrome_trace(str(temporary))


def _busy(profiler: Any, rounds: Sequence[Mapping[str, float]], stages: set[str], device: torch.device) -> float | None:
    """Share of the stages' time in which kernels ran on the GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    total = sum(seconds for each in rounds for stage, seconds in each.items() if stage in stages)
    kernels = kernel_seconds(profiler.events(), {stage for each in rounds for stage in each})
    return min(1.0, sum(kernels.get(stage, 0.0) for stage in stages) / total) if total else None


def kernel_seconds(events: Iterable[Any], stages: Collection[str]) -> dict[str, float]:
    """Seconds of kernels and copies on a GPU, by the innermost stage that they ran in.

    A `Stopwatch` waits for the GPU where stages begin and end, so they ran while the stage did that asked for them.

    Args:
        events: of torch's profiler, which repeats the stages among the GPU's events, as annotations.
    """
    ranges, kernels = [], []
    for event in events:
        start, end = event.time_range.start, event.time_range.end
        if event.device_type.name == "CPU":
            if event.name in stages:
                ranges.append((start, end, event.name))
        elif not event.is_user_annotation:
            kernels.append((start, end))
    ranges.sort()
    seconds: dict[str, float] = defaultdict(float)
    for start, end in kernels:
        begun = bisect_right(ranges, start, key=lambda entry: entry[0])
        if stage := next((name for _, close, name in reversed(ranges[:begun]) if start < close), None):
            seconds[stage] += (end - start) / 1e6
    return seconds
