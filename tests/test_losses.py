# SPDX-License-Identifier: AGPL-3.0-or-later
"""The losses of the class scores, and ultralytics' criterion under fastyolo's settings."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn import functional

pytest.importorskip("ultralytics")

from detectors import SIZE, detector, scenes, without_objects
from ultralytics.utils.loss import v8DetectionLoss

from fastyolo.integrations.ultralytics.loss import Assigner, DetectionLoss, PositiveCounter
from fastyolo.train.losses import class_loss, focal_loss, smooth_labels, varifocal_loss
from fastyolo.train.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


def pair(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [7, 5] and soft targets, of which most are 0 and one is 1."""
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 5, generator=random, dtype=torch.float64)
    targets = torch.zeros(7, 5, dtype=torch.float64)
    targets[0, 0], targets[1, 3], targets[2, 3], targets[6, 4] = 1.0, 0.7, 0.2, 0.45
    return logits.to(dtype), targets.to(dtype)


# ---- the losses


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.75])
def test_focal_loss_is_that_of_the_paper_for_hard_targets(gamma, alpha):
    logits, targets = pair()
    targets = targets.round()
    p = logits.sigmoid()
    p_t = torch.where(targets == 1, p, 1 - p)
    alpha_t = torch.where(targets == 1, alpha, 1 - alpha) if alpha else 1.0
    expected = -alpha_t * (1 - p_t) ** gamma * p_t.log()
    torch.testing.assert_close(focal_loss(logits, targets, gamma=gamma, alpha=alpha), expected)


def test_focal_loss_is_least_at_a_soft_target():
    _, targets = pair()
    soft = targets[(targets > 0) & (targets < 1)]
    logits = soft.logit().requires_grad_()
    at_target = focal_loss(logits, soft, gamma=2.0, alpha=0.75)
    (slope,) = torch.autograd.grad(at_target.sum(), logits)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-5, rtol=0)
    for step in (-0.1, 0.1):
        assert (focal_loss(logits + step, soft, gamma=2.0, alpha=0.75) > at_target).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_varifocal_loss_is_that_of_the_paper(gamma):
    logits, q = pair()
    p = logits.sigmoid()
    positive = -q * (q * p.log() + (1 - q) * (1 - p).log())
    negative = -0.75 * p**gamma * (1 - p).log()
    expected = torch.where(q > 0, positive, negative)
    torch.testing.assert_close(varifocal_loss(logits, q, gamma=gamma, alpha=0.75), expected)


def test_varifocal_loss_takes_its_positives_from_the_caller():
    logits, targets = pair()
    loss = varifocal_loss(logits, smooth_labels(targets, 0.3), gamma=2.0, alpha=0.75, positives=targets > 0)
    row = 1  # class 3 is the object's; the others have a target, and are negatives all the same
    q, p = smooth_labels(targets, 0.3)[row], logits[row].sigmoid()
    cross = -(q * p.log() + (1 - q) * (1 - p).log())
    weights = 0.75 * p**2
    weights[3] = q[3]
    torch.testing.assert_close(loss[row], weights * cross)


@pytest.mark.parametrize("loss", [focal_loss, varifocal_loss])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients(loss, gamma):
    logits, targets = pair()
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, gamma=gamma, alpha=0.75), logits.requires_grad_())


@pytest.mark.parametrize("loss", [focal_loss, varifocal_loss])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits(loss, gamma, dtype):
    logits = torch.tensor([-3e4, -120.0, -20.0, 0.0, 20.0, 120.0, 3e4], dtype=dtype).expand(3, -1).clone()
    targets = torch.tensor([[0.0], [0.5], [1.0]], dtype=dtype).expand(3, 7)
    logits.requires_grad_()
    value = loss(logits, targets, gamma=gamma, alpha=0.75)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    assert logits.grad.isfinite().all()
    assert (value >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["bce", "focal", "varifocal"])
def test_half_precision_is_computed_in_float32(kind, dtype):
    settings = Settings(cls_loss=kind, label_smoothing=0.1)
    logits, targets = pair(dtype)
    actual = class_loss(logits, targets, settings)
    torch.testing.assert_close(actual, class_loss(logits.float(), targets.float(), settings), rtol=0, atol=0)


