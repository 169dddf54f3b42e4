# SPDX-License-Identifier: AGPL-3.0-or-later
"""The report of compress says what its summary says, whatever is missing and whatever things are called."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("onnxruntime")
pytest.importorskip("ultralytics")

from detectors import NAMES, detector
from shapes import write_shapes
from typer.testing import CliRunner
from ultralytics import YOLO

from fastyolo.bench.environment import environment
from fastyolo.cli.compress import compress
from fastyolo.compress import pipeline, report
from fastyolo.compress.pipeline.settings import epochs_of
from fastyolo.compress.pipeline.summary import Accuracy, Data, File, Latency, Stage, Summary, Target, Verification
from fastyolo.compress.report import charts, command, examples, words
from fastyolo.export import export
from fastyolo.runtime import Detector

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
SETTINGS: dict[str, Any] = {
    "weights": None,
    "model": "yolov8s.pt",
    "light": "yolov8s-fast.yaml",
    "skip": [],
    "epochs": {"baseline": 100, "light": 100, "distilled": 100, "pruned": 30, "int8": 10},
    "flops": 0.3,
    "target_latency": 20.0,
    "target_size": None,
    "runtime": "onnxruntime",
    "int8": "qat",
    "formats": [],
    "imgsz": 640,
    "training": {},
}


class Page(HTMLParser):
    """What a reader, and who looks at the source, would find.

    Attributes:
        text: of the body.
        tags: each start tag with its attributes.
        tables: by caption, the texts of the cells of each row.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open.pop() != tag:  # <meta> has no end
            pass
        if tag == "table":
            self.tables[self._caption] = [[" ".join(cell.split()) for cell in row] for row in self._rows]

    def handle_data(self, data: str) -> None:
        if "body" in self._open:
            self.text += data
        if {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data
        elif "caption" in self._open:
            self._caption += data.strip()

    def row(self, table: str, name: str) -> list[str]:
        """The cells beside the one that begins with `name`."""
        rows = next(rows for caption, rows in self.tables.items() if caption.startswith(table))
        (row,) = [row for row in rows if row[0].startswith(name)]
        return row[1:]


def file(path: str, megabytes: float, milliseconds: float, map50: float, map50_95: float, **changes: Any) -> File:
    by_class = {"red": map50_95 + 0.1, "green": map50_95, "blue": map50_95 - 0.1}
    made = File(
        path,
        "onnx",
        "float32",
        int(megabytes * 1e6),
        "ab" * 32,
        "for ONNX Runtime",
        False,
        {"onnxruntime": Latency(milliseconds, 1.5 * milliseconds, 50)},
        Accuracy(map50, map50_95, by_class),
        Verification("agrees", "onnxruntime", ""),
    )
    return replace(made, **changes)


BASELINE = Stage(
    "baseline",
    "baseline",
    "done",
    "",
    4000.0,
    100,
    "baseline/run/weights/best.pt",
    ("baseline/run",),
    11_136_374,
    28_600_000_000,
    (file("models/baseline.onnx", 44.7, 48.2, 0.923, 0.608),),
)
LIGHT = Stage("light", "light model", "skipped", "By request.")
PRUNED = Stage(
    "pruned",
    "+ pruning",
    "done",
    "30.2% of the FLOPs removed.",
    75.4,
    30,
    "pruned/pruned.pt",
    ("pruned/run",),
    2_900_000,
    7_300_000_000,
    (file("models/pruned.onnx", 11.6, 18.0, 0.928, 0.612, ships=True),),
)
INT8 = Stage(
    "int8",
    "+ INT8",
    "done",
    "",
    60.0,
    10,
    "int8/run/weights/best.pt",
    (),
    2_900_000,
    7_300_000_000,
    (file("models/int8.onnx", 2.98, 14.0, 0.912, 0.589, ships=True, precision="int8"),),
)


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    data = Data("pcb", "pcb.yaml", NAMES, 1000, 500, 6000, 3000, "0f" * 16, ())
    target = Target("latency", "ms", 20.0, 14.0, True, "Of models/int8.onnx in onnxruntime.")
    return Summary(data, SETTINGS, (BASELINE, LIGHT, PRUNED, INT8), (target,), 2, environment())


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Summary], Page]:
    def write(summary: Summary) -> Page:
        report.write(summary, tmp_path / "report.html")
        return Page(tmp_path / "report.html")

    return write


