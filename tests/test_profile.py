# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where time goes: every stage has its own, the verdict follows from planted causes, and nothing is left behind."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_that_torch_was_set_to(images, threads):
    """ultralytics sets another number whenever it selects a device."""
    model = YOLO("yolov8n-fast.yaml")
    seen = set()
    model.model.model[0].register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    model.model.model[-1].register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = profile.inference(model, images, imgsz=64, rounds=1, device="cpu")
        alone = profile.head(model, imgsz=64, rounds=1)
    finally:
        torch.set_num_threads(before)
    assert seen == {threads}
    assert found.facts["threads"] == alone.facts["threads"] == threads


def test_what_cannot_be_profiled(images, tmp_path):
    model = YOLO("yolov8n-fast.yaml")
    for profiled in (functools.partial(profile.inference, images=images, device="cpu"), profile.head):
        with pytest.raises(ValueError, match=r"^imgsz must be multiples of the model's largest stride, 32, got 50\.$"):
            profiled(model, imgsz=50, rounds=1)
        with pytest.raises(
            ValueError, match=r"^weights must be a checkpoint, got 'x.onnx', which is exported already\.$"
        ):
            profiled(SimpleNamespace(model="x.onnx"), imgsz=64, rounds=1)
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"^images must be images, and .*text\.jpg cannot be read as one\.$"):
        profile.inference(model, [str(tmp_path / "text.jpg")], imgsz=64, rounds=1, device="cpu")
    with pytest.raises(ValueError, match=r"^batch must be a number of images, at least 1, got -1\.$"):
        profile.training({"batch": -1}, rounds=1)


def test_slow_reading_is_data(images, monkeypatch):
    monkeypatch.setattr(loaders, "imread", slowed(loaders.imread, 0.1))
    found = profile.inference(YOLO("yolov8n-fast.yaml"), images, imgsz=64, rounds=3, device="cpu")
    assert found.bound == "data"
    assert stages(found)["read"].seconds >= 0.1
    assert found.changes[0].what.startswith("store or request the images smaller")  # they have three times the pixels


def test_slow_nms_is_post_processing(images, tmp_path, monkeypatch):
    monkeypatch.setattr(detection.nms, "non_max_suppression", slowed(detection.nms.non_max_suppression, 0.1))
    thin = {"nc": 1, "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]]}
    YAML.save(tmp_path / "thin.yaml", {**thin, "head": [[[1], 1, "Detect", ["nc"]]]})
    model = YOLO(tmp_path / "thin.yaml")
    found = profile.inference(model, images[:1], imgsz=128, rounds=3, device="cpu", conf=0.001)
    assert found.bound == "post-processing"
    assert stages(found)["NMS"].seconds >= 0.1
    assert [change.what.split("(")[0] for change in found.changes] == [
        "call fastyolo.accelerate",
        "raise conf from 0.001 to what the application needs, such as 0.25",
    ]


def measured(subject: str, seconds: dict[str, float], layers: list[Layer], **facts: Any) -> Measured:
    return Measured([seconds] * 3, layers, CPU, facts)


INFERENCE = {"accelerated": True, "conf": 0.05, "half": False, "imgsz": 640, "pixels": 640.0**2}
SECONDS = {OTHER: 0.01, "read": 0.02, "letterbox": 0.01, "to tensor": 0.01, "decode and NMS": 0.01, "draw": 0.01}


def layer(flops: float, activation_bytes: float) -> Layer:
    return Layer("0 Conv", "Conv", "backbone", int(flops), int(activation_bytes), 0)


@pytest.mark.parametrize(
    ("seconds", "layers", "bound", "change"),
    [
        ({"0 Conv": 1.0}, [layer(1e11, 1e6)], "compute", "train yolov8n-fast"),
        ({"0 Conv": 1.0}, [layer(1e6, 1e9)], "memory", "train yolov8n-fast"),
        ({"0 Conv": 1.0}, [layer(1e6, 1e3)], "launch overhead", "export the model"),
        ({"0 Conv": 0.5, "read": 0.6}, [layer(1e10, 1e6)], "data", "read images in another thread"),
        ({"0 Conv": 0.1, "decode and NMS": 1.0}, [layer(1e10, 1e6)], "post-processing", "raise conf"),
        ({"0 Conv": 0.1, "draw": 1.0}, [layer(1e10, 1e6)], "drawing", "draw and save only"),
        ({"0 Conv": 0.1, OTHER: 1.0}, [layer(1e10, 1e6)], "CPU", "train yolov8n-fast"),
    ],
)
def test_verdicts_of_inference(monkeypatch, seconds, layers, bound, change):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(profile, "measure", lambda device: profile.Roofline(flops=2e11, bytes=1e10))
    run = measured("inference", {**SECONDS, **seconds}, layers, **INFERENCE)
    monkeypatch.setattr(profiling, "inference", lambda *_, **__: run)
    monkeypatch.setattr(profiling, "lighter_share", lambda *_: ("yolov8n-fast", 0.25))
    found = profile.inference(YOLO("yolov8n.yaml"), [])
    assert found.bound == bound
    assert found.because.endswith(".")
    assert all(0.02 <= change.saves <= 1 for change in found.changes)
    assert sorted(found.changes, key=lambda change: -change.saves) == list(found.changes)
    assert found.changes[0].what.startswith(change)


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


def event(kind: str, name: str, start: float, end: float, *, annotation: bool = False) -> Any:
    span, device = SimpleNamespace(start=start, end=end), SimpleNamespace(name=kind)
    return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=annotation)


