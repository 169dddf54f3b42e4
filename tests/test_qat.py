# SPDX-License-Identifier: AGPL-3.0-or-later
"""Training for INT8: where the network rounds, the run, its checkpoints, and the file that comes of it."""

from __future__ import annotations

import copy
import csv
import json
import pickle
import pickletools
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("modelopt")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxslim")
pytest.importorskip("ultralytics")

import cv2
import onnx
import onnxruntime
import onnxruntime.quantization
import yaml
from onnx import ModelProto, numpy_helper
from shapes import NAMES, write_shapes
from torch import Tensor, nn
from typer.testing import CliRunner
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils.torch_utils import init_seeds

from fastyolo._files import locked
from fastyolo.cli import app
from fastyolo.compress.quantization import qat, qdq, quantize
from fastyolo.export import export
from fastyolo.integrations import modelopt
from fastyolo.integrations.ultralytics import quantization as training
from fastyolo.integrations.ultralytics import runs
from fastyolo.integrations.ultralytics.quantization import QuantizationTrainer
from fastyolo.nn import DWSPPF
from fastyolo.train import Trainer

# Each way in which maps get from one convolution to the next: residual sums in a module of their own and within
# another, a gate, a channel shuffle, a split, pools and convolutions without modules, an enlargement, concatenations.
NETWORK = {
    "nc": len(NAMES),
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 2, "GELAN", [32, True, 2, 0.5]],
        [-1, 1, "DSConv", [48, 3, 2]],
        [-1, 2, "C2f", [48, True]],
        [-1, 1, "DWSPPF", [48]],
        [-1, 1, "SPPF", [48]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "GELAN", [32]],
        [[9, 6], 1, "LightDetect", ["nc", 1.0]],
    ],
}
SIZE = 64
METRICS = ("precision", "recall", "mAP50", "mAP50-95")
RUN = {"epochs": 2, "batch": 4, "nbs": 4, "device": "cpu", "plots": False, "verbose": False}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a data set, shapes.yaml, and a checkpoint, float.pt, as training leaves one: here with random weights."""
    folder = tmp_path_factory.mktemp("qat")
    write_shapes(folder, train=8, val=4)
    init_seeds(0)
    network = DetectionModel(NETWORK, verbose=False)
    network.names = dict(enumerate(NAMES))
    for branch in network.model[-1].cv3:
        nn.init.constant_(branch[-1].bias, -2)  # scores that are high enough to distil
    normalisations = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for momentum in (1.0, 0.03):  # from the maps themselves, then as in training
        for module in normalisations:
            module.momentum = momentum
        network(pictures(folder))
    train_args = {"epochs": 80, "lr0": 0.02, "optimizer": "SGD", "momentum": 0.9, "imgsz": 32}
    torch.save({"model": network.eval(), "train_args": train_args}, folder / "float.pt")
    return folder


def pictures(folder: Path) -> Tensor:
    """The training images of the data set, [N, 3, H, W]."""
    files = sorted((folder / "images" / "train").iterdir())
    images = torch.stack([torch.from_numpy(cv2.imread(str(file))[..., ::-1].copy()) for file in files])
    return images.permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def graph(folder: Path) -> ModelProto:
    return onnx.load(export(folder / "float.pt", path=folder / "float.onnx", imgsz=SIZE))


@pytest.fixture(scope="module")
def places(graph: ModelProto, folder: Path) -> qat.Quantization:
    """With the ranges of one image."""
    plan = qdq.plan(graph)
    tensors = [tensor for group in plan.sources for tensor in group]
    values = dict(zip(tensors, run(graph, pictures(folder)[:1], tensors), strict=True))
    scales = [max(values[tensor].abs().max().item() for tensor in group) / 127 for group in plan.sources]
    return qat.quantization(graph, plan, scales)


@pytest.fixture
def network(folder: Path) -> DetectionModel:
    return load_checkpoint(folder / "float.pt")[0]


@pytest.fixture(scope="module")
def trained(folder: Path) -> tuple[ModelProto, Path, dict[str, Any]]:
    """Of `fastyolo quantize --method qat`: the file, the folder of the run, and the report."""
    options = ["--weights", folder / "float.pt", "--data", folder / "shapes.yaml", "--output", folder / "trained.onnx"]
    options += [
        "--calibrator",
        "minmax",
        "--imgsz",
        SIZE,
        "--cache",
        folder / "cache",
        "--json",
        folder / "report.json",
    ]
    options += ["--method", "qat", "--epochs", RUN["epochs"], "--device", "cpu"]
    for name in RUN.keys() - {"epochs", "device"}:
        options += ["--set", f"{name}={json.dumps(RUN[name])}"]
    result = CliRunner().invoke(app, ["quantize", *map(str, options)])
    assert result.exit_code == 0, result.output
    return onnx.load(folder / "trained.onnx"), folder / "trained", json.loads((folder / "report.json").read_text())


def run(graph: ModelProto, image: Tensor, tensors: list[str] | None = None) -> list[Tensor]:
    """Outputs of a graph, or the tensors of these names, as the nodes say: without ONNX Runtime's own int8 kernels."""
    graph = copy.deepcopy(graph)
    known = {value.name for value in graph.graph.output}
    graph.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in tensors or ()
        if name not in known | {"images"}
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, map(torch.from_numpy, session.run(None, {"images": image.numpy()})), strict=True))
    return [(found | {"images": image})[name] for name in (tensors or names)]


