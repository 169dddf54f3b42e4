# SPDX-License-Identifier: AGPL-3.0-or-later
"""Exported models: what they compute beside torch, what they hold, what they say of themselves, and what is refused."""

from __future__ import annotations

import copy
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxslim")
pytest.importorskip("ultralytics")

import cv2
import onnx
import onnxruntime as ort
import yaml
from detectors import NAMES, detector, set_statistics
from onnx import TensorProto, helper
from typer.testing import CliRunner
from ultralytics import YOLO
from ultralytics.utils import ASSETS

import fastyolo.export
from fastyolo.cli import app
from fastyolo.export import engine, export, folders, graph
from fastyolo.integrations import tensorrt
from fastyolo.integrations.ultralytics import export as converting
from fastyolo.integrations.ultralytics.acceleration import HeadTap
from fastyolo.ops import decode_nms, multiclass_nms
from fastyolo.runtime.metadata import Metadata, Nms, output_names

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = ("yolov8n", "yolo11n", "yolov8n-fast")
SIZE = 64
BUS = str(ASSETS / "bus.jpg")


def untrained(name: str) -> YOLO:
    """A detector of random weights, normalised on a batch so that its maps are those of a trained one in size."""
    model = YOLO(f"{name}.yaml")
    model.model = detector(name, width=0.25)
    set_statistics(model.model, {"img": torch.from_numpy(noise(4, 128, 128))})
    model.model.task = "detect"
    head = model.model.eval().model[-1]
    for branch in (*head.cv2, *head.cv3):
        branch[-1].weight.data *= 0.3
    return model


@pytest.fixture(scope="module")
def models() -> Callable[[str], YOLO]:
    made: dict[str, YOLO] = {}
    return lambda name: made.get(name) or made.setdefault(name, untrained(name))


@pytest.fixture(scope="module")
def files(models: Callable[[str], YOLO], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Maps of each model, exported once, static or dynamic."""
    folder = tmp_path_factory.mktemp("onnx")

    def file(name: str, dynamic: bool) -> Path:
        path = folder / f"{name}-{dynamic}.onnx"
        return path if path.exists() else export(models(name), imgsz=SIZE, dynamic=dynamic, path=path)

    return file


def run(path: Path | onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    source = str(path) if isinstance(path, Path) else path.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, inputs)


def noise(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((batch, 3, height, width), np.float32)


def torch_maps(model: YOLO, images: np.ndarray) -> tuple[list[torch.Tensor], list[torch.Tensor], list[float]]:
    with torch.inference_mode(), HeadTap(model.model.model[-1]) as tap:
        maps = model.model(torch.from_numpy(images))
    return maps.box_maps, maps.cls_maps, tap.strides


def read(path: Path) -> tuple[Metadata, dict[str, str]]:
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return Metadata.read(properties, path.name), properties


def plugin_nodes(path: Path) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in onnx.load(path).graph.node:
        if node.domain:
            found.setdefault(node.op_type, []).append(node)
    return found


def fields(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("dynamic", "shapes"),
    [(False, [(1, SIZE, SIZE)]), (True, [(1, 32, 32), (3, SIZE, SIZE), (3, 96, 128)])],
    ids=["static", "dynamic"],
)
def test_maps_are_those_of_torch(models, files, name, dynamic, shapes):
    for shape in shapes:
        images = noise(*shape)
        box_maps, cls_maps, _ = torch_maps(models(name), images)
        got = run(files(name, dynamic), images=images)
        for map_, expected in zip(got, [*box_maps, *cls_maps], strict=True):
            largest = expected.abs().max().item()
            assert expected.std() > 0.01  # not all bias
            np.testing.assert_allclose(map_, expected.numpy(), atol=1e-4 * max(1.0, largest), rtol=0)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_portable_graph_is_clean(files, name, dynamic):
    model = onnx.load(files(name, dynamic))
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    known = {value.name for value in [*inferred.graph.value_info, *inferred.graph.output]}
    assert known >= {name for node in model.graph.node for name in node.output}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert {opset.domain for opset in model.opset_import} == {""}
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"BatchNormalization", "Identity", "Cast"}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert {"/model.0/conv/Conv", "/model.2/cv1/conv/Conv"} <= {node.name for node in model.graph.node}


def test_a_static_graph_has_no_arithmetic_of_sizes(files):
    for name in MODELS:
        operators = {node.op_type for node in onnx.load(files(name, False)).graph.node}
        assert not operators & {"Shape", "Gather", "Slice", "Range", "ConstantOfShape"}, name


@pytest.mark.parametrize("dynamic", [False, True])
def test_metadata_makes_the_round_trip(files, dynamic):
    metadata, properties = read(files("yolov8n", dynamic))
    assert metadata == Metadata("maps", NAMES, (SIZE, SIZE), max_stride=32, strides=(8, 16, 32), reg_max=16)
    assert properties["task"] == "detect"
    assert properties["names"] == str(dict(enumerate(NAMES)))
    assert f"'dynamic': {dynamic}" in properties["args"]
    model = onnx.load(files("yolov8n", dynamic))
    assert [output.name for output in model.graph.output] == output_names("maps", 3)
    shape = [size.dim_param or size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == (["batch", 3, "height", "width"] if dynamic else [1, 3, SIZE, SIZE])


def test_ultralytics_reads_boxes(models, tmp_path):
    model = models("yolov8n")
    for branch in model.model.model[-1].cv3:
        torch.nn.init.constant_(branch[-1].bias, -1.0)  # so that something is found
    path = export(model, outputs="boxes", imgsz=(96, SIZE), path=tmp_path / "model.onnx")
    settings = {"imgsz": (96, SIZE), "rect": False, "verbose": False, "device": "cpu", "conf": 0.3}
    ours = YOLO(path, task="detect").predict(BUS, **settings)[0].boxes.data
    theirs = model.predict(BUS, **settings)[0].boxes.data
    assert len(theirs) > 3
    assert len(ours) == len(theirs)
    distances = torch.cdist(theirs, ours, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.amin(1).max() < 0.05  # in any order, since scores of this model are close


# Non-maximum suppression in standard operators, by itself


def candidates(batch: int, anchors: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that overlap in heaps, and logits with ties."""
    random = np.random.default_rng(1)
    centres, sizes = random.integers(0, 6, (batch, anchors, 2)) * 20, random.uniform(15, 30, (batch, anchors, 2))
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], 2)
    logits = np.round(random.normal(-1, 2, (batch, classes, anchors)), 1)
    return boxes.astype(np.float32), logits.astype(np.float32)


