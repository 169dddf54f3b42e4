# SPDX-License-Identifier: AGPL-3.0-or-later
"""Builds and loads the stand-in: every CUDA kernel as ordinary C++. See README.md."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pybind11

SOURCE = Path(__file__).resolve().parent
# Of this interpreter: `make PYTHON=...` changes it in the same clone.
_TAG = sys.implementation.cache_tag
BUILD = Path(os.environ.get("FASTYOLO_SIMT_BUILD", SOURCE.parents[1] / "build" / f"simt-{_TAG}"))
KERNELS = SOURCE.parents[1] / "csrc" / "kernels"
BUILDS = ("checked", "asan")
ENQUEUE_TESTS = ("enqueue_test", "enqueue_test_v2")
OPS = ("dfl_decode", "decode_nms", "batched_nms", "eca", "dw_sppf", "sppf_pool")


def tensorrt_headers() -> str:
    """The folder of NvInferRuntime.h that kernel-lens has; nothing if it is not installed."""
    spec = importlib.util.find_spec("kernel_lens")
    folders = (spec and spec.submodule_search_locations) or []
    return "".join(str(Path(folder) / "include" / "tensorrt") for folder in folders)


def build(folder: Path = BUILD, kernels: Path = KERNELS, target: str = "all") -> None:
    """Builds one of BUILDS, or both, of the kernels in a folder; or of ENQUEUE_TESTS, where TensorRT's headers are."""
    definitions = [
        f"-DFASTYOLO_KERNELS={kernels}",
        f"-DTENSORRT_INCLUDE_DIR={tensorrt_headers()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    commands = [
        ["cmake", "-S", SOURCE, "-B", folder, "-G", "Ninja", *definitions],
        ["cmake", "--build", folder, "--target", target],
    ]
    for command in commands:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the stand-in for CUDA does not build:\n{done.stdout}")


def load(name: str) -> ModuleType:
    """The module of one of BUILDS. `asan` needs the environment that `environment` gives."""
    path = next(BUILD.glob(f"{name}.*.so"))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tests(name: str, folder: Path = BUILD, *options: str, ops: Sequence[str] = OPS) -> subprocess.Popen[str]:
    """Starts the operators' own tests, and with them the table of cases, on one of BUILDS."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "simt_plugin", "--simt", name]
    command += [str(SOURCE.parent / f"test_{op}.py") for op in ops]
    # One OpenMP thread: torch's others would spin on the cores that the kernels need.
    variables = {"PYTHONPATH": str(SOURCE), "FASTYOLO_SIMT_BUILD": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *options],
        env=environment(name) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def environment(name: str) -> dict[str, str]:
    """The environment of a process that loads this build: AddressSanitizer must be the first library."""
    if name != "asan":
        return dict(os.environ)
    # libstdc++ too: AddressSanitizer looks for __cxa_throw when it starts.
    libraries = [
        subprocess.check_output(["g++", f"-print-file-name={library}"], text=True).strip()
        for library in ("libasan.so", "libstdc++.so")
    ]
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=0",  # Python leaks
        "UBSAN_OPTIONS": "abort_on_error=1:print_stacktrace=1",
    }
