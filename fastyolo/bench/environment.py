# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a measurement was made with: versions, machine, commit."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastyolo
from fastyolo._machine import cpu, gpus, installed_version, versions

if TYPE_CHECKING:
    import torch


def environment() -> dict[str, Any]:
    """Everything that a result file says about its origin; JSON types only."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _COMMIT,
        "build": dict(fastyolo.build_info()),
        "versions": versions(),
        "cpu": cpu(),
        "gpus": gpus(),
    }


def why_not_compiled(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine, as a clause, or None."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")  # as torch's inductor chooses
        return None if shutil.which(compiler) else f"torch.compile finds no C++ compiler {compiler!r}"
    return None if installed_version("triton") else "torch.compile finds no triton"


def commit() -> str | None:
    """Commit of the repository that these files belong to, with a + if files differ from it; None outside of one.

    FASTYOLO_COMMIT tells it where the files came without the repository.
    """
    if given := os.environ.get("FASTYOLO_COMMIT"):
        return given
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--untracked=no") else "")
    except (OSError, subprocess.CalledProcessError):  # no git here, or no commit yet
        return None


# When this is loaded, though git takes 0.1 s in a checkout: the code that measures is read then, and in the minutes or
# hours that it runs its files may change. Later, the commit could be that of other code.
_COMMIT = commit()
