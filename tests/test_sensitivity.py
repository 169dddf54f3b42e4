# SPDX-License-Identifier: AGPL-3.0-or-later
"""What each part loses by INT8: a planted one is found and kept, reports, resumption, and warnings about images."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
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
from detectors import NAMES, SIZE, detector, scenes, train
from typer.testing import CliRunner
from ultralytics import YOLO

from fastyolo.cli import app
from fastyolo.compress.quantization import cost, domain, ptq, qdq, quantize
from fastyolo.compress.quantization.calibration import Calibration
from fastyolo.compress.quantization.parts import Noise, Variants
from fastyolo.compress.quantization.sensitivity import Report, sensitivity
from fastyolo.export import export
from fastyolo.integrations.ultralytics.accuracy import evaluate
from fastyolo.integrations.ultralytics.labelled import LabelledImages
from fastyolo.runtime import Detector
from fastyolo.runtime.letterbox import Placement
from fastyolo.runtime.metadata import QUANTIZATION_KEY, Preprocessing

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = 12
PLANTED = "model.3"
# Leaves model.1, model.3 and model.22.cv3.1, which are enough for most tests.
OTHERS = [f"model.{index}" for index in (0, 2, 4, 5, 6, 7, 8, 9, 12, 15, 16, 18, 19, 21)]
OTHERS += [f"model.22.{branch}" for branch in ("cv2", "cv3.0", "cv3.2")]


@pytest.fixture
def no_timing(monkeypatch):
    """Times take a session for every part, and one test of them is enough."""

    def none(reference, others, imgsz, on_graph):
        return dict.fromkeys(others, cost.Latency(1.0, 1.0))

    monkeypatch.setattr(cost, "latencies", none)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of scenes, to train, calibrate and validate on."""
    folder = tmp_path_factory.mktemp("scenes")
    batch = scenes(IMAGES)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for index, image in enumerate(batch["img"]):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        cv2.imwrite(str(folder / "images" / f"{index:02}.png"), pixels[..., ::-1])
        rows = batch["batch_idx"] == index
        table = torch.cat([batch["cls"][rows], batch["bboxes"][rows]], 1)
        np.savetxt(folder / "labels" / f"{index:02}.txt", table.numpy(), "%g")
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump({"train": "images", "val": "images", "names": dict(enumerate(NAMES))}))
    return file


