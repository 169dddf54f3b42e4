# SPDX-License-Identifier: AGPL-3.0-or-later
"""The TensorRT plugins without a GPU: the library, its creators in TensorRT's lean runtime, fields, serialisation.

Their enqueue() runs in tests/simt/test_enqueue.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastyolo
from fastyolo.integrations import tensorrt

HERE = Path(__file__).parent
NAMES = {
    "FastYoloBatchedNMS",
    "FastYoloDFLDecode",
    "FastYoloDWSPPF",
    "FastYoloDecodeNMS",
    "FastYoloECA",
    "FastYoloSPPF",
}
STRIDES = {"strides": np.array([8, 16, 32], np.float32)}


def header_folders() -> dict[Path, int]:
    """The folders of TensorRT's headers, of those where cmake/tensorrt.cmake looks, and their major versions."""
    spec = importlib.util.find_spec("kernel_lens")
    folders = [
        *filter(None, [os.environ.get("TENSORRT_INCLUDE_DIR")]),
        *(f"/usr/{folder}/include" for folder in ("local/tensorrt", "src/tensorrt")),
        "/opt/tensorrt/include",
        "/usr/include",
        f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}",
        *(f"{folder}/include/tensorrt" for folder in (spec and spec.submodule_search_locations) or []),
    ]
    found = {}
    for file in (Path(folder) / "NvInferVersion.h" for folder in folders):
        text = file.read_text() if file.exists() else ""
        if major := re.search(r"#define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) (\d+)", text):
            found[file.parent] = int(major[1])
    return found


@pytest.fixture(scope="module")
def library() -> Path:
    """Built by the package; where its build would not have, and did not, the tests skip."""
    choice = os.environ.get("FASTYOLO_PLUGINS", "auto")
    try:
        return tensorrt.plugin_path()
    except ImportError:
        if choice == "off" or (choice == "auto" and not (shutil.which("nvcc") and header_folders())):
            pytest.skip("the plugins need nvcc and TensorRT's headers (kernel-lens) when the package is built")
        raise


@pytest.fixture(scope="module")
def lean(library: Path) -> ModuleType:
    """TensorRT's lean runtime, with the plugins in its registry."""
    module = pytest.importorskip("tensorrt_lean_bindings", reason="tensorrt-lean-cu13 is not installed")
    major, version = tensorrt.built_for(library), module.__version__
    if not version.startswith(f"{major}."):
        pytest.skip(f"the plugins are built for TensorRT {major}, and the lean runtime is {version}")
    tensorrt.load_plugins(module)
    return module


# ---- the library


def output_of(*command: object) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=60).stdout


def test_nothing_but_the_two_functions_is_exported(library: Path) -> None:
    symbols = [line.split()[-1] for line in output_of("nm", "-D", "--defined-only", library).splitlines()]
    major = tensorrt.built_for(library)
    functions = {f"{name}@@TENSORRT_{major}" for name in ("getCreators", "setLoggerFinder")}
    assert set(symbols) == functions | {f"TENSORRT_{major}"}


def test_neither_tensorrt_nor_the_cuda_runtime_is_linked(library: Path) -> None:
    needed = re.findall(r"NEEDED.*\[(.+)\]", output_of("readelf", "-d", library))
    assert needed
    assert [name for name in needed if re.match(r"libnvinfer|libcuda", name)] == []
    undefined = output_of("nm", "-D", "--undefined-only", library)
    assert not re.search(r"nvinfer|getPluginRegistry|createInfer", undefined)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("perhaps", "FASTYOLO_PLUGINS must be on, off or auto, not 'perhaps'."),
        ("on", "FASTYOLO_PLUGINS=on needs the CUDA kernels: put nvcc on PATH."),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, choice: str, message: str) -> None:
    if not shutil.which("cmake"):
        pytest.skip("cmake is not on PATH")
    settings = ["-DFASTYOLO_CUDA=off", f"-DFASTYOLO_PLUGINS={choice}"]
    done = subprocess.run(
        ["cmake", "-S", HERE.parent, "-B", tmp_path, *settings], capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())


