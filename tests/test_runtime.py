# SPDX-License-Identifier: AGPL-3.0-or-later
"""The runtime without torch: the same results as ultralytics, from the letterbox to the boxes, and bad input."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("ultralytics")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import cv2
import onnx
from detectors import NAMES, detector, scenes, set_statistics
from onnx import TensorProto, helper
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.utils import ASSETS, ops
from ultralytics.utils.metrics import ap_per_class, box_iou

from fastyolo.cli import app
from fastyolo.export import export
from fastyolo.runtime import Detections, Detector, Metadata
from fastyolo.runtime.letterbox import Letterbox, Placement, place
from fastyolo.runtime.metadata import KEY, Nms, Preprocessing
from fastyolo.runtime.sources import read_image, to_bgr

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 96
PHOTOS = sorted(Path(ASSETS).glob("*.jpg"))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return cv2.imread(str(PHOTOS[0]))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> Path:
    """An untrained checkpoint whose scores on the photograph spread below 0.9."""
    model = YOLO("yolov8n.yaml")
    model.model = detector(seed=1)
    set_statistics(model.model, scenes(8))

    def scale(conv: torch.nn.Conv2d, _: Any, logits: torch.Tensor) -> None:
        conv.weight.data *= 4 / (logits - conv.bias[:, None, None]).abs().max()
        conv.bias.data.fill_(-2)

    hooks = [branch[-1].register_forward_hook(scale) for branch in model.model.model[-1].cv3]
    tensor, _ = Letterbox(Preprocessing())([photo], (SIZE, SIZE), None, 1)
    with torch.no_grad():
        model.model.eval()(torch.from_numpy(tensor))
    for hook in hooks:
        hook.remove()
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def model(weights: Path) -> Callable[..., Path]:
    """Exports `weights`, each form once."""
    made: dict[str, Path] = {}

    def export_once(**settings: Any) -> Path:
        name = "-".join(f"{key}={value}" for key, value in settings.items())
        if name not in made:
            made[name] = export(weights, imgsz=SIZE, path=weights.with_name(f"{name}.onnx"), **settings)
        return made[name]

    return export_once


@pytest.fixture(scope="module")
def maps(model: Callable[..., Path]) -> Path:
    return model(outputs="maps")


@pytest.fixture
def folder(tmp_path: Path, photo: np.ndarray) -> Path:
    """Images and videos, some of which nothing can read."""
    folder = tmp_path / "source"
    folder.mkdir()
    small = cv2.resize(photo, (90, 120))
    for name in ("a.jpg", "c.png", "e.bmp"):
        assert cv2.imwrite(str(folder / name), small)
    (folder / "b.jpg").write_bytes(b"")
    (folder / "d.png").write_bytes((folder / "c.png").read_bytes()[:999])
    write_video(folder / "v.avi", [small] * 5)
    (folder / "w.mp4").write_bytes(b"")
    (folder / "x.avi").write_bytes((folder / "v.avi").read_bytes()[: (folder / "v.avi").stat().st_size // 2])
    (folder / "notes.txt").write_text("of no interest")
    return folder


BAD = {
    "b.jpg": "b.jpg is empty",
    "d.png": "d.png is damaged or not an image that OpenCV can decode",
    "w.mp4": "w.mp4 has no frame that OpenCV can decode",
    "x.avi": r"x.avi ends after [1-4] of 5 frames: it is damaged",
}


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()


def assert_same(actual: Detections, expected: Any) -> None:
    """Detections against ultralytics' rows [N, 6] of the same network in torch."""
    rows = np.asarray(expected.boxes.data)
    assert len(rows) > 5
    assert actual.labels.tolist() == rows[:, 5].tolist()
    np.testing.assert_allclose(actual.scores, rows[:, 4], atol=1e-4)
    np.testing.assert_allclose(actual.boxes, rows[:, :4], atol=0.1)


def stock(weights: Path, image: np.ndarray, **settings: Any) -> Any:
    return YOLO(weights).predict(image, imgsz=SIZE, verbose=False, device="cpu", **settings)[0]


# ---- the input, to the bit

SHAPES = [(480, 640), (640, 480), (427, 640), (96, 96), (97, 96), (333, 500), (1, 1), (1, 300), (300, 1), (1080, 810)]


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("target", [(96, 96), (64, 160)])
@pytest.mark.parametrize("shape", SHAPES)
def test_letterbox_is_ultralytics(shape, target, free):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = LetterBox(target, auto=free, stride=32)(image=image)
    tensor, (placement,) = Letterbox(Preprocessing())([image], target, 32 if free else None, 1)
    expected_tensor = torch.from_numpy(expected[None]).permute(0, 3, 1, 2).flip(1).float().div_(255)
    assert tensor.dtype == np.float32
    assert np.array_equal(tensor, expected_tensor.numpy())
    boxes = np.random.default_rng(1).uniform(-20, 200, (50, 4)).astype(np.float32)
    expected_boxes = ops.scale_boxes(tensor.shape[2:], torch.from_numpy(boxes.copy()), shape)
    assert np.array_equal(placement.to_image(boxes), expected_boxes.numpy())


def test_letterbox_follows_the_metadata():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    tensor, _ = Letterbox(Preprocessing(color="BGR", scale=1.0, padding=7))([image], (2, 4), None, 2)
    assert np.array_equal(tensor[0, :, :, 1:3], image.transpose(2, 0, 1))
    assert (tensor[0, :, :, [0, 3]] == 7).all()
    assert (tensor[1] == 7).all()