@pytest.fixture(scope="module")
def checkpoint(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of the scenes, in which one channel that enters the layer PLANTED is a thousand times the others."""
    network = detector()
    train(network, scenes(IMAGES), 40)
    with torch.no_grad():
        before, planted = network.model[2].cv2.bn, network.model[3].conv
        before.weight[0] *= 1000
        before.bias[0] *= 1000
        planted.weight[:, 0] /= 1000
    model = YOLO("yolov8n.yaml")
    model.model = network.eval()
    model.model.task = "detect"
    path = tmp_path_factory.mktemp("weights") / "planted.pt"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def file(checkpoint: Path) -> Path:
    return export(checkpoint, imgsz=SIZE, path=checkpoint.with_suffix(".onnx"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def measure(no_timing: None, file: Path, data_set: Path, cache: Path) -> Callable[..., Report]:
    def measured(**changes: Any) -> Report:
        given = {"weights": file, "data": data_set, "calibrator": "minmax", "cache": cache, "keep_float": OTHERS}
        arguments = {"accuracy_of": 0, **given, **changes}
        return sensitivity(arguments.pop("weights"), arguments.pop("data"), **arguments)

    return measured


@pytest.fixture(scope="module")
def report(file: Path, data_set: Path, cache: Path) -> Report:
    """With everything that there is in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_SECONDS", 0.0)
        patch.setattr(cost, "_ROUNDS", 2)
        return sensitivity(file, data_set, calibrator="minmax", accuracy_of=2, cache=cache)


def calibrated(path: Path, data_set: Path, cache: Path, **settings: Any) -> ptq.Calibrated:
    given = {"method": "ptq", "calibrator": "minmax", "keep_float": (), "on_image": lambda done, total: None}
    source = ptq.load(path)
    return ptq.calibrated(source, ptq.images_of(data_set, IMAGES), cache=cache, **{**given, **settings})


# The report


def test_a_planted_layer_is_found(report):
    first, second, *_ = report.parts
    assert first.name == report.worst(1)[0] == PLANTED
    assert first.snr < second.snr - 10
    assert report.int8.snr == pytest.approx(first.snr, abs=1)  # its noise is all the noise
    assert set(first.snr_of_levels) == {"8", "16", "32"}
    assert [part.snr for part in report.parts] == sorted(part.snr for part in report.parts)
    # The head's branches reach one level each, and nothing reaches another by them.
    (branch,) = (part for part in report.parts if part.name == "model.22.cv3.1")
    assert branch.snr_of_levels["16"] < 100
    assert branch.snr_of_levels["8"] == branch.snr_of_levels["32"] == 120
    measured = [part.map50_95_loss is not None for part in report.parts]
    assert measured == [True, True] + [False] * (len(measured) - 2)
    assert report.labelled_images == report.images == IMAGES
    assert report.float32.map50 > 0.2
    assert first.map50_loss == pytest.approx(report.float32.map50 - report.int8.map50, abs=0.05)
    assert first.map50_loss > second.map50_loss + 0.1


def test_sizes_and_times_are_of_the_graphs(report, file):
    model = onnx.load(file)
    assert report.float32.bytes == file.stat().st_size
    assert report.int8.bytes < report.float32.bytes
    weights = {item.name: np.prod(item.dims) for item in model.graph.initializer}
    convolutions = {node.name: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    (part,) = (part for part in report.parts if part.name == "model.7")
    saved = 3 * weights[convolutions["/model.7/conv/Conv"]]
    assert saved < part.kept_bytes + 1500 < saved + 3000  # beside names and scales of nodes that are left out
    assert all(part.kept_latency > 0 for part in report.parts)
    assert report.int8.milliseconds > 0
    assert report.processor
    assert sum(part.convolutions for part in report.parts) == len(qdq.plan(model).convolutions)


def test_single_layers_are_ranked(measure):
    report = measure(per_layer=True)
    names = {f"model.22.cv3.1.{index}.conv" for index in (0, 1)} | {"model.1.conv", f"{PLANTED}.conv"}
    assert {part.name for part in report.parts} == names
    assert report.worst(1) == [f"{PLANTED}.conv"]
    assert {part.convolutions for part in report.parts} == {1}


def test_what_is_kept_in_float_is_no_part(measure):
    report = measure(keep_float=[*OTHERS, PLANTED])
    assert {part.name for part in report.parts} == {"model.1", "model.22.cv3.1"}
    assert report.int8.snr > measure().int8.snr + 10


def test_a_part_is_what_is_quantised_alone(tmp_path, data_set):
    model = YOLO("yolov8n-fast.yaml")  # with layers inside of others, and without modules of their own
    model.model = detector("yolov8n-fast", width=0.25)
    model.model.task = "detect"
    path = export(model, imgsz=SIZE, path=tmp_path / "fast.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the values of an untrained network
        found = calibrated(path, data_set, tmp_path)
    layers = qdq.layers(found.source.graph)
    for per_layer in (False, True):
        variants = Variants(found, per_layer=per_layer)
        assert sum(variants.parts.values()) == len(found.plan.convolutions)
        for part in list(variants.parts)[:: 15 if per_layer else 8]:
            int8 = [item for item in variants.only(part).graph.initializer if item.name.endswith("weight_scale")]
            inside = {node for node, layer in layers.items() if f"{layer}.".startswith(f"{part}.")}
            assert len(int8) == variants.parts[part] == len(inside & set(found.plan.convolutions))


def test_map_is_that_of_ultralytics(checkpoint, file, data_set):
    expected = evaluate(YOLO(checkpoint), str(data_set), SIZE)
    detector = Detector(file, conf=0.001, iou=0.7, multi_label=True)

    def find(image):
        (rows,) = detector.postprocess(detector.run(image), [Placement((SIZE, SIZE), (SIZE, SIZE), 0, 0)])
        return np.column_stack(list(rows))

    labelled = LabelledImages(data_set, SIZE, NAMES)
    for _ in range(2):  # metrics of one measurement do not leak into the next
        accuracy = labelled.measure(find)
        assert accuracy.map50 == pytest.approx(expected.map50, abs=0.01)
        assert accuracy.map50_95 == pytest.approx(expected.map50_95, abs=0.01)


def test_classes_of_one_name_have_accuracies_of_their_own(file, data_set):
    labelled = LabelledImages(data_set, SIZE, ["red", *["other"] * (len(NAMES) - 1)])
    nothing = labelled.measure(lambda image: np.empty((0, 6)))
    assert [*nothing.by_class] == ["red", *(f"other ({label})" for label in range(1, len(NAMES)))]


def test_noise_is_the_power_of_the_difference(file, data_set, cache):
    found = calibrated(file, data_set, cache)
    variants = Variants(found)
    image = np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)
    int8 = variants.without(())
    noise = Noise(variants, [image])
    powers = noise.powers(int8)
    pairs = list(zip(run(int8, image), run(variants.model, image), strict=True))
    np.testing.assert_allclose(powers, [np.square(x - y).sum() for x, y in pairs], rtol=1e-3)
    signal = [np.square(y - y.mean((2, 3), keepdims=True)).sum() for _, y in pairs]
    assert noise.decibels(powers) == pytest.approx(10 * np.log10(sum(signal) / sum(powers)), abs=0.01)
    of_level = 10 * np.log10((signal[1] + signal[4]) / (powers[1] + powers[4]))
    assert noise.decibels(powers, 1) == pytest.approx(of_level, abs=0.01)
    assert noise.decibels([0.0] * 6) == 120


def run(model: onnx.ModelProto, image: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, {"images": image}
    )


# auto:N


def test_auto_keeps_the_planted_layer_in_float(file, data_set, cache, tmp_path):
    settings = {"calibrator": "minmax", "cache": cache}
    path = quantize(file, data_set, keep_float=["auto:1"], path=tmp_path / "auto.onnx", **settings)
    note = json.loads({entry.key: entry.value for entry in onnx.load(path).metadata_props}[QUANTIZATION_KEY])
    assert note["keep_float"] == [PLANTED]
    before, after = note["snr"]
    assert after > before + 10
    named = quantize(file, data_set, keep_float=[PLANTED], path=tmp_path / "named.onnx", **settings)
    assert onnx.load(named).graph == onnx.load(path).graph
    both = quantize(file, data_set, keep_float=["model.1", "auto:1"], path=tmp_path / "both.onnx", **settings)
    note = json.loads({entry.key: entry.value for entry in onnx.load(both).metadata_props}[QUANTIZATION_KEY])
    assert note["keep_float"] == ["model.1", PLANTED]


@pytest.mark.parametrize("keep_float", [["auto"], ["auto:0"], ["auto:x"], ["auto:1", "auto:2"]])
def test_auto_is_a_number(file, data_set, keep_float):
    with pytest.raises(ValueError, match=r"keep_float must have 'auto:N' once"):
        quantize(file, data_set, keep_float=keep_float)


def test_auto_leaves_something_to_quantise(file, data_set, cache):
    with pytest.raises(ValueError, match=r"expected auto:N with N in \[1, 21\], got auto:22"):
        quantize(file, data_set, keep_float=["auto:22"], calibrator="minmax", cache=cache)


# Resumption


def test_an_interrupted_measurement_goes_on(measure, data_set, tmp_path, monkeypatch):
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "noise" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(cache=tmp_path, on_progress=interrupt)
    calls: list[Any] = []
    powers = Noise.powers
    monkeypatch.setattr(Noise, "powers", lambda self, model: calls.append(model) or powers(self, model))

    def measured(**changes: Any) -> tuple[list[float], int]:
        """The parts' noise, and how many variants had to run for it."""
        calls.clear()
        return [part.snr for part in measure(cache=tmp_path, **changes).parts], len(calls)

    everything = 4  # the whole and three parts
    noise, runs = measured()
    assert runs == everything - 2
    assert measured() == (noise, 0)
    files = sorted((data_set.parent / "images").iterdir())
    other_noise, runs = measured(data=files[1:])
    assert runs == everything
    assert other_noise != noise
    for file in tmp_path.glob("sensitivity-*.json"):
        file.write_text("{")
    assert measured() == (noise, everything)


def test_map_is_measured_once_for_the_same_images_and_labels(measure, data_set, tmp_path, monkeypatch):
    calls: list[Any] = []
    original = LabelledImages.measure
    monkeypatch.setattr(LabelledImages, "measure", lambda *arguments: calls.append(0) or original(*arguments))
    copy = tmp_path / "copy"
    shutil.copytree(data_set.parent, copy, ignore=shutil.ignore_patterns("*.cache"))
    arguments = {"data": copy / "data.yaml", "accuracy_of": 1, "cache": tmp_path}
    measure(**arguments)
    measure(**arguments)
    assert len(calls) == 3  # of the float network, the whole and a part
    label = copy / "labels" / "00.txt"
    label.write_text(label.read_text().replace("0.", "0.1", 1))
    measure(**arguments)
    assert len(calls) == 6


# What cannot be measured


def test_images_without_labels_have_no_map(measure, data_set):
    report = measure(data=data_set.parent / "images", accuracy_of=1)
    assert report.labelled_images == 0
    assert report.float32.map50 is None
    assert all(part.map50_loss is None for part in report.parts)
    assert report.notes == ("mAP was not measured: images without a data set's YAML file have no labels.",)


def test_map_needs_square_inputs(measure, checkpoint, tmp_path):
    wide = export(checkpoint, imgsz=(32, 64), path=tmp_path / "wide.onnx")
    report = measure(weights=wide, accuracy_of=1)
    assert report.notes == ("mAP was not measured: ultralytics validates with square inputs.",)


def test_bad_input_is_refused(measure, file, data_set, tmp_path):
    with pytest.raises(ValueError, match="accuracy_of must be at least 0, got -1"):
        measure(accuracy_of=-1)
    with pytest.raises(TypeError, match="per_layer must be True or False, got 1"):
        measure(per_layer=1)
    with pytest.raises(ValueError, match="calibrator must be of entropy, percentile, minmax, got 'kl'"):
        measure(calibrator="kl")
    few = tmp_path / "few.yaml"
    few.write_text(
        yaml.safe_dump({**yaml.safe_load(data_set.read_text()), "path": str(data_set.parent), "names": ["a"]})
    )
    with pytest.raises(ValueError, match="with the model's 3 classes, got 1"):
        measure(data=few, accuracy_of=1)
    foreign = onnx.load(file)
    for node in foreign.graph.node:
        node.name = node.name.replace("/cv2", "/box").replace("/cv3", "/class")
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="no maps of ultralytics' Detect head"):
        measure(weights=tmp_path / "foreign.onnx", keep_float=[])


# The command line


@pytest.mark.usefixtures("no_timing")
def test_the_command_prints_and_writes_the_report(file, data_set, cache, tmp_path, monkeypatch):
    arguments = ["quantize", "--sensitivity", "--weights", str(file), "--data", str(data_set), "--calibrator", "minmax"]
    arguments += [word for name in OTHERS for word in ("--keep-float", name)]
    outputs = ["--json", str(tmp_path / "report.json"), "--plot", str(tmp_path / "report.png")]
    monkeypatch.setenv("COLUMNS", "160")
    result = CliRunner().invoke(app, [*arguments, *outputs, "--cache", str(cache), "--accuracy-of", "1"])
    assert result.exit_code == 0, result.output
    assert PLANTED in result.output
    assert "all in int8" in result.output
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["kind"] == "sensitivity"
    assert document["parts"][0]["name"] == PLANTED
    picture = cv2.imread(str(tmp_path / "report.png"))
    assert min(picture.shape[:2]) > 300
    assert picture.std() > 10
    assert not file.with_name("planted-int8.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "a.png"], "--plot is for --sensitivity"),
        (["--accuracy-of", "0"], "--accuracy-of is for --sensitivity"),
        (["--sensitivity", "--output", "a.onnx", "--dynamic"], "--dynamic, --output cannot be combined"),
        (["--sensitivity", "--plot", "a.gif"], "expected a file that ends in .pdf, .png, .svg"),
    ],
)
def test_options_that_do_not_fit_are_refused(file, data_set, options, message, capsys):
    with pytest.raises(SystemExit) as failure:
        app(["quantize", "--weights", str(file), "--data", str(data_set), *options])
    assert failure.value.code == 2
    assert message in capsys.readouterr().err


