# SPDX-License-Identifier: AGPL-3.0-or-later
"""The stand-in for CUDA: what it must catch, what it models, and the project's kernels on it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import simt
import simt_plugin
import torch
from cases import CASES

HERE = Path(__file__).resolve().parent
BOTH = simt.BUILDS
ORDERS = (0, 1, 2, 3)

# What each kernel of wrong_kernels.cu is reported as, by the builds that can see it.
WRONG = {
    "global_read_out_of_bounds": {"checked": "out of bounds: read of 4 bytes at byte 256", "asan": "READ of size 4"},
    "global_write_out_of_bounds": {"checked": r"write of 4 bytes at byte \d+ of the 4", "asan": "WRITE of size 4"},
    "shared_read_out_of_bounds": {"checked": "nobody wrote what is read", "asan": "index 64 out of bounds"},
    "shared_write_out_of_bounds": {"asan": "index 64 out of bounds"},
    "shared_pointer_out_of_bounds": {"asan": "global-buffer-overflow"},
    "dynamic_shared_out_of_bounds": {"checked": "write of 4 bytes at byte 256", "asan": "WRITE of size 4"},
    "read_only_load_of_a_result": {"checked": "read-only load of what this launch wrote: read of 4 bytes at byte 0"},
    "divergent_barrier": dict.fromkeys(BOTH, r"divergent barrier.*thread \(32, 0, 0\) has returned"),
    "barrier_in_branch": dict.fromkeys(BOTH, "divergent barrier"),
    "shuffle_from_absent_lane": dict.fromkeys(BOTH, "__shfl_sync reads lane 20, which does not take part"),
    "shuffle_that_lanes_miss": dict.fromkeys(BOTH, "divergent warp intrinsic.*waits at __shfl_xor_sync"),
    "missing_barrier": {"checked": "nobody wrote what is read|race with the write"},
    "missing_barrier_before_write": {"checked": "race with the (read|write)"},
    "missing_syncwarp": {"checked": "nobody wrote what is read|race with the write"},
    "race_between_blocks": {"checked": "race with the write of thread 0 of another block"},
    "missing_barrier_before_arrival": {"checked": "race with the write of thread 1 of another block"},
    "shared_never_written": {"checked": "nobody wrote what is read"},
    "shared_left_by_another_block": {"checked": "nobody wrote what is read"},
    "global_never_written": {"checked": "nobody wrote what is read"},
    "unaligned_vector": {"checked": "unaligned: read of 16 bytes", "asan": "misaligned address"},
    "host_memory": {"checked": "neither global, shared nor local"},
    "too_many_threads": dict.fromkeys(BOTH, r"more threads in a block than the device has.*\(2048, 1, 1\)"),
    "too_much_shared_memory": dict.fromkeys(BOTH, "more dynamic shared memory than the kernel was allowed"),
    "unchecked_launch_error": dict.fromkeys(BOTH, "the error of this kernel's launch was not checked"),
    "unordered_streams": dict.fromkeys(BOTH, "work on one stream while another stream's has not been waited for"),
}
IN_LAUNCH = ("too_many_threads", "too_much_shared_memory", "unchecked_launch_error", "unordered_streams")


@pytest.fixture(scope="session", autouse=True)
def libraries() -> None:
    simt.build()


@pytest.fixture(scope="session")
def runs(libraries: None) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The operators' tests on both builds, at the same time, in as little as finds what a change broke.

    Races are found in any order of threads; another one shows an answer that depends on it. Under AddressSanitizer one
    order does, and bfloat16, whose accesses are those of float16, is left out.
    """
    options = {"checked": ("--orders", "2"), "asan": ("--orders", "1", "-k", "not bfloat16")}
    processes = {build: simt.run_tests(build, simt.BUILD, *options[build]) for build in BOTH}
    yield processes
    for process in processes.values():
        process.kill()


@pytest.fixture
def checked(libraries: None) -> Iterator[ModuleType]:
    module = simt.load("checked")
    yield module
    module.set_order(0)
    module.fail_launch_after(-1)


def run_with(build: str, code: str) -> subprocess.CompletedProcess[str]:
    """Python code after `import simt` and m = the build's module, in a process of its own."""
    command = [sys.executable, "-c", f"import simt; m = simt.load({build!r}); {code}"]
    return subprocess.run(
        command, cwd=HERE, env=simt.environment(build), capture_output=True, text=True, timeout=300, check=False
    )


def wrong_line(name: str) -> int:
    """The line of this kernel that says `// wrong`."""
    lines = (HERE / "wrong_kernels.cu").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if f" {name}_kernel(" in line)
    return next(i + 1 for i, line in enumerate(lines) if i > start and line.endswith("// wrong"))


