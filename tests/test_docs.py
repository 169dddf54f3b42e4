# SPDX-License-Identifier: AGPL-3.0-or-later
"""The examples of README.md and docs/ work: their Python runs, their commands are ones that the command line takes.

Each name of a file that they use exists in the folder that they run in, so that a new example brings its files along.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import typer
from markdown_it import MarkdownIt

pytest.importorskip("onnxruntime")
pytest.importorskip("ultralytics")

from detectors import detector
from shapes import write_shapes
from typer.testing import CliRunner
from ultralytics import YOLO
from ultralytics.engine.model import Model
from ultralytics.utils import ASSETS

import fastyolo
from fastyolo.cli import app
from fastyolo.cli.train import given_arguments
from fastyolo.integrations.ultralytics import runs

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
SIZE = 64

# Commands that run here; the others train, measure or export for seconds to hours, or judge a trained model, and are
# parsed alone.
RUN = {("bench", "compare"), ("doctor", "--data"), ("doctor", "--run"), ("info",)}
# Other programs: why their lines are not run.
PROGRAMS = {
    "build/examples/detect": "needs a GPU; test_examples.py builds it and runs it up to there",
    "cmake": "builds the C++ library, which takes minutes",
    "ffmpeg": "need not be installed",
    "pip": "installs; the extras that it names are tested",
    "tests/gpu.sh": "needs a GPU",
    "trtexec": "needs a GPU",
}


@dataclass(frozen=True)
class Block:
    """A piece of code in a document."""

    file: str
    line: int
    language: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A program and its arguments."""

    place: str
    words: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.place} {' '.join(self.words)}"


def blocks(path: Path) -> Iterator[Block]:
    for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            yield Block(str(path.relative_to(ROOT)), token.map[0] + 1, token.info, token.content)


def commands(block: Block) -> Iterator[Command]:
    """Those of all lines; && separates several of them, and a backslash continues a line."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield Command(block.file, tuple(dropwhile(is_variable, words)))
                words = []


def is_variable(word: str) -> bool:
    """Whether it sets a variable for the program behind it."""
    return re.match(r"[A-Z_]+=", word) is not None


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [command for block in BLOCKS if block.language == "bash" for command in commands(block)]
OURS = [command for command in COMMANDS if command.words[0] == "fastyolo"]
OTHERS = [command for command in COMMANDS if command.words[0] != "fastyolo"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name: weights, data sets, pictures, results."""
    folder = tmp_path_factory.mktemp("docs")
    data = write_shapes(folder / "shapes", train=4, val=2, size=SIZE)
    for name in ("coco.yaml", "coco128.yaml", "data.yaml", "pcb.yaml"):
        shutil.copy(data, folder / name)
    shutil.copytree(folder / "shapes" / "images" / "val", folder / "images")
    for name in ("bus.jpg", "street.jpg"):
        shutil.copy(ASSETS / "bus.jpg", folder / name)
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (SIZE, SIZE))
    for file in sorted((folder / "images").iterdir()):
        video.write(cv2.imread(str(file)))
    video.release()

    model = YOLO("yolov8n.yaml")
    model.model = detector("yolov8n")
    model.model.task = "detect"
    for name in ("best.pt", "yolov8n.pt", "yolov8s-pcb.pt"):
        model.save(folder / name)
    checkpoint = folder / "runs" / "taught" / "weights" / "last.pt"
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(folder / "best.pt", checkpoint)
    fastyolo.export.export(folder / "best.pt", imgsz=SIZE)
    for name in ("best-int8.onnx", "yolov8n.onnx"):
        shutil.copy(folder / "best.onnx", folder / name)
    results = max((ROOT / "bench" / "results").glob("cpu-[0-9]*.json"))
    for name in ("before", "after"):
        (folder / name).mkdir()
        for copy in (folder / f"{name}.json", folder / name / "1.json"):
            shutil.copy(results, copy)
    run = folder / "runs" / "detect" / "train"
    run.mkdir(parents=True)
    (run / "args.yaml").write_text("optimizer: SGD\nlr0: 0.01\n")
    (run / "results.csv").write_text(
        "epoch,train/box_loss,val/box_loss,metrics/mAP50(B),metrics/mAP50-95(B)\n1,1,1,0.5,0.3\n"
    )
    return folder


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that an example may write to."""
    place = shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(place)
    return place


def check_training(model: Model, trainer: Any = None, **arguments: Any) -> None:
    """In place of a training: its arguments and files."""
    runs.check_names(arguments)
    runs.check_values(arguments)
    for name in ("data", "distill_model"):
        assert Path(arguments.get(name, ".")).exists(), arguments[name]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.id)
def test_python_runs(block: Block, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "train", check_training)
    random = np.random.default_rng(0)
    box_arrays, cls_arrays = (
        [random.normal(size=(1, channels, side, side)).astype(np.float32) for side in (8, 4, 2)]
        for channels in (64, 80)
    )
    given = {"box_arrays": box_arrays, "cls_arrays": cls_arrays}
    given |= {"box_maps": [*map(torch.from_numpy, box_arrays)], "cls_maps": [*map(torch.from_numpy, cls_arrays)]}
    exec(compile(block.text, block.id, "exec"), given)


def silence(command: Any) -> None:
    """Keep the command and those under it from doing anything but reading their arguments."""
    for each in getattr(command, "commands", {}).values():
        silence(each)
    if not hasattr(command, "commands"):
        command.callback = lambda **_: None


@pytest.mark.parametrize("command", OURS, ids=lambda command: command.id)
def test_commands_are_accepted(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    parser = typer.main.get_command(app)
    silence(parser)
    with pytest.raises(SystemExit) as end:
        parser.main(list(command.words[1:]))
    assert end.value.code == 0, capsys.readouterr().err
    given_arguments({}, [value for option, value in pairwise(command.words) if option == "--set"])


def is_run(command: Command) -> bool:
    return "--weights" not in command.words and any(command.words[1 : 1 + len(names)] == names for names in RUN)


@pytest.mark.parametrize("command", list(filter(is_run, OURS)), ids=lambda command: command.id)
def test_commands_run(command: Command, here: Path) -> None:
    result = CliRunner().invoke(app, command.words[1:])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", OTHERS, ids=lambda command: command.id)
def test_other_programs_are_known(command: Command) -> None:
    program, *words = command.words
    if program == "make":
        targets = [word for word in words if "=" not in word]
        rules = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(targets) <= set(rules)
    else:
        assert program in PROGRAMS


def test_every_block_is_run_parsed_or_a_listing() -> None:
    """A listing has no language, and is no command that has lost its own."""
    listings = [block for block in BLOCKS if block.language not in ("bash", "python")]
    assert [block.id for block in listings if block.language not in ("", "text")] == []
    code = re.compile(r"^(fastyolo|make|pip|import) ", re.MULTILINE)
    assert [block.id for block in listings if code.search(block.text)] == []


def test_extras_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    declared = set(re.findall(r"^(\w+) = \[", project, re.MULTILINE))
    for path in DOCUMENTS:
        for extras in re.findall(r"(?:fastyolo|\.)\[([a-z,]+)\]", path.read_text(encoding="utf-8")):
            assert set(extras.split(",")) <= declared, path


def test_links_lead_somewhere() -> None:
    for path in DOCUMENTS:
        tokens = [child for token in MarkdownIt().parse(path.read_text()) for child in token.children or ()]
        targets = [
            token.attrGet("href") or token.attrGet("src") for token in tokens if token.type in ("link_open", "image")
        ]
        files = [target.partition("#")[0] for target in targets if "://" not in target]
        assert [file for file in files if not (path.parent / file).exists()] == [], path
