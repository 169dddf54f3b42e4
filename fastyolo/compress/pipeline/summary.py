# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a run of `fastyolo compress` came to: summary.json, which the report is made from.

All paths in it are relative to its folder and in POSIX form, but for those of what the user gave: the data set, its
example images, and the checkpoint of a stage whose status is "given".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fastyolo import _files

SCHEMA = 2
KIND = "compress"
FILE = "summary.json"

Status = Literal["done", "given", "skipped", "failed"]
"""done: here; given: a checkpoint of the user, which is only measured; skipped: it has no model, by request or because
the targets are met without it, as its note says; failed: its note says why, and the stages after it are skipped."""

Verdict = Literal["agrees", "departs", "unknown"]
"""Of `fastyolo.diagnose.verify`; unknown: file and checkpoint could not be compared."""

Runtime = Literal["onnxruntime", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


@dataclass(frozen=True)
class Latency:
    """Of the network for one image on this machine's CPU: median and 90th percentile in milliseconds.

    All files of a run take turns in one measurement, so that their ratios are worth more than the milliseconds.
    """

    median_ms: float
    p90_ms: float
    samples: int


@dataclass(frozen=True)
class Accuracy:
    """On the images of the split val, letterboxed to squares, of an ONNX file in ONNX Runtime.

    Attributes:
        by_class: AP50-95 of the classes that have objects there, by name.
    """

    map50: float
    map50_95: float
    by_class: Mapping[str, float]


@dataclass(frozen=True)
class Verification:
    """Whether a file computes what its checkpoint computes.

    Attributes:
        engine: the runtime that ran the file.
        note: what departs, or why it was not compared; empty if they agree.
    """

    verdict: Verdict
    engine: str
    note: str


@dataclass(frozen=True)
class File:
    """An exported model.

    Attributes:
        path: of a file, or of a folder for the formats openvino and ncnn.
        format: as `fastyolo.export.export` takes it.
        precision: of its weights.
        bytes: of the file, or of all files in the folder.
        sha256: of the file; None for a folder.
        purpose: what it is for, in a few words.
        ships: whether it is what the run was made for, and not one of the models on the way.
        latency: by runtime, of those that the file is made for.
        accuracy: None for formats that are not measured.
        verification: None if the file was not compared, since that stage was skipped.
    """

    path: str
    format: str
    precision: Literal["float32", "int8"]
    bytes: int
    sha256: str | None
    purpose: str
    ships: bool
    latency: Mapping[Runtime, Latency] = field(default_factory=dict)
    accuracy: Accuracy | None = None
    verification: Verification | None = None


@dataclass(frozen=True)
class Stage:
    """A model on the way from the baseline to the one to ship.

    Attributes:
        name: baseline, light, distilled, pruned or int8.
        title: the same for readers.
        note: what is special about it, such as the share of FLOPs that was removed; or why it is skipped or failed.
        seconds: what the work of it took, over all sessions.
        epochs: of its training; 0 without one.
        checkpoint: None if it has no model.
        runs: folders of its trainings with results.csv, one after the other.
        parameters, flops: of the checkpoint, as `fastyolo info` counts them; two FLOPs to a multiply-add.
        files: its model in other forms. The first is portable ONNX and stands for the stage's size and accuracy.
    """

    name: str
    title: str
    status: Status
    note: str = ""
    seconds: float = 0.0
    epochs: int = 0
    checkpoint: str | None = None
    runs: tuple[str, ...] = ()
    parameters: int | None = None
    flops: int | None = None
    files: tuple[File, ...] = ()

    @property
    def bytes(self) -> int | None:
        """Of the file that stands for the stage; None without a model."""
        return self.files[0].bytes if self.files else None

    @property
    def accuracy(self) -> Accuracy | None:
        """That of the file that stands for the stage; None if it was not measured."""
        return self.files[0].accuracy if self.files else None

    @property
    def latency(self) -> dict[Runtime, Latency]:
        """By runtime, of the stage's file that is made for it."""
        return {runtime: latency for file in reversed(self.files) for runtime, latency in file.latency.items()}


@dataclass(frozen=True)
class Data:
    """The data set.

    Attributes:
        name: for readers.
        path: its YAML file, as given.
        classes: names, by index.
        train_images, val_images, train_objects, val_objects: counts.
        digest: a hash of the names and sizes of the images and of the labels.
        examples: a few images of the split val, for pictures.
    """

    name: str
    path: str
    classes: tuple[str, ...]
    train_images: int
    val_images: int
    train_objects: int
    val_objects: int
    digest: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """A budget of the file to ship.

    Attributes:
        name: latency or size.
        unit: ms or MB (10^6 bytes).
        asked, reached: in that unit.
        met: whether it is kept.
        note: of what it is (the file, the runtime), and, if it is not kept, how near pruning could come.
    """

    name: Literal["latency", "size"]
    unit: Literal["ms", "MB"]
    asked: float
    reached: float
    met: bool
    note: str


@dataclass(frozen=True)
class Summary:
    """A whole run.

    Attributes:
        settings: the arguments that it was made with, in JSON's types: imgsz, epochs, training and more.
        stages: all of them in order, the skipped ones too.
        targets: those that were asked for.
        threads: of the runtimes in the latency measurement.
        environment: as `fastyolo.bench.environment.environment` returns it, with its date; `versions` has the runtimes
            too.
        left_out: what was not done and why, in a sentence each, such as a runtime that is not installed.
        unwritten: further formats that could not be written and why, in a sentence each.
    """

    data: Data
    settings: Mapping[str, Any]
    stages: tuple[Stage, ...]
    targets: tuple[Target, ...]
    threads: int
    environment: Mapping[str, Any]
    left_out: tuple[str, ...] = ()
    unwritten: tuple[str, ...] = ()

    @property
    def ships(self) -> tuple[File, ...]:
        """The files that the run was made for."""
        return tuple(file for stage in self.stages for file in stage.files if file.ships)

    @property
    def problems(self) -> tuple[str, ...]:
        """Stages that failed, targets that are missed, formats that could not be written, and files to ship that
        depart from their checkpoints; in a sentence each."""
        failed = [f"The stage {stage.name} failed: {stage.note}" for stage in self.stages if stage.status == "failed"]
        missed = [
            f"The target {target.name} of {target.asked:g} {target.unit} is missed, with {target.reached:.3g} "
            f"{target.unit}. {target.note}"
            for target in self.targets
            if not target.met
        ]
        departing = [
            f"{file.path} does not compute what its checkpoint computes. {file.verification.note}"
            f"{self._beside_float32(file)}"
            for file in self.ships
            if file.verification and file.verification.verdict == "departs"
        ]
        return (*failed, *missed, *self.unwritten, *departing)

    def _beside_float32(self, file: File) -> str:
        """The accuracy of an INT8 file and of the model in float32, which tells how much a departure matters."""
        others = [other for other in self.ships if other.precision == "float32" and other.accuracy]
        if file.precision != "int8" or file.accuracy is None or not others:
            return ""
        (other, *_) = others
        assert other.accuracy is not None
        return f" Its mAP50-95 is {file.accuracy.map50_95:.3f}, that of {other.path} {other.accuracy.map50_95:.3f}."

    def as_dict(self) -> dict[str, Any]:
        """As summary.json has it."""
        return {"schema": SCHEMA, "kind": KIND, **asdict(self)}

    def write(self, folder: Path) -> None:
        """Put summary.json into the folder of the run, in one step."""
        _files.write_json(folder / FILE, self.as_dict())


def read(folder: Path) -> Summary:
    """The summary of a run.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is of another kind or of another version of fastyolo.
    """
    path = folder / FILE
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; pass the folder of a finished run of fastyolo compress.")
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("schema") not in (1, SCHEMA) or document.get("kind") != KIND:
        raise ValueError(f"{path} must be of kind {KIND!r}, schema {SCHEMA}, got another; run fastyolo compress again.")
    return Summary(
        data=Data(**_tuples(document["data"])),
        settings=document["settings"],
        stages=tuple(map(_stage, document["stages"])),
        targets=tuple(Target(**target) for target in document["targets"]),
        threads=document["threads"],
        environment=document["environment"],
        left_out=tuple(document["left_out"]),
        unwritten=tuple(document["unwritten"]),
    )


def _stage(document: dict[str, Any]) -> Stage:
    if "run" in document:  # of schema 1
        run = document.pop("run")
        document["runs"] = [run] if run else []
    return Stage(**{**_tuples(document), "files": tuple(map(_file, document["files"]))})


def _file(document: dict[str, Any]) -> File:
    accuracy, verification = document["accuracy"], document["verification"]
    return File(
        **{
            **document,
            "latency": {runtime: Latency(**latency) for runtime, latency in document["latency"].items()},
            "accuracy": accuracy and Accuracy(**accuracy),
            "verification": verification and Verification(**verification),
        }
    )


def _tuples(document: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}