def test_an_odd_margin_is_smaller_at_the_top_left():
    assert place((10, 5), (10, 10)) == (Placement((10, 5), (10, 5), 0, 2), (10, 10))


# ---- images


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jpg", ".bmp", ".webp"])
@pytest.mark.parametrize("kind", ["color", "gray", "alpha", "deep", "deep gray"])
def test_images_are_read_as_ultralytics_reads_them(tmp_path, photo, kind, suffix):
    from ultralytics.utils.patches import imread

    image = cv2.resize(photo, (40, 30))
    if kind == "alpha":
        image = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
    if "gray" in kind:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    if "deep" in kind:
        image = image.astype(np.uint16) * 256 + 200
        if suffix not in (".png", ".tiff"):
            pytest.skip(f"{suffix} has no 16 bits")
    path = tmp_path / f"image{suffix}"
    assert cv2.imwrite(str(path), image)
    assert np.array_equal(read_image(path), imread(path))


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x[..., 0],
        lambda x: x[..., :1],
        lambda x: np.dstack((x, x[..., 0])),
        lambda x: x.astype(np.uint16) * 256 + 255,
        lambda x: x[::-1, ::-2],
        lambda x: x[:1, :1],
    ],
    ids=["gray", "one channel", "alpha", "16 bits", "strided", "one pixel"],
)
def test_arrays_are_taken_as_ultralytics_takes_them(photo, convert):
    from ultralytics.data.loaders import LoadPilAndNumpy

    image = convert(photo)
    assert np.array_equal(to_bgr(image), LoadPilAndNumpy._single_check(image))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("bus.jpg", TypeError, "image must be a NumPy array, got str; read files with det.stream"),
        (np.zeros((4, 4, 3)), TypeError, "image must be uint8 or uint16, got float64"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, "with 1, 3 or 4 channels, got [4, 4, 2]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "got [0, 4, 3]"),
        (np.zeros((1, 4, 4, 3), np.uint8), ValueError, "got [1, 4, 4, 3]"),
    ],
)
def test_other_arrays_are_refused(maps, image, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Detector(maps)(image)


def test_a_huge_picture(maps):
    assert len(Detector(maps)(np.zeros((12000, 12000, 3), np.uint8)).scores) >= 0


# ---- detections


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("outputs", ["maps", "boxes", "detections"])
def test_detections_are_those_of_torch(model, weights, photo, outputs, dynamic):
    found = Detector(model(outputs=outputs, dynamic=dynamic))(photo)
    boxes, scores, labels = found
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int32)
    assert_same(found, stock(weights, photo, rect=dynamic))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_file_of_ultralytics(weights, photo):
    file = YOLO(weights).export(format="onnx", imgsz=SIZE, simplify=False, device="cpu")
    assert_same(Detector(file)(photo), stock(weights, photo, rect=False))


@pytest.mark.parametrize("outputs", ["maps", "boxes"])
def test_settings(model, weights, photo, outputs):
    settings: dict[str, Any] = {"conf": 0.1, "iou": 0.4, "max_det": 40, "classes": [0, 2], "agnostic_nms": True}
    found = Detector(model(outputs=outputs), **settings)(photo)
    assert_same(found, stock(weights, photo, rect=False, **settings))
    several = Detector(model(outputs=outputs), conf=0.1, multi_label=True)(photo)
    assert len(several.scores) > len(Detector(model(outputs=outputs), conf=0.1)(photo).scores)


def test_settings_that_are_built_in(model, photo):
    file = model(outputs="detections")
    everything = Detector(file)(photo)
    threshold = float(np.median(everything.scores))
    label = int(everything.labels[0])
    found = Detector(file, conf=threshold, classes=[label], max_det=4)(photo)
    expected = (everything.scores > threshold) & (everything.labels == label)
    for actual, whole in zip(found, everything, strict=True):
        assert np.array_equal(actual, whole[expected][:4])
    for settings, message in {
        ("conf", 0.1): "conf must be at least 0.25, which is built into .*, got 0.1; .* again with --conf 0.1",
        ("max_det", 301): "max_det must be at most 300, which is built into .*, got 301; .* again with --max-det 301",
        ("iou", 0.5): "iou is built into .* as 0.7, got 0.5; leave it out",
        ("agnostic_nms", True): "agnostic_nms is built into .* as False, got True",
        ("multi_label", True): "multi_label is built into .* as False, got True",
    }.items():
        with pytest.raises(ValueError, match=message):
            Detector(file, **dict([settings]))


@pytest.mark.parametrize(
    ("built_in", "others"),
    [
        ({"conf": 0.5, "iou": 0.45, "max_det": 7}, {"conf": 0.25, "iou": 0.7, "max_det": 300}),
        ({"multi_label": True}, {"multi_label": False}),
        ({"agnostic_nms": True}, {"agnostic_nms": False}),
    ],
)
def test_what_is_built_in_is_the_default(model, weights, photo, tmp_path, built_in, others):
    file = model(outputs="detections", **built_in)
    found = Detector(file)(photo)
    for actual, expected in zip(found, Detector(model(outputs="maps"), **built_in)(photo), strict=True):
        assert len(actual) > 5
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=0.1)
    document = tmp_path / "out.json"
    result = predict("--weights", file, "--source", PHOTOS[0], "--save-dir", tmp_path / "saved", "--json", document)
    assert result.exit_code == 0, result.stderr
    assert json.loads(document.read_text())["images"][0]["detections"] == found.to_json()
    Detector(file, **built_in)
    for name, value in others.items():
        option = name.replace("_", "-")
        with pytest.raises(
            ValueError, match=f"^{name} .* built into .*, got {value}; leave it out, or export the .* --{option}"
        ):
            Detector(file, **{name: value})


