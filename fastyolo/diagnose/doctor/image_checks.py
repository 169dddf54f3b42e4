# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is wrong with the images of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastyolo.diagnose.doctor import duplicates
from fastyolo.diagnose.doctor.findings import Case, Finding, Severity, counted, share, some
from fastyolo.diagnose.doctor.samples import Sample

_LEAST_SIDE = 10  # ultralytics refuses smaller ones
_EXTREME = 4.0  # of the sides' ratio: letterboxed to a square, three quarters of the input are padding

_PROBLEMS = {
    "unreadable image": "Restore it from its source, or remove it with its labels",
    "image file of zero bytes": "Copy or download it again, or remove it with its labels",
    "truncated image": "Copy or download it again: training on it would see grey where pixels are missing",
}


def check(samples: Sequence[Sample]) -> Iterator[Finding]:
    """
    Args:
        samples: of all splits; an image that two splits name is there twice.
    """
    different = list({sample.file: sample for sample in samples}.values())
    usable = [sample for sample in different if sample.image.problem is None]
    for problem, remedy in _PROBLEMS.items():
        if bad := [sample for sample in different if sample.image.problem == problem]:
            reason = f": {bad[0].image.reason}" if bad[0].image.reason else ""
            evidence = f"{counted(len(bad), 'image')} cannot be used, the first of them{reason or ' is empty'}"
            yield Finding.about(Severity.error, problem, evidence, f"{remedy}.", [sample.file for sample in bad])
    yield from _of_shape(usable)
    yield from _of_format(usable)
    yield from _same_in_splits(samples)
    yield from _duplicates([sample for sample in samples if sample.image.problem is None])


def _of_shape(usable: Sequence[Sample]) -> Iterator[Finding]:
    if small := [s for s in usable if min(s.image.width, s.image.height) < _LEAST_SIDE]:
        yield Finding.about(
            Severity.error,
            "image too small",
            f"{counted(len(small), 'image has', 'images have')} a side under {_LEAST_SIDE} pixels",
            "Remove them: ultralytics leaves such images out, and fastyolo train refuses them.",
            [sample.file for sample in small],
        )
    ratios = {s.file: max(s.image.width, s.image.height) / min(s.image.width, s.image.height) for s in usable}
    if extreme := sorted((file for file in ratios if ratios[file] > _EXTREME), key=lambda file: -ratios[file]):
        yield Finding.about(
            Severity.warning,
            "extreme aspect ratio",
            f"{counted(len(extreme), 'image is', 'images are')} more than {_EXTREME:g} times as long as wide, up to "
            f"{ratios[extreme[0]]:.1f}, so that most of the network's input is padding",
            "Cut such images into overlapping tiles, for training and for prediction alike.",
            extreme,
            cases=[Case(file) for file in extreme],
        )
    if rotated := [sample for sample in usable if sample.image.rotated and len(sample.labels.boxes)]:
        yield Finding.about(
            Severity.warning,
            "EXIF rotation",
            f"{counted(len(rotated), 'labelled image is', 'labelled images are')} turned by a quarter by EXIF, which "
            f"training follows and not every labelling tool does",
            "See in the pictures whether the boxes fit; if not, label the turned images or remove the EXIF tag.",
            [sample.file for sample in rotated],
            cases=[sample.case() for sample in rotated],
        )


def _of_format(usable: Sequence[Sample]) -> Iterator[Finding]:
    if wrong := [sample for sample in usable if not sample.image.matches("." + sample.file.rpartition(".")[2])]:
        yield Finding.about(
            Severity.warning,
            "wrong extension",
            f"{counted(len(wrong), 'image is', 'images are')} of another format than the name says, the first of them "
            f"{wrong[0].image.format}",
            "Rename them, since tools that go by the name fail on them.",
            [sample.file for sample in wrong],
        )
    if deep := [sample for sample in usable if sample.image.deep]:
        yield Finding.about(
            Severity.warning,
            "16-bit image",
            f"{counted(len(deep), 'image has', 'images have')} 16 bits per channel or more, of which training sees 8",
            "Convert them to 8 bits with a scaling of your own, the same one in deployment.",
            [sample.file for sample in deep],
        )
    kinds = {kind: [s.file for s in usable if s.image.colours == kind] for kind in ("colour", "grey", "alpha")}
    if kinds["alpha"]:
        yield Finding.about(
            Severity.note,
            "alpha channel",
            f"{counted(len(kinds['alpha']), 'image has', 'images have')} an alpha channel, which is dropped: what is "
            f"transparent shows the colours below",
            "Flatten them onto the background that deployment has.",
            kinds["alpha"],
        )
    few = min((kinds["grey"], kinds["colour"]), key=len)
    if few:
        name = "grey" if few is kinds["grey"] else "colour"
        yield Finding.about(
            Severity.note,
            "grey and colour mixed",
            f"{counted(len(few), 'image')} of {len(usable):,} ({share(len(few), len(usable))}) "
            f"{'is' if len(few) == 1 else 'are'} {name}, the others are not",
            "Nothing, if deployment has both; else convert all to what it has.",
            few,
        )


