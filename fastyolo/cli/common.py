# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the commands share: options, the reporting of warnings and failures, progress bars, loading a model."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # of click, which newer typers carry inside


class Engine(str, Enum):
    """What runs an .onnx file."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"


class OneSentence(TyperGroup):
    """Says what is wrong with a command line in one sentence, not in a panel."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except UsageError as error:
            path = error.ctx.command_path if error.ctx else "fastyolo"  # type: ignore[attr-defined]
            print(f"{path}: {_message(error)}; see '{path} --help'.", file=sys.stderr)
            sys.exit(2)
        except typer.Abort:
            sys.exit(130)
        sys.exit(status or 0)


def _message(error: Exception) -> str:
    """What is wrong, and what came: newer typers parse with pydantic, whose sentences leave that out."""
    message: str = error.format_message().rstrip(".")  # type: ignore[attr-defined]
    if errors := getattr(error.__cause__, "errors", None):
        message = message.replace("Value error, ", "")
        if (came := repr(errors()[0]["input"])) not in message:
            message += f", got {came}"
    return message


def writable(context: typer.Context, option: typer.CallbackParam, path: Path | None) -> Path | None:
    """For options: refuse a path at which nothing can be made, or which another option has, before the work begins."""
    if path is not None:
        if str(path) == "-":
            raise typer.BadParameter("expected the name of a file or folder, got '-'; standard output has the tables.")
        others = context.meta.setdefault("fastyolo.outputs", {})
        if (other := others.setdefault(path.resolve(), option.opts[0])) != option.opts[0]:
            raise typer.BadParameter(f"expected a path of its own, got {str(path)!r}, which {other} has.")
        try:
            parents = (path,) if path.is_dir() else path.absolute().parents
            folder = next(parent for parent in parents if parent.exists())
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise typer.BadParameter(f"{path} cannot be written ({error.strerror}); choose another place.") from error
    return path


def device_name(device: str | None) -> str | None:
    """For options: refuse what is neither the CPU nor one CUDA device; a number, as ultralytics takes it, is one."""
    if device is not None and not re.fullmatch(r"cpu|cuda|(cuda:)?\d+", device, re.ASCII):
        raise typer.BadParameter(f"expected cpu, cuda or cuda:N, got {device!r}.")
    return f"cuda:{device}" if device and device[0].isdecimal() else device


def image_size(text: str) -> tuple[int, int]:
    """Height and width of a side, or of both."""
    match = re.fullmatch(r"([1-9]\d*)(?:[x,]([1-9]\d*))?", text)
    if not match:
        raise typer.BadParameter(
            f"expected a side or a height and a width, as 640 or 480x640, got {text!r}.", param_hint="--imgsz"
        )
    height, width = match.groups()
    return int(height), int(width or height)


