# SPDX-License-Identifier: AGPL-3.0-or-later
"""The log of accuracies over versions, and its plot."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("ultralytics")

from detectors import detector
from matplotlib.figure import Figure
from shapes import write_shapes
from ultralytics import YOLO

from fastyolo.cli import app
from fastyolo.diagnose import history

pytestmark = pytest.mark.usefixtures("one_thread")


def result(name: str, value: float, fingerprint: str = "a", imgsz: int = 320) -> dict[str, Any]:
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "weights": {"name": name, "sha256": "0"},
        "data": {"name": "shapes.yaml", "split": "val", "fingerprint": fingerprint},
        "settings": {"imgsz": imgsz},
        "metrics": {"mAP50-95": value, "mAP50": value + 0.1},
    }


def test_results_are_appended(tmp_path):
    log = tmp_path / "deep" / "log.jsonl"
    for value in (0.1, 0.2):
        history.append(log, result("a.pt", value))
    assert [entry["metrics"]["mAP50-95"] for entry in history.read(log)] == [0.1, 0.2]
    assert log.read_text().endswith("}\n")


BROKEN = ('{"date": "2026-', "[1, 2]", "null", '{"date": 3}', json.dumps(result("a.pt", 0.1) | {"metrics": {}}))


@pytest.mark.parametrize("broken", BROKEN)
def test_a_line_that_a_kill_cut_short_is_passed_over(broken, tmp_path):
    log = tmp_path / "log.jsonl"
    history.append(log, result("a.pt", 0.1))
    with log.open("a") as file:
        file.write(broken)
    history.append(log, result("b.pt", 0.2))
    with pytest.warns(UserWarning, match="no results and are passed over, first line 2"):
        entries = history.read(log)
    assert [entry["weights"]["name"] for entry in entries] == ["a.pt", "b.pt"]


def test_only_results_of_the_same_data_and_settings_are_compared():
    first = result("a.pt", 0.1)
    entries = [result("z.pt", 0.1), first, result("b.pt", 0.2, "b")]
    assert history.comparable(entries, result("c.pt", 0.3)) is first
    assert history.comparable([first], result("b.pt", 0.2, "b")) is None
    assert history.comparable([first], result("b.pt", 0.2, imgsz=640)) is None


def test_a_model_is_known_by_its_content(tmp_path):
    folder = tmp_path / "model_openvino_model"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"1")

    def digest(weights: Path) -> str:
        return history.entry(weights, {}, {}, {}, {})["weights"]["sha256"]

    assert digest(folder / "model.bin") == hashlib.sha256(b"1").hexdigest()
    found = {digest(folder)}
    (folder / "model.xml").write_bytes(b"2")
    found.add(digest(folder))
    (folder / "model.xml").rename(folder / "other.xml")
    found.add(digest(folder))
    assert len(found) == 3


def test_a_file_of_something_else_is_no_log(tmp_path):
    log = tmp_path / "log.jsonl"
    history.check(log)
    log.write_text("names: [cat]\n")
    with pytest.raises(ValueError, match=r"^history \(--history\) must be .* something else; name another one\.$"):
        history.check(log)
    history.append(log, result("a.pt", 0.1))
    history.check(log)


@pytest.mark.parametrize(
    ("file", "name"),
    [("yolov8n.pt", "yolov8n.pt"), ("runs/small/weights/best.pt", "small"), ("weights/best.pt", "best.pt")],
)
def test_the_weights_of_a_run_are_named_by_it(file, name):
    assert history.short_name(result(file, 0.1)) == name


def test_only_results_of_the_same_data_are_joined_by_a_line(tmp_path, monkeypatch):
    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k)))
    entries = [result("a.pt", 0.1), result("b.pt", 0.2, "b"), result("c.pt", 0.3), result("d.pt", 0.4, "b", 640)]
    for suffix, magic in ((".svg", b"<?xml"), (".png", b"\x89PNG")):
        history.draw(entries, tmp_path / f"plot{suffix}")
        assert (tmp_path / f"plot{suffix}").read_bytes().startswith(magic)
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in figures[0].axes[0].lines]
    assert [x for x, _ in lines[::2]] == [[0, 2], [1], [3]]
    assert lines[0][1] == [0.1, 0.3]
    assert lines[1][1] == pytest.approx([0.2, 0.4])


def test_val_keeps_a_log(tmp_path):
    data = write_shapes(tmp_path, train=4)
    weights = tmp_path / "model.pt"
    model = YOLO("yolov8n.yaml")
    model.model = detector()
    model.model.task = "detect"
    model.save(weights)
    log, plot = tmp_path / "log.jsonl", tmp_path / "plot.svg"
    arguments = ["val", "--data", str(data), "--weights", str(weights), "--imgsz", "64", "--device", "cpu"]
    arguments += ["--history", str(log), "--history-plot", str(plot)]

    def run(*more: str) -> str:
        done = CliRunner().invoke(app, [*arguments, *more])
        assert done.exit_code == 0, done.output
        return done.output

    assert "against" not in run()
    assert "+0.0000 against" in run()
    assert "against" not in run("--no-rect")
    (labels, *_) = sorted(Path(tmp_path).rglob("labels/val/*.txt"))
    labels.write_text("0 0.5 0.5 0.2 0.2\n")
    assert "against" not in run()
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    prints = [entry["data"]["fingerprint"] for entry in entries]
    assert prints[0] == prints[1] == prints[2] != prints[3]
    assert entries[0]["weights"]["name"] == str(weights)
    assert set(entries[0]["metrics"]) == {"mAP50-95", "mAP50", "precision", "recall"}
    assert entries[0]["AP50-95"].keys() <= set(model.names.values())
    assert plot.stat().st_size > 1000


def test_a_plot_needs_a_log_and_a_known_kind_of_file(tmp_path):
    for arguments in (["--history-plot", "plot.svg"], ["--history", "log", "--history-plot", "plot.bmp"]):
        done = CliRunner().invoke(app, ["val", "--data", "data.yaml", *arguments])
        assert done.exit_code == 2
