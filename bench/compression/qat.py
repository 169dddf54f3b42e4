# SPDX-License-Identifier: AGPL-3.0-or-later
"""What training for INT8 brings: accuracy, size and latency of a checkpoint in float32, after PTQ and after QAT.

python bench/compression/qat.py --weights best.pt --data deeppcb/data.yaml --work runs/qat --imgsz 320

All three are ONNX files with the outputs "boxes". They are validated in ONNX Runtime, and timed in it and in OpenVINO,
one image to a run, in turns. What is in --work is kept, and an interrupted calibration or training goes on, so the
command can be repeated until all is there. Needs nvidia-modelopt and openvino.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import onnx
import torch
import yaml
from runtimes import RUNTIMES, latencies

from fastyolo._files import write_json
from fastyolo._machine import cores, installed_version
from fastyolo.bench.environment import environment
from fastyolo.compress.quantization import CALIBRATORS, qdq, quantize
from fastyolo.export import export
from fastyolo.integrations.ultralytics.accuracy import evaluate
from fastyolo.integrations.ultralytics.export import LOGGER, YOLO

RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", type=Path, help="checkpoint")
    parser.add_argument("--data", required=True, metavar="YAML", type=Path, help="data set it was trained on")
    parser.add_argument("--work", required=True, metavar="DIR", type=Path, help="where the files and the run go")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--calibrator", choices=CALIBRATORS, default="percentile")
    parser.add_argument("--images", type=int, default=300, help="to calibrate on")
    parser.add_argument("--epochs", type=int, help="default: a tenth of the checkpoint's, but 5 at least")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the training images, to try it out")
    parser.add_argument("--device", default="cpu", help="to train on")
    parser.add_argument("--seconds", type=float, default=60, help="of measurement")
    parser.add_argument("--json", metavar="FILE", type=Path, help="default: bench/results/qat-DATA-DATE.json")
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    files = make(arguments)
    LOGGER.setLevel("WARNING")
    facts = environment()
    title = arguments.data.resolve().parent.name
    size = {name: file.stat().st_size for name, file in files.items()}
    times = latencies(files, arguments.imgsz, arguments.seconds)
    report = {
        "schema": 1,
        "kind": "qat",
        "device": "cpu",
        "threads": cores(),
        "data": title,
        "weights": arguments.weights.name,
        "model": Path(YOLO(arguments.weights).model.yaml.get("yaml_file", "")).stem,
        "imgsz": arguments.imgsz,
        "calibration": {"calibrator": arguments.calibrator, "images": arguments.images},
        "training": settings_of(arguments.work / "qat"),
        "runtimes": {package: installed_version(package) for package in ("onnxruntime", "openvino", "nvidia-modelopt")},
        "environment": facts,
        "variants": {name: assess(file, size, times, arguments) for name, file in files.items()},
    }
    for name, found in report["variants"].items():
        print(name, found)
    write_json(arguments.json or RESULTS / f"qat-{title}-{facts['date'][:10]}.json", report)


def make(arguments: argparse.Namespace) -> dict[str, Path]:
    """The three files."""
    work = arguments.work.resolve()
    files = {name: work / f"{name}.onnx" for name in ("float32", "ptq", "qat")}
    form: dict[str, Any] = {"outputs": "boxes", "imgsz": arguments.imgsz}
    if not files["float32"].exists():
        export(arguments.weights, path=files["float32"], **form)
    form |= {"calibrator": arguments.calibrator, "images": arguments.images, "cache": work / "calibration"}
    data = arguments.data.resolve()
    training = {
        "device": arguments.device,
        "fraction": arguments.fraction,
        "cache": "ram",
        "plots": False,
        **({"epochs": arguments.epochs} if arguments.epochs else {}),
    }
    for method, settings in (("ptq", {}), ("qat", {"training": training, "save_dir": work / "qat"})):
        if not files[method].exists():
            quantize(arguments.weights, data, method=method, path=files[method], **form, **settings)
    return files


def assess(file: Path, size: dict[str, int], times: dict[str, float], arguments: argparse.Namespace) -> dict[str, Any]:
    name = file.stem
    accuracy = evaluate(YOLO(file, task="detect"), str(arguments.data.resolve()), arguments.imgsz, device="cpu")
    counts = qdq.count(onnx.load(file))
    return {
        "mAP50": accuracy.map50,
        "mAP50-95": accuracy.map50_95,
        "bytes": size[name],
        "share_of_float32": round(size[name] / size["float32"], 4),
        "int8_convolutions": counts.convolutions[0],
        "pairs": counts.pairs,
        "milliseconds": {runtime: times[f"{runtime} {name}"] for runtime in RUNTIMES},
        "speed_up": {
            runtime: round(times[f"{runtime} float32"] / times[f"{runtime} {name}"], 3) for runtime in RUNTIMES
        },
    }


def settings_of(run: Path) -> dict[str, Any]:
    """What a training was made with, of its args.yaml."""
    arguments = yaml.safe_load((run / "args.yaml").read_text(encoding="utf-8"))
    return {
        name: arguments[name] for name in ("epochs", "batch", "optimizer", "lr0", "warmup_epochs", "fraction", "amp")
    }


if __name__ == "__main__":
    main()
