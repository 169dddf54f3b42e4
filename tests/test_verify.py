# SPDX-License-Identifier: AGPL-3.0-or-later
"""`fastyolo verify`: planted faults are found and named, sound exports pass, and what cannot be compared is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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
import yaml
from detectors import NAMES, detector, scenes, set_statistics
from onnx import ModelProto, helper, numpy_helper
from typer.testing import CliRunner
from ultralytics import YOLO

from fastyolo import _C
from fastyolo.cli import app
from fastyolo.compress import quantize
from fastyolo.diagnose import IncomparableError, Report, culprits, parity, verify
from fastyolo.diagnose.graph import Graph
from fastyolo.diagnose.matching import describe, match, neighbours
from fastyolo.diagnose.predictions import predictions
from fastyolo.export import export
from fastyolo.runtime import Detector
from fastyolo.runtime.metadata import KEY, Nms

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
STRIDES = (8, 16, 32)
HEAD = "/model.22"  # of YOLOv8
FORMS = ("maps", "boxes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Callable[..., Path]:
    """Writes a detector of random weights whose activations are those of a trained one in size."""

    def write(name: str = "yolov8n", *, seed: int = 0, change: Callable[[Any], None] | None = None) -> Path:
        path = folder / f"{name}-{seed}{change.__name__ if change else ''}.pt"
        if not path.exists():
            model = YOLO(f"{name}.yaml")
            model.model = network = detector(name, width=0.25, seed=seed)
            set_statistics(network, scenes(8, SIZE))
            for branch in network.eval().model[-1].cv3:  # scores on both sides of 0.25
                torch.nn.init.normal_(branch[-1].weight, std=0.5)
                torch.nn.init.constant_(branch[-1].bias, -1.0)
            if change:
                change(network)
            network.task = "detect"
            model.save(path)
        return path

    return write


@pytest.fixture(scope="module")
def weights(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint()


@pytest.fixture(scope="module")
def exported(folder: Path) -> Callable[..., Path]:
    """Exports a checkpoint once in each way."""

    def write(weights: Path, outputs: str, **settings: Any) -> Path:
        path = folder / f"{weights.stem}-{outputs}{''.join(map(str, settings.values()))}.onnx"
        return path if path.exists() else export(weights, outputs=outputs, imgsz=SIZE, path=path, **settings)

    return write


@pytest.fixture(scope="module")
def images(folder: Path) -> Path:
    """Pictures of coloured rectangles on noise, one wider and one higher than it is."""
    path = folder / "images"
    path.mkdir()
    for index, image in enumerate(scenes(2, 96)["img"].numpy()):
        pixels = (255 * image).astype(np.uint8).transpose(1, 2, 0)
        cv2.imwrite(str(path / f"{index}.png"), pixels[:72] if index else pixels[:, :80])
    return path


# ---- sound exports


@pytest.mark.parametrize(
    ("name", "outputs", "settings"),
    [
        ("yolov8n", "maps", {}),
        ("yolov8n", "boxes", {"dynamic": True}),
        ("yolov8n", "detections", {}),
        ("yolov8n", "maps", {"half": True}),
        ("yolov8n", "maps", {"batch": 2}),
        ("yolo11n", "maps", {"dynamic": True}),
        ("yolo11n", "boxes", {}),
        ("yolov8n-fast", "boxes", {}),
        ("yolov8n-fast", "detections", {"dynamic": True}),
    ],
)
def test_sound_exports_agree(name, outputs, settings, checkpoint, exported, images):
    weights = checkpoint(name)
    report = verify(weights, exported(weights, outputs, **settings), images)
    assert report.agrees, report
    assert not report.findings
    assert [stage.name for stage in report.stages] == [
        *("metadata", "input", "layers", "maps", "boxes", "scores", "detections")
    ]
    assert {stage.verdict for stage in report.stages} == {"agrees"}
    assert report.precision == ("float16" if "half" in settings else "float32")
    assert report.images == 2


def test_every_convolution_is_compared(weights, exported, images):
    for outputs in FORMS:
        graph = Graph(exported(weights, outputs))
        paths = {block.path for block in graph.blocks}
        network = YOLO(weights).model
        convolutions = {name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)}
        assert convolutions - {"model.22.dfl.conv"} <= paths


def test_untrained_light_model_at_its_own_scale(tmp_path, images):
    """Its activations fade from layer to layer, so that equal inputs matter."""
    model = YOLO("yolov8s-fast.yaml")
    model.save(tmp_path / "light.pt")
    file = export(tmp_path / "light.pt", outputs="maps", imgsz=SIZE, path=tmp_path / "light.onnx")
    assert verify(tmp_path / "light.pt", file, images).agrees
    save(scaled("/model.6/cv1/conv/Conv")(onnx.load(file)), file)
    assert first_layer(verify(tmp_path / "light.pt", file, images)) == "model.6.cv1.conv"


@pytest.mark.filterwarnings("ignore")  # of torch's exporter, as ultralytics calls it
def test_exports_of_ultralytics(checkpoint, images, tmp_path):
    model = YOLO(checkpoint("yolo11n"))
    file = model.export(format="onnx", imgsz=SIZE, simplify=False, verbose=False)
    try:
        assert verify(checkpoint("yolo11n"), file, images).agrees
        save(without(onnx.load(file), "/model.23/Sigmoid"), Path(file))
        assert causes(verify(checkpoint("yolo11n"), file, images)) == ["missing sigmoid"]
    finally:
        Path(file).unlink()


@pytest.mark.data
@pytest.mark.parametrize(("outputs", "dynamic"), [("maps", False), ("boxes", True)])
def test_a_trained_model(outputs, dynamic, data, tmp_path):
    weights, photographs = data / "weights" / "yolov8n-recovered.pt", data / "coco128-val" / "images"
    file = export(weights, outputs=outputs, imgsz=160, dynamic=dynamic, path=tmp_path / "model.onnx")
    sources = sorted(photographs.glob("*.jpg"))[:2]
    assert verify(weights, file, sources).agrees
    save(scaled("/model.12/cv2/conv/Conv")(onnx.load(file)), file)
    report = verify(weights, file, sources)
    assert first_layer(report) == "model.12.cv2.conv"
    assert "multiplied by 1.01" in report.findings[0].sentence


# ---- planted faults


def save(model: ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def node(model: ModelProto, name: str) -> Any:
    return next(item for item in model.graph.node if item.name == name)


def change_weight(model: ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> ModelProto:
    weight = next(item for item in model.graph.initializer if item.name == node(model, name).input[1])
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(weight))), weight.name))
    return model


def scaled(name: str) -> Callable[[ModelProto], ModelProto]:
    return lambda model: change_weight(model, name, lambda weight: weight * np.float32(1.01))


def bgr_weights(model: ModelProto) -> ModelProto:
    return change_weight(model, "/model.0/conv/Conv", lambda weight: weight[:, ::-1])


def before_the_network(model: ModelProto, *nodes: Any) -> ModelProto:
    """Nodes from `images` to `prepared`."""
    node(model, "/model.0/conv/Conv").input[0] = "prepared"
    for item in reversed(nodes):
        model.graph.node.insert(0, item)
    return model


def division(model: ModelProto) -> ModelProto:
    model.graph.initializer.append(numpy_helper.from_array(np.float32(255), "k255"))
    return before_the_network(model, helper.make_node("Div", ["images", "k255"], ["prepared"], "/Div"))


def without(model: ModelProto, name: str) -> ModelProto:
    """Consumers of the node take its input."""
    removed = node(model, name)
    for item in model.graph.node:
        for index, value in enumerate(item.input):
            if value == removed.output[0]:
                item.input[index] = removed.input[0]
    model.graph.node.remove(removed)
    return model


def swapped(model: ModelProto) -> ModelProto:
    inputs = node(model, "/model.9/Concat").input
    inputs[0], inputs[1] = inputs[1], inputs[0]
    return model


def sigmoid_at_the_end(model: ModelProto) -> ModelProto:
    for name in [output.name for output in model.graph.output if output.name.startswith("cls")]:
        producer = next(item for item in model.graph.node if name in item.output)
        producer.output[list(producer.output).index(name)] = f"{name}_logits"
        model.graph.node.append(helper.make_node("Sigmoid", [f"{name}_logits"], [name], f"/{name}"))
    return model


def stride_in_the_graph(model: ModelProto) -> ModelProto:
    """The constant with the stride of each anchor, which the boxes are multiplied by."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if set(np.unique(values)) == set(STRIDES):
            tensor.CopyFrom(numpy_helper.from_array(np.where(values == 16, 8, values).astype(np.float32), tensor.name))
            return model
    raise AssertionError("the graph has no such constant")


