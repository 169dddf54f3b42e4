# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import Case, channels_last, cropped, random_maps, transposed
from torch import Tensor

from fastyolo.ops import Detections, decode_nms

OPS = ("decode_nms",)
INF = math.inf
NAN = math.nan


def test_matches_reference(case: Case, device: str, dtype: torch.dtype) -> None:
    inputs = case.inputs(device, dtype)
    case.check(case.run(inputs), inputs)


def detect(boxes: list[list[float]], logits: list[Any], device: str = "cpu", **settings: Any) -> Detections:
    """decode_nms of one image with these boxes, to the bit: one row of cells of one pixel, and distances for a
    distribution of one bin."""
    corners = torch.tensor(boxes)
    values = torch.tensor(logits)
    if values.dim() == 1:
        values = values[:, None]
    centres = torch.stack([torch.arange(len(boxes)) + 0.5, torch.full((len(boxes),), 0.5)], 1)
    distances = torch.cat([centres - corners[:, :2], corners[:, 2:] - centres], 1)
    maps = [x.T[None, :, None].contiguous().to(device) for x in (distances, values)]
    return decode_nms([maps[0]], [maps[1]], [1.0], **{"max_det": 20, **settings})


def rows(detections: Detections) -> list[tuple[int, int]]:
    """(index, label) of each detection of the first image."""
    count = detections.num_dets[0].item()
    return list(zip(detections.indices[0, :count].tolist(), detections.labels[0, :count].tolist(), strict=True))


def indices(detections: Detections) -> list[int]:
    return [index for index, _ in rows(detections)]


