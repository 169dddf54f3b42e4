# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo doctor."""

from __future__ import annotations

from collections.abc import Mapping
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
    DeviceName,
    Json,
    Terminal,
    load_detector,
    progress_bar,
    reporting,
    writable,
)
from fastyolo.diagnose.doctor.findings import Report, counted

if TYPE_CHECKING:
    from fastyolo.diagnose.doctor.samples import Description, Settings

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_ROWS = 10  # classes in the table of a model
_COLUMNS = {
    "objects": "objects",
    "found": "found",
    "missed": "missed",
    "false alarm": "false\nalarms",
    "wrong class": "wrong\nclass",
    "badly placed box": "badly\nplaced",
    "duplicate detection": "dupli-\ncates",
}


def doctor(
    data: Annotated[
        Path | None, typer.Option("--data", metavar="YAML", exists=True, dir_okay=False, help="Data set to examine.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FILE", exists=True, dir_okay=False, help="Checkpoint to examine on the data set."
        ),
    ] = None,
    deployed: Annotated[
        Path | None,
        typer.Option(
            "--deployed", metavar="PATH", exists=True, help="Exported model to compare with the checkpoint, as verify."
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="DIR", exists=True, file_okay=False, help="Training run to examine, with its results.csv."
        ),
    ] = None,
    imgsz: Annotated[
        int | None,
        typer.Option(
            "--imgsz",
            min=32,
            help="Longer side of the network's input, in pixels.",
            show_default="the checkpoint's, else 640",
        ),
    ] = None,
    conf: Annotated[
        float | None,
        typer.Option("--conf", min=0.0, max=1.0, help="Score that a detection must exceed.", show_default="0.25"),
    ] = None,
    iou: Annotated[
        float | None,
        typer.Option("--iou", min=0.0, max=1.0, help="IoU above which the lesser box is dropped.", show_default="0.7"),
    ] = None,
    max_det: Annotated[
        int | None, typer.Option("--max-det", min=1, help="Detections per image, at most.", show_default="300")
    ] = None,
    min_objects: Annotated[
        int | None,
        typer.Option(
            "--min-objects",
            min=1,
            help="A class with fewer objects in training is called rare.",
            show_default="20",
        ),
    ] = None,
    device: DeviceName = None,
    save_dir: Annotated[
        Path | None,
        typer.Option(
            "--save-dir", metavar="DIR", file_okay=False, callback=writable, help="Pictures of the worst cases go here."
        ),
    ] = None,
    collect: Annotated[
        Path | None,
        typer.Option(
            "--collect",
            metavar="DIR",
            file_okay=False,
            callback=writable,
            help="Data set to which the images that the model fails on are added.",
        ),
    ] = None,
    collect_limit: Annotated[
        int | None,
        typer.Option(
            "--collect-limit",
            min=1,
            help="Images that a run adds to it, the worst ones first.",
            show_default="200",
        ),
    ] = None,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Say what is wrong with a data set, a model on it, its exported file, a training run, or with all of them.

    Of a data set: images, labels, classes, sizes, and images that both splits have; nothing of it is changed. Of a
    model: what it misses and confuses, and which labels it contradicts. Of an exported file: whether it computes what
    its checkpoint does, preparation of the images included. Of a run: losses that are not finite, divergence,
    overfitting, objects and levels without positives. The exit status is 1 if there is an error, and 0 with warnings
    and notes.
    """
    console = Terminal()
    with reporting(debug):
        _check(data, weights, deployed, run)
        _require("--data", data, {"--imgsz": imgsz, "--max-det": max_det, "--min-objects": min_objects})
        _require("--data", data, {"--save-dir": save_dir})  # of exported files and of runs there are no pictures
        _require("--weights with --data", weights and data, {"--device": device, "--collect": collect})
        _require("--weights with --data or --deployed", weights, {"--conf": conf, "--iou": iou})
        _require("--collect", collect, {"--collect-limit": collect_limit})
        thresholds = {"conf": 0.25 if conf is None else conf, "iou": 0.7 if iou is None else iou}
        report = Report()
        if run:
            from fastyolo.diagnose.doctor.run import examine
            from fastyolo.integrations.ultralytics.doctor import arguments

            of_run = examine(run, arguments(run))
            report.add(of_run.findings)
            report.facts["run"] = of_run.facts
        description = _description(data, collect) if data else None
        limit = max_det or 300
        model = _model(weights, imgsz, device, iou=thresholds["iou"], max_det=limit) if weights and data else None
        if deployed:
            from fastyolo.diagnose.doctor import deployment

            images = description.splits.get("val", ())[: deployment.IMAGES] if description else ()
            with console.status("deployed model") as status:
                found = deployment.examine(
                    str(weights),
                    deployed,
                    [pair.image for pair in images],
                    lambda name: status.update(f"deployed model: {escape(name)}"),
                    **thresholds,
                )
            report.add(found.findings)
            report.facts |= found.facts
        if description:
            from fastyolo.diagnose.doctor.samples import Settings

            settings = Settings(imgsz or 640, max_det=limit, min_objects=min_objects or 20, conf=thresholds["conf"])
            of_data = _examine(console, description, settings, model, collect, collect_limit or 200)
            report.add(of_data.findings)
            report.facts |= of_data.facts
        if json:
            write_json(json, report.to_json())
        saved = []
        if save_dir:
            from fastyolo.diagnose.doctor import pictures

            saved = pictures.save(report, save_dir)
        _print(console, report)
        if save_dir:
            where = f"{counted(len(saved), 'picture')} in {save_dir}"
            console.print(where if saved else "no finding has a picture", markup=False)
        if collect:
            collected = report.facts["collected"]
            console.print(f"{collected['new']} new images in {escape(str(collect))}, with the reasons in reasons.json")
    if report.broken:
        raise typer.Exit(1)


def _check(data: Path | None, weights: Path | None, deployed: Path | None, run: Path | None) -> None:
    if data is None and run is None and deployed is None:
        raise typer.BadParameter(
            "nothing to examine; give a data set, an exported model with --deployed, or a run with --run.",
            param_hint="--data",
        )
    if deployed and not weights:
        raise typer.BadParameter("it is compared with a checkpoint; give that with --weights.", param_hint="--deployed")
    if weights and not (data or deployed):
        raise typer.BadParameter("it is examined on a data set; give that with --data.", param_hint="--weights")


def _require(what: str, given: object, others: Mapping[str, Any]) -> None:
    """Those of the others that are given have a meaning with `what` only."""
    if not given and (idle := [name for name, value in others.items() if value is not None]):
        raise typer.BadParameter(f"{', '.join(idle)} is for {what}; add that, or leave it out.")


def _model(weights: Path, imgsz: int | None, device: str | None, **settings: Any) -> Any:
    from fastyolo.integrations.ultralytics.examination import ExaminedModel

    return ExaminedModel(load_detector(str(weights), device, half=False, stock=False), imgsz, device=device, **settings)


def _description(data: Path, collect: Path | None) -> Description:
    from fastyolo.diagnose.doctor import hard_cases
    from fastyolo.integrations.ultralytics.acceleration import LOGGER
    from fastyolo.integrations.ultralytics.doctor import describe

    LOGGER.setLevel("WARNING")
    description = describe(data)
    if collect:
        hard_cases.check(collect, description.names)
    return description


def _examine(
    console: Console, description: Description, settings: Settings, model: Any, collect: Path | None, limit: int
) -> Report:
    from dataclasses import replace

    from fastyolo.diagnose.doctor import dataset, hard_cases

    if model:
        settings = replace(settings, imgsz=model.imgsz, strides=model.strides)
    with progress_bar(console) as bar:
        task = bar.add_task("images")
        found = dataset.examine(
            description, settings, model, lambda done, total: bar.update(task, completed=done, total=total)
        )
    report = found.report
    if collect:
        new = hard_cases.collect(
            found.samples, collect, description.names, weights=model.name, conf=settings.conf, limit=limit
        )
        report.facts["collected"] = {"folder": str(collect), "new": new}
    return report


def _print(console: Console, report: Report) -> None:
    if "images" in report.facts:
        images = ", ".join(f"{count:,} images in {split}" for split, count in report.facts["images"].items())
        console.print(f"{images or 'no images'}, {len(report.facts['classes'])} classes", markup=False)
    if "run" in report.facts:
        console.print(f"a run of {report.facts['run']['epochs']} epochs")
    if "model" in report.facts:
        _print_model(console, report.facts["model"])
    if "deployed" in report.facts:
        deployed = report.facts["deployed"]
        agrees = "agrees with" if deployed["agrees"] else "departs from"
        console.print(f"{Path(deployed['model']).name} {agrees} its checkpoint on {deployed['images']} images")
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


def _print_model(console: Console, facts: dict[str, Any]) -> None:
    accuracy = ", ".join(
        f"mAP50 {facts['mAP50'][split]:.3f} on {facts['images'][split]:,} images of {split}" for split in facts["mAP50"]
    )
    console.print(f"{facts['weights']} at imgsz {facts['imgsz']}: {accuracy or 'no labelled images'}", markup=False)
    if "by_class" not in facts:
        return
    rows = {f"{size} objects": counts for size, counts in facts["by_size"].items() if counts["objects"]}
    worst = sorted(facts["by_class"].items(), key=lambda item: item[1]["AP50"])
    rows |= dict(worst[:_ROWS])
    more = f"; the {_ROWS} weakest of {len(worst)} classes" if len(worst) > _ROWS else ""
    title = f"validation, score above {facts['conf']:g}{more}"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in (*_COLUMNS.values(), "AP50", "best\nscore"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, counts in rows.items():
        of_class = [f"{counts[key]:.2f}" if key in counts else "" for key in ("AP50", "best_threshold")]
        table.add_row(escape(name), *(f"{counts[column]:,}" for column in _COLUMNS), *of_class)
    console.print(table)
