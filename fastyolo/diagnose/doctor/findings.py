# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an examination found, in one form whatever was examined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

Box: TypeAlias = "tuple[float, float, float, float]"

_NAMED = 3  # files in a sentence
_LISTED = 100  # files in the JSON; their number is given in full
_PICTURED = 8  # cases of a finding


class Severity(str, Enum):
    """error: training or its measurement is broken by it. warning: accuracy is likely lost. note: worth knowing."""

    error = "error"
    warning = "warning"
    note = "note"


@dataclass(frozen=True)
class Case:
    """An image to look at.

    Attributes:
        image: its file.
        boxes: [n][4] of xyxy, as shares of the image's width and height.
        captions: of each box.
        labels: of the image, as `boxes`, where boxes are something else.
    """

    image: str
    boxes: tuple[Box, ...] = ()
    captions: tuple[str, ...] = ()
    labels: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or worth knowing.

    Attributes:
        name: the same one whenever this is found.
        evidence: one sentence.
        remedy: what to do, one sentence.
        count: of the files, boxes or classes that it is about.
        files: that it is about, the first ones.
        cases: the worst ones, to be drawn.
    """

    severity: Severity
    name: str
    evidence: str
    remedy: str
    count: int = 1
    files: tuple[str, ...] = ()
    cases: tuple[Case, ...] = ()

    @classmethod
    def about(
        cls,
        severity: Severity,
        name: str,
        evidence: str,
        remedy: str,
        files: Sequence[str],
        *,
        count: int | None = None,
        cases: Sequence[Case] = (),
    ) -> Finding:
        """A finding about files, whose first ones are named at the end of the sentence."""
        different = list(dict.fromkeys(files))
        sentence = f"{evidence} ({some(different)})."
        amount = len(different) if count is None else count
        return cls(severity, name, sentence, remedy, amount, tuple(different[:_LISTED]), tuple(cases[:_PICTURED]))


@dataclass
class Report:
    """All findings, and the facts that were counted on the way.

    Attributes:
        facts: plain values, as JSON holds them.
    """

    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def broken(self) -> bool:
        return any(finding.severity is Severity.error for finding in self.findings)

    def add(self, findings: Iterable[Finding]) -> None:
        """Keeps them in the order of their severity."""
        order = list(Severity)
        self.findings = sorted([*self.findings, *findings], key=lambda finding: order.index(finding.severity))

    def to_json(self) -> dict[str, Any]:
        return {"findings": [asdict(finding) for finding in self.findings], "facts": self.facts}


def some(files: Sequence[str]) -> str:
    """The names of the first files."""
    named = ", ".join(Path(file).name for file in files[:_NAMED])
    return named if len(files) <= _NAMED else f"{named} and {len(files) - _NAMED:,} more"


def counted(number: int, noun: str, plural: str = "") -> str:
    """1 box, 2,000 boxes"""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def share(part: int, whole: int) -> str:
    """In percent."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f}%" if percent >= 10 or percent == 0 else f"{percent:.2g}%"