def corners(model: ModelProto) -> ModelProto:
    """output0 with boxes xyxy."""
    producer = next(item for item in model.graph.node if "output0" in item.output)
    producer.output[0] = "centres"
    matrix = np.eye(4 + len(NAMES), dtype=np.float32)
    matrix[:4, :4] = [[1, 0, -0.5, 0], [0, 1, 0, -0.5], [1, 0, 0.5, 0], [0, 1, 0, 0.5]]
    model.graph.initializer.append(numpy_helper.from_array(matrix, "corners"))
    model.graph.node.append(helper.make_node("MatMul", ["corners", "centres"], ["output0"], "/corners"))
    return model


def reversed_classes(model: ModelProto) -> ModelProto:
    for level in range(len(STRIDES)):
        name = f"{HEAD}/cv3.{level}/cv3.{level}.2/Conv"
        bias = node(model, name).input[2]
        change_weight(model, name, lambda weight: weight[::-1])
        values = next(item for item in model.graph.initializer if item.name == bias)
        values.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(values)[::-1].copy(), bias))
    return model


def after_output(name: str, op: str, *constants: Any) -> Callable[[ModelProto], ModelProto]:
    """One more node, of the given operator, before an output."""

    def plant(model: ModelProto) -> ModelProto:
        producer = next(item for item in model.graph.node if name in item.output)
        producer.output[list(producer.output).index(name)] = "planted"
        for item in model.graph.node:
            item.input[:] = ["planted" if value == name else value for value in item.input]
        names = [f"planted_{index}" for index in range(len(constants))]
        for constant, value in zip(names, constants, strict=True):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), constant))
        model.graph.node.append(helper.make_node(op, ["planted", *names], [name], "/planted"))
        return model

    return plant


