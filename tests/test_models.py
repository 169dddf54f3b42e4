# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo's models are ultralytics' models: built from files, trained, saved, loaded, fused and exported as those are,
at the cost that they are meant to have. That they can be accelerated is tested in test_ultralytics.py."""

from __future__ import annotations

import copy
import os
import pickle
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("ultralytics")

import yaml
from shapes import write_shapes
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.modules.conv import Conv as StockConv
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils import LOGGER, YAML
from ultralytics.utils.torch_utils import get_flops

from fastyolo.bench.environment import environment
from fastyolo.integrations.ultralytics.head import LightDetect
from fastyolo.integrations.ultralytics.hooks import rebound
from fastyolo.integrations.ultralytics.models import MODELS, register, transfer
from fastyolo.nn import DWSPPF, GELAN, DSConv

STRIDES = {"yolov8-fast": [8, 16, 32], "yolov8-fast-p2": [4, 8, 16, 32], "yolov8-fast-p45": [16, 32]}
SIZE = 96


def of_scale(name: str, scale: str) -> str:
    return name.replace("yolov8", f"yolov8{scale}") + ".yaml"


def build(name: str, **settings: Any) -> DetectionModel:
    torch.manual_seed(0)
    return DetectionModel(name, verbose=False, **settings)


def changed(folder: Path, **changes: Any) -> Path:
    """A file like yolov8-fast.yaml, of scale n, with other values."""
    file = folder / "yolov8n-changed.yaml"
    file.write_text(yaml.safe_dump({**YAML.load(MODELS / "yolov8-fast.yaml"), **changes}))
    return file


def photographs(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def season(network: nn.Module) -> nn.Module:
    """Give the normalisations statistics of their own, and the head something to find."""
    network.train()
    for _ in range(10):
        network(photographs(4))
    network.eval()
    for branch in network.model[-1].cv3:
        branch[-1].weight.mul_(20)
        branch[-1].bias.fill_(-1)
    return network


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """yolov8n-fast after an epoch of ultralytics' own trainer: its checkpoint, its data set, an image of that."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_shapes(folder)
    model = YOLO("yolov8n-fast.yaml")
    model.train(
        data=str(data),
        epochs=1,
        imgsz=64,
        batch=8,
        workers=0,
        device="cpu",
        plots=False,
        project=str(folder),
        name="run",
    )
    return SimpleNamespace(
        weights=folder / "run" / "weights" / "best.pt",
        data=data,
        image=folder / "images" / "val" / "000.png",
        model=model,
    )


# ---- the files


@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.parametrize("scale", "nsmlx")
def test_every_file_and_scale(name, scale):
    network = build(of_scale(name, scale), nc=3)
    assert network.stride.tolist() == STRIDES[name]
    assert {StockConv, GELAN, DSConv, DWSPPF, LightDetect} <= {type(layer) for layer in network.model}
    for row in network.yaml["backbone"] + network.yaml["head"]:
        assert row[2] not in ("C2f", "SPPF", "Detect")
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    widths = {module.out_channels for name, module in convolutions.items() if ".context." not in name}
    assert {width for width in widths if width % 8} == {1, 3}  # the expectation over the bins, the classes


def test_there_are_no_other_files():
    assert {path.name for path in MODELS.iterdir()} == {f"{name}.yaml" for name in STRIDES}


@pytest.mark.parametrize(("name", "stock"), [("yolov8-fast", "yolov8"), ("yolov8-fast-p2", "yolov8-p2")])
def test_layers_and_scales_are_those_of_yolov8(name, stock):
    ours, theirs = yaml_model_load(f"{name}.yaml"), yaml_model_load(f"{stock}.yaml")
    assert ours["scales"] == theirs["scales"]
    for mine, other in zip(ours["backbone"] + ours["head"], theirs["backbone"] + theirs["head"], strict=True):
        assert mine[:2] == other[:2]
        assert mine[3][:1] == other[3][:1]
    for network, settings in ((build(of_scale(name, "n")), ours), (build(of_scale(stock, "n")), theirs)):
        settings["channels"] = [network.model[row].conv.out_channels for row in (0, 1)]
    assert ours["channels"] == theirs["channels"]


