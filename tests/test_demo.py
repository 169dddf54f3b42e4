# SPDX-License-Identifier: AGPL-3.0-or-later
"""The data set of the demo: always the same, whole or not there, and nothing that the doctor would complain about."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("ultralytics")

from fastyolo.cli import app as fastyolo_app
from fastyolo.cli.demo import demo
from fastyolo.compress import pipeline
from fastyolo.demo import shapes
from fastyolo.integrations.ultralytics import runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.write(tmp_path_factory.mktemp("demo") / "shapes")


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(demo)
    return app


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_doctor_has_nothing_to_say(data, tmp_path):
    arguments = ["doctor", "--data", str(data), "--imgsz", str(shapes.SIZE), "--json", str(tmp_path / "doctor.json")]
    result = CliRunner().invoke(fastyolo_app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert report["findings"] == []
    assert report["facts"]["images"] == shapes.IMAGES
    assert report["facts"]["classes"] == list(shapes.NAMES)


def test_the_same_files_come_out(data, tmp_path):
    again = shapes.write(tmp_path / "shapes")
    assert contents(again.parent) == contents(data.parent)
    assert len(contents(data.parent)) == 1 + 2 * sum(shapes.IMAGES.values())


def test_images_differ_between_and_within_the_splits(data):
    images = [content for name, content in contents(data.parent).items() if name.endswith(".png")]
    assert len(set(images)) == len(images)


def test_it_is_written_once(data, monkeypatch):
    monkeypatch.setattr(shapes, "_write_split", None)
    assert shapes.write(data.parent) == data


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shapes.write(tmp_path / "shapes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mine.txt", "data.yaml"])
def test_another_folder_is_not_touched(name, tmp_path):
    (tmp_path / name).write_text("train: mine")
    with pytest.raises(FileExistsError, match="holds something else"):
        shapes.write(tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "train: mine")]


def drawn(seed: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Class, corners and the pixels that change when a shape is drawn."""
    random = np.random.default_rng(seed)
    for label, corners in shapes._shapes(random):
        image = np.full((shapes.SIZE, shapes.SIZE, 3), 128, np.uint8)
        before = image.copy()
        shapes._draw(image, corners, random)
        change = np.abs(image.astype(int) - before).max(2)
        yield label, corners, change > change.max() / 2  # half covered at least


def test_boxes_are_those_of_the_pixels():
    """OpenCV's smooth edges reach half a pixel beyond an outline: as far on one side as on the other."""
    margins = []
    for seed in range(20):
        for _, corners, changed in drawn(seed):
            rows, columns = np.nonzero(changed)
            before = corners.min(0) - (columns.min(), rows.min())
            after = np.array([columns.max() + 1, rows.max() + 1]) - corners.max(0)
            margins.append((before, after))
    assert np.abs(margins).max() < 1.5
    before, after = np.mean(margins, 0)
    np.testing.assert_allclose(before, after, atol=0.1)


def test_shapes_do_not_touch():
    for seed in range(20):
        boxes = [(*corners.min(0), *corners.max(0)) for _, corners, _ in drawn(seed)]
        for index, (left, top, right, bottom) in enumerate(boxes):
            assert min(left, top) >= 0
            assert max(right, bottom) <= shapes.SIZE
            for other in boxes[:index]:
                assert left >= other[2] or other[0] >= right or top >= other[3] or other[1] >= bottom


def test_every_class_has_an_outline_of_its_own():
    """Their areas, as shares of the circle around, are far apart."""
    areas = {
        label: changed.sum() / np.ptp(corners, 0).prod() for seed in range(9) for label, corners, changed in drawn(seed)
    }
    assert len(areas) == len(shapes.NAMES)
    assert np.diff(sorted(areas.values())).min() > 0.05


def test_the_command_compresses_it(app, tmp_path, monkeypatch):
    asked: dict[str, Any] = {}

    def record(data: str, **arguments: Any) -> None:
        asked.update(arguments, data=data)
        raise typer.Exit

    monkeypatch.setattr(pipeline, "compress", record)
    result = CliRunner().invoke(app, ["--save-dir", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    assert Path(asked["data"]) == tmp_path / "demo" / "shapes" / "data.yaml"
    assert asked["save_dir"] == tmp_path / "demo" / "compress"
    assert not asked["skip"]
    assert asked["imgsz"] == shapes.SIZE
    assert asked["model"].endswith(".yaml")  # nothing to download
    assert asked["training"]["nbs"] == asked["training"]["batch"]
    assert not pipeline.TAKEN & set(asked["training"])
    runs.check_names(asked["training"])
    runs.check_values(asked["training"])


def test_a_foreign_folder_is_refused_in_a_sentence(app, tmp_path):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "mine.txt").write_text("mine")
    result = CliRunner().invoke(app, ["--save-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "choose another folder" in result.stderr