def hard_sigmoid(model: ModelProto) -> ModelProto:
    """In place of the one of the scores."""
    next(item for item in reversed(model.graph.node) if item.op_type == "Sigmoid").op_type = "HardSigmoid"
    return model


def metadata(**changes: Any) -> Callable[[ModelProto], ModelProto]:
    def write(model: ModelProto) -> ModelProto:
        entry = next(entry for entry in model.metadata_props if entry.key == KEY)
        document = json.loads(entry.value)
        for name, value in changes.items():
            document[name] = {**document[name], **value} if isinstance(value, dict) else value
        entry.value = json.dumps(document)
        return model

    return write


def causes(report: Report) -> list[str]:
    assert not report.agrees
    return [finding.cause for finding in report.findings]


def first_layer(report: Report) -> str:
    assert causes(report)[0] == "layer"
    assert f" is {report.departures[0].path} " in report.findings[0].sentence
    return report.departures[0].path


def departing(report: Report) -> str:
    """The first stage that departs."""
    return next(stage.name for stage in report.stages if stage.verdict == "departs")


FAULTS = {
    "BGR in the metadata": (FORMS, metadata(preprocessing={"color": "BGR"}), "channel order", "input"),
    "BGR in the graph": (FORMS, bgr_weights, "channel order", "layers"),
    "no /255": (FORMS, metadata(preprocessing={"scale": 1.0}), "missing /255", "input"),
    "/255 twice": (FORMS, division, "doubled /255", "layers"),
    "another padding": (("maps",), metadata(preprocessing={"padding": 0}), "padding", "input"),
    "stride in the metadata": (("maps",), metadata(strides=[8, 16, 16]), "wrong stride", "metadata"),
    "stride in the graph": (("boxes",), stride_in_the_graph, "wrong stride", "boxes"),
    "order of the strides": (("maps",), metadata(strides=STRIDES[::-1]), "stride order", "metadata"),
    "no sigmoid": (("boxes",), lambda model: without(model, f"{HEAD}/Sigmoid"), "missing sigmoid", "scores"),
    "sigmoid twice": (("maps",), sigmoid_at_the_end, "doubled sigmoid", "maps"),
    "corners": (("boxes",), corners, "box format", "boxes"),
    "classes in the metadata": (("boxes",), metadata(names=NAMES[::-1]), "class order", "metadata"),
    "classes in the graph": (FORMS, reversed_classes, "class order", "layers"),
}


@pytest.mark.parametrize(
    ("fault", "outputs"), [(fault, outputs) for fault, (forms, *_) in FAULTS.items() for outputs in forms]
)
def test_planted_faults_are_named(fault, outputs, weights, exported, images, tmp_path):
    _, plant, cause, stage = FAULTS[fault]
    file = save(plant(onnx.load(exported(weights, outputs))), tmp_path / "model.onnx")
    report = verify(weights, file, images / "0.png")
    assert causes(report) == [cause]
    assert departing(report) == stage


@pytest.mark.parametrize(
    ("plant", "cause", "stage"),
    [
        (after_output("scores", "Mul", np.float32(0.9)), "unknown", "scores"),
        (hard_sigmoid, "unknown", "scores"),
        (after_output("scores", "Sigmoid"), "doubled sigmoid", "scores"),
        (after_output("labels", "Add", np.int32(1)), "class order", "scores"),
        (after_output("boxes", "Mul", np.float32(0.5)), "box scale", "boxes"),
        (after_output("boxes", "Mul", np.float32(1 / SIZE)), "box format", "boxes"),
        (after_output("indices", "Add", np.int32(10**6)), "unknown", "boxes"),
    ],
)
def test_planted_faults_of_detections(plant, cause, stage, weights, exported, images, tmp_path):
    """Their scores and labels are those of one class per box; some lie out of range."""
    file = save(plant(onnx.load(exported(weights, "detections"))), tmp_path / "model.onnx")
    report = verify(weights, file, images)
    assert causes(report) == [cause]
    assert departing(report) == stage


@pytest.mark.parametrize("outputs", FORMS)
@pytest.mark.parametrize(
    ("path", "plant", "reason"),
    [
        ("model.5.conv", scaled("/model.5/conv/Conv"), "its weights are multiplied by 1.01"),
        (
            "model.22.cv2.1.2",
            scaled(f"{HEAD}/cv2.1/cv2.1.2/Conv"),
            "its weights are multiplied by 1.01",
        ),
        ("model.3.act", lambda model: without(model, "/model.3/act/Sigmoid"), ""),
        ("model.9", swapped, ""),  # what a module does between its parts
    ],
)
def test_the_layer_that_departs_is_named(path, plant, reason, outputs, weights, exported, images, tmp_path):
    """What follows it departs as well, but not by itself."""
    file = save(plant(onnx.load(exported(weights, outputs))), tmp_path / "model.onnx")
    report = verify(weights, file, images / "0.png")
    assert first_layer(report) == path
    assert reason in report.findings[0].sentence
    assert len(report.departures) == 1