def test_figures_are_those_of_the_summary(summary, written):
    page = written(summary)
    table = "Below each figure"
    assert page.row(table, "baseline") == ["11.1", "28.6", "44.7", "48.2", "0.923", "0.608"]
    assert page.row(table, "light model skipped") == ["-"] * 6
    minus = "\N{MINUS SIGN}"
    gains = [f"2.90 {minus}74 %", f"7.30 {minus}74 %", f"2.98 {minus}93 %", f"14.0 {minus}71 %"]
    assert page.row(table, "+ INT8") == [*gains, f"0.912 {minus}0.011", f"0.589 {minus}0.019"]
    assert page.row(table, "+ pruning")[-2:] == ["0.928 +0.005", "0.612 +0.004"]
    assert page.row("Paths begin", "models/int8.onnx") == [
        "2.98",
        "14.0 p90 21.0",
        "0.912",
        "0.589",
        "agrees in onnxruntime",
    ]
    assert page.row("Models on the way", "models/baseline.onnx")[0] == "44.7"
    assert page.row("The stages, in order", "+ pruning") == [
        "done", "30", "1 min 15 s", "pruned/pruned.pt", "30.2% of the FLOPs removed."
    ]  # fmt: skip
    assert page.row("AP50-95", "blue") == ["0.508", "0.489", "-0.019"]
    assert "ab" * 32 in page.text
    assert "0f" * 16 in page.text


def test_words_say_what_was_reached(summary, written):
    page = " ".join(written(summary).text.split())
    assert "has 74 % fewer parameters, needs 74 % fewer FLOPs and takes 93 % fewer bytes than the baseline" in page
    assert "It is 3.4 times as fast in ONNX Runtime as the baseline." in page
    assert "Its mAP50 on the validation images is 0.912 (0.011 lower), its mAP50-95 0.589 (0.019 lower)." in page
    assert "OK. The target latency of 20 ms is met, with 14 ms. Of models/int8.onnx in onnxruntime." in page
    assert "OK. Every file to ship computes what its checkpoint computes." in page
    assert "Problem." not in page


def test_what_is_the_same_is_no_gain(summary):
    same = replace(BASELINE, name="int8", title="+ INT8")
    summary = replace(summary, stages=(BASELINE, same))
    gains = [quantity.gain(same, summary) for quantity in words.quantities(summary)]
    assert {gain.good for gain in gains} == {None}
    assert words.result(summary) == (
        "It is 1.0 times as fast in ONNX Runtime as the baseline. Its mAP50 on the validation images is 0.923 "
        "(the same), its mAP50-95 0.608 (the same)."
    )
    assert words.quantities(summary)[0].gain(BASELINE, summary) is None


def test_what_costs_less_or_finds_more_is_good(summary):
    goods = [quantity.gain(INT8, summary).good for quantity in words.quantities(summary)]
    assert goods == [True, True, True, True, False, False]


def test_problems_are_told(summary, written):
    target = Target("size", "MB", 2.5, 2.98, False, "Pruning came to 2.9 MB.")
    departing = Verification("departs", "onnxruntime", "Departs in boxes.")
    failed = Stage("light", "light model", "failed", "Out of memory.")
    int8 = replace(INT8, files=(replace(INT8.files[0], verification=departing),))
    summary = replace(summary, stages=(BASELINE, failed, PRUNED, int8), targets=(target,))
    page = written(summary)
    assert len(summary.problems) == 3
    assert page.text.count("Problem.") == 3
    assert "OK." not in page.text
    assert summary.problems[-1].endswith("Departs in boxes. Its mAP50-95 is 0.589, that of models/pruned.onnx 0.612.")
    for sentence in summary.problems:
        assert sentence in " ".join(page.text.split())
    assert page.row("Paths begin", "models/int8.onnx")[-1] == "departs in onnxruntime: Departs in boxes."


def test_files_that_were_not_compared_are_named(summary, written):
    int8 = replace(INT8, files=(replace(INT8.files[0], verification=None),))
    page = written(replace(summary, stages=(BASELINE, PRUNED, int8), targets=()))
    assert (page.text.count("Problem."), page.text.count("Note."), page.text.count("OK.")) == (0, 1, 0)
    assert "was not found out for models/int8.onnx." in page.text
    assert page.row("Paths begin", "models/int8.onnx")[-1] == "not compared"


def test_without_a_baseline_nothing_is_compared(summary, written):
    without = replace(BASELINE, status="skipped", checkpoint=None, runs=(), parameters=None, flops=None, files=())
    page = written(replace(summary, stages=(without, PRUNED, INT8)))
    assert "There is nothing to compare the last model (+ INT8) with." in page.text
    assert page.row("Below each figure", "+ INT8") == ["2.90", "7.30", "2.98", "14.0", "0.912", "0.589"]
    assert not any(caption.startswith("AP50-95") for caption in page.tables)


