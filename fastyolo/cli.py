# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command line: parses, calls, prints. Heavy packages are imported inside the commands, so that --help is fast."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from fastyolo._files import write_json

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # of click, which newer typers carry inside


class _OneSentence(TyperGroup):
    """Says what is wrong with a command line in one sentence, not in a panel."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except _UsageError as error:
            path = error.ctx.command_path if error.ctx else "fastyolo"  # type: ignore[attr-defined]
            message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
            print(f"{path}: {message}; see '{path} --help'.", file=sys.stderr)
            sys.exit(2)
        except typer.Abort:
            sys.exit(130)
        sys.exit(status or 0)


app = typer.Typer(
    cls=_OneSentence,
    name="fastyolo",
    help="Fast post-processing and fused operators for YOLOv8-class detectors.",
    epilog="Example: fastyolo predict --weights yolov8n.pt --source street.jpg",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
bench_app = typer.Typer(help="Measure this machine.", rich_markup_mode="rich")
app.add_typer(bench_app, name="bench")


class Device(str, Enum):
    cpu = "cpu"
    cuda = "cuda"


class Op(str, Enum):
    decode_nms = "decode_nms"
    nms = "nms"
    batched_nms = "batched_nms"
    dfl_decode = "dfl_decode"
    eca = "eca"
    dw_sppf = "dw_sppf"
    sppf_pool = "sppf_pool"


Weights = Annotated[str, typer.Option("--weights", metavar="FILE", help="Checkpoint; yolov8n.pt is downloaded.")]
Conf = Annotated[float, typer.Option("--conf", min=0.0, max=1.0, help="Score that a detection must exceed.")]
Iou = Annotated[float, typer.Option("--iou", min=0.0, max=1.0, help="IoU above which the lesser box is dropped.")]
MaxDet = Annotated[int, typer.Option("--max-det", min=1, help="Detections per image, at most.")]
Agnostic = Annotated[bool, typer.Option("--agnostic-nms", help="Let boxes suppress boxes of other classes.")]
ImageSize = Annotated[int, typer.Option("--imgsz", min=32, help="Longer side of the network's input, in pixels.")]
DeviceName = Annotated[str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1; a GPU if any.")]
Half = Annotated[bool, typer.Option("--half", help="Run the network in float16 (on a GPU).")]
Stock = Annotated[bool, typer.Option("--stock", help="Use ultralytics' own post-processing, to compare.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", dir_okay=False, help="Write the results here.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]


@contextmanager
def _reporting(debug: bool) -> Iterator[None]:
    """One sentence on stderr for each of our warnings, and for a failure, with exit status 1; or its traceback."""

    def report(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"fastyolo: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", module="fastyolo")
        warnings.showwarning = report
        try:
            yield
        except (_UsageError, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if debug:
                raise
            if isinstance(error, ModuleNotFoundError):
                error = ModuleNotFoundError(
                    f"{error.name} is not installed; pip install 'fastyolo[ultralytics]' brings it."
                )
            report(str(error) or type(error).__name__)
            raise typer.Exit(1) from error


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _load(weights: str) -> Any:
    from fastyolo.integrations.ultralytics import acceleration as ultralytics

    try:
        model = ultralytics.YOLO(weights)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"The weights {weights!r} are not on this machine and cannot be downloaded; "
            f"pass a detection checkpoint with --weights FILE."
        ) from error
    ultralytics.LOGGER.setLevel("WARNING")
    return model


def _load_detector(weights: str, device: str | None, half: bool, stock: bool) -> Any:
    """The model, accelerated unless `stock`."""
    import torch

    if not torch.cuda.is_available():
        if device is not None and (device.isdigit() or device.startswith("cuda")):
            raise typer.BadParameter(f"torch sees no CUDA device, got {device!r}.", param_hint="--device")
        if half:
            raise typer.BadParameter("float16 needs a GPU, and torch sees none.", param_hint="--half")
    elif half and device == "cpu":
        raise typer.BadParameter("float16 needs a GPU, and --device is 'cpu'.", param_hint="--half")
    from fastyolo.integrations.ultralytics import acceleration as ultralytics

    model = _load(weights)
    if model.task != "detect":
        raise ValueError(f"{weights!r} is a model for the task {model.task!r}; pass one for detection with --weights.")
    return model if stock else ultralytics.accelerate(model)


@app.command(
    epilog="Example: fastyolo predict --weights best.pt --source clip.mp4 --classes 0 --classes 2 --json out.json"
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
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per run of the network.")] = 1,
    json: Json = None,
    stock: Stock = False,
    debug: Debug = False,
) -> None:
    """Detect objects, save annotated pictures or videos, and print a line for each."""
    with _reporting(debug):
        if source is not None and not _is_pattern(source) and not Path(source).exists():
            raise typer.BadParameter(f"{source!r} does not exist.", param_hint="--source")
        model = _load_detector(weights, device, half, stock)
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
        with _progress(console) as progress:
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


@app.command(epilog="Example: fastyolo val --weights best.pt --data coco.yaml --no-rect --json metrics.json")
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
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per run of the network.")] = 16,
    json: Json = None,
    stock: Stock = False,
    debug: Debug = False,
) -> None:
    """Measure mAP on a data set."""
    with _reporting(debug):
        model = _load_detector(weights, device, half, stock)
        from fastyolo.integrations.ultralytics.acceleration import is_accelerated

        console = Console(highlight=False)
        with _progress(console) as progress, tempfile.TemporaryDirectory() as scratch:
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


@app.command(epilog="Example: fastyolo info yolov8n.pt")
def info(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A checkpoint or YAML to describe.")] = None,
    imgsz: Annotated[int, typer.Option("--imgsz", min=32, help="Side of the image that FLOPs are counted for.")] = 640,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Show versions, what was built, the devices; and of a model, its size and whether it can be accelerated."""
    with _reporting(debug):
        from fastyolo.bench.environment import environment

        facts = environment()
        facts["torch_operators"] = _torch_operators(facts["versions"]["torch"])
        if model:
            from fastyolo.integrations.ultralytics import acceleration as ultralytics

            loaded = _load(model)
            reason = ultralytics.why_not_accelerated(loaded)
            facts["model"] = {
                "file": model,
                **ultralytics.describe(loaded, imgsz),
                "accelerated": "yes" if reason is None else f"no: {reason}",
            }
        table = Table(show_header=False, box=None)
        for name, value in _flat(facts):
            table.add_row(name, value)
        Console(highlight=False).print(table)
        if json:
            write_json(json, facts)