# Warnings about calibration images


def pictures(folder: Path, make: Callable[[np.ndarray], np.ndarray], data_set: Path) -> list[Path]:
    """The scenes, changed."""
    folder.mkdir()
    for path in sorted((data_set.parent / "images").glob("*.png")):
        cv2.imwrite(str(folder / path.name), make(cv2.imread(str(path))))
    return sorted(folder.iterdir())


FOREIGN = {
    "black": lambda image: np.zeros_like(image),
    "white": lambda image: np.full_like(image, 255),
    "noise": lambda image: np.random.default_rng(0).integers(0, 2, image.shape, np.uint8) * 255,
    "dark": lambda image: image // 8,
}


def says(checkpoint: Path, images: list[Path]) -> str | None:
    return domain.of_images(checkpoint, images, (SIZE, SIZE), Preprocessing())


def test_images_of_the_training_are_not_warned_of(checkpoint, data_set):
    assert says(checkpoint, sorted((data_set.parent / "images").glob("*.png"))) is None


@pytest.mark.parametrize("kind", FOREIGN)
def test_images_of_another_kind_are_warned_of(checkpoint, data_set, tmp_path, kind):
    sentence = says(checkpoint, pictures(tmp_path / kind, FOREIGN[kind], data_set))
    assert sentence is not None
    assert sentence.startswith("The calibration images do not look like those that the model was trained on")


