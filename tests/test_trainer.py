# SPDX-License-Identifier: AGPL-3.0-or-later
"""The trainer: ultralytics' own under default settings, and what it adds to it.

The runs are of a tiny network on images of coloured rectangles. That of `finished` learns them well, so that its mAP
can be compared with; it is the teacher of others, too.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import pickletools
import runpy
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

pytest.importorskip("ultralytics")

import yaml
from shapes import TINY, write_shapes, write_tiny
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.data.dataset import YOLODataset
from ultralytics.engine import trainer as engine
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils import dist as launching
from ultralytics.utils import torch_utils

from fastyolo.diagnose.doctor.run import examine
from fastyolo.integrations.ultralytics import trainer as trainer_module
from fastyolo.integrations.ultralytics.distillation import Distillation
from fastyolo.integrations.ultralytics.processes import launch
from fastyolo.train import LossReport, Trainer, loss_report

EPOCHS = 16
MAP50 = "metrics/mAP50(B)"

# Trains with the arguments of its first argument, and kills itself just before what the second one names.
KILLED = """
import json, os, signal, sys
from fastyolo.train import Trainer

arguments, (method, epoch, call) = map(json.loads, sys.argv[1:])
trainer = Trainer(overrides=arguments)
stock, calls = getattr(trainer, method), []

def watch(*args):
    if trainer.epoch == epoch:
        calls.append(epoch)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
    return stock(*args)

setattr(trainer, method, watch)
trainer.train()
"""

# Trains in each process, and writes down what its model has become.
PROCESS = """
import json, os, sys
import torch
from fastyolo.train import Trainer
from ultralytics.utils.torch_utils import unwrap_model

trainer = Trainer(overrides=json.loads(sys.argv[1]))
trainer.train()
result = {
    "parameters": {name: value.data for name, value in unwrap_model(trainer.model).named_parameters()},
    "amp": trainer.amp,
    "save_dir": str(trainer.save_dir),
    "metrics": trainer.metrics,
}
torch.save(result, f"{sys.argv[2]}/{os.environ['RANK']}.pt")
"""


@pytest.fixture(scope="session")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Arguments of a run: few steps with much effect, few of them random."""
    folder = tmp_path_factory.mktemp("shapes")
    files = {"data": str(write_shapes(folder, train=32)), "model": str(write_tiny(folder))}

    def make(folder: Path, **overrides: Any) -> dict[str, Any]:
        small = {"epochs": 1, "imgsz": 64, "batch": 4, "device": "cpu", "plots": False, "verbose": False}
        steady = {"mosaic": 0.0, "scale": 0.0, "translate": 0.0, "hsv_h": 0.0}
        learning = {"optimizer": "AdamW", "lr0": 0.005, "warmup_epochs": 1, "nbs": 4}
        return {**files, **small, **steady, **learning, "project": str(folder), "name": "run", **overrides}

    return make


def launched(trainer: Trainer) -> Trainer:
    """The trainer of a process that ultralytics starts for `trainer`, at its end."""
    pytest.importorskip("cloudpickle")
    file = launching.generate_ddp_file(trainer)
    try:
        return runpy.run_path(file, run_name="__main__")["trainer"]
    finally:
        launching.ddp_cleanup(trainer, file)