def suppressor(nms: Nms, batch: int | str, anchors: int | str, classes: int) -> onnx.ModelProto:
    """A model of nothing but suppression."""
    shapes = {"candidate_boxes": (batch, anchors, 4), "candidate_logits": (batch, classes, anchors)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    inputs = [helper.make_tensor_value_info(f"{v.name}_in", TensorProto.FLOAT, shapes[v.name]) for v in values]
    nodes = [helper.make_node("Identity", [i.name], [v.name]) for i, v in zip(inputs, values, strict=True)]
    model = helper.make_model(
        helper.make_graph(nodes, "candidates", inputs, values),
        opset_imports=[helper.make_opsetid("", graph.OPSET)],
        ir_version=8,
    )
    graph.append_nms(model, nms)
    graph.finish(model, {}, portable=True)
    return model


SETTINGS = {
    "best class": {},
    "many": {"score_threshold": 0.001, "max_det": 400},
    "more rows than candidates": {"max_det": 1000},
    "few candidates": {"score_threshold": 0.01, "max_candidates": 40},
    "nothing": {"score_threshold": 1.0},
    "everything": {"score_threshold": 0.0, "iou_threshold": 1.0, "max_det": 700},
    "multi label": {"score_threshold": 0.01, "multi_label": True},
    "multi label, few candidates": {"score_threshold": 0.01, "multi_label": True, "max_candidates": 100},
    "across classes": {"class_agnostic": True},
}


@pytest.mark.parametrize("free", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_suppression_is_that_of_the_operator(changes, free):
    nms = Nms(**{**vars(Nms(0.25, 0.5, 50, 30000, False, False)), **changes})
    batch, anchors, classes = 2, 200, 3
    boxes, logits = candidates(batch, anchors, classes)
    model = suppressor(nms, *(("batch", "anchors") if free else (batch, anchors)), classes)
    found = run(model, candidate_boxes_in=boxes, candidate_logits_in=logits)
    scores = torch.from_numpy(logits).sigmoid()
    expected = multiclass_nms(torch.from_numpy(boxes), scores, **vars(nms))
    assert expected.num_dets.min() > 0 or nms.score_threshold == 1.0
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.numpy().dtype
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


def test_suppression_refuses_several_classes_across_classes():
    nms = Nms(0.25, 0.5, 50, 30000, True, True)
    with pytest.raises(ValueError, match="multi_label cannot be combined with agnostic_nms"):
        suppressor(nms, 1, 10, 2)


@pytest.mark.data
@pytest.mark.parametrize("multi_label", [False, True])
def test_detections_of_photographs_are_those_of_the_operator(data, tmp_path, multi_label):
    weights = data / "weights" / "yolov8n-recovered.pt"
    settings = {"conf": 0.01, "multi_label": multi_label}
    path = export(weights, outputs="detections", imgsz=160, dynamic=True, path=tmp_path / "a.onnx", **settings)
    metadata, _ = read(path)
    assert metadata.nms == Nms(0.01, 0.7, 300, 30000, multi_label, False)
    files = sorted((data / "coco128-val" / "images").glob("*.jpg"))[:8]
    pixels = np.stack([cv2.resize(cv2.imread(str(file)), (192, 160))[..., ::-1] for file in files])
    images = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    found = run(path, images=images)
    expected = decode_nms(*torch_maps(YOLO(weights), images), **vars(metadata.nms))
    assert expected.num_dets.sum() > 20
    np.testing.assert_array_equal(found[0], expected.num_dets)
    np.testing.assert_allclose(found[2], expected.scores, atol=1e-4)
    for image, count in enumerate(found[0]):
        rows = [
            np.column_stack([boxes[image], labels[image], indices[image]])[:count]
            for boxes, labels, indices in ((found[1], *found[3:]), (expected.boxes, *expected[3:]))
        ]
        ours, theirs = (array[np.lexsort(array[:, 4:].T)] for array in rows)  # scores may be close
        np.testing.assert_allclose(ours, theirs, atol=0.01)


# TensorRT


def test_the_suppression_plugin_has_all_its_fields(models, tmp_path):
    settings = {"conf": 0.3, "iou": 0.6, "max_det": 20, "multi_label": True}
    path = export(models("yolov8n"), "tensorrt-onnx", imgsz=SIZE, dynamic=True, path=tmp_path / "a.onnx", **settings)
    ((node,),) = plugin_nodes(path).values()
    assert (node.op_type, node.domain) == ("FastYoloDecodeNMS", "fastyolo")
    assert list(node.input) == output_names("maps", 3)
    assert list(node.output) == output_names("detections", 3)
    assert fields(node) == {
        "plugin_version": b"1",
        "plugin_namespace": b"",
        "strides": [8.0, 16.0, 32.0],
        "score_threshold": pytest.approx(0.3),
        "iou_threshold": pytest.approx(0.6),
        "max_det": 20,
        "max_candidates": 30000,
        "multi_label": 1,
        "class_agnostic": 0,
    }
    kinds = {field.name: field.type for field in node.attribute}
    assert kinds["strides"] == onnx.AttributeProto.FLOATS
    assert kinds["score_threshold"] == onnx.AttributeProto.FLOAT
    model = onnx.load(path)
    assert ("fastyolo", 1) in {(opset.domain, opset.version) for opset in model.opset_import}
    shapes = [[size.dim_param or size.dim_value for size in o.type.tensor_type.shape.dim] for o in model.graph.output]
    assert shapes == [["batch"], ["batch", 20, 4], ["batch", 20], ["batch", 20], ["batch", 20]]
    assert read(path)[0].nms == Nms(0.3, 0.6, 20, 30000, True, False)


@pytest.mark.parametrize("half", [False, True])
def test_modules_become_plugins(models, tmp_path, half):
    path = export(
        models("yolov8n-fast"),
        "tensorrt-onnx",
        outputs="detections",
        imgsz=SIZE,
        half=half,
        plugins=["eca", "dw_sppf"],
        runtime_thresholds=True,
        path=tmp_path / "a.onnx",
    )
    nodes = plugin_nodes(path)
    constants = {tensor.name: list(tensor.dims) for tensor in onnx.load(path).graph.initializer}
    assert {name: len(found) for name, found in nodes.items()} == {
        "FastYoloECA": 8,
        "FastYoloDWSPPF": 1,
        "FastYoloDecodeNMS": 1,
    }
    fixed = {"plugin_version": b"1", "plugin_namespace": b""}
    for node in nodes["FastYoloECA"]:
        assert fields(node) == fixed
        assert len(constants[node.input[1]]) == 1
    (block,) = nodes["FastYoloDWSPPF"]
    assert block.name == "/model.9/FastYoloDWSPPF"
    assert fields(block) == {**fixed, "dilation": 2, "activation": b"silu"}
    channels = constants[block.input[1]][1]
    assert [constants[name] for name in block.input[1:]] == [[3, channels, 3, 3], [3, channels]]
    assert nodes["FastYoloDecodeNMS"][0].input[-1] == "thresholds"
    thresholds = onnx.load(path).graph.input[1]
    assert (thresholds.name, thresholds.type.tensor_type.elem_type) == ("thresholds", TensorProto.FLOAT)


def test_a_stock_sppf_becomes_a_plugin_and_the_model_stays(models, tmp_path):
    model = models("yolov8n")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    path = export(
        model, "tensorrt-onnx", outputs="maps", imgsz=SIZE, half=True, plugins=["sppf_pool"], path=tmp_path / "a.onnx"
    )
    ((node,),) = plugin_nodes(path).values()
    assert (node.op_type, node.name) == ("FastYoloSPPF", "/model.9/FastYoloSPPF")
    assert fields(node) == {"plugin_version": b"1", "plugin_namespace": b"", "kernel_size": 5}
    assert not [node for node in onnx.load(path).graph.node if node.op_type == "MaxPool"]
    after = model.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_an_engine_is_built_from_the_file_beside_it(models, tmp_path, monkeypatch):
    calls: list[tuple[Any, Any]] = []
    monkeypatch.setattr(tensorrt, "build_engine", lambda *paths, **settings: calls.append((paths, settings)))
    target, cache = tmp_path / "small.engine", tmp_path / "timing.cache"
    settings = {"imgsz": (64, 96), "batch": 4, "dynamic": True, "workspace": 2.0, "timing_cache": cache}
    assert export(models("yolov8n"), "engine", path=target, **settings) == target
    (((file, engine), given),) = calls
    assert (file, engine) == (tmp_path / "small-tensorrt.onnx", target)
    assert list(plugin_nodes(file)) == ["FastYoloDecodeNMS"]
    properties = given.pop("metadata")
    assert Metadata.read(properties, "engine") == read(file)[0]
    assert given == {
        "half": False,
        "workspace": 2.0,
        "timing_cache": cache,
        "profiles": {"images": ((1, 3, 32, 32), (4, 3, 64, 96), (4, 3, 64, 96))},
    }


# Float16


@pytest.mark.parametrize("dynamic", [False, True])
def test_half_keeps_input_and_outputs(models, tmp_path, dynamic):
    model = models("yolov8n")
    path = export(model, outputs="boxes", imgsz=SIZE, half=True, dynamic=dynamic, path=tmp_path / "a.onnx")
    document = onnx.load(path)
    kinds = {v.type.tensor_type.elem_type for v in [*document.graph.input, *document.graph.output]}
    assert kinds == {TensorProto.FLOAT}
    weights = [tensor for tensor in document.graph.initializer if tensor.name.endswith(".weight")]
    assert {tensor.data_type for tensor in weights if ".dfl." not in tensor.name} == {TensorProto.FLOAT16}
    images = noise(1, SIZE, SIZE)
    with torch.inference_mode():
        expected = model.model(torch.from_numpy(images))[0].numpy()
    (got,) = run(path, images=images)
    np.testing.assert_allclose(got[:, :4], expected[:, :4], atol=0.3)
    np.testing.assert_allclose(got[:, 4:], expected[:, 4:], atol=0.01)


# OpenVINO and NCNN


@pytest.mark.parametrize("kind", ["openvino", "ncnn"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ultralytics_exporters_write_checked_folders(models, tmp_path, monkeypatch, kind):
    pytest.importorskip(kind)
    pytest.importorskip("pnnx" if kind == "ncnn" else kind)
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "debug.bin"
    mine.write_text("not to be deleted")
    target = tmp_path / "out" / f"small_{kind}_model"
    target.mkdir(parents=True)
    left_over = {"openvino": "model.bin", "ncnn": "model_ncnn.py"}[kind]
    for name in ("metadata.yaml", left_over):
        (target / name).touch()
    assert export(models("yolov8n-fast"), kind, imgsz=SIZE, path=target) == target
    files = fastyolo.export._FILES[kind] - {"model_ncnn.py"}
    assert {path.name for path in target.iterdir()} == files
    assert all(path.stat().st_size for path in target.iterdir())
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["debug.bin", "out"]
    document = yaml.safe_load((target / "metadata.yaml").read_text())
    assert document["task"] == "detect"
    assert Metadata.read(document, target.name) == Metadata(
        "boxes", NAMES, (SIZE, SIZE), max_stride=32, strides=(8, 16, 32), reg_max=16
    )


def test_a_folder_that_computes_something_else_is_not_written(models, tmp_path, monkeypatch):
    monkeypatch.setattr(fastyolo.export, "_require_packages", lambda _: None)
    monkeypatch.setattr(converting, "Exporter", FakeExporter)
    monkeypatch.setitem(converting._RUNS, "ncnn", lambda folder, images: np.zeros((1, 7, 84), np.float32))
    with pytest.raises(RuntimeError, match="does not compute what torch does: on a picture, scores differ by"):
        export(models("yolov8n"), "ncnn", imgsz=SIZE, path=tmp_path / "a_ncnn_model")
    assert list(tmp_path.iterdir()) == []


def folder_of(path: Path, text: str) -> Path:
    path.mkdir()
    for name in ("metadata.yaml", "model.xml"):
        (path / name).write_text(text)
    return path


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "steps"])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    new, target = folder_of(tmp_path / "new", "new"), folder_of(tmp_path / "target", "old")
    folders.put(new, target)
    assert set(contents(target).values()) == {"new"}
    assert set(contents(new).values()) == {"old"}
    folders.put(new, tmp_path / "free")
    assert set(contents(tmp_path / "free").values()) == {"old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["free", "target"]


def test_a_folder_takes_the_place_of_a_link(tmp_path):
    new, old = folder_of(tmp_path / "new", "new"), folder_of(tmp_path / "old", "old")
    (tmp_path / "target").symlink_to(old)
    folders.put(new, tmp_path / "target")
    assert set(contents(tmp_path / "target").values()) == {"new"}
    assert not (tmp_path / "target").is_symlink()
    assert set(contents(old).values()) == {"old"}


def test_two_folders_are_exchanged_in_one_step(tmp_path):
    a, b = folder_of(tmp_path / "a", "a"), folder_of(tmp_path / "b", "b")
    if not folders._exchange(a, b):
        pytest.skip("this file system cannot exchange two names")
    assert set(contents(a).values()) == {"b"}
    with pytest.raises(FileNotFoundError, match="absent"):
        folders._exchange(a, tmp_path / "absent")


@pytest.mark.parametrize("race", [False, True], ids=["failure", "another export"])
def test_a_folder_that_cannot_be_replaced_is_kept(tmp_path, monkeypatch, race):
    new, target = folder_of(tmp_path / "new", "new"), folder_of(tmp_path / "target", "old")
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    rename, calls = Path.rename, []

    def fail(self: Path, other: Path) -> Path:
        if self == new:
            calls.append(other)
            if len(calls) == 2:  # the old folder has made way
                if race:
                    folder_of(target, "of another process")
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    message = r"was written by another process meanwhile; what was there before is .*\.target" if race else "error"
    with pytest.raises(OSError, match=message):
        folders.put(new, target)
    assert set(contents(target).values()) == {"of another process" if race else "old"}
    if race:
        (kept,) = tmp_path.glob(".target.*")
        assert set(contents(kept).values()) == {"old"}


@pytest.mark.parametrize("late", [False, True], ids=["before", "meanwhile"])
def test_a_folder_with_files_of_others_is_not_replaced(models, tmp_path, monkeypatch, late):
    target = folder_of(tmp_path / "a_openvino_model", "old")
    notes = target / "notes.txt"

    def check(*_: Any) -> None:
        assert late, "exported all the same"
        notes.write_text("mine")

    monkeypatch.setattr(fastyolo.export, "_require_packages", lambda _: None)
    monkeypatch.setattr(converting, "Exporter", FakeExporter)
    monkeypatch.setattr(converting, "_check", check)
    if not late:
        notes.write_text("mine")
    with pytest.raises(FileExistsError, match=r"it holds 'notes.txt', which the exporter did not write"):
        export(models("yolov8n"), "openvino", imgsz=SIZE, path=target)
    assert contents(tmp_path) == {
        f"{target.name}/{name}": text
        for name, text in {"metadata.yaml": "old", "model.xml": "old", "notes.txt": "mine"}.items()
    }


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt: also in the background, where Python does not see to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_the_exporter(models, tmp_path, monkeypatch):
    done = []

    class Interrupted(FakeExporter):
        def __call__(self, model: torch.nn.Module) -> str:
            signal.raise_signal(signal.SIGINT)
            done.append(super().__call__(model))
            return done[0]

    monkeypatch.setattr(fastyolo.export, "_require_packages", lambda _: None)
    monkeypatch.setattr(converting, "Exporter", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(models("yolov8n"), "openvino", imgsz=SIZE, path=tmp_path / "a_openvino_model")
    assert done
    assert list(tmp_path.iterdir()) == []


class FakeExporter:
    """What ultralytics' leaves behind, without a model."""

    def __init__(self, overrides: dict[str, Any]) -> None:
        self.format = overrides["format"]

    def __call__(self, model: torch.nn.Module) -> str:
        folder = Path(model.pt_path).with_name(f"model_{self.format}_model")
        folder.mkdir()
        (folder / "metadata.yaml").write_text("task: detect\n")
        return str(folder)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "tflite"}, "format must be one of onnx, tensorrt-onnx, engine, openvino, ncnn, got 'tflite'"),
        ({"outputs": "masks"}, "outputs must be maps or boxes or detections for format 'onnx', got 'masks'"),
        ({"format": "openvino", "outputs": "maps"}, "outputs must be boxes for format 'openvino', got 'maps'"),
        ({"format": "ncnn", "dynamic": True}, "dynamic and batch are not for format 'ncnn'"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"imgsz": (64, 64, 64)}, "imgsz must be a side or a height and a width"),
        ({"outputs": "detections", "conf": 1.5}, r"conf must be in \[0, 1\], got 1.5"),
        ({"outputs": "detections", "max_det": 0}, r"max_det must be in \[1, 65536\], got 0"),
        ({"plugins": ["eca"]}, "plugins is for the formats tensorrt-onnx and engine, got format 'onnx'"),
        ({"format": "engine", "plugins": ["nms"]}, "plugins must be of eca, dw_sppf, sppf_pool, got 'nms'"),
        ({"format": "tensorrt-onnx", "plugins": ["eca"]}, "no module that 'eca' could stand for"),
        ({"runtime_thresholds": True}, "runtime_thresholds is for the formats tensorrt-onnx and engine"),
        ({"conf": 0.25}, "conf is for outputs 'detections', got 'maps'; leave it out"),
        ({"iou": 0.7, "outputs": "boxes"}, "iou is for outputs 'detections', got 'boxes'; leave it out"),
        ({"max_det": 300, "format": "openvino"}, "max_det is for outputs 'detections', got 'boxes'; leave it out"),
        ({"multi_label": True}, "multi_label is for outputs 'detections', got 'maps'"),
        ({"agnostic_nms": True, "format": "engine", "outputs": "maps"}, "agnostic_nms is for outputs 'detections'"),
        ({"workspace": 2.0}, "workspace is for the format engine, got format 'onnx'; leave it out"),
        ({"timing_cache": "a", "format": "tensorrt-onnx"}, "timing_cache is for the format engine, got format 'tens"),
        ({"workspace": -1, "format": "engine"}, r"workspace must be in \[0, 1024\], got -1"),
        ({"path": "model.pt"}, "path must end in '.onnx' for format 'onnx', got 'model.pt'"),
    ],
)
def test_bad_arguments_are_named(models, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        export(models("yolov8n"), **{"imgsz": SIZE, **changes})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgsz": True}, "imgsz must be a side or a height and a width in pixels, got True"),
        ({"imgsz": 640.0}, "imgsz must be a side or a height and a width in pixels, got 640.0"),
        ({"imgsz": ("64", "64")}, "imgsz must be a side or a height and a width in pixels, got "),
        ({"batch": "2"}, "batch must be an integer, got '2'"),
        ({"dynamic": "no"}, "dynamic must be True or False, got 'no'"),
        ({"half": 1}, "half must be True or False, got 1"),
        ({"outputs": "detections", "conf": "low"}, r"conf must be a number in \[0, 1\], got 'low'"),
        ({"outputs": "detections", "iou": True}, r"iou must be a number in \[0, 1\], got True"),
        ({"outputs": "detections", "max_det": 1.5}, "max_det must be an integer, got 1.5"),
        ({"multi_label": 1}, "multi_label must be True or False, got 1"),
        ({"agnostic_nms": None}, "agnostic_nms must be True or False, got None"),
        ({"format": "engine", "plugins": "eca"}, "plugins must be a list of names, got 'eca'"),
        ({"format": "engine", "runtime_thresholds": 0.5}, "runtime_thresholds must be True or False, got 0.5"),
        ({"format": "engine", "workspace": "2"}, r"workspace must be a number in \[0, 1024\], got '2'"),
        ({"format": "engine", "timing_cache": True}, "timing_cache must be a path, got True"),
        ({"path": 3}, "path must be a path, got 3"),
    ],
)
def test_bad_types_are_named(models, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=message):
        export(models("yolov8n"), **{"imgsz": SIZE, **changes})
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_are_numbers(models, tmp_path):
    settings = {"imgsz": np.int64(SIZE), "outputs": "detections", "conf": np.float32(0.5), "max_det": np.int32(9)}
    metadata, _ = read(export(models("yolov8n"), path=tmp_path / "a.onnx", **settings))
    assert (metadata.imgsz, metadata.nms) == ((SIZE, SIZE), Nms(0.5, 0.7, 9, 30000, False, False))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"], ids=["empty", "text"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    file = tmp_path / "best.pt"
    file.write_bytes(content)
    sentence = r"^The file '\S+best.pt' cannot be read as a checkpoint of ultralytics \(\w+\); pass a .*\.$"
    with pytest.raises(ValueError, match=sentence):
        export(file)


