# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `fastyolo bench ops` measures: each operator at the sizes that matter, and the peers that do the same work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastyolo import ops, reference
from fastyolo.bench import agreement
from fastyolo.bench.environment import installed_version
from fastyolo.bench.timing import Call

Maps = tuple[list[Tensor], list[Tensor]]  # box maps [B, 4R, H_l, W_l], class maps [B, C, H_l, W_l]

STRIDES = (8.0, 16.0, 32.0)
IMAGE_SIZE = 640
OURS = "fastyolo"


class DisagreementError(Exception):
    """Two implementations gave different answers to the same question: their times would mean nothing."""


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        calls: name of a contender -> its calls, one for each set of inputs. The first contender is fastyolo.
        capturable: contenders that a CUDA graph can hold, since they do not wait for the device.
        bytes_moved: that any implementation has to read and write, in one call.
        check: raises DisagreementError.
        facts: what else the inputs are.
    """

    op: str
    name: str
    calls: Mapping[str, Sequence[Call]]
    capturable: frozenset[str]
    bytes_moved: int
    check: Callable[[], None]
    facts: Mapping[str, Any] = field(default_factory=dict)


class Inputs:
    """Makes the inputs of the cases on a device; the same numbers in every run.

    Args:
        device: where the cases run.
        dtype: of maps and logits; boxes are float32.
        maps: head maps of real images in float32, at least one; None: synthetic ones.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, maps: Maps | None) -> None:
        self.device = device
        self.dtype = dtype
        self._real = maps
        # ultralytics runs its networks in channels_last on x86 CPUs, and in the default layout on CUDA.
        self._layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format

    def rotation(self, num_bytes: int) -> int:
        """How many sets of inputs of this size keep a GPU's L2 cache from holding the next one."""
        if self.device.type == "cpu":
            return 1
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return min(64, math.ceil(2 * cache / num_bytes))

    def maps(self, batch: int, seed: int) -> Maps:
        if self._real is None:
            box_maps, cls_maps = scene_maps(batch, seed)
        else:
            count = len(self._real[0][0])
            images = [(seed * batch + b) % count for b in range(batch)]
            box_maps, cls_maps = ([x[images] for x in maps] for maps in self._real)
        return self._place(box_maps), self._place(cls_maps)

    def _place(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [x.to(self.device, self.dtype).contiguous(memory_format=self._layout) for x in maps]

    def boxes(self, count: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """boxes [N, 4] of 0 to 100 pixels a side, anywhere in an image, distinct scores [N], groups [N]."""
        generator = torch.Generator().manual_seed(count)
        corner = torch.rand(count, 2, generator=generator) * IMAGE_SIZE
        extent = torch.rand(count, 2, generator=generator) * 100
        scores = torch.randperm(count, generator=generator) / count
        labels = torch.randint(groups, (count,), generator=generator)
        return torch.cat((corner, corner + extent), 1).to(self.device), scores.to(self.device), labels.to(self.device)

    def logits(self, batch: int, bins: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """DFL logits [B, 4R, A], anchor points [2, A] in cells, strides [A] of an image of 640 x 640."""
        generator = torch.Generator().manual_seed(seed)
        points, strides = [], []
        for stride in STRIDES:
            cells = torch.arange(IMAGE_SIZE / stride) + 0.5
            y, x = torch.meshgrid(cells, cells, indexing="ij")
            points.append(torch.stack((x.flatten(), y.flatten())))
            strides.append(torch.full((x.numel(),), stride))
        anchor_points, pixels = torch.cat(points, 1), torch.cat(strides)
        logits = 3 * torch.randn(batch, 4 * bins, pixels.numel(), generator=generator)
        return logits.to(self.device, self.dtype), anchor_points.to(self.device), pixels.to(self.device)


def scene_maps(batch: int, seed: int, *, classes: int = 80, bins: int = 16, objects: int = 7) -> Maps:
    """Head maps with the statistics of YOLOv8n on COCO images: in an image, the best class of about 45 anchors is above
    0.25, and 750 pairs of anchor and class are above 0.001.

    A background of class logits around -14, from which the cells near the centre of each object stand out in every
    level, and box distributions that peak at the distances to the object's edges.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    positions = torch.arange(bins).view(1, bins, 1)
    box_maps, cls_maps = [], []
    for stride in STRIDES:
        cells = int(IMAGE_SIZE / stride)
        box_maps.append(torch.randn(batch, 4 * bins, cells, cells, generator=generator))
        cls_maps.append(torch.randn(batch, classes, cells, cells, generator=generator) * 1.8 - 14)
    for b in range(batch):
        for _ in range(objects):
            centre_x, centre_y = uniform(0, IMAGE_SIZE), uniform(0, IMAGE_SIZE)
            width, height = math.exp(uniform(3, 5.5)), math.exp(uniform(3, 5.5))
            label = int(torch.randint(classes, (), generator=generator))
            for stride, box_map, cls_map in zip(STRIDES, box_maps, cls_maps, strict=True):
                middle = torch.arange(box_map.shape[-1]) + 0.5
                dy, dx = torch.meshgrid(middle - centre_y / stride, middle - centre_x / stride, indexing="ij")
                w, h = width / stride / 2, height / stride / 2
                distances = torch.stack((w + dx, h + dy, w - dx, h - dy))
                inside = (distances.amin(0) > 0) & (distances.amax(0) < bins - 1)
                seen = distances[:, inside]
                seen *= 1 + 0.1 * torch.randn(seen.shape, generator=generator)
                box_map[b].view(4, bins, *inside.shape)[:, :, inside] -= 4 * (positions - seen[:, None]).abs()
                falloff = 5 * ((dx / w) ** 2 + (dy / h) ** 2)[inside]
                cls_map[b, label][inside] += 12.3 - falloff
                cls_map[b, (label + 1) % classes][inside] += 10 - falloff
    return box_maps, cls_maps


# ---- decode_nms


def decode_nms_cases(inputs: Inputs, quick: bool) -> Iterator[Case]:
    yield _decode_nms(inputs, 1, conf=0.25, multi_label=False)  # as predict() does
    if not quick:
        yield _decode_nms(inputs, 32, conf=0.25, multi_label=False)
        yield _decode_nms(inputs, 1, conf=0.001, multi_label=True)
        yield _decode_nms(inputs, 32, conf=0.001, multi_label=True)  # as val() does


def _decode_nms(inputs: Inputs, batch: int, *, conf: float, multi_label: bool) -> Case:
    iou, max_det = 0.7, 300
    first = inputs.maps(batch, 0)
    class_bytes = sum(x.nbytes for x in first[1])
    sets = [first, *(inputs.maps(batch, seed) for seed in range(1, inputs.rotation(class_bytes)))]

    def ours(maps: Maps) -> ops.Detections:
        return ops.decode_nms(
            *maps, STRIDES, score_threshold=conf, iou_threshold=iou, max_det=max_det, multi_label=multi_label
        )

    calls: dict[str, list[Call]] = {OURS: [_bind(ours, maps) for maps in sets]}
    if installed_version("ultralytics"):
        calls["ultralytics"] = [_stock_detection(maps, conf, iou, max_det, multi_label) for maps in sets]

    def check() -> None:
        # Against ultralytics in float64, where its class offsets round nothing; without it, against the CPU.
        box_maps, cls_maps = ([x.double().cpu() for x in maps] for maps in first)
        boxes, logits = reference.decode_maps(box_maps, cls_maps, STRIDES)
        centres, extents = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        predictions = torch.cat((centres, extents, logits.sigmoid()), 2).transpose(1, 2)
        if "ultralytics" in calls:
            from fastyolo.integrations.ultralytics import stock_nms

            peers = stock_nms(predictions, conf=conf, iou=iou, max_det=max_det, multi_label=multi_label)
        else:
            peers = _rows(ours((box_maps, cls_maps)))
        result = agreement.compare(
            _rows(ours(first)), peers, predictions, conf=conf, iou=iou, multi_label=multi_label, shifted=False
        )
        if result.unexplained:
            raise DisagreementError(f"decode_nms found other detections than it should: {result}")

    above = [x > math.log(conf / (1 - conf)) for x in first[1]]
    anchors = sum(int(x.any(1).sum()) for x in above)
    candidates = sum(int(x.sum()) for x in above) if multi_label else anchors
    survivors = anchors * first[0][0].shape[1] * first[0][0].element_size()
    outputs = batch * (4 + max_det * (16 + 4 + 4 + 4))
    return Case(
        "decode_nms",
        f"batch {batch}, conf {conf:g}, {'multi-label' if multi_label else 'best class'}",
        calls,
        frozenset({OURS}),
        class_bytes + survivors + outputs,
        check,
        {"batch": batch, "dtype": _name(inputs.dtype), "candidates": candidates},
    )


def _rows(found: ops.Detections) -> list[Tensor]:
    rows = torch.cat((found.boxes, found.scores[..., None], found.labels[..., None]), 2).cpu()
    return [row[:count] for row, count in zip(rows, found.num_dets.tolist(), strict=True)]


def _stock_detection(maps: Maps, conf: float, iou: float, max_det: int, multi_label: bool) -> Call:
    from fastyolo.integrations.ultralytics import stock_nms, stock_predictions

    decode = stock_predictions(*maps, STRIDES)
    return lambda: stock_nms(decode(), conf=conf, iou=iou, max_det=max_det, multi_label=multi_label)


# ---- nms and batched_nms


def nms_cases(inputs: Inputs, quick: bool) -> Iterator[Case]:
    for count in (10_000,) if quick else (10_000, 30_000):
        for max_det in (300, None):
            yield _nms(inputs, count, max_det)


def batched_nms_cases(inputs: Inputs, quick: bool) -> Iterator[Case]:
    for count in (10_000,) if quick else (10_000, 30_000):
        yield _nms(inputs, count, None, groups=80)


def fixed_size_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, *, max_det: int | None
) -> tuple[Tensor, Tensor]:
    """The operator below ops.nms and ops.batched_nms, which wait for the device to know the size of their result."""
    keep, num_keep = torch.ops.fastyolo.batched_nms.default(boxes, scores, idxs, iou_threshold, max_det=max_det)
    return keep, num_keep


def _nms(inputs: Inputs, count: int, max_det: int | None, groups: int | None = None) -> Case:
    boxes, scores, labels = inputs.boxes(count, groups or 1)
    idxs = None if groups is None else labels

    def ours() -> tuple[Tensor, Tensor]:
        return fixed_size_nms(boxes, scores, idxs, 0.5, max_det=max_det)

    def kept() -> Tensor:
        keep, num_keep = ours()
        return keep[: int(num_keep)]

    calls: dict[str, list[Call]] = {OURS: [ours]}
    if installed_version("torchvision"):
        from torchvision.ops import batched_nms, nms  # type: ignore[import-untyped]

        if idxs is None:
            calls["torchvision"] = [lambda: nms(boxes, scores, 0.5)[:max_det]]
        else:
            calls["torchvision"] = [lambda: batched_nms(boxes, scores, idxs, 0.5)[:max_det]]

    def check() -> None:
        if "torchvision" not in calls:
            return
        peer = calls["torchvision"][0]()
        same = kept().equal(peer)
        if groups is not None:  # torchvision shifts the groups apart, which may round an IoU across the threshold
            same = len(set(kept().tolist()) ^ set(peer.tolist())) <= 1e-3 * len(peer)
        if not same:
            raise DisagreementError(f"nms of {count} boxes and torchvision kept different boxes")

    return Case(
        "nms" if groups is None else "batched_nms",
        f"{count:,} boxes" + (f", {groups} classes" if groups else "") + (f", max_det {max_det}" if max_det else ""),
        calls,
        frozenset({OURS}),
        boxes.nbytes + scores.nbytes + (0 if idxs is None else idxs.nbytes) + 8 * count,
        check,
        {"boxes": count, "kept": len(kept()), "dtype": "float32"},
    )


# ---- dfl_decode


def dfl_decode_cases(inputs: Inputs, quick: bool) -> Iterator[Case]:
    for batch in (1,) if quick else (1, 16):
        for backward in (False, True):
            yield _dfl_decode(inputs, batch, backward)


def _dfl_decode(inputs: Inputs, batch: int, backward: bool) -> Case:
    first = inputs.logits(batch, 16, 0)
    sets = [first, *(inputs.logits(batch, 16, seed) for seed in range(1, inputs.rotation(first[0].nbytes)))]
    implementations: dict[str, Callable[..., Call]] = {OURS: lambda *x: lambda: ops.dfl_decode(*x)}
    if installed_version("ultralytics"):
        from fastyolo.integrations.ultralytics import stock_dfl_decode

        implementations["ultralytics"] = stock_dfl_decode
    calls = {
        name: [_with_backward(prepare, *x) if backward else prepare(*x) for x in sets]
        for name, prepare in implementations.items()
    }

    def check() -> None:
        answers = [calls[name][0]() for name in calls]
        tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[inputs.dtype]
        for answer in answers[1:]:
            scale = float(answer.abs().max())
            if float((answers[0] - answer).abs().max()) > tolerance * scale:
                raise DisagreementError("dfl_decode and ultralytics' DFL and dist2bbox gave different values")

    box_bytes = batch * 4 * first[0].shape[2] * first[0].element_size()
    grid_bytes = first[1].nbytes + first[2].nbytes
    # Backward reads the logits and the boxes' gradient and writes the logits' gradient.
    moved = first[0].nbytes + box_bytes + grid_bytes + backward * (2 * first[0].nbytes + box_bytes)
    return Case(
        "dfl_decode",
        f"batch {batch}, {'forward + backward' if backward else 'forward'}",
        calls,
        frozenset(calls),
        moved,
        check,
        {"batch": batch, "anchors": first[0].shape[2], "dtype": _name(inputs.dtype)},
    )


def _with_backward(prepare: Callable[..., Call], logits: Tensor, points: Tensor, strides: Tensor) -> Call:
    logits = logits.detach().requires_grad_()
    forward = prepare(logits, points, strides)
    gradient = torch.ones_like(forward())

    def call() -> Tensor:
        return torch.autograd.grad(forward(), logits, gradient)[0]

    return call


def _bind(function: Callable[[Maps], Any], maps: Maps) -> Call:
    return lambda: function(maps)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


CASES: dict[str, Callable[[Inputs, bool], Iterator[Case]]] = {
    "decode_nms": decode_nms_cases,
    "nms": nms_cases,
    "batched_nms": batched_nms_cases,
    "dfl_decode": dfl_decode_cases,
}
