# SPDX-License-Identifier: AGPL-3.0-or-later
"""Does an exported model compute what its checkpoint computes? Stage by stage, on the same images, and if not, why not.

The checkpoint runs in ultralytics and torch, the file in `fastyolo.runtime`. Each stage is given equal inputs where the
file allows it, so that a difference shows where it arises and not in all that follows.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastyolo.bench.runtimes import engine_of, runtimes_of
from fastyolo.diagnose import culprits, layers
from fastyolo.diagnose.culprits import Array, Difference, Finding
from fastyolo.diagnose.graph import Graph, Precision, openvino_precision
from fastyolo.diagnose.layers import IncomparableError
from fastyolo.diagnose.matching import Match, describe, match, neighbours
from fastyolo.diagnose.predictions import Outputs, Predictions, predictions
from fastyolo.integrations.ultralytics.parity import ASSETS, Placement, Reference
from fastyolo.runtime import Detector, Metadata
from fastyolo.runtime.engines import ENGINES, EngineName
from fastyolo.runtime.metadata import MAX_CANDIDATES, Nms
from fastyolo.runtime.sources import VIDEOS, Item, is_camera, open_source

__all__ = ["IncomparableError", "Report", "Stage", "verify"]

Verdict = Literal["agrees", "departs", "skipped"]
Measure = Literal["maximum", "relative"]

# Of the largest difference, as a share of the largest value, or in absolute terms where that is below 1.
TOLERANCES: dict[Precision, float] = {"float32": 1e-5, "float16": 1e-2, "int8": 0.2}

# Of the Euclidean norm of int8's difference, as a share of that of the values: noise and signal. Single values, which
# `TOLERANCES` are about, say little, as some are cut off at the end of their range. The maps of a sound file of YOLOv8n
# came to 0.18 at 320 pixels and to 0.34 at 640, those with a zero point that is shifted by 16 to 0.58; what spoils one
# layer only is left to the comparison of layers. Most of a box's coordinates is its place, which has no noise.
_INT8_NOISE = {"maps": 0.5, "boxes": 0.1, "scores": 0.5}

# How much more than rounding alone may move what a network computes: runtimes add in another order, and transform
# convolutions. What a network makes of it depends on its weights, so it is measured where `TOLERANCES` are not met.
_ROUNDING = 10

# Of scores and IoU that lie near a threshold.
_MARGINS: dict[Precision, float] = {"float32": 1e-3, "float16": 2e-2, "int8": 0.1}

# Of mAP50-95.
_ACCURACY: dict[Precision, float] = {"float32": 1e-3, "float16": 5e-3, "int8": 2e-2}

_VALIDATION = Nms(0.001, 0.7, 300, MAX_CANDIDATES, multi_label=True, class_agnostic=False)

# Images kept for the search of what makes detections depart: so many where they do, and where they do not.
_KEPT_FOR_SEARCH = 8

# What post-processing may do wrong with boxes, by a cause and a sentence.
_PLACEMENTS: dict[Placement, Finding] = {
    "padded": Finding("letterbox", "The offset of the letterbox is not subtracted from the boxes; do so."),
    "swapped": Finding("box format", "The boxes are written with y before x; write x before y."),
}


@dataclass(frozen=True)
class Stage:
    """One row of a report.

    Attributes:
        name: metadata, input, layers, maps, boxes, scores, detections or mAP.
        verdict: whether file and checkpoint agree; skipped: not compared, or (detections of quantised weights) not held
            to anything.
        difference: over all images, if the stage has numbers; of detections, that of their scores.
        allowed: limit of the measure that decides; an image whose values are smaller has a lower one.
        measure: which of the difference decides.
        note: what was compared, or why it was not.
    """

    name: str
    verdict: Verdict
    note: str
    difference: Difference | None = None
    allowed: float | None = None
    measure: Measure = "maximum"


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        weights: the checkpoint.
        model: the exported file.
        engine: that ran it.
        precision: of its weights.
        images: how many.
        stages: in order.
        departures: layers that depart given equal inputs.
        findings: what is wrong and what to do.
    """

    weights: str
    model: str
    engine: str
    precision: Precision
    images: int
    stages: tuple[Stage, ...]
    departures: tuple[layers.Departure, ...]
    findings: tuple[Finding, ...]

    @property
    def agrees(self) -> bool:
        """Whether no stage departs."""
        return all(stage.verdict != "departs" for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Of JSON's types; differences that are not finite are null."""
        document: dict[str, Any] = _finite({"agrees": self.agrees, **asdict(self)})
        return document


def verify(
    weights: str | Path,
    model: str | Path,
    source: str | Path | Sequence[str | Path] | None = None,
    *,
    data: str | None = None,
    conf: float = 0.25,
    iou: float = 0.7,
    engine: EngineName = "onnxruntime",
    detector: Detector | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Compare an exported model with the checkpoint that it comes from.

    Args:
        weights: the checkpoint.
        model: an ONNX file, an OpenVINO folder or .xml file, an NCNN folder or a TensorRT engine, of fastyolo's or
            ultralytics' exporters.
        source: images: a file, folder, glob or list of these. None: the two photographs that come with ultralytics.
            Those that cannot be read are left out with a warning.
        data: YAML file of a data set, on whose validation images mAP is compared.
        conf: score threshold of the detections; at least the one that is built into a model with NMS.
        iou: IoU threshold of NMS, unless it is built into the model.
        engine: of an ONNX file: "onnxruntime", or "openvino".
        detector: what runs the file, to check pre- or post-processing of your own in a subclass of `Detector`.
        progress: called with the name of what is being compared.

    Raises:
        IncomparableError: a file is missing or cannot be read, there are no images, or the two are not of the same
            model.
        ModuleNotFoundError: a package that the engine needs is missing.
    """
    file = Path(model)
    with _loading():
        if not file.exists():
            raise FileNotFoundError(f"The model {str(model)!r} does not exist.")
        images = _open(str(ASSETS) if source is None else source)
        comparison = _Comparison(str(weights), file, conf, iou, engine, detector)
        if data is not None:
            comparison.check_data(data)
    problems: list[Exception] = []
    for item in images:
        (progress or _silent)(Path(item.path).name)
        try:
            image = item.load()
        except (OSError, ValueError) as error:
            problems.append(error)
            continue
        comparison.add(image)
    if not comparison.images:
        others = f" The other {len(problems) - 1} cannot be read either." if len(problems) > 1 else ""
        raise IncomparableError(f"{problems[0]}{others}") from problems[0]
    for problem in problems:
        warnings.warn(f"An image is left out: {problem}", stacklevel=2)
    if data is not None:
        (progress or _silent)("mAP")
    return comparison.report(data)


@contextmanager
def _loading() -> Iterator[None]:
    """What is wrong with files is not to be taken for an error of the comparison itself."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise IncomparableError(str(error)) from error


def _open(source: str | Path | Sequence[str | Path]) -> Iterator[Item]:
    """The images of a source, at least one; the videos of a folder are passed over."""
    opened = []
    for part in [source] if isinstance(source, (str, Path)) else source:
        if is_camera(str(part)) or Path(part).suffix.lower() in VIDEOS:
            raise IncomparableError(
                f"source (--source) must be an image, a folder or a glob of images, got {str(part)!r}."
            )
        opened.append(itertools.takewhile(_is_image, open_source(part).items))
    images = itertools.chain(*opened)
    first = next(images, None)
    if first is None:
        raise IncomparableError(f"source (--source) must hold at least one image, got {str(source)!r}.")
    return itertools.chain([first], images)


def _is_image(item: Item) -> bool:
    return Path(item.path).suffix.lower() not in VIDEOS


Maps: TypeAlias = tuple[list[Array], list[Array]]  # of the boxes by level, and of the classes


class _Expected:
    """What the checkpoint makes of an image.

    Attributes:
        tensor: [1, 3, H, W], the prepared image.
        maps: of the head.
        predicted: [4 + C, A], boxes xyxy in input pixels and scores.
    """

    def __init__(self, reference: Reference, tensor: Array, precision: Precision) -> None:
        self._reference = reference
        self._half = precision == "float16"
        self.tensor = tensor
        self.maps: Maps = reference.run(tensor)
        self.predicted: Array = reference.decode(*self.maps)[0]

    def allowed(self, kind: str, difference: Difference, tolerance: float) -> float:
        """Of the largest difference: the limit of the tolerance, or what rounding explains if that is more.

        Args:
            kind: maps, boxes or scores.
            difference: of the file.
            tolerance: as in `Difference.limit`.
        """
        limit = difference.limit(tolerance)
        return limit if difference.maximum <= limit else max(limit, _ROUNDING * self._rounding[kind])

    @functools.cached_property
    def _rounding(self) -> dict[str, float]:
        """How far rounding alone moves the values; 0 where it overflows."""
        maps = self._reference.rounded(self.tensor, half=self._half)
        predicted = self._reference.decode(*maps)[0]
        found = {
            "maps": _of_maps(maps, self.maps).maximum,
            "boxes": Difference.between(predicted[:4], self.predicted[:4]).maximum,
            "scores": Difference.between(predicted[4:], self.predicted[4:]).maximum,
        }
        return {kind: value if math.isfinite(value) else 0.0 for kind, value in found.items()}


def _of_maps(ours: Maps, theirs: Maps) -> Difference:
    pairs = zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), strict=True)
    return functools.reduce(operator.or_, (Difference.between(a, b) for a, b in pairs))


