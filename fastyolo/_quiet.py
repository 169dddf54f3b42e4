# SPDX-License-Identifier: AGPL-3.0-or-later
"""Silence where the logs of others would bury the lines of ours."""

from __future__ import annotations

import logging
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