def apart(count: int) -> list[list[float]]:
    """Boxes that do not touch."""
    return [[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(count)]


def test_boxes_and_scores_are_exact_where_nothing_rounds(device: str) -> None:
    boxes = [[1.0, 2.0, 11.0, 22.0], [-5.0, -3.5, 640.0, 8.0]]
    detections = detect(boxes, [0.0, 1.0], device)
    assert detections.boxes[0, :2].tolist() == [boxes[1], boxes[0]]
    assert detections.scores[0, 1].item() == 0.5
    assert rows(detections) == [(1, 0), (0, 0)]


@pytest.mark.parametrize(
    ("threshold", "at", "above"),
    [(0.5, 0.0, 2.0**-149), (0.0, -INF, -3.4e38), (1.0, INF, None)],
)
def test_score_must_be_above_the_threshold(device: str, threshold: float, at: float, above: float | None) -> None:
    assert rows(detect(apart(1), [at], device, score_threshold=threshold)) == []
    if above is not None:
        assert rows(detect(apart(1), [above], device, score_threshold=threshold)) == [(0, 0)]


@pytest.mark.parametrize("threshold", [0.001, 0.25, 0.3, 0.7, 0.999])
def test_score_threshold_is_exact(device: str, threshold: float) -> None:
    """The float32 logits around logit(threshold) are judged by their exact sigmoid, without its rounding."""
    bound = math.log(threshold) - math.log1p(-threshold)
    near = torch.tensor(bound)
    for _ in range(3):
        near = torch.nextafter(near, torch.tensor(-INF))
    logits = []
    for _ in range(7):
        logits.append(near.item())
        near = torch.nextafter(near, torch.tensor(INF))
    kept = sorted(indices(detect(apart(7), logits, device, score_threshold=threshold)))
    assert kept == [i for i, logit in enumerate(logits) if logit > bound]
    assert 0 < len(kept) < 7


@pytest.mark.parametrize(
    ("second", "threshold", "suppressed"),
    [
        ([0.0, 0.0, 10.0, 5.0], 0.5, False),  # an IoU of 1/2, exactly at the threshold
        ([0.0, 0.0, 10.0, 5.0], math.nextafter(0.5, 0), True),
        ([0.0, 0.0, 10.0, 7.0], 0.7, False),  # float32(7/10) is below 0.7
        ([0.0, 0.0, 10.0, 6.0], 0.6, True),  # float32(6/10) is above 0.6
        ([0.0, 0.0, 10.0, 10.0], 1.0, False),
        ([0.0, 0.0, 10.0, 10.0], math.nextafter(1.0, 0), True),
        ([10.0, 0.0, 20.0, 10.0], 0.0, False),  # they share an edge
        ([9.5, 0.0, 20.0, 10.0], 0.0, True),
    ],
)
def test_iou_must_be_above_the_threshold(device: str, second: list[float], threshold: float, suppressed: bool) -> None:
    boxes = [[0.0, 0.0, 10.0, 10.0], second]
    kept = indices(detect(boxes, [2.0, 1.0], device, iou_threshold=threshold))
    assert kept == ([0] if suppressed else [0, 1])


def test_suppressed_boxes_do_not_suppress(device: str) -> None:
    """A chain of boxes, each overlapping the next: every other one stays."""
    boxes = [[2.0 * i, 0.0, 2.0 * i + 10, 10.0] for i in range(9)]
    kept = indices(detect(boxes, [9.0 - i for i in range(9)], device, iou_threshold=0.5))
    assert kept == [0, 2, 4, 6, 8]


def test_ties_go_to_the_lower_anchor_then_the_lower_class(device: str) -> None:
    logits = [[1.0, 3.0, 3.0], [3.0, 3.0, 2.0], [3.0, 1.0, 4.0]]
    best = detect(apart(3), logits, device)
    assert rows(best) == [(2, 2), (0, 1), (1, 0)]
    every = detect(apart(3), logits, device, multi_label=True)
    assert rows(every) == [(2, 2), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (1, 2), (0, 0), (2, 1)]
    assert rows(detect(apart(3), logits, device, multi_label=True, max_candidates=4)) == rows(every)[:4]
    assert rows(detect(apart(3), logits, device, multi_label=True, max_det=4)) == rows(every)[:4]


def test_all_scores_equal(device: str) -> None:
    """More equal candidates than max_candidates, in several levels and images: the lowest anchors stay."""
    shapes = [(2, 4, 19, 33), (2, 4, 7, 1)]
    maps = [torch.full(shape, 0.25, device=device) for shape in shapes]  # boxes of half a cell
    detections = decode_nms(maps, maps, [8.0, 16.0], max_candidates=600, max_det=1000)
    assert detections.num_dets.tolist() == [600, 600]
    assert detections.indices[:, :600].tolist() == [list(range(600))] * 2
    assert (detections.labels[:, :600] == 0).all()
    # With every class, those of the lowest anchors: a class that is looked at last still displaces higher anchors.
    detections = decode_nms(maps, maps, [8.0, 16.0], max_candidates=600, max_det=1000, multi_label=True)
    assert detections.num_dets.tolist() == [600, 600]
    assert detections.indices[:, :600].tolist() == [[i // 4 for i in range(600)]] * 2
    assert detections.labels[:, :600].tolist() == [[i % 4 for i in range(600)]] * 2


def test_zeros_of_either_sign_are_equal(device: str) -> None:
    assert indices(detect(apart(4), [-0.0, 0.0, -0.0, 0.0], device)) == [0, 1, 2, 3]
    assert rows(detect(apart(1), [[-0.0, 0.0]], device)) == [(0, 0)]


def test_rank_is_by_logit_where_the_sigmoid_saturates(device: str) -> None:
    detections = detect(apart(4), [40.0, 90.0, 50.0, INF], device)
    assert indices(detections) == [3, 1, 2, 0]
    assert detections.scores[0, :4].tolist() == [1.0] * 4


def test_nan_is_never_a_detection(device: str) -> None:
    logits = [[NAN, NAN], [NAN, 1.0], [2.0, NAN], [3.0, -1.0], [-INF, NAN]]
    assert rows(detect(apart(5), logits, device, score_threshold=0.0)) == [(3, 0), (2, 0), (1, 1)]
    assert rows(detect(apart(5), logits, device, score_threshold=0.0, multi_label=True)) == [
        (3, 0),
        (2, 0),
        (1, 1),
        (3, 1),
    ]
    negative_nan = -torch.tensor(NAN)
    assert rows(detect(apart(2), [negative_nan.item(), 0.5], device)) == [(1, 0)]


def test_infinite_logits(device: str) -> None:
    detections = detect(apart(3), [[5.0, -INF], [-INF, -INF], [1.0, INF]], device)
    assert rows(detections) == [(2, 1), (0, 0)]
    assert detections.scores[0, 0].item() == 1.0


@pytest.mark.parametrize(
    "box",
    [
        [5.0, 5.0, 5.0, 5.0],  # without area
        [5.0, 0.0, 5.0, 10.0],
        [10.0, 10.0, 0.0, 0.0],  # inverted: of positive area to the formula, but without an intersection
        [10.0, 0.0, 0.0, 10.0],
        [NAN, 0.0, 10.0, 10.0],
        [0.0, 0.0, 10.0, NAN],
        [-INF, -INF, INF, INF],
    ],
)
def test_degenerate_boxes_neither_suppress_nor_are_suppressed(device: str, box: list[float]) -> None:
    plain = [0.0, 0.0, 10.0, 10.0]
    for boxes in ([box, plain], [plain, box], [box, box]):
        detections = detect(boxes, [2.0, 1.0], device, iou_threshold=0.25)
        assert indices(detections) == [0, 1]
        torch.testing.assert_close(detections.boxes[0, :2].cpu(), torch.tensor(boxes), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_bad_distribution_spoils_its_own_side_only(device: str, value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    box_map = torch.randn(1, 64, 1, 2, generator=generator)
    spoiled = box_map.clone()
    spoiled[0, 20, 0, 1] = value  # bin 4 of the top of anchor 1
    cls_map = torch.tensor([2.0, 1.0]).view(1, 1, 1, 2)
    arguments = {"strides": [8.0], "max_det": 2, "iou_threshold": 1.0}
    clean = decode_nms([box_map.to(device)], [cls_map.to(device)], **arguments)
    spoiled = decode_nms([spoiled.to(device)], [cls_map.to(device)], **arguments)
    difference = spoiled.boxes[0] != clean.boxes[0]
    assert difference.tolist() == [[False] * 4, [False, True, False, False]]
    assert spoiled.boxes[0, 1, 1].isnan()


def test_best_class_is_chosen_before_the_filter(device: str) -> None:
    """As in ultralytics: an anchor whose best class is filtered out is not a candidate for its second."""
    logits = [[3.0, 2.0], [1.0, 4.0]]
    assert rows(detect(apart(2), logits, device, classes=[0])) == [(0, 0)]
    assert rows(detect(apart(2), logits, device, classes=[0], multi_label=True)) == [(0, 0), (1, 0)]
    assert rows(detect(apart(2), logits, device, classes=[0], max_candidates=1)) == [(0, 0)]


def test_classes_suppress_their_own_only_unless_agnostic(device: str) -> None:
    boxes = [[0.0, 0.0, 10.0, 10.0]] * 2
    logits = [[3.0, -9.0], [-9.0, 2.0]]
    assert rows(detect(boxes, logits, device)) == [(0, 0), (1, 1)]
    assert rows(detect(boxes, logits, device, class_agnostic=True)) == [(0, 0)]
    one = [[3.0, 2.0], [-9.0, -9.0]]
    assert rows(detect(boxes, one, device, multi_label=True)) == [(0, 0), (0, 1)]
    assert rows(detect(boxes, one, device, multi_label=True, class_agnostic=True)) == [(0, 0)]


def test_candidates_beyond_the_first_are_reached(device: str) -> None:
    """Hundreds of copies of one box rank above the second place: NMS goes on past every block of candidates."""
    boxes = [[0.0, 0.0, 10.0, 10.0]] * 2999 + [[100.0, 0.0, 110.0, 10.0]]
    logits = [5.0 - i / 1000 for i in range(3000)]
    assert indices(detect(boxes, logits, device)) == [0, 2999]
    assert indices(detect(boxes, logits, device, max_candidates=2999)) == [0]


@pytest.mark.parametrize("layout", [channels_last, transposed, cropped])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layout_does_not_change_the_result(device: str, layout: Any, dtype: torch.dtype) -> None:
    inputs = random_maps(torch.Generator().manual_seed(0), batch=3, num_classes=19, sizes=((19, 33), (7, 5)))

    def lay_out(maps: list[Tensor], layout: Any) -> list[Tensor]:
        return [layout(x.to(device, dtype)) for x in maps]

    plain = {name: lay_out(inputs[name], torch.clone) for name in ("box_maps", "cls_maps")}
    other = {name: lay_out(inputs[name], layout) for name in ("box_maps", "cls_maps")}
    assert not any(x.is_contiguous() for x in other["cls_maps"])
    for expected, actual in zip(
        decode_nms(**plain, strides=inputs["strides"], multi_label=True),
        decode_nms(**other, strides=inputs["strides"], multi_label=True),
        strict=True,
    ):
        assert torch.equal(actual, expected)


def test_levels_of_different_layouts(device: str) -> None:
    inputs = random_maps(torch.Generator().manual_seed(0), batch=2, num_classes=5)
    expected = decode_nms(**inputs)
    for name in ("box_maps", "cls_maps"):
        first, second, third = (x.to(device) for x in inputs[name])
        inputs[name] = [first, channels_last(second), cropped(third)]
    actual = decode_nms(**inputs)
    assert torch.equal(actual.indices.cpu(), expected.indices)
    torch.testing.assert_close(actual.boxes.cpu(), expected.boxes, rtol=1e-5, atol=1e-4)


def test_expanded_batch(device: str) -> None:
    inputs = random_maps(torch.Generator().manual_seed(0), num_classes=5)
    for name in ("box_maps", "cls_maps"):
        inputs[name] = [x.to(device).expand(3, -1, -1, -1) for x in inputs[name]]
    detections = decode_nms(**inputs)
    assert detections.num_dets[0] > 0
    assert all((value == value[0]).all() for value in detections)
