# SPDX-License-Identifier: AGPL-3.0-or-later
"""decode_nms, multiclass_nms, nms and batched_nms: against ultralytics, torchvision, OpenCV and ONNX's operator.

Where the peers' semantics differ from fastyolo's, they are given the same work and their answers are cut down to the
same question before they are compared:

- torchvision and OpenCV have no limit on what is kept, so max_det takes the first rows of their whole answer.
- ONNX's operator has such a limit, but for each class; of its answer for all classes, the best max_det are compared.
  Groups are classes to it: a box has the score 0, which is not above the threshold, in all but its own.
- OpenCV wants left, top, width, height, and drops boxes with a score of 0.
- torchvision and ultralytics shift the boxes of the classes apart, which may round an IoU across the threshold.
- OpenCV and ONNX's operator take float32 alone.

Equal scores rank by position everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastyolo import ops, reference
from fastyolo._machine import installed_version
from fastyolo.bench import agreement
from fastyolo.bench.cases.case import OURS, Case, Choice, DisagreementError, dtype_name
from fastyolo.bench.cases.dfl_decode import DECODE_FLOPS
from fastyolo.bench.cases.inputs import STRIDES, Inputs, Maps
from fastyolo.bench.cases.onnx_nms import onnx_nms_calls
from fastyolo.bench.timing import Call

_IOU, _MAX_DET = 0.7, 300  # of detections, as in predict() and val()
_BATCHES = (1, 32)
_ROUNDED = 1e-3  # of the boxes that a peer keeps, those that hang on a rounding error


def decode_nms_cases(inputs: Inputs, choice: Choice) -> Iterator[Case]:
    modes = ((0.25, False), (0.001, True))  # predict(), val()
    for (conf, multi_label), batch, dtype in _detections(inputs, choice, modes):
        yield _decode_nms(inputs, batch, dtype, conf=conf, multi_label=multi_label)


def multiclass_nms_cases(inputs: Inputs, choice: Choice) -> Iterator[Case]:
    for conf, batch, dtype in _detections(inputs, choice, (0.25, 0.001)):
        yield _multiclass_nms(inputs, batch, dtype, conf)


def _detections(inputs: Inputs, choice: Choice, modes: tuple[Any, ...]) -> Iterator[tuple[Any, int, torch.dtype]]:
    return itertools.product(
        modes[:1] if choice.quick else modes,
        choice.pick(choice.batches, _BATCHES),
        choice.pick(choice.dtypes, (inputs.dtype,)),
    )


def _name(batch: int, conf: float, *, multi_label: bool, dtype: torch.dtype, default: torch.dtype) -> str:
    kind = "multi-label" if multi_label else "best class"
    return f"batch {batch}, conf {conf:g}, {kind}" + (f", {dtype_name(dtype)}" if dtype != default else "")


def _decode_nms(inputs: Inputs, batch: int, dtype: torch.dtype, *, conf: float, multi_label: bool) -> Case:
    first = inputs.maps(batch, 0, dtype)
    class_bytes = sum(x.nbytes for x in first[1])
    sets = [first, *(inputs.maps(batch, seed, dtype) for seed in range(1, inputs.rotation(class_bytes)))]

    def ours(maps: Maps) -> ops.Detections:
        return ops.decode_nms(
            *maps, STRIDES, score_threshold=conf, iou_threshold=_IOU, max_det=_MAX_DET, multi_label=multi_label
        )

    calls: dict[str, list[Call]] = {OURS: [_bind(ours, maps) for maps in sets]}
    if installed_version("ultralytics"):
        calls["ultralytics"] = [_stock_detection(maps, conf, multi_label) for maps in sets]

    def check() -> None:
        box_maps, cls_maps = ([x.double().cpu() for x in maps] for maps in first)
        exact = (box_maps, cls_maps)
        boxes, scores = _decoded(exact)
        _require_detections("decode_nms", ours(first), boxes, scores, conf, multi_label, lambda: ours(exact))

    above = [x > math.log(conf / (1 - conf)) for x in first[1]]
    anchors = sum(int(x.any(1).sum()) for x in above)
    candidates = sum(int(x.sum()) for x in above) if multi_label else anchors
    logits = anchors * first[0][0].shape[1]
    return Case(
        "decode_nms",
        _name(batch, conf, multi_label=multi_label, dtype=dtype, default=inputs.dtype),
        calls,
        frozenset({OURS}),
        class_bytes + logits * first[0][0].element_size() + _result_bytes(batch),
        check,
        {"batch": batch, "dtype": dtype_name(dtype), "candidates": candidates},
        DECODE_FLOPS * logits,
    )


def _multiclass_nms(inputs: Inputs, batch: int, dtype: torch.dtype, conf: float) -> Case:
    exact_boxes, exact_scores = _decoded(inputs.maps(batch, 0, torch.float32))
    boxes, scores = exact_boxes.to(inputs.device, dtype), exact_scores.to(inputs.device, dtype)

    def ours(boxes: Tensor = boxes, scores: Tensor = scores) -> ops.Detections:
        return ops.multiclass_nms(
            boxes, scores, score_threshold=conf, iou_threshold=_IOU, max_det=_MAX_DET, multi_label=True
        )

    calls: dict[str, list[Call]] = {OURS: [ours]}
    if installed_version("ultralytics"):
        from fastyolo.integrations.ultralytics.stock import stock_nms

        predictions = _predictions(boxes, scores)
        calls["ultralytics"] = [lambda: stock_nms(predictions, conf=conf, iou=_IOU, max_det=_MAX_DET, multi_label=True)]
    operators: dict[str, Call] = {}
    if inputs.device.type == "cpu" and dtype == torch.float32:
        operators = onnx_nms_calls(boxes, scores, iou_threshold=_IOU, score_threshold=conf, max_per_class=_MAX_DET)
        calls |= {name: [call] for name, call in operators.items()}

    def check() -> None:
        found = ours()
        exact = (boxes.double().cpu(), scores.double().cpu())
        _require_detections("multiclass_nms", found, *exact, conf, True, lambda: ours(*exact))
        kept = {
            (image, int(label), int(index))
            for image, count in enumerate(found.num_dets.tolist())
            for label, index in zip(found.labels[image, :count], found.indices[image, :count], strict=True)
        }
        for name, call in operators.items():
            _require_same("multiclass_nms", name, kept, _best(torch.from_numpy(call()), scores))

    return Case(
        "multiclass_nms",
        _name(batch, conf, multi_label=True, dtype=dtype, default=inputs.dtype),
        calls,
        frozenset({OURS}),
        scores.nbytes + int((scores > conf).any(1).sum()) * 4 * boxes.element_size() + _result_bytes(batch),
        check,
        {"batch": batch, "dtype": dtype_name(dtype), "candidates": int((scores > conf).sum())},
    )


def _result_bytes(batch: int) -> int:
    """Of `Detections`: counts, then boxes, scores, labels and indices of each row."""
    return batch * (4 + _MAX_DET * (16 + 4 + 4 + 4))


def _decoded(maps: Maps) -> tuple[Tensor, Tensor]:
    """boxes [B, A, 4] xyxy in pixels, scores [B, C, A]."""
    boxes, logits = reference.decode_maps(*maps, STRIDES)
    return boxes.contiguous(), logits.sigmoid().mT.contiguous()


def _predictions(boxes: Tensor, scores: Tensor) -> Tensor:
    """[B, 4 + C, A], boxes xywh: as ultralytics has it."""
    centres, extents = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return torch.cat((centres.mT, extents.mT, scores), 1)


def _require_detections(
    what: str,
    found: ops.Detections,
    boxes: Tensor,
    scores: Tensor,
    conf: float,
    multi_label: bool,
    exact: Callable[[], ops.Detections],
) -> None:
    """Compare with ultralytics in float64, where its class offsets round nothing; without it, with `exact`."""
    settings: dict[str, Any] = {"conf": conf, "iou": _IOU, "multi_label": multi_label}
    predictions = _predictions(boxes, scores)
    if installed_version("ultralytics"):
        from fastyolo.integrations.ultralytics.stock import stock_nms

        peers = stock_nms(predictions, max_det=_MAX_DET, **settings)
    else:
        peers = _rows(exact())
    result = agreement.compare(_rows(found), peers, predictions, shifted=False, **settings)
    if result.unexplained:
        raise DisagreementError(f"{what} found other detections than it should: {result}")


def _best(selected: Tensor, scores: Tensor) -> set[tuple[int, int, int]]:
    """Of image, class and position [n, 3], the _MAX_DET best of each image."""
    images, labels, positions = selected.long().unbind(1)
    order = scores[images, labels, positions].argsort(descending=True, stable=True)
    return {
        tuple(row)
        for image in range(len(scores))
        for row in selected[order[images[order] == image][:_MAX_DET]].tolist()
    }


def _require_same(what: str, peer: str, ours: set[Any], theirs: set[Any]) -> None:
    if len(ours ^ theirs) > max(_ROUNDED * len(theirs), 1):
        raise DisagreementError(f"{what} and {peer} kept different boxes: {len(ours ^ theirs)} of {len(theirs)}")


def _rows(found: ops.Detections) -> list[Tensor]:
    rows = torch.cat((found.boxes, found.scores[..., None], found.labels[..., None]), 2).cpu()
    return [row[:count] for row, count in zip(rows, found.num_dets.tolist(), strict=True)]


def _stock_detection(maps: Maps, conf: float, multi_label: bool) -> Call:
    from fastyolo.integrations.ultralytics.stock import stock_nms, stock_predictions

    decode = stock_predictions(*maps, STRIDES)
    return lambda: stock_nms(decode(), conf=conf, iou=_IOU, max_det=_MAX_DET, multi_label=multi_label)


def _bind(function: Callable[[Maps], Any], maps: Maps) -> Call:
    return lambda: function(maps)


def nms_cases(inputs: Inputs, choice: Choice) -> Iterator[Case]:
    for count, dtype in _counts(choice):
        for max_det in (_MAX_DET, None):
            yield _nms(inputs, count, dtype, max_det)


def batched_nms_cases(inputs: Inputs, choice: Choice) -> Iterator[Case]:
    for count, dtype in _counts(choice):
        yield _nms(inputs, count, dtype, None, groups=80)


def _counts(choice: Choice) -> Iterator[tuple[int, torch.dtype]]:
    counts = (1_000,) if choice.quick else (10_000, 30_000)
    return itertools.product(counts, choice.pick(choice.dtypes, (torch.float32,)))


def fixed_size_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, *, max_det: int | None
) -> tuple[Tensor, Tensor]:
    """The operator below ops.nms and ops.batched_nms, which wait for the device to know the size of their result."""
    keep, num_keep = torch.ops.fastyolo.batched_nms.default(boxes, scores, idxs, iou_threshold, max_det=max_det)
    return keep, num_keep


def _nms(inputs: Inputs, count: int, dtype: torch.dtype, max_det: int | None, groups: int | None = None) -> Case:
    boxes, scores, labels = inputs.boxes(count, groups or 1)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    idxs, iou = None if groups is None else labels, 0.5
    op = "nms" if groups is None else "batched_nms"

    def ours() -> tuple[Tensor, Tensor]:
        return fixed_size_nms(boxes, scores, idxs, iou, max_det=max_det)

    def kept() -> Tensor:
        keep, num_keep = ours()
        return keep[: int(num_keep)]

    peers: dict[str, Call] = {}
    if installed_version("torchvision"):
        peers["torchvision"] = _torchvision(boxes, scores, idxs, iou, max_det)
    if inputs.device.type == "cpu" and dtype == torch.float32:
        if installed_version("opencv"):
            peers["opencv"] = _opencv(boxes, scores, idxs, iou, max_det)
        of_class = scores.expand(groups or 1, -1)
        if idxs is not None:
            of_class = torch.where(idxs == torch.arange(groups or 1)[:, None], of_class, 0.0)
        peers |= onnx_nms_calls(
            boxes[None], of_class[None], iou_threshold=iou, score_threshold=0.0, max_per_class=max_det or count
        )

    def check() -> None:
        answer = kept()
        for name, call in peers.items():
            peer = torch.as_tensor(call())
            positions = peer[:, 2] if peer.ndim == 2 else peer
            _require_same(f"{op} of {count} boxes", name, set(answer.tolist()), set(positions.tolist()))
            if name == "torchvision" and groups is None and not _same_order(answer, positions):
                raise DisagreementError(f"{op} of {count} boxes and torchvision kept boxes in another order")

    name = f"{count:,} boxes" + (f", {groups} classes" if groups else "") + (f", max_det {max_det}" if max_det else "")
    return Case(
        op,
        name + (f", {dtype_name(dtype)}" if dtype != torch.float32 else ""),
        {OURS: [ours], **{peer: [call] for peer, call in peers.items()}},
        frozenset({OURS}),
        boxes.nbytes + scores.nbytes + (0 if idxs is None else idxs.nbytes) + 8 * count,
        check,
        {"boxes": count, "kept": len(kept()), "dtype": dtype_name(dtype)},
    )


def _same_order(answer: Tensor, positions: Tensor) -> bool:
    """Of the boxes that both kept."""
    return answer[torch.isin(answer, positions)].equal(positions[torch.isin(positions, answer)])


def _torchvision(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou: float, max_det: int | None) -> Call:
    from torchvision.ops import batched_nms, nms  # type: ignore[import-untyped]

    def widened() -> tuple[Tensor, Tensor]:
        """What it takes on the CPU: no bfloat16."""
        return (boxes.float(), scores.float()) if boxes.dtype == torch.bfloat16 else (boxes, scores)

    if idxs is None:
        return lambda: nms(*widened(), iou)[:max_det]
    return lambda: batched_nms(*widened(), idxs, iou)[:max_det]


def _opencv(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou: float, max_det: int | None) -> Call:
    from cv2 import dnn

    # Arrays, which it converts sooner than the lists that its annotations ask for.
    rectangles: Any = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1).numpy()
    values: Any = scores.numpy()
    if idxs is None:
        return lambda: dnn.NMSBoxes(rectangles, values, 0.0, iou)[:max_det]
    labels: Any = idxs.int().numpy()
    return lambda: dnn.NMSBoxesBatched(rectangles, values, labels, 0.0, iou)[:max_det]
