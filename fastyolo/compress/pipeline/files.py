# SPDX-License-Identifier: AGPL-3.0-or-later
"""The exported files of a run: written, compared with their checkpoints, and measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from fastyolo._files import digest, write_json
from fastyolo._quiet import quiet
from fastyolo.compress import accuracy
from fastyolo.compress.pipeline.latency import runtimes, take_times
from fastyolo.compress.pipeline.settings import Options
from fastyolo.compress.pipeline.stages import INT8, INT8_ONNXRUNTIME, MODELS
from fastyolo.compress.pipeline.state import Result, State
from fastyolo.compress.pipeline.summary import Accuracy, Data, File, Latency, Runtime, Verification
from fastyolo.diagnose import IncomparableError, verify
from fastyolo.export import Format, export, target_of
from fastyolo.integrations.ultralytics.export import load
from fastyolo.integrations.ultralytics.labelled import LabelledImages

LATENCIES = "latency.json"

_PURPOSES = {
    "onnx": "float32, for ONNX Runtime, OpenVINO and fastyolo.runtime",
    "tensorrt-onnx": "for trtexec with fastyolo's plugins: NMS inside",
    "engine": "TensorRT engine for the GPU of this machine",
    "openvino": "float32, for OpenVINO",
    "ncnn": "float32, for NCNN",
    INT8: "INT8, for TensorRT and OpenVINO",
    INT8_ONNXRUNTIME: "INT8, for ONNX Runtime on CPUs",
}

# INT8 files are fast in the runtime that they are made for, and slower than float32 elsewhere.
_RUNTIMES: dict[str, tuple[Runtime, ...]] = {INT8: ("openvino",), INT8_ONNXRUNTIME: ("onnxruntime",)}

Progress = Callable[[str, int, int], None]


class Files:
    """The exported files of a run, by the stage whose model they are.

    Args:
        models: checkpoints by stage, in order.
        say: called with a line for each thing that is done.
        on_progress: called with what is being done, how much of it is done, and how much there is.

    Attributes:
        unwritten: further formats that could not be written and why, in a sentence each.
    """

    def __init__(
        self,
        options: Options,
        state: State,
        data: Data,
        models: Mapping[str, Path],
        say: Callable[[str], None],
        on_progress: Progress,
    ) -> None:
        self._options, self._state, self._data, self._models = options, state, data, models
        self._say, self._on_progress = say, on_progress
        self.unwritten: list[str] = []
        self._digests = {stage: digest(model) for stage, model in models.items()}

    def make(self) -> dict[str, tuple[File, ...]]:
        """Everything about the files, of which nothing that is known already is found out again."""
        self._say("export: writing the models as ONNX" + "".join(f", {kind}" for kind in self._options.formats))
        with quiet():
            files = {stage: self._exported(stage) for stage in self._models}
            if self._options.wants("verify"):
                self._say("verify: comparing the files with their checkpoints")
                files = {stage: tuple(map(partial(self._verified, stage), some)) for stage, some in files.items()}
            self._say(f"measure: mAP on {self._data.val_images:,} images, and latency")
            files = {stage: tuple(map(self._evaluated, some)) for stage, some in files.items()}
            return self._timed(files)

    def _exported(self, stage: str) -> tuple[File, ...]:
        if stage == "int8":  # written when its ranges were chosen
            paths = {INT8: "onnx", INT8_ONNXRUNTIME: "onnx"}
            return tuple(self._described(f"{MODELS}/{name}", kind, "int8", True) for name, kind in paths.items())
        ships = stage == [name for name in self._models if name != "int8"][-1]
        paths = {"onnx": self._export(stage, "onnx")}
        if ships:
            paths |= {kind: path for kind in self._options.formats if (path := self._further(stage, kind))}
        return tuple(self._described(path, kind, "float32", ships) for kind, path in paths.items())

    def _further(self, stage: str, kind: str) -> str | None:
        """The path of a model in a format that all else does not depend on; None if it could not be written."""
        try:
            return self._export(stage, kind)
        except Exception as error:  # whatever its converter raises
            self.unwritten.append(f"The format {kind} could not be written: {' '.join(str(error).split())}")
            return None

    def _export(self, stage: str, kind: str) -> str:
        model, options = self._models[stage], self._options
        name = target_of(load(model), cast(Format, kind)).name.replace(model.stem, stage, 1)
        path = self._state.folder / MODELS / name

        def work() -> Result:
            export(model, cast(Format, kind), imgsz=options.imgsz, path=path)
            return {"files": [self._state.relative(path)]}

        record = self._state.once(
            f"export {name}", work, arguments={"imgsz": options.imgsz}, inputs={stage: self._digests[stage]}
        )
        assert record.result is not None
        return str(record.result["files"][0])

    def _described(self, path: str, kind: str, precision: Literal["float32", "int8"], ships: bool) -> File:
        file = self._state.folder / path
        parts = [part for part in file.rglob("*") if part.is_file()] if file.is_dir() else [file]
        return File(
            path=path,
            format=kind,
            precision=precision,
            bytes=sum(part.stat().st_size for part in parts),
            sha256=None if file.is_dir() else digest(file),
            purpose=_PURPOSES[file.name if precision == "int8" else kind],
            ships=ships,
        )

    def _verified(self, stage: str, file: File) -> File:
        """With the verdict; one that could not be reached is tried again in the next call."""
        path = self._state.folder / file.path
        try:
            record = self._state.once(
                f"verify {path.name}",
                lambda: {**asdict(_verdict(self._models[stage], path, self._data.examples)), "files": []},
                arguments={"images": list(self._data.examples)},
                inputs={stage: self._digests[stage], path.name: digest(path)},
            )
        except (IncomparableError, ModuleNotFoundError) as error:
            return replace(file, verification=Verification("unknown", "", " ".join(str(error).split())))
        except Exception as error:  # which says nothing of the model
            note = f"verify itself failed ({type(error).__name__}: {error})."
            return replace(file, verification=Verification("unknown", "", note))
        assert record.result is not None
        known = {name: record.result[name] for name in ("verdict", "engine", "note")}
        return replace(file, verification=Verification(**known))

    def _evaluated(self, file: File) -> File:
        if file.format != "onnx":
            return file
        path = self._state.folder / file.path
        options = self._options

        def work() -> Result:
            skip_bad_labels = bool(options.training.get("skip_bad_labels"))
            labelled = LabelledImages(options.data, options.imgsz, self._data.classes, skip_bad_labels=skip_bad_labels)
            done = iter(range(1, len(labelled) + 1))
            found = accuracy.measure(
                path, labelled, lambda: self._on_progress(f"mAP of {path.name}", next(done), len(labelled))
            )
            return {**asdict(Accuracy(found.map50, found.map50_95, found.by_class)), "files": []}

        record = self._state.once(
            f"accuracy {path.name}",
            work,
            arguments={"data": options.digest, "imgsz": options.imgsz},
            inputs={path.name: digest(path)},
        )
        assert record.result is not None
        known = {name: record.result[name] for name in ("map50", "map50_95", "by_class")}
        return replace(file, accuracy=Accuracy(**known))

    def _timed(self, files: Mapping[str, tuple[File, ...]]) -> dict[str, tuple[File, ...]]:
        """With the latencies of one measurement of all of them.

        They are in a file of their own, so that who deletes it has them measured again, say on a quieter machine.
        """
        options = self._options
        models = [file for some in files.values() for file in some if file.format == "onnx"]
        kept = self._state.folder / LATENCIES
        wanted = [(file.path, runtime) for file in models for runtime in _runtimes_of(file) if runtime in runtimes()]

        def work() -> Result:
            runs = {(path, runtime): (self._state.folder / path, runtime) for path, runtime in wanted}
            times = take_times(runs, options.imgsz, options.threads)
            write_json(kept, [[*key, asdict(_latency(samples))] for key, samples in times.items()])
            return {"files": [LATENCIES]}

        self._state.once(
            "latencies",
            work,
            arguments={"imgsz": options.imgsz, "threads": options.threads, "runs": [list(run) for run in wanted]},
            inputs={file.path: file.sha256 or "" for file in models},
        )
        found: dict[str, dict[Runtime, Latency]] = {}
        for path, runtime, latency in json.loads(kept.read_text(encoding="utf-8")):
            found.setdefault(path, {})[runtime] = Latency(**latency)
        return {
            stage: tuple(replace(file, latency=found.get(file.path, {})) for file in some)
            for stage, some in files.items()
        }


def _verdict(checkpoint: Path, path: Path, images: Sequence[str]) -> Verification:
    report = verify(checkpoint, path, images)
    if report.agrees:
        return Verification("agrees", report.engine, "")
    stages = ", ".join(stage.name for stage in report.stages if stage.verdict == "departs")
    causes = " ".join(finding.sentence for finding in report.findings)
    return Verification("departs", report.engine, f"Departs in {stages}. {causes}".strip())


def _runtimes_of(file: File) -> Sequence[Runtime]:
    return _RUNTIMES.get(Path(file.path).name, ("onnxruntime", "openvino"))


def _latency(samples: Any) -> Latency:
    median, p90 = np.quantile(samples, (0.5, 0.9)).round(3).tolist()
    return Latency(median, p90, len(samples))