def test_a_graph_that_prepares_its_input_is_sound(weights, exported, images, tmp_path):
    """The division by 255 and the order of the channels may be in the graph, if the metadata leave them to it."""
    model = onnx.load(exported(weights, "maps"))
    for name, value in {"k255": np.float32(255), "rgb": np.array([2, 1, 0])}.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    nodes = (
        helper.make_node("Gather", ["images", "rgb"], ["flipped"], "/Gather", axis=1),
        helper.make_node("Div", ["flipped", "k255"], ["prepared"], "/Div"),
    )
    model = metadata(preprocessing={"scale": 1.0, "color": "BGR"})(before_the_network(model, *nodes))
    report = verify(weights, save(model, tmp_path / "model.onnx"), images)
    assert report.agrees, report
    assert "the graph makes up" in report.stages[1].note


def test_another_checkpoint(weights, checkpoint, exported, images):
    report = verify(checkpoint(seed=1), exported(weights, "maps"), images)
    assert causes(report) == ["other weights"]


def test_settings_of_nms(weights, exported, images, tmp_path):
    model = onnx.load(exported(weights, "detections"))
    file = save(metadata(nms={"iou_threshold": 0.3})(model), tmp_path / "model.onnx")
    report = verify(weights, file, images)
    assert causes(report) == ["NMS settings"]
    thresholds = report.findings[0].sentence.split("iou_threshold ")[1].split(" instead of 0.3")[0].split(" or ")
    assert "0.7" in thresholds


def first(found: Any, count: int) -> dict[str, Any]:
    return {name: getattr(found, name)[:count] for name in ("boxes", "scores", "labels")}


def test_settings_are_not_blamed_where_the_file_has_none(weights, exported, images, monkeypatch):
    """A limit of detections that Detector itself did not keep to."""
    whole = Detector.postprocess
    monkeypatch.setattr(Detector, "postprocess", lambda *args: [replace(x, **first(x, 1)) for x in whole(*args)])
    assert causes(verify(weights, exported(weights, "maps"), images)) == ["unknown"]


def test_preparation_of_ones_own(weights, exported, images):
    """A stretched image, found in a subclass of Detector."""

    class Stretching(Detector):
        def preprocess(self, images: Any) -> Any:
            tensor, placements = super().preprocess(images)
            stretched = cv2.resize(images[0], self.imgsz[::-1])[..., ::-1].transpose(2, 0, 1)
            tensor[0] = stretched.astype(np.float32) / 255
            return tensor, placements

    file = exported(weights, "boxes")
    report = verify(weights, file, images, detector=Stretching(file))
    assert causes(report) == ["resizing"]
    assert "stretched" in report.findings[0].sentence


@pytest.mark.data
def test_postprocessing_of_ones_own(data, tmp_path):
    """The letterbox's offset left in the boxes, and y before x."""

    class Padded(Detector):
        def postprocess(self, outputs: Any, placements: Any) -> Any:
            return super().postprocess(outputs, [replace(place, top=0, left=0) for place in placements])

    class Swapped(Detector):
        def postprocess(self, outputs: Any, placements: Any) -> Any:
            return [replace(x, boxes=x.boxes[:, [1, 0, 3, 2]]) for x in super().postprocess(outputs, placements)]

    weights = data / "weights" / "yolov8n-recovered.pt"
    file = export(weights, outputs="maps", imgsz=160, path=tmp_path / "model.onnx")
    photographs = sorted((data / "coco128-val" / "images").glob("*.jpg"))[:2]
    for own, cause, words in ((Padded, "letterbox", "offset"), (Swapped, "box format", "y before x")):
        report = verify(weights, file, photographs, detector=own(file))
        assert causes(report) == [cause]
        assert words in report.findings[0].sentence
        assert departing(report) == "detections"


def test_overflow_of_float16(checkpoint, exported, images):
    def large(network: Any) -> None:
        """The values between two layers leave the range of float16; what follows is as before."""
        network.model[3].bn.weight.data *= 2**12
        network.model[3].bn.bias.data *= 2**12
        network.model[4].cv1.conv.weight.data *= 2**-12
        network.model[3].bn.running_var /= 2**10
        network.model[4].cv1.conv.weight.data *= 2**-5

    weights = checkpoint(change=large)
    assert verify(weights, exported(weights, "maps"), images).agrees
    report = verify(weights, exported(weights, "maps", half=True), images)
    assert causes(report) == ["float16 overflow"]
    assert "model.3" in report.findings[0].sentence


