# SPDX-License-Identifier: AGPL-3.0-or-later
"""Results compared: slower code is named, a slower or restless machine is not taken for it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fastyolo.bench.comparison import Comparison, compare
from fastyolo.bench.environment import environment
from fastyolo.bench.timing import VISITS, CpuContender, interleave
from fastyolo.cli import app

OPS = [f"op{index}" for index in range(8)]
CASES = [(op, f"case {index}") for op in OPS for index in range(8)]
ENVIRONMENT = environment()


def document(
    seed: int,
    *,
    factors: Mapping[str, float] = {},
    machine: float = 1.0,
    process: float = 0.015,
    restless: float = 0.3,
    peers: float = 0.03,
    visits: int = VISITS,
) -> dict[str, Any]:
    """What `bench ops` writes on two cores that others use, too, by the observations of bench/NOTES.md.

    Args:
        seed: of all that is random.
        factors: that the times of an operator, or of a case by operator and case, are multiplied with.
        machine: likewise of everything.
        process: what lasts for a process and differs from case to case, relative.
        restless: share of the visits during which something else runs.
        peers: as `process`, of the peers.
        visits: of each row; 0: the document has medians alone.
    """
    draw = np.random.default_rng(seed)

    def timing(microseconds: float, process: float) -> dict[str, Any]:
        count = visits or VISITS
        disturbed = 1 + 0.5 * (draw.random(count) < restless) * draw.random(count)
        own = np.exp(process * draw.standard_normal() + 0.005 * np.abs(draw.standard_normal(count)))
        times = microseconds * machine * disturbed * own
        found = {"median_us": float(np.median(times)), "parts_us": times.tolist()}
        return found if visits else {"median_us": found["median_us"]}

    rows = []
    for index, (op, case) in enumerate(CASES):
        factor = factors.get(op, 1.0) * factors.get(f"{op} {case}", 1.0)
        ours = 50.0 * (index + 1)
        contenders = {"fastyolo": timing(ours * factor, process), "torch": timing(ours * 8, peers)}
        rows.append({"op": op, "case": case, "contenders": contenders})
    return {"kind": "ops", "device": "cpu", "threads": 2, "environment": ENVIRONMENT, "results": rows}


def called(found: Comparison, verdict: str) -> list[str]:
    return [change.name for change in (*found.groups, *found.rows) if change.verdict == verdict]


def test_an_operator_that_is_a_tenth_slower_is_named_and_no_other():
    for seed in range(20):
        before = document(seed)
        after = document(seed + 100, factors={"op3": 1.1}, machine=1.3)
        found = compare([before], [after])
        slower = called(found, "slower")
        assert slower[0] == "op3", seed
        assert all(name.startswith("op3") for name in slower), seed
        assert not called(found, "faster")
        (change,) = (group.change for group in found.groups if group.name == "op3")
        assert change == pytest.approx(0.1, abs=0.04)
        assert found.drift == pytest.approx(0.3, abs=0.05)
        assert found.is_slower
        assert called(compare([after], [before]), "faster")[0] == "op3"


def test_equal_code_on_another_day_is_the_same():
    for seed in range(50):
        found = compare([document(seed)], [document(seed + 100, machine=0.8)])
        assert not found.is_slower, seed
        assert not called(found, "faster"), seed


def test_a_case_that_is_much_slower_is_named_alone():
    found = compare([document(1)], [document(2, factors={"op2 case 4": 1.4})])
    assert called(found, "slower") == ["op2 case 4"]
    (row,) = found.of("slower")
    assert row.before is not None
    assert row.after is not None
    assert row.after / row.before == pytest.approx(1.4, rel=0.1)


def test_a_slowdown_of_every_operator_is_no_drift_of_the_machine():
    found = compare([document(1)], [document(2, factors=dict.fromkeys(OPS, 1.15))])
    assert [group.verdict for group in found.groups] == ["slower"] * len(OPS)
    assert found.drift == pytest.approx(0, abs=0.03)
    assert found.level is None


def test_where_the_peers_tell_nothing_operators_are_compared_with_each_other():
    before, after = document(1, peers=0.5), document(2, peers=0.5, factors={"op3": 1.1}, machine=1.3)
    found = compare([before], [after])
    assert found.drift is None
    assert found.level == pytest.approx(0.3, abs=0.05)
    assert called(found, "slower")[:1] == ["op3"]
    assert not called(compare([before], [document(2, peers=0.5, factors=dict.fromkeys(OPS, 1.15))]), "slower")


def test_the_quietest_visits_count():
    """Something else runs during most of the later visits, which more than doubles the medians of all samples."""
    before, after = document(1, restless=0.0), document(2, restless=0.7)
    found = compare([before], [after])
    assert not found.is_slower
    assert all(abs(group.change) < 0.05 for group in found.groups)


def test_what_noise_hides_is_unclear():
    found = compare([document(1, process=0.4)], [document(2, process=0.4)])
    assert not found.is_slower
    assert not called(found, "faster")
    assert found.of("unclear")
    assert all(row.noise > 0.3 for row in found.rows)


def test_several_runs_see_less_noise_and_smaller_changes():
    def runs(first: int, **settings: Any) -> list[dict[str, Any]]:
        return [document(first + seed, process=0.04, **settings) for seed in range(6)]

    def noise(found: Comparison) -> float:
        return float(np.median([group.noise for group in found.groups]))

    before, after = runs(0), runs(100, factors={"op5": 1.1})
    several, single = compare(before, after), compare(before[:1], after[:1])
    assert noise(several) < 0.7 * noise(single)
    assert called(several, "slower") == ["op5"]
    assert not compare(before, runs(200)).is_slower


def test_documents_without_visits_are_judged_by_their_rows():
    before, after = document(1, visits=0, restless=0), document(2, visits=0, restless=0, factors={"op3": 1.1})
    found = compare([before], [after])
    assert called(found, "slower")[:1] == ["op3"]
    assert any("does not say how its samples varied" in remark for remark in found.remarks)
    assert not compare([before], [document(3, visits=0, restless=0)]).is_slower


def test_two_visits_of_a_quick_run_tell_how_they_vary():
    found = compare([document(1, visits=2)], [document(2, visits=2)])
    assert not found.is_slower
    assert not found.remarks
    assert called(compare([document(1, visits=2)], [document(2, visits=2, factors={"op3": 1.4})]), "slower")[0] == "op3"


def test_the_threshold_is_the_users():
    before = document(1, process=0.001, restless=0)
    after = document(2, factors={"op0": 1.03}, process=0.001, restless=0)
    assert not compare([before], [after]).is_slower
    assert called(compare([before], [after], threshold=0.02), "slower")[:1] == ["op0"]


def test_real_timings_have_parts_that_show_a_slowdown():
    """The parts of what took turns, and not just any: with them a row alone is enough."""

    def count(number: int) -> None:
        for _ in range(number):
            pass

    def report(number: int) -> dict[str, Any]:
        calls = {"fastyolo": number, "peer": 20_000}
        contenders = {name: CpuContender([lambda n=n: count(n)]) for name, n in calls.items()}
        timings = interleave(contenders, seconds=0.3, min_rounds=40)
        row = {"op": "loop", "case": "of Python", "contenders": {name: t.as_dict() for name, t in timings.items()}}
        return {"kind": "ops", "device": "cpu", "threads": 1, "environment": environment(), "results": [row]}

    before = report(20_000)
    assert len(before["results"][0]["contenders"]["fastyolo"]["parts_us"]) == VISITS
    assert compare([before], [report(60_000)]).rows[0].change > 0.5


def model_document(milliseconds: float, **settings: Any) -> dict[str, Any]:
    parts = [milliseconds * (1 + 0.001 * index) for index in range(VISITS)]
    latency = {"onnxruntime": {"median_ms": milliseconds, "p90_ms": 9.0, "samples": 40, "parts_ms": parts}}
    rows = [{"imgsz": 320, "latency": latency, **settings}]
    return {"kind": "model", "device": "cpu", "threads": 2, "environment": ENVIRONMENT, "results": rows}


def test_models_are_compared_by_size_and_runtime():
    found = compare([model_document(20)], [model_document(24)])
    assert called(found, "slower") == ["onnxruntime at 320"]
    assert found.rows[0].before == pytest.approx(20_000)
    assert found.drift is None
    settings = {"model": "best.onnx", "batch": 8, "threads": 2}
    (row,) = compare([model_document(20, **settings)], [model_document(20, **settings)]).rows
    assert row.name == "onnxruntime at 320, best.onnx, batch 8, 2 threads"


def test_runs_that_differ_have_noise_though_their_visits_agree():
    before, after = ([model_document(time) for time in times] for times in ((20, 22.5, 20.5), (22, 24, 21.5)))
    (row,) = compare(before, after).rows
    assert row.change == pytest.approx(0.07, abs=0.01)
    assert row.verdict == "unclear"
    agreeing = [[model_document(time)] * 6 for time in (20, 22)]
    assert row.noise > 1.3 * compare(*agreeing).rows[0].noise
    assert compare(*agreeing).is_slower


def test_few_rows_are_not_trusted_further_than_processes_agree():
    """Visits of one process that agree to a thousandth, and two references that changed alike by chance."""
    (row,) = compare([model_document(20)], [model_document(22)]).rows
    assert (row.verdict, row.noise) == ("unclear", pytest.approx(0.136, abs=0.01))
    documents = [document(seed) for seed in range(16)]
    for before, after in itertools.pairwise({**found, "results": found["results"][:1]} for found in documents):
        found = compare([before], [after])
        assert not found.is_slower
        assert found.rows[0].noise > 0.2


def test_a_product_of_matrices_tells_what_the_machine_did_to_models():
    def rows(milliseconds: float, product: float) -> dict[str, Any]:
        settings = {"model": "best.onnx", "batch": 1, "threads": 2}
        times = [product * (1 + 0.001 * index) for index in range(VISITS)]
        found = model_document(milliseconds, **settings, matrix_product={"median_ms": product, "parts_ms": times})
        return {**found, "results": [{**found["results"][0], "imgsz": size} for size in (320, 640)]}

    found = compare([rows(20, 30)], [rows(32, 48)])
    assert found.drift == pytest.approx(0.6)
    assert [row.verdict for row in found.rows] == ["same", "same"]
    assert [row.verdict for row in compare([rows(20, 30)], [rows(48, 48)]).rows] == ["slower", "slower"]


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({name: value for name, value in ENVIRONMENT.items() if name != "cpu"}, "without 'cpu'"),
        ({**ENVIRONMENT, "cpu": {"model": "Z80"}}, "without 'cores'"),
        ({**ENVIRONMENT, "versions": None}, "of other types"),
        ("a laptop", "of other types"),
    ],
)
def test_an_environment_that_is_not_whole(environment, fault):
    found = {**model_document(20), "environment": environment, "file": "old.json"}
    message = f"after must be a whole result of 'bench model', got one with an environment {fault} in old.json."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compare([model_document(20)], [found])


def test_command(tmp_path):
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["bench", "compare", *arguments], env={"COLUMNS": "200"})

    files = {name: tmp_path / f"{name}.json" for name in ("before", "same", "slow", "list", "text", "models")}
    slow = document(3, factors={"op5": 1.5})
    slow["threads"] = 1
    slow["results"] = slow["results"][:-1]
    contents = {"before": document(1), "same": document(2), "slow": slow, "list": [], "models": {"kind": "models"}}
    for name, content in contents.items():
        files[name].write_text(json.dumps(content))
    files["text"].write_text("nothing")

    same = run(str(files["before"]), str(files["same"]))
    assert same.exit_code == 0, same.output
    assert "64 cases: 0 slower" in same.output
    assert len(re.findall(r"same op\d, all cases", same.output)) == len(OPS)

    found = run(str(files["before"]), str(files["slow"]), "--json", str(tmp_path / "out.json"))
    assert found.exit_code == 1
    assert "threads was 2 and is 1." in found.output
    assert "op7 case 7 is in one of the files only." in found.output
    assert "slower op5, all cases" in found.output
    assert re.search(r"slower op5 case 1 .*\+[45]\d\.\d%", found.output)
    document_of_it = json.loads((tmp_path / "out.json").read_text())
    assert [group["name"] for group in document_of_it["groups"] if group["verdict"] == "slower"] == ["op5"]
    assert {row["name"][:3] for row in document_of_it["rows"] if row["verdict"] == "slower"} == {"op5"}

    for side, seeds in {"old": range(3), "new": range(10, 13)}.items():
        (tmp_path / side).mkdir()
        for seed in seeds:
            (tmp_path / side / f"{seed}.json").write_text(json.dumps(document(seed)))
    several = run(str(tmp_path / "old"), str(tmp_path / "new"))
    assert several.exit_code == 0, several.output
    (tmp_path / "empty").mkdir()

    for name, words in {
        "list.json": "holds something else",
        "text.json": "is no JSON",
        "models.json": "after must be a result of 'bench ops' or 'bench model', got one of kind 'models'",
        "empty": "must hold result files, and has no .json file",
    }.items():
        refused = run(str(files["before"]), str(tmp_path / name))
        assert refused.exit_code == 2
        assert words in refused.output
    unlike = {"kind": "ops", "device": "cpu", "results": [{"op": "eca", "case": "x"}]}
    files["text"].write_text(json.dumps({**document(1), **unlike}))
    refused = run(str(files["before"]), str(files["text"]))
    assert refused.exit_code == 2
    assert run(str(files["before"]), str(files["text"]), "--debug").exit_code == 2
    assert f"got one without 'contenders' in {files['text']}." in refused.output
    other = {**document(1), "device": "cuda"}
    with pytest.raises(ValueError, match=r"^after must have the device of before, 'cpu', got 'cuda'\.$"):
        compare([document(1)], [other])
    with pytest.raises(ValueError, match=r"^before must have the kind of the others, 'ops', got 'model'\.$"):
        compare([document(1), model_document(20)], [other])
    with pytest.raises(ValueError, match=r"^after must be a whole result of 'bench ops', got one without device\.$"):
        compare([document(1)], [{"kind": "ops"}])
    with pytest.raises(ValueError, match=r"^after must be at least one result, got none\.$"):
        compare([document(1)], [])
    with pytest.raises(ValueError, match="must have times above 0"):
        compare([model_document(20)], [model_document(0)])
    with pytest.raises(ValueError, match="must have a case in common"):
        compare([document(1)], [{**document(1), "results": []}])
