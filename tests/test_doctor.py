# SPDX-License-Identifier: AGPL-3.0-or-later
"""Planted faults: each is found by its name, and nothing else is."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import HEIGHT, WIDTH, Row, scene, write_data_set
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("ultralytics")

from ultralytics.utils import YAML
from ultralytics.utils.tal import TaskAlignedAssigner, make_anchors

from fastyolo.cli import app
from fastyolo.diagnose.doctor import dataset, images, pictures, run
from fastyolo.diagnose.doctor.anchors import candidates
from fastyolo.diagnose.doctor.duplicates import similar
from fastyolo.diagnose.doctor.findings import Report
from fastyolo.diagnose.doctor.samples import Settings
from fastyolo.integrations.ultralytics.doctor import describe
from fastyolo.train import LossReport, LossTerm
from fastyolo.train.report import Coverage, Positives

TRAIN, VAL = 30, 12
SETTINGS = Settings(imgsz=160, min_objects=20)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("healthy")
    draw = np.random.default_rng(0)

    def objects() -> list[Row]:
        left = draw.uniform(0.2, 0.25, 2)
        return [(0, left[0], 0.4, 0.3, 0.5), (1, left[1] + 0.5, 0.5, 0.25, 0.45)]

    write_data_set(root, {"train": TRAIN, "val": VAL}, objects, ("nut", "bolt"), ".jpg")
    return root


@pytest.fixture
def root(healthy: Path, tmp_path: Path) -> Path:
    """A copy to plant faults in."""
    return Path(shutil.copytree(healthy, tmp_path / "data"))


def examined(root: Path, settings: Settings = SETTINGS) -> Report:
    return dataset.examine(describe(root / "data.yaml"), settings).report


def names(report: Report) -> set[str]:
    return {finding.name for finding in report.findings}


def image(root: Path, index: int = 0, split: str = "train") -> Path:
    return root / "images" / split / f"{index:02}.jpg"


def labels(root: Path, index: int = 0, split: str = "train") -> Path:
    return root / "labels" / split / f"{index:02}.txt"


def add(*lines: str) -> Callable[[Path], None]:
    """Lines at the end of a label file."""

    def plant(root: Path) -> None:
        labels(root).write_text(labels(root).read_text() + "\n".join(lines) + "\n")

    return plant


def describe_as(**changes: object) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        YAML.save(root / "data.yaml", {**YAML.load(root / "data.yaml"), **changes})

    return plant


def save(picture: Image.Image, form: str = "JPEG", **options: object) -> Callable[[Path], None]:
    """Another image in place of the first one."""

    def plant(root: Path) -> None:
        picture.save(image(root), form, **options)

    return plant


def exif_rotation(root: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    scene(1, HEIGHT, WIDTH).save(image(root), exif=exif)


def truncated(root: Path) -> None:
    image(root).write_bytes(image(root).read_bytes()[:-600])


def reencoded(split: str) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        with Image.open(image(root)) as picture:
            picture.resize((WIDTH * 2, HEIGHT * 2)).save(image(root, 1, split), quality=60)

    return plant


def partly_shared(root: Path) -> None:
    files = [str(image(root, index)) for index in range(3)] + [str(image(root, index, "val")) for index in range(VAL)]
    (root / "val.txt").write_text("\n".join(files))
    describe_as(val="val.txt")(root)


def rewrite(change: Callable[[str, int], str], split: str = "train") -> Callable[[Path], None]:
    """Change the text of every label file."""

    def plant(root: Path) -> None:
        for index, file in enumerate(sorted((root / "labels" / split).glob("*.txt"))):
            file.write_text(change(file.read_text(), index))

    return plant


def only_first(text: str, _: int) -> str:
    return text.splitlines()[0] + "\n"


def rare(text: str, index: int) -> str:
    return text if index < 3 else only_first(text, index)


def crowd(text: str, index: int) -> str:
    """Objects of 4 pixels on a grid of 5 pixels: more than there are anchors among them."""
    rows = [f"{(x + y) % 2} {0.3 + x / 32:.5f} {0.3 + y / 24:.5f} 0.025 0.0333" for x in range(10) for y in range(10)]
    return "\n".join(rows) + "\n" if index < 2 else text


def shrunk(text: str, _: int) -> str:
    """Objects of 10 pixels between the centres of the coarsest level's cells, on which a box of 16 pixels has none."""
    return "".join(f"{label} 0.2 {y} 0.0625 0.0833\n" for label, y in ((0, 0.3), (1, 0.5667)))


