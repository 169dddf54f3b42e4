# SPDX-License-Identifier: AGPL-3.0-or-later
"""Data sets as ultralytics reads them, with a refusal in one sentence where it warns and leaves images out.

ultralytics looks at every image and label file once and keeps what it finds in a *.cache file beside the labels. The
checks here read nothing but its result, and of what it left out the first file, to say what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

from PIL import UnidentifiedImageError
from ultralytics.data import build
from ultralytics.data.augment import Compose, LetterBox, RandomPerspective
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import IMG_FORMATS, check_det_dataset, check_image, verify_image_label

from fastyolo.diagnose.doctor.labels import flaw
from fastyolo.integrations.ultralytics.hooks import require_reads

__all__ = [
    "CheckedDataset",
    "build_dataset",
    "check_split",
    "class_names",
    "describing",
    "letterbox_only",
    "reading",
    "training_images",
]


@contextmanager
def reading(data: str | Path | None) -> Iterator[None]:
    """Turn the failures of a trainer's get_dataset(), of several lines with emojis, into one sentence.

    Raises:
        ValueError: the description of the data set `data` is missing, or is not as ultralytics expects it.
    """
    try:
        yield
    except RuntimeError as error:
        if error.__cause__ is None:
            raise
        raise ValueError(f"The data set {str(data)!r} cannot be used: {_clause(error.__cause__)}.") from error


def _clause(error: BaseException) -> str:
    lines = [re.sub("[❌✅⚠\ufe0f]", "", line).strip(" .") for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith(("Note dataset download", "See https")))


def training_images(data: str | Path) -> list[str]:
    """The image files of a data set's training split.

    Raises:
        ValueError: the description of the data set is missing or not as ultralytics expects it, or has no such images.
    """
    with describing(data):
        split = check_det_dataset(str(data), autodownload=False)["train"]
        reader = SimpleNamespace(prefix="", fraction=1.0)
        return list(YOLODataset.get_img_files(reader, split))


def class_names(data: str | Path) -> list[str]:
    """The classes of a data set, which is downloaded if ultralytics knows where from.

    Raises:
        ValueError: the description of the data set is missing or not as ultralytics expects it.
    """
    with describing(data):
        return list(check_det_dataset(str(data))["names"].values())


def check_split(data: str | Path, split: str) -> None:
    """Refuse a data set without that split; one that ultralytics knows where to get is on this machine then.

    Raises:
        ValueError: the split has no images, or the description of the data set is missing or not as expected.
    """
    with describing(data):
        check_det_dataset(str(data), split=split)


@contextmanager
def describing(data: str | Path) -> Iterator[None]:
    """Turn what ultralytics raises about the description of a data set into one sentence.

    Raises:
        ValueError: the description of the data set `data` is missing, or is not as ultralytics expects it.
    """
    try:
        yield
    except (AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError) as error:
        clause = _clause(error).removeprefix(f"{data} ")
        raise ValueError(f"The data set {str(data)!r} cannot be used: {clause}.") from error


class CheckedDataset(YOLODataset):
    """A YOLODataset that refuses a split without images or objects, and one with files that cannot be used.

    Files of the latter kind are images that cannot be read, and labels that are malformed, of a class that the data
    set does not have, or outside the image; `hyp.skip_bad_labels` leaves them out instead, as ultralytics does.

    Raises:
        FileNotFoundError: the split has no images.
        ValueError: as above.
    """

    def __init__(self, *, hyp: Any, augment: bool, **arguments: Any) -> None:
        self._split = "train" if augment else hyp.split
        self._skip_bad_labels = bool(getattr(hyp, "skip_bad_labels", False))
        super().__init__(hyp=hyp, augment=augment, **arguments)

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        places = [Path(place) for place in (img_path if isinstance(img_path, list) else [img_path])]
        if missing := [place for place in places if not place.exists()]:
            raise FileNotFoundError(
                f"The data set's split {self._split!r} is missing: {missing[0]} does not exist; correct the path in "
                f"its YAML file."
            )
        try:
            return super().get_img_files(img_path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"The data set's split {self._split!r} has no images: found no file in {', '.join(map(str, places))} "
                f"that ends in {', '.join(sorted(IMG_FORMATS))}."
            ) from error

    def get_labels(self) -> list[dict[str, Any]]:
        files = self.im_files
        try:
            labels = super().get_labels()
        except RuntimeError:  # none of the files can be used
            labels = []
        except ValueError:  # there is no label file
            raise self._without_objects(files) from None
        used = {label["im_file"] for label in labels}
        refused = [file for file in files if file not in used]
        if refused and not (self._skip_bad_labels and used):
            raise ValueError(
                f"{len(refused):,} of {len(files):,} images of the data set's split {self._split!r} cannot be used, "
                f"first {self._why_refused(refused[0], files)}; correct them, or leave such images out with "
                f"skip_bad_labels=true."
            )
        if not any(len(label["cls"]) for label in labels) and not (self._skip_bad_labels and not self.augment):
            raise self._without_objects(files)
        return labels

    def update_labels(self, include_class: list[int] | None) -> None:
        super().update_labels(include_class)
        if include_class and self.augment and not any(len(label["cls"]) for label in self.labels):
            raise ValueError(
                f"classes must have objects to train on, got {include_class}, of which none of the "
                f"{len(self.labels):,} images of the data set's split {self._split!r} has one."
            )

    def _without_objects(self, files: list[str]) -> ValueError:
        way_out = "" if self.augment else "; to validate on it all the same, set skip_bad_labels=true"
        return ValueError(
            f"None of the {len(files):,} images of the data set's split {self._split!r} has an object: expected files "
            f"like {self.get_label_files()[0]} with a line of class, x, y, width and height for each object{way_out}."
        )

    def _why_refused(self, image: str, files: list[str]) -> str:
        """The file, the line and what was expected of it, as a clause."""
        try:
            check_image(image)
        except (UnidentifiedImageError, ModuleNotFoundError):  # the latter of a reader of rare formats, the last resort
            return f"{image}, which is not an image"
        except Exception as error:  # whatever the readers of the many formats raise
            return f"{image}, which cannot be read: {_clause(error)}"
        labels = self.label_files[files.index(image)]
        classes = None if self.single_cls else len(self.data["names"])
        with Path(labels).open(encoding="utf-8-sig", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip() and (found := flaw(line.split(), classes)):
                    return f"{labels}, line {number}: {found.clause}"
        *_, message = verify_image_label((image, labels, "", False, classes or 1, 0, 0, self.single_cls))
        return f"{labels}: {message.partition('ignoring corrupt image/label: ')[2]}"


def letterbox_only(dataset: Any) -> None:
    """Disable every geometric augmentation but letterboxing and flips.

    Parameters of 0 are not enough: with an odd number of rows to fill, RandomPerspective moves the image by half a
    pixel, which blurs it.
    """
    for each in getattr(dataset, "datasets", [dataset]):
        each.transforms = _without_perspective(each.transforms)


def _without_perspective(transform: Any) -> Any:
    if isinstance(transform, RandomPerspective):
        return LetterBox(transform.size[::-1])
    if isinstance(transform, Compose):
        transform.transforms = [_without_perspective(each) for each in transform.transforms]
    return transform


require_reads(["YOLODataset"], "ultralytics.data.build.build_yolo_dataset", build.build_yolo_dataset.__code__)
build_dataset = FunctionType(
    build.build_yolo_dataset.__code__,
    {**vars(build), "YOLODataset": CheckedDataset},
    argdefs=build.build_yolo_dataset.__defaults__,
)
"""ultralytics' build_yolo_dataset(args, img_path, batch, data, mode, rect, stride) with `CheckedDataset` for boxes."""
