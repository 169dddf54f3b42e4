# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs the cases: checks that the contenders agree, then times them in turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fastyolo.bench.cases import CASES, COMPILED_PEERS, IMAGE_SIZE, OURS, Case, Inputs, Maps
from fastyolo.bench.environment import environment, installed_version, why_not_compiled
from fastyolo.bench.timing import (
    Contender,
    CpuContender,
    CudaContender,
    copy_bandwidth,
    interleave,
    keep_freed_memory,
    peak_extra_bytes,
    single_pass,
)

SCHEMA = 1
_MEMORY = "memory"


def run(cases: Iterable[Case], device: torch.device, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Time the cases one by one; each result is a row of the report's `results`.

    Raises:
        DisagreementError: fastyolo and a peer gave different answers.
    """
    if device.type == "cpu":
        keep_freed_memory()
    bandwidth = copy_bandwidth() if device.type == "cuda" else None
    for case in cases:
        case.check()
        contenders = {name: _contender(case, name, device) for name in case.calls}
        if bandwidth is None:
            contenders[_MEMORY] = single_pass(case.bytes_moved)
        timings = interleave(contenders, seconds=0.2 if quick else 3.0, min_rounds=2 if quick else 5)
        memory_us = case.bytes_moved / bandwidth * 1e6 if bandwidth else timings.pop(_MEMORY).median_us
        ours_us = timings[OURS].median_us
        yield {
            "op": case.op,
            "case": case.name,
            **case.facts,
            "contenders": {
                name: {"mode": _mode(case, name, device), **timing.as_dict()} for name, timing in timings.items()
            },
            "ratio": {name: round(timing.median_us / ours_us, 2) for name, timing in timings.items()},
            "bytes": case.bytes_moved,
            "gb_per_s": round(case.bytes_moved / ours_us / 1e3, 2),
            "memory_us": round(memory_us, 2),
            "memory_share": round(memory_us / ours_us, 3),
            "peak_extra_bytes": peak_extra_bytes(case.calls[OURS][0], device),
        }


def cases(names: Sequence[str], inputs: Inputs, *, quick: bool) -> Iterator[Case]:
    for name in names:
        yield from CASES[name](inputs, quick)


def report(
    results: Sequence[dict[str, Any]], device: torch.device, maps_source: str, left_out: Sequence[str]
) -> dict[str, Any]:
    """The document that --json writes and bench/tables.py reads."""
    return {
        "schema": SCHEMA,
        "kind": "ops",
        "device": device.type,
        "threads": torch.get_num_threads(),
        "maps": maps_source,
        "left_out": list(left_out),
        "environment": environment(),
        "results": list(results),
    }


def left_out(names: Iterable[str], device: torch.device, *, quick: bool) -> list[str]:
    """Why peers of these operators are missing, a clause for each."""
    missing = [package for package in ("ultralytics", "torchvision") if installed_version(package) is None]
    reasons = [f"{package} is not installed" for package in missing]
    if COMPILED_PEERS.intersection(names):
        reason = "torch.compile takes too long for a quick run" if quick else why_not_compiled(device)
        reasons += [reason] if reason else []
    return reasons


def real_maps(weights: str, images: Path, *, limit: int = 32) -> Maps:
    """Head maps of a detection model on the first images of a folder, letterboxed to 640 x 640.

    Raises:
        FileNotFoundError: the folder holds no image.
    """
    from fastyolo.integrations.ultralytics.acceleration import YOLO, head_maps

    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:limit]
    if not paths:
        raise FileNotFoundError(f"{images} holds no .jpg or .png image")
    maps, _ = head_maps(YOLO(weights), paths, imgsz=IMAGE_SIZE)
    return maps.box_maps, maps.cls_maps


def _contender(case: Case, name: str, device: torch.device) -> Contender:
    if device.type == "cpu":
        return CpuContender(case.calls[name])
    return CudaContender(case.calls[name], capturable=name in case.capturable)


def _mode(case: Case, name: str, device: torch.device) -> str:
    if device.type == "cpu":
        return "call"
    return "graph" if name in case.capturable else "stream"