PLANTS = {
    "missing label file": lambda root: labels(root).unlink(),
    "empty label file": lambda root: labels(root).write_text(""),
    "unreadable label file": lambda root: labels(root).write_bytes(b"\xff\xfe\x000 0.5"),
    "wrong number of columns": add("0 0.5 0.5 0.2"),
    "not a number": add("0 0.5 0.5 0.2 wide"),
    "NaN or infinite label": add("0 0.5 0.5 nan 0.2", "0 inf 0.5 0.2 0.2"),
    "class that is no integer": add("0.5 0.5 0.5 0.2 0.2"),
    "unknown class": add("2 0.5 0.5 0.2 0.2", "-1 0.5 0.5 0.2 0.2"),
    "coordinates out of range": add("0 80 60 40 40"),
    "duplicate label": add("0 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.20 0.20"),
    "box without area": add("0 0.5 0.5 0.2 0"),
    "tiny box": add("0 0.5 0.5 0.2 0.01"),
    "box beyond the border": add("0 0.9 0.5 0.4 0.2"),
    "box of the whole image": add("0 0.5 0.5 1 1"),
    "two classes on one box": add("0 0.5 0.5 0.3 0.3", "1 0.5 0.5 0.3 0.3"),
    "boxes and polygons mixed": add("0 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5"),
    "polygons instead of boxes": lambda root: labels(root).write_text("0 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5\n"),
    "labels without image": lambda root: (root / "labels" / "train" / "lost.txt").write_text("0 0.5 0.5 0.2 0.2\n"),
    "split without objects": lambda root: shutil.rmtree(root / "labels" / "val"),
    "unreadable image": lambda root: image(root).write_text("not an image"),
    "image file of zero bytes": lambda root: image(root).write_bytes(b""),
    "truncated image": truncated,
    "wrong extension": save(scene(1), "PNG"),
    "image too small": save(scene(1, 12, 9)),
    "extreme aspect ratio": save(scene(1, 400, 80)),
    "EXIF rotation": exif_rotation,
    "grey and colour mixed": save(scene(1).convert("L")),
    "duplicate image": lambda root: shutil.copy(image(root), image(root, 1)),
    "near-duplicate image": reencoded("train"),
    "leaked validation image": lambda root: shutil.copy(image(root), image(root, 1, "val")),
    "near-duplicate across splits": reencoded("val"),
    "validation set is the training set": describe_as(val="images/train"),
    "missing split": describe_as(val="images/elsewhere"),
    "names and nc disagree": describe_as(nc=3),
    "names are not numbered from 0": describe_as(names={1: "nut", 2: "bolt"}),
    "name of two classes": describe_as(names=["nut", "nut"]),
    "class missing from train": describe_as(names=["nut", "bolt", "nail"]),
    "class missing from val": rewrite(only_first, "val"),
    "rare class": rewrite(rare),
    "more objects than detections": rewrite(crowd),
    "starved objects": rewrite(crowd),
    "level without objects": lambda root: [rewrite(shrunk, split)(root) for split in ("train", "val")],
}
ALSO = {
    "split without objects": {"class missing from val"},
    "class missing from val": {"splits of different classes"},
    "rare class": {"splits of different classes"},
    "more objects than detections": {"starved objects", "small objects"},
    "starved objects": {"more objects than detections", "small objects"},
}
"""What is true as well of some of these."""


