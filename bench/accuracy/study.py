# SPDX-License-Identifier: AGPL-3.0-or-later
"""Does the light model keep the accuracy of YOLOv8? All models from scratch, by one recipe, with several seeds.

python bench/accuracy/study.py --data deeppcb/data.yaml --runs runs/deeppcb --seeds 0 1 2

Finished runs are kept and an interrupted one goes on, so the command can be repeated until all is there. Each time it
evaluates what is finished: bench/results/NAME-DATE.json for the table in README, and bench/accuracy/NAME/ with the log
of each run and the curves as a picture. NAME is that of the data set's folder. Other runs by the same recipe that the
newest such file holds, from another machine or of weights that are gone, are taken over with their origin.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import LOGGER

from fastyolo._files import write_json
from fastyolo._machine import cores
from fastyolo.bench.environment import environment
from fastyolo.integrations.ultralytics.accuracy import IOU, SCORE, SIZES, evaluate
from fastyolo.nn import GELAN
from fastyolo.train import Trainer

mpl.use("agg")
from matplotlib import pyplot

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
AMP = "bf16"


@dataclass(frozen=True)
class Variant:
    """A model to train from scratch; with `teacher`, from the best weights of that variant and the same seed.

    Attributes:
        close_geometry: of the 30 epochs, the last ones in which images are as in deployment.
    """

    label: str
    model: str
    attention: bool = True
    teacher: str | None = None
    close_geometry: int = 0


_OPEN = {
    "yolov8s": Variant("YOLOv8s", "yolov8s.yaml"),
    "yolov8n": Variant("YOLOv8n", "yolov8n.yaml"),
    "yolov8s-fast": Variant("yolov8s-fast", "yolov8s-fast.yaml"),
    "yolov8s-fast-distilled": Variant("yolov8s-fast, taught by YOLOv8s", "yolov8s-fast.yaml", teacher="yolov8s"),
    "yolov8s-fast-no-eca": Variant("yolov8s-fast without ECA", "yolov8s-fast.yaml", attention=False),
}
VARIANTS = _OPEN | {
    f"{name}-closed": replace(
        variant,
        label=f"{variant.label}, close_geometry",
        teacher=variant.teacher and f"{variant.teacher}-closed",
        close_geometry=5,
    )
    for name, variant in _OPEN.items()
}


@dataclass(frozen=True)
class Run:
    """A variant with a seed, and the folder in which ultralytics keeps it."""

    variant_name: str
    seed: int
    parent: Path

    @property
    def name(self) -> str:
        return f"{self.variant_name}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return self.parent / self.name

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.variant_name]

    @property
    def best(self) -> Path:
        return self.folder / "weights" / "best.pt"

    def is_finished(self) -> bool:
        """At its end a run strips its checkpoints of what only training needs."""
        last = self.folder / "weights" / "last.pt"
        return last.exists() and torch.load(last, weights_only=False)["optimizer"] is None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="YAML", type=Path, help="data set in ultralytics' form")
    parser.add_argument("--runs", required=True, metavar="DIR", type=Path, help="where the runs are and go")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-train", action="store_true", help="evaluate what is finished, and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    parent = arguments.runs.resolve()
    runs = [Run(name, seed, parent) for seed in arguments.seeds for name in arguments.variants]
    for run in runs:
        if not (arguments.no_train or run.is_finished()):
            train(run, arguments)
    runs = [run for run in runs if run.is_finished()]
    if not runs:
        parser.error(f"{arguments.runs} holds no finished run")
    LOGGER.setLevel("WARNING")
    title = arguments.data.resolve().parent.name
    report: dict[str, Any] = {
        "schema": 1,
        "kind": "study",
        "device": torch.device(arguments.device).type,
        "threads": torch.get_num_threads(),
        "data": title,
        "recipe": {"epochs": arguments.epochs, "imgsz": arguments.imgsz, "batch": arguments.batch, "amp": AMP},
        "small": {"pixels": int(SIZES["small"][1] ** 0.5), "score": SCORE, "iou": IOU},
        "environment": environment(),
        "runs": [assess(run, arguments) for run in runs],
    }
    files = sorted(RESULTS.glob(f"{title}-*.json"))
    if files:
        take_over(json.loads(files[-1].read_text(encoding="utf-8")), report)
    logs = HERE / title
    logs.mkdir(exist_ok=True)
    for run in runs:
        shutil.copyfile(run.folder / "results.csv", logs / f"{run.name}.csv")
    plot(report["runs"], logs)
    write_json(RESULTS / f"{title}-{report['environment']['date'][:10]}.json", report)


def take_over(earlier: dict[str, Any], report: dict[str, Any]) -> None:
    """Add the runs of an earlier report that this one lacks, in the order of the variants; other recipes have none."""
    same = ("schema", "kind", "device", "data", "recipe", "small")
    if any(earlier[key] != report[key] for key in same):
        return
    runs = {(run["variant"], run["seed"]): {"environment": earlier["environment"], **run} for run in earlier["runs"]}
    runs |= {(run["variant"], run["seed"]): run for run in report["runs"]}
    order = list(VARIANTS)
    report["runs"] = [runs[key] for key in sorted(runs, key=lambda key: (order.index(key[0]), key[1]))]


def train(run: Run, arguments: argparse.Namespace) -> None:
    """Train to the end, from the start or from the last epoch that an interrupted run had finished."""
    last = run.folder / "weights" / "last.pt"
    if last.exists():
        Trainer(overrides={"resume": str(last)}).train()
        return
    overrides: dict[str, Any] = {
        "model": run.variant.model if run.variant.attention else without_attention(run),
        "data": str(arguments.data.resolve()),
        "epochs": arguments.epochs,
        "imgsz": arguments.imgsz,
        "batch": arguments.batch,
        "nbs": arguments.batch,  # an update for each batch: with 64 images to an update, few epochs are too few updates
        "device": arguments.device,
        "seed": run.seed,
        "amp": AMP,
        "close_geometry": run.variant.close_geometry,
        "channels_last": True,
        "cache": "ram",
        "pretrained": False,
        "plots": False,
        "project": str(run.parent),
        "name": run.name,
        "exist_ok": True,
    }
    if run.variant.teacher:
        overrides["distill_model"] = str(Run(run.variant.teacher, run.seed, run.parent).best)
    Trainer(overrides=overrides).train()


def without_attention(run: Run) -> str:
    """A model file whose GELAN blocks have no ECA; its name carries the scale, as ultralytics wants it."""
    document = yaml_model_load(run.variant.model)
    defaults = [parameter.default for parameter in signature(GELAN).parameters.values()]
    for *_, module, settings in (*document["backbone"], *document["head"]):
        if module == "GELAN":  # a row gives c2 and shortcut or less, without c1 and n; attention comes last
            settings += [*defaults[3:-1][len(settings) - 1 :], False]
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / run.variant.model
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return str(path)


def assess(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of the best checkpoint on the validation images."""
    accuracy = evaluate(YOLO(str(run.best)), str(arguments.data.resolve()), arguments.imgsz, device=arguments.device)
    small = accuracy.recall["small"]
    return {
        "variant": run.variant_name,
        "label": run.variant.label,
        "seed": run.seed,
        "mAP50": accuracy.map50,
        "mAP50-95": accuracy.map50_95,
        "small_recall": small.value,
        "small_objects": small.objects,
    }


def plot(runs: list[dict[str, Any]], logs: Path) -> None:
    """Curves of the validation over the epochs, one colour for each variant."""
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    colours = dict(zip(VARIANTS, pyplot.colormaps["tab10"].colors, strict=False))
    named = set()
    for run in runs:
        with (logs / f"{run['variant']}-seed{run['seed']}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        label = None if run["variant"] in named else run["label"]
        named.add(run["variant"])
        for axis, metric in zip(axes, ("mAP50", "mAP50-95"), strict=True):
            values = [float(row[f"metrics/{metric}(B)"]) for row in rows]
            axis.plot(range(1, len(rows) + 1), values, color=colours[run["variant"]], linewidth=1.3, label=label)
    for axis, metric in zip(axes, ("mAP50", "mAP50-95"), strict=True):
        axis.set(xlabel="epoch", title=f"{metric} on {logs.name}")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    path = logs / "curves.svg"
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="svg", metadata={"Date": None})
    temporary.replace(path)


if __name__ == "__main__":
    main()
