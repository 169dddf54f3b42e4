# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a detector costs and brings: latency, throughput, memory, size and accuracy, by runtime, input size and batch.

Latency is that of one call with photographs: letterbox, network and NMS, in PyTorch with fastyolo's operators and in
the others through `fastyolo.runtime`. Contenders of one batch and number of threads take turns, on a CPU with a product
of matrices, by which two runs can tell what the machine became slower by. Photographs are padded to squares, so that
all runtimes work on the same pixels; else those with free sizes would cut the padding.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from fastyolo._files import data_name, replacing
from fastyolo._machine import installed_version
from fastyolo.bench import runtimes
from fastyolo.bench.environment import environment
from fastyolo.bench.footprint import peak_mb
from fastyolo.bench.model_table import threads_text
from fastyolo.bench.roofline import matrix_product
from fastyolo.bench.runtimes import LABELS, NAMES, PYTORCH, RUNTIMES
from fastyolo.bench.timing import Call, Contender, CpuContender, medians_of_parts, take_turns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastyolo.export import Format
    from fastyolo.integrations.ultralytics.labelled import LabelledImages
    from fastyolo.runtime.metadata import Outputs

SECONDS = 4.0  # of measuring for each contender
MIN_ROUNDS = 20
PHOTOGRAPHS = 8
_PRODUCT = "matrix product"
_LEAST_RANGE = 0.05  # of mAP in a plot
SCHEMA = 2

OnProgress = Callable[[str, float], None]
"""What is done next, and the share of it that is done."""


@dataclass(frozen=True)
class Candidate:
    """A model in a runtime, with the input that it is loaded for.

    Attributes:
        model: name of the checkpoint or of the exported file that the user named.
        runtime: one of `runtimes.NAMES`.
        file: that is loaded.
        imgsz: side of its square input in pixels.
        batch: images per call.
    """

    model: str
    runtime: str
    file: Path
    imgsz: int
    batch: int

    def __str__(self) -> str:
        return f"{self.model} in {LABELS[self.runtime]} at {self.imgsz}"

    def load(self, threads: int, device: str) -> runtimes.Detect:
        return runtimes.load(
            self.runtime, self.file, imgsz=self.imgsz, threads=threads, device=device, batch=self.batch
        )


def available(names: Sequence[str], *, checkpoint: bool) -> tuple[list[str], list[str]]:
    """The runtimes among `names` that can be measured here, and a sentence for each of the others.

    Args:
        names: of `runtimes.NAMES`.
        checkpoint: whether a checkpoint has to be exported for them.
    """
    reasons = {name: runtimes.why_not(name, export=checkpoint) for name in names}
    usable = [name for name, reason in reasons.items() if reason is None]
    return usable, [f"{LABELS[name]} is left out: {reason}." for name, reason in reasons.items() if reason]


def check_checkpoint(model: Any, sizes: Sequence[int]) -> None:
    """Raises ValueError for a model that is exported already, and for sizes that the network does not take."""
    if isinstance(model.model, str):
        raise ValueError(
            f"--weights must be a checkpoint, which is exported here, got {model.model!r}; name it with --model."
        )
    from fastyolo.integrations.ultralytics.facts import check_sizes

    check_sizes(model, sizes)


