# SPDX-License-Identifier: AGPL-3.0-or-later
"""An accelerated model is ultralytics' own but for its pools and the way from the head's branches to the detections.

Most models here are built from ultralytics' YAML files with three classes, and random weights that give hundreds of
overlapping detections: with so few classes, ultralytics' class offsets round next to nothing, so the detections must be
the same.
"""

from __future__ import annotations

import copy
import pickle
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("ultralytics")

import cv2
import yaml
from ultralytics import RTDETR, YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.models.yolo.detect import DetectionPredictor, DetectionValidator
from ultralytics.nn.modules.block import SPPF
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import ASSETS, ROOT, nms

import fastyolo
from fastyolo import ops
from fastyolo.integrations.ultralytics import acceleration as integration
from fastyolo.nn import FusedSPPF

MODELS = ("yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n", "yolov8n-fast")
SIZE = 160
PHOTOGRAPHS = sorted(str(path) for path in ASSETS.glob("*.jpg"))


def network_inputs(size: int) -> torch.Tensor:
    """The photographs as the predictor hands them to a network without rect: [2, 3, size, size]."""
    letterbox = LetterBox((size, size), auto=False)
    images = [cv2.cvtColor(letterbox(image=cv2.imread(path)), cv2.COLOR_BGR2RGB) for path in PHOTOGRAPHS]
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images])


@torch.no_grad()
def set_statistics(network: Any) -> None:
    """Let an untrained network tell the cells of the photographs apart, with logits of a trained one's size."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average of all that follows
    network.train()
    for size in (96, 128, 160, 192):
        images = network_inputs(size)
        for crop in (0, 32):  # with the padding, and with less of it
            network(images[..., crop:, : size - crop])
    network.eval()
    for norm in norms:
        norm.momentum = momentum
    head = network.model[-1]
    with integration.HeadTap(head):
        maps = network(network_inputs(SIZE))
    box_mean = 2.0 if head.reg_max == 1 else 0.0  # then the maps hold distances, not logits
    for branches, outputs, mean in ((head.cv2, maps.box_maps, box_mean), (head.cv3, maps.cls_maps, -2.0)):
        for branch, output in zip(branches, outputs, strict=True):
            scale = 1.5 / output.std()
            branch[-1].weight.mul_(scale)
            branch[-1].bias.mul_(scale).add_(mean - output.mean() * scale)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], YOLO]:
    """Fresh copies of models with three classes."""
    folder = tmp_path_factory.mktemp("models")
    built: dict[str, YOLO] = {}

    def build(name: str) -> YOLO:
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**yaml_model_load(f"{name}.yaml"), "nc": 3}))
        torch.manual_seed(0)
        model = YOLO(file)
        set_statistics(model.model)
        return model

    def get(name: str) -> YOLO:
        if name not in built:
            built[name] = build(name)
        return copy.deepcopy(built[name])

    return get


@pytest.fixture
def pair(models: Callable[[str], YOLO]) -> tuple[YOLO, YOLO]:
    """The same model twice: stock and accelerated."""
    return models("yolov8n"), fastyolo.accelerate(models("yolov8n"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often post-processing took each of the two ways."""
    counts = {"fastyolo": 0, "stock": 0}

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(integration, "decode_nms", counting("fastyolo", integration.decode_nms))
    monkeypatch.setattr(nms, "non_max_suppression", counting("stock", nms.non_max_suppression))
    return counts


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A data set of the two photographs, with a few boxes."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for path in PHOTOGRAPHS:
        name = Path(path).stem
        cv2.imwrite(str(tmp_path / "images" / f"{name}.jpg"), cv2.resize(cv2.imread(path), None, fx=0.25, fy=0.25))
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.3 0.4\n2 0.3 0.6 0.2 0.2\n")
    names = dict(enumerate(("one", "two", "three")))
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump({"path": str(tmp_path), "train": "images", "val": "images", "names": names}))
    return str(file)


def predict(model: YOLO, source: Any = None, **settings: Any) -> list[Any]:
    defaults = {"imgsz": SIZE, "conf": 0.1, "device": "cpu", "verbose": False}
    return list(model.predict(str(ASSETS) if source is None else source, **{**defaults, **settings}))


