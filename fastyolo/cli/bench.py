# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo bench."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from enum import Enum
from itertools import groupby
from json import loads as load_json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from fastyolo._files import replacing, write_json
from fastyolo._machine import cores
from fastyolo.cli.common import (
    Debug,
    DeviceName,
    Json,
    Terminal,
    Terminated,
    check_device,
    load_detector,
    progress_bar,
    report,
    reporting,
    terminable,
    writable,
)
from fastyolo.cli.sensitivity import picture

bench_app = typer.Typer(help="Measure this machine.", rich_markup_mode="rich")

BATCHES = (1, 2, 4, 8, 16, 32, 64)


class SeveralValues(TyperCommand):
    """Lets an option that may be repeated take several values: `--batch 1 8` is `--batch 1 --batch 8`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        expanded: list[str] = []
        option = None
        for argument in args:
            if argument.startswith("-"):
                option = argument if argument in lists else None
            elif option and expanded[-1] != option:
                expanded.append(option)
            expanded.append(argument)
        return super().parse_args(ctx, expanded)


class Device(str, Enum):
    cpu = "cpu"
    cuda = "cuda"


class Op(str, Enum):
    decode_nms = "decode_nms"
    multiclass_nms = "multiclass_nms"
    nms = "nms"
    batched_nms = "batched_nms"
    dfl_decode = "dfl_decode"
    eca = "eca"
    dw_sppf = "dw_sppf"
    sppf_pool = "sppf_pool"


class Scale(str, Enum):
    n = "n"
    s = "s"
    m = "m"
    l = "l"  # noqa: E741 - YOLOv8's name for it
    x = "x"


class Dtype(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float64 = "float64"


class Runtime(str, Enum):
    pytorch = "pytorch"
    onnxruntime = "onnxruntime"
    openvino = "openvino"
    ncnn = "ncnn"
    tensorrt = "tensorrt"


Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="all")]


@bench_app.command(
    cls=SeveralValues,
    epilog="Examples: fastyolo bench ops --json before.json; "
    "fastyolo bench ops --op dw_sppf eca --scale n x --batch 1 8 64 --dtype bfloat16",
)
def ops(
    device: Annotated[Device, typer.Option("--device", help="Where to run.")] = Device.cpu,
    op: Annotated[
        list[Op] | None, typer.Option("--op", help="Measure these only: one or several.", show_default="all")
    ] = None,
    scale: Annotated[
        list[Scale] | None,
        typer.Option("--scale", help="Scales of YOLOv8, whose widths the feature maps have.", show_default="s"),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            "--batch",
            metavar="IMAGES...",
            min=1,
            help="Images per call.",
            show_default="two sizes, which depend on the operator",
        ),
    ] = None,
    dtype: Annotated[
        list[Dtype] | None,
        typer.Option("--dtype", help="Types of the inputs.", show_default="what networks run in on the device"),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help=f"All scales, batches of {', '.join(map(str, BATCHES))}, and all types that networks run in, where "
            "--scale, --batch and --dtype do not choose: hours, and 16 GB of memory.",
        ),
    ] = False,
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
    quick: Annotated[bool, typer.Option("--quick", help="A minute: smaller cases, fewer samples.")] = False,
    debug: Debug = False,
) -> None:
    """Time fastyolo's operators against their peers in the same run.

    Peers are torch eager and compiled, torchvision, ultralytics, OpenCV, ONNX Runtime and OpenVINO,
    as far as they are installed.
    """
    with reporting(debug):
        if (weights is None) != (images is None):
            raise typer.BadParameter("They belong together: give both or none.", param_hint="--weights and --images")
        import torch

        from fastyolo.bench import ops as bench
        from fastyolo.bench.cases import CASES, WIDTHS, Choice, Inputs
        from fastyolo.bench.roofline import measure

        target = torch.device(device.value)
        if target.type == "cuda" and not torch.cuda.is_available():
            raise typer.BadParameter("torch sees no CUDA device.", param_hint="--device")
        dtypes = [getattr(torch, item.value) for item in dtype or ()]
        known = bench.DTYPES[target.type]
        if unknown := [item.value for item in dtype or () if getattr(torch, item.value) not in known]:
            raise typer.BadParameter(
                f"The operators have no {', '.join(unknown)} on {target.type}.", param_hint="--dtype"
            )
        choice = Choice([item.value for item in scale or ()], sorted({*(batch or ())}), dtypes, quick)
        if everything:
            choice = Choice(
                choice.scales or list(WIDTHS), choice.batches or BATCHES, dtypes or bench.NETWORKS[target.type], quick
            )
        console = Terminal()
        names = [item.value for item in op] if op else list(CASES)
        with_maps = {"decode_nms", "multiclass_nms"}.intersection(names)
        if weights and not with_maps:
            raise typer.BadParameter(
                f"only decode_nms and multiclass_nms are measured on its outputs, got --op {' '.join(names)}; leave it "
                "out.",
                param_hint="--weights",
            )
        left_out = bench.left_out(names, target, quick=quick)
        for reason in left_out:
            report(f"{reason}, so its times are left out.")
        maps, maps_source = _maps(weights, images) if with_maps else (None, "synthetic inputs")
        torch.set_num_threads(threads or cores())
        inputs = Inputs(target, torch.float16 if target.type == "cuda" else torch.float32, maps)
        roofline = measure(target)
        with progress_bar(console) as progress:
            task = progress.add_task("bench", total=None)
            cases = bench.cases(names, inputs, choice)

            def advance(case: Any) -> None:
                progress.update(task, advance=1, description=f"{case.op}, {case.name}")

            results: list[dict[str, Any]] = []
            failures: list[str] = []
            interrupted = None
            timed = bench.run(cases, target, roofline, quick=quick, on_visit=advance, on_failure=failures.append)
            try:
                interrupted = _until_interrupted(timed, results)
            except Exception as error:  # of what makes the inputs; what fails in a case does not end the others
                if not results:
                    raise
                failures.append(f"the cases from there on, {type(error).__name__}: {error}")
        if json:
            write_json(json, bench.report(results, target, roofline, maps_source, left_out))
        console.print(_bench_table(results, maps_source))
        console.print(
            f"This machine: {roofline.flops / 1e9:.0f} GFLOP/s in float32, a copy of {roofline.bytes / 1e9:.1f} GB/s."
        )
        for failure in failures:
            report(f"Left out: {failure}.")
        if interrupted:
            _exit_interrupted(interrupted, "cases")
        if failures:
            raise typer.Exit(1)


@bench_app.command(
    cls=SeveralValues,
    epilog="Examples: fastyolo bench model --weights best.pt --imgsz 320 480 640 --data coco128.yaml --plot sizes.png; "
    "fastyolo bench model --model best.onnx best-int8.onnx --batch 1 8 --threads 1 4",
)
def model(
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Checkpoint, which is exported for each runtime.",
            show_default="yolov8n.pt, which is downloaded, unless --model is given",
        ),
    ] = None,
    models: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            metavar="FILE...",
            exists=True,
            help="Exported files to measure as they are: .onnx, .engine, folders of OpenVINO or NCNN.",
        ),
    ] = None,
    runtime: Annotated[
        list[Runtime] | None, typer.Option("--runtime", help="Use these only.", show_default="all that are installed")
    ] = None,
    imgsz: Annotated[
        list[int] | None,
        typer.Option(
            "--imgsz",
            metavar="SIDE...",
            help="Sides of the square inputs, in pixels.",
            show_default="640, or the file's",
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", metavar="IMAGES...", min=1, help="Images per call.", show_default="1")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="YAML",
            help="Data set, for the mAP in each runtime, and PyTorch's recall of small, medium and large objects.",
            show_default="no accuracy",
        ),
    ] = None,
    device: DeviceName = None,
    threads: Annotated[
        list[int] | None,
        typer.Option("--threads", metavar="CORES...", min=1, help="CPU threads.", show_default="all"),
    ] = None,
    json: Json = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", dir_okay=False, callback=writable, help="Write the table here."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", dir_okay=False, callback=picture, help="Draw speed against accuracy here."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure a detector in each runtime: latency, throughput, memory, size of the file, and accuracy.

    Options in which several values make sense take several: every combination is measured. One that fails is named and
    left out, and the exit status is 1.
    """
    with reporting(debug):
        if plot and data is None:
            raise typer.BadParameter("It draws accuracies, which need --data.", param_hint="--plot")
        check_device(device)
        from fastyolo.bench import model as bench
        from fastyolo.bench import model_table, runtimes

        sizes, batches = sorted({*(imgsz or ())}), sorted({*(batch or [1])})
        counts = sorted({*(threads or [cores()])})
        files = list(dict.fromkeys(models or ()))
        checkpoint = weights or (None if files else "yolov8n.pt")
        chosen = [item.value for item in runtime or ()] or list(runtimes.NAMES if checkpoint else runtimes.RUNTIMES)
        if checkpoint:
            bench.check_checkpoint(load_detector(checkpoint, device, half=False, stock=False), sizes)
        import torch

        device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        console = Terminal()
        usable, left_out = bench.available(chosen, checkpoint=checkpoint is not None)
        for sentence in left_out:
            console.print(sentence)
        if not usable:
            raise ValueError("runtime (--runtime) must be one that can be measured here. " + " ".join(left_out))
        with progress_bar(console) as progress, tempfile.TemporaryDirectory() as folder:
            task = progress.add_task("bench", total=1.0)

            def advance(what: str, share: float) -> None:
                progress.update(task, description=what, completed=share)

            candidates = []
            for file, name in bench.names_of(files).items():
                found, sentences = bench.file_candidates(name, file, usable, sizes, batches)
                candidates += found
                left_out += sentences
                for sentence in sentences:
                    console.print(sentence)
            failures: list[str] = []
            if checkpoint:
                candidates += bench.export_candidates(
                    checkpoint, usable, sizes or [640], batches, Path(folder), advance, failures.append
                )
            if not candidates:
                raise ValueError(
                    " ".join(failures) or "batch (--batch) must be one that a file takes. " + " ".join(left_out)
                )
            if not {candidate.runtime for candidate in candidates} & {runtimes.PYTORCH, "tensorrt"}:
                device = "cpu"  # where the others run in any case
            labelled = bench.Labelled(data, device) if data else None
            measured = bench.measure(
                candidates,
                threads=counts,
                photographs=() if data else bench.sample_photographs(),
                labelled=labelled,
                device=device,
                on_progress=advance,
                on_failure=failures.append,
            )
            rows: list[dict[str, Any]] = []
            interrupted = None
            try:
                interrupted = _until_interrupted(measured, rows)
            except Exception as error:  # of what all candidates need
                if not rows:
                    raise
                failures.append(f"The rest is left out: {type(error).__name__}: {error}")
        if not rows:
            for failure in failures:
                report(failure)
            raise typer.Exit(1)
        names = list(dict.fromkeys(candidate.model for candidate in candidates))
        images = len(labelled.images) if labelled else None
        document = bench.report(names, data, images, device, counts, [*left_out, *failures], rows)
        headers, lines = model_table.table(document)
        table = Table(
            *headers,
            title=model_table.setting(document),
            caption=model_table.explanation(document),
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for column, cells in zip(table.columns, zip(*lines, strict=True), strict=True):
            is_name = column.header in model_table.NAMES
            column.justify = "left" if is_name else "right"
            column.overflow = "fold"
            column.min_width = None if is_name else max(map(len, cells))  # a narrow terminal cuts no number
        for line in lines:
            table.add_row(*line)
        if json:
            write_json(json, document)
        if markdown:
            head, below = model_table.setting(document), model_table.explanation(document)
            with replacing(markdown) as temporary:
                text = f"{head}\n\n{model_table.markdown(headers, lines)}\n{below}\n"
                temporary.write_text(text, encoding="utf-8")
        if plot:
            bench.plot(document, plot)
        console.print(table)
        for failure in failures:
            report(failure)
        if interrupted:
            _exit_interrupted(interrupted, "batches and numbers of threads")
        if failures:
            raise typer.Exit(1)


@bench_app.command(epilog="Example: fastyolo bench compare before.json after.json --threshold 0.03")
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", exists=True, help="A result, or a folder of several.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", exists=True, help="Later ones.")],
    threshold: Annotated[
        float, typer.Option("--threshold", min=0.0, max=10.0, help="Relative change from which on a case is reported.")
    ] = 0.05,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Say what became slower between results of 'bench ops' or 'bench model'.

    The exit status is 0 if nothing did, 1 if something did, and 2 if they cannot be compared. What the machine became
    slower by is divided out, and what may be noise is not reported. Folders hold the results of several runs of the
    same code, whose means have less noise.
    """
    with reporting(debug, status=2):
        from fastyolo.bench import comparison

        found = comparison.compare(_documents(before), _documents(after), threshold=threshold)
        if json:
            write_json(json, found.to_json())
    _print_comparison(Terminal(), found)
    if found.is_slower:
        raise typer.Exit(1)


def _until_interrupted(rows: Iterable[dict[str, Any]], results: list[dict[str, Any]]) -> KeyboardInterrupt | None:
    """Collects `rows` in `results`; what ended them, Ctrl-C or SIGTERM, which is raised before the first of them."""
    try:
        with terminable():
            for row in rows:
                results.append(row)  # noqa: PERF402 - what is there stays when the next one is interrupted
    except KeyboardInterrupt as error:
        if not results:
            raise
        return error
    return None


def _exit_interrupted(interrupt: KeyboardInterrupt, what: str) -> None:
    report(f"Interrupted; the results are those of the {what} until then.")
    raise typer.Exit(143 if isinstance(interrupt, Terminated) else 130)


def _documents(path: Path) -> list[Any]:
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} must hold result files, and has no .json file.")
    return [_document(file) for file in files]


def _document(file: Path) -> Any:
    try:
        document = load_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} must be a result of 'bench ops' or 'bench model', and is no JSON ({error})."
        ) from error
    if not isinstance(document, dict):
        raise ValueError(f"{file} must be a result of 'bench ops' or 'bench model', and holds something else.")
    return {**document, "file": str(file)}


def _print_comparison(console: Console, found: Any) -> None:
    for remark in found.remarks:
        console.print(remark)
    for name in found.missing:
        console.print(f"{name} is in one of the files only.", markup=False)
    table = Table(box=SIMPLE_HEAD)
    table.add_column()
    for column in ("before", "after", "change", "noise"):
        table.add_column(column, justify="right", no_wrap=True)
    styles = {"slower": "bold red", "unclear": "yellow", "faster": "green", "same": "default"}
    for group in found.groups:
        name = f"[{styles[group.verdict]}]{group.verdict}[/] {group.name}, all cases"
        table.add_row(name, "", "", f"{group.change:+.1%}", f"{group.noise:.1%}")
    table.add_section()
    for verdict in ("slower", "faster"):
        for row in found.of(verdict):
            times = (_microseconds(row.before), _microseconds(row.after))
            table.add_row(
                f"[{styles[verdict]}]{verdict}[/] {row.name}", *times, f"{row.change:+.1%}", f"{row.noise:.1%}"
            )
    if table.row_count:
        console.print(table)
    if found.level is not None:
        console.print(
            "What the machine did cannot be told from the peers, so the operators are compared with each other: a "
            f"change of all of them, by {found.level:+.1%}, is not judged."
        )
    drift = "" if found.drift is None else f"; the machine itself by {found.drift:+.1%}, which is divided out"
    counts = ", ".join(f"{len(found.of(verdict))} {verdict}" for verdict in ("slower", "unclear", "faster", "same"))
    console.print(f"{len(found.rows)} cases: {counts}{drift}.")
    if found.of("unclear"):
        console.print(
            "Unclear: a change beyond the threshold that may be noise. Measure again, several times, or with "
            "--threads 1 on a machine that others use."
        )


def _maps(weights: Path | None, images: Path | None) -> tuple[Any, str]:
    """Head maps for the cases, None for synthetic ones, and what to call them."""
    from fastyolo._machine import installed_version
    from fastyolo.bench import ops as bench

    data = Path(os.environ.get("FASTYOLO_DATA", ""))
    if weights is None and data.name:
        if not data.is_dir():
            raise FileNotFoundError(f"FASTYOLO_DATA must be the folder of weights and images, got {str(data)!r}.")
        weights, images = data / "weights" / "yolov8n-recovered.pt", data / "coco128-val" / "images"
    if weights is None or images is None or installed_version("ultralytics") is None:
        return None, "synthetic head outputs"
    maps = bench.real_maps(str(weights), images)
    return maps, f"head outputs of {weights.name} on {len(maps[0][0])} photographs"


def _bench_table(results: list[dict[str, Any]], title: str) -> Table:
    caption = (
        "limit: the time that this machine needs at least, to read or copy the same bytes (memory) or to compute the "
        "same operations (compute), as a share of fastyolo's"
    )
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD)
    table.add_column()
    for column in ("fastyolo", "peer", "ratio", "GB/s", "limit"):
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
                f"{row['limit_share']:.0%} {row['bound']}",
            )
    return table


def _op_and_peers(result: dict[str, Any]) -> tuple[str, ...]:
    return result["op"], *(name for name in result["contenders"] if name != "fastyolo")


def _microseconds(value: float) -> str:
    return f"{value / 1000:.1f} ms" if value >= 1000 else f"{value:.0f} µs"
