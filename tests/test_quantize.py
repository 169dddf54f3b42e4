# SPDX-License-Identifier: AGPL-3.0-or-later
"""INT8 files: where they are quantised, with which scales, what they compute, and what cannot be quantised."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
from detectors import detector, set_statistics
from onnx import ModelProto, NodeProto, numpy_helper
from typer.testing import CliRunner
from ultralytics import YOLO

from fastyolo.cli import app
from fastyolo.compress.quantization import calibration, qdq, quantize
from fastyolo.compress.quantization.calibration import calibrate, choose_images
from fastyolo.export import export
from fastyolo.runtime import Detector
from fastyolo.runtime.engines import OpenVino
from fastyolo.runtime.metadata import QUANTIZATION_KEY, Preprocessing
from fastyolo.runtime.unsigned import make_unsigned, readable

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
FLOAT = {  # of each model, the convolutions that stay float
    "yolov8n": r"model\.22\.(cv[23]\.\d\.2|dfl\.conv)",
    "yolo11n": r"model\.23\.(cv[23]\.\d\.2|dfl\.conv)",
    "yolov8n-fast": r"model\.22\.(cv[23]\.\d\.2|dfl\.conv)|model\.\d+\.(context\.\d|attention)",
}
OWN = {  # what moves values in each of them only
    "yolov8n": {"MaxPool", "Split"},
    "yolo11n": {"MaxPool", "Split"},
    "yolov8n-fast": {"Reshape", "Transpose"},
}
MOVES = {"Concat", "MaxPool", "Resize", "Split", "Slice", "Reshape", "Transpose"}


class Graph:
    """Who makes and who reads the tensors of a quantised graph."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes = model.graph.node
        self.constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        self.producer = {tensor: node for node in self.nodes for tensor in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for tensor in node.input:
                self.readers[tensor].append(node)

    def of(self, *operators: str) -> list[NodeProto]:
        return [node for node in self.nodes if node.op_type in operators]

    def dequantised(self, tensor: str) -> NodeProto | None:
        node = self.producer.get(tensor)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def maps(self, node: NodeProto) -> list[str]:
        return [tensor for tensor in node.input if tensor and tensor not in self.constants]

    def scale(self, node: NodeProto) -> float:
        return float(self.constants[node.input[1]])


def model_of(name: str) -> YOLO:
    """Random weights, normalised so that the maps are those of a trained model in size."""
    model = YOLO(f"{name}.yaml")
    model.model = detector(name, width=0.25)
    noise = np.random.default_rng(0).random((4, 3, 128, 128), np.float32)
    set_statistics(model.model, {"img": torch.from_numpy(noise)})
    model.model.task = "detect"
    model.model.eval()
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(1)
    for index in range(12):
        picture = cv2.resize(random.integers(0, 256, (8, 10, 3), np.uint8), (80, 56), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index:02}.png"), picture)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exported models, each once."""
    folder = tmp_path_factory.mktemp("models")
    models: dict[str, YOLO] = {}

    def file(name: str, outputs: str = "maps", dynamic: bool = False) -> Path:
        path = folder / f"{name}-{outputs}-{dynamic}.onnx"
        if not path.exists():
            model = models.get(name) or models.setdefault(name, model_of(name))
            export(model, outputs=outputs, imgsz=SIZE, dynamic=dynamic, path=path)
        return path

    return file


@pytest.fixture(scope="module")
def quantised(files, images, tmp_path_factory) -> Callable[[str], Path]:
    """Of each model, the INT8 file of its maps, made once."""
    folder = tmp_path_factory.mktemp("int8")

    def file(name: str) -> Path:
        path = folder / f"{name}.onnx"
        if not path.exists():
            quantize(files(name), images[0].parent, calibrator="minmax", path=path, cache=folder)
        return path

    return file


def run(model: Path | ModelProto, tensor: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: tensor})


def inputs(images: list[Path]) -> np.ndarray:
    letterbox = calibration.Letterbox(Preprocessing())
    return np.concatenate([letterbox([cv2.imread(str(path))], (SIZE, SIZE), None, 1)[0] for path in images])


def decibels(signal: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(signal - signal.mean()).sum() / np.square(signal - other).sum()))