def _same_in_splits(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Files that both splits name."""
    train = {sample.file for sample in samples if sample.split == "train"}
    val = {sample.file for sample in samples if sample.split == "val"}
    if val and train == val:
        yield Finding(
            Severity.warning,
            "validation set is the training set",
            f"The YAML file names the same {counted(len(val), 'image')} for train and val.",
            "Keep images apart that training does not see, unless the model was trained on other data.",
            len(val),
        )
    elif both := sorted(train & val):
        yield _leaked(Severity.error, "is the same file in both splits", both)


def _duplicates(samples: Sequence[Sample]) -> Iterator[Finding]:
    """Different files of one content."""
    first = list({sample.file: sample for sample in reversed(samples)}.values())
    images = [sample.image for sample in first]
    splits: dict[str, set[str]] = {}
    for sample in samples:
        splits.setdefault(sample.file, set()).add(sample.split)
    whole = {"train", "val"}

    def across(group: Sequence[int]) -> bool:
        members = [splits[first[index].file] for index in group]
        return set().union(*members) == whole and whole not in members

    groups = [[first[index].file for index in group] for group in duplicates.equal(images) if across(group)]
    if groups:
        yield _leaked(Severity.error, "is a byte for byte copy of a training image", _of_val(groups, splits))
    if copies := [[first[i].file for i in group] for group in duplicates.equal(images) if not across(group)]:
        surplus = sum(map(len, copies)) - len(copies)
        yield Finding.about(
            Severity.warning,
            "duplicate image",
            f"{counted(surplus, 'image is a copy', 'images are copies')} of another one of the same split, byte for "
            f"byte",
            "Remove them: what is there twice counts twice, and the labels of the copies may differ.",
            [file for group in copies for file in group],
            count=surplus,
        )
    pairs = list(duplicates.similar(images))
    if alike := [[first[i].file for i in pair] for pair in pairs if across(pair)]:
        yield _leaked(Severity.warning, "looks the same as a training image", _of_val(alike, splits), alike)
    if near := [[first[i].file for i in pair] for pair in pairs if not across(pair)]:
        yield Finding.about(
            Severity.note,
            "near-duplicate image",
            f"{counted(len(near), 'pair')} of images of a split look the same but for compression, size or brightness",
            "Keep one of each pair, unless the scene really hardly changes.",
            [file for pair in near for file in pair],
            count=len(near),
            cases=[Case(file) for pair in near for file in pair],
        )


def _of_val(groups: Sequence[Sequence[str]], splits: dict[str, set[str]]) -> list[str]:
    return sorted({file for group in groups for file in group if splits[file] == {"val"}})


def _leaked(severity: Severity, how: str, files: Sequence[str], pairs: Sequence[Sequence[str]] = ()) -> Finding:
    one = len(files) == 1
    example = f", as {' and '.join(some([file]) for file in pairs[0])} do" if pairs else ""
    phrase = how if one else how.replace("is ", "are ", 1).replace("looks ", "look ", 1)
    return Finding.about(
        severity,
        "leaked validation image" if severity is Severity.error else "near-duplicate across splits",
        f"{counted(len(files), 'validation image')} {phrase}{example}",
        "Remove them from one of the splits: the accuracy that is measured on them is too high. Split by scene or "
        "recording, not by image.",
        files,
        cases=[Case(file) for pair in pairs for file in pair] or [Case(file) for file in files],
    )
