# SPDX-License-Identifier: AGPL-3.0-or-later
"""Silence where the logs of others would bury the lines of ours."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Only ultralytics' warnings and errors are logged."""
    with silent_logger("ultralytics", logging.WARNING):
        yield


@contextmanager
def silent_logger(name: str, least: int = logging.ERROR) -> Iterator[None]:
    """Only what is of that level and above is logged, or less if less is logged already."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(max(level, least))
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def silent_profiler() -> Iterator[None]:
    """Without what torch's profiler logs on stderr of its own start and stop, at no level that can be turned off."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