def test_headers_without_cuda_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    if not shutil.which("cmake"):
        pytest.skip("cmake is not on PATH")
    settings = ["-DFASTYOLO_CUDA=off", "-DFASTYOLO_TORCH=off", f"-DTENSORRT_INCLUDE_DIR={tmp_path}"]
    done = subprocess.run(
        ["cmake", "-S", HERE.parent, "-B", tmp_path / "build", *settings], capture_output=True, text=True, timeout=120
    )
    assert "the TensorRT plugins are left out: they need the CUDA kernels" in " ".join(done.stderr.split())


# ---- in the lean runtime


def creators(module: ModuleType) -> dict[str, Any]:
    return {
        creator.name: creator
        for creator in module.get_plugin_registry().all_creators
        if creator.name.startswith(tensorrt.PLUGIN_PREFIX)
    }


def create(module: ModuleType, plugin: str, fields: dict[str, np.ndarray | str]) -> Any:
    """None where the plugin refuses the fields."""
    types = {"int32": "INT32", "float32": "FLOAT32", "float64": "FLOAT64", "int8": "CHAR"}
    collection = []
    for name, value in fields.items():
        array = np.frombuffer(value.encode(), np.int8) if isinstance(value, str) else value
        kind = getattr(module.PluginFieldType, types[array.dtype.name])
        collection.append(module.PluginField(name, array, kind))
    creator = creators(module)[plugin]
    return creator.create_plugin("layer", module.PluginFieldCollection(collection), module.TensorRTPhase.BUILD)


def test_six_creators_are_listed(lean: ModuleType) -> None:
    found = creators(lean)
    assert set(found) == NAMES
    assert {(creator.plugin_version, creator.plugin_namespace) for creator in found.values()} == {("1", "")}


def test_loading_again_changes_nothing(lean: ModuleType) -> None:
    before = len(lean.get_plugin_registry().all_creators)
    tensorrt.load_plugins(lean)
    assert len(lean.get_plugin_registry().all_creators) == before


def test_fields_are_listed_with_their_types(lean: ModuleType) -> None:
    nms = ["score_threshold", "iou_threshold", "max_det", "max_candidates", "multi_label", "class_agnostic", "classes"]
    names = {name: [field.name for field in creator.field_names] for name, creator in creators(lean).items()}
    assert names == {
        "FastYoloBatchedNMS": nms,
        "FastYoloDFLDecode": [],
        "FastYoloDWSPPF": ["dilation", "activation"],
        "FastYoloDecodeNMS": ["strides", *nms],
        "FastYoloECA": [],
        "FastYoloSPPF": ["kernel_size"],
    }
    for field in creators(lean)["FastYoloDecodeNMS"].field_names:
        is_float = field.name in ("strides", "score_threshold", "iou_threshold")
        assert field.type == (lean.PluginFieldType.FLOAT32 if is_float else lean.PluginFieldType.INT32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("plugin", "fields"),
    [
        *((name, {}) for name in sorted(NAMES - {"FastYoloDecodeNMS"})),
        ("FastYoloDecodeNMS", STRIDES),
        ("FastYoloDecodeNMS", {**STRIDES, "score_threshold": floats(0.1), "max_det": ints(5), "classes": ints(0, 79)}),
        ("FastYoloBatchedNMS", {"iou_threshold": floats(0), "multi_label": ints(1), "class_agnostic": ints(1)}),
        ("FastYoloDWSPPF", {"dilation": ints(1), "activation": "silu"}),
        ("FastYoloDWSPPF", {"activation": "relu\0"}),
        ("FastYoloSPPF", {"kernel_size": ints(9)}),
    ],
)
def test_a_plugin_is_created_from_fields(lean: ModuleType, plugin: str, fields: dict[str, np.ndarray | str]) -> None:
    created = create(lean, plugin, fields)
    core = created.get_capability_interface(lean.PluginCapabilityType.CORE)
    assert (core.plugin_name, core.plugin_version, core.plugin_namespace) == (plugin, "1", "")


