# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo predict."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from fastyolo._files import write_json
from fastyolo.cli.common import (
    Batch,
    Debug,
    DeviceName,
    Engine,
    Half,
    Json,
    Stock,
    Terminal,
    Terminated,
    image_size,
    load_detector,
    progress_bar,
    report,
    reporting,
    terminable,
    writable,
)

# What a command prints and writes of an image: the rows of --json; and how many images or frames there are, if known.
Document = dict[str, Any]
Documents = Generator[tuple[Document, int | None], None, None]

_CHECKPOINTS = (".pt", ".yaml", ".yml", "")  # ultralytics knows some by their names alone
_BUILT_IN = "what is built into the model, else "


def predict(
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Checkpoint (yolov8n.pt is downloaded), or a model exported to ONNX or OpenVINO, which runs on the "
            "CPU, needs no torch, and fails for files that it cannot read, of which a checkpoint only warns.",
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
        Path,
        typer.Option(
            "--save-dir", metavar="DIR", file_okay=False, callback=writable, help="Where the annotated pictures go."
        ),
    ] = Path("runs/predict"),
    conf: Annotated[
        float | None,
        typer.Option(
            "--conf", min=0.0, max=1.0, help="Score that a detection must exceed.", show_default=_BUILT_IN + "0.25"
        ),
    ] = None,
    iou: Annotated[
        float | None,
        typer.Option(
            "--iou", min=0.0, max=1.0, help="IoU above which the lesser box is dropped.", show_default=_BUILT_IN + "0.7"
        ),
    ] = None,
    classes: Annotated[
        list[int] | None, typer.Option("--classes", metavar="ID", min=0, help="Report this class only; repeatable.")
    ] = None,
    max_det: Annotated[
        int | None,
        typer.Option("--max-det", min=1, help="Detections per image, at most.", show_default=_BUILT_IN + "300"),
    ] = None,
    agnostic_nms: Annotated[
        bool | None, typer.Option("--agnostic-nms", help="Let boxes suppress boxes of other classes.")
    ] = None,
    imgsz: Annotated[
        str | None,
        typer.Option(
            "--imgsz",
            metavar="SIDE|HxW",
            help="Side, or height and width, in pixels that images are scaled to fit.",
            show_default="640; of an exported model, what it says",
        ),
    ] = None,
    engine: Annotated[
        Engine | None, typer.Option("--engine", help="What runs an .onnx file.", show_default="onnxruntime")
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
        if source == "":  # of a shell's variable that is not set; as a path, it would be the working directory
            raise typer.BadParameter("must be a path, a URL or a camera's number, got nothing.", param_hint="--source")
        if source is not None and not _is_pattern(source) and not Path(source).exists():
            raise typer.BadParameter(f"{source!r} does not exist.", param_hint="--source")
        given: dict[str, Any] = {
            "conf": conf,
            "iou": iou,
            "classes": classes,
            "max_det": max_det,
            "agnostic_nms": agnostic_nms,
            "imgsz": None if imgsz is None else image_size(imgsz),
        }
        settings = {name: value for name, value in given.items() if value is not None}
        _refuse_to_overwrite([weights], "--json", [json] if json else ())
        facts: Document = {"weights": weights}
        failed: list[Document] = []
        exported = _is_exported(weights)
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
            results = _of_exported(weights, source, save_dir, json, failed, _engine(weights, engine), settings)
        else:
            if engine:
                raise typer.BadParameter(
                    f"It is for exported models, and {weights!r} is a checkpoint; leave it out.", param_hint="--engine"
                )
            model = load_detector(weights, device, half, stock)
            if unknown := sorted({*(classes or ())} - {*model.names}):
                raise typer.BadParameter(
                    f"{weights!r} has the classes 0 to {max(model.names)}, got {', '.join(map(str, unknown))}.",
                    param_hint="--classes",
                )
            from fastyolo.integrations.ultralytics.acceleration import is_accelerated

            facts["accelerated"] = is_accelerated(model)
            # Of the others that are left out, ultralytics' defaults are the same; of the size, the checkpoint's own.
            settings = {"imgsz": 640, **settings, "device": device, "quantize": 16 if half else None, "batch": batch}
            results = _of_checkpoint(model, source, save_dir, json, settings)
        documents: list[Document] = []
        ended: BaseException | None = None
        try:
            with terminable():
                _collect(results, documents)
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # of SystemExit, nobody reads stdout any more
            if not documents:
                raise
            ended = error
        if json:
            write_json(json, {**facts, "images": documents, **({"failed": failed} if exported else {})})
        if isinstance(ended, Exception | SystemExit):
            raise ended
        if documents:
            Terminal(soft_wrap=True).print(f"Annotated pictures are in {save_dir}", markup=False)
        if isinstance(ended, Terminated):
            raise typer.Exit(143)
        if ended and not _is_camera(source):
            report("Interrupted; the results are those of the images until then.")
            raise typer.Exit(130)
        if failed:
            raise typer.Exit(1)


def _is_pattern(source: str) -> bool:
    """What the file system cannot confirm: a URL, a glob, the number of a camera."""
    return "://" in source or any(character in source for character in "*?[") or source.isdigit()


def _is_exported(weights: str) -> bool:
    path = Path(weights)
    if path.is_dir() or path.suffix.lower() in (".onnx", ".xml"):
        return True
    if path.suffix.lower() not in _CHECKPOINTS:
        raise typer.BadParameter(
            f"expected a checkpoint (.pt), an .onnx file, or the .xml file or folder of OpenVINO, got {weights!r}; "
            f"export the checkpoint to one of these.",
            param_hint="--weights",
        )
    return False


def _engine(weights: str, chosen: Engine | None) -> Any:
    """As `fastyolo.runtime.Detector` takes it."""
    if chosen:
        return chosen.value
    return "onnxruntime" if weights.lower().endswith(".onnx") else "openvino"


def _is_camera(source: str | None) -> bool:
    from fastyolo.runtime.sources import is_camera

    return source is not None and is_camera(source)


def _refuse_to_overwrite(inputs: Iterable[str | Path], option: str, outputs: Iterable[Path]) -> None:
    """Compares files, not paths: links lead to a file or folder by several."""
    files = {_identity(Path(path)) for path in inputs if Path(path).exists()}
    for output in outputs:
        if output.exists() and _identity(output) in files:
            raise typer.BadParameter(
                f"{output} is an input, which results could overwrite; choose another place for them.",
                param_hint=option,
            )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _check_outputs(sources: Sequence[str | Path], save_dir: Path, json: Path | None) -> None:
    _refuse_to_overwrite(sources, "--save-dir", save_dir.iterdir() if save_dir.is_dir() else ())
    _refuse_to_overwrite(sources, "--json", [json] if json else ())


def _collect(results: Documents, documents: list[Document]) -> None:
    """Appends to the documents, and prints a line for each image or video; also of one that is cut short."""
    console = Terminal(soft_wrap=True)
    with closing(results), progress_bar(console) as progress:
        task = progress.add_task("predict")
        for path, frames in groupby(results, key=lambda result: result[0]["path"]):
            first = len(documents)
            try:
                for document, total in frames:
                    documents.append(document)
                    progress.update(task, total=total, advance=1)
            finally:
                if documents[first:]:
                    console.print(_line(path, documents[first:]), markup=False)


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


def _of_checkpoint(
    model: Any, source: str | None, save_dir: Path, json: Path | None, settings: dict[str, Any]
) -> Documents:
    from fastyolo.integrations.ultralytics.acceleration import ASSETS, predictor_of

    predictor = predictor_of(model, save=True, save_dir=str(save_dir), verbose=False, **settings)

    def check(predictor: Any) -> None:
        _check_outputs(getattr(predictor.dataset, "files", ()), save_dir, json)  # cameras have none

    predictor.add_callback("on_predict_start", check)
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
    weights: str,
    source: str,
    save_dir: Path,
    json: Path | None,
    failed: list[Document],
    engine: Any,
    settings: dict[str, Any],
) -> Documents:
    # What OpenCV and FFmpeg log of a damaged file, this command says in one sentence.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    from fastyolo.cli.pictures import Pictures
    from fastyolo.runtime import Detector
    from fastyolo.runtime.sources import is_camera, list_files

    def fail(path: str, error: Exception) -> None:
        report(error)
        failed.append({"path": path, "error": str(error)})

    if not is_camera(source):
        _check_outputs(list_files(source), save_dir, json)
    detector = Detector(weights, engine=engine, **settings)
    with Pictures(save_dir) as pictures:
        for frame in detector.stream(source, on_error=fail):
            pictures.save(frame)
            height, width = frame.image.shape[:2]
            detections = frame.detections.to_json()
            yield _document(frame.path, frame.number, (height, width), frame.milliseconds, detections), frame.total
