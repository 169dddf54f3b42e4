# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo quantize --sensitivity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fastyolo._files import write_json
from fastyolo.cli.common import progress_bar, writable

if TYPE_CHECKING:
    from fastyolo.compress.quantization.sensitivity import Part, Report, Whole

_NO_NOISE = 120  # dB, of levels that a part has no influence on

PICTURES = (".pdf", ".png", ".svg")


def picture(context: typer.Context, option: typer.CallbackParam, path: Path | None) -> Path | None:
    """For options: refuse a path of which matplotlib cannot tell what to write."""
    if path is not None and path.suffix.lower() not in PICTURES:
        raise typer.BadParameter(f"expected a file that ends in {', '.join(PICTURES)}, got {str(path)!r}.")
    return writable(context, option, path)


def report(console: Console, json: Path | None, plot: Path | None, *arguments: Any, **settings: Any) -> None:
    """Measure, print, and write what is asked for."""
    from fastyolo.compress.quantization.sensitivity import sensitivity
    from fastyolo.integrations.ultralytics.export import LOGGER

    LOGGER.setLevel("WARNING")
    with progress_bar(console) as bar:
        task = bar.add_task("calibrate", total=None)
        found = sensitivity(
            *arguments,
            **settings,
            on_progress=lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total),
        )
    if json:
        write_json(json, found.as_dict())
    if plot:
        from fastyolo.compress.quantization.chart import draw

        draw(found, plot)
    _print(console, found)
    if plot:
        console.print(str(plot), markup=False)


def _print(console: Console, found: Report) -> None:
    table = Table(
        title=f"{Path(found.weights).name}: each part alone in int8, the most sensitive first", box=SIMPLE_HEAD
    )
    table.add_column("part", min_width=max(len(part.name) for part in found.parts))
    numbers = ("conv", "SNR dB", *(f"/{stride}" for stride in found.parts[0].snr_of_levels))
    rows = [_row(part) for part in found.parts]
    for index, column in enumerate((*numbers, "mAP50-95", "mAP50", "file if float", "time if float"), 1):
        widths = (max(map(len, column.split())), *(len(row[index]) for row in rows))
        table.add_column(column, justify="right", min_width=max(widths))  # no number is cut
    for row in rows:
        table.add_row(*row)
    console.print(table)
    totals = Table(box=None, pad_edge=False)
    for column in ("", "file", "time", "mAP50-95", "mAP50", "SNR"):
        totals.add_column(column, justify="right" if column else "left")
    totals.add_row("float32", *_whole(found.float32))
    totals.add_row("all in int8", *_whole(found.int8))
    console.print(totals)
    console.print(
        f"SNR: signal to noise in the head's maps on {found.images} images, and by stride. Times: ONNX Runtime on this "
        f"machine ({found.processor}), of everything in int8 with this part in float; on a GPU they are others.",
        markup=False,
    )
    if found.labelled_images:
        console.print(f"mAP: change on {found.labelled_images} images, of which some thousandths are chance.")
    for note in found.notes:
        console.print(note, markup=False)


def _row(part: Part) -> list[str]:
    losses = ["" if loss is None else f"{0 - loss:+.4f}" for loss in (part.map50_95_loss, part.map50_loss)]
    return [
        part.name,
        str(part.convolutions),
        f"{part.snr:.1f}",
        *(f"{value:.1f}" if value < _NO_NOISE else "" for value in part.snr_of_levels.values()),
        *losses,
        f"{part.kept_bytes / 1e3:+.0f} kB",
        f"{part.kept_latency - 1:+.1%}",
    ]


def _whole(whole: Whole) -> list[str]:
    return [
        f"{whole.bytes / 1e6:.2f} MB",
        f"{whole.milliseconds:.1f} ms",
        *("" if value is None else f"{value:.4f}" for value in (whole.map50_95, whole.map50)),
        "" if whole.snr is None else f"{whole.snr:.1f} dB",
    ]