def test_quantize_warns_of_them(checkpoint, data_set, tmp_path):
    images = pictures(tmp_path / "dark", FOREIGN["dark"], data_set)
    settings = {"calibrator": "minmax", "imgsz": SIZE, "cache": tmp_path}
    with pytest.warns(UserWarning, match="do not look like those that the model was trained on"):
        quantize(checkpoint, images, path=tmp_path / "a.onnx", **settings)
    quantize(checkpoint, data_set, path=tmp_path / "a.onnx", **settings)  # warnings are errors here


def test_a_checkpoint_without_statistics_cannot_be_checked(checkpoint, data_set, tmp_path):
    model = YOLO(checkpoint)
    model.model.fuse(verbose=False)
    model.save(tmp_path / "fused.pt")
    sentence = says(tmp_path / "fused.pt", sorted((data_set.parent / "images").glob("*.png")))
    assert sentence is not None
    assert "cannot be compared with those of the training" in sentence


def test_a_network_keeps_no_trace_of_the_check(checkpoint):
    network = YOLO(checkpoint).model.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    domain.divergence(network, [np.zeros((1, 3, SIZE, SIZE), np.float32)])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


def histogram(values: np.ndarray) -> tuple[Any, ...]:
    """As ONNX Runtime's collector keeps it."""
    limit = max(float(np.abs(values).max()), 1e-9)
    counts, edges = np.histogram(values, 4096, (-limit, limit))
    return counts, edges, values.min(), values.max(), np.float32(limit)


def test_constant_tensors_and_outliers_are_warned_of():
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    outlier = np.append(values, np.float32(1e3))
    found = Calibration({"dead": histogram(0 * values), "far": histogram(outlier), "fine": histogram(values)}, 8, "")
    assert domain.of_values(replace(found, histograms={"fine": found.histograms["fine"]}), ["fine"]) == []
    dead, far = domain.of_values(found, ["dead", "far", "fine"])
    assert dead.startswith("The tensor 'dead' has the same value everywhere")
    assert far.startswith("The tensor 'far' has extreme outliers: up to 1e+03 where")


@pytest.mark.data
def test_yolov8n_knows_photographs_from_circuit_boards(data):
    weights = data / "weights" / "yolov8n-recovered.pt"
    photographs = sorted((data / "coco128-val" / "images").glob("*.jpg"))[:16]
    boards = sorted((data / "deeppcb").rglob("*.png"))[:16]
    given = ((320, 320), Preprocessing())
    assert domain.of_images(weights, photographs, *given) is None
    sentence = domain.of_images(weights, boards, *given)
    assert sentence is not None
    assert "do not look like" in sentence
