# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a training would see of a data set, and whether it would take it, before any training begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.checks import check_model_file_from_stem

from fastyolo.integrations.ultralytics.data import build_dataset, describing
from fastyolo.integrations.ultralytics.weights import read_checkpoint
from fastyolo.train.settings import split

__all__ = ["Split", "read", "scale_of"]


@dataclass(frozen=True)
class Split:
    """Of a data set.

    Attributes:
        images: files.
        objects: of each image, how many.
        digest: a hash of the names and sizes of the images and of the labels.
    """

    images: tuple[str, ...]
    objects: tuple[int, ...]
    digest: str


def read(data: str | Path, arguments: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Split]]:
    """The classes of a data set, and its splits train and val, as a training with these arguments would read them.

    Args:
        arguments: ultralytics' and fastyolo's settings.

    Raises:
        FileNotFoundError: a split has no images.
        ValueError: the description is not as ultralytics expects it, or the trainer refuses files of it.
    """
    settings, theirs = split(arguments)
    args = get_cfg(dict(DEFAULT_CFG_DICT), {**theirs, "cache": False})
    vars(args).update(settings.as_dict())
    with describing(data):
        description = check_det_dataset(str(data))
    found = {}
    for name in ("train", "val"):
        dataset = build_dataset(args, description[name], 1, description, mode=name)
        found[name] = _split(dataset.im_files, dataset.labels)
    return tuple(description["names"].values()), found


def _split(files: list[str], labels: list[dict[str, Any]]) -> Split:
    digest = hashlib.sha256()
    for file, label in zip(files, labels, strict=True):
        digest.update(f"{Path(file).name} {Path(file).stat().st_size}\0".encode())
        digest.update(np.column_stack([label["cls"], label["bboxes"]]).astype(np.float32).tobytes())
    return Split(tuple(files), tuple(len(label["cls"]) for label in labels), digest.hexdigest())


def scale_of(model: str) -> str | None:
    """The scale, n to x, of a model's YAML file or checkpoint; None: it has none.

    Raises:
        FileNotFoundError: it is neither on this machine nor ultralytics' to download.
        ValueError: it cannot be read.
    """
    if model.endswith((".yaml", ".yml")):
        return yaml_model_load(model)["scale"] or None
    return read_checkpoint(check_model_file_from_stem(model)).model.yaml.get("scale")
