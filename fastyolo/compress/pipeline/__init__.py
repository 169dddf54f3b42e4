# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a data set to a small detector, its files and a report. Light until it is called."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastyolo import _arguments
from fastyolo._machine import cores

if TYPE_CHECKING:
    from fastyolo.compress.pipeline.files import Progress
    from fastyolo.compress.pipeline.settings import Int8
    from fastyolo.compress.pipeline.summary import Data, Runtime, Summary
    from fastyolo.integrations.ultralytics.export import YOLO

__all__ = ["compress"]

MODEL = "yolov8s.pt"
EXAMPLES = 6  # images for pictures

# Arguments of a training that follow from those of `compress`, or with which the stages would not fit together.
TAKEN = frozenset(
    {
        *("classes", "data", "distill_model", "epochs", "exist_ok", "freeze_backbone", "imgsz", "model", "name"),
        *("pretrained", "project", "resume", "save", "save_dir", "single_cls", "time", "val"),
    }
)


def compress(
    data: str | Path,
    *,
    weights: str | Path | None = None,
    model: str | Path = MODEL,
    light: str | Path | None = None,
    skip: Sequence[str] = (),
    epochs: int | None = None,
    max_epochs: int | None = None,
    flops: float = 0.3,
    target_latency: float | None = None,
    target_size: float | None = None,
    runtime: Runtime = "onnxruntime",
    int8: Int8 = "qat",
    formats: Sequence[str] = (),
    imgsz: int = 640,
    threads: int | None = None,
    training: Mapping[str, Any] | None = None,
    save_dir: str | Path = "runs/compress",
    say: Callable[[str], None] = lambda line: None,
    on_progress: Progress = lambda what, done, total: None,
    debug: bool = False,
) -> Summary:
    """Make a detector for a data set small and fast, stage by stage, and measure every stage.

    The stages are: baseline, a YOLOv8 trained on the data; light, the light model with the weights that it has in
    common with the baseline, trained; distilled, that trained on with the baseline as its teacher (without light, from
    the beginning); pruned, that without a part of its channels, trained on with itself as it was for a teacher,
    and before for sparsity, for half of the epochs, if there are ten; int8, that trained for INT8. Then every model is
    exported, compared with its checkpoint, and measured.

    The same call goes on where it was interrupted. A stage is done again if a model that it was made from has changed,
    which deletes what it left in its folder.

    Args:
        data: YAML file of the data set, as ultralytics describes it.
        weights: a checkpoint that is trained on the data, to be the baseline in place of one that is trained here.
        model: what the training of the baseline begins from: a checkpoint, or a YAML file for random weights.
        light: YAML file of the light model. None: yolov8-fast in the scale of the baseline.
        skip: stages to leave out, or "verify", the comparison.
        epochs: of the baseline's training, 100 if None; light and distilled get as many, pruned 30 %, int8 10 % of it.
        max_epochs: of all trainings together, in place of `epochs`, shared in the same proportions.
        flops: share of the FLOPs that pruning removes where there are no targets.
        target_latency: milliseconds that the network may take for one image in `runtime` on this machine, and
        target_size: megabytes (10^6 bytes) that its file may have, both of the form that ships. They decide how much is
            pruned. If they cannot be met, `flops` does, and the summary says so.
        runtime: "onnxruntime" or "openvino".
        int8: "qat" trains for INT8, "ptq" calibrates only.
        formats: to export the final float model to beside ONNX: as `fastyolo.export.export` has them.
        imgsz: side of the input in pixels.
        threads: of the runtimes in measurements. None: one for each core.
        training: further arguments of the trainings: ultralytics' and fastyolo's settings. Training for INT8 takes its
            own learning rate and losses from how the model was trained.
        save_dir: folder of the run: new, empty, or that of the same run.
        say: called with a line for each thing that is done.
        on_progress: called with what is being measured, how much of it is done, and how much there is.
        debug: raise what makes a stage fail, instead of reporting what was made until then.

    Returns:
        What is in summary.json. Its `problems` are empty if all went well and the targets are met.

    Raises:
        FileNotFoundError: there is no such model or data set.
        ModuleNotFoundError: a package is missing.
        TypeError: an argument is of another type.
        ValueError: an argument is not as above; the data set, which `fastyolo doctor` examines, is refused by the
            trainer; the baseline has other classes; or the folder holds something else or stages of other arguments,
            or another process is at work in it.
    """
    _check(skip, epochs, max_epochs, flops, target_latency, target_size, runtime, int8, formats)
    for name, path in (("data", data), ("model", model), ("save_dir", save_dir)):
        _arguments.path(name, path)
    for name, given in (("weights", weights), ("light", light)):
        _arguments.optional_path(name, given)
    if _arguments.integer("imgsz", imgsz, 32) % 32:
        raise ValueError(f"imgsz must be a multiple of 32, got {imgsz}.")
    left_out = frozenset(skip)
    _check_order(left_out, weights is not None)
    _require_packages(left_out, int8, formats, runtime if target_latency is not None else None)
    _check_training(training or {})
    from fastyolo._files import digest
    from fastyolo._quiet import quiet
    from fastyolo.compress.pipeline import run, settings
    from fastyolo.compress.pipeline.state import State

    trained = settings.trained(left_out, given=weights is not None, int8=int8)
    shared = settings.epochs_of(trained, epochs, max_epochs)
    state = State(Path(save_dir).absolute())
    with quiet():
        known = _data(str(data), {**(training or {}), "imgsz": imgsz})
    baseline = _baseline(weights, model, imgsz)
    if baseline is not None:
        _check_classes(baseline, known.classes)
    light = _light(light, weights or model, left_out)
    own = {file: digest(Path(file)) if Path(file).is_file() else None for file in (str(model), light) if file}
    options = settings.Options(
        data=str(data),
        digest=known.digest,
        weights=None if weights is None else str(weights),
        weights_digest=None if weights is None else digest(Path(weights)),
        model=str(model),
        model_digest=own[str(model)],
        light=light,
        light_digest=own[light] if light else None,
        skip=left_out,
        epochs=shared,
        flops=flops,
        target_latency=target_latency,
        target_size=target_size,
        runtime=runtime,
        int8=int8,
        formats=tuple(formats),
        imgsz=imgsz,
        threads=_threads(threads),
        training=dict(training or {}),
    )
    run.check(options, state, shared=max_epochs is not None)
    return run.run(options, state, known, say, on_progress, debug=debug)


