# SPDX-License-Identifier: AGPL-3.0-or-later
"""What each part of a detector loses by INT8, and what it costs to keep it in float.

Each part is quantised alone, with the ranges that it has when everything is, and the head's raw maps are compared with
those of the float network. The noise that the part adds ranks the parts. It is not ranked by the noise that goes away
when the part alone is in float: where one part makes most of it, that says little of the others. The loss of mAP, which
for most parts is less than a small data set can tell from chance, is measured beside it; bench/NOTES.md has figures.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import onnx
import onnxruntime
from onnx import ModelProto

from fastyolo import __version__, _arguments
from fastyolo._files import write_json
from fastyolo._machine import cpu
from fastyolo.compress.accuracy import measure as measure_accuracy
from fastyolo.compress.quantization import CALIBRATORS, MIN_IMAGES, Calibrator, cost, domain, ptq
from fastyolo.compress.quantization.calibration import default_cache
from fastyolo.compress.quantization.cost import Make
from fastyolo.compress.quantization.parts import Noise, Variants
from fastyolo.runtime.letterbox import Float32, Letterbox
from fastyolo.runtime.sources import read_image

if TYPE_CHECKING:
    from fastyolo.integrations.ultralytics.labelled import LabelledImages

IMAGES = 16  # that noise is measured on, from those of the calibration

_FLOAT32, _INT8 = "float32", "int8"  # no part has such a name


class Progress(Protocol):
    def __call__(self, stage: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Part:
    """A layer or block, and what it means that it alone is quantised, or that it alone is not.

    Attributes:
        name: of torch's module, as `keep_float` takes it.
        convolutions: those of it that are quantised.
        snr: ratio of signal to noise in the head's maps when this part alone is quantised, in dB.
        snr_of_levels: the same by the level's stride in pixels, or by its number if the file does not say; 120 where
            the part has no influence.
        map50_95_loss: mAP50-95 of the float network less that of the network with only this part quantised; None: not
            measured.
        map50_loss: the same of mAP50.
        kept_bytes: by how much the file grows when this part stays in float.
        kept_latency: time of a run when this part stays in float, over that when everything is quantised.
    """

    name: str
    convolutions: int
    snr: float
    snr_of_levels: dict[str, float]
    map50_95_loss: float | None
    map50_loss: float | None
    kept_bytes: int
    kept_latency: float


@dataclass(frozen=True)
class Whole:
    """A network as a whole.

    Attributes:
        bytes: of its file.
        milliseconds: of a run of one batch in ONNX Runtime on this machine's processor.
        snr: in the head's maps, in dB; None of the float network.
        map50_95, map50: None: not measured.
    """

    bytes: int
    milliseconds: float
    snr: float | None
    map50_95: float | None
    map50: float | None


@dataclass(frozen=True)
class Report:
    """What `sensitivity` finds.

    Attributes:
        weights: what was measured.
        parts: the most sensitive first.
        float32: the network as it is.
        int8: with everything quantised that may be.
        images: that the noise was measured on.
        labelled_images: that mAP was measured on.
        processor: that times were measured on.
        notes: what was left out and why, in sentences.
    """

    weights: str
    parts: tuple[Part, ...]
    float32: Whole
    int8: Whole
    images: int
    labelled_images: int
    processor: str
    notes: tuple[str, ...]

    def worst(self, count: int) -> list[str]:
        """Names of the most sensitive parts."""
        return [part.name for part in self.parts[:count]]

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {"schema": 1, "kind": "sensitivity", **asdict(self)}


@dataclass(frozen=True)
class Kept:
    """The most sensitive parts, to be left in float.

    Attributes:
        names: the most sensitive first.
        snr_before: ratio of signal to noise in the head's maps with everything quantised, in dB.
        snr: the same with these parts in float.
    """

    names: tuple[str, ...]
    snr_before: float
    snr: float


def sensitivity(
    weights: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    per_layer: bool = False,
    accuracy_of: int = 5,
    calibrator: Calibrator = "percentile",
    images: int = 300,
    keep_float: Sequence[str] = (),
    imgsz: int | tuple[int, int] | None = None,
    cache: str | Path | None = None,
    on_progress: Progress = lambda stage, done, total: None,
) -> Report:
    """Which parts of a detector lose most by INT8, and what it costs to keep them in float.

    Noise is measured on images of the calibration; mAP on the validation images of a data set; times in ONNX Runtime
    on this machine's processor, which says little of a GPU. An interrupted measurement goes on, except for the times.

    Args:
        weights, calibrator, images, keep_float, imgsz: as `fastyolo.compress.quantize` takes them.
        data: images to calibrate on. With the YAML file of a data set, whose training images are taken, the loss of
            mAP is measured, too.
        per_layer: rank single layers, not the modules that the network lists; several times the work.
        accuracy_of: the number of parts, most sensitive first, whose loss of mAP is measured. 0: do not measure mAP.
        cache: folder that keeps what is measured. None: fastyolo/calibration in the user's cache.
        on_progress: called with what is being done, how much of it is done, and how much there is.

    Raises:
        As `fastyolo.compress.quantize`; and ValueError: the validation images cannot be used.
    """
    _arguments.path("weights", weights)
    _arguments.choices("calibrator", [calibrator], CALIBRATORS)
    _arguments.optional_path("cache", cache)
    _arguments.boolean("per_layer", per_layer)
    accuracy_of = _arguments.integer("accuracy_of", accuracy_of, 0)
    size = None if imgsz is None else _arguments.size("imgsz", imgsz)
    files = ptq.images_of(data, _arguments.integer("images", images, MIN_IMAGES))
    folder = default_cache() if cache is None else Path(cache)
    source = ptq.load(weights, imgsz=size)
    domain.warn(weights, source, files)
    labelled, notes = _labelled(source, data) if accuracy_of else (None, [])
    found = ptq.calibrated(
        source,
        files,
        method="ptq",
        calibrator=calibrator,
        keep_float=keep_float,
        cache=folder,
        on_image=partial(on_progress, "calibrate"),
    )
    variants = Variants(found, per_layer=per_layer)
    results = _Results(folder, found)
    inputs = _inputs(source, files)
    noise = Noise(variants, inputs)
    powers = _powers(variants, noise, results, on_progress)
    ranked = sorted(variants.parts, key=lambda name: -sum(powers[name]))
    accuracy = _accuracies(variants, ranked[:accuracy_of], labelled, results, on_progress) if labelled else {}
    latency = _latencies(variants, source.imgsz, on_progress)
    int8 = variants.without(())
    strides = source.metadata.strides

    def whole(name: str, model: ModelProto, snr: float | None) -> Whole:
        return Whole(model.ByteSize(), latency[name].milliseconds, snr, *accuracy.get(name, (None, None)))

    def part(name: str) -> Part:
        lost: Sequence[float | None] = (None, None)
        if name in accuracy:
            lost = [a - b for a, b in zip(accuracy[_FLOAT32], accuracy[name], strict=True)]
        return Part(
            name=name,
            convolutions=variants.parts[name],
            snr=noise.decibels(powers[name]),
            snr_of_levels={
                str(strides[level] if strides else level): noise.decibels(powers[name], level) for level in noise.levels
            },
            map50_95_loss=lost[0],
            map50_loss=lost[1],
            kept_bytes=variants.without([name]).ByteSize() - int8.ByteSize(),
            kept_latency=latency[name].ratio,
        )

    return Report(
        weights=str(weights),
        parts=tuple(map(part, ranked)),
        float32=whole(_FLOAT32, variants.model, None),
        int8=whole(_INT8, int8, noise.decibels(powers[_INT8])),
        images=len(inputs),
        labelled_images=len(labelled) if labelled else 0,
        processor=f"{cpu()['model']}, {cpu()['cores']} cores",
        notes=tuple(notes),
    )


def keep_worst(
    found: ptq.Calibrated,
    images: Sequence[Path],
    count: int,
    *,
    cache: Path | None = None,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> Kept:
    """The parts whose quantisation alone makes most noise, beside those that are in float already.

    Args:
        found: the network.
        images: those of the calibration.
        count: of parts to keep.
        cache: as of `sensitivity`.
        on_part: called with the number of parts that are measured, and of all.

    Raises:
        ValueError: there are not more than `count` parts.
    """
    variants = Variants(found)
    if not 0 < count < len(variants.parts):
        raise ValueError(
            f"keep_float must leave a part to quantise: expected auto:N with N in [1, {len(variants.parts) - 1}], got "
            f"auto:{count}."
        )
    noise = Noise(variants, _inputs(found.source, images))
    results = _Results(cache or default_cache(), found)
    powers = _powers(variants, noise, results, lambda stage, done, total: on_part(done, total))
    names = tuple(sorted(variants.parts, key=lambda name: -sum(powers[name]))[:count])
    kept = noise.powers(variants.without(names))
    return Kept(names, noise.decibels(powers[_INT8]), noise.decibels(kept))


class _Results:
    """Values that take long to measure, kept in a file whose name is the hash of all that they depend on."""

    def __init__(self, folder: Path, found: ptq.Calibrated) -> None:
        versions = (__version__, onnxruntime.__version__, cpu()["model"])
        digest = hashlib.sha256(repr((versions, IMAGES, found.note, found.scales)).encode()).hexdigest()
        self._file = folder / f"sensitivity-{digest[:32]}.json"
        try:
            self._values: dict[str, list[float]] = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is none, or it is damaged: everything is measured again
            self._values = {}

    def get(self, name: str, measure: Callable[[ModelProto], list[float]], make: Make) -> list[float]:
        """What was measured under this name before, or is now, of the graph that `make` returns."""
        if name not in self._values:
            self._values[name] = measure(make())
            write_json(self._file, self._values)
        return self._values[name]


class _Steps:
    """Says how much of a stage is done."""

    def __init__(self, on_progress: Progress, stage: str, total: int) -> None:
        self._say: Callable[[int], None] = lambda done: on_progress(stage, done, total)
        self.to(0)

    def __call__(self) -> None:
        self.to(self._done + 1)

    def to(self, done: int) -> None:
        self._done = done
        self._say(done)


def _powers(variants: Variants, noise: Noise, results: _Results, on_progress: Progress) -> dict[str, list[float]]:
    """Of the whole and of each part, the powers of the noise in the head's maps."""
    makes = {_INT8: partial(variants.without, ()), **{name: partial(variants.only, name) for name in variants.parts}}
    step = _Steps(on_progress, "noise", len(makes))
    powers = {}
    for name, make in makes.items():
        powers[name] = results.get(f"noise of {name}", noise.powers, make)
        step()
    return powers


