# SPDX-License-Identifier: AGPL-3.0-or-later
"""The files of a data set as ultralytics finds them, and what is wrong with its description.

Nothing is written: ultralytics' own reading of a data set leaves *.cache files, and rewrites JPEG files that are cut
short.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import IMG_FORMATS, img2label_paths
from ultralytics.utils import DATASETS_DIR, YAML

from fastyolo.diagnose.doctor.findings import Finding, Severity
from fastyolo.diagnose.doctor.samples import Description, Pair

__all__ = ["arguments", "describe"]

_EXPECTED = "data (--data) must be the YAML file of a detection data set"


def describe(data: str | Path) -> Description:
    """A data set, whatever of it there is.

    Raises:
        ValueError: the YAML file is missing or not one of a data set of detection.
    """
    try:
        content = YAML.load(data)
    except Exception as error:  # ultralytics' and PyYAML's own
        raise ValueError(f"{_EXPECTED}, got {str(data)!r} ({' '.join(str(error).split()).rstrip('.')}).") from error
    keys = set(content) if isinstance(content, dict) else set()
    if not {"names", "nc"} & keys or not {"train", "val", "validation"} & keys:
        got = ", ".join(sorted(map(str, keys))) or "nothing of these"
        raise ValueError(f"{_EXPECTED}, which has train, val and names, got {str(data)!r}, which has {got}.")
    given = content.get("names")
    if not isinstance(given, dict | list | None):
        raise ValueError(
            f"{_EXPECTED}, with names as a list or by their numbers, got {given!r}; write names: [{given}]."
        )
    names, findings = _names(content)
    if not names:
        raise ValueError(f"{_EXPECTED}, which names a class at least, got {str(data)!r}, which names none.")
    root = _root(content, Path(data))
    splits: dict[str, tuple[Pair, ...]] = {}
    for split, key in (("train", "train"), ("val", "val" if "val" in content else "validation")):
        found = _resolved(root, key, content.get(key))
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
        if not isinstance(count, int):
            raise _other("nc", "is a whole number", count)
        return tuple(f"class_{index}" for index in range(count)), []
    listed = given if isinstance(given, dict) else dict(enumerate(given))
    if wrong := [key for key in listed if not re.fullmatch(r"-?\d+", str(key))]:
        raise _other("names", "have whole numbers for keys", wrong[0])
    keyed = {int(key): str(name) for key, name in listed.items()}
    names = tuple(keyed[key] for key in sorted(keyed))
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


def _other(key: str, expected: str, got: object) -> ValueError:
    return ValueError(f"{_EXPECTED}, whose {key} {expected}, got {got!r}.")


def _root(content: dict[str, Any], file: Path) -> Path:
    given = content.get("path")
    if not isinstance(given, str | None):
        raise _other("path", "is the path of a folder", given)
    root = Path(given or file.parent)
    return root if root.exists() or root.is_absolute() else (Path(DATASETS_DIR) / root).resolve()


def _resolved(root: Path, key: str, places: object) -> list[str]:
    """What a split's key has, as absolute paths; nothing if it has nothing."""
    listed = [] if places is None else places if isinstance(places, list) else [places]
    found = []
    for place in listed:
        if not isinstance(place, str):
            raise _other(key, "is a path or a list of paths", places)
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
