# SPDX-License-Identifier: AGPL-3.0-or-later
"""The C++ examples that need no GPU to show something. Those in Python are tested with the command line."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples" / "cpp"
NVCC = shutil.which("nvcc")


def package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


@pytest.fixture(scope="module")
def detect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, against the real lean runtime."""
    headers, runtime = package_folder("kernel_lens"), package_folder("tensorrt_lean_libs")
    if NVCC is None or headers is None or runtime is None:
        pytest.skip("detect needs nvcc, TensorRT's headers (kernel-lens) and its runtime (tensorrt-lean-cu13)")
    program = tmp_path_factory.mktemp("examples") / "detect"
    (library,) = runtime.glob("libnvinfer_lean.so.*")
    options = ["-std=c++17", "-arch=sm_90", "-Wno-deprecated-gpu-targets", "-Xcompiler", "-Wall,-Wextra,-Werror"]
    options += ["-isystem", str(headers / "include" / "tensorrt"), "-Xlinker", str(library)]
    options += ["-Xlinker", "-rpath", "-Xlinker", str(runtime)]
    sources = [str(EXAMPLES / name) for name in ("detect.cpp", "letterbox.cu")]
    done = subprocess.run(
        [NVCC, *options, *sources, "-o", str(program)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return program


def fail(program: Path, status: int, *arguments: object) -> str:
    """What the program says as it ends without having found a GPU."""
    command = [str(program), *map(str, arguments)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stdout) == (status, "")
    return done.stderr


def test_detect_explains_its_arguments(detect: Path) -> None:
    assert "ENGINE PLUGIN_LIBRARY IN.ppm OUT.ppm" in fail(detect, 2)
    assert "ENGINE PLUGIN_LIBRARY IN.ppm OUT.ppm" in fail(detect, 2, "e", "p", "i", "o", "--iterationz", 3)
    assert "--iterations must be" in fail(detect, 1, "e", "p", "i", "o", "--iterations", 0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read"),
        (b"\x89PNG", "is not a binary PPM"),
        (b"P6\n4 2\n255\n" + bytes(23), "ends too early"),
        (b"P6\n0 2\n255\n", "must have 1 to 16384 pixels a side"),
        (b"P6\n4 2\n65535\n" + bytes(48), "8 bits a channel"),
    ],
)
def test_detect_refuses_images(detect: Path, tmp_path: Path, content: bytes | None, sentence: str) -> None:
    image = tmp_path / "in.ppm"
    if content is not None:
        image.write_bytes(content)
    message = fail(detect, 1, "no.engine", "no.so", image, "out.ppm")
    assert message.startswith(f"detect: {image} ")
    assert sentence in message


def test_detect_says_that_there_is_no_gpu(detect: Path, tmp_path: Path) -> None:
    """It comes as far as that: the image, with a comment in its head, and the engine's file are read."""
    image, engine = tmp_path / "in.ppm", tmp_path / "model.engine"
    image.write_bytes(b"P6 # by hand\n4 2\n255\n" + bytes(24))
    assert "model.engine cannot be read" in fail(detect, 1, engine, "no.so", image, "out.ppm")
    engine.write_bytes(b"")
    assert "CUDA does not start" in fail(detect, 1, engine, "no.so", image, "out.ppm")
