# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo train."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from fastyolo._files import write_json
from fastyolo.cli.common import Debug, Json, Terminal, check_device, reporting, writable
from fastyolo.train import presets, settings

DEFAULT_MODEL = "yolov8s-fast.yaml"
RUNS = "runs/detect"

# A run's args.yaml holds them too, where they say what that run was.
_NOT_ARGUMENTS = ("mode", "resume", "task")

# There they say where that run was; in a file without a mode, which somebody wrote, where the new one is to be.
_PLACE = ("exist_ok", "name", "project", "save_dir")


class Preset(str, Enum):
    few_images = "few-images"
    large_objects = "large-objects"
    many_classes = "many-classes"
    realtime = "realtime"
    small_objects = "small-objects"


def _list_presets(wanted: bool) -> None:
    if wanted:
        for name in presets.NAMES:
            print(f"{name:14} {presets.summary(name)}")
        print(f"The files, with the reasons, are in {presets.FOLDER}")
        raise typer.Exit


def _list_settings(wanted: bool) -> None:
    if wanted:
        table = Table("setting", "default", "meaning", box=None)
        for row in settings.explained():
            table.add_row(*map(escape, row))
        Terminal().print(table)
        print("They are given with --set or in --config, as are ultralytics' own arguments.")
        raise typer.Exit


def train(
    data: Annotated[
        str | None, typer.Option("--data", metavar="YAML", help="Data set, as ultralytics describes it.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="FILE", help="Model YAML or checkpoint.", show_default=DEFAULT_MODEL),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="FILE", help="Checkpoint to distil from (distill_model).")
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="Settings for a common case: small-objects, large-objects, many-classes, few-images or realtime.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="YAML",
            exists=True,
            dir_okay=False,
            help="Arguments in a file, such as a run's args.yaml, but for its folder; they win over the preset's.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Passes over the data set.", show_default="100")
    ] = None,
    imgsz: Annotated[
        int | None, typer.Option("--imgsz", min=32, help="Side of the input, in pixels.", show_default="640")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=-1, help="Images per step; -1: what the GPU holds.", show_default="16")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="cpu, 0, or 0,1 for two GPUs; a GPU if any.")
    ] = None,
    save_dir: Annotated[
        Path | None,
        typer.Option(
            "--save-dir",
            metavar="DIR",
            file_okay=False,
            callback=writable,
            help="Folder of the run, new or empty.",
            show_default=f"the next of {RUNS}/train, train-2, ...",
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any argument of ultralytics or of --list-settings; repeatable."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="LAST.PT",
            exists=True,
            dir_okay=False,
            help="Continue a run that stopped, with its arguments; --data and --teacher may say where these are now, "
            "and --device, --batch and others that concern the machine may change.",
        ),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard too.")] = False,
    json: Json = None,
    debug: Debug = False,
    list_presets: Annotated[
        bool,
        typer.Option("--list-presets", callback=_list_presets, is_eager=True, help="Show what the presets are for."),
    ] = False,
    list_settings: Annotated[
        bool,
        typer.Option("--list-settings", callback=_list_settings, is_eager=True, help="Show fastyolo's own arguments."),
    ] = False,
) -> None:
    """Train a detector, with a teacher if one is given.

    Where an argument comes from several places, options and --set win over --config, that over --preset.
    """
    with reporting(debug):
        from fastyolo.integrations.ultralytics import runs

        options = {
            "data": data,
            "model": model,
            "distill_model": teacher,
            "epochs": epochs,
            "imgsz": imgsz,
            "batch": batch,
            "device": device,
            "save_dir": None if save_dir is None else str(save_dir),
            "tensorboard": tensorboard or None,
        }
        options = {name: value for name, value in options.items() if value is not None}
        given = given_arguments(options, assignments or [])
        if resume:
            arguments = _resumed(resume, given, preset, config)
        else:
            of_preset = arguments_in(presets.path(preset.value) if preset else None)
            arguments = {**of_preset, **arguments_in(config), **given}
            arguments.setdefault("model", DEFAULT_MODEL)
            if "save_dir" not in arguments:  # ultralytics would go by its settings, which hold for all projects
                arguments["project"] = str(Path(str(arguments.get("project") or RUNS)).absolute())
        _check(arguments)
        first = _is_first_process()
        if first:  # which downloads what the others then find
            if "resume" not in arguments:
                runs.check_data(str(arguments["data"]))
            runs.check_model(str(arguments["model"]))
            if arguments.get("distill_model"):
                runs.check_teacher(str(arguments["distill_model"]))
        trainer = _trained(arguments)
        if not first:
            return
        metrics = runs.metrics(trainer)
        files = {"best": str(trainer.best), "last": str(trainer.last), "results": str(trainer.csv)}
        if json:
            write_json(json, {"arguments": arguments, "metrics": metrics, **files})
        _report(metrics, files)


