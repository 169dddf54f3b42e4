# SPDX-License-Identifier: AGPL-3.0-or-later
"""What this process may use of the machine, and what is installed on it."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import fastyolo

_PACKAGES = ("torch", "torchvision", "ultralytics", "numpy", "opencv", "onnxruntime", "openvino", "ncnn", "tensorrt")
_DISTRIBUTIONS = {  # of packages that come under several names
    "opencv": ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
}


def cores() -> int:
    """Those that this process may run on, which a container or taskset can limit."""
    return len(os.sched_getaffinity(0))


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