def test_bad_models_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"weights must be a checkpoint \(.pt\), got 'yolov8n.yaml'; pass"):
        export("yolov8n.yaml")
    with pytest.raises(TypeError, match="weights must be a path or a YOLO object, got 8"):
        export(8)
    with pytest.raises(ValueError, match="must be a detection model, got one for the task 'segment'"):
        export(YOLO("yolov8n-seg.yaml"))
    end_to_end = YOLO("yolo26n.yaml")
    end_to_end.model.end2end = True
    end_to_end.model.eval().fuse(verbose=False)
    with pytest.raises(ValueError, match="its one-to-many branches were removed by fusion"):
        export(end_to_end)
    colours = YOLO("yolov8n.yaml")
    colours.model.yaml["channels"] = 4
    with pytest.raises(ValueError, match="images of 3 channels, got one for 4"):
        export(colours)
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ValueError, match=r"weights must be a checkpoint \(.pt\), got '.*a.onnx'"):
        export(tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError, match=r"absent.pt' is not on this machine"):
        export(tmp_path / "absent.pt")


def test_an_end_to_end_model_is_exported_with_its_other_branches(tmp_path):
    model = YOLO("yolo26n.yaml")
    model.model.end2end = True
    path = export(model, imgsz=SIZE, path=tmp_path / "a.onnx")
    assert read(path)[0].reg_max == 1
    assert model.model.end2end
    with_nms = copy.deepcopy(model.model)
    with_nms.end2end = False
    model.model = with_nms.eval()
    images = noise(1, SIZE, SIZE)
    box_maps, cls_maps, _ = torch_maps(model, images)
    for got, expected in zip(run(path, images=images), [*box_maps, *cls_maps], strict=True):
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)