def export_candidates(
    weights: str,
    names: Sequence[str],
    sizes: Sequence[int],
    batches: Sequence[int],
    folder: Path,
    on_progress: OnProgress,
    on_failure: Callable[[str], None],
) -> Iterator[Candidate]:
    """The candidates of a checkpoint, exported once for each format, size and batch.

    `on_failure` is called with a sentence about an export that fails, whose candidates are left out.
    """
    from fastyolo.export import export

    @functools.cache
    def exported(format_: Format, suffix: str, imgsz: int, batch: int) -> Path | None:
        what = f"export of {format_} at {imgsz}, batch {batch}"
        on_progress(what, 0.0)
        path = folder / f"{imgsz}-{batch}{suffix}"
        outputs: Outputs | None = "maps" if format_ == "onnx" else None  # which OpenVINO reads, too
        try:
            return export(weights, format_, outputs=outputs, imgsz=imgsz, batch=batch, path=path)
        except Exception as error:  # of any converter
            on_failure(_sentence(what, error))
            return None

    for imgsz, batch, name in itertools.product(sizes, batches, names):
        file: Path | None = Path(weights)
        if name != PYTORCH:
            runtime = RUNTIMES[name]
            file = exported(runtime.format, runtime.suffix, imgsz, batch if runtime.batches else 1)
        if file:
            yield Candidate(Path(weights).name, name, file, imgsz, batch)


def names_of(files: Sequence[Path]) -> dict[Path, str]:
    """What to call each file: its name, or its whole path where several have that name."""
    names = [file.name for file in files]
    return {file: file.name if names.count(file.name) == 1 else str(file) for file in files}


def file_candidates(
    model: str, file: Path, names: Sequence[str], sizes: Sequence[int], batches: Sequence[int]
) -> tuple[list[Candidate], list[str]]:
    """The candidates of an exported file, and a sentence for each batch that it cannot take.

    Args:
        model: what to call it.
        file: for one or more of the runtimes.
        names: runtimes to use.
        sizes: of the input, if they are free; none: what the file says.
        batches: images per call.

    Raises:
        ValueError: none of the runtimes takes the file, or it cannot be loaded, or its input is no square, or has
            another size.
    """
    from fastyolo.runtime import Detector

    takers = [name for name in runtimes.runtimes_of(file) if name in names]
    if not takers:
        wanted = " or ".join(LABELS[name] for name in runtimes.runtimes_of(file))
        raise ValueError(f"model must be a file for a runtime that is installed and chosen; {file} is for {wanted}.")
    found: list[Candidate] = []
    left_out: dict[str, None] = {}
    for size in sizes or (None,):
        detector = Detector(file, engine=runtimes.engine_of(takers[0]), imgsz=size)
        height, width = detector.imgsz
        if height != width:
            raise ValueError(f"model must have a square input, {file} has {height}x{width}; export it again.")
        for batch in batches:
            if detector.batch_size in (None, batch):
                found += [Candidate(model, name, file, height, batch) for name in takers]
            else:
                left_out[f"{model} is left out with batch {batch}: it takes {detector.batch_size} at a time."] = None
    return found, list(left_out)


def sample_photographs() -> list[str]:
    """Photographs to measure the latency with where there is no data set: those that ultralytics brings."""
    from fastyolo.integrations.ultralytics.acceleration import ASSETS

    return sorted(str(path) for path in ASSETS.glob("*.jpg"))


class Labelled:
    """The validation images of a data set, on which candidates are compared."""

    def __init__(self, data: str, device: str) -> None:
        self.images: list[str] = []
        self._data = data
        self._device = device
        self._prepared: dict[tuple[int, tuple[str, ...]], LabelledImages] = {}

    def accuracy(self, candidate: Candidate, on_progress: Callable[[float], None]) -> dict[str, Any]:
        """mAP50, mAP50-95 and, of PyTorch, the recall of small, medium and large objects."""
        if candidate.runtime == PYTORCH:
            return self._of_checkpoint(candidate, on_progress)
        from fastyolo.compress.accuracy import measure
        from fastyolo.integrations.ultralytics.labelled import LabelledImages
        from fastyolo.runtime import Detector

        engine = runtimes.engine_of(candidate.runtime)
        key = (candidate.imgsz, tuple(Detector(candidate.file, engine=engine).names))
        if key not in self._prepared:
            self._prepared[key] = LabelledImages(self._data, *key)
        labelled = self._prepared[key]
        self.images = list(labelled.dataloader.dataset.im_files)
        done = iter(range(1, len(labelled) + 1))
        found = measure(candidate.file, labelled, lambda: on_progress(next(done) / len(labelled)), engine=engine)
        return {"mAP50": found.map50, "mAP50-95": found.map50_95}

    def _of_checkpoint(self, candidate: Candidate, on_progress: Callable[[float], None]) -> dict[str, Any]:
        from fastyolo.integrations.ultralytics.acceleration import YOLO, accelerate
        from fastyolo.integrations.ultralytics.accuracy import evaluate

        model = accelerate(YOLO(candidate.file))
        found = evaluate(model, self._data, candidate.imgsz, device=self._device, on_batch=on_progress)
        self.images = found.images
        recall = {
            name: {"objects": value.objects, "found": value.found, "recall": value.value}
            for name, value in found.recall.items()
        }
        return {"mAP50": found.map50, "mAP50-95": found.map50_95, "recall": recall}


