# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo bench model: recall by the size of objects, and the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("ultralytics")

import cv2
import numpy as np
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import yaml_model_load

import fastyolo
from fastyolo.bench import model as bench
from fastyolo.bench import model_table, runtimes
from fastyolo.bench.footprint import peak_mb
from fastyolo.cli import app
from fastyolo.integrations.ultralytics import backends
from fastyolo.integrations.ultralytics.accuracy import SIZES, Accuracy, evaluate, matched
from fastyolo.runtime.metadata import Metadata, Nms


def square(side: float, x: float = 0.0) -> list[float]:
    return [x, 0.0, x + side, side]


def count(detections: list[tuple[float, list[float]]], objects: list[tuple[float, list[float]]]) -> dict[str, Any]:
    """(found, objects) by size, of (class, box) pairs."""
    accuracy = Accuracy()
    boxes, labels = (torch.tensor([row[i] for row in detections]) for i in (1, 0))
    truth, truth_labels = (torch.tensor([row[i] for row in objects]) for i in (1, 0))
    truth = truth.reshape(-1, 4)
    areas = (truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1])
    accuracy.count(boxes.reshape(-1, 4), labels, truth, truth_labels, areas)
    return {size: (recall.found, recall.objects) for size, recall in accuracy.recall.items()}


def test_sizes_are_those_of_coco() -> None:
    objects = [(0.0, square(side, 500 * i)) for i, side in enumerate((31.9, 32.0, 95.9, 96.0, 400.0))]
    assert count(objects, objects) == {"small": (1, 1), "medium": (2, 2), "large": (2, 2)}
    assert count([], objects) == {"small": (0, 1), "medium": (0, 2), "large": (0, 2)}
    assert count(objects, []) == {"small": (0, 0), "medium": (0, 0), "large": (0, 0)}


def test_a_find_needs_class_and_overlap() -> None:
    thing = (1.0, square(10))
    assert count([(0.0, square(10))], [thing])["small"] == (0, 1)
    assert count([(1.0, [0.0, 0.0, 10.0, 4.9])], [thing])["small"] == (0, 1)
    assert count([(1.0, [0.0, 0.0, 10.0, 5.1])], [thing])["small"] == (1, 1)


def test_a_detection_finds_one_object() -> None:
    twins = [(0.0, square(10)), (0.0, square(10, 1.0))]
    assert count(twins[:1], twins)["small"] == (1, 2)
    assert count(twins, twins)["small"] == (2, 2)
    assert count([twins[0], twins[0], twins[0]], twins)["small"] == (2, 2)


def test_a_detection_takes_its_best_free_object() -> None:
    overlaps = torch.tensor([[0.6, 0.9], [0.4, 0.8]])
    assert matched(overlaps).tolist() == [False, True]
    assert matched(overlaps[:0]).tolist() == [False, False]
    assert matched(torch.empty(3, 0)).tolist() == []


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small untrained detector."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "yolov8n.yaml").write_text(yaml.safe_dump({**yaml_model_load("yolov8n.yaml"), "nc": 2}))
    torch.manual_seed(0)
    YOLO(folder / "yolov8n.yaml").save(folder / "tiny.pt")
    return str(folder / "tiny.pt")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "MIN_ROUNDS", 2)
    monkeypatch.setattr(bench, "peak_mb", lambda *_, **__: 12.5)  # which starts a process
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photographs(data: Path, tmp_path: Path) -> Path:
    """data.yaml of the first images of coco128-val, which ultralytics may write to."""
    source = data / "coco128-val"
    for folder, suffix in (("images", ".jpg"), ("labels", ".txt")):
        (tmp_path / "coco" / folder).mkdir(parents=True)
        for image in sorted((source / "images").iterdir())[:6]:
            file = (source / folder / image.name).with_suffix(suffix)
            if file.exists():
                (tmp_path / "coco" / folder / file.name).symlink_to(file)
    names = yaml.safe_load((source / "data.yaml").read_text())["names"]
    (tmp_path / "coco" / "data.yaml").write_text(yaml.safe_dump({"train": "images", "val": "images", "names": names}))
    return tmp_path / "coco" / "data.yaml"