def test_sizes_are_rounded_up_with_a_note(models, tmp_path):
    with pytest.warns(UserWarning, match="imgsz 50x70 becomes 64x96: sizes must be multiples of the stride 32"):
        path = export(models("yolov8n"), imgsz=(50, 70), path=tmp_path / "a.onnx")
    assert read(path)[0].imgsz == (64, 96)


def test_a_path_that_cannot_be_written_is_found_before_the_work(models, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "deployed", lambda _: pytest.fail("exported all the same"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be written .*; name another"):
        export(models("yolov8n"), path=tmp_path / "file" / "a.onnx")
    folder = tmp_path / "notes_openvino_model"
    folder.mkdir()
    with pytest.raises(OSError, match="it is a folder, and no exported model"):
        export(models("yolov8n"), "openvino", path=folder)
    (tmp_path / "file_openvino_model").touch()
    with pytest.raises(NotADirectoryError, match="it is a file"):
        export(models("yolov8n"), "openvino", path=tmp_path / "file_openvino_model")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        export(models("yolov8n"), path=tmp_path / "folder.onnx")


def test_a_failure_leaves_the_old_file(models, tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")

    def fail(_: onnx.ModelProto, file: Path) -> None:
        file.write_bytes(b"half a model")
        raise OSError("no space left")

    monkeypatch.setattr(onnx, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        export(models("yolov8n"), imgsz=SIZE, path=path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.onnx", b"old")]


def test_a_missing_package_is_named(models, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="'ncnn' needs ncnn and pnnx, which are not installed; pip install"):
        export(models("yolov8n"), "ncnn")


def test_import_is_light():
    script = "import sys, fastyolo.export; print({'torch', 'onnx', 'ultralytics', 'numpy'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
    )


# The command line


def test_command_line_exports(models, tmp_path):
    weights = tmp_path / "best.pt"
    models("yolov8n").save(weights)
    arguments = ["export", "--weights", str(weights), "--imgsz", "32x64", "--outputs", "detections", "--max-det", "7"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'best.onnx'}, " in result.stdout
    metadata, _ = read(tmp_path / "best.onnx")
    assert (metadata.imgsz, metadata.nms) == ((32, 64), Nms(0.25, 0.7, 7, 30000, False, False))


def test_command_line_prints_the_trtexec_command_even_without_tensorrt(models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    weights = tmp_path / "best.pt"
    models("yolov8n").save(weights)
    result = CliRunner().invoke(
        app, ["export", "--weights", str(weights), "--format", "engine", "--imgsz", "64", "--dynamic", "--batch", "2"]
    )
    assert result.exit_code == 1
    assert "To build an engine with TensorRT 10.12: " in result.stdout
    assert f"trtexec --onnx={tmp_path / 'best-tensorrt.onnx'} --saveEngine={tmp_path / 'best.engine'}" in result.stdout
    assert "--maxShapes=images:2x3x64x64" in result.stdout
    assert "libfastyolo_plugins.so" in result.stdout
    assert result.stderr.startswith("fastyolo: TensorRT's Python package cannot be imported")
    assert (tmp_path / "best-tensorrt.onnx").is_file()


def test_command_line_checks_an_engine_before_the_work(models, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "deployed", lambda _: pytest.fail("exported all the same"))
    weights = tmp_path / "best.pt"
    models("yolov8n").save(weights)
    (tmp_path / "best.engine").mkdir()
    for arguments, message in [
        (["--workspace", "99999"], "workspace must be in [0, 1024], got 99999"),
        ([], f"path '{tmp_path / 'best.engine'}' cannot be written (it is a folder)"),
    ]:
        result = CliRunner().invoke(app, ["export", "--weights", str(weights), "--format", "engine", *arguments])
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in result.stderr


def test_command_line_builds_an_engine(models, tmp_path, monkeypatch):
    weights, built = tmp_path / "best.pt", tmp_path / "BUILT.ENGINE"
    models("yolov8n").save(weights)

    def build(file: Path, path: Path, **settings: Any) -> None:
        assert file.is_file()
        assert (settings["half"], settings["workspace"]) == (True, 2.0)
        path.write_bytes(b"engine")

    monkeypatch.setattr(tensorrt, "build_engine", build)
    arguments = ["--format", "engine", "--imgsz", "64", "--half", "--workspace", "2", "--output", str(built)]
    result = CliRunner().invoke(app, ["export", "--weights", str(weights), *arguments])
    assert result.exit_code == 0, result.output
    onnx_line, command, engine_line = result.stdout.splitlines()
    assert onnx_line.startswith(f"{tmp_path / 'BUILT-tensorrt.onnx'}, ")
    assert f"--saveEngine={built}" in command
    assert "--memPoolSize=workspace:2048" in command
    assert engine_line.startswith(f"{built}, ")


@pytest.mark.parametrize("built", [False, True])
def test_without_tensorrt_the_command_is_that_of_10_12(models, tmp_path, monkeypatch, built):
    path = export(models("yolov8n"), "tensorrt-onnx", imgsz=SIZE, half=True, path=tmp_path / "a.onnx")
    library = tmp_path / "libfastyolo_plugins.so"
    library.write_bytes(b"\0TENSORRT_10\0")

    def plugin_path() -> Path:
        if not built:
            raise ImportError("not built")
        return library

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(tensorrt, "plugin_path", plugin_path)
    command = engine.trtexec_command(path, tmp_path / "a.engine", half=True)
    assert "--stronglyTyped" in command
    assert "--fp16" not in command
    assert f"--dynamicPlugins={library if built else f'./{library.name}'}" in command


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--conf", "0.25"], 1, "conf is for outputs 'detections', got 'maps'; leave it out"),
        (["--multi-label"], 1, "multi_label is for outputs 'detections', got 'maps'; leave it out"),
        (["--format", "tensorrt-onnx", "--workspace", "2"], 1, "workspace is for the format engine, got format 'tens"),
        (["--imgsz", "3k"], 2, "expected a side or a height and a width, as 640 or 480x640, got '3k'"),
        (["--format", "tflite"], 2, "'tflite' is not one of"),
        (["--output", "model.txt"], 1, "path must end in '.onnx'"),
    ],
)
def test_command_line_refuses(models, tmp_path, arguments, status, message):
    weights = tmp_path / "best.pt"
    models("yolov8n").save(weights)
    result = CliRunner().invoke(app, ["export", "--weights", str(weights), *arguments])
    assert result.exit_code == status
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