@pytest.mark.parametrize("name", FLOAT)
def test_every_convolution_but_the_excluded_is_int8_with_a_scale_for_each_channel(name, files, quantised):
    floats = {item.name: numpy_helper.to_array(item) for item in onnx.load(files(name)).graph.initializer}
    graph = Graph(onnx.load(quantised(name)))
    kept = {qdq.layer_of(node.name) for node in graph.of("Conv") if not all(map(graph.dequantised, node.input[:2]))}
    assert kept == {layer for node in graph.of("Conv") if re.fullmatch(FLOAT[name], layer := qdq.layer_of(node.name))}
    for convolution in graph.of("Conv"):
        if node := graph.dequantised(convolution.input[1]):
            weight, steps, zero = (graph.constants[tensor] for tensor in node.input)
            assert [(item.name, item.i) for item in node.attribute] == [("axis", 0)]
            assert (weight.dtype, zero.dtype) == (np.int8, np.int8)
            assert not zero.any()
            assert steps.shape == zero.shape == weight.shape[:1]
            assert (np.abs(weight.reshape(len(weight), -1)).max(1) == 127).all()
            want = floats[node.name.removesuffix("_DequantizeLinear")]
            shape = (-1, *[1] * (weight.ndim - 1))
            assert (np.abs(weight * steps.reshape(shape) - want) <= 0.5001 * steps.reshape(shape)).all()
            assert graph.constants[convolution.input[2]].dtype == np.float32


@pytest.mark.parametrize("name", FLOAT)
def test_nothing_is_quantised_between_a_convolution_and_its_silu(name, quantised):
    graph = Graph(onnx.load(quantised(name)))
    silus = 0
    for convolution in graph.of("Conv"):
        readers = graph.readers[convolution.output[0]]
        if any(reader.op_type == "Sigmoid" for reader in readers):
            silus += 1
            assert {reader.op_type for reader in readers} <= {"Sigmoid", "Mul"}
    assert silus > 40
    for sigmoid in graph.of("Sigmoid"):
        assert not any(reader.op_type == "QuantizeLinear" for reader in graph.readers[sigmoid.output[0]])


@pytest.mark.parametrize("name", FLOAT)
def test_what_moves_values_and_residual_sums_have_one_scale(name, files, quantised):
    model = onnx.load(quantised(name))
    graph = Graph(model)
    edges: dict[str, int] = defaultdict(int)
    for node in graph.nodes:
        sources = [graph.dequantised(tensor) for tensor in graph.maps(node)]
        if node.op_type not in MOVES | {"Add"} or not any(sources):
            continue
        assert all(sources), node.name
        scales = {graph.scale(source) for source in sources if source is not None}
        if node.op_type != "Add":
            readers = [reader for tensor in node.output for reader in graph.readers[tensor]]
            assert {reader.op_type for reader in readers} == {"QuantizeLinear"}, node.name
            scales |= {graph.scale(reader) for reader in readers}
        assert len(scales) == 1, node.name
        edges[node.op_type] += len(sources)
    assert edges.keys() >= {"Add", "Concat", "Resize"} | OWN[name]
    assert qdq.count(model).edges == qdq.count(model).reformat_free == sum(edges.values())
    for node in graph.of("QuantizeLinear"):
        assert graph.constants[node.input[2]].dtype == np.int8
        assert graph.constants[node.input[2]] == 0
    outputs = [graph.producer[item.name] for item in model.graph.output]
    assert {node.op_type for node in outputs} == {"Conv"}  # of the head, in float


@pytest.mark.parametrize("name", FLOAT)
def test_outputs_do_not_change_what_is_quantised(name, files):
    plans = [qdq.plan(onnx.load(files(name))), qdq.plan(onnx.load(files(name, "detections", dynamic=True)))]
    assert plans[0] == plans[1]
    assert sum(map(len, plans[0].groups)) == len(plans[0].consumers) == len(set(plans[0].consumers))


