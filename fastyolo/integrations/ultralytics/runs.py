# SPDX-License-Identifier: AGPL-3.0-or-later
"""Training runs: their arguments, ultralytics' own beside fastyolo's settings; what can be resumed; their results."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import guess_model_task, load_checkpoint, yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.checks import check_file, check_model_file_from_stem
from ultralytics.utils.patches import torch_load

from fastyolo.integrations.ultralytics.weights import finding, loading
from fastyolo.train import settings

__all__ = [
    "NAMES",
    "RESUMABLE",
    "check_data",
    "check_model",
    "check_names",
    "check_resumable",
    "check_teacher",
    "check_values",
    "finished",
    "metrics",
]

# ultralytics' arguments; the two that its default.yaml does not list are those that its check of names lets pass.
NAMES = frozenset(DEFAULT_CFG_DICT) | {"augmentations", "save_dir"}

# What BaseTrainer.check_resume lets a resumed run change.
RESUMABLE = frozenset(
    {
        *("augmentations", "batch", "cache", "channels_last", "close_mosaic", "data", "device", "distill_model"),
        *("freeze", "imgsz", "patience", "plots", "save_dir", "save_period", "time", "val", "workers"),
    }
)

# Those of BaseTrainer.build_optimizer.
_OPTIMIZERS = ("auto", "Adam", "Adamax", "AdamW", "MuSGD", "NAdam", "RAdam", "RMSprop", "SGD")

_METRICS = {
    "mAP50-95": "metrics/mAP50-95(B)",
    "mAP50": "metrics/mAP50(B)",
    "precision": "metrics/precision(B)",
    "recall": "metrics/recall(B)",
}


def check_names(names: Iterable[str]) -> None:
    """Refuse names that are neither ultralytics' arguments nor fastyolo's settings.

    Raises:
        ValueError: in one sentence, with the nearest name.
    """
    for name in names:
        if name not in NAMES and name not in settings.NAMES:
            raise ValueError(settings.unknown_name(str(name), sorted(NAMES)))


# What ultralytics does not look at, and trains with all the same.
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "batch": (
        "at least 1 image, -1, or a share of the GPU's memory below 1",
        lambda value: isinstance(value, int | float) and (value == -1 or 0 < value < 1 or 1 <= value == int(value)),
    ),
    "cache": ("true, false, ram or disk", lambda value: str(value).lower() in ("true", "false", "ram", "disk")),
    "close_mosaic": ("0 or more", lambda value: value >= 0),
    "freeze": (
        "a number of layers or a list of them",
        lambda value: isinstance(value, list) or (isinstance(value, int) and value >= 0),
    ),
    "imgsz": (
        "a side of at least 32 pixels",
        lambda value: all(
            isinstance(side, int) and side >= 32 for side in (value if isinstance(value, list) else [value])
        ),
    ),
    "fraction": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "time": ("above 0 hours", lambda value: value > 0),
    "warmup_epochs": ("0 or more", lambda value: value >= 0),
}


def check_values(arguments: Mapping[str, Any]) -> None:
    """Refuse values that ultralytics' arguments or fastyolo's settings cannot have, before a run is begun with them.

    Raises:
        ValueError: in one sentence.
    """
    ours, theirs = settings.split(arguments)
    try:
        get_cfg(dict(DEFAULT_CFG_DICT), theirs)
    except (TypeError, ValueError) as error:
        clauses = re.split(r"(?<!i\.e)\. ", str(error).rstrip("."))
        raise ValueError("; ".join(clause[0].lower() + clause[1:] for clause in clauses) + ".") from error
    for name, value in theirs.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}.")
    for name, (expected, holds) in _RANGES.items():
        if (value := theirs.get(name)) is not None and not holds(value):
            raise ValueError(f"{name} must be {expected}, got {value!r}.")
    if (optimizer := str(theirs.get("optimizer", "auto"))).lower() not in map(str.lower, _OPTIMIZERS):
        raise ValueError(f"optimizer must be one of {', '.join(_OPTIMIZERS)}, got {optimizer!r}.")
    from_scratch = _is_yaml(str(arguments.get("model", "")))
    if ours.freeze_backbone and from_scratch and not isinstance(arguments.get("pretrained"), str):
        raise ValueError(
            f"freeze_backbone needs a trained backbone, and {arguments['model']!r} starts from nothing; pass a "
            f"checkpoint as model or pretrained, or set freeze_backbone=false."
        )


def check_data(file: str) -> None:
    """Refuse a data set that is not there, before a run has a folder.

    Args:
        file: YAML file of a data set, or the name of one of ultralytics' own, or an address to download from.

    Raises:
        FileNotFoundError: in one sentence.
    """
    if "://" not in file and not check_file(file, hard=False):
        raise FileNotFoundError(f"The data set {file!r} does not exist; pass the YAML file of a data set as data.")


def check_model(file: str) -> None:
    """Refuse a model that is not there, cannot be read, or is no detector.

    Args:
        file: a YAML file, a checkpoint, or the stem of one of ultralytics' own, such as "yolov8s".

    Raises:
        FileNotFoundError: it is neither on this machine nor ultralytics' to download.
        ValueError: its content is something else.
    """
    what = f"The model {file!r}"
    expected = "a model's YAML file, such as yolov8s-fast.yaml, or a checkpoint"
    if not _is_yaml(file):
        _check_checkpoint(what, str(check_model_file_from_stem(file)), expected)
        return
    with finding(what, expected):
        model = yaml_model_load(file)
    for part in ("backbone", "head"):
        rows = model.get(part)
        if not (rows and isinstance(rows, list) and all(isinstance(row, list) and len(row) == 4 for row in rows)):
            raise ValueError(
                f"{what} must have, as {part}, a list with [from, repeats, module, arguments] for each layer; correct "
                f"it, or pass another model."
            )
    _check_task(what, guess_model_task(model))


def check_teacher(file: str) -> None:
    """Refuse a teacher that is not there, cannot be read, or is no detector; one to download is on this machine then.

    Raises:
        FileNotFoundError: it is neither on this machine nor ultralytics' to download.
        ValueError: its content is something else.
    """
    _check_checkpoint(f"The teacher {file!r}", file, "a checkpoint")


def _check_checkpoint(what: str, file: str, expected: str) -> None:
    if not file.endswith(".pt"):
        raise ValueError(f"{what} is of an unknown kind; pass {expected} (.pt).")
    with loading(what, expected):
        task = load_checkpoint(file)[0].task
    _check_task(what, task)


def _check_task(what: str, task: str | None) -> None:
    if task not in ("detect", None):  # None: a head that ultralytics does not know
        raise ValueError(f"{what} is for the task {task!r}; pass one for detection.")


def _is_yaml(file: str) -> bool:
    return file.endswith((".yaml", ".yml"))


def check_resumable(checkpoint: Path) -> None:
    """Refuse a file that is not the last.pt of an unfinished run.

    Raises:
        ValueError: in one sentence.
    """
    try:
        content = torch_load(checkpoint, map_location="cpu", weights_only=False)
        unfinished = content["optimizer"] is not None
    except Exception as error:  # unpickling a file of another kind raises whatever its bytes suggest
        raise ValueError(
            f"{checkpoint} is not a checkpoint of a training run; pass the run's weights/last.pt."
        ) from error
    if not unfinished:
        raise ValueError(
            f"The run of {checkpoint} is finished; to start a new run from its weights, pass it as the model instead."
        )


def finished(folder: Path) -> dict[str, float] | None:
    """Accuracy of the best checkpoint of a run in `folder`; None if that run is not finished or not there."""
    last, best = (folder / "weights" / name for name in ("last.pt", "best.pt"))
    # At its end a run strips its checkpoints of what only training needs, the last one after all else.
    if not last.exists() or torch_load(last, map_location="cpu", weights_only=False)["optimizer"] is not None:
        return None
    values = torch_load(best, map_location="cpu", weights_only=False)["train_metrics"]
    return {name: float(values[key]) for name, key in _METRICS.items()}


def metrics(trainer: BaseTrainer) -> dict[str, float]:
    """Accuracy of a finished run's best checkpoint; from the file, where other processes did the training."""
    values = trainer.metrics
    if values is None:
        values = torch_load(trainer.best, map_location="cpu", weights_only=False)["train_metrics"]
    return {name: float(values[key]) for name, key in _METRICS.items()}
