# SPDX-License-Identifier: AGPL-3.0-or-later
"""Settings for common cases: a YAML file each, of ultralytics' arguments and fastyolo's settings, with the reasons."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent

NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


def path(name: str) -> Path:
    """The file of a preset."""
    return FOLDER / f"{name}.yaml"


def summary(name: str) -> str:
    """What a preset is for, in one line: the first after the licence's."""
    return path(name).read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
