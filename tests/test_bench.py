# SPDX-License-Identifier: AGPL-3.0-or-later
"""The benchmark measures what it says: contenders that agree, in turns, into a document that the tables are made of."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import re
import resource
import runpy
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fastyolo import ops
from fastyolo._machine import installed_version
from fastyolo.bench import cases, roofline, timing
from fastyolo.bench import ops as bench
from fastyolo.bench.agreement import Agreement, compare
from fastyolo.bench.cases import Choice, dfl_decode, feature_maps, nms, onnx_nms
from fastyolo.bench.cases.inputs import scene_maps
from fastyolo.bench.environment import environment, why_not_compiled
from fastyolo.bench.roofline import Roofline
from fastyolo.cli import app

SCRIPTS = Path(__file__).parent.parent / "bench"
CPU = torch.device("cpu")
QUICK, DEFAULT = Choice(quick=True), Choice()
ROOFLINE = Roofline(flops=1e11, bytes=1e10)
ONNX = {name for name in ("onnxruntime", "openvino") if installed_version(name) and installed_version("onnx")}


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("FASTYOLO_DATA", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_quick_run_and_its_tables(tmp_path, monkeypatch, capsys):
    file = tmp_path / "result.json"
    monkeypatch.setenv("COLUMNS", "120")
    visit = timing.visit_in_turns
    monkeypatch.setattr(bench, "visit_in_turns", lambda groups, **how: visit(groups, **{**how, "seconds": 0.0}))
    done = CliRunner().invoke(app, ["bench", "ops", "--quick", "--threads", "1", "--json", str(file)])
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text())
    assert (report["schema"], report["kind"], report["device"], report["threads"]) == (1, "ops", "cpu", 1)
    assert report["maps"] == "synthetic head outputs"
    assert {"date", "commit", "build", "versions", "cpu", "gpus"} == set(report["environment"])
    assert report["left_out"][-1] == "torch.compile takes too long for a quick run"
    assert report["roofline"]["gflops"] > 0
    assert report["roofline"]["gb_per_s"] > 0
    assert "GFLOP/s in float32, a copy of" in done.output
    peers = {
        "decode_nms": [{"ultralytics"}],
        "multiclass_nms": [{"ultralytics"} | ONNX],
        "nms": [{"torchvision", "opencv"} | ONNX] * 2,
        "batched_nms": [{"torchvision", "opencv"} | ONNX],
        "dfl_decode": [{"ultralytics"}, {"ultralytics", "ultralytics loss"}],
        "eca": [{"torch", "copy"}] * 2,
        "dw_sppf": [{"torch"}] * 2,
        "sppf_pool": [{"torch"}, {"torch"}, {"ultralytics"}, {"ultralytics"}],
    }
    found = [(row["op"], set(row["contenders"]) - {"fastyolo"}) for row in report["results"]]
    assert found == [(op, names) for op, rows in peers.items() for names in rows]
    for row in report["results"]:
        assert row["case"] in " ".join(done.stdout.split())
        assert row["bytes"] > 0
        assert row["peak_extra_bytes"] > 0
        compute_us = row["flops"] / report["roofline"]["gflops"] / 1e3
        assert row["compute_us"] == pytest.approx(compute_us, rel=0.01, abs=0.02)
        assert row["bound"] == ("memory" if row["memory_us"] >= row["compute_us"] else "compute")
        limit = max(row["memory_us"], row["compute_us"]) / row["contenders"]["fastyolo"]["median_us"]
        assert row["limit_share"] == pytest.approx(limit, abs=0.01, rel=0.01)
        compares = row["op"] in ("multiclass_nms", "nms", "batched_nms", "sppf_pool") and "block" not in row["case"]
        assert (row["flops"] == 0) == compares
        for name, times in row["contenders"].items():
            assert times["mode"] == "call"
            assert times["samples"] >= 2
            assert 0 < times["low_us"] <= times["median_us"] <= times["high_us"]
            ratio = times["median_us"] / row["contenders"]["fastyolo"]["median_us"]
            assert row["ratio"][name] == pytest.approx(ratio, abs=0.02, rel=0.02)

    monkeypatch.setattr(sys, "argv", ["tables.py", str(file)])
    monkeypatch.syspath_prepend(SCRIPTS)
    runpy.run_path(str(SCRIPTS / "tables.py"), run_name="__main__")
    table = capsys.readouterr().out
    assert "`nms` 1,000 boxes, max_det 300 | " in table
    assert "`sppf_pool` block of YOLOv8n, 1x256x20x20, channels last | " in table
    assert "| | float32, forward | float32, forward + backward |" in table
    number, limit = r"[\d.,]+ (?:µs|ms), [\d.,]+ \(torch\)", r", [\d,]+%(?: compute)?"
    copies = rf"{number}, [\d.,]+ copies{limit}"
    assert re.search(rf"`eca` 1x512x20x20 \| {copies} \| {copies} \|\n", table)
    for op in ("dw_sppf", "sppf_pool"):
        assert re.search(rf"`{op}` 1x256x20x20 \| {number}{limit} \| {number}{limit} \|\n", table)


def test_one_op(tmp_path):
    done = CliRunner().invoke(
        app, ["bench", "ops", "--quick", "--op", "dfl_decode", "--json", str(tmp_path / "x.json")]
    )
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "x.json").read_text())
    assert {row["op"] for row in report["results"]} == {"dfl_decode"}
    assert report["maps"] == "synthetic inputs"
    assert report["left_out"] == ["torch.compile takes too long for a quick run"]


def test_an_interrupt_leaves_what_has_been_measured(tmp_path, monkeypatch):
    visit, visited = bench.visit_in_turns, []

    def interrupted_at_the_second(*arguments, **settings):
        if visited:
            raise KeyboardInterrupt
        visited.append(True)
        return visit(*arguments, **settings)

    monkeypatch.setattr(bench, "visit_in_turns", interrupted_at_the_second)
    file = tmp_path / "ops.json"
    ops = ("--op", "dfl_decode", "--op", "nms")
    done = CliRunner().invoke(app, ["bench", "ops", "--quick", *ops, "--json", str(file)])
    assert done.exit_code == 130, done.output
    assert done.stderr.endswith("fastyolo: Interrupted; the results are those of the cases until then.\n")
    assert {row["op"] for row in json.loads(file.read_text())["results"]} == {"dfl_decode"}
    assert "dfl_decode" in done.stdout


def test_peers_that_are_not_there_are_left_out(monkeypatch):
    for module in (nms, onnx_nms, feature_maps, bench):
        monkeypatch.setattr(module, "installed_version", lambda package: None)
    packages = ("onnx", "onnxruntime", "openvino", "torchvision", "opencv")
    assert bench.left_out(["nms"], CPU, quick=True) == [f"{package} is not installed" for package in packages]
    assert bench.left_out(["eca"], CPU, quick=True) == ["torch.compile takes too long for a quick run"]
    assert bench.left_out(["nms"], torch.device("cuda"), quick=True) == [
        "onnx, onnxruntime, opencv, openvino run on the CPU",
        "torchvision is not installed",
    ]
    done = CliRunner().invoke(app, ["bench", "ops", "--quick", "--op", "decode_nms", "--op", "nms"])
    assert done.exit_code == 0, done.output
    assert "ultralytics is not installed, so its times are left out." in done.stderr
    inputs = cases.Inputs(CPU, torch.float32, None)
    assert [set(case.calls) for case in cases.CASES["sppf_pool"](inputs, QUICK)] == [{"fastyolo", "torch"}] * 2


def test_torch_compile_without_a_compiler_is_left_out(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = "torch.compile finds no C++ compiler 'no-such-compiler'"
    assert why_not_compiled(CPU) == reason
    assert bench.left_out(["eca"], CPU, quick=False) == [reason]
    case = next(cases.CASES["eca"](cases.Inputs(CPU, torch.float32, None), DEFAULT))
    assert set(case.calls) == {"fastyolo", "torch", "copy"}


def test_torch_compile_is_a_peer(monkeypatch):
    """Traced as one graph for each shape, which is then run as it is: to compile it takes long."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setattr(feature_maps, "why_not_compiled", lambda _: None)
    inputs = cases.Inputs(CPU, torch.float32, None)
    found = [
        case for case in itertools.islice(cases.CASES["eca"](inputs, DEFAULT), 4) if case.facts["pass"] == "forward"
    ]
    assert [case.name for case in found] == ["1x512x20x20, float32, forward", "1x512x20x20, bfloat16, forward"]
    for case in found:  # alive at the same time
        assert list(case.calls) == ["fastyolo", "torch", "torch.compile", "copy"]
        case.check()
    assert len(graphs) == len(found)


