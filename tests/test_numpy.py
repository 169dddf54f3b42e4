# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo._C: the table of cases on NumPy arrays, and what is NumPy's own: strides, errors, threads, forks."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES

import fastyolo
from fastyolo import _C
from fastyolo.ops import Detections

DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


def to_numpy(value):
    """Tensors to arrays that share their memory and strides."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    return [to_numpy(item) for item in value] if isinstance(value, list) else value


def to_torch(value):
    if isinstance(value, tuple):
        return Detections(*map(torch.from_numpy, value))
    return torch.from_numpy(value)


def head_maps(batch=2, classes=5, sizes=(8, 4, 2), seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    box_maps = [rng.normal(size=(batch, 64, size, size)).astype(dtype) for size in sizes]
    cls_maps = [rng.normal(-1, 2, size=(batch, classes, size, size)).astype(dtype) for size in sizes]
    return box_maps, cls_maps, [8.0 * 2**level for level in range(len(sizes))]


def random_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 600, size=(count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 100, size=(count, 2))], 1)
    return boxes.astype(np.float32), rng.permutation(count).astype(np.float32)


def feature_maps(x, weight):
    """What the operators on feature maps make of x [B, C, H, W] with a weight [3, C, K, K]."""
    return _C.eca(x, weight[0, 0, 0]), _C.dw_sppf(x, weight, weight[:, :, 0, 0]), _C.sppf_pool(x)


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)


def stub() -> dict[str, ast.arguments]:
    text = Path(fastyolo.__file__).with_name("_C.pyi").read_text()
    return {node.name: node.args for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


# ---- the same answers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", CASES, ids=lambda case: case.id)
def test_cases(row, dtype):
    inputs = row.inputs("cpu", dtype)
    result = getattr(_C, row.op)(**{name: to_numpy(value) for name, value in inputs.items()})
    row.check(to_torch(result), inputs)


def test_dtypes_and_shapes_of_results():
    num_dets, boxes, scores, labels, indices = _C.decode_nms(*head_maps(), max_det=7)
    assert (num_dets.dtype, num_dets.shape) == (np.int32, (2,))
    assert (boxes.dtype, boxes.shape) == (np.float32, (2, 7, 4))
    assert (scores.dtype, scores.shape) == (np.float32, (2, 7))
    assert (labels.dtype, labels.shape) == (np.int32, (2, 7))
    assert (indices.dtype, indices.shape) == (np.int32, (2, 7))
    assert _C.nms(*random_boxes(9), 0.5).dtype == np.int64
    assert _C.dfl_decode(np.zeros((1, 4, 3)), np.zeros((2, 3)), np.ones(3)).dtype == np.float64
    for dtype in DTYPES.values():
        results = feature_maps(np.zeros((2, 5, 3, 4), dtype), np.zeros((3, 5, 3, 3), dtype))
        assert [result.shape for result in results] == [(2, 5, 3, 4), (2, 20, 3, 4), (2, 20, 3, 4)]
        assert all(result.dtype == dtype and result.flags.c_contiguous for result in results)


def test_defaults_are_the_documented_ones():
    maps = head_maps(batch=4, classes=80, sizes=(40, 20, 10))
    documented = {
        arg.arg: ast.literal_eval(value)
        for arg, value in zip(stub()["decode_nms"].kwonlyargs, stub()["decode_nms"].kw_defaults, strict=True)
    }
    assert_equal(_C.decode_nms(*maps), _C.decode_nms(*maps, **documented))
    assert (_C.decode_nms(*maps)[0] == documented["max_det"]).all()

    x, weight = np.random.default_rng(0).normal(size=(1, 3, 9, 9)), np.full((3, 3, 3, 3), 0.1)
    np.testing.assert_array_equal(_C.dw_sppf(x, weight), _C.dw_sppf(x, weight, None, dilation=2, activation="identity"))
    np.testing.assert_array_equal(_C.sppf_pool(x), _C.sppf_pool(x, kernel_size=5))


def test_the_stub_says_what_the_module_says():
    assert set(stub()) == {name for name in vars(_C) if not name.startswith("__")}
    for name, arguments in stub().items():
        for argument in (*arguments.args, *arguments.kwonlyargs):
            argument.annotation = None
        signature = getattr(_C, name).__doc__.splitlines()[0]
        assert signature.replace(" ", "") == f"{name}({ast.unparse(arguments)})".replace(" ", "")


# ---- memory


def strided_copies(array):
    """The same values in other layouts: channels last, every second element, backwards, Fortran order."""
    yield np.ascontiguousarray(np.moveaxis(array, 1, -1)).transpose(0, array.ndim - 1, *range(1, array.ndim - 1))
    wide = np.zeros([2 * size for size in array.shape], array.dtype)
    wide[tuple(slice(1, None, 2) for _ in array.shape)] = array
    yield wide[tuple(slice(1, None, 2) for _ in array.shape)]
    yield np.ascontiguousarray(np.flip(array))[tuple(slice(None, None, -1) for _ in array.shape)]
    yield np.asfortranarray(array)


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_strides(dtype):
    box_maps, cls_maps, strides = head_maps(dtype=dtype)
    expected = _C.decode_nms(box_maps, cls_maps, strides)
    layouts = [list(zip(*map(strided_copies, maps), strict=True)) for maps in (box_maps, cls_maps)]
    for boxes, classes in zip(*layouts, strict=True):
        assert_equal(_C.decode_nms(boxes, classes, strides), expected)

    boxes = np.stack([random_boxes(40, seed)[0] for seed in range(2)]).astype(dtype)
    scores = np.random.default_rng(0).uniform(size=(2, 3, 40)).astype(dtype)
    expected = _C.multiclass_nms(boxes, scores)
    for strided in zip(strided_copies(boxes), strided_copies(scores), strict=True):
        assert_equal(_C.multiclass_nms(*strided), expected)

    logits = np.random.default_rng(0).normal(size=(2, 64, 33)).astype(dtype)
    points, pixels = np.ones((2, 33), dtype), np.full(33, 8, dtype)
    expected = _C.dfl_decode(logits, points, pixels)
    for strided in strided_copies(logits):
        np.testing.assert_array_equal(_C.dfl_decode(strided, points[:, ::-1], pixels[::-1]), expected)

    boxes, scores = random_boxes(40)
    keep = _C.nms(boxes, scores, 0.3)
    np.testing.assert_array_equal(_C.nms(np.asfortranarray(boxes), np.repeat(scores, 2)[::2], 0.3), keep)

    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 5, 19, 20)).astype(dtype), rng.normal(size=(3, 5, 3, 3)).astype(dtype)
    expected = feature_maps(x, weight)
    for strided in strided_copies(x):
        for result, contiguous in zip(feature_maps(strided, weight), expected, strict=True):
            np.testing.assert_allclose(result, contiguous, rtol=1e-5, atol=1e-6)


def test_broadcast_arrays_are_read_in_place():
    box_maps, cls_maps, strides = head_maps(batch=1)
    expected = _C.decode_nms(box_maps, cls_maps, strides)
    many = [[np.broadcast_to(x, (3, *x.shape[1:])) for x in maps] for maps in (box_maps, cls_maps)]
    for field, one in zip(_C.decode_nms(*many, strides), expected, strict=True):
        np.testing.assert_array_equal(field, np.broadcast_to(one, (3, *one.shape[1:])))

    image, weight = np.random.default_rng(0).normal(size=(1, 5, 9, 8)), np.full((3, 5, 3, 3), 0.1)
    for many, one in zip(
        feature_maps(np.broadcast_to(image, (3, 5, 9, 8)), weight), feature_maps(image, weight), strict=True
    ):
        np.testing.assert_array_equal(many, np.broadcast_to(one, many.shape))


def peak_bytes(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]  # NumPy reports its allocations
    finally:
        tracemalloc.stop()


def test_inputs_are_not_copied():
    box_maps, cls_maps, strides = head_maps(classes=80, sizes=(80, 40, 20))
    cls_maps = [np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for x in cls_maps]
    smallest = min(x.nbytes for x in (*box_maps, *cls_maps))
    assert peak_bytes(lambda: _C.decode_nms(box_maps, cls_maps, strides, max_det=10)) < smallest / 2

    weight = np.full((3, 16, 3, 3), 0.1)
    for x in strided_copies(np.ones((2, 16, 40, 40))):
        assert peak_bytes(lambda x=x: _C.eca(x, weight[0, 0, 0])) < 1.1 * x.nbytes
        assert peak_bytes(lambda x=x: _C.dw_sppf(x, weight)) < 4.1 * x.nbytes
        assert peak_bytes(lambda x=x: _C.sppf_pool(x)) < 4.1 * x.nbytes


def test_read_only_arrays():
    boxes, scores = random_boxes(9)
    boxes.flags.writeable = scores.flags.writeable = False
    assert len(_C.nms(boxes, scores, 1.0)) == 9


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, ">i8"])
def test_groups_of_any_integer_dtype(dtype):
    boxes, scores = random_boxes(200)
    groups = np.arange(200) % 7
    expected = _C.batched_nms(boxes, scores, groups, 0.2)
    np.testing.assert_array_equal(_C.batched_nms(boxes, scores, groups.astype(dtype), 0.2), expected)


# ---- errors: one sentence each


def misaligned(array):
    """A copy one byte off."""
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


BOXES, SCORES = random_boxes(6)
BOX_MAPS, CLS_MAPS, STRIDES = head_maps()
FIELDS = np.zeros(6, dtype=[("score", np.float32), ("flag", np.int8)])


def decode(box_maps=BOX_MAPS, cls_maps=CLS_MAPS, strides=STRIDES, **settings):
    return lambda: _C.decode_nms(box_maps, cls_maps, strides, **settings)


def changed(maps, level, array):
    return [*maps[:level], array, *maps[level + 1 :]]


HALF = [x.astype(np.float16) for x in BOX_MAPS]
POINTS, PIXELS, LOGITS = np.zeros((2, 9)), np.ones(9), np.zeros((2, 64, 9))
MAP, KERNELS = np.zeros((2, 5, 4, 4), np.float32), np.zeros((3, 5, 3, 3), np.float32)
ACCEPTED = "must be a NumPy array of float32 or float64"
DECODE = _C.decode_nms.__doc__.splitlines()[0]

TYPE_ERRORS = {
    f"box_maps[0] {ACCEPTED}, got float16": decode(HALF),
    f"box_maps[0] {ACCEPTED}, got int": decode([1, 2, 3]),
    f"cls_maps[1] {ACCEPTED}, got >f4": decode(cls_maps=changed(CLS_MAPS, 1, CLS_MAPS[1].astype(">f4"))),
    f"boxes {ACCEPTED}, got Tensor": lambda: _C.nms(torch.zeros(6, 4), SCORES, 0.5),
    f"scores {ACCEPTED}, got list": lambda: _C.nms(BOXES, [1.0] * 6, 0.5),
    "box_maps must be a sequence of arrays, one for each level, got int": decode(1),
    "cls_maps must be a sequence of arrays, one for each level, got str": decode(cls_maps="maps"),
    "cls_maps[0] must be float32 like box_maps[0], got float64": decode(cls_maps=head_maps(dtype=np.float64)[1]),
    "scores must be float32 like boxes, got float64": lambda: _C.nms(BOXES, SCORES.astype(float), 0.5),
    "strides must be float64 like logits, got float32": lambda: _C.dfl_decode(LOGITS, POINTS, PIXELS.astype("f4")),
    f"x {ACCEPTED}, got list": lambda: _C.sppf_pool([[[[1.0]]]]),
    "weight must be float32 like x, got float64": lambda: _C.eca(MAP, np.zeros(3)),
    "bias must be float32 like x, got float64": lambda: _C.dw_sppf(MAP, KERNELS, np.zeros((3, 5))),
    "activation must be a string, got int": lambda: _C.dw_sppf(MAP, KERNELS, activation=1),
    "dilation must be a 64-bit integer, got str": lambda: _C.dw_sppf(MAP, KERNELS, dilation="2"),
    "kernel_size must be a 64-bit integer, got float": lambda: _C.sppf_pool(MAP, kernel_size=5.0),
    "strides[1] must be a number, got str": decode(strides=[8, "16", 32]),
    "score_threshold must be a number, got str": decode(score_threshold="0.25"),
    "max_det must be a 64-bit integer, got float": decode(max_det=300.0),
    "max_candidates must be a 64-bit integer, got int": decode(max_candidates=2**64),
    "multi_label must be True or False, got int": decode(multi_label=1),
    "classes must be a sequence of integers, got int": decode(classes=3),
    "classes[1] must be a 64-bit integer, got float": decode(classes=[0, 1.5]),
    "idxs must be a NumPy array of integers or None, got list": lambda: _C.batched_nms(BOXES, SCORES, [0] * 6, 0.5),
    "idxs must be a NumPy array of integers or None, got float32": lambda: _C.batched_nms(BOXES, SCORES, SCORES, 0.5),
    "num_threads must be a 64-bit integer, got str": lambda: _C.set_num_threads("2"),
    f"The call must be {DECODE}; got 1 positional arguments, strides": lambda: _C.decode_nms(BOX_MAPS, strides=STRIDES),
    f"The call must be {DECODE}; got 3 positional arguments, conf": decode(conf=0.5),
}

VALUE_ERRORS = {
    "box_maps must hold 1 to 8 levels, got 0": decode([], [], []),
    "box_maps must hold 1 to 8 levels, got 9": decode(BOX_MAPS * 3, CLS_MAPS * 3, STRIDES * 3),
    "cls_maps must have one entry for each of the 3 levels of box_maps, got 2": decode(cls_maps=CLS_MAPS[:2]),
    "strides must have one entry for each of the 3 levels of box_maps, got 1": decode(strides=[8]),
    "strides[2] must be a positive number of pixels, got -1": decode(strides=[8, 16, -1]),
    "box_maps[0] must have shape [B, 4R, H, W], got (2, 64, 8)": decode([x[..., 0] for x in BOX_MAPS]),
    "box_maps[0] must have shape [B, 4R, H, W], got (2, 63, 8, 8)": decode([x[:, 1:] for x in BOX_MAPS]),
    "box_maps[1] must have channel count 64 like box_maps[0], got shape (2, 32, 4, 4)": decode(
        changed(BOX_MAPS, 1, BOX_MAPS[1][:, :32])
    ),
    "cls_maps[1] must have class count 5 like cls_maps[0], got shape (2, 4, 4, 4)": decode(
        cls_maps=changed(CLS_MAPS, 1, CLS_MAPS[1][:, :4])
    ),
    "cls_maps[2] must have batch size 2 like box_maps[0], got shape (1, 5, 2, 2)": decode(
        cls_maps=changed(CLS_MAPS, 2, CLS_MAPS[2][:1])
    ),
    "cls_maps[0] must be 8x8 like box_maps[0], got 8x4": decode(cls_maps=changed(CLS_MAPS, 0, CLS_MAPS[0][..., :4])),
    "score_threshold must be in [0, 1], got nan": decode(score_threshold=float("nan")),
    "iou_threshold must be in [0, 1], got 1.5": decode(iou_threshold=1.5),
    "max_det must be in [0, 65536], got -1": decode(max_det=-1),
    "max_candidates must be in [1, 1048576], got 0": decode(max_candidates=0),
    "classes[1] must be in [0, 5), got 5": decode(classes=[0, 5]),
    "boxes must have shape [N, 4], got (6, 3)": lambda: _C.nms(BOXES[:, :3], SCORES, 0.5),
    "scores must have box count 6 like boxes, got shape (5,)": lambda: _C.nms(BOXES, SCORES[:5], 0.5),
    "idxs must have shape [N] with N 6 like boxes, got (5,)": lambda: _C.batched_nms(BOXES, SCORES, np.arange(5), 0.5),
    "max_det must not be negative, got -1": lambda: _C.nms(BOXES, SCORES, 0.5, -1),
    "boxes must have shape [B, N, 4], got (6, 4)": lambda: _C.multiclass_nms(BOXES, SCORES),
    "scores must have box count 6 like boxes, got shape (1, 2, 5)": lambda: _C.multiclass_nms(
        BOXES[None], np.zeros((1, 2, 5), np.float32)
    ),
    "anchor_points must have shape [2, A], got (1, 9)": lambda: _C.dfl_decode(LOGITS, POINTS[:1], PIXELS),
    "strides must have anchor count 9 like logits, got shape (8,)": lambda: _C.dfl_decode(LOGITS, POINTS, PIXELS[:8]),
    "scores must have strides and an address that are multiples of 4 bytes, got strides (5,); pass a copy": (
        lambda: _C.nms(BOXES, FIELDS["score"], 0.5)
    ),
    "boxes must have strides and an address that are multiples of 4 bytes, got strides (16, 4); pass a copy": (
        lambda: _C.nms(misaligned(BOXES), SCORES, 0.5)
    ),
    "x must have shape [B, C, H, W], got (2, 5, 4)": lambda: _C.sppf_pool(MAP[..., 0]),
    "weight must have shape [k], got (1, 1, 3)": lambda: _C.eca(MAP, np.zeros((1, 1, 3), np.float32)),
    "weight must have an odd number of elements up to 31, got 4": lambda: _C.eca(MAP, np.zeros(4, np.float32)),
    "weight must have shape [3, C, K, K], got (2, 5, 3, 3)": lambda: _C.dw_sppf(MAP, KERNELS[:2]),
    "weight must have shape [3, C, K, K], got (3, 5, 3, 2)": lambda: _C.dw_sppf(MAP, KERNELS[..., :2]),
    "weight must have channel count 5 like x, got shape (3, 4, 3, 3)": lambda: _C.dw_sppf(MAP, KERNELS[:, :4]),
    "bias must have channel count 5 like x, got shape (3, 4)": lambda: _C.dw_sppf(MAP, KERNELS, KERNELS[:, :4, 0, 0]),
    "bias must have shape [3, C], got (2, 5)": lambda: _C.dw_sppf(MAP, KERNELS, KERNELS[:2, :, 0, 0]),
    "activation must be identity, relu or silu, got gelu": lambda: _C.dw_sppf(MAP, KERNELS, activation="gelu"),
    "dilation must be 1 or 2, got 3": lambda: _C.dw_sppf(MAP, KERNELS, dilation=3),
    "kernel_size must be an odd number up to 15, got 4": lambda: _C.sppf_pool(MAP, kernel_size=4),
    "num_threads must be in [1, 1024], got 0": lambda: _C.set_num_threads(0),
}


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [(TypeError, *row) for row in TYPE_ERRORS.items()] + [(ValueError, *row) for row in VALUE_ERRORS.items()],
)
def test_errors(error, message, call):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_more_elements_than_32_bits_can_count_are_refused():
    one = np.zeros((1, 1, 1, 1), np.float32)
    box_map = np.broadcast_to(one, (1, 4, 30000, 30000))
    cls_map = np.broadcast_to(one, (1, 1, 30000, 30000))
    with pytest.raises(ValueError, match=r"box_maps\[0\] has more than 2\^31 - 1 elements \(1x4x30000x30000\)"):
        _C.decode_nms([box_map], [cls_map], [8])


# ---- threads, forks, other processes


@pytest.fixture
def threads():
    before = _C.get_num_threads()
    yield _C.set_num_threads
    _C.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_results_do_not_depend_on_the_number_of_threads(threads, count):
    maps = head_maps(batch=3, classes=20, sizes=(40, 20, 10))
    one_image = [[x[:1] for x in maps[0]], [x[:1] for x in maps[1]], maps[2]]
    threads(1)
    expected = _C.decode_nms(*maps, multi_label=True), _C.decode_nms(*one_image, multi_label=True)
    threads(count)
    assert _C.get_num_threads() == count
    for _ in range(10):
        assert_equal(_C.decode_nms(*maps, multi_label=True), expected[0])
        assert_equal(_C.decode_nms(*one_image, multi_label=True), expected[1])


def test_several_python_threads_call_at_once(threads):
    threads(3)
    inputs = [head_maps(batch=2, classes=10, sizes=(20, 10, 5), seed=seed) for seed in range(6)]
    expected = [_C.decode_nms(*maps) for maps in inputs]
    wrong = []

    def work(maps, result):
        try:
            for _ in range(50):
                assert_equal(_C.decode_nms(*maps), result)
        except AssertionError as error:
            wrong.append(error)

    workers = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
    for worker in workers:
        worker.start()
    for _ in range(50):
        threads(2)
        threads(4)
    for worker in workers:
        worker.join(timeout=100)
        assert not worker.is_alive()
    assert not wrong


def test_the_gil_is_released_while_a_kernel_runs():
    boxes, scores = random_boxes(30000)  # without a limit: a tenth of a second and more
    started, done = threading.Event(), threading.Event()

    def work():
        started.set()
        _C.nms(boxes, scores, 0.9)
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    started.wait()
    turns = 0
    while not done.wait(0.001):
        turns += 1
    worker.join()
    assert turns > 10


def test_forked_children_have_threads_of_their_own():
    # In a process of its own: some forks come while another thread is inside a kernel and may hold the pool's lock.
    code = """