def test_the_small_model_is_as_small_as_it_is_meant_to_be():
    network, stock = build("yolov8s-fast.yaml"), build("yolov8s.yaml")
    parameters = [sum(p.numel() for p in model.parameters()) for model in (network, stock)]
    assert parameters[1] == 11_166_560  # as ultralytics states it
    assert parameters[0] <= 4.3e6
    flops = [get_flops(model, 640) for model in (network, stock)]
    assert flops[1] == pytest.approx(28.8, abs=0.05)
    assert 8 < flops[0] <= 9.2


@pytest.mark.parametrize("name", STRIDES)
def test_training_step_and_predictions(name):
    network = build(of_scale(name, "n"), nc=3)
    batch = {
        "img": photographs(),
        "batch_idx": torch.tensor([0.0, 1, 1]),
        "cls": torch.tensor([[0.0], [1], [2]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.7, 0.7]]),
    }
    network.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    loss, _ = network.loss(batch)
    loss.sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == [f"model.{len(network.model) - 1}.dfl.conv.weight"]
    anchors = sum((SIZE // stride) ** 2 for stride in STRIDES[name])
    predictions, raw = network.eval()(photographs())
    assert predictions.shape == (2, 4 + 3, anchors)
    assert raw["boxes"].shape == (2, 4 * 16, anchors)


def test_a_file_of_the_same_name_here_goes_first(tmp_path, monkeypatch):
    changed(tmp_path, nc=5).rename(tmp_path / "yolov8-fast.yaml")
    assert len(YOLO("yolov8-fast.yaml").names) == 80
    monkeypatch.chdir(tmp_path)
    assert len(YOLO("yolov8-fast.yaml").names) == 5


# ---- the head


@pytest.mark.parametrize(
    ("settings", "box", "classes"),
    [
        ({"nc": 80, "ch": (128, 256, 512)}, 64, 96),  # scale s: half and three quarters of 128
        ({"nc": 80, "ch": (64, 128)}, 32, 64),  # min(nc, 64)
        ({"nc": 3, "ch": (64, 128)}, 32, 48),
        ({"nc": 3, "ch": (32,), "reg_max": 16}, 32, 24),  # 2 * reg_max
        ({"nc": 3, "ch": (32,), "reg_max": 4}, 16, 24),
        ({"nc": 80, "ch": (128, 256), "width": 0.3}, 24, 32),
    ],
    ids=str,
)
def test_widths_of_the_head(settings, box, classes):
    head = LightDetect(**settings)
    assert [branch[0].conv.in_channels for branch in head.cv2] == list(settings["ch"])
    assert {branch[0].pointwise.conv.out_channels for branch in head.cv2} == {box}
    assert {branch[-1].in_channels for branch in head.cv3} == {classes}
    assert {branch[-1].out_channels for branch in head.cv2} == {4 * settings.get("reg_max", 16)}
    assert {branch[-1].out_channels for branch in head.cv3} == {settings["nc"]}
    assert (head.nl, head.no) == (len(settings["ch"]), settings["nc"] + 4 * settings.get("reg_max", 16))


def test_the_head_changes_nothing_but_how_it_is_built():
    assert [name for name in vars(LightDetect) if not name.startswith("__")] in ([], ["legacy"])  # parse_model's mark
    network = build("yolov8n-fast.yaml", nc=7)
    for branches, values in ((network.model[-1].cv2, [2.0] * 3), (network.model[-1].cv3, [-9.1, -7.71, -6.33])):
        assert [branch[-1].bias.mean().item() for branch in branches] == pytest.approx(values, abs=0.01)


@pytest.mark.parametrize("bins", [1, 8])
def test_bins_of_the_head_in_a_file(tmp_path, bins):
    network = build(changed(tmp_path, nc=3, reg_max=bins)).eval()
    predictions, raw = network(photographs())
    assert predictions.shape == (2, 7, 189)
    assert raw["boxes"].shape == (2, 4 * bins, 189)


def test_one_to_one_branches(tmp_path):
    network = build(changed(tmp_path, nc=3, end2end=True)).eval()
    head = network.model[-1]
    assert set(network(photographs())[1]) == {"one2many", "one2one"}
    for mine, other in ((head.one2one_cv2, head.cv2), (head.one2one_cv3, head.cv3)):
        assert str(mine) == str(other)
        assert mine[0][0].conv.weight is not other[0][0].conv.weight
    network.end2end = True
    assert network(photographs())[0].shape == (2, 189, 6)


# ---- what is refused


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        (
            [-1, 1, "GELANN", [64]],
            {},
            "module 'GELANN' is unknown to both ultralytics and fastyolo; did you mean 'GELAN'?",
        ),
        ([-1, 1, "LOGGER", []], {}, "module 'LOGGER' is unknown to both ultralytics and fastyolo; "),
        ([-1, 1, "nn.Upsampel", []], {}, "module 'nn.Upsampel' is unknown to both ultralytics and fastyolo; "),
        (
            [-1, 1, "xyzzy", []],
            {},
            "module 'xyzzy' is unknown to both ultralytics and fastyolo; correct its name in the ",
        ),
        (None, {"activation": "nn.ReLU()"}, "activation: GELAN always has SiLU, got 'nn.ReLU()'; remove that line."),
        (
            [[15, 18, 21], 1, "LightDetect", ["nc"]],
            {},
            "ch must hold the channels of at least one level, got none; in a ",
        ),
        ([[15, 18, 21], 1, "LightDetect", ["nc", 0]], {}, "width must be above 0, got 0"),
    ],
)
def test_files_that_make_no_sense(tmp_path, row, changes, message):
    content = YAML.load(MODELS / "yolov8-fast.yaml")
    if row:
        content["head"][-1] = row
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        build(changed(tmp_path, head=content["head"], **changes))


