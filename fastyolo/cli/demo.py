# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastyolo.cli.common import Debug, Json, reporting, writable
from fastyolo.cli.compress import compress

# With so few images, a step after every batch (nbs) and the adaptive steps of AdamW learn most in a minute; workers
# take longer to start than to load them.
_TRAINING = {
    "optimizer": "AdamW",
    "lr0": 0.003,
    "cos_lr": True,
    "nbs": 8,
    "warmup_epochs": 1,
    "mosaic": 0,
    "scale": 0.2,
    "workers": 0,
    "plots": False,
}


def demo(
    save_dir: Annotated[
        Path,
        typer.Option(
            "--save-dir", metavar="DIR", file_okay=False, callback=writable, help="Folder of everything that is made."
        ),
    ] = Path("runs/demo"),
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Show what 'fastyolo compress' does, in a few minutes, on shapes that are drawn for it.

    Nothing is downloaded. What was interrupted goes on when the command is repeated.
    """
    with reporting(debug):
        from fastyolo.demo import shapes

        data = shapes.write(save_dir / "shapes")
    compress(
        str(data),
        model="yolov8n.yaml",
        epochs=8,
        imgsz=shapes.SIZE,
        batch=8,
        assignments=[f"{name}={value}" for name, value in _TRAINING.items()],
        save_dir=save_dir / "compress",
        json=json,
        debug=debug,
    )
