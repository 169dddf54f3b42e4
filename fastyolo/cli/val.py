# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo val."""

from __future__ import annotations

import tempfile
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fastyolo._files import write_json
from fastyolo.cli.common import (
    Agnostic,
    Batch,
    Conf,
    Debug,
    DeviceName,
    Half,
    ImageSize,
    Iou,
    Json,
    MaxDet,
    Stock,
    Weights,
    load_detector,
    progress_bar,
    reporting,
)


def val(
    data: Annotated[str, typer.Option("--data", metavar="YAML", help="Data set, as ultralytics describes it.")],
    weights: Weights = "yolov8n.pt",
    split: Annotated[str, typer.Option("--split", help="Part of the data set.")] = "val",
    rect: Annotated[
        bool, typer.Option("--rect/--no-rect", help="Pad to the shape of a batch, not to a square.")
    ] = True,
    conf: Conf = 0.001,
    iou: Iou = 0.7,
    max_det: MaxDet = 300,
    agnostic_nms: Agnostic = False,
    imgsz: ImageSize = 640,
    device: DeviceName = None,
    half: Half = False,
    batch: Batch = 16,
    json: Json = None,
    stock: Stock = False,
    debug: Debug = False,
) -> None:
    """Measure mAP on a data set."""
    with reporting(debug):
        model = load_detector(weights, device, half, stock)
        from fastyolo.integrations.ultralytics.acceleration import is_accelerated

        console = Console(highlight=False)
        with progress_bar(console) as progress, tempfile.TemporaryDirectory() as scratch:
            task = progress.add_task("val")

            def advance(validator: Any) -> None:
                progress.update(task, total=len(validator.dataloader), advance=1)

            model.add_callback("on_val_batch_end", advance)
            metrics = model.val(
                data=data,
                split=split,
                rect=rect,
                conf=conf,
                iou=iou,
                max_det=max_det,
                agnostic_nms=agnostic_nms,
                imgsz=imgsz,
                device=device,
                quantize=16 if half else None,
                batch=batch,
                plots=False,
                save_dir=scratch,  # ultralytics makes one in any case
                verbose=False,
            )
        accuracy = {
            "mAP50-95": metrics.box.map,
            "mAP50": metrics.box.map50,
            "precision": metrics.box.mp,
            "recall": metrics.box.mr,
        }
        speed = {name: value for name, value in metrics.speed.items() if name != "loss"}
        table = Table(*accuracy, *(f"{name} ms" for name in speed))
        table.add_row(*(f"{value:.4f}" for value in accuracy.values()), *(f"{value:.2f}" for value in speed.values()))
        console.print(table)
        if json:
            document = {name: float(value) for name, value in accuracy.items()}
            write_json(
                json,
                {
                    "weights": weights,
                    "data": data,
                    "accelerated": is_accelerated(model),
                    "rect": rect,
                    "metrics": document,
                    "milliseconds": {name: round(value, 3) for name, value in speed.items()},
                },
            )