def _inputs(source: ptq.Float32, images: Sequence[Path]) -> list[Float32]:
    """Inputs of the network from some of the images, at equal distances in the list."""
    letterbox = Letterbox(source.metadata.preprocessing)
    batch = source.graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    found = []
    count = min(len(images), IMAGES)
    for file in (images[i * len(images) // count] for i in range(count)):
        with suppress(OSError, ValueError):  # calibration has said which cannot be read
            found.append(letterbox([read_image(file)] * batch, source.imgsz, None, batch)[0])
    return found


def _labelled(source: ptq.Float32, data: Any) -> tuple[LabelledImages | None, list[str]]:
    """Images to measure mAP on, or why there are none."""
    if not isinstance(data, str | Path) or Path(data).suffix.lower() not in (".yaml", ".yml"):
        return None, ["mAP was not measured: images without a data set's YAML file have no labels."]
    height, width = source.imgsz
    if height != width:
        return None, ["mAP was not measured: ultralytics validates with square inputs."]
    from fastyolo.integrations.ultralytics.labelled import LabelledImages

    return LabelledImages(data, height, source.metadata.names), []


def _accuracies(
    variants: Variants, parts: Sequence[str], labelled: LabelledImages, results: _Results, on_progress: Progress
) -> dict[str, list[float]]:
    """mAP50-95 and mAP50 of the float network, the quantised one, and those with one part quantised."""
    makes: dict[str, Make] = {
        _FLOAT32: lambda: variants.model,
        _INT8: partial(variants.without, ()),
        **{name: partial(variants.only, name) for name in parts},
    }
    step = _Steps(on_progress, "mAP", len(makes) * len(labelled))
    measure = partial(_accuracy, labelled=labelled, on_image=step)
    digest = labelled.digest()
    found = {}
    for done, (name, make) in enumerate(makes.items(), 1):
        found[name] = results.get(f"mAP of {name} on {digest}", measure, make)
        step.to(done * len(labelled))
    return found


def _accuracy(model: ModelProto, labelled: LabelledImages, on_image: Callable[[], None]) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="fastyolo-") as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(model, file)
        accuracy = measure_accuracy(file, labelled, on_image)
    return [accuracy.map50_95, accuracy.map50]


def _latencies(variants: Variants, imgsz: tuple[int, int], on_progress: Progress) -> dict[str, cost.Latency]:
    int8 = variants.without(())
    makes: dict[str, Make] = {
        _FLOAT32: lambda: variants.model,
        _INT8: lambda: int8,
        **{name: partial(variants.without, [name]) for name in variants.parts},
    }
    return cost.latencies(int8, makes, imgsz, _Steps(on_progress, "latency", len(makes)))
