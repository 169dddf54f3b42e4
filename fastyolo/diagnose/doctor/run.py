# SPDX-License-Identifier: AGPL-3.0-or-later
"""What went wrong in a training run, from the files that it left: results.csv, args.yaml and loss_report.json."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from fastyolo.diagnose.doctor.findings import Finding, Report, Severity, counted

MAP = "metrics/mAP50-95(B)"
MAP50 = "metrics/mAP50(B)"

_RATES = {
    "SGD": 0.1,
    "MuSGD": 0.1,
    "Adam": 0.01,
    "AdamW": 0.01,
}  # ten times ultralytics' lr0 with SGD, and Adam's 0.001
_DIVERGED = 1.5  # times the least loss so far
_RISEN = 1.1  # of the loss of validation, likewise
_LOST = 0.01  # mAP50-95
_LEAST_EPOCHS = 10  # for words on the course of a run
_NOTHING = 0.01  # mAP50


def examine(folder: Path, arguments: Mapping[str, Any]) -> Report:
    """
    Args:
        folder: of the run.
        arguments: what is in its args.yaml.

    Raises:
        ValueError: the folder has no results.csv with the losses of an epoch.
    """
    rows = _rows(folder / "results.csv")
    report = Report(facts={"epochs": len(rows)})
    train = [_loss(row, "train/") for row in rows]
    broken = list(_of_stability(rows, train, arguments))
    report.add(broken)
    if not broken and len(rows) >= _LEAST_EPOCHS:
        report.add(_of_course(rows, train))
    report.add(_of_terms(folder / "loss_report.json"))
    return report


def _rows(file: Path) -> list[dict[str, float]]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            table = [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(lines)]
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"run (--run) must be the folder of a training run, but {file} cannot be read ({error})."
        ) from error
    if not table or not any(key.startswith("train/") for key in table[0]):
        raise ValueError(f"run (--run) must be the folder of a training run, but {file} has no losses of an epoch.")
    return table


def _loss(row: Mapping[str, float], prefix: str) -> float:
    """The sum of the terms, gains included."""
    return sum(value for key, value in row.items() if key.startswith(prefix))


def _of_stability(
    rows: Sequence[Mapping[str, float]], train: Sequence[float], arguments: Mapping[str, Any]
) -> Iterator[Finding]:
    optimizer = str(arguments.get("optimizer", "auto"))
    # The least of the groups, since that of the biases starts high by default (warmup_bias_lr).
    peak = max(min((value for key, value in row.items() if key.startswith("lr/")), default=0.0) for row in rows)
    limit = _RATES.get(optimizer, max(_RATES.values()))
    too_high = peak > limit
    amp = arguments.get("amp", True) not in (False, "bf16")
    bad = [index for index, value in enumerate(train) if not math.isfinite(value)]
    if bad:
        remedy = f"Lower lr0, {arguments.get('lr0', '?')} now"
        if amp:
            remedy += "; if that does not help, train with amp=bf16 or amp=false, since float16 overflows at 65504"
        first = rows[bad[0]].get("epoch", bad[0] + 1)
        yield Finding(
            Severity.error,
            "loss is not finite",
            f"The training loss is NaN or infinite in {counted(len(bad), 'epoch')}, the first of them {first:.0f}.",
            f"{remedy}; see whether the labels are finite with --data.",
            len(bad),
        )
    elif len(train) > 3 and min(train[-3:]) > _DIVERGED * min(train):
        best = train.index(min(train))
        yield Finding(
            Severity.error,
            "divergence",
            f"The training loss rose from {train[best]:.3g} in epoch {best + 1} to {train[-1]:.3g} at the end.",
            f"Lower lr0, {arguments.get('lr0', '?')} now, or lengthen warmup_epochs.",
        )
    if too_high:
        yield Finding(
            Severity.error,
            "learning rate too high",
            f"The learning rate reached {peak:.3g}; with {optimizer} more than {limit:g} hardly ever trains.",
            "Set lr0 to 0.01 with SGD or 0.001 with AdamW, or leave the choice to optimizer=auto.",
        )
    last = rows[-1]
    if not bad and not math.isfinite(_loss(last, "val/")):
        yield Finding(
            Severity.error,
            "validation loss is not finite",
            "The loss of validation is NaN or infinite in the last epoch, while that of training is finite.",
            "Validate with half=false, and train with amp=bf16 or amp=false: float16 overflows at 65504."
            if amp
            else "See whether validation labels are finite with --data.",
        )


def _of_course(rows: Sequence[Mapping[str, float]], train: Sequence[float]) -> Iterator[Finding]:
    """Of a run that stayed finite, on medians of a tenth of its epochs, since single ones are noisy."""
    scores = [row.get(MAP, 0.0) for row in rows]
    if max(row.get(MAP50, 0.0) for row in rows) < _NOTHING:
        yield Finding(
            Severity.error,
            "nothing learned",
            f"mAP50 never reached {_NOTHING:g} in {len(rows)} epochs.",
            "Examine the data set with --data, see the labels in train_batch0.jpg, and start from trained weights.",
        )
        return
    width = max(3, len(rows) // 10)
    val = _medians([_loss(row, "val/") for row in rows], width)
    train, scores = _medians(train, width), _medians(scores, width)
    best, turn = scores.index(max(scores)), val.index(min(val))
    falling = train[-1] < train[turn]
    if val[-1] > _RISEN * val[turn] and falling and scores[-1] < scores[best] - _LOST:
        yield Finding(
            Severity.warning,
            "overfitting",
            f"Since epoch {turn + width} the loss of validation rose from {val[turn]:.3g} to {val[-1]:.3g} and that of "
            f"training fell from {train[turn]:.3g} to {train[-1]:.3g}; mAP50-95 fell from {scores[best]:.3f} to "
            f"{scores[-1]:.3f}.",
            "Use best.pt; for more, add images, stronger augmentation or weight_decay, or take a smaller model.",
        )
    elif len(scores) > 2 * width and best + width <= len(scores) // 2:
        yield Finding(
            Severity.note,
            "plateau",
            f"mAP50-95 has not risen since epoch {best + width} of {len(rows)}, {scores[best]:.3f}.",
            "Shorter runs reach the same; for more, change the data, imgsz or the model rather than epochs.",
        )
    elif len(scores) > width and scores[-1] > scores[-1 - width] + _LOST:
        yield Finding(
            Severity.note,
            "stopped while improving",
            f"mAP50-95 still rose from {scores[-1 - width]:.3f} to {scores[-1]:.3f} in the last {width} epochs.",
            "Train for more epochs.",
        )


def _medians(values: Sequence[float], width: int) -> list[float]:
    """Of each `width` values in a row."""
    return [median(values[start : start + width]) for start in range(len(values) - width + 1)]


def _of_terms(file: Path) -> Iterator[Finding]:
    """What fastyolo.train.report holds against the gains of the loss."""
    if not file.is_file():
        return
    for term in json.loads(file.read_text(encoding="utf-8"))["terms"]:
        if term["reason"] and term["share"] is not None and term["suggested_gain"] is not None:
            yield Finding(
                Severity.warning,
                "loss out of balance",
                f"The term {term['name']} is {term['share']:.0%} of the loss, {term['reason']}.",
                f"Change {term['name']} from {term['gain']:g} to {term['suggested_gain']:g}.",
            )
