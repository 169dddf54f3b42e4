# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command line: parses, calls, prints. Heavy packages are imported inside the commands, so that --help is fast."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from fastyolo.cli.bench import bench_app
from fastyolo.cli.common import OneSentence
from fastyolo.cli.compress import compress
from fastyolo.cli.demo import demo
from fastyolo.cli.doctor import doctor
from fastyolo.cli.export import export
from fastyolo.cli.info import info
from fastyolo.cli.predict import predict
from fastyolo.cli.profile import profile
from fastyolo.cli.prune import prune
from fastyolo.cli.quantize import quantize
from fastyolo.cli.train import train
from fastyolo.cli.val import val
from fastyolo.cli.verify import verify

app = typer.Typer(
    cls=OneSentence,
    name="fastyolo",
    epilog="Example: fastyolo predict --weights yolov8n.pt --source street.jpg",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command(
    epilog="Example: fastyolo predict --weights best.pt --source clip.mp4 --classes 0 --classes 2 --json out.json"
)(predict)
app.command(epilog="Example: fastyolo val --weights best.pt --data coco.yaml --no-rect --json metrics.json")(val)
app.command(epilog="Example: fastyolo train --data pcb.yaml --teacher best.pt --epochs 300 --set kd_ramp_epochs=5")(
    train
)
app.command(epilog="Example: fastyolo compress --data pcb.yaml --weights best.pt --max-epochs 200 --target-latency 10")(
    compress
)
app.command(epilog="Example: fastyolo demo --save-dir runs/demo")(demo)
app.command(epilog="Example: fastyolo prune --weights best.pt --data pcb.yaml --flops 0.5 --epochs 60")(prune)
app.command(epilog="Example: fastyolo quantize --weights best.pt --data pcb.yaml --outputs boxes --keep-float auto:2")(
    quantize
)
app.command(epilog="Example: fastyolo export --weights best.pt --format onnx --outputs detections --dynamic")(export)
app.command(epilog="Example: fastyolo verify --weights best.pt --model best.onnx --source images/ --json parity.json")(
    verify
)
app.command(epilog="Example: fastyolo info yolov8s-fast.yaml --json info.json")(info)
app.command(epilog="Example: fastyolo profile training --weights yolov8s-fast.yaml --data pcb.yaml --trace trace.json")(
    profile
)
app.command(epilog="Example: fastyolo doctor --data pcb.yaml --imgsz 640 --save-dir worst --json doctor.json")(doctor)
app.add_typer(bench_app, name="bench")


def _print_version(given: bool) -> None:
    if given:
        print(version("fastyolo"))
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Light models, fast post-processing and fused operators for YOLOv8-class detectors."""


main: Callable[[], None] = app
