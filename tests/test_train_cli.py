# SPDX-License-Identifier: AGPL-3.0-or-later
"""`fastyolo train`: where its arguments come from, what it refuses, presets, checks of the data, and a whole run."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from shapes import NAMES, write_shapes
from typer.testing import CliRunner

pytest.importorskip("ultralytics")

import torch
from ultralytics import YOLO
from ultralytics.cfg import DEFAULT_CFG_DICT, _handle_deprecation, get_cfg
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import yaml_model_load

import fastyolo.train
from fastyolo.cli import app
from fastyolo.cli.train import Preset
from fastyolo.integrations.ultralytics import data, runs
from fastyolo.integrations.ultralytics.trainer import Trainer
from fastyolo.train import presets, settings

TINY = ("--model", "yolov8n-fast.yaml", "--imgsz", "64", "--batch", "8", "--device", "cpu", "--set", "plots=false")


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d.yaml").touch()


@pytest.fixture
def shapes() -> str:
    return str(write_shapes(Path("shapes").resolve(), train=8, val=4))


def train(*options: str) -> Any:
    return CliRunner().invoke(app, ["train", *options])


def fail(status: int, *options: str) -> str:
    """The one sentence of a failure."""
    done = train(*options)
    assert done.exit_code == status, done.output
    (sentence,) = done.stderr.splitlines()
    return sentence


def arguments_of(monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    """What the command hands to the trainer."""
    found: dict[str, Any] = {}

    class Recorder:
        def __init__(self, overrides: dict[str, Any]) -> None:
            found.update(overrides)
            raise RuntimeError("recorded")

    monkeypatch.setattr(fastyolo.train, "Trainer", Recorder)
    assert fail(1, *options) == "fastyolo: recorded"
    return found


# ---- arguments


def test_options(monkeypatch):
    teachers: list[str] = []
    monkeypatch.setattr(runs, "check_teacher", teachers.append)
    arguments = arguments_of(
        monkeypatch,
        *("--data", "d.yaml", "--model", "yolov8n-fast.yaml", "--teacher", "t.pt", "--epochs", "7", "--imgsz", "96"),
        *("--batch", "-1", "--device", "cpu", "--save-dir", "run", "--tensorboard", "--set", "lr0=1e-3"),
        *("--set", "class_weights=[1, 2.5, 1]", "--set", "cos_lr=true", "--set", "kd_mask=all", "--set", "epochs=7"),
    )
    assert arguments == {
        "data": "d.yaml",
        "model": "yolov8n-fast.yaml",
        "distill_model": "t.pt",
        "epochs": 7,
        "imgsz": 96,
        "batch": -1,
        "device": "cpu",
        "save_dir": "run",
        "tensorboard": True,
        "lr0": 0.001,
        "class_weights": [1, 2.5, 1],
        "cos_lr": True,
        "kd_mask": "all",
    }
    assert teachers == ["t.pt"]
    given = arguments_of(monkeypatch, "--data", "d.yaml", "--set", "name=2026-11-24", "--set", "fraction=5e-1")
    assert (given["name"], given["fraction"]) == ("2026-11-24", 0.5)
    expected = {"data": "d.yaml", "model": "yolov8s-fast.yaml", "project": str(Path("runs/detect").absolute())}
    assert arguments_of(monkeypatch, "--data", "d.yaml") == expected


def test_precedence(monkeypatch):
    Path("mine.yaml").write_text("data: d.yaml\nimgsz: 128\nepochs: 20\nmulti_scale: 0.5\nlrf: 1E-2\n")
    options = ("--preset", "realtime", "--config", "mine.yaml", "--epochs", "30", "--set", "mixup=0.1")
    arguments = arguments_of(monkeypatch, *options)
    assert arguments["epochs"] == 30  # the option, over the file's 20 and the preset's 300
    assert arguments["mixup"] == 0.1  # --set, over the preset's 0
    assert (arguments["imgsz"], arguments["multi_scale"]) == (128, 0.5)  # the file, over the preset
    assert arguments["kd_feat"] == 0.5  # the preset, over the default
    assert arguments["lrf"] == 0.01
    assert arguments["model"] == "yolov8n-fast.yaml"
    assert arguments_of(monkeypatch, *options, "--model", "yolov8s-fast.yaml")["model"] == "yolov8s-fast.yaml"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "for --data: it is missing, and no --config names a data set"),
        (("--set", "lr0"), "for --set: expected KEY=VALUE, got 'lr0'"),
        (("--set", "lr0=[1"), "for --set: this is not YAML: while parsing a flow sequence"),
        (("--set", "epoch=3"), "for --set: There is no training argument 'epoch'; the nearest is 'epochs'"),
        (("--set", "kd_clas=3"), "There is no training argument 'kd_clas'; the nearest is 'kd_cls'"),
        (("--set", "xyzzy=3"), "There is no training argument 'xyzzy'; see"),
        (("--set", "mode=val"), "'mode' follows from the command and its options"),
        (("--epochs", "2", "--set", "epochs=3"), "'epochs' is given as 2 and as 3"),
        (("--set", "box=1", "--set", "box=2"), "'box' is given as 1 and as 2"),
        (("--set", "lr0=abc"), "'lr0=abc' is of invalid type str; valid 'lr0' types are int (i.e. 'lr0=0') or float"),
        (("--set", "mosaic=3"), "'mosaic=3' is an invalid value; valid 'mosaic' values are between 0.0 and 1.0"),
        (("--set", "tal_topk=0"), "tal_topk must be an integer of at least 1, got 0"),
        (("--set", "class_weights=[1, nan]"), "class_weights must be a list of a weight of 0 or more for each class"),
        (("--set", "time=-1"), "time must be above 0 hours, got -1"),
        (("--set", "fraction=2"), "fraction must be above 0 and at most 1, got 2"),
        (("--set", "batch=0"), "batch must be at least 1 image, -1, or a share of the GPU's memory below 1, got 0"),
        (("--set", "imgsz=-64"), "imgsz must be a side of at least 32 pixels, got -64"),
        (("--set", "imgsz=[1]"), "imgsz must be a side of at least 32 pixels, got [1]"),
        (("--set", "freeze=abc"), "freeze must be a number of layers or a list of them, got 'abc'"),
        (("--set", "box=.nan"), "box must be finite, got nan"),
        (("--set", "warmup_epochs=.inf"), "warmup_epochs must be finite, got inf"),
        (("--set", "cache=maybe"), "cache must be true, false, ram or disk, got 'maybe'"),
        (("--set", "close_geometry=-1"), "close_geometry must be an integer of at least 0, got -1"),
        (("--set", "optimizer=Lion"), "optimizer must be one of auto, Adam, Adamax, AdamW, MuSGD, "),
        (("--set", "freeze_backbone=true"), "freeze_backbone needs a trained backbone, and 'yolov8s-fast.yaml' starts"),
        (("--preset", "small"), "'small' is not one of 'few-images', 'large-objects', 'many-classes', "),
        (("--config", "nowhere.yaml"), "'nowhere.yaml' does not exist"),
        (("--config", "list.yaml"), "for list.yaml: expected lines of KEY: VALUE"),
        (("--config", "task.yaml"), "for task.yaml: task must be 'detect', got 'pose'"),
        (("--config", "name.yaml"), "for name.yaml: There is no training argument 'epoks'; the nearest is 'epochs'"),
        (("--set", "save=false"), "save must be true, got false, with which a run can end without a checkpoint"),
        (("--device", "cuda:0"), "for --device: torch sees no CUDA device, got 'cuda:0'"),
        (("--set", "device=0"), "for --device: torch sees no CUDA device, got 0"),
        (("--config", "device.yaml"), "for --device: torch sees no CUDA device, got [0, 1]"),
        (("--resume", "nowhere.pt"), "'nowhere.pt' does not exist"),
        (
            ("--resume", "list.yaml", "--epochs", "4", "--preset", "realtime"),
            "for --resume: the run continues with the arguments that it began with, so leave out epochs, --preset",
        ),
    ],
)
def test_wrong_usage_is_status_2(monkeypatch, options, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("list.yaml").write_text("- epochs\n")
    Path("task.yaml").write_text("task: pose\n")
    Path("name.yaml").write_text("epoks: 3\n")
    Path("device.yaml").write_text("device: [0, 1]\n")
    data = () if not options else ("--data", "d.yaml")
    assert message in fail(2, *data, *options)


def test_folder_of_a_run_does_not_come_along_with_its_arguments(monkeypatch):
    place = {"save_dir": "old", "name": "old", "exist_ok": True}
    run = {"mode": "train", "task": "detect", "resume": False, "data": "d.yaml", "project": "all", **place}
    Path("args.yaml").write_text(yaml.safe_dump(run))
    Path("mine.yaml").write_text(yaml.safe_dump({"data": "d.yaml", **place}))
    expected = {"data": "d.yaml", "model": "yolov8s-fast.yaml"}
    runs_here = str(Path("runs/detect").absolute())
    assert arguments_of(monkeypatch, "--config", "args.yaml") == {**expected, "project": runs_here}
    for project in ("x", "2024"):
        given = arguments_of(monkeypatch, "--data", "d.yaml", "--set", f"project={project}")
        assert given["project"] == str(Path(project).absolute())
    assert arguments_of(monkeypatch, "--config", "mine.yaml") == {**expected, **place}


def test_names_of_settings_are_not_those_of_ultralytics():
    assert settings.NAMES.isdisjoint(runs.NAMES)
    kept = _handle_deprecation(dict.fromkeys(settings.NAMES))  # it renames or drops what its arguments were called once
    assert settings.NAMES - kept.keys() == {"label_smoothing"}  # which Trainer hides from it
    get_cfg(overrides={name: DEFAULT_CFG_DICT[name] for name in runs.NAMES - {"augmentations", "save_dir"}})


# ---- presets


@pytest.mark.parametrize("name", presets.NAMES)
def test_preset(name):
    lines = presets.path(name).read_text().splitlines()
    arguments = yaml.safe_load("\n".join(lines))
    runs.check_names(arguments)
    runs.check_values(arguments)
    assert all(" # " in line for line in lines if line and not line.startswith("#"))  # a reason beside each
    assert all(len(line) <= 120 for line in lines)
    assert len(f"{name:14} {presets.summary(name)}") <= 80


def test_presets_that_name_a_yaml_of_ours_name_one_that_exists():
    models = {name: yaml.safe_load(presets.path(name).read_text())["model"] for name in presets.NAMES}
    assert models.pop("few-images") == "yolov8s.pt"
    for model in models.values():
        assert yaml_model_load(model)["head"][-1][2] == "LightDetect"


def test_list_of_presets():
    done = train("--list-presets")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(presets.NAMES) == [preset.value for preset in Preset]
    assert Path(lines[-1].split()[-1]).is_dir()
    assert all(name in train("--help").stdout for name in presets.NAMES)


def test_list_of_settings():
    listed = {name: (yaml.safe_load(default), meaning) for name, default, meaning in settings.explained()}
    assert {name: default for name, (default, _) in listed.items()} == settings.Settings().as_dict()
    assert all(meaning.endswith(".") for _, meaning in listed.values())
    assert listed["kd_feat"][1] == "weight of the feature term, between the maps that enter the heads."
    done = train("--list-settings")
    assert done.exit_code == 0
    assert {line.split()[0] for line in done.stdout.splitlines()} > settings.NAMES


# ---- data


def dataset(file: str, mode: str, **arguments: Any) -> Any:
    args = get_cfg(overrides={"imgsz": 64, "data": file, "task": "detect"})
    vars(args).update(arguments)
    with data.reading(file):
        description = check_data(file)
    return data.build_dataset(args, description[mode], 4, description, mode=mode)


def check_data(file: str) -> dict[str, Any]:
    """As a trainer does it."""
    try:
        return check_det_dataset(file)
    except Exception as error:
        raise RuntimeError(f"Dataset '{file}' error ❌ {error}") from error


LABELS = "labels/train/003.txt"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            LABELS,
            "0 .5 .5 .2 .2\n\n3 .5 .5 .1 .1\n",
            f"{LABELS}, line 3: expected a class that is one of the data set's, ",
        ),
        (
            LABELS,
            "0.5 .5 .5 .2 .2\n",
            f"{LABELS}, line 1: expected a class that is one of the data set's, 0 to 2, got 0.5",
        ),
        (LABELS, "0 1.5 .5 .2 .2\n", f"{LABELS}, line 1: expected coordinates in [0, 1], as shares of the image's "),
        (LABELS, "0 nan .5 .2 .2\n", f"{LABELS}, line 1: expected coordinates in [0, 1], "),
        (LABELS, "0 .5 .5 -.005 .2\n", "and height, got -0.005; correct them"),
        (LABELS, "0 .1 .1 .2 1.2 .3 .1\n", "and height, got 1.2; correct them"),
        (
            LABELS,
            "0 .5 .5 .2\n",
            f"{LABELS}, line 1: expected 5 numbers, class, x, y, width and height, got 4; correct",
        ),
        (LABELS, "cat .5 .5 .2 .2\n", f"{LABELS}, line 1: expected numbers, got 'cat .5 .5 .2 .2'"),
        (LABELS, "0 .5 .5 .2 .2\n0 .1 .1 .2 .2 .3 .1\n", f"{LABELS}: labels mix segment and detection rows"),
        ("images/train/003.png", "no image", "images/train/003.png, which is not an image; correct them"),
    ],
)
def test_files_that_cannot_be_used_are_named(shapes, file, content, message):
    folder = Path(shapes).parent
    (folder / file).write_text(content)
    with pytest.raises(
        ValueError, match="1 of 8 images of the data set's split 'train' cannot be used, first"
    ) as caught:
        dataset(shapes, "train")
    assert message in str(caught.value)
    assert len(dataset(shapes, "val")) == 4
    with pytest.raises(ValueError, match="1 of 8 images"):  # from ultralytics' cache now
        dataset(shapes, "train")
    assert len(dataset(shapes, "train", skip_bad_labels=True)) == 7


def test_labels_that_ultralytics_takes_are_taken(shapes):
    folder = Path(shapes).parent
    (folder / LABELS).write_text("\ufeff2 1.01 0.5 0.25 1\n\n")
    (folder / "labels/train/004.txt").write_text("")
    (folder / "labels/train/005.txt").unlink()
    (folder / "labels/train/006.txt").write_text("0 .1 .1 .2 .2 .3 .1\n")
    assert len(dataset(shapes, "train")) == 8
    (folder / LABELS).write_text("7 .5 .5 .2 .2\n")
    assert len(dataset(shapes, "train", single_cls=True)) == 8


def test_classes_without_objects(shapes):
    with pytest.raises(ValueError, match=r"classes must have objects to train on, got \[7\], of which none of the 8"):
        dataset(shapes, "train", classes=[7])


@pytest.mark.parametrize("how", ["missing", "empty", "wrong"])
def test_no_labels(shapes, how):
    for file in (Path(shapes).parent / "labels" / "train").glob("*.txt"):
        file.unlink() if how == "missing" else file.write_text("" if how == "empty" else "9 .5 .5 .2 .2\n")
    message = (
        "None of the 8 images of .* 'train' has an object: expected files like .*000.txt with a line of class, x, y"
    )
    for skip in (False, True):
        with pytest.raises(ValueError, match="8 of 8 images .*line 1: expected a class" if how == "wrong" else message):
            dataset(shapes, "train", skip_bad_labels=skip)


def test_no_labels_to_measure(shapes):
    for file in (Path(shapes).parent / "labels" / "val").glob("*.txt"):
        file.unlink()
    with pytest.raises(ValueError, match="None of the 4 images of the data set's split 'val' has an object") as caught:
        dataset(shapes, "val")
    assert str(caught.value).endswith("; to validate on it all the same, set skip_bad_labels=true.")
    assert len(dataset(shapes, "val", skip_bad_labels=True)) == 4


def test_no_images(shapes):
    images = Path(shapes).parent / "images" / "train"
    for file in images.glob("*.png"):
        file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"split 'train' has no images: found no file in .* that ends in avif, bmp"
    ):
        dataset(shapes, "train")
    images.rmdir()
    with pytest.raises(FileNotFoundError, match=r"split 'train' is missing: .*images/train does not exist; correct"):
        dataset(shapes, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "The data set '{file}' cannot be used: '{file}' does not exist."),
        ({"train": "a", "names": ["b"]}, "'val:' key missing; 'train' and 'val' are required in all data YAMLs."),
        ({"train": "a", "val": "a"}, "key missing; either 'names' or 'nc' are required in all data YAMLs."),
        ({"train": "a", "val": "a", "names": ["b"]}, "images not found, missing path '"),
    ],
)
def test_descriptions_that_are_wrong(tmp_path, content, message):
    file = str(tmp_path / "data.yaml")
    if content:
        Path(file).write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="cannot be used") as caught:
        dataset(file, "train")
    text = str(caught.value)
    assert message.format(file=file) in text
    assert text.isascii()
    assert "\n" not in text
    assert text.endswith(".")


# ---- failures of the work


@pytest.fixture
def model_files() -> None:
    """An unknown module, heads with other bins, teachers that do not fit, by names in the working directory."""
    fast = {
        key: value for key, value in yaml_model_load("yolov8n-fast.yaml").items() if key not in ("scale", "yaml_file")
    }
    Path("yolov8n-bins.yaml").write_text(yaml.safe_dump({**fast, "reg_max": 8}))
    fast["backbone"][2][2] = "GELAM"
    Path("yolov8n-unknown.yaml").write_text(yaml.safe_dump(fast))
    Path("yolov8n-three.yaml").write_text(yaml.safe_dump({**yaml_model_load("yolov8n.yaml"), "nc": 3}))
    teacher = YOLO("yolov8n-three.yaml")
    for name, names in (("teacher", NAMES), ("others", ("red", "green", "black"))):
        teacher.model.names = dict(enumerate(names))
        teacher.save(f"{name}.pt")
    YOLO("yolov8n-cls.yaml").save("classifier.pt")
    Path("damaged.pt").write_bytes(Path("teacher.pt").read_bytes()[:1000])
    Path("headless.yaml").write_text(yaml.safe_dump({"backbone": fast["backbone"]}))
    Path("rows.yaml").write_text("backbone: [[-1, 1]]\nhead: []\n")


def test_failures_are_one_sentence_and_status_1(shapes, model_files):
    options = ("--data", shapes, *TINY[2:], "--epochs", "1")
    fast = ("--model", "yolov8n-fast.yaml", "--teacher")
    missing = "is not on this machine and cannot be downloaded; pass a model's YAML file, such as yolov8s-fast.yaml"
    cases = [
        (("--model", "nowhere.yaml"), f"fastyolo: The model 'nowhere.yaml' {missing}"),
        (("--model", "nowhere.pt"), f"fastyolo: The model 'nowhere.pt' {missing}"),
        (
            ("--model", "yolov8n-seg.yaml"),
            "The model 'yolov8n-seg.yaml' is for the task 'segment'; pass one for detection",
        ),
        (("--model", "classifier.pt"), "The model 'classifier.pt' is for the task 'classify'; pass one for detection"),
        (("--model", "damaged.pt"), "The model 'damaged.pt' cannot be read as a checkpoint of ultralytics (RuntimeErr"),
        (("--model", "yolov8n-fast"), "The model 'yolov8n-fast' is of an unknown kind; pass a model's YAML file, such"),
        (("--model", "headless.yaml"), "The model 'headless.yaml' must have, as head, a list with [from, repeats, mod"),
        (("--model", "rows.yaml"), "The model 'rows.yaml' must have, as backbone, a list with [from, repeats, module"),
        (("--model", "yolov8n-unknown.yaml"), "module 'GELAM' is unknown to both ultralytics and fastyolo"),
        (
            (*fast, "nowhere.pt"),
            "The teacher 'nowhere.pt' is not on this machine and cannot be downloaded; pass a chec",
        ),
        ((*fast, "classifier.pt"), "The teacher 'classifier.pt' is for the task 'classify'; pass one for detection"),
        (
            (*fast, "damaged.pt"),
            "The teacher 'damaged.pt' cannot be read as a checkpoint of ultralytics (RuntimeError)",
        ),
        ((*fast, "rows.yaml"), "The teacher 'rows.yaml' is of an unknown kind; pass a checkpoint (.pt)"),
        ((*fast, "others.pt"), "distill_model must have the student's 3 classes, in any order, but it has no 'blue'"),
        (("--model", "yolov8n-bins.yaml", "--teacher", "teacher.pt"), "must have the student's reg_max of 8, got 16"),
        (("--data", "nowhere.yaml"), "The data set 'nowhere.yaml' does not exist; pass the YAML file of a data set as"),
    ]
    for number, (case, message) in enumerate(cases):
        assert message in fail(1, *options, *case, "--save-dir", f"run{number}")
    assert not Path(f"run{len(cases) - 1}").exists()
    (Path(shapes).parent / LABELS).write_text("7 .5 .5 .2 .2\n")
    assert f"{LABELS}, line 1: expected a class" in fail(1, *options, *TINY[:2], "--save-dir", "run")
    Path("text.pt").write_text("no checkpoint")
    for file in ("teacher.pt", "text.pt"):
        message = f"{file} is not a checkpoint of a training run; pass the run's weights/last.pt."
        assert fail(1, "--resume", file) == f"fastyolo: {message}"


class Work:
    """Stands in for the trainer; its run ends as `train` says."""

    last = Path("run/weights/last.pt")

    def __init__(self, overrides: dict[str, Any]) -> None:
        pass


def test_failure_of_a_launched_process(monkeypatch):
    class Launcher(Work):
        def train(self) -> None:
            raise subprocess.CalledProcessError(1, ["torchrun"])

    monkeypatch.setattr(fastyolo.train, "Trainer", Launcher)
    assert fail(1, "--data", "d.yaml") == "fastyolo: A training process failed; its message is above."


def test_advice_after_an_interruption_is_not_about_the_run_before(monkeypatch):
    class Interrupted(Work):
        def train(self) -> None:
            raise KeyboardInterrupt

    Work.last.parent.mkdir(parents=True)
    Work.last.touch()
    monkeypatch.setattr(fastyolo.train, "Trainer", Interrupted)
    for name in ("check_model", "check_resumable"):
        monkeypatch.setattr(runs, name, lambda file: None)
    done = train("--data", "d.yaml", "--save-dir", "run", "--set", "exist_ok=true")
    assert done.exit_code == 130
    assert done.stderr == "\nfastyolo: The run was interrupted; start it again\n"
    done = train("--resume", str(Work.last))
    assert (
        done.stderr == f"\nfastyolo: The run was interrupted; continue it with: fastyolo train --resume {Work.last}\n"
    )


def test_folder_that_holds_files(shapes):
    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    options = ("--data", shapes, *TINY, "--epochs", "1", "--save-dir", "mine")
    assert "mine holds files; choose another" in fail(1, *options)
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_stem_of_a_checkpoint(shapes, model_files):
    Path("teacher.pt").rename("yolov8n.pt")
    done = train("--data", shapes, *TINY[2:], "--model", "yolov8n", "--epochs", "1", "--save-dir", "run")
    assert done.exit_code == 0, done.output
    assert Path("run/weights/best.pt").exists()


# ---- a whole run


def test_run_that_is_interrupted_and_resumed(shapes, monkeypatch):
    validate = Trainer.validate

    def interrupted(trainer: Trainer) -> Any:
        if trainer.epoch == 1 and not trainer.resume:
            raise KeyboardInterrupt
        return validate(trainer)

    monkeypatch.setattr(Trainer, "validate", interrupted)
    done = train("--data", shapes, *TINY, "--epochs", "3", "--save-dir", "run", "--set", "label_smoothing=0.1")
    assert done.exit_code == 130
    last = Path("run/weights/last.pt").resolve()
    message = f"fastyolo: The run was interrupted; continue it with: fastyolo train --resume {last}"
    assert done.stderr.splitlines()[-1] == message
    assert torch.load(last, weights_only=False)["epoch"] == 0

    done = train("--resume", str(last), "--device", "cpu", "--json", "out.json")
    assert done.exit_code == 0, done.output
    document = json.loads(Path("out.json").read_text())
    assert document["arguments"] == {"model": str(last), "resume": str(last), "device": "cpu"}
    assert set(document["metrics"]) == {"mAP50-95", "mAP50", "precision", "recall"}
    assert all(0 <= value <= 1 for value in document["metrics"].values())
    assert f"{document['metrics']['mAP50']:.4f}" in done.stdout
    folder = last.parent.parent
    files = {"best": folder / "weights" / "best.pt", "last": last, "results": folder / "results.csv"}
    for name, path in files.items():
        assert document[name] == str(path)
        assert f"{name:8} {path}" in done.stdout
    with files["results"].open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert yaml.safe_load((folder / "args.yaml").read_text())["label_smoothing"] == 0.1
    assert yaml.safe_load((folder / "args.yaml").read_text())["model"] == "yolov8n-fast.yaml"
    assert "The run of " in fail(1, "--resume", str(last))

    arguments = arguments_of(monkeypatch, "--config", "run/args.yaml")
    assert (arguments["label_smoothing"], arguments["epochs"]) == (0.1, 3)
    assert arguments.keys().isdisjoint({"mode", "name", "resume", "save_dir", "task"})
    assert arguments["model"] == "yolov8n-fast.yaml"
    assert arguments["project"] == str(Path("runs/detect").absolute())
