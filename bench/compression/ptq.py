# SPDX-License-Identifier: AGPL-3.0-or-later
"""What INT8 by calibration alone costs and brings: accuracy, size and latency, with each calibrator.

python bench/compression/ptq.py --weights yolov8n.pt --data coco128-val/data.yaml --work runs/ptq

The validation images are split in two halves. A model that is calibrated on one is measured on the other, so that no
image serves for both, and the results of the two are averaged. float32 is measured on the same halves.
"target-onnxruntime" is the percentile calibrator in the form for ONNX Runtime.

The peers are calibrated on the same images: "naive", which onnxruntime.quantization.quantize_static makes with every
operator quantised, by its min-max ranges, and what ultralytics exports with quantize=8, to ONNX by quantize_static and
to OpenVINO by NNCF.

Accuracy is measured in ONNX Runtime and, of what is made for it, in OpenVINO; latency in both, one image to a run, in
turns. What is in --work is kept, so the command can be repeated until all is there. Needs openvino and nncf.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from runtimes import latencies, runtimes_of
from ultralytics.data.utils import check_det_dataset, img2label_paths

from fastyolo._files import replacing, write_json
from fastyolo._machine import cores, installed_version
from fastyolo.bench.environment import environment
from fastyolo.compress.accuracy import measure
from fastyolo.compress.quantization import CALIBRATORS, ptq, qdq, quantize
from fastyolo.export import export
from fastyolo.integrations.ultralytics.accuracy import evaluate
from fastyolo.integrations.ultralytics.export import LOGGER, YOLO
from fastyolo.integrations.ultralytics.labelled import LabelledImages
from fastyolo.runtime import Detector
from fastyolo.runtime.letterbox import Letterbox
from fastyolo.runtime.sources import read_image

RESULTS = Path(__file__).resolve().parents[1] / "results"
FOR_ONNXRUNTIME = "target-onnxruntime"
PEERS = {"ultralytics-onnx": "onnx", "ultralytics-openvino": "openvino"}  # and the format
FOR_OPENVINO = ("float32", *CALIBRATORS, "ultralytics-openvino")
METRICS = ("mAP50", "mAP50-95")
HALVES = (0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", type=Path, help="checkpoint")
    parser.add_argument("--data", required=True, metavar="YAML", type=Path, help="data set whose val images are split")
    parser.add_argument("--work", required=True, metavar="DIR", type=Path, help="where the halves and the files go")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--seconds", type=float, default=60, help="of measurement")
    parser.add_argument("--json", metavar="FILE", type=Path, help="default: bench/results/ptq-WEIGHTS-DATE.json")
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    LOGGER.setLevel("WARNING")
    halves = split(arguments.data, arguments.work.resolve())
    variants = ("float32", *CALIBRATORS, FOR_ONNXRUNTIME, *PEERS, "naive")
    files = {name: [make(name, half, arguments) for half in HALVES] for name in variants}
    facts = environment()
    times = latencies({name: pair[0] for name, pair in files.items()}, arguments.imgsz, arguments.seconds)
    report: dict[str, Any] = {
        "schema": 1,
        "kind": "ptq",
        "device": "cpu",
        "threads": cores(),
        "data": arguments.data.resolve().parent.name,
        "weights": arguments.weights.name,
        "imgsz": arguments.imgsz,
        "images": [len(list((half.parent / "images").iterdir())) for half in halves],
        "percentile": ptq.PERCENTILE,
        "runtimes": {package: installed_version(package) for package in ("onnxruntime", "openvino", "nncf")},
        "environment": facts,
        "variants": {},
    }
    for name, pair in files.items():
        report["variants"][name] = found = assess(name, pair, halves, times, arguments)
        found["share_of_float32"] = round(found["bytes"] / report["variants"]["float32"]["bytes"], 4)
        print(name, found, flush=True)
    write_json(arguments.json or RESULTS / f"ptq-{arguments.weights.stem}-{facts['date'][:10]}.json", report)


def split(data: Path, work: Path) -> list[Path]:
    """YAML files of the two halves, in copies, since ultralytics writes a file beside the labels."""
    found = check_det_dataset(str(data), autodownload=False)
    images = sorted(path for path in Path(found["val"]).rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    made = []
    for half in HALVES:
        folder = work / f"half{half}"
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for image in images[half::2]:
            (label,) = map(Path, img2label_paths([str(image)]))
            shutil.copyfile(image, folder / "images" / image.name)
            if label.exists():
                shutil.copyfile(label, folder / "labels" / label.name)
        made.append(folder / "data.yaml")
        document = {"path": str(folder), "train": "images", "val": "images", "names": found["names"]}
        made[-1].write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return made


def make(name: str, half: int, arguments: argparse.Namespace) -> Path:
    """The file of a variant, calibrated on a half."""
    work = arguments.work.resolve()
    float32 = work / "float32.onnx"
    if not float32.exists():
        export(arguments.weights, outputs="boxes", imgsz=arguments.imgsz, path=float32)
    if name == "float32":
        return float32
    if name in PEERS:
        return export_peer(name, half, arguments)
    path = work / f"{name}{half}.onnx"
    if not path.exists():
        images = work / f"half{half}" / "images"
        if name == "naive":
            write_naive(float32, images, path)
        elif name == FOR_ONNXRUNTIME:
            quantize(float32, images, target="onnxruntime", path=path, cache=work / "calibration")
        else:
            quantize(float32, images, calibrator=name, path=path, cache=work / "calibration")
    return path


def export_peer(name: str, half: int, arguments: argparse.Namespace) -> Path:
    """The file that ultralytics makes."""
    work = arguments.work.resolve()
    suffix = ".onnx" if PEERS[name] == "onnx" else "_openvino_model"  # of a folder, by which ultralytics knows it
    made = work / f"{name}{half}{suffix}"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=work) as scratch:  # where it leaves other files too
            model = YOLO(shutil.copy(arguments.weights, scratch))
            data = work / f"half{half}" / "data.yaml"
            exported = model.export(format=PEERS[name], quantize=8, data=str(data), imgsz=arguments.imgsz, device="cpu")
            Path(exported).rename(made)
    return made if made.is_file() else next(made.glob("*.xml"))


def write_naive(float32: Path, images: Path, target: Path) -> None:
    source = ptq.load(float32)
    letterbox = Letterbox(source.metadata.preprocessing)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._inputs = self._read()

        def _read(self) -> Iterator[dict[str, Any]]:
            for path in sorted(images.iterdir()):
                yield {"images": letterbox([read_image(path)], source.imgsz, None, 1)[0]}

        def get_next(self) -> Any:
            return next(self._inputs, None)

    with replacing(target) as temporary, contextlib.redirect_stdout(io.StringIO()):
        quantize_static(
            float32,
            temporary,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )


def assess(
    name: str, files: list[Path], halves: list[Path], times: dict[str, float], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Of a variant, whose file i was calibrated on half i."""
    made = [file for file in (files[0], files[0].with_suffix(".bin")) if file.exists()]
    found: dict[str, Any] = {
        "accuracy": {},
        "bytes": sum(file.stat().st_size for file in made),
        "milliseconds": {},
        "speed_up": {},
    }
    for runtime in runtimes_of(files[0]):
        if runtime == "onnxruntime" or name in FOR_OPENVINO:
            by_half = [accuracy(files[half], runtime, halves[1 - half], arguments) for half in HALVES]
            mean = {metric: float(np.mean([each[metric] for each in by_half])) for metric in METRICS}
            found["accuracy"][runtime] = {**mean, "halves": by_half}
        found["milliseconds"][runtime] = milliseconds = times[f"{runtime} {name}"]
        found["speed_up"][runtime] = round(times[f"{runtime} float32"] / milliseconds, 3)
    if files[0].suffix == ".onnx":
        counts = qdq.count(onnx.load(files[0]))
        found |= {
            "int8_convolutions": counts.convolutions[0],
            "pairs": counts.pairs,
            "edges": counts.edges,
            "reformat_free_edges": counts.reformat_free,
        }
    return found


def accuracy(file: Path, runtime: str, data: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Measured once for each file, runtime and half."""
    source = file.parent if file.suffix == ".xml" else file
    kept = arguments.work.resolve() / f"{source.stem}-{runtime}-on-{data.parent.name}.json"
    if not kept.exists():
        if runtime == "openvino" and source == file:  # an ONNX file, which ultralytics gives to ONNX Runtime
            images = LabelledImages(data, arguments.imgsz, Detector(file).names)
            found: Any = measure(file, images, engine="openvino")
        else:
            found = evaluate(YOLO(source, task="detect"), str(data), arguments.imgsz, device="cpu")
        write_json(kept, {"mAP50": found.map50, "mAP50-95": found.map50_95})
    result: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return result


if __name__ == "__main__":
    main()
