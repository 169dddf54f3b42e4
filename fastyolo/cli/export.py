# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo export."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fastyolo.cli.common import Debug, Terminal, Weights, image_size, reporting


class Format(str, Enum):
    onnx = "onnx"
    tensorrt_onnx = "tensorrt-onnx"
    engine = "engine"
    openvino = "openvino"
    ncnn = "ncnn"


class Outputs(str, Enum):
    maps = "maps"
    boxes = "boxes"
    detections = "detections"


class Plugin(str, Enum):
    eca = "eca"
    dw_sppf = "dw_sppf"
    sppf_pool = "sppf_pool"


def export(
    weights: Weights = "yolov8n.pt",
    format: Annotated[  # noqa: A002
        Format, typer.Option("--format", help="onnx has standard operators only, tensorrt-onnx fastyolo's plugins.")
    ] = Format.onnx,
    outputs: Annotated[
        Outputs | None,
        typer.Option(
            "--outputs",
            help="Raw maps of the head, decoded boxes (YOLO('model.onnx') reads only these), or final detections.",
            show_default="maps; for TensorRT detections; for openvino and ncnn boxes",
        ),
    ] = None,
    imgsz: Annotated[
        str, typer.Option("--imgsz", metavar="SIDE|HxW", help="Side, or height and width, of the input in pixels.")
    ] = "640",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per run.")] = 1,
    dynamic: Annotated[
        bool,
        typer.Option("--dynamic", help="Leave batch, height and width free; an engine's up to --batch and --imgsz."),
    ] = False,
    half: Annotated[
        bool, typer.Option("--half", help="Weights and maps in float16; input and outputs stay float32.")
    ] = False,
    conf: Annotated[
        float | None,
        typer.Option("--conf", min=0, max=1, help="For detections: score to exceed.", show_default="0.25"),
    ] = None,
    iou: Annotated[
        float | None,
        typer.Option(
            "--iou", min=0, max=1, help="For detections: IoU above which the lesser box is dropped.", show_default="0.7"
        ),
    ] = None,
    max_det: Annotated[
        int | None,
        typer.Option("--max-det", min=1, help="For detections: rows of the result.", show_default="300"),
    ] = None,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="For detections: every class of a box, not the best only.")
    ] = False,
    agnostic_nms: Annotated[
        bool, typer.Option("--agnostic-nms", help="For detections: let boxes suppress boxes of other classes.")
    ] = False,
    plugins: Annotated[
        list[Plugin] | None,
        typer.Option("--plugins", help="For TensorRT: let this operator be a plugin, too; repeatable."),
    ] = None,
    runtime_thresholds: Annotated[
        bool, typer.Option("--runtime-thresholds", help="For TensorRT: an input for score and IoU thresholds.")
    ] = False,
    workspace: Annotated[
        float | None,
        typer.Option("--workspace", min=0, help="For an engine: GiB of scratch memory.", show_default="all there is"),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", metavar="FILE", help="For an engine: measurements to keep for the next."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="PATH", help="File or folder to write.", show_default="beside the weights"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a model for ONNX Runtime, TensorRT, OpenVINO or NCNN."""
    with reporting(debug):
        size = image_size(imgsz)
        from fastyolo import export as exporting
        from fastyolo.integrations.ultralytics import export as ultralytics

        ultralytics.LOGGER.setLevel("WARNING")
        build: dict[str, Any] = {"half": half, "workspace": workspace, "timing_cache": timing_cache}
        console = Terminal(soft_wrap=True)
        with console.status("export") as status:

            def say_onnx(file: Path, built: Path) -> None:
                _say_written(console, file)
                _say_command(console, file, built, build)
                status.update("build")

            target = exporting.export(
                weights,
                format.value,
                outputs=outputs.value if outputs else None,
                imgsz=size,
                batch=batch,
                dynamic=dynamic,
                conf=conf,
                iou=iou,
                max_det=max_det,
                multi_label=multi_label,
                agnostic_nms=agnostic_nms,
                plugins=[plugin.value for plugin in plugins or ()],
                runtime_thresholds=runtime_thresholds,
                path=output,
                on_onnx=say_onnx,
                **build,
            )
        _say_written(console, target)
        if format is Format.tensorrt_onnx:
            _say_command(console, target, target.with_suffix(".engine"), build)


def _say_command(console: Console, file: Path, built: Path, build: Mapping[str, Any]) -> None:
    from fastyolo.export import engine

    command = engine.trtexec_command(file, built, **build)
    console.print(f"To build an engine with TensorRT {engine.trtexec_version()}: {command}", markup=False)


def _say_written(console: Console, path: Path) -> None:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    console.print(f"{path}, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB", markup=False)
