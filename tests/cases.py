# SPDX-License-Identifier: AGPL-3.0-or-later
"""The table of cases: for each operator its inputs, and what its results must be.

Every place where the operators run is tested with it: torch on the CPU and on CUDA, NumPy, and the CUDA kernels on the
host. A case's inputs depend on its name alone, so that all of them, and every run, see the same numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastyolo.ops
from fastyolo import reference
from fastyolo.ops import Detections

Inputs = dict[str, Any]

DTYPES = {
    op: {
        "cpu": (torch.float32, torch.bfloat16, torch.float64),
        "cuda": (torch.float32, torch.float16, torch.bfloat16),
    }
    for op in ("decode_nms", "multiclass_nms", "batched_nms", "nms", "dfl_decode", "eca", "dw_sppf", "sppf_pool")
}

DIFFERENTIABLE = {
    "dfl_decode": ("logits",),
    "eca": ("x", "weight"),
    "dw_sppf": ("x", "weight", "bias"),
    "sppf_pool": ("x",),
}
"""The inputs that have a gradient."""

# Relative to the largest value of the reference in float64; detections differ in rounding only, so scores and boxes of
# any input dtype are held to float32's.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# An IoU that lies this close to the threshold may fall on either side of it.
IOU_MARGIN = 1e-5


def as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Case:
    """One call of fastyolo.ops.<op>."""

    op: str
    name: str
    make: Callable[[torch.Generator], Inputs]
    """Keyword arguments in float32 on the CPU."""
    layout: Callable[[Tensor], Tensor] = as_it_is
    """Lays out the tensors of rank 3 and more."""
    float32: tuple[str, ...] = ()
    """Inputs that stay float32 beside half precision."""

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def inputs(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Inputs:
        generator = torch.Generator().manual_seed(zlib.crc32(self.id.encode()))

        def convert(name: str, value: Any) -> Any:
            if isinstance(value, list) and value and isinstance(value[0], Tensor):
                return [convert(name, item) for item in value]
            if not isinstance(value, Tensor):
                return value
            if value.is_floating_point():
                value = value.to(torch.float32 if name in self.float32 and dtype != torch.float64 else dtype)
            value = value.to(device)
            return self.layout(value) if value.dim() >= 3 else value

        return {name: convert(name, value) for name, value in self.make(generator).items()}

    def run(self, inputs: Inputs) -> Any:
        return getattr(fastyolo.ops, self.op)(**inputs)

    def check(self, actual: Any, inputs: Inputs) -> None:
        """Raises AssertionError unless `actual` is what the reference says of these inputs."""
        CHECKS[self.op](on_cpu(actual), on_cpu(inputs))

    def gradients(self, inputs: Inputs, function: Callable[..., Tensor] | None = None) -> dict[str, Tensor]:
        """The gradients of the operator, or of another function, for an output gradient that depends on the shape
        alone."""
        given = [name for name in DIFFERENTIABLE[self.op] if inputs[name] is not None]
        leaves = {name: inputs[name].detach().requires_grad_() for name in given}
        result = (function or getattr(fastyolo.ops, self.op))(**{**inputs, **leaves})
        grad = self.layout(output_gradient(result))
        return dict(zip(leaves, torch.autograd.grad(result, list(leaves.values()), grad), strict=True))

    def backward_inputs(self, inputs: Inputs) -> Inputs:
        """The arguments of the operator's backward: an output gradient, and inputs of the same names."""
        schema = getattr(torch.ops.fastyolo, f"{self.op}_backward").default._schema
        grad, *names = (argument.name for argument in schema.arguments)
        return {grad: self.layout(output_gradient(self.run(inputs))), **{name: inputs[name] for name in names}}

    def check_gradients(self, inputs: Inputs) -> None:
        """Raises AssertionError unless the gradients are those of the reference in float64."""
        exact = self.gradients(in_float64(on_cpu(inputs)), getattr(reference, self.op))
        for name, actual in self.gradients(inputs).items():
            assert (actual.dtype, actual.shape) == (inputs[name].dtype, inputs[name].shape), name
            # The pools only add up the output's gradient, which is of small integers.
            tolerance = 0.0 if self.op == "sppf_pool" else TOLERANCE[actual.dtype]
            assert_close(actual.cpu(), exact[name], tolerance)


