# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo val."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fastyolo._files import write_json
from fastyolo._names import distinct_names
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
    Terminal,
    Weights,
    load_detector,
    progress_bar,
    report,
    reporting,
    writable,
)
from fastyolo.cli.sensitivity import picture


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
    history: Annotated[
        Path | None,
        typer.Option(
            "--history",
            metavar="FILE",
            dir_okay=False,
            callback=writable,
            help="Log to add the result to (JSON lines).",
        ),
    ] = None,
    history_plot: Annotated[
        Path | None,
        typer.Option("--history-plot", metavar="FILE", callback=picture, help="Plot of the log: .svg, .png or .pdf."),
    ] = None,
    json: Json = None,
    stock: Stock = False,
    debug: Debug = False,
) -> None:
    """Measure mAP on a data set, and keep a log of it over versions.

    The log names weights, settings and, by a hash of their content, images and labels; only results of the same images,
    labels and settings are compared, and joined by a line in its plot.
    """
    with reporting(debug):
        if history_plot and not history:
            raise typer.BadParameter("there is no log to plot; name it with --history.", param_hint="--history-plot")
        if history:
            from fastyolo.diagnose.history import check

            check(history)
        if _shows_no_boxes(weights):
            raise ValueError(
                f"weights (--weights) must be a checkpoint or exported with --outputs boxes, got {weights!r}, whose "
                f"mAP this measures: fastyolo bench model --model {shlex.quote(weights)} --data {shlex.quote(data)}"
            )
        model = load_detector(weights, device, half, stock)
        if history and model.ckpt_path is None:  # of a YAML file
            raise typer.BadParameter(
                f"a result is known by the content of its weights, and {weights!r} has none; pass a checkpoint.",
                param_hint="--history",
            )
        from fastyolo.integrations.ultralytics.acceleration import is_accelerated
        from fastyolo.integrations.ultralytics.data import check_split

        check_split(data, split)
        console = Terminal()
        with progress_bar(console) as progress, tempfile.TemporaryDirectory() as scratch:
            task = progress.add_task("val")

            def advance(validator: Any) -> None:
                progress.update(task, total=len(validator.dataloader), advance=1)

            validated: list[Any] = []
            model.add_callback("on_val_batch_end", advance)
            model.add_callback("on_val_end", lambda validator: validated.append(validator.dataloader.dataset))
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
        described = (metrics.names, validated[0].data["names"])
        ours, theirs = ([names[label] for label in sorted(names)] for names in described)
        if ours != theirs:
            report(
                f"The {len(ours)} classes of {weights} are not the {len(theirs)} of {data}, in name or order; labels "
                f"are compared by their numbers alone. fastyolo doctor tells the differences."
            )
        accuracy = {
            "mAP50-95": metrics.box.map,
            "mAP50": metrics.box.map50,
            "precision": metrics.box.mp,
            "recall": metrics.box.mr,
        }
        speed = {name: value for name, value in metrics.speed.items() if name != "loss"}
        document = {name: float(value) for name, value in accuracy.items()}
        lines = []
        if history:
            settings = {
                "imgsz": imgsz,
                "rect": rect,
                "conf": conf,
                "iou": iou,
                "max_det": max_det,
                "agnostic_nms": agnostic_nms,
                "half": half,
            }
            names = distinct_names([metrics.names[label] for label in sorted(metrics.names)])
            by_class = {
                names[label]: float(value) for label, value in zip(metrics.ap_class_index, metrics.box.ap, strict=True)
            }
            lines = _keep(history, history_plot, model, data, split, validated[0], settings, document, by_class)
        if json:
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
        table = Table(*accuracy, *(f"{name} ms" for name in speed))
        table.add_row(*(f"{value:.4f}" for value in accuracy.values()), *(f"{value:.2f}" for value in speed.values()))
        console.print(table)
        for line in lines:
            console.print(line, markup=False)


def _shows_no_boxes(weights: str) -> bool:
    """Whether it is an ONNX file of fastyolo that ultralytics, which validates it, cannot read."""
    if Path(weights).suffix.lower() != ".onnx" or not Path(weights).is_file():
        return False
    from fastyolo.runtime.engines import OnnxRuntime
    from fastyolo.runtime.metadata import KEY, Metadata

    properties = OnnxRuntime(Path(weights), 1).properties
    return KEY in properties and Metadata.read(properties, weights).outputs != "boxes"


def _keep(
    log: Path,
    plot: Path | None,
    model: Any,
    data: str,
    split: str,
    dataset: Any,
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
    by_class: Mapping[str, float],
) -> list[str]:
    """What to say of it."""
    from fastyolo.diagnose import history
    from fastyolo.integrations.ultralytics.labelled import fingerprint

    described = {"name": data, "split": split, "fingerprint": fingerprint(dataset)}
    result = history.entry(Path(model.ckpt_path), described, settings, metrics, by_class)
    entries = history.read(log) if log.exists() else []
    history.append(log, result)
    lines = []
    if earlier := history.comparable(entries, result):
        change = metrics["mAP50-95"] - earlier["metrics"]["mAP50-95"]
        lines.append(f"mAP50-95 {change:+.4f} against {history.short_name(earlier)} of {earlier['date'][:10]}")
    if plot:
        history.draw([*entries, result], plot)
        lines.append(str(plot))
    return lines
