# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo bench."""

from __future__ import annotations

import os
import tempfile
from enum import Enum
from itertools import groupby
from json import loads as load_json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fastyolo._files import write_json
from fastyolo.cli.common import Debug, DeviceName, Json, Weights, load_detector, progress_bar, reporting

bench_app = typer.Typer(help="Measure this machine.", rich_markup_mode="rich")


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


Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="all")]


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
    threads: Threads = None,
    json: Json = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds: smaller cases, fewer samples.")] = False,
    debug: Debug = False,
) -> None:
    """Time fastyolo's operators against their peers in the same run."""
    with reporting(debug):
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
        with progress_bar(console) as progress:
            task = progress.add_task("bench", total=None)
            for result in bench.run(bench.cases(names, inputs, quick=quick), target, quick=quick):
                results.append(result)
                progress.update(task, advance=1, description=f"{result['op']}, {result['case']}")
        console.print(_bench_table(results, maps_source))
        if json:
            write_json(json, bench.report(results, target, maps_source, left_out))


@bench_app.command(
    epilog="Example: fastyolo bench model --weights best.pt --imgsz 320 480 640 --data coco128.yaml --plot sizes.png"
)
def model(
    weights: Weights = "yolov8n.pt",
    imgsz: Annotated[
        list[int] | None,
        typer.Option(
            "--imgsz", metavar="SIDE [SIDE]...", help="Sides of the square inputs, in pixels.", show_default="640"
        ),
    ] = None,
    more_sizes: Annotated[list[int] | None, typer.Argument(metavar="SIDE", hidden=True)] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="YAML",
            help="Data set, for mAP and the recall of small, medium and large objects.",
            show_default="latency alone",
        ),
    ] = None,
    device: DeviceName = None,
    threads: Threads = None,
    json: Json = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", dir_okay=False, help="Draw speed against accuracy here.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure a detector at several input sizes: latency in PyTorch and ONNX Runtime, and accuracy."""
    with reporting(debug):
        if more_sizes and not imgsz:
            raise typer.BadParameter("Give the sides after it.", param_hint="--imgsz")
        if plot and data is None:
            raise typer.BadParameter("It draws accuracies, which need --data.", param_hint="--plot")
        from fastyolo.bench import model as bench

        if plot and plot.suffix not in bench.PICTURES:
            raise typer.BadParameter(
                f"It must end in {', '.join(bench.PICTURES)}, got {plot.name!r}.", param_hint="--plot"
            )
        sizes = sorted({*(imgsz or [640]), *(more_sizes or [])})
        detector = load_detector(weights, device, half=False, stock=False)
        import torch

        from fastyolo.integrations.ultralytics.accuracy import evaluate

        device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        bench.check_sizes(detector, sizes)
        console = Console(highlight=False)
        without_onnx = bench.left_out()
        if without_onnx:
            console.print(f"ONNX Runtime is left out: {without_onnx}.")
        cores = threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(cores)
        with progress_bar(console) as progress, tempfile.TemporaryDirectory() as folder:
            steps = (bool(data) + (not without_onnx)) * len(sizes) + 1
            task = progress.add_task("accuracy", total=steps)
            found = {}
            for index, side in enumerate(sizes if data else ()):
                progress.update(task, description=f"accuracy at {side}")

                def advance(share: float, done: int = index) -> None:
                    progress.update(task, completed=done + share)

                found[side] = evaluate(detector, str(data), side, device=device, on_batch=advance)
            files = {}
            for side in () if without_onnx else sizes:
                progress.update(task, description=f"export at {side}")
                files[side] = bench.export(weights, side, Path(folder))
                progress.advance(task)
            progress.update(task, description="latency")
            photographs = found[sizes[0]].images if found else bench.sample_photographs()
            times = bench.latency(detector, files, sizes, photographs, device=device, threads=cores)
        document = bench.report(weights, data, device, cores, times, found)
        console.print(_model_table(document))
        if json:
            write_json(json, document)
        if plot:
            bench.plot(document, plot)


@bench_app.command(epilog="Example: fastyolo bench compare before.json after.json --threshold 0.03")
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", exists=True, dir_okay=False, help="An earlier result.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", exists=True, dir_okay=False, help="A later one.")],
    threshold: Annotated[
        float, typer.Option("--threshold", min=0.0, max=10.0, help="Relative change from which on a case is reported.")
    ] = 0.05,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Say what became slower between two results of 'bench ops' or 'bench model'; exit status 1 if something did.

    What the peers and the memory of the machine became slower by in the same runs is divided out, and what may be noise
    is not reported.
    """
    with reporting(debug):
        from fastyolo.bench import comparison

        found = comparison.compare(_document(before), _document(after), threshold=threshold)
        _print_comparison(Console(highlight=False), found)
        if json:
            write_json(json, found.to_json())
    if found.of("slower"):
        raise typer.Exit(1)


