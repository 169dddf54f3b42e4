# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a measurement was made with: versions, machine, commit."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastyolo
from fastyolo._machine import cores

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "torchvision", "ultralytics", "numpy", "opencv", "onnxruntime", "openvino", "ncnn", "tensorrt")
_DISTRIBUTIONS = {  # of packages that come under several names
    "opencv": ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
}


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


def versions() -> dict[str, str | None]:
    """Installed versions of Python and of the packages that matter, without importing them; None: not installed."""
    return {
        "fastyolo": fastyolo.__version__,
        "python": platform.python_version(),
        **{package: installed_version(package) for package in _PACKAGES},
    }


def installed_version(package: str) -> str | None:
    for name in _DISTRIBUTIONS.get(package, (package,)):
        for distribution in metadata.distributions(name=name):
            return distribution.version
    return None


def why_not_compiled(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine, as a clause, or None."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")  # as torch's inductor chooses
        return None if shutil.which(compiler) else f"torch.compile finds no C++ compiler {compiler!r}"
    return None if installed_version("triton") else "torch.compile finds no triton"


def cpu() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "model": models[0] if models else platform.processor() or platform.machine(),
        "cores": cores(),
        "isa": fastyolo.build_info()["cpu_isa"],
    }


def gpus() -> list[dict[str, Any]]:
    """The CUDA devices that torch sees; none if torch is not installed."""
    if versions()["torch"] is None:
        return []
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found.append(
            {
                "model": device.name,
                "capability": f"{device.major}.{device.minor}",
                "memory_gb": round(device.total_memory / 1e9, 1),
                "l2_mb": round(device.L2_cache_size / 1e6, 1),
                "cuda": torch.version.cuda,
            }
        )
    return found


def commit() -> str | None:
    """Commit of the repository that these files belong to, with a + if files differ from it; None outside of one."""
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
