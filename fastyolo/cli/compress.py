# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo compress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastyolo._files import write_json
from fastyolo.cli.common import (
    Debug,
    Json,
    Terminal,
    check_device,
    progress_bar,
    report,
    reporting,
    resumable,
    writable,
)
from fastyolo.cli.train import Preset, arguments_in, given_arguments
from fastyolo.train import presets

if TYPE_CHECKING:
    from fastyolo.compress.pipeline.files import Progress
    from fastyolo.compress.pipeline.summary import Stage, Summary

BASELINE = "yolov8s.pt"
IMGSZ = 640


class Skippable(str, Enum):
    baseline = "baseline"
    light = "light"
    distilled = "distilled"
    pruned = "pruned"
    int8 = "int8"
    verify = "verify"


class Runtime(str, Enum):
    onnxruntime = "onnxruntime"
    openvino = "openvino"


class Int8(str, Enum):
    qat = "qat"
    ptq = "ptq"


class Format(str, Enum):
    tensorrt_onnx = "tensorrt-onnx"
    engine = "engine"
    openvino = "openvino"
    ncnn = "ncnn"


def compress(
    data: Annotated[str, typer.Option("--data", metavar="YAML", help="Data set, as ultralytics describes it.")],
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="FILE", help="Baseline that is trained on the data; it is only measured."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="FILE",
            help="What a baseline is trained from: a checkpoint, or a YAML file for random weights.",
            show_default=BASELINE,
        ),
    ] = None,
    light: Annotated[
        str | None,
        typer.Option(
            "--light",
            metavar="YAML",
            help="Light model.",
            show_default="yolov8-fast in the baseline's scale",
        ),
    ] = None,
    skip: Annotated[
        list[Skippable] | None,
        typer.Option(
            "--skip",
            metavar="STAGE",
            help="Leave out baseline, light, distilled, pruned, int8 or verify; repeatable.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            min=1,
            help="Of the baseline's training; the light model and distillation get as many, pruning 30 %, INT8 10 %.",
            show_default="100",
        ),
    ] = None,
    max_epochs: Annotated[
        int | None,
        typer.Option("--max-epochs", min=1, help="Of all trainings together, in these proportions; excludes --epochs."),
    ] = None,
    target_latency: Annotated[
        float | None,
        typer.Option("--target-latency", metavar="MS", help="What the result may take for an image in --runtime."),
    ] = None,
    runtime: Annotated[Runtime, typer.Option("--runtime", help="That the targets are for.")] = Runtime.onnxruntime,
    target_size: Annotated[
        float | None, typer.Option("--target-size", metavar="MB", help="What the file to ship may have (10^6 bytes).")
    ] = None,
    flops: Annotated[
        float, typer.Option("--flops", help="Share of the FLOPs that pruning removes where there is no target.")
    ] = 0.3,
    int8: Annotated[Int8, typer.Option("--int8", help="Train for INT8 (qat) or only calibrate (ptq).")] = Int8.qat,
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="Further format for the final float model, beside ONNX; repeatable."),
    ] = None,
    imgsz: Annotated[
        int | None, typer.Option("--imgsz", min=32, help="Side of the input, in pixels.", show_default=str(IMGSZ))
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=-1, help="Images per step of a training.", show_default="16")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="To train on: cpu, or 0 for a GPU; a GPU if any.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Of the runtimes that are measured.", show_default="all"),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option("--preset", metavar="NAME", help="Settings for a common case, as fastyolo train has them."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any argument of 'fastyolo train' for the trainings."),
    ] = None,
    save_dir: Annotated[
        Path,
        typer.Option(
            "--save-dir", metavar="DIR", file_okay=False, callback=writable, help="Folder of everything that is made."
        ),
    ] = Path("runs/compress"),
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Make a detector for your data small and fast: baseline, light model, distillation, pruning, INT8, report.

    What was interrupted goes on when the command is repeated. The exit status is 1 if a stage fails, a target is
    missed, a format cannot be written, or a file to ship departs from its checkpoint; there is a report all the same.
    """
    console = Terminal(soft_wrap=True)
    with reporting(debug):
        options = {"model": model, "light": light, "epochs": epochs, "imgsz": imgsz}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        operation = {name: value for name, value in (("batch", batch), ("device", device)) if value is not None}
        training = {**_of_preset(preset, given, max_epochs), **given_arguments(operation, assignments or [])}
        check_device(training.get("device"))
        from fastyolo.compress.pipeline import compress

        with resumable(), _progress(console) as on_progress:
            summary = compress(
                data,
                weights=weights,
                model=given.get("model", BASELINE),
                light=given.get("light"),
                skip=[stage.value for stage in skip or ()],
                epochs=given.get("epochs"),
                max_epochs=max_epochs,
                flops=flops,
                target_latency=target_latency,
                target_size=target_size,
                runtime=runtime.value,
                int8=int8.value,
                formats=[kind.value for kind in formats or ()],
                imgsz=given.get("imgsz", IMGSZ),
                threads=threads,
                training=training,
                save_dir=save_dir,
                say=lambda line: console.print(line, markup=False),
                on_progress=on_progress,
                debug=debug,
            )
        if json:
            write_json(json, summary.as_dict())
        _print(console, summary, save_dir)
    for problem in summary.problems:
        report(problem)
    if summary.problems:
        raise typer.Exit(1)


def _of_preset(preset: Preset | None, given: dict[str, Any], max_epochs: int | None) -> dict[str, Any]:
    """The training arguments of a preset; what the command has options for is added to `given`, unless it is there."""
    if preset is None:
        return {}
    arguments = arguments_in(presets.path(preset.value))
    arguments.pop("close_geometry", None)  # of a long training; each stage here has its own
    if arguments.get("freeze_backbone"):
        raise typer.BadParameter(
            f"{preset.value} keeps a trained backbone, of which the light model has none; pass as --weights what "
            f"'fastyolo train --preset {preset.value}' makes of the data.",
            param_hint="--preset",
        )
    if "model" in arguments:
        name = arguments.pop("model")
        given.setdefault("light" if name.endswith(".yaml") else "model", name)
    if (epochs := arguments.pop("epochs", None)) and not max_epochs:
        given.setdefault("epochs", epochs)
    if "imgsz" in arguments:
        given.setdefault("imgsz", arguments.pop("imgsz"))
    return arguments


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """A bar for measurements, which is gone again while a training writes its own log."""
    bar = progress_bar(console)
    tasks: dict[str, Any] = {}

    def on_progress(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
            bar.start()
        bar.update(tasks[what], completed=done)
        if done == total:
            bar.remove_task(tasks.pop(what))
            bar.stop()

    try:
        yield on_progress
    finally:
        bar.stop()


def _print(console: Console, summary: Summary, folder: Path) -> None:
    from fastyolo.compress.pipeline.run import REPORT
    from fastyolo.compress.report.words import RUNTIMES

    runtimes = sorted({runtime for stage in summary.stages for runtime in stage.latency})
    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"{summary.data.name}, {summary.settings['imgsz']} pixels"
    )
    table.add_column("stage", no_wrap=True)
    latencies = ["\n".join((*RUNTIMES[name].split(), "ms")) for name in runtimes]  # to fit into 80 columns
    for column in ("params\nM", "GFLOPs", "MB", *latencies, "mAP50", "mAP50-95"):
        table.add_column(column, justify="right")
    for stage in summary.stages:
        if stage.checkpoint:
            table.add_row(*_row(stage, runtimes))
    console.print(table)
    for stage in summary.stages:
        if stage.note:
            console.print(f"{stage.name}, {stage.status}: {stage.note}", markup=False)
    for target in summary.targets:
        if target.met:  # the others are problems, which are reported at the end
            values = f"{target.reached:.2f} {target.unit} of {target.asked:g} {target.unit}"
            console.print(f"target {target.name} met: {values}. {target.note}", markup=False)
    console.print("To ship:")
    for file in summary.ships:
        console.print(f"  {folder / file.path}  {file.bytes / 1e6:.2f} MB, {file.purpose}", markup=False)
    console.print(f"Report: {escape(str(folder / REPORT))}")


def _row(stage: Stage, runtimes: list[Any]) -> list[str]:
    accuracy, latency = stage.accuracy, stage.latency
    return [
        stage.title,
        f"{(stage.parameters or 0) / 1e6:.2f}",
        f"{(stage.flops or 0) / 1e9:.2f}",
        f"{(stage.bytes or 0) / 1e6:.2f}",
        *(f"{latency[name].median_ms:.1f}" if name in latency else "-" for name in runtimes),
        *(["-", "-"] if accuracy is None else [f"{accuracy.map50:.4f}", f"{accuracy.map50_95:.4f}"]),
    ]
