# SPDX-License-Identifier: AGPL-3.0-or-later
"""What pruning by 30 % and 50 % of the FLOPs costs and brings: accuracy before and after training, and latency.

python bench/compression/prune.py --data deeppcb/data.yaml --runs runs/pruning --fast yolov8s-fast.pt --stock yolov8n.pt

The light model is trained on the data set already; YOLOv8n, which need not be, is first trained on it. Each is then
pruned and trained with its unpruned self for a teacher. With --sparsity, the light model also spends the first half of
those epochs on the L1 term, and its channels go by the factors of the normalisations. Finished runs are kept and an
interrupted one goes on, so the command can be repeated until all is there. Latency is ONNX Runtime's, of the pruned
network in turns with the unpruned one; with --latency-only nothing is trained, since it does not depend on what the
weights are.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from fastyolo._files import write_json
from fastyolo._machine import cores, installed_version
from fastyolo.bench.environment import environment
from fastyolo.compress.pruning import prune
from fastyolo.compress.pruning.latency import LatencyMeter
from fastyolo.compress.pruning.run import train
from fastyolo.integrations.ultralytics.accuracy import evaluate
from fastyolo.train.settings import closing_epochs

RESULTS = Path(__file__).resolve().parent.parent / "results"
SHARES = (0.3, 0.5)

# Without a training for sparsity before, the factors of the normalisations say little about the channels. After one,
# the defaults are "gamma" and "global".
CHOICE = {"importance": "l1", "ranking": "per-layer"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="YAML", type=Path, help="data set in ultralytics' form")
    parser.add_argument("--runs", required=True, metavar="DIR", type=Path, help="where the runs are and go")
    parser.add_argument("--fast", required=True, metavar="FILE", type=Path, help="yolov8s-fast, trained on that data")
    parser.add_argument("--stock", required=True, metavar="FILE", type=Path, help="YOLOv8n, trained on other data")
    parser.add_argument("--epochs", type=int, default=20, help="of training after pruning")
    parser.add_argument(
        "--sparsity",
        type=float,
        nargs="*",
        default=[],
        help="of the light model, to compare with the least share; the first also with the others",
    )
    parser.add_argument("--stock-epochs", type=int, default=20, help="of YOLOv8n on that data before")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the images to train with, for a trial")
    parser.add_argument("--latency-only", action="store_true")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: bench/results/pruning-DATE.json")
    arguments = parser.parse_args()
    if not (arguments.data or arguments.latency_only):
        parser.error("--data is needed to train")
    torch.set_num_threads(cores())
    recipe = {
        "batch": arguments.batch,
        "nbs": arguments.batch,  # an update for each batch: with 64 images to an update, few epochs are too few updates
        "device": "cpu",
        "amp": "bf16",
        "channels_last": True,
        "cache": "ram",
        "fraction": arguments.fraction,
        "plots": False,
    }
    report: dict[str, Any] = {
        "schema": 1,
        "kind": "pruning-study",
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "imgsz": arguments.imgsz,
        "choice": CHOICE,
        "environment": environment(),
        "onnxruntime": installed_version("onnxruntime"),
        "models": {},
    }
    if not arguments.latency_only:
        report |= {"data": arguments.data.resolve().parent.name, "stock_epochs": arguments.stock_epochs}
        report["recipe"] = {"epochs": arguments.epochs, **recipe}
    for name, weights in (("yolov8n", arguments.stock), ("yolov8s-fast", arguments.fast)):
        if name == "yolov8n" and not arguments.latency_only:
            tuned = arguments.runs / name / "unpruned"
            data = {"data": str(arguments.data.resolve()), "imgsz": arguments.imgsz}
            length = {"epochs": arguments.stock_epochs, "close_geometry": closing_epochs(arguments.stock_epochs)}
            train(weights, tuned, {**length, **data, **recipe})
            weights = tuned / "weights" / "best.pt"
        variants = [(share, 0.0) for share in SHARES]
        if name == "yolov8s-fast" and not arguments.latency_only:
            variants += [(SHARES[0], sparsity) for sparsity in arguments.sparsity]
            variants += [(share, sparsity) for share in SHARES[1:] for sparsity in arguments.sparsity[:1]]
        # One reference for all lines of a model.
        stopwatch = LatencyMeter(YOLO(str(weights)), arguments.imgsz, torch.get_num_threads())
        report["models"][name] = [assess(name, weights, *variant, arguments, recipe, stopwatch) for variant in variants]
    write_json(arguments.output or RESULTS / f"pruning-{report['environment']['date'][:10]}.json", report)


def assess(
    name: str,
    weights: Path,
    share: float,
    sparsity: float,
    arguments: argparse.Namespace,
    recipe: dict[str, Any],
    stopwatch: LatencyMeter,
) -> dict[str, Any]:
    """A model that loses a share of its FLOPs: its costs, its accuracy at each stage and its latency."""
    folder = arguments.runs / name / (f"{share:.0%}-sparsity-{sparsity:g}" if sparsity else f"{share:.0%}")
    settings: dict[str, Any] = {"flops": share, "imgsz": arguments.imgsz, "path": folder / "pruned.pt"}
    if not arguments.latency_only:
        settings |= {"epochs": arguments.epochs, "training": recipe, "folder": folder / "runs"}
        settings["data"] = str(arguments.data.resolve())
    if sparsity:
        first = arguments.epochs // 2
        settings |= {"sparsity": sparsity, "sparsity_epochs": first, "epochs": arguments.epochs - first}
    else:
        settings |= CHOICE
    LOGGER.setLevel("INFO")
    report = prune(weights, **settings, say=print)
    LOGGER.setLevel("WARNING")
    row: dict[str, Any] = {"share": share, "sparsity": sparsity, **report.as_dict(), "weights": Path(weights).name}
    del row["path"], row["layers"]
    if not arguments.latency_only:
        stages = {"unpruned": weights, "pruned": folder / "runs" / "step-1" / "pruned.pt", "trained": report.path}
        row["accuracy"] = {stage: accuracy(file, arguments) for stage, file in stages.items()}
    ms = stopwatch.ms(YOLO(report.path).model)
    removed = 1 - report.after.flops / report.before.flops
    row["latency"] = {"unpruned_ms": stopwatch.reference_ms, "pruned_ms": ms}
    row["latency"]["fall_per_flops"] = (1 - ms / stopwatch.reference_ms) / removed
    print(f"{name} without {removed:.1%} of its FLOPs: {row['latency']}")
    return row


def accuracy(file: str | Path, arguments: argparse.Namespace) -> dict[str, float]:
    found = evaluate(YOLO(str(file)), str(arguments.data.resolve()), arguments.imgsz, device="cpu")
    return {"mAP50": found.map50, "mAP50-95": found.map50_95}


if __name__ == "__main__":
    main()