def given_arguments(options: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The arguments that the command line names, by its own options and by --set."""
    given = dict(options)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise typer.BadParameter(f"expected KEY=VALUE, got {assignment!r}.", param_hint="--set")
        if name in _NOT_ARGUMENTS:
            raise typer.BadParameter(f"{name!r} follows from the command and its options.", param_hint="--set")
        value = _parse(text, "--set")
        if name in given and given[name] != value:
            raise typer.BadParameter(f"{name!r} is given as {given[name]!r} and as {value!r}.", param_hint="--set")
        given[name] = value
    _check_names(given, "--set")
    return given


def _resumed(checkpoint: Path, given: dict[str, Any], preset: Preset | None, config: Path | None) -> dict[str, Any]:
    from fastyolo.integrations.ultralytics import runs

    fixed = sorted({*given} - runs.RESUMABLE)
    fixed += [option for option, value in (("--preset", preset), ("--config", config)) if value]
    if fixed:
        raise typer.BadParameter(
            f"the run continues with the arguments that it began with, so leave out {', '.join(fixed)}.",
            param_hint="--resume",
        )
    runs.check_resumable(checkpoint)
    return {**given, "model": str(checkpoint), "resume": str(checkpoint)}


def arguments_in(path: Path | None) -> dict[str, Any]:
    """The arguments in a preset or configuration file."""
    if path is None:
        return {}
    arguments = _parse(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(arguments, dict):
        raise typer.BadParameter("expected lines of KEY: VALUE.", param_hint=str(path))
    if (task := arguments.get("task", "detect")) != "detect":
        raise typer.BadParameter(f"task must be 'detect', got {task!r}.", param_hint=str(path))
    left_out = (*_NOT_ARGUMENTS, *_PLACE) if "mode" in arguments else _NOT_ARGUMENTS
    arguments = {name: value for name, value in arguments.items() if name not in left_out}
    _check_names(arguments, str(path))
    return arguments


def _parse(text: str, where: str) -> Any:
    """YAML, in which 1e-3 is a number too and a date a text, as YAML 1.2 and its users have it."""
    import yaml  # type: ignore[import-untyped]

    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    pattern = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    loader.add_implicit_resolver("tag:yaml.org,2002:float", pattern, list("-+.0123456789"))
    for resolvers in loader.yaml_implicit_resolvers.values():  # of this class alone, since one was added
        resolvers[:] = [(tag, shape) for tag, shape in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    try:
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"this is not YAML: {' '.join(str(error).split())}.", param_hint=where) from error


def _check_names(arguments: Mapping[str, Any], where: str) -> None:
    from fastyolo.integrations.ultralytics import runs

    try:
        runs.check_names(arguments)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=where) from error


def _check(arguments: Mapping[str, Any]) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    from fastyolo.integrations.ultralytics import runs

    if not arguments.get("data") and "resume" not in arguments:
        raise typer.BadParameter("it is missing, and no --config names a data set.", param_hint="--data")
    check_device(arguments.get("device"))
    try:
        runs.check_values(arguments)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not arguments.get("save", True):
        raise typer.BadParameter("save must be true, got false, with which a run can end without a checkpoint.")


def _is_first_process() -> bool:
    """True but in the other processes that torchrun starts."""
    return os.environ.get("RANK", "0") == "0"


def _trained(arguments: Mapping[str, Any]) -> Any:
    """The trainer after its work; what Ctrl-C interrupts can be continued."""
    from fastyolo.train import Trainer

    trainer = Trainer(overrides=dict(arguments))
    before = _modified(trainer.last)  # of a run that this one overwrites
    try:
        trainer.train()
    except KeyboardInterrupt:
        saved = _modified(trainer.last) not in (None, before)
        checkpoint = trainer.last if saved else arguments.get("resume")
        advice = "start it again"
        if checkpoint:
            advice = f"continue it with: fastyolo train --resume {shlex.quote(str(checkpoint))}"
        print(f"\nfastyolo: The run was interrupted; {advice}", file=sys.stderr)
        raise typer.Exit(130) from None
    except subprocess.CalledProcessError as error:  # of the processes for several GPUs
        raise RuntimeError("A training process failed; its message is above.") from error
    return trainer


def _modified(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None


def _report(metrics: Mapping[str, float], files: Mapping[str, str]) -> None:
    console = Terminal(soft_wrap=True)
    table = Table(*metrics)
    table.add_row(*(f"{value:.4f}" for value in metrics.values()))
    console.print(table)
    for name, path in files.items():
        console.print(f"{name:8} {path}", markup=False)
