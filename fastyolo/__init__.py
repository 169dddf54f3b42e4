# SPDX-License-Identifier: AGPL-3.0-or-later
"""Fast post-processing, fused operators and light models for YOLOv8-class detectors on edge devices.

`import fastyolo` is light: it imports neither torch nor ultralytics nor NumPy, so that the NumPy kernels in
`fastyolo._C` work on a machine without them. Everything else loads on first use.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fastyolo._post_import import when_imported

__version__ = "0.1.0"

BUILD_COMMAND = "pip install --no-build-isolation -e ."

try:
    from fastyolo._C import __version__ as _compiled_version
    from fastyolo._C import build_info
except ImportError as error:
    raise ImportError(
        f"fastyolo's compiled library cannot be loaded ({error}); build it in the repository with: {BUILD_COMMAND}"
    ) from error
if _compiled_version != __version__:
    raise ImportError(
        f"fastyolo's compiled library is stale: it is of version {_compiled_version}, the Python files are of version "
        f"{__version__}; build it again in the repository with: {BUILD_COMMAND}"
    )

if TYPE_CHECKING:
    from fastyolo import bench, compress, diagnose, export, integrations, nn, ops, reference, runtime, train
    from fastyolo.integrations.ultralytics.acceleration import accelerate

__all__ = [
    "BUILD_COMMAND",
    "__version__",
    "accelerate",
    "bench",
    "build_info",
    "compress",
    "diagnose",
    "export",
    "integrations",
    "nn",
    "ops",
    "reference",
    "runtime",
    "train",
]

_MODULES = ("bench", "compress", "diagnose", "export", "integrations", "nn", "ops", "reference", "runtime", "train")
_HOMES = {"accelerate": "fastyolo.integrations.ultralytics.acceleration"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fastyolo.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _register_models(tasks: ModuleType) -> None:
    importlib.import_module("fastyolo.integrations.ultralytics.models").register(tasks)


# So that ultralytics knows our modules and model files whichever of the two is imported first. A checkpoint that holds
# our modules imports fastyolo by itself.
when_imported("ultralytics.nn.tasks", _register_models)