def assert_same_results(actual: list[Any], expected: list[Any], *, at_least: int = 1, pixels: float = 0.01) -> None:
    assert len(actual) == len(expected)
    assert sum(len(result.boxes) for result in expected) >= at_least, "the test sees too few detections"
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.path == theirs.path
        assert ours.names == theirs.names
        assert ours.boxes.data.dtype == theirs.boxes.data.dtype == torch.float32
        assert ours.boxes.data.device == theirs.boxes.data.device
        assert_same_rows(ours.boxes.data, theirs.boxes.data, pixels)


def assert_same_rows(actual: torch.Tensor, expected: torch.Tensor, pixels: float) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual[:, :4], expected[:, :4], rtol=0, atol=pixels)
    torch.testing.assert_close(actual[:, 4:], expected[:, 4:], rtol=0, atol=1e-5)


# ---- predict


@pytest.mark.parametrize("name", MODELS)
def test_models_predict_the_same(models, calls, name):
    expected = predict(models(name), batch=2)
    calls.update(stock=0)
    model = fastyolo.accelerate(models(name))
    assert isinstance(model, YOLO)
    assert_same_results(predict(model, batch=2), expected, at_least=20)
    assert calls == {"fastyolo": 1, "stock": 0}


@pytest.mark.parametrize(
    "settings",
    [
        {"conf": 0.6},
        {"conf": 0.0},
        {"iou": 0.1},
        {"iou": 1.0},
        {"classes": [2, 0]},
        {"classes": 1},
        {"classes": [1, 99]},
        {"agnostic_nms": True},
        {"max_det": 3},
        {"max_det": 10**9},
        {"rect": False},
        {"imgsz": (96, 160)},
        {"batch": 2, "rect": False},
        {"stream": True},
    ],
    ids=str,
)
def test_settings_keep_their_meaning(pair, calls, settings):
    stock, ours = pair
    expected = predict(stock, **settings)
    calls.update(stock=0)
    assert_same_results(predict(ours, **settings), expected)
    assert calls["fastyolo"] >= 1
    assert calls["stock"] == 0


def test_no_detections(pair):
    _, ours = pair
    results = predict(ours, conf=1.0) + predict(ours, classes=[99])
    assert [result.boxes.data.shape for result in results] == [(0, 6)] * 4


def test_stream_is_lazy(pair):
    stock, ours = pair
    results = ours.predict(str(ASSETS), imgsz=SIZE, conf=0.1, device="cpu", verbose=False, stream=True)
    assert_same_results([next(results)], predict(stock, PHOTOGRAPHS[0]))


def test_arrays_and_tensors_as_sources(pair):
    stock, ours = pair
    array = cv2.imread(PHOTOGRAPHS[0])
    for source in (array, network_inputs(SIZE)):
        assert_same_results(predict(ours, source), predict(stock, source))


def test_settings_change_between_calls(pair):
    stock, ours = pair
    for settings in ({}, {"iou": 0.2}, {"classes": [1]}, {"max_det": 2}, {}):
        assert_same_results(predict(ours, **settings), predict(stock, **settings))


def test_results_do_not_share_memory(pair):
    first, second = predict(pair[1], batch=2)
    assert first.boxes.data.untyped_storage().nbytes() == first.boxes.data.nbytes
    assert first.boxes.data.untyped_storage().data_ptr() != second.boxes.data.untyped_storage().data_ptr()


