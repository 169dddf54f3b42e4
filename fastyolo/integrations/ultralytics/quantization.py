# SPDX-License-Identifier: AGPL-3.0-or-later
"""Quantisation-aware training of ultralytics' detectors.

It starts from a checkpoint that carries its `Quantization`, and writes such checkpoints. Their weights are ordinary
ones and the rest is plain data, so whatever reads ultralytics' checkpoints reads them, without modelopt too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.engine import trainer as engine
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.patches import torch_load
from ultralytics.utils.torch_utils import unwrap_model

from fastyolo import _files
from fastyolo.compress.quantization.qat import Quantization
from fastyolo.integrations import modelopt
from fastyolo.integrations.ultralytics.distillation import LOSS_NAMES
from fastyolo.integrations.ultralytics.hooks import rebound
from fastyolo.integrations.ultralytics.runs import RESUMABLE
from fastyolo.integrations.ultralytics.trainer import QUANTIZATION, Trainer, student_of

__all__ = ["START", "QuantizationTrainer", "is_start", "quantization_of", "rounding", "train"]

START = "float.pt"  # in the folder of a run: the model that it starts from, which is the teacher too

# What a run takes over from the one that its checkpoint comes from: how it sees the data, and what it minimises.
_KEPT = (
    *("batch", "imgsz", "momentum", "nbs", "optimizer", "single_cls", "weight_decay"),
    *("bgr", "fliplr", "flipud", "hsv_h", "hsv_s", "hsv_v"),
    *("box", "class_weights", "cls", "cls_alpha", "cls_gamma", "cls_loss", "cls_pw", "dfl", "label_smoothing"),
    *("tal_alpha", "tal_beta", "tal_radius", "tal_topk"),
)

# In best.pt, if that is the model that the run started from.
_AT_START = "quantization_start"

_LOSSES = ("box_loss", "cls_loss", "dfl_loss", "l1_loss", *LOSS_NAMES)  # whichever the model has

# Of that one's epochs and learning rate, as the documentation of NVIDIA's pytorch-quantization advises: the weights
# only have to move by about a step of int8. At a tenth of the rate a light model diverged in its third epoch, since
# nothing holds the scale of a layer any more when the batch normalisations are frozen.
_EPOCHS_SHARE = 0.1
_RATE_SHARE = 0.01
_MIN_EPOCHS = 5  # so that the rate comes down again


def quantization_of(network: Any) -> Quantization | None:
    """What the network of a checkpoint carries; None if it was not trained for INT8."""
    data = getattr(network, QUANTIZATION, None)
    return Quantization(**data) if data else None


def is_start(checkpoint: Path) -> bool:
    """Whether the best checkpoint of a finished run is the model that it started from, as no epoch was better."""
    return _AT_START in torch_load(checkpoint, map_location="cpu", weights_only=False)


def rounding(network: nn.Module, quantization: Quantization) -> None:
    """Let a network compute with int8's rounding, in place."""
    ranges = list(quantization.ranges.values())
    modelopt.quantize(network, ranges, quantization.convolutions, quantization.sums)


def train(model: YOLO, data: str | Path, quantization: Quantization, folder: Path, given: Mapping[str, Any]) -> Path:
    """Train a model for INT8, or bring the same training in `folder` to its end, if it was killed.

    Its teacher is the model as it was, unless `given` has another distill_model, or None.

    Args:
        model: of a checkpoint.
        data: YAML file of the data set.
        quantization: where it is quantised, and in which ranges.
        folder: of the run: new, empty, or that of the same training.
        given: arguments of ultralytics and settings of fastyolo, as `fastyolo.train.Trainer` takes them.

    Returns:
        The run's best checkpoint; that of the start, with calibration alone, if no epoch is better.

    Raises:
        ValueError: the model comes from no training, the folder is that of something else, or an argument is not as
            `Trainer` takes it; or another process is at work in the folder.
    """
    if not (folder / START).exists() and _files.holds_files(folder):
        raise ValueError(f"save_dir must be a new or an empty folder, and {folder} holds files; name another.")
    with _files.locked(folder, "save_dir"):
        return _train(model, data, quantization, folder, given)


def _train(model: YOLO, data: str | Path, quantization: Quantization, folder: Path, given: Mapping[str, Any]) -> Path:
    start, last, best = folder / START, folder / "weights" / "last.pt", folder / "weights" / "best.pt"
    if start.exists():
        if quantization_of(load_checkpoint(start)[0]) != quantization:
            raise ValueError(
                f"save_dir must be new or the folder of the same training, and the one in {folder} is of other "
                f"weights, ranges or layers; name another."
            )
    else:
        _write_checkpoint(model, quantization, start)
    if not last.exists():
        files = {"model": str(start), "distill_model": str(start), "data": str(data), "save_dir": str(folder)}
        QuantizationTrainer(overrides={**files, **_arguments(model, given), "exist_ok": True}).train()
        return best
    checkpoint = load_checkpoint(last)[1]
    _require_same(given, checkpoint["train_args"], folder)
    if checkpoint["epoch"] >= 0:
        changed = {name: value for name, value in given.items() if name in RESUMABLE}
        QuantizationTrainer(overrides={**changed, "data": str(data), "model": str(last), "resume": str(last)}).train()
    return best