def test_a_class_without_a_name(model, photo, tmp_path):
    file = onnx.load(model(outputs="detections"))
    (entry,) = (item for item in file.metadata_props if item.key == KEY)
    entry.value = json.dumps({**json.loads(entry.value), "names": ["red"]})
    onnx.save(file, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"reports the class [12], and its metadata names 1 classes from 0 on; export"):
        Detector(tmp_path / "model.onnx")(photo)


def test_a_suffix_in_capitals(maps, photo, tmp_path):
    file = tmp_path / "MODEL.ONNX"
    file.write_bytes(maps.read_bytes())
    result = predict("--weights", file, "--source", PHOTOS[0], "--save-dir", tmp_path / "saved")
    assert result.exit_code == 0, result.stderr
    pytest.importorskip("openvino")
    assert Detector(file, engine="openvino").metadata == Detector(maps).metadata


def test_a_folder_of_ncnn(tmp_path):
    (tmp_path / "model.ncnn.param").write_text("7767517")
    result = predict("--weights", tmp_path, "--source", PHOTOS[0], "--save-dir", tmp_path / "saved")
    assert result.exit_code == 1
    assert re.fullmatch(
        r"fastyolo: .* is a model for NCNN; export it with --format openvino or onnx to run it here\.\n", result.stderr
    )


def test_sizes_of_a_dynamic_model(model, weights, photo):
    det = Detector(model(outputs="maps", dynamic=True), imgsz=(160, 96))
    tensor, _ = det.preprocess([photo])
    assert tensor.shape == (1, 3, 128, 96)
    expected = YOLO(weights).predict(photo, imgsz=(160, 96), verbose=False, device="cpu")[0]
    assert_same(det(photo), expected)
    with pytest.raises(ValueError, match="imgsz must be in multiples of the model's largest stride 32, got 100x100"):
        Detector(model(outputs="maps", dynamic=True), imgsz=100)
    with pytest.raises(ValueError, match=r"imgsz is built into .* as 96x96, got 64x64; leave it out"):
        Detector(model(outputs="maps"), imgsz=64)


def test_batches(model, photo):
    images = [photo, photo[:500], photo[:, ::-1]]
    single = Detector(model(outputs="maps"))
    for file in (model(outputs="maps", batch=2), model(outputs="boxes", dynamic=True)):
        det = Detector(file)
        assert det.batch([]) == []
        for found, image in zip(det.batch(images), images, strict=True):
            expected = single(image)
            assert np.array_equal(found.labels, expected.labels)
            np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.1)


def test_the_parts_are_the_whole(maps, photo):
    det = Detector(maps)
    tensor, placements = det.preprocess([photo])
    outputs = det.run(tensor)
    assert list(outputs) == [f"{kind}_maps_{level}" for kind in ("box", "cls") for level in range(3)]
    for actual, expected in zip(det.postprocess(outputs, placements)[0], det(photo), strict=True):
        assert np.array_equal(actual, expected)
    for images, got in (([], "0"), ([photo] * 2, "2"), (photo, "an array")):
        with pytest.raises(ValueError, match=f"images must be a list of 1 to 1 images, got {got}"):
            det.preprocess(images)


@pytest.mark.parametrize("dynamic", [False, True])
def test_openvino(model, photo, dynamic, monkeypatch):
    pytest.importorskip("openvino")
    file = model(outputs="maps", dynamic=dynamic)
    found, expected = Detector(file, engine="openvino", threads=2), Detector(file)
    assert found.metadata == expected.metadata
    for frame in found.stream(PHOTOS):
        other = expected(frame.image)
        assert frame.detections.labels.tolist() == other.labels.tolist()
        np.testing.assert_allclose(frame.detections.boxes, other.boxes, atol=0.1)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_an_openvino_folder(weights, photo):
    pytest.importorskip("openvino")
    folder = YOLO(weights).export(format="openvino", imgsz=SIZE, device="cpu")
    assert_same(Detector(folder, engine="openvino")(photo), stock(weights, photo, rect=False))
    with pytest.raises(ValueError, match="is not an ONNX file; run OpenVINO's with engine='openvino'"):
        Detector(folder)
    (Path(folder) / "metadata.yaml").unlink()
    with pytest.raises(ValueError, match=r"needs its metadata.yaml beside it"):
        Detector(folder, engine="openvino")


