# SPDX-License-Identifier: AGPL-3.0-or-later
"""A sensitivity report as a picture."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.figure import Figure

from fastyolo._files import replacing
from fastyolo.compress.quantization.sensitivity import Report

_NO_NOISE = 120  # dB, of levels that a part has no influence on
_ROWS = 40  # parts in a picture that can still be read


def draw(report: Report, file: Path) -> None:
    """Write a picture of the most sensitive parts, their noise and what each costs in float; PNG, SVG or PDF by the
    file's suffix."""
    parts = report.parts[:_ROWS]
    measured = any(part.map50_95_loss is not None for part in parts)
    figure = Figure(figsize=(11 if measured else 8.5, 1.6 + 0.24 * len(parts)), layout="constrained")
    axes = figure.subplots(1, 3 if measured else 2, sharey=True, width_ratios=[2, 1.3, 1][: 3 if measured else 2])
    rows = range(len(parts))

    noise, *losses, cost = axes
    noise.barh(rows, [part.snr for part in parts], color="tab:blue", alpha=0.7, label="all levels")
    for (stride, _), marker in zip(parts[0].snr_of_levels.items(), "os^Dv", strict=False):
        values = [value if (value := part.snr_of_levels[stride]) < _NO_NOISE else math.nan for part in parts]
        noise.plot(values, rows, marker, color="black", markersize=3, label=f"stride {stride}")
    if report.int8.snr is not None:
        noise.axvline(report.int8.snr, color="tab:red", linewidth=1, label="everything in int8")
    noise.set_yticks(rows, [part.name for part in parts])
    noise.set_ylim(len(parts) - 0.4, -0.6)
    noise.set_xlabel("signal to noise in the head's maps, dB")
    figure.legend(*noise.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    for axis in losses:
        for shift, name, color in ((-0.2, "map50_95_loss", "tab:orange"), (0.2, "map50_loss", "tab:olive")):
            known = [
                (row + shift, value) for row, part in enumerate(parts) if (value := getattr(part, name)) is not None
            ]
            label = "mAP50" if name == "map50_loss" else "mAP50-95"
            axis.barh([row for row, _ in known], [value for _, value in known], 0.4, color=color, label=label)
        axis.axvline(0, color="black", linewidth=0.5)
        axis.set_xlabel(f"loss on {report.labelled_images} images")
        axis.legend(fontsize=8)
    cost.barh(rows, [part.kept_bytes / 1e3 for part in parts], color="tab:gray")
    cost.set_xlabel("more kB if kept in float")
    for axis in axes:
        axis.grid(axis="x", alpha=0.3)
        axis.locator_params(axis="x", nbins=5)
    noise.set_title(f"{Path(report.weights).name}: each part quantised alone", loc="left", fontsize=10)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=130, format=file.suffix[1:])
