# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images from files, folders, globs, videos and cameras."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from fastyolo import _arguments
from fastyolo.runtime.letterbox import Image

Source: TypeAlias = "str | Path | int | Sequence[str | Path]"

IMAGES = frozenset((".avif", ".bmp", ".dng", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"))
VIDEOS = frozenset((".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"))

# A container's count of frames is an estimate; a video that lacks more than this part of it, or than one, is cut short.
_LACKING = 0.1


@dataclass(frozen=True)
class Item:
    """An image that is still to be loaded; the other attributes are those of `Frame`."""

    path: str
    number: int
    total: int | None
    rate: float | None
    load: Callable[[], Image]
    """Returns the image, or raises OSError or ValueError."""


@dataclass(frozen=True)
class Images:
    """The images of a source.

    Attributes:
        items: to be read once.
        single: there is one image only.
        live: from a camera, whose images do not wait.
    """

    items: Iterator[Item]
    single: bool
    live: bool


def open_source(source: Source) -> Images:
    """Images of an image, a video, a folder (not of its folders), a glob, a list of these, or of a camera: its number
    or URL. In a folder, images come before videos, each in the order of their names.

    Raises:
        TypeError: `source` is something else.
        FileNotFoundError: a file does not exist, or nothing in a folder or glob is an image or video.
        ValueError: a file is neither an image nor a video, or an item of a list is a camera.
    """
    if isinstance(source, bool) or not isinstance(source, str | Path | int | list | tuple):
        raise TypeError(
            f"source must be a path, a list of paths, a URL or a camera's number, got {type(source).__name__}."
        )
    if isinstance(source, int) or (isinstance(source, str | Path) and is_camera(str(source))):
        return Images(_camera(source), single=False, live=True)  # type: ignore[arg-type]
    paths = list_files(source)
    images = sum(path.suffix.lower() in IMAGES for path in paths)
    return Images(_items(paths, images), single=len(paths) == images == 1, live=False)


def list_files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of a source that is no camera; errors as of `open_source`."""
    if isinstance(source, str | Path):
        _arguments.path("source", source)
        return _files(source)
    if not isinstance(source, Sequence):
        raise TypeError(f"source must be a path or a list of paths, got {source!r}.")
    for index, item in enumerate(source):
        if not isinstance(item, str | Path):
            raise TypeError(f"source[{index}] must be a path, got {type(item).__name__}.")
        _arguments.path(f"source[{index}]", item)
        if is_camera(str(item)):
            raise ValueError(
                f"source[{index}] must be a file, folder or glob, got the camera or stream {str(item)!r}; pass that as "
                f"the only source."
            )
    return [path for item in source for path in _files(item)]


def is_camera(source: str) -> bool:
    """Whether it is a camera's number or URL."""
    return "://" in source or (source.isdecimal() and not Path(source).exists())


def read_image(path: str | Path) -> Image:
    """[H, W, 3] uint8 BGR as OpenCV reads it: upright by EXIF, grey repeated, transparency dropped, of 16 bits the
    upper 8.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is empty, or nothing that OpenCV can decode.
    """
    return decode_image(np.fromfile(path, np.uint8), path)


def decode_image(content: npt.NDArray[np.uint8], path: str | Path) -> Image:
    """As `read_image`, of the file `path` whose bytes are `content`.

    Raises:
        ValueError: likewise.
    """
    if not content.size:
        raise ValueError(f"{path} is empty; copy it again.")
    try:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:  # more pixels than OpenCV takes (CV_IO_MAX_IMAGE_PIXELS), or than memory holds
        raise ValueError(f"{path} cannot be decoded ({error.err}); make it smaller.") from error
    if image is None:
        raise ValueError(f"{path} is damaged or not an image that OpenCV can decode; save it as JPEG or PNG.")
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path} has pixels of {image.dtype}; save it with 8 or 16 bits for each channel.")
    return to_bgr(image)


def to_bgr(image: Any) -> Image:
    """An array as `read_image` would return it: [H, W], or [H, W, C] with 1, 3 (BGR) or 4 (BGRA) channels; uint8, or
    uint16 of which the upper 8 bits are taken.

    Raises:
        TypeError: `image` is not an array of these types.
        ValueError: its shape is another.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image must be a NumPy array, got {type(image).__name__}; read files with det.stream(path).")
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"image must be uint8 or uint16, got {image.dtype}; scale it to 0..255 and convert it.")
    shape = image.shape
    channels = 1 if image.ndim == 2 else shape[-1]
    if image.ndim not in (2, 3) or channels not in (1, 3, 4) or not image.size:
        raise ValueError(f"image must have shape [H, W] or [H, W, C] with 1, 3 or 4 channels, got {list(shape)}.")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if channels == 3:
        return np.ascontiguousarray(image)
    code = cv2.COLOR_GRAY2BGR if channels == 1 else cv2.COLOR_BGRA2BGR
    return cv2.cvtColor(np.ascontiguousarray(image), code)  # type: ignore[return-value]


def _files(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() not in IMAGES | VIDEOS:
            raise ValueError(f"{path} is neither an image ({_list(IMAGES)}) nor a video ({_list(VIDEOS)}).")
        return [path]
    if path.is_dir():
        found = list(path.iterdir())
    elif any(character in str(source) for character in "*?["):
        found = [Path(name) for name in glob.glob(str(source), recursive=True)]  # noqa: PTH207 - takes absolute ones
    else:
        raise FileNotFoundError(f"{path} does not exist.")
    files = sorted(
        file for file in found if file.suffix.lower() in IMAGES | VIDEOS and (file.is_file() or _is_broken_link(file))
    )
    if not files:
        raise FileNotFoundError(f"{source} holds no image ({_list(IMAGES)}) and no video ({_list(VIDEOS)}).")
    return sorted(files, key=lambda file: file.suffix.lower() in VIDEOS)


def _is_broken_link(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _list(suffixes: frozenset[str]) -> str:
    return " ".join(sorted(suffix[1:] for suffix in suffixes))


def _items(paths: Sequence[Path], images: int) -> Iterator[Item]:
    for path in paths:
        name = str(path.absolute())
        if _is_broken_link(path):
            problem = ValueError(f"{name} is a link to {path.readlink()}, which does not exist; mend or remove it.")
            yield Item(name, 0, images, None, partial(_fail, problem))
        elif path.suffix.lower() in VIDEOS:
            yield from _video(name)
        else:
            yield Item(name, 0, images, None, partial(read_image, name))


def _video(path: str) -> Iterator[Item]:
    capture = cv2.VideoCapture(path)
    try:
        announced = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        count = 0
        for item in _read(capture, path, announced):
            count += 1
            yield item
    finally:
        capture.release()
    if not count or announced - count > max(1, announced * _LACKING):
        found = f"ends after {count} of {announced} frames" if count else "has no frame that OpenCV can decode"
        problem = ValueError(f"{path} {found}: it is damaged or of an unknown format; copy or convert it again.")
        yield Item(path, count, announced, None, partial(_fail, problem))


def _camera(source: str | int) -> Iterator[Item]:
    number = str(source)
    capture = cv2.VideoCapture(int(number) if number.isdecimal() else number)
    try:
        if not capture.isOpened():
            raise OSError(f"The camera {number} cannot be opened; check its number or address, and that it is free.")
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest image, where the driver knows this
        yield from _read(capture, number, None)
    finally:
        capture.release()


def _read(capture: cv2.VideoCapture, path: str, total: int | None) -> Iterator[Item]:
    rate = capture.get(cv2.CAP_PROP_FPS)
    number = 0
    while True:
        read, image = capture.read()
        if not read:
            return
        yield Item(path, number, total, rate if rate > 0 else 30.0, partial(_loaded, to_bgr(image)))
        number += 1


def _loaded(image: Image) -> Image:
    return image


def _fail(error: ValueError) -> npt.NDArray[np.uint8]:
    raise error
