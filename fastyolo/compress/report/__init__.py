# SPDX-License-Identifier: AGPL-3.0-or-later
"""The report of `fastyolo compress`: one HTML file that needs neither scripts nor a network."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fastyolo._files import replacing
from fastyolo.compress.pipeline.stages import duration
from fastyolo.compress.pipeline.summary import Summary
from fastyolo.compress.report import charts, command, examples, words

__all__ = ["write"]


def write(summary: Summary, path: Path) -> None:
    """Write the report of a run to `path`, in the folder that the paths in its summary begin from."""
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = jinja.get_template("report.html").render(
        summary=summary,
        words=words,
        duration=duration,
        runtimes=words.runtimes(summary),
        area=charts,
        score=examples.SCORE,
        command=command.repeat(summary),
        quantities=words.quantities(summary),
        training=charts.training(summary, path.parent),
        trade_offs=charts.trade_offs(summary),
        examples=examples.make(summary, path.parent),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