def test_every_measurement_of_an_operator_is_another(monkeypatch):
    monkeypatch.setattr(feature_maps, "why_not_compiled", lambda _: "not in this test")
    monkeypatch.setattr(feature_maps, "installed_version", lambda _: None)
    monkeypatch.setattr(cases.Inputs, "feature_map", lambda _, shape, dtype, *__: torch.empty(shape, dtype=dtype))
    inputs = cases.Inputs(CPU, torch.float32, None)
    for op in ("eca", "dw_sppf", "sppf_pool"):
        names = [case.name for case in cases.CASES[op](inputs, DEFAULT)]
        assert len(names) == len(set(names)) >= 32
        assert "8x128x80x80, bfloat16, forward + backward" in names


def test_cases_are_those_of_the_chosen_scales_batches_and_dtypes(monkeypatch):
    for module in (dfl_decode, feature_maps):
        monkeypatch.setattr(module, "why_not_compiled", lambda _: "not in this test")
    monkeypatch.setattr(cases.Inputs, "feature_map", lambda _, shape, dtype, *__: torch.empty(shape, dtype=dtype))
    inputs = cases.Inputs(CPU, torch.float32, None)

    def names(op: str, choice: Choice) -> list[str]:
        return [case.name for case in cases.CASES[op](inputs, choice)]

    found = names("eca", Choice(("n", "s"), (4,), (torch.float64,)))
    assert "4x256x20x20, float64, forward" in found  # P5 of n
    assert "4x128x80x80, float64, forward + backward" in found  # P3 of s
    assert len(found) == len(set(found)) == 2 * 2 * 4
    shared = names("dw_sppf", Choice(("s", "l"), (1,), (torch.float32,)))
    assert len(shared) == len(set(shared)) < 2 * 2 * 6  # the SPPF block of both pools 256 channels
    assert names("dfl_decode", Choice(batches=(3,), dtypes=(torch.bfloat16,))) == [
        "batch 3, forward, bfloat16",
        "batch 3, forward + backward, bfloat16",
    ]
    assert names("decode_nms", Choice(batches=(2,), quick=True)) == ["batch 2, conf 0.25, best class"]
    assert names("multiclass_nms", Choice(batches=(1,))) == [
        "batch 1, conf 0.25, multi-label",
        "batch 1, conf 0.001, multi-label",
    ]
    assert names("nms", Choice(dtypes=(torch.bfloat16,), quick=True)) == [
        "1,000 boxes, max_det 300, bfloat16",
        "1,000 boxes, bfloat16",
    ]
    blocks = [name for name in names("sppf_pool", Choice(("m",), (1,))) if name.startswith("block")]
    assert blocks == ["block of YOLOv8m, 1x576x20x20, channels last", "block of YOLOv8m, 1x576x20x20"]


