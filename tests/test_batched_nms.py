# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import COUNTS, KINDS, Case, box_list
from torch import Tensor

from fastyolo import reference
from fastyolo.ops import batched_nms, decode_nms, multiclass_nms, nms

OPS = ("nms", "batched_nms", "multiclass_nms")
INF = math.inf
NAN = math.nan


def test_matches_reference(case: Case, device: str, dtype: torch.dtype) -> None:
    inputs = case.inputs(device, dtype)
    case.check(case.run(inputs), inputs)


# ---- against torchvision


@pytest.fixture(scope="module")
def torchvision_ops() -> ModuleType:
    return pytest.importorskip("torchvision.ops")


def by_group(nms: Callable[..., Tensor], boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` of each group, merged by descending score, ties by position.

    torchvision.ops.batched_nms is no yardstick. For small inputs it shifts the boxes of group g by g times the largest
    coordinate, which rounds them: IoUs near the threshold then fall on the wrong side. For large ones it does what is
    done here, but merges with a sort that leaves the order of ties open.
    """
    members = [torch.nonzero(idxs == group).flatten() for group in idxs.unique()]
    kept = [group[nms(boxes[group], scores[group], iou_threshold)] for group in members]
    merged = torch.cat([*kept, idxs.new_empty(0)]).sort().values
    return merged[scores[merged].sort(descending=True, stable=True).indices]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [*COUNTS, 10000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_indices_as_torchvision(torchvision_ops: ModuleType, kind: str, count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    boxes, scores = (x.to(dtype) for x in box_list(generator, kind, count))
    idxs = torch.randint(80, (count,), generator=generator)
    for threshold in (0.3, 0.5, 0.7):
        assert torch.equal(nms(boxes, scores, threshold), torchvision_ops.nms(boxes, scores, threshold))
        expected = by_group(torchvision_ops.nms, boxes, scores, idxs, threshold)
        assert torch.equal(batched_nms(boxes, scores, idxs, threshold), expected)
        assert torch.equal(batched_nms(boxes, scores, idxs, threshold, max_det=50), expected[:50])


@pytest.mark.parametrize("kind", ["random", "pairs"])
def test_same_indices_as_torchvision_with_threads(torchvision_ops: ModuleType, kind: str) -> None:
    """So many boxes that steps of candidates are tested in parallel, against a grid."""
    boxes, scores = box_list(torch.Generator().manual_seed(1), kind, 30000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        kept = nms(boxes, scores, 0.7)
    finally:
        torch.set_num_threads(before)
    assert len(kept) > 12000
    assert torch.equal(kept, torchvision_ops.nms(boxes, scores, 0.7))


def test_same_indices_as_torchvision_batched_nms_where_it_does_not_round(torchvision_ops: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, _ = box_list(generator, "random", 900)
    boxes = boxes.round()  # so that shifted coordinates are exact
    scores = torch.randperm(900, generator=generator) / 900
    idxs = torch.randint(5, (900,), generator=generator)
    expected = torchvision_ops.batched_nms(boxes, scores, idxs, 0.5)
    assert torch.equal(batched_nms(boxes, scores, idxs, 0.5), expected)


def test_no_rounding_by_class_offsets(torchvision_ops: ModuleType) -> None:
    """A pair in group 79 with an IoU of 0.499375: shifted by 79 x 7681, where floats are 1/16 apart, it is 0.5."""
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 3.995], [0.0, 0.0, 7680.0, 8.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    idxs = torch.tensor([79, 79, 0])
    assert torchvision_ops.batched_nms(boxes, scores, idxs, 0.4995).tolist() == [0, 2]
    assert batched_nms(boxes, scores, idxs, 0.4995).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "scores",
    [
        [NAN, 0.5, INF, -INF, NAN, 0.5],
        [0.0, -0.0, 0.0, -0.0, 0.0, -0.0],
        [-1.0, -2.0, -0.5, 3e-45, -3e-45, 0.0],
        [3.4e38, -3.4e38, 1e-38, -1e-38, 1.0, -1.0],
    ],
)
def test_order_of_special_scores(device: str, scores: list[float]) -> None:
    values = torch.tensor(scores, device=device)
    places = torch.arange(6.0, device=device)[:, None] * torch.tensor([20.0, 0.0, 20.0, 0.0], device=device)
    boxes = places + torch.tensor([0.0, 0.0, 10.0, 10.0], device=device)
    expected = values.sort(descending=True, stable=True).indices
    assert torch.equal(nms(boxes, values, 0.5), expected)
    assert torch.equal(batched_nms(boxes, values, torch.zeros_like(values).long(), 0.5, 4), expected[:4])


@pytest.mark.parametrize(
    "idxs", [[-1, -1, 3], [2**62, -(2**62), 2**62], [-(2**63), 2**63 - 1, 2**63 - 1], [0, 2**32, 0]]
)
def test_groups_may_be_any_integers(device: str, idxs: list[int]) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 3, device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    kept = [i for i, group in enumerate(idxs) if group not in idxs[:i]]
    assert batched_nms(boxes, scores, torch.tensor(idxs, device=device), 0.5).tolist() == kept


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_groups_of_any_integer_dtype(device: str, dtype: torch.dtype) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 3, device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    assert batched_nms(boxes, scores, torch.tensor([3, 1, 3], dtype=dtype, device=device), 0.5).tolist() == [0, 1]


def test_every_box_a_group_of_its_own(device: str) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]], device=device).expand(5000, 4)
    scores = torch.ones(5000, device=device)
    idxs = torch.arange(5000, device=device) * 2**33
    assert torch.equal(batched_nms(boxes, scores, idxs, 0.5), torch.arange(5000, device=device))


DEGENERATE_BOXES = [
    [5.0, 5.0, 5.0, 5.0],
    [10.0, 10.0, 0.0, 0.0],
    [10.0, 0.0, 0.0, 10.0],
    [NAN, 0.0, 10.0, 10.0],
    [-INF, -INF, INF, INF],
    [3e38, 3e38, 3.4e38, 3.4e38],
]


@pytest.mark.parametrize("box", DEGENERATE_BOXES)
def test_degenerate_boxes(torchvision_ops: ModuleType, device: str, box: list[float]) -> None:
    plain = [0.0, 0.0, 10.0, 10.0]
    scores = torch.tensor([0.9, 0.8])
    for pair in ([box, plain], [plain, box], [box, box]):
        boxes = torch.tensor(pair)
        kept = nms(boxes.to(device), scores.to(device), 0.25).cpu()
        assert torch.equal(kept, torchvision_ops.nms(boxes, scores, 0.25))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("box", DEGENERATE_BOXES)
def test_degenerate_boxes_among_thousands(
    torchvision_ops: ModuleType, device: str, box: list[float], groups: int
) -> None:
    """Which stand in a grid on the CPU, in the cells that such boxes widen."""
    generator = torch.Generator().manual_seed(0)
    boxes, scores = box_list(generator, "random", 6000)
    boxes[::200] = torch.tensor(box)
    boxes[1::200] -= 5000.0
    idxs = torch.randint(groups, (6000,), generator=generator)
    expected = by_group(torchvision_ops.nms, boxes, scores, idxs, 0.4)
    assert torch.equal(batched_nms(boxes.to(device), scores.to(device), idxs.to(device), 0.4).cpu(), expected)


def test_strided_arguments(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, scores = (x.to(device) for x in box_list(generator, "clustered", 99))
    idxs = torch.randint(3, (99,), generator=generator).to(device)
    expected = batched_nms(boxes, scores, idxs, 0.5)
    rows = torch.cat([boxes, scores[:, None], scores[:, None]], 1)  # [N, 6], as detections often come
    pairs = idxs.repeat_interleave(2)
    assert torch.equal(batched_nms(rows[:, :4], rows[:, 4], pairs[::2], 0.5), expected)
    assert torch.equal(batched_nms(boxes.T.contiguous().T, scores, idxs, 0.5), expected)


@pytest.mark.parametrize("max_det", [None, 7])
def test_fixed_size_form(device: str, max_det: int | None) -> None:
    """The operator below batched_nms: keep [N] padded with -1, and the count."""
    boxes, scores = (x.to(device) for x in box_list(torch.Generator().manual_seed(0), "clustered", 200))
    expected = nms(boxes, scores, 0.5)[:max_det]
    keep, num_keep = torch.ops.fastyolo.batched_nms(boxes, scores, None, 0.5, max_det=max_det)
    assert (keep.shape, keep.dtype, num_keep.shape, num_keep.dtype) == ((200,), torch.int64, (1,), torch.int32)
    assert 0 < num_keep.item() == len(expected) < 200
    assert torch.equal(keep[: len(expected)], expected)
    assert (keep[len(expected) :] == -1).all()


@pytest.mark.parametrize("max_det", [0, 1, 7, 10**12])
def test_max_det(device: str, max_det: int) -> None:
    boxes, scores = (x.to(device) for x in box_list(torch.Generator().manual_seed(0), "random", 300))
    assert torch.equal(nms(boxes, scores, 0.5, max_det), nms(boxes, scores, 0.5)[:max_det])


# ---- multiclass_nms


def test_multiclass_nms_agrees_with_decode_nms(device: str) -> None:
    """The same boxes and scores, decoded before the operator instead of inside it."""
    generator = torch.Generator().manual_seed(0)
    box_maps = [4 * torch.rand(2, 4, s, s, generator=generator).to(device) for s in (16, 8)]
    cls_maps = [torch.randn(2, 5, s, s, generator=generator).to(device) for s in (16, 8)]
    boxes, logits = reference.decode_maps(box_maps, cls_maps, [8.0, 16.0])
    settings: dict[str, Any] = {"multi_label": True, "score_threshold": 0.7, "max_det": 1000}
    expected = decode_nms(box_maps, cls_maps, [8.0, 16.0], **settings)
    scores = logits.cpu().transpose(1, 2).sigmoid().to(device)  # on one device: rounding decides about their order
    actual = multiclass_nms(boxes, scores, **settings)
    assert 100 < expected.num_dets.min() < 1000
    for name in ("num_dets", "labels", "indices"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    torch.testing.assert_close(actual.boxes, expected.boxes)
    torch.testing.assert_close(actual.scores, expected.scores)


def one_image(scores: list[list[float]], device: str, **settings: Any) -> list[tuple[int, int, float]]:
    """(index, label, score) of the detections of boxes that do not touch; scores [C, N]."""
    values = torch.tensor(scores, device=device)
    places = torch.arange(values.shape[1], device=device)[:, None] * torch.tensor([20.0, 0.0, 20.0, 0.0], device=device)
    boxes = places + torch.tensor([0.0, 0.0, 10.0, 10.0], device=device)
    detections = multiclass_nms(boxes[None], values[None], **settings)
    count = detections.num_dets.item()
    columns = (detections.indices[0, :count], detections.labels[0, :count], detections.scores[0, :count])
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_multiclass_score_must_be_above_the_threshold(device: str, threshold: float) -> None:
    above = torch.nextafter(torch.tensor(threshold), torch.tensor(2.0)).item()
    assert one_image([[threshold, above]], device, score_threshold=threshold) == [(1, 0, above)]


def test_multiclass_threshold_is_not_rounded(device: str) -> None:
    """float32(0.3) is above 0.3, float32(0.7) below 0.7."""
    scores = torch.tensor([0.3, 0.7])
    assert one_image([scores.tolist()], device, score_threshold=0.3)[1:] == [(0, 0, scores[0].item())]
    assert one_image([scores.tolist()], device, score_threshold=0.7) == []


def test_multiclass_special_scores(device: str) -> None:
    scores = [[NAN, INF, 0.5, -1.0], [0.4, NAN, 0.5, -INF]]
    assert one_image(scores, device) == [(1, 0, INF), (2, 0, 0.5), (0, 1, torch.tensor(0.4).item())]
    every = [(1, 0, INF), (2, 0, 0.5), (2, 1, 0.5), (0, 1, torch.tensor(0.4).item())]
    assert one_image(scores, device, multi_label=True, score_threshold=0.0) == every


def test_multiclass_shared_scores_and_boxes(device: str) -> None:
    """Expanded inputs: strides of zero."""
    boxes, scores = (x.to(device) for x in box_list(torch.Generator().manual_seed(0), "clustered", 50))
    detections = multiclass_nms(boxes.expand(2, 50, 4), scores.expand(2, 3, 50), multi_label=True)
    expected = multiclass_nms(boxes.repeat(2, 1, 1), scores.repeat(2, 3, 1), multi_label=True)
    assert expected.num_dets[0] > 3
    assert all(torch.equal(actual, value) for actual, value in zip(detections, expected, strict=True))
