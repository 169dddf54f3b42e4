# SPDX-License-Identifier: AGPL-3.0-or-later
"""Annotated pictures and videos of a stream, named as ultralytics names them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import cv2

from fastyolo._files import beside, replacing
from fastyolo.runtime.letterbox import Image
from fastyolo.runtime.results import Frame


class Pictures:
    """Writes frames into a folder: images in their own format, videos as .avi; of equal names, the later ones get a
    number. What there is of a video when it is interrupted stays."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stems: set[str] = set()
        self._video: _Video | None = None

    def __enter__(self) -> Pictures:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def save(self, frame: Frame) -> None:
        drawn = frame.detections.draw(frame.image)
        if frame.rate is None:
            self._close()
            self._write(Path(frame.path), drawn)
            return
        if self._video is None or self._video.source != frame.path:
            self._close()
            self._video = _Video(frame, self._folder / f"{self._stem(frame.path)}.avi")
        self._video.write(drawn)

    def _close(self) -> None:
        if self._video is not None:
            self._video.close()
        self._video = None

    def _write(self, source: Path, picture: Image) -> None:
        suffix = source.suffix if cv2.haveImageWriter(source.name) else ".jpg"
        path = self._folder / (self._stem(source.name) + suffix)
        written, content = cv2.imencode(suffix, picture)
        if not written:
            raise OSError(f"OpenCV cannot write {path}; convert {source} to JPEG or PNG.")
        with replacing(path) as temporary:
            temporary.write_bytes(content.tobytes())

    def _stem(self, source: str) -> str:
        base = Path(source).stem or "camera"
        stem, number = base, 1
        while stem in self._stems:
            number += 1
            stem = f"{base}-{number}"
        self._stems.add(stem)
        return stem


class _Video:
    """Written beside its place, under a name that tells OpenCV the container, and moved there when closed."""

    def __init__(self, frame: Frame, path: Path) -> None:
        assert frame.rate is not None
        self.source = frame.path
        self._path = path
        hidden = beside(path)
        self._temporary = hidden.with_name(f"{hidden.name}.avi")
        height, width = frame.image.shape[:2]
        codec = cv2.VideoWriter.fourcc(*"MJPG")  # the one that every OpenCV brings
        self._writer = cv2.VideoWriter(str(self._temporary), codec, frame.rate, (width, height))
        if not self._writer.isOpened():
            raise OSError(f"OpenCV cannot write the video {path}; choose another folder with --save-dir.")

    def write(self, picture: Image) -> None:
        self._writer.write(picture)

    def close(self) -> None:
        self._writer.release()
        self._temporary.replace(self._path)