def on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Detections):
        return Detections(*map(on_cpu, value))
    if isinstance(value, dict):
        return {name: on_cpu(item) for name, item in value.items()}
    if isinstance(value, list):
        return [on_cpu(item) for item in value]
    return value


def in_float64(inputs: Inputs) -> Inputs:
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def output_gradient(result: Tensor) -> Tensor:
    """A gradient of `result` in integers from -3 to 3."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-3, 4, result.shape, generator=generator).to(result)


# ---- what results must be


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    finite = expected[expected.isfinite()]
    scale = finite.abs().max().item() if finite.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale, equal_nan=True)


def check_close(op: str, first: str) -> Callable[[Tensor, Inputs], None]:
    """Holds a tensor to the reference in float64; its dtype is that of the input `first`."""

    def check(actual: Tensor, inputs: Inputs) -> None:
        dtype = inputs[first].dtype
        assert actual.dtype == dtype
        assert_close(actual, getattr(reference, op)(**in_float64(inputs)), TOLERANCE[dtype])

    return check


def check_sppf_pool(actual: Tensor, inputs: Inputs) -> None:
    torch.testing.assert_close(actual, reference.sppf_pool(**inputs), rtol=0, atol=0, equal_nan=True)


def check_kept(op: str) -> Callable[[Tensor, Inputs], None]:
    def check(actual: Tensor, inputs: Inputs) -> None:
        torch.testing.assert_close(actual, getattr(reference, op)(**inputs), rtol=0, atol=0)

    return check


def check_multiclass_nms(actual: Detections, inputs: Inputs) -> None:
    # Nothing is rounded before the comparisons, so the results are equal, not close.
    wide = {name: value.float() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    for name, value, expected in zip(Detections._fields, actual, reference.multiclass_nms(**wide), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def check_decode_nms(actual: Detections, inputs: Inputs) -> None:
    """Holds every decision of the greedy NMS to the reference in float64.

    The reference's own detections would not do: where one IoU lies within rounding of the threshold, either outcome is
    right, and all that follows from it. A set of detections is right if no kept box is suppressed by a better kept one
    and every candidate that was dropped is: that determines the set, one decision at a time.
    """
    settings = {"score_threshold": 0.25, "iou_threshold": 0.7, "max_det": 300, "max_candidates": 30000, **inputs}
    maps = [[x.double() for x in inputs[name]] for name in ("box_maps", "cls_maps")]
    boxes, logits = reference.decode_maps(*maps, inputs["strides"])
    batch, max_det = len(boxes), settings["max_det"]
    expected = Detections(
        torch.empty(batch, dtype=torch.int32),
        torch.empty(batch, max_det, 4),
        torch.empty(batch, max_det),
        torch.empty(batch, max_det, dtype=torch.int32),
        torch.empty(batch, max_det, dtype=torch.int32),
    )
    for name, value, like in zip(Detections._fields, actual, expected, strict=True):
        assert (value.shape, value.dtype) == (like.shape, like.dtype), f"{name}: {value.shape} {value.dtype}"
    for b in range(batch):
        anchors, labels = reference.rank_candidates(
            logits[b],
            reference.logit(settings["score_threshold"]),
            settings["max_candidates"],
            settings.get("multi_label", False),
            settings.get("classes"),
        )
        rows = actual.num_dets[b].item()
        assert 0 <= rows <= max_det
        for value, padding in zip(actual[1:], (0, 0, -1, -1), strict=True):
            assert (value[b, rows:] == padding).all(), "rows past num_dets"

        # Each detection is a candidate, in rank order.
        rank_of = {key: rank for rank, key in enumerate(zip(anchors.tolist(), labels.tolist(), strict=True))}
        keys = list(zip(actual.indices[b, :rows].tolist(), actual.labels[b, :rows].tolist(), strict=True))
        assert all(key in rank_of for key in keys), f"not candidates: {[key for key in keys if key not in rank_of]}"
        ranks = torch.tensor([rank_of[key] for key in keys], dtype=torch.int64)
        assert (ranks.diff() > 0).all(), "not in descending order of score"
        assert_close(actual.boxes[b, :rows], boxes[b, anchors[ranks]], TOLERANCE[torch.float32])
        scores = logits[b, anchors[ranks], labels[ranks]].sigmoid()
        torch.testing.assert_close(actual.scores[b, :rows].double(), scores, rtol=TOLERANCE[torch.float32], atol=0)

        # Each candidate that was looked at is kept, or suppressed by a better one.
        seen = len(anchors) if rows < max_det else (ranks[-1].item() + 1 if rows else 0)
        kept = torch.zeros(seen, dtype=torch.bool)
        kept[ranks] = True
        groups = torch.zeros_like(labels) if settings.get("class_agnostic") else labels
        overlap = torch.full((seen,), -1.0, dtype=torch.float64)  # the largest IoU with a better kept box
        for rank in ranks.tolist():
            worse = torch.arange(seen) > rank
            ious = reference.iou(boxes[b, anchors[rank]], boxes[b, anchors[:seen]]).nan_to_num(-1.0)
            overlap = torch.where(worse & (groups[:seen] == groups[rank]), overlap.maximum(ious), overlap)
        threshold = settings["iou_threshold"]
        assert (overlap[kept] <= threshold + IOU_MARGIN).all(), "a detection overlaps a better one"
        assert (overlap[~kept] > threshold - IOU_MARGIN).all(), "a candidate was dropped that nothing overlaps"


CHECKS: dict[str, Callable[[Any, Inputs], None]] = {
    "decode_nms": check_decode_nms,
    "multiclass_nms": check_multiclass_nms,
    "batched_nms": check_kept("batched_nms"),
    "nms": check_kept("nms"),
    "dfl_decode": check_close("dfl_decode", "logits"),
    "eca": check_close("eca", "x"),
    "dw_sppf": check_close("dw_sppf", "x"),
    "sppf_pool": check_sppf_pool,
}

# ---- inputs


def random_maps(
    generator: torch.Generator,
    *,
    batch: int = 1,
    num_classes: int = 80,
    bins: int = 16,
    sizes: Sequence[tuple[int, int]] = ((8, 8), (4, 4), (2, 2)),
    mean: float = -2.0,
    **settings: Any,
) -> Inputs:
    """Noise: neighbours overlap, since their boxes are many cells wide."""
    box_maps = [2 * torch.randn(batch, 4 * bins, h, w, generator=generator) for h, w in sizes]
    cls_maps = [2 * torch.randn(batch, num_classes, h, w, generator=generator) + mean for h, w in sizes]
    strides = [8.0 * 2**level for level in range(len(sizes))]
    return {"box_maps": box_maps, "cls_maps": cls_maps, "strides": strides, **settings}


def scene_maps(
    generator: torch.Generator,
    *,
    batch: int = 1,
    num_classes: int = 80,
    size: int = 640,
    objects: int = 20,
    **settings: Any,
) -> Inputs:
    """What a trained head gives: a quiet background, and around each object a cluster of confident anchors.

    An object of 16 to 0.8 `size` pixels lights up the cells within 2.5 of its centre in every level that can reach its
    edges with 16 bins; the distributions there peak at the distances to them.
    """
    bins = 16
    strides = [8.0, 16.0, 32.0]
    positions = torch.arange(bins).view(1, bins, 1, 1)
    box_maps, cls_maps = [], []
    for stride in strides:
        cells = int(size / stride)
        box_maps.append(torch.randn(batch, 4 * bins, cells, cells, generator=generator))
        cls_maps.append(torch.randn(batch, num_classes, cells, cells, generator=generator) - 9)
    for b in range(batch):
        centres = torch.rand(objects, 2, generator=generator) * size
        extents = 16 * (0.05 * size) ** torch.rand(objects, 2, generator=generator)
        labels = torch.randint(num_classes, (objects,), generator=generator)
        for centre, extent, label in zip(centres, extents, labels.tolist(), strict=True):
            for stride, box_map, cls_map in zip(strides, box_maps, cls_maps, strict=True):
                cells = box_map.shape[-1]
                y, x = torch.meshgrid(torch.arange(cells) + 0.5, torch.arange(cells) + 0.5, indexing="ij")
                dx, dy = x - centre[0] / stride, y - centre[1] / stride
                w, h = extent / stride / 2
                distances = torch.stack([w + dx, h + dy, w - dx, h - dy])
                near = (distances.amin(0) > 0) & (distances.amax(0) < bins - 1) & (dx.hypot(dy) < 2.5)
                peak = -4 * (positions - distances[:, None]).abs()
                box_map[b].view(4, bins, cells, cells)[:, :, near] += peak[:, :, near]
                cls_map[b, label][near] += 11.0 - 2 * dx.hypot(dy)[near]
    return {"box_maps": box_maps, "cls_maps": cls_maps, "strides": strides, **settings}


def box_list(generator: torch.Generator, kind: str, count: int) -> tuple[Tensor, Tensor]:
    """boxes [N, 4], scores [N]: "random" over an image, "clustered" around a few places, "tied" in ten scores,
    "identical" boxes, or "pairs": small boxes of which each comes twice, so that one box alone suppresses another."""
    scores = torch.rand(count, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * 600
    extent = torch.rand(count, 2, generator=generator) * 100
    if kind == "clustered":
        corner = corner[torch.randint(count, (count,), generator=generator) // 20] if count else corner
        corner = corner + 4 * torch.randn(count, 2, generator=generator)
        extent = 60 + 4 * torch.randn(count, 2, generator=generator)
    if kind == "pairs":
        corner[1::2], extent[1::2] = corner[: count // 2 * 2 : 2], extent[: count // 2 * 2 : 2]
        extent = extent / 30
    if kind == "tied":
        scores = torch.randint(10, (count,), generator=generator) / 10
    if kind == "identical":
        corner, extent = torch.full((count, 2), 10.0), torch.full((count, 2), 20.0)
    return torch.cat([corner, corner + extent], 1), scores


def nms_inputs(generator: torch.Generator, kind: str, count: int, groups: int | None = None, **settings: Any) -> Inputs:
    boxes, scores = box_list(generator, kind, count)
    inputs = {"boxes": boxes, "scores": scores, "iou_threshold": 0.5, **settings}
    if groups is not None:
        inputs["idxs"] = torch.randint(groups, (count,), generator=generator)
    return inputs


def multiclass_nms_inputs(
    generator: torch.Generator,
    *,
    batch: int = 2,
    count: int = 65,
    num_classes: int = 5,
    kind: str = "clustered",
    **settings: Any,
) -> Inputs:
    boxes = box_list(generator, kind, batch * count)[0].view(batch, count, 4)
    scores = torch.rand(batch, num_classes, count, generator=generator) ** 2
    if kind == "tied":
        scores = (10 * scores).round() / 10
    return {"boxes": boxes, "scores": scores, **settings}


def dfl_inputs(generator: torch.Generator, *, batch: int = 2, bins: int = 16, anchors: int = 33) -> Inputs:
    return {
        "logits": 3 * torch.randn(batch, 4 * bins, anchors, generator=generator),
        "anchor_points": torch.randint(80, (2, anchors), generator=generator) + 0.5,
        "strides": 2.0 ** torch.randint(3, 6, (anchors,), generator=generator),
    }


def feature_map(generator: torch.Generator, kind: str, shape: tuple[int, int, int, int]) -> Tensor:
    """x [B, C, H, W]: "normal", "tied" in five values and zeros of both signs, or "constant". Another kind names values
    that take the place of normal ones in every fourth channel: "nan", "inf", "-inf", or several with commas."""
    x = torch.randn(shape, generator=generator)
    if kind == "tied":
        return torch.randint(-2, 3, shape, generator=generator) * x.sign()
    if kind == "constant":
        return torch.full(shape, -1.5)
    for value in () if kind == "normal" else kind.split(","):
        bad = torch.rand(shape, generator=generator) < 0.1
        bad[:, torch.arange(shape[1]) % 4 != 0] = False
        x[bad] = float(value)
    return x


def eca_inputs(
    generator: torch.Generator,
    *,
    batch: int = 2,
    channels: int = 19,
    size: tuple[int, int] = (7, 9),
    taps: int = 3,
    kind: str = "normal",
) -> Inputs:
    x = 1 + feature_map(generator, kind, (batch, channels, *size))
    return {"x": x, "weight": torch.randn(taps, generator=generator)}


def dw_sppf_inputs(
    generator: torch.Generator,
    *,
    batch: int = 2,
    channels: int = 3,
    size: tuple[int, int] = (7, 9),
    kernel: int = 3,
    dilation: int = 2,
    bias: bool = True,
    activation: str = "silu",
    kind: str = "normal",
) -> Inputs:
    x = feature_map(generator, kind, (batch, channels, *size))
    weight = torch.randn(3, channels, kernel, kernel, generator=generator) / kernel
    shift = torch.randn(3, channels, generator=generator)
    if activation == "relu":  # Half integers, which make every sum exact: else it is rounding that decides the sign.
        x, weight, shift = ((2 * value).round() / 2 for value in (x, weight, shift))
    return {
        "x": x,
        "weight": weight,
        "bias": shift if bias else None,
        "dilation": dilation,
        "activation": activation,
    }


def sppf_pool_inputs(
    generator: torch.Generator,
    *,
    batch: int = 2,
    channels: int = 3,
    size: tuple[int, int] = (7, 9),
    kernel_size: int = 5,
    kind: str = "normal",
) -> Inputs:
    return {"x": feature_map(generator, kind, (batch, channels, *size)), "kernel_size": kernel_size}


# ---- layouts: none of them costs a copy


def channels_last(x: Tensor) -> Tensor:
    """Channels beside each other: NHWC, or the training layout [B, A, 4R]."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def transposed(x: Tensor) -> Tensor:
    """The last two axes swapped in memory."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def cropped(x: Tensor, layout: Callable[[Tensor], Tensor] = as_it_is) -> Tensor:
    """A view into a larger tensor of NaN, so that a read beside the view shows."""
    frame = layout(x.new_full([size + 3 for size in x.shape], float("nan")))
    view = frame[tuple(slice(1, 1 + size) for size in x.shape)]
    return view.copy_(x)


def cropped_channels_last(x: Tensor) -> Tensor:
    return cropped(x, channels_last)


def broadcast(x: Tensor) -> Tensor:
    """The first image in the place of all, with a stride of 0."""
    return x[:1].expand_as(x)


# ---- the table


def maps_case(name: str, layout: Callable[[Tensor], Tensor] = as_it_is, **arguments: Any) -> Case:
    return Case("decode_nms", name, lambda generator: random_maps(generator, **arguments), layout)


def scene_case(name: str, **arguments: Any) -> Case:
    return Case("decode_nms", name, lambda generator: scene_maps(generator, **arguments))


def nms_case(kind: str, count: int, **settings: Any) -> Case:
    name = "-".join([kind, str(count), *(f"{key}-{value}" for key, value in settings.items())])
    return Case("nms", name, lambda generator: nms_inputs(generator, kind, count, **settings))


def batched_nms_case(kind: str, count: int, groups: int, **settings: Any) -> Case:
    name = "-".join([kind, str(count), f"groups-{groups}", *(f"{key}-{value}" for key, value in settings.items())])
    return Case("batched_nms", name, lambda generator: nms_inputs(generator, kind, count, groups, **settings))


def multiclass_nms_case(name: str, layout: Callable[[Tensor], Tensor] = as_it_is, **arguments: Any) -> Case:
    return Case("multiclass_nms", name, lambda generator: multiclass_nms_inputs(generator, **arguments), layout)


def dfl_case(name: str, layout: Callable[[Tensor], Tensor] = as_it_is, **sizes: int) -> Case:
    grid = ("anchor_points", "strides")
    return Case("dfl_decode", name, lambda generator: dfl_inputs(generator, **sizes), layout, grid)


MAPS: dict[str, Callable[..., Inputs]] = {
    "eca": eca_inputs,
    "dw_sppf": dw_sppf_inputs,
    "sppf_pool": sppf_pool_inputs,
}


def map_case(
    op: str,
    name: str,
    layout: Callable[[Tensor], Tensor] = as_it_is,
    float32: tuple[str, ...] = (),
    **arguments: Any,
) -> Case:
    return Case(op, name, lambda generator: MAPS[op](generator, **arguments), layout, float32)


def map_cases(op: str) -> list[Case]:
    """What every operator on feature maps must get right."""
    sizes = ((1, 1), (1, 7), (5, 1), (19, 19), (20, 20), (33, 65))
    special = ("nan", "inf", "-inf", "nan,inf,-inf")
    return [
        map_case(op, "default"),
        *(map_case(op, f"{height}x{width}", batch=1, size=(height, width)) for height, width in sizes),
        map_case(op, "160x160", batch=1, channels=2, size=(160, 160)),
        *(map_case(op, f"{channels}-channels", channels=channels) for channels in (1, 2, 8, 13)),
        map_case(op, "64-channels", batch=1, channels=64),
        map_case(op, "1024-channels", batch=1, channels=1024, size=(2, 3)),
        map_case(op, "channels-last", channels_last, channels=13),
        map_case(op, "channels-last-vectors", channels_last, channels=32),
        map_case(op, "channels-last-20x20", channels_last, channels=8, size=(20, 20)),
        map_case(op, "channels-last-1-channel", channels_last, channels=1),
        map_case(op, "channels-last-1-pixel", channels_last, channels=16, size=(1, 1)),
        map_case(op, "cropped", cropped),
        map_case(op, "cropped-channels-last", cropped_channels_last),
        map_case(op, "transposed", transposed),
        map_case(op, "broadcast", broadcast),
        map_case(op, "9-images", batch=9),
        map_case(op, "0-images", batch=0),
        *(map_case(op, kind, kind=kind, channels=8) for kind in special),
    ]


ODD_SIZES = ((19, 33), (1, 7), (5, 1))
VALIDATION = {"score_threshold": 0.001, "multi_label": True}
COUNTS = (0, 1, 2, 63, 64, 65, 1000)
KINDS = ("random", "clustered", "tied", "identical", "pairs")

CASES = [
    scene_case("scene", size=320, objects=10),
    scene_case("scene-validation", size=160, objects=5, num_classes=8, batch=2, **VALIDATION),
    maps_case("default"),
    maps_case("odd-sizes", sizes=ODD_SIZES, batch=3, num_classes=3, max_det=1000),
    maps_case("channels-last", channels_last, sizes=ODD_SIZES, batch=3, num_classes=5, max_det=1000),
    maps_case("channels-last-vectors", channels_last, sizes=ODD_SIZES, batch=2, num_classes=16, max_det=1000),
    maps_case(
        "channels-last-vectors-multi-label", channels_last, sizes=ODD_SIZES, batch=2, num_classes=16, multi_label=True
    ),
    maps_case("transposed", transposed, sizes=ODD_SIZES, batch=2, num_classes=5, max_det=1000),
    maps_case("cropped", cropped, sizes=ODD_SIZES, batch=2, num_classes=5, max_det=1000),
    maps_case("1-class", sizes=((33, 19),), num_classes=1, mean=0.0),
    maps_case("1203-classes", num_classes=1203, mean=-6.0),
    maps_case("1203-classes-multi-label", num_classes=1203, mean=-6.0, multi_label=True),
    maps_case("every-score", num_classes=1203, multi_label=True, score_threshold=0.0),  # more than a list on CUDA holds
    maps_case("every-score-best-100", num_classes=1203, multi_label=True, score_threshold=0.0, max_candidates=100),
    maps_case("1-anchor", sizes=((1, 1),), num_classes=19, mean=2.0),
    maps_case("1-bin", bins=1, num_classes=3),
    maps_case("5-bins", bins=5, num_classes=3),
    maps_case("8-bins", bins=8, num_classes=3),
    maps_case("33-bins", bins=33, num_classes=3),
    maps_case("8-levels", sizes=[(size, 9 - size) for size in range(1, 9)], num_classes=3),
    maps_case("9-images", batch=9, num_classes=3),
    maps_case("0-images", batch=0),
    maps_case("0-anchors", sizes=((0, 4), (3, 0)), num_classes=3),
    maps_case("empty-level", sizes=((4, 4), (0, 2), (2, 2)), num_classes=3),
    maps_case("multi-label", num_classes=7, multi_label=True),
    maps_case("agnostic", num_classes=7, class_agnostic=True),
    maps_case("agnostic-multi-label", num_classes=7, class_agnostic=True, multi_label=True),
    maps_case("classes", num_classes=7, classes=[0, 3, 6]),
    maps_case("classes-multi-label", num_classes=70, classes=[31, 32, 63, 64], multi_label=True),
    maps_case("classes-agnostic", num_classes=7, classes=[1, 5], class_agnostic=True, multi_label=True),
    maps_case("classes-none", num_classes=7, classes=[]),
    maps_case("max-det-0", max_det=0),
    maps_case("max-det-1", max_det=1, batch=2),
    maps_case("max-det-huge", max_det=65536, num_classes=3),
    maps_case("max-candidates-1", max_candidates=1, batch=2),
    maps_case("max-candidates-100", max_candidates=100, multi_label=True, num_classes=19),
    maps_case("score-threshold-0", score_threshold=0.0, num_classes=3),
    maps_case("score-threshold-1", score_threshold=1.0, num_classes=3),
    maps_case("iou-threshold-0", iou_threshold=0.0, num_classes=3),
    maps_case("iou-threshold-1", iou_threshold=1.0, num_classes=3),
    multiclass_nms_case("default"),
    multiclass_nms_case("channels-last", channels_last),
    multiclass_nms_case("transposed", transposed),
    multiclass_nms_case("cropped", cropped),
    multiclass_nms_case("0-images", batch=0),
    multiclass_nms_case("0-boxes", count=0),
    multiclass_nms_case("1-box", count=1, batch=1, num_classes=1, score_threshold=0.0),
    multiclass_nms_case("1203-classes", num_classes=1203, count=33),
    multiclass_nms_case("many", count=300, num_classes=19, max_det=3000, **VALIDATION),
    multiclass_nms_case("truncated", count=300, num_classes=19, max_candidates=333, **VALIDATION),
    multiclass_nms_case("tied", kind="tied", multi_label=True),
    multiclass_nms_case("tied-many", kind="tied", count=300, multi_label=True),
    multiclass_nms_case("identical", kind="identical", multi_label=True),
    multiclass_nms_case("agnostic", class_agnostic=True, multi_label=True),
    multiclass_nms_case("classes", classes=[0, 4], max_det=7),
    multiclass_nms_case("max-det-0", max_det=0),
    *(nms_case(kind, count) for kind in KINDS for count in COUNTS),
    nms_case("random", 3000),  # on CUDA, chunks of 1024 boxes suppress each other
    nms_case("random", 1000, max_det=0),
    nms_case("random", 1000, max_det=10),
    *(batched_nms_case(kind, count, 5) for kind in KINDS for count in COUNTS),
    batched_nms_case("random", 3000, 2),
    batched_nms_case("pairs", 2049, 2, max_det=1500),
    batched_nms_case("clustered", 1000, 1),
    batched_nms_case("clustered", 1000, 400),
    batched_nms_case("random", 1000, 5, max_det=10),
    dfl_case("default"),
    dfl_case("channels-last", channels_last),
    dfl_case("cropped", cropped),
    dfl_case("0-images", batch=0),
    dfl_case("0-anchors", anchors=0),
    dfl_case("1-anchor", anchors=1),
    dfl_case("1000-anchors", anchors=1000),
    dfl_case("1-bin", bins=1),
    dfl_case("5-bins", bins=5),
    dfl_case("8-bins", bins=8, batch=3),
    dfl_case("33-bins", bins=33),
    *map_cases("eca"),
    *(map_case("eca", f"{taps}-taps", taps=taps) for taps in (1, 5, 7, 9, 31)),
    map_case("eca", "more-taps-than-channels", taps=9, channels=2),
    map_case("eca", "48-kb", taps=5, batch=1, channels=4, size=(78, 78)),  # in CUDA's shared memory, the means included
    map_case("eca", "float32-weight", float32=("weight",)),
    *map_cases("dw_sppf"),
    *(
        map_case(
            "dw_sppf",
            f"{kernel}x{kernel}-dilation-{dilation}-{activation}{'' if bias else '-no-bias'}",
            kernel=kernel,
            dilation=dilation,
            activation=activation,
            bias=bias,
        )
        for kernel in (3, 5)
        for dilation in (1, 2)
        for activation in ("identity", "relu", "silu")
        for bias in (True, False)
    ),
    map_case("dw_sppf", "5x5-channels-last", channels_last, kernel=5, channels=13, size=(11, 10)),
    map_case("dw_sppf", "channels-last-parts", channels_last, batch=1, channels=40, size=(9, 11)),
    map_case("dw_sppf", "float32-parameters", float32=("weight", "bias")),
    *map_cases("sppf_pool"),
    *(map_case("sppf_pool", f"kernel-{size}", kernel_size=size) for size in (1, 3, 7, 13, 15)),
    *(
        map_case("sppf_pool", f"{kind}-{name}", layout, kind=kind, size=(19, 21))
        for kind in ("tied", "constant")
        for name, layout in (("contiguous", as_it_is), ("channels-last", channels_last))
    ),
    map_case("sppf_pool", "channels-last-parts", channels_last, batch=1, channels=40, size=(9, 11)),
    map_case("sppf_pool", "nan-channels-last", channels_last, kind="nan", channels=8),
    map_case("sppf_pool", "nan-channels-last-parts", channels_last, kind="nan", batch=1, channels=40),
    map_case("sppf_pool", "nan-kernel-3", kind="nan", kernel_size=3, channels=8),
]
