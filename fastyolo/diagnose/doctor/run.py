# SPDX-License-Identifier: AGPL-3.0-or-later
"""What went wrong in a training run, from the files that it left.

ultralytics' results.csv and args.yaml; and of fastyolo's trainer loss_report.json and recoveries.json.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from fastyolo.diagnose.doctor.findings import Finding, Report, Severity, counted, share

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
_LEAST_SCALE = 1.0  # it begins at 65536, and healthy runs stay within a few halvings of where they settle
_LEAST_EPOCHS = 10  # for words on the course of a run
_NOTHING = 0.01  # mAP50
_DEAD = 0.01  # of the positives
_STARVED = 0.1  # of the objects of a size; mosaic alone leaves 0.03 of the small ones of DeepPCB without
_FEW_OF_SIZE = 100


def examine(folder: Path, arguments: Mapping[str, Any]) -> Report:
    """
    Args:
        folder: of the run.
        arguments: what is in its args.yaml.

    Raises:
        ValueError: the folder has no results.csv with the losses of an epoch, or one of the other files cannot be read.
    """
    rows = read_results(folder / "results.csv")
    report = Report(facts={"epochs": len(rows)})
    train = [_loss(row, "train/") for row in rows]
    broken = list(_of_stability(rows, train, arguments, _read_json(folder / "recoveries.json") or []))
    report.add(broken)
    if not broken and len(rows) >= _LEAST_EPOCHS:
        report.add(_of_course(rows, train))
    if losses := _read_json(folder / "loss_report.json"):
        report.add(_of_terms(losses["terms"]))
        if positives := losses.get("positives"):
            report.add(_of_positives(positives, arguments))
            report.facts["positives"] = positives
    return report


def _read_json(file: Path) -> Any:
    """None without the file, which only fastyolo's trainer writes."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"run (--run) must be the folder of a training run, but {file} cannot be read ({error})."
        ) from error


def read_results(file: Path) -> list[dict[str, float]]:
    """The epochs of a run's results.csv.

    Raises:
        ValueError: it cannot be read, or holds no losses of an epoch.
    """
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            table = [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(lines)]
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} must hold the losses of a run's epochs, but cannot be read ({error}); pass the folder of a "
            "training run."
        ) from error
    if not table or not any(key.startswith("train/") for key in table[0]):
        raise ValueError(
            f"{file} must hold the losses of a run's epochs, but has none; pass the folder of a training run."
        )
    return table


def _loss(row: Mapping[str, float], prefix: str) -> float:
    """The sum of the terms, gains included."""
    return sum(value for key, value in row.items() if key.startswith(prefix))


def _epoch(row: Mapping[str, float], index: int) -> int:
    """The number of an epoch, from its row in results.csv."""
    return int(row.get("epoch", index + 1))


def _of_stability(
    rows: Sequence[Mapping[str, float]],
    train: Sequence[float],
    arguments: Mapping[str, Any],
    repeated: Sequence[int],
) -> Iterator[Finding]:
    optimizer = str(arguments.get("optimizer", "auto"))
    # The least of the groups, since that of the biases starts high by default (warmup_bias_lr).
    peak = max(min((value for key, value in row.items() if key.startswith("lr/")), default=0.0) for row in rows)
    limit = _RATES.get(optimizer, max(_RATES.values()))
    too_high = peak > limit
    amp = arguments.get("amp", True) not in (False, "bf16")
    bad = [index for index, value in enumerate(train) if not math.isfinite(value)]
    epochs = [*repeated, *(_epoch(rows[index], index) for index in bad)]
    if epochs:
        remedy = f"Lower lr0, {arguments.get('lr0', '?')} now"
        if amp:
            remedy += "; if that does not help, train with amp=bf16 or amp=false, since float16 overflows at 65504"
        again = f"; training went back to last.pt {counted(len(repeated), 'time')}" if repeated else ""
        yield Finding(
            Severity.error,
            "loss is not finite",
            f"The training loss is NaN or infinite in {counted(len(set(epochs)), 'epoch')}, first in epoch "
            f"{min(epochs)}{again}.",
            f"{remedy}; see whether the labels are finite with --data.",
            len(set(epochs)),
        )
    elif len(train) > 3 and min(train[-3:]) > _DIVERGED * min(train):
        best = train.index(min(train))
        yield Finding(
            Severity.error,
            "divergence",
            f"The training loss rose from {train[best]:.3g} in epoch {_epoch(rows[best], best)} to {train[-1]:.3g} at "
            "the end.",
            f"Lower lr0, {arguments.get('lr0', '?')} now, or lengthen warmup_epochs.",
        )
    if too_high:
        yield Finding(
            Severity.error,
            "learning rate too high",
            f"The learning rate reached {peak:.3g}; with {optimizer} more than {limit:g} hardly ever trains.",
            "Set lr0 to 0.01 with SGD or 0.001 with AdamW, or leave the choice to optimizer=auto.",
        )
    scales = [  # of the epochs on a GPU, since a run may go on elsewhere
        (row["amp/scale"], _epoch(row, index))
        for index, row in enumerate(rows)
        if math.isfinite(row.get("amp/scale", math.nan))
    ]
    if scales and min(scales)[0] < _LEAST_SCALE:
        least, epoch = min(scales)
        yield Finding(
            Severity.error,
            "overflow in float16",
            f"The loss scale of float16 fell from {scales[0][0]:.3g} to {least:.3g} in epoch {epoch}: it is halved at "
            "each step whose gradients overflow, which is left out.",
            "Train with amp=bf16 or amp=false, or lower lr0; see with --weights which convolutions overflow.",
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


def _of_terms(terms: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """What fastyolo.train.report holds against the gains of the loss."""
    for term in terms:
        if term["reason"] and term["share"] is not None and term["suggested_gain"] is not None:
            yield Finding(
                Severity.warning,
                "loss out of balance",
                f"The term {term['name']} is {term['share']:.0%} of the loss, {term['reason']}.",
                f"Change {term['name']} from {term['gain']:g} to {term['suggested_gain']:g}.",
            )


def _of_positives(positives: Mapping[str, Any], arguments: Mapping[str, Any]) -> Iterator[Finding]:
    """What the assigner left out in the first epochs, as fastyolo.train.report holds it."""
    total = sum(positives["by_level"].values())
    for stride, count in positives["by_level"].items():
        if total and count < _DEAD * total:
            yield Finding(
                Severity.warning,
                "level without positives",
                f"The level of stride {stride} got {count:,} of {total:,} positives ({share(count, total)}), so that "
                f"it learns next to nothing.",
                f"Train at another imgsz, {arguments.get('imgsz', '?')} now, to which the objects fit, or use a model "
                "without this level.",
            )
    for size, coverage in positives["objects"].items():
        objects, without = coverage["objects"], coverage["without"]
        if objects >= _FEW_OF_SIZE and without > _STARVED * objects:
            yield Finding(
                Severity.warning,
                "objects without positives",
                f"{without:,} of {objects:,} {size} objects ({share(without, objects)}) got no positive, so that "
                f"nothing was learned from them.",
                "Train at a larger imgsz, on tiles, or with less mosaic and scale, which shrink objects"
                f"{', or with a larger tal_topk' if size != 'small' else ''}.",
                without,
            )