def objects_of(photographs: Path) -> dict[str, int]:
    """Objects by size, from the label files."""
    counts = dict.fromkeys(SIZES, 0)
    for file in (photographs.parent / "labels").glob("*.txt"):
        height, width = cv2.imread(str(photographs.parent / "images" / f"{file.stem}.jpg")).shape[:2]
        for _, _, _, w, h in np.loadtxt(file).reshape(-1, 5):
            side = (w * width * h * height) ** 0.5
            counts["small" if side < 32 else "medium" if side < 96 else "large"] += 1
    return counts


@pytest.mark.data
def test_accuracy_is_that_of_the_validator(data: Path, photographs: Path, tmp_path: Path) -> None:
    weights = str(data / "weights" / "yolov8n-recovered.pt")
    settings = {"imgsz": 320, "rect": False, "plots": False, "verbose": False, "save_dir": str(tmp_path / "val")}
    expected = YOLO(weights).val(data=str(photographs), **settings).box
    stock = evaluate(YOLO(weights), str(photographs), 320)
    accelerated = evaluate(fastyolo.accelerate(YOLO(weights)), str(photographs), 320)
    assert (stock.map50, stock.map50_95) == (expected.map50, expected.map)
    assert accelerated.map50_95 == pytest.approx(expected.map, abs=1e-3)
    assert accelerated.recall == stock.recall
    assert {size: recall.objects for size, recall in stock.recall.items()} == objects_of(photographs)
    assert all(0 < recall.found <= recall.objects for recall in (stock.recall["medium"], stock.recall["large"]))
    assert len(stock.images) == len(set(stock.images)) == 6
    smaller = evaluate(YOLO(weights), str(photographs), 128)  # the same objects, of which fewer are found
    assert {size: recall.objects for size, recall in smaller.recall.items()} == objects_of(photographs)
    assert 0 < sum(x.found for x in smaller.recall.values()) < sum(x.found for x in stock.recall.values())


@pytest.fixture(scope="module")
def exported(weights: str) -> Path:
    for package in ("onnx", "onnxslim", "onnxruntime"):
        pytest.importorskip(package)
    from fastyolo.export import export

    return export(weights, imgsz=64, path=Path(weights).with_name("fixed.onnx"))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", "model", *arguments], env={"COLUMNS": "200"})


@pytest.mark.data
@pytest.mark.usefixtures("quick")
def test_bench_model(data: Path, photographs: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxslim", "onnxruntime"):
        pytest.importorskip(package)
    arguments = ["--weights", str(data / "weights" / "yolov8n-recovered.pt"), "--imgsz", "128", "64", "128"]
    arguments += ["--data", str(photographs), "--json", "sizes.json", "--plot", "sizes.png", "--threads", "1"]
    done = run(*arguments, "--runtime", "pytorch", "onnxruntime")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "sizes.json").read_text())
    assert (report["kind"], report["images"], report["threads"], report["left_out"]) == ("model", 6, 1, [])
    assert report["results"][0]["matrix_product"] == report["results"][1]["matrix_product"]
    assert report["results"][0]["matrix_product"]["parts_ms"][0] > 0
    assert [(row["imgsz"], row["batch"], row["threads"]) for row in report["results"]] == [(64, 1, 1), (128, 1, 1)]
    for row in report["results"]:
        recalls = row["accuracy"]["pytorch"]["recall"]
        assert {size: recall["objects"] for size, recall in recalls.items()} == objects_of(photographs)
        assert set(row["latency"]) == set(row["accuracy"]) == {"pytorch", "onnxruntime"}
        for runtime, latency in row["latency"].items():
            assert 0 < latency["median_ms"] <= latency["p90_ms"] <= latency["p99_ms"]
            assert latency["samples"] == 2
            assert row["images_per_s"][runtime] == pytest.approx(1e3 / latency["median_ms"], rel=0.01)
            accuracy = row["accuracy"][runtime]
            assert 0 <= accuracy["mAP50-95"] <= accuracy["mAP50"] <= 1
            assert accuracy["mAP50-95"] == pytest.approx(row["accuracy"]["pytorch"]["mAP50-95"], abs=2e-3)
            assert f"{accuracy['mAP50-95']:.3f}" in done.output
    assert report["results"][1]["accuracy"]["onnxruntime"]["mAP50"] > 0.05
    assert cv2.imread(str(tmp_path / "sizes.png")).std() > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "sizes.json", "sizes.png"]