def only(model: ModelProto, layer: str) -> qdq.Plan:
    """The plan in which this layer alone is quantised."""
    return qdq.plan(
        model, keep_float=[name for name in qdq.layers(model).values() if not f"{name}.".startswith(f"{layer}.")]
    )


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("yolov8n", "model.6"),
        ("yolo11n", "model.9"),
        ("yolo11n", "model.10"),
        ("yolov8n-fast", "model.6"),
        ("yolov8n-fast", "model.9"),
    ],
)
def test_a_block_in_int8_is_close_to_float(name, layer, files, images, tmp_path):
    """Of networks that are not trained, several blocks in int8 would leave little."""
    model = onnx.load(files(name))
    plan = only(model, layer)
    tensors = [tensor for group in plan.sources for tensor in group]
    found = calibrate(model, tensors, images, (SIZE, SIZE), Preprocessing(), cache=tmp_path)
    result = qdq.insert(model, plan, qdq.scales(plan, found.ranges("minmax")))
    tensor = inputs(images[:1])
    assert np.mean(list(map(decibels, run(model, tensor), run(result, tensor)))) > 15


def test_a_plan_that_needs_no_calibration(files, images, tmp_path):
    """The input's range is known."""
    model = onnx.load(files("yolov8n"))
    kept = [layer for layer in qdq.layers(model).values() if layer != "model.0.conv"]
    path = quantize(files("yolov8n"), images[0].parent, keep_float=kept, path=tmp_path / "a.onnx", cache=tmp_path)
    graph = Graph(onnx.load(path))
    assert [graph.scale(node) for node in graph.of("QuantizeLinear")] == [pytest.approx(1 / 127)]


@pytest.mark.data
def test_a_trained_model_in_int8_is_close_to_float_in_onnxruntime_and_openvino(data, tmp_path):
    weights = tmp_path / "yolov8n.pt"
    shutil.copy(data / "weights" / "yolov8n-recovered.pt", weights)
    photographs = sorted((data / "coco128-val" / "images").rglob("*.jpg"))
    source = export(YOLO(weights), imgsz=160, path=tmp_path / "float32.onnx")
    path = quantize(source, photographs[:16], path=tmp_path / "int8.onnx", cache=tmp_path)
    assert path.stat().st_size < 0.28 * source.stat().st_size
    tensors = [
        calibration.Letterbox(Preprocessing())([cv2.imread(str(file))], (160, 160), None, 1)[0]
        for file in photographs[-4:]
    ]
    want = [run(source, tensor) for tensor in tensors]
    pytest.importorskip("openvino")
    engine = OpenVino(path, threads=2)
    for got in ([run(path, tensor) for tensor in tensors], [engine.run(tensor) for tensor in tensors]):
        ratios = [decibels(a, b) for one, other in zip(want, got, strict=True) for a, b in zip(one, other, strict=True)]
        assert np.mean(ratios) > 12


def test_unsigned_maps_give_the_same_numbers(files, images, tmp_path):
    model = onnx.load(quantize(files("yolov8n"), images[0].parent, path=tmp_path / "a.onnx", cache=tmp_path))
    want = run(model, inputs(images[:1]))
    make_unsigned(model)
    onnx.checker.check_model(model, full_check=True)
    graph = Graph(model)
    points = [graph.constants[node.input[2]] for node in graph.of("QuantizeLinear")]
    assert points
    assert all(point.dtype == np.uint8 and point == 128 for point in points)
    assert all(map(np.array_equal, run(model, inputs(images[:1])), want))


