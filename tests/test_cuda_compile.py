# SPDX-License-Identifier: AGPL-3.0-or-later
"""What nvcc says of every CUDA kernel on an architecture of each generation: no warning, no spill, no local memory."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "csrc" / "kernels").glob("*.cu"))
NVCC = shutil.which("nvcc")

# "ptxas info    : Function properties for _ZN..."; on the next line what must be zero, on the one after it the rest.
PROPERTIES = re.compile(
    r"Function properties for (?P<name>\S+)\n"
    r"\s+(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r"(\n.*: (?P<used>Used \d+ registers.*))?"
)
DYNAMIC = re.compile(r'launch_shared\("(?P<name>\w+)"')  # the kernels that take dynamic shared memory


def architectures() -> list[str]:
    """The default of CMAKE_CUDA_ARCHITECTURES: "75-real 80-real ..." -> ["75", "80", ...]."""
    settings = (ROOT / "cmake" / "cuda.cmake").read_text()
    default = re.search(r"set\(CMAKE_CUDA_ARCHITECTURES ([^)]*-real[^)]*)\)", settings)
    assert default
    return re.findall(r"\d+", default[1])


def generations() -> list[str]:
    """The first architecture of each major version, which the others of it have the instructions of."""
    first: dict[int, str] = {}
    for architecture in architectures():
        first.setdefault(int(architecture) // 10, architecture)
    return list(first.values())


def report(source: Path, architecture: str, folder: Path) -> str:
    """The compiler's words on one source. Device code alone: the host's is compiled by the build."""
    options = ["-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas=-v", "-Wno-deprecated-gpu-targets"]
    command = [NVCC, *options, "-cubin", source, "-o", folder / f"{source.stem}.cubin"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{source.name} does not compile for {architecture}:\n{output}"
    return output


def faults(output: str) -> list[str]:
    """Warnings, and our kernels that use memory where they should not; CUB's own are not ours to judge.

    What a kernel with dynamic shared memory has of its own counts towards the 48 KB that need no asking, which
    launch_shared() does not know of.
    """
    dynamic = [f"{len(name)}{name}" for source in SOURCES for name in DYNAMIC.findall(source.read_text())]
    found = [line for line in output.splitlines() if re.search(r"\bwarning\b", line)]
    for kernel in PROPERTIES.finditer(output):
        numbers = [int(kernel[group]) for group in ("stack", "stores", "loads")]
        if "fastyolo" in kernel["name"] and any(numbers):
            found.append("{}: stack frame {}, spill stores {}, spill loads {} bytes".format(kernel["name"], *numbers))
        if any(name in kernel["name"] for name in dynamic) and "bytes smem" in kernel["used"]:
            found.append(f"{kernel['name']}: shared memory beside what it is launched with: {kernel['used']}")
    return found


def test_the_report_is_understood():
    """A test that reads a report must fail when the report says so, and when it is worded in another way."""
    good = (
        "ptxas info    : Compiling entry function '_ZN8fastyolo1kEv' for 'sm_90'\n"
        "ptxas info    : Function properties for _ZN8fastyolo1kEv\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 8 registers, used 0 barriers\n"
    )
    assert not faults(good)
    assert faults(good.replace("0 bytes stack frame", "24 bytes stack frame"))
    assert faults(good.replace("0 bytes spill loads", "8 bytes spill loads"))
    assert faults(good + "k.cu(3): warning #177-D: variable declared but never referenced\n")
    resident = good.replace("1kEv", "19eca_resident_kernelEv")
    assert not faults(resident)
    assert faults(resident.replace("0 barriers", "1 barriers, 2176 bytes smem"))
    assert {"80", "90"} <= set(generations()) < set(architectures())
    assert SOURCES


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("architecture", generations())
def test_kernels_need_no_local_memory(architecture, tmp_path):
    with ThreadPoolExecutor(max_workers=2) as pool:
        outputs = list(pool.map(lambda source: report(source, architecture, tmp_path), SOURCES))
    for source, output in zip(SOURCES, outputs, strict=True):
        names = [kernel["name"] for kernel in PROPERTIES.finditer(output)]
        assert any("fastyolo" in name for name in names), f"no kernel in the report on {source.name}:\n{output}"
        assert output.count("Compiling entry function") == len(names)
        assert not faults(output), f"{source.name} for {architecture}:\n" + "\n".join(faults(output))
