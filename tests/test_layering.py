# SPDX-License-Identifier: AGPL-3.0-or-later
"""The rules of the layers, read from the sources: who may include or import whom, one name for one op, licences."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
PLUGINS = ROOT / "plugins"
OPS = sorted(path.stem for path in (CSRC / "torch").glob("*.cpp") if path.stem != "library")
CPP_SUFFIXES = {".h", ".cpp", ".cuh", ".cu"}


def cpp_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in CPP_SUFFIXES)


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def includes(path: Path) -> list[str]:
    """The text between the brackets or quotes of every #include."""
    return re.findall(r'^\s*#\s*include\s*[<"]([^">]+)[">]', path.read_text(), re.MULTILINE)


def imports(path: Path) -> set[str]:
    """Top-level names of every absolute import, wherever in the file it stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_the_scans_see_the_sources():
    assert {"batched_nms", "decode_nms", "dfl_decode"} <= set(OPS)
    assert "common.h" in includes(CSRC / "kernels" / "decode_nms.h")
    assert "torch" in imports(ROOT / "fastyolo" / "reference.py")


def test_kernels_include_nothing_but_themselves_and_the_toolchain():
    kernels = {path.name for path in cpp_files(CSRC / "kernels")}
    toolchain = re.compile(
        r"[a-z_]+$|c(std\w+|math|float|limits|assert)$|\w*intrin\.h$|arm_neon\.h$|cuda\w*\.h$|cub/|cuda/"
    )
    strangers = {
        f"{path.name}: {include}"
        for path in cpp_files(CSRC / "kernels")
        for include in includes(path)
        if include not in kernels and not toolchain.match(include)
    }
    assert not strangers


@pytest.mark.parametrize(
    ("framework", "headers"), [("torch", r"torch/|ATen/|c10/"), ("python", r"pybind11/|Python\.h")]
)
def test_one_folder_includes_each_framework(framework, headers):
    ours = {f"{path.parent.name}/{path.name}" for path in cpp_files(CSRC)}
    users = {
        path.parent.name
        for path in cpp_files(CSRC)
        if any(re.match(headers, include) for include in includes(path) if include not in ours)
    }
    assert users == {framework}


def test_torch_is_included_through_its_stable_interface_only():
    stable = re.compile(r"torch/(csrc/stable|csrc/inductor/aoti_torch/c|headeronly)/")
    ours = {f"torch/{path.name}" for path in cpp_files(CSRC / "torch")}
    for path in cpp_files(CSRC / "torch"):
        frameworks = [i for i in includes(path) if i.startswith(("torch/", "ATen/", "c10/")) and i not in ours]
        assert all(stable.match(include) for include in frameworks), path


def test_tensorrt_is_included_by_the_plugins_and_what_drives_them():
    files = [path for folder in ("csrc", "examples", "plugins", "tests") for path in cpp_files(ROOT / folder)]
    users = {path for path in files if any(include.startswith("NvInfer") for include in includes(path))}
    homes = (PLUGINS, ROOT / "examples" / "cpp", ROOT / "tests" / "plugins_driver.cpp")
    assert users
    assert [path for path in users if not any(path.is_relative_to(home) for home in homes)] == []


def test_plugins_include_nothing_but_kernels_and_tensorrt():
    headers = {path.name for path in cpp_files(PLUGINS)}
    known = re.compile(r"[a-z_]+$|c(std\w+|math)$|dlfcn\.h$|kernels/\w+\.h$|NvInferRuntime\.h$")
    strangers = {
        f"{path.name}: {include}"
        for path in cpp_files(PLUGINS)
        for include in includes(path)
        if include not in headers and not known.match(include)
    }
    assert not strangers


@pytest.mark.parametrize("package", ["modelopt", "tensorrt", "ultralytics"])
def test_one_module_imports_each_integration(package):
    users = {path.relative_to(ROOT).as_posix() for path in python_files("fastyolo") if package in imports(path)}
    home = f"fastyolo/integrations/{package}"
    assert {path for path in users if not path.startswith((f"{home}.py", f"{home}/"))} == set()


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_one_name_in_every_folder(op):
    expected = [f"csrc/kernels/{op}{suffix}" for suffix in (".h", ".cpp", ".cu")]
    expected += [f"csrc/torch/{op}.cpp", f"fastyolo/ops/{op}.py", f"tests/test_{op}.py", f"plugins/{op}_plugin.cpp"]
    assert [path for path in expected if not (ROOT / path).is_file()] == []
    for table in ("csrc/torch/library.cpp", "csrc/python/module.cpp", "fastyolo/reference.py", "tests/cases.py"):
        assert re.search(rf"\b{op}\b", (ROOT / table).read_text()), table


def test_kernels_are_launched_by_launch():
    assert [path.name for path in cpp_files(CSRC) if "<<<" in path.read_text()] == []


def test_licences_stand_in_the_first_line():
    for path in [*cpp_files(CSRC), *cpp_files(PLUGINS), *cpp_files(ROOT / "examples"), *cpp_files(ROOT / "tests")]:
        assert path.read_text().startswith("// SPDX-License-Identifier: Apache-2.0\n"), path
    for path in python_files("fastyolo", "tests", "bench", "examples"):
        assert path.read_text().startswith("# SPDX-License-Identifier: AGPL-3.0-or-later\n"), path


def test_cpu_kernels_share_no_code_between_instruction_sets():
    """A weak symbol, as an inline function of the standard library, would be one copy for all instruction sets."""
    build = f"build/cp{sys.version_info.major}{sys.version_info.minor}-*/CMakeFiles/fastyolo_kernels_*.dir"
    objects = sorted(path for folder in ROOT.glob(build) for path in folder.rglob("*.o"))
    nm = shutil.which("nm")
    if not objects or not nm:
        pytest.skip("needs nm and the object files of a build in build/")
    shared = subprocess.run([nm, "-C", *objects], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^\S+ [VWu] .*", shared, re.MULTILINE) == []