def test_kernels_count_to_the_innermost_stage_that_asked_for_them():
    events = [
        event("CPU", "0 Conv", 0, 100),
        event("CPU", "decode", 40, 60),
        event("CPU", "aten::conv2d", 1, 5),
        event("CPU", "NMS", 200, 300),
        event("CUDA", "0 Conv", 10, 90, annotation=True),  # as the profiler repeats it
        event("CUDA", "gemm", 10, 30),
        event("CUDA", "softmax", 45, 50),
        event("CUDA", "gemm", 70, 80),
        event("CUDA", "sort", 210, 250),
        event("CUDA", "copy", 400, 500),  # in no stage
    ]
    found = profiling.kernel_seconds(events, {"0 Conv", "decode", "NMS"})
    assert {name: seconds * 1e6 for name, seconds in found.items()} == pytest.approx(
        {"0 Conv": 30, "decode": 5, "NMS": 40}
    )


TRAINING = {"amp": False, "batch": 16, "cache": True, "frozen": False, "imgsz": 640, "nbs": 64, "teacher": True}


@pytest.mark.parametrize(
    ("seconds", "facts", "busy", "changes"),
    [
        ({"data": 2.0}, {}, None, {"raise workers": 1 / 2, "train with amp": 1 / 4}),
        # Half of the forward pass is the backbone's, so half of the backward pass counts as its own.
        ({"backward": 6.0}, {"amp": True}, None, {"train at imgsz 480": 7 / 16, "freeze the backbone": 3 / 8}),
        ({"teacher": 8.0}, {}, None, {"take a smaller teacher": 4 / 5, "train with amp": 1 / 2}),
        ({"optimiser": 6.0}, {}, None, {"double nbs": 3 / 8, "train with amp": 1 / 8}),
        ({"backward": 2.0}, {}, 0.2, {"raise batch from 16": 4 / 5, "freeze the backbone": 1 / 4}),
    ],
)
def test_changes_of_training(monkeypatch, seconds, facts, busy, changes):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(profile, "measure", lambda device: profile.Roofline(flops=2e11, bytes=1e10))
    each = {OTHER: 0.0, "data": 0.0, "0 Conv": 1.0, "1 Conv": 1.0, **seconds}
    layers = [Layer(f"{i} Conv", "Conv", part, 10**10, 10**6, 0) for i, part in enumerate(("backbone", "neck"))]
    run = Measured([each] * 3, layers, CPU, {**TRAINING, "workers": 1, **facts}, busy)
    monkeypatch.setattr(profiling, "training", lambda *_, **__: run)
    found = profile.training({})
    assert (found.bound == "data") == ("data" in seconds)
    for change, (what, saves) in zip(found.changes, changes.items(), strict=True):
        assert change.what.startswith(what)
        assert change.saves == pytest.approx(saves)


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
    assert not list(tmp_path.iterdir())


def test_training_with_a_teacher_that_waits_for_data(training, tmp_path, monkeypatch):
    teacher = YOLO("yolov8n.yaml")
    teacher.model = DetectionModel("yolov8n.yaml", nc=1, verbose=False)
    teacher.model.names = {0: "thing"}
    teacher.save(tmp_path / "teacher.pt")
    monkeypatch.setattr(YOLODataset, "__getitem__", slowed(YOLODataset.__getitem__, 0.2))
    monkeypatch.setattr(profiling, "WARMUP", 1)
    trace = tmp_path / "trace.json"
    found = profile.training({**training, "distill_model": str(tmp_path / "teacher.pt")}, rounds=2, trace=trace)
    assert found.bound == "data"
    assert stages(found)["data"].seconds >= 0.4
    assert stages(found)["teacher"].seconds > 0
    assert found.changes[0].why.startswith("batches are waited for")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"2 GELAN", "teacher", "assigner", "optimiser", "aten::convolution"} <= names