def test_a_healthy_data_set_has_no_finding(healthy):
    report = examined(healthy)
    assert report.findings == []
    assert report.facts["images"] == {"train": TRAIN, "val": VAL}
    assert report.facts["objects"]["by_class"]["train"] == {"nut": TRAIN, "bolt": TRAIN}
    assert not list(healthy.rglob("*.cache"))


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_found_by_its_name(name, root):
    PLANTS[name](root)
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    report = examined(root, Settings(imgsz=160, min_objects=20, max_det=90))
    assert names(report) == {name} | ALSO.get(name, set())
    assert all(finding.evidence.endswith(".") and finding.remedy.endswith(".") for finding in report.findings)
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before


def test_objects_are_counted_once(root):
    describe_as(val="images/train", names=["nut", "nut"])(root)
    objects = examined(root).facts["objects"]
    assert sum(objects["shorter_side"].values()) == 2 * TRAIN  # though both splits have them
    assert objects["by_class"]["train"] == {"nut (0)": TRAIN, "nut (1)": TRAIN}


def test_a_file_of_both_splits_is_leaked(root):
    partly_shared(root)
    report = examined(root)
    assert names(report) == {"leaked validation image"}
    assert report.broken
    assert report.findings[0].count == 3


@pytest.mark.parametrize(("mode", "name"), [("I;16", "16-bit image"), ("RGBA", "alpha channel")])
def test_rare_pixels_are_told(mode, name, root):
    picture = (
        scene(1).convert("RGBA") if mode == "RGBA" else Image.fromarray(np.asarray(scene(1).convert("L"), "u2") * 257)
    )
    image(root).unlink()
    picture.save(image(root).with_suffix(".png"))
    assert name in names(examined(root))


def test_a_png_that_is_cut_short_is_truncated(root):
    PLANTS["wrong extension"](root)
    file = image(root).rename(image(root).with_suffix(".png"))
    file.write_bytes(file.read_bytes()[:-2000])
    assert names(examined(root)) == {"truncated image"}


def test_findings_count_and_name_their_files(root):
    PLANTS["unknown class"](root)
    labels(root, 3).write_text("7 0.5 0.5 0.2 0.2\n")
    (finding,) = examined(root).findings
    assert finding.count == 3
    assert finding.files == (str(labels(root)), str(labels(root, 3)))
    assert (
        f"line 3 of {labels(root)}: expected a class that is one of the data set's, 0 to 1, got 2" in finding.evidence
    )


def test_thumbnails_tell_copies_from_others():
    def read(picture: Image.Image, **options: object) -> images.Image:
        content = io.BytesIO()
        picture.save(content, "JPEG", **options)
        return images.Image(
            width=picture.width,
            height=picture.height,
            digest=bytes([options["quality"]]),
            thumbnail=images._thumbnail(content.getvalue()),
        )

    original = scene(5)
    copies = [read(original, quality=quality) for quality in (95, 40)]
    assert list(similar([*copies, read(scene(6), quality=90)])) == [(0, 1)]
    turned = read(original.transpose(Image.Transpose.ROTATE_180), quality=91)
    stretched = read(original.resize((WIDTH, WIDTH)), quality=92)
    assert list(similar([copies[0], turned, stretched])) == []
    flat = [read(Image.new("RGB", (64, 64), (grey,) * 3), quality=grey) for grey in (60, 90)]
    assert list(similar(flat)) == []


