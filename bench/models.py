# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the light models cost beside YOLOv8 of the same scale: parameters, FLOPs, latency in ONNX Runtime and OpenVINO.

python bench/models.py [--threads N] [--cpu-time] [--json FILE]

Every model is exported to ONNX by ultralytics, with the decoding of the boxes and without NMS, and runs on one image in
float32. The two models of a row run in turns, in both runtimes, so what else the machine does meets all alike. Needs
onnx, onnxruntime and openvino. Parameters and FLOPs are as ultralytics counts them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastyolo._files import write_json
from fastyolo._machine import installed_version
from fastyolo.bench.environment import environment
from fastyolo.bench.timing import Contender, interleave
from fastyolo.integrations.ultralytics.acceleration import LOGGER, YOLO, describe
from fastyolo.runtime.engines import onnx_session, openvino_core

PAIRS = [(f"yolov8{scale}-fast", f"yolov8{scale}") for scale in "nsmlx"]
PAIRS += [("yolov8s-fast-p2", "yolov8s-p2"), ("yolov8s-fast-p45", "yolov8s")]
SECONDS, MIN_ROUNDS = 20.0, 7


class Inference(Contender):
    def __init__(self, infer: Callable[[], Any], clock: Callable[[], float]) -> None:
        self._infer = infer
        self._clock = clock

    def sample(self) -> float:
        start = self._clock()
        self._infer()
        return self._clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imgsz", type=int, default=640, help="side of the image in pixels (default: 640)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtimes (default: 1)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU time instead of wall time, for a machine that others use"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="default: bench/results/models-DATE.json")
    arguments = parser.parse_args()
    LOGGER.setLevel("WARNING")
    facts = environment()
    results = [compare(*pair, arguments) for pair in PAIRS]
    report = {
        "schema": 1,
        "kind": "models",
        "device": "cpu",
        "threads": arguments.threads,
        "clock": "CPU time" if arguments.cpu_time else "wall time",
        "imgsz": arguments.imgsz,
        "runtimes": {name: installed_version(name) for name in RUNTIMES},
        "environment": facts,
        "results": results,
    }
    write_json(arguments.json or Path(__file__).parent / "results" / f"models-{facts['date'][:10]}.json", report)


def compare(ours: str, peer: str, arguments: argparse.Namespace) -> dict[str, Any]:
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    contenders: dict[str, Contender] = {}
    row: dict[str, Any] = {"models": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in (ours, peer):
            file, row["models"][name] = export(name, Path(folder), arguments.imgsz)
            for runtime, load in RUNTIMES.items():
                contenders[f"{runtime} {name}"] = Inference(load(file, arguments.threads, arguments.imgsz), clock)
    timings = interleave(contenders, seconds=SECONDS, min_rounds=MIN_ROUNDS)
    for name, facts in row["models"].items():
        facts["latency"] = {runtime: timings[f"{runtime} {name}"].as_dict() for runtime in RUNTIMES}
    medians = {key: timing.median_us for key, timing in timings.items()}
    row["latency_ratio"] = {
        runtime: round(medians[f"{runtime} {ours}"] / medians[f"{runtime} {peer}"], 4) for runtime in RUNTIMES
    }
    print(f"{ours}: latency of {peer} times", row["latency_ratio"], flush=True)
    return row


def export(name: str, folder: Path, imgsz: int) -> tuple[Path, dict[str, Any]]:
    """An ONNX file of the untrained model, and what ultralytics counts of it."""
    torch.manual_seed(0)
    model = YOLO(f"{name}.yaml")
    facts = describe(model, imgsz)
    if not facts["gflops"]:  # what ultralytics says when it cannot count
        raise SystemExit("ultralytics counts no FLOPs here: install the package ultralytics-thop.")
    model.save(folder / f"{name}.pt")  # what is exported is written beside it
    file = YOLO(folder / f"{name}.pt").export(format="onnx", imgsz=imgsz, simplify=False, device="cpu")
    return Path(file), {"parameters": facts["parameters"], "gflops": facts["gflops"]}


def load_onnxruntime(file: Path, threads: int, imgsz: int) -> Callable[[], Any]:
    session = onnx_session(file, threads)
    inputs = {session.get_inputs()[0].name: image(imgsz)}
    return lambda: session.run(None, inputs)


def load_openvino(file: Path, threads: int, imgsz: int) -> Callable[[], Any]:
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino_core().compile_model(file, "CPU", settings).create_infer_request()
    inputs = {0: image(imgsz)}
    return lambda: request.infer(inputs)


def image(imgsz: int) -> np.ndarray:
    return np.random.default_rng(0).random((1, 3, imgsz, imgsz), dtype=np.float32)


RUNTIMES = {"onnxruntime": load_onnxruntime, "openvino": load_openvino}


if __name__ == "__main__":
    main()
