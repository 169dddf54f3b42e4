# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo prune."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastyolo._files import write_json
from fastyolo.cli.common import Debug, Json, Terminal, Weights, check_device, reporting, resumable, writable
from fastyolo.cli.train import given_arguments


class Importance(str, Enum):
    gamma = "gamma"
    l1 = "l1"
    l2 = "l2"


class Part(str, Enum):
    backbone = "backbone"
    neck = "neck"
    head = "head"


def prune(
    weights: Weights = "yolov8n.pt",
    data: Annotated[
        str | None, typer.Option("--data", metavar="YAML", help="Data set to train with; without one, no training.")
    ] = None,
    ratio: Annotated[float | None, typer.Option("--ratio", help="Share of the channels to remove, or")] = None,
    flops: Annotated[float | None, typer.Option("--flops", help="share of the FLOPs to remove, or")] = None,
    latency: Annotated[
        float | None,
        typer.Option("--latency", metavar="MS", help="milliseconds for an image in ONNX Runtime on this machine."),
    ] = None,
    ranked_globally: Annotated[
        bool | None,
        typer.Option(
            "--global/--per-layer",
            help="Rank the channels of the whole network, or remove a share of each layer's.",
            show_default="global after a training with sparsity, else per-layer",
        ),
    ] = None,
    importance: Annotated[
        Importance | None,
        typer.Option(
            "--importance",
            help="Factors of the normalisations (gamma), or norms of the filters.",
            show_default="gamma after a training with sparsity, else l1",
        ),
    ] = None,
    parts: Annotated[
        list[Part] | None,
        typer.Option("--parts", help="Part that may lose channels; repeatable.", show_default="all"),
    ] = None,
    head_first: Annotated[
        bool, typer.Option("--head-first", help="Remove all that can be from the head before anything else.")
    ] = False,
    multiple: Annotated[
        int, typer.Option("--multiple", min=8, help="What channels are rounded to, a multiple of 8.")
    ] = 16,
    imgsz: Annotated[
        int, typer.Option("--imgsz", min=32, help="Side of the input that FLOPs, latency and training are for.")
    ] = 640,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of ONNX Runtime for --latency.", show_default="all")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Rounds of removing and training.")] = 1,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Of the training after each step.", show_default="30, with --data"),
    ] = None,
    sparsity: Annotated[
        float,
        typer.Option("--sparsity", min=0, max=1, help="Weight of the L1 term in a training before; 0: no training."),
    ] = 0.0,
    sparsity_epochs: Annotated[int, typer.Option("--sparsity-epochs", min=1, help="Of that training.")] = 30,
    distill: Annotated[
        bool, typer.Option("--distill/--no-distill", help="Take the unpruned model for the teacher.")
    ] = True,
    batch: Annotated[
        int | None, typer.Option("--batch", min=-1, help="Images per step of a training.", show_default="16")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="To train on: cpu, or 0 for a GPU; a GPU if any.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any argument of 'fastyolo train' for the trainings."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            dir_okay=False,
            callback=writable,
            help="Checkpoint to write.",
            show_default="NAME-pruned.pt beside the weights",
        ),
    ] = None,
    save_dir: Annotated[
        Path | None,
        typer.Option(
            "--save-dir",
            metavar="DIR",
            file_okay=False,
            callback=writable,
            help="Folder of the trainings.",
            show_default="NAME-pruned",
        ),
    ] = None,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Remove the least important channels of a detector, and train what remains.

    What was interrupted goes on when the command is repeated.
    """
    with reporting(debug):
        ranking = None if ranked_globally is None else "global" if ranked_globally else "per-layer"
        options = {name: value for name, value in (("batch", batch), ("device", device)) if value is not None}
        training = given_arguments(options, assignments or [])
        check_device(training.get("device"))
        from fastyolo.compress.pruning import PARTS, prune
        from fastyolo.integrations.ultralytics import acceleration as ultralytics

        if not data:
            ultralytics.LOGGER.setLevel("WARNING")
        console = Terminal(soft_wrap=True)
        with resumable():
            report = prune(
                weights,
                data,
                ratio=ratio,
                flops=flops,
                latency=latency,
                ranking=ranking,
                importance=None if importance is None else importance.value,
                parts=[part.value for part in parts or map(Part, PARTS)],
                head_first=head_first,
                multiple=multiple,
                imgsz=imgsz,
                threads=threads,
                steps=steps,
                epochs=epochs,
                sparsity=sparsity,
                sparsity_epochs=sparsity_epochs,
                distill=distill,
                training=training,
                path=output,
                folder=save_dir,
                say=lambda line: console.print(line, markup=False),
            )
        if json:
            write_json(json, report.as_dict())
        console.print(report)
        console.print(report.path, markup=False)
        if not data:
            again = f"fastyolo train --model {shlex.quote(report.path)} --data ..."
            console.print(f"Without its channels the model detects little; train it before use: {again}", markup=False)
