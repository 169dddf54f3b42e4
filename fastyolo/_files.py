# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files that are either whole or not there, and what is in them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LOCK = ".lock"  # in the folder of a run
_NAME = 40  # characters, of at most 4 bytes, of the 255 bytes that file systems allow


def beside(path: Path) -> Path:
    """A hidden name in the same folder that no other writer has: threads, and containers with equal process numbers."""
    start = path.name[:_NAME]  # so that where a name fits, the one beside it does
    return path.with_name(f".{start}.{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, for the caller to write, that takes its place in one step at the end.

    A reader sees the old file or the new one, never a part; after an error, the old one; after a loss of
    power, one of the two.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Write `document` to `path` in one step."""
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    found = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            found.update(f"{file.relative_to(path).as_posix()}\0".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                found.update(block)
    return found.hexdigest()


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if there is none.

    Args:
        name: of the argument that told the folder.

    Raises:
        ValueError: another process is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{name} must be a folder in which no other fastyolo is at work, and one is in {folder}; wait for its "
                f"end or choose another folder."
            ) from error
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # which processes that were forked meanwhile would go on holding


def holds_files(folder: Path) -> bool:
    """Whether there is anything in a folder but hidden files: its lock, and what another process is writing."""
    return folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir())


def data_name(data: str) -> str:
    """coco128 of coco128.yaml and of coco128/data.yaml."""
    path = Path(data).resolve()
    return path.parent.name if path.stem == "data" else path.stem
