# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which parts of a detector lose most by INT8, and what it brings to keep the worst of them in float.

python bench/compression/sensitivity.py --weights yolov8n.pt --data coco128-val/data.yaml --work runs/sensitivity

The validation images are split in two halves, as by ptq.py: calibrated and ranked on one, measured on the other, both
ways. auto:N keeps the N parts in float that the ranking on the same half names. All run in ONNX Runtime on the CPU.
What is in --work is kept, so the command can be repeated until all is there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from ptq import HALVES, RESULTS, accuracy, split

from fastyolo._files import write_json
from fastyolo._machine import cores, installed_version
from fastyolo.bench.environment import environment
from fastyolo.compress.quantization import CALIBRATORS, quantize
from fastyolo.compress.quantization.sensitivity import sensitivity
from fastyolo.export import export
from fastyolo.integrations.ultralytics.export import LOGGER
from fastyolo.runtime.metadata import QUANTIZATION_KEY

KEPT = range(5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", type=Path, help="checkpoint")
    parser.add_argument("--data", required=True, metavar="YAML", type=Path, help="data set whose val images are split")
    parser.add_argument("--work", required=True, metavar="DIR", type=Path, help="where the halves and the files go")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--calibrator", choices=CALIBRATORS, default="percentile")
    parser.add_argument("--accuracy-of", type=int, default=3, metavar="N", help="parts whose loss of mAP is measured")
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="default: bench/results/sensitivity-WEIGHTS-DATE.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    LOGGER.setLevel("WARNING")
    halves = split(arguments.data, arguments.work.resolve())
    facts = environment()
    report: dict[str, Any] = {
        "schema": 1,
        "kind": "sensitivity-study",
        "device": "cpu",
        "threads": cores(),
        "data": arguments.data.resolve().parent.name,
        "weights": arguments.weights.name,
        "imgsz": arguments.imgsz,
        "calibrator": arguments.calibrator,
        "runtimes": {"onnxruntime": installed_version("onnxruntime")},
        "environment": facts,
        "kept": kept(halves, arguments),
        "halves": [ranking(half, halves, arguments) for half in HALVES],
    }
    write_json(arguments.json or RESULTS / f"sensitivity-{arguments.weights.stem}-{facts['date'][:10]}.json", report)


def ranking(half: int, halves: list[Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """The report of one way, measured once."""
    work = arguments.work.resolve()
    file = work / f"ranking{half}.json"
    if not file.exists():
        names = yaml.safe_load(halves[half].read_text(encoding="utf-8"))["names"]
        images = [str(each.parent / "images") for each in halves]
        data = work / f"from{half}.yaml"
        data.write_text(yaml.safe_dump({"train": images[half], "val": images[1 - half], "names": names}))
        found = sensitivity(
            float32(arguments),
            data,
            calibrator=arguments.calibrator,
            accuracy_of=arguments.accuracy_of,
            cache=work / "calibration",
        )
        # Without the folder of this machine.
        write_json(file, {**found.as_dict(), "weights": Path(found.weights).name})
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


def kept(halves: list[Path], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Accuracy, size and noise with the N worst parts in float; the mean of both ways."""
    reference = [accuracy(float32(arguments), "onnxruntime", halves[1 - half], arguments) for half in HALVES]
    rows = []
    for count in KEPT:
        files = [int8(half, count, halves, arguments) for half in HALVES]
        found = [accuracy(files[half], "onnxruntime", halves[1 - half], arguments) for half in HALVES]
        notes = [note(file) for file in files]
        row: dict[str, Any] = {
            "count": count,
            "names": [each["keep_float"] for each in notes],
            "snr": [each["snr"] for each in notes],
            "bytes": files[0].stat().st_size,
        }
        for metric in ("mAP50", "mAP50-95"):
            row[metric] = float(np.mean([each[metric] for each in found]))
            row[f"{metric}_change"] = row[metric] - float(np.mean([each[metric] for each in reference]))
        print(row, flush=True)
        rows.append(row)
    return rows


def float32(arguments: argparse.Namespace) -> Path:
    path: Path = arguments.work.resolve() / "float32.onnx"
    if not path.exists():
        export(arguments.weights, outputs="boxes", imgsz=arguments.imgsz, path=path)
    return path


def int8(half: int, count: int, halves: list[Path], arguments: argparse.Namespace) -> Path:
    work = arguments.work.resolve()
    path: Path = work / f"{arguments.calibrator}{half}-auto{count}.onnx"
    if not path.exists():
        quantize(
            float32(arguments),
            halves[half].parent / "images",
            calibrator=arguments.calibrator,
            keep_float=[f"auto:{count}"] if count else [],
            path=path,
            cache=work / "calibration",
        )
    return path


def note(file: Path) -> dict[str, Any]:
    entries = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    found: dict[str, Any] = json.loads(entries[QUANTIZATION_KEY])
    return found


if __name__ == "__main__":
    main()
