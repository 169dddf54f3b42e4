# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the input size of a detector costs and brings: latency, mAP, and recall by the size of objects.

Latency is that of one call with one photograph: letterbox, network and NMS, in PyTorch with fastyolo's operators and in
ONNX Runtime through `fastyolo.runtime`. Sizes and runtimes take turns. All inputs are squares, so that both runtimes
work on the same pixels; a photograph's shape would save PyTorch the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from fastyolo.bench.environment import environment, installed_version
from fastyolo.bench.timing import Call, Contender, CpuContender, medians_of_parts, take_turns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastyolo.integrations.ultralytics.accuracy import Accuracy

SECONDS = 2.0  # of measuring for each size and runtime
MIN_ROUNDS = 20
PHOTOGRAPHS = 8
PICTURES = (".pdf", ".png", ".svg")
LABELS = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime"}


def left_out() -> str | None:
    """Why ONNX Runtime is not measured here, or None."""
    packages = ("onnx", "onnxslim", "onnxruntime")
    missing = [package for package in packages if installed_version(package) is None]
    return f"{missing[0]} is not installed" if missing else None


def check_sizes(model: Any, sizes: Sequence[int]) -> None:
    """Raises ValueError for a model that is exported already, and for sizes that the network does not take."""
    if isinstance(model.model, str):
        raise ValueError(f"--weights must be a checkpoint, which is exported here at each size, got {model.model!r}.")
    stride = int(max(model.model.stride.tolist()))
    if wrong := [size for size in sizes if size < stride or size % stride]:
        raise ValueError(
            f"imgsz must be multiples of the model's largest stride, {stride}, got {', '.join(map(str, wrong))}."
        )


def export(weights: str, imgsz: int, folder: Path) -> Path:
    """The ONNX file to measure, with the head's maps for `fastyolo.runtime` to decode."""
    from fastyolo.export import export

    return export(weights, "onnx", outputs="maps", imgsz=imgsz, path=folder / f"{imgsz}.onnx")


def sample_photographs() -> list[str]:
    """Photographs to measure the latency with where there is no data set: those that ultralytics brings."""
    from fastyolo.integrations.ultralytics.acceleration import ASSETS

    return sorted(str(path) for path in ASSETS.glob("*.jpg"))


def latency(
    model: Any,
    files: dict[int, Path],
    sizes: Sequence[int],
    photographs: Sequence[str],
    *,
    device: str,
    threads: int,
) -> dict[int, dict[str, dict[str, Any]]]:
    """Median, 90th percentile, and the medians of consecutive parts, in milliseconds, by size and runtime.

    Args:
        model: a `YOLO` object.
        files: its ONNX files by size; empty: PyTorch alone.
        photographs: image files, the first of which take turns.
        device: of PyTorch; ONNX Runtime runs on the CPU.
        threads: of ONNX Runtime; PyTorch's are set for the process.
    """
    from fastyolo.integrations.ultralytics.acceleration import predictor_of

    images = [image for image in (cv2.imread(str(path)) for path in photographs[:PHOTOGRAPHS]) if image is not None]
    if not images:
        raise ValueError(f"None of the photographs can be read: {', '.join(map(str, photographs[:PHOTOGRAPHS]))}.")
    predictor = predictor_of(model, imgsz=sizes[0], rect=False, device=device, verbose=False, save=False)

    def predict(size: int, image: np.ndarray[Any, Any]) -> Call:
        def call() -> Any:
            predictor.args.imgsz = size
            return predictor(source=image)

        return call

    contenders: dict[tuple[int, str], Contender] = {}
    for size in sizes:
        contenders[size, "pytorch"] = CpuContender([predict(size, image) for image in images])
        if size in files:
            contenders[size, "onnxruntime"] = CpuContender(_detections(files[size], images, threads))
    samples = take_turns(
        {f"{size} {runtime}": contender for (size, runtime), contender in contenders.items()},
        seconds=SECONDS * len(contenders),
        min_rounds=MIN_ROUNDS,
    )
    times: dict[int, dict[str, dict[str, Any]]] = {size: {} for size in sizes}
    for size, runtime in contenders:
        values = np.array(samples[f"{size} {runtime}"]) * 1e3
        median, p90 = np.quantile(values, (0.5, 0.9)).round(3).tolist()
        parts = [round(value, 3) for value in medians_of_parts(values)]
        times[size][runtime] = {"median_ms": median, "p90_ms": p90, "samples": len(values), "parts_ms": parts}
    return times


