# SPDX-License-Identifier: AGPL-3.0-or-later
"""ultralytics' DetectionTrainer with fastyolo's settings, distillation, and checkpoints that a kill cannot damage.

With the settings as they are by default, and without a teacher, it computes what DetectionTrainer computes. Where
ultralytics has no method to override, `Trainer` rebinds a name in one of its modules for as long as a run lasts.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from logging import LogRecord
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from ultralytics.cfg import cfg2dict, get_cfg
from ultralytics.engine import trainer as engine
from ultralytics.engine import validator as validation
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.models.yolo.detect import val as detection_validation
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils import (
    DEFAULT_CFG,
    LOGGER,
    RANK,
    WORLD_SIZE,
    YAML,
    IterableSimpleNamespace,
    autobatch,
    torch_utils,
)
from ultralytics.utils.torch_utils import TORCH_2_13, autocast, init_seeds, strip_optimizer, unwrap_model

from fastyolo import _files
from fastyolo.integrations.ultralytics.data import build_dataset, letterbox_only, reading
from fastyolo.integrations.ultralytics.distillation import LOSS_NAMES, Distillation, load_teacher
from fastyolo.integrations.ultralytics.hooks import rebound
from fastyolo.integrations.ultralytics.loss import DetectionLoss, PositiveCounter
from fastyolo.integrations.ultralytics.models import transfer
from fastyolo.integrations.ultralytics.processes import SharedFolder, ddp_command, launch
from fastyolo.integrations.ultralytics.pruning import is_pruned, rebuilt
from fastyolo.integrations.ultralytics.sparsity import SMALL, Sparsity
from fastyolo.train.distillation import ramp
from fastyolo.train.report import loss_report
from fastyolo.train.settings import NAMES, Settings, split

__all__ = ["Trainer"]

# What YOLO.train() gives beside `resume` in any case; ultralytics takes it from the checkpoint, or for a new path.
_NO_CHANGE = frozenset({"data", "mode", "model", "pretrained", "resume"})

# The share of a backbone that must be trained for it to be frozen; yolov8s-fast takes 37 % of its own from YOLOv8s.
_FREEZABLE = 0.5

_ARGUMENTS, _LOSS_REPORT, _RECOVERIES = "args.yaml", "loss_report.json", "recoveries.json"  # in a run's folder

# Settings of DetectionLoss, which cannot take the place of an end-to-end model's criterion.
_CRITERION = ("tal_topk", "tal_alpha", "tal_beta", "tal_radius", "cls_loss", "label_smoothing", "class_weights")

# The attribute of a network that was trained for INT8.
QUANTIZATION = "quantization"


class Trainer(DetectionTrainer):
    """ultralytics' DetectionTrainer, whose `overrides` hold fastyolo's settings beside ultralytics' arguments.

    The settings then stand in `args`, so that args.yaml, the checkpoints and the processes of a run on several GPUs
    have them too. Beyond DetectionTrainer:

    - `distill_model` is the teacher of a `Distillation`.
    - A pruned network is trained as it is, where ultralytics would build another from its YAML file.
    - `close_geometry` letterboxes the images of the last epochs, and leaves it at that; best.pt is one of these epochs,
      unless the run stops early, before them.
    - `sparsity` adds its subgradient to the gradients; the log and results.csv tell how many factors have become small.
    - On a CPU, amp="bf16" and channels_last=True have an effect, and torchrun may start several processes.
    - Checkpoints are replaced in one step, and keep the settings at the end. `resume` goes on after a kill at any
      moment, in the folder that the checkpoint now lies in, with its settings and, as with ultralytics, from the
      averaged weights. It derives new random seeds from the epoch, since the state of the workers that load the images
      is out of reach. That last.pt is final tells that the run is finished.
    - After `report_epochs` epochs, or the last, the log and loss_report.json tell which gains of the loss to change,
      and which objects and levels got no positives.
    - results.csv has the loss scale of float16 (amp=True on a GPU), and recoveries.json the epochs that were repeated
      since the loss was not finite.
    - No folder is deleted, and a `save_dir` that holds something is refused without `exist_ok`.

    Attributes:
        settings: fastyolo's settings of the run.

    Raises:
        ValueError: a setting has a value that it cannot have or contradicts another, an argument given beside
            `resume` differs from the checkpoint's, `save_dir` holds something, or torchrun started more processes than
            there are devices.
        ModuleNotFoundError: `tensorboard` is asked for, and its package is missing.
    """

    for_int8 = False
    args: Any
    model: Any
    wdir: Path
    last: Path
    best: Path

    def __init__(
        self, cfg: Any = DEFAULT_CFG, overrides: Mapping[str, Any] | None = None, _callbacks: Any = None
    ) -> None:
        given, defaults = dict(overrides or {}), cfg2dict(cfg)
        self.settings, _ = split({**defaults, **given})
        # The mark of the script that ultralytics starts on each GPU, to which it hands all arguments of this process.
        self._launched = defaults.get("save_dir") == ""
        if RANK in {-1, 0} and not self._launched:
            _check_folder({**defaults, **given})
        arguments = {name: value for name, value in given.items() if name not in NAMES}
        self._given = {name: value for name, value in given.items() if name in NAMES}
        folder = SharedFolder() if WORLD_SIZE > 1 and not arguments.get("save_dir") else None
        if folder and RANK > 0:
            arguments["save_dir"] = folder.wait()
        with ExitStack() as afterwards:
            self._afterwards = afterwards
            self._resumed: dict[str, Any] | None = None
            super().__init__(cfg, arguments, _callbacks)
        if folder and RANK == 0:
            folder.announce(self.save_dir)
        if RANK in {-1, 0} and not self.args.resume:  # as ultralytics does with results.csv
            for name in (_LOSS_REPORT, _RECOVERIES):
                (self.save_dir / name).unlink(missing_ok=True)
        self.wdir = _WeightsPath(self.wdir)
        self.last, self.best = self.wdir / self.last.name, self.wdir / self.best.name
        self._cpu_processes = WORLD_SIZE > 1 and self.device.type == "cpu"
        if WORLD_SIZE > 1 and self.world_size not in {0, WORLD_SIZE}:
            raise ValueError(
                f"device must name a GPU for each of the {WORLD_SIZE} processes that torchrun started, got "
                f"{self.args.device!r}; pass device={','.join(map(str, range(WORLD_SIZE)))}, or device=cpu."
            )
        self._writer: Any = None
        self._sparsity: Sparsity | None = None
        self._positives: PositiveCounter | None = None
        self._batches = 0  # of this epoch
        self._geometry_closed = False

    def check_resume(self, overrides: dict[str, Any]) -> None:
        with rebound(engine, get_cfg=_get_cfg):
            super().check_resume({} if self._launched else overrides)
        if self._launched:
            vars(self.args).update(overrides)  # that process has checked them, and adapted some
        elif self.resume:
            self._resume_in_place(overrides)
            self.settings, _ = split(vars(self.args))
            self._refuse_changes({**overrides, **self._given})
        if self.resume:
            self._keep_arguments()
        vars(self.args).update(self.settings.as_dict())
        if self.args.distill_model is None:
            self._check_no_teacher()
        if self.settings.tensorboard:
            _summary_writer()

    def _resume_in_place(self, overrides: Mapping[str, Any]) -> None:
        """In the folder of the checkpoint, which may have been moved or copied since it named another."""
        folder = Path(self.args.model).absolute().parent
        if not overrides.get("save_dir") and folder.name == "weights":
            self.args.save_dir = str(folder.parent)

    def _keep_arguments(self) -> None:
        """Leave args.yaml, which ultralytics writes at once, as it is until the run goes on."""
        file = Path(str(self.args.save_dir)) / _ARGUMENTS
        if RANK in {-1, 0} and (before := _read_arguments(file)):
            self._afterwards.callback(self._put_back, file, file.read_bytes(), before)

    def _put_back(self, file: Path, content: bytes, before: Mapping[str, Any]) -> None:
        # The model is the run's; ultralytics writes the checkpoint in its place.
        self._resumed = {**_read_arguments(file), "model": before.get("model", self.args.model)}
        with _files.replacing(file) as temporary:
            temporary.write_bytes(content)

    def _refuse_changes(self, given: Mapping[str, Any]) -> None:
        for name, value in given.items():
            kept = getattr(self.args, name, None)  # already the given value, where ultralytics allows a change
            if name not in _NO_CHANGE and value != kept:
                raise ValueError(
                    f"{name} must be left out beside resume or be the checkpoint's, {kept!r}, got {value!r}; start a "
                    "new run to change it."
                )

    def _check_no_teacher(self) -> None:
        if not self.settings.kd_labels:
            raise ValueError("kd_labels must be true without distill_model, or there is nothing to learn from.")
        default = Settings().as_dict()
        changed = [name for name, value in self.settings.as_dict().items() if value != default[name]]
        without_effect = [name for name in changed if name.startswith("kd_")]
        if without_effect and RANK in {-1, 0} and not self._launched:
            LOGGER.warning(f"Without distill_model, these settings have no effect: {', '.join(without_effect)}.")

    def get_dataset(self) -> dict[str, Any]:
        with reading(self.args.data):
            return super().get_dataset()

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        return build_dataset(self.args, img_path, batch, self.data, mode=mode, rect=mode == "val", stride=stride)

    def get_validator(self) -> DetectionValidator:
        _, arguments = split(vars(self.args))  # a validator refuses names that are not ultralytics'
        args = IterableSimpleNamespace(**arguments)
        return DetectionValidator(self.test_loader, save_dir=self.save_dir, args=args, _callbacks=self.callbacks)

    # The model

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> DetectionModel:
        weights = student_of(weights)
        if is_pruned(weights) and weights.yaml is cfg:
            model = rebuilt(weights, self.data, remap=self.args.cls_remap)
        else:
            model = super().get_model(cfg, weights, verbose)
        taken = transfer(model, weights) if weights else None
        if taken and RANK in {-1, 0}:
            LOGGER.info(f"{taken}.")
        if self.settings.freeze_backbone:  # here, since on several GPUs the model may be built before they are started
            _check_trained(taken.backbone if taken else 0.0)
        return model

    def setup_model(self) -> dict[str, Any] | None:
        """Build the student, unless it was handed over, and wrap it if there is a teacher.

        Returns:
            The checkpoint that the weights come from, or None.
        """
        with rebound(engine, load_checkpoint=_load_student):
            checkpoint = super().setup_model()
        if self.resume:
            if checkpoint["epoch"] < 0:
                raise ValueError(f"resume must be a checkpoint of an unfinished run, and {self.args.model} is final.")
            if not self.for_int8 and hasattr(student_of(checkpoint["ema"]), QUANTIZATION):
                raise ValueError(
                    f"resume must be a checkpoint of fastyolo train, and {self.args.model} is of a training for INT8; "
                    "repeat the command that began it."
                )
            self._check_data(checkpoint)
            init_seeds(self._seed(checkpoint), deterministic=self.args.deterministic)
        if not self.for_int8:  # whose ranges are not those of the weights to come
            vars(student_of(self.model)).pop(QUANTIZATION, None)
        self.model = self.model.to(self.device)
        if self.settings.freeze_backbone:
            self._freeze_backbone()
        if self.args.distill_model is not None:
            self._add_teacher()
        if self.resume:
            self._restore_adapters(checkpoint)
        if self.device.type == "cpu" and self.args.channels_last:  # ultralytics converts it elsewhere
            self.model = self.model.to(memory_format=torch.channels_last)
        return checkpoint

    def _check_data(self, checkpoint: Mapping[str, Any]) -> None:
        """The data set may have moved, but must have the classes that the run began with."""
        began, names = (list(dict(each).values()) for each in (student_of(checkpoint["ema"]).names, self.data["names"]))
        if began != names:
            raise ValueError(
                f"data must have the {len(began)} classes that the run began with, in their order ({_some(began)}), "
                f"got {len(names)} ({_some(names)}); start a new run to train for others."
            )
        data = checkpoint["train_args"].get("data")
        if data != self.args.data and RANK in {-1, 0}:
            LOGGER.warning(f"The run began with the data set {data} and goes on with {self.args.data}.")

    def _seed(self, checkpoint: Mapping[str, Any]) -> int:
        """Other random numbers than those of the first epochs; 1000, to stay clear of the other processes' seeds."""
        return self.args.seed + 1 + RANK + 1000 * (checkpoint["epoch"] + 1)

    def _freeze_backbone(self) -> None:
        layers = len(self.model.yaml["backbone"])
        if self.args.freeze not in (None, layers, list(range(layers))):
            raise ValueError(
                f"freeze must be left out or be {layers}, the length of the backbone, beside freeze_backbone, got "
                f"{self.args.freeze!r}."
            )
        self.args.freeze = layers

    def _add_teacher(self) -> None:
        if self.args.quantize == 8:
            raise ValueError(
                "quantize must not be 8 beside distill_model; train with the teacher first, then quantise."
            )
        self.set_model_attributes()  # the classes, which a teacher's are compared with
        teacher = load_teacher(self.args.distill_model, self.model)
        if self.args.channels_last or (self.args.channels_last is None and self.device.type == "cuda"):
            teacher = teacher.to(memory_format=torch.channels_last)
        self.model = Distillation(self.model, teacher, self.settings)

    def _restore_adapters(self, checkpoint: Mapping[str, Any]) -> None:
        stored = checkpoint["ema"]
        if _adapter_shapes(stored) != _adapter_shapes(self.model):
            raise ValueError(
                f"distill_model must be as in the run that resume goes on with, got {self.args.distill_model!r}; start "
                "a new run to add a teacher, to drop it or to take one of another architecture."
            )
        if isinstance(self.model, Distillation):
            self.model.projector.load_state_dict(stored.projector.state_dict())

    def set_class_weights(self) -> None:
        """Give the student its criterion, here since ultralytics' class weights are part of it."""
        super().set_class_weights()
        student = student_of(unwrap_model(self.model))
        if getattr(student.model[-1], "one2one_cv2", None) is None:
            student.criterion = DetectionLoss(student, self.settings)
            if RANK in {-1, 0}:
                student.criterion.assigner.counter = self._positives = PositiveCounter(student.stride.tolist())
            return
        default = Settings()
        for name in _CRITERION:
            if (value := getattr(self.settings, name)) != getattr(default, name):
                raise ValueError(f"{name} must be left as it is for an end-to-end model, got {value!r}.")

    # The optimizer

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> Optimizer:
        optimizer = super().build_optimizer(model, *args, **kwargs)
        if self.settings.head_lr != 1:
            head = {id(p) for p in student_of(unwrap_model(model)).model[-1].parameters()}
            _scale_learning_rate(optimizer, head, self.settings.head_lr)
        if self.settings.sparsity:
            self._sparsity = sparsity = Sparsity(student_of(unwrap_model(model)), self.settings)
            optimizer.register_step_pre_hook(
                lambda *_: sparsity.add_subgradient(self.epoch / max(self.epochs - 1, 1)),
            )
        return optimizer

    # The loop

    def train(self) -> None:
        with rebound(engine, generate_ddp_command=ddp_command, subprocess=SimpleNamespace(run=launch)):
            super().train()

    def _do_train(self) -> None:
        with ExitStack() as run:
            run.enter_context(rebound(engine, autocast=_autocast))
            run.enter_context(rebound(autobatch, autocast=_autocast))
            if self._cpu_processes and not distributed.is_initialized():
                distributed.init_process_group("gloo", rank=RANK, world_size=WORLD_SIZE)
                run.callback(distributed.destroy_process_group)
            try:
                super()._do_train()
            except _AllEpochsDone:
                self._finish()
            finally:
                if self._writer:
                    self._writer.close()

    def _setup_train(self) -> None:
        amp = self.args.amp
        if self._cpu_processes and amp != "bf16":
            self.args.amp = False  # what the first process finds out by itself, and tells the others only on GPUs
        with _muted("'channels_last=True' is only supported on CUDA"):
            super()._setup_train()
        self.args.amp = amp
        if self._resumed:
            with _files.replacing(self.save_dir / _ARGUMENTS) as temporary:
                YAML.save(temporary, self._resumed)
        if self.settings.tensorboard and RANK in {-1, 0}:
            self._writer = _summary_writer()(self.save_dir, purge_step=self.start_epoch + 1)

    def _build_train_pipeline(self) -> None:
        # ultralytics counts no devices among CPUs, so it leaves the model as it is until here, where it would follow.
        if self._cpu_processes and not isinstance(self.model, DistributedDataParallel):
            buffers: dict[str, Any] = {"forward_sync_buffers" if TORCH_2_13 else "broadcast_buffers": False}
            self.model = DistributedDataParallel(self.model, find_unused_parameters=True, **buffers)
            self.world_size = WORLD_SIZE
        super()._build_train_pipeline()
        self._geometry_closed = False  # of the new loader

    def _model_train(self) -> None:
        super()._model_train()
        self._batches = 0
        if self.settings.close_geometry and not self._geometry_closed and self._is_closing():
            self._close_geometry()

    def _is_closing(self) -> bool:
        """Whether this is one of the last epochs. Under `time`, ultralytics' number of epochs is but a guess."""
        if not self.args.time:
            return bool(self.epoch >= self.epochs - self.settings.close_geometry)
        budget, spent = 3600 * self.args.time, time.time() - self.train_time_start
        epoch = spent / max(self.epoch - self.start_epoch, 1)
        return bool(spent >= budget - min(self.settings.close_geometry * epoch, budget / 3))

    def _close_geometry(self) -> None:
        """Go on with images that are letterboxed alone, of whose epochs best.pt is then chosen."""
        if RANK in {-1, 0}:
            LOGGER.info("Letterboxing images from here on, without other changes of their geometry")
            if self.epoch == 0:
                LOGGER.warning(f"close_geometry={self.settings.close_geometry} leaves no epoch with other images.")
        self._close_dataloader_mosaic()
        letterbox_only(self.train_loader.dataset)
        self.train_loader.reset()
        self._geometry_closed = True
        if self.epoch > self.start_epoch or self.epoch == self.epochs - self.settings.close_geometry:
            self.best_fitness = None
            self.stopper.best_fitness, self.stopper.best_epoch = 0.0, self.epoch

    def _close_dataloader_mosaic(self) -> None:
        """ultralytics' own, which would make the transforms anew."""
        if not self._geometry_closed:
            super()._close_dataloader_mosaic()

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        model = unwrap_model(self.model)
        if isinstance(model, Distillation):
            model.epoch = self.epoch + self._batches / len(self.train_loader)
            self._batches += 1
        return super().preprocess_batch(batch)

    def save_metrics(self, metrics: dict[str, float]) -> None:
        if self._sparsity:
            small = self._sparsity.small()
            LOGGER.info(f"Sparsity: {small:.1%} of the normalisations' factors are below {SMALL}.")
            metrics = {**metrics, "sparsity/small": small}
        if self._has_loss_scale():
            scale = self.scaler.get_scale() if self.scaler.is_enabled() else math.nan
            metrics = {**metrics, "amp/scale": scale}
        super().save_metrics(metrics)
        epoch = self.epoch + 1
        if self._writer:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, epoch)
            self._writer.flush()
        last = min(self.settings.report_epochs, self.epochs)
        if epoch == last:
            self._report_losses()
        if epoch >= last and self._positives:
            student_of(unwrap_model(self.model)).criterion.assigner.counter = self._positives = None

    def _has_loss_scale(self) -> bool:
        """Whether results.csv has that column: a resume on another device must not change the columns."""
        if not self.csv.exists():
            return bool(self.scaler.is_enabled())
        with self.csv.open(encoding="utf-8") as file:
            return "amp/scale" in file.readline()

    def _report_losses(self) -> None:
        """From results.csv, which a resumed run has in full."""
        columns = {
            name.removeprefix("train/").replace("l1_loss", "dfl").removesuffix("_loss"): map(float, values)
            for name, values in self.read_results_csv().items()
            if name.startswith("train/")
        }
        if not columns:  # ultralytics could not read the file
            return
        if LOSS_NAMES[0] in columns and not self.settings.kd_labels:  # the labels' terms are in the log, not the loss
            columns = {name: columns[name] for name in LOSS_NAMES}
        epochs = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        for epoch, terms in enumerate(epochs):
            for name in terms.keys() & set(LOSS_NAMES):  # as they will be once their weights have risen
                terms[name] /= ramp(epoch + 0.5, self.settings.kd_ramp_epochs)
        positives = self._positives.total() if self._positives else None
        report = replace(loss_report(epochs, {name: getattr(self.args, name) for name in columns}), positives=positives)
        LOGGER.info(str(report))
        _files.write_json(self.save_dir / _LOSS_REPORT, report.as_dict())

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """ultralytics' own, whose returns to last.pt are then told by recoveries.json and not by the log alone."""
        before = self.nan_recovery_attempts
        try:
            return bool(super()._handle_nan_recovery(epoch))
        finally:
            if self.nan_recovery_attempts > before and RANK in {-1, 0}:
                file = self.save_dir / _RECOVERIES
                epochs = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
                _files.write_json(file, [*epochs, epoch + 1])

    def final_eval(self) -> None:
        """ultralytics' own, except that last.pt becomes final only afterwards: until then, resume can repeat it."""
        closing = self.settings.close_geometry
        if closing and not self.args.time and self.epoch < self.epochs - closing and RANK in {-1, 0}:
            LOGGER.warning(
                "close_geometry had no effect, since the run stopped before its last epochs; train best.pt on with "
                "mosaic=0, scale=0 and translate=0, or raise patience."
            )
        with rebound(engine, strip_optimizer=self._strip_best):
            self._validate_best()
        if RANK in {-1, 0} and self.last.exists():
            _strip_optimizer(self.last)

    def _strip_best(self, file: Path, updates: dict[str, Any] | None = None) -> dict[str, Any]:
        if file == self.last:
            return {"train_results": self.read_results_csv()}  # all that is asked of it, for best.pt
        return _strip_optimizer(file, updates)

    def _validate_best(self) -> None:
        if not self._cpu_processes:
            super().final_eval()
        elif RANK == 0:
            # ultralytics' validator looks for the GPU of its process; the first process validates as if alone.
            alone = {"RANK": -1, "LOCAL_RANK": -1}
            with rebound(validation, **alone), rebound(detection_validation, **alone):
                images, batch = self.data[self.args.split], 2 * self.batch_size
                self.validator.dataloader = self.get_dataloader(images, batch_size=batch, rank=-1, mode="val")
                super().final_eval()
        else:
            distributed.barrier()  # the first process meets the others here once it has stripped best.pt

    # Resuming

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        if not self.resume or ckpt is None:
            return super().resume_training(ckpt)
        epochs = ckpt["epoch"] + 1
        if RANK in {-1, 0}:
            self._restore_files(ckpt)
        if epochs < self.epochs:
            super().resume_training(ckpt)
        else:
            self._load_checkpoint_state(ckpt)
            self.start_epoch = epochs
        fitness = (ckpt.get("train_metrics") or {}).get("fitness")
        if epochs >= self.epochs or self.stopper(epochs, fitness):
            raise _AllEpochsDone
        return None

    def _restore_files(self, ckpt: Mapping[str, Any]) -> None:
        """Take back what was written after the checkpoint, and make up for what was not."""
        for leftover in Path(self.wdir).glob(".*.pt.*"):
            leftover.unlink()
        if columns := ckpt.get("train_results"):
            rows = [",".join(f"{float(value):.6g}" for value in row) for row in zip(*columns.values(), strict=True)]
            with _files.replacing(self.csv) as temporary:
                temporary.write_text("\n".join([",".join(columns), *rows]) + "\n", encoding="utf-8")
        if (ckpt.get("train_metrics") or {}).get("fitness") == ckpt["best_fitness"]:
            with _files.replacing(self.best) as temporary:
                shutil.copyfile(self.args.model, temporary)

    def _finish(self) -> None:
        """What follows the last epoch, for a run that was killed there."""
        self.epoch = self.start_epoch - 1
        self.final_eval()
        if RANK in {-1, 0}:
            if self.args.plots:
                self.plot_metrics()
            self.run_callbacks("on_train_end")
        for loader in (self.train_loader, self.test_loader):
            loader.close()


