# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is installed: a light import, errors that name the build command, the wheel and the pins."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from subprocess import PIPE, STDOUT

import numpy as np
import pytest
from packaging.requirements import Requirement

import fastyolo
from fastyolo import _C

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = {"cv2", "numpy", "rich", "torch", "torchvision", "typer", "ultralytics"}


def python(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options)


# ---- import


def test_import_is_light():
    code = (
        "import sys, time; start = time.process_time(); import fastyolo; seconds = time.process_time() - start;"
        f"print(seconds, *({HEAVY!r} & set(sys.modules)))"
    )
    runs = [python("-c", code, check=True).stdout.split() for _ in range(5)]
    assert all(run[1:] == [] for run in runs)
    assert min(float(run[0]) for run in runs) < 0.05  # CPU time, and the best of five: a busy machine must not count


def test_attributes_load_on_first_use():
    assert dir(fastyolo) == fastyolo.__all__
    for name in fastyolo.__all__:
        assert getattr(fastyolo, name) is not None
    assert fastyolo.ops.decode_nms is sys.modules["fastyolo.ops"].decode_nms
    with pytest.raises(AttributeError, match="module 'fastyolo' has no attribute 'nonsense'"):
        fastyolo.nonsense  # noqa: B018


def import_copy(folder: Path, compiled: str | None) -> str:
    """Imports a copy of the package with `compiled` as its library; what it printed last on stderr."""
    package = folder / "fastyolo"
    package.mkdir()
    for name in ("__init__.py", "_post_import.py"):
        shutil.copy(ROOT / "fastyolo" / name, package)
    if compiled is not None:
        (package / "_C.py").write_text(compiled)
    # Without site-packages, or the installed package would be found instead.
    result = python("-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); import fastyolo")
    return result.stderr.strip().splitlines()[-1] if result.returncode else ""


@pytest.mark.parametrize(
    ("compiled", "message"),
    [
        (None, r"ImportError: .* cannot be loaded \(No module named 'fastyolo\._C'\)"),
        ("raise ImportError('undefined symbol: x')", r"ImportError: .* cannot be loaded \(undefined symbol: x\)"),
        (
            "__version__ = '0.0.1'\nbuild_info = None",
            r"ImportError: .* is stale: it is of version 0\.0\.1, .* of version",
        ),
    ],
    ids=["missing", "broken", "stale"],
)
def test_a_library_that_does_not_fit_is_an_error_that_says_how_to_build(tmp_path, compiled, message):
    error = import_copy(tmp_path, compiled)
    assert re.match(message, error)
    assert error.endswith(f"in the repository with: {fastyolo.BUILD_COMMAND}")


def test_a_library_that_fits_is_imported(tmp_path):
    assert import_copy(tmp_path, f"__version__ = {fastyolo.__version__!r}\nbuild_info = None") == ""


def test_versions_agree():
    version = PYPROJECT["project"]["version"]
    assert fastyolo.__version__ == version
    assert fastyolo.build_info()["version"] == version
    assert importlib.metadata.version("fastyolo") == version


# ---- pins


def test_every_requirement_is_pinned():
    project = PYPROJECT["project"]
    wanted = [*PYPROJECT["build-system"]["requires"], *project["dependencies"]]
    wanted += [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    for minor in range(10, 14):
        python_version = {"python_version": f"3.{minor}"}
        names = [pin.name for pin in pins if not pin.marker or pin.marker.evaluate(python_version)]
        assert len(names) == len(set(names))
        versions = {
            pin.name: str(pin.specifier)[2:] for pin in pins if not pin.marker or pin.marker.evaluate(python_version)
        }
        for requirement in map(Requirement, wanted):
            if requirement.name == project["name"]:  # an extra that contains another
                continue
            assert requirement.specifier.contains(versions[requirement.name]), (requirement, minor)


# ---- build


def build(source: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pip wheel of a source tree; settings of the caller's build are not passed on."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("CMAKE_", "CUDA", "FASTYOLO_"))
    }
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        "wheels",
        *arguments,
        ".",
    ]
    return subprocess.run(
        command, cwd=source, env={**inherited, **environment}, stdout=PIPE, stderr=STDOUT, text=True, timeout=500
    )


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of what a build reads, at a path with spaces."""
    source = tmp_path / "a path with spaces"
    for folder in ("cmake", "csrc", "fastyolo", "plugins"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture
def path_without_nvcc(tmp_path) -> str:
    tools = tmp_path / "tools"
    tools.mkdir()
    of_python = {sysconfig.get_config_var(name).split()[0] for name in ("AR", "CC", "CXX")}  # longer ones on Debian
    for name in of_python | {"ar", "as", "c++", "cc", "g++", "gcc", "ld", "make", "ranlib", "strip"}:
        if path := shutil.which(name):
            (tools / name).symlink_to(path)
    return str(tools)


def test_the_wheel_holds_the_package_and_works(source, path_without_nvcc, tmp_path):
    # Unoptimised, in a third of the time: how fast it is is not asked here.
    result = build(source, "--config-settings=cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O0", PATH=path_without_nvcc)
    assert result.returncode == 0, result.stdout
    (wheel,) = (source / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastyolo").rglob("*") if path.is_file()}
    sources = {name for name in sources if name.endswith((".css", ".html", ".py", ".pyi", ".yaml", "/py.typed"))}
    info = f"fastyolo-{fastyolo.__version__}.dist-info"
    facts = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
    licences = {f"{info}/licenses/{name}" for name in ("LICENSE", "csrc/LICENSE")}
    assert names == sources | facts | licences | {f"fastyolo/{Path(_C.__file__).name}", "fastyolo/libfastyolo_torch.so"}

    site = str(Path(np.__file__).parent.parent)
    code = f"""
import sys
sys.path[:0] = [{str(tmp_path / "installed")!r}, {site!r}]
import fastyolo, numpy as np
from fastyolo import _C
assert fastyolo.__file__.startswith({str(tmp_path)!r})
print(_C.nms(np.array([[0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30.0]]), np.array([1, 2, 3.0]), 0.5))
print(fastyolo.build_info()["cuda"])
import torch
print(fastyolo.ops.nms(torch.tensor([[0, 0, 9, 9.0]]), torch.tensor([1.0]), 0.5))
"""
    # -S: the editable install's finder would answer for fastyolo.
    result = python("-I", "-S", "-c", code)
    assert result.stdout.splitlines() == ["[2 1]", "False", "tensor([0])"], result.stderr


def test_settings_that_make_no_sense_are_refused(source):
    result = build(source, FASTYOLO_CUDA="perhaps")
    assert result.returncode != 0
    assert "FASTYOLO_CUDA must be on, off or auto, not 'perhaps'." in result.stdout


def test_cuda_on_without_a_compiler_is_an_error(source, path_without_nvcc):
    result = build(source, FASTYOLO_CUDA="on", PATH=path_without_nvcc)
    assert result.returncode != 0
    assert "FASTYOLO_CUDA=on, but no CUDA compiler was found: put nvcc on PATH" in " ".join(result.stdout.split())


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ([], {"CMAKE_CUDA_ARCHITECTURES": "1"}),
        (["--config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=1"], {}),
        ([], {"CMAKE_ARGS": "-DCMAKE_CUDA_ARCHITECTURES=1"}),
    ],
    ids=["environment", "config-settings", "cmake-args"],
)
def test_cuda_architectures_reach_nvcc(source, arguments, environment):
    result = build(source, *arguments, FASTYOLO_CUDA="on", **environment)
    assert result.returncode != 0
    assert "compute_1'" in result.stdout  # nvcc refuses an architecture that never was
