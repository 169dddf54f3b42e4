# SPDX-License-Identifier: AGPL-3.0-or-later
"""From images to detections with an exported model."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from fastyolo import _C, _arguments
from fastyolo._machine import cores
from fastyolo.runtime.engines import ENGINES, Engine, EngineName
from fastyolo.runtime.letterbox import Float32, Image, Letterbox, Placement, Size
from fastyolo.runtime.metadata import MAX_CANDIDATES, Metadata, Nms, output_names
from fastyolo.runtime.results import Detections, Frame
from fastyolo.runtime.sources import Images, Item, Source, open_source, to_bgr

_DEFAULTS = Nms(0.25, 0.7, 300, MAX_CANDIDATES, multi_label=False, class_agnostic=False)

Outputs = Mapping[str, npt.NDArray[Any]]
OnError = Callable[[str, Exception], None]


class Detector:
    """An exported detection model, from images to boxes in their pixels; ultralytics' results, without torch.

        det = Detector("model.onnx")
        boxes, scores, labels = det(cv2.imread("street.jpg"))
        for frame in det.stream("clip.mp4"):
            print(frame.number, frame.detections.to_json())

    Images are NumPy arrays as OpenCV reads them: uint8, [H, W, 3] in BGR (also grey, BGRA and uint16).

    Attributes:
        metadata: what the file says of itself.
        names: of the classes.
        imgsz: height and width in pixels that images are letterboxed to; a model with free sizes cuts them down to
            what an image needs.
        batch_size: images that a run of the network takes; None: any number.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        classes: Sequence[int] | None = None,
        agnostic_nms: bool | None = None,
        multi_label: bool | None = None,
        imgsz: int | tuple[int, int] | None = None,
        engine: EngineName | type[Engine] = "onnxruntime",
        threads: int | None = None,
    ) -> None:
        """Load a model of `fastyolo export`, or of ultralytics' exporters without NMS.

        Of a model whose outputs are detections, the settings of the NMS are built in. They are its defaults; it can
        only report fewer of its detections, by a higher `conf`, a lower `max_det` or `classes`.

        Args:
            model: an .onnx file; for engine "openvino" also an .xml file or the folder of one.
            conf: score that a detection must exceed. None: what is built in, else 0.25.
            iou: IoU with a better box of the class above which a box is dropped. None: what is built in, else 0.7.
            max_det: detections per image, at most. None: what is built in, else 300.
            classes: report these only; None: all.
            agnostic_nms: let boxes suppress boxes of other classes. None: what is built in, else False.
            multi_label: report a box for each of its classes that exceeds `conf`, as validation does, not for the best.
                None: what is built in, else False.
            imgsz: of a model with free sizes: height and width in pixels to letterbox to. None: what the file says.
            engine: "onnxruntime", "openvino" or a class of your own.
            threads: of the network, and images that a stream works at; None: one for each core that this process may
                use. Resizing and decoding have their own, those of OpenCV and of `fastyolo._C.set_num_threads`.

        Raises:
            FileNotFoundError: there is no such file.
            ModuleNotFoundError: the engine is not installed.
            ValueError: the file is not such a model or is damaged, an argument is out of its range, or another value
                than the one built into the model.
            TypeError: an argument is of another type.
        """
        if not isinstance(engine, type) and (not isinstance(engine, str) or engine not in ENGINES):
            raise ValueError(f"engine must be one of {', '.join(get_args(EngineName))}, got {engine!r}.")
        given = _settings(conf, iou, max_det, agnostic_nms, multi_label)
        threads = cores() if threads is None else _arguments.integer("threads", threads, 1)
        _arguments.path("model", model)
        self._file = Path(model)
        if not self._file.exists():
            raise FileNotFoundError(f"The model {str(model)!r} does not exist.")

        load = engine if isinstance(engine, type) else ENGINES[engine]
        self._load: Callable[[int], Engine] = partial(load, self._file, threads)  # by number of callers
        self._threads = threads
        self._engine = self._load(1)
        self._engine_of_streams: Engine | None = None if threads > 1 else self._engine
        self.metadata = Metadata.read(self._engine.properties, str(self._file))
        self.names = self.metadata.names
        self._outputs = output_names(self.metadata.outputs, len(self.metadata.strides))
        self.batch_size, size = self._input()
        self._free_size = size is None
        self.imgsz = self._size(imgsz) if size is None else size
        if imgsz is not None and size is not None and self._pair(imgsz) != size:
            got = self._pair(imgsz)
            raise ValueError(
                f"imgsz is built into {self._file} as {size[0]}x{size[1]}, got {got[0]}x{got[1]}; leave it out."
            )
        self._classes = self._check_classes(classes)
        if self.metadata.nms:
            self._check_built_in(self.metadata.nms, given)
        self._nms = replace(self.metadata.nms or _DEFAULTS, **given)
        self._letterbox = Letterbox(self.metadata.preprocessing)

    def __call__(self, image: npt.NDArray[Any]) -> Detections:
        """The detections of one image.

        Raises:
            TypeError, ValueError: it is not an array of such a type or shape.
        """
        return self.batch([image])[0]

    def batch(self, images: Sequence[npt.NDArray[Any]]) -> list[Detections]:
        """The detections of several images of any sizes, in one run of the network if it takes as many.

        Raises:
            TypeError, ValueError: it is not a list of arrays of such types and shapes.
        """
        if not isinstance(images, Sequence):
            raise TypeError(f"images must be a list of arrays, got {type(images).__name__}.")
        size = self.batch_size or max(len(images), 1)
        found: list[Detections] = []
        for start in range(0, len(images), size):
            found += self._detect(self._engine, images[start : start + size])[0]
        return found

    def stream(self, source: Source, *, on_error: OnError | None = None) -> Iterator[Frame]:
        """The detections of each image of a file, folder, glob, video, camera (number or URL) or list of files.

        Every core works at images of its own, so results come later but more often than from single calls; for that,
        the first stream loads the model once more. Images of a camera are not kept waiting and have all cores, one
        after the other.

        Args:
            source: as above; subfolders are not searched.
            on_error: called with the path and the error of what cannot be read, which is then left out. None: raise.

        Raises:
            FileNotFoundError, TypeError, ValueError: there is no such source; at once, not at the first image.
        """
        if on_error is not None and not callable(on_error):
            raise TypeError(f"on_error must be a function of a path and an error, got {on_error!r}.")
        return self._stream(open_source(source), on_error)

    def preprocess(self, images: Sequence[npt.NDArray[Any]]) -> tuple[Float32, list[Placement]]:
        """The network's input [B, 3, H, W], and where in it each image lies.

        Args:
            images: 1 to `batch_size`; the rest of a fixed batch is padding.
        """
        if isinstance(images, np.ndarray) or not 1 <= len(images) <= (self.batch_size or len(images)):
            got = "an array" if isinstance(images, np.ndarray) else len(images)
            raise ValueError(f"images must be a list of 1 to {self.batch_size or 'any number of'} images, got {got}.")
        converted = [to_bgr(image) for image in images]
        # As ultralytics: images of several shapes are only sure to fit the whole size.
        stride = self.metadata.max_stride if self._free_size and len({x.shape for x in converted}) == 1 else None
        return self._letterbox(converted, self.imgsz, stride, self.batch_size or len(images))

    def run(self, tensor: Float32) -> dict[str, npt.NDArray[Any]]:
        """The outputs of the network, by the names of `metadata.output_names`."""
        return self._run(self._engine, tensor)

    def postprocess(self, outputs: Outputs, placements: Sequence[Placement]) -> list[Detections]:
        """The detections of each image that was placed."""
        form = {"maps": self._of_maps, "boxes": self._of_boxes, "detections": self._of_detections}
        counts, *arrays = form[self.metadata.outputs](outputs)
        found = []
        for index, placement in enumerate(placements):
            boxes, scores, labels = (array[index, : counts[index]] for array in arrays)
            found.append(Detections(placement.to_image(boxes), scores.copy(), labels.copy(), self.names))
        return found

    # ---- parts of a call

    def _run(self, engine: Engine, tensor: Float32) -> dict[str, npt.NDArray[Any]]:
        return dict(zip(self._outputs, engine.run(tensor), strict=True))

    def _detect(self, engine: Engine, images: Sequence[npt.NDArray[Any]]) -> tuple[list[Detections], dict[str, float]]:
        """Detections, and milliseconds per image."""
        times = [time.perf_counter()]
        tensor, placements = self.preprocess(images)
        times.append(time.perf_counter())
        outputs = self._run(engine, tensor)
        times.append(time.perf_counter())
        found = self.postprocess(outputs, placements)
        times.append(time.perf_counter())
        names = ("preprocess", "inference", "postprocess")
        return found, {
            name: (end - start) * 1e3 / len(images) for name, start, end in zip(names, times, times[1:], strict=False)
        }

    def _of_maps(self, outputs: Outputs) -> tuple[npt.NDArray[Any], ...]:
        maps = [outputs[name] for name in self._outputs]
        levels = len(maps) // 2
        self._check_class_count(maps[-1].shape[1])
        return _C.decode_nms(maps[:levels], maps[levels:], self.metadata.strides, **self._nms_settings())[:4]

    def _of_boxes(self, outputs: Outputs) -> tuple[npt.NDArray[Any], ...]:
        predictions = outputs[self._outputs[0]]
        self._check_class_count(predictions.shape[1] - 4)
        center, half = predictions[:, :2], predictions[:, 2:4] / 2
        boxes = np.concatenate((center - half, center + half), 1).transpose(0, 2, 1)
        return _C.multiclass_nms(boxes, predictions[:, 4:], **self._nms_settings())[:4]

    def _of_detections(self, outputs: Outputs) -> tuple[npt.NDArray[Any], ...]:
        """Those of the model that the settings let pass, in front; what is behind them means nothing."""
        boxes, scores, labels = (outputs[name] for name in ("boxes", "scores", "labels"))
        found = np.arange(scores.shape[1]) < outputs["num_dets"][:, None]
        unnamed = labels[found & ((labels < 0) | (labels >= len(self.names)))]
        if unnamed.size:
            raise ValueError(
                f"{self._file} reports the class {unnamed[0]}, and its metadata names {len(self.names)} classes from "
                f"0 on; export it again with 'fastyolo export'."
            )
        passed = found & (scores > self._nms.score_threshold)
        if self._classes is not None:
            passed &= np.isin(labels, self._classes)
        order = np.argsort(~passed, axis=1, kind="stable")
        counts = passed.sum(1).clip(max=self._nms.max_det)
        return (
            counts,
            np.take_along_axis(boxes, order[..., None], 1),
            np.take_along_axis(scores, order, 1),
            np.take_along_axis(labels, order, 1),
        )

    def _nms_settings(self) -> dict[str, Any]:
        return {
            **asdict(self._nms),
            "max_det": min(self._nms.max_det, MAX_CANDIDATES),
            "classes": self._classes,
        }

    # ---- streams

    def _stream(self, images: Images, on_error: OnError | None) -> Iterator[Frame]:
        with closing(images.items) as items:  # type: ignore[type-var]
            if images.live or images.single:
                for item in items:
                    yield from self._frames(self._finish([item], self._engine), on_error)
                return
            if self._engine_of_streams is None:
                self._engine_of_streams = self._load(self._threads)
            yield from self._in_parallel(items, self._engine_of_streams, on_error)

    def _in_parallel(self, items: Iterator[Item], engine: Engine, on_error: OnError | None) -> Iterator[Frame]:
        pending: deque[Future[list[Frame | tuple[Item, Exception]]]] = deque()
        with ThreadPoolExecutor(self._threads) as pool:
            try:
                while group := list(islice(items, self.batch_size or 1)):
                    pending.append(pool.submit(self._finish, group, engine))
                    # One more than there are threads, so that none waits for the reader of this generator.
                    if len(pending) > self._threads + 1:
                        yield from self._frames(pending.popleft().result(), on_error)
                while pending:
                    yield from self._frames(pending.popleft().result(), on_error)
            finally:
                for future in pending:
                    future.cancel()

    def _finish(self, items: Sequence[Item], engine: Engine) -> list[Frame | tuple[Item, Exception]]:
        """Loads and detects a batch; what cannot be loaded comes with its error in place of a frame."""
        loaded = [_load(item) for item in items]
        images = [image for image in loaded if not isinstance(image, Exception)]
        found, milliseconds = self._detect(engine, images) if images else ([], {})
        detections = iter(found)
        return [
            (item, image)
            if isinstance(image, Exception)
            else Frame(item.path, item.number, item.total, item.rate, image, next(detections), milliseconds)
            for item, image in zip(items, loaded, strict=True)
        ]

    @staticmethod
    def _frames(results: list[Frame | tuple[Item, Exception]], on_error: OnError | None) -> Iterator[Frame]:
        for result in results:
            if isinstance(result, Frame):
                yield result
            elif on_error is None:
                raise result[1]
            else:
                on_error(result[0].path, result[1])

    # ---- checks

    def _input(self) -> tuple[int | None, Size | None]:
        """Batch size and size of the network's input; None: free. Refuses what the metadata contradicts."""
        shapes = self._engine.input_shapes
        if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (3, None):
            raise ValueError(f"{self._file} must have one input [B, 3, H, W] for colour images, got {shapes}.")
        outputs = self._engine.output_shapes
        if len(outputs) != len(self._outputs):
            raise ValueError(
                f"{self._file} must have the outputs {', '.join(self._outputs)} by its metadata, got "
                f"{len(outputs)} outputs; export it again with 'fastyolo export'."
            )
        channels = outputs[-1][1] if len(outputs[-1]) > 1 else None
        if channels is not None and self.metadata.outputs != "detections":
            self._check_class_count(channels - (4 if self.metadata.outputs == "boxes" else 0))
        batch, _, height, width = shapes[0]
        return batch, None if height is None or width is None else (height, width)

    def _size(self, imgsz: int | tuple[int, int] | None) -> Size:
        stride = self.metadata.max_stride
        size = self.metadata.imgsz if imgsz is None else self._pair(imgsz)
        if any(side % stride for side in size):
            raise ValueError(
                f"imgsz must be in multiples of the model's largest stride {stride}, got {size[0]}x{size[1]}."
            )
        return size

    @staticmethod
    def _pair(imgsz: int | tuple[int, int]) -> Size:
        height, width = imgsz if isinstance(imgsz, tuple | list) and len(imgsz) == 2 else (imgsz, imgsz)
        return _arguments.integer("imgsz", height, 1), _arguments.integer("imgsz", width, 1)

    def _check_classes(self, classes: Sequence[int] | None) -> list[int] | None:
        if classes is None:
            return None
        if isinstance(classes, str | bytes) or not hasattr(classes, "__iter__"):
            raise TypeError(f"classes must be a list of class indices or None, got {type(classes).__name__}.")
        return [_arguments.integer("classes", label, 0, len(self.names) - 1) for label in classes]

    def _check_class_count(self, found: int) -> None:
        if found != len(self.names):
            raise ValueError(
                f"{self._file} has {found} classes in its outputs and {len(self.names)} in its metadata; "
                f"export it again with 'fastyolo export'."
            )

    def _check_built_in(self, nms: Nms, given: Mapping[str, Any]) -> None:
        """Refuse what a model that ends in detections cannot do."""
        conf, max_det = given.get("score_threshold", 1.0), given.get("max_det", 1)
        if conf < nms.score_threshold and not math.isclose(conf, nms.score_threshold, rel_tol=1e-6):
            raise ValueError(
                f"conf must be at least {nms.score_threshold}, which is built into {self._file}, got {conf}; leave it "
                f"out, or export the model again with --conf {conf}."
            )
        if max_det > nms.max_det:
            raise ValueError(
                f"max_det must be at most {nms.max_det}, which is built into {self._file}, got {max_det}; leave it "
                f"out, or export the model again with --max-det {max_det}."
            )
        for name, field in (
            ("iou", "iou_threshold"),
            ("agnostic_nms", "class_agnostic"),
            ("multi_label", "multi_label"),
        ):
            built, value = getattr(nms, field), given.get(field)
            if value is not None and not math.isclose(value, built, rel_tol=1e-6):
                option = f"--{name.replace('_', '-')}"
                how = f"with {option} {value}" if name == "iou" else f"{'with' if value else 'without'} {option}"
                raise ValueError(
                    f"{name} is built into {self._file} as {built}, got {value}; leave it out, or export the model "
                    f"again {how}."
                )
        if nms.class_agnostic and self._classes is not None:
            raise ValueError(
                f"classes must be None, since in {self._file} boxes suppress those of other classes; choose among the "
                f"labels of its detections, or export it without the NMS."
            )


def _settings(
    conf: float | None, iou: float | None, max_det: int | None, agnostic_nms: bool | None, multi_label: bool | None
) -> dict[str, Any]:
    """Those that are given, checked, by their names in `Nms`."""
    settings: dict[str, Any] = {}
    if conf is not None:
        settings["score_threshold"] = _arguments.number("conf", conf, 0, 1)
    if iou is not None:
        settings["iou_threshold"] = _arguments.number("iou", iou, 0, 1)
    if max_det is not None:
        settings["max_det"] = _arguments.integer("max_det", max_det, 1)
    if agnostic_nms is not None:
        settings["class_agnostic"] = _arguments.boolean("agnostic_nms", agnostic_nms)
    if multi_label is not None:
        settings["multi_label"] = _arguments.boolean("multi_label", multi_label)
    return settings


def _load(item: Item) -> Image | Exception:
    try:
        return item.load()
    except (OSError, ValueError) as error:
        return error