def _read_arguments(file: Path) -> dict[str, Any]:
    """Those of a run; none if the file is damaged or gone, which a run can do without."""
    try:
        return dict(YAML.load(file))
    except (OSError, TypeError, ValueError, yaml.YAMLError):
        return {}


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")


class _AllEpochsDone(Exception):  # noqa: N818 - no error
    """The checkpoint to resume from is of the last epoch."""


class _WeightsPath(PosixPath):
    """A path under which write_bytes() replaces a file in one step; so it is for what is joined to it."""

    def write_bytes(self, data: Any) -> int:
        with _files.replacing(Path(self)) as temporary:
            return temporary.write_bytes(data)


def _check_folder(arguments: Mapping[str, Any]) -> None:
    folder = arguments.get("save_dir")
    if not folder or arguments.get("exist_ok") or arguments.get("resume"):
        return
    if not all(map(_is_nothing, Path(folder).rglob("*"))):
        raise ValueError(
            f"save_dir must be a new or an empty folder, and {folder} holds files; choose another, or pass "
            "exist_ok=true (--set exist_ok=true) to write among them."
        )


def _is_nothing(path: Path) -> bool:
    """Whether a file or folder is what a run leaves that ends before its first checkpoint; a lock is hidden."""
    if path.name in (_ARGUMENTS, "weights") or path.name.startswith("."):
        return True
    tables = ("results.csv", _LOSS_REPORT, _RECOVERIES)
    picture = path.suffix in (".jpg", ".png") and path.name.startswith(("labels", "train_batch"))
    of_a_run = path.name in tables or picture or path.name.startswith("events.out.tfevents.")
    return of_a_run and (path.parent / _ARGUMENTS).is_file()