@pytest.fixture(scope="session")
def finished(arguments: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run of EPOCHS epochs, at its end."""
    trainer = Trainer(overrides=arguments(tmp_path_factory.mktemp("finished"), epochs=EPOCHS))
    trainer.train()
    return trainer


@pytest.fixture
def interrupted(arguments: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """The checkpoint of a run of three epochs that an error ended when it came to `event` of an epoch, from 0."""

    def run(epoch: int, event: str = "on_train_epoch_start", **overrides: Any) -> Path:
        trainer = Trainer(overrides=arguments(tmp_path, epochs=3, **overrides))

        def interrupt(trainer: Trainer) -> None:
            if trainer.epoch == epoch:
                raise KeyboardInterrupt

        trainer.add_callback(event, interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        return Path(trainer.last)

    return run


def rows(trainer: Trainer) -> list[dict[str, float]]:
    """results.csv."""
    with trainer.csv.open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def epochs(trainer: Trainer) -> list[int]:
    return [int(row["epoch"]) for row in rows(trainer)]


def state(file: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(file)[0].state_dict()


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def set_up(**overrides: Any) -> Trainer:
    """A trainer that is about to enter its loop."""
    trainer = Trainer(overrides=overrides)
    trainer._setup_train()
    return trainer


def test_an_interrupt_ends_all_processes_of_a_run(tmp_path):
    """As torchrun does, the launcher waits for a process that an interrupt of its parent alone does not reach."""
    code = """
import signal, sys
from fastyolo.integrations.ultralytics.processes import launch

signal.signal(signal.SIGINT, signal.default_int_handler)  # which there is not in the background

worker = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
launch([sys.executable, "-c", launcher], check=True)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    file = tmp_path / "pid"
    while not (file.exists() and file.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    _, errors = parent.communicate(timeout=100)
    assert parent.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert not psutil.pid_exists(int(file.read_text()))


def test_a_launcher_that_fails_is_told_apart():
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        launch([sys.executable, "-c", "raise SystemExit(3)"], check=True)


# The run itself


def test_default_settings_are_ultralytics_own(arguments, tmp_path, caplog):
    trainers = []
    for trainer in (Trainer, DetectionTrainer):
        augmented = {"mosaic": 1.0, "scale": 0.5, "cls_pw": 0.5, "epochs": 2, "close_mosaic": 1}
        trainers.append(trainer(overrides=arguments(tmp_path / trainer.__name__, **augmented)))
        trainers[-1].train()
    ours, theirs = ([{**row, "time": 0} for row in rows(trainer)] for trainer in trainers)
    assert ours == theirs
    assert len(ours) == 2
    assert same(*(state(trainer.last) for trainer in trainers))
    assert trainers[0].metrics == trainers[1].metrics
    assert "close_geometry had" not in caplog.text


@pytest.mark.parametrize(("close_mosaic", "height"), [(0, 64), (1, 43), (2, 64), (3, 43)])
def test_geometry_is_as_in_deployment_in_the_last_epochs(arguments, tmp_path, monkeypatch, close_mosaic, height):
    load, shape = YOLODataset.load_image, (height, 64)  # 43 rows leave 21 to fill, which is odd
    monkeypatch.setattr(YOLODataset, "load_image", lambda *args: (load(*args)[0][:height], shape, shape))
    wild = {"mosaic": 1.0, "mixup": 1.0, "degrees": 30.0, "translate": 0.3, "scale": 0.5, "shear": 5.0}
    calm = {"hsv_s": 0.0, "hsv_v": 0.0, "fliplr": 0.0, "workers": 0}
    closing = {"epochs": 3, "close_geometry": 2, "close_mosaic": close_mosaic}
    trainer = Trainer(overrides=arguments(tmp_path, **wild, **calm, **closing))
    letterboxed = []

    def look(trainer: Trainer) -> None:
        dataset = trainer.train_loader.dataset
        as_deployed = [LetterBox((64, 64))(image=dataset.load_image(index)[0])[..., ::-1] for index in range(4)]
        shown = [dataset[index]["img"].permute(1, 2, 0).numpy() for index in range(4)]
        letterboxed.append([np.array_equal(*pair) for pair in zip(shown, as_deployed, strict=True)])

    trainer.add_callback("on_train_epoch_end", look)
    trainer.train()
    assert letterboxed == [[False] * 4, [True] * 4, [True] * 4]
    assert (trainer.args.scale, trainer.args.mosaic) == (0.5, 1.0)  # which checkpoints keep


def with_fitness(trainer: Trainer, *values: float) -> Trainer:
    """A trainer whose validation finds these, epoch by epoch."""

    def validate() -> Any:
        before = trainer.best_fitness
        metrics, _ = DetectionTrainer.validate(trainer)
        fitness = values[trainer.epoch]
        trainer.best_fitness = fitness if before is None else max(before, fitness)
        return metrics, fitness

    trainer.validate = validate
    return trainer


def test_the_best_epoch_is_one_of_images_as_in_deployment(arguments, tmp_path, caplog):
    trainer = Trainer(overrides=arguments(tmp_path, epochs=5, close_geometry=2, patience=2))
    saved = []
    trainer.add_callback("on_model_save", lambda trainer: saved.append(trainer.best.read_bytes()))
    with_fitness(trainer, 0.1, 0.5, 0.4, 0.2, 0.3).train()
    assert [a != b for a, b in itertools.pairwise(saved)] == [True, False, True, True]
    assert trainer.stopper.best_epoch == 5
    assert "had no effect" not in caplog.text


def test_a_run_that_stops_before_its_last_epochs_says_so(arguments, tmp_path, caplog):
    trainer = Trainer(overrides=arguments(tmp_path, epochs=6, close_geometry=2, patience=1))
    with_fitness(trainer, 0.5, 0.4).train()
    assert trainer.epoch == 1
    assert "close_geometry had no effect, since the run stopped before its last epochs" in caplog.text


def test_the_last_epochs_of_a_run_of_limited_time(arguments, tmp_path, monkeypatch):
    """Whose number is a guess: ultralytics' own changes after each epoch."""
    trainer = Trainer(overrides=arguments(tmp_path, time=1.0, close_geometry=4))
    now = 0.0
    monkeypatch.setattr(trainer_module.time, "time", lambda: now)
    trainer.train_time_start, trainer.start_epoch = 0.0, 0
    closing = []
    for trainer.epoch in range(11):  # the last of which begins at 55 minutes
        now = 600.0 + 300 * (trainer.epoch - 1) if trainer.epoch else 0.0  # the first takes twice as long
        trainer.epochs = trainer.epoch + 1
        closing.append(trainer._is_closing())
    assert closing == [False] * 7 + [True] * 4


def test_a_run_learns_and_leaves_its_files(finished):
    assert finished.metrics[MAP50] > 0.85
    assert epochs(finished) == list(range(1, EPOCHS + 1))
    files = {str(path.relative_to(finished.save_dir)) for path in finished.save_dir.rglob("*") if path.is_file()}
    assert files == {"args.yaml", "loss_report.json", "results.csv", "weights/best.pt", "weights/last.pt"}


def test_settings_are_among_the_arguments_everywhere(interrupted):
    last = interrupted(1, kd_cls=3.0, head_lr=0.5)
    arguments = yaml.safe_load((last.parent.parent / "args.yaml").read_text())
    stored = torch.load(last, weights_only=False)["train_args"]
    for place in (arguments, stored):
        assert (place["kd_cls"], place["head_lr"], place["tal_topk"], place["epochs"]) == (3.0, 0.5, 10, 3)
    with zipfile.ZipFile(last) as archive:
        (pickled,) = (archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
    classes = {argument for opcode, argument, _ in pickletools.genops(pickled) if opcode.name == "GLOBAL"}
    assert "ultralytics.nn.tasks DetectionModel" in classes
    assert not [name for name in classes if name.startswith("fastyolo")]


def test_yolo_trains_with_it(arguments, finished, tmp_path):
    overrides = arguments(tmp_path, distill_model=str(finished.best), kd_cls=2.0, kd_ramp_epochs=1.0, epochs=2)
    model = YOLO("yolov8n-fast.yaml")
    times = []
    model.add_callback("on_train_batch_end", lambda trainer: times.append(trainer.model.epoch))
    model.train(trainer=Trainer, **overrides)
    assert isinstance(model.trainer, Trainer)
    assert model.trainer.settings.kd_cls == 2.0
    assert times == [batch / 8 for batch in range(16)]
    for row in rows(model.trainer):
        assert all(row[f"train/{name}"] > 0 for name in ("kd_cls", "kd_box", "kd_feat"))
        assert all(row[f"val/{name}"] == 0 for name in ("kd_cls", "kd_box", "kd_feat"))
    assert not any("teacher" in name or "projector" in name for name in state(model.trainer.best))
    assert model.predict(torch.zeros(1, 3, 64, 64), verbose=False)


def test_log_says_which_weights_were_taken_over(arguments, finished, tmp_path, caplog):
    YOLO(finished.args.model).load(finished.best).train(trainer=Trainer, **arguments(tmp_path))
    message = next(message for message in caplog.messages if "were taken over" in message)
    assert "100.0% of the parameters" in message
    assert message.endswith("taken over from best.pt.")


def test_final_checkpoints_keep_the_settings(finished, tmp_path):
    stored = torch.load(finished.best, weights_only=False)["train_args"]
    assert {name: stored[name] for name in finished.settings.as_dict()} == finished.settings.as_dict()
    model = YOLO(finished.best)
    assert model.predict(torch.zeros(1, 3, 64, 64), verbose=False)
    arguments = {"device": "cpu", "plots": False, "project": str(tmp_path)}
    assert model.val(**arguments).results_dict[MAP50] == pytest.approx(finished.metrics[MAP50])
    assert MAP50 in model.train(data=finished.args.data, epochs=1, **arguments).results_dict


def test_one_class_learns_from_a_teacher_of_one_class(arguments, tmp_path):
    teacher = Trainer(overrides=arguments(tmp_path, single_cls=True))
    teacher.train()
    checkpoint = torch.load(teacher.best, weights_only=False)
    checkpoint["model"].names = {0: "red"}
    torch.save(checkpoint, teacher.best)
    assert set_up(**arguments(tmp_path, single_cls=True, distill_model=str(teacher.best))).model.teacher_model


# Optimizer and layers


@pytest.mark.parametrize("optimizer", ["SGD", "MuSGD"])
def test_head_learns_at_its_own_rate(arguments, tmp_path, optimizer):
    rates = []
    for factor in (1.0, 0.1):
        trainer = set_up(**arguments(tmp_path, optimizer=optimizer, head_lr=factor))
        groups = trainer.optimizer.param_groups
        names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
        rates.append(
            {names[id(p)]: (group["initial_lr"], group["param_group"]) for group in groups for p in group["params"]}
        )
    stock, ours = rates
    assert ours.keys() == stock.keys()
    for name, (rate, kind) in ours.items():
        factor = 0.1 if name.startswith("model.7.") else 1
        assert (rate, kind) == (pytest.approx(factor * stock[name][0]), stock[name][1])


def test_head_rate_is_warmed_up_and_resumed(interrupted):
    last = interrupted(2, head_lr=0.1)
    trainer = set_up(resume=str(last))
    stored = torch.load(last, weights_only=False)["optimizer"]["param_groups"]
    groups = trainer.optimizer.param_groups
    assert len(groups) == len(stored) == 6
    for index, group in enumerate(groups):
        assert group["initial_lr"] == pytest.approx(0.005 * (0.1 if index > 2 else 1))
        assert group["lr"] == stored[index]["lr"] < group["initial_lr"]


@pytest.mark.parametrize("distilled", [False, True])
def test_frozen_backbone_stays(arguments, finished, tmp_path, distilled):
    teacher = {"distill_model": str(finished.best)} if distilled else {}
    overrides = arguments(tmp_path, model=str(finished.last), freeze_backbone=True, **teacher)
    with pytest.raises(ValueError, match=r"freeze must be left out or be 7, .* beside freeze_backbone, got 3"):
        set_up(**overrides, freeze=3)
    trainer = Trainer(overrides=overrides)
    trainer.train()
    before, after = state(finished.last), state(trainer.last)
    backbone = {name for name in before if int(name.split(".")[1]) < 7}
    assert all(torch.equal(before[name], after[name]) for name in backbone)
    weights = [name for name in before.keys() - backbone if name.endswith("conv.weight") and ".dfl." not in name]
    assert all(not torch.equal(before[name], after[name]) for name in weights)


# Resuming


def test_killed_twice_and_resumed(arguments, finished, tmp_path):
    def killed(overrides: dict[str, Any], *moment: Any) -> None:
        command = [sys.executable, "-c", KILLED, json.dumps(overrides), json.dumps(moment)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == -signal.SIGKILL, run.stderr
        for file in (last, best):
            load_checkpoint(file)

    last, best = (tmp_path / "run" / "weights" / name for name in ("last.pt", "best.pt"))
    killed(arguments(tmp_path, epochs=EPOCHS), "save_model", 5, 1)  # with a row of results too many
    assert torch.load(last, weights_only=False)["epoch"] == 4
    leftover = last.with_name(".last.pt.1")
    leftover.write_bytes(b"half a checkpoint")
    killed({"resume": str(last)}, "preprocess_batch", 7, 3)  # in the middle of an epoch
    assert torch.load(last, weights_only=False)["epoch"] == 6
    assert not leftover.exists()

    trainer = Trainer(overrides={"resume": str(last)})
    trainer.train()
    assert trainer.start_epoch == 7
    assert epochs(trainer) == list(range(1, EPOCHS + 1))
    assert rows(trainer)[0].keys() == rows(finished)[0].keys()
    assert trainer.metrics[MAP50] == pytest.approx(finished.metrics[MAP50], abs=0.08)
    for name in ("train/box_loss", "train/cls_loss", "val/box_loss", "val/cls_loss"):
        assert rows(trainer)[-1][name] == pytest.approx(rows(finished)[-1][name], rel=0.15)
    assert torch.load(last, weights_only=False)["optimizer"] is None


def test_resumed_run_knows_its_past(interrupted):
    last = interrupted(2)
    stored = torch.load(last, weights_only=False)
    last.with_name("best.pt").unlink()  # as if the kill had come between the two
    trainer = set_up(resume=str(last))
    assert trainer.start_epoch == 2
    assert epochs(trainer) == [1, 2]
    assert trainer.ema.updates == stored["updates"] == 16
    assert trainer.best_fitness == stored["best_fitness"]
    assert trainer.stopper.best_epoch == stored["stopper"]["best_epoch"]
    assert same(trainer.ema.ema.state_dict(), stored["ema"].float().state_dict())
    moments = [entry["exp_avg_sq"] for entry in trainer.optimizer.state_dict()["state"].values()]
    assert moments
    assert all(map(torch.equal, moments, [entry["exp_avg_sq"] for entry in stored["optimizer"]["state"].values()]))
    assert trainer.best.read_bytes() == last.read_bytes()


def test_resumption_leaves_the_model_in_args_yaml(interrupted):
    last = interrupted(1)
    file = last.parent.parent / "args.yaml"
    model = yaml.safe_load(file.read_text())["model"]
    assert model != str(last)
    with pytest.raises(ValueError, match="cannot be used"):
        Trainer(overrides={"resume": str(last), "data": "nowhere.yaml"})
    assert yaml.safe_load(file.read_text())["model"] == model
    arguments = vars(Trainer(overrides={"resume": str(last)}).args)
    assert arguments["model"] == str(last)
    assert yaml.safe_load(file.read_text())["model"] == model
    file.write_text("model: 'half of")
    Trainer(overrides={"resume": str(last)})
    assert yaml.safe_load(file.read_text())["model"] == str(last)  # the other one is lost


def test_resume_refuses_other_classes_and_leaves_the_run_as_it_was(interrupted, arguments, tmp_path):
    last = interrupted(1)
    folder = last.parent.parent
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    data = yaml.safe_load(Path(arguments(tmp_path)["data"]).read_text())
    first = list(data["names"].values())[:-1]
    renamed, fewer = ({**data, "names": names} for names in ([*first, "other"], first))
    for other, got in ((renamed, "3"), (fewer, "2")):
        file = Path(arguments(tmp_path)["data"]).with_name("other.yaml")
        file.write_text(yaml.safe_dump(other))
        if other is fewer:  # of which no label may say the third
            file = write_shapes(tmp_path / "fewer", names=fewer["names"])
        with pytest.raises(
            ValueError, match=rf"data must have the 3 classes that the run began with, .*, got {got} \("
        ):
            Trainer(overrides={"resume": str(last), "data": str(file)}).train()
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_resume_takes_data_that_moved(interrupted, arguments, tmp_path, caplog):
    last = interrupted(2)
    data = Path(arguments(tmp_path)["data"])
    moved = data.with_name("moved.yaml")
    moved.write_bytes(data.read_bytes())
    trainer = Trainer(overrides={"resume": str(last), "data": str(moved)})
    trainer.train()
    assert f"The run began with the data set {data} and goes on with {moved}." in caplog.text
    written = yaml.safe_load((trainer.save_dir / "args.yaml").read_text())
    assert (written["data"], written["model"]) == (str(moved), arguments(tmp_path)["model"])


def test_resumed_run_knows_that_mosaic_and_geometry_are_closed(interrupted, caplog):
    last = interrupted(2, mosaic=1.0, close_mosaic=2, close_geometry=2)
    caplog.clear()
    Trainer(overrides={"resume": str(last)}).train()
    assert "Closing dataloader mosaic" in caplog.messages
    assert caplog.text.count("Letterboxing images from here on") == 1


def test_resumed_run_keeps_results_that_are_no_numbers(interrupted):
    last = interrupted(1)
    checkpoint = torch.load(last, weights_only=False)
    checkpoint["train_results"]["val/box_loss"] = ["nan"]  # as ultralytics reads them
    torch.save(checkpoint, last)
    trainer = Trainer(overrides={"resume": str(last)})
    trainer.train()
    assert [math.isnan(row["val/box_loss"]) for row in rows(trainer)] == [True, False, False]


def test_resumed_run_draws_other_random_numbers(interrupted, arguments, tmp_path):
    last = interrupted(1)
    loaders = [set_up(**overrides).train_loader for overrides in ({"resume": str(last)}, arguments(tmp_path))]
    resumed, first = ([name for batch in loader for name in batch["im_file"]] for loader in loaders)
    assert sorted(resumed) == sorted(first)
    assert resumed != first


def test_run_killed_after_its_last_epoch_is_brought_to_its_end(interrupted):
    last = interrupted(2, "on_model_save")
    assert torch.load(last, weights_only=False)["optimizer"]
    trainer = Trainer(overrides={"resume": str(last)})
    trainer.train()
    assert epochs(trainer) == [1, 2, 3]
    assert MAP50 in trainer.metrics
    for file in (trainer.last, trainer.best):
        assert torch.load(file, weights_only=False)["optimizer"] is None


def test_run_killed_in_its_last_validation_is_brought_to_its_end(interrupted):
    last = interrupted(2, "on_model_save")

    def interrupt(validator: Any) -> None:
        raise KeyboardInterrupt

    trainer = Trainer(overrides={"resume": str(last)})
    trainer.add_callback("on_val_start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert torch.load(trainer.best, weights_only=False)["optimizer"] is None
    trainer = Trainer(overrides={"resume": str(last)})
    trainer.train()
    assert MAP50 in trainer.metrics
    results = [torch.load(file, weights_only=False)["train_results"] for file in (trainer.last, trainer.best)]
    assert results[0] == results[1]
    assert results[0]["epoch"] == [1, 2, 3]


def test_run_killed_when_stopped_early_is_brought_to_its_end(interrupted):
    last = interrupted(1, "on_model_save", patience=1, lr0=1e-9, warmup_bias_lr=0.0)  # its fitness stays 0
    checkpoint = torch.load(last, weights_only=False)
    checkpoint["stopper"] = {"best_fitness": 0.5, "best_epoch": 1}
    torch.save(checkpoint, last)
    trainer = Trainer(overrides={"resume": str(last)})
    trainer.train()
    assert epochs(trainer) == [1, 2]


@pytest.mark.parametrize("given", [{"kd_cls": 2.0}, {"epochs": 5}, {"lr0": 0.1, "batch": 4}])
def test_resume_refuses_other_settings(interrupted, given):
    last = interrupted(1)
    name, value = next(iter(given.items()))
    with pytest.raises(ValueError, match=rf"{name} must be left out beside resume or be the checkpoint's, .*{value}"):
        Trainer(overrides={"resume": str(last), **given})


def test_resume_takes_what_changes_nothing(interrupted):
    last = interrupted(1, kd_cls=2.0, label_smoothing=0.1)  # the latter was once an argument of ultralytics
    trainer = Trainer(overrides={"resume": str(last), "kd_cls": 2.0, "epochs": 3, "patience": 7, "batch": 4})
    for place in (trainer.settings, trainer.args):
        assert (place.kd_cls, place.label_smoothing) == (2.0, 0.1)
    assert (trainer.args.patience, trainer.batch_size) == (7, 4)


def test_resume_refuses_a_final_checkpoint(finished):
    with pytest.raises(ValueError, match=r"resume must be a checkpoint of an unfinished run, and .*last\.pt is final"):
        set_up(resume=str(finished.last))


def test_resume_refuses_a_final_checkpoint_of_a_distillation(arguments, finished, tmp_path):
    trainer = Trainer(overrides=arguments(tmp_path, distill_model=str(finished.best)))
    trainer.train()
    with pytest.raises(ValueError, match=r"resume must be a checkpoint of an unfinished run"):
        set_up(resume=str(trainer.last))


def test_run_is_resumed_where_its_checkpoint_lies(interrupted, tmp_path):
    last = interrupted(1)
    moved = tmp_path / "moved" / "again"
    shutil.copytree(last.parent.parent, moved)
    before = last.read_bytes()
    trainer = Trainer(overrides={"resume": str(moved / "weights" / "last.pt")})
    trainer.train()
    assert trainer.save_dir == moved
    assert epochs(trainer) == [1, 2, 3]
    assert last.read_bytes() == before
    elsewhere = tmp_path / "elsewhere"
    assert Trainer(overrides={"resume": str(last), "save_dir": str(elsewhere)}).save_dir == elsewhere


def test_distillation_is_resumed(interrupted, finished):
    last = interrupted(1, distill_model=str(finished.best), kd_feat=2.0)
    stored = torch.load(last, weights_only=False)["ema"]
    assert isinstance(stored, Distillation)
    trainer = set_up(resume=str(last))
    assert isinstance(trainer.model, Distillation)
    assert trainer.model.settings.kd_feat == 2.0
    assert len(stored.projector) == 2
    assert same(trainer.model.float().state_dict(), stored.float().state_dict())
    trainer = Trainer(overrides={"resume": str(last)})
    trainer.train()
    assert epochs(trainer) == [1, 2, 3]
    assert all(row["train/kd_feat"] > 0 for row in rows(trainer))
    with pytest.raises(ValueError, match=r"distill_model must be as in the run that resume goes on with, got None"):
        set_up(resume=str(interrupted(1, distill_model=str(finished.best), name="other")), distill_model=None)


def test_resume_refuses_a_teacher_of_another_width(interrupted, finished, tmp_path):
    last = interrupted(1, distill_model=str(finished.best))
    wider = DetectionModel(
        {**TINY, "backbone": [*TINY["backbone"][:4], [-1, 1, "C2f", [80, True]], *TINY["backbone"][5:]]}
    )
    wider.names = finished.data["names"]
    torch.save({"model": wider, "train_args": {}}, tmp_path / "wider.pt")
    with pytest.raises(
        ValueError, match=r"distill_model must be as in the run that resume goes on with, got .*wider\.pt"
    ):
        set_up(resume=str(last), distill_model=str(tmp_path / "wider.pt"))


# Files


def test_folder_with_files_is_refused(arguments, tmp_path):
    folder = tmp_path / "project"
    overrides = arguments(tmp_path, save_dir=str(folder))
    Trainer(overrides=overrides)
    Trainer(overrides=overrides)  # the first has left nothing of value
    for name in ("results.csv", "labels.jpg", "train_batch0.jpg", "loss_report.json"):
        (folder / name).write_text("of a run that was killed before its first checkpoint")
    Trainer(overrides=overrides)
    (folder / "weights" / "notes.txt").write_text("precious")
    with pytest.raises(
        ValueError, match=r"save_dir must be a new or an empty folder, and .*project holds files; .*exist_ok"
    ):
        Trainer(overrides=overrides)
    assert Trainer(overrides={**overrides, "exist_ok": True}).save_dir == folder
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "labels.jpg").write_text("precious, and not of a run")
    with pytest.raises(ValueError, match=r"save_dir must be a new or an empty folder"):
        Trainer(overrides={**overrides, "save_dir": str(pictures)})


def test_nothing_is_deleted_for_several_gpus(arguments, tmp_path, monkeypatch):
    pytest.importorskip("cloudpickle")
    trainer = Trainer(overrides=arguments(tmp_path))
    trainer.ddp, trainer.world_size = True, 2
    (trainer.save_dir / "notes.txt").write_text("precious")
    commands = []
    monkeypatch.setattr(trainer_module, "launch", lambda command, check: commands.append(command))
    trainer.train()
    assert (trainer.save_dir / "notes.txt").exists()
    assert commands[0][1:5] == ["-m", "torch.distributed.run", "--nproc_per_node", "2"]


def test_invalid_checkpoint_is_left_as_it_is(finished, tmp_path, caplog):
    file = tmp_path / "best.pt"
    file.write_bytes(b"no checkpoint")
    assert finished._strip_best(file) == {}
    assert file.read_bytes() == b"no checkpoint"
    assert "not a valid Ultralytics model" in caplog.text
    assert "Optimizer stripped" not in caplog.text


@pytest.mark.parametrize("name", ["last", "best"])
def test_interrupted_write_leaves_the_old_checkpoint(interrupted, monkeypatch, name):
    trainer = set_up(resume=str(interrupted(1)))
    file = getattr(trainer, name)
    before = file.read_bytes()

    def interrupt(self: Path, target: Path) -> None:
        assert self.stat().st_size == len(b"newer")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        file.write_bytes(b"newer")
    assert file.read_bytes() == before
    assert {path.name for path in file.parent.iterdir()} == {"last.pt", "best.pt"}


def test_every_checkpoint_is_replaced_and_not_written_over(interrupted):
    last = interrupted(2, save_period=1)
    copies = {}
    for path in last.parent.iterdir():  # a hard link keeps what a file was, unless the file itself is written to
        copies[path.name] = last.parent.parent / path.name
        os.link(path, copies[path.name])
    assert copies.keys() == {"last.pt", "best.pt", "epoch0.pt", "epoch1.pt"}
    contents = {name: copy.read_bytes() for name, copy in copies.items()}
    Trainer(overrides={"resume": str(last)}).train()
    assert {name: copy.read_bytes() for name, copy in copies.items()} == contents
    assert last.read_bytes() != contents["last.pt"]


def test_interrupted_stripping_leaves_the_old_checkpoints(interrupted, monkeypatch):
    last = interrupted(2, "on_model_save")
    before = last.read_bytes()
    fitness = torch.load(last, weights_only=False)["best_fitness"]

    def interrupt(checkpoint: Any, file: Path) -> None:
        Path(file).write_bytes(before[:100])
        raise KeyboardInterrupt

    trainer = Trainer(overrides={"resume": str(last)})
    monkeypatch.setattr(torch_utils.torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert last.read_bytes() == before
    assert torch.load(trainer.best, weights_only=False)["best_fitness"] == fitness


def test_tensorboard_holds_what_results_csv_holds(arguments, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = Trainer(overrides=arguments(tmp_path, epochs=2, tensorboard=True))
    trainer.train()
    events = event_accumulator.EventAccumulator(str(trainer.save_dir)).Reload()
    names = set(rows(trainer)[0]) - {"epoch", "time"}
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(row["epoch"], pytest.approx(row[name], rel=1e-5, abs=1e-5)) for row in rows(trainer)]


def test_missing_tensorboard_is_refused_at_the_start(arguments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"^tensorboard=True needs the package tensorboard, .*pip install"):
        Trainer(overrides=arguments(tmp_path, tensorboard=True))
    assert not (tmp_path / "run").exists()


# Precision and processes


def test_bfloat16_and_channels_last_on_a_cpu(arguments, tmp_path, caplog):
    seen: dict[bool, set[Any]] = {True: set(), False: set()}  # in training, and in validation

    def note(layer: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if type(layer) is torch.nn.Conv2d and output.shape[1] > 16:  # not the convolution that DFL is made of
            seen[layer.training].add((output.dtype, output.is_contiguous(memory_format=torch.channels_last)))

    trainer = Trainer(overrides=arguments(tmp_path, amp="bf16", channels_last=True, batch=-1))
    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        trainer.train()
    finally:
        handle.remove()
    assert seen[True] == {(torch.bfloat16, True)}
    assert {dtype for dtype, _ in seen[False]} == {torch.float32}
    assert not [message for message in caplog.messages if message.startswith("'channels_last")]
    assert torch.tensor(list(rows(trainer)[0].values())).isfinite().all()
    written = yaml.safe_load((trainer.save_dir / "args.yaml").read_text())
    assert (written["amp"], written["channels_last"]) == ("bf16", True)


def test_two_processes_on_a_cpu(arguments, finished, tmp_path):
    overrides = arguments(tmp_path / "runs", epochs=2, distill_model=str(finished.best))
    (tmp_path / "runs" / "run").mkdir(parents=True)  # so that the run gets another folder, which all have to know
    (tmp_path / "process.py").write_text(PROCESS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, tmp_path / "process.py", json.dumps(overrides), tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    ours, theirs = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert same(ours["parameters"], theirs["parameters"])
    assert not ours["amp"]
    assert not theirs["amp"]  # ultralytics tells only the first process that a CPU has none
    folder = tmp_path / "runs" / "run-2"
    assert ours["save_dir"] == theirs["save_dir"] == str(folder)
    assert {path.name for path in folder.parent.iterdir()} == {"run", "run-2"}
    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert all(float(row["train/kd_cls"]) > 0 for row in table)
    for name in ("last.pt", "best.pt"):
        assert torch.load(folder / "weights" / name, weights_only=False)["optimizer"] is None
    assert MAP50 in ours["metrics"]


def test_ultralytics_launches_it(arguments, finished, tmp_path):
    """What ultralytics starts in each process of a run on several GPUs, here on the CPU."""
    trainer = Trainer(overrides=arguments(tmp_path, distill_model=str(finished.best), kd_cls=3.0))
    ended = launched(trainer)
    assert ended.settings.kd_cls == 3.0
    assert rows(ended)[0]["train/kd_cls"] > 0
    assert ended.save_dir == trainer.save_dir


def test_ultralytics_launches_a_resumed_run(interrupted, tmp_path, caplog):
    last = interrupted(2, rect=True, kd_cls=3.0)
    trainer = Trainer(overrides={"resume": str(last), "save_dir": str(tmp_path / "other")})
    trainer.args.rect = False  # as ultralytics does for several GPUs
    caplog.clear()
    ended = launched(trainer)
    assert ended.save_dir == tmp_path / "other"
    assert (ended.args.name, ended.args.rect, ended.settings.kd_cls) == ("other", False, 3.0)
    assert epochs(ended) == [1, 2, 3]
    assert "Resume ignores" not in caplog.text


# Refusals


def test_torchrun_needs_a_device_for_each_process(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "WORLD_SIZE", 2)
    monkeypatch.setattr(engine, "select_device", lambda device: torch.device("cuda", 0))
    overrides = arguments(tmp_path, save_dir=str(tmp_path / "run"), device="0")
    with pytest.raises(
        ValueError, match=r"a GPU for each of the 2 processes .* got '0'; pass device=0,1, or device=cpu"
    ):
        Trainer(overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"freeze_backbone": True}, r"freeze_backbone needs a trained backbone, and 0% of this one's parameters come"),
        ({"distill_model": "yolov8n.pt", "quantize": 8}, r"quantize must not be 8 beside distill_model"),
        ({"model": "yolo26n.yaml", "tal_topk": 5}, r"tal_topk must be left as it is for an end-to-end model, got 5"),
        ({"kd_labels": False}, r"kd_labels must be true without distill_model"),
        ({"head_lr": 0.0}, r"head_lr must be a number above 0, got 0\.0"),
    ],
)
def test_what_cannot_be_is_refused(arguments, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        set_up(**arguments(tmp_path, **overrides))


def test_package_of_the_settings_loads_without_ultralytics():
    code = "import sys, fastyolo.train; assert not {'torch', 'ultralytics'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


# The report of the loss terms

YOLOV8 = {"box": 7.5, "cls": 0.5, "dfl": 1.5}


def report(values: list[float], gains: dict[str, float] = YOLOV8) -> LossReport:
    return loss_report([dict(zip(gains, values, strict=True))], gains)


def suggestions(report: LossReport) -> dict[str, float]:
    return {term.name: term.suggested_gain for term in report.terms if term.suggested_gain is not None}


def test_report_of_a_run(finished):
    written = json.loads((finished.save_dir / "loss_report.json").read_text())
    later = rows(finished)[1:3]
    assert written["epochs"] == 2
    for term, column in zip(written["terms"], ("train/box_loss", "train/cls_loss", "train/dfl_loss"), strict=True):
        assert term["value"] == pytest.approx(sum(row[column] for row in later) / 2)
    assert [term["gain"] for term in written["terms"]] == list(YOLOV8.values())
    assert sum(term["share"] for term in written["terms"]) == pytest.approx(1)
    positives = written["positives"]
    assert positives["images"] == 3 * len(finished.train_loader.dataset)
    assert positives["objects"]["small"]["objects"] + positives["objects"]["medium"]["objects"] > positives["images"]
    assert sum(positives["by_level"].values()) > 5 * positives["images"]


def test_epochs_that_were_repeated_are_written_down(arguments, tmp_path):
    trainer = Trainer(overrides=arguments(tmp_path, epochs=3))
    spoiled = []

    def spoil(trainer: Trainer) -> None:
        if trainer.epoch == 1 and not spoiled:
            spoiled.append(True)
            next(trainer.model.parameters()).data.fill_(math.nan)

    trainer.add_callback("on_train_epoch_start", spoil)
    trainer.train()
    assert json.loads((trainer.save_dir / "recoveries.json").read_text()) == [2]
    assert epochs(trainer) == [1, 2, 3]
    findings = examine(trainer.save_dir, vars(trainer.args)).findings
    assert "loss is not finite" in [finding.name for finding in findings]
    again = Trainer(overrides=arguments(tmp_path, epochs=3, save_dir=str(trainer.save_dir), exist_ok=True))
    assert not {file.name for file in again.save_dir.iterdir()} & {"recoveries.json", "loss_report.json"}


def test_the_loss_scale_of_float16_is_written_down(arguments, tmp_path):
    def scale(trainer: Trainer) -> None:
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)

    trainer = Trainer(overrides=arguments(tmp_path))
    trainer.add_callback("on_train_start", scale)
    trainer.train()
    assert [row["amp/scale"] for row in rows(trainer)] == [512.0]


@pytest.mark.parametrize("scaled", [True, False])
def test_a_resume_on_another_device_keeps_the_columns(interrupted, scaled):
    """The loss scale is a column of runs that began with one."""

    def scale(trainer: Trainer) -> None:
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)

    with pytest.MonkeyPatch.context() as patch:
        if scaled:
            patch.setattr(Trainer, "_has_loss_scale", lambda trainer: scale(trainer) or True)
        last = interrupted(1)
    trainer = Trainer(overrides={"resume": str(last)})
    if not scaled:
        trainer.add_callback("on_train_start", scale)
    trainer.train()
    scales = [row.get("amp/scale", 0.0) for row in rows(trainer)]
    assert scales == pytest.approx([512.0, math.nan, math.nan] if scaled else [0.0] * 3, nan_ok=True)
    findings = examine(trainer.save_dir, vars(trainer.args)).findings
    assert "overflow in float16" not in [finding.name for finding in findings]


def test_report_of_a_run_shorter_than_report_epochs(interrupted):
    folder = interrupted(1).parent.parent  # three epochs, as report_epochs
    assert not (folder / "loss_report.json").exists()
    trainer = Trainer(overrides={"resume": str(folder / "weights" / "last.pt")})
    trainer.epochs = 2
    trainer.train()
    assert json.loads((folder / "loss_report.json").read_text())["epochs"] == 1


def test_report_of_a_distillation_counts_terms_with_their_full_weight(arguments, finished, tmp_path):
    settings = {"kd_ramp_epochs": 10.0, "kd_labels": False, "report_epochs": 2}
    trainer = Trainer(overrides=arguments(tmp_path, epochs=2, distill_model=str(finished.best), **settings))
    trainer.train()
    written = json.loads((trainer.save_dir / "loss_report.json").read_text())["terms"]
    assert [term["name"] for term in written] == ["kd_cls", "kd_box", "kd_feat"]
    assert written[0]["value"] == pytest.approx(rows(trainer)[1]["train/kd_cls"] / 0.15)


def test_report_of_balanced_terms_suggests_nothing():
    balanced = report([1.2, 1.7, 1.3])
    assert not suggestions(balanced)
    assert str(balanced).splitlines()[0] == "Loss terms, as means over 1 epoch:"
    assert str(balanced).splitlines()[-1].strip() == "The gains are in balance."


def test_report_lowers_a_dominant_term_to_half():
    found = report([1.0, 18.0, 1.0])
    assert suggestions(found) == {"cls": pytest.approx(0.5 * 2 / 18, rel=0.05)}
    assert "90% of the loss" in str(found)
    assert "change cls from 0.5 to 0.056" in str(found)


def test_report_raises_a_starved_term_to_half_of_an_equal_share():
    gain = suggestions(report([2.0, 2.0, 0.1]))["dfl"]
    value = 0.1 * gain / 1.5
    assert value / (4 + value) == pytest.approx(1 / 6, rel=0.05)


def test_report_does_not_raise_terms_that_only_look_starved():
    assert suggestions(report([1.0, 100.0, 1.0])).keys() == {"cls"}
    assert suggestions(report([1.0, 100.0, 0.01])).keys() == {"cls", "dfl"}


@pytest.mark.parametrize("values", [[1.0, 18.0, 1.0], [2.0, 2.0, 0.1], [1.0, 100.0, 0.01], [5.0, 0.01, 0.01]])
def test_report_is_content_with_what_it_suggested(values):
    found = report(values)
    gains = {term.name: term.suggested_gain or term.gain for term in found.terms}
    followed = [value * gains[name] / YOLOV8[name] for name, value in zip(YOLOV8, values, strict=True)]
    assert not suggestions(report(followed, gains))


def test_report_leaves_out_the_first_epoch_and_switched_off_terms():
    found = loss_report(
        [{"box": 9, "cls": 900, "dfl": 9}, {"box": 1, "cls": 1, "dfl": 0}, {"box": 3, "cls": 1, "dfl": 0}],
        {"box": 7.5, "cls": 0.5, "dfl": 0},
    )
    assert [(term.name, term.value) for term in found.terms] == [("box", 2), ("cls", 1)]


def test_report_names_terms_that_no_gain_helps():
    nothing = report([0.0, 1.0, 0.0])
    assert not suggestions(nothing)
    assert [bool(term.reason) for term in nothing.terms] == [True, False, True]
    assert not suggestions(report([0.0, 0.0, 0.0]))
    diverged = report([1.0, float("nan"), 1.0])
    assert [term.value for term in diverged.terms] == [1.0, None, 1.0]
    assert "cls: not finite" in str(diverged)
    json.dumps(diverged.as_dict(), allow_nan=False)
