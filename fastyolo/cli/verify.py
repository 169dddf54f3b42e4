# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fastyolo._files import write_json
from fastyolo.cli.common import Conf, Debug, Engine, Iou, Json, Terminal, reporting

_STYLES = {"agrees": "green", "departs": "bold red", "skipped": "dim"}


def verify(
    weights: Annotated[
        Path,
        typer.Option("--weights", metavar="FILE", exists=True, dir_okay=False, help="Checkpoint that was exported."),
    ],
    model: Annotated[
        Path,
        typer.Option("--model", metavar="PATH", exists=True, help=".onnx, .engine, or an OpenVINO or NCNN folder."),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="PATH",
            help="Image, folder or glob to compare on.",
            show_default="the two photographs that come with ultralytics",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="YAML", help="Compare mAP too, on this data set's validation images."),
    ] = None,
    conf: Conf = 0.25,
    iou: Iou = 0.7,
    engine: Annotated[Engine, typer.Option("--engine", help="What runs an .onnx file.")] = Engine.onnxruntime,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Compare an exported model with its checkpoint, stage by stage, and say where and why it departs.

    The exit status is 0 if they agree, 1 if they do not, and 2 if they cannot be compared. Images that cannot be read
    are named and left out.
    """
    console = Terminal()
    with reporting(debug, status=2):
        if weights.suffix != ".pt":
            raise typer.BadParameter(f"It must be a checkpoint (.pt), got {str(weights)!r}.", param_hint="--weights")
        found = _compare(console, debug, weights, model, source, data=data, conf=conf, iou=iou, engine=engine.value)
        if json:
            write_json(json, found.to_json())
    _print(console, found)
    if not found.agrees:
        raise typer.Exit(1)


def _compare(console: Console, debug: bool, *files: Any, **settings: Any) -> Any:
    """A Report."""
    from fastyolo import diagnose
    from fastyolo.integrations.ultralytics.acceleration import LOGGER

    LOGGER.setLevel("WARNING")
    with console.status("verify") as status:
        try:
            return diagnose.verify(*files, **settings, progress=lambda name: status.update(f"verify: {name}"))
        except (diagnose.IncomparableError, ModuleNotFoundError):
            raise
        except Exception as error:
            if debug:
                raise
            raise RuntimeError(
                f"verify itself failed ({type(error).__name__}: {error}), which says nothing of the model; run it with "
                f"--debug and report the traceback."
            ) from error


def _print(console: Console, found: Any) -> None:
    images = f"{found.images} image{'s' if found.images > 1 else ''}"
    title = f"{Path(found.model).name} ({found.precision}, {found.engine}) against {Path(found.weights).name}, {images}"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("stage")
    table.add_column("verdict")
    for column in ("maximum", "relative", "allowed"):
        table.add_column(column, justify="right")
    table.add_column("compared")
    for stage in found.stages:
        numbers = [""] * 3
        if difference := stage.difference:
            numbers = [
                f"{difference.maximum:.1e}",
                f"{difference.relative:.1e}",
                f"{stage.allowed:.0e} {stage.measure[:3]}",
            ]
        table.add_row(stage.name, f"[{_STYLES[stage.verdict]}]{stage.verdict}[/]", *numbers, stage.note)
    console.print(table)
    for finding in found.findings:
        console.print(f"[bold]{finding.cause}[/bold]: ", end="")
        console.print(finding.sentence, markup=False)