@pytest.mark.parametrize(("name", "build"), [(name, build) for name, expected in WRONG.items() for build in expected])
def test_wrong_kernel_is_reported(name: str, build: str) -> None:
    for order in ORDERS if build == "checked" else (0,):
        done = run_with(build, f"m.set_order({order}); m.run_wrong_kernel({name!r})")
        assert done.returncode != 0
        assert re.search(WRONG[name][build], done.stderr, re.DOTALL), done.stderr
        if name in IN_LAUNCH:
            assert re.search(r"in the launch of first_element_kernel\n +at .*wrong_kernels.cu:\d+", done.stderr)
        else:
            assert re.search(r"in \w+_kernel, block \(\d, 0, 0\), thread \(\d+, 0, 0\)", done.stderr), done.stderr
        if name not in (*IN_LAUNCH, "host_memory"):
            assert f"in {name}_kernel, block" in done.stderr
            assert f"wrong_kernels.cu:{wrong_line(name)}" in done.stderr, done.stderr


@pytest.mark.parametrize("build", BOTH)
def test_right_kernels_are_not_reported(build: str) -> None:
    code = "\nfor i in range(8): m.set_order(i); m.run_intrinsics(); assert m.run_wrong_kernel('correct') == 2016"
    done = run_with(build, code)
    assert done.returncode == 0, done.stderr


def test_device_limits_are_configurable(checked: ModuleType) -> None:
    checked.device.block_threads = 32
    try:
        with pytest.raises(RuntimeError, match="more threads in a block than the device has"):
            checked.run_wrong_kernel("correct")
    finally:
        checked.device.block_threads = 1024
    checked.run_wrong_kernel("correct")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_round_as_torch_does(dtype: torch.dtype, checked: ModuleType) -> None:
    name = "half" if dtype == torch.float16 else "bfloat16"
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    value_of, bits_of = getattr(checked, f"{name}_value"), getattr(checked, f"{name}_bits")
    values = torch.tensor([value_of(bits & 0xFFFF) for bits in every.view(torch.int16).tolist()])
    torch.testing.assert_close(values, every.float(), rtol=0, atol=0, equal_nan=True)

    # Each value, each midpoint of neighbours, and the floats beside both.
    exact = every.float().unique()
    exact = exact[exact.isfinite()]
    middles = exact[1:] / 2 + exact[:-1] / 2
    points = torch.cat([exact, middles, torch.tensor([torch.inf, 3.4e38, 65520.0, 65519.99])])
    points = torch.cat([points, points.nextafter(torch.tensor(torch.inf)), points.nextafter(torch.tensor(-torch.inf))])
    points = points[~points.isnan()]
    bits = torch.tensor([bits_of(x) for x in points.tolist()]).to(torch.int16)
    assert torch.equal(bits, points.to(dtype).view(torch.int16))
    assert bits_of(float("nan")) == 0x7FFF


@pytest.mark.parametrize(
    ("op", "settings"),
    [(op, {}) for op in simt_plugin.OPS]
    + [(op, {"thresholds": torch.tensor([0.25, 0.7])}) for op in ("decode_nms", "multiclass_nms")],
)
def test_entries_check_every_launch(op: str, settings: dict[str, torch.Tensor], checked: ModuleType) -> None:
    cases = [case for case in CASES if case.op == op.removesuffix("_backward")]
    case = next(x for x in cases if all(t.numel() for t in x.inputs().values() if isinstance(t, torch.Tensor)))
    inputs = case.inputs() if op == case.op else case.backward_inputs(case.inputs())
    kernels = simt_plugin.Kernels(checked)
    launches = 0
    while True:
        checked.fail_launch_after(launches)
        try:
            getattr(kernels, op)(**inputs, **settings)
        except ValueError as error:
            assert "invalid configuration argument" in str(error)  # noqa: PT017
            launches += 1
        else:
            break
        assert launches < 1000
    assert launches > 0


# Float32 numbers; 1e-45 becomes the smallest of all, 0.99999994 the largest below 1.
THRESHOLDS = (0.0, 1e-45, 0.001, 0.25, 0.3, 0.5, 0.7, 0.69999993, 0.99999994, 1.0)
Detect = Callable[..., tuple[torch.Tensor, ...]]


def neighbours(value: float, count: int = 3) -> list[float]:
    """The float32 number nearest to a value, and those on both sides of it."""
    found = [torch.tensor(value, dtype=torch.float32)]
    for _ in range(count):
        found = [found[0].nextafter(torch.tensor(-math.inf)), *found, found[-1].nextafter(torch.tensor(math.inf))]
    return [x.item() for x in found]


