# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `fastyolo info MODEL` says about the cost of a model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("ultralytics")

from ultralytics import YOLO

from fastyolo.cli import app
from fastyolo.integrations.ultralytics import facts
from fastyolo.nn import DWSPPF, ECA


def flops_of_a_forward(network: Any, size: int) -> int:
    """Two for each multiplication of the convolutions, from what they put out for a real image."""
    counts = []

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Conv2d):
            counts.append(output.numel() * module.weight[0].numel())
        elif isinstance(module, DWSPPF):  # its three stages; its 1x1 convolutions are counted as such
            stages, channels, *kernel = module.weight.shape
            counts.append(stages * channels * inputs[0][0, 0].numel() * kernel[0] * kernel[1])
        elif isinstance(module, ECA):
            counts.append(inputs[0].shape[1] * module.weight.numel())

    network = copy.deepcopy(network).eval().fuse(verbose=False)
    for module in network.modules():
        module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, size, size))
    return 2 * sum(counts)


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolov8n-fast.yaml"])
def test_cost(name):
    network = YOLO(name).model
    state = {key: value.clone() for key, value in network.state_dict().items()}
    cost = facts.cost(network, 96)
    assert cost["imgsz"] == 96
    assert cost["flops"] == flops_of_a_forward(network, 96)
    assert cost["parameters"] == sum(p.numel() for p in network.parameters())
    parts = cost["parts"]
    assert list(parts) == ["backbone", "neck", "head"]
    for field in ("parameters", "flops", "activation_bytes"):
        assert sum(part[field] for part in parts.values()) == cost[field]
        assert all(part[field] > 0 for part in parts.values())
    assert cost["peak_bytes"] == max(part["peak_bytes"] for part in parts.values()) < cost["activation_bytes"]
    assert parts["head"]["parameters"] == sum(p.numel() for p in network.model[-1].parameters())
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())  # the model is as it was


def test_cost_at_other_sizes():
    network = YOLO("yolov8n.yaml").model
    small, large = facts.cost(network, 100), facts.cost(network, 256)
    assert small["imgsz"] == 128
    for field in ("flops", "activation_bytes", "peak_bytes"):
        assert large[field] == pytest.approx(4 * small[field], rel=1e-3)
    assert large["parameters"] == small["parameters"]


def test_memory_counts_what_is_made_and_what_is_freed():
    weight, x = torch.zeros(100), torch.zeros(100)
    with facts._Memory([weight, x]) as memory:
        y = x + weight  # 400 bytes
        y.add_(1).view(10, 10)
        weight[:50]
        assert (memory.live, memory.peak, memory.written) == (400, 400, 400)
        z = torch.cat((y, y))
        assert (memory.live, memory.peak, memory.written) == (1200, 1200, 1200)
        del y
        assert memory.live == 800
        z = z * 2
        assert (memory.live, memory.peak, memory.written) == (800, 1600, 2000)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("yolov8n-fast.yaml", "yolov8n"),
        ("yolov8n-fast-p45.yaml", "yolov8n"),
        ("yolov8n.yaml", None),
        ("yolo11n.yaml", None),
    ],
)
def test_baseline(name, expected):
    network = YOLO(name).model
    found = facts.baseline(network)
    assert (found and found[0]) == expected
    if found:
        assert found[1].model[-1].nc == network.model[-1].nc


def info(*arguments: str) -> tuple[str, dict[str, Any]]:
    done = CliRunner().invoke(app, ["info", *arguments, "--json", "info.json"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.stdout, json.loads(Path("info.json").read_text())["model"]


def test_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, model = info("yolov8n-fast.yaml", "--imgsz", "64")
    assert model["baseline"]["name"] == "yolov8n"
    assert model["baseline"]["parameters"] == 3157200  # of 80 classes
    assert model["cost"]["parameters"] == model["parameters"] < model["baseline"]["parameters"] / 2
    rows = {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}
    ratio = model["cost"]["flops"] / model["baseline"]["flops"]
    assert rows["ratio"][1] == f"{ratio:.2f}"
    assert rows["yolov8n-fast"][0] == f"{model['parameters']:,}"
    share = model["cost"]["parts"]["head"]["parameters"] / model["parameters"]
    assert rows["head"][0] == f"{share:.0%}"
    assert "One 64 x 64 image" in text
    text, model = info("yolov8n-cls.yaml", "--imgsz", "64")
    assert list(model["cost"]["parts"]) == ["backbone", "head"]
    assert "baseline" not in model
    assert "ratio" not in text
    (tmp_path / "data.yaml").write_text("names: [a]")
    done = CliRunner().invoke(app, ["info", "data.yaml"])
    assert done.exit_code == 1
    assert "The model 'data.yaml' must have backbone" in done.stderr
