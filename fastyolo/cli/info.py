# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo info."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fastyolo._files import write_json
from fastyolo.cli.common import Debug, Json, Terminal, load, report, reporting


def info(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A checkpoint or YAML to describe.")] = None,
    imgsz: Annotated[int, typer.Option("--imgsz", min=32, help="Side of the image that FLOPs are counted for.")] = 640,
    json: Json = None,
    debug: Debug = False,
) -> None:
    """Show versions, what was built, the devices; and of a model, its size and whether it can be accelerated."""
    with reporting(debug):
        from fastyolo.bench.environment import environment

        facts = environment()
        facts["torch_operators"] = _torch_operators(facts["versions"]["torch"])
        loaded = load(model, "as MODEL") if model else None
        if loaded:
            imgsz = _fitting(loaded, imgsz)
            facts["model"] = _describe(loaded, imgsz)
        table = Table(show_header=False, box=None)
        for name, value in _flat(facts):
            table.add_row(name, value)
        network = None if loaded is None or isinstance(loaded.model, str) else loaded.model  # str: an exported file
        if network is not None:
            facts["model"] |= _costs(network, imgsz)
        if json:
            write_json(json, facts)
        console = Terminal()
        console.print(table)
        if network is not None:
            console.print(_cost_table(facts["model"]))


def _fitting(model: Any, imgsz: int) -> int:
    """A side that the network takes, `imgsz` or the next above it."""
    if isinstance(model.model, str):
        return imgsz
    stride = int(max(model.model.stride.tolist()))
    if imgsz % stride:
        report(f"imgsz {imgsz} becomes {-(-imgsz // stride) * stride}, a multiple of the largest stride.")
    return -(-imgsz // stride) * stride


def _describe(model: Any, imgsz: int) -> dict[str, Any]:
    from fastyolo.integrations.ultralytics.acceleration import describe, why_not_accelerated

    reason = why_not_accelerated(model)
    facts = describe(model, imgsz)
    return {"file": model.model_name, **facts, "accelerated": "yes" if reason is None else f"no: {reason}"}


def _costs(network: Any, imgsz: int) -> dict[str, Any]:
    from fastyolo.integrations.ultralytics.facts import baseline, cost

    costs = {"cost": cost(network, imgsz)}
    if found := baseline(network):
        name, yolov8 = found
        costs["baseline"] = {"name": name, **cost(yolov8, imgsz)}
    return costs


def _cost_table(model: dict[str, Any]) -> Table:
    """Parts with their shares, their sum, and YOLOv8's beside it."""
    cost, baseline = model["cost"], model.get("baseline")
    size = cost["imgsz"]
    caption = (
        f"One {size} x {size} image in float32, normalisations folded. GFLOPs are those of convolutions and matrix "
        f"products; ultralytics' count, {model['gflops']}, has element-wise work too."
    )
    table = Table(caption=caption, box=SIMPLE_HEAD)
    table.add_column()
    for column in ("parameters", "GFLOPs", "activations", "at one time"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, part in cost["parts"].items():
        *figures, peak = _figures(part)
        shares = [part[key] / cost[key] for key in ("parameters", "flops", "activation_bytes")]
        cells = [
            f"{share:.0%} {figure:>{width}}" for share, figure, width in zip(shares, figures, (10, 6, 8), strict=True)
        ]
        table.add_row(name, *cells, peak)
    table.add_section()
    table.add_row(Path(model["file"]).stem, *_figures(cost))
    if baseline:
        table.add_row(baseline["name"], *_figures(baseline))
        keys = ("parameters", "flops", "activation_bytes", "peak_bytes")
        table.add_row("ratio", *(f"{cost[key] / baseline[key]:.2f}" for key in keys))
    return table


def _figures(cost: dict[str, Any]) -> tuple[str, str, str, str]:
    return (
        f"{cost['parameters']:,}",
        f"{cost['flops'] / 1e9:.2f}",
        f"{cost['activation_bytes'] / 1e6:.1f} MB",
        f"{cost['peak_bytes'] / 1e6:.1f} MB",
    )


def _torch_operators(torch_version: str | None) -> str:
    """'loaded', or the reason why not."""
    if torch_version is None:
        return "torch is not installed"
    try:
        import fastyolo.ops  # noqa: F401
    except ImportError as error:
        return str(error)
    return "loaded"


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value):
                yield from _flat(item, f"{prefix}{name}.{number}.")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "none"
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{prefix}{name}", f"{value:,}"
        else:
            yield f"{prefix}{name}", "none" if value is None else str(value)