def boxes_at_thresholds() -> torch.Tensor:
    """[1, N, 4] pairs of boxes apart from the other pairs, which overlap by about each of THRESHOLDS."""
    rows = [[10.0 * i, 0.0, 10.0 * i + 1, y] for i, t in enumerate(THRESHOLDS) for y in (1.0, t)]
    return torch.tensor(rows)[None]


def detect_maps(kernels: simt_plugin.Kernels, **settings: object) -> tuple[torch.Tensor, ...]:
    """decode_nms of boxes_at_thresholds, each with logits around every threshold's, a class each."""
    boxes = boxes_at_thresholds()[0]
    centres = torch.stack([torch.arange(len(boxes)) + 0.5, torch.full((len(boxes),), 0.5)], 1)
    distances = torch.cat([centres - boxes[:, :2], boxes[:, 2:] - centres], 1)
    logits = [x for t in THRESHOLDS[1:-1] for x in neighbours(math.log(t) - math.log1p(-t))]
    cls_map = torch.tensor(logits)[None, :, None, None].repeat(1, 1, 1, len(boxes))
    return kernels.decode_nms([distances.T[None, :, None].contiguous()], [cls_map], [1.0], **settings)


def detect_boxes(kernels: simt_plugin.Kernels, **settings: object) -> tuple[torch.Tensor, ...]:
    boxes = boxes_at_thresholds()
    scores = torch.tensor([x for t in THRESHOLDS for x in neighbours(t)])[None, :, None]
    return kernels.multiclass_nms(boxes, scores.repeat(1, 1, boxes.shape[1]), **settings)


@pytest.mark.parametrize("detect", [detect_maps, detect_boxes])
def test_thresholds_on_the_device_do_the_same(detect: Detect, checked: ModuleType) -> None:
    """To the bit, for scores and IoUs at the thresholds and on both sides of them."""
    kernels = simt_plugin.Kernels(checked)
    counts = set()
    for score, iou in [*((t, 0.5) for t in THRESHOLDS), *((0.5, t) for t in THRESHOLDS)]:
        settings = {"multi_label": True, "max_det": 2000}
        thresholds = torch.tensor([score, iou])
        expected = detect(kernels, score_threshold=thresholds[0].item(), iou_threshold=thresholds[1].item(), **settings)
        # The values that are replaced would give another answer.
        actual = detect(kernels, score_threshold=1.0, iou_threshold=0.01, thresholds=thresholds, **settings)
        assert all(map(torch.equal, actual, expected)), (score, iou)
        counts.add(expected[0].item())
    assert len(counts) > len(THRESHOLDS)


@pytest.mark.parametrize("detect", [detect_maps, detect_boxes])
def test_thresholds_on_the_device_that_are_none(detect: Detect, checked: ModuleType) -> None:
    kernels = simt_plugin.Kernels(checked)
    for score, iou in [(math.nan, 0.5), (0.5, math.nan)]:
        assert detect(kernels, thresholds=torch.tensor([score, iou]))[0].item() == 0
    for (score, iou), nearest in {
        (-1.0, 2.0): (0.0, 1.0),
        (-math.inf, -0.5): (0.0, 0.0),
        (1.5, 0.5): (1.0, 0.5),
        (0.25, math.inf): (0.25, 1.0),
    }.items():
        expected = detect(kernels, score_threshold=nearest[0], iou_threshold=nearest[1])
        assert all(map(torch.equal, detect(kernels, thresholds=torch.tensor([score, iou])), expected)), (score, iou)


def letterboxed(module: ModuleType, image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[3, height, width] float32 of an image [H, W, 3] RGB, by the example's kernel."""
    flat = module.letterbox(image.tobytes(), image.shape[1], image.shape[0], width, height)
    return np.array(flat, dtype=np.float32).reshape(3, height, width)


@pytest.mark.parametrize(
    ("shape", "net"),
    [((37, 53), (64, 64)), ((120, 90), (64, 96)), ((64, 64), (64, 64)), ((300, 7), (64, 64)), ((1, 1), (32, 32)),
     ((1, 2000), (64, 64)), ((75, 100), (96, 64))],
)  # fmt: skip
def test_letterbox_of_the_example_is_that_of_ultralytics(
    shape: tuple[int, int], net: tuple[int, int], checked: ModuleType
) -> None:
    augment = pytest.importorskip("ultralytics.data.augment")
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = augment.LetterBox(net)(image=image).transpose(2, 0, 1).astype(np.int64)
    actual = letterboxed(checked, image, *net) * 255
    whole = np.rint(actual)
    assert np.abs(actual - whole).max() < 1e-3
    assert np.abs(whole - expected).max() <= 1


@pytest.mark.parametrize("build", BOTH)
def test_kernels(build: str, runs: dict[str, subprocess.Popen[str]]) -> None:
    output, _ = runs[build].communicate(timeout=590)
    assert runs[build].returncode == 0, output
