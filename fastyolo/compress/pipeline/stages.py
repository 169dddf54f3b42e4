# SPDX-License-Identifier: AGPL-3.0-or-later
"""The stages that make a model: each takes the last one that there is and writes another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastyolo._files import digest
from fastyolo._quiet import quiet
from fastyolo.compress.pipeline.amount import Amount, find
from fastyolo.compress.pipeline.settings import SPARSITY, STAGES, Options
from fastyolo.compress.pipeline.state import CONTENT, Result, State
from fastyolo.compress.pipeline.summary import Status
from fastyolo.compress.pruning import prune
from fastyolo.compress.pruning.run import train
from fastyolo.compress.quantization import quantize
from fastyolo.integrations.ultralytics.quantization import is_start
from fastyolo.train.settings import closing_epochs

MODELS = "models"  # the folder of exported files
SPARSE = "sparse"  # the training for sparsity, its record and its folder
_SPARSE_RUN = f"{SPARSE}/run"
INT8 = "int8.onnx"
INT8_ONNXRUNTIME = "int8-onnxruntime.onnx"

# Of the user's arguments, those that training for INT8 takes; it derives the others from how the model was trained.
_OPERATION = frozenset(
    {"batch", "cache", "device", "fraction", "plots", "save_period", "seed", "skip_bad_labels", "verbose", "workers"}
)


@dataclass(frozen=True)
class Outcome:
    """What became of a stage; see `fastyolo.compress.pipeline.summary.Stage`."""

    name: str
    status: Status
    note: str = ""
    seconds: float = 0.0
    checkpoint: Path | None = None
    runs: tuple[str, ...] = ()


def arguments_of(stage: str, options: Options) -> dict[str, Any]:
    """What the user's arguments are to a stage: with others it is another."""
    before = STAGES[: STAGES.index(stage)]
    common: dict[str, Any] = {
        "data": options.digest,
        "imgsz": options.imgsz,
        "weights": options.weights_digest,
        "skip": [name for name in before if not options.wants(name)],
    }
    if stage in options.epochs:
        common["epochs"] = options.epochs[stage]
    training = _training_of(stage, options)
    if stage == "int8":
        return {**common, "int8": options.int8, **training}
    if stage == "baseline":
        return {**common, "model": options.model, **_content("model", options.model_digest), **training}
    if stage in ("light", "distilled"):
        return {**common, "light": options.light, **_content("light", options.light_digest), **training}
    if options.sparse_epochs:
        common["sparse epochs"] = options.sparse_epochs
    if not options.has_targets:
        return {**common, "flops": options.flops, **training}
    return {**common, **_targets_of(options), **training}


def _targets_of(options: Options) -> dict[str, Any]:
    """The arguments that the amount of pruning depends on."""
    names = ["flops", "runtime", "target_latency", "target_size"]
    if options.target_latency is not None:
        names.append("threads")
    return {**{name: getattr(options, name) for name in names}, "skip int8": not options.wants("int8")}


def sparse_arguments(options: Options) -> dict[str, Any]:
    """What the training for sparsity depends on beside the model that it begins with."""
    common = {"data": options.digest, "imgsz": options.imgsz, "epochs": options.sparse_epochs, "sparsity": SPARSITY}
    return {**common, **_training_of(SPARSE, options)}