def test_what_needs_decoded_predictions_gets_them(pair, calls, tmp_path):
    stock, ours = pair
    assert_same_results(predict(ours, augment=True), predict(stock, augment=True))
    for actual, expected in zip(predict(ours, embed=[15]), predict(stock, embed=[15]), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    drawn = {"project": str(tmp_path), "visualize": True, "max_det": 2}
    actual, expected = predict(ours, name="ours", **drawn), predict(stock, name="stock", **drawn)
    assert_same_results(actual, expected)
    assert len(list((tmp_path / "ours").iterdir())) == len(list((tmp_path / "stock").iterdir())) == 2
    assert calls["fastyolo"] == 0
    assert_same_results(predict(ours), predict(stock))
    assert calls["fastyolo"] == 2


def test_postprocess_takes_another_iou(pair):
    """As TrackTrack calls it, to recover what a tight NMS drops."""
    found = []
    for model in pair:
        predict(model)
        predictor, original = model.predictor, model.predictor.postprocess
        predictor.postprocess = lambda *args, original=original: original(*args, iou=0.05)
        found.append(predict(model))
        del predictor.postprocess
        assert sum(map(len, found[-1])) < sum(map(len, predict(model)))
    assert_same_results(found[1], found[0])


def test_features_of_detections(pair):
    """As BoT-SORT asks for them: a hook on the head leaves its inputs with the predictor."""
    found = []
    for model in pair:
        predict(model)
        predictor = model.predictor

        def keep(module: Any, inputs: Any, predictor: Any = predictor) -> None:
            predictor._feats = list(inputs[0])

        predictor.model.model.model[-1].register_forward_pre_hook(keep)
        found.append([*predict(model, batch=2), *predict(model, conf=1.0)])
    assert_same_results(found[1], found[0])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert len(ours.feats) == len(theirs.feats) == len(ours.boxes)
        if len(ours.feats):
            torch.testing.assert_close(ours.feats, theirs.feats, rtol=0, atol=0)


@pytest.mark.parametrize("tracker", ["bytetrack", "botsort", "tracktrack"])
def test_track(pair, calls, tmp_path, tracker):
    pytest.importorskip("lap")
    file = tmp_path / f"{tracker}.yaml"
    settings = yaml.safe_load((ROOT / "cfg" / "trackers" / f"{tracker}.yaml").read_text())
    file.write_text(yaml.safe_dump({**settings, "with_reid": True, "model": "auto"}))
    image = cv2.imread(PHOTOGRAPHS[0])
    found: list[list[Any]] = []
    for model in pair:
        frames = [torch.from_numpy(image).roll(4 * shift, 1).numpy() for shift in range(3)]
        settings = {"persist": True, "tracker": str(file), "imgsz": SIZE, "verbose": False, "device": "cpu"}
        found.append([model.track(frame, **settings)[0] for frame in frames])
    assert all(result.boxes.is_track for result in found[0])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert ours.boxes.id.tolist() == theirs.boxes.id.tolist()
        assert_same_rows(ours.boxes.data[:, [0, 1, 2, 3, 5, 6]], theirs.boxes.data[:, [0, 1, 2, 3, 5, 6]], pixels=0.1)
    # TrackTrack runs NMS on the decoded predictions itself, so they have to be there.
    assert (calls["fastyolo"] == 0) == (tracker == "tracktrack")


# ---- val


def validate(model: YOLO, dataset: str, name: str, **settings: Any) -> dict[str, torch.Tensor]:
    """Every detection of a validation, by image."""
    project = Path(dataset).parent / "val"
    defaults = {"imgsz": SIZE, "batch": 2, "conf": 0.05, "device": "cpu", "plots": False, "verbose": False}
    model.val(data=dataset, project=str(project), name=name, save_txt=True, save_conf=True, **{**defaults, **settings})
    return {
        file.name: torch.tensor([[float(word) for word in line.split()] for line in file.read_text().splitlines()])
        for file in (project / name / "labels").iterdir()
    }


@pytest.mark.parametrize(
    "settings",
    [{}, {"rect": False}, {"agnostic_nms": True}, {"single_cls": True}, {"max_det": 5}, {"iou": 0.3}, {"batch": 1}],
    ids=str,
)
def test_val_finds_the_same(pair, calls, dataset, settings):
    stock, ours = pair
    expected = validate(stock, dataset, "stock", **settings)
    calls.update(stock=0)
    actual = validate(ours, dataset, "ours", **settings)
    assert calls["fastyolo"] >= 1
    assert calls["stock"] == 0
    assert actual.keys() == expected.keys() == {f"{Path(path).stem}.txt" for path in PHOTOGRAPHS}
    for name, rows in expected.items():  # class, relative centre and extent, score
        assert len(rows) >= 5
        assert (actual[name][:, 0] == rows[:, 0]).all()
        torch.testing.assert_close(actual[name][:, 1:], rows[:, 1:], rtol=0, atol=2e-5)


def test_val_with_augmentation_is_stock(pair, calls, dataset):
    stock, ours = pair
    expected = validate(stock, dataset, "stock", augment=True)
    actual = validate(ours, dataset, "ours", augment=True)
    assert calls["fastyolo"] == 0
    for name, rows in expected.items():
        torch.testing.assert_close(actual[name], rows, rtol=0, atol=0)


def test_tap_is_closed_when_a_run_fails(models):
    head = models("yolov8n").model.model[-1]
    try:
        with integration.HeadTap(head):
            assert "forward" in vars(head)
            raise KeyError
    except KeyError:
        pass
    assert "forward" not in vars(head)


def test_validator_closes_its_tap(pair, dataset, tmp_path):
    _, ours = pair
    taps = []

    def stop(validator: Any) -> None:
        taps.append(validator._tap)
        assert "forward" in vars(validator._tap._head)
        raise KeyboardInterrupt

    ours.add_callback("on_val_batch_end", stop)
    with pytest.raises(KeyboardInterrupt):
        validate(ours, dataset, "ours")
    assert "forward" not in vars(taps[0]._head)
    assert taps[0]._head is not ours.model.model[-1]


# ---- SPPF


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes that sppf_pool was called with."""
    shapes: list[torch.Size] = []
    sppf_pool = ops.sppf_pool

    def logging(x: torch.Tensor, **settings: Any) -> torch.Tensor:
        shapes.append(x.shape)
        return sppf_pool(x, **settings)

    monkeypatch.setattr(ops, "sppf_pool", logging)
    return shapes


@pytest.mark.parametrize("name", MODELS)
def test_sppf_of_every_model_pools_in_one_operator(models, pools, name):
    model = models(name)
    blocks = [module for module in model.model.modules() if isinstance(module, SPPF)]
    assert len(blocks) == (0 if name in ("yolov9t", "yolo12n", "yolov8n-fast") else 1)
    predict(fastyolo.accelerate(model), PHOTOGRAPHS[0])
    assert len(pools) == len(blocks)


def test_val_pools_in_one_operator(pair, pools, dataset):
    stock, ours = pair
    validate(stock, dataset, "stock")
    assert pools == []
    validate(ours, dataset, "ours")
    assert len(pools) == 1


def test_fused_sppf_gives_the_stock_block_bit_by_bit(models):
    for name in ("yolov8n", "yolo26n"):  # without and with a shortcut
        network = models(name).model
        block = next(module for module in network.modules() if isinstance(module, SPPF))
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.rand(2, block.cv1.conv.in_channels, 5, 7).to(memory_format=memory_format)
            with torch.no_grad():
                assert FusedSPPF(block)(x).equal(block(x))


def test_fused_sppf_keeps_its_place_and_its_hooks(models):
    model = models("yolov8n")
    seen = []
    model.model.model[9].register_forward_hook(lambda *_: seen.append(1))
    predict(fastyolo.accelerate(model), PHOTOGRAPHS[0])
    fused = model.predictor.model.model.model[9]
    assert type(fused) is FusedSPPF
    stock = model.model.model[9]
    assert (fused.i, fused.f, fused.type, fused.np) == (stock.i, stock.f, stock.type, stock.np)
    assert not fused.training
    assert len(seen) == 1


def test_other_sppf_blocks_are_left_alone(models, pools):
    class Doubled(SPPF):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    class Renamed(SPPF):
        pass

    for kind, fused in ((Doubled, 0), (Renamed, 1)):
        stock, ours = models("yolov8n"), models("yolov8n")
        for model in (stock, ours):
            model.model.model[9].__class__ = kind
        pools.clear()
        assert_same_results(predict(fastyolo.accelerate(ours), batch=2), predict(stock, batch=2))
        assert len(pools) == fused


def test_what_is_saved_needs_no_fastyolo(models, tmp_path):
    model = fastyolo.accelerate(models("yolov8n"))
    predict(model)
    model.save(tmp_path / "saved.pt")
    code = f"""
import sys
sys.modules["fastyolo"] = None
from ultralytics import YOLO
print(type(YOLO({str(tmp_path / "saved.pt")!r}).model.model[9]).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["SPPF"], done.stderr


# ---- what stays ultralytics' own


def test_accelerate_returns_the_object_and_twice_is_once(models):
    model = models("yolov8n")
    assert fastyolo.accelerate(model) is model
    accelerated = type(model)
    assert fastyolo.accelerate(model) is model
    assert type(model) is accelerated
    assert accelerated.__name__ == "AcceleratedYOLO"


def test_accelerate_after_predict(models, calls):
    model = models("yolov8n")
    expected = predict(model)
    fastyolo.accelerate(model)
    assert_same_results(predict(model), expected)
    assert calls["fastyolo"] == 2


def test_network_is_untouched(models, dataset):
    model = fastyolo.accelerate(models("yolov8n"))
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    predict(model)
    validate(model, dataset, "ours")
    assert type(model.model.model[-1]) is Detect
    assert "forward" not in vars(model.model.model[-1])
    assert type(model.model.model[9]) is SPPF
    assert before.keys() == model.model.state_dict().keys()
    assert all(value.equal(before[name]) for name, value in model.model.state_dict().items())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_accelerated(pair, calls, duplicate):
    stock, ours = pair
    twin = duplicate(ours)
    assert type(twin) is type(ours)
    expected = predict(stock)
    calls.update(stock=0)
    assert_same_results(predict(twin), expected)
    assert calls["stock"] == 0


def test_classes_that_the_user_passes_win(pair, calls, dataset):
    _, ours = pair
    predict(ours, predictor=DetectionPredictor)
    assert type(ours.predictor) is DetectionPredictor
    ours.val(validator=DetectionValidator, data=dataset, imgsz=64, project=str(Path(dataset).parent), verbose=False)
    assert calls["fastyolo"] == 0


def test_subclass_of_yolo(models):
    class Mine(YOLO):
        def answer(self) -> int:
            return 42

    model = models("yolov8n")
    model.__class__ = Mine
    fastyolo.accelerate(model)
    assert isinstance(model, Mine)
    assert model.answer() == 42
    assert type(copy.deepcopy(model)) is type(model)


def test_train_is_stock(models, dataset):
    model = fastyolo.accelerate(models("yolov8n"))
    validators = []
    model.add_callback("on_val_start", lambda validator: validators.append(type(validator)))
    settings = {"epochs": 1, "imgsz": 32, "batch": 2, "workers": 0, "plots": False, "amp": False, "device": "cpu"}
    model.train(data=dataset, project=str(Path(dataset).parent), **settings)
    assert set(validators) == {DetectionValidator}
    assert integration.is_accelerated(model)
    assert type(model.model.model[-1]) is Detect


def test_save_and_fuse(models, tmp_path):
    stock, ours = models("yolov8n"), fastyolo.accelerate(models("yolov8n"))
    for name, model in (("stock", stock), ("ours", ours)):
        model.save(tmp_path / f"{name}.pt")
    saved = YOLO(tmp_path / "ours.pt")
    assert type(saved) is YOLO
    assert_same_results(predict(saved), predict(YOLO(tmp_path / "stock.pt")))
    ours.fuse()
    stock.fuse()
    assert ours.model.is_fused()
    assert_same_results(predict(ours), predict(stock))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_export_is_stock(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = []
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name in ("stock", "ours"):
        model = models("yolov8n")
        model.model.yaml["yaml_file"] = str(tmp_path / f"{name}.yaml")  # decides where the file goes
        model = fastyolo.accelerate(model) if name == "ours" else model
        predict(model)
        outputs.append(torch.jit.load(model.export(format="torchscript", imgsz=64, device="cpu"))(image))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0)
    assert outputs[0].shape == (1, 7, 84)


# ---- what cannot be accelerated


def refusal(model: Any) -> str:
    """The one warning with which accelerate() leaves a model as it is."""
    kind = type(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert fastyolo.accelerate(model) is model
    assert type(model) is kind
    (warning,) = caught
    assert warning.filename == __file__
    return str(warning.message)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("yolov8n-seg", "its head Segment has its own forward in place of Detect's"),
        ("yolo11n-pose", "its head Pose has its own forward_head in place of Detect's"),
        ("yolov8n-obb", "its head OBB has its own forward_head in place of Detect's"),
        ("yolov8n-cls", "its last layer is Classify, not a Detect head"),
        ("yolov8s-worldv2", "its head WorldDetect has its own forward in place of Detect's"),
    ],
)
def test_other_heads_are_left_alone(name, reason):
    assert refusal(YOLO(f"{name}.yaml")) == f"accelerate() leaves this model as it is: {reason}."


def test_rtdetr_is_left_alone():
    assert "its last layer is RTDETRDecoder, not a Detect head" in refusal(RTDETR("rtdetr-l.yaml"))


def test_exported_model_is_left_alone(tmp_path):
    file = tmp_path / "model.onnx"
    file.touch()
    assert f"{str(file)!r} is an exported model" in refusal(YOLO(file, task="detect"))


def test_fused_end_to_end_model_is_left_alone(models):
    model = models("yolo26n")
    model.model.end2end = True
    model.fuse()
    assert "its one-to-many branches were removed by fusion" in refusal(model)


def test_heads_are_judged_by_their_methods(models):
    class OtherBranches(Detect):
        def bias_init(self) -> None:
            raise NotImplementedError

    class OtherBoxes(Detect):
        def decode_bboxes(self, *args: Any) -> Any:
            return super().decode_bboxes(*args)

    ours, stock = models("yolov8n"), models("yolov8n")
    ours.model.model[-1].__class__ = OtherBranches
    assert_same_results(predict(fastyolo.accelerate(ours)), predict(stock))

    stock.model.model[-1].__class__ = OtherBoxes
    assert "its head OtherBoxes has its own decode_bboxes" in refusal(stock)

    patched = models("yolov8n")
    patched.model.model[-1].forward = lambda x: x
    assert "its head Detect has its own forward" in refusal(patched)


def test_other_box_decoding_is_left_alone(models):
    model = models("yolov8n")
    model.model.model[-1].dfl.conv.weight.data[0, 3] = 3.5
    assert "not with the expectation over 16 bins" in refusal(model)


def test_other_predictor_is_left_alone(models):
    class OtherPredictor(DetectionPredictor):
        pass

    class Mine(YOLO):
        @property
        def task_map(self) -> Any:
            return {"detect": {**super().task_map["detect"], "predictor": OtherPredictor}}

    model = models("yolov8n")
    model.__class__ = Mine
    assert "it predicts with its own OtherPredictor" in refusal(model)


def test_end_to_end_runs_are_stock_and_say_so_once(models, calls):
    stock, ours = models("yolo26n"), fastyolo.accelerate(models("yolo26n"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actual = predict(ours, nms=False) + predict(ours, nms=False)
    (warning,) = caught
    assert "not accelerated: with nms=False it runs end to end" in str(warning.message)
    assert_same_results(actual, predict(stock, nms=False) * 2)
    assert calls["fastyolo"] == 0
    assert_same_results(predict(ours, nms=None), predict(stock, nms=None))
    assert calls["fastyolo"] == 2


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ({"format": "onnx"}, "a model of format 'onnx'"),
        ({"device": torch.device("mps")}, "fastyolo has kernels for CPU and CUDA, not for 'mps'"),
        ({"device": torch.device("cuda")}, "this fastyolo was built without CUDA"),
    ],
)
def test_runs_that_cannot_be_accelerated(models, monkeypatch, backend, reason):
    monkeypatch.setattr(fastyolo, "build_info", lambda: {"cuda": False})
    loaded = {"format": "pt", "end2end": False, "device": torch.device("cpu"), "model": models("yolov8n").model}
    with pytest.warns(UserWarning, match=reason):
        assert integration._prepare(SimpleNamespace(**{**loaded, **backend})) is None


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("75-real", "80-real"), (8, 6), True),
        (("75-real", "80-real"), (9, 0), False),
        (("86-real",), (8, 0), False),
        (("90-real",), (7, 0), False),
        (("75-real", "100"), (12, 0), True),  # by its PTX
        (("90-virtual",), (8, 9), False),
        (("native",), (7, 0), True),
    ],
)
def test_a_gpu_of_another_architecture_is_left_alone(models, monkeypatch, architectures, capability, runs):
    monkeypatch.setattr(fastyolo, "build_info", lambda: {"cuda": True, "cuda_architectures": architectures})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda")
    loaded = SimpleNamespace(format="pt", end2end=False, device=device, model=models("yolov8n").model)
    reason = integration._why_not_now(loaded)
    assert (reason is None) == runs
    if reason:
        assert f"for the CUDA architectures {', '.join(architectures)}" in reason
        assert f"compute capability {capability[0]}.{capability[1]}" in reason