Weights = Annotated[str, typer.Option("--weights", metavar="FILE", help="Checkpoint; yolov8n.pt is downloaded.")]
Conf = Annotated[float, typer.Option("--conf", min=0.0, max=1.0, help="Score that a detection must exceed.")]
Iou = Annotated[float, typer.Option("--iou", min=0.0, max=1.0, help="IoU above which the lesser box is dropped.")]
MaxDet = Annotated[int, typer.Option("--max-det", min=1, help="Detections per image, at most.")]
Agnostic = Annotated[bool, typer.Option("--agnostic-nms", help="Let boxes suppress boxes of other classes.")]
ImageSize = Annotated[int, typer.Option("--imgsz", min=32, help="Longer side of the network's input, in pixels.")]
DeviceName = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", callback=device_name, help="cpu, cuda, cuda:1; a GPU if any."),
]
Half = Annotated[bool, typer.Option("--half", help="Run the network in float16 (on a GPU).")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images per run of the network.")]
Stock = Annotated[bool, typer.Option("--stock", help="Use ultralytics' own post-processing, to compare.")]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", dir_okay=False, callback=writable, help="Write the results here."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]


def report(message: Exception | str, *_: Any, **__: Any) -> None:
    """One line on stderr."""
    print(f"fastyolo: {' '.join(str(message).split())}", file=sys.stderr)


_PACKAGES = {
    "cv2": "'fastyolo[runtime]'",
    "modelopt": "'fastyolo[compress]'",
    "onnx": "'fastyolo[export]'",
    "onnxruntime": "'fastyolo[runtime]'",
    "onnxslim": "'fastyolo[export]'",
    "openvino": "'fastyolo[openvino]'",
    "torch": "'fastyolo[ultralytics]'",
    "torch_pruning": "'fastyolo[compress]'",
    "torchvision": "'fastyolo[ultralytics]'",
    "ultralytics": "'fastyolo[ultralytics]'",
    "yaml": "'fastyolo[openvino]'",  # all else that reads YAML has torch, and ultralytics with it
}
_NOT_FOUND = ("No module named", "import of")  # how Python's own messages begin


@contextmanager
def reporting(debug: bool, status: int = 1) -> Iterator[None]:
    """One sentence on stderr for each of our warnings, and for a failure, or its traceback, with this exit status."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module="fastyolo")
        warnings.showwarning = report
        try:
            yield
        except (UsageError, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
                raise typer.Exit(status) from None
            # Those of an import statement; others say already what to do.
            if isinstance(error, ModuleNotFoundError) and str(error).startswith(_NOT_FOUND):
                package = _PACKAGES.get(str(error.name), str(error.name))
                error = ModuleNotFoundError(f"{error.name} is not installed; pip install {package} brings it.")
            report(str(error) or type(error).__name__)
            raise typer.Exit(status) from None  # a cause that is a StopIteration would be raised in its place


@contextmanager
def resumable() -> Iterator[None]:
    """Says after Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nfastyolo: Interrupted; the same command goes on where it stopped.", file=sys.stderr)
        raise typer.Exit(130) from None


class Terminated(KeyboardInterrupt):
    """SIGTERM, which docker stop, systemctl stop and timeout send."""


@contextmanager
def terminable() -> Iterator[None]:
    """Lets SIGTERM end what runs here as Ctrl-C does, so that it can keep what it has."""

    def end(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Terminal(Console):
    """Stdout: as wide as a terminal, and wide enough for every table where it is none.

    When its reader has gone, the process ends as one does that SIGPIPE ends, with status 141: 1 means something else.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, **settings)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = 160

    def on_broken_pipe(self) -> None:
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(141) from None


def progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def load(weights: str, how: str = "with --weights FILE") -> Any:
    from fastyolo.integrations.ultralytics.acceleration import LOGGER, YOLO
    from fastyolo.integrations.ultralytics.weights import finding, read_checkpoint

    expected = f"a detection checkpoint {how}"
    try:
        if weights.endswith(".pt"):
            model = read_checkpoint(weights, expected)
        else:
            with finding(f"The model {weights!r}", expected):
                model = YOLO(weights)
    except KeyError as error:  # of a YAML file
        raise ValueError(
            f"The model {weights!r} must have {error.args[0]}; pass a model's YAML file, such as yolov8s-fast.yaml, or "
            f"a checkpoint."
        ) from error
    LOGGER.setLevel("WARNING")
    return model


def check_device(device: Any) -> None:
    """Refuse CUDA devices, as ultralytics takes them (0, "0,1", ["cuda:0"]), where there are none."""
    import torch

    if re.match(r"[\[(' ]*(\d|cuda)", str(device)) and not torch.cuda.is_available():
        raise typer.BadParameter(f"torch sees no CUDA device, got {device!r}.", param_hint="--device")


def load_detector(weights: str, device: str | None, half: bool, stock: bool) -> Any:
    """The model, accelerated unless `stock`."""
    import torch

    check_device(device)
    if half and not torch.cuda.is_available():
        raise typer.BadParameter("float16 needs a GPU, and torch sees none.", param_hint="--half")
    if half and device == "cpu":
        raise typer.BadParameter("float16 needs a GPU, and --device is 'cpu'.", param_hint="--half")
    from fastyolo.integrations.ultralytics import acceleration as ultralytics

    model = load(weights)
    if model.task != "detect":
        raise ValueError(f"{weights!r} is a model for the task {model.task!r}; pass one for detection with --weights.")
    return model if stock else ultralytics.accelerate(model)