def measure(
    candidates: Sequence[Candidate],
    *,
    threads: Sequence[int],
    photographs: Sequence[str],
    labelled: Labelled | None,
    device: str,
    on_progress: OnProgress,
    on_failure: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """A result for each model, size, batch and number of threads, with what was measured in each runtime.

    Those of one batch and number of threads, which take turns, come together. Accuracy does not depend on batch and
    threads, so it is measured with the first candidate of a model, size and runtime. PyTorch's number of threads is set
    for the process.

    Args:
        candidates: of all models.
        threads: numbers of cores.
        photographs: image files to measure the latency with; of none, those of `labelled` are taken.
        labelled: data set to measure the accuracy on, if any.
        device: of PyTorch.
        on_progress: called before and during each step.
        on_failure: called with a sentence about a candidate in which something fails, and which is left out: with a
            batch and number of threads, or altogether if that is its accuracy.
    """
    accuracies: dict[str, dict[str, Any]] = {}
    if labelled:
        accuracies = _accuracies(candidates, labelled, on_progress, on_failure)
        candidates = [candidate for candidate in candidates if str(candidate) in accuracies]
    files = list(photographs) or (labelled.images if labelled else [])
    readable, images = _read(files)
    for batch in dict.fromkeys(candidate.batch for candidate in candidates):
        group = [candidate for candidate in candidates if candidate.batch == batch]
        for count in threads:
            on_progress(f"latency, batch {batch}, {threads_text(count)}", 0.0)
            times, product = _latencies(group, count, images, device)
            on_progress(f"memory, batch {batch}, {threads_text(count)}", 0.0)
            rows: dict[tuple[str, int], dict[str, Any]] = {}
            for candidate, time in zip(group, times, strict=True):
                try:
                    if isinstance(time, Exception):
                        raise time
                    memory = peak_mb(
                        candidate.runtime,
                        candidate.file,
                        imgsz=candidate.imgsz,
                        batch=batch,
                        threads=count,
                        device=device,
                        photograph=readable,
                    )
                except Exception as error:  # of any runtime, or of a machine whose memory is used up
                    on_failure(_sentence(f"{candidate}, batch {batch}, {threads_text(count)}", error))
                    continue
                row = rows.setdefault(
                    (candidate.model, candidate.imgsz),
                    {
                        "model": candidate.model,
                        "imgsz": candidate.imgsz,
                        "batch": batch,
                        "threads": count,
                        **({"matrix_product": product} if product else {}),
                        **{name: {} for name in ("latency", "images_per_s", "peak_mb", "file_mb", "accuracy")},
                    },
                )
                name = candidate.runtime
                row["latency"][name] = time
                row["images_per_s"][name] = round(batch * 1e3 / time["median_ms"], 2)
                row["peak_mb"][name] = round(memory, 1)
                row["file_mb"][name] = round(runtimes.num_bytes(candidate.file) / 1e6, 3)
                if found := accuracies.get(str(candidate)):
                    row["accuracy"][name] = found
            yield from rows.values()


def _accuracies(
    candidates: Sequence[Candidate], labelled: Labelled, on_progress: OnProgress, on_failure: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """By the candidate's text, which says neither batch nor threads.

    Raises:
        Exception: that of the first one, if all of them fail.
    """
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, Exception] = {}
    for candidate in candidates:
        name = str(candidate)
        if name in found or name in failed:
            continue
        what = f"accuracy of {name}"
        on_progress(what, 0.0)
        try:
            found[name] = labelled.accuracy(candidate, lambda share, what=what: on_progress(what, share))  # type: ignore[misc]
        except Exception as error:  # of any runtime
            failed[name] = error
    if not found:
        raise next(iter(failed.values()))
    for name, reason in failed.items():
        on_failure(_sentence(name, reason))
    return found


def _sentence(what: str, error: Exception) -> str:
    reason = " ".join(str(error).split()).rstrip(".")
    return f"{what} is left out: {type(error).__name__}: {reason}."


def _read(files: Sequence[str]) -> tuple[str, list[npt.NDArray[Any]]]:
    """The images of those files that can be read, and the first of these files."""
    images = {file: image for file in files[:PHOTOGRAPHS] if (image := runtimes.photograph(file)) is not None}
    if not images:
        raise ValueError(f"None of the photographs can be read: {', '.join(map(str, files[:PHOTOGRAPHS]))}.")
    return next(iter(images)), [*images.values()]


def _latencies(
    candidates: Sequence[Candidate], threads: int, images: Sequence[npt.NDArray[Any]], device: str
) -> tuple[list[dict[str, Any] | Exception], dict[str, Any] | None]:
    """Percentiles and the medians of consecutive parts, in milliseconds per call, of each candidate, or what failed in
    it, and on a CPU those of the product of matrices beside them; in turns."""
    contenders: dict[str, Contender] = {}
    failed: dict[str, Exception] = {}
    for index, candidate in enumerate(candidates):
        try:
            detect = candidate.load(threads, device)
        except Exception as error:  # of any runtime
            failed[str(index)] = error
            continue
        calls = [_call(detect, batch) for batch in _batches(images, candidate.batch)]
        contenders[str(index)] = _Guarded(calls, functools.partial(failed.setdefault, str(index)))
    for name, contender in [*contenders.items()]:
        contender.sample()
        if name in failed:
            del contenders[name]
    if not contenders:
        return [failed[str(index)] for index in range(len(candidates))], None
    seconds = SECONDS * len(contenders)
    if device == "cpu":
        torch.set_num_threads(threads)
        contenders[_PRODUCT] = matrix_product(torch.device(device))
    samples = take_turns(contenders, seconds=seconds, min_rounds=MIN_ROUNDS)
    times = {name: _percentiles(np.array(values) * 1e3) for name, values in samples.items() if name not in failed}
    product = times.pop(_PRODUCT, None)
    found: dict[str, dict[str, Any] | Exception] = {**times, **failed}
    return [found[str(index)] for index in range(len(candidates))], product


class _Guarded(CpuContender):
    """Tells of the first call that fails instead of raising, and makes no more: the others go on without it."""

    def __init__(self, calls: Sequence[Call], on_failure: Callable[[Exception], object]) -> None:
        super().__init__(calls)
        self._on_failure = on_failure
        self._failed = False

    def sample(self) -> float:
        if not self._failed:
            try:
                return super().sample()
            except Exception as error:  # of any runtime
                self._failed = True
                self._on_failure(error)
        return 0.0


def _batches(images: Sequence[npt.NDArray[Any]], batch: int) -> list[list[npt.NDArray[Any]]]:
    """One that starts with each image."""
    return [[images[(start + i) % len(images)] for i in range(batch)] for start in range(len(images))]


def _call(detect: runtimes.Detect, batch: runtimes.Images) -> Call:
    return lambda: detect(batch)


def _percentiles(milliseconds: npt.NDArray[np.float64]) -> dict[str, Any]:
    median, p90, p99 = np.quantile(milliseconds, (0.5, 0.9, 0.99)).round(3).tolist()
    parts = [round(value, 3) for value in medians_of_parts(milliseconds)]
    return {"median_ms": median, "p90_ms": p90, "p99_ms": p99, "samples": len(milliseconds), "parts_ms": parts}


def report(
    models: Iterable[str],
    data: str | None,
    images: int | None,
    device: str,
    threads: Sequence[int],
    left_out: Sequence[str],
    rows: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Everything that was measured, in JSON's types."""
    from fastyolo.integrations.ultralytics.accuracy import IOU, SCORE

    return {
        "schema": SCHEMA,
        "kind": "model",
        "weights": ", ".join(models),
        "data": data_name(data) if data else None,
        "images": images,
        "device": device,
        "threads": max(threads),
        "recall_at": {"score": SCORE, "iou": IOU},
        "left_out": list(left_out),
        "runtimes": {name: installed_version(name) for name in NAMES if name != PYTORCH},
        "environment": environment(),
        "results": list(rows),
    }


def plot(document: dict[str, Any], path: Path) -> None:
    """Speed against accuracy of a report with accuracies, and recall by size of objects where PyTorch's is known."""
    from matplotlib.figure import Figure

    recalls = [row for row in document["results"] if "recall" in row["accuracy"].get(PYTORCH, {})]
    figure = Figure(figsize=(11 if recalls else 6, 4.4), layout="constrained")
    axes = figure.subplots(1, 2 if recalls else 1, squeeze=False)
    _plot_speed(axes[0, 0], document)
    if recalls:
        _plot_recall(axes[0, 1], document, recalls)
    figure.suptitle(f"{document['weights']} on {document['data']}, {document['images']} images")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix[1:].lower())


def _plot_speed(axes: Axes, document: dict[str, Any]) -> None:
    """A line for each model, runtime, batch and number of threads, through its sizes."""
    from matplotlib.ticker import LogLocator, NullLocator

    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    rows = document["results"]
    varying = [key for key in ("model", "batch", "threads") if len({row[key] for row in rows}) > 1]
    for row in rows:
        for runtime, accuracy in row["accuracy"].items():
            time = row["latency"][runtime]
            labels = [row[key] if key == "model" else f"{key} {row[key]}" for key in varying]
            label = ", ".join([*labels, LABELS[runtime]])
            point = (
                row["imgsz"],
                time["median_ms"] / row["batch"],
                time["p90_ms"] / row["batch"],
                accuracy["mAP50-95"],
            )
            lines.setdefault(label, []).append(point)
    for label, points in lines.items():
        sizes, medians, p90s, values = zip(*points, strict=True)
        late = np.subtract(p90s, medians)
        axes.errorbar(medians, values, xerr=[np.zeros_like(late), late], marker="o", capsize=2, label=label)
        for size, median, value in zip(sizes, medians, values, strict=True):
            axes.annotate(str(size), (median, value), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set(
        xscale="log", xlabel="latency of an image in ms: median, and bar to the 90th percentile", ylabel="mAP50-95"
    )
    if np.ptp(axes.get_ylim()) < _LEAST_RANGE:  # what differs is rounding
        middle = float(np.mean(axes.get_ylim()))
        axes.set_ylim(middle - _LEAST_RANGE / 2, middle + _LEAST_RANGE / 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _plot_recall(axes: Axes, document: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    by_side = {row["imgsz"]: row["accuracy"][PYTORCH]["recall"] for row in rows}
    for size, first in next(iter(by_side.values())).items():
        if first["objects"]:
            values = [recall[size]["recall"] for recall in by_side.values()]
            axes.plot(list(by_side), values, marker="o", label=f"{size} ({first['objects']} objects)")
    at = document["recall_at"]
    ylabel = f"recall at score {at['score']}, IoU {at['iou']}"
    axes.set(xlabel="imgsz", ylabel=ylabel, xticks=list(by_side), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
