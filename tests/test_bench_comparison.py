# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two results compared: slower code is named, a slower or restless machine is not taken for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fastyolo.bench.comparison import Comparison, compare
from fastyolo.bench.environment import environment
from fastyolo.bench.timing import PARTS, CpuContender, interleave
from fastyolo.cli import app

CASES = [f"case {index}" for index in range(12)]


def document(
    seed: int, *, factors: Mapping[str, float] = {}, machine: float = 1.0, noise: float = 0.01, parts: bool = True
) -> dict[str, Any]:
    """What `bench ops` writes on a machine whose speed wanders: each part has its own, which all contenders share."""
    draw = np.random.default_rng(seed)

    def timing(microseconds: float, weather: np.ndarray) -> dict[str, Any]:
        times = microseconds * machine * weather * np.exp(noise * draw.standard_normal(PARTS))
        found = {"median_us": float(np.median(times)), "parts_us": times.tolist()}
        return found if parts else {"median_us": found["median_us"]}

    rows = []
    for index, case in enumerate(CASES):
        weather = np.exp(0.05 * draw.standard_normal(PARTS))
        ours = 50 * (index + 1)
        rows.append(
            {
                "op": "nms",
                "case": case,
                "contenders": {
                    "fastyolo": timing(ours * factors.get(case, 1.0), weather),
                    "torchvision": timing(ours * 8, weather),
                },
            }
        )
    return {"kind": "ops", "device": "cpu", "threads": 2, "environment": environment(), "results": rows}


def names(found: Comparison, verdict: Any) -> list[str]:
    return [row.name for row in found.of(verdict)]


@pytest.mark.parametrize("parts", [True, False])
def test_a_slowdown_of_a_tenth_is_named_and_nothing_else(parts):
    for seed in range(20):
        before = document(seed, parts=parts)
        after = document(seed + 100, factors={"case 3": 1.1}, machine=1.3, parts=parts)
        found = compare(before, after)
        assert names(found, "slower") == ["nms case 3"], seed
        assert not names(found, "faster")
        assert found.of("slower")[0].change == pytest.approx(0.1, abs=0.04)
        assert found.drift == pytest.approx(0.3, abs=0.1)
        assert names(compare(after, before), "faster") == ["nms case 3"]


def test_equal_code_on_another_day_is_the_same():
    for seed in range(50):
        found = compare(document(seed), document(seed + 100, machine=0.8))
        assert not found.of("slower")
        assert not found.of("faster")


def test_a_slowdown_of_every_case_is_no_drift_of_the_machine():
    found = compare(document(1), document(2, factors=dict.fromkeys(CASES, 1.15)))
    assert len(found.of("slower")) == len(CASES)
    assert found.drift == pytest.approx(0, abs=0.05)


def test_what_noise_hides_is_unclear():
    noisy = [document(seed, noise=0.4) for seed in (1, 2)]
    found = compare(*noisy)
    assert not found.of("slower")
    assert not found.of("faster")
    assert found.of("unclear")
    assert all(row.noise > 0.05 for row in found.rows)


def test_the_threshold_is_the_users():
    before, after = document(1, noise=0.001), document(2, factors={"case 0": 1.03}, noise=0.001)
    assert not compare(before, after).of("slower")
    assert names(compare(before, after, threshold=0.02), "slower") == ["nms case 0"]


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
    assert len(before["results"][0]["contenders"]["fastyolo"]["parts_us"]) == PARTS
    assert compare(before, report(60_000)).rows[0].change > 0.5


def test_models_are_compared_by_size_and_runtime():
    def model(milliseconds: float) -> dict[str, Any]:
        parts = [milliseconds * (1 + 0.001 * index) for index in range(PARTS)]
        latency = {"onnxruntime": {"median_ms": milliseconds, "p90_ms": 9.0, "samples": 40, "parts_ms": parts}}
        rows = [{"imgsz": 320, "latency": latency}]
        return {"kind": "model", "device": "cpu", "threads": 2, "environment": environment(), "results": rows}

    found = compare(model(20), model(24))
    assert names(found, "slower") == ["onnxruntime at 320"]
    assert found.rows[0].before == 20_000
    assert found.drift is None


def test_command(tmp_path):
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["bench", "compare", *arguments], env={"COLUMNS": "200"})

    files = {name: tmp_path / f"{name}.json" for name in ("before", "same", "slow", "list", "text", "models")}
    slow = document(3, factors={"case 5": 1.5})
    slow["threads"] = 1
    slow["results"] = slow["results"][:-1]
    contents = {"before": document(1), "same": document(2), "slow": slow, "list": [], "models": {"kind": "models"}}
    for name, content in contents.items():
        files[name].write_text(json.dumps(content))
    files["text"].write_text("nothing")

    same = run(str(files["before"]), str(files["same"]))
    assert (same.exit_code, same.output.count("\n")) == (0, 1), same.output
    assert "12 cases: 0 slower, 0 unclear, 0 faster, 12 same" in same.output

    found = run(str(files["before"]), str(files["slow"]), "--json", str(tmp_path / "out.json"))
    assert found.exit_code == 1
    assert "threads was 2 and is 1." in found.output
    assert "nms case 11 is in one of the files only." in found.output
    assert "slower nms case 5" in found.output
    assert re.search(r"\+[45]\d\.\d%", found.output)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["name"] for row in rows if row["verdict"] == "slower"] == ["nms case 5"]

    for name, words in {
        "list": "holds something else",
        "text": "is no JSON",
        "models": "after must be a result of 'bench ops' or 'bench model', got one of kind 'models'",
    }.items():
        refused = run(str(files["before"]), str(files[name]))
        assert refused.exit_code == 1
        assert words in refused.output
    other = {**document(1), "device": "cuda"}
    with pytest.raises(ValueError, match=r"^after must have the device of before, 'cpu', got 'cuda'\.$"):
        compare(document(1), other)
    with pytest.raises(ValueError, match="must have a case in common"):
        compare(document(1), {**document(1), "results": []})