def _require_same(given: Mapping[str, Any], before: Mapping[str, Any], folder: Path) -> None:
    for name, value in given.items():
        if name not in RESUMABLE and value not in ("auto", before.get(name, value)):
            raise ValueError(
                f"{name} must be {before[name]!r}, with which the training in {folder} was begun, got {value!r}; leave "
                "it out, or name another save_dir."
            )


def _write_checkpoint(model: YOLO, quantization: Quantization, file: Path) -> None:
    if not model.ckpt:
        raise ValueError("weights must be a checkpoint, since training for INT8 starts from a trained model.")
    network = copy.deepcopy(model.model).cpu().float()
    setattr(network, QUANTIZATION, asdict(quantization))
    with _files.replacing(file) as temporary:
        torch.save({"model": network, "train_args": model.ckpt.get("train_args", {})}, temporary)


def _arguments(model: YOLO, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those given, and for the others those of a short fine-tuning."""
    before: Mapping[str, Any] = model.ckpt.get("train_args", {})
    arguments = {name: before[name] for name in _KEPT if before.get(name) is not None} | dict(given)
    rate = before.get("lr0") or 0.01
    if str(arguments.get("optimizer", "auto")) == "auto":  # which would ignore the rate
        arguments["optimizer"], rate = "AdamW", 0.002 * 5 / (4 + len(model.names))  # its choice for a short run
    fitting: dict[str, Any] = {
        "epochs": max(_MIN_EPOCHS, round(_EPOCHS_SHARE * (before.get("epochs") or 100))),
        "lr0": _RATE_SHARE * rate,
        "cos_lr": True,  # in few epochs, a rate that falls linearly ends far above its end
        "warmup_epochs": 1.0,
        "warmup_bias_lr": 0.0,  # ultralytics' own is above the rate
        **dict.fromkeys(("mosaic", "scale", "translate"), 0.0),  # the ranges are those of images as they are
        "amp": False,  # a bfloat16 has no more than the 8 bits that are to be rounded
        "channels_last": False,  # which modelopt's quantisers undo
        "report_epochs": 0,  # the terms of the distillation begin at 0
    }
    if arguments.get("distill_model", START) is not None:
        fitting["kd_feat"] = 0.0  # an adapter, random at first, would only pull the features away from the teacher's
    return {**fitting, **arguments}


class QuantizationTrainer(Trainer):
    """A `Trainer` whose network computes with int8's rounding, for checkpoints that carry their `Quantization`.

    The statistics of the batch normalisations follow the rounding in the warm-up and are frozen then, as they are in
    the file that is exported. Validation is with the rounding too, that of the averaged weights included: the metrics
    of the run, and what it takes for best, are those of INT8 as torch simulates it. The start is validated like an
    epoch, so that best.pt is never worse than calibration alone.

    Raises:
        ValueError: the checkpoint carries no quantisation; or as `Trainer`.
    """

    for_int8 = True

    def setup_model(self) -> dict[str, Any] | None:
        checkpoint = super().setup_model()
        source = student_of(checkpoint.get("ema") or checkpoint["model"]) if checkpoint else None
        quantization = quantization_of(source)
        if quantization is None:
            raise ValueError(
                f"model must be a checkpoint that carries its ranges, and {self.args.model} does not; use "
                "fastyolo.compress.quantize(..., method='qat'), which measures them."
            )
        student = student_of(self.model)
        setattr(student, QUANTIZATION, asdict(quantization))
        rounding(student, quantization)
        return checkpoint

    def _setup_train(self) -> None:
        super()._setup_train()
        if not self.resume:  # which has it in best_fitness and, if no epoch was better, in best.pt
            self._validate_start()

    def _validate_start(self) -> None:
        """Let what calibration alone makes of the model be the one to beat: best.pt until an epoch is better."""
        # What the validator expects of an epoch of training. The losses are those of no epoch, and not kept.
        self.epoch, self.loss = -1, torch.zeros(())
        self.loss_items = dict.fromkeys(_LOSSES, torch.zeros((), device=self.device))
        metrics, fitness = self.validate()
        if RANK not in {-1, 0}:
            return
        LOGGER.info(f"By calibration alone, mAP50-95 is {metrics['metrics/mAP50-95(B)']}.")
        content = {
            "epoch": -1,
            "model": load_checkpoint(self.args.model)[0],
            "train_args": vars(self.args),
            "train_metrics": {**metrics, "fitness": fitness},
            _AT_START: True,
        }
        with _files.replacing(Path(self.best)) as temporary:
            torch.save(content, temporary)

    def _model_train(self) -> None:
        super()._model_train()
        if self.epoch >= min(self.args.warmup_epochs, self.epochs - 1):
            for module in student_of(unwrap_model(self.model)).modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def save_model(self) -> bool:
        # What ultralytics' own quantisation-aware training stores takes modelopt to be read again.
        with rebound(engine, qat_state=lambda model: None, strip_qat=modelopt.remove):
            return super().save_model()

    def _validate_best(self) -> None:
        """From the epoch that wrote it: best.pt itself would be validated without rounding."""
        if RANK in {-1, 0} and self.best.exists():
            stripped = self._strip_best(self.best, {"train_results": self.read_results_csv()})
            if _AT_START in stripped:
                LOGGER.warning("No epoch was better than calibration alone, so best.pt is the model as it was.")
            self.metrics = {name: value for name, value in stripped["train_metrics"].items() if name != "fitness"}