def test_models_without_our_modules_are_left_alone(tmp_path):
    rows = [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Xyz", [64]]]
    with pytest.raises(ValueError, match=r"^module 'Xyz' is unknown"):
        tasks.parse_model({"nc": 3, "backbone": rows, "head": []}, 3, verbose=False)
    stock = build("yolov8n.yaml")
    assert type(stock.model[-1]) is Detect
    assert not any(type(module).__module__.startswith("fastyolo") for module in stock.modules())
    stock = yaml_model_load("yolov8n.yaml")
    network = DetectionModel({**stock, "activation": "nn.ReLU()"}, verbose=False)
    assert type(network.model[0].act) is nn.ReLU


# ---- how they are known to ultralytics


def test_a_name_that_ultralytics_has_stays_its_own(monkeypatch):
    class DWSPPF(nn.Identity):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.width = width

    monkeypatch.setattr(tasks, "DWSPPF", DWSPPF, raising=False)
    layers, _ = tasks.parse_model({"backbone": [[-1, 1, "DWSPPF", [1024]]], "head": []}, 3, verbose=False)
    assert type(layers[0]) is DWSPPF
    assert layers[0].width == 1024


def test_a_file_may_name_the_modules_that_lend_their_places(tmp_path):
    content = YAML.load(MODELS / "yolov8-fast.yaml")
    content["head"][2][2:], content["head"][5][2:] = ["C3TR", [512]], ["C3x", [256]]
    content["backbone"][3][2:] = ["ADown", [256]]
    content["backbone"][9][2:] = ["SPPELAN", [1024, 256]]
    network = build(changed(tmp_path, backbone=content["backbone"], head=content["head"]))
    kinds = [type(layer).__name__ for layer in network.model]
    assert [kinds[i] for i in (2, 3, 5, 9, 12, 15, 18)] == [
        "GELAN",
        "ADown",
        "DSConv",
        "SPPELAN",
        "C3TR",
        "C3x",
        "GELAN",
    ]
    assert network.eval()(photographs())[0].shape == (2, 84, 189)


def test_a_file_may_not_name_all_of_them(tmp_path):
    content = YAML.load(MODELS / "yolov8-fast.yaml")
    for row, name in ((2, "C3TR"), (5, "C3x"), (8, "C3Ghost")):
        content["head"][row][2] = name
    message = "GELAN cannot be in one model file with all of C3TR, C3x, C3Ghost; remove one."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build(changed(tmp_path, head=content["head"]))


def test_models_are_built_in_several_threads_at_once():
    before = dict(vars(tasks))
    names = ["yolov8n-fast.yaml", "yolov8n.yaml", "yolov8n-fast-p45.yaml", "yolov9t.yaml"] * 3
    with ThreadPoolExecutor(4) as pool:
        networks = list(pool.map(lambda name: DetectionModel(name, verbose=False), names))
    heads = {"yolov8n-fast.yaml": LightDetect, "yolov8n-fast-p45.yaml": LightDetect}
    assert [type(network.model[-1]) for network in networks] == [heads.get(name, Detect) for name in names]
    assert dict(vars(tasks)) == before


def test_a_version_that_reads_other_names_is_refused():
    """As one would be that told modules apart by sets outside of parse_model(): the places would mean nothing."""
    kinds = frozenset({nn.Linear})

    def parse_model(d: dict, ch: int, verbose: bool = True) -> bool:
        return any(kind in kinds for kind in d)

    other = SimpleNamespace(parse_model=parse_model, check_yaml=None, BaseModel=None, C3TR=nn.Linear)
    with pytest.raises(ImportError, match=r"does not read C3TR in ultralytics\.nn\.tasks\.parse_model, where fastyolo"):
        register(other)
    assert (other.parse_model, other.check_yaml) == (parse_model, None)


def test_a_name_that_is_not_read_is_not_replaced():
    module = ModuleType("elsewhere")
    source = """
from functools import cache

limit = wrapped = other = 1

def read():
    return [limit for _ in range(2)]

class Reader:
    @staticmethod
    @cache
    def read():
        return wrapped
"""
    exec(source, vars(module))
    with rebound(module, limit=2, wrapped=3):
        assert (module.read(), module.Reader.read()) == ([2, 2], 3)
    assert module.read() == [1, 1]
    with pytest.raises(ImportError, match="does not read other in elsewhere"), rebound(module, other=2):
        pass


def test_registering_twice_changes_nothing():
    before = (tasks.parse_model, tasks.check_yaml, tasks.BaseModel.fuse, tasks.BaseModel.load)
    register(tasks)
    assert (tasks.parse_model, tasks.check_yaml, tasks.BaseModel.fuse, tasks.BaseModel.load) == before


def python(code: str, *arguments: object, **environment: str) -> list[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


REPORT = (
    "print(type(YOLO(sys.argv[1]).model.model[-1]).__name__, type(YOLO('yolov8n-fast.yaml').model.model[2]).__name__)"
)


@pytest.mark.parametrize(
    ("imports", "environment"),
    [
        ("import fastyolo; from ultralytics import YOLO", {"ULTRALYTICS_SAFE_LOAD": "1"}),
        ("import ultralytics.nn.tasks, fastyolo; from ultralytics import YOLO", {}),
        ("import ultralytics, fastyolo; from ultralytics import YOLO", {}),
        ("from ultralytics import YOLO", {}),  # the checkpoint itself imports fastyolo
    ],
)
def test_checkpoints_and_files_after_imports_in_any_order(trained, imports, environment):
    code = f"import sys; {imports}; {REPORT}"
    assert python(code, trained.weights, **environment)[-2:] == ["LightDetect", "GELAN"]


def test_the_command_yolo_reads_a_checkpoint(trained, tmp_path):
    code = "import sys; from ultralytics.cfg import entrypoint; sys.argv[0] = 'yolo'; entrypoint()"
    settings = {"model": trained.weights, "data": trained.data, "imgsz": 64, "device": "cpu", "plots": False}
    arguments = [f"{key}={value}" for key, value in {**settings, "workers": 0, "project": tmp_path}.items()]
    assert "all" in python(code, "detect", "val", *arguments)
    assert (tmp_path / "val").is_dir()


# ---- weights


def test_training_and_its_checkpoint(trained):
    loaded = YOLO(trained.weights)
    assert loaded.names == {0: "red", 1: "green", 2: "blue"}
    assert isinstance(loaded.model.model[-1], LightDetect)
    untrained = YOLO("yolov8n-fast.yaml").model.state_dict()
    learnt = loaded.model.state_dict()
    assert not torch.equal(learnt["model.2.m.0.conv.weight"], untrained["model.2.m.0.conv.weight"])
    assert len(loaded.predict(trained.image, imgsz=64, device="cpu", verbose=False)) == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_the_same(duplicate):
    network = season(build("yolov8n-fast.yaml", nc=3))
    assert torch.equal(duplicate(network)(photographs())[0], network(photographs())[0])


def test_a_yolov8_checkpoint_gives_the_shared_layers(tmp_path):
    stock, model = YOLO("yolov8s.yaml"), YOLO("yolov8s-fast.yaml")
    stock.save(tmp_path / "stock.pt")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    model.load(tmp_path / "stock.pt")
    assert {type(branch[0]) for branch in model.model.model[-1].cv3} == {DSConv}
    assert {name: value.shape for name, value in model.model.state_dict().items()} == {
        name: value.shape for name, value in before.items()
    }
    source = YOLO(tmp_path / "stock.pt").model  # in half precision, as it is saved
    given = source.state_dict()
    for layer in ("model.0", "model.1", "model.9.cv1", "model.9.cv2"):
        assert torch.equal(model.model.state_dict()[f"{layer}.conv.weight"], given[f"{layer}.conv.weight"])
    facts = transfer(model.model, source)
    shared = [name for name, value in before.items() if name in given and given[name].shape == value.shape]
    assert (facts.tensors, facts.all_tensors) == (len(shared), len(before))
    parameters = dict(model.model.named_parameters())
    assert facts.parameters == sum(parameters[name].numel() for name in shared if name in parameters)
    assert facts.all_parameters == sum(p.numel() for p in parameters.values())
    assert re.fullmatch(
        rf"{len(shared)} of {len(before)} tensors, \d\d\.\d% of the parameters, were taken over from stock\.pt",
        str(facts),
    )


def test_a_checkpoint_of_ours_goes_into_a_yolov8():
    network, ours = build("yolov8n.yaml"), build("yolov8n-fast.yaml")
    network.load(ours, verbose=False)
    assert type(network.model[-1].cv3[0][0]) is StockConv
    assert torch.equal(network.model[0].conv.weight, ours.model[0].conv.weight)
    assert network.eval()(photographs())[0].shape == (2, 84, 189)


def test_a_checkpoint_of_other_classes_gives_its_branches():
    """As ultralytics does for its own heads: the hidden layers are of the source's width then."""
    network, source = build("yolov8n-fast.yaml", nc=3), build("yolov8n-fast.yaml", nc=80)
    network.load({"model": source, "ema": None}, verbose=False)
    head = network.model[-1]
    assert [branch[-1].in_channels for branch in head.cv3] == [64] * 3
    assert torch.equal(head.cv3[0][0].conv.weight, source.model[-1].cv3[0][0].conv.weight)
    assert network.eval()(photographs())[0].shape == (2, 7, 189)
    facts = transfer(network, source)
    assert (facts.all_tensors - facts.tensors, facts.source) == (6, "another model")  # the last layers of the branches


def test_a_head_of_another_width_keeps_its_branches(tmp_path):
    content = YAML.load(MODELS / "yolov8-fast.yaml")
    content["head"][-1][3][1] = 0.5
    network, source = build(changed(tmp_path, head=content["head"])), build("yolov8n-fast.yaml")
    network.load(source, verbose=False)
    assert [branch[-1].in_channels for branch in network.model[-1].cv3] == [32] * 3


# ---- inference


def test_fused_models_compute_the_same():
    for mode in (True, False):
        network = season(build("yolov8n-fast.yaml", nc=3))
        expected = network(photographs())[0]
        network.train(mode)
        network.fuse(verbose=False)
        assert network.is_fused()
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        torch.testing.assert_close(network.eval()(photographs())[0], expected, rtol=1e-4, atol=1e-4)
        network.fuse(verbose=False)
        torch.testing.assert_close(network.eval()(photographs())[0], expected, rtol=1e-4, atol=1e-4)


def test_checkpoints_name_classes_that_do_not_move():
    """What a checkpoint says of fastyolo; one that was written today is to be read by later versions."""
    names = set(
        re.findall(
            r"c(fastyolo[\w.]*)\n(\w+)\n", pickle.dumps(build("yolov8n-fast.yaml"), protocol=2).decode("latin-1")
        )
    )
    assert names == {
        ("fastyolo.integrations.ultralytics.head", "LightDetect"),
        ("fastyolo.nn.conv", "Conv"),
        ("fastyolo.nn.conv", "DSConv"),
        ("fastyolo.nn.dw_sppf", "DWSPPF"),
        ("fastyolo.nn.eca", "ECA"),
        ("fastyolo.nn.gelan", "GELAN"),
    }


def test_info_counts_every_parameter(caplog):
    LOGGER.addHandler(caplog.handler)
    try:
        model = YOLO("yolov8s-fast.yaml")
        _, parameters, _, flops = model.info()
        assert parameters == sum(p.numel() for p in model.model.parameters())
        assert flops == pytest.approx(get_flops(model.model, 640))
        model.fuse()
    finally:
        LOGGER.removeHandler(caplog.handler)
    assert "YOLOv8s-fast summary (fused)" in caplog.text


@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_exported_models_compute_the_same_with_standard_operators(name, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    reference_evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    monkeypatch.chdir(tmp_path)
    model = YOLO(of_scale(name, "n"))
    season(model.model)
    file = model.export(format="onnx", imgsz=SIZE, simplify=False, device="cpu")
    graph = onnx.load(file)
    assert {node.domain for node in graph.graph.node} == {""}
    assert {node.op_type for node in graph.graph.node}.isdisjoint({"If", "Loop", "Scan", "BatchNormalization"})
    (y,) = reference_evaluator(graph).run(None, {"images": photographs(1).numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model.model.eval()(photographs(1))[0], rtol=1e-3, atol=1e-3)


# ---- the table of costs


def test_the_table_of_a_result_file(monkeypatch):
    """bench/models.py writes such files; it needs runtimes that the tests do without."""
    runtimes = {"onnxruntime": "1.30.0", "openvino": "2026.4.1"}

    def facts(parameters: int, gflops: float, *microseconds: float) -> dict[str, Any]:
        latency = {name: {"median_us": value} for name, value in zip(runtimes, microseconds, strict=True)}
        return {"parameters": parameters, "gflops": gflops, "latency": latency}

    report = {
        "kind": "models",
        "device": "cpu",
        "threads": 1,
        "clock": "wall time",
        "imgsz": 640,
        "runtimes": runtimes,
        "environment": environment(),
        "results": [
            {"models": {"ours": facts(3_458_786, 8.52, 84e3, 70e3), "peer": facts(11_166_560, 28.82, 2e5, 175e3)}}
        ],
    }
    scripts = Path(__file__).parent.parent / "bench"
    monkeypatch.syspath_prepend(scripts)
    tables = runpy.run_path(str(scripts / "tables.py"))
    machine, _, *table = tables["render"](report).splitlines()
    assert "; onnxruntime 1.30.0, openvino 2026.4.1; one image of 640 x 640 pixels, wall time. " in machine
    assert table == [
        "| | in place of | M parameters | GFLOPs | ms in onnxruntime | ms in openvino |",
        "|---|---|--:|--:|--:|--:|",
        "| ours | peer | 3.46 of 11.17, 31% | 8.5 of 28.8, 30% | 84.0 of 200.0, 42% | 70.0 of 175.0, 40% |",
    ]