@pytest.mark.parametrize("op", ["decode_nms", "multiclass_nms", "nms", "batched_nms", "dfl_decode"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_contenders_agree_in_every_dtype(op, dtype):
    for case in cases.CASES[op](cases.Inputs(CPU, torch.float32, None), Choice(dtypes=(dtype,), quick=True)):
        assert case.facts["dtype"] == str(dtype).removeprefix("torch.")
        case.check()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_onnx_operator_keeps_what_it_should(runtime):
    for package in ("onnx", runtime):
        pytest.importorskip(package)
    boxes = torch.tensor([[[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [20, 20, 30, 30]]]).float()
    scores = torch.tensor([[[0.9, 0.8, 0.7, 0.1], [0.0, 0.6, 0.0, 0.0]]])
    limits = {"iou_threshold": 0.5, "score_threshold": 0.25}
    call = onnx_nms.onnx_nms_calls(boxes, scores, **limits, max_per_class=5)[runtime]
    assert sorted(map(tuple, call().tolist())) == [(0, 0, 0), (0, 0, 2), (0, 1, 1)]
    one = onnx_nms.onnx_nms_calls(boxes, scores, **limits, max_per_class=1)[runtime]
    assert sorted(map(tuple, one().tolist())) == [(0, 0, 0), (0, 1, 1)]


def test_wrong_choices_are_refused():
    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["bench", "ops", "--quick", *arguments])
        return done.exit_code, done.output

    assert run("--dtype", "float16") == (
        2,
        "fastyolo bench ops: Invalid value for --dtype: The operators have no float16 on cpu; "
        "see 'fastyolo bench ops --help'.\n",
    )
    assert run("--scale", "n", "huge")[0] == run("--batch", "0")[0] == 2


WRONG = {
    "eca": lambda x, weight: 1.01 * x * weight.sum(),
    "dw_sppf": lambda x, weight, bias, **_: torch.cat([x] * 4, 1) * weight.sum() * bias.sum(),
    "sppf_pool": lambda x: torch.cat([x] * 4, 1),
}


@pytest.mark.parametrize("op", list(cases.CASES))
def test_wrong_answers_are_not_timed(monkeypatch, op):
    inputs = cases.Inputs(CPU, torch.float32, None)
    if op in WRONG:
        monkeypatch.setattr(ops, op, WRONG[op])
    elif op == "dfl_decode":
        monkeypatch.setattr(ops, "dfl_decode", lambda logits, points, strides: logits[:, :4] * 0)
    elif op == "decode_nms":
        right = ops.decode_nms
        monkeypatch.setattr(ops, "decode_nms", lambda *x, **settings: right(*x, **{**settings, "iou_threshold": 0.1}))
    elif op == "multiclass_nms":
        multiclass = ops.multiclass_nms
        monkeypatch.setattr(ops, op, lambda *x, **settings: multiclass(*x, **{**settings, "iou_threshold": 0.1}))
    else:
        everything = lambda boxes, *_, **__: (torch.arange(len(boxes)), torch.tensor([len(boxes)]))  # noqa: E731
        monkeypatch.setattr(nms, "fixed_size_nms", everything)
    for case in cases.CASES[op](inputs, QUICK):
        if case.name.startswith("block"):
            continue  # of the modules, and not of the function that this test replaces
        said: list[str] = []
        assert list(bench.run([case], CPU, ROOFLINE, quick=True, on_failure=said.append)) == []
        assert len(said) == 1


def test_what_fails_leaves_the_others(tmp_path, monkeypatch):
    def fails(*_: Any) -> None:
        raise RuntimeError("no kernel image\nmore of it")

    first, second = itertools.islice(cases.CASES["eca"](cases.Inputs(CPU, torch.float32, None), QUICK), 2)
    broken = replace(second, check=fails)
    said: list[str] = []
    rows = list(bench.run([broken, first], CPU, ROOFLINE, quick=True, on_failure=said.append))
    assert [row["case"] for row in rows] == [first.name]
    assert said == [f"eca, {second.name}: RuntimeError: no kernel image"]

    late = replace(second, calls={**second.calls, "torch": [fails]})  # when it is timed
    said.clear()
    rows = list(bench.run([late, first], CPU, ROOFLINE, quick=True, on_failure=said.append))
    assert [row["case"] for row in rows] == [first.name]
    assert said == [f"eca, {second.name}: RuntimeError: no kernel image"]

    def dies(*_: Any) -> Iterator[Any]:
        yield first
        raise MemoryError("inputs")

    monkeypatch.setitem(cases.CASES, "eca", dies)
    file = tmp_path / "result.json"
    done = CliRunner().invoke(app, ["bench", "ops", "--quick", "--op", "nms", "--op", "eca", "--json", str(file)])
    assert done.exit_code == 1
    assert "Left out: the cases from there on, MemoryError: inputs." in " ".join(done.stderr.split())
    assert {row["op"] for row in json.loads(file.read_text())["results"]} == {"nms"}


@pytest.mark.parametrize("peer", ["opencv", "onnxruntime", "openvino"])
def test_a_peer_that_keeps_other_boxes_is_not_timed(monkeypatch, peer):
    if peer == "opencv":
        monkeypatch.setattr(nms, "_opencv", lambda *_: lambda: range(5))
    else:
        monkeypatch.setattr(
            nms, "onnx_nms_calls", lambda *_, **__: {peer: lambda: [[0, 0, index] for index in range(5)]}
        )
    for op in ("nms", "batched_nms"):
        case = next(cases.CASES[op](cases.Inputs(CPU, torch.float32, None), QUICK))
        with pytest.raises(cases.DisagreementError, match=f"{peer} kept different boxes"):
            case.check()


def test_synthetic_maps_have_the_statistics_of_real_ones():
    box_maps, cls_maps = scene_maps(4, 0)
    assert [tuple(x.shape) for x in box_maps] == [(4, 64, 80, 80), (4, 64, 40, 40), (4, 64, 20, 20)]

    def above(conf: float) -> list[torch.Tensor]:
        return [x > math.log(conf / (1 - conf)) for x in cls_maps]

    assert 20 < sum(int(x.any(1).sum()) for x in above(0.25)) / 4 < 80
    assert 400 < sum(int(x.sum()) for x in above(0.001)) / 4 < 1100
    found = ops.decode_nms(box_maps, cls_maps, cases.STRIDES)
    assert found.num_dets.min() >= 5  # seven objects each, some of which hide another
    assert found.num_dets.max() <= 30
    again = scene_maps(4, 0)
    assert all(a.equal(b) for a, b in zip([*box_maps, *cls_maps], [*again[0], *again[1]], strict=True))


class Logging(timing.Contender):
    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def sample(self) -> float:
        self.log.append(self.name)
        return self.seconds


def test_contenders_take_turns():
    log: list[str] = []
    seconds = {"a": 2e-6, "b": 5e-6, "c": 0.2}
    contenders = {name: Logging(name, value, log) for name, value in seconds.items()}
    result = timing.interleave(contenders, seconds=0, min_rounds=60)
    assert "".join(log[:5]) == "aabbc"  # to warm up
    rounds = "".join(log[5:]).replace("aa", "A").replace("bb", "B").upper()  # a short call is timed after another
    assert len(rounds) == 180
    assert all(before != after for before, after in itertools.pairwise(rounds))
    orders = [rounds[i : i + 3] for i in range(0, 180, 3)]
    assert {"".join(sorted(order)) for order in orders} == {"ABC"}
    assert min(Counter(orders).values()) >= 4
    assert len({*orders}) == 6
    assert result["a"] == timing.Timing(median_us=2.0, low_us=2.0, high_us=2.0, samples=60, parts_us=(2.0,) * 8)
    assert result["b"].median_us == 5.0


def test_what_a_call_leaves_behind_does_not_show():
    """A contender that finds the caches as another left them is timed like one that follows itself."""
    previous = ""

    class Cached(timing.Contender):
        def __init__(self, name: str) -> None:
            self.name = name

        def sample(self) -> float:
            nonlocal previous
            warm, previous = previous == self.name, self.name
            return 1e-4 if warm else 3e-4

    samples = timing.take_turns({name: Cached(name) for name in "abc"}, seconds=0, min_rounds=20)
    assert samples == {name: [1e-4] * 20 for name in "abc"}


def test_the_limit_of_compute_is_not_that_of_a_slow_library_for_matrices(monkeypatch):
    monkeypatch.setattr(roofline, "_BYTES", 1 << 20)
    slow = timing.CpuContender([lambda: time.sleep(0.02)])
    monkeypatch.setattr(roofline, "matrix_product", lambda device, side: slow)
    of_products = 2 * 512**3 / 0.02
    assert roofline.measure(CPU).flops > 1.2 * of_products  # 13 GFLOP/s, of convolutions on any processor more


@pytest.mark.parametrize(("inputs", "passes"), [(1, 16), (3, 7), (64, 1)])
def test_a_graph_holds_every_input_and_times_a_call(monkeypatch, inputs, passes):
    """On a device of a millisecond per call, on which graphs are replayed; for the host it is a twentieth of one."""
    clock, captured, replayed = [0], [], []

    @contextmanager
    def capture(graph: SimpleNamespace) -> Iterator[None]:
        before = clock[0]
        yield
        graph.held = clock[0] - before
        clock[0] = before  # what is captured is not run
        captured.append(graph.held)

    def replay(graph: SimpleNamespace) -> None:
        clock[0] += graph.held
        replayed.append(graph.held)

    def new_graph() -> SimpleNamespace:
        graph = SimpleNamespace(held=0)
        graph.replay = functools.partial(replay, graph)
        return graph

    class Event:
        def __init__(self, enable_timing: bool) -> None: ...

        def record(self) -> None:
            self.at = clock[0]

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Any) -> float:
            return end.at - self.at

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Event": Event,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None,
        "CUDAGraph": new_graph,
        "graph": capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0] * 5e-5)
    used = Counter()

    def call(index: int) -> None:
        clock[0] += 1
        used[index] += 1

    contender = timing.CudaContender([functools.partial(call, index) for index in range(inputs)], capturable=True)
    assert contender.mode == "graph"
    assert captured == [inputs * passes]
    assert {used[index] for index in range(1, inputs)} <= {1 + passes}  # the first one also warms up
    assert contender.sample() == pytest.approx(1e-3)
    assert replayed == captured * 2  # the first one of which is not timed