def student_of(model: Any) -> Any:
    return model.student_model if isinstance(model, DistillationModel) else model


def _adapter_shapes(model: nn.Module) -> list[torch.Size] | None:
    """Of a distillation's adapters; None for a model that is none."""
    if not isinstance(model, DistillationModel):
        return None
    return [value.shape for value in model.projector.state_dict().values()]


def _check_trained(backbone: float) -> None:
    if backbone < _FREEZABLE:
        raise ValueError(
            f"freeze_backbone needs a trained backbone, and {backbone:.0%} of this one's parameters come from a "
            "checkpoint; pass one of the same architecture as model or pretrained."
        )


def _get_cfg(cfg: Mapping[str, Any]) -> IterableSimpleNamespace:
    """get_cfg() of a checkpoint's arguments, whose label_smoothing it would drop: ultralytics had such an argument."""
    settings, arguments = split(cfg)
    args = get_cfg(arguments)
    vars(args).update(settings.as_dict())
    return args


def _load_student(*args: Any, **kwargs: Any) -> tuple[nn.Module, dict[str, Any]]:
    """load_checkpoint(), with the student of what a distillation left, whose teacher is another's concern."""
    model, checkpoint = load_checkpoint(*args, **kwargs)
    student = student_of(model)
    student.pt_path = model.pt_path
    return student, checkpoint