@dataclass(frozen=True)
class _Found:
    """What a file finds in an image.

    Attributes:
        rows: [n, 6], x1, y1, x2, y2 in pixels of the image, score, class.
        expected: by the checkpoint.
        image: height and width of the image in pixels.
    """

    rows: Array
    expected: _Expected
    image: tuple[int, int]


class _Comparison:
    """What is known so far, image after image.

    Attributes:
        images: how many.
    """

    def __init__(
        self, weights: str, file: Path, conf: float, iou: float, engine: EngineName, detector: Detector | None
    ) -> None:
        self._weights, self._file = weights, file
        self._graph = Graph(file) if file.suffix.lower() == ".onnx" else None
        self._engine = engine if self._graph else engine_of(runtimes_of(file)[0])
        metadata, self._precision = self._describe()
        self._tolerance = TOLERANCES[self._precision]
        self._measure: Measure = "relative" if self._precision == "int8" else "maximum"
        self._nms = Nms(conf, iou, 300, MAX_CANDIDATES, multi_label=False, class_agnostic=False)
        if metadata.nms:
            self._nms = replace(metadata.nms, score_threshold=max(conf, metadata.nms.score_threshold))
        self._detector = detector or self._load(self._nms)
        self._own = detector is not None
        self._reference = Reference(weights, self._detector.imgsz)
        self.images = 0
        self._rect = False  # whether the inputs of a model with free sizes are cut down to what an image needs
        self._stages: dict[str, Stage] = {}
        self._findings: dict[str, Finding] = {}
        self._departures: tuple[layers.Departure, ...] = ()
        self._match: Match | None = None
        self._box_levels = 0  # in the image that `_box_finding` is from
        self._box_finding: Finding | None = None
        self._departing: list[_Found] = []
        self._agreeing: list[_Found] = []
        self._compare_metadata()

    def _describe(self) -> tuple[Metadata, Precision]:
        """What the file says of itself, and the precision that its values may be expected to have."""
        if self._graph:
            return Metadata.read(self._graph.properties, str(self._file)), self._graph.precision
        build = self._engine if isinstance(self._engine, type) else ENGINES[self._engine]
        properties = build(self._file, 1).properties
        metadata = Metadata.read(properties, str(self._file))
        if self._engine == "openvino":
            precision = openvino_precision(self._file)
        else:
            arguments = properties.get("args")
            bits = str(arguments.get("quantize")) if isinstance(arguments, Mapping) else ""
            # TensorRT multiplies float32 in TF32, whose significand is as short as that of float16.
            short = bits == "16" or self._file.suffix.lower() == ".engine"
            precision = "int8" if "8" in bits else "float16" if short else "float32"
        return metadata, precision

    def _load(self, nms: Nms) -> Detector:
        return Detector(
            self._file,
            conf=nms.score_threshold,
            iou=nms.iou_threshold,
            max_det=nms.max_det,
            agnostic_nms=nms.class_agnostic,
            multi_label=nms.multi_label,
            engine=self._engine,
        )

    def check_data(self, data: str) -> None:
        """Raises ValueError if `data` is no data set of the checkpoint's classes."""
        self._reference.check_data(data)

    def add(self, image: npt.NDArray[np.uint8]) -> None:
        """Compare on one more image."""
        detector, reference = self._detector, self._reference
        tensor, placements = detector.preprocess([image])
        self._rect |= tensor.shape[2:] != detector.imgsz
        expected = _Expected(reference, reference.preprocess(image, rect=self._rect), self._precision)
        outputs = self._run(tensor)
        given, given_outputs = tensor[:1], outputs
        if not self._compare_input(image, tensor[:1], outputs, expected):
            given, given_outputs = expected.tensor, self._run(np.repeat(expected.tensor, len(tensor), 0))
        if self.images == 0:
            self._compare_layers(given, expected.tensor)
        maps = self._maps(given, given_outputs)
        if maps:
            self._compare_maps(maps, expected)
        self._compare_predictions(given_outputs, maps, expected)
        if self._names_every_label(outputs):
            found = np.column_stack(list(detector.postprocess(outputs, placements[:1])[0]))
            self._compare_detections(_Found(found, expected, _size(image.shape[:2])))
        else:
            unlike = Difference(math.inf, math.inf, 1.0)
            self._record("detections", unlike, self._tolerance, "some of a class that the metadata do not name")
        self.images += 1

    def _run(self, tensor: Array) -> Outputs:
        try:
            return self._detector.run(tensor)
        except Exception as error:  # each runtime has its own
            reason = " ".join(str(error).split())
            raise IncomparableError(f"{self._file} cannot be run ({reason}); export it again.") from error

    def report(self, data: str | None) -> Report:
        """Of all images so far."""
        self._find(self._box_finding)
        departing = {stage.name for stage in self._stages.values() if stage.verdict == "departs"}
        if departing == {"detections"}:
            if self._own:
                self._find(self._placement())
            if not self._findings and (self._own or self._detector.metadata.nms):
                self._find(self._nms_settings())
        if data is not None:
            self._compare_accuracy(data)
        first = next((stage.name for stage in self._stages.values() if stage.verdict == "departs"), None)
        if first and not self._findings:
            self._find(
                Finding(
                    "unknown",
                    f"The first stage that departs is {first!r}, and none of the usual reasons explains it; "
                    f"compare how the file and the checkpoint were made.",
                )
            )
        return Report(
            self._weights,
            str(self._file),
            self._engine if isinstance(self._engine, str) else self._engine.__name__.lower(),
            self._precision,
            self.images,
            tuple(self._stages.values()),
            self._departures,
            tuple(self._findings.values()),
        )

    # ---- stages

    def _compare_metadata(self) -> None:
        metadata, reference = self._detector.metadata, self._reference
        if len(metadata.names) != len(reference.names):
            raise IncomparableError(
                f"{self._file} has {len(metadata.names)} classes and {self._weights} has {len(reference.names)}; pass "
                f"the checkpoint that the file was exported from."
            )
        if metadata.strides and len(metadata.strides) != len(reference.strides):
            raise self._of_another_model(f"{len(metadata.strides)} levels", f"{len(reference.strides)}")
        self._find(_of_names(metadata.names, reference.names))
        self._find(_of_strides(metadata, reference.strides))
        verdict: Verdict = "departs" if self._findings else "agrees"
        self._stages["metadata"] = Stage("metadata", verdict, "names of the classes, strides")

    def _of_another_model(self, ours: str, theirs: str) -> IncomparableError:
        return IncomparableError(
            f"{self._file} is of another model than the checkpoint: it has {ours} where the checkpoint has {theirs}; "
            f"pass the checkpoint that it was exported from."
        )

    def _compare_input(
        self, image: npt.NDArray[np.uint8], tensor: Array, outputs: Outputs, expected: _Expected
    ) -> bool:
        """Whether the file's outputs for its own input can be held against the checkpoint's."""
        prepared, tolerance = expected.tensor, TOLERANCES["float32"]
        difference = Difference.between(tensor, prepared)
        if not difference.within(tolerance) and tensor.shape == prepared.shape and self._reproduces(outputs, expected):
            self._stages.setdefault(
                "input", Stage("input", "agrees", "prepared otherwise, for which the graph makes up")
            )
            return True
        if self._record("input", difference, difference.limit(tolerance), "the prepared image"):
            return True
        variants = self._reference.misprepared(image) if tensor.shape[2:] == self._detector.imgsz else {}
        for cause, clause in culprits.of_input(tensor, prepared, variants, tolerance):
            self._find(
                Finding(
                    cause,
                    f"The input is not prepared as for the checkpoint: {clause}; correct it where the images are "
                    f"prepared (in Detector's case, by an export with the right metadata).",
                )
            )
        return False

    def _reproduces(self, outputs: Outputs, expected: _Expected) -> bool:
        ours = predictions(self._detector.metadata, outputs)
        differences = map(Difference.between, (ours.boxes, ours.scores), ours.same_of(expected.predicted))
        return all(
            getattr(difference, self._measure) <= self._allowed(kind, difference, expected)
            for kind, difference in zip(("boxes", "scores"), differences, strict=True)
        )

    def _allowed(self, kind: str, difference: Difference, expected: _Expected | None) -> float:
        """Of what decides; without `expected`, which knows what rounding explains, of what the file itself computes."""
        if self._measure == "relative":
            return _INT8_NOISE[kind]
        return expected.allowed(kind, difference, self._tolerance) if expected else difference.limit(self._tolerance)

    def _compare_layers(self, tensor: Array, prepared: Array) -> None:
        compared = layers.compare(self._reference, self._graph, tensor, prepared) if self._graph else None
        if compared is None or not compared.compared:
            reason = "the nodes are not named by the modules' paths" if compared else "shown by ONNX files alone"
            self._stages["layers"] = Stage("layers", "skipped", reason)
            return
        self._departures = compared.departures
        verdict: Verdict = "departs" if compared.finding else "agrees"
        where = "" if self._engine == "onnxruntime" else ", in ONNX Runtime"
        note = f"{compared.compared} modules, each given equal inputs{where}"
        allowed = layers.TOLERANCES[self._precision]
        self._stages["layers"] = Stage("layers", verdict, note, compared.difference, allowed, "relative")
        self._find(compared.finding)

    def _maps(self, tensor: Array, outputs: Outputs) -> Maps | None:
        """The file's head maps, which are its outputs or inside its graph."""
        if self._detector.metadata.outputs == "maps":
            values = [output[:1] for output in outputs.values()]
            return values[: len(values) // 2], values[len(values) // 2 :]
        blocks = {block.path: block.output for block in self._graph.blocks} if self._graph else {}
        branches = self._reference.branches
        if self._graph is None or not blocks.keys() >= {path for paths in branches for path in paths}:
            self._stages["maps"] = Stage("maps", "skipped", "the file does not put them out")
            return None
        tapped = self._graph.run(tensor, [blocks[path] for paths in branches for path in paths])
        box_maps, cls_maps = ([tapped[blocks[path]] for path in paths] for paths in branches)
        return box_maps, cls_maps

    def _compare_maps(self, maps: Maps, expected: _Expected) -> None:
        ours, theirs = (sorted(x.shape[1:] for x in (*pair[0], *pair[1])) for pair in (maps, expected.maps))
        if ours != theirs:
            raise self._of_another_model(f"head maps of {_shapes(ours)}", _shapes(theirs))
        difference = _of_maps(maps, expected.maps)
        allowed = self._allowed("maps", difference, expected)
        if not self._record("maps", difference, allowed, "outputs of the head's branches", self._measure):
            for pair in zip(maps, expected.maps, strict=True):
                self._find(culprits.of_level_order(*pair, self._reference.strides, self._tolerance))
            self._find(culprits.of_class_maps(maps[1], expected.maps[1], self._tolerance))

    def _compare_predictions(self, outputs: Outputs, maps: Maps | None, expected: _Expected) -> None:
        """Decoded boxes and scores; given equal maps, if the file shows them."""
        ours = predictions(self._detector.metadata, outputs)
        predicted = self._reference.decode(*maps)[0] if maps else expected.predicted
        if ours.labels is None and len(ours.boxes) != predicted.shape[1]:
            raise self._of_another_model(f"{len(ours.boxes)} anchors", f"{predicted.shape[1]}")
        boxes, scores = ours.same_of(predicted)
        of_boxes, of_scores = Difference.between(ours.boxes, boxes), Difference.between(ours.scores, scores)
        against = None if maps else expected
        if not self._record("boxes", of_boxes, self._allowed("boxes", of_boxes, against), ours.note, self._measure):
            cells = [x.shape[2] * x.shape[3] for x in expected.maps[0]]
            levels = np.repeat(np.arange(len(cells)), cells).take(ours.anchors, mode="clip")
            strides, size = self._reference.strides, _size(expected.tensor.shape)
            if (seen := len(np.unique(levels))) > self._box_levels:  # one level alone can mean many things
                self._box_levels = seen
                self._box_finding = culprits.of_boxes(ours.boxes, boxes, levels, strides, size, self._tolerance)
        if not self._record("scores", of_scores, self._allowed("scores", of_scores, against), ours.note, self._measure):
            self._find(self._of_scores(ours, scores, predicted))
            if maps is None:
                self._find(self._of_preparation(outputs, expected))

    def _of_scores(self, ours: Predictions, scores: Array, predicted: Array) -> Finding | None:
        finding = culprits.of_scores(ours.scores, scores, self._tolerance)
        if finding or ours.labels is None:
            return finding
        return culprits.of_labels(ours.labels, ours.scores, ours.classes_of(predicted), self._tolerance)

    def _of_preparation(self, outputs: Outputs, expected: _Expected) -> Finding | None:
        """Whether the file computes what the checkpoint does of an image that is prepared in another way."""
        for preparation in culprits.PREPARATIONS:
            tensor = np.ascontiguousarray(preparation.apply(expected.tensor))
            if self._reproduces(outputs, _Expected(self._reference, tensor, self._precision)):
                ((cause, clause), *_) = preparation.findings
                return Finding(
                    cause,
                    f"The file computes what the checkpoint does for another input, in which {clause}; export the "
                    f"model again.",
                )
        return None

    def _names_every_label(self, outputs: Outputs) -> bool:
        """Whether the labels are those of classes, without which `Detector` refuses them."""
        labels = predictions(self._detector.metadata, outputs).labels
        return labels is None or bool(((labels >= 0) & (labels < len(self._reference.names))).all())

    def _compare_detections(self, found: _Found) -> None:
        """From image to image: what the file finds, with all that it does before and after the network."""
        matched = self._match_with(found, self._nms)
        self._match = total = self._match | matched if self._match else matched
        kept = self._departing if matched.unexplained else self._agreeing
        if len(kept) < _KEPT_FOR_SEARCH:
            kept.append(found)
        note = f"{total.pairs} in common, their boxes within {total.boxes.maximum:.1g} pixels"
        if total.close:
            note += f", {total.close} of one side whose score or IoU is close to a threshold"
        if total.unexplained:
            note += f", {total.unexplained} apart or of one side only"
        allowed = found.expected.allowed("scores", matched.scores, self._tolerance)
        self._record("detections", matched.scores, allowed, note)
        enlarged = max(a / b for a, b in zip(found.image, _size(found.expected.tensor.shape), strict=True))
        boxes = found.expected.allowed("boxes", matched.boxes, self._tolerance) * max(enlarged, 1)
        if self._precision == "int8":
            skipped = replace(self._stages["detections"], verdict="skipped", note=f"{note}; mAP tells if that is much")
            self._stages["detections"] = skipped
        elif matched.unexplained or matched.boxes.maximum > boxes:
            self._stages["detections"] = replace(self._stages["detections"], verdict="departs")

    def _match_with(self, found: _Found, nms: Nms, placement: Placement = "image") -> Match:
        """The file's detections against what these settings of NMS make of the checkpoint's predictions."""
        margin = _MARGINS[self._precision]
        predicted, size = found.expected.predicted, _size(found.expected.tensor.shape)
        (rows,) = self._reference.detect(predicted[None], nms)
        labels, anchors = np.nonzero(predicted[4:] > nms.score_threshold - margin)
        pool = np.column_stack((predicted[:4, anchors].T, predicted[4 + labels, anchors], labels))
        expected, candidates = (
            np.column_stack((self._reference.to_image(x[:, :4], size, found.image, placement), x[:, 4:]))
            for x in (rows, pool)
        )
        return match(found.rows, expected, candidates, nms, margin)

    def _explains(self, nms: Nms, placement: Placement = "image") -> bool:
        """Whether the detections of the kept images are those of these settings."""
        matches = [self._match_with(found, nms, placement) for found in (*self._departing, *self._agreeing)]
        return any(matched.pairs for matched in matches) and not any(matched.unexplained for matched in matches)

    def _placement(self) -> Finding | None:
        return next((finding for way, finding in _PLACEMENTS.items() if self._explains(self._nms, way)), None)

    def _nms_settings(self) -> Finding | None:
        """The settings of NMS, nearest to those asked for, that give the file's detections."""
        found = [*self._departing, *self._agreeing]
        expected = [len(self._reference.detect(x.expected.predicted[None], self._nms)[0]) for x in found]
        for settings in neighbours(self._nms, [x.rows for x in found], expected):
            if fitting := [nms for nms in settings if self._explains(nms)]:
                more = "; compare more images to tell which of these" if len(fitting) > 1 else ""
                return Finding(
                    "NMS settings",
                    f"The detections are those of NMS with {describe(self._nms, fitting)}{more}; set it as it was "
                    f"asked for.",
                )
        return None

    def _compare_accuracy(self, data: str) -> None:
        height, width = self._detector.imgsz
        if height != width:
            self._stages["mAP"] = Stage("mAP", "skipped", "ultralytics validates with square inputs")
            return
        nms = self._nms if self._own else self._detector.metadata.nms or _VALIDATION
        detector = self._detector if self._own else self._load(nms)
        official, theirs, ours = self._reference.accuracies(
            data,
            nms,
            (
                lambda image: self._reference.find(image, nms, rect=self._rect),
                lambda image: np.column_stack(list(detector(image))),
            ),
        )
        change = abs(ours.map50_95 - theirs.map50_95)
        tolerance = _ACCURACY[self._precision]
        self._stages["mAP"] = Stage(
            "mAP",
            "agrees" if change <= tolerance else "departs",
            f"mAP50-95 {ours.map50_95:.4f} and of the checkpoint {theirs.map50_95:.4f} ({official.map50_95:.4f} in "
            f"ultralytics' validator, which resizes a little differently)",
            Difference(change, change / theirs.map50_95 if theirs.map50_95 else 0.0, theirs.map50_95),
            tolerance,
        )

    # ---- bookkeeping

    def _record(
        self, name: str, difference: Difference, allowed: float, note: str, measure: Measure = "maximum"
    ) -> bool:
        """A stage's difference on one more image; whether it is allowed on this one."""
        agrees = all_agree = bool(getattr(difference, measure) <= allowed)
        if name in self._stages and (before := self._stages[name].difference):
            all_agree = agrees and self._stages[name].verdict == "agrees"
            difference |= before
            allowed = max(allowed, self._stages[name].allowed or 0.0)
        self._stages[name] = Stage(name, "agrees" if all_agree else "departs", note, difference, allowed, measure)
        return agrees

    def _find(self, finding: Finding | None) -> None:
        if finding:
            self._findings.setdefault(finding.cause, finding)


def _of_names(ours: tuple[str, ...], theirs: tuple[str, ...]) -> Finding | None:
    if ours == theirs:
        return None
    first = next(index for index, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return Finding(
        "class order" if sorted(ours) == sorted(theirs) else "class names",
        f"Class {first} is {ours[first]!r} by the file's metadata and {theirs[first]!r} by the checkpoint; export the "
        f"model again from this checkpoint.",
    )


def _of_strides(metadata: Metadata, strides: tuple[int, ...]) -> Finding | None:
    if metadata.strides and metadata.strides != strides:
        order = sorted(metadata.strides) == sorted(strides)
        return Finding(
            "stride order" if order else "wrong stride",
            f"The strides of the levels are {_list(metadata.strides)} by the file's metadata and {_list(strides)} by "
            f"the checkpoint; export the model again.",
        )
    if metadata.max_stride != max(strides):
        return Finding(
            "wrong stride",
            f"The largest stride is {metadata.max_stride} by the file's metadata and {max(strides)} by the checkpoint; "
            f"export the model again.",
        )
    return None


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width, the last two of a tensor's sizes."""
    return shape[-2], shape[-1]


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


def _list(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))


def _silent(_: str) -> None:
    pass


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