@pytest.mark.parametrize(
    ("plugin", "fields", "message"),
    [
        ("FastYoloDecodeNMS", {}, r"field strides must hold 1 to 8 numbers, one per level, got 0"),
        ("FastYoloDecodeNMS", {"strides": floats(*[8] * 9)}, r"field strides must hold 1 to 8 .*, got 9"),
        ("FastYoloDecodeNMS", {"strides": floats(8, -16)}, r"field strides\[1\] must be a positive number .*, got -16"),
        ("FastYoloDecodeNMS", {"strides": floats(np.nan)}, r"field strides\[0\] must be a positive number .*, got nan"),
        ("FastYoloDecodeNMS", {"strides": ints(8)}, r"field strides must be float32, got int32"),
        (
            "FastYoloDecodeNMS",
            {**STRIDES, "classes": ints(3, -1)},
            r"field classes\[1\] must be in \[0, 8192\), got -1",
        ),
        ("FastYoloBatchedNMS", {"score_threshold": floats(1.5)}, r"score_threshold must be in \[0, 1\], got 1.5"),
        ("FastYoloBatchedNMS", {"iou_threshold": np.array([0.5])}, r"field iou_threshold must be float32, got float64"),
        ("FastYoloBatchedNMS", {"max_det": ints(1, 2)}, r"field max_det must hold 1 element, got 2"),
        ("FastYoloBatchedNMS", {"max_det": ints(-1)}, r"max_det must be in \[0, 65536\], got -1"),
        ("FastYoloBatchedNMS", {"max_candidates": ints(0)}, r"max_candidates must be in \[1, 1048576\], got 0"),
        ("FastYoloBatchedNMS", {"multi_label": ints(2)}, r"field multi_label must be 0 or 1, got 2"),
        ("FastYoloDWSPPF", {"activation": "gelu"}, r"activation must be identity, relu or silu, got gelu"),
        ("FastYoloDWSPPF", {"dilation": ints(3)}, r"dilation must be 1 or 2, got 3"),
        ("FastYoloSPPF", {"kernel_size": ints(4)}, r"kernel_size must be an odd number up to 15, got 4"),
        ("FastYoloECA", {"taps": ints(3)}, r"there is no field taps"),
    ],
)
def test_bad_fields_are_refused_with_a_message(
    lean: ModuleType,
    capfd: pytest.CaptureFixture[str],
    plugin: str,
    fields: dict[str, np.ndarray | str],
    message: str,
) -> None:
    assert create(lean, plugin, fields) is None
    assert re.fullmatch(f"{plugin}: {message}.*\n", capfd.readouterr().err)


# ---- what an engine does with a plugin


@pytest.fixture(scope="module")
def driver(library: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines that plugins_driver.cpp prints."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not on PATH")
    major = tensorrt.built_for(library)
    if major < 10:
        pytest.skip(f"the plugins are built for TensorRT {major}, which has no IPluginV3")
    headers = next((folder for folder, version in header_folders().items() if version == major), None)
    if not headers:
        pytest.skip(f"the plugins are built for TensorRT {major}: name its headers in TENSORRT_INCLUDE_DIR")
    cuda = re.search(
        r'INCLUDES="-I(\S+?)"',
        subprocess.run(["nvcc", "-dryrun", "nothing.cu"], capture_output=True, text=True, check=False).stderr,
    )
    assert cuda
    program = tmp_path_factory.mktemp("driver") / "driver"
    folders = ["-isystem", headers, "-isystem", cuda[1]]
    output_of("g++", "-std=c++17", "-rdynamic", *folders, HERE / "plugins_driver.cpp", "-ldl", "-o", program)
    return output_of(program, library).splitlines()


def test_a_plugin_survives_serialisation_and_cloning(driver: list[str]) -> None:
    nms = "iou_threshold=0.7, max_det={}, max_candidates=30000, multi_label=0, class_agnostic={},"
    expected = {
        "FastYoloBatchedNMS:": " score_threshold=0.25, " + nms.format(300, 1),
        "FastYoloDecodeNMS:": " strides=8,16,32.5, score_threshold=0.125, " + nms.format(5, 0) + " classes=0,79,",
        "FastYoloDFLDecode:": "",
        "FastYoloDWSPPF:": " dilation=2, activation=silu",
        "FastYoloECA:": "",
        "FastYoloSPPF:": " kernel_size=7,",
    }
    for name, fields in expected.items():
        assert name + fields in driver
        assert f"clone {name}{fields}" in driver
        timing = f"timing {name} {fastyolo.__version__}{fields}".replace("=0.7,", "=0.699999988,")  # all digits
        assert timing in driver
        assert f"clone {timing}" in driver