def _scale_learning_rate(optimizer: Optimizer, chosen: set[int], factor: float) -> None:
    """Move the parameters with these ids to groups of their own, which differ from the old ones in the rate alone."""
    for group in list(optimizer.param_groups):
        parameters = [p for p in group["params"] if id(p) in chosen]
        if parameters:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
            optimizer.add_param_group({**group, "params": parameters, "lr": group["lr"] * factor})


def _autocast(enabled: bool | torch.dtype, device: str = "cuda") -> Any:
    """ultralytics' autocast(), which refuses bfloat16 on a CPU."""
    if enabled is torch.bfloat16 and device == "cpu":
        return torch.autocast("cpu", torch.bfloat16)
    return autocast(enabled, device)


def _strip_optimizer(file: Path, updates: dict[str, Any] | None = None) -> dict[str, Any]:
    """ultralytics' strip_optimizer(), which would write over the file, and drop fastyolo's settings."""
    kept = torch_utils.DEFAULT_CFG_KEYS | NAMES
    with _files.replacing(Path(file)) as temporary, rebound(torch_utils, DEFAULT_CFG_KEYS=kept):
        with _muted("Optimizer stripped"):  # it would name the temporary file
            stripped = strip_optimizer(file, temporary, updates)
        if not stripped:  # it has warned that this is no checkpoint
            shutil.copyfile(file, temporary)
    if stripped:
        LOGGER.info(f"Optimizer stripped from {file}, {file.stat().st_size / 1e6:.1f}MB")
    return stripped


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "tensorboard=True needs the package tensorboard, which is not installed: pip install tensorboard."
        ) from error
    return SummaryWriter


@contextmanager
def _muted(start: str) -> Iterator[None]:
    """Keep messages that begin so, and are wrong here, out of ultralytics' log."""

    def keep(record: LogRecord) -> bool:
        return not record.getMessage().startswith(start)

    LOGGER.addFilter(keep)
    try:
        yield
    finally:
        LOGGER.removeFilter(keep)