def test_a_baseline_alone_has_a_report(summary, written):
    failed = Stage("light", "light model", "failed", "Out of memory.")
    page = written(replace(summary, stages=(BASELINE, failed), targets=()))
    assert "There is nothing to compare the last model (baseline) with." in page.text


def test_what_was_not_measured_is_not_invented(summary, written):
    bare = replace(PRUNED, files=(replace(PRUNED.files[0], latency={}, accuracy=None),))
    page = written(replace(summary, stages=(BASELINE, bare)))
    assert page.row("Below each figure", "+ pruning")[-3:] == ["-"] * 3
    assert "times as fast" not in page.text
    assert page.row("Paths begin", "models/pruned.onnx")[1:4] == ["-"] * 3


def test_the_page_needs_nothing_else(summary, written):
    page = written(summary)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("href", "src")]
    assert all(link.startswith(("data:", "#")) for link in links)
    css = (Path(report.__file__).parent / "report.css").read_text()
    assert "url(" not in css
    assert "@import" not in css


def test_hostile_names_are_text(summary, written):
    name = "<script>alert(1)</script>"
    hostile = '"><img src=x onerror=alert(1)>{{ summary }}'
    by_class = {name: 0.5}
    stages = tuple(
        replace(
            stage,
            title=f"{stage.title}{hostile}",
            files=(replace(stage.files[0], accuracy=Accuracy(0.9, 0.5, by_class)),),
        )
        for stage in (BASELINE, INT8)
    )
    data = replace(summary.data, name=hostile, path=hostile, classes=(name,))
    page = written(replace(summary, data=data, stages=stages))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count(hostile) > 4
    assert page.row("AP50-95", name) == ["0.500", "0.500", "+0.000"]


def write_history(folder: Path, rows: list[str]) -> None:
    folder.mkdir(parents=True)
    head = "epoch,train/box_loss,train/cls_loss,train/dfl_loss,train/kd_cls,val/box_loss,val/cls_loss,val/dfl_loss"
    lines = [f"{head},metrics/mAP50(B),metrics/mAP50-95(B)", *rows]
    (folder / "results.csv").write_text("\n".join(lines) + "\n")


def test_curves_are_those_of_the_trainings(summary, written, tmp_path):
    write_history(tmp_path / "baseline" / "run", ["1,3,2,1,9,4,2,1,0.2,0.1", "2,2,1,1,9,nan,1,1,0.4,0.2"])
    write_history(tmp_path / "sparse" / "run", ["1,2,1,1,9,3,1,1,0.6,0.4"])
    write_history(tmp_path / "pruned" / "run", ["1,2,1,1,9,3,1,1,0.8,0.5"])
    stages = [
        replace(stage, runs=("sparse/run", *stage.runs)) if stage.name == "pruned" else stage
        for stage in summary.stages
    ]
    summary = replace(summary, stages=tuple(stages))
    map50, _, loss = charts.training(summary, tmp_path)
    assert [line.name for line in map50.lines] == ["baseline", "+ pruning"]
    baseline, pruned = (np.array(line.points) for line in map50.lines)
    assert (len(baseline), len(pruned)) == (2, 2)
    ticks = {float(tick.text): tick.position for tick in map50.y_ticks}
    scale = (ticks[0.8] - ticks[0.0]) / 0.8
    np.testing.assert_allclose(baseline[:, 1], ticks[0.0] + scale * np.array([0.2, 0.4]))
    np.testing.assert_allclose(pruned[:, 1], ticks[0.0] + scale * np.array([0.6, 0.8]))
    steps = np.diff([*baseline[:, 0], *pruned[:, 0]])
    np.testing.assert_allclose(steps, steps[0])
    assert [(line.name, line.dashed, len(line.points)) for line in loss.lines] == [
        ("baseline", False, 2),
        ("+ pruning", False, 2),
        ("baseline", True, 1),
        ("+ pruning", True, 2),
    ]
    assert "baseline: 4 at 2; + pruning: 4 at 4; baseline: 7 at 1; + pruning: 5 at 4." in loss.description
    assert [tag for tag, _ in written(summary).tags].count("polyline") == 8 + 3


def test_points_stand_at_their_latency_and_accuracy(summary):
    (chart,) = charts.trade_offs(summary)
    points = {line.name: line.points[0] for line in chart.lines}
    assert points["+ INT8"][0] < points["+ pruning"][0] < points["baseline"][0]
    assert points["+ pruning"][1] < points["baseline"][1] < points["+ INT8"][1]  # downwards
    labels = sorted(line.label.y for line in chart.lines)
    assert np.diff(labels).min() >= 14
    for x, y in points.values():
        assert charts.LEFT <= x <= charts.RIGHT
        assert charts.TOP <= y <= charts.BOTTOM