@pytest.mark.usefixtures("quick")
def test_latency_alone_without_onnxruntime(weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    versions = {"onnxruntime": None}
    monkeypatch.setattr(runtimes, "installed_version", lambda package: versions.get(package, "1.0"))
    arguments = ["--imgsz", "64", "--json", "sizes.json", "--batch", "1", "2", "--runtime", "pytorch", "onnxruntime"]
    done = run("--weights", weights, *arguments)
    assert done.exit_code == 0, done.output
    reason = "ONNX Runtime is left out: onnxruntime is not installed."
    assert reason in done.output
    report = json.loads((tmp_path / "sizes.json").read_text())
    assert report["left_out"] == [reason]
    assert [row["batch"] for row in report["results"]] == [1, 2]
    for row in report["results"]:
        assert row["model"] == "tiny.pt"
        assert (set(row["latency"]), row["accuracy"], row["peak_mb"]) == ({"pytorch"}, {}, {"pytorch": 12.5})
        assert row["file_mb"]["pytorch"] == pytest.approx(Path(weights).stat().st_size / 1e6, abs=1e-3)
    refused = run("--weights", weights, "--runtime", "onnxruntime")
    assert (refused.exit_code, refused.stderr) == (
        1,
        f"fastyolo: runtime (--runtime) must be one that can be measured here. {reason}\n",
    )


@pytest.mark.usefixtures("quick")
def test_an_interrupt_leaves_the_batches_until_then(
    weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    latencies = bench._latencies

    def interrupted_at_batch_2(candidates: Any, *arguments: Any) -> Any:
        if candidates[0].batch == 2:
            raise KeyboardInterrupt
        return latencies(candidates, *arguments)

    monkeypatch.setattr(bench, "_latencies", interrupted_at_batch_2)
    arguments = ["--weights", weights, "--runtime", "pytorch", "--imgsz", "64", "96", "--json", "sizes.json"]
    done = run(*arguments, "--batch", "1", "2")
    assert done.exit_code == 130, done.output
    assert done.stderr == (
        "fastyolo: Interrupted; the results are those of the batches and numbers of threads until then.\n"
    )
    report = json.loads((tmp_path / "sizes.json").read_text())
    assert [(row["imgsz"], row["batch"]) for row in report["results"]] == [(64, 1), (96, 1)]
    assert "tiny.pt" in done.stdout
    (tmp_path / "sizes.json").unlink()
    nothing = run(*arguments, "--batch", "2")
    assert (nothing.exit_code, nothing.stdout, [*tmp_path.iterdir()]) == (130, "", [])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("part", ["load", "first call", "later call", "memory"])
def test_a_candidate_that_fails_leaves_the_others(
    exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str
) -> None:
    pytest.importorskip("openvino")
    load = runtimes.load
    calls = iter(range(100))

    def loaded(name: str, *arguments: Any, **settings: Any) -> Any:
        if name != "openvino":
            return load(name, *arguments, **settings)
        if part == "load":
            raise MemoryError("no room")

        def detect(images: Any) -> None:
            if part != "memory" and next(calls) >= (3 if part == "later call" else 0):
                raise MemoryError("no room")

        return detect

    def peak(name: str, *_: Any, **__: Any) -> float:
        if name == "openvino":
            raise MemoryError("no room")
        return 12.5

    monkeypatch.setattr(runtimes, "load", loaded)
    if part == "memory":
        monkeypatch.setattr(bench, "peak_mb", peak)
    arguments = ["--runtime", "onnxruntime", "openvino", "--threads", "1", "2", "--json", "out.json"]
    done = run("--model", str(exported), *arguments)
    assert done.exit_code == 1, done.output
    sentences = [
        f"fixed.onnx in OpenVINO at 64, batch 1, {threads} is left out: MemoryError: no room."
        for threads in ("1 thread", "2 threads")
    ]
    assert done.stderr.splitlines() == [f"fastyolo: {sentence}" for sentence in sentences]
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["left_out"] == sentences
    for row in report["results"]:
        assert set(row["latency"]) == set(row["images_per_s"]) == set(row["peak_mb"]) == {"onnxruntime"}
    assert done.stdout.count("ONNX Runtime") == len(report["results"]) == 2
    nothing = run("--model", str(exported), "--runtime", "openvino", "--threads", "1", "--json", "nothing.json")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (1, "", f"fastyolo: {sentences[0]}\n")
    assert not (tmp_path / "nothing.json").exists()


@pytest.mark.usefixtures("quick")
def test_an_export_that_fails_leaves_the_others(weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    def export(*_: Any, imgsz: int, batch: int, **__: Any) -> Path:
        raise RuntimeError("no such operator.")

    monkeypatch.setattr("fastyolo.export.export", export)
    arguments = ["--weights", weights, "--imgsz", "64", "96", "--threads", "1", "--json", "out.json"]
    done = run(*arguments, "--runtime", "pytorch", "onnxruntime")
    sentences = [f"export of onnx at {size}, batch 1 is left out: RuntimeError: no such operator." for size in (64, 96)]
    assert (done.exit_code, done.stderr.splitlines()) == (1, [f"fastyolo: {sentence}" for sentence in sentences])
    report = json.loads((tmp_path / "out.json").read_text())
    assert [set(row["latency"]) for row in report["results"]] == [{"pytorch"}] * 2
    assert report["left_out"] == sentences
    nothing = run(*arguments, "--runtime", "onnxruntime")
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert sentences[0] in nothing.stderr


def test_memory_is_measured_with_a_photograph_that_can_be_read(
    exported: Path, quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    good, seen = bench.sample_photographs()[0], []
    monkeypatch.setattr(bench, "peak_mb", lambda *_, photograph, **__: seen.append(photograph) or 1.0)
    candidates = [bench.Candidate("fixed.onnx", "onnxruntime", exported, 64, 1)]
    settings: dict[str, Any] = {"threads": [1], "photographs": [str(tmp_path / "broken.jpg"), good], "device": "cpu"}
    settings |= {"labelled": None, "on_progress": lambda *_: None, "on_failure": pytest.fail}
    assert len([*bench.measure(candidates, **settings)]) == 1
    assert seen == [good]


@pytest.mark.usefixtures("quick")
def test_a_candidate_whose_accuracy_fails_leaves_the_others(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def accuracy(self: bench.Labelled, candidate: bench.Candidate, on_progress: Any) -> dict[str, Any]:
        if candidate.batch == 1 and candidate.model == "b.onnx":
            raise ValueError("labels\nare missing.")
        return {"mAP50": 0.5, "mAP50-95": 0.25}

    monkeypatch.setattr(bench.Labelled, "accuracy", accuracy)
    files = [exported, exported.with_name("b.onnx")]
    candidates = [bench.Candidate(file.name, "onnxruntime", exported, 64, 1) for file in files]
    settings = {"threads": [1], "photographs": bench.sample_photographs(), "device": "cpu"}
    labelled, failures = bench.Labelled("x.yaml", "cpu"), []
    settings |= {"labelled": labelled, "on_progress": lambda *_: None, "on_failure": failures.append}
    (row,) = bench.measure(candidates, **settings)
    assert (row["model"], row["accuracy"]) == ("fixed.onnx", {"onnxruntime": {"mAP50": 0.5, "mAP50-95": 0.25}})
    assert failures == ["b.onnx in ONNX Runtime at 64 is left out: ValueError: labels are missing."]


@pytest.mark.usefixtures("quick")
def test_what_all_candidates_need_keeps_the_rows_until_then(
    exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    latencies = bench._latencies

    def fail_with_two_threads(candidates: Any, threads: int, *arguments: Any) -> Any:
        if threads == 2:
            raise RuntimeError("the machine is tired.")
        return latencies(candidates, threads, *arguments)

    monkeypatch.setattr(bench, "_latencies", fail_with_two_threads)
    arguments = ["--runtime", "onnxruntime", "--threads", "1", "2", "--json", "out.json"]
    done = run("--model", str(exported), *arguments)
    assert (done.exit_code, done.stderr) == (
        1,
        "fastyolo: The rest is left out: RuntimeError: the machine is tired.\n",
    )
    assert [row["threads"] for row in json.loads((tmp_path / "out.json").read_text())["results"]] == [1]


@pytest.mark.usefixtures("quick")
def test_exported_files_are_measured_as_they_are(weights: str, exported: Path, tmp_path: Path) -> None:
    from fastyolo.export import export
    from fastyolo.runtime import Detector

    free = export(weights, imgsz=96, dynamic=True, path=Path(weights).with_name("free.onnx"))
    arguments = ["--batch", "1", "2", "--threads", "1", "--json", "files.json", "--markdown", "files.md"]
    done = run("--model", str(exported), str(free), "--runtime", "onnxruntime", *arguments)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "files.json").read_text())
    found = {(row["model"], row["imgsz"], row["batch"], row["threads"]) for row in report["results"]}
    assert found == {("fixed.onnx", 64, 1, 1), ("free.onnx", 96, 1, 1), ("free.onnx", 96, 2, 1)}
    reason = "fixed.onnx is left out with batch 2: it takes 1 at a time."
    assert report["left_out"] == [reason]
    assert reason in done.output
    table = (tmp_path / "files.md").read_text()
    assert table.startswith("fixed.onnx, free.onnx; 1 thread\n\n| model | imgsz | batch | runtime | ms: median |")
    assert table.count("\n| free.onnx | 96 | 2 | ONNX Runtime | ") == 1
    assert "Milliseconds of a call" in table
    refused = run("--model", str(exported), "--runtime", "pytorch")
    assert "PyTorch is left out: it runs a checkpoint, which --weights names." in refused.stderr
    wide = tmp_path / "wide.png"
    cv2.imwrite(str(wide), np.full((30, 60, 3), 9, np.uint8))
    padded = runtimes.photograph(wide)
    assert (padded.shape, padded[:30].min(), padded[30:].max()) == ((60, 60, 3), 9, 0)
    tensor, _ = Detector(free).preprocess([padded])
    assert tensor.shape == (1, 3, 96, 96)  # free sizes, but of what it computes nothing is cut
    wrong = run("--model", str(exported), "--imgsz", "96", "--runtime", "onnxruntime")
    assert wrong.exit_code == 1
    assert "imgsz is built into" in wrong.stderr


def test_a_process_of_its_own_tells_the_memory_of_a_runtime(exported: Path) -> None:
    photograph = bench.sample_photographs()[0]
    settings = {"imgsz": 64, "batch": 1, "threads": 1, "device": "cpu", "photograph": photograph}
    found = peak_mb("onnxruntime", exported, **settings)
    status = Path("/proc/self/status").read_text()
    ours = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1e3
    assert 40 < found < 0.7 * ours  # this process has loaded torch
    with pytest.raises(RuntimeError, match=r"cannot be measured .*absent"):
        peak_mb("onnxruntime", exported.with_name("absent.onnx"), **settings)


def test_the_table_leaves_out_what_says_nothing() -> None:
    latency = {"median_ms": 2.0, "p90_ms": 3.0}
    old = {"imgsz": 320, "latency": {"pytorch": latency, "onnxruntime": latency}, "mAP50": 0.5, "mAP50-95": 0.25}
    headers, lines = model_table.table({"results": [old]})
    assert headers == ["imgsz", "runtime", "ms: median", "90 %", "mAP50-95", "mAP50"]
    assert lines == [
        ["320", "PyTorch", "2.0", "3.0", "0.250", "0.500"],
        ["320", "ONNX Runtime", "2.0", "3.0", "-", "-"],
    ]
    new = {"model": "a.onnx", "batch": 1, "threads": 2, "accuracy": {}, "imgsz": 320, "latency": {"ncnn": latency}}
    headers, lines = model_table.table({"results": [new, {**new, "threads": 4}]})
    assert headers == ["imgsz", "threads", "runtime", "ms: median", "90 %"]
    assert [line[1] for line in lines] == ["2", "4"]


@pytest.mark.parametrize(
    ("name", "takers"),
    [
        ("best.onnx", ("onnxruntime", "openvino")),
        ("best.engine", ("tensorrt",)),
        ("folder/model.xml", ("openvino",)),
        ("folder/model.param", ("ncnn",)),
    ],
)
def test_a_file_goes_to_the_runtimes_that_take_it(name: str, takers: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    assert runtimes.runtimes_of(file.parent if "folder" in name else file) == takers


def test_openvino_weights_count_with_the_xml_that_names_them(tmp_path: Path) -> None:
    for suffix, size in ((".xml", 3), (".bin", 40), (".onnx", 500)):
        (tmp_path / f"model{suffix}").write_bytes(b"x" * size)
    assert [runtimes.num_bytes(tmp_path / name) for name in ("model.xml", "model.onnx", "")] == [43, 500, 543]


def test_files_of_one_name_are_called_by_their_paths() -> None:
    files = [Path("a/best.onnx"), Path("b/best.onnx"), Path("b/last.onnx")]
    assert list(bench.names_of(files).values()) == ["a/best.onnx", "b/best.onnx", "last.onnx"]


@pytest.mark.parametrize(
    ("status", "arguments", "sentence"),
    [
        (1, ["--imgsz", "100", "64"], "must be multiples of the model's largest stride, 32, got 100."),
        (2, ["64"], "unexpected extra argument"),
        (2, ["--imgsz", "64", "many"], "not a valid int|valid integer"),
        (2, ["--imgsz", "64", "--plot", "x.png"], "need --data"),
        (2, ["--imgsz", "64", "--plot", "x.txt", "--data", "d.yaml"], "ends in .pdf, .png, .svg, got 'x.txt'"),
        (1, ["--plot", "x.PNG", "--data", "absent.yaml", "--runtime", "pytorch"], "absent.yaml"),
        (1, ["--imgsz", "64", "--data", "absent.yaml", "--runtime", "pytorch"], "absent.yaml"),
        (1, ["--model", "tiny.pt"], "model must be an .onnx or .engine file, or the folder of an OpenVINO or NCNN"),
        (2, ["--model", "absent.onnx"], "absent.onnx"),
        (2, ["--runtime", "caffe"], "caffe"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_wrong_usage(weights: str, status: int, arguments: list[str], sentence: str) -> None:
    Path("tiny.pt").symlink_to(weights)
    done = run("--weights", weights, *arguments)
    assert done.exit_code == status, done.output
    (line,) = done.stderr.splitlines()
    assert any(part in line for part in sentence.split("|")), line


def test_an_engine_with_thresholds_at_run_time_gets_those_of_its_metadata(tmp_path, monkeypatch) -> None:
    """Its second input is one that ultralytics' backend, which knows of images alone, makes but never fills."""
    metadata = Metadata("detections", ("a",), (64, 64), 32, nms=Nms(0.25, 0.7, 300, 30000, False, False))
    thresholds = torch.full((2,), torch.nan)
    backend = SimpleNamespace(
        backend=SimpleNamespace(bindings={"images": None, "thresholds": SimpleNamespace(data=thresholds)}),
        metadata=metadata.properties(),
        dynamic=False,
    )
    monkeypatch.setattr(backends, "AutoBackend", lambda *_, **__: backend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    file = tmp_path / "best.engine"
    file.touch()
    backends.TensorRT(file, 1)
    assert thresholds.tolist() == pytest.approx([0.25, 0.7])
