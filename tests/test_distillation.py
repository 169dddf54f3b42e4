# SPDX-License-Identifier: AGPL-3.0-or-later
"""The terms of distillation against plain formulas, and the pair of student and teacher inside ultralytics."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

pytest.importorskip("ultralytics")

from detectors import NAMES, detector, scenes, set_statistics, train, without_objects
from ultralytics import YOLO
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import ClassificationModel, DetectionModel, SegmentationModel, torch_safe_load
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.torch_utils import ModelEMA, profile_ops, strip_optimizer

from fastyolo.integrations.ultralytics.distillation import LOSS_NAMES, Distillation, load_teacher
from fastyolo.integrations.ultralytics.loss import DetectionLoss
from fastyolo.train.distillation import anchor_masks, box_term, class_term, feature_term, ramp
from fastyolo.train.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


def random_pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, *shape, generator=random, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype)


MASK = torch.tensor([[0.0, 1.0, 0.5, 0.0, 0.25], [1.0, 0.0, 0.0, 0.75, 0.0]], dtype=torch.float64)


# ---- the terms


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_class_term_bce(temperature):
    student, teacher = random_pair(2, 3, 5)
    student.requires_grad_()
    term = class_term(student, teacher, MASK, kind="bce", temperature=temperature)
    p, q = (student / temperature).sigmoid(), (teacher / temperature).sigmoid()
    divergence = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    expected = temperature**2 * (divergence.sum(1) * MASK).sum() / MASK.sum()
    torch.testing.assert_close(term, expected)
    cross = functional.binary_cross_entropy_with_logits(student / temperature, q, reduction="none").sum(1)
    plain = temperature**2 * (cross * MASK).sum() / MASK.sum()
    gradients = [torch.autograd.grad(value, student)[0] for value in (term, plain)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_class_term_kl(temperature):
    student, teacher = random_pair(2, 3, 5)
    term = class_term(student, teacher, MASK, kind="kl", temperature=temperature)
    expected = 0.0
    for image, anchor in MASK.nonzero().tolist():
        log_p, log_q = ((x[image, :, anchor] / temperature).log_softmax(0) for x in (student, teacher))
        kl = functional.kl_div(log_p, log_q.exp(), reduction="sum")
        expected += temperature**2 * MASK[image, anchor] * kl / MASK.sum()
    torch.testing.assert_close(term, expected)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_box_term(temperature):
    bins = 6
    student, teacher = random_pair(2, 4 * bins, 5)
    term = box_term(student, teacher, MASK, temperature=temperature)
    expected = 0.0
    for image, anchor in MASK.nonzero().tolist():
        for side in range(4):  # left, top, right, bottom
            rows = slice(side * bins, (side + 1) * bins)
            p, q = ((x[image, rows, anchor] / temperature).softmax(0) for x in (student, teacher))
            expected += temperature**2 * MASK[image, anchor] * (q * (q / p).log()).sum() / 4 / MASK.sum()
    torch.testing.assert_close(term, expected)


def test_feature_term_is_one_minus_the_correlation():
    student, teacher = random_pair(2, 3, 4, 5)
    teacher = 50 * teacher + student * torch.tensor([0.0, 100.0, -100.0]).view(1, 3, 1, 1) + 7
    correlations = [
        torch.corrcoef(torch.stack([x[:, channel].flatten() for x in (student, teacher)]))[0, 1] for channel in range(3)
    ]
    expected = 1 - torch.stack(correlations).mean()
    torch.testing.assert_close(feature_term(student, teacher), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(feature_term(3 * student - 2, teacher), expected, rtol=1e-4, atol=0)


def test_terms_are_zero_where_both_agree():
    same, _ = random_pair(2, 12, 5)
    for kind in ("bce", "kl"):
        assert class_term(same, same, MASK, kind=kind, temperature=2.0).abs() < 1e-12
    assert box_term(same, same, MASK, temperature=2.0).abs() < 1e-12
    assert feature_term(same[..., None], 3 * same[..., None] + 1).abs() < 1e-5


@pytest.mark.parametrize(
    "term",
    [
        lambda s, t: class_term(s, t, MASK, kind="bce", temperature=2.0),
        lambda s, t: class_term(s, t, MASK, kind="kl", temperature=2.0),
        lambda s, t: box_term(s, t, MASK, temperature=2.0),
        lambda s, t: feature_term(s[..., None], t[..., None]),
    ],
    ids=["bce", "kl", "box", "feat"],
)
def test_gradients_of_the_terms(term):
    student, teacher = random_pair(2, 12, 5)
    assert torch.autograd.gradcheck(lambda x: term(x, teacher), student.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    student, teacher = random_pair(2, 12, 5, dtype=dtype)
    mask = MASK.float()
    for term in (
        lambda s, t: class_term(s, t, mask, kind="bce", temperature=2.0),
        lambda s, t: class_term(s, t, mask, kind="kl", temperature=2.0),
        lambda s, t: box_term(s, t, mask, temperature=2.0),
        lambda s, t: feature_term(s[..., None], t[..., None]),
    ):
        value = term(student, teacher)
        assert value.dtype == torch.float32
        assert torch.equal(value, term(student.float(), teacher.float()))


def test_terms_of_an_empty_mask_and_of_constant_features():
    student, teacher = random_pair(2, 12, 5)
    student.requires_grad_()
    empty = torch.zeros_like(MASK)
    flat = torch.zeros(2, 12, 5, 1, dtype=torch.float64)
    total = (
        class_term(student, teacher, empty, kind="bce", temperature=1.0)
        + box_term(student, teacher, empty, temperature=1.0)
        + feature_term(student[..., None], flat)
        + feature_term(0 * student[..., None], flat)
    )
    (gradient,) = torch.autograd.grad(total, student)
    assert total.isfinite()
    assert gradient.isfinite().all()


def test_masks():
    student = torch.tensor([[[-9.0, 2.0, 0.0, -9.0], [-8.0, -9.0, 1.0, -9.0]]])
    teacher = torch.tensor([[[1.0, -2.0, -4.0, -9.0], [-9.0, 0.5, -5.0, -4.0]]])
    foreground = torch.tensor([[True, False, False, True]])

    for least in (0.0, 0.05):
        for_class, for_box = anchor_masks("confidence", student, teacher, foreground, least)
        best = torch.tensor([[1.0, 0.5, -4.0, -4.0]]).sigmoid()
        best[best < least] = 0
        torch.testing.assert_close(for_box, best)
        own = torch.tensor([[-8.0, 2.0, 1.0, -9.0]]).sigmoid()  # what the student alone sees counts in the class term
        own[own < least] = 0
        torch.testing.assert_close(for_class, torch.maximum(own, best))

    for mask in anchor_masks("positives", student, teacher, foreground, 0.05):
        assert torch.equal(mask, foreground.float())
    for mask in anchor_masks("all", student, teacher, foreground, 0.05):
        assert torch.equal(mask, torch.ones(1, 4))


def test_masks_have_no_gradient():
    student, teacher = random_pair(2, 3, 5)
    student.requires_grad_()
    assert not any(mask.requires_grad for mask in anchor_masks("confidence", student, teacher, MASK > 0, 0.05))


def test_ramp():
    assert [ramp(epoch, 4) for epoch in (0, 1, 2.5, 4, 9)] == [0, 0.25, 0.625, 1, 1]
    assert ramp(0, 0) == 1


# ---- student and teacher


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    return scenes(4)


@pytest.fixture(scope="module")
def teachers(batch) -> dict[str, DetectionModel]:
    """Wider than the student, untrained, with scores and features that tell cells apart."""
    models = {}
    for name in ("yolov8n", "yolov8n-p6", "yolo26n"):
        changes = {"reg_max": 16} if name == "yolo26n" else {}
        model = models[name] = detector(name, width=0.15, seed=1, **changes)
        set_statistics(model, scenes(2, 128))
        with torch.no_grad():
            for branch in model.model[-1].cv3:
                branch[-1].weight.mul_(3)
                branch[-1].bias.fill_(-1)
    return models


@pytest.fixture
def teacher(teachers) -> DetectionModel:
    return copy.deepcopy(teachers["yolov8n"])


def kd_items(model: Distillation, batch: dict[str, Tensor]) -> dict[str, float]:
    items = model.train()(batch)[1]
    return {name: items[name].item() for name in LOSS_NAMES}


def raw(model: DetectionModel, images: Tensor) -> dict[str, Any]:
    """Raw one-to-many outputs of an evaluation."""
    with torch.no_grad():
        outputs = model.eval()(images)[1]
    return outputs.get("one2many", outputs)


def test_losses_are_the_students_and_three_more(teacher, batch):
    student = detector()
    outputs = student(batch["img"])
    expected, expected_items = v8DetectionLoss(student)(outputs, batch)
    model = Distillation(student, teacher, Settings()).train()
    loss, items = model.loss(batch, outputs)
    assert list(items) == ["box_loss", "cls_loss", "dfl_loss", "kd_cls", "kd_box", "kd_feat"]
    assert torch.equal(loss[:3], expected)
    assert all(torch.equal(items[name], value) for name, value in expected_items.items())
    for value, name in zip(loss[3:], LOSS_NAMES, strict=True):
        torch.testing.assert_close(value, items[name] * 4)
        assert items[name] > 0.01
        assert not items[name].requires_grad


def test_losses_are_the_weighted_terms(teacher, batch):
    settings = Settings(
        kd_cls=0.5, kd_box=2.0, kd_feat=3.0, kd_cls_temperature=2.0, kd_box_temperature=1.5, kd_min_confidence=0.3
    )
    student = detector()
    model = Distillation(student, teacher, settings).train()
    ours, theirs = student(batch["img"]), raw(copy.deepcopy(teacher), batch["img"])
    ours["scores"] = ours["scores"] + torch.linspace(0, 12, 84)  # as sure of some anchors as the teacher, and surer
    items = model.loss(batch, ours)[1]
    masks = anchor_masks("confidence", ours["scores"], theirs["scores"], torch.zeros(4, 84, dtype=torch.bool), 0.3)
    assert 0 < (masks[0] > masks[1]).sum() < masks[0].numel()
    expected = {
        "kd_cls": 0.5 * class_term(ours["scores"], theirs["scores"], masks[0], kind="bce", temperature=2.0),
        "kd_box": 2.0 * box_term(ours["boxes"], theirs["boxes"], masks[1], temperature=1.5),
        "kd_feat": sum(
            feature_term(adapter(x), y)
            for adapter, x, y in zip(model.projector, ours["feats"], theirs["feats"], strict=True)
        ),
    }
    for name, value in expected.items():
        torch.testing.assert_close(items[name], value.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_a_weight_of_zero_drops_its_term_alone(teacher, batch, name):
    student = detector()
    torch.manual_seed(0)
    stock = kd_items(Distillation(copy.deepcopy(student), teacher, Settings()), batch)
    torch.manual_seed(0)
    model = Distillation(copy.deepcopy(student), teacher, Settings(**{name: 0.0}))
    assert kd_items(model, batch) == {**stock, name: 0.0}
    assert len(model.projector) == (0 if name == "kd_feat" else 3)


def test_each_setting_changes_its_term_alone(teacher, batch):
    student = detector()
    for changes, names in [
        ({"kd_cls_loss": "kl"}, {"kd_cls"}),
        ({"kd_cls_temperature": 2.0}, {"kd_cls"}),
        ({"kd_box_temperature": 2.0}, {"kd_box"}),
        ({"kd_mask": "all"}, {"kd_cls", "kd_box"}),
        ({"kd_mask": "positives"}, {"kd_cls", "kd_box"}),
        ({"kd_min_confidence": 0.6}, {"kd_cls", "kd_box"}),
    ]:
        results = []
        for settings in (Settings(), Settings(**changes)):
            torch.manual_seed(0)
            results.append(kd_items(Distillation(copy.deepcopy(student), teacher, settings), batch))
        assert {name for name in LOSS_NAMES if results[0][name] != results[1][name]} == names, changes


def test_positives_are_where_the_assigner_puts_objects(teacher, batch):
    student = detector()
    outputs, theirs = student(batch["img"]), raw(copy.deepcopy(teacher), batch["img"])
    criterion = DetectionLoss(student, Settings(tal_topk=3))
    foreground = criterion.get_assigned_targets_and_loss(outputs, batch)[0][0]
    student.criterion = criterion
    items = Distillation(student, teacher, Settings(kd_mask="positives")).train().loss(batch, outputs)[1]
    expected = box_term(outputs["boxes"], theirs["boxes"], foreground.float(), temperature=1.0)
    torch.testing.assert_close(items["kd_box"], expected.detach(), rtol=1e-4, atol=1e-6)
    assert not criterion.assigner._forward_hooks


def test_gradients_reach_the_student_and_the_adapters_only(teacher, batch):
    model = Distillation(detector(), teacher, Settings()).train()
    before = copy.deepcopy(teacher.state_dict())
    model(batch)[0][3:].sum().backward()
    for module in (model.student_model, model.projector):
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
        assert sum(parameter.grad.abs().sum() for parameter in trained) > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    after = teacher.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("empty", [(1,), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("mask", ["confidence", "positives", "all"])
def test_images_without_objects(teacher, batch, mask, empty):
    model = Distillation(detector(), teacher, Settings(kd_mask=mask)).train()
    loss, items = model(without_objects(batch, empty))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    if mask == "positives" and len(empty) == 4:
        assert items["kd_cls"] == items["kd_box"] == 0


def test_without_labels_the_teacher_is_all_there_is(teacher, batch):
    results = {}
    for labels in (True, False):
        torch.manual_seed(0)
        model = Distillation(detector(), copy.deepcopy(teacher), Settings(kd_labels=labels)).train()
        loss, items = model(batch)
        (loss[3:] if labels else loss).sum().backward()
        results[labels] = items, [p.grad for p in model.parameters() if p.grad is not None]
        assert labels or (loss[:3] == 0).all()
    assert results[False][0] == results[True][0]  # the student's losses are measured all the same
    for mine, expected in zip(results[False][1], results[True][1], strict=True):
        assert torch.equal(mine, expected)


def test_ramp_of_the_weights(teacher, batch):
    model = Distillation(detector(), teacher, Settings(kd_ramp_epochs=4.0))
    full = kd_items(Distillation(model.student_model, teacher, Settings(kd_feat=0.0)), batch)["kd_box"]
    for epoch, share in ((0.0, 0.0), (1.0, 0.25), (4.0, 1.0), (50.0, 1.0)):
        model.epoch = epoch
        assert kd_items(model, batch)["kd_box"] == pytest.approx(share * full, rel=1e-3)


def test_in_evaluation_the_teacher_is_not_asked(teacher, batch):
    student = detector()
    model = Distillation(student, teacher, Settings()).eval()
    model.teacher_model = None  # as in the copy that ultralytics validates
    with torch.inference_mode():
        predictions = model(batch["img"])
        loss, items = model.loss(batch, predictions)
        expected, expected_items = student.loss(batch, predictions)
        assert torch.equal(predictions[0], student(batch["img"])[0])
    assert torch.equal(loss, torch.cat((expected, torch.zeros(3))))
    assert items == {**expected_items, **dict.fromkeys(LOSS_NAMES, torch.tensor(0.0))}


@pytest.mark.parametrize(
    ("name", "strides"), [("yolov8n-p2", [8, 16, 32]), ("yolov8n-p6", [8, 16, 32]), ("p45", [16, 32])]
)
def test_levels_are_matched_by_stride(teacher, batch, name, strides):
    """A student with levels that the teacher lacks, and one that lacks a level; the shared anchors alone count."""
    if name == "p45":
        student = detector(head=[*detector().yaml["head"][:-1], [[18, 21], 1, "Detect", ["nc"]]])
    else:
        student = detector(name)
    images = scenes(4, 128 if name == "yolov8n-p6" else 64)
    model = Distillation(student, teacher, Settings(kd_mask="all")).train()
    ours, theirs = student(images["img"]), raw(copy.deepcopy(teacher), images["img"])
    items = model.loss(images, ours)[1]

    def shared(outputs: dict[str, Any], of: DetectionModel, kind: str) -> Tensor:
        parts = outputs[kind].split([x.shape[2] * x.shape[3] for x in outputs["feats"]], -1)
        return torch.cat([part for part, s in zip(parts, of.stride.tolist(), strict=True) if s in strides], -1)

    pairs = {kind: (shared(ours, student, kind), shared(theirs, teacher, kind)) for kind in ("scores", "boxes")}
    mask = torch.ones_like(pairs["boxes"][0][:, 0])
    expected = class_term(*pairs["scores"], mask, kind="bce", temperature=1.0)
    torch.testing.assert_close(items["kd_cls"], expected.detach(), rtol=1e-4, atol=1e-6)
    expected = box_term(*pairs["boxes"], mask, temperature=1.0)
    torch.testing.assert_close(items["kd_box"], expected.detach(), rtol=1e-4, atol=1e-6)
    assert len(model.projector) == len(strides)
    assert items["kd_feat"] > 0


def test_a_teacher_with_a_larger_stride_sees_padded_images(teachers):
    """A teacher with a level of stride 64 takes no image of 96 pixels as it is."""
    teacher, student, images = copy.deepcopy(teachers["yolov8n-p6"]), detector(), scenes(2, 96)
    model = Distillation(student, teacher, Settings(kd_mask="all")).train()
    ours = student(images["img"])
    theirs = raw(copy.deepcopy(teacher), functional.pad(images["img"], (0, 32, 0, 32)))
    items = model.loss(images, ours)[1]
    sizes = (16, 8, 4)
    parts = theirs["boxes"].split([16**2, 8**2, 4**2, 2**2], -1)[:3]
    cropped = [
        part.unflatten(-1, (size, size))[..., : size * 3 // 4, : size * 3 // 4].flatten(-2)
        for part, size in zip(parts, sizes, strict=True)
    ]
    expected = box_term(ours["boxes"], torch.cat(cropped, -1), torch.ones(2, 189), temperature=1.0)
    torch.testing.assert_close(items["kd_box"], expected.detach(), rtol=1e-4, atol=1e-6)


def test_classes_in_another_order(teacher, batch):
    order = [2, 0, 1]  # the teacher's class of each of the new ones
    permuted = copy.deepcopy(teacher)
    permuted.names = {new: NAMES[old] for new, old in enumerate(order)}
    with torch.no_grad():
        for branch in permuted.model[-1].cv3:
            branch[-1].weight.copy_(branch[-1].weight[order])
            branch[-1].bias.copy_(branch[-1].bias[order])
    results = []
    for model in (teacher, permuted):
        torch.manual_seed(0)
        results.append(kd_items(Distillation(detector(), model, Settings()), batch))
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    permuted.names = teacher.names
    assert kd_items(Distillation(detector(), permuted, Settings()), batch)["kd_cls"] != pytest.approx(
        results[0]["kd_cls"], rel=1e-3
    )


def test_end_to_end_models_compare_their_one_to_many_branches(teachers, batch):
    teacher, student = copy.deepcopy(teachers["yolo26n"]), detector("yolo26n", reg_max=16)
    outputs, theirs = student(batch["img"]), raw(copy.deepcopy(teacher), batch["img"])
    expected, expected_items = student.loss(batch, outputs)
    model = Distillation(student, teacher, Settings(kd_mask="positives")).train()
    loss, items = model.loss(batch, outputs)
    assert torch.equal(loss[:3], expected)
    assert expected_items.items() <= items.items()
    criterion = student.criterion.one2many
    foreground = criterion.get_assigned_targets_and_loss(outputs["one2many"], batch)[0][0].float()
    expected = box_term(outputs["one2many"]["boxes"], theirs["boxes"], foreground, temperature=1.0)
    torch.testing.assert_close(items["kd_box"], expected.detach(), rtol=1e-4, atol=1e-6)


def test_autocast_on_a_cpu(teacher, batch):
    model = Distillation(detector(), teacher, Settings()).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss, items = model(batch)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert all(items[name] > 0 for name in LOSS_NAMES)


@pytest.mark.cuda
def test_the_teacher_has_the_precision_of_the_training_on_cuda(teacher, batch):
    student = detector()
    torch.manual_seed(0)
    expected = kd_items(Distillation(copy.deepcopy(student), copy.deepcopy(teacher), Settings()), batch)
    torch.manual_seed(0)
    model = Distillation(student, teacher, Settings()).to("cuda")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            items = kd_items(model, {name: value.cuda() for name, value in batch.items()})
        assert next(teacher.parameters()).dtype == dtype
        assert items == pytest.approx(expected, rel=0.05)


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"reg_max": 8}, {}, "distill_model must have the student's reg_max of 16, got 8"),
        ({"reg_max": 1}, {"student": 1}, "kd_box must be 0 for heads with reg_max 1"),
        ({}, {"kd_labels": False, "kd_mask": "positives"}, "kd_mask must not be 'positives'"),
        ({}, {"kd_labels": False, "kd_cls": 0.0}, "kd_labels must be true when kd_cls or kd_box is 0"),
        ({}, {"kd_labels": False, "kd_box": 0.0}, "kd_labels must be true when kd_cls or kd_box is 0"),
    ],
)
def test_pairs_that_cannot_be_compared(changes, settings, message):
    settings = dict(settings)
    student = detector(**({"reg_max": settings.pop("student")} if "student" in settings else {}))
    with pytest.raises(ValueError, match=message):
        Distillation(student, detector(width=0.15, **changes), Settings(**settings))


def test_reg_max_matters_to_the_box_term_alone(batch):
    model = Distillation(detector(), detector(width=0.15, reg_max=8), Settings(kd_box=0.0, kd_mask="all"))
    items = kd_items(model, batch)
    assert items["kd_box"] == 0
    assert items["kd_cls"] > 0


def test_kl_needs_two_classes():
    student, teacher = detector(), detector()
    for model in (student, teacher):
        model.model[-1].nc, model.names = 1, {0: "item"}
    with pytest.raises(ValueError, match="kd_cls_loss must be 'bce' for a single class"):
        Distillation(student, teacher, Settings(kd_cls_loss="kl"))


def test_the_name_of_a_single_class_does_not_matter(batch):
    student, teacher = (DetectionModel("yolov8n.yaml", nc=1, verbose=False) for _ in range(2))
    student.names, teacher.names = {0: "item"}, {0: "red"}
    Distillation(student, teacher, Settings())
    teacher = detector()
    with pytest.raises(ValueError, match="the student's 1 class, in any order, but it has no 'item'"):
        Distillation(student, teacher, Settings())


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("red", "green", "cyan"), "no 'blue'"),
        (("red", "green"), "no 'blue'"),
        (("red", "green", "blue", "cyan"), "'cyan' besides"),
    ],
)
def test_other_classes_are_refused(names, difference):
    teacher = detector()
    teacher.names = dict(enumerate(names))
    expected = f"distill_model must have the student's 3 classes, in any order, but it has {difference}."
    with pytest.raises(ValueError, match=expected):
        Distillation(detector(), teacher, Settings())


def test_a_level_in_common_is_needed():
    teacher = detector()
    teacher.model[-1].stride = torch.tensor([4.0, 64.0, 128.0])
    with pytest.raises(ValueError, match=r"one of the student's strides \(8, 16, 32\), got 4, 64, 128"):
        Distillation(detector(), teacher, Settings())


def checkpoint(folder: Path, model: nn.Module) -> Path:
    """As ultralytics writes one at the end of a training."""
    path = folder / "teacher.pt"
    model.args = dict(getattr(model, "args", {}))
    torch.save({"model": model, "train_args": {}}, path)
    return path


def test_a_teacher_is_read_from_a_checkpoint(teacher, batch, tmp_path):
    expected = raw(copy.deepcopy(teacher), batch["img"])
    loaded = load_teacher(checkpoint(tmp_path, copy.deepcopy(teacher)), detector())
    assert loaded.is_fused()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in loaded.modules())
    for name in ("boxes", "scores"):
        torch.testing.assert_close(raw(loaded, batch["img"])[name], expected[name], rtol=1e-3, atol=1e-3)


def test_an_end_to_end_teacher_keeps_its_one_to_many_branches(teachers, batch, tmp_path):
    teacher = copy.deepcopy(teachers["yolo26n"])
    expected = raw(copy.deepcopy(teacher), batch["img"])
    loaded = load_teacher(checkpoint(tmp_path, teacher), detector())
    assert loaded.model[-1].one2one_cv2 is None
    torch.testing.assert_close(raw(loaded, batch["img"])["boxes"], expected["boxes"], rtol=1e-3, atol=1e-3)
    teacher.end2end = True
    with pytest.raises(ValueError, match=r"lost its one-to-many branches when it was fused\.$"):
        load_teacher(checkpoint(tmp_path, teacher.fuse(verbose=False)), detector())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ClassificationModel("yolov8n-cls.yaml", verbose=False), "holds a ClassificationModel"),
        (lambda: SegmentationModel("yolov8n-seg.yaml", verbose=False), "has a Segment head"),
        (lambda: nn.Conv2d(1, 1, 1), "holds a Conv2d"),
    ],
)
def test_a_teacher_is_a_detector(make, reason, tmp_path):
    path = checkpoint(tmp_path, make())
    with pytest.raises(ValueError, match=rf"^distill_model must be a detection model .* but {path} {reason}\.$"):
        load_teacher(path, detector())


def test_a_teacher_takes_the_students_images(tmp_path):
    teacher = detector()
    teacher.yaml["channels"] = 1
    with pytest.raises(ValueError, match=r"distill_model must take images of 3 channels, .* takes 1\.$"):
        load_teacher(checkpoint(tmp_path, teacher), detector())


def test_files_that_are_no_checkpoints(tmp_path):
    student = detector()
    for name in ("yolov8n.yaml", "yolov8n.onnx", "yolov8n"):
        with pytest.raises(ValueError, match=rf"^distill_model must be a checkpoint \(\.pt\) .* got '{name}'\.$"):
            load_teacher(name, student)
    with pytest.raises(ValueError, match=r"^distill_model must be .* there is no file .*missing\.pt\.$"):
        load_teacher(tmp_path / "missing.pt", student)
    for content in (b"", b"not a checkpoint", b"PK\x03\x04"):
        path = tmp_path / "broken.pt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^distill_model must be .* cannot be read as one \(\w+\)\.$"):
            load_teacher(path, student)
    torch.save({"model": {"weight": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=r"cannot be read as one \(\w+\)\.$"):
        load_teacher(path, student)


# ---- inside ultralytics


def test_autobatch_measures_the_teacher_too(teacher, batch):
    model = Distillation(detector(), teacher, Settings())
    asked = []
    teacher.register_forward_hook(lambda module, inputs, outputs: asked.append(inputs[0].shape))
    images = batch["img"].clone().requires_grad_()
    profile_ops([images], copy.deepcopy(model).train(), n=1, device=torch.device("cpu"), max_num_obj=4)
    assert set(asked) == {images.shape}


def test_copies_in_the_middle_of_training(teacher, batch):
    model = Distillation(detector(), teacher, Settings()).train()
    loss, _ = model(batch)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]  # between the two passes
    loss.sum().backward()
    expected = kd_items(model, batch)
    for twin in twins:
        assert kd_items(twin, batch) == pytest.approx(expected, rel=1e-5)
        assert twin.criterion is not model.criterion
        assert twin.teacher_model is not model.teacher_model


def test_the_teacher_stays_out_of_optimizer_and_checkpoints(teacher, batch, tmp_path):
    model = Distillation(detector(), teacher, Settings()).train()
    model(batch)[0].sum().backward()
    assert not [name for name in (*model.state_dict(), *dict(model.named_parameters())) if "teacher" in name]
    trainer = SimpleNamespace(data={"nc": 3}, args=model.args)
    optimizer = BaseTrainer.build_optimizer(trainer, model, name="SGD")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in (*model.student_model.parameters(), *model.projector.parameters())}

    ema = ModelEMA(model)
    ema.update(model)
    assert ema.ema.teacher_model is None
    assert model.teacher_model is teacher
    snapshot = copy.deepcopy(ema.ema).half()  # from here on as BaseTrainer.save_model does
    snapshot.criterion = None
    buffer = io.BytesIO()
    torch.save({"model": None, "ema": snapshot, "train_args": {}, "epoch": 0}, buffer)
    path = tmp_path / "last.pt"
    path.write_bytes(buffer.getvalue())

    resumed = torch_safe_load(path, safe_only=True)[0]["ema"].float()
    again = Distillation(resumed.student_model, teacher, resumed.settings)
    again.projector.load_state_dict(resumed.projector.state_dict())
    assert all(value > 0 for value in kd_items(again, batch).values())

    predicting = YOLO(path)
    assert predicting.predict(batch["img"], imgsz=64, verbose=False)[0].names == dict(enumerate(NAMES))
    predicting.fuse()
    assert type(predicting.model) is DetectionModel
    strip_optimizer(path)
    stripped = torch.load(path, weights_only=False)["model"]
    assert type(stripped) is DetectionModel
    assert stripped.state_dict().keys() == model.student_model.state_dict().keys()


def test_a_student_learns_from_the_teacher_alone():
    """Ground truth off: 32 images, a teacher that was trained on their labels, a student that never sees one."""
    batch = scenes(32)
    teacher = detector(width=0.125)
    train(teacher, batch, 50)
    student = detector(seed=2)
    model = Distillation(student, teacher, Settings(kd_labels=False))

    def predictions(network: DetectionModel) -> tuple[Tensor, Tensor]:
        """Boxes xywh [B, A, 4] and scores [B, A, C]."""
        with torch.no_grad():
            return network.eval()(batch["img"])[0].transpose(1, 2).split((4, 3), -1)

    wanted_boxes, wanted_scores = predictions(copy.deepcopy(teacher).train().eval())
    seen = wanted_scores.amax(-1) > 0.25
    assert seen.sum() > 20

    def distance() -> tuple[float, float, float]:
        """From the teacher: of the scores where it sees an object and elsewhere, and 1 - IoU of its boxes."""
        boxes, scores = predictions(student)
        errors = (scores - wanted_scores).abs().amax(-1)
        iou = bbox_iou(boxes[seen], wanted_boxes[seen])
        return errors[seen].mean().item(), errors[~seen].max().item(), 1 - iou.mean().item()

    untrained = distance()
    assert untrained[0] > 0.25
    assert untrained[2] > 0.8
    train(
        model,
        {**batch, "cls": batch["cls"][:0], "bboxes": batch["bboxes"][:0], "batch_idx": batch["batch_idx"][:0]},
        60,
    )
    learnt = distance()
    assert learnt[0] < untrained[0] / 10
    assert learnt[1] < 0.3
    assert learnt[2] < 0.15
