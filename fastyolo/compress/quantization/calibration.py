# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ranges of a network's tensors on a user's images, by the methods of onnxruntime.quantization.

One pass over the images, an image at a time, counts the values of each tensor in a histogram of ONNX Runtime's
collector. All methods read their ranges from it, so that another method, or another percentile, needs no other pass.
The histograms are kept in a file whose name is the hash of everything that they depend on, and are written there while
the pass goes on, so that an interrupted one continues.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper
from onnxruntime.quantization.calibrate import HistogramCollector

from fastyolo._files import replacing
from fastyolo.compress.quantization import MIN_IMAGES, Calibrator, Progress
from fastyolo.runtime.engines import onnx_session
from fastyolo.runtime.letterbox import Float32, Letterbox, Size
from fastyolo.runtime.metadata import Preprocessing
from fastyolo.runtime.sources import IMAGES, list_files, read_image

_BINS = 1024  # of the first image's range; they grow in number, not in width, with the values of the others
_MAX_BINS = 2048  # above which neighbours are joined: one image with huge values must not fill the memory
_LEVELS = 128  # among which the entropy method distributes a range, as TensorRT's does
_SAVE_EVERY = 16  # images

_FIELDS = ("counts", "edges", "low", "high", "limit")
Histogram = tuple[Any, ...]  # these, as ONNX Runtime's collector keeps them: its bins are symmetric to 0, up to limit


@dataclass(frozen=True)
class Calibration:
    """What a pass over images found.

    Attributes:
        histograms: of each tensor.
        images: those that were read.
        key: hash of what the histograms depend on.
    """

    histograms: Mapping[str, Histogram]
    images: int
    key: str

    def ranges(self, calibrator: Calibrator, percentile: float = 99.99) -> dict[str, float]:
        """The largest absolute value of each tensor that int8 is to reach.

        - minmax: the largest that there is.
        - percentile: that which so many percent of the values do not exceed.
        - entropy: that with which the distribution of the values loses least information (Kullback-Leibler
          divergence) when it is rounded, after Migacz's 8-bit inference with TensorRT (GTC 2017).
        """
        if calibrator == "minmax" or not self.histograms:
            return {name: float(max(-low, high)) for name, (_, _, low, high, _) in self.histograms.items()}
        collector = _collector(calibrator, percentile)
        absolute = calibrator == "percentile"
        collector.histogram_dict = {
            name: _of_absolute(histogram) if absolute else histogram for name, histogram in self.histograms.items()
        }
        with _silent():
            found = collector.compute_collection_result()
        return {name: float(max(-low, high)) for name, (low, high, *_) in found.items()}

    def intervals(self, calibrator: Calibrator, percentile: float = 99.99) -> dict[str, tuple[float, float]]:
        """The least and the largest value of each tensor that uint8 is to reach: those that there are, within `ranges`
        of 0."""
        found = self.ranges(calibrator, percentile)
        return {
            name: (max(float(low), -found[name]), min(float(high), found[name]))
            for name, (_, _, low, high, _) in self.histograms.items()
        }


def choose_images(source: str | Path | Sequence[str | Path], count: int) -> list[Path]:
    """The images of a folder, a glob or a list; of more than `count`, those at equal distances in the sorted list.

    Raises:
        FileNotFoundError: the source does not exist or holds no image.
        ValueError: there are less than eight.
    """
    files = [path for path in list_files(source) if path.suffix.lower() in IMAGES]
    _require_enough(len(files))
    step = max(len(files) / count, 1.0)
    return [files[int(index * step)] for index in range(min(count, len(files)))]


def calibrate(
    model: ModelProto,
    tensors: Collection[str],
    images: Sequence[Path],
    imgsz: Size,
    preprocessing: Preprocessing,
    *,
    cache: Path | None = None,
    on_image: Progress = lambda done, total: None,
) -> Calibration:
    """Count the values of tensors of a float32 graph on images.

    Args:
        model: a graph of `fastyolo export`.
        tensors: names of tensors in it, the input among them if it is wanted.
        images: files; those that cannot be read are left out, with one warning that names them.
        imgsz: height and width in pixels that images are letterboxed to.
        preprocessing: as the network was trained with.
        cache: folder for the histograms. None: fastyolo's in the user's cache.
        on_image: called with the number of images that are done, and of all.

    Raises:
        ValueError: less than eight images can be read, or a tensor has values that are not finite.
        OSError: the folder cannot be written.
    """
    key = _key(model, tensors, images, imgsz, preprocessing)
    file = (default_cache() if cache is None else cache) / f"{key}.npz"
    state = _State.read(file, tensors) or _State({}, 0, [])
    if state.seen < len(images):
        _collect(model, tensors, images, imgsz, preprocessing, state, file, on_image)
    on_image(len(images), len(images))
    if state.unreadable:
        names = ", ".join(str(images[index]) for index in state.unreadable)
        warnings.warn(f"Calibration leaves out what cannot be read as an image: {names}.", stacklevel=2)
    readable = len(images) - len(state.unreadable)
    _require_enough(readable)
    return Calibration(state.histograms, readable, key)


