# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whole predictions of ultralytics, as they are and accelerated.

python bench/accelerate.py --weights yolov8n.pt --images FOLDER [--imgsz N] [--json FILE]

YOLO(weights).predict(...) and the same of fastyolo.accelerate(YOLO(weights)) take turns on the same photographs, read
before: letterbox, network, decoding, NMS and results, on the device and with the threads that ultralytics chooses.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fastyolo
from fastyolo._files import write_json
from fastyolo.bench.environment import environment
from fastyolo.bench.timing import Call, CpuContender, interleave
from fastyolo.integrations.ultralytics.acceleration import LOGGER, YOLO
from fastyolo.runtime.sources import read_image

IMAGES, SECONDS, MIN_ROUNDS = 32, 30, 10
CASES = ((1, 0.25), (8, 0.25), (8, 0.001))  # images of a call, and conf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint")
    parser.add_argument("--images", metavar="FOLDER", type=Path, required=True, help="photographs")
    parser.add_argument("--imgsz", type=int, default=640, help="side of the network's input (default: 640)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="default: bench/results/accelerate-DATE.json")
    arguments = parser.parse_args()
    LOGGER.setLevel("ERROR")
    facts = environment()
    images = [read_image(file) for file in sorted(arguments.images.rglob("*.jpg"))[:IMAGES]]
    models = {"ultralytics": YOLO(arguments.weights), "fastyolo": fastyolo.accelerate(YOLO(arguments.weights))}

    def calls(model: Any, batch: int, conf: float) -> list[Call]:
        settings = {"imgsz": arguments.imgsz, "batch": batch, "conf": conf, "verbose": False}
        parts = [images[start : start + batch] for start in range(0, len(images), batch)]
        return [partial(model.predict, part, **settings) for part in parts]

    results = []
    for batch, conf in CASES:
        contenders = {name: CpuContender(calls(model, batch, conf)) for name, model in models.items()}
        timings = interleave(contenders, seconds=SECONDS, min_rounds=MIN_ROUNDS)
        ratio = timings["ultralytics"].median_us / timings["fastyolo"].median_us
        times = {name: timing.as_dict() for name, timing in timings.items()}
        results.append({"batch": batch, "conf": conf, "ratio": round(ratio, 3), "contenders": times})
        print(f"batch {batch}, conf {conf:g}: {ratio:.2f} times as fast")
    report = {
        "schema": 1,
        "kind": "accelerate",
        "device": models["ultralytics"].device.type,
        "threads": torch.get_num_threads(),
        "weights": Path(arguments.weights).name,
        "imgsz": arguments.imgsz,
        "images": len(images),
        "environment": facts,
        "results": results,
    }
    write_json(arguments.json or Path(__file__).parent / "results" / f"accelerate-{facts['date'][:10]}.json", report)


if __name__ == "__main__":
    main()