def test_labels_of_equal_points_stay_apart_and_in_the_chart(summary):
    stages = tuple(replace(BASELINE, title=str(number)) for number in range(5))
    (chart,) = charts.trade_offs(replace(summary, stages=stages))
    labels = sorted(line.label.y for line in chart.lines)
    assert np.diff(labels).min() >= 14
    assert labels[0] >= charts.TOP
    assert labels[-1] <= charts.BOTTOM


def test_a_name_covers_no_other_point():
    near, beside, far = (charts.Line(index, "a name", ((x, 100.0),)) for index, x in enumerate((130.0, 160.0, 300.0)))
    anchors = {line.points[0][0]: line.label.anchor for line in charts._labelled([near, far])}
    assert anchors == {130.0: "start", 300.0: "end"}
    anchors = {line.points[0][0]: line.label.anchor for line in charts._labelled([near, beside])}
    assert anchors == {130.0: "end", 160.0: "start"}


def test_pictures_show_labels_and_what_the_files_find(summary, written, tmp_path):
    data = write_shapes(tmp_path / "shapes", train=1, val=2, size=SIZE)
    model = YOLO("yolov8n.yaml")
    model.model = detector()
    model.model.task = "detect"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "SCORE", 0.0005)  # what random weights exceed in places
        for name in ("baseline", "pruned"):
            export(model, imgsz=SIZE, path=tmp_path / "models" / f"{name}.onnx")
        files = [str(path) for path in sorted((tmp_path / "shapes" / "images" / "val").iterdir())]
        there = replace(summary.data, path=str(data), examples=(*files, "gone.png"))
        page = written(replace(summary, data=there, stages=(BASELINE, PRUNED)))
        found = Detector(tmp_path / "models" / "baseline.onnx", conf=examples.SCORE)(cv2.imread(files[0]))
    # The surest is on top of the others, so it comes last.
    labelled = (tmp_path / "shapes" / "labels" / "val" / "000.txt").read_text().splitlines()
    boxes = [attributes for tag, attributes in page.tags if tag == "rect"]
    _, x, y, width, height = map(float, labelled[-1].split())
    values = [SIZE * value for value in (x - width / 2, y - height / 2, width, height)]
    assert [float(boxes[0][name]) for name in ("x", "y", "width", "height")] == pytest.approx(values, abs=1e-4)
    left, top, right, bottom = found.boxes[0]
    drawn = [float(boxes[len(labelled) + len(found.boxes) - 1][name]) for name in ("x", "y", "width", "height")]
    assert drawn == pytest.approx([left, top, right - left, bottom - top], abs=1e-4)
    pictures = [attributes for tag, attributes in page.tags if tag == "image"]
    assert len(pictures) == 2
    content = base64.b64decode(pictures[0]["href"].removeprefix("data:image/jpeg;base64,"))
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(decoded.astype(int) - cv2.imread(files[0])).mean() < 20
    uses = [attributes["href"] for tag, attributes in page.tags if tag == "use"]
    assert uses == [f"#{picture['id']}" for picture in pictures for _ in range(2)]
    assert "gone.png: there is no picture." in page.text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"skip": ["pruned", "verify"], "formats": ["openvino"], "epochs": {"baseline": 7, "light": 7, "distilled": 7}},
        {"weights": "my best.pt", "epochs": {"light": 3, "distilled": 3, "pruned": 1, "int8": 1}, "int8": "ptq"},
        {"training": {"lr0": 0.01, "amp": "bf16", "plots": False, "class_weights": [1.0, 2.0]}, "target_size": 2.5},
        {"epochs": epochs_of(list(SETTINGS["epochs"]), None, 20)},
        {"epochs": {}, "weights": "a.pt", "skip": ["light", "distilled", "pruned"]},
        {"epochs": {}, "weights": "a.pt", "skip": ["light", "distilled"], "light": None},
    ],
)
def test_the_command_repeats_the_run(changes, summary, tmp_path, monkeypatch):
    settings = {**SETTINGS, **changes}
    asked: dict[str, Any] = {}

    def record(data: str, **arguments: Any) -> None:
        asked.update(arguments, data=data)
        raise typer.Exit

    monkeypatch.setattr(pipeline, "compress", record)
    monkeypatch.chdir(tmp_path)
    line = command.repeat(replace(summary, settings=settings))
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command()(compress)
    assert CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False).exit_code == 0
    assert asked["data"] == "pcb.yaml"
    assert asked["threads"] == 2
    stages = list(settings["epochs"])
    assert epochs_of(stages, asked["epochs"], asked["max_epochs"]) == settings["epochs"]
    for name, value in settings.items():
        if name != "epochs":
            assert asked[name] == value, name
