# SPDX-License-Identifier: AGPL-3.0-or-later
"""The benchmark measures what it says: contenders that agree, in turns, into a document that the tables are made of."""

from __future__ import annotations

import json
import math
import re
import resource
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastyolo import ops
from fastyolo.bench import cases, timing
from fastyolo.bench import ops as bench
from fastyolo.bench.agreement import Agreement, compare
from fastyolo.bench.cases import feature_maps, nms
from fastyolo.bench.cases.inputs import scene_maps
from fastyolo.bench.environment import environment, why_not_compiled
from fastyolo.cli import app

SCRIPTS = Path(__file__).parent.parent / "bench"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("FASTYOLO_DATA", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_quick_run_and_its_tables(tmp_path, monkeypatch, capsys):
    file = tmp_path / "result.json"
    monkeypatch.setenv("COLUMNS", "120")
    done = CliRunner().invoke(app, ["bench", "ops", "--quick", "--threads", "1", "--json", str(file)])
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text())
    assert (report["schema"], report["kind"], report["device"], report["threads"]) == (1, "ops", "cpu", 1)
    assert report["maps"] == "synthetic head outputs"
    assert {"date", "commit", "build", "versions", "cpu", "gpus"} == set(report["environment"])
    assert report["left_out"] == ["torch.compile takes too long for a quick run"]
    peers = {
        "decode_nms": [{"ultralytics"}],
        "nms": [{"torchvision"}] * 2,
        "batched_nms": [{"torchvision"}],
        "dfl_decode": [{"ultralytics"}] * 2,
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
        for name, times in row["contenders"].items():
            assert times["mode"] == "call"
            assert times["samples"] >= 2
            assert 0 < times["low_us"] <= times["median_us"] <= times["high_us"]
            ratio = times["median_us"] / row["contenders"]["fastyolo"]["median_us"]
            assert row["ratio"][name] == pytest.approx(ratio, abs=0.02, rel=0.02)

    monkeypatch.setattr(sys, "argv", ["tables.py", str(file)])
    runpy.run_path(str(SCRIPTS / "tables.py"), run_name="__main__")
    table = capsys.readouterr().out
    assert "`nms` 10,000 boxes, max_det 300 | " in table
    assert "`sppf_pool` block of YOLOv8n, 1x256x20x20, channels last | " in table
    assert "| | float32, forward | float32, forward + backward |" in table
    number = r"[\d.,]+ (?:µs|ms), [\d.]+ \(torch\)"
    assert re.search(rf"`eca` 1x512x20x20 \| {number}, [\d.]+ copies \| {number}, [\d.]+ copies \|\n", table)
    for op in ("dw_sppf", "sppf_pool"):
        assert re.search(rf"`{op}` 1x256x20x20 \| {number} \| {number} \|\n", table)


def test_one_op(tmp_path):
    done = CliRunner().invoke(
        app, ["bench", "ops", "--quick", "--op", "dfl_decode", "--json", str(tmp_path / "x.json")]
    )
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "x.json").read_text())
    assert {row["op"] for row in report["results"]} == {"dfl_decode"}
    assert report["maps"] == "synthetic inputs"
    assert report["left_out"] == []


def test_peers_that_are_not_there_are_left_out(monkeypatch):
    for module in (nms, feature_maps, bench):
        monkeypatch.setattr(module, "installed_version", lambda package: None)
    assert bench.left_out(["nms"], CPU, quick=True) == [
        "ultralytics is not installed",
        "torchvision is not installed",
    ]
    done = CliRunner().invoke(app, ["bench", "ops", "--quick", "--op", "decode_nms", "--op", "nms"])
    assert done.exit_code == 0, done.output
    assert "ultralytics is not installed, so its times are left out." in done.stdout
    inputs = cases.Inputs(CPU, torch.float32, None)
    assert [set(case.calls) for case in cases.CASES["sppf_pool"](inputs, True)] == [{"fastyolo", "torch"}] * 2


def test_torch_compile_without_a_compiler_is_left_out(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = "torch.compile finds no C++ compiler 'no-such-compiler'"
    assert why_not_compiled(CPU) == reason
    assert bench.left_out(["eca"], CPU, quick=False) == [reason]
    assert bench.left_out(["nms"], CPU, quick=False) == []
    case = next(cases.CASES["eca"](cases.Inputs(CPU, torch.float32, None), False))
    assert set(case.calls) == {"fastyolo", "torch", "copy"}


@pytest.mark.skipif(why_not_compiled(CPU) is not None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own, in torch 2.11
def test_torch_compile_is_a_peer():
    inputs = cases.Inputs(CPU, torch.float32, None)
    case = next(cases.CASES["eca"](inputs, False))
    assert case.name == "1x512x20x20, float32, forward"
    assert list(case.calls) == ["fastyolo", "torch", "torch.compile", "copy"]
    case.check()


def test_every_measurement_of_an_operator_is_another(monkeypatch):
    monkeypatch.setattr(feature_maps, "why_not_compiled", lambda _: "not in this test")
    monkeypatch.setattr(feature_maps, "installed_version", lambda _: None)
    monkeypatch.setattr(cases.Inputs, "feature_map", lambda _, shape, dtype, *__: torch.empty(shape, dtype=dtype))
    inputs = cases.Inputs(CPU, torch.float32, None)
    for op in ("eca", "dw_sppf", "sppf_pool"):
        names = [case.name for case in cases.CASES[op](inputs, False)]
        assert len(names) == len(set(names)) >= 32
        assert "8x128x80x80, bfloat16, forward + backward" in names


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
    else:
        everything = lambda boxes, *_, **__: (torch.arange(len(boxes)), torch.tensor([len(boxes)]))  # noqa: E731
        monkeypatch.setattr(nms, "fixed_size_nms", everything)
    for case in cases.CASES[op](inputs, True):
        if case.name.startswith("block"):
            continue  # of the modules, and not of the function that this test replaces
        with pytest.raises(cases.DisagreementError):
            list(bench.run([case], CPU, quick=True))


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


def test_contenders_take_turns():
    log = []

    class Logging(timing.Contender):
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds

        def sample(self) -> float:
            log.append(self.name)
            return self.seconds

    result = timing.interleave({"a": Logging("a", 2e-6), "b": Logging("b", 5e-6)}, seconds=0, min_rounds=3)
    assert "".join(log) == "aabb" + "abbaab"
    assert result["a"] == timing.Timing(median_us=2.0, low_us=2.0, high_us=2.0, samples=3, parts_us=(2.0, 2.0, 2.0))
    assert result["b"].median_us == 5.0


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
    maps = inputs.maps(32, 0)
    call = lambda: ops.decode_nms(*maps, cases.STRIDES, score_threshold=0.001, multi_label=True)  # noqa: E731
    assert timing.peak_extra_bytes(call, CPU) < 64e6


def test_environment_says_where_a_number_comes_from():
    facts = environment()
    json.dumps(facts)
    assert facts["cpu"]["model"]
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["date"].endswith("+00:00")


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


def test_pages_hold_what_the_result_files_say():
    tables = runpy.run_path(str(SCRIPTS / "tables.py"))
    reports = [json.loads(file.read_text()) for file in sorted(tables["RESULTS"].glob("*.json"))]
    for page, text in tables["pages"](reports).items():
        assert page.read_text() == text, f"{page.name} is not up to date: python bench/tables.py --write"
