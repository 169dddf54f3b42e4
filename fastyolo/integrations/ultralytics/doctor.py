# SPDX-License-Identifier: AGPL-3.0-or-later
"""The files of a data set as ultralytics finds them, and what is wrong with its description.

Nothing is written: ultralytics' own reading of a data set leaves *.cache files, and rewrites JPEG files that are cut
short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import IMG_FORMATS, img2label_paths
from ultralytics.utils import DATASETS_DIR, YAML

from fastyolo.diagnose.doctor.findings import Finding, Severity
from fastyolo.diagnose.doctor.samples import Description, Pair

__all__ = ["arguments", "describe"]


def describe(data: str | Path) -> Description:
    """A data set, whatever of it there is.

    Raises:
        ValueError: the YAML file is missing or not one of a data set of detection.
    """
    expected = "data (--data) must be the YAML file of a detection data set"
    try:
        content = YAML.load(data)
    except Exception as error:  # ultralytics' and PyYAML's own
        raise ValueError(f"{expected}, got {str(data)!r} ({' '.join(str(error).split()).rstrip('.')}).") from error
    keys = set(content) if isinstance(content, dict) else set()
    if not {"names", "nc"} & keys or not {"train", "val", "validation"} & keys:
        got = ", ".join(sorted(map(str, keys))) or "nothing of these"
        raise ValueError(f"{expected}, which has train, val and names, got {str(data)!r}, which has {got}.")
    given = content.get("names")
    if not isinstance(given, dict | list | None):
        raise ValueError(
            f"{expected}, with names as a list or by their numbers, got {given!r}; write names: [{given}]."
        )
    names, findings = _names(content)
    if not names:
        raise ValueError(f"{expected}, which names a class at least, got {str(data)!r}, which names none.")
    root = _root(content, Path(data))
    splits: dict[str, tuple[Pair, ...]] = {}
    for split, places in (("train", content.get("train")), ("val", content.get("val", content.get("validation")))):
        found = [] if places is None else _resolved(root, places)
        try:
            splits[split] = _pairs(found)
        except FileNotFoundError:
            findings.append(
                Finding(
                    Severity.error,
                    "missing split",
                    f"The split {split} has no images"
                    + (f" in {', '.join(found)}." if found else ": the YAML file does not name it."),
                    f"Correct the path, or put images there that end in {', '.join(sorted(IMG_FORMATS))}.",
                )
            )
    return Description(names, splits, tuple(_unused(splits)), tuple(findings))


def arguments(run: Path) -> dict[str, Any]:
    """Those of a training run.

    Raises:
        ValueError: its args.yaml is missing, or is none.
    """
    try:
        return dict(YAML.load(run / "args.yaml"))
    except Exception as error:  # ultralytics' and PyYAML's own
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"run (--run) must be the folder of a training run, but its args.yaml cannot be read ({reason})."
        ) from error


def _names(content: dict[str, Any]) -> tuple[tuple[str, ...], list[Finding]]:
    given, count = content.get("names"), content.get("nc")
    findings = []
    if given is None:
        return tuple(f"class_{index}" for index in range(int(count or 0))), []
    keyed = given if isinstance(given, dict) else dict(enumerate(given))
    names = tuple(str(name) for _, name in sorted(keyed.items()))
    if sorted(keyed) != list(range(len(keyed))):
        findings.append(
            Finding(
                Severity.error,
                "names are not numbered from 0",
                f"The YAML file numbers its {len(keyed)} names {', '.join(map(str, list(keyed)[:5]))}, ...",
                f"Number them from 0 to {len(keyed) - 1}.",
            )
        )
    if count is not None and count != len(names):
        findings.append(
            Finding(
                Severity.error,
                "names and nc disagree",
                f"The YAML file has {len(names)} names and nc {count}.",
                "Remove nc, which the names imply, and see whether one is missing.",
            )
        )
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        findings.append(
            Finding(
                Severity.warning,
                "name of two classes",
                f"The YAML file names several classes {', '.join(map(repr, twice[:5]))}.",
                "Merge these classes in the labels, or tell their names apart.",
                len(twice),
            )
        )
    return names, findings


def _root(content: dict[str, Any], file: Path) -> Path:
    root = Path(content.get("path") or file.parent)
    return root if root.exists() or root.is_absolute() else (Path(DATASETS_DIR) / root).resolve()


def _resolved(root: Path, places: str | Sequence[str]) -> list[str]:
    found = []
    for place in [places] if isinstance(places, str) else places:
        path = (root / place).resolve()
        if not path.exists() and place.startswith("../"):  # as some tools write what is beside the YAML file
            path = (root / place[3:]).resolve()
        found.append(str(path))
    return found


def _pairs(places: list[str]) -> tuple[Pair, ...]:
    reader = SimpleNamespace(prefix="", fraction=1.0)
    images = list(dict.fromkeys(YOLODataset.get_img_files(reader, places)))
    return tuple(Pair(image, labels) for image, labels in zip(images, img2label_paths(images), strict=True))


def _unused(splits: dict[str, tuple[Pair, ...]]) -> Iterator[str]:
    """Label files that belong to no image, in folders that belong to images."""
    expected = {pair.labels for split in splits.values() for pair in split}
    images = {str(Path(pair.image).parent) for split in splits.values() for pair in split}
    for folder in sorted({str(Path(file).parent) for file in expected} - images):  # beside images may lie other texts
        yield from (str(file) for file in sorted(Path(folder).glob("*.txt")) if str(file) not in expected)