def test_candidates_are_those_of_the_assigner():
    strides, side = (8, 16, 32), 96
    draw = np.random.default_rng(3)
    centres, sizes = draw.uniform(0, side, (40, 2)), draw.uniform(1, 60, (40, 2))
    boxes = np.concatenate((centres - sizes / 2, centres + sizes / 2), 1)
    maps = [torch.zeros(1, 1, side // stride, side // stride) for stride in strides]
    points, levels = make_anchors(maps, torch.tensor(strides, dtype=torch.float32))
    assigner = TaskAlignedAssigner(stride=list(strides))
    inside = assigner.select_candidates_in_gts(
        points * levels, torch.from_numpy(boxes)[None], torch.ones(1, len(boxes), 1)
    )[0].numpy()
    counts, left = candidates(boxes, side, strides)
    of_level = levels[:, 0].numpy()
    np.testing.assert_array_equal(counts, [inside[:, of_level == stride].sum(1) for stride in strides])
    np.testing.assert_allclose(left, (inside / inside.sum(0).clip(1)).sum(1))


def test_command_writes_json_and_pictures(root, tmp_path):
    PLANTS["box without area"](root)
    PLANTS["grey and colour mixed"](root)
    arguments = ["doctor", "--data", str(root / "data.yaml"), "--imgsz", "160"]
    result = CliRunner().invoke(
        app, [*arguments, "--json", str(tmp_path / "report.json"), "--save-dir", str(tmp_path / "worst")]
    )
    assert result.exit_code == 1, result.output
    found = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert [finding["severity"] for finding in found] == ["error", "note"]
    (picture,) = (tmp_path / "worst" / "box-without-area").iterdir()
    with Image.open(picture) as drawn:
        assert drawn.size == (WIDTH, HEIGHT)
        red = (np.asarray(drawn.convert("RGB"), int) @ [1, -1, -1] > 100).sum()
    assert red > 20
    PLANTS["grey and colour mixed"](root)
    labels(root).write_text("0 0.5 0.5 0.2 0.2\n")
    result = CliRunner().invoke(app, [*arguments, "--save-dir", str(tmp_path / "none")])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "no finding has a picture"
    assert not (tmp_path / "none").exists()


def test_images_that_opencv_cannot_read_are_left_out_of_the_pictures(root, tmp_path):
    file = image(root).rename(image(root).with_suffix(".tiff"))
    Image.fromarray(np.asarray(scene(1).convert("L"), np.float32)).save(file)
    for index in range(2):
        labels(root, index).write_text("0 0.5 0.5 0.2 0\n0 0.5 0.5 1 1\n")  # two findings about the image
    with pytest.warns(match="A picture is left out") as warned:
        files = pictures.save(examined(root), tmp_path / "worst")
    assert [Path(picture).name for picture in files] == ["1-01.jpg", "1-01.jpg"]
    (warning,) = warned
    assert f"{file} is damaged or not an image that OpenCV can decode" in str(warning.message)


def test_pictures_of_large_images_are_small(root, tmp_path):
    scene(1, 3000, 400).save(image(root))
    (file,) = pictures.save(examined(root), tmp_path / "worst")
    with Image.open(file) as drawn:
        assert drawn.size == (960, 128)


@pytest.mark.parametrize(
    "content",
    ["names: [a]\n", "[1, 2]\n", "train: images\n", "{train: images, names: []}\n", "{train: images, names: cat}\n"],
)
def test_other_files_are_refused_in_one_sentence(content, tmp_path):
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"data \(--data\) must be the YAML file of a detection data set.*\.$"):
        describe(tmp_path / "data.yaml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": {0: "nut", "bolt": "bolt"}}, "whose names have whole numbers for keys, got 'bolt'"),
        ({"names": {0: "nut", None: "bolt"}}, "whose names have whole numbers for keys, got None"),
        ({"names": None, "nc": "three"}, "whose nc is a whole number, got 'three'"),
        ({"names": None, "nc": 2.5}, "whose nc is a whole number, got 2.5"),
        ({"train": 5}, "whose train is a path or a list of paths, got 5"),
        ({"train": [None]}, "whose train is a path or a list of paths, got [None]"),
        ({"val": {"images": 3}}, "whose val is a path or a list of paths, got {'images': 3}"),
        ({"path": 5}, "whose path is the path of a folder, got 5"),
    ],
)
def test_values_that_a_yaml_file_cannot_have_are_named(changes, words, root):
    describe_as(**changes)(root)
    with pytest.raises(ValueError, match=r"^data \(--data\) must be the YAML file of a detection data set") as caught:
        describe(root / "data.yaml")
    assert str(caught.value).endswith(f", {words}.")


