# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command line that does a run again."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from fastyolo.compress.pipeline import compress
from fastyolo.compress.pipeline.settings import epochs_of
from fastyolo.compress.pipeline.summary import Summary

_OPTIONS = {"formats": "format"}  # whose names are not the settings'
_DERIVED = ("epochs", "training")  # which the settings have in another form than the command line


def repeat(summary: Summary) -> str:
    """The command, with the settings that differ from its defaults."""
    words = ["fastyolo", "compress", "--data", summary.data.path]
    settings = {**summary.settings, "threads": summary.threads}
    for name, parameter in inspect.signature(compress).parameters.items():
        value: Any = settings.get(name)
        several = isinstance(value, list)
        if name in _DERIVED or (tuple(value) if several else value) in (None, parameter.default):
            continue
        for each in value if several else [value]:
            words += [f"--{_OPTIONS.get(name, name).replace('_', '-')}", str(each)]
    words += _epochs(summary.settings["epochs"])
    for name, value in summary.settings["training"].items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def _epochs(of_stages: Mapping[str, int]) -> Iterator[str]:
    """Those of the baseline, or of all stages together, whichever gives each stage what it had."""
    stages = list(of_stages)
    if not stages:
        return
    first = of_stages[stages[0]]
    if epochs_of(stages, first, None) == of_stages:
        yield from ("--epochs", str(first))
    else:
        yield from ("--max-epochs", str(sum(of_stages.values())))
