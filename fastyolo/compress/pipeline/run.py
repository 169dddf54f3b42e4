# SPDX-License-Identifier: AGPL-3.0-or-later
"""A run from the data set to the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

from fastyolo._files import locked
from fastyolo._machine import installed_version
from fastyolo._quiet import quiet
from fastyolo.bench.environment import environment
from fastyolo.compress.pipeline.files import Files, Progress
from fastyolo.compress.pipeline.latency import runtimes
from fastyolo.compress.pipeline.settings import STAGES, Options
from fastyolo.compress.pipeline.stages import SPARSE, Outcome, Stages, arguments_of, sparse_arguments
from fastyolo.compress.pipeline.state import State
from fastyolo.compress.pipeline.summary import RUNTIMES, Data, File, Stage, Summary, Target
from fastyolo.integrations.ultralytics.export import load
from fastyolo.integrations.ultralytics.facts import cost

REPORT = "report.html"

_TITLES = {
    "baseline": "baseline",
    "light": "light model",
    "distilled": "+ distillation",
    "pruned": "+ pruning",
    "int8": "+ INT8",
}


def run(
    options: Options, state: State, data: Data, say: Callable[[str], None], on_progress: Progress, *, debug: bool
) -> Summary:
    """As `fastyolo.compress.compress`, whose arguments are checked."""
    with locked(state.folder, "save_dir"):
        return _run(options, state, data, say, on_progress, debug=debug)


def _run(
    options: Options, state: State, data: Data, say: Callable[[str], None], on_progress: Progress, *, debug: bool
) -> Summary:
    stages = Stages(options, state, say)
    outcomes = stages.run(debug=debug)
    exports = Files(options, state, data, stages.models, say, on_progress)
    files = exports.make()
    rows = tuple(_stage(outcome, options, state, files.get(outcome.name, ())) for outcome in outcomes)
    found = Summary(
        data=data,
        settings=_settings(options),
        stages=rows,
        targets=_targets(options, rows),
        threads=options.threads,
        environment=_environment(),
        left_out=tuple(f"{name} is not installed, so nothing was measured in it." for name in _missing()),
        unwritten=tuple(exports.unwritten),
    )
    found.write(state.folder)
    from fastyolo.compress import report

    with quiet():
        report.write(found, state.folder / REPORT)
    return found


def check(options: Options, state: State, *, shared: bool) -> None:
    """Refuse a folder in which stages were made with other arguments.

    Args:
        shared: whether the epochs come from `max_epochs`.

    Raises:
        ValueError: with the names of the arguments.
    """
    remarks = {"epochs": "max_epochs is shared among the stages that train, so skip the same ones."} if shared else {}
    for stage in STAGES:
        if options.wants(stage) and not (stage == "baseline" and options.weights):
            state.check(stage, arguments_of(stage, options), remarks)
    if options.wants("pruned"):
        state.check(SPARSE, sparse_arguments(options), remarks)


def _stage(outcome: Outcome, options: Options, state: State, files: tuple[File, ...]) -> Stage:
    without_model = Stage(outcome.name, _TITLES[outcome.name], outcome.status, outcome.note)
    if outcome.checkpoint is None:
        return without_model
    network = load(outcome.checkpoint).model
    return replace(
        without_model,
        seconds=outcome.seconds,
        epochs=options.epochs.get(outcome.name, 0),
        checkpoint=state.relative(outcome.checkpoint),
        runs=outcome.runs,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        flops=int(cost(network, options.imgsz)["flops"]),
        files=files,
    )


def _settings(options: Options) -> dict[str, object]:
    settings = asdict(options)
    # Those that are no arguments, or elsewhere.
    for name in ("data", "digest", "light_digest", "model_digest", "threads", "weights_digest"):
        del settings[name]
    return {**settings, "skip": sorted(options.skip), "formats": list(options.formats)}


def _targets(options: Options, stages: Sequence[Stage]) -> tuple[Target, ...]:
    """What became of the targets, in the file that ships for the runtime."""
    last = next(stage for stage in reversed(stages) if stage.files)
    file = next((file for file in last.files if options.runtime in file.latency), last.files[0])
    pruned = next(stage for stage in stages if stage.name == "pruned")
    remark = pruned.note if options.wants("pruned") else "Nothing was pruned for it, by request."
    targets = []
    if options.target_size is not None:
        size = file.bytes / 1e6
        met = size <= options.target_size
        note = f"Of {file.path}." + ("" if met else f" {remark}")
        targets.append(Target("size", "MB", options.target_size, size, met, note))
    if options.target_latency is not None:
        latency = file.latency[options.runtime].median_ms
        met = latency <= options.target_latency
        note = f"Of {file.path} in {options.runtime}." + ("" if met else f" {remark}")
        targets.append(Target("latency", "ms", options.target_latency, latency, met, note))
    return tuple(targets)


def _environment() -> Mapping[str, object]:
    found = environment()
    packages = ("onnx", "onnxruntime", "openvino", "torch-pruning", "nvidia-modelopt")
    return {**found, "versions": {**found["versions"], **{name: installed_version(name) for name in packages}}}


def _missing() -> list[str]:
    return [name for name in RUNTIMES if name not in runtimes()]
