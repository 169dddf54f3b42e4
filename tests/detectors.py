# SPDX-License-Identifier: AGPL-3.0-or-later
"""Detectors so narrow, and images so small, that a test can train them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

NAMES = ("red", "green", "blue")
SIZE = 64


def detector(name: str = "yolov8n", *, width: float = 0.1, seed: int = 0, **changes: Any) -> DetectionModel:
    """The network of one of ultralytics' YAML files with three classes and other widths, in training mode."""
    config = {**yaml_model_load(f"{name}.yaml"), **changes}
    config["scales"] = {"n": [0.33, width, 1024]}
    torch.manual_seed(seed)
    model = DetectionModel(config, nc=len(NAMES), verbose=False)
    model.names = dict(enumerate(NAMES))
    model.args = get_cfg()
    return model.train()


def scenes(count: int, size: int = SIZE) -> dict[str, Tensor]:
    """A batch as ultralytics' trainer makes it: noise with one to three rectangles, whose colour is their class."""
    random = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=random).item()

    images = 0.3 + 0.2 * torch.rand(count, 3, size, size, generator=random)
    rows = []
    for image in range(count):
        for _ in range(1 + image % len(NAMES)):
            label = int(torch.randint(len(NAMES), (), generator=random))
            width, height = uniform(0.2, 0.5), uniform(0.2, 0.5)
            x, y = uniform(width / 2, 1 - width / 2), uniform(height / 2, 1 - height / 2)
            rows.append((image, label, x, y, width, height))
            left, right, top, bottom = (
                round(size * v) for v in (x - width / 2, x + width / 2, y - height / 2, y + height / 2)
            )
            images[image, :, top:bottom, left:right] = 0.1
            images[image, label, top:bottom, left:right] = 0.9
    table = torch.tensor(rows)
    return {"img": images, "batch_idx": table[:, 0], "cls": table[:, 1:2], "bboxes": table[:, 2:]}


def without_objects(batch: dict[str, Tensor], images: tuple[int, ...]) -> dict[str, Tensor]:
    """The batch without the labels of some images."""
    kept = ~torch.isin(batch["batch_idx"], torch.tensor(images, dtype=torch.float32))
    return {name: value if name == "img" else value[kept] for name, value in batch.items()}


def train(model: nn.Module, batch: dict[str, Tensor], steps: int) -> None:
    """AdamW on one batch; the statistics of the normalisations are then set to those of the batch."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.004)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.004, total_steps=steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch)[0].sum().backward()
        nn.utils.clip_grad_norm_(parameters, 10)
        optimizer.step()
        schedule.step()
    set_statistics(model, batch)


@torch.no_grad()
def set_statistics(model: nn.Module, batch: dict[str, Tensor]) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.momentum = 1.0
    model.train()(batch["img"])
    for norm in norms:
        norm.momentum = momentum