def test_quantised_weights(weights, exported, images, tmp_path):
    """They are held to a tolerance of their own, and their detections to none."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    tensor = Detector(exported(weights, "boxes")).preprocess([cv2.imread(str(images / "0.png"))])[0]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = [{"images": tensor}]

        def get_next(self) -> Any:
            return self.batches.pop() if self.batches else None

    settings = {"op_types_to_quantize": ["Conv"], "per_channel": True, "weight_type": quantization.QuantType.QInt8}
    file = tmp_path / "model.onnx"
    quantization.quantize_static(exported(weights, "boxes"), file, Reader(), **settings)
    model = onnx.load(file)
    model.metadata_props.extend(onnx.load(exported(weights, "boxes")).metadata_props)
    report = verify(weights, save(model, file), images / "0.png")
    verdicts = {stage.name: stage.verdict for stage in report.stages}
    assert report.precision == "int8"
    assert verdicts["layers"] == "agrees"
    assert verdicts["detections"] == "skipped"


@pytest.mark.data
def test_noise_of_int8_is_told_from_faults(data, tmp_path):
    weights = tmp_path / "yolov8n.pt"
    shutil.copy(data / "weights" / "yolov8n-recovered.pt", weights)
    photographs = sorted((data / "coco128-val" / "images").rglob("*.jpg"))
    file = quantize(weights, photographs[:12], imgsz=160, path=tmp_path / "int8.onnx", cache=tmp_path)

    def change(model: ModelProto, name: str, how: Callable[[np.ndarray], np.ndarray]) -> ModelProto:
        constant = next(item for item in model.graph.initializer if item.name == name)
        constant.CopyFrom(numpy_helper.from_array(how(numpy_helper.to_array(constant)), name))
        return model

    def scaled(model: ModelProto, factor: float) -> ModelProto:
        return change(model, "quantization.scale_19", lambda scale: scale * np.float32(factor))

    def coarse(model: ModelProto) -> ModelProto:
        """As a Concat's one scale makes them of a layer whose values are an eighth of its neighbours'."""
        return scaled(model, 8)

    def too_coarse(model: ModelProto) -> ModelProto:
        return scaled(model, 16)

    def clipped(model: ModelProto) -> ModelProto:
        return scaled(model, 1 / 6)

    def shuffled(model: ModelProto) -> ModelProto:
        shuffle = np.random.default_rng(0).permutation
        return change(model, "model.12.m.0.cv1.conv.weight_quantized", lambda x: shuffle(x.ravel()).reshape(x.shape))

    def shifted(model: ModelProto) -> ModelProto:
        model.graph.initializer.append(numpy_helper.from_array(np.array(16, np.int8), "zero"))
        [x for x in model.graph.node if x.op_type == "QuantizeLinear"][10].input[2] = "zero"
        return model

    for model in (onnx.load(file), coarse(onnx.load(file))):
        report = verify(weights, save(model, tmp_path / "sound.onnx"), photographs[-2:])
        assert report.agrees, report
        assert {stage.name: stage.measure for stage in report.stages}["maps"] == "relative"
    faults = ((clipped, {"layers"}), (too_coarse, {"layers"}), (shuffled, {"layers"}), (shifted, {"layers", "maps"}))
    for plant, stages in faults:
        report = verify(weights, save(plant(onnx.load(file)), tmp_path / "fault.onnx"), photographs[-2:])
        assert {stage.name for stage in report.stages if stage.verdict == "departs"} >= stages, plant
        assert causes(report) == ["layer"]
        assert "(--keep-float model." in report.findings[0].sentence


def test_openvino(weights, exported, images, tmp_path):
    """Of its own format, which shows neither layers nor maps, and of an ONNX file."""
    openvino = pytest.importorskip("openvino")
    file = exported(weights, "boxes")
    report = verify(weights, file, images, engine="openvino")
    assert report.agrees, report
    assert report.engine == "openvino"
    for plant, expected in ((lambda model: model, []), (bgr_weights, ["channel order"])):
        model = plant(onnx.load(file))
        folder = tmp_path / f"model{len(expected)}"
        openvino.save_model(
            openvino.convert_model(save(model, tmp_path / "model.onnx")), folder / "model.xml", compress_to_fp16=False
        )
        properties = {entry.key: entry.value for entry in model.metadata_props}
        (folder / "metadata.yaml").write_text(yaml.safe_dump(properties))
        report = verify(weights, folder, images / "0.png")
        assert [finding.cause for finding in report.findings] == expected
        assert report.agrees is not bool(expected)
        assert [stage.name for stage in report.stages if stage.verdict == "skipped"] == ["layers", "maps"]


# ---- accuracy


@pytest.fixture(scope="module")
def labelled(folder: Path, weights: Path, images: Path) -> Path:
    """The pictures, with what the checkpoint finds in them as labels."""
    (folder / "set" / "labels").mkdir(parents=True)
    shutil.copytree(images, folder / "set" / "images")
    for result in YOLO(weights).predict(images, imgsz=SIZE, conf=0.5, rect=False, verbose=False):
        rows = zip(result.boxes.cls.tolist(), result.boxes.xywhn.tolist(), strict=True)
        lines = [" ".join(map(str, (int(label), *box))) for label, box in rows]
        (folder / "set" / "labels" / f"{Path(result.path).stem}.txt").write_text("\n".join(lines))
    document = {"path": str(folder / "set"), "train": "images", "val": "images", "names": dict(enumerate(NAMES))}
    (folder / "set.yaml").write_text(yaml.safe_dump(document))
    return folder / "set.yaml"


@pytest.mark.parametrize("outputs", [*FORMS, "detections"])
def test_accuracy(outputs, weights, exported, images, labelled):
    report = verify(weights, exported(weights, outputs), images, data=str(labelled))
    assert report.agrees, report
    assert report.stages[-1].name == "mAP"
    assert report.stages[-1].difference.maximum == 0
    assert report.stages[-1].difference.scale > 0


# ---- hypotheses


def boxes_of_levels() -> tuple[np.ndarray, np.ndarray]:
    """Boxes [1, 9, 4] xyxy, three on each of three levels."""
    random = np.random.default_rng(0)
    low = random.uniform(0, 300, (1, 9, 2))
    return np.concatenate((low, low + random.uniform(10, 300, (1, 9, 2))), 2), np.repeat([[0, 1, 2]], 3, 0).T.reshape(
        1, 9
    )


@pytest.mark.parametrize(
    ("change", "cause", "words"),
    [
        (culprits.to_xywh, "box format", "xywh"),
        (culprits.to_xyxy, "box format", "xyxy"),
        (lambda x: x[..., [1, 0, 3, 2]], "box format", "y before x"),
        (lambda x: x / np.array([640, 480, 640, 480]), "box format", "shares"),
        (lambda x: x * np.repeat([1, 1, 0.5], 3)[:, None], "wrong stride", "16 instead of 32"),
        (lambda x: x * 0.5, "box scale", "multiplied by 0.5"),
        (lambda x: x * np.repeat([4, 1, 0.25], 3)[:, None], "stride order", "8, 16, 32"),
        (lambda x: x - 0.5 * np.repeat(STRIDES, 3)[:, None], "anchor points", "-0.5 cells"),
    ],
)
def test_hypotheses_of_boxes(change, cause, words):
    boxes, levels = boxes_of_levels()
    finding = culprits.of_boxes(change(boxes), boxes, levels, STRIDES, (480, 640), 1e-5)
    assert finding.cause == cause
    assert words in finding.sentence
    assert culprits.of_boxes(change(boxes) + boxes % 1, boxes, levels, STRIDES, (480, 640), 1e-5) is None


def test_hypotheses_of_the_order_of_levels():
    maps = [np.random.default_rng(0).normal(size=(1, 4, size, size)) for size in (4, 2, 1)]
    assert culprits.of_level_order(maps[::-1], maps, STRIDES, 1e-5).cause == "stride order"
    assert culprits.of_level_order(maps, maps, STRIDES, 1e-5) is None


def test_hypotheses_of_the_input():
    tensor = np.random.default_rng(0).uniform(size=(1, 3, 8, 8)).astype(np.float32)
    normalised = (tensor - np.float32(0.45)) / np.float32(0.225)
    ((cause, clause),) = culprits.of_input(normalised, tensor, {}, 1e-5)
    assert cause == "normalisation"
    assert "4.444" in clause
    assert [name for name, _ in culprits.of_input(255 * tensor[:, ::-1], tensor, {}, 1e-5)] == [
        *("channel order", "missing /255")
    ]
    assert culprits.of_input(tensor**2, tensor, {}, 1e-5) == ()


@pytest.mark.parametrize(
    ("value", "text"), [(1, "1"), (0.5, "0.5"), (1.01, "1.01"), (1.0005, "1.0005"), (3 / 7, "0.4286")]
)
def test_factors_have_enough_digits(value, text):
    assert culprits.factor_text(value) == text


def test_labels_of_another_order():
    scores = np.random.default_rng(0).uniform(size=(20, 3))
    classes = scores.argmax(1)
    found = culprits.of_labels((classes + 1) % 3, scores.max(1), scores, 1e-5)
    assert found.cause == "class order"
    assert "class 0 of the file is class 2" in found.sentence
    assert culprits.of_labels(classes, scores.max(1), scores, 1e-5) is None
    assert culprits.of_labels(classes + 1, 0.9 * scores.max(1), scores, 1e-5) is None
    assert culprits.of_labels(np.arange(20) % 3, scores.max(1), scores, 1e-5) is None


NMS = Nms(0.25, 0.5, 300, 30000, multi_label=False, class_agnostic=False)


@pytest.mark.parametrize(
    ("ours", "theirs", "close", "unexplained"),
    [
        ([(0, 0, 10, 10, 0.9, 0)], [(0, 0, 10, 10, 0.9, 0)], 0, 0),
        ([(0, 0, 10, 10, 0.2505, 0)], [], 1, 0),  # a score at the threshold
        ([(0, 0, 10, 10, 0.9, 0)], [], 0, 1),
        ([(0, 0, 10, 10, 0.9, 0)], [(0, 0, 10, 10, 0.9004, 1)], 2, 0),  # two classes of one score
        ([(0, 0, 10, 10, 0.9, 0)], [(0, 0, 10, 10, 0.8, 1)], 0, 2),
        # an IoU at the threshold
        ([(0, 0, 30, 10, 0.9, 0), (10, 0, 40, 10, 0.8, 0)], [(0, 0, 30, 10, 0.9, 0)], 1, 0),
        ([(0, 0, 30, 10, 0.9, 0), (20, 0, 50, 10, 0.8, 0)], [(0, 0, 30, 10, 0.9, 0)], 0, 1),
        # of two boxes with one score the other came first, which decides on a third
        (
            [(0, 0, 30, 10, 0.9, 0), (15, 0, 45, 10, 0.5, 0)],
            [(6, 0, 36, 10, 0.9, 0)],
            3,
            0,
        ),
    ],
)
def test_matching(ours, theirs, close, unexplained):
    sides = [np.array(rows, np.float64).reshape(-1, 6) for rows in (ours, theirs)]
    for pair in (sides, sides[::-1]):
        found = match(*pair, np.concatenate(sides), NMS, margin=1e-3)
        assert (found.close, found.unexplained) == (close, unexplained)


def rows_of(*counts: int) -> list[np.ndarray]:
    return [np.tile((0.0, 0, 10, 10, 0.9, 0), (count, 1)) for count in counts]


@pytest.mark.parametrize(
    ("counts", "expected", "possible"),
    [
        ((3, 3, 1), (5, 4, 1), True),
        ((3, 2), (5, 4), False),  # fewer than expected, but nothing shows a limit
        ((3, 3), (5, 3), False),
        ((0, 0), (5, 4), True),
    ],
)
def test_a_limit_takes_two_images(counts, expected, possible):
    limits = {nms.max_det for settings in neighbours(NMS, rows_of(*counts), expected) for nms in settings}
    assert limits == ({NMS.max_det, max(counts)} if possible else {NMS.max_det})


def test_settings_with_fewer_changes_come_first():
    sizes = [
        {sum(a != b for a, b in zip(vars(NMS).values(), vars(nms).values(), strict=True)) for nms in settings}
        for settings in neighbours(NMS, rows_of(3, 3), (5, 5))
    ]
    assert sizes == [{count + 1} for count in range(len(sizes))]


def test_settings_are_named():
    others = [replace(NMS, iou_threshold=0.4), replace(NMS, iou_threshold=0.45), replace(NMS, max_det=3)]
    assert describe(NMS, others) == "iou_threshold 0.4 or 0.45 instead of 0.5, or with max_det 3 instead of 300"


def test_matching_at_the_limit_of_detections():
    rows = np.array([(20 * i, 0, 20 * i + 10, 10, 0.9 - 0.0001 * i, 0) for i in range(3)])
    assert match(rows[:2], rows[[0, 2]], rows, replace(NMS, max_det=2), margin=1e-3).unexplained == 0
    assert match(rows[:2], rows[[0, 2]], rows, NMS, margin=1e-3).unexplained == 2


def test_boxes_that_no_anchor_predicts_are_never_close():
    ours, theirs = np.array([(3, 0, 33, 10, 0.9, 0)]), np.array([(0, 0, 30, 10, 0.9, 0)])
    assert match(ours, theirs, np.concatenate((ours, theirs)), NMS, margin=1e-3).unexplained == 0
    assert match(ours, theirs, theirs, NMS, margin=1e-3).unexplained == 2


@pytest.mark.parametrize("sizes", [((228, 228), (114, 114), (57, 57)), ((300, 250),)])
def test_maps_of_any_number_of_anchors_are_decoded(sizes):
    """The first of more in all, the second of more in a level, than decode_nms returns detections."""
    draw = np.random.default_rng(0)
    box_maps, cls_maps = (
        [draw.normal(size=(1, channels, *size)).astype(np.float32) for size in sizes] for channels in (8, 2)
    )
    metadata = SimpleNamespace(outputs="maps", strides=STRIDES[: len(sizes)])
    found = predictions(metadata, dict(enumerate((*box_maps, *cls_maps))))
    cells = [np.indices(size)[::-1].reshape(2, -1) + 0.5 for size in sizes]
    strides = np.repeat(metadata.strides, [height * width for height, width in sizes]).astype(np.float32)
    boxes, scores = (np.concatenate([x.reshape(*x.shape[:2], -1) for x in maps], 2) for maps in (box_maps, cls_maps))
    expected = _C.dfl_decode(boxes, np.concatenate(cells, 1).astype(np.float32), strides)[0].T
    order = np.argsort(found.anchors)
    np.testing.assert_array_equal(found.anchors[order], np.arange(len(expected)))
    np.testing.assert_allclose(found.boxes[order], expected, atol=1e-3)
    np.testing.assert_array_equal(found.labels[order], scores[0].argmax(0))
    np.testing.assert_allclose(found.scores[order], 1 / (1 + np.exp(-scores[0].max(0))), rtol=1e-5)


# ---- the command


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)], env={"COLUMNS": "200"})


def test_command(weights, exported, images):
    sound = command("--weights", weights, "--model", exported(weights, "maps"), "--source", images, "--json", "a.json")
    assert sound.exit_code == 0, sound.output
    assert "departs" not in sound.stdout
    assert json.loads(Path("a.json").read_text())["agrees"] is True

    save(division(onnx.load(exported(weights, "maps"))), Path("model.onnx"))
    failed = command("--weights", weights, "--model", "model.onnx", "--source", images, "--json", "b.json")
    assert failed.exit_code == 1, failed.output
    assert "departs" in failed.stdout
    assert "doubled /255: The graph changes its input" in " ".join(failed.stdout.split())
    document = json.loads(Path("b.json").read_text())
    assert document["agrees"] is False
    assert [finding["cause"] for finding in document["findings"]] == ["doubled /255"]


def test_images_that_cannot_be_read_are_left_out(weights, exported, images, tmp_path):
    shutil.copytree(images, tmp_path / "some")
    (tmp_path / "some" / "empty.png").write_bytes(b"")
    (tmp_path / "some" / "damaged.png").write_bytes((images / "0.png").read_bytes()[:50])
    (tmp_path / "some" / "film.mp4").write_bytes(b"")
    arguments = ("--weights", weights, "--model", exported(weights, "maps"), "--json", "a.json")
    result = command(*arguments, "--source", "some")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("a.json").read_text())["images"] == 2
    lines = sorted(line.split("/some/")[1].split()[0] for line in result.stderr.splitlines())
    assert lines == ["damaged.png", "empty.png"]
    for name in ("0.png", "1.png"):
        (tmp_path / "some" / name).unlink()
    result = command(*arguments, "--source", "some")
    assert result.exit_code == 2
    assert "The other 1 cannot be read" in result.stderr


def test_errors_of_the_comparison_are_no_bad_input(weights, exported, images, monkeypatch):
    def fail(*_: Any) -> None:
        raise ValueError("axis 1 is out of bounds")

    monkeypatch.setattr(parity._Comparison, "_compare_maps", fail)
    with pytest.raises(ValueError, match="axis 1") as caught:
        verify(weights, exported(weights, "maps"), images)
    assert not isinstance(caught.value, IncomparableError)
    result = command("--weights", weights, "--model", exported(weights, "maps"), "--source", images)
    assert result.exit_code == 2
    assert "verify itself failed (ValueError: axis 1 is out of bounds)" in result.stderr


def test_a_graph_that_fails_to_run(weights, exported, images, tmp_path):
    plant = after_output("num_dets", "Gather", np.int64(7))
    save(plant(onnx.load(exported(weights, "detections"))), tmp_path / "model.onnx")
    result = command("--weights", weights, "--model", "model.onnx", "--source", images)
    assert result.exit_code == 2
    assert "model.onnx cannot be run" in result.stderr


def test_the_suffix_may_have_capitals(weights, exported, images, tmp_path):
    shutil.copy(exported(weights, "maps"), tmp_path / "S.ONNX")
    result = command("--weights", weights, "--model", "S.ONNX", "--source", images, "--json", "a.json")
    assert result.exit_code == 0, result.output
    stages = {stage["name"]: stage["verdict"] for stage in json.loads(Path("a.json").read_text())["stages"]}
    assert stages["layers"] == "agrees"


def test_a_missing_package(weights, exported, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = command("--weights", weights, "--model", exported(weights, "maps"), "--source", images)
    assert result.exit_code == 2
    assert "onnxruntime is not installed" in result.stderr


def test_damaged_metadata_of_openvino(weights, images, tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.xml").write_text("<net/>")
    for content in (b"names: [", b"names: \xff"):
        (tmp_path / "model" / "metadata.yaml").write_bytes(content)
        result = command("--weights", weights, "--model", "model", "--source", images)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1


def test_the_package_exports_it_lazily():
    code = (
        "import sys, fastyolo; fastyolo.diagnose; assert 'torch' not in sys.modules; "
        "assert fastyolo.diagnose.verify is fastyolo.diagnose.parity.verify; "
        "assert fastyolo.diagnose.Report is fastyolo.diagnose.parity.Report; fastyolo.diagnose.Stage"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_cannot_be_compared(weights, checkpoint, exported, images, tmp_path):
    file = exported(weights, "maps")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.onnx").write_bytes(file.read_bytes()[:1000])
    (tmp_path / "damaged.pt").write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "0.jpg").write_bytes(b"")
    save(metadata(names=["one", "two"])(onnx.load(file)), tmp_path / "classes.onnx")
    bare = onnx.load(file)
    del bare.metadata_props[:]
    save(bare, tmp_path / "bare.onnx")
    pose = YOLO("yolov8n-pose.yaml")
    pose.save(tmp_path / "pose.pt")
    YOLO("yolov8n.yaml").save(tmp_path / "eighty.pt")
    cases = {
        ("none.pt", file, images): "none.pt",
        (weights, "none.onnx", images): "none.onnx",
        (weights, weights, images): "model must be an .onnx or .engine file",
        (weights, "empty", images): "model must be an .onnx or .engine file",
        (weights, "damaged.onnx", images): "damaged.onnx is not an ONNX model",
        (weights, "bare.onnx", images): "bare.onnx does not say what model it is",
        (weights, "classes.onnx", images): "has 3 classes in its outputs and 2 in its metadata",
        ("eighty.pt", file, images): "has 3 classes and",
        (file, file, images): "--weights: It must be a checkpoint",
        ("damaged.pt", file, images): "'damaged.pt' cannot be read",
        ("pose.pt", file, images): "task 'pose'",
        (checkpoint("yolo11n"), file, images): "of another model than the checkpoint",
        (weights, file, "empty"): "empty holds no image",
        (weights, file, "nowhere"): "nowhere does not exist",
        (weights, file, "0.jpg"): "0.jpg is empty",
        (weights, file, "0"): "--source",
        (weights, file, "http://localhost/0.jpg"): "--source",
        (weights, file, "film.mp4"): "--source",
        (weights, file, images, "--data", "none.yaml"): "--data",
    }
    for (checkpoint_file, model, source, *others), words in cases.items():
        result = command("--weights", checkpoint_file, "--model", model, "--source", source, *others)
        assert result.exit_code == 2, (words, result.output)
        assert result.stdout == ""
        (sentence,) = result.stderr.splitlines()
        assert words in sentence