def _check(
    skip: Sequence[str],
    epochs: int | None,
    max_epochs: int | None,
    flops: float,
    target_latency: float | None,
    target_size: float | None,
    runtime: str,
    int8: str,
    formats: Sequence[str],
) -> None:
    from fastyolo.compress.pipeline.settings import FORMATS, SKIPPABLE
    from fastyolo.compress.pipeline.summary import RUNTIMES

    _arguments.choices("skip", skip, SKIPPABLE)
    _arguments.choices("formats", formats, FORMATS)
    if epochs is not None and max_epochs is not None:
        raise ValueError(f"epochs and max_epochs exclude each other, got {epochs} and {max_epochs}; leave one out.")
    for name, count in (("epochs", epochs), ("max_epochs", max_epochs)):
        if count is not None:
            _arguments.integer(name, count, 1)
    if not 0 < _arguments.number("flops", flops, -inf, inf) < 1:
        raise ValueError(f"flops must be a share between 0 and 1, got {flops:g}.")
    for name, target in (("target_latency", target_latency), ("target_size", target_size)):
        if target is not None and not 0 < _arguments.number(name, target, -inf, inf) < inf:
            raise ValueError(f"{name} must be a number above 0, got {target:g}.")
    for name, choice, known in (("runtime", runtime, RUNTIMES), ("int8", int8, ("qat", "ptq"))):
        if choice not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {choice!r}.")


def _check_order(skip: frozenset[str], given: bool) -> None:
    """Refuse stages that lack what they are made from."""
    if given and "baseline" in skip:
        raise ValueError("weights is the baseline, which skip leaves out; leave one of them out.")
    if "baseline" in skip and "distilled" not in skip:
        raise ValueError("skip must hold 'distilled' beside 'baseline', which is its teacher, or weights be given.")
    if {"baseline", "light", "distilled"} <= skip:
        raise ValueError("skip must leave 'baseline', 'light' or 'distilled', or there is no model, got all of them.")