def test_names_may_be_keyed_by_numbers_as_text(root):
    describe_as(names={"0": "nut", "1": "bolt"})(root)  # as ultralytics takes them
    assert examined(root).findings == []


EPOCHS = 40


def write_run(folder: Path, plant: Callable[[int, dict[str, float]], None] = lambda epoch, row: None) -> Path:
    """A run whose losses fall and whose mAP rises and then stays, with noise; `plant` changes its rows."""
    draw = np.random.default_rng(0)
    rows = []
    for epoch in range(1, EPOCHS + 1):
        done = 1 - np.exp(-epoch / 10)
        row = {"epoch": epoch, "time": 60.0 * epoch}
        row |= {f"train/{term}": 3 - 2 * done + 0.05 * draw.normal() for term in ("box_loss", "cls_loss", "dfl_loss")}
        row |= {f"val/{term}": 3 - 1.8 * done + 0.3 * draw.normal() for term in ("box_loss", "cls_loss", "dfl_loss")}
        row |= {
            run.MAP50: 0.9 * done,
            run.MAP: 0.6 * done,
            "lr/pg0": 0.01 * (1 - epoch / EPOCHS),
            "lr/pg1": 0.1 / epoch,
        }
        plant(epoch, row)
        rows.append(row)
    folder.mkdir()
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    YAML.save(folder / "args.yaml", {"optimizer": "AdamW", "lr0": 0.01, "amp": True})
    return folder


def nan_losses(epoch: int, row: dict[str, float]) -> None:
    if epoch > 20:
        row["train/cls_loss"] = float("nan")


def diverging(epoch: int, row: dict[str, float]) -> None:
    row["train/box_loss"] += max(0, epoch - 30)


def overfitted(epoch: int, row: dict[str, float]) -> None:
    row["val/cls_loss"] += 0.15 * max(0, epoch - 20)
    row[run.MAP] -= 0.01 * max(0, epoch - 20)


RUNS = {
    "loss is not finite": nan_losses,
    "divergence": diverging,
    "learning rate too high": lambda epoch, row: row.update({"lr/pg0": row["lr/pg0"] * 100, "lr/pg1": 1.0}),
    "validation loss is not finite": lambda epoch, row: row.update({"val/box_loss": float("inf")}),
    "nothing learned": lambda epoch, row: row.update({run.MAP: 0.001, run.MAP50: 0.003}),
    "overfitting": overfitted,
    "plateau": lambda epoch, row: row.update({run.MAP: min(row[run.MAP], 0.3)}),
    "overflow in float16": lambda epoch, row: row.update({"amp/scale": 65536 / 2**epoch}),
    "stopped while improving": lambda epoch, row: row.update({run.MAP: 0.01 * epoch}),
}


def findings_of(folder: Path) -> set[str]:
    return names(run.examine(folder, YAML.load(folder / "args.yaml")))


def test_a_healthy_run_has_no_finding(tmp_path):
    scaled = write_run(tmp_path / "run", lambda epoch, row: row.update({"amp/scale": 65536 / 2 ** (epoch % 5)}))
    assert findings_of(scaled) == set()


def test_findings_name_the_epoch_of_a_run_that_went_on_elsewhere(tmp_path):
    """On a CPU there is no loss scale; and the rows of a run that goes on need not begin with the first epoch."""

    def plant(epoch: int, row: dict[str, float]) -> None:
        row["amp/scale"] = math.nan if epoch < 4 else 0.25 if epoch == 7 else 65536.0

    folder = write_run(tmp_path / "run", plant)
    (finding,) = run.examine(folder, YAML.load(folder / "args.yaml")).findings
    assert "fell from 6.55e+04 to 0.25 in epoch 7:" in finding.evidence


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_went_wrong_is_told(name, tmp_path):
    assert findings_of(write_run(tmp_path / "run", RUNS[name])) == {name}