class Stages:
    """Runs the stages of a run that are not done.

    Args:
        state: of the run.
        say: called with a line for each thing that is done.

    Attributes:
        models: the checkpoints, by stage, in order.
    """

    def __init__(self, options: Options, state: State, say: Callable[[str], None]) -> None:
        self.options, self.models = options, dict[str, Path]()
        self._state, self._say = state, say
        self._folder = state.folder

    def run(self, *, debug: bool) -> list[Outcome]:
        """What became of each stage. One that fails ends the row, so that what was made until then is not lost.

        Args:
            debug: raise what makes a stage fail.
        """
        outcomes: list[Outcome] = []
        failed = None
        for stage in STAGES:
            if failed:
                outcomes.append(Outcome(stage, "skipped", f"The stage {failed} failed."))
                continue
            try:
                outcome = self._outcome(stage)
            except Exception as error:
                if debug or not self.models:
                    raise
                failed = stage
                outcome = Outcome(stage, "failed", " ".join(str(error).split()) or type(error).__name__)
                self._say(f"{stage}: failed. {outcome.note}")
            outcomes.append(outcome)
            if outcome.checkpoint:
                self.models[stage] = outcome.checkpoint
        return outcomes

    def _outcome(self, stage: str) -> Outcome:
        if not self.options.wants(stage):
            return Outcome(stage, "skipped", "By request.")
        if stage == "baseline" and self.options.weights:
            return Outcome(stage, "given", checkpoint=Path(self.options.weights).absolute())
        note, seconds = "", 0.0
        works = {"baseline": self._baseline, "light": self._light, "distilled": self._distilled, "int8": self._int8}
        if stage == "pruned":
            amount, seconds = self._amount()
            if amount.flops is None:
                return Outcome(stage, "skipped", amount.note)
            note, works[stage] = amount.note, partial(self._pruned, amount.flops)
        record = self._state.once(
            stage,
            works[stage],
            arguments=arguments_of(stage, self.options),
            inputs=self._inputs(stage),
            before=lambda again: self._say(
                f"{stage}: {self._doing(stage)}{', again since a model before has changed' if again else ''}"
            ),
        )
        seconds += record.seconds
        assert record.result is not None
        result = record.result
        runs = (result["run"],) if result["run"] else ()
        if stage == "pruned" and self.options.sparse_epochs:
            seconds += self._state.seconds(SPARSE)
            runs = (_SPARSE_RUN, *runs)
        self._say(f"{stage}: done in {duration(seconds)}")
        return Outcome(
            stage,
            "done",
            " ".join(filter(None, (result["note"], note))),
            seconds,
            self._folder / result["checkpoint"],
            runs,
        )

    def _doing(self, stage: str) -> str:
        options, epochs = self.options, self.options.epochs.get(stage, 0)
        training = f"{epochs} epoch{'s' if epochs > 1 else ''}"
        if stage == "baseline":
            return f"training {Path(options.model).stem}, {training}"
        if stage == "light":
            return f"training {Path(str(options.light)).stem}, {training}"
        if stage == "distilled":
            return f"training {Path(str(options.light)).stem} with the baseline as its teacher, {training}"
        if stage == "pruned":
            return f"removing channels of the model before, then training it, {training}"
        if options.int8 == "ptq":
            return "choosing ranges for INT8"
        return f"choosing ranges for INT8 and training for them, {training}"

    def _inputs(self, stage: str) -> dict[str, str]:
        """The digests of the models that a stage is made from."""
        if stage == "baseline":
            sources = []
        elif stage in ("light", "distilled"):
            sources = list(self.models)
        else:
            sources = list(self.models)[-1:]
        return {name: digest(self.models[name]) for name in sources}

    @property
    def _current(self) -> Path:
        """The last model that there is."""
        return list(self.models.values())[-1]

    def _baseline(self) -> Result:
        return self._train("baseline", {"model": self.options.model})

    def _light(self) -> Result:
        return self._train("light", self._untrained())

    def _distilled(self) -> Result:
        if "light" in self.models:
            start: dict[str, Any] = {"model": str(self.models["light"])}
        else:
            start = self._untrained()
        return self._train("distilled", {**start, "distill_model": str(self.models["baseline"])})

    def _untrained(self) -> dict[str, Any]:
        """The light model with the weights that it shares with the baseline, or with what that would begin from."""
        source = str(self.models.get("baseline", self.options.model))
        return {"model": self.options.light, **({"pretrained": source} if source.endswith(".pt") else {})}

    def _train(self, stage: str, start: Mapping[str, Any]) -> Result:
        options = self.options
        place = f"{stage}/run"
        common = {"data": options.data, "imgsz": options.imgsz, "epochs": options.epochs[stage]}
        arguments = {**_training_of(stage, options), **common, **start}
        train(Path(start["model"]), self._folder / place, arguments)
        return _trained(f"{place}/weights/best.pt", place)

    def _amount(self) -> tuple[Amount, float]:
        """How much to prune, and the seconds that it took to find out.

        What was measured for it is kept, since it would not come out the same a second time.
        """
        options = self.options
        if not options.has_targets:
            return Amount(options.flops, ""), 0.0
        record = self._state.once(
            "amount",
            lambda: find(self._current, self._sparse, options, self._say).as_result(),
            arguments={
                **_targets_of(options),
                "imgsz": options.imgsz,
                **({"sparse": sparse_arguments(options)} if options.sparse_epochs else {}),
            },
            inputs=self._inputs("pruned"),
            before=lambda again: self._say("pruned: looking for the amount that meets the targets"),
        )
        assert record.result is not None
        return Amount(record.result["flops"], record.result["note"]), record.seconds

    def _sparse(self) -> Path:
        """The model to remove channels from: the last one, trained for sparsity if there are epochs for it."""
        options = self.options
        epochs = options.sparse_epochs
        if not epochs:
            return self._current
        common = {"data": options.data, "imgsz": options.imgsz, "epochs": epochs, "sparsity": SPARSITY}

        def work() -> Result:
            train(self._current, self._folder / _SPARSE_RUN, {**common, **_training_of(SPARSE, options)})
            # The best one may be from before the channels faded.
            return _trained(f"{_SPARSE_RUN}/weights/last.pt", _SPARSE_RUN)

        record = self._state.once(
            SPARSE,
            work,
            arguments=sparse_arguments(options),
            inputs=self._inputs("pruned"),
            before=lambda again: self._say(f"pruned: training for sparsity, {epochs} epoch{'s' if epochs > 1 else ''}"),
        )
        assert record.result is not None
        checkpoint: str = record.result["checkpoint"]
        return self._folder / checkpoint

    def _pruned(self, flops: float) -> Result:
        options = self.options
        place, checkpoint = "pruned/steps", "pruned/pruned.pt"
        teacher = {"distill_model": str(self._current)} if options.sparse_epochs else {}  # else it is what is pruned
        report = prune(
            self._sparse(),
            options.data,
            flops=flops,
            imgsz=options.imgsz,
            epochs=options.epochs["pruned"] - options.sparse_epochs,
            training={**teacher, **_training_of("pruned", options)},
            path=self._folder / checkpoint,
            folder=self._folder / place,
            say=self._say,
        )
        removed = 1 - report.after.flops / report.before.flops
        return _trained(checkpoint, f"{place}/step-1/train", f"{removed:.1%} of the FLOPs removed.")

    def _int8(self) -> Result:
        options = self.options
        files = [f"{MODELS}/{name}" for name in (INT8, INT8_ONNXRUNTIME)]
        paths = [self._folder / file for file in files]
        common: dict[str, Any] = {"imgsz": options.imgsz, "cache": self._folder / "int8" / "calibration"}
        source = self._current
        if options.int8 == "qat":
            training = {**_training_of("int8", options), "epochs": options.epochs["int8"]}
            run = self._folder / "int8" / "run"
            quantize(source, options.data, method="qat", path=paths[0], save_dir=run, training=training, **common)
            source = run / "weights" / "best.pt"
            note = "No epoch was better than calibration alone." if is_start(source) else ""
            result = _trained(self._state.relative(source), self._state.relative(run), note)
        else:
            with quiet():
                quantize(source, options.data, path=paths[0], **common)
            note = "Calibrated, not trained for INT8."
            result = {"checkpoint": self._state.relative(source), "run": None, "note": note, "files": []}
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # which came with the first file already
            quantize(source, options.data, target="onnxruntime", path=paths[1], **common)
        return {**result, "files": [*result["files"], *files]}


def duration(seconds: float) -> str:
    """For readers."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _training_of(stage: str, options: Options) -> dict[str, Any]:
    """The user's arguments for the training of a stage."""
    if stage == "int8":
        return {name: value for name, value in options.training.items() if name in _OPERATION}
    if stage == "pruned":  # prune() closes the geometry by itself
        return dict(options.training)
    without_teacher = stage in ("baseline", "light", SPARSE)
    given = {
        name: value for name, value in options.training.items() if not (without_teacher and name.startswith("kd_"))
    }
    if stage == SPARSE:  # what comes after it closes the geometry
        return given
    return {"close_geometry": closing_epochs(options.epochs[stage]), **given}


def _content(name: str, digest: str | None) -> dict[str, str]:
    return {} if digest is None else {f"{CONTENT}{name}": digest}


def _trained(checkpoint: str, run: str, note: str = "") -> Result:
    return {"checkpoint": checkpoint, "run": run, "note": note, "files": [checkpoint]}
