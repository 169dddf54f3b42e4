# SPDX-License-Identifier: AGPL-3.0-or-later
"""The whole path: its stages and files, what goes on and what is done again, budgets and targets, refusals."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("modelopt")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxslim")
pytest.importorskip("torch_pruning")
pytest.importorskip("ultralytics")

import yaml
from shapes import NAMES, TINY, write_shapes
from typer.testing import CliRunner

from fastyolo._files import locked
from fastyolo.cli.compress import compress as command
from fastyolo.compress.pipeline import amount, compress, files, latency, settings, stages, summary
from fastyolo.compress.pipeline.state import State
from fastyolo.compress.pruning.run import UnreachableTargetError
from fastyolo.integrations.ultralytics.export import load

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The calibration images do not look like"),  # to networks of one epoch
]

STAGES = list(settings.STAGES)
# A light model beside TINY, with levels of the same strides.
LIGHT = {
    **TINY,
    "backbone": [
        *([-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "GELAN", [32, True]]),
        *([-1, 1, "Conv", [48, 3, 2]], [-1, 1, "GELAN", [48, True]]),
        *([-1, 1, "Conv", [48, 3, 2]], [-1, 1, "C2f", [48, True]]),
    ],
}
TRAINING = {"batch": 8, "device": "cpu", "optimizer": "AdamW", "plots": False, "verbose": False, "workers": 0}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.01)
    monkeypatch.setattr(latency, "MIN_ROUNDS", 3)


class Run:
    """A data set, two small models, and the folder of a run."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.lines: list[str] = []

    def arguments(self, **changes: Any) -> dict[str, Any]:
        given = {"model": self.root / "tiny.yaml", "light": self.root / "light.yaml", "epochs": 1, "imgsz": 64}
        return {**given, "training": TRAINING, "save_dir": self.folder, **changes}

    def run(self, **changes: Any) -> summary.Summary:
        self.lines = []
        return compress(self.root / "shapes.yaml", **self.arguments(say=self.lines.append, **changes))

    def begun(self) -> list[str]:
        """The stages that the last run did not find done."""
        return [line.partition(":")[0] for line in self.lines if re.match(r"\w+: (training|removing|choosing)", line)]

    def records(self) -> dict[str, Any]:
        return json.loads((self.folder / "state.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, summary.Summary]:
    root = tmp_path_factory.mktemp("compress")
    write_shapes(root, train=8, val=4)
    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (root / "light.yaml").write_text(yaml.safe_dump(LIGHT))
    run = Run(root, root / "run")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(latency, "SECONDS", 0.01)
        monkeypatch.setattr(latency, "MIN_ROUNDS", 3)
        return run, run.run(debug=True)


@pytest.fixture
def copied(finished: tuple[Run, summary.Summary], tmp_path: Path) -> Run:
    """A copy of the finished run, elsewhere."""
    done, _ = finished
    shutil.copytree(done.folder, tmp_path / "run")
    return Run(done.root, tmp_path / "run")


def test_every_stage_leaves_a_smaller_model_that_is_exported_verified_and_measured(
    finished: tuple[Run, summary.Summary],
) -> None:
    run, found = finished
    assert [stage.name for stage in found.stages] == STAGES
    assert {stage.status for stage in found.stages} == {"done"}
    assert found.problems == ()
    read = summary.read(run.folder)
    assert (read.data, read.stages, read.targets) == (found.data, found.stages, found.targets)
    baseline, light, distilled, pruned, int8 = found.stages
    assert baseline.parameters > light.parameters == distilled.parameters > pruned.parameters == int8.parameters
    assert 0.25 < 1 - pruned.flops / distilled.flops < 0.45
    assert int8.bytes < pruned.bytes < light.bytes < baseline.bytes
    for stage in found.stages:
        assert (stage.epochs, stage.seconds > 0) == (1, True)
        assert all((run.folder / place / "results.csv").exists() for place in stage.runs)
        network = load(run.folder / stage.checkpoint).model
        assert sum(parameter.numel() for parameter in network.parameters()) == stage.parameters
        assert stage.latency["onnxruntime"].median_ms > 0
        assert set(stage.accuracy.by_class) <= set(NAMES)
        for file in stage.files:
            assert file.sha256 == hashlib.sha256((run.folder / file.path).read_bytes()).hexdigest()
            assert file.bytes == (run.folder / file.path).stat().st_size
            assert file.verification.verdict == "agrees"
    ships = ["models/pruned.onnx", "models/int8.onnx", "models/int8-onnxruntime.onnx"]
    assert [file.path for file in found.ships] == ships
    assert (run.folder / "report.html").exists()
    assert found.data.classes == NAMES
    assert (found.data.train_images, found.data.val_images) == (8, 4)


def test_a_run_becomes_a_result_without_the_folders_of_its_machine(
    finished: tuple[Run, summary.Summary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, found = finished
    result = tmp_path / "result.json"
    scripts = Path(__file__).parent.parent / "bench"
    monkeypatch.syspath_prepend(scripts)
    for script, arguments in (("compression/path.py", [run.folder, "--output", result]), ("tables.py", [result])):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(scripts / script), run_name="__main__")
    assert str(run.root) not in result.read_text()
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[1:] == [f"| {stage.title}" for stage in found.stages]


def test_the_light_model_begins_with_the_baseline_and_distillation_with_both(
    finished: tuple[Run, summary.Summary],
) -> None:
    run, _ = finished
    arguments = {stage: yaml.safe_load((run.folder / stage / "run" / "args.yaml").read_text()) for stage in STAGES[:3]}
    checkpoints = {stage: str(run.folder / stage / "run" / "weights" / "best.pt") for stage in STAGES[:2]}
    assert arguments["light"]["pretrained"] == checkpoints["baseline"]
    assert arguments["light"]["distill_model"] is None
    assert arguments["distilled"]["model"] == checkpoints["light"]
    assert arguments["distilled"]["distill_model"] == checkpoints["baseline"]
    taught = yaml.safe_load((run.folder / "pruned" / "steps" / "step-1" / "train" / "args.yaml").read_text())
    assert taught["distill_model"] == str(run.folder / "distilled" / "run" / "weights" / "best.pt")


def test_the_same_call_repeats_nothing(copied: Run, finished: tuple[Run, summary.Summary]) -> None:
    before = copied.records()
    again = copied.run()
    assert copied.begun() == []
    assert copied.records() == before
    assert again.stages == finished[1].stages


def test_trainings_that_ended_before_a_kill_are_not_repeated(finished: tuple[Run, summary.Summary]) -> None:
    """A kill between the end of a training and the note of it, in each stage."""
    run, _ = finished
    models = {path: path.stat().st_mtime_ns for path in run.folder.rglob("weights/last.pt")}
    before = (run.folder / "state.json").read_text()
    records = run.records()
    for stage in STAGES:
        records[stage]["result"] = None
    (run.folder / "state.json").write_text(json.dumps(records))
    found = run.run()
    assert run.begun() == STAGES
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("weights/last.pt")} == models
    assert all(record["result"] for record in run.records().values())
    assert [stage.seconds > records[stage.name]["seconds"] for stage in found.stages] == [True] * len(STAGES)
    (run.folder / "state.json").write_text(before)


def test_an_interrupted_training_goes_on(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copied.folder / "light")
    begun = []

    def interrupted(weights: Path, folder: Path, arguments: dict[str, Any]) -> None:
        begun.append(folder)
        (folder / "weights").mkdir(parents=True, exist_ok=True)
        (folder / "weights" / "last.pt").write_bytes(b"of the first epoch")
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "train", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            copied.run()
    assert begun == [copied.folder / "light" / "run"] * 2
    assert (begun[0] / "weights" / "last.pt").exists()  # for the training to resume from
    assert copied.records()["light"]["result"] is None


def test_what_follows_a_changed_model_is_done_again(copied: Run) -> None:
    light, distilled = (copied.folder / stage / "run" / "weights" / "best.pt" for stage in STAGES[1:3])
    before = distilled.stat().st_mtime_ns
    shutil.copyfile(distilled, light)  # as if it had been trained further
    found = copied.run(skip=["pruned", "int8", "verify"])
    assert copied.begun() == ["distilled"]
    assert distilled.stat().st_mtime_ns > before
    assert [stage.status for stage in found.stages] == ["done"] * 3 + ["skipped"] * 2
    assert [file.path for file in found.ships] == ["models/distilled.onnx"]


def test_without_light_the_light_model_is_taught_from_the_beginning(
    finished: tuple[Run, summary.Summary], tmp_path: Path
) -> None:
    done, _ = finished
    run = Run(done.root, tmp_path / "run")
    baseline = done.folder / "baseline" / "run" / "weights" / "best.pt"
    found = run.run(weights=baseline, skip=["light", "pruned", "verify"], int8="ptq")
    assert [stage.status for stage in found.stages] == ["given", "skipped", "done", "skipped", "done"]
    assert found.stages[0].checkpoint == str(baseline)
    arguments = yaml.safe_load((tmp_path / "run" / "distilled" / "run" / "args.yaml").read_text())
    assert (arguments["model"], arguments["pretrained"]) == (str(run.root / "light.yaml"), str(baseline))
    assert found.stages[4].checkpoint == found.stages[2].checkpoint
    assert found.stages[4].runs == ()
    file = run.folder / "summary.json"
    document = json.loads(file.read_text())
    for stage in document["stages"]:
        stage["run"] = (stage.pop("runs") or [None])[0]
    file.write_text(json.dumps({**document, "schema": 1}))
    assert summary.read(run.folder).stages == found.stages


def test_half_of_the_epochs_of_pruning_train_for_sparsity(
    finished: tuple[Run, summary.Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MIN_EPOCHS_FOR_SPARSITY", 2)
    done, _ = finished
    run = Run(done.root, tmp_path / "run")
    baseline = done.folder / "baseline" / "run" / "weights" / "best.pt"
    given = {"weights": baseline, "skip": ["light", "distilled", "int8", "verify"], "epochs": None, "max_epochs": 3}
    found = run.run(**given)
    assert run.lines[0] == "pruned: removing channels of the model before, then training it, 3 epochs"
    assert run.lines[1] == "pruned: training for sparsity, 1 epoch"
    sparse, steps = run.folder / "sparse" / "run", run.folder / "pruned" / "steps"
    places = (sparse, steps / "step-1" / "train")
    before, after = (yaml.safe_load((place / "args.yaml").read_text()) for place in places)
    assert (before["model"], before["distill_model"]) == (str(baseline), None)
    assert (after["model"], after["distill_model"]) == (str(steps / "step-1" / "pruned.pt"), str(baseline))
    assert [(training["epochs"], training["sparsity"]) for training in (before, after)] == [(1, 0.001), (2, 0)]
    pruning = json.loads((steps / "prune.json").read_text())
    assert pruning["weights"] == str(sparse / "weights" / "last.pt")
    assert (pruning["importance"], pruning["ranking"]) == ("gamma", "global")
    assert found.stages[3].epochs == 3
    assert found.stages[3].runs == ("sparse/run", "pruned/steps/step-1/train")
    assert run.run(**given).stages == found.stages
    assert run.begun() == []

    records = run.records()
    del records["pruned"]
    (run.folder / "state.json").write_text(json.dumps(records))
    shutil.rmtree(run.folder / "pruned")
    with pytest.raises(ValueError, match=r"the stage 'sparse' has other values of lr0 \(unset, not 0\.002\)"):
        run.run(**given, training={**TRAINING, "lr0": 0.002})
    shutil.rmtree(run.folder / "sparse")
    found = run.run(**given, target_size=0.8 * found.stages[0].bytes / 1e6)
    assert found.stages[3].bytes < 0.8 * found.stages[0].bytes
    records = run.records()
    parts = [records[name]["seconds"] for name in ("sparse", "amount", "pruned")]
    assert found.stages[3].seconds == pytest.approx(sum(parts))
    assert min(parts) > 0.1
    begun = [line.partition(",")[0] for line in run.lines if line.startswith("pruned: ")]
    assert begun[:3] == [
        "pruned: looking for the amount that meets the targets",
        "pruned: training for sparsity",
        "pruned: removing channels of the model before",
    ]


def test_a_stage_that_fails_is_reported_beside_what_was_made(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copied.folder / "pruned")

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("There is no space left.")

    monkeypatch.setattr(stages, "prune", fails)
    found = copied.run()
    assert [stage.status for stage in found.stages] == ["done"] * 3 + ["failed", "skipped"]
    assert found.problems == ("The stage pruned failed: There is no space left.",)
    assert [file.path for file in found.ships] == ["models/distilled.onnx"]
    with pytest.raises(RuntimeError, match="no space"):
        copied.run(debug=True)


def test_further_formats_are_of_the_final_float_model_and_can_fail(
    copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = copied.run(formats=["tensorrt-onnx"], skip=["int8"])
    onnx, tensorrt = found.ships
    assert (onnx.path, tensorrt.path) == ("models/pruned.onnx", "models/pruned-tensorrt.onnx")
    assert tensorrt.verification.verdict == "unknown"  # since only TensorRT runs its plugins
    assert (tensorrt.latency, tensorrt.accuracy) == ({}, None)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("The disk is full.")

    monkeypatch.setattr(files, "export", fails)
    (copied.folder / tensorrt.path).unlink()
    found = copied.run(formats=["tensorrt-onnx"], skip=["int8"])
    assert found.problems == ("The format tensorrt-onnx could not be written: The disk is full.",)
    assert found.ships == (onnx,)


def invoke(run: Run, *options: str) -> Any:
    import typer

    app = typer.Typer()
    app.command()(command)
    models = ["--model", str(run.root / "tiny.yaml"), "--light", str(run.root / "light.yaml")]
    training = [option for name, value in TRAINING.items() for option in ("--set", f"{name}={str(value).lower()}")]
    training = [option.replace("adamw", "AdamW") for option in training]
    common = ["--data", str(run.root / "shapes.yaml"), "--imgsz", "64", "--save-dir", str(run.folder)]
    return CliRunner().invoke(app, [*common, *models, *training, *options])


def test_the_command_says_which_target_is_missed(copied: Run) -> None:
    options = ("--epochs", "1", "--skip", "pruned", "--skip", "int8", "--target-size", "0.001")
    result = invoke(copied, *options, "--json", str(copied.folder / "copy.json"))
    assert result.exit_code == 1
    assert "fastyolo: The target size of 0.001 MB is missed, with" in result.stderr
    assert "Of models/distilled.onnx. Nothing was pruned for it, by request." in result.stderr
    assert "models/distilled.onnx" in result.stdout
    assert json.loads((copied.folder / "copy.json").read_text()) == json.loads(
        (copied.folder / "summary.json").read_text()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "2"], "'baseline' has other values of epochs (1, not 2); choose another folder, repeat these"),
        (
            ["--epochs", "1", "--target-size", "1"],
            "runtime (unset, not onnxruntime), skip int8 (unset, not False), target_size (unset, not 1.0);",
        ),
        (["--epochs", "1", "--set", "mosaic=0.5"], "other values of mosaic (unset, not 0.5);"),
        (["--epochs", "1", "--skip", "light"], "the stage 'distilled' has other values of skip (nothing, not light);"),
        (["--max-epochs", "6", "--skip", "int8"], "max_epochs is shared among the stages that train, so skip the same"),
        (["--epochs", "1", "--preset", "few-images"], "few-images keeps a trained backbone"),
    ],
)
def test_other_arguments_are_refused_in_the_folder_of_a_run(copied: Run, options: Sequence[str], message: str) -> None:
    before = copied.records()
    result = invoke(copied, *options)
    assert result.exit_code != 0
    assert message in " ".join(str(part) for part in (result.stderr, result.exception))
    assert copied.records() == before


def test_other_data_are_refused_in_the_folder_of_a_run(copied: Run, tmp_path: Path) -> None:
    write_shapes(tmp_path / "data", train=8, val=4, seed=1)
    with pytest.raises(ValueError, match=r"'baseline' has other values of data;"):
        compress(tmp_path / "data" / "shapes.yaml", **copied.arguments())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip": ["teacher"]}, "skip must be of baseline, light"),
        ({"skip": ["baseline"]}, "skip must hold 'distilled' beside 'baseline'"),
        ({"skip": ["baseline", "light", "distilled"]}, "or there is no model"),
        ({"max_epochs": 4}, "epochs and max_epochs exclude each other"),
        ({"max_epochs": 4, "epochs": None}, "max_epochs must be at least 5, one for each of baseline, light"),
        ({"flops": 1.0}, "flops must be a share between 0 and 1"),
        ({"flops": -0.5}, "flops must be a share between 0 and 1"),
        ({"target_size": 0.0}, "target_size must be a number above 0"),
        ({"runtime": "tensorrt"}, "runtime must be one of onnxruntime, openvino"),
        ({"formats": ["coreml"]}, "formats must be of tensorrt-onnx"),
        ({"light": None}, "a model without a scale"),
        ({"model": None}, "model must be a path, got None"),
        ({"training": {"imgsz": 32}}, "training (--set) must not hold imgsz"),
        ({"training": {"epoch": 1}}, "the nearest is 'epochs'"),
        ({"model": "yolov8n.pt"}, "pass a model's YAML file to begin with random weights"),
    ],
)
def test_arguments_are_refused_before_anything_is_made(
    finished: tuple[Run, summary.Summary], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run = Run(finished[0].root, tmp_path / "run")
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=re.escape(message)):
        run.run(**changes)
    assert not run.folder.exists()