def test_a_short_run_is_not_judged_by_its_course(tmp_path):
    folder = write_run(tmp_path / "run", RUNS["nothing learned"])
    lines = (folder / "results.csv").read_text().splitlines()
    (folder / "results.csv").write_text("\n".join(lines[:9]))
    assert findings_of(folder) == set()


def write_losses(folder: Path, term: dict[str, object] | None = None, positives: Positives | None = None) -> None:
    report = LossReport(2, (LossTerm("cls", 0.5, 9.0, 0.9, **(term or {})),), positives)
    (folder / "loss_report.json").write_text(json.dumps(report.as_dict()))


@pytest.mark.parametrize("name", ["loss_report.json", "recoveries.json", "results.csv"])
def test_files_of_a_run_that_cannot_be_read_are_named(name, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text("[1, 2")
    with pytest.raises(ValueError, match=rf"{name} .*; pass|{name} cannot be read"):
        findings_of(folder)


def test_terms_out_of_balance_are_told(tmp_path):
    folder = write_run(tmp_path / "run")
    write_losses(folder, {"suggested_gain": 0.05, "reason": "which drowns"})
    assert findings_of(folder) == {"loss out of balance"}


@pytest.mark.parametrize(
    ("levels", "small", "found"),
    [
        ({"8": 900, "16": 400, "32": 50}, (500, 20), set()),
        ({"8": 900, "16": 400, "32": 5}, (500, 20), {"level without positives"}),
        ({"8": 900, "16": 400, "32": 50}, (500, 60), {"objects without positives"}),
        ({"8": 900, "16": 400, "32": 50}, (40, 20), set()),
    ],
)
def test_levels_and_objects_without_positives_are_told(levels, small, found, tmp_path):
    folder = write_run(tmp_path / "run")
    sizes = {"small": Coverage(*small), "medium": Coverage(300, 3), "large": Coverage(0, 0)}
    write_losses(folder, positives=Positives(100, levels, sizes))
    assert findings_of(folder) == found


def test_epochs_that_were_repeated_are_told(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "recoveries.json").write_text("[7, 7, 9]")
    report = run.examine(folder, YAML.load(folder / "args.yaml"))
    assert names(report) == {"loss is not finite"}
    assert "in 2 epochs, first in epoch 7; training went back to last.pt 3 times" in report.findings[0].evidence


def test_command_examines_a_run(tmp_path):
    healthy, broken = write_run(tmp_path / "healthy"), write_run(tmp_path / "broken", nan_losses)
    assert CliRunner().invoke(app, ["doctor", "--run", str(healthy)]).exit_code == 0
    result = CliRunner().invoke(app, ["doctor", "--run", str(broken), "--json", str(tmp_path / "report.json")])
    assert result.exit_code == 1
    (finding,) = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert finding["count"] == 20
    assert "amp=bf16" in finding["remedy"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--imgsz", "320", "--min-objects", "5", "--max-det", "3"], "--imgsz, --max-det, --min-objects is for --data"),
        (["--save-dir", "worst"], "--save-dir is for --data"),
        (["--device", "cpu"], "--device is for --weights with --data"),
        (["--collect", "hard"], "--collect is for --weights with --data"),
        (["--conf", "0"], "--conf is for --weights with --data or --deployed"),
        (["--iou", "0.5"], "--iou is for --weights with --data or --deployed"),
        (["--collect-limit", "3"], "--collect-limit is for --collect"),
    ],
)
def test_options_that_nothing_would_use_are_refused(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["doctor", "--run", str(write_run(tmp_path / "run")), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert f"{words}; add that, or leave it out" in result.stderr


def test_command_needs_something_to_examine(tmp_path):
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 2
    result = CliRunner().invoke(app, ["doctor", "--run", str(tmp_path)])
    assert result.exit_code == 1
    assert "must be the folder of a training run" in result.stderr