def _detections(file: Path, images: Sequence[np.ndarray[Any, Any]], threads: int) -> list[Call]:
    from fastyolo.runtime import Detector

    detector = Detector(file, threads=threads)
    return [lambda image=image: detector(image) for image in images]  # type: ignore[misc]


def report(
    weights: str,
    data: str | None,
    device: str,
    threads: int,
    times: dict[int, dict[str, dict[str, Any]]],
    accuracies: dict[int, Accuracy],
) -> dict[str, Any]:
    """Everything that was measured, in JSON's types."""
    from fastyolo.integrations.ultralytics.accuracy import IOU, SCORE

    rows: list[dict[str, Any]] = []
    for size, by_runtime in times.items():
        row: dict[str, Any] = {"imgsz": size, "latency": by_runtime}
        if size in accuracies:
            found = accuracies[size]
            row |= {"mAP50": found.map50, "mAP50-95": found.map50_95}
            row["recall"] = {
                name: {"objects": recall.objects, "found": recall.found, "recall": recall.value}
                for name, recall in found.recall.items()
            }
        rows.append(row)
    reason = left_out()
    return {
        "schema": 1,
        "kind": "model",
        "weights": Path(weights).name,
        "data": _name_of(data) if data else None,
        "images": len(next(iter(accuracies.values())).images) if accuracies else None,
        "device": device,
        "threads": threads,
        "recall_at": {"score": SCORE, "iou": IOU},
        "left_out": [f"ONNX Runtime: {reason}"] if reason else [],
        "runtimes": {"onnxruntime": installed_version("onnxruntime")},
        "environment": environment(),
        "results": rows,
    }


def _name_of(data: str) -> str:
    """coco128 of coco128.yaml and of coco128/data.yaml."""
    path = Path(data).resolve()
    return path.parent.name if path.stem == "data" else path.stem


def plot(document: dict[str, Any], path: Path) -> None:
    """Speed against accuracy, and recall by size of objects, of a report with accuracies."""
    import matplotlib as mpl

    from fastyolo._files import replacing

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (speed, recall) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    _plot_speed(speed, document)
    _plot_recall(recall, document)
    figure.suptitle(f"{document['weights']} on {document['data']}, {document['images']} images")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix[1:])
    pyplot.close(figure)


def _plot_speed(axes: Axes, document: dict[str, Any]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    rows = document["results"]
    for runtime, label in LABELS.items():
        if runtime not in rows[0]["latency"]:
            continue
        times = [row["latency"][runtime] for row in rows]
        medians = [time["median_ms"] for time in times]
        values = [row["mAP50-95"] for row in rows]
        late = [time["p90_ms"] - time["median_ms"] for time in times]
        axes.errorbar(medians, values, xerr=[[0.0] * len(late), late], marker="o", capsize=2, label=label)
        for row, median, value in zip(rows, medians, values, strict=True):
            axes.annotate(
                str(row["imgsz"]), (median, value), (0, 6), textcoords="offset points", ha="center", fontsize=8
            )
    axes.set(
        xscale="log", xlabel="latency of an image in ms: median, and bar to the 90th percentile", ylabel="mAP50-95"
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _plot_recall(axes: Axes, document: dict[str, Any]) -> None:
    rows = document["results"]
    sides = [row["imgsz"] for row in rows]
    for size in rows[0]["recall"]:
        found = [row["recall"][size] for row in rows]
        if found[0]["objects"]:
            label = f"{size} ({found[0]['objects']} objects)"
            axes.plot(sides, [value["recall"] for value in found], marker="o", label=label)
    at = document["recall_at"]
    ylabel = f"recall at score {at['score']}, IoU {at['iou']}"
    axes.set(xlabel="imgsz", ylabel=ylabel, xticks=sides, ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
