# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where time goes: every stage has its own, the verdict follows from planted causes, and nothing is left behind."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("ultralytics")

from ultralytics import YOLO
from ultralytics.data import loaders
from ultralytics.data.dataset import YOLODataset
from ultralytics.models.yolo.detect import predict as detection
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML

import fastyolo
from fastyolo.cli import app
from fastyolo.diagnose import profile
from fastyolo.diagnose.stopwatch import OTHER, Stopwatch
from fastyolo.integrations.ultralytics import profiling
from fastyolo.integrations.ultralytics.profiling import Layer, Measured

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for index in range(4):
        cv2.imwrite(str(folder / f"{index}.png"), draw.integers(0, 255, (96, 128, 3), np.uint8))
    return sorted(map(str, folder.glob("*.png")))


@pytest.fixture(scope="module")
def data(images: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for file in map(Path, images):
        (folder / "images" / file.name).write_bytes(file.read_bytes())
        (folder / "labels" / f"{file.stem}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    YAML.save(folder / "data.yaml", {"path": str(folder), "train": "images", "val": "images", "names": ["thing"]})
    return str(folder / "data.yaml")


@pytest.fixture
def training(data: str) -> dict[str, Any]:
    return {"model": "yolov8n-fast.yaml", "data": data, "imgsz": 64, "batch": 2, "workers": 0, "device": "cpu"}


def slowed(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return function(*args, **kwargs)

    return call


def stages(found: profile.Profile) -> dict[str, profile.Stage]:
    assert sum(stage.share for stage in found.stages) == pytest.approx(1)
    return {stage.name: stage for stage in found.stages}


def test_a_stage_does_not_count_what_runs_inside_it():
    now = 0.0

    def clock() -> float:
        return now

    watch = Stopwatch(CPU, clock)
    now = 5.0
    watch.start()  # the five seconds are forgotten
    now += 1
    with watch.stage("outer"):
        now += 2
        with watch.stage("inner"):
            now += 4
        now += 8
        with watch.stage("inner"):
            now += 16
    watch.lap()
    now += 32
    watch.lap()
    assert watch.rounds == [{OTHER: 1, "outer": 10, "inner": 20}, {OTHER: 32}]
    watch.enter("outer")
    with pytest.raises(RuntimeError, match=r"^stage must be 'outer', which was entered last, got 'inner'\.$"):
        watch.leave("inner")


def test_inference_has_every_stage_and_leaves_the_model_alone(images):
    model = YOLO("yolov8n-fast.yaml")
    hooks = [len(module._forward_hooks) for module in model.model.modules()]
    nms = detection.nms.non_max_suppression
    stock = profile.inference(model, images, imgsz=64, rounds=5, device="cpu")
    names = {"read", "letterbox", "to tensor", "backbone", "neck", "head", "results", "draw", OTHER}
    assert set(stages(stock)) == names | {"decode", "NMS"}
    assert [layer.name for layer in stock.layers][:3] == ["0 Conv", "1 Conv", "2 GELAN"]
    assert stock.layers[-1].name == "22 LightDetect"
    assert all(layer.seconds > 0 for layer in stock.layers)
    assert stock.seconds > 0
    assert stock.rounds == 5
    assert detection.nms.non_max_suppression is nms
    assert [len(module._forward_hooks) for module in model.model.modules()] == hooks
    assert "_inference" not in vars(model.model.model[-1])

    faster = profile.inference(fastyolo.accelerate(model), images, imgsz=64, rounds=3, device="cpu")
    assert set(stages(faster)) == names | {"decode and NMS"}
    assert stages(faster)["decode and NMS"].group == "post-processing"


def test_slow_reading_is_data(images, monkeypatch):
    monkeypatch.setattr(loaders, "imread", slowed(loaders.imread, 0.1))
    found = profile.inference(YOLO("yolov8n-fast.yaml"), images, imgsz=64, rounds=3, device="cpu")
    assert found.bound == "data"
    assert stages(found)["read"].seconds >= 0.1
    assert any("another thread" in change.what for change in found.changes)


def test_python_nms_of_every_candidate_is_post_processing(images):
    model = YOLO("yolov8n-fast.yaml")
    for branch in model.model.model[-1].cv3:
        branch[-1].bias.data.fill_(-4.0)  # scores of 0.018, so that each anchor is a candidate
    found = profile.inference(model, images[:1], imgsz=640, rounds=3, device="cpu", conf=0.001, iou=0.999)
    by_name = stages(found)
    assert by_name["NMS"].share > 0.2
    assert found.bound == "post-processing" or by_name["NMS"].seconds < sum(
        stage.seconds for stage in found.stages if stage.group == "network"
    )
    assert any(change.what.startswith(("call fastyolo.accelerate", "raise conf")) for change in found.changes)


def measured(subject: str, seconds: dict[str, float], layers: list[Layer], **facts: Any) -> Measured:
    return Measured([seconds] * 3, layers, CPU, facts)


INFERENCE = {"accelerated": True, "conf": 0.25, "half": False, "imgsz": 640, "pixels": 640.0**2}
SECONDS = {OTHER: 0.01, "read": 0.02, "letterbox": 0.01, "to tensor": 0.01, "decode and NMS": 0.01, "draw": 0.01}


def layer(flops: float, activation_bytes: float) -> Layer:
    return Layer("0 Conv", "Conv", "backbone", int(flops), int(activation_bytes), 0)


@pytest.mark.parametrize(
    ("seconds", "layers", "bound"),
    [
        ({"0 Conv": 1.0}, [layer(1e11, 1e6)], "compute"),
        ({"0 Conv": 1.0}, [layer(1e6, 1e9)], "memory"),
        ({"0 Conv": 1.0}, [layer(1e6, 1e3)], "launch overhead"),
        ({"0 Conv": 0.1, "read": 1.0}, [layer(1e10, 1e6)], "data"),
        ({"0 Conv": 0.1, "decode and NMS": 1.0}, [layer(1e10, 1e6)], "post-processing"),
        ({"0 Conv": 0.1, "draw": 1.0}, [layer(1e10, 1e6)], "drawing"),
        ({"0 Conv": 0.1, OTHER: 1.0}, [layer(1e10, 1e6)], "CPU"),
    ],
)
def test_verdicts_of_inference(monkeypatch, seconds, layers, bound):
    monkeypatch.setattr(profile, "measure", lambda device: profile.Roofline(flops=2e11, bytes=1e10))
    run = measured("inference", {**SECONDS, **seconds}, layers, **INFERENCE)
    monkeypatch.setattr(profiling, "inference", lambda *_, **__: run)
    monkeypatch.setattr(profiling, "lighter_share", lambda *_: ("yolov8n-fast", 0.25))
    found = profile.inference(YOLO("yolov8n.yaml"), [])
    assert found.bound == bound
    assert found.because.endswith(".")
    assert len(found.changes) == 2
    assert found.changes[0].saves >= found.changes[1].saves >= 0.02


def test_a_gpu_that_waits_is_launch_overhead(monkeypatch):
    monkeypatch.setattr(profile, "measure", lambda device: profile.Roofline(flops=2e11, bytes=1e10))
    run = measured("inference", {**SECONDS, "0 Conv": 1.0}, [layer(1e11, 1e6)], **INFERENCE)
    monkeypatch.setattr(profiling, "lighter_share", lambda *_: None)
    for busy, bound in ((0.3, "launch overhead"), (0.9, "compute")):
        monkeypatch.setattr(
            profiling, "inference", lambda *_, busy=busy, **__: Measured(run.rounds, run.layers, CPU, run.facts, busy)
        )
        found = profile.inference(YOLO("yolov8n.yaml"), [])
        assert found.bound == bound
    assert "30%" not in found.because


def test_lighter_models_are_proposed_for_yolov8_alone():
    name, share = profiling.lighter_share(YOLO("yolov8s.yaml").model, 640)
    assert name == "yolov8s-fast"
    assert 0.2 < share < 0.4
    for other in ("yolov8s-fast.yaml", "yolo11n.yaml"):
        assert profiling.lighter_share(YOLO(other).model, 640) is None


def test_training_has_every_stage_and_leaves_nothing(training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = profile.training(training, rounds=3)
    parts = {"backbone", "neck", "head"}
    assert set(stages(found)) == {OTHER, "data", "to device", "loss", "assigner", "backward", "optimiser", *parts}
    assert found.rounds == 3
    assert found.facts["accumulate"] == 32  # ultralytics' nominal batch of 64
    assert all(stage.seconds > 0 for stage in found.stages if stage.name not in (OTHER, "optimiser"))
    assert found.bound != "data"
    assert not list(tmp_path.iterdir())


def test_training_with_a_teacher_that_waits_for_data(training, tmp_path, monkeypatch):
    teacher = YOLO("yolov8n.yaml")
    teacher.model = DetectionModel("yolov8n.yaml", nc=1, verbose=False)
    teacher.model.names = {0: "thing"}
    teacher.save(tmp_path / "teacher.pt")
    monkeypatch.setattr(YOLODataset, "__getitem__", slowed(YOLODataset.__getitem__, 0.3))
    trace = tmp_path / "trace.json"
    found = profile.training({**training, "distill_model": str(tmp_path / "teacher.pt")}, rounds=2, trace=trace)
    assert found.bound == "data"
    assert stages(found)["data"].seconds >= 0.6
    assert stages(found)["teacher"].seconds > 0
    assert found.changes[0].why.startswith("batches are waited for")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"2 GELAN", "teacher", "assigner", "optimiser", "aten::convolution"} <= names


def test_head_alone(tmp_path):
    trace = tmp_path / "trace.json"
    model = YOLO("yolov8n-fast-p2.yaml")
    found = profile.head(model, imgsz=64, rounds=4, trace=trace)
    branches = {f"{name} of P{level}" for name in ("boxes", "classes") for level in (2, 3, 4, 5)}
    assert set(stages(found)) == branches | {"concatenate", "decode", OTHER}
    assert "_inference" not in vars(model.model.model[-1])
    assert "classes of P3" in trace.read_text()
    assert found.changes[0].what.startswith("take LightDetect")


def test_command(images, tmp_path):
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["profile", *arguments], env={"COLUMNS": "120"})

    weights = str(tmp_path / "tiny.pt")
    YOLO("yolov8n-fast.yaml").save(weights)
    folder, out = str(Path(images[0]).parent), str(tmp_path / "out.json")
    small = ["--weights", weights, "--imgsz", "64", "--rounds", "2", "--threads", "1"]
    done = run("inference", *small, "--source", folder, "--json", out)
    assert done.exit_code == 0, done.output
    assert "Bound by " in done.output
    assert "22 LightDetect" in done.output
    report = json.loads(Path(out).read_text())
    assert report["subject"] == "inference"
    assert {stage["name"] for stage in report["stages"]} >= {"read", "head", "decode and NMS"}
    assert run("head", *small).exit_code == 0
    for arguments, words in {
        ("training", *small): "--data",
        ("head", *small, "--source", folder): "--source",
        ("inference", *small, "--data", "x.yaml"): "--data",
        ("inference", *small, "--trace", "trace.txt"): "--trace",
        ("training", *small, "--data", "x.yaml", "--set", "epoch=1"): "the nearest is 'epochs'",
        ("elsewhere", *small): "'elsewhere'",
    }.items():
        refused = run(*arguments)
        assert refused.exit_code == 2, refused.output
        assert words in refused.output
    empty = run("inference", *small, "--source", os.devnull)
    assert empty.exit_code == 1
