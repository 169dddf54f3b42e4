# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an image file is, from one reading of it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

SIDE = 32  # of the thumbnails that near-duplicates are found by, in pixels

_ORIENTATION = 274  # EXIF's tag
_SWAPPED = frozenset((5, 6, 7, 8))  # its values that exchange width and height

_JPEG = frozenset(("JPEG", "MPO"))
_FORMATS = {
    ".bmp": frozenset(("BMP", "DIB")),
    ".jpeg": _JPEG,
    ".jpg": _JPEG,
    ".mpo": _JPEG,
    ".png": frozenset(("PNG",)),
    ".tif": frozenset(("TIFF",)),
    ".tiff": frozenset(("TIFF",)),
    ".webp": frozenset(("WEBP",)),
}


@dataclass(frozen=True)
class Image:
    """An image file.

    Attributes:
        problem: why it cannot be used, the name of a finding; None if it can, and then the others are set.
        reason: of the problem, as its reader puts it.
        format: by the content, as "JPEG".
        width, height: in pixels, as training sees them: EXIF's orientation applied.
        colours: "grey", "colour" or "alpha".
        deep: 16 bits per channel, or more.
        rotated: EXIF's orientation exchanges width and height.
        digest: of the file's bytes.
        thumbnail: [SIDE * SIDE] uint8, grey, as stored; None if all of the image is of one grey, but for noise.
    """

    problem: str | None = None
    reason: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    colours: str = ""
    deep: bool = False
    rotated: bool = False
    digest: bytes = b""
    thumbnail: npt.NDArray[np.uint8] | None = None

    def matches(self, suffix: str) -> bool:
        """Whether the file's name says what it is, as far as that is known."""
        return self.format in _FORMATS.get(suffix.lower(), (self.format,))


def read(file: str, use: Callable[[bytes], None] = lambda content: None) -> Image:
    """Read a file once; its pixels are decoded at an eighth of the size where the format allows that (JPEG).

    Args:
        use: called with the file's content, if it is an image that can be used.
    """
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        return Image("unreadable image", error.strerror or str(error))
    if not content:
        return Image("image file of zero bytes")
    digest = hashlib.blake2b(content, digest_size=16).digest()
    try:
        with Pillow.open(io.BytesIO(content)) as image:
            width, height = image.size
            mode, form = image.mode, image.format or ""
    except UnidentifiedImageError:
        return Image("unreadable image", "it is no image", digest=digest)
    except Exception as error:  # whatever the readers of the many formats raise
        return Image("unreadable image", str(error), digest=digest)
    try:
        thumbnail = _thumbnail(content)
        with Pillow.open(io.BytesIO(content)) as image:
            orientation = image.getexif().get(_ORIENTATION)  # of PNG, it may stand behind the pixels
    except Exception as error:  # likewise
        return Image("truncated image", str(error), format=form, digest=digest)
    if rotated := orientation in _SWAPPED:
        width, height = height, width
    use(content)
    return Image(
        format=form,
        width=width,
        height=height,
        colours=_colours(mode),
        deep=mode.startswith(("I", "F")) or (form == "PNG" and content[24] == 16),
        rotated=rotated,
        digest=digest,
        thumbnail=thumbnail,
    )


def _colours(mode: str) -> str:
    if mode in ("RGBA", "LA", "PA"):
        return "alpha"
    return "grey" if mode in ("1", "L", "F") or mode.startswith("I") else "colour"


def _thumbnail(content: bytes) -> npt.NDArray[np.uint8] | None:
    with Pillow.open(io.BytesIO(content)) as image:
        image.draft("L", (4 * SIDE, 4 * SIDE))
        if image.mode.startswith("I"):  # 16 bits, which convert() would cut off at 255
            values = np.asarray(image, np.float32)
            grey = Pillow.fromarray((values * (255 / max(float(values.max()), 1.0))).astype(np.uint8))
        else:
            grey = image.convert("L")
        small = np.asarray(grey.resize((SIDE, SIDE), Pillow.Resampling.BOX), np.uint8).ravel()
    return small if small.std() > 2 else None
