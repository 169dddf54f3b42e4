# SPDX-License-Identifier: AGPL-3.0-or-later
"""The operators inside torch: registration, tracing, export, threads, streams, and the library that holds them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case, Inputs, channels_last, cropped
from torch import Tensor, nn

import fastyolo
from fastyolo import _library, ops

TESTS = Path(__file__).parent
# One case of each operator, with as many of its features as one case can have.
BY_OP = {
    case.op: case
    for case in CASES
    if case.id
    in (
        "decode_nms-classes-multi-label",
        "multiclass_nms-classes",
        "batched_nms-random-1000-groups-5-max_det-10",
        "dfl_decode-default",
    )
}


@pytest.fixture(params=BY_OP.values(), ids=BY_OP)
def each(request: pytest.FixtureRequest) -> Case:
    return request.param


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [tensor for item in value for tensor in tensors_of(item)]
    return [value] if isinstance(value, Tensor) else []


# ---- registration


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(each: Case, device: str, requires_grad: bool) -> None:
    inputs = each.inputs(device)
    if requires_grad:
        next(iter(tensors_of(inputs))).requires_grad_()
    torch.library.opcheck(getattr(torch.ops.fastyolo, each.op).default, (), inputs)


def test_opcheck_backward(device: str) -> None:
    logits, _, strides = BY_OP["dfl_decode"].inputs(device).values()
    for layout in (torch.clone, channels_last):
        arguments = (torch.randn(2, 4, 33, device=device), layout(logits), strides)
        torch.library.opcheck(torch.ops.fastyolo.dfl_decode_backward.default, arguments)


def test_nms_has_no_gradient(device: str) -> None:
    for op in ("decode_nms", "multiclass_nms", "batched_nms"):
        inputs = BY_OP[op].inputs(device)
        for tensor in tensors_of(inputs):
            tensor.requires_grad_(tensor.is_floating_point())
        results = flat(getattr(torch.ops.fastyolo, op)(**inputs))
        assert not any(result.requires_grad for result in results)


def test_meta_tensors(each: Case) -> None:
    op = getattr(torch.ops.fastyolo, each.op)
    for actual, expected in zip(flat(op(**each.inputs("meta"))), flat(op(**each.inputs())), strict=True):
        assert (actual.shape, actual.dtype, actual.stride()) == (expected.shape, expected.dtype, expected.stride())


# ---- tracing


def same(actual: Any, expected: Any) -> bool:
    return all(torch.equal(a, e) for a, e in zip(flat(actual), flat(expected), strict=True))


def test_compile(each: Case, device: str) -> None:
    function = getattr(ops, each.op)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = each.inputs(device)
    actual, expected = compiled(**inputs), function(**inputs)
    assert type(actual) is type(expected)
    assert same(actual, expected)


class Head(nn.Module):
    """The last convolutions of a detector, and its post-processing."""

    def __init__(self) -> None:
        super().__init__()
        self.box = nn.ModuleList(nn.Conv2d(8, 64, 1) for _ in range(2))
        self.cls = nn.ModuleList(nn.Conv2d(8, 5, 1) for _ in range(2))

    def forward(self, features: list[Tensor]) -> ops.Detections:
        box_maps = [conv(x) for conv, x in zip(self.box, features, strict=True)]
        cls_maps = [conv(x) for conv, x in zip(self.cls, features, strict=True)]
        return ops.decode_nms(box_maps, cls_maps, [8.0, 16.0], score_threshold=0.4, max_det=20)


def features(batch: int, size: int, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return [torch.randn(batch, 8, s, s, generator=generator).to(device) for s in (size, size // 2)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own, in torch 2.11
def test_compile_with_inductor(device: str) -> None:
    """Generated code around the operator hands it the layouts that it asked for."""
    torch.manual_seed(0)
    head = Head().to(device).eval()
    compiled = torch.compile(head, fullgraph=True)
    with torch.no_grad():
        for batch, size in ((2, 8), (3, 12)):
            actual, expected = compiled(features(batch, size, device)), head(features(batch, size, device))
            assert expected.num_dets.min() > 0
            assert torch.equal(actual.num_dets, expected.num_dets)
            assert torch.equal(actual.indices, expected.indices)
            torch.testing.assert_close(actual.boxes, expected.boxes, rtol=1e-4, atol=1e-3)


def test_export(device: str) -> None:
    torch.manual_seed(0)
    head = Head().to(device).eval()
    batch, size = torch.export.Dim("batch"), torch.export.Dim("size", min=2)
    dynamic = {"features": [{0: batch, 2: 2 * size, 3: 2 * size}, {0: batch, 2: size, 3: size}]}
    program = torch.export.export(head, (features(2, 8, device),), dynamic_shapes=dynamic)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(torch.ops.fastyolo.decode_nms.default) == 1
    for shape in ((2, 8), (5, 12)):
        assert same(program.module()(features(*shape, device)), head(features(*shape, device)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_training_step(device: str) -> None:
    """Forward and backward through dfl_decode, generated code before and after it."""
    inputs = BY_OP["dfl_decode"].inputs(device)
    logits, points, strides = inputs.values()

    def loss(logits: Tensor) -> Tensor:
        return ops.dfl_decode(2 * logits, points, strides).square().mean()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        leaf = channels_last(logits).requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


# ---- execution


@pytest.mark.parametrize("layout", [channels_last, cropped])
@pytest.mark.parametrize("op", ["decode_nms", "multiclass_nms", "dfl_decode"])
def test_no_layout_is_copied(op: str, layout: Callable[[Tensor], Tensor], device: str) -> None:
    inputs = BY_OP[op].inputs(device)
    copies = {"aten::clone", "aten::copy_", "aten::contiguous"}

    def copies_of(inputs: Inputs) -> set[str]:
        with torch.autograd.profiler.profile() as profile:
            BY_OP[op].run(inputs)
        return copies & {event.name for event in profile.function_events}

    if op == "dfl_decode":
        inputs["logits"] = layout(inputs["logits"])
    else:
        inputs = {
            name: [layout(x) for x in value] if isinstance(value, list) and name.endswith("maps") else value
            for name, value in inputs.items()
        }
        if op == "multiclass_nms":
            inputs |= {name: layout(inputs[name]) for name in ("boxes", "scores")}
    assert not any(x.is_contiguous() for x in tensors_of(inputs) if x.dim() > 2)
    assert copies_of(inputs) == set()
    if op == "dfl_decode":  # and the profile would tell
        inputs["strides"] = inputs["strides"].repeat_interleave(2)[::2]
        assert copies_of(inputs) != set()


@pytest.mark.parametrize("op", BY_OP)
def test_thread_count_does_not_change_the_result(op: str) -> None:
    before = torch.get_num_threads()
    heaviest = [case for case in CASES if case.op == op and case.name in ("9-images", "scene", "1000-anchors", "many")]
    try:
        for case in heaviest or [BY_OP[op]]:
            inputs = case.inputs()
            results = []
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                results.append(case.run(inputs))
            assert all(same(result, results[0]) for result in results)
    finally:
        torch.set_num_threads(before)


def test_two_runs_are_equal(each: Case, device: str) -> None:
    inputs = each.inputs(device)
    assert same(each.run(inputs), each.run(inputs))


@pytest.mark.cuda
def test_cuda_graph(each: Case) -> None:
    """Captured once, replayed on other data."""
    op = getattr(torch.ops.fastyolo, each.op)
    inputs = each.inputs("cuda")
    other = [tensor[..., torch.randperm(tensor.shape[-1], device="cuda")] for tensor in tensors_of(inputs)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        op(**inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op(**inputs)
    graph.replay()
    before = [tensor.clone() for tensor in flat(captured)]
    assert same(before, op(**inputs))
    for tensor, data in zip(tensors_of(inputs), other, strict=True):
        tensor.copy_(data)
    graph.replay()
    assert same(captured, op(**inputs))
    assert not same(captured, before)


@pytest.mark.cuda
def test_cuda_stream(each: Case) -> None:
    """The operator runs on the current stream: behind the work queued there, without a host synchronisation."""
    op = getattr(torch.ops.fastyolo, each.op)
    inputs = each.inputs("cuda")
    expected = op(**inputs)
    data = [tensor.clone() for tensor in tensors_of(inputs)]
    for tensor in tensors_of(inputs):
        tensor.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for tensor, value in zip(tensors_of(inputs), data, strict=True):
            tensor.copy_(value)
        actual = op(**inputs)
        assert not stream.query()
    stream.synchronize()
    assert same(actual, expected)


@pytest.mark.cuda
def test_cuda_matches_cpu(each: Case) -> None:
    actual = flat(each.run(each.inputs("cuda")))
    for result, expected in zip(actual, flat(each.run(each.inputs("cpu"))), strict=True):
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-5, atol=1e-4)


# ---- the library


@pytest.mark.parametrize("isa", sorted({*fastyolo.build_info()["cpu_isas"]} - {fastyolo.build_info()["cpu_isa"]}))
def test_other_cpu_instruction_sets(isa: str) -> None:
    """The tests of the operators with the kernels that this process does not use."""
    environment = {**os.environ, "FASTYOLO_CPU_ISA": isa}
    query = "import fastyolo; print(fastyolo.build_info()['cpu_isa'])"
    used = subprocess.run([sys.executable, "-c", query], env=environment, capture_output=True, text=True, check=True)
    if used.stdout.strip() != isa:
        pytest.skip(f"this CPU has no {isa}")
    files = ["test_decode_nms.py", "test_batched_nms.py", "test_dfl_decode.py"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        "not cuda",
        "-k",
        "not 10000",
        "-p",
        "no:cacheprovider",
    ]
    result = subprocess.run(
        [*command, *(str(TESTS / file) for file in files)],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def test_missing_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fastyolo._C, "__file__", str(tmp_path / "_C.so"))
    with pytest.raises(ImportError, match=r"are not built: .* is missing; build them with: pip install"):
        _library.load()


def test_unloadable_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libfastyolo_torch.so").write_bytes(b"not a library")
    monkeypatch.setattr(fastyolo._C, "__file__", str(tmp_path / "_C.so"))
    with pytest.raises(ImportError, match=r"cannot be loaded by torch .*; build them again with: pip install"):
        _library.load()


def test_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastyolo, "__version__", "999")
    with pytest.raises(ImportError, match=r"is stale: .* are of version 999; build it again with: pip install"):
        _library.load()


def test_library_without_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_OPERATORS", (*_library._OPERATORS, "yet_to_come"))
    with pytest.raises(ImportError, match=r"is stale: .* has no operator yet_to_come, .*; build it again with: pip"):
        _library.load()