def test_visits_lie_apart():
    log: list[str] = []

    class Counting(Logging):
        def sample(self) -> float:
            return super().sample() * len(log)

    groups = [{name: Counting(name, 1e-6, log)} for name in "ab"]
    visits = []
    first, second = timing.visit_in_turns(groups, seconds=1e-9, min_visits=3, on_visit=visits.append, on_failure=print)
    assert visits == [0, 1] * 3  # which use up the time
    assert "".join(log) == "aaaabbbb" * 3  # two to warm up, and one before the one that counts
    assert first["a"].parts_us == pytest.approx((4, 12, 20))
    assert second["b"].median_us == pytest.approx(16)
    visits.clear()
    timing.visit_in_turns(groups, seconds=1e-9, visits=5, min_visits=5, on_visit=visits.append, on_failure=print)
    assert visits == [0, 1] * 5


def test_groups_fit_into_memory(monkeypatch):
    def case(op: str, num_bytes: int, sets: int = 1) -> cases.Case:
        return cases.Case(op, "", {"fastyolo": [list] * sets}, frozenset(), num_bytes, lambda: None)

    monkeypatch.setattr(bench, "_HELD_BYTES", 100)
    row = [case("a", 60), case("a", 60), case("a", 1), case("b", 1), case("b", 1000)]
    assert [[c.bytes_moved for c in group] for group in bench._groups(row)] == [[60, 60], [1], [1, 1000]]
    row = [case("a", 4, 64), case("a", 60), case("a", 1)]
    assert [[c.bytes_moved for c in group] for group in bench._groups(row)] == [[4], [60, 1]]


