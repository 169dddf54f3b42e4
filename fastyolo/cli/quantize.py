# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo quantize."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from fastyolo._files import write_json
from fastyolo.cli.common import (
    Debug,
    Json,
    Terminal,
    check_device,
    image_size,
    progress_bar,
    reporting,
    resumable,
    writable,
)
from fastyolo.cli.export import Outputs
from fastyolo.cli.sensitivity import picture
from fastyolo.cli.sensitivity import report as report_sensitivity
from fastyolo.cli.train import given_arguments


class Method(str, Enum):
    ptq = "ptq"
    qat = "qat"


class Calibrator(str, Enum):
    entropy = "entropy"
    percentile = "percentile"
    minmax = "minmax"


class Target(str, Enum):
    tensorrt = "tensorrt"
    onnxruntime = "onnxruntime"


def quantize(
    weights: Annotated[
        Path,
        typer.Option("--weights", metavar="FILE", exists=True, dir_okay=False, help="Checkpoint, or ONNX in float32."),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="YAML|FOLDER",
            help="Images to calibrate on: a folder, a glob, or a data set, of which the training images are taken.",
        ),
    ],
    method: Annotated[Method, typer.Option("--method", help="ptq calibrates, qat calibrates and trains.")] = Method.ptq,
    calibrator: Annotated[
        Calibrator, typer.Option("--calibrator", help="How the range of a map is chosen.")
    ] = Calibrator.percentile,
    target: Annotated[
        Target, typer.Option("--target", help="tensorrt is for OpenVINO too; onnxruntime is for it alone, on CPUs.")
    ] = Target.tensorrt,
    images: Annotated[int, typer.Option("--images", min=8, help="Images to calibrate on, at most.")] = 300,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-float",
            metavar="NAME|auto:N",
            help="Layer to leave in float, as model.4 or model.22.cv3.0, or the N most sensitive; repeatable.",
        ),
    ] = None,
    outputs: Annotated[
        Outputs | None,
        typer.Option("--outputs", help="Of a checkpoint: as fastyolo export has it.", show_default="maps"),
    ] = None,
    imgsz: Annotated[
        str | None,
        typer.Option(
            "--imgsz",
            metavar="SIDE|HxW",
            help="Side, or height and width, of the input in pixels.",
            show_default="640; what an ONNX file says",
        ),
    ] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Of a checkpoint: leave batch, height and width free.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="DIR",
            file_okay=False,
            callback=writable,
            help="Folder that keeps what calibration counted.",
            show_default="fastyolo/calibration in ~/.cache",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            dir_okay=False,
            callback=writable,
            help="File to write.",
            show_default="NAME-int8.onnx by the weights",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            min=1,
            help="With --method qat: passes over the data set.",
            show_default="a tenth of the checkpoint's, but 5 at least",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="With --method qat: as fastyolo train has it."),
    ] = None,
    save_dir: Annotated[
        Path | None,
        typer.Option(
            "--save-dir",
            metavar="DIR",
            file_okay=False,
            callback=writable,
            help="With --method qat: folder of the training, which goes on if it was interrupted.",
            show_default="the file's name without .onnx",
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="With --method qat: any argument of fastyolo train --set; repeatable."
        ),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Write no model: rank the parts by what they lose in int8.")
    ] = False,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="With --sensitivity: single layers, not blocks; several times the work.")
    ] = False,
    accuracy_of: Annotated[
        int | None,
        typer.Option(
            "--accuracy-of",
            metavar="N",
            min=0,
            help="With --sensitivity: measure the loss of mAP of the N most sensitive, on a data set's val images.",
            show_default="5",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", dir_okay=False, callback=picture, help="With --sensitivity: a PNG, SVG or PDF."
        ),
    ] = None,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Write a model in INT8, as ONNX for TensorRT 10 and 11 and for OpenVINO, or for ONNX Runtime.

    On a CPU run it with OpenVINO (fastyolo predict --engine openvino). ONNX Runtime computes the same, but on x86 more
    slowly than with float32: it has no int8 convolution whose output stays float for the activation. With --target
    onnxruntime activations are quantised as well, which it is fast with, and TensorRT is not.
    """
    if sensitivity:
        _refuse(
            "--sensitivity",
            {
                "--method": method is Method.qat,
                "--target": target is Target.onnxruntime,
                "--outputs": outputs,
                "--dynamic": dynamic,
                "--output": output,
            },
        )
    else:
        _require("--sensitivity", {"--per-layer": per_layer, "--accuracy-of": accuracy_of is not None, "--plot": plot})
    if method is Method.ptq:
        only_trained = {"--epochs": epochs, "--device": device, "--save-dir": save_dir, "--set": assignments}
        _require("--method qat", only_trained)
    with reporting(debug):
        size = None if imgsz is None else image_size(imgsz)
        if sensitivity:
            with resumable():
                report_sensitivity(
                    Terminal(soft_wrap=True),
                    json,
                    plot,
                    weights,
                    data,
                    per_layer=per_layer,
                    accuracy_of=5 if accuracy_of is None else accuracy_of,
                    calibrator=calibrator.value,
                    images=images,
                    keep_float=keep_float or (),
                    imgsz=size,
                    cache=cache,
                )
            return
        from fastyolo.compress import quantization

        try:
            file = quantization.target_of(weights, output)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--output") from error
        if method is Method.ptq and (
            weights.suffix.lower() != ".onnx" or Path(data).suffix.lower() in (".yaml", ".yml")
        ):
            from fastyolo.integrations.ultralytics.export import LOGGER

            LOGGER.setLevel("WARNING")
        console = Terminal(soft_wrap=True)
        training: dict[str, Any] = {}
        if method is Method.qat:
            training = {"save_dir": save_dir, "training": _training(epochs, device, assignments or [])}
        with resumable(), progress_bar(console) as bar:
            task = bar.add_task("calibrate", total=None)
            quantization.quantize(
                weights,
                data,
                method=method.value,
                calibrator=calibrator.value,
                target=target.value,
                images=images,
                keep_float=keep_float or (),
                outputs=outputs.value if outputs else None,
                imgsz=size,
                dynamic=dynamic or None,
                path=file,
                cache=cache,
                on_image=lambda done, total: _advance(bar, task, done, total, before_training=method is Method.qat),
                **training,
            )
        report = _report(file)
        if method is Method.qat:
            report |= _trained(save_dir or file.with_suffix(""))
        if json:
            write_json(json, report)
        _print(console, report)


def _training(epochs: int | None, device: str | None, assignments: Sequence[str]) -> dict[str, Any]:
    """The arguments of the training that the command line names."""
    from fastyolo.integrations.ultralytics import runs

    options = {"epochs": epochs, "device": device}
    given = given_arguments({name: value for name, value in options.items() if value is not None}, assignments)
    check_device(given.get("device"))
    try:
        runs.check_values(given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return given


def _trained(run: Path) -> dict[str, Any]:
    """What came of a training: the accuracy of its best checkpoint, and whether an epoch made that."""
    from fastyolo.integrations.ultralytics import quantization, runs

    return {"metrics": runs.finished(run), "gained": not quantization.is_start(run / "weights" / "best.pt")}


def _advance(bar: Progress, task: TaskID, done: int, total: int, *, before_training: bool) -> None:
    """Shows how far calibration is; the log of a training that follows is no place for a bar."""
    if done < total:
        bar.update(task, description="calibrate", completed=done, total=total)
    elif before_training:
        bar.stop()
    else:
        bar.update(task, description="choose ranges", total=None)


def _refuse(option: str, others: Mapping[str, Any]) -> None:
    """Those of the others that are given have no meaning beside `option`."""
    if given := [name for name, value in others.items() if value]:
        raise typer.BadParameter(f"{', '.join(given)} cannot be combined with {option}; leave it out.")


def _require(option: str, others: Mapping[str, Any]) -> None:
    """Those of the others that are given have a meaning with `option` only."""
    if given := [name for name, value in others.items() if value]:
        raise typer.BadParameter(f"{', '.join(given)} is for {option}; add that, or leave it out.")


def _report(file: Path) -> dict[str, Any]:
    """Of a quantised file."""
    import onnx

    from fastyolo.compress.quantization import qdq
    from fastyolo.runtime.metadata import QUANTIZATION_KEY

    model = onnx.load(file)
    counts = qdq.count(model)
    in_int8, convolutions = counts.convolutions
    note = jsonlib.loads(next(entry.value for entry in model.metadata_props if entry.key == QUANTIZATION_KEY))
    return {
        "model": str(file),
        "bytes": file.stat().st_size,
        **note,
        "convolutions": convolutions,
        "int8_convolutions": in_int8,
        "pairs": counts.pairs,
        "edges": counts.edges,
        "reformat_free_edges": counts.reformat_free,
    }


def _print(console: Console, report: Mapping[str, Any]) -> None:
    share = report["bytes"] / report["float32_bytes"]
    rows = {
        "file": f"{report['bytes'] / 1e6:.1f} MB, {share:.1%} of float32",
        "convolutions": f"{report['int8_convolutions']} of {report['convolutions']} in int8",
        "ranges": f"by {report['calibrator']} on {report['images']} images",
        "Q/DQ pairs on maps": report["pairs"],
        "edges between them": f"{report['edges']}, {report['reformat_free_edges']} of them without reformatting",
    }
    if report["keep_float"]:
        rows["in float by request"] = ", ".join(report["keep_float"])
    if report["snr"]:
        rows["signal to noise of the maps"] = "{:.1f} dB, {:.1f} dB with these in float".format(*report["snr"])
    if metrics := report.get("metrics"):
        rows["validated in training"] = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    if not report.get("gained", True):
        rows["no epoch was better"] = "than calibration alone, so the weights are those of the checkpoint"
    table = Table(box=None, show_header=False)
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table)
    console.print(report["model"], markup=False)
    if report["target"] == "tensorrt":
        hint = "On a CPU run it with OpenVINO; ONNX Runtime is slow with it on x86: for that, use --target onnxruntime."
    else:
        hint = "Run it with ONNX Runtime on a CPU; TensorRT wants the file that --target tensorrt makes."
    console.print(hint, markup=False)