def maps(network: DetectionModel, image: Tensor) -> list[Tensor]:
    """As a graph with the outputs "maps" has them."""
    found = network(image)[1]
    sizes = [feature.shape[2:] for feature in found["feats"]]
    return [
        part.unflatten(2, size)
        for kind in ("boxes", "scores")
        for part, size in zip(found[kind].split([size.numel() for size in sizes], 2), sizes, strict=True)
    ]


def rms(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return torch.cat([(a - b).flatten() for a, b in zip(ours, theirs, strict=True)]).square().mean().sqrt().item()


# Where the network rounds


@torch.no_grad()
def test_network_computes_what_the_int8_file_does(graph, places, network, folder):
    """On the image where they agree best: where a value is halfway between two steps, noise decides, and all that
    follows differs a little."""
    plan = qdq.plan(graph)
    file = qdq.insert(graph, plan, places.scales(plan))
    rounded = copy.deepcopy(network)
    training.rounding(rounded, places)
    shares = []
    for image in pictures(folder)[1:].split(1):
        floats, wanted = maps(network, image), run(file, image)
        assert rms(floats, run(graph, image)) < 1e-3 * rms(floats, wanted)
        shares.append(rms(maps(rounded, image), wanted) / rms(floats, wanted))
    assert min(shares) < 0.01


def test_convolutions_and_sums_round_where_the_plan_quantises(graph, places, network):
    """And two of them have one quantiser exactly where their tensors have one scale."""
    plan = qdq.plan(graph)
    training.rounding(network, places)
    quantisers = {}
    seen: dict[str, int] = {}
    for node in graph.graph.node:
        layer = network.get_submodule(qdq.layer_of(node.name)) if node.op_type in ("Conv", "Add") else None
        index = seen[f"{node.op_type} {layer}"] = seen.get(f"{node.op_type} {layer}", -1) + 1
        if node.op_type == "Add":
            quantisers[node.input[0]] = quantisers[node.input[1]] = layer.sum_quantizers[index]
        elif node.name in plan.convolutions:
            stages = isinstance(layer, DWSPPF)
            quantiser = layer.stage_quantizers[index] if stages else layer.input_quantizer
            assert quantisers.setdefault(node.input[0], quantiser) is quantiser
            assert layer.weight_quantizer.axis == ((0, 1) if stages else 0)
        elif node.op_type == "Conv":
            assert type(layer).__module__ != "modelopt.torch.opt.dynamic"
    for group in plan.groups:
        assert len({id(quantisers[tensor]) for tensor in group if tensor in quantisers}) == 1
    assert len({id(quantiser) for quantiser in quantisers.values()}) == len(plan.groups)


def test_gradient_passes_the_rounding(places, network):
    training.rounding(network, places)
    network.requires_grad_(True).train()
    found = network(torch.rand(2, 3, SIZE, SIZE))
    (found["boxes"].square().mean() + found["scores"].square().mean()).backward()
    for name, parameter in network.named_parameters():
        if ".dfl." not in name:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@torch.no_grad()
def test_rounding_is_removed(places, network):
    image = torch.rand(1, 3, SIZE, SIZE)
    names, before = list(network.state_dict()), maps(network, image)
    training.rounding(network, places)
    assert list(network.state_dict()) == names
    assert rms(maps(copy.deepcopy(network), image), maps(network, image)) == 0
    assert rms(maps(network, image), before) > 0
    modelopt.remove(network)
    assert rms(maps(network, image), before) == 0
    assert b"modelopt" not in pickle.dumps(network)


def test_other_quantiser_is_left_alone():
    assert onnxruntime.quantization.quantize_static.__module__ == "onnxruntime.quantization.quantize"
    assert not [name for name in sys.modules if name.startswith("modelopt.onnx")]


# The run


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "results.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def structure(graph: ModelProto) -> Any:
    """The nodes and the maps between them. Weights and biases have other names where two of them are equal."""
    weights = {item.name for item in graph.graph.initializer if not item.name.startswith("quantization.")}
    return [
        (node.op_type, node.name, [name for name in node.input if name not in weights], node.output[:])
        for node in graph.graph.node
        if weights.isdisjoint(node.input[:1])
    ]


def test_file_is_that_of_ptq_with_other_weights(trained, folder):
    settings = {"calibrator": "minmax", "imgsz": SIZE, "cache": folder / "cache", "path": folder / "ptq.onnx"}
    ours, theirs = trained[0], onnx.load(quantize(folder / "float.pt", folder / "shapes.yaml", **settings))
    assert structure(ours) == structure(theirs)
    constants = [{item.name: numpy_helper.to_array(item) for item in file.graph.initializer} for file in (ours, theirs)]
    of_maps = [name for name in constants[0] if name.startswith("quantization.scale")]
    assert of_maps
    assert all(constants[0][name] == pytest.approx(constants[1][name], rel=1e-6) for name in of_maps)
    weights = [name for name, value in constants[0].items() if value.dtype == "int8" and value.ndim == 4]
    assert sum((constants[0][name] != constants[1][name]).any() for name in weights) > len(weights) / 2


def test_file_has_the_weights_of_the_best_checkpoint(trained):
    file, folder, _ = trained
    stored = {item.name: numpy_helper.to_array(item) for item in file.graph.initializer}
    weights = YOLO(folder / "weights" / "best.pt").model.fuse(verbose=False).state_dict()
    for name in ("model.0.conv.weight", "model.3.depthwise.conv.weight", "model.4.m.1.cv2.conv.weight"):
        steps = stored[f"{name}_scale"].reshape(-1, 1, 1, 1)
        assert abs(stored[f"{name}_quantized"] * steps - weights[name].numpy()).max() <= 0.501 * steps.max()


def test_arguments_are_those_of_a_short_fine_tuning(trained, folder):
    arguments = yaml.safe_load((trained[1] / "args.yaml").read_text())
    expected = {
        "lr0": 0.0002,
        "optimizer": "SGD",
        "momentum": 0.9,
        "imgsz": SIZE,
        "epochs": 2,
        "mosaic": 0,
        "amp": False,
    }
    assert {name: arguments[name] for name in expected} == expected
    assert arguments["distill_model"] == str(trained[1] / "float.pt")
    assert max(row["lr/pg0"] for row in rows(trained[1])) <= 0.0002
    assert all(row["train/kd_cls"] > 0 for row in rows(trained[1]))
    unspecified = training._arguments(YOLO(folder / "float.pt"), {"optimizer": "auto"})
    assert (unspecified["optimizer"], unspecified["epochs"]) == ("AdamW", 8)
    assert unspecified["lr0"] == pytest.approx(0.01 * 0.002 * 5 / 7)


def test_statistics_are_frozen_after_the_warm_up(folder, places, tmp_path):
    start = tmp_path / "start.pt"
    training._write_checkpoint(YOLO(folder / "float.pt"), places, start)
    overrides = {**RUN, "imgsz": SIZE, "model": str(start), "data": str(folder / "shapes.yaml"), "warmup_epochs": 1.0}
    trainer = QuantizationTrainer(overrides={**overrides, "save_dir": str(tmp_path / "run"), "val": False})
    means = [load_checkpoint(start)[0].model[0].bn.running_mean]
    trainer.add_callback(
        "on_train_epoch_end", lambda trainer: means.append(trainer.model.model[0].bn.running_mean.clone())
    )
    trainer.train()
    assert not torch.equal(means[0], means[1])
    assert torch.equal(means[1], means[2])
    assert type(trainer.model.model[0].conv) is not nn.Conv2d


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoint_needs_no_modelopt(trained, monkeypatch, name):
    file = trained[1] / "weights" / f"{name}.pt"
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
    names = [argument for opcode, argument, _ in pickletools.genops(pickled) if opcode.name == "GLOBAL"]
    assert not [name for name in names if "modelopt" in name or "compress" in name]
    for module in [module for module in sys.modules if module.split(".")[0] == "modelopt"]:
        monkeypatch.setitem(sys.modules, module, None)
    model = YOLO(file)
    assert type(model.model.model[0].conv) is nn.Conv2d
    assert model.predict(torch.zeros(1, 3, SIZE, SIZE), verbose=False)


def test_report_has_the_metrics_of_the_best_epoch(trained):
    metrics = {name: trained[2]["metrics"][name] for name in ("mAP50", "mAP50-95")}
    epochs = [{name: row[f"metrics/{name}(B)"] for name in metrics} for row in rows(trained[1])]
    assert any(metrics == pytest.approx(epoch, abs=1e-5) for epoch in epochs)


def test_killed_run_goes_on(folder, places, tmp_path, monkeypatch):
    model, weights = YOLO(folder / "float.pt"), tmp_path / "run" / "weights"
    train_epoch, validate, validated = QuantizationTrainer._model_train, QuantizationTrainer.validate, []

    def train() -> Path:
        given = {**RUN, "imgsz": SIZE, "optimizer": "auto"}
        return training.train(model, folder / "shapes.yaml", places, tmp_path / "run", given)

    def kill(epoch: int) -> None:
        def interrupt(trainer: QuantizationTrainer) -> None:
            if trainer.epoch == epoch:
                raise KeyboardInterrupt
            train_epoch(trainer)

        monkeypatch.setattr(QuantizationTrainer, "_model_train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train()
        monkeypatch.setattr(QuantizationTrainer, "_model_train", train_epoch)

    def note(trainer: QuantizationTrainer) -> Any:
        validated.append(type(trainer.ema.ema.student_model.model[0].conv) is not nn.Conv2d)
        return validate(trainer)

    kill(0)  # with no checkpoint yet
    kill(1)
    assert load_checkpoint(weights / "last.pt")[1]["epoch"] == 0
    with pytest.raises(ValueError, match=r"resume must be a checkpoint of fastyolo train, and .* is of a training for"):
        Trainer(overrides={"resume": str(weights / "last.pt")}).train()
    monkeypatch.setattr(QuantizationTrainer, "validate", note)
    best = train()
    assert validated == [True]
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [1, 2]
    assert training.quantization_of(load_checkpoint(best)[0]) == places
    before = best.read_bytes()
    assert train() == best
    assert best.read_bytes() == before


@pytest.mark.parametrize(("second", "gained"), [(0.3, False), (0.6, True)])
def test_best_is_the_start_until_an_epoch_is_better(folder, places, tmp_path, monkeypatch, second, gained):
    """Over a kill, too."""
    fitness = iter([0.5, 0.4, second])

    class Scripted(DetectionValidator):
        def __call__(self, trainer: Any = None, model: Any = None) -> dict[str, float]:
            value = next(fitness)
            return {**{f"metrics/{name}(B)": value for name in METRICS}, "fitness": value}

    def scripted(trainer: QuantizationTrainer) -> DetectionValidator:
        validator = get_validator(trainer)
        validator.__class__ = Scripted
        return validator

    def train() -> Path:
        given = {**RUN, "imgsz": SIZE}
        return training.train(YOLO(folder / "float.pt"), folder / "shapes.yaml", places, tmp_path / "run", given)

    def interrupt(trainer: QuantizationTrainer) -> None:
        if trainer.epoch == 1:
            raise KeyboardInterrupt
        train_epoch(trainer)

    get_validator, train_epoch = QuantizationTrainer.get_validator, QuantizationTrainer._model_train
    monkeypatch.setattr(QuantizationTrainer, "get_validator", scripted)
    with monkeypatch.context() as patch:
        patch.setattr(QuantizationTrainer, "_model_train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train()
    best = train()
    weights = [YOLO(file).model.state_dict() for file in (folder / "float.pt", best)]
    same = all(torch.equal(weights[0][name].half(), weights[1][name].half()) for name in weights[0])
    assert training.is_start(best) is same is not gained
    assert runs.finished(tmp_path / "run") == dict.fromkeys(METRICS, max(0.5, second))
    assert training.quantization_of(load_checkpoint(best)[0]) == places


# Refusals


@pytest.mark.parametrize("option", [("--epochs", "2"), ("--device", "cpu"), ("--save-dir", "run"), ("--set", "lr0=1")])
def test_options_of_training_are_refused_without_it(folder, option):
    command = ["quantize", "--weights", str(folder / "float.pt"), "--data", str(folder / "shapes.yaml"), *option]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert f"{option[0]} is for --method qat" in result.output


def test_folder_of_something_else_is_refused(trained, folder, places, tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    model, data = YOLO(folder / "float.pt"), folder / "shapes.yaml"
    with pytest.raises(
        ValueError, match=r"save_dir must be a new or an empty folder, and .* holds files; name another"
    ):
        training.train(model, data, places, tmp_path, RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with locked(trained[1], "x"), pytest.raises(ValueError, match="no other fastyolo is at work"):
        training.train(model, data, places, trained[1], RUN)
    with pytest.raises(ValueError, match=r"save_dir must be new or the folder of the same training, and the one in"):
        training.train(model, data, places, trained[1], RUN)


def test_other_arguments_than_those_of_the_run_are_refused(trained, folder):
    same = training.quantization_of(load_checkpoint(trained[1] / "float.pt")[0])
    with pytest.raises(ValueError, match=r"epochs must be 2, with which the training in .* was begun, got 3; leave it"):
        training.train(YOLO(folder / "float.pt"), "shapes.yaml", same, trained[1], {**RUN, "epochs": 3})


def test_plain_checkpoint_is_refused(folder, tmp_path):
    overrides = {**RUN, "model": str(folder / "float.pt"), "data": str(folder / "shapes.yaml")}
    trainer = QuantizationTrainer(overrides={**overrides, "save_dir": str(tmp_path)})
    with pytest.raises(
        ValueError, match=r"model must be a checkpoint that carries its ranges, and .*float\.pt does not"
    ):
        trainer.train()


def test_untrained_model_is_refused(places, tmp_path):
    with pytest.raises(
        ValueError, match=r"weights must be a checkpoint, since training for INT8 starts from a trained"
    ):
        training.train(YOLO("yolov8n.yaml"), "shapes.yaml", places, tmp_path / "run", {})


def test_graph_with_other_tensors_is_refused(graph, places):
    with pytest.raises(ValueError, match=r"The graph has other tensors than the one that the ranges were measured in"):
        places.scales(qdq.plan(graph, keep_float=["model.0"]))


def test_convolution_of_several_is_refused(network):
    with pytest.raises(ValueError, match=r"The convolution model\.4\.conv is not one in training.* in keep_float"):
        modelopt.quantize(network, [1.0], {"model.4.conv": [0]}, {})


def test_sums_that_the_graph_lacks_are_refused(network):
    modelopt.quantize(network, [1.0], {}, {"model.2": [0]})
    with pytest.raises(
        ValueError, match=r"A layer adds more maps in training than when it is exported; name its block"
    ):
        network(torch.rand(1, 3, SIZE, SIZE))


def test_arguments_that_others_tell_are_refused(folder):
    with pytest.raises(
        ValueError, match=r"training \(--set\) must not hold imgsz, model, which other arguments of quantize tell"
    ):
        quantize(folder / "float.pt", folder / "shapes.yaml", method="qat", training={"model": "x.pt", "imgsz": 128})
