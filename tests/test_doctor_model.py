# SPDX-License-Identifier: AGPL-3.0-or-later
"""Planted faults of labels and of models that only the two together show, and the hard cases."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ultralytics")

from datasets import Row, read_labels, write_data_set, write_labels
from detectors import NAMES, detector
from PIL import Image
from typer.testing import CliRunner
from ultralytics import YOLO
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import YAML

from fastyolo.cli import app
from fastyolo.diagnose import IncomparableError
from fastyolo.diagnose.doctor import dataset, deployment, hard_cases
from fastyolo.diagnose.doctor.findings import Finding, Report
from fastyolo.diagnose.doctor.outcomes import Detections, Kind, outcomes
from fastyolo.diagnose.doctor.samples import Settings
from fastyolo.integrations.ultralytics.doctor import describe
from fastyolo.integrations.ultralytics.examination import ExaminedModel
from fastyolo.runtime.sources import read_image

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = Settings(imgsz=160, min_objects=1)
TRAIN, VAL = 12, 24
COLUMNS, ROWS = (0.18, 0.5, 0.82), (0.17, 0.5, 0.83)  # of objects; a column has one class, the last row is small ones
LARGE, SMALL = (0.25, 0.3), (0.1, 0.14)
GAP = 0.34  # between the first two columns there is nothing


def objects(draw: np.random.Generator) -> Iterator[Row]:
    for label, x in enumerate(COLUMNS):
        for y in ROWS:
            width, height = SMALL if y == ROWS[-1] else LARGE
            yield label, x + draw.uniform(-0.01, 0.01), y + draw.uniform(-0.01, 0.01), width, height


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("healthy")
    draw = np.random.default_rng(0)
    write_data_set(root, {"train": TRAIN, "val": VAL}, lambda: objects(draw), NAMES, ".png")
    return root


@pytest.fixture
def root(healthy: Path, tmp_path: Path) -> Path:
    """A copy to plant faults in."""
    return Path(shutil.copytree(healthy, tmp_path / "data"))


Found = list[tuple[float, ...]]
"""Score, class, x, y, width and height of a detection."""


class Scripted:
    """A model that finds the objects of a data set, a little off, and what `change` makes of that; of those in the
    second row it is most sure."""

    name = "scripted.pt"
    names = NAMES
    imgsz = trained_imgsz = 160
    strides = (8, 16, 32)

    def __init__(self, root: Path, change: Callable[[str, Found], Found] = lambda split, found: found) -> None:
        self.activations: dict[str, float] = {}
        self._found = {}
        draw = np.random.default_rng(1)
        for file in sorted((root / "images").rglob("*.png")):
            truth = read_labels(Path(str(file).replace("images", "labels")).with_suffix(".txt"))
            scores = [0.97 if abs(row[2] - ROWS[1]) < 0.02 else draw.uniform(0.75, 0.95) for row in truth]
            found = [(score, row[0], *draw.normal(row[1:], 0.004)) for score, row in zip(scores, truth, strict=True)]
            self._found[self._key(read_image(file))] = change(file.parent.name, found)

    def find(self, image: np.ndarray) -> Detections:
        rows = np.array(sorted(self._found[self._key(image)], reverse=True)).reshape(-1, 6)
        half = rows[:, 4:] / 2
        boxes = np.concatenate((rows[:, 2:4] - half, rows[:, 2:4] + half), 1)
        return Detections(boxes, rows[:, 0], rows[:, 1].astype(np.intp))

    def not_finite(self) -> list[str]:
        return []

    @staticmethod
    def _key(image: np.ndarray) -> str:
        return hashlib.sha256(image.tobytes()).hexdigest()


def examined(root: Path, model: Any) -> Report:
    return dataset.examine(describe(root / "data.yaml"), SETTINGS, model).report


def names(report: Report) -> set[str]:
    return {finding.name for finding in report.findings}


def named(report: Report, name: str) -> Finding:
    return next(finding for finding in report.findings if finding.name == name)


# ---- labels


def relabel(change: Callable[[Row], Row | None], *, split: str = "val", files: int = VAL) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        for file in sorted((root / "labels" / split).glob("*.txt"))[:files]:
            write_labels(file, [row for row in map(change, read_labels(file)) if row])

    return plant


def first_large(change: Callable[[Row], Row | None]) -> Callable[[Row], Row | None]:
    """Of the first class in the second row alone."""
    return lambda row: change(row) if row[0] == 0 and abs(row[2] - ROWS[1]) < 0.02 else row


def more(*rows: Row) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        file = root / "labels" / "val" / "00.txt"
        write_labels(file, [*read_labels(file), *rows])

    return plant


LABELS = {
    "corners for centres": (
        relabel(lambda r: (r[0], r[1] - r[3] / 2, r[2] - r[4] / 2, *r[3:])),
        ("shifted labels", "-0.5"),
    ),
    "shifted by pixels": (relabel(lambda r: (r[0], r[1] + 0.05, *r[2:])), ("shifted labels", "+8 and +0 pixels")),
    "halved boxes": (
        relabel(lambda r: (*r[:3], r[3] / 2, r[4] / 2)),
        ("shifted labels", "0.50 times as high"),
    ),
    "another image's width": (
        relabel(lambda r: (r[0], r[1] * 0.6, r[2], r[3] * 0.6, r[4])),
        ("shifted labels", " (x) and 1.00 (y) times"),
    ),
    "shifted in training": (
        relabel(lambda r: (r[0], r[1] + 0.05, *r[2:]), split="train"),
        ("shifted labels", "The labels of train"),
    ),
    "swapped classes": (
        relabel(lambda r: ({0: 2, 2: 0}.get(int(r[0]), r[0]), *r[1:])),
        ("swapped classes", "'red' as 'blue' (72 of 72), 'blue' as 'red' (72 of 72)"),
    ),
    "numbered from 1": (relabel(lambda r: ((r[0] + 1) % 3, *r[1:])), ("swapped classes", "'red' as 'blue'")),
    "forgotten": (relabel(first_large(lambda r: None), files=4), ("label likely missing", "4 detections")),
    "one class wrong": (relabel(first_large(lambda r: (1, *r[1:])), files=3), ("class likely wrong", "3 detections")),
    "one box wrong": (
        relabel(first_large(lambda r: (r[0], r[1] + 0.1, *r[2:])), files=3),
        ("box likely wrong", "3 detections"),
    ),
    "label of nothing": (
        more((0, GAP, 0.5, 0.11, 0.3), (0, GAP, 0.83, 0.11, 0.14)),
        ("label likely superfluous", "On 2"),
    ),
}


def test_a_model_that_agrees_with_the_labels_has_no_finding(healthy):
    report = examined(healthy, Scripted(healthy))
    assert report.findings == []
    facts = report.facts["model"]
    assert facts["mAP50"] == {"train": pytest.approx(0.995), "val": pytest.approx(0.995)}
    assert facts["by_class"]["green"]["found"] == 3 * VAL
    assert facts["by_size"]["small"]["objects"] == 3 * VAL
    assert facts["confusion"] == {name: {name: 3 * VAL} for name in NAMES}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_a_model_contradicts(name, root):
    plant, (finding, evidence) = LABELS[name]
    model = Scripted(root)
    plant(root)
    report = examined(root, model)
    assert names(report) - {"box beyond the border"} == {finding}
    assert evidence in named(report, finding).evidence
    assert named(report, finding).cases
    assert report.broken == (finding in {"shifted labels", "swapped classes"})


def test_labels_without_area_are_not_shifted(root):
    model = Scripted(root)
    relabel(lambda row: (*row[:3], 0, 0))(root)
    found = names(examined(root, model))
    assert "box without area" in found
    assert "shifted labels" not in found


def test_a_model_that_finds_points_says_nothing_of_labels(healthy):
    model = Scripted(healthy, lambda split, found: [(*row[:4], 0, 0) for row in found])
    assert names(examined(healthy, model)) == {"objects are not found"}


# ---- models


def of_val(change: Callable[[str, Found], Found]) -> Callable[[str, Found], Found]:
    return lambda split, found: change(split, found) if split == "val" else found


def each(change: Callable[[tuple[float, ...]], Found], *, rate: float = 1.0) -> Callable[[str, Found], Found]:
    """What to find in place of a share of the detections."""
    draw = np.random.default_rng(2)
    return lambda split, found: [new for row in found for new in (change(row) if draw.random() < rate else [row])]


def only(label: int, change: Callable[[tuple[float, ...]], Found]) -> Callable[[tuple[float, ...]], Found]:
    return lambda row: change(row) if row[1] == label else [row]


MODELS = {
    "missed classes": (each(only(1, lambda row: []), rate=0.8), {"missed sizes"}),
    "missed sizes": (each(lambda row: [] if row[4] < 0.15 else [row]), set()),
    "false alarms of classes": (
        each(only(0, lambda row: [row, (0.4, 0, GAP, row[3], 0.05, 0.1), (0.3, 0, GAP + 0.32, row[3], 0.05, 0.1)])),
        set(),
    ),
    "confused classes": (each(only(0, lambda row: [(0.45, 1, *row[2:])]), rate=0.3), set()),
    "duplicate detections": (each(lambda row: [row, (0.4, row[1], row[2] + 0.15 * row[4], *row[3:])], rate=0.3), set()),
    "badly placed boxes": (each(lambda row: [(0.4, *row[1:4], 0.6 * row[4], 0.6 * row[5])], rate=0.4), set()),
    "boxes larger than the objects": (each(lambda row: [(*row[:4], 1.06 * row[4], 1.06 * row[5])]), set()),
    "boxes smaller than the objects": (each(lambda row: [(*row[:4], 0.94 * row[4], 0.94 * row[5])]), set()),
    "objects are not found": (of_val(lambda _, found: [(0.4, 0, GAP, 0.5, 0.05, 0.1)]), {"gap between train and val"}),
    "gap between train and val": (of_val(each(lambda row: [], rate=0.3)), set()),
    "validation easier than training": (lambda split, found: found if split == "val" else found[::2], set()),
    "one threshold does not suit all classes": (
        each(lambda row: [row, (0.6, 0, GAP, row[3], 0.05, 0.1)] if row[1] == 0 else [(0.3, *row[1:])]),
        {"scores are no probabilities"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_fails_is_told_how(name, healthy):
    change, also = MODELS[name]
    report = examined(healthy, Scripted(healthy, change))
    assert name in names(report)
    assert names(report) <= {name} | also
    assert all(finding.evidence.endswith(".") and finding.remedy.endswith(".") for finding in report.findings)


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (lambda row: [row, (0.4, row[1], row[2] + 0.15 * row[4], *row[3:])], {"red": {"red": 3 * VAL}}),
        (lambda row: [(0.6, 1, *row[2:])], {"red": {"green": 3 * VAL}}),
        (lambda row: [], {"red": {"nothing": 3 * VAL}}),
        (lambda row: [row, (0.4, 2, GAP, row[3], 0.05, 0.1)], {"nothing": {"blue": 3 * VAL}, "red": {"red": 3 * VAL}}),
    ],
)
def test_confusion_counts_each_object_once(change, row, healthy):
    confusion = examined(healthy, Scripted(healthy, each(only(0, change)))).facts["model"]["confusion"]
    assert confusion == {name: {name: 3 * VAL} for name in NAMES[1:]} | row


def test_scores_that_promise_too_much(healthy):
    alarms = [(0.95, 0, GAP, y, 0.05, 0.05) for y in np.linspace(0.1, 0.9, 9)]
    report = examined(healthy, Scripted(healthy, of_val(lambda _, found: [*found, *alarms])))
    assert "scores are no probabilities" in names(report)
    assert sum(row["detections"] for row in report.facts["model"]["calibration"]) == 18 * VAL


@pytest.mark.parametrize(
    ("attribute", "value", "finding"),
    [
        ("trained_imgsz", 320, "other input size than in training"),
        ("names", ("green", "red", "blue"), "names in another order"),
        ("names", ("red", "green", "violet"), "other names than the model's"),
        ("names", (*NAMES, "white"), "other classes than the model's"),
        ("activations", {"model.0.conv": 1e5}, "overflow in float16"),
    ],
)
def test_a_checkpoint_that_does_not_fit(attribute, value, finding, healthy):
    model = Scripted(healthy)
    setattr(model, attribute, value)
    assert names(examined(healthy, model)) == {finding}


def test_classes_of_lists_of_different_lengths_are_compared_by_name(healthy):
    model = Scripted(healthy, lambda split, found: [(row[0], 3 - row[1], *row[2:]) for row in found])
    model.names = ("white", "blue", "green", "red")
    report = examined(healthy, model)
    assert names(report) == {"other classes than the model's"}
    assert report.facts["model"]["mAP50"]["val"] > 0.99


def test_outcomes_of_each_kind():
    corners = np.array([[0.0, 0.0, 0.4, 0.4], [0.6, 0.6, 1.0, 1.0], [0.0, 0.6, 0.4, 1.0]])
    classes = np.array([0, 1, 0])
    boxes = np.array(
        [
            [0.0, 0.0, 0.4, 0.4],  # on the first
            [0.0, 0.0, 0.4, 0.38],  # the same
            [0.6, 0.6, 1.0, 0.95],  # on the second, as another class
            [0.0, 0.6, 0.2, 0.8],  # a quarter of the third
            [0.5, 0.1, 0.6, 0.2],  # nothing
            [0.6, 0.6, 1.0, 1.0],  # on the second, with a score below the threshold
        ]
    )
    detections = Detections(boxes, np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.2]), np.array([0, 0, 0, 0, 0, 1]))
    found = outcomes(detections, corners, classes, 0.25)
    assert found.kinds == (Kind.hit, Kind.duplicate, Kind.wrong_class, Kind.misplaced, Kind.false_alarm)
    assert found.hits.tolist() == [True, False, False, False, False, True]
    assert found.found.tolist() == [True, False, False]
    assert found.missed.tolist() == [False, False, False]
    np.testing.assert_allclose(found.overlaps[:4], [1, 0.95, 0.875, 0.25])
    empty = outcomes(Detections(boxes[:0], np.empty(0), np.empty(0, np.intp)), corners, classes, 0.25)
    assert empty.missed.all()
    assert outcomes(detections, corners[:0], classes[:0], 0.25).kinds == (Kind.false_alarm,) * 5


# ---- hard cases


def collected(root: Path, folder: Path, model: Scripted, limit: int = 100) -> int:
    found = dataset.examine(describe(root / "data.yaml"), SETTINGS, model)
    return hard_cases.collect(found.samples, folder, NAMES, weights=model.name, conf=0.25, limit=limit)


def test_hard_cases_become_a_data_set_that_grows(root, tmp_path):
    folder = tmp_path / "hard"
    counter = iter(range(1000))

    def half_found(split: str, found: Found) -> Found:
        return found[: next(counter) % 9]

    model = Scripted(root, half_found)
    assert collected(root, folder, model, limit=3) == 3
    cases = json.loads((folder / "reasons.json").read_text())
    assert [case["severity"] for case in cases] == sorted((case["severity"] for case in cases), reverse=True)
    assert len(cases[0]["reasons"]) == cases[0]["severity"] == 9  # nothing was found in it
    assert cases[0]["reasons"][0] == {"kind": "missed", "class": "red", "box": cases[0]["reasons"][0]["box"]}
    assert Path(cases[0]["source"]).read_bytes() == (folder / "images" / cases[0]["image"]).read_bytes()

    corrected = (folder / "labels" / cases[0]["image"]).with_suffix(".txt")
    corrected.write_text("0 0.5 0.5 0.2 0.2\n")
    shutil.copy(cases[0]["source"], root / "images" / "val" / "copy.png")
    shutil.copy(root / "labels" / "val" / "00.txt", root / "labels" / "val" / "copy.txt")
    new = collected(root, folder, model)
    everything = json.loads((folder / "reasons.json").read_text())
    images = sorted(path.name for path in (folder / "images").iterdir())
    assert sorted(case["image"] for case in everything) == images
    assert len(images) == 3 + new == len(list((folder / "labels").iterdir()))
    assert corrected.read_text() == "0 0.5 0.5 0.2 0.2\n"
    described = (folder / "data.yaml").read_text() + "# mine\n"
    (folder / "data.yaml").write_text(described)
    assert collected(root, folder, model) == 0
    assert (folder / "data.yaml").read_text() == described
    assert check_det_dataset(str(folder / "data.yaml"))["names"] == dict(enumerate(NAMES))
    assert not examined(folder, Scripted(root)).broken


def test_hard_cases_are_not_mixed_with_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    YAML.save(tmp_path / "data.yaml", {"train": "images", "names": dict(enumerate(NAMES))})  # a data set of one's own
    with pytest.raises(ValueError, match=r"collect \(--collect\) must be a new folder .* holds other files; choose"):
        hard_cases.check(tmp_path, NAMES)
    (tmp_path / "reasons.json").write_text("[]")
    hard_cases.check(tmp_path, NAMES)
    YAML.save(tmp_path / "data.yaml", {"names": {0: "cat"}})
    with pytest.raises(ValueError, match="has cat; choose another one"):
        hard_cases.check(tmp_path, NAMES)
    YAML.save(tmp_path / "data.yaml", {"names": list(NAMES)})
    hard_cases.check(tmp_path, NAMES)


@pytest.mark.parametrize(
    ("file", "content"), [("data.yaml", "names: cat"), ("data.yaml", "names: {"), ("reasons.json", '[{"image": ')]
)
def test_hard_cases_that_cannot_be_read_are_refused(file, content, tmp_path):
    (tmp_path / "reasons.json").write_text("[]")
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=f"must be a folder of hard cases, and {tmp_path / file} cannot be read"):
        hard_cases.check(tmp_path, NAMES)


# ---- real networks


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a detector of random weights, after `change`."""
    folder = tmp_path_factory.mktemp("weights")

    def write(change: Callable[[Any], None] = lambda network: None) -> Path:
        model = YOLO("yolov8n.yaml")
        model.model = detector()
        model.model.task = "detect"
        change(model.model)
        model.save(folder / "model.pt")
        return folder / "model.pt"

    return write