def _require_packages(skip: frozenset[str], int8: str, formats: Sequence[str], runtime: str | None) -> None:
    wanted = {"onnx": "onnx", "onnxslim": "onnxslim", "onnxruntime": "onnxruntime", "cv2": "opencv-python"}
    wanted |= {"jinja2": "jinja2", "matplotlib": "matplotlib"}
    if "pruned" not in skip:
        wanted["torch_pruning"] = "torch-pruning"
    if "int8" not in skip and int8 == "qat":
        wanted["modelopt"] = "nvidia-modelopt"
    if "openvino" in (*formats, runtime):
        wanted["openvino"] = "openvino"
    if "ncnn" in formats:
        wanted |= {"ncnn": "ncnn", "pnnx": "pnnx"}
    missing = [package for module, package in wanted.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"compress needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; pip "
            f"install {' '.join(missing)}."
        )


def _check_training(training: Mapping[str, Any]) -> None:
    from fastyolo.integrations.ultralytics import runs

    if taken := sorted(TAKEN & set(training)):
        raise ValueError(f"training (--set) must not hold {', '.join(taken)}, which compress decides on; leave it out.")
    runs.check_names(training)
    runs.check_values(training)


def _baseline(weights: str | Path | None, model: str | Path, imgsz: int) -> YOLO | None:
    """The baseline that is given, or None; then what it is to be trained from is checked."""
    from fastyolo.integrations.ultralytics import runs
    from fastyolo.integrations.ultralytics.export import load

    if weights is not None:
        baseline = load(weights)
        if imgsz % (stride := int(baseline.model.stride.max())):
            raise ValueError(f"imgsz must be a multiple of the baseline's largest stride, {stride}, got {imgsz}.")
        return baseline
    try:
        runs.check_model(str(model))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The model {str(model)!r} is not on this machine and cannot be downloaded; pass a model's YAML file to "
            f"begin with random weights, or the checkpoint of a trained baseline as weights."
        ) from error
    return None


def _check_classes(baseline: YOLO, classes: tuple[str, ...]) -> None:
    names = tuple(baseline.names.values())
    if names != classes:
        raise ValueError(
            f"weights must be trained for the classes of the data, in their order ({_some(classes)}), got {len(names)} "
            f"({_some(names)}); train a baseline on the data, which compress does without weights."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _light(light: str | Path | None, baseline: str | Path, skip: frozenset[str]) -> str | None:
    """The model file of the light model; None where a baseline without a scale goes through without it."""
    from fastyolo.integrations.ultralytics import runs
    from fastyolo.integrations.ultralytics.splits import scale_of

    if light is None:
        scale = scale_of(str(baseline))
        if scale is None and not {"light", "distilled"} <= skip:
            raise ValueError(f"light must be given for {str(baseline)!r}, a model without a scale; name a YAML file.")
        return f"yolov8{scale}-fast.yaml" if scale else None
    runs.check_model(str(light))
    return str(light)


def _data(data: str, arguments: Mapping[str, Any]) -> Data:
    import hashlib

    from fastyolo._files import data_name
    from fastyolo.compress.pipeline.summary import Data
    from fastyolo.integrations.ultralytics.splits import read

    names, splits = read(data, arguments)
    train, val = splits["train"], splits["val"]
    shown = [file for file, objects in zip(val.images, val.objects, strict=True) if objects]
    return Data(
        name=data_name(data),
        path=data,
        classes=names,
        train_images=len(train.images),
        val_images=len(val.images),
        train_objects=sum(train.objects),
        val_objects=sum(val.objects),
        digest=hashlib.sha256((train.digest + val.digest).encode()).hexdigest(),
        examples=tuple(shown[:: max(len(shown) // EXAMPLES, 1)][:EXAMPLES]),
    )


def _threads(threads: int | None) -> int:
    # Not torch's number by default, which ultralytics lowers by one on its way.
    return cores() if threads is None else _arguments.integer("threads", threads, 1)
