# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pruning: what is removed is removed everywhere, and what is written trains, exports and prunes again."""

from __future__ import annotations

import copy
import csv
import json
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

pytest.importorskip("torch_pruning")
pytest.importorskip("ultralytics")

from detectors import detector
from shapes import TINY, write_shapes, write_tiny
from typer.testing import CliRunner
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

import fastyolo
from fastyolo._files import locked
from fastyolo.cli import app
from fastyolo.compress.pruning import channels as finding
from fastyolo.compress.pruning import prune, selection
from fastyolo.compress.pruning.latency import LatencyMeter
from fastyolo.integrations.ultralytics import pruning as integration
from fastyolo.integrations.ultralytics.acceleration import HeadTap
from fastyolo.integrations.ultralytics.facts import PARTS, cost
from fastyolo.integrations.ultralytics.sparsity import Sparsity
from fastyolo.nn import DWSPPF, ECA, GELAN, SplitC2f
from fastyolo.train import Trainer
from fastyolo.train.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = ("yolov8n", "yolo11n", "yolov8n-fast")
SIZE = 64


def lively(network: Any) -> Any:
    """The network with normalisations as different as those of a trained one, and ECA that mixes no channels: those
    that pruning makes neighbours were none before."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        elif isinstance(module, DWSPPF):
            nn.init.normal_(module.bias)
        elif isinstance(module, ECA):
            module.weight.data.zero_()[len(module.weight) // 2] = 0.7
    return network.eval()


def model_of(network: DetectionModel) -> YOLO:
    model = YOLO("yolov8n.yaml")
    model.model = lively(network)
    model.model.task = "detect"
    return model


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> YOLO:
    return model_of(detector(request.param, width=0.25))


def maps(network: Any, images: Tensor) -> list[Tensor]:
    with torch.no_grad(), HeadTap(network.model[-1]):
        return integration.forward(network, images)


def images(size: int = SIZE) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def found_in(network: Any, **settings: Any) -> tuple[finding.Channels, Any]:
    with integration.traceable(network) as trace:
        given = {"multiple": 8, "fixed": trace.fixed, "shuffled": trace.shuffled, **settings}
        return finding.find(network, torch.zeros(1, 3, SIZE, SIZE), integration.forward, **given), trace


def halved(channels: finding.Channels) -> list[int]:
    return [coupling.counts[len(coupling.counts) // 2] for coupling in channels.couplings]


@torch.no_grad()
def silence(network: nn.Module, channels: finding.Channels, counts: list[int]) -> None:
    """Make the channels that would be removed 0 wherever they appear."""
    for coupling, count in zip(channels.couplings, counts, strict=True):
        gone = ~coupling.kept(count)
        for member in coupling.members:
            layer: Any = network.get_submodule(member.layer)
            index = torch.from_numpy(member.channels[gone[member.roots]])
            if member.side != "in":
                layer.weight[index] = 0
                if layer.bias is not None:
                    layer.bias[index] = 0


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(ours, theirs, strict=True))


def test_rewritten_blocks_compute_the_same(model):
    network = integration.prunable(model)
    assert any(isinstance(module, SplitC2f | GELAN) for module in network.modules())
    assert largest_difference(maps(network, images()), maps(model.model, images())) <= 1e-5


@pytest.mark.parametrize("importance", ["gamma", "l1"])
def test_removing_channels_that_are_zero_changes_nothing(model, importance):
    """A channel that stayed anywhere, or a wrong one that went, would shift what the others are multiplied by."""
    network = integration.prunable(model)
    channels, trace = found_in(network, importance=importance)
    counts = halved(channels)
    pruned, silent = copy.deepcopy(network), copy.deepcopy(network)
    with integration.traceable(pruned):
        finding.remove(pruned, channels.couplings, counts, trace.shuffled)
    with integration.traceable(silent):
        silence(silent, channels, counts)
    assert largest_difference(maps(pruned, images()), maps(silent, images())) < 1e-5
    assert largest_difference(maps(silent, images()), maps(network, images())) > 0.1
    before, after = integration.widths(network), integration.widths(pruned)
    touched = [name for name in before if before[name] != after[name]]
    assert len(touched) > 0.8 * len(before)
    assert all(after[name][1] % 8 == 0 for name in touched if before[name][1] != after[name][1])
    head = f"model.{len(network.model) - 1}."
    assert any(name.startswith(head) for name in touched)
    assert all(after[name][1] == before[name][1] for name in trace.fixed)
    flops = [cost(each, SIZE)["flops"] for each in (network, pruned)]
    assert channels.flops(channels.full) - channels.flops(counts) == pytest.approx(flops[0] - flops[1], rel=1e-3)


@pytest.mark.parametrize(("groups", "width", "count"), [(1, 32, 16), (2, 48, 32), (3, 48, 24), (4, 96, 32)])
@pytest.mark.parametrize("shortcut", [False, True])
def test_groups_that_are_shuffled_keep_their_channels(groups, width, count, shortcut):
    """Also where the channels of a group do not divide by the groups, so that the shuffle cuts unevenly."""
    torch.manual_seed(0)
    block = GELAN(16, width, n=3, shortcut=shortcut, g=groups, e=1.0)
    network = lively(nn.Sequential(nn.Conv2d(16, 16, 1), block, nn.Conv2d(width, 8, 1)))
    shuffled = {"1.m.1.conv", "1.m.2.conv"}
    traced = copy.deepcopy(network).requires_grad_(True)
    traced[1].shuffle, traced[1].attention = False, nn.Identity()
    x = torch.rand(2, 16, 5, 5)
    channels = finding.find(traced, x, lambda net, x: [net(x)], multiple=8, fixed=["2"], shuffled=shuffled)
    grouped = [coupling for coupling in channels.couplings if coupling.groups == groups and coupling.channels == width]
    assert len(grouped) >= (1 if shortcut else 4)
    counts = [count if coupling in grouped else coupling.channels for coupling in channels.couplings]
    pruned, silent = copy.deepcopy(network), copy.deepcopy(network)
    finding.remove(pruned, channels.couplings, counts, shuffled)
    silence(silent, channels, counts)
    with torch.no_grad():
        assert largest_difference([pruned(x)], [silent(x)]) < 1e-5
    assert pruned[1].m[1].conv.in_channels == count


def test_importance_decides():
    network = integration.prunable(model_of(detector("yolov8n", width=0.25)))
    with torch.no_grad():
        network.get_submodule("model.22.cv3.0.1.bn").weight[::2] = 1e-3
    channels, _ = found_in(network)
    coupling = next(coupling for coupling in channels.couplings if coupling.name == "model.22.cv3.0.1.conv")
    assert coupling.kept(coupling.channels // 2).tolist() == [False, True] * (coupling.channels // 2)
    first = selection.order(channels, lambda layer: integration.part_of(network, layer))[0]
    assert channels.couplings[first.coupling] is coupling


def test_order_of_removals():
    network = integration.prunable(model_of(detector("yolov8n", width=0.25)))
    channels, _ = found_in(network)
    part = lambda layer: integration.part_of(network, layer)  # noqa: E731
    homes = lambda steps: [part(channels.couplings[step.coupling].name) for step in steps]  # noqa: E731
    steps = selection.order(channels, part, head_first=True)
    heads = homes(steps).count("head")
    assert 0 < heads < len(steps)
    assert set(homes(steps)[:heads]) == {"head"}
    assert set(homes(selection.order(channels, part, parts=("neck",)))) == {"neck"}
    shares = [
        1 - step.count / channels.couplings[step.coupling].channels
        for step in selection.order(channels, part, ranking="per-layer")
    ]
    assert shares == sorted(shares)
    for way in (steps, selection.order(channels, part)):
        left = channels.full
        for step in way:
            assert step.count < left[step.coupling]
            left[step.coupling] = step.count
        assert all(count >= 0.1 * full for count, full in zip(left, channels.full, strict=True))


def test_the_fewest_steps_that_are_enough():
    steps = [selection.Step(0, 8), selection.Step(1, 8), selection.Step(1, 0), selection.Step(2, 0)]
    gains = {steps[0]: 1, steps[1]: 5, steps[2]: 2, steps[3]: 4}
    measure = lambda some: 12 - sum(gains[step] for step in some)  # noqa: E731
    assert selection.fewest(steps, measure, 4) == steps[:3]
    assert selection.fewest(steps, measure, 12) == []
    assert selection.without_needless(steps, measure, 3) == [steps[1], steps[3]]
    with pytest.raises(selection.Unreachable) as unreachable:
        selection.fewest(steps, measure, -1)
    assert unreachable.value.best == 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that has learnt nothing, with C2f blocks and a Detect head."""
    file = tmp_path_factory.mktemp("pruning") / "best.pt"
    network = lively(detector("yolov8n", width=0.25))
    network.args, network.task = {}, "detect"
    torch.save({"model": network.half(), "train_args": {"task": "detect"}}, file)
    return file