@pytest.mark.parametrize("content", [b"names: [", b"\xff\xfe"])
def test_damaged_metadata_beside_openvinos_model(maps, tmp_path, content):
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.Core().read_model(maps), tmp_path / "model.xml")
    (tmp_path / "metadata.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"has a metadata.yaml that is damaged; export it again"):
        Detector(tmp_path, engine="openvino")


def test_an_interrupt_after_openvino(maps):
    """OpenVINO leaves no stack for signal handlers that has been freed."""
    pytest.importorskip("openvino")
    code = """
import gc, signal, sys
from fastyolo.runtime import Detector
first, second = (Detector(sys.argv[1], engine="openvino") for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGINT, signal.default_int_handler)  # which there is not in the background
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code, maps], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_json_and_drawing(maps, photo):
    found = Detector(maps, max_det=6)(photo)
    rows = json.loads(json.dumps(found.to_json()))
    assert [row["name"] for row in rows] == [NAMES[label] for label in found.labels]
    assert np.array_equal(np.array([row["box"] for row in rows], np.float32), found.boxes)
    before = photo.copy()
    drawn = found.draw(photo)
    assert np.array_equal(photo, before)
    changed = (drawn != photo).any(2)
    for left, top, right, bottom in found.boxes.round().astype(int):
        edges = [changed[top : bottom + 1, min(x, photo.shape[1] - 1)].mean() for x in (left, right)]
        assert min(edges) > 0.9


# ---- streams


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_folder_is_read_in_order_and_past_what_is_damaged(model, folder, threads, batch):
    det = Detector(model(outputs="maps", batch=batch), threads=threads)
    errors: dict[str, str] = {}
    frames = list(det.stream(folder, on_error=lambda path, error: errors.update({Path(path).name: str(error)})))
    names = [Path(frame.path).name for frame in frames]
    assert names[:8] == ["a.jpg", "c.png", "e.bmp"] + ["v.avi"] * 5
    assert set(names[8:]) == {"x.avi"}
    assert [(frame.number, frame.total, frame.rate) for frame in frames[2:5]] == [(0, 5, None), (0, 5, 10), (1, 5, 10)]
    assert list(errors) == list(BAD)
    for name, message in BAD.items():
        assert re.search(message, errors[name])
    for frame in frames:
        for actual, expected in zip(frame.detections, det(frame.image), strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"b.jpg is empty"):
        list(det.stream(folder))


@pytest.mark.parametrize(
    ("source", "count"), [("a.jpg", 1), ("*.[pb][nm][gp]", 2), (["e.bmp", "a.jpg"], 2), ("v.avi", 5)]
)
def test_sources(maps, folder, source, count):
    paths = [folder / name for name in source] if isinstance(source, list) else str(folder / source)
    frames = Detector(maps, threads=2).stream(paths, on_error=lambda *_: None)
    found = [Path(frame.path).name for frame in frames]
    assert len(found) == count
    if isinstance(source, list):
        assert found == source


def test_sources_that_are_not_there(maps, folder):
    det = Detector(maps)
    (folder / "empty").mkdir()
    for source, error, message in [
        (folder / "nothing.jpg", FileNotFoundError, "nothing.jpg does not exist"),
        (folder / "empty", FileNotFoundError, "holds no image"),
        (f"{folder}/*.xyz", FileNotFoundError, "holds no image"),
        (folder / "notes.txt", ValueError, "notes.txt is neither an image"),
        (3.5, TypeError, "source must be a path, a list of paths, a URL or a camera's number, got float"),
        ("", ValueError, "source must be a path, got an empty one"),
        ([folder / "a.jpg", 0], TypeError, r"source\[1\] must be a path, got int"),
        ([""], ValueError, r"source\[0\] must be a path, got an empty one"),
        ([folder / "a.jpg", "dir://x"], ValueError, r"source\[1\] must be a file, .* camera or stream 'dir://x'; pass"),
        (["0"], ValueError, r"source\[0\] must be a file, folder or glob, got the camera or stream '0'; pass that"),
    ]:
        with pytest.raises(error, match=message):
            det.stream(source)


def test_arguments_of_another_type(maps, folder):
    for model, error in ((None, TypeError), (5, TypeError), ("", ValueError)):
        with pytest.raises(error, match="model must be a path, got"):
            Detector(model)
    det = Detector(maps)
    with pytest.raises(TypeError, match="images must be a list of arrays, got generator"):
        det.batch(image for image in ())
    with pytest.raises(TypeError, match="images must be a list of arrays, got ndarray"):
        det.batch(np.zeros((0, 32, 32, 3), np.uint8))
    with pytest.raises(TypeError, match="on_error must be a function of a path and an error, got 5"):
        det.stream(folder, on_error=5)
    with pytest.raises(TypeError, match="image must be uint8 or uint16, got float64"):
        det(np.zeros((8, 8, 3), np.uint8)).draw(np.zeros((8, 8, 3)))


@pytest.mark.parametrize("source", [0, "0", "rtsp://camera/stream"])
def test_a_camera(maps, folder, source, monkeypatch):
    opened = []
    video = cv2.VideoCapture

    def camera(name: Any) -> Any:
        opened.append(name)
        return video(str(folder / "v.avi"))

    monkeypatch.setattr(cv2, "VideoCapture", camera)
    frames = list(Detector(maps).stream(source))
    assert opened == [int(source) if str(source) == "0" else source]
    assert [(frame.path, frame.number, frame.total) for frame in frames] == [(str(source), i, None) for i in range(5)]


def test_a_camera_that_is_not_there(maps, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", lambda name: type("None", (), {"isOpened": bool, "release": bool})())
    with pytest.raises(OSError, match="The camera 7 cannot be opened"):
        next(Detector(maps).stream(7))


def test_an_abandoned_stream_ends(maps, folder, monkeypatch):
    captures = []
    video = cv2.VideoCapture

    def remembered(name: str) -> Any:
        captures.append(video(name))
        return captures[-1]

    monkeypatch.setattr(cv2, "VideoCapture", remembered)
    stream = Detector(maps, threads=2).stream(folder / "v.avi")
    next(stream)
    assert [capture.isOpened() for capture in captures] == [True]
    stream.close()
    assert [capture.isOpened() for capture in captures] == [False]


def test_folders_and_broken_links_with_names_of_images(maps, photo, tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), photo)
    (tmp_path / "b.jpg").mkdir()
    for name in ("c.jpg", "d.mp4"):
        (tmp_path / name).symlink_to("nowhere")
    for source in (tmp_path, tmp_path / "*"):
        errors: dict[str, Exception] = {}
        frames = list(Detector(maps).stream(source, on_error=errors.__setitem__))
        assert [Path(frame.path).name for frame in frames] == ["a.jpg"]
        assert [Path(path).name for path in errors] == ["c.jpg", "d.mp4"]
        for path, error in errors.items():
            assert str(error) == f"{path} is a link to nowhere, which does not exist; mend or remove it."


# ---- bad files and arguments


def onnx_file(path: Path, shape: tuple[Any, ...] = (1, 3, 96, 96), inputs: int = 1, **properties: str) -> Path:
    """An ONNX file that only passes its input on."""
    values = [helper.make_tensor_value_info(f"images{i}", TensorProto.FLOAT, shape) for i in range(inputs)]
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)
    graph = helper.make_graph([helper.make_node("Identity", ["images0"], ["output0"])], "graph", values, [output])
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(file, properties)
    onnx.save(file, path)
    return path


ULTRALYTICS = {"task": "detect", "stride": "32", "imgsz": "[96, 96]", "names": "{0: 'a', 1: 'b'}", "args": "{}"}


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        Detector(path, **settings)
    return str(caught.value)


def test_files_that_are_no_models(tmp_path, maps):
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(maps.read_bytes()[:-1000])
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    for file in (truncated, empty):
        assert "is not a model that ONNX Runtime can load, or is damaged" in refused(file)
    constant = helper.make_node("Constant", [], ["output0"], value_float=1.0)
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, ())
    graph = helper.make_graph([constant], "graph", [], [output])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "no.onnx")
    assert "must take an image, but has no inputs" in refused(tmp_path / "no.onnx")
    with pytest.raises(FileNotFoundError, match=r"The model 'nowhere.onnx' does not exist"):
        Detector("nowhere.onnx")


def test_plugin_nodes_are_for_tensorrt(model):
    file = model(format="tensorrt-onnx", outputs="detections")
    assert "has nodes that only TensorRT's plugins run, not ONNX Runtime" in refused(file)


def test_models_of_others(tmp_path):
    foreign = onnx_file(tmp_path / "foreign.onnx")
    assert "does not say what model it is (its metadata has no 'task')" in refused(foreign)
    for name, properties, message in [
        ("segment", {"task": "segment"}, "is a model for the task 'segment'; pass one for detection."),
        ("nms", {"args": "{'nms': True}"}, "puts out ultralytics' final detections; export it without nms=True"),
        ("end2end", {"end2end": "True"}, "puts out ultralytics' final detections; export it without nms=True"),
        ("gray", {"channels": "1"}, "takes images of 1 channels; pass a model for colour images."),
        ("names", {"names": "{0: 'a', 2: 'b'}"}, "names must number the classes from 0, got [0, 2]"),
        ("broken", {"names": "{0: "}, "has metadata that cannot be read"),
        ("args", {"args": "5"}, "has metadata that cannot be read"),
    ]:
        assert message in refused(onnx_file(tmp_path / f"{name}.onnx", **{**ULTRALYTICS, **properties}))


def test_networks_that_are_not_what_the_metadata_says(tmp_path, photo):
    path = tmp_path / "model.onnx"
    for settings in ({"shape": (1, 1, 96, 96)}, {"shape": (1, 3)}, {"inputs": 2}):
        onnx_file(path, **settings, **ULTRALYTICS)
        assert "must have one input [B, 3, H, W] for colour images" in refused(path)
    maps = Metadata("maps", ("a",), (96, 96), 32, (8, 16, 32), 16)
    assert "got 1 outputs" in refused(onnx_file(path, **maps.properties()))
    with pytest.raises(ValueError, match="has -1 classes in its outputs and 2 in its metadata"):
        Detector(onnx_file(path, **ULTRALYTICS))
    free = Detector(onnx_file(path, ("B", "C", 96, 96), **ULTRALYTICS))
    with pytest.raises(ValueError, match="has -1 classes in its outputs and 2 in its metadata"):
        free(photo)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"conf": float("nan")}, ValueError, "conf must be in [0, 1], got nan."),
        ({"conf": -0.1}, ValueError, "conf must be in [0, 1], got -0.1."),
        ({"iou": 1.5}, ValueError, "iou must be in [0, 1], got 1.5."),
        ({"iou": "0.5"}, TypeError, "iou must be a number in [0, 1], got '0.5'."),
        ({"max_det": 0}, ValueError, "max_det must be at least 1, got 0."),
        ({"max_det": 2.5}, TypeError, "max_det must be an integer, got 2.5."),
        ({"classes": [3]}, ValueError, "classes must be in [0, 2], got 3."),
        ({"classes": ["red"]}, TypeError, "classes must be an integer, got 'red'."),
        ({"classes": 1}, TypeError, "classes must be a list of class indices or None, got int."),
        ({"agnostic_nms": 1}, TypeError, "agnostic_nms must be True or False, got 1."),
        ({"threads": 0}, ValueError, "threads must be at least 1, got 0."),
        ({"imgsz": "64"}, TypeError, "imgsz must be an integer, got '64'."),
        ({"engine": ["openvino"]}, ValueError, "engine must be one of onnxruntime, openvino, got ['openvino']."),
        ({"engine": "tflite"}, ValueError, "engine must be one of onnxruntime, openvino, got 'tflite'."),
    ],
)
def test_wrong_arguments(maps, settings, error, message):
    with pytest.raises(error) as caught:
        Detector(maps, **settings)
    assert str(caught.value) == message


# ---- metadata

EXAMPLES = [
    Metadata("maps", ("a", "b"), (480, 640), 32, (8, 16, 32), 16),
    Metadata("boxes", ("ä",), (64, 64), 32, preprocessing=Preprocessing("BGR", 1.0, 0)),
    Metadata("detections", ("a",), (64, 64), 64, nms=Nms(0.25, 0.7, 300, 30000, False, True)),
]


@pytest.mark.parametrize("metadata", EXAMPLES)
def test_metadata_survives_a_file(metadata):
    assert Metadata.read(metadata.properties(), "model.onnx") == metadata


def test_metadata_of_ultralytics():
    expected = Metadata("boxes", ("a", "b"), (96, 96), 32)
    assert Metadata.read(ULTRALYTICS, "model.onnx") == expected
    parsed = {**ULTRALYTICS, "imgsz": [96, 96], "names": {0: "a", 1: "b"}, "args": {}, "stride": 32, "end2end": False}
    assert Metadata.read(parsed, "metadata.yaml") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {**d, "schema": 2}, "has metadata of schema 2, and this fastyolo reads 1; update fastyolo."),
        (lambda d: {**d, "outputs": "masks"}, "outputs must be one of maps, boxes, detections, got 'masks'); export"),
        (
            lambda d: {**d, "strides": []},
            "cannot be read (strides and reg_max must be given for outputs 'maps'); export",
        ),
        (lambda d: {**d, "outputs": "detections"}, "nms must be given for outputs 'detections' and no other"),
        (lambda d: {**d, "imgsz": [0, 64]}, "imgsz and max_stride must be positive"),
        (lambda d: {**d, "imgsz": [64]}, "cannot be read"),
        (lambda d: {**d, "colour": "red"}, "that this fastyolo does not know (colour); update fastyolo"),
        (lambda d: {**d, "preprocessing": {"mean": 0}}, "that this fastyolo does not know (mean); update fastyolo"),
        (lambda d: {k: v for k, v in d.items() if k != "names"}, "its metadata has no 'names'"),
        (lambda d: {k: v for k, v in d.items() if k != "max_stride"}, "its metadata has no 'max_stride'"),
        (lambda d: [d], "cannot be read"),
        (lambda d: 5, "cannot be read"),
    ],
)
def test_damaged_metadata(change, message):
    document = change(json.loads(EXAMPLES[0].properties()[KEY]))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Metadata.read({KEY: json.dumps(document)}, "model.onnx")
    assert str(caught.value).startswith("model.onnx ")
    with pytest.raises(ValueError, match=r"^model.onnx has metadata that cannot be read"):
        Metadata.read({KEY: json.dumps(document)[:-1] + "?"}, "model.onnx")


# ---- without torch

WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "ultralytics"):
    sys.modules[name] = None  # an import of it fails
"""


def without_torch(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", WITHOUT_TORCH + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_runtime_needs_no_torch(maps, photo):
    code = """
import fastyolo.runtime, json
print(sorted({"onnxruntime", "openvino", "yaml", "rich", "typer"} & set(sys.modules)))
(frame,) = fastyolo.runtime.Detector(sys.argv[1], max_det=5).stream(sys.argv[2])
print(json.dumps(frame.detections.to_json()))
"""
    imported, found = without_torch(code, str(maps), str(PHOTOS[0])).splitlines()
    assert imported == "[]"
    assert json.loads(found) == Detector(maps, max_det=5)(photo).to_json()


def test_predict_needs_no_torch(maps, folder):
    code = "from fastyolo.cli import app; app(sys.argv[1:])"
    arguments = ("predict", "--weights", str(maps), "--source", str(folder / "a.jpg"), "--save-dir", str(folder / "s"))
    assert without_torch(code, *arguments).startswith("a.jpg 90x120: ")
    assert (folder / "s" / "a.jpg").is_file()


def test_a_missing_engine_is_named(maps, folder):
    code = "import sys; sys.modules['onnxruntime'] = None; from fastyolo.cli import app; app(sys.argv[1:])"
    command = [sys.executable, "-c", code, "predict", "--weights", maps, "--source", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "fastyolo: onnxruntime is not installed; pip install 'fastyolo[runtime]' brings it.\n"


# ---- the command


@pytest.fixture
def quiet_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command sets it for its process."""
    monkeypatch.setenv("OPENCV_LOG_LEVEL", "SILENT")
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "-8")


def predict(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


@pytest.mark.usefixtures("quiet_opencv")
def test_predict_a_folder(maps, folder, tmp_path):
    saved = tmp_path / "saved"
    result = predict("--weights", maps, "--source", folder, "--save-dir", saved, "--json", tmp_path / "out.json")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    for line, start in zip(lines, ("a.jpg 90x120: ", "c.png ", "e.bmp ", "v.avi 90x120 5 frames: "), strict=False):
        assert line.startswith(start)
        assert re.search(
            r"\d+ (red|green|blue).* \(preprocess [\d.]+, inference [\d.]+, postprocess [\d.]+ ms\)$", line
        )
    assert lines[-1] == f"Annotated pictures are in {saved}"
    for line, message in zip(result.stderr.splitlines(), BAD.values(), strict=True):
        assert re.match(f"fastyolo: .*{message}", line)
    document = json.loads((tmp_path / "out.json").read_text())
    assert [Path(row["path"]).name for row in document["failed"]] == list(BAD)
    image = document["images"][0]
    assert (image["path"], image["frame"], image["width"], image["height"]) == (str(folder / "a.jpg"), 0, 90, 120)
    assert image["detections"] == Detector(maps)(read_image(folder / "a.jpg")).to_json()
    assert cv2.imread(str(saved / "c.png")).shape == (120, 90, 3)
    video = cv2.VideoCapture(str(saved / "v.avi"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (5, 10)
    assert {path.name for path in saved.iterdir()} == {"a.jpg", "c.png", "e.bmp", "v.avi", "x.avi"}


@pytest.mark.usefixtures("quiet_opencv")
def test_predict_keeps_pictures_of_one_name_apart(maps, folder, tmp_path):
    cv2.imwrite(str(folder / "a.png"), read_image(folder / "a.jpg"))
    result = predict("--weights", maps, "--source", folder / "a.*", "--save-dir", tmp_path / "saved", "--imgsz", SIZE)
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"a.jpg", "a-2.png"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_predict_from_a_camera_ends_with_a_signal(maps, folder, tmp_path, monkeypatch, number, status):
    before = [signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGTERM)]
    video = cv2.VideoCapture(str(folder / "v.avi"))

    class Camera:
        def __init__(self, number: int) -> None:
            self.left = 3

        def read(self) -> tuple[bool, np.ndarray]:
            self.left -= 1
            if self.left < 0:
                signal.raise_signal(number)
            return video.read()

        def __getattr__(self, name: str) -> Any:
            return getattr(video, name)

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    result = predict("--weights", maps, "--source", "0", "--save-dir", tmp_path / "saved")
    signal.signal(signal.SIGINT, before[0])
    assert result.exit_code == status, result.stderr
    assert signal.getsignal(signal.SIGTERM) == before[1]
    assert result.stdout.startswith("0 90x120 3 frames: ")
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["0.avi"]


@pytest.mark.usefixtures("quiet_opencv")
@pytest.mark.parametrize("exported", [True, False])
def test_an_interrupt_keeps_the_results_until_then(weights, maps, tmp_path, monkeypatch, exported):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(PHOTOS[0].read_bytes())
    line_of = sys.modules["fastyolo.cli.predict"]._line

    def interrupt(path: str, frames: list[Any]) -> str:
        if path.endswith("b.jpg"):
            raise KeyboardInterrupt
        return line_of(path, frames)

    monkeypatch.setattr(sys.modules["fastyolo.cli.predict"], "_line", interrupt)
    document = tmp_path / "out.json"
    arguments = ("--source", tmp_path, "--save-dir", tmp_path / "saved", "--json", document, "--imgsz", SIZE)
    result = predict("--weights", maps if exported else weights, *arguments)
    assert result.exit_code == 130
    assert result.stderr == "fastyolo: Interrupted; the results are those of the images until then.\n"
    assert result.stdout.startswith("a.jpg 810x1080: ")
    assert [Path(row["path"]).name for row in json.loads(document.read_text())["images"]] == ["a.jpg", "b.jpg"]


@pytest.mark.usefixtures("quiet_opencv")
@pytest.mark.parametrize("exported", [True, False])
def test_an_error_keeps_the_results_until_then(weights, maps, tmp_path, monkeypatch, exported):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(PHOTOS[0].read_bytes())
    document_of = sys.modules["fastyolo.cli.predict"]._document

    def fail(path: str, *parts: Any) -> Any:
        if path.endswith("b.jpg"):
            raise OSError("The disk is full.")
        return document_of(path, *parts)

    monkeypatch.setattr(sys.modules["fastyolo.cli.predict"], "_document", fail)
    document = tmp_path / "out.json"
    arguments = ("--source", tmp_path, "--save-dir", tmp_path / "saved", "--json", document, "--imgsz", SIZE)
    result = predict("--weights", maps if exported else weights, *arguments)
    assert (result.exit_code, result.stderr) == (1, "fastyolo: The disk is full.\n")
    assert result.stdout.startswith("a.jpg 810x1080: ")
    assert [Path(row["path"]).name for row in json.loads(document.read_text())["images"]] == ["a.jpg"]


def test_predict_with_an_engine(maps, weights, folder, tmp_path):
    pytest.importorskip("openvino")
    code = "import sys; sys.modules['onnxruntime'] = None; from fastyolo.cli import app; app(sys.argv[1:])"
    arguments = ("--source", folder / "a.jpg", "--save-dir", tmp_path / "saved", "--engine", "openvino")
    command = [sys.executable, "-c", code, "predict", "--weights", maps, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a.jpg 90x120: ")


@pytest.mark.parametrize("exported", [True, False])
def test_inputs_are_not_overwritten(weights, maps, tmp_path, exported):
    model = tmp_path / ("model.onnx" if exported else "model.pt")
    model.write_bytes((maps if exported else weights).read_bytes())
    folder = tmp_path / "photos"
    folder.mkdir()
    file = folder / "a.jpg"
    file.write_bytes(PHOTOS[0].read_bytes())
    link = tmp_path / "link"
    link.symlink_to(folder)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a.jpg").symlink_to(file)
    for arguments, message in [
        ((folder, "--save-dir", folder), f"--save-dir: {file} is an input"),
        ((file, "--save-dir", link), f"--save-dir: {link / 'a.jpg'} is an input"),
        ((folder / "*.jpg", "--save-dir", linked), f"--save-dir: {linked / 'a.jpg'} is an input"),
        ((file, "--save-dir", tmp_path / "saved", "--json", file), f"--json: {file} is an input"),
        ((file, "--save-dir", tmp_path / "saved", "--json", model), f"--json: {model} is an input"),
    ]:
        result = predict("--weights", model, "--imgsz", SIZE, "--source", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        (sentence,) = result.stderr.splitlines()
        assert message in sentence
        assert "choose another place" in sentence
    assert file.read_bytes() == PHOTOS[0].read_bytes()
    assert model.read_bytes() == (maps if exported else weights).read_bytes()
    assert [path.name for path in folder.iterdir()] == ["a.jpg"]


def test_other_formats_are_refused(tmp_path):
    result = predict("--weights", tmp_path / "model.engine", "--source", PHOTOS[0])
    assert result.exit_code == 2
    (sentence,) = result.stderr.splitlines()
    assert "expected a checkpoint (.pt), an .onnx file, or the .xml file or folder of OpenVINO, got" in sentence


def test_predict_with_a_height_and_a_width(model, photo, tmp_path):
    file, document = model(outputs="maps", dynamic=True), tmp_path / "out.json"
    arguments = ("--weights", file, "--source", PHOTOS[0], "--save-dir", tmp_path / "saved", "--json", document)
    result = predict(*arguments, "--imgsz", "160x96")
    assert result.exit_code == 0, result.stderr
    found = json.loads(document.read_text())["images"][0]["detections"]
    assert found == Detector(file, imgsz=(160, 96))(photo).to_json()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--half",), 2, "They are for checkpoints"),
        (("--device", "cuda"), 2, "They are for checkpoints"),
        (("--classes", "7"), 1, "classes must be in [0, 2], got 7."),
        (("--imgsz", "64"), 1, "as 96x96, got 64x64; leave it out."),
        (("--imgsz", "64x"), 2, "expected a side or a height and a width, as 640 or 480x640, got '64x'"),
        (("--json", "/proc/x.json"), 2, "Invalid value for '--json': /proc/x.json cannot be written"),
        (("--save-dir", "/proc/x/y"), 2, "Invalid value for '--save-dir': /proc/x/y cannot be written"),
    ],
)
def test_options_that_do_not_fit_an_exported_model(maps, folder, arguments, status, message):
    result = predict("--weights", maps, "--source", folder / "a.jpg", *arguments)
    assert result.exit_code == status
    (sentence,) = result.stderr.splitlines()
    assert message in sentence


def test_an_exported_model_needs_a_source(maps):
    result = predict("--weights", maps)
    assert (result.exit_code, result.stderr.count("An exported model needs an image, folder or video")) == (2, 1)


# ---- accuracy


def mean_average_precision(found: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """mAP50-95 of rows (xyxy, score, class) against rows (class, xyxy) of the same images."""
    thresholds = np.linspace(0.5, 0.95, 10)
    hits = []
    for rows, labels in zip(found, truth, strict=True):
        iou = box_iou(torch.tensor(labels[:, 1:]), torch.tensor(rows[:, :4])).numpy()
        iou *= labels[:, :1] == rows[None, :, 5]
        hit = np.zeros((len(rows), 10), bool)
        for column, threshold in enumerate(thresholds):
            pairs = np.argwhere(iou >= threshold)
            pairs = pairs[iou[tuple(pairs.T)].argsort()[::-1]]
            pairs = pairs[np.unique(pairs[:, 1], return_index=True)[1]]
            pairs = pairs[np.unique(pairs[:, 0], return_index=True)[1]]
            hit[pairs[:, 1], column] = True
        hits.append(hit)
    rows = np.concatenate(found)
    result = ap_per_class(np.concatenate(hits), rows[:, 4], rows[:, 5], np.concatenate(truth)[:, 0])
    return float(result[5].mean())


@pytest.mark.data
def test_mean_average_precision_is_that_of_torch(data, tmp_path):
    weights = data / "weights" / "yolov8n-recovered.pt"
    images = list(islice(sorted((data / "coco128-val" / "images").rglob("*.jpg")), 12))
    truth = []
    for image in images:
        height, width = read_image(image).shape[:2]
        label = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
        rows = np.loadtxt(label, ndmin=2) if label.is_file() else np.zeros((0, 5))
        boxes = ops.xywh2xyxy(rows[:, 1:]) * [width, height, width, height]
        truth.append(np.column_stack((rows[:, 0], boxes)))
    file = export(weights, imgsz=640, path=tmp_path / "model.onnx")
    ours = [np.column_stack((*frame.detections,)) for frame in Detector(file, conf=0.001, threads=2).stream(images)]
    predictions = YOLO(weights).predict(images, conf=0.001, rect=False, stream=True, verbose=False, device="cpu")
    theirs = [np.asarray(result.boxes.data) for result in predictions]
    expected = mean_average_precision(theirs, truth)
    assert expected > 0.3
    assert mean_average_precision(ours, truth) == pytest.approx(expected, abs=0.001)
