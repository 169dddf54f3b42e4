# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether an exported model computes what its checkpoint does: the verdict of `fastyolo.diagnose.verify`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fastyolo.diagnose.doctor.findings import Finding, Report, Severity
from fastyolo.diagnose.parity import Report as Parity
from fastyolo.diagnose.parity import Stage, verify

IMAGES = 8  # to compare on, of a data set's validation split


def examine(
    weights: str | Path,
    deployed: str | Path,
    images: Sequence[str] = (),
    progress: Callable[[str], None] = lambda name: None,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
) -> Report:
    """
    Args:
        deployed: as for `verify`.
        images: to compare on; without any, the photographs that come with ultralytics.
        progress: called with the name of what is being compared.
        conf, iou: as for `verify`.

    Raises:
        IncomparableError: a file cannot be read, or the two are not of the same model.
    """
    parity = verify(weights, deployed, list(images) or None, conf=conf, iou=iou, progress=progress)
    report = Report(facts={"deployed": parity.to_json()})
    report.add(_findings(parity))
    return report


def _findings(parity: Parity) -> list[Finding]:
    departing = [stage for stage in parity.stages if stage.verdict == "departs"]
    if not departing:
        return []
    model, weights = Path(parity.model).name, Path(parity.weights).name
    evidence = f"{model} departs from {weights} in {', '.join(map(_stage, departing))}, on {parity.images} images."
    if not parity.findings:
        remedy = "Export the model again, and see 'fastyolo verify' for the layers where it departs."
        return [Finding(Severity.error, "deployment departs", evidence, remedy, len(departing))]
    return [
        Finding(Severity.error, f"deployment: {finding.cause}", evidence, finding.sentence, len(departing))
        for finding in parity.findings
    ]


def _stage(stage: Stage) -> str:
    value = getattr(stage.difference, stage.measure) if stage.difference else 0.0
    if stage.allowed is None or value <= stage.allowed:  # something else than the numbers departs
        return stage.name
    return f"{stage.name} (by {value:.2g}, {stage.allowed:.2g} allowed)"