def test_head_alone(tmp_path):
    trace = tmp_path / "trace.json"
    model = YOLO("yolov8n-fast-p2.yaml")
    found = profile.head(model, imgsz=64, rounds=4, trace=str(trace))
    branches = {f"{name} of P{level}" for name in ("boxes", "classes") for level in (2, 3, 4, 5)}
    assert set(stages(found)) == branches | {"concatenate", "decode", OTHER}
    assert "_inference" not in vars(model.model.model[-1])
    assert "classes of P3" in trace.read_text()
    assert [change.what.split(" (")[0] for change in found.changes][:1] == ["remove channels from the head"]
    assert not any("LightDetect" in change.what for change in found.changes)  # which it has


def test_an_end_to_end_head_is_profiled_as_prediction_runs_it():
    model = YOLO("yolov10n.yaml")
    model.model.end2end = True  # as nms=False does
    found = stages(profile.head(model, imgsz=64, rounds=4))
    branches = {f"{name} of P{level}" for name in ("boxes", "classes") for level in (3, 4, 5)}
    assert set(found) == branches | {"concatenate", "decode", "top-k", OTHER}
    assert all(found[name].seconds > 0 for name in branches)
    assert found["concatenate"].seconds < sum(found[name].seconds for name in branches)  # holds no branch
    assert model.model.model[-1].cv2 is not None  # the model itself is left as it was
    model.model.end2end = False
    assert "top-k" not in stages(profile.head(model, imgsz=64, rounds=4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0."),
        ({"rounds": 2.5}, "rounds must be an integer, got 2.5."),
        ({"imgsz": "64"}, "imgsz must be an integer, got '64'."),
        ({"imgsz": 50}, "imgsz must be multiples of the model's largest stride, 32, got 50."),
        ({"trace": True}, "trace must be a path, got True."),
        ({"images": []}, "images must be a list of image files, got []."),
        ({"images": "bus.jpg"}, "images must be a list of image files, got 'bus.jpg'."),
    ],
)
def test_wrong_arguments(settings, message):
    given = {"images": ["bus.jpg"], "imgsz": 64, "rounds": 1, **settings}
    with pytest.raises((TypeError, ValueError)) as error:
        profile.inference(YOLO("yolov8n.yaml"), given.pop("images"), **given)
    assert str(error.value) == message


def test_a_lighter_head_is_proposed_with_its_share(monkeypatch):
    monkeypatch.setattr(profile, "measure", lambda device: profile.Roofline(flops=2e11, bytes=1e10))
    lighter = profiling.lighter_share(YOLO("yolov8n.yaml").model, 64, "head")
    assert 0 < lighter[1] < 0.5
    run = Measured([{"boxes of P3": 0.5, "classes of P3": 0.3, "decode": 0.2}], [], CPU, {"lighter": lighter})
    monkeypatch.setattr(profiling, "head", lambda *_, **__: run)
    replaced, pruned = profile.head(YOLO("yolov8n.yaml")).changes
    assert pruned.saves == pytest.approx(0.4)
    assert replaced.what == "take the head of yolov8n-fast, LightDetect"
    assert replaced.saves == pytest.approx(0.8 * (1 - lighter[1]))


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
        ("training", *small[:-2]): "--data",
        ("head", *small, "--source", folder): "--source",
        ("head", *small, "--stock"): "--stock",
        ("training", *small, "--data", "x.yaml"): "--threads",
        ("training", *small[:-2], "--data", "x.yaml", "--conf", "0"): "--conf",
        ("inference", *small, "--batch", "4"): "--batch",
        ("inference", *small, "--data", "x.yaml"): "--data",
        ("inference", *small, "--trace", "trace.txt"): "--trace",
        ("training", *small[:-2], "--data", "x.yaml", "--set", "epoch=1"): "the nearest is 'epochs'",
        ("elsewhere", *small): "'elsewhere'",
    }.items():
        refused = run(*arguments)
        assert refused.exit_code == 2, refused.output
        assert words in refused.output
    empty = run("inference", *small, "--source", os.devnull)
    assert empty.exit_code == 1
