# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images per second of fastyolo.runtime and of ultralytics in ONNX Runtime, from the files to the boxes.

python bench/runtime.py --weights yolov8n.pt --images FOLDER [--threads N] [--imgsz N] [--json FILE]

Each contender reads, letterboxes and detects the same files, one image per run of the network, float32, on the same
cores; they take turns. ultralytics is YOLO("boxes.onnx").predict(files, stream=True); fastyolo runs that very file, and
the one that it exports by default, whose outputs are the head's raw maps. `call` is one image after the other,
`stream` what `Detector.stream` does. The stages are times of single calls on one thread. Needs onnx and onnxruntime.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from fastyolo._files import write_json
from fastyolo._machine import cores, installed_version
from fastyolo.bench.environment import environment
from fastyolo.bench.timing import Contender, interleave
from fastyolo.export import export
from fastyolo.integrations.ultralytics.acceleration import LOGGER, YOLO
from fastyolo.runtime import Detector
from fastyolo.runtime.sources import read_image

MIN_ROUNDS = 7
PEER = "ultralytics"


class Pass(Contender):
    """Seconds per image of one pass over the files."""

    def __init__(self, run: Callable[[], Iterable[Any]], images: int) -> None:
        self._run = run
        self._images = images

    def sample(self) -> float:
        start = time.perf_counter()
        found = sum(1 for _ in self._run())
        seconds = time.perf_counter() - start
        assert found == self._images
        return seconds / found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint")
    parser.add_argument(
        "--images", metavar="FOLDER", type=Path, required=True, help="photographs, searched recursively"
    )
    parser.add_argument("--count", type=int, default=32, help="photographs to use (default: 32)")
    parser.add_argument("--imgsz", type=int, default=640, help="side of the network's input (default: 640)")
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="of measurement (default: 60)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="default: bench/results/runtime-DATE.json")
    arguments = parser.parse_args()
    if arguments.threads:  # before a thread is started: ultralytics' own cannot be told otherwise
        os.sched_setaffinity(0, set(itertools.islice(sorted(os.sched_getaffinity(0)), arguments.threads)))
    LOGGER.setLevel("ERROR")
    files = sorted(arguments.images.rglob("*.jpg"))[: arguments.count]
    facts = environment()
    with tempfile.TemporaryDirectory() as folder:
        models = {
            outputs: export(
                arguments.weights, imgsz=arguments.imgsz, outputs=outputs, path=Path(folder, f"{outputs}.onnx")
            )
            for outputs in ("boxes", "maps")
        }
        rates, samples = measure(models, files, arguments.imgsz, arguments.seconds)
        stages = stage_times(models["maps"], files)
    for name, rate in rates.items():
        print(f"{name:24} {rate:7.2f} images/s  {rate / rates[PEER]:5.2f}x")
    print("ms of a stage on one thread:", stages)
    report = {
        "schema": 1,
        "kind": "runtime",
        "device": "cpu",
        "threads": cores(),
        "imgsz": arguments.imgsz,
        "weights": Path(arguments.weights).name,
        "images": len(files),
        "rounds": samples,
        "onnxruntime": installed_version("onnxruntime"),
        "environment": facts,
        "images_per_second": {name: round(rate, 3) for name, rate in rates.items()},
        "ratio_to_ultralytics": {name: round(rate / rates[PEER], 3) for name, rate in rates.items()},
        "stage_milliseconds": stages,
    }
    write_json(arguments.json or Path(__file__).parent / "results" / f"runtime-{facts['date'][:10]}.json", report)


def measure(models: dict[str, Path], files: list[Path], imgsz: int, seconds: float) -> tuple[dict[str, float], int]:
    """Images per second of each contender, and how often each ran."""
    stock = YOLO(models["boxes"], task="detect")
    paths = [str(file) for file in files]
    contenders: dict[str, Contender] = {
        PEER: Pass(lambda: stock.predict(paths, stream=True, imgsz=imgsz, verbose=False, device="cpu"), len(files))
    }
    for outputs, file in models.items():
        detector = Detector(file)
        contenders[f"{outputs} call"] = Pass(
            lambda detector=detector: (detector(read_image(path)) for path in files), len(files)
        )
        contenders[f"{outputs} stream"] = Pass(lambda detector=detector: detector.stream(files), len(files))
    timings = interleave(contenders, seconds=seconds, min_rounds=MIN_ROUNDS)
    return {name: 1e6 / timing.median_us for name, timing in timings.items()}, timings[PEER].samples


def stage_times(file: Path, files: list[Path]) -> dict[str, float]:
    """Median milliseconds of each stage on one thread: the floor of an image's share of a core."""
    detector = Detector(file, threads=1)
    times: dict[str, list[float]] = {"read": [], "letterbox": [], "network": [], "postprocess": []}
    for path in files:
        marks = [time.perf_counter()]
        image = read_image(path)
        marks.append(time.perf_counter())
        tensor, placements = detector.preprocess([image])
        marks.append(time.perf_counter())
        outputs = detector.run(tensor)
        marks.append(time.perf_counter())
        detector.postprocess(outputs, placements)
        marks.append(time.perf_counter())
        for stage, start, end in zip(times, marks, marks[1:], strict=False):
            times[stage].append((end - start) * 1e3)
    return {stage: round(median(values), 3) for stage, values in times.items()}


if __name__ == "__main__":
    main()