def _torch_operators(torch_version: str | None) -> str:
    """'loaded', or the reason why not."""
    if torch_version is None:
        return "torch is not installed"
    try:
        import fastyolo.ops  # noqa: F401
    except ImportError as error:
        return str(error)
    return "loaded"


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value):
                yield from _flat(item, f"{prefix}{name}.{number}.")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "none"
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{prefix}{name}", f"{value:,}"
        else:
            yield f"{prefix}{name}", "none" if value is None else str(value)


@bench_app.command(epilog="Example: fastyolo bench ops --op decode_nms --json bench/results/cpu.json")
def ops(
    device: Annotated[Device, typer.Option("--device", help="Where to run.")] = Device.cpu,
    op: Annotated[list[Op] | None, typer.Option("--op", help="Measure this one only; repeatable.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Checkpoint whose outputs are measured.",
            show_default="that of FASTYOLO_DATA, else synthetic outputs",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", exists=True, file_okay=False, help="Photographs to run it on."),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="all")] = None,
    json: Json = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds: smaller cases, fewer samples.")] = False,
    debug: Debug = False,
) -> None:
    """Time fastyolo's operators against their peers in the same run."""
    with _reporting(debug):
        if (weights is None) != (images is None):
            raise typer.BadParameter("They belong together: give both or none.", param_hint="--weights and --images")
        import torch

        from fastyolo.bench import ops as bench
        from fastyolo.bench.cases import CASES, Inputs

        target = torch.device(device.value)
        if target.type == "cuda" and not torch.cuda.is_available():
            raise typer.BadParameter("torch sees no CUDA device.", param_hint="--device")
        console = Console(highlight=False)
        names = [item.value for item in op] if op else list(CASES)
        left_out = bench.left_out(names, target, quick=quick)
        for reason in left_out:
            console.print(f"{reason}, so its times are left out.")
        maps, maps_source = _maps(weights, images) if "decode_nms" in names else (None, "synthetic inputs")
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        inputs = Inputs(target, torch.float16 if target.type == "cuda" else torch.float32, maps)
        results = []
        with _progress(console) as progress:
            task = progress.add_task("bench", total=None)
            for result in bench.run(bench.cases(names, inputs, quick=quick), target, quick=quick):
                results.append(result)
                progress.update(task, advance=1, description=f"{result['op']}, {result['case']}")
        console.print(_bench_table(results, maps_source))
        if json:
            write_json(json, bench.report(results, target, maps_source, left_out))


def _maps(weights: Path | None, images: Path | None) -> tuple[Any, str]:
    """Head maps for the cases, None for synthetic ones, and what to call them."""
    from fastyolo.bench import ops as bench
    from fastyolo.bench.environment import installed_version

    data = Path(os.environ.get("FASTYOLO_DATA", ""))
    if weights is None and data.name:
        weights, images = data / "weights" / "yolov8n-recovered.pt", data / "coco128-val" / "images"
    if weights is None or images is None or installed_version("ultralytics") is None:
        return None, "synthetic head outputs"
    maps = bench.real_maps(str(weights), images)
    return maps, f"head outputs of {weights.name} on {len(maps[0][0])} photographs"


def _bench_table(results: list[dict[str, Any]], title: str) -> Table:
    caption = "memory: the time that this machine needs to read or copy the same bytes once, as a share of fastyolo's"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD)
    table.add_column()
    for column in ("fastyolo", "peer", "ratio", "GB/s", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for (op, *peers), rows in groupby(results, key=_op_and_peers):
        table.add_section()
        table.add_row(f"[bold]{op}[/bold]" + (f" against {', '.join(peers)}" if peers else ""))
        for row in rows:
            times = [row["contenders"][name]["median_us"] for name in ("fastyolo", *peers)]
            table.add_row(
                row["case"],
                _microseconds(times[0]),
                "\n".join(map(_microseconds, times[1:])),
                "\n".join(f"{row['ratio'][peer]:.1f}" for peer in peers),
                f"{row['gb_per_s']:.2f}",
                f"{row['memory_share']:.0%}",
            )
    return table


def _op_and_peers(result: dict[str, Any]) -> tuple[str, ...]:
    return result["op"], *(name for name in result["contenders"] if name != "fastyolo")


def _microseconds(value: float) -> str:
    return f"{value / 1000:.1f} ms" if value >= 1000 else f"{value:.0f} µs"


main: Callable[[], None] = app
