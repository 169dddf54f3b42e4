# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo predict."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
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
    Iou,
    Json,
    MaxDet,
    Stock,
    load_detector,
    progress_bar,
    report,
    reporting,
)

# What a command prints and writes of an image: the rows of --json; and how many images or frames there are, if known.
Document = dict[str, Any]
Documents = Iterator[tuple[Document, int | None]]


def predict(
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Checkpoint (yolov8n.pt is downloaded), or a model exported to ONNX or OpenVINO, which runs on the "
            "CPU and needs no torch.",
        ),
    ] = "yolov8n.pt",
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="PATH",
            help="Image, folder, glob, video, or URL or number of a camera, which Ctrl-C ends.",
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
    imgsz: Annotated[
        int | None,
        typer.Option(
            "--imgsz",
            min=32,
            help="Longer side of the network's input, in pixels.",
            show_default="640; of an exported model, what it says",
        ),
    ] = None,
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
        settings: dict[str, Any] = {
            "conf": conf,
            "iou": iou,
            "classes": classes,
            "max_det": max_det,
            "agnostic_nms": agnostic_nms,
        }
        exported = Path(weights).suffix in (".onnx", ".xml") or Path(weights).is_dir()
        facts: Document = {"weights": weights}
        failed: list[Document] = []
        if exported:
            if half or stock or batch != 1 or device not in (None, "cpu"):
                raise typer.BadParameter(
                    "They are for checkpoints: an exported model runs on the CPU, in the precision and batch size "
                    "that it was exported with.",
                    param_hint="--device, --half, --batch and --stock",
                )
            if source is None:
                raise typer.BadParameter("An exported model needs an image, folder or video.", param_hint="--source")
            facts["accelerated"] = True
            results = _of_exported(weights, source, save_dir, failed, imgsz=imgsz, **settings)
        else:
            model = load_detector(weights, device, half, stock)
            from fastyolo.integrations.ultralytics.acceleration import is_accelerated

            facts["accelerated"] = is_accelerated(model)
            settings |= {"imgsz": imgsz or 640, "device": device, "quantize": 16 if half else None, "batch": batch}
            results = _of_checkpoint(model, source, save_dir, settings)
        documents = _print(results)
        print_line = Console(highlight=False, soft_wrap=True).print
        if documents:
            print_line(f"Annotated pictures are in {save_dir}", markup=False)
        if json:
            write_json(json, {**facts, "images": documents, **({"failed": failed} if exported else {})})
        if failed:
            raise typer.Exit(1)


def _is_pattern(source: str) -> bool:
    """What the file system cannot confirm: a URL, a glob, the number of a camera."""
    return "://" in source or any(character in source for character in "*?[") or source.isdigit()


def _print(results: Documents) -> list[Document]:
    """A line for each image or video; the documents."""
    console = Console(highlight=False, soft_wrap=True)
    documents = []
    with progress_bar(console) as progress:
        task = progress.add_task("predict")
        for path, frames in groupby(results, key=lambda result: result[0]["path"]):
            found = []
            for document, total in frames:
                progress.update(task, total=total, advance=1)
                found.append(document)
            documents += found
            console.print(_line(path, found), markup=False)
    return documents


def _line(path: str, frames: list[Document]) -> str:
    counts = Counter(detection["name"] for frame in frames for detection in frame["detections"])
    milliseconds: Counter[str] = Counter()
    for frame in frames:
        milliseconds.update(frame["milliseconds"])
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
    length = f" {len(frames)} frames" if len(frames) > 1 else ""
    times = ", ".join(f"{name} {value / len(frames):.1f}" for name, value in milliseconds.items())
    return f"{Path(path).name} {frames[0]['width']}x{frames[0]['height']}{length}: {found} ({times} ms)"


def _document(
    path: str, number: int, size: tuple[int, int], speed: dict[str, float], detections: list[Document]
) -> Document:
    return {
        "path": path,
        "frame": number,
        "width": size[1],
        "height": size[0],
        "milliseconds": {name: round(value, 3) for name, value in speed.items()},
        "detections": detections,
    }


def _of_checkpoint(model: Any, source: str | None, save_dir: Path, settings: dict[str, Any]) -> Documents:
    from fastyolo.integrations.ultralytics.acceleration import ASSETS, predictor_of

    predictor = predictor_of(model, save=True, save_dir=str(save_dir), verbose=False, **settings)
    results = predictor(source or str(ASSETS), stream=True)
    for path, frames in groupby(results, key=lambda result: result.path):
        for number, result in enumerate(frames):
            dataset = predictor.dataset
            total = dataset.frames if dataset.mode == "video" else getattr(dataset, "nf", None)  # a stream has none
            detections = [
                {"class": int(label), "name": result.names[int(label)], "score": score, "box": box}
                for *box, score, label in result.boxes.data.tolist()
            ]
            yield _document(path, number, result.orig_shape, result.speed, detections), total


def _of_exported(
    weights: str, source: str, save_dir: Path, failed: list[Document], imgsz: int | None, **settings: Any
) -> Documents:
    # What OpenCV and FFmpeg log of a damaged file, this command says in one sentence.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    from fastyolo.cli.pictures import Pictures
    from fastyolo.runtime import Detector
    from fastyolo.runtime.sources import is_camera

    def fail(path: str, error: Exception) -> None:
        report(error)
        failed.append({"path": path, "error": str(error)})

    engine: Any = "onnxruntime" if weights.endswith(".onnx") else "openvino"
    detector = Detector(weights, engine=engine, imgsz=imgsz, **settings)
    with Pictures(save_dir) as pictures:
        try:
            for frame in detector.stream(source, on_error=fail):
                pictures.save(frame)
                height, width = frame.image.shape[:2]
                detections = frame.detections.to_json()
                yield _document(frame.path, frame.number, (height, width), frame.milliseconds, detections), frame.total
        except KeyboardInterrupt:  # how a camera ends
            if not is_camera(source):
                raise
