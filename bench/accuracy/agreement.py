# SPDX-License-Identifier: AGPL-3.0-or-later
"""Does an accelerated model find what ultralytics finds? mAP, and every detection on the same head outputs.

python bench/accuracy/agreement.py --weights yolov8n.pt --data coco.yaml --images DIR
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastyolo._files import write_json
from fastyolo.bench.agreement import Agreement, compare
from fastyolo.bench.environment import environment
from fastyolo.integrations.ultralytics.acceleration import YOLO, HeadTap, accelerate, head_maps
from fastyolo.integrations.ultralytics.stock import stock_nms, stock_predictions

IOU, MAX_DET, BATCH = 0.7, 300, 16
SELECTIONS = ({"conf": 0.25, "multi_label": False}, {"conf": 0.001, "multi_label": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument("--data", required=True, metavar="YAML", help="data set for mAP")
    parser.add_argument("--images", required=True, metavar="DIR", type=Path, help="images for the detections")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", metavar="FILE", type=Path, help="default: bench/results/accuracy-WEIGHTS-DATE.json")
    arguments = parser.parse_args()
    images = sorted(path for path in arguments.images.iterdir() if path.suffix in (".jpg", ".png"))
    report: dict[str, Any] = {
        "schema": 1,
        "kind": "accuracy",
        "device": torch.device(arguments.device).type,
        "threads": torch.get_num_threads(),
        "weights": Path(arguments.weights).name,
        "data": Path(arguments.data).parent.name,
        "images": len(images),
        "environment": environment(),
        "validation": [validate(arguments, rect) for rect in (True, False)],
        "detections": detections(arguments, images),
    }
    name = f"accuracy-{Path(arguments.weights).stem}-{report['environment']['date'][:10]}.json"
    path = arguments.json or Path(__file__).parent.parent / "results" / name
    write_json(path, report)
    unexplained = sum(run["unexplained"] for run in report["detections"])
    if unexplained:
        raise SystemExit(f"{unexplained} detections differ without a reason; see {path}")


def validate(arguments: argparse.Namespace, rect: bool) -> dict[str, Any]:
    run: dict[str, Any] = {"rect": rect}
    for name, prepare in (("ultralytics", lambda model: model), ("fastyolo", accelerate)):
        settings = {"data": arguments.data, "rect": rect, "batch": BATCH, "device": arguments.device, "plots": False}
        with tempfile.TemporaryDirectory() as scratch:
            metrics = prepare(YOLO(arguments.weights)).val(**settings, save_dir=scratch, verbose=False)
        run[name] = {
            "mAP50-95": float(metrics.box.map),
            "mAP50": float(metrics.box.map50),
            "postprocess_ms": round(metrics.speed["postprocess"], 3),
        }
    return run


def detections(arguments: argparse.Namespace, images: list[Path]) -> list[dict[str, Any]]:
    """Per selection: against ultralytics' NMS as it is, and in float64, where its class offsets round nothing."""
    model = YOLO(arguments.weights)
    tap = HeadTap(model.model.model[-1])
    totals = [[Agreement(), Agreement()] for _ in SELECTIONS]
    for start in range(0, len(images), BATCH):
        maps, strides = head_maps(model, images[start : start + BATCH], device=arguments.device)
        predictions = stock_predictions(maps.box_maps, maps.cls_maps, strides)()
        for selection, total in zip(SELECTIONS, totals, strict=True):
            ours, _ = tap.detect(maps, **selection, iou=IOU, max_det=MAX_DET, agnostic=False)
            for precision, values in enumerate((predictions, predictions.double())):
                peers = stock_nms(values, **selection, iou=IOU, max_det=MAX_DET)
                total[precision] += compare(ours, peers, values, **selection, iou=IOU, shifted=precision == 0)
    return [
        {**selection, "peer": peer, **asdict(agreement)}
        for selection, total in zip(SELECTIONS, totals, strict=True)
        for peer, agreement in zip(("as it is", "its NMS in float64"), total, strict=True)
    ]


if __name__ == "__main__":
    main()