import os, sys, threading, warnings
import numpy as np
from fastyolo import _C
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of forks beside threads
rng = np.random.default_rng(0)
maps = [rng.normal(size=(4, 64, 16, 16)).astype("f4")], [rng.normal(size=(4, 20, 16, 16)).astype("f4")], [8]
_C.set_num_threads(4)
expected = _C.decode_nms(*maps)
stop = threading.Event()
def work():
    while not stop.is_set():
        _C.decode_nms(*maps)
busy = threading.Thread(target=work)
busy.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(a, b) for a, b in zip(_C.decode_nms(*maps), expected))
        os._exit(0 if same and _C.get_num_threads() == 4 else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
busy.join()
print("done")
"""
    assert run_python(code) == "done\n"


def test_the_module_needs_no_torch():
    code = """
import sys
import numpy as np
from fastyolo import _C
assert "numpy" in sys.modules
maps = [np.zeros((1, 64, 4, 4), "f4")], [np.zeros((1, 3, 4, 4), "f4")], [8]
_C.decode_nms(*maps)
_C.multiclass_nms(np.zeros((1, 5, 4)), np.zeros((1, 3, 5)))
_C.nms(np.zeros((5, 4)), np.zeros(5), 0.5)
_C.dfl_decode(np.zeros((1, 64, 4)), np.zeros((2, 4)), np.zeros(4))
_C.eca(np.zeros((1, 5, 4, 4)), np.zeros(3))
_C.dw_sppf(np.zeros((1, 5, 4, 4)), np.zeros((3, 5, 3, 3)))
_C.sppf_pool(np.zeros((1, 5, 4, 4)))
print(sorted({"torch", "ultralytics"} & set(sys.modules)))
"""
    assert run_python(code) == "[]\n"


def test_threads_are_as_many_as_the_cpus_allowed():
    restrict = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    count = "from fastyolo import _C; print(_C.get_num_threads())"
    assert run_python(restrict + count) == "1\n"
    assert run_python(count) == f"{len(os.sched_getaffinity(0))}\n"


# ---- what was built


def test_build_info():
    info = _C.build_info()
    assert info["version"] == _C.__version__
    assert info["cpu_isa"] in info["cpu_isas"]
    assert info["cpu_isas"][0] == "baseline"
    assert info["cuda"] == bool(info["cuda_architectures"]) == (info["cuda_version"] is not None)
    assert re.match(r"(GNU|Clang|AppleClang) \d+", info["compiler"])
    assert info["build_type"]