def test_a_convolution_that_overflows_in_float16_is_found(checkpoint, healthy):
    image = read_image(healthy / "images" / "val" / "00.png")
    model = YOLO(checkpoint())
    sound = ExaminedModel(model, 64)
    block = model.model.model[2].cv1
    block.conv.weight.data *= 1e8
    block.bn.running_var *= 1e16  # so that what comes out of the normalisation stays the same
    broken = ExaminedModel(model, 64)
    for examined_model in (sound, broken):
        examined_model.find(image)
    assert max(sound.activations.values()) < 1e3
    assert [path for path, value in broken.activations.items() if value > 65504] == ["model.2.cv1.conv"]


def test_an_exported_model_is_no_checkpoint(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match=r"^weights \(--weights\) must be a checkpoint, got .*model\.onnx'"):
        ExaminedModel(YOLO(tmp_path / "model.onnx", task="detect"), 64)


def test_sizes_that_the_network_does_not_take_are_refused(checkpoint, healthy):
    with pytest.raises(ValueError, match=r"^imgsz must be multiples of the model's largest stride, 32, got 100\.$"):
        ExaminedModel(YOLO(checkpoint()), 100)
    arguments = ["doctor", "--weights", str(checkpoint()), "--data", str(healthy / "data.yaml"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--deployed", __file__, "--imgsz", "100"])
    assert result.exit_code == 1
    assert "imgsz must be multiples" in result.stderr  # and nothing was compared


def test_weights_that_are_not_finite_are_named(checkpoint):
    def spoil(network: Any) -> None:
        network.model[4].cv1.conv.weight.data[0, 0] = torch.nan

    assert ExaminedModel(YOLO(checkpoint(spoil)), 64).not_finite() == ["model.4.cv1.conv.weight"]
    assert ExaminedModel(YOLO(checkpoint()), 64).not_finite() == []


def test_wrong_normalisation_in_deployment_is_found(checkpoint, root, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxslim")
    from fastyolo.export import export

    weights = checkpoint()
    file = export(weights, outputs="boxes", imgsz=64, path=tmp_path / "model.onnx")
    arguments = ["doctor", "--weights", str(weights), "--deployed", str(file)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    model = onnx.load(file)
    mean, deviation = (np.full((1, 3, 1, 1), value, np.float32) for value in (0.45, 0.225))
    for name, value in (("mean", mean), ("deviation", deviation)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    next(node for node in model.graph.node if node.op_type == "Conv").input[0] = "normalised"
    nodes = [
        onnx.helper.make_node("Sub", ["images", "mean"], ["centred"], "/Sub"),
        onnx.helper.make_node("Div", ["centred", "deviation"], ["normalised"], "/Div"),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    onnx.save(model, file)
    result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "report.json")])
    assert result.exit_code == 1, result.output
    (finding,) = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert finding["name"] == "deployment: normalisation"
    assert "are multiplied by 4.444" in finding["remedy"]


def test_deployment_is_compared_at_the_thresholds_asked_for(checkpoint, monkeypatch):
    asked: dict[str, Any] = {}

    def record(*_: Any, **settings: Any) -> None:
        asked.update(settings)
        raise IncomparableError

    monkeypatch.setattr(deployment, "verify", record)
    arguments = ["doctor", "--weights", str(checkpoint()), "--deployed", __file__, "--conf", "0", "--iou", "0.4"]
    CliRunner().invoke(app, arguments)
    assert (asked["conf"], asked["iou"]) == (0, 0.4)


def test_command_needs_what_belongs_together(checkpoint, root, tmp_path):
    weights, data = str(checkpoint()), str(root / "data.yaml")
    for arguments in (
        ["--weights", weights],
        ["--deployed", weights],
        ["--data", data, "--collect", str(tmp_path / "hard")],
    ):
        assert CliRunner().invoke(app, ["doctor", *arguments]).exit_code == 2


@pytest.fixture
def street(data: Path, tmp_path: Path) -> Path:
    """A few photographs."""
    source = data / "coco128-val"
    labels = sorted((source / "labels").rglob("*.txt"))
    for kind in ("images", "labels"):
        (tmp_path / "street" / kind).mkdir(parents=True)
    for file in labels[:32]:
        (image,) = (source / "images").rglob(f"{file.stem}.jpg")
        shutil.copyfile(image, tmp_path / "street" / "images" / image.name)
        shutil.copyfile(file, tmp_path / "street" / "labels" / file.name)
    names = YAML.load(source / "data.yaml")["names"]
    YAML.save(tmp_path / "street" / "data.yaml", {"train": "images", "val": "images", "names": names})
    return tmp_path / "street"


@pytest.mark.data
def test_a_trained_model_contradicts_wrong_labels(street, data, tmp_path):
    def findings(*arguments: str) -> dict[str, dict[str, Any]]:
        settings = ["--weights", str(data / "weights" / "yolov8n-recovered.pt"), "--imgsz", "320", "--device", "cpu"]
        settings += ["--data", str(street / "data.yaml"), "--json", str(tmp_path / "report.json")]
        assert CliRunner().invoke(app, ["doctor", *settings, *arguments]).exit_code in (0, 1)
        return {f["name"]: f for f in json.loads((tmp_path / "report.json").read_text())["findings"]}

    sound = findings("--collect", str(tmp_path / "hard"), "--save-dir", str(tmp_path / "worst"))
    assert not {"shifted labels", "swapped classes", "objects are not found", "overflow in float16"} & set(sound)
    assert "missed sizes" in sound
    with Image.open(next((tmp_path / "worst" / "missed-sizes").iterdir())) as picture:
        assert max(picture.size) <= 960
    assert len(json.loads((tmp_path / "hard" / "reasons.json").read_text())) > 10

    before = {file: read_labels(file) for file in (street / "labels").iterdir()}
    for file, rows in before.items():
        write_labels(file, [(label, x + w / 2, y + h / 2, w, h) for label, x, y, w, h in rows])
    assert "centre" in findings()["shifted labels"]["remedy"]
    for file, rows in before.items():
        write_labels(file, [({0: 2, 2: 0}.get(int(label), label), *box) for label, *box in rows])
    assert "'car' as 'person'" in findings()["swapped classes"]["evidence"]