def test_data_that_the_trainer_refuses_and_other_classes_are_refused(
    finished: tuple[Run, summary.Summary], tmp_path: Path
) -> None:
    done, _ = finished
    data = write_shapes(tmp_path / "bad", train=8, val=4)
    (tmp_path / "bad" / "labels" / "train" / "000.txt").write_text("0 0.5 0.5 1.5 0.5\n")
    with pytest.raises(ValueError, match=r"000\.txt, line 1"):
        compress(data, **done.arguments(save_dir=tmp_path / "run"))
    others = write_shapes(tmp_path / "others", train=8, val=4, names=("blue", "green", "red"))
    baseline = done.folder / "baseline" / "run" / "weights" / "best.pt"
    with pytest.raises(ValueError, match=r"classes of the data, in their order \(blue, green, red\), got 3 \(red"):
        compress(others, **done.arguments(save_dir=tmp_path / "run", weights=baseline))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_and_missing_packages_are_refused(
    finished: tuple[Run, summary.Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, _ = finished
    for name, text in (("notes.txt", "mine"), ("state.json", '{"mine": 1}'), ("state.json", "mine")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="holds something else"):
            Run(done.root, tmp_path).run()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "modelopt" else found(name))
    with pytest.raises(ModuleNotFoundError, match="pip install nvidia-modelopt"):
        Run(done.root, tmp_path / "run").run()


def test_epochs_are_shared_in_proportion() -> None:
    assert settings.epochs_of(STAGES, None, None) == dict(zip(STAGES, (100, 100, 100, 30, 10), strict=True))
    assert settings.epochs_of(STAGES, 2, None) == dict(zip(STAGES, (2, 2, 2, 1, 1), strict=True))
    assert settings.epochs_of(STAGES, None, 34) == dict(zip(STAGES, (10, 10, 10, 3, 1), strict=True))
    assert settings.epochs_of(["light", "int8"], None, 3) == {"light": 2, "int8": 1}
    assert settings.epochs_of([], None, 3) == {}
    for number in range(5, 60):
        shared = settings.epochs_of(STAGES, None, number)
        assert sum(shared.values()) == number
        assert min(shared.values()) >= 1
    assert settings.trained(frozenset({"light"}), given=True, int8="ptq") == ["distilled", "pruned"]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Candidates of 10 MB and 100 ms, of which pruning takes the share of the FLOPs, 70 % of them at most."""
    tried: list[float] = []

    def prune(weights: Path, *, flops: float, imgsz: int, path: Path) -> None:
        tried.append(flops)
        if flops > 0.7:
            raise UnreachableTargetError("too much")
        path.write_text(str(1 - flops))

    def quantize(weights: Path, data: str, *, path: Path, **_: Any) -> Path:
        share = float(weights.read_text())
        path.write_bytes(bytes(round(share * 1e7)))
        return path

    def take_times(models: dict[str, tuple[Path, str]], imgsz: int, threads: int) -> dict[str, Any]:
        return {name: np.full(3, file.stat().st_size / 1e5) for name, (file, _) in models.items()}

    for name, stand_in in (("prune", prune), ("quantize", quantize), ("take_times", take_times)):
        monkeypatch.setattr(amount, name, stand_in)
    return tried


@pytest.mark.parametrize(
    ("targets", "flops", "beyond"),
    [
        ({"target_size": 6.5}, 0.35, ""),
        ({"target_size": 6.6}, 0.35, ""),
        ({"target_latency": 50.0}, 0.55, ""),  # five percent below
        ({"target_size": 6.5, "target_latency": 50.0}, 0.55, ""),
        ({"target_size": 3.0}, 0.7, ""),
        ({"target_size": 10.0}, None, ""),
        ({"target_size": 2.9}, 0.25, "size"),
        ({"target_size": 6.5, "target_latency": 1.0}, 0.35, "latency"),
        ({"target_size": 1.0, "target_latency": 1.0}, 0.25, "size and latency"),
    ],
)
def test_the_least_amount_that_meets_the_targets(
    pretended: list[float], tmp_path: Path, targets: dict[str, float], flops: float | None, beyond: str
) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_text("1.0")
    values = dict.fromkeys(("target_latency", "target_size")) | targets
    digests = dict.fromkeys(("weights_digest", "model_digest", "light_digest"))
    others = {"weights": None, "model": "", "light": "", "epochs": {}, "formats": (), "training": {}, **digests}
    options = settings.Options(
        data="data.yaml",
        digest="",
        skip=frozenset(),
        flops=0.25,
        runtime="onnxruntime",
        int8="qat",
        imgsz=64,
        threads=1,
        **values,
        **others,
    )
    found = amount.find(weights, lambda: weights, options, lambda line: None)
    assert found.flops == flops
    assert len(pretended) == len(set(pretended)) <= 5 * len(targets)
    if beyond:
        assert f"cannot meet the target of {beyond}: with 70% of the FLOPs removed it is 3.00 MB" in found.note
    else:
        assert "cannot" not in found.note


def test_a_folder_belongs_to_one_process_at_a_time(copied: Run) -> None:
    before = copied.records()
    with locked(copied.folder, "x"), pytest.raises(ValueError, match="no other fastyolo is at work"):
        copied.run()
    assert copied.records() == before


def test_deleted_latencies_are_measured_again(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def take_times(models: dict[Any, Any], imgsz: int, threads: int) -> dict[Any, Any]:
        return {key: np.full(3, 7.0) for key in models}

    monkeypatch.setattr(files, "take_times", take_times)
    kept = summary.read(copied.folder)
    assert all(stage.latency["onnxruntime"].median_ms != 7.0 for stage in kept.stages)
    (copied.folder / files.LATENCIES).unlink()
    found = copied.run()
    assert copied.begun() == []
    assert [stage.latency.keys() for stage in found.stages] == [stage.latency.keys() for stage in kept.stages]
    assert {latency.median_ms for stage in found.stages for latency in stage.latency.values()} == {7.0}


def test_state_deletes_nothing_but_what_is_made_again(tmp_path: Path) -> None:
    state = State(tmp_path / "run")

    def work(name: str, text: str) -> Any:
        place = tmp_path / "run" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / text).write_text(text)
        return {"files": [f"{name}/{text}"]}

    for name in ("one", "two"):
        state.once(name, lambda name=name: work(name, "old"), arguments={"a": 1}, inputs={"x": "1"})
    again = State(tmp_path / "run")
    again.once("one", lambda: work("one", "new"), arguments={"a": 1}, inputs={"x": "2"})
    assert sorted(path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")) == [
        *("one", "one/new", "state.json", "two", "two/old"),
    ]
    (tmp_path / "run" / "two" / "old").unlink()
    record = again.once("two", lambda: work("two", "new"), arguments={"a": 1}, inputs={"x": "1"})
    assert record.result == {"files": ["two/new"]}
    outside = tmp_path / "outside"
    outside.touch()

    def trained(text: str) -> Any:
        return {"files": [*work("two", text)["files"], "../outside"]}

    again.once("two", lambda: trained("best"), arguments={"a": 1}, inputs={"x": "3"})
    outside.unlink()
    again.once("two", lambda: trained("last"), arguments={"a": 1}, inputs={"x": "3"})
    assert sorted(path.name for path in (tmp_path / "run" / "two").iterdir()) == ["best", "last"]


def test_what_files_held_may_be_unknown_to_older_records(tmp_path: Path) -> None:
    state = State(tmp_path / "run")
    known = {"light": "mine.yaml", "content of light": "1"}
    (tmp_path / "run" / "light" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "light" / "weights" / "last.pt").touch()

    def work() -> Any:
        return {"files": []}

    state.once("light", work, arguments={"light": "mine.yaml"}, inputs={})
    state.check("light", known, {})
    assert state.once("light", lambda: pytest.fail("done again"), arguments=known, inputs={}).result == {"files": []}
    with pytest.raises(ValueError, match=r"has other values of light \(mine\.yaml, not other\.yaml\)"):
        state.check("light", {**known, "light": "other.yaml"}, {})
    with pytest.raises(ValueError, match="has other values of content of light; choose"):  # it is known from now on
        State(tmp_path / "run").check("light", {**known, "content of light": "2"}, {})