def _document(file: Path) -> Any:
    try:
        document = load_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} must be a result of 'bench ops' or 'bench model', and is no JSON ({error})."
        ) from error
    if not isinstance(document, dict):
        raise ValueError(f"{file} must be a result of 'bench ops' or 'bench model', and holds something else.")
    return document


def _print_comparison(console: Console, found: Any) -> None:
    for remark in found.remarks:
        console.print(remark)
    for name in found.missing:
        console.print(f"{name} is in one of the files only.", markup=False)
    table = Table(box=SIMPLE_HEAD)
    table.add_column()
    for column in ("before", "after", "change", "noise"):
        table.add_column(column, justify="right", no_wrap=True)
    for verdict, style in (("slower", "bold red"), ("unclear", "yellow"), ("faster", "green")):
        for row in found.of(verdict):
            times = (_microseconds(row.before), _microseconds(row.after))
            table.add_row(f"[{style}]{verdict}[/] {row.name}", *times, f"{row.change:+.1%}", f"{row.noise:.1%}")
    if table.row_count:
        console.print(table)
    drift = "" if found.drift is None else f"; the machine itself by {found.drift:+.1%}, which is divided out"
    counts = ", ".join(f"{len(found.of(verdict))} {verdict}" for verdict in ("slower", "unclear", "faster", "same"))
    console.print(f"{len(found.rows)} cases: {counts}{drift}.")


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


def _model_table(document: dict[str, Any]) -> Table:
    from fastyolo.bench.model import LABELS

    rows = document["results"]
    runtimes = list(rows[0]["latency"])
    title = f"{document['weights']}, {document['threads']} threads"
    caption = "Milliseconds of an image, letterbox and NMS included: median, 90th percentile."
    columns = ["imgsz", *(LABELS[runtime] for runtime in runtimes)]
    if document["data"]:
        title += f"; {document['data']}, {document['images']} images"
        caption += (
            "\nsmall, medium, large: recall of objects below 32² pixels in the image file, below 96², and of the rest, "
            "at score {score} and IoU {iou}.".format(**document["recall_at"])
        )
        columns += ["mAP50-95", "mAP50", "small", "medium", "large"]
    table = Table(title=title, caption=caption, caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        times = (row["latency"][runtime] for runtime in runtimes)
        values: list[float | None] = []
        if document["data"]:
            values = [row["mAP50-95"], row["mAP50"], *(size["recall"] for size in row["recall"].values())]
        table.add_row(
            str(row["imgsz"]),
            *(f"{time['median_ms']:.1f} {time['p90_ms']:7.1f}" for time in times),
            *("none" if value is None else f"{value:.3f}" for value in values),
        )
    return table


def _op_and_peers(result: dict[str, Any]) -> tuple[str, ...]:
    return result["op"], *(name for name in result["contenders"] if name != "fastyolo")


def _microseconds(value: float) -> str:
    return f"{value / 1000:.1f} ms" if value >= 1000 else f"{value:.0f} µs"