def test_label_smoothing():
    _, targets = pair()
    smooth = smooth_labels(targets, 0.2)
    torch.testing.assert_close(smooth.sum(-1), targets.sum(-1))
    torch.testing.assert_close(smooth[0], torch.tensor([0.84, 0.04, 0.04, 0.04, 0.04], dtype=torch.float64))
    assert (smooth[targets.sum(-1) == 0] == 0).all()
    assert torch.equal(smooth_labels(targets, 0.0), targets)


def test_class_loss_does_what_the_settings_say():
    logits, targets = pair()
    smooth = smooth_labels(targets, 0.1)
    cases = [
        (Settings(), functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")),
        (
            Settings(label_smoothing=0.1),
            functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none"),
        ),
        (
            Settings(cls_loss="focal", cls_gamma=1.5, cls_alpha=0.3, label_smoothing=0.1),
            focal_loss(logits, smooth, gamma=1.5, alpha=0.3),
        ),
        (
            Settings(cls_loss="varifocal", cls_gamma=1.5, cls_alpha=0.3, label_smoothing=0.1),
            varifocal_loss(logits, smooth, gamma=1.5, alpha=0.3, positives=targets > 0),
        ),
    ]
    for settings, expected in cases:
        assert torch.equal(class_loss(logits, targets, settings), expected)


# ---- the criterion


@pytest.fixture(scope="module")
def model() -> Any:
    return detector()


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    return scenes(4)


@pytest.fixture(scope="module")
def raw(model, batch) -> dict[str, Any]:
    """Raw outputs in which every anchor's scores and distributions differ."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        outputs = model(batch["img"])
    for name in ("boxes", "scores"):
        outputs[name] = outputs[name] + torch.randn(outputs[name].shape, generator=random)
    return outputs


def losses(criterion: Any, raw: dict[str, Any], batch: Any) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
    """The loss, its items, and the gradient of the sum by the scores and boxes."""
    leaves = {name: raw[name].detach().clone().requires_grad_() for name in ("boxes", "scores")}
    loss, items = criterion({**raw, **leaves}, batch)
    gradients = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
    return loss.detach(), items, torch.cat([g.flatten() for g in gradients if g is not None])


def assert_same(actual: Any, expected: Any) -> None:
    assert torch.equal(actual[0], expected[0])
    assert actual[1].keys() == expected[1].keys()
    assert all(torch.equal(actual[1][name], expected[1][name]) for name in expected[1])
    assert torch.equal(actual[2], expected[2])


@pytest.mark.parametrize("empty", [(), (1,), (0, 1, 2, 3)], ids=str)
def test_default_settings_are_stock(model, raw, batch, empty):
    batch = without_objects(batch, empty)
    expected = losses(v8DetectionLoss(model), raw, batch)
    assert_same(losses(DetectionLoss(model, Settings()), raw, batch), expected)
    assert expected[0].isfinite().all()


@pytest.mark.parametrize("name", ["yolov8n-p2", "yolo26n"])
def test_default_settings_are_stock_for_other_heads(name, batch):
    """Four levels; and yolo26n's reg_max of 1, without its one-to-one branches."""
    model = detector(name, end2end=False)
    with torch.no_grad():
        raw = model(batch["img"])
    assert_same(losses(DetectionLoss(model, Settings()), raw, batch), losses(v8DetectionLoss(model), raw, batch))


def test_default_settings_are_stock_in_autocast(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        raw = model(batch["img"])
        actual = losses(DetectionLoss(model, Settings()), raw, batch)
        expected = losses(v8DetectionLoss(model), raw, batch)
    assert raw["scores"].dtype == torch.bfloat16
    assert_same(actual, expected)


@pytest.mark.parametrize(
    "change",
    [
        {"cls_loss": "focal"},
        {"cls_loss": "focal", "cls_gamma": 1.0},
        {"cls_loss": "focal", "cls_alpha": 0.0},
        {"cls_loss": "varifocal"},
        {"cls_loss": "varifocal", "cls_gamma": 1.0},
        {"cls_loss": "varifocal", "cls_alpha": 0.5},
        {"label_smoothing": 0.1},
        {"class_weights": [1.0, 2.0, 0.5]},
    ],
    ids=str,
)
def test_settings_of_the_class_loss_change_it_alone(model, raw, batch, change):
    stock, mine = (losses(DetectionLoss(model, settings), raw, batch) for settings in (Settings(), Settings(**change)))
    assert mine[1]["cls_loss"] != stock[1]["cls_loss"]
    assert mine[1]["cls_loss"].isfinite()
    for name in ("box_loss", "dfl_loss"):
        assert torch.equal(mine[1][name], stock[1][name])


def test_the_class_loss_is_summed_and_normalised_as_stock(model, raw, batch):
    criterion = DetectionLoss(model, Settings(cls_loss="varifocal"))
    assigned = []
    criterion.assigner.register_forward_hook(lambda module, inputs, outputs: assigned.append(outputs[2]))
    items = criterion(raw, batch)[1]
    targets = assigned[0]
    loss = varifocal_loss(raw["scores"].permute(0, 2, 1), targets, gamma=2.0, alpha=0.75)
    torch.testing.assert_close(items["cls_loss"], model.args.cls * loss.sum() / targets.sum().clamp(min=1))


@pytest.mark.parametrize(
    "change", [{"tal_topk": 3}, {"tal_alpha": 1.0}, {"tal_beta": 2.0}, {"tal_topk": 15, "tal_beta": 4.0}], ids=str
)
def test_settings_of_the_assigner_are_ultralytics_own(model, raw, batch, change):
    settings = Settings(**change)
    stock = v8DetectionLoss(model, tal_topk=settings.tal_topk)
    stock.assigner.alpha, stock.assigner.beta = settings.tal_alpha, settings.tal_beta
    mine = losses(DetectionLoss(model, settings), raw, batch)
    assert_same(mine, losses(stock, raw, batch))
    assert not torch.equal(mine[0], losses(v8DetectionLoss(model), raw, batch)[0])


def test_more_anchors_asked_for_than_there_are(model, raw, batch):
    anchors = raw["scores"].shape[-1]
    most, more = (
        losses(DetectionLoss(model, Settings(tal_topk=topk)), raw, batch) for topk in (anchors, anchors + 1000)
    )
    assert_same(more, most)


def candidates(radius: float, boxes: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidates [objects, A] of an image of 64 pixels at strides 8, 16 and 32; the anchors' points and strides."""
    points, strides = [], []
    for stride in (8, 16, 32):
        centres = (torch.arange(SIZE // stride) + 0.5) * stride
        points.append(torch.cartesian_prod(centres, centres).flip(1))
        strides.append(torch.full((len(points[-1]),), float(stride)))
    points, strides = torch.cat(points), torch.cat(strides)
    assigner = Assigner(radius=radius, topk=10, num_classes=3, stride=[8, 16, 32])
    assigner.anc_strides = strides
    boxes = torch.tensor([boxes])
    return assigner.select_candidates_in_gts(points, boxes, torch.ones(1, boxes.shape[1], 1))[0], points, strides


@pytest.mark.parametrize("radius", [0.5, 1.0, 1.5, 2.0])
def test_the_radius_limits_candidates_in_strides(radius):
    boxes = [[4.0, 6.0, 60.0, 50.0], [20.0, 20.0, 45.0, 60.0]]
    actual, points, strides = candidates(radius, boxes)
    within, _, _ = candidates(0.0, boxes)
    for row, (left, top, right, bottom) in enumerate(boxes):
        for anchor, ((x, y), stride) in enumerate(zip(points.tolist(), strides.tolist(), strict=True)):
            near = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)) <= radius * stride
            assert actual[row, anchor] == (near and within[row, anchor])
    assert (actual.sum(1) > 0).all()
    assert actual[0].sum() < within[0].sum()


def test_small_objects_keep_their_candidates():
    boxes = [[5.0, 5.0, 7.0, 7.0], [0.0, 0.0, 3.0, 64.0], [14.0, 14.0, 18.0, 18.0], [4.0, 4.0, 60.0, 60.0]]
    within, _, _ = candidates(0.0, boxes)
    actual, _, _ = candidates(0.1, boxes)
    assert (within.sum(1) > 0).all()
    assert (actual.sum(1) > 0).all()
    assert torch.equal(actual[0], within[0])  # no anchor is within 0.8 pixels of (6, 6)


def test_the_radius_changes_the_assignment(model, raw, batch):
    limited, wide, stock = (
        losses(DetectionLoss(model, Settings(tal_radius=radius)), raw, batch) for radius in (0.5, 1000.0, 0.0)
    )
    assert not torch.equal(limited[0], stock[0])
    assert_same(wide, stock)


def test_class_weights_are_those_of_cls_pw(model, raw, batch):
    weights = [0.5, 2.0, 0.0]
    weighted = copy.deepcopy(model)
    weighted.class_weights = torch.tensor(weights)
    mine = DetectionLoss(model, Settings(class_weights=weights))
    assert_same(losses(mine, raw, batch), losses(v8DetectionLoss(weighted), raw, batch))
    assert_same(losses(DetectionLoss(weighted, Settings()), raw, batch), losses(mine, raw, batch))
    with pytest.raises(ValueError, match="class_weights must not be given with cls_pw"):
        DetectionLoss(weighted, Settings(class_weights=weights))


def test_class_weights_are_one_for_each_class(model):
    with pytest.raises(ValueError, match=r"class_weights must be one for each of the 3 classes, got 2; .*\.$"):
        DetectionLoss(model, Settings(class_weights=[1.0, 1.0]))


def test_end_to_end_heads_are_refused():
    with pytest.raises(ValueError, match="model must have no one-to-one branches, got an end-to-end head"):
        DetectionLoss(detector("yolo26n"), Settings())


def test_copies_compute_the_same(model, raw, batch):
    settings = Settings(cls_loss="focal", label_smoothing=0.1, class_weights=[1.0, 2.0, 3.0], tal_radius=2.5)
    criterion = DetectionLoss(model, settings)
    with torch.inference_mode():  # as in validation, whose tensors the copies of a checkpoint may meet
        criterion(raw, batch)
    expected = losses(criterion, raw, batch)
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert_same(losses(twin, raw, batch), expected)


def test_positives_are_counted_as_they_are_assigned(model, raw, batch):
    criterion = DetectionLoss(model, Settings())
    criterion.assigner.counter = counter = PositiveCounter(model.stride.tolist())
    assigned: list[Any] = []
    add = counter.add

    def watch(*arguments: Any) -> None:
        assigned.append(arguments)
        add(*arguments)

    counter.add = watch
    assert counter.total() is None
    batch = without_objects(batch, (2,))
    criterion(raw, batch)
    with torch.no_grad():  # as in validation
        criterion(raw, batch)
    ((boxes, _, strides, positive, targets),) = assigned
    total = counter.total()
    assert total.images == len(boxes) == 4
    for stride, count in total.by_level.items():
        assert count == sum(
            bool(chosen) and own == float(stride) for row in positive for chosen, own in zip(row, strides, strict=True)
        )
    sizes = Counter()
    for image, row in enumerate(boxes.tolist()):
        hit = set(targets[image][positive[image]].tolist())
        for index, (x1, y1, x2, y2) in enumerate(row):
            if x2 > 0:  # no padding
                size = "small" if (x2 - x1) * (y2 - y1) < 32**2 else "medium"
                sizes[size] += 1
                sizes[size, "without"] += index not in hit
    assert sizes["small"] > 0
    for size, coverage in total.objects.items():
        assert (coverage.objects, coverage.without) == (sizes[size], sizes[size, "without"])


def test_objects_without_positives_are_counted():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 60, 60], [0, 0, 0, 0]]])
    counter = PositiveCounter([8, 16])
    positive, targets = torch.tensor([[False, True, True]]), torch.tensor([[0, 1, 1]])
    counter.add(boxes, torch.tensor([[[1.0], [1], [0]]]), torch.tensor([8.0, 8, 16]), positive, targets)
    counted = counter.total()
    assert counted.by_level == {"8": 1, "16": 1}
    assert [(size.objects, size.without) for size in counted.objects.values()] == [(1, 1), (1, 0), (0, 0)]


def test_images_without_objects_are_counted(model, raw, batch):
    criterion = DetectionLoss(model, Settings())
    criterion.assigner.counter = counter = PositiveCounter(model.stride.tolist())
    criterion(raw, without_objects(batch, (0, 1, 2, 3)))
    counted = counter.total()
    assert counted.images == 4
    assert not any(counted.by_level.values())
    assert not any(size.objects for size in counted.objects.values())
