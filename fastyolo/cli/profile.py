# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo profile."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fastyolo._files import write_json
from fastyolo._machine import cores
from fastyolo.cli.common import (
    Debug,
    DeviceName,
    Half,
    ImageSize,
    Json,
    Stock,
    Terminal,
    check_device,
    load_detector,
    progress_bar,
    reporting,
    writable,
)
from fastyolo.cli.train import given_arguments


class Part(str, Enum):
    inference = "inference"
    training = "training"
    head = "head"


_ROUNDS = {Part.inference: 30, Part.training: 20, Part.head: 50}


def profile(
    part: Annotated[
        Part, typer.Argument(metavar="[PART]", help="inference, training, or the head alone on random features.")
    ] = Part.inference,
    weights: Annotated[
        str, typer.Option("--weights", metavar="FILE", help="Checkpoint; for training also a model YAML.")
    ] = "yolov8n.pt",
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="PATH",
            help="inference: image, folder or glob.",
            show_default="the photographs that come with ultralytics",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="YAML", help="training: data set.")] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="training: images per step.", show_default="16")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="training: any argument of 'fastyolo train'; repeatable."),
    ] = None,
    imgsz: ImageSize = 640,
    conf: Annotated[
        float | None,
        typer.Option(
            "--conf", min=0.0, max=1.0, help="inference: score that a detection must exceed.", show_default="0.25"
        ),
    ] = None,
    iou: Annotated[
        float | None,
        typer.Option(
            "--iou", min=0.0, max=1.0, help="inference: IoU above which the lesser box is dropped.", show_default="0.7"
        ),
    ] = None,
    device: DeviceName = None,
    half: Half = False,
    stock: Stock = False,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds", min=1, help="Images, batches or passes to measure.", show_default="30, 20 or 50 of them"
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="inference, head: CPU threads.", show_default="all")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            dir_okay=False,
            callback=writable,
            help="Write a Chrome trace of a few rounds (chrome://tracing, https://ui.perfetto.dev).",
        ),
    ] = None,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Show where the time of prediction, of training or of the head goes, what bounds it, and what would help most.

    Images are letterboxed to a square. On a GPU every stage waits for the device, so that the stages take longer
    together than the whole does without it. Of training, batches are computed as 'fastyolo train' would, and nothing is
    kept.
    """
    with reporting(debug):
        inference = {"--source": source, "--conf": conf, "--iou": iou, "--half": half, "--stock": stock}
        _refuse(part, Part.inference, inference)
        _refuse(part, Part.training, {"--data": data, "--batch": batch, "--set": assignments})
        if part is Part.training and threads:
            raise typer.BadParameter("ultralytics sets the number of threads in training.", param_hint="--threads")
        if part is Part.training and data is None:
            raise typer.BadParameter("it is missing, and training needs a data set.", param_hint="--data")
        if trace and trace.suffix.lower() != ".json":
            raise typer.BadParameter(f"it must end in .json, got {trace.name!r}.", param_hint="--trace")
        import torch

        from fastyolo import diagnose
        from fastyolo.integrations.ultralytics.acceleration import LOGGER

        torch.set_num_threads(threads or cores())
        LOGGER.setLevel("WARNING")
        console = Terminal()
        count = rounds or _ROUNDS[part]
        with progress_bar(console) as progress:
            task = progress.add_task(f"profile: {part.value}", total=count)
            watched: dict[str, Any] = {
                "rounds": count,
                "trace": trace,
                "on_round": lambda: progress.advance(task),
            }
            if part is Part.training:
                options = {"model": weights, "data": data, "imgsz": imgsz, "batch": batch, "device": device}
                given = {name: value for name, value in options.items() if value is not None}
                arguments = given_arguments(given, assignments or [])
                check_device(arguments.get("device"))
                found = diagnose.profile.training(arguments, **watched)
            else:
                model = load_detector(weights, device, half, stock)
                target = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
                if part is Part.head:
                    found = diagnose.profile.head(model, imgsz=imgsz, device=target, **watched)
                else:
                    settings: dict[str, Any] = {"device": target, "quantize": 16 if half else None}
                    settings |= {"conf": 0.25 if conf is None else conf, "iou": 0.7 if iou is None else iou}
                    found = diagnose.profile.inference(model, _images(source), imgsz=imgsz, **settings, **watched)
        if json:
            write_json(json, found.to_json())
        _print(console, found)


def _refuse(part: Part, use: Part, options: Mapping[str, Any]) -> None:
    """Refuse options that the part has no use for, before anything is loaded."""
    given = [option for option, value in options.items() if value is not None and value is not False]
    if given and part is not use:
        raise typer.BadParameter(f"it is for {use.value}, got {part.value}; leave it out.", param_hint=given[0])


def _images(source: str | None) -> list[str]:
    from fastyolo.integrations.ultralytics.acceleration import ASSETS
    from fastyolo.runtime.sources import IMAGES, list_files

    files = [str(file) for file in list_files(source or ASSETS) if file.suffix.lower() in IMAGES]
    if not files:
        raise FileNotFoundError(f"{source} holds no image; pass a file, folder or glob of images with --source.")
    return files


def _print(console: Console, found: Any) -> None:
    table = Table(box=SIMPLE_HEAD, caption=_caption(found), caption_justify="left")
    table.add_column("stage")
    for column in ("ms", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("counts to", style="dim")
    for stage in found.stages:
        table.add_row(stage.name, f"{stage.seconds * 1e3:.2f}", f"{stage.share:.1%}", stage.group)
    console.print(table)
    if found.layers:
        console.print(_layer_table(found))
    console.print(f"[bold]Bound by {found.bound}[/bold]: ", end="")
    console.print(found.because, markup=False)
    for number, change in enumerate(found.changes, 1):
        sentence = (
            f"{number}. {change.what[0].upper()}{change.what[1:]}: {change.why} Saves {change.saves:.0%} at most."
        )
        console.print(sentence, markup=False)


def _caption(found: Any) -> str:
    round_ = {"inference": "image", "training": "batch", "head": "pass"}[found.subject]
    threads = f", {found.facts['threads']} threads" if found.facts["device"] == "cpu" else ""
    return f"Medians of {found.rounds} rounds{threads}; {found.seconds * 1e3:.1f} ms for each {round_}."


def _layer_table(found: Any) -> Table:
    machine = found.machine
    caption = (
        f"Forward, in float32; GFLOPs, and the MB that operators write, are for one image. This "
        f"machine multiplies at {machine.flops / 1e9:.0f} GFLOP/s and copies at "
        f"{machine.bytes / 1e9:.1f} GB/s. 'of limit' is the time that the tighter of the two allows, as a share; above "
        "100% maps stay in the caches (memory), or the product was disturbed (compute)."
    )
    table = Table(box=SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("layer")
    table.add_column("part", style="dim")
    for column in ("ms", "GFLOPs", "MB written", "of limit"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("limit")
    for layer in found.layers:
        numbers = (f"{layer.seconds * 1e3:.2f}", f"{layer.gflops:.2f}", f"{layer.activation_mb:.1f}")
        table.add_row(layer.name, layer.part, *numbers, f"{layer.efficiency:.0%}", layer.bound)
    return table
