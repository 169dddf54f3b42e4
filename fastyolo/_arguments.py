# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checks of single arguments, in one sentence each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return value


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    if not _is_integer(value):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {expected}, got {value}.")
    return int(value)


def number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number in [{low:g}, {high:g}], got {value!r}.")
    given = float(value)
    if not low <= given <= high:  # NaN is not
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {given}.")
    return given


def size(name: str, value: Any) -> tuple[int, int]:
    """Height and width."""
    sides = (value, value) if _is_integer(value) else value
    message = f"{name} must be a side or a height and a width in pixels, got {value!r}."
    if not isinstance(sides, tuple | list) or not all(map(_is_integer, sides)):
        raise TypeError(message)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(message)
    return int(sides[0]), int(sides[1])


def choices(name: str, value: Any, known: Sequence[str]) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of names, got {value!r}.")
    if unknown := [choice for choice in value if choice not in known]:
        raise ValueError(f"{name} must be of {', '.join(known)}, got {', '.join(map(repr, unknown))}.")


def optional_path(name: str, value: Any) -> None:
    if value is not None:
        path(name, value)


def path(name: str, value: Any) -> None:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {value!r}.")
    if not os.fspath(value):  # which would be the working directory
        raise ValueError(f"{name} must be a path, got an empty one.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
