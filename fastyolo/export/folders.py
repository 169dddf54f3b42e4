# SPDX-License-Identifier: AGPL-3.0-or-later
"""Folders that take the place of others, as `fastyolo._files.replacing` does with files."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Collection
from pathlib import Path

from fastyolo._files import beside

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # of linux/fs.h


def require_replaceable(target: Path, files: Collection[str]) -> None:
    """Refuse to replace anything but a folder that holds metadata.yaml and nothing that is not one of `files`.

    Raises:
        OSError: with a clause that says why as its `strerror`.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file")
    found = sorted(path.name for path in target.iterdir())
    if "metadata.yaml" not in found:
        raise FileExistsError(errno.EEXIST, "it is a folder, and no exported model")
    if foreign := [name for name in found if name not in files]:
        raise FileExistsError(errno.EEXIST, f"it holds {foreign[0]!r}, which the exporter did not write")


def put(new: Path, target: Path) -> None:
    """Rename the folder `new` to `target`; a folder that is there becomes `new`.

    In one step, where the file system can exchange two names: whoever looks sees one of the two folders, whole.
    Elsewhere in three, between which the old folder lies beside.

    Raises:
        OSError: the file system refuses. The folder that was there still is, or lies beside.
    """
    try:
        new.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # the last, where it is a link to one
            raise
        if not _exchange(new, target):
            _exchange_in_steps(new, target)


def _exchange(a: Path, b: Path) -> bool:
    """Whether system and file system could exchange the two names (Linux 3.15, renameat2(2))."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(a), None, str(b))


def _exchange_in_steps(new: Path, target: Path) -> None:
    kept = beside(target)
    target.rename(kept)
    try:
        new.rename(target)
    except BaseException as error:
        try:
            kept.rename(target)
        except OSError:
            raise FileExistsError(
                f"path {str(target)!r} was written by another process meanwhile; what was there before is {kept}."
            ) from error
        raise
    kept.rename(new)