def test_freed_memory_is_kept_above_32_mb():
    """In a process of its own, since it is for good."""
    program = """
import resource, torch
from fastyolo.bench import timing
timing.keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(10 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    pages = 10 * 2**20 * 4 // resource.getpagesize()
    assert int(done.stdout) < 10 * pages  # 20 if each tensor were of new ones


def test_peak_memory_of_a_batch():
    assert timing.peak_extra_bytes(lambda: torch.zeros(1 << 20) + 1, CPU) == pytest.approx(2 * 4 << 20, abs=64)
    inputs = cases.Inputs(CPU, torch.float32, None)
    maps = inputs.maps(32, 0, torch.float32)
    call = lambda: ops.decode_nms(*maps, cases.STRIDES, score_threshold=0.001, multi_label=True)  # noqa: E731
    assert timing.peak_extra_bytes(call, CPU) < 64e6


def test_environment_says_where_a_number_comes_from():
    facts = environment()
    json.dumps(facts)
    assert facts["cpu"]["model"]
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["date"].endswith("+00:00")


def test_the_commit_of_files_without_their_repository():
    """Read when the module is loaded, as the code is."""
    program = "from fastyolo.bench.environment import environment; print(environment()['commit'])"
    named = {**os.environ, "FASTYOLO_COMMIT": "0123456789ab"}
    done = subprocess.run([sys.executable, "-c", program], env=named, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0123456789ab"


# ---- agreement


def prediction(*rows: tuple[float, ...]) -> torch.Tensor:
    """rows of x1, y1, x2, y2, scores -> [1, 4 + C, A], as ultralytics has it."""
    boxes = torch.tensor(rows)
    corners = boxes[:, :4]
    centres, extents = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    return torch.cat((centres, extents, boxes[:, 4:]), 1).T[None]


def detections(*rows: tuple[float, ...]) -> list[torch.Tensor]:
    return [torch.tensor(rows).view(-1, 6)]


SETTINGS = {"conf": 0.25, "iou": 0.5, "multi_label": False}


def test_same_detections_agree():
    rows = detections((0, 0, 10, 10, 0.9, 0), (50, 50, 70, 70, 0.8, 0))
    values = prediction((0, 0, 10, 10, 0.9), (50, 50, 70, 70, 0.8))
    assert compare(rows, rows, values, **SETTINGS, shifted=True) == Agreement(images=1, detections=2)


def test_a_lost_detection_is_not_explained():
    values = prediction((0, 0, 10, 10, 0.9), (50, 50, 70, 70, 0.8))
    both = detections((0, 0, 10, 10, 0.9, 0), (50, 50, 70, 70, 0.8, 0))
    lost = compare(detections((0, 0, 10, 10, 0.9, 0)), both, values, **SETTINGS, shifted=True)
    assert (lost.differing, lost.differing_images, lost.unexplained) == (1, 1, 1)
    moved = detections((0, 0, 10, 10, 0.9, 0), (51, 50, 71, 70, 0.8, 0))
    assert compare(moved, both, values, **SETTINGS, shifted=True).unexplained == 2
    relabelled = detections((0, 0, 10, 10, 0.9, 0), (50, 50, 70, 70, 0.8, 1))
    assert compare(relabelled, both, values, **SETTINGS, shifted=True).unexplained == 2


def test_an_iou_at_the_threshold_explains():
    values = prediction((0, 0, 30, 10, 0.9), (10, 0, 40, 10, 0.8))  # IoU 20 / 40
    one, two = detections((0, 0, 30, 10, 0.9, 0)), detections((0, 0, 30, 10, 0.9, 0), (10, 0, 40, 10, 0.8, 0))
    found = compare(one, two, values, **SETTINGS, shifted=False)
    assert (found.differing, found.close_pairs, found.unexplained) == (1, 1, 0)


def test_a_score_at_the_threshold_explains_itself_alone():
    values = prediction((0, 0, 10, 10, 0.9), (50, 50, 70, 70, 0.250001))
    both = detections((0, 0, 10, 10, 0.9, 0), (50, 50, 70, 70, 0.250001, 0))
    found = compare(detections((0, 0, 10, 10, 0.9, 0)), both, values, **SETTINGS, shifted=False)
    assert (found.differing, found.close_scores, found.unexplained) == (1, 1, 0)
    found = compare(detections((50, 50, 70, 70, 0.250001, 0)), both, values, **SETTINGS, shifted=False)
    assert (found.differing, found.close_scores, found.unexplained) == (1, 0, 1)


def test_a_shift_that_rounds_explains_only_when_asked():
    scores = [0.0] * 80
    scores[79] = 0.9
    # Near 7680 * 79, float32 counts in sixteenths: 3.04 becomes 3.0625 and 1.03 becomes 1, an IoU of 0.503 then 0.516.
    rows = [(0.0, 0.0, 3.04, 4.0, *scores), (1.03, 0.0, 4.0, 4.0, *scores)]
    values = prediction(*rows)
    one = detections((0, 0, 3.04, 4, 0.9, 79))
    two = detections((0, 0, 3.04, 4, 0.9, 79), (1.03, 0, 4, 4, 0.9, 79))
    settings = {**SETTINGS, "iou": 0.51}
    shifted, plain = (compare(one, two, values, **settings, shifted=shifted) for shifted in (True, False))
    assert (shifted.differing, shifted.close_pairs, shifted.rounded_pairs, shifted.unexplained) == (1, 0, 1, 0)
    assert (plain.rounded_pairs, plain.unexplained) == (0, 1)


def test_pages_are_replaced_and_not_written_in_place(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    tables = runpy.run_path(str(SCRIPTS / "tables.py"))
    page, reader = tmp_path / "README.md", tmp_path / "reader"
    page.write_text("old")
    reader.hardlink_to(page)
    monkeypatch.setitem(tables["main"].__globals__, "pages", lambda reports: {page: "new"})
    monkeypatch.setattr(sys, "argv", ["tables.py", "--write"])
    tables["main"]()
    assert (page.read_text(), reader.read_text()) == ("new", "old")


def test_pages_hold_what_the_result_files_say(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    tables = runpy.run_path(str(SCRIPTS / "tables.py"))
    reports = [json.loads(file.read_text()) for file in sorted(tables["RESULTS"].glob("*.json"))]
    for page, text in tables["pages"](reports).items():
        assert page.read_text() == text, f"{page.name} is not up to date: python bench/tables.py --write"
