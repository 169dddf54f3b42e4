# SPDX-License-Identifier: AGPL-3.0-or-later
"""The operators inside torch: registration, tracing, export, threads, streams, and the library that holds them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import (
    CASES,
    DIFFERENTIABLE,
    Case,
    Inputs,
    broadcast,
    channels_last,
    cropped,
    cropped_channels_last,
    map_case,
    transposed,
)
from torch import Tensor, nn

import fastyolo
from fastyolo import _library, ops
from fastyolo.bench.timing import peak_extra_bytes

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
        "eca-default",
        "dw_sppf-default",
        "sppf_pool-default",
    )
}
FEATURE_MAPS = ("eca", "dw_sppf", "sppf_pool")
LAYOUTS = (channels_last, cropped, cropped_channels_last, transposed, broadcast)


@pytest.fixture(params=BY_OP.values(), ids=BY_OP)
def each(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def set_num_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_opcheck_backward(op: str, device: str) -> None:
    for layout in (torch.clone, channels_last):
        case = replace(BY_OP[op], layout=layout)
        inputs = case.backward_inputs(case.inputs(device))
        torch.library.opcheck(getattr(torch.ops.fastyolo, f"{op}_backward").default, (), inputs)


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


@pytest.mark.parametrize("op", FEATURE_MAPS)
def test_results_have_the_memory_format_of_x(op: str) -> None:
    """Contiguous or channels_last, as torch.cat decides; gradients too, and fake tensors as real ones."""
    backward = getattr(torch.ops.fastyolo, f"{op}_backward")
    for case in (case for case in CASES if case.op == op):
        results = {}
        for device in ("cpu", "meta"):
            inputs = case.inputs(device)
            gradients = flat(backward(**case.backward_inputs(inputs)))
            assert gradients[0].stride() == torch.cat([inputs["x"]], 1).stride(), case.id
            results[device] = [case.run(inputs), *gradients]
            factor = results[device][0].shape[1] // inputs["x"].shape[1]
            assert results[device][0].stride() == torch.cat([inputs["x"]] * factor, 1).stride(), case.id
        for real, fake in zip(*results.values(), strict=True):
            assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype), case.id


# ---- gradients


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_second_derivative_is_refused(op: str, device: str) -> None:
    inputs = BY_OP[op].inputs(device)
    first = DIFFERENTIABLE[op][0]
    leaf = inputs[first].requires_grad_()
    (grad,) = torch.autograd.grad(BY_OP[op].run(inputs).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=f"^{op} has a first derivative only, got a second backward pass through it"):
        grad.sum().backward()


@pytest.mark.parametrize(("channels", "size"), [(3, (0, 4)), (3, (4, 0)), (0, (4, 4))])
@pytest.mark.parametrize("op", FEATURE_MAPS)
def test_empty_maps(op: str, channels: int, size: tuple[int, int], device: str) -> None:
    case = map_case(op, "empty", channels=channels, size=size)
    inputs = case.inputs(device)
    assert case.run(inputs).shape[2:] == size
    for name, gradient in case.gradients(inputs).items():
        assert torch.equal(gradient, torch.zeros_like(inputs[name]))


@pytest.mark.parametrize(
    ("op", "kept"), [("eca", {"x", "weight"}), ("dw_sppf", {"out", "weight", "bias"}), ("sppf_pool", {"out"})]
)
def test_what_is_kept_for_the_backward_pass(op: str, kept: set[str]) -> None:
    """The result, which whatever follows keeps too, or the inputs; nothing that would not be there anyway."""
    inputs = BY_OP[op].inputs()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()), lambda x: x):
        out = BY_OP[op].run({**inputs, **{name: inputs[name].requires_grad_() for name in DIFFERENTIABLE[op]}})
    assert sorted(saved) == sorted({**inputs, "out": out}[name].data_ptr() for name in kept)


@pytest.mark.parametrize("op", ["eca", "dw_sppf"])
def test_autocast_leaves_parameters_in_float32(op: str, device: str) -> None:
    """The convolution before the operator gives bfloat16; the operator takes its float32 parameters beside that."""
    inputs = BY_OP[op].inputs(device)
    names = DIFFERENTIABLE[op][1:]
    for name in names:
        inputs[name].requires_grad_()
    channels = inputs["x"].shape[1]
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, 1, device=device)
    with torch.autocast(device, torch.bfloat16):
        result = BY_OP[op].run({**inputs, "x": conv(inputs["x"])})
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert all(inputs[name].grad.dtype == torch.float32 for name in names)
    assert conv.weight.grad.dtype == torch.float32


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


class Neck(nn.Module):
    """The operators on feature maps, between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 8, 3, stride=2)
        self.attention = nn.Parameter(torch.randn(3))
        self.taps = nn.Parameter(torch.randn(3, 8, 3, 3))
        self.shift = nn.Parameter(torch.randn(3, 8))
        self.after = nn.Conv2d(128, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = ops.eca(self.before(x), self.attention)
        x = ops.dw_sppf(x, self.taps, self.shift, activation="silu")
        return self.after(ops.sppf_pool(x, kernel_size=3))


def test_export_of_feature_maps(device: str) -> None:
    torch.manual_seed(0)
    neck = Neck().to(device).eval()
    height, width = (torch.export.Dim(name, min=8) for name in ("height", "width"))
    dynamic = {"x": {0: torch.export.Dim("batch"), 2: height, 3: width}}
    program = torch.export.export(neck, (torch.randn(2, 3, 16, 12, device=device),), dynamic_shapes=dynamic)
    targets = [node.target for node in program.graph.nodes]
    assert [targets.count(getattr(torch.ops.fastyolo, op).default) for op in FEATURE_MAPS] == [1, 1, 1]
    for shape in ((2, 3, 16, 12), (5, 3, 21, 33)):
        x = torch.randn(shape, device=device)
        torch.testing.assert_close(program.module()(x), neck(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_compiled_training_step(op: str, device: str) -> None:
    """Forward and backward, generated code before and after the operator."""
    case = replace(BY_OP[op], layout=channels_last)
    first = DIFFERENTIABLE[op][0]

    def function(**inputs: Any) -> Tensor:
        return getattr(ops, op)(**{**inputs, first: 2 * inputs[first]}).square()

    inputs = case.inputs(device)
    eager, compiled = (case.gradients(inputs, f) for f in (function, torch.compile(function, fullgraph=True)))
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-4)


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", FEATURE_MAPS)
def test_feature_maps_need_the_memory_of_their_results(
    op: str, layout: Callable[[Tensor], Tensor], device: str, set_num_threads: Callable[[int], None]
) -> None:
    """No copy of x or of a gradient, forward and backward, and a workspace for a few planes."""
    set_num_threads(1)
    case = map_case(op, "80x80", batch=4, channels=128, size=(80, 80))
    inputs = case.inputs(device)
    inputs["x"] = layout(inputs["x"])
    gradient_inputs = case.backward_inputs(inputs)
    first = next(iter(gradient_inputs))
    gradient_inputs[first] = layout(gradient_inputs[first])
    backward = getattr(torch.ops.fastyolo, f"{op}_backward")
    for call in (lambda: case.run(inputs), lambda: backward(**gradient_inputs)):
        needed = sum(result.nbytes for result in flat(call()))
        assert needed <= peak_extra_bytes(call, torch.device(device)) < needed + inputs["x"].nbytes / 2


@pytest.mark.parametrize("op", BY_OP)
def test_thread_count_does_not_change_the_result(op: str, set_num_threads: Callable[[int], None]) -> None:
    names = ("9-images", "scene", "1000-anchors", "many", "160x160", "1024-channels")
    heaviest = [case for case in CASES if case.op == op and case.name in names]
    for case in heaviest or [BY_OP[op]]:
        inputs = case.inputs()
        results = []
        for threads in (1, 2, 3, 8):
            set_num_threads(threads)
            gradients = case.gradients(inputs).values() if op in DIFFERENTIABLE else ()
            results.append([*flat(case.run(inputs)), *gradients])
        assert all(same(result, results[0]) for result in results)


def test_two_runs_are_equal(each: Case, device: str) -> None:
    inputs = each.inputs(device)
    assert same(each.run(inputs), each.run(inputs))


@pytest.mark.cuda
def test_cuda_graph(each: Case) -> None:
    """Captured once, replayed on other data."""
    op = getattr(torch.ops.fastyolo, each.op)
    inputs = each.inputs("cuda")
    other = [shuffled(tensor) for tensor in tensors_of(inputs)]
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


def shuffled(tensor: Tensor) -> Tensor:
    """Along the last dimension, but boxes stay whole."""
    dim = tensor.ndim - 2 if tensor.ndim > 1 and tensor.shape[-1] == 4 else tensor.ndim - 1
    return tensor.index_select(dim, torch.randperm(tensor.shape[dim], device=tensor.device))


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
        op(**inputs)  # which leaves the memory that it needs to this stream's allocator
        torch.cuda._sleep(500_000_000)
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
    names = ("decode_nms", "batched_nms", "dfl_decode", *FEATURE_MAPS, "large_maps")
    files = [f"test_{name}.py" for name in names]
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