def test_without_onnx_openvino_gets_floats_alone(files, images, tmp_path, monkeypatch):
    path = quantize(files("yolov8n"), images[0].parent, path=tmp_path / "a.onnx", cache=tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert readable(files("yolov8n")) == files("yolov8n")
    with pytest.raises(ModuleNotFoundError, match=r"a\.onnx is in int8, .* pip install onnx"):
        readable(path)


def test_openvino_refuses_a_truncated_file_in_int8(files, images, tmp_path):
    path = quantize(files("yolov8n"), images[0].parent, path=tmp_path / "a.onnx", cache=tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    pytest.importorskip("openvino")
    with pytest.raises(ValueError, match=r"a\.onnx is not a model that OpenVINO can load, or is damaged"):
        OpenVino(path, threads=1)


def test_scales_are_applied_as_given(files, images):
    """A network whose input and first weight are rounded by hand computes what the quantised one does."""
    model = onnx.load(files("yolov8n"))
    plan = qdq.plan(model)
    first = only(model, "model.0")
    assert (first.convolutions, first.groups) == (plan.convolutions[:1], (("images",),))
    tensor = inputs(images[:1])
    got = run(qdq.insert(model, first, [0.01]), tensor)
    weights = next(item for item in model.graph.initializer if item.name == "model.0.conv.weight")
    weight = numpy_helper.to_array(weights)
    steps = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    weights.CopyFrom(numpy_helper.from_array((np.rint(weight / steps) * steps).astype(np.float32), weights.name))
    want = run(model, np.rint(tensor / np.float32(0.01)).clip(-128, 127).astype(np.float32) * np.float32(0.01))
    assert min(map(decibels, want, got)) > 80


def test_a_faded_channel_keeps_its_bias(files, images):
    """Of a channel that pruning left without weights, int32 must hold the bias in steps of the two scales."""
    model = onnx.load(files("yolov8n"))
    weights = next(item for item in model.graph.initializer if item.name == "model.0.conv.weight")
    weight = numpy_helper.to_array(weights).copy()
    weight[0], weight[1] = 0, 1e-30
    weights.CopyFrom(numpy_helper.from_array(weight, weights.name))
    result = qdq.insert(model, only(model, "model.0"), [1 / 127])
    constants = Graph(result).constants
    bias = next(node.input[2] for node in model.graph.node if node.op_type == "Conv")
    assert (np.abs(constants[bias]) / (constants["model.0.conv.weight_scale"] / 127) < 2**31).all()
    tensor = inputs(images[:1])
    assert min(map(decibels, run(model, tensor), run(result, tensor))) > 20


def test_names_of_layers_are_those_of_torch(files):
    for name in FLOAT:
        modules = dict(model_of(name).model.named_modules())
        layers = qdq.layers(onnx.load(files(name, "detections", dynamic=True)))
        assert all(layer in modules for layer in layers.values())
        convolutions = {layer for layer, module in modules.items() if type(module) is torch.nn.Conv2d}
        assert convolutions <= set(layers.values())


def test_layers_are_left_in_float(files):
    model = onnx.load(files("yolov8n"))
    every, some = qdq.plan(model), qdq.plan(model, keep_float=["model.4", "model.22.cv3.0", "model.0.conv"])
    left_out = {qdq.layer_of(node) for node in set(every.convolutions) - set(some.convolutions)}
    assert left_out == {
        "model.0.conv",
        *(f"model.4.{part}.conv" for part in ("cv1", "cv2", "m.0.cv1", "m.0.cv2", "m.1.cv1", "m.1.cv2")),
        "model.22.cv3.0.0.conv",
        "model.22.cv3.0.1.conv",
    }
    with pytest.raises(ValueError, match=r"got 'model\.22\.cv3\.3'; the nearest is 'model\.22\.cv3"):
        qdq.plan(model, keep_float=["model.22.cv3.3"])
    with pytest.raises(ValueError, match="none is left"):
        qdq.plan(model, keep_float=["model"])
    with pytest.raises(TypeError, match="must be a list"):
        qdq.plan(model, keep_float="model.4")


@pytest.mark.parametrize(("scales", "message"), [([0.1], "one for each of"), ([0.0], "positive"), ([np.inf], "finite")])
def test_scales_that_cannot_be(files, scales, message):
    model = onnx.load(files("yolov8n"))
    plan = qdq.plan(model)
    given = scales if "each" in message else scales * len(plan.groups)
    with pytest.raises(ValueError, match=message):
        qdq.insert(model, plan, given)


def values_of(file: Path, tensors: list[str], images: list[Path]) -> dict[str, np.ndarray]:
    """All values of these tensors on all images, by another way than calibration's."""
    model = onnx.load(file)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in tensors)
    found = [run(model, inputs([path])) for path in images]
    return {name: np.concatenate([outputs[i].ravel() for outputs in found]) for i, name in enumerate(tensors)}


def test_ranges_are_those_of_all_values(files, images, tmp_path):
    file = files("yolov8n-fast")
    model = onnx.load(file)
    plan = qdq.plan(model)
    tensors = [tensor for group in plan.sources for tensor in group if tensor != "images"]
    found = calibrate(model, tensors, images, (SIZE, SIZE), Preprocessing(), cache=tmp_path)
    assert found.images == len(images)
    values = values_of(file, tensors, images)
    largest = {name: np.abs(array).max() for name, array in values.items()}
    assert found.ranges("minmax") == pytest.approx(largest, rel=1e-5)
    for percent in (99.0, 99.9):
        ranges = found.ranges("percentile", percent)
        for name, array in values.items():
            width = float(np.diff(found.histograms[name][1][:2])[0])
            exact = np.percentile(np.abs(array), percent, method="inverted_cdf")
            assert exact - 1.01 * width <= ranges[name] <= exact * 1.0001
    few = replace(
        found, histograms={name: found.histograms[name] for name in tensors[:3]}
    )  # as each takes half a second
    for name, value in few.ranges("entropy").items():
        assert 0.1 * largest[name] < value < 0.95 * largest[name]
    scales = qdq.scales(plan, {**found.ranges("minmax"), "images": 1.0})
    values = values_of(file, [tensor for tensor in plan.consumers if tensor != "images"], images[:3])
    for group, sources, scale in zip(plan.groups, plan.sources, scales, strict=True):
        assert all(np.abs(values[tensor]).max() <= 127.001 * scale for tensor in group if tensor != "images")
        assert scale * 127 == pytest.approx(max(largest.get(tensor, 1.0) for tensor in sources), rel=1e-5)


def test_an_outlier_does_not_fill_the_memory():
    collector = calibration._collector("entropy")
    random = np.random.default_rng(0)
    arrays = [random.normal(size=5000).astype(np.float32) * scale for scale in (1e-3, 1, 1e3)]
    for array in arrays:
        calibration._count(collector, {"x": array})
    counts, edges, low, high, limit = collector.histogram_dict["x"]
    values = np.concatenate(arrays)
    assert counts.sum() == values.size
    assert len(counts) <= calibration._MAX_BINS + 4
    assert (low, high) == (values.min(), values.max())
    assert edges[-1] == -edges[0] == pytest.approx(limit)
    inside = [(values < edge).sum() for edge in edges[1:-1:64]]
    np.testing.assert_allclose(np.cumsum(counts)[:-1:64], inside, atol=25)  # those on an edge


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images that calibration reads."""
    found: list[Path] = []
    read = calibration.read_image
    monkeypatch.setattr(calibration, "read_image", lambda path: (found.append(path), read(path))[1])
    return found


@pytest.fixture
def small(files) -> tuple[ModelProto, list[str]]:
    model = onnx.load(files("yolov8n"))
    return model, ["/model.0/act/Mul_output_0", "/model.4/cv2/act/Mul_output_0"]


def test_a_killed_calibration_goes_on(small, images, reads, tmp_path, monkeypatch):
    model, tensors = small
    monkeypatch.setattr(calibration, "_SAVE_EVERY", 3)
    settings = (tensors, images, (SIZE, SIZE), Preprocessing())
    want = calibrate(model, *settings, cache=tmp_path / "whole")

    def kill(done: int, total: int) -> None:
        assert total == len(images)
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, *settings, cache=tmp_path / "killed", on_image=kill)
    assert len(list((tmp_path / "killed").iterdir())) == 1
    reads.clear()
    got = calibrate(model, *settings, cache=tmp_path / "killed")
    assert reads == images[6:]
    assert got.key == want.key
    for name in tensors:
        for mine, theirs in zip(got.histograms[name], want.histograms[name], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert got.ranges("percentile", 99.9) == want.ranges("percentile", 99.9)


def test_a_calibration_is_never_stale(small, images, reads, tmp_path):
    model, tensors = small
    folder = tmp_path / "images"
    shutil.copytree(images[0].parent, folder)
    mine = sorted(folder.iterdir())

    def again(model=model, tensors=tensors, size=SIZE, preprocessing=Preprocessing()) -> int:  # noqa: B008
        reads.clear()
        calibrate(model, tensors, mine, (size, size), preprocessing, cache=tmp_path / "cache")
        return len(reads)

    assert again() == len(mine)
    assert again() == 0
    file = next((tmp_path / "cache").iterdir())
    whole = file.read_bytes()
    damaged = [whole[:-100], *(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :] for at in range(60, 160, 5))]
    for content in damaged:  # in the header of the archive, or in what is compressed
        file.write_bytes(content)
        assert again() in (0, len(mine))
    assert again() == 0
    file.write_bytes(damaged[0])
    assert again() == len(mine)
    assert again() == 0
    assert again(tensors=tensors[:1]) == len(mine)
    assert again(preprocessing=Preprocessing(padding=0)) == len(mine)
    cv2.imwrite(str(mine[3]), np.zeros((64, 64, 3), np.uint8))
    assert again() == len(mine)
    other = ModelProto()
    other.CopyFrom(model)
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    assert again(model=other) == len(mine)
    onnx.helper.set_model_props(other, {"date": "today"})
    assert again(model=other) == 0


def test_images_are_chosen_at_equal_distances(images, tmp_path):
    assert choose_images(images[0].parent, 300) == images
    assert choose_images(images[0].parent, 8) == [images[int(i * 1.5)] for i in range(8)]
    assert choose_images([str(path) for path in images], 9)[0] == images[0]
    with pytest.raises(FileNotFoundError, match="holds no image"):
        choose_images(tmp_path, 8)


def test_images_that_cannot_be_read_are_named(small, images, tmp_path):
    model, tensors = small
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(images[0].read_bytes()[:100])
    settings = ((SIZE, SIZE), Preprocessing())
    for _ in range(2):  # counted, and from the cache
        with pytest.warns(UserWarning, match=r"cannot be read as an image: .*damaged\.png\.$"):
            found = calibrate(model, tensors, [damaged, *images], *settings, cache=tmp_path)
        assert found.images == len(images)
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match="at least 8 images that can be read, got 7"),
    ):
        calibrate(model, tensors, [damaged, *images[:7]], *settings, cache=tmp_path)


def test_values_that_are_not_finite(small, images, tmp_path):
    model, tensors = small
    weights = next(item for item in model.graph.initializer if item.name == "model.0.conv.weight")
    weights.CopyFrom(numpy_helper.from_array(np.full(tuple(weights.dims), np.nan, np.float32), weights.name))
    with pytest.raises(ValueError, match=r"model\.0.* not finite"):
        calibrate(model, tensors, images, (SIZE, SIZE), Preprocessing(), cache=tmp_path)


@pytest.mark.parametrize(("outputs", "dynamic"), [("boxes", False), ("detections", True)])
def test_the_file_says_what_the_float_file_said(files, images, outputs, dynamic, tmp_path):
    source = files("yolov8n", outputs, dynamic)
    path = quantize(source, images[0].parent, calibrator="minmax", path=tmp_path / "int8.onnx", cache=tmp_path)
    properties = [{entry.key: entry.value for entry in onnx.load(file).metadata_props} for file in (source, path)]
    note = json.loads(properties[1].pop(QUANTIZATION_KEY))
    assert properties[0] == properties[1]
    assert (note["method"], note["calibrator"], note["images"], note["keep_float"]) == ("ptq", "minmax", 12, [])
    picture = cv2.imread(str(images[0]))
    found = [Detector(file, **({} if dynamic else {"conf": 1e-6, "iou": 1.0}))(picture) for file in (source, path)]
    assert len(found[0].boxes) > 10 or dynamic
    assert abs(len(found[0].boxes) - len(found[1].boxes)) <= 0.2 * len(found[0].boxes)
    sizes = [(1, SIZE, SIZE), (2, 96, 32)] if dynamic else [(1, SIZE, SIZE)]
    for batch, height, width in sizes:
        tensor = np.random.default_rng(0).random((batch, 3, height, width), np.float32)
        assert [x.shape for x in run(source, tensor)] == [x.shape for x in run(path, tensor)]


def test_the_command(files, images, tmp_path):
    command = ["quantize", "--weights", str(files("yolov8n")), "--data", str(images[0].parent), "--images", "8"]
    command += ["--output", str(tmp_path / "int8.onnx"), "--cache", str(tmp_path / "cache")]
    command += ["--keep-float", "model.4", "--json", str(tmp_path / "int8.json"), "--calibrator", "percentile"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "int8.json").read_text())
    file = onnx.load(tmp_path / "int8.onnx")
    convolutions = [node.name for node in file.graph.node if node.op_type == "Conv"]
    int8 = [node for node in file.graph.node if node.op_type == "Conv" and node.input[1].endswith("dequantized")]
    assert (report["convolutions"], report["int8_convolutions"]) == (len(convolutions), len(int8))
    assert len(int8) == len(convolutions) - 6 - 6  # model.4's and the head's last ones
    assert report["bytes"] == (tmp_path / "int8.onnx").stat().st_size
    assert report["float32_bytes"] == pytest.approx(files("yolov8n").stat().st_size, rel=0.01)
    assert "8 images" in result.output
    assert "percentile" in result.output


def half(model: ModelProto) -> None:
    for item in model.graph.initializer:
        if item.data_type == 1:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), item.name))


def plugin(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "MaxPool")
    node.domain = "fastyolo"
    model.opset_import.append(onnx.helper.make_opsetid("fastyolo", 1))


def old(model: ModelProto) -> None:
    model.opset_import[0].version = 12


def foreign(model: ModelProto) -> None:
    del model.metadata_props[:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (half, "got weights in float16"),
        (plugin, r"nodes of plugins \(MaxPool\)"),
        (foreign, "does not say what model it is"),
    ],
)
def test_models_that_cannot_be_quantised(change, message, files, images, tmp_path):
    model = onnx.load(files("yolov8n"))
    change(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=message):
        quantize(tmp_path / "model.onnx", images[0].parent, cache=tmp_path)
    assert not (tmp_path / "model-int8.onnx").exists()


def test_bad_input(files, quantised, images, tmp_path):
    folder = images[0].parent
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(files("yolov8n").read_bytes()[:100000])
    few = tmp_path / "few"
    few.mkdir()
    for path in images[:7]:
        shutil.copy(path, few)
    source = files("yolov8n")
    for weights, data, settings, error, message in [
        (quantised("yolov8n"), folder, {}, ValueError, "quantised already"),
        (truncated, folder, {}, ValueError, "not an ONNX model, or is damaged"),
        (tmp_path / "no.onnx", folder, {}, FileNotFoundError, "does not exist"),
        (tmp_path / "no.txt", folder, {}, ValueError, "must be a checkpoint"),
        (source, few, {}, ValueError, "at least 8 images that can be read, got 7"),
        (source, tmp_path / "none", {}, FileNotFoundError, "does not exist"),
        (source, folder, {"keep_float": ["model.5.cv1"]}, ValueError, r"nearest is 'model\.\d"),
        (source, folder, {"keep_float": "model.4"}, TypeError, "list of names"),
        (source, folder, {"calibrator": "mse"}, ValueError, "calibrator must be one of entropy, percentile, minmax"),
        (None, folder, {}, TypeError, "weights must be a path, got None"),
        (source, None, {}, TypeError, "source must be a path or a list of paths, got None"),
        (source, folder, {"keep_float": None}, TypeError, "keep_float must be a list of names of layers, got None"),
        (source, folder, {"method": "awq"}, ValueError, "method must be one of ptq, qat"),
        (source, folder, {"method": "qat"}, ValueError, r"must be a checkpoint \(\.pt\) for method 'qat'"),
        (source, folder, {"training": {"epochs": 1}}, ValueError, "training is for method 'qat'"),
        (source, folder, {"images": 7}, ValueError, "images must be at least 8, got 7"),
        (source, folder, {"imgsz": 96}, ValueError, "built into .* as 64x64, got 96x96"),
        (source, folder, {"outputs": "boxes"}, ValueError, "outputs is for checkpoints"),
        (source, folder, {"path": source}, ValueError, "another file than weights"),
        (source, folder, {"path": "int8.engine"}, ValueError, "must end in '.onnx'"),
        (files("yolov8n", "maps", dynamic=True), folder, {"imgsz": 70}, ValueError, "multiples of 32"),
    ]:
        with pytest.raises(error, match=message):
            quantize(weights, data, cache=tmp_path / "cache", **{"path": tmp_path / "int8.onnx", **settings})
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("name", FLOAT)
def test_onnxruntime_computes_its_form_in_integers(name, files, quantised, images, tmp_path):
    model = onnx.load(files(name))
    plan = qdq.plan(model, activations=True)
    assert plan.convolutions == qdq.plan(model).convolutions
    path = quantize(
        files(name),
        images[0].parent,
        target="onnxruntime",
        calibrator="minmax",
        path=tmp_path / "a.onnx",
        cache=tmp_path,
    )
    graph = Graph(onnx.load(path))
    for node in graph.of("QuantizeLinear"):
        assert graph.constants[node.input[2]].dtype == np.uint8
    assert qdq.count(onnx.load(path)).reformat_free >= qdq.count(onnx.load(quantised(name))).edges

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    optimised = Graph(onnx.load(tmp_path / "optimised.onnx"))
    assert len(optimised.of("QLinearConv")) == len(plan.convolutions)
    silus = [node for node in Graph(model).of("Sigmoid") if node.input[0] in plan.consumers]
    assert len(silus) > 40
    assert len(optimised.of("QLinearSigmoid")) == len(silus)
    note = next(entry.value for entry in onnx.load(path).metadata_props if entry.key == QUANTIZATION_KEY)
    assert json.loads(note)["target"] == "onnxruntime"


def test_uint8_holds_what_is_not_symmetric(files, images):
    """A network whose input and first weight are rounded by hand computes what the quantised one does."""
    model = onnx.load(files("yolov8n"))
    first = only(model, "model.0")
    steps, zeros = qdq.asymmetric(first, {"images": (-0.25, 1.0)})
    assert (steps, zeros) == ([pytest.approx(1.25 / 255)], [51])
    tensor = inputs(images[:1]) * np.float32(1.25) - np.float32(0.25)
    got = run(qdq.insert(model, first, steps, zeros), tensor)
    weights = next(item for item in model.graph.initializer if item.name == "model.0.conv.weight")
    weight = numpy_helper.to_array(weights)
    scale = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    weights.CopyFrom(numpy_helper.from_array((np.rint(weight / scale) * scale).astype(np.float32), weights.name))
    step = np.float32(steps[0])
    want = run(model, ((np.rint(tensor / step) + 51).clip(0, 255) - 51).astype(np.float32) * step)
    assert min(map(decibels, want, got)) > 80
    assert qdq.asymmetric(first, {"images": (0.5, 2.0)}) == ([pytest.approx(2 / 255)], [0])
    assert qdq.asymmetric(first, {"images": (0.0, 0.0)}) == ([1.0], [0])


def test_intervals_are_the_values_within_the_range(files, images, tmp_path):
    model = onnx.load(files("yolov8n"))
    tensors = [tensor for group in qdq.plan(model).sources for tensor in group]
    found = calibrate(model, tensors, images, (SIZE, SIZE), Preprocessing(), cache=tmp_path)
    every, most = found.intervals("minmax"), found.intervals("percentile", 99)
    ranges = found.ranges("percentile", 99)
    for name, (low, high) in every.items():
        assert max(-low, high) == pytest.approx(found.ranges("minmax")[name])
        assert most[name] == (max(low, -ranges[name]), min(high, ranges[name]))
    after_silu = [name for name in tensors if name.endswith("/act/Mul_output_0")]
    assert after_silu
    assert all(-0.2785 < every[name][0] < 0 for name in after_silu)


@pytest.mark.data
def test_the_form_for_onnxruntime_is_close_to_float(data, tmp_path):
    weights = tmp_path / "yolov8n.pt"
    shutil.copy(data / "weights" / "yolov8n-recovered.pt", weights)
    photographs = sorted((data / "coco128-val" / "images").rglob("*.jpg"))
    source = export(YOLO(weights), imgsz=160, path=tmp_path / "float32.onnx")
    path = quantize(source, photographs[:16], target="onnxruntime", path=tmp_path / "int8.onnx", cache=tmp_path)
    letterbox = calibration.Letterbox(Preprocessing())
    ratios = []
    for file in photographs[-4:]:
        tensor = letterbox([cv2.imread(str(file))], (160, 160), None, 1)[0]
        ratios += map(decibels, run(source, tensor), run(path, tensor))
    assert np.mean(ratios) > 14


def test_targets_that_cannot_be(files, images, tmp_path):
    with pytest.raises(ValueError, match=r"^target must be one of tensorrt, onnxruntime, got 'openvino'\.$"):
        quantize(files("yolov8n"), images[0].parent, target="openvino", path=tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"^target 'onnxruntime' is for method 'ptq', got method 'qat'; leave one"):
        quantize("a.pt", "data.yaml", method="qat", target="onnxruntime")
    command = ["quantize", "--weights", str(files("yolov8n")), "--data", str(images[0].parent), "--sensitivity"]
    refused = CliRunner().invoke(app, [*command, "--target", "onnxruntime"])
    assert refused.exit_code == 2
    assert "--target cannot be combined with --sensitivity" in refused.output