@pytest.mark.parametrize("model", ["yolov8n.pt", torch.nn.Identity(), None])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(TypeError, match=f"model must be an ultralytics YOLO object, got {type(model).__name__}"):
        fastyolo.accelerate(model)


# ---- CUDA, and real weights


@pytest.mark.cuda
@pytest.mark.parametrize("settings", [{}, {"quantize": 16}, {"quantize": 16, "batch": 2, "rect": False}], ids=str)
def test_cuda(pair, calls, settings):
    stock, ours = pair
    expected = predict(stock, device="cuda", **settings)
    calls.update(stock=0)
    actual = predict(ours, device="cuda", **settings)
    assert calls["fastyolo"] >= 1
    if "quantize" not in settings:
        assert_same_results(actual, expected)
        return
    for mine, theirs in zip(actual, expected, strict=True):  # ultralytics decodes and suppresses in float16
        assert mine.boxes.data.dtype == torch.float32
        assert abs(len(mine.boxes) - len(theirs.boxes)) <= 0.1 * len(theirs.boxes)


ACCURACY = str(Path(__file__).parent.parent / "bench" / "accuracy" / "agreement.py")
IMAGES = 32


@pytest.fixture
def coco(data: Path, tmp_path: Path) -> SimpleNamespace:
    """Arguments of bench/accuracy/agreement.py for the first images of coco128-val, which ultralytics may write to."""
    source = data / "coco128-val"
    images = sorted((source / "images").glob("*.jpg"))[:IMAGES]
    for kind in ("images", "labels"):
        (tmp_path / "coco" / kind).mkdir(parents=True)
    for image in images:
        label = source / "labels" / f"{image.stem}.txt"
        (tmp_path / "coco" / "images" / image.name).symlink_to(image)
        if label.exists():
            (tmp_path / "coco" / "labels" / label.name).symlink_to(label)
    names = yaml.safe_load((source / "data.yaml").read_text())["names"]
    file = tmp_path / "coco" / "data.yaml"
    file.write_text(yaml.safe_dump({"path": str(file.parent), "train": "images", "val": "images", "names": names}))
    weights = data / "weights" / "yolov8n-recovered.pt"
    return SimpleNamespace(weights=str(weights), images=images, data=str(file), device="cpu")


@pytest.mark.data
def test_detections_of_real_images(coco):
    """The same as ultralytics' own; where its class offsets round, the same as its NMS in float64."""
    runs = runpy.run_path(ACCURACY)["detections"](coco, coco.images)
    assert [(run["conf"], run["peer"]) for run in runs] == [
        (conf, peer) for conf in (0.25, 0.001) for peer in ("as it is", "its NMS in float64")
    ]
    for run in runs:
        print(run)
        assert run["images"] == IMAGES
        assert run["detections"] >= (100 if run["conf"] == 0.25 else 4000)
        assert run["unexplained"] == 0
        assert run["differing"] <= (0.01 * run["detections"] if run["peer"] == "as it is" else 2)


@pytest.mark.data
@pytest.mark.parametrize("rect", [True, False])
def test_accuracy_on_real_images(coco, rect):
    run = runpy.run_path(ACCURACY)["validate"](coco, rect)
    assert run["ultralytics"]["mAP50-95"] > 0.3
    for metric in ("mAP50-95", "mAP50"):
        assert run["fastyolo"][metric] == pytest.approx(run["ultralytics"][metric], abs=0.0005)