def test_errors_go_to_the_logger_if_there_is_one(driver: list[str]) -> None:
    severity = 1  # kERROR
    assert f"log {severity} FastYoloBatchedNMS: there is no field nonsense; see getFieldNames()" in driver
    assert "refused 1" in driver


def test_a_program_with_another_tensorrt_gets_no_creators(driver: list[str]) -> None:
    assert driver[-1] == "creators for the next TensorRT 0"


# ---- load_plugins, build_engine, trtexec_command


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has loaded nothing."""
    monkeypatch.setattr(tensorrt, "_loaded", set())


def test_a_library_that_is_not_built_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tensorrt, "_C", SimpleNamespace(__file__=str(tmp_path / "_C.so")))
    with pytest.raises(ImportError, match=r"plugins are not built: .* with: FASTYOLO_PLUGINS=on pip install"):
        tensorrt.plugin_path()


@pytest.mark.usefixtures("fresh")
def test_a_library_for_another_tensorrt_is_not_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "libfastyolo_plugins.so"
    path.write_bytes(b"\x7fELF\0TENSORRT_8\0")
    monkeypatch.setattr(tensorrt, "plugin_path", lambda: path)
    other = ModuleType("tensorrt")
    other.__version__ = "11.1.0.106"
    with pytest.raises(ImportError, match=r"built for TensorRT 8, and tensorrt is 11\.1.* headers of TensorRT 11"):
        tensorrt.load_plugins(other)
    path.write_bytes(b"\x7fELF")
    with pytest.raises(ValueError, match=r"is not a plugin library of fastyolo"):
        tensorrt.load_plugins(other)


@pytest.mark.usefixtures("fresh")
def test_no_tensorrt_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        ImportError, match=r"TensorRT's Python package cannot be imported .* 'pip install tensorrt-cu13'"
    ):
        tensorrt.load_plugins()
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")
    with pytest.raises(ImportError, match="cannot be imported"):
        tensorrt.build_engine(model, tmp_path / "model.engine")
    assert not (tmp_path / "model.engine").exists()


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("8.5.2", "--fp16 --int8 --memPoolSize=workspace:1536 --plugins=p.so"),
        ("8.6.1", "--fp16 --int8 --memPoolSize=workspace:1536 --dynamicPlugins=p.so"),
        ("10.3.0", "--fp16 --int8 --memPoolSize=workspace:1536 --dynamicPlugins=p.so"),
        ("10.14.1.48", "--stronglyTyped --memPoolSize=workspace:1536 --dynamicPlugins=p.so"),
        ("11.1.0.106", "--memPoolSize=workspace:1536 --dynamicPlugins=p.so"),
    ],
)
def test_trtexec_command(version: str, options: str) -> None:
    command = tensorrt.trtexec_command(
        "m.onnx", "my engine", version=version, half=True, int8=True, workspace=1.5, plugins="p.so"
    )
    assert command == f"trtexec --onnx=m.onnx '--saveEngine=my engine' {options}"


def test_trtexec_command_of_free_sizes_and_plugin_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"..\x22\x11FastYoloDecodeNMS..")  # a node's op_type
    monkeypatch.setattr(tensorrt, "plugin_path", lambda: Path("plugins.so"))
    profiles = {"images": ((1, 3, 320, 320), (1, 3, 640, 640), (4, 3, 640, 640)), "thresholds": ((2,), (2,), (2,))}
    command = tensorrt.trtexec_command(model, "m.engine", version="11", timing_cache="m.cache", profiles=profiles)
    assert command == (
        f"trtexec --onnx={model} --saveEngine=m.engine --timingCacheFile=m.cache --dynamicPlugins=plugins.so "
        "--minShapes=images:1x3x320x320,thresholds:2 --optShapes=images:1x3x640x640,thresholds:2 "
        "--maxShapes=images:4x3x640x640,thresholds:2"
    )
