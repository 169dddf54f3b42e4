# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command line: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("ultralytics")

import cv2
import numpy as np
import ultralytics.engine.model
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import ASSETS

import fastyolo
from fastyolo._files import write_json
from fastyolo.cli import app

EXAMPLES = Path(__file__).parent.parent / "examples"
BUS = str(ASSETS / "bus.jpg")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small untrained detector that is sure of a few things."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "yolov8n.yaml").write_text(yaml.safe_dump({**yaml_model_load("yolov8n.yaml"), "nc": 2}))
    torch.manual_seed(0)
    model = YOLO(folder / "yolov8n.yaml")
    model.model.names = {0: "cat", 1: "dog"}
    for branch in model.model.model[-1].cv3:
        torch.nn.init.constant_(branch[-1].bias, 1.0)
    model.save(folder / "tiny.pt")
    return str(folder / "tiny.pt")


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write to runs/ by default, and downloads go to the working directory."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def succeed(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(status: int, *arguments: str) -> str:
    """The one sentence of a failure."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("fastyolo")
    return sentence


# ---- help and usage


COMMANDS = (
    *("predict", "val", "train", "compress", "demo", "prune", "quantize", "export", "verify", "info", "profile"),
    *("doctor", "bench ops", "bench model", "bench compare"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    text = succeed(*command.split(), "--help")
    assert "Usage:" in text
    assert re.search(f"Examples?: fastyolo {command}", text)
    assert ("--json" in text) != (command == "export")


def test_version():
    assert succeed("--version") == f"{fastyolo.__version__}\n"


def test_help_lists_every_command():
    assert "Usage:" in succeed("bench", "--help")
    listed = succeed("--help")
    assert all(command.split()[0] in listed for command in COMMANDS)


def test_help_shows_defaults(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = succeed("predict", "--help")
    built_in = [f"(what is built into the model, else {value})" for value in ("0.25", "0.7", "300")]
    for default in (*built_in, "(640; of an exported model, what it says)", "yolov8n.pt", "runs/predict"):
        assert f"[default: {default}]" in text


def test_help_imports_nothing_heavy():
    code = "import sys, fastyolo.cli; print(sorted({'torch', 'ultralytics', 'numpy'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "fastyolo: Missing command; see 'fastyolo --help'."),
        (("detect",), "fastyolo: No such command 'detect'; see 'fastyolo --help'."),
        (("predict", "--colour", "red"), "No such option: --colour"),
        (
            ("predict", "--conf", "1.5"),
            "Invalid value for '--conf': Input should be less than or equal to 1, got '1.5'",
        ),
        (("predict", "--max-det", "few"), "Invalid value for '--max-det': Input should be a valid integer"),
        (("predict", "--max-det", "few"), ", got 'few'; see 'fastyolo predict --help'."),
        (("predict", "--source", "nowhere.jpg"), "Invalid value for --source: 'nowhere.jpg' does not exist"),
        (("val",), "Missing option '--data'"),
        (("bench", "ops", "--op", "sort"), "Invalid value for '--op': 'sort' is not one of 'decode_nms', "),
        (("bench", "model", "--device", "banana"), "expected cpu, cuda or cuda:N, got 'banana'"),
        (("predict", "--device", "mps"), "Invalid value for '--device': expected cpu, cuda or cuda:N, got 'mps'"),
        (("predict", "--device", "-1"), "expected cpu, cuda or cuda:N, got '-1'"),
        (("val", "--data", "x.yaml", "--device", "foo"), "expected cpu, cuda or cuda:N, got 'foo'"),
        (("profile", "--device", "0,1"), "expected cpu, cuda or cuda:N, got '0,1'"),
        (("doctor", "--device", "xpu"), "expected cpu, cuda or cuda:N, got 'xpu'"),
        (("predict", "--engine", "openvino"), "for exported models, and 'yolov8n.pt' is a checkpoint; leave it out"),
        (("bench", "ops", "--json", "-"), "Invalid value for '--json': expected the name of a file or folder, got '-'"),
        (
            ("bench", "model", "--json", "x", "--markdown", "./x"),
            "Invalid value for '--markdown': expected a path of its own, got 'x', which --json has",
        ),
        (("bench", "ops", "--weights", __file__), "They belong together: give both or none"),
    ],
)
def test_wrong_usage_is_status_2(arguments, message):
    assert message in fail(2, *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "--device", "cuda"), "torch sees no CUDA device, got 'cuda'"),
        (("predict", "--device", "0"), "torch sees no CUDA device, got 'cuda:0'"),
        (("predict", "--half"), "float16 needs a GPU, and torch sees none"),
        (("bench", "ops", "--device", "cuda"), "torch sees no CUDA device"),
    ],
)
def test_a_gpu_that_is_not_there_is_status_2(arguments, message):
    assert message in fail(2, *arguments)


def test_missing_weights_are_one_sentence():
    assert fail(1, "predict") == (
        "fastyolo: The file 'yolov8n.pt' is not on this machine and cannot be downloaded; "
        "pass a detection checkpoint with --weights FILE."
    )
    assert "'nowhere.pt' is not on this machine" in fail(1, "val", "--weights", "nowhere.pt", "--data", "x.yaml")


@pytest.mark.parametrize(
    ("command", "function"),
    [
        (("prune", "--flops", "0.3"), "fastyolo.compress.pruning.prune"),
        (("quantize",), "fastyolo.compress.quantization.quantize"),
        (("quantize", "--sensitivity"), "fastyolo.compress.quantization.sensitivity.sensitivity"),
        (("compress",), "fastyolo.compress.pipeline.compress"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_long_work_says_after_an_interrupt_how_it_goes_on(
    command: tuple[str, ...], function: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    monkeypatch.setattr(function, interrupt)
    result = run(*command, "--weights", weights, "--data", "data.yaml")
    assert result.exit_code == 130, result.output
    assert result.stderr.strip() == "fastyolo: Interrupted; the same command goes on where it stopped."


@pytest.mark.parametrize("package", ["torch", "ultralytics"])
def test_a_missing_package_is_named(package):
    code = f"import sys; sys.modules[{package!r}] = None; from fastyolo.cli import app; app(['predict'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"fastyolo: {package} is not installed; pip install 'fastyolo[ultralytics]' brings it.\n"


def test_other_tasks_are_refused():
    assert "'yolov8n-cls.yaml' is a model for the task 'classify'" in fail(
        1, "predict", "--weights", "yolov8n-cls.yaml"
    )


def test_debug_shows_the_traceback():
    result = run("predict", "--weights", "nowhere.pt", "--debug")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "FileNotFoundError: The file 'nowhere.pt' is not on this machine" in result.stderr


# ---- predict


def predict(weights: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    settings = ("--weights", weights, "--imgsz", "64", "--device", "cpu", "--json", "out.json", "--save-dir", "saved")
    text = succeed("predict", *settings, *arguments)
    return text, json.loads(Path("out.json").read_text())


def test_predict_photographs(weights):
    text, document = predict(weights, "--max-det", "5")
    lines = text.splitlines()
    for line, start in zip(lines, ("bus.jpg 810x1080: ", "zidane.jpg 1280x720: "), strict=False):
        counts, times = line.removeprefix(start).split(" (")
        assert sum(int(count) for count in re.findall(r"(\d+) (?:cat|dog)", counts)) == 5
        assert re.fullmatch(r"preprocess [\d.]+, inference [\d.]+, postprocess [\d.]+ ms\)", times)
    assert lines[2:] == ["Annotated pictures are in saved"]
    for name, shape in (("bus", (1080, 810, 3)), ("zidane", (720, 1280, 3))):
        picture = cv2.imread(f"saved/{name}.jpg")
        assert picture.shape == shape
        assert np.abs(picture.astype(int) - cv2.imread(str(ASSETS / f"{name}.jpg"))).max() > 100  # boxes are drawn
    assert document["accelerated"] is True
    image = document["images"][0]
    assert (image["path"], image["width"], image["height"]) == (BUS, 810, 1080)
    assert set(image["milliseconds"]) == {"preprocess", "inference", "postprocess"}
    assert len(image["detections"]) == 5
    for detection in image["detections"]:
        assert detection["name"] == {0: "cat", 1: "dog"}[detection["class"]]
        assert 0.25 < detection["score"] <= 1
        left, top, right, bottom = detection["box"]
        assert 0 <= left <= right <= 810
        assert 0 <= top <= bottom <= 1080


def test_predict_is_stock_with_stock(weights):
    _, ours = predict(weights, "--source", BUS, "--batch", "2", "--agnostic-nms", "--iou", "0.5")
    _, stock = predict(weights, "--source", BUS, "--agnostic-nms", "--iou", "0.5", "--stock")
    assert (ours["accelerated"], stock["accelerated"]) == (True, False)
    assert len(stock["images"][0]["detections"]) > 0
    assert len(ours["images"][0]["detections"]) == len(stock["images"][0]["detections"])


def test_predict_classes(weights):
    _, document = predict(weights, "--source", BUS, "--classes", "1")
    assert {detection["class"] for detection in document["images"][0]["detections"]} <= {1}
    text, document = predict(weights, "--source", BUS, "--conf", "1")
    assert document["images"][0]["detections"] == []
    assert "bus.jpg 810x1080: nothing" in text
    last = len(YOLO(weights).names) - 1
    sentence = fail(2, "predict", "--weights", weights, "--source", BUS, "--classes", "0", "--classes", str(last + 1))
    assert f"--classes: {weights!r} has the classes 0 to {last}, got {last + 1}" in sentence


def test_predict_folder_and_glob(weights):
    Path("pictures").mkdir()
    for number in range(3):
        cv2.imwrite(f"pictures/{number}.png", np.full((48, 64, 3), 80 * number, np.uint8))
    for source in ("pictures", "pictures/*.png"):
        text, document = predict(weights, "--source", source)
        assert [line.split(":")[0] for line in text.splitlines()[:3]] == [f"{number}.png 64x48" for number in range(3)]
        assert [Path(image["path"]).name for image in document["images"]] == ["0.png", "1.png", "2.png"]
    assert "No images or videos found" in fail(1, "predict", "--weights", weights, "--source", "pictures/*.jpg")


def test_predict_video(weights):
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(4):
        writer.write(np.full((48, 64, 3), 60 * number, np.uint8))
    writer.release()
    text, document = predict(weights, "--source", "clip.avi")
    assert text.startswith("clip.avi 64x48 4 frames: ")
    assert [image["frame"] for image in document["images"]] == [0, 1, 2, 3]
    video = cv2.VideoCapture("saved/clip.avi")
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 4


def test_predict_is_not_taken_for_the_command_line_of_ultralytics(weights, monkeypatch):
    """Which it is by ultralytics, whose predict() then returns nothing: its program, too, ends in "yolo"."""
    monkeypatch.setattr(ultralytics.engine.model, "ARGV", ["/usr/bin/fastyolo", "predict"])
    text, _ = predict(weights, "--source", BUS)
    assert text.startswith("bus.jpg")


def test_predict_says_what_it_cannot_accelerate(weights):
    model = YOLO(weights)
    model.model.model[-1].dfl.conv.weight.data[0, 3] = 3.5
    model.save("other.pt")
    result = run("predict", "--weights", "other.pt", "--source", BUS, "--imgsz", "64", "--json", "out.json")
    assert result.exit_code == 0
    assert result.stderr.startswith(
        "fastyolo: accelerate() leaves this model as it is: its head decodes boxes with DFL"
    )
    assert json.loads(Path("out.json").read_text())["accelerated"] is False


# ---- val


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{number}.png"), image)
        (tmp_path / "data" / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    file = tmp_path / "data" / "data.yaml"
    file.write_text(
        yaml.safe_dump({"path": str(file.parent), "train": "images", "val": "images", "names": ["cat", "dog"]})
    )
    return str(file)


@pytest.mark.parametrize("rect", ["--rect", "--no-rect"])
def test_val(weights, dataset, rect):
    arguments = (
        "--weights",
        weights,
        "--data",
        dataset,
        "--imgsz",
        "64",
        "--device",
        "cpu",
        "--json",
        "out.json",
        rect,
    )
    text = succeed("val", *arguments)
    assert "mAP50-95" in text
    document = json.loads(Path("out.json").read_text())
    assert document["rect"] is (rect == "--rect")
    assert document["accelerated"] is True
    assert set(document["metrics"]) == {"mAP50-95", "mAP50", "precision", "recall"}
    assert all(0 <= value <= 1 for value in document["metrics"].values())
    assert set(document["milliseconds"]) == {"preprocess", "inference", "postprocess"}
    succeed("val", *arguments, "--stock")
    stock = json.loads(Path("out.json").read_text())
    assert stock["accelerated"] is False
    assert stock["metrics"] == pytest.approx(document["metrics"], abs=1e-6)


def test_val_tells_of_other_classes(weights, dataset):
    arguments = ("val", "--weights", weights, "--data", dataset, "--imgsz", "64", "--device", "cpu")
    assert run(*arguments).stderr == ""
    Path(dataset).write_text(Path(dataset).read_text().replace("- cat\n- dog\n", "  1: dog\n  0: cat\n"))
    assert "1: dog" in Path(dataset).read_text()
    assert run(*arguments).stderr == ""
    document = yaml.safe_load(Path(dataset).read_text())
    Path(dataset).write_text(yaml.safe_dump({**document, "names": ["dog", "cat"]}))
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (
        0,
        f"fastyolo: The 2 classes of {weights} are not the 2 of {dataset}, in name or order; labels are compared by "
        "their numbers alone. fastyolo doctor tells the differences.\n",
    )


def test_val_without_its_data_set(weights):
    assert "nowhere.yaml" in fail(1, "val", "--weights", weights, "--data", "nowhere.yaml")


def test_val_of_a_split_that_there_is_not(weights, dataset):
    sentence = fail(1, "val", "--weights", weights, "--data", dataset, "--split", "test")
    assert sentence == f"fastyolo: The data set {dataset!r} cannot be used: 'test:' images not found."


@pytest.mark.parametrize(
    "command", ["info", "predict --weights", "val --data coco8.yaml --weights", "export --weights"]
)
def test_a_checkpoint_that_was_cut_off(weights, command):
    Path("cut.pt").write_bytes(Path(weights).read_bytes()[:100_000])
    sentence = fail(1, *command.split(), "cut.pt")
    assert sentence.startswith("fastyolo: The file 'cut.pt' cannot be read as a checkpoint of ultralytics (")


def test_val_refuses_before_it_validates_what_it_cannot_do(weights, dataset, monkeypatch):
    for package in ("onnx", "onnxslim", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr(ultralytics.engine.model.Model, "val", lambda *_, **__: pytest.fail("validated all the same"))
    model = Path(weights).with_name("yolov8n.yaml")
    sentence = fail(2, "val", "--weights", str(model), "--data", dataset, "--history", "h.jsonl")
    assert f"--history: a result is known by the content of its weights, and '{model}' has none" in sentence
    for outputs in ("maps", "detections"):
        fastyolo.export.export(weights, outputs=outputs, imgsz=64, path=f"{outputs}.ONNX")
        sentence = fail(1, "val", "--weights", f"{outputs}.ONNX", "--data", dataset)
        assert "weights (--weights) must be a checkpoint or exported with --outputs boxes, got" in sentence
        assert f"this measures: fastyolo bench model --model {outputs}.ONNX --data {dataset}" in sentence
    assert not Path("h.jsonl").exists()


# ---- verify


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_verify_takes_a_suffix_in_capitals(weights, engine):
    for package in ("onnx", "onnxslim", engine):
        pytest.importorskip(package)
    fastyolo.export.export(weights, imgsz=64, path="MODEL.ONNX")
    assert "MODEL.ONNX" in succeed("verify", "--weights", weights, "--model", "MODEL.ONNX", "--engine", engine)


# ---- info


def test_info():
    text = succeed("info", "--json", "info.json")
    document = json.loads(Path("info.json").read_text())
    assert document["versions"]["fastyolo"] == fastyolo.__version__
    assert document["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert document["build"]["cpu_isa"] in text
    assert document["torch_operators"] == "loaded"
    assert document["cpu"]["cores"] >= 1


def test_info_of_a_model(weights):
    succeed("info", weights, "--imgsz", "320", "--json", "info.json")
    model = json.loads(Path("info.json").read_text())["model"]
    assert model["task"] == "detect"
    assert model["classes"] == 2
    assert model["parameters"] == sum(p.numel() for p in YOLO(weights).model.parameters())
    assert model["strides"] == [8, 16, 32]
    assert model["gflops"] == pytest.approx(2.0, abs=0.3)  # 8.1 at 640 x 640
    assert model["accelerated"] == "yes"
    succeed("info", "yolov8n-pose.yaml", "--json", "info.json")
    reason = json.loads(Path("info.json").read_text())["model"]["accelerated"]
    assert reason == "no: its head Pose has its own forward_head in place of Detect's"
    odd = run("info", weights, "--imgsz", "333")
    assert odd.exit_code == 0
    assert "imgsz 333 becomes 352, a multiple of the largest stride." in odd.stderr
    Path("text.json").write_text("{}")
    Path("folder").mkdir()
    for name in ("text.json", "folder"):
        assert f"must be a checkpoint, a YAML file or an exported model, got '{name}'." in fail(1, "info", name)


# ---- as a program


def test_program(weights):
    """`python -m fastyolo` and the installed script are the same program."""
    environment = {**os.environ, "COLUMNS": "80"}
    arguments = ["predict", "--weights", weights, "--source", BUS, "--imgsz", "64", "--max-det", "2"]
    programs = [[sys.executable, "-m", "fastyolo"]]
    if script := shutil.which("fastyolo", path=str(Path(sys.executable).parent)):
        programs.append([script])
    for program in programs:
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("bus.jpg 810x1080: ")
        failed = subprocess.run(
            [*program, "predict", "--weights", "no.pt"], capture_output=True, text=True, check=False
        )
        assert failed.returncode == 1
        assert failed.stderr.splitlines()[-1].startswith("fastyolo: The file 'no.pt' is not on this machine")


@pytest.mark.parametrize("name", ["detect", "decode_maps"])
def test_examples(name, weights, monkeypatch, capsys):
    file = EXAMPLES / f"{name}.py"
    assert len(file.read_text().splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [str(file), *([weights, BUS] if name == "detect" else [])])
    runpy.run_path(str(file), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    if name == "detect":
        assert lines[-1].startswith("post-processing took ")
        assert lines[0].split()[0] in {"cat", "dog"}
    else:
        assert lines == [
            "class 2, score 0.88, 280,104 - 376,264, from row 10, column 20 of the level with stride 16",
            "class 2, score 0.62, 48,112 - 176,240, from row 5, column 3 of the level with stride 32",
        ]


def test_results_are_written_before_they_are_printed(tmp_path):
    """Where nobody reads them, the status is that of SIGPIPE: 1 would say that something became slower."""
    result, out = tmp_path / "result.json", tmp_path / "out.json"
    program = [sys.executable, "-m", "fastyolo"]
    bench = [*program, "bench", "ops", "--quick", "--op", "eca", "--threads", "1", "--json", str(result)]
    compare = [*program, "bench", "compare", str(result), str(result), "--json", str(out)]
    for command, file in ((bench, result), (compare, out)):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
        assert done.returncode == 141
        assert "Traceback" not in done.stderr
        assert json.loads(file.read_text())


def test_files_are_whole_or_not_there(tmp_path):
    file = tmp_path / "folder" / "document.json"
    write_json(file, {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"new": float("nan")})
    assert json.loads(file.read_text()) == {"old": 1}
    assert [path.name for path in file.parent.iterdir()] == ["document.json"]
