# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastyolo._files import write_json
from fastyolo.cli.common import Debug, ImageSize, Json, MaxDet, progress_bar, reporting, writable
from fastyolo.diagnose.doctor.findings import Report

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def doctor(
    data: Annotated[
        Path | None, typer.Option("--data", metavar="YAML", exists=True, dir_okay=False, help="Data set to examine.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="DIR", exists=True, file_okay=False, help="Training run to examine, with its results.csv."
        ),
    ] = None,
    imgsz: ImageSize = 640,
    max_det: MaxDet = 300,
    min_objects: Annotated[
        int, typer.Option("--min-objects", min=1, help="A class with fewer objects in training is called rare.")
    ] = 20,
    save_dir: Annotated[
        Path | None,
        typer.Option(
            "--save-dir", metavar="DIR", file_okay=False, callback=writable, help="Pictures of the worst cases go here."
        ),
    ] = None,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Say what is wrong with a data set, with a training run, or with both.

    Of a data set: images, labels, classes, sizes, and images that both splits have; nothing of it is changed. Of a run:
    losses that are not finite, divergence, overfitting, and whether it was too short or too long. The exit status is 1
    if there is an error, and 0 with warnings and notes.
    """
    console = Console(highlight=False)
    with reporting(debug):
        if data is None and run is None:
            raise typer.BadParameter("nothing to examine; give a data set, or a run with --run.", param_hint="--data")
        report = Report()
        if data:
            report = _examine(console, data, imgsz=imgsz, max_det=max_det, min_objects=min_objects)
        if run:
            from fastyolo.diagnose.doctor.run import examine
            from fastyolo.integrations.ultralytics.doctor import arguments

            of_run = examine(run, arguments(run))
            report.add(of_run.findings)
            report.facts["run"] = of_run.facts
        if json:
            write_json(json, report.to_json())
        _print(console, report)
        if save_dir:
            from fastyolo.diagnose.doctor import pictures

            console.print(f"{len(pictures.save(report, save_dir))} pictures in {escape(str(save_dir))}")
    if report.broken:
        raise typer.Exit(1)


def _examine(console: Console, data: Path, *, imgsz: int, max_det: int, min_objects: int) -> Report:
    from fastyolo.diagnose.doctor import dataset
    from fastyolo.diagnose.doctor.samples import Settings
    from fastyolo.integrations.ultralytics.acceleration import LOGGER
    from fastyolo.integrations.ultralytics.doctor import describe

    LOGGER.setLevel("WARNING")
    description = describe(data)
    with progress_bar(console) as bar:
        task = bar.add_task("images")
        settings = Settings(imgsz=imgsz, max_det=max_det, min_objects=min_objects)
        return dataset.examine(description, settings, lambda done, total: bar.update(task, completed=done, total=total))


def _print(console: Console, report: Report) -> None:
    if "images" in report.facts:
        images = ", ".join(f"{count:,} images in {split}" for split, count in report.facts["images"].items())
        console.print(f"{images or 'no images'}, {len(report.facts['classes'])} classes", markup=False)
    if "run" in report.facts:
        console.print(f"a run of {report.facts['run']['epochs']} epochs")
    if not report.findings:
        console.print("[green]nothing found[/green]")
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("severity", no_wrap=True)
    table.add_column("finding")
    table.add_column("evidence, and what to do", ratio=1, overflow="fold")
    for finding in report.findings:
        severity = finding.severity.value
        sentences = f"{escape(finding.evidence)}\n[dim]{escape(finding.remedy)}[/dim]"
        table.add_row(f"[{_STYLES[severity]}]{severity}[/]", finding.name, sentences)
    console.print(table)