@pytest.mark.parametrize(
    ("target", "share"), [({"flops": 0.4}, "flops"), ({"ratio": 0.3, "ranking": "per-layer"}, "channels")]
)
def test_targets_are_met_closely(checkpoint, tmp_path, target, share):
    report = prune(checkpoint, **target, imgsz=SIZE, multiple=8, path=tmp_path / "pruned.pt")
    wanted = 1 - next(value for value in target.values() if isinstance(value, float))
    assert wanted - 0.01 < getattr(report.after, share) / getattr(report.before, share) <= wanted
    network = YOLO(report.path).model
    assert report.after.flops == cost(network, SIZE)["flops"]
    assert report.after.parameters == sum(parameter.numel() for parameter in network.parameters())
    widths = integration.widths(network)
    assert all(widths[layer.name] == layer.after != layer.before for layer in report.layers)
    assert json.loads(json.dumps(report.as_dict()))["layers"]


def test_a_model_that_is_pruned_stays_as_it_is(checkpoint, monkeypatch):
    monkeypatch.setattr("fastyolo.compress.pruning.latency.SECONDS", 0.0)
    for package in ("onnx", "onnxslim", "onnxruntime"):
        pytest.importorskip(package)
    model = YOLO(checkpoint)
    network, parameters = model.model, sum(p.numel() for p in model.parameters())
    with pytest.raises(ValueError, match="at least about"):
        prune(model, latency=1e-4, imgsz=SIZE)
    prune(model, ratio=0.3, imgsz=SIZE)
    assert model.model is network
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_latency_is_that_of_onnx_runtime(checkpoint, monkeypatch):
    for package in ("onnx", "onnxslim", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr("fastyolo.compress.pruning.latency.SECONDS", 0.0)
    model = YOLO(checkpoint)
    stopwatch = LatencyMeter(model, SIZE, threads=1)
    assert stopwatch.reference_ms > 0
    assert stopwatch.ms(integration.prunable(model)) > 0


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Arguments of a short training of a tiny network on images of rectangles."""
    folder = tmp_path_factory.mktemp("shapes")
    files = {"data": str(write_shapes(folder, train=8, val=4)), "model": str(write_tiny(folder))}
    small = {"batch": 4, "device": "cpu", "plots": False, "verbose": False, "workers": 0, "mosaic": 0.0}
    learning = {"optimizer": "SGD", "lr0": 0.01, "warmup_epochs": 0, "nbs": 4}
    return lambda **changes: {**files, "epochs": 1, "imgsz": 64, **small, **learning, **changes}


@pytest.fixture(scope="module")
def trained(training: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    trainer = Trainer(overrides=training(project=str(tmp_path_factory.mktemp("trained"))))
    trainer.train()
    return trainer.best


def test_latency_is_a_target(trained, tmp_path, monkeypatch):
    """With a clock that goes by FLOPs, since a real one would make the test depend on the machine."""
    clock = lambda self, network: cost(network, SIZE)["flops"] / 1e6  # noqa: E731
    whole = cost(integration.prunable(YOLO(trained)), SIZE)["flops"] / 1e6
    monkeypatch.setattr(LatencyMeter, "__init__", lambda self, *_: setattr(self, "reference_ms", whole))
    monkeypatch.setattr(LatencyMeter, "ms", clock)
    report = prune(trained, latency=0.5 * whole, imgsz=SIZE, multiple=8, path=tmp_path / "pruned.pt")
    assert 0.45 * whole < report.after.latency_ms <= 0.5 * whole
    assert report.before.latency_ms == whole
    for latency, message in ((0.01 * whole, "at least about"), (2 * whole, "takes already")):
        with pytest.raises(ValueError, match=message):
            prune(trained, latency=latency, imgsz=SIZE, multiple=8, path=tmp_path / "other.pt")


def test_a_latency_that_is_missed_in_the_end_is_told(trained, tmp_path, monkeypatch):
    whole = cost(integration.prunable(YOLO(trained)), SIZE)["flops"] / 1e6
    slower = iter([1.0] * 1000)
    monkeypatch.setattr(LatencyMeter, "__init__", lambda self, *_: setattr(self, "reference_ms", whole))
    monkeypatch.setattr(LatencyMeter, "ms", lambda self, network: next(slower) * cost(network, SIZE)["flops"] / 1e6)
    settings = {"latency": 0.5 * whole, "imgsz": SIZE, "multiple": 8, "path": tmp_path / "pruned.pt"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(trained, **settings)
    measured = 1000 - len([*slower])
    slower = iter([1.0] * (measured - 1) + [1.5])
    with pytest.warns(UserWarning, match=r"takes .* ms, more than the .* that were asked for"):
        prune(trained, **settings)


@pytest.fixture(scope="module")
def pruned(
    trained: Path, training: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The checkpoint and the folder of a run of two steps that was interrupted in the training of the second."""
    folder = tmp_path_factory.mktemp("pruned")
    arguments = training()
    data = arguments.pop("data")
    for name in ("model", "epochs", "imgsz"):
        del arguments[name]
    settings = {"flops": 0.4, "steps": 2, "epochs": 2, "imgsz": 64, "multiple": 8, "training": arguments}
    settings |= {"sparsity": 0.01, "sparsity_epochs": 1}
    path, runs = folder / "small.pt", folder / "runs"
    stock, saved = Trainer.save_model, []

    def killed(self: Trainer) -> Any:
        result = stock(self)
        saved.append(self.save_dir)
        if len(saved) == 4:
            raise KeyboardInterrupt
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_model", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(trained, data, **settings, path=path, folder=runs)
    assert not path.exists()
    assert [folder.relative_to(runs).parts[0] for folder in saved] == ["sparsity", "step-1", "step-1", "step-2"]
    assert torch.load(runs / "sparsity" / "weights" / "last.pt", weights_only=False)["train_args"]["sparsity"] == 0.01
    with pytest.raises(ValueError, match=r"has other values of flops \(0\.4, not 0\.5\); choose another folder"):
        prune(trained, data, **{**settings, "flops": 0.5}, path=path, folder=runs)
    kept = trained.read_bytes()
    YOLO(trained).save(trained)  # with another date
    with pytest.raises(ValueError, match="has other values of content of weights; choose another folder"):
        prune(trained, data, **settings, path=path, folder=runs)
    trained.write_bytes(kept)
    note = runs / "prune.json"
    now = note.read_text()
    before = json.loads(now)
    for name in ("content of weights", "ratio", "flops", "latency"):
        del before[name]
    note.write_text(json.dumps({**before, "kind": "flops", "value": 0.4}))  # as earlier versions wrote it
    with pytest.raises(ValueError, match=r"other values of ratio \(None, not 0\.3\), flops \(0\.4, not None\); choose"):
        prune(trained, data, **{**settings, "flops": None, "ratio": 0.3}, path=path, folder=runs)
    with locked(runs, "x"), pytest.raises(ValueError, match="no other fastyolo is at work"):
        prune(trained, data, **settings, path=path, folder=runs)
    epochs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_model", lambda self: (epochs.append((self.save_dir, self.epoch)), stock(self))[1])
        report = prune(trained, data, **settings, path=path, folder=runs)
    assert epochs == [(runs / "step-2" / "train", 1)]
    assert report.after.flops / report.before.flops == pytest.approx(0.6, abs=0.03)
    assert [step["flops"] / report.before.flops for step in report.steps] == pytest.approx([0.8, 0.6], abs=0.03)
    assert all("mAP50" in step for step in report.steps)
    assert report.after.channels == prune(path, ratio=0.1, imgsz=64, multiple=8, path=runs / "x.pt").before.channels
    return path, runs


def test_pruned_models_are_taught_by_the_unpruned_one(pruned, trained):
    with (pruned[1] / "step-1" / "train" / "results.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert float(row["train/kd_feat"]) > 0


def test_pruned_models_are_ordinary_checkpoints(pruned, tmp_path):
    model = YOLO(pruned[0])
    network = model.model
    assert "pruned" in network.yaml
    picture = np.zeros((64, 64, 3), np.uint8)
    expected = model.predict(picture, imgsz=64, conf=0.0, verbose=False)[0].boxes.data
    faster = fastyolo.accelerate(YOLO(pruned[0])).predict(picture, imgsz=64, conf=0.0, verbose=False)[0].boxes.data
    assert torch.allclose(faster[:, :4], expected[:, :4], atol=1e-3)
    result = CliRunner().invoke(app, ["info", str(pruned[0]), "--imgsz", "64", "--json", str(tmp_path / "info.json")])
    assert result.exit_code == 0
    facts = json.loads((tmp_path / "info.json").read_text())["model"]
    assert facts["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert facts["pruned"].startswith("by fastyolo")


def test_pruned_models_are_exported_as_they_are(pruned, tmp_path):
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxslim")
    file = fastyolo.export.export(str(pruned[0]), "onnx", imgsz=64, path=tmp_path / "small.onnx")
    graph = onnx.load(file).graph
    shapes = {tuple(tensor.dims) for tensor in graph.initializer}
    network = YOLO(pruned[0]).model
    convs = [m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and ".dfl" not in n]
    assert {tuple(conv.weight.shape) for conv in convs} <= shapes
    session = ort.InferenceSession(file)
    want = maps(network.eval(), images())
    got = session.run(None, {session.get_inputs()[0].name: images()[:1].numpy()})
    for theirs, ours in zip(want, got, strict=True):
        assert np.abs(theirs[:1].numpy() - ours).max() < 1e-4


def test_pruned_models_are_pruned_again(pruned, tmp_path):
    report = prune(pruned[0], ratio=0.2, imgsz=64, multiple=8, path=tmp_path / "smaller.pt")
    assert report.after.channels <= 0.8 * report.before.channels
    names = {layer.name for layer in report.layers}
    assert names <= integration.widths(YOLO(pruned[0]).model).keys()  # the rewritten blocks are not rewritten again


def test_pruned_models_train_on_other_classes(pruned, training, tmp_path):
    data = write_shapes(tmp_path / "two", train=8, val=4, names=("blue", "red"))
    trainer = Trainer(overrides=training(data=str(data), model=str(pruned[0]), project=str(tmp_path)))
    trainer.train()
    before, after = YOLO(pruned[0]).model, YOLO(trainer.best).model
    assert {layer.in_channels for layer in convolutions(before)} == {layer.in_channels for layer in convolutions(after)}
    assert after.model[-1].nc == 2
    assert after.names == {0: "blue", 1: "red"}
    assert "pruned" in after.yaml


def convolutions(network: nn.Module) -> Iterator[nn.Conv2d]:
    return (module for module in network.modules() if isinstance(module, nn.Conv2d))


def test_classes_of_the_same_name_keep_their_outputs(pruned):
    network = YOLO(pruned[0]).model
    data = {"nc": 2, "channels": 3, "names": {0: "blue", 1: "purple"}}
    ours, theirs = integration.rebuilt(network, data).model[-1].cv3[0][-1], network.model[-1].cv3[0][-1]
    assert torch.equal(ours.weight[0], theirs.weight[TINY["nc"] - 1])  # blue is the last there
    with pytest.raises(ValueError, match="3 channels"):
        integration.rebuilt(network, {**data, "channels": 1})


def test_ultralytics_own_trainer_does_not_undo_the_pruning(pruned, training, tmp_path):
    arguments = training(project=str(tmp_path))
    del arguments["model"]
    with pytest.raises(ValueError, match="cannot be built from its YAML"):
        YOLO(pruned[0]).train(**arguments)
    with pytest.raises(ValueError, match="cannot be built from its YAML"):
        Trainer(overrides=training(model=str(pruned[0]), pretrained="", project=str(tmp_path))).get_model(
            YOLO(pruned[0]).model.yaml, None
        )


def test_sparsity_adds_its_subgradient():
    network = detector("yolov8n")
    settings = Settings(sparsity=0.02, sparsity_final=0.5, sparsity_backbone=0, sparsity_head=2)
    norms = {
        part: next(m for m in network.model[i].modules() if isinstance(m, nn.BatchNorm2d))
        for part, i in zip(PARTS, (0, 12, -1), strict=True)
    }
    for norm in norms.values():
        norm.weight.grad = torch.ones_like(norm.weight)
        norm.weight.data[0] = -0.05
    sparsity = Sparsity(network, settings)
    sparsity.add_subgradient(0.0)
    sparsity.add_subgradient(1.0)
    for part, added in (("backbone", 0.0), ("neck", 0.03), ("head", 0.06)):
        gradient = norms[part].weight.grad
        assert gradient[:2].tolist() == pytest.approx([1 - added, 1 + added])
    factors = sum(m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert sparsity.small() == pytest.approx(3 / factors)


@pytest.mark.parametrize("amp", [False, "bf16"])
def test_sparsity_makes_factors_fade(training, trained, tmp_path, amp):
    """Also with a teacher."""
    runs = []
    for sparsity in (0.0, 5.0):
        arguments = training(sparsity=sparsity, distill_model=str(trained), amp=amp, project=str(tmp_path), seed=1)
        trainer = Trainer(overrides=arguments)
        trainer.train()
        norms = [m for m in YOLO(trainer.last).model.modules() if isinstance(m, nn.BatchNorm2d)]
        runs.append((float(torch.cat([norm.weight for norm in norms]).abs().mean()), trainer.csv.read_text()))
    (plain, log), (sparse, sparse_log) = runs
    assert sparse < 0.95 * plain
    assert "sparsity/small" in sparse_log
    assert "sparsity" not in log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of them, got none"),
        ({"ratio": 0.3, "flops": 0.3}, "exactly one of them, got ratio, flops"),
        ({"ratio": 1.2}, "ratio must be a share between 0 and 1, got 1.2"),
        ({"flops": 0}, "flops must be a share between 0 and 1, got 0"),
        (
            {"flops": 0.999},
            r"flops must be at most 0.8\d*, all that can be removed from backbone, neck, head, got 0.999",
        ),
        ({"ratio": 0.9, "parts": ["head"]}, "all that can be removed from head"),
        ({"latency": -1}, "latency must be"),
        ({"ratio": 0.3, "parts": ["tail"]}, "parts must be of backbone, neck, head, got 'tail'"),
        ({"ratio": 0.3, "parts": []}, "parts must hold at least one"),
        ({"ratio": 0.3, "parts": ["neck"], "head_first": True}, "head_first needs the head"),
        ({"ratio": 0.3, "ranking": "random"}, "ranking must be one of global, per-layer"),
        ({"ratio": 0.3, "importance": "luck"}, "importance must be one of gamma, l1, l2"),
        ({"ratio": 0.3, "multiple": 12}, "multiple must be a multiple of 8"),
        ({"ratio": 0.3, "steps": 3}, "data must be given to train with, got none with steps."),
        ({"ratio": 0.3, "sparsity": 0.01}, "data must be given to train with, got none with sparsity."),
        (
            {"ratio": 0.3, "epochs": 3, "training": {"batch": 2}, "distill": False, "folder": "x"},
            "data must be given to train with, got none with epochs, distill=False, training, folder.",
        ),
        ({"ratio": 0.3, "threads": 1}, "threads is for latency, got ratio; leave it out."),
        ({"latency": 1.0, "threads": 0}, "threads must be at least 1, got 0."),
        ({"ratio": 0.3, "imgsz": 100}, "imgsz must be multiples of the model's largest stride, 32, got 100."),
        ({"ratio": 0.3, "path": "small.onnx"}, "path must end in '.pt'"),
    ],
)
def test_wrong_arguments(checkpoint, arguments, message):
    with pytest.raises(ValueError, match=message):
        prune(checkpoint, **{"imgsz": SIZE, **arguments})


def test_models_that_cannot_be_pruned(checkpoint, tmp_path):
    with pytest.raises(TypeError, match="path of a checkpoint to train with data, got YOLO"):
        prune(YOLO(checkpoint), "data.yaml", ratio=0.3)
    with pytest.raises(ValueError, match="must be a checkpoint"):
        prune(tmp_path / "best.onnx", ratio=0.3)
    with pytest.raises(FileNotFoundError, match="not on this machine"):
        prune(tmp_path / "nothing.pt", ratio=0.3)
    with pytest.raises(ValueError, match="another file than the weights"):
        prune(checkpoint, ratio=0.3, path=checkpoint)
    end2end = model_of(detector("yolov8n", width=0.25))
    end2end.model.model[-1].one2one_cv2 = copy.deepcopy(end2end.model.model[-1].cv2)
    with pytest.raises(ValueError, match="end-to-end head"):
        integration.prunable(end2end)
    fused = model_of(detector("yolov8n", width=0.25))
    fused.model.fuse(verbose=False)
    with pytest.raises(ValueError, match="fused"):
        integration.prunable(fused)
    chunks = integration.prunable(model_of(detector("yolov8n", width=0.25)))
    chunks.model[2].forward = lambda x: torch.cat(type(chunks.model[2]).forward(chunks.model[2], x).chunk(2, 1), 1)
    with pytest.raises(ValueError, match="takes them apart"):
        found_in(chunks)


def test_a_folder_of_something_else_is_refused(trained, training, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        prune(trained, training()["data"], ratio=0.3, imgsz=64, multiple=8, path=tmp_path / "x.pt", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_arguments_can_be_corrected_before_anything_is_trained(trained, training, tmp_path, monkeypatch):
    def fail(self: Trainer) -> None:
        raise MemoryError

    monkeypatch.setattr(Trainer, "train", fail)
    sizes: list[int] = []
    for ratio in (0.2, 0.4):
        with pytest.raises(MemoryError):
            prune(trained, training()["data"], ratio=ratio, imgsz=64, multiple=8, path=tmp_path / "x.pt")
        sizes.append((tmp_path / "x" / "step-1" / "pruned.pt").stat().st_size)
    assert sizes[1] < sizes[0]


def test_what_trainings_would_refuse_is_refused_at_once(trained, training, tmp_path, monkeypatch):
    monkeypatch.setattr("fastyolo.compress.pruning.run._Aim", None)  # which is where work begins
    data, others = training()["data"], str(write_shapes(tmp_path / "two", train=1, val=1, names=("blue", "red")))
    for where, changes, message in (
        (others, {}, r"got 2 with no 'green'.*--no-distill"),
        ("nothing.yaml", {}, r"'nothing\.yaml' does not exist"),
        (data, {"training": {"epochs": 3, "model": "x.pt"}}, "must not hold epochs, model"),
        (data, {"training": {"mosaik": 0}}, "the nearest is 'mosaic'"),
        (data, {"training": {"sparsity_head": -1}}, "sparsity_head must be"),
    ):
        with pytest.raises(ValueError, match=message):
            prune(trained, where, ratio=0.3, imgsz=64, path=tmp_path / "x.pt", **changes)
    integration.check_teaches(YOLO(trained), data)
    for changes in ({"distill": False}, {"training": {"distill_model": "other.pt"}}):
        with pytest.raises(TypeError):  # it is past the checks
            prune(trained, others, ratio=0.3, imgsz=64, path=tmp_path / "x.pt", **changes)


def test_ranking_follows_from_the_training(pruned, checkpoint, tmp_path):
    """Factors that were never pressed towards 0 say little: ranked by them, networks lose far more accuracy."""
    common = {"ratio": 0.1, "imgsz": SIZE, "multiple": 8, "path": tmp_path / "x.pt"}
    sparse = pruned[1] / "sparsity" / "weights" / "last.pt"
    for weights, expected in ((checkpoint, ("l1", "per-layer", False)), (sparse, ("gamma", "global", True))):
        report = prune(weights, **common)
        assert (report.importance, report.ranking, report.sparse) == expected
    report = prune(sparse, **common, ranking="per-layer", importance="l2")
    assert (report.importance, report.ranking, report.sparse) == ("l2", "per-layer", True)
    state = json.loads((pruned[1] / "prune.json").read_text())
    assert (state["importance"], state["ranking"]) == ("gamma", "global")


def test_checkpoints_without_a_module_of_fastyolos_import_it(tmp_path):
    """So that ultralytics' own trainer, which knows nothing of pruning, meets the refusal to build them anew."""
    file = tmp_path / "v5.pt"
    model_of(detector("yolov5n", width=0.25)).save(file)
    assert "fastyolo" not in packages(file)
    assert "fastyolo" in packages(Path(prune(file, ratio=0.2, imgsz=SIZE, multiple=8).path))


def packages(checkpoint: Path) -> set[str]:
    """What unpickling a checkpoint imports."""
    with zipfile.ZipFile(checkpoint) as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    names = [str(argument) for code, argument, _ in pickletools.genops(content) if code.name == "GLOBAL"]
    return {name.split(".")[0] for name in names}


def test_layers_that_tie_channels_to_others_keep_them(tmp_path):
    """A Ghost convolution puts out maps beside others that are made of them, channel by channel."""
    model = model_of(detector("yolov8-ghost", width=0.25))
    network = integration.prunable(model)
    channels, trace = found_in(network)
    for coupling in channels.couplings:
        for member in coupling.members:
            assert len(set(np.bincount(member.roots, minlength=coupling.channels))) == 1
    with integration.traceable(network):
        finding.remove(network, channels.couplings, halved(channels), trace.shuffled)
    assert cost(network, SIZE)["flops"] < 0.9 * cost(model.model, SIZE)["flops"]


def test_a_share_is_that_of_the_size_that_is_given(tmp_path):
    """Also where the strides end at 16, so that sides need be no multiples of 32."""
    layers = yaml_model_load("yolov8n.yaml")
    small = {"nc": 2, "depth_multiple": 0.33, "width_multiple": 0.25, "backbone": layers["backbone"][:7]}
    small["head"] = [[[4, 6], 1, "Detect", ["nc"]]]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    YOLO(tmp_path / "small.yaml").save(tmp_path / "small.pt")
    report = prune(tmp_path / "small.pt", flops=0.3, imgsz=48, multiple=8)
    assert report.after.flops / report.before.flops == pytest.approx(0.7, abs=0.04)


def test_the_command(checkpoint, tmp_path):
    output, document = tmp_path / "small.pt", tmp_path / "report.json"
    common = ["prune", "--weights", str(checkpoint), "--imgsz", "64", "--output", str(output)]
    result = CliRunner().invoke(
        app, [*common, "--ratio", "0.3", "--parts", "head", "--per-layer", "--json", str(document)]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(document.read_text())
    assert {layer["name"].split(".")[1] for layer in report["layers"]} == {"22"}
    assert str(output) in result.output
    assert "->" in result.output
    assert CliRunner().invoke(app, [*common, "--ratio", "2"]).exit_code == 1
    assert CliRunner().invoke(app, [*common, "--ratio", "0.3", "--parts", "tail"]).exit_code == 2
