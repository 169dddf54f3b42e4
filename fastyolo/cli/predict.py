# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo predict."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

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


def predict(
    weights: Weights = "yolov8n.pt",
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="PATH",
            help="Image, folder, glob, video or URL.",
            show_default="the two photographs that come with ultralytics",
        ),
    ] = None,
    save_dir: Annotated[
        Path, typer.Option("--save-dir", metavar="DIR", file_okay=False, help="Where the annotated pictures go.")
    ] = Path("runs/predict"),
    conf: Conf = 0.25,
    iou: Iou = 0.7,
    classes: Annotated[
        list[int] | None, typer.Option("--classes", metavar="ID", min=0, help="Report this class only; repeatable.")
    ] = None,
    max_det: MaxDet = 300,
    agnostic_nms: Agnostic = False,
    imgsz: ImageSize = 640,
    device: DeviceName = None,
    half: Half = False,
    batch: Batch = 1,
    json: Json = None,
    stock: Stock = False,
    debug: Debug = False,
) -> None:
    """Detect objects, save annotated pictures or videos, and print a line for each."""
    with reporting(debug):
        if source is not None and not _is_pattern(source) and not Path(source).exists():
            raise typer.BadParameter(f"{source!r} does not exist.", param_hint="--source")
        model = load_detector(weights, device, half, stock)
        from fastyolo.integrations.ultralytics.acceleration import ASSETS, is_accelerated, predictor_of

        predictor = predictor_of(
            model,
            save=True,
            save_dir=str(save_dir),
            conf=conf,
            iou=iou,
            classes=classes,
            max_det=max_det,
            agnostic_nms=agnostic_nms,
            imgsz=imgsz,
            device=device,
            quantize=16 if half else None,
            batch=batch,
            verbose=False,
        )
        results = predictor(source or str(ASSETS), stream=True)
        console = Console(highlight=False, soft_wrap=True)
        documents = []
        with progress_bar(console) as progress:
            task = progress.add_task("predict")
            for path, frames in groupby(results, key=lambda result: result.path):
                counts: Counter[str] = Counter()
                milliseconds: Counter[str] = Counter()
                found: list[dict[str, Any]] = []
                for number, result in enumerate(frames):
                    dataset = predictor.dataset
                    progress.update(task, total=dataset.frames if dataset.mode == "video" else dataset.nf, advance=1)
                    counts.update(result.names[int(label)] for label in result.boxes.cls)
                    milliseconds.update(result.speed)
                    found.append({"path": path, "frame": number, **_document(result)})
                documents += found
                console.print(_line(path, found, counts, milliseconds), markup=False)
        console.print(f"Annotated pictures are in {save_dir}", markup=False)
        if json:
            write_json(json, {"weights": weights, "accelerated": is_accelerated(model), "images": documents})


def _is_pattern(source: str) -> bool:
    """What ultralytics takes and the file system cannot confirm: a URL, a glob, the number of a camera."""
    return "://" in source or any(character in source for character in "*?[") or source.isdigit()


def _document(result: Any) -> dict[str, Any]:
    height, width = result.orig_shape
    rows = result.boxes.data.tolist()
    return {
        "width": width,
        "height": height,
        "milliseconds": {name: round(value, 3) for name, value in result.speed.items()},
        "detections": [
            {"class": int(label), "name": result.names[int(label)], "score": score, "box": box}
            for *box, score, label in rows
        ],
    }


def _line(path: str, frames: list[dict[str, Any]], counts: Counter[str], milliseconds: Counter[str]) -> str:
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
    length = f" {len(frames)} frames" if len(frames) > 1 else ""
    times = ", ".join(f"{name} {value / len(frames):.1f}" for name, value in milliseconds.items())
    return f"{Path(path).name} {frames[0]['width']}x{frames[0]['height']}{length}: {found} ({times} ms)"