def default_cache() -> Path:
    """Of this user: $XDG_CACHE_HOME/fastyolo/calibration, or that in ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "fastyolo" / "calibration"


@dataclass
class _State:
    """A pass, up to some image.

    Attributes:
        histograms: of each tensor.
        seen: images that are behind it.
        unreadable: the places of those of them that could not be read.
    """

    histograms: dict[str, Histogram]
    seen: int
    unreadable: list[int]

    @staticmethod
    def read(file: Path, tensors: Iterable[str]) -> _State | None:
        """None if there is no such file, or if it is damaged: it is made again."""
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                histograms = {
                    name: tuple(arrays[f"{index}.{field}"][()] for field in _FIELDS)
                    for index, name in enumerate(sorted(tensors))
                }
                return _State(histograms, int(arrays["seen"]), arrays["unreadable"].tolist())
        except Exception:  # of zip, zlib and NumPy, whatever a damaged byte leads to
            return None

    def write(self, file: Path) -> None:
        arrays = {
            f"{index}.{field}": value
            for index, name in enumerate(sorted(self.histograms))
            for field, value in zip(_FIELDS, self.histograms[name], strict=True)
        }
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, seen=self.seen, unreadable=np.array(self.unreadable, np.int64), **arrays)


def _collect(
    model: ModelProto,
    tensors: Collection[str],
    images: Sequence[Path],
    imgsz: Size,
    preprocessing: Preprocessing,
    state: _State,
    file: Path,
    on_image: Progress,
) -> None:
    """Take `state` to the end of the images."""
    run, batch = _runner(model, tensors)
    letterbox = Letterbox(preprocessing)
    collector = _collector("entropy")
    collector.histogram_dict = state.histograms
    saved = state.seen
    while state.seen < len(images):
        on_image(state.seen, len(images))
        readable = []
        for index in range(state.seen, min(state.seen + batch, len(images))):
            try:
                readable.append(read_image(images[index]))
            except (OSError, ValueError):
                state.unreadable.append(index)
            state.seen += 1
        if readable:
            values = run(letterbox(readable, imgsz, None, batch)[0], len(readable))
            _count(collector, values)
        if state.seen - saved >= _SAVE_EVERY or state.seen == len(images):
            if state.histograms:
                state.write(file)
            saved = state.seen


def _count(collector: HistogramCollector, values: Mapping[str, Float32]) -> None:
    for name, array in values.items():
        largest = float(np.abs(array).max())
        if not math.isfinite(largest):
            raise ValueError(
                f"The tensor {name!r} has values that are not finite, so the network overflows or its weights are "
                f"damaged; check what it detects, and export it again."
            )
        if name in collector.histogram_dict:
            collector.histogram_dict[name] = _coarsened(collector.histogram_dict[name], largest)
    with _silent():
        collector.collect(values)


def _coarsened(histogram: Histogram, largest: float) -> Histogram:
    """The same with wider bins, if those up to `largest` would be too many."""
    counts, edges, low, high, limit = histogram
    while limit > 0 and len(counts) * largest / limit > _MAX_BINS:
        if len(counts) % 4:  # a bin more on either side, so that 0 stays an edge
            width = edges[1] - edges[0]
            counts, edges = np.pad(counts, 1), np.array([edges[0] - width, *edges, edges[-1] + width])
            limit = edges[-1].astype(limit.dtype)
        counts, edges = counts.reshape(-1, 2).sum(1), edges[::2]
    return counts, edges, low, high, limit


def _of_absolute(histogram: Histogram) -> tuple[Any, ...]:
    """The histogram of absolute values, as ONNX Runtime's percentile method keeps it."""
    counts, edges, low, high, _ = histogram
    half = len(counts) // 2
    return counts[half:] + counts[:half][::-1], edges[half:], low, high


def _collector(method: str, percentile: float = 100.0) -> HistogramCollector:
    return HistogramCollector(
        method,
        symmetric=True,
        num_bins=_BINS,
        num_quantized_bins=_LEVELS,
        percentile=percentile,
        scenario="same",
    )


def _runner(model: ModelProto, tensors: Collection[str]) -> tuple[Callable[[Float32, int], dict[str, Float32]], int]:
    """A function from an input [batch, 3, H, W] and the number of its images to these tensors of the images; and the
    batch."""
    probe = ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    source = probe.graph.input[0]
    names = [tensor for tensor in sorted(tensors) if tensor != source.name]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnx_session(probe.SerializeToString())

    def run(images: Float32, count: int) -> dict[str, Float32]:
        found = dict(zip(names, session.run(names, {source.name: images}) if names else (), strict=True))
        if source.name in tensors:
            found[source.name] = images
        return {name: array[:count] for name, array in found.items()}

    return run, source.type.tensor_type.shape.dim[0].dim_value or 1


def _key(
    model: ModelProto, tensors: Collection[str], images: Sequence[Path], imgsz: Size, preprocessing: Preprocessing
) -> str:
    digest = hashlib.sha256()
    settings = (onnxruntime.__version__, _BINS, _MAX_BINS, imgsz, preprocessing, sorted(tensors))
    digest.update(repr(settings).encode())
    digest.update(hashlib.sha256(model.graph.SerializeToString(deterministic=True)).digest())
    for path in images:
        try:
            content = path.read_bytes()
        except OSError as error:
            content = repr(error.errno).encode()  # it will be left out, and once it can be read it will not
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:32]


def _require_enough(images: int) -> None:
    if images < MIN_IMAGES:
        raise ValueError(
            f"Calibration needs at least {MIN_IMAGES} images that can be read, got {images}; name a folder with more, "
            f"100 to 500 of those that the model is for."
        )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """ONNX Runtime's calibrators print what they do."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
