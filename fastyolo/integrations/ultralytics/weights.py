# SPDX-License-Identifier: AGPL-3.0-or-later
"""Loading of ultralytics' checkpoints; what cannot be loaded is told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ultralytics import YOLO


def read_checkpoint(weights: str | Path, expected: str = "a detection checkpoint of ultralytics") -> YOLO:
    """The model of a checkpoint, of whatever task.

    Args:
        weights: its path, or the name of one of ultralytics' own, which is downloaded.
        expected: what to pass instead, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `weights` is no path.
        ValueError: it is not a checkpoint (a YAML file would give random weights), or cannot be read.
    """
    if not isinstance(weights, str | Path):
        raise TypeError(f"weights must be a path or a YOLO object, got {weights!r}; pass {expected}.")
    name = str(weights)
    if not name.endswith(".pt"):
        raise ValueError(f"weights must be a checkpoint (.pt), got {name!r}; pass {expected}.")
    with loading(f"The file {name!r}", expected):
        return YOLO(name)


@contextmanager
def loading(what: str, expected: str) -> Iterator[None]:
    """Says of a checkpoint that it is not there or cannot be read.

    Args:
        what: begins the sentence.
        expected: what to pass instead.

    Raises:
        FileNotFoundError: in place of ultralytics' and of its failure to download.
        ValueError: in place of all others.
    """
    try:
        with finding(what, expected):
            yield
    except FileNotFoundError:
        raise
    except Exception as error:  # unpickling a damaged or foreign file raises whatever its bytes suggest
        reason = type(error.__cause__ or error).__name__
        raise ValueError(
            f"{what} cannot be read as a checkpoint of ultralytics ({reason}); pass {expected}."
        ) from error


@contextmanager
def finding(what: str, expected: str) -> Iterator[None]:
    """Says of a checkpoint or of a model's YAML file that it is not there, as `loading` does."""
    try:
        yield
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"{what} is not on this machine and cannot be downloaded; pass {expected}.") from error
