# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs the cases: checks that the contenders agree, then times them in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastyolo._machine import installed_version
from fastyolo.bench.cases import CASES, IMAGE_SIZE, OURS, PEERS, Case, Choice, DisagreementError, Inputs, Maps
from fastyolo.bench.environment import environment, why_not_compiled
from fastyolo.bench.roofline import Roofline
from fastyolo.bench.timing import (
    VISITS,
    Contender,
    CpuContender,
    CudaContender,
    Timing,
    copy_bandwidth,
    keep_freed_memory,
    memory_passes,
    peak_extra_bytes,
    visit_in_turns,
)

SCHEMA = 1

# What the operators take on a device, and of that what networks are run and trained in.
DTYPES = {
    "cpu": (torch.float32, torch.bfloat16, torch.float64),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}
NETWORKS = {"cpu": DTYPES["cpu"][:2], "cuda": DTYPES["cuda"]}

_MEMORY = "memory: "  # before the names of what only moves the bytes, beside the contenders
_HELD_BYTES = 1 << 29  # that the calls of the cases which are alive at the same time move


def run(
    cases: Iterable[Case],
    device: torch.device,
    roofline: Roofline,
    *,
    quick: bool,
    on_visit: Callable[[Case], None] = lambda case: None,
    on_failure: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Time the cases; each result is a row of the report's `results`.

    Cases of an operator that fit into memory together are visited one after the other, VISITS times, for a part of
    their time each: a case is then measured over minutes, and what the machine did for some seconds does not decide
    about it. `on_visit` is called before each. A case to which fastyolo and a peer give different answers, and one in
    which something fails, is left out: `on_failure` is called with a sentence about it.
    """
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.allow_tf32 = False  # float32 is what it says, for the peers too
    bandwidth = copy_bandwidth() if device.type == "cuda" else None
    # What else runs on a machine shares its CPU, but hardly ever its GPU.
    seconds = 0.2 if quick else 3.0 if device.type == "cpu" else 1.0
    visits, min_visits = (2, 2) if quick else (VISITS, 5)
    for group in _groups(cases):
        ready: list[tuple[Case, dict[str, Contender]]] = []
        for case in group:
            with _reported(case, on_failure):
                case.check()
                ready.append((case, _contenders(case, device)))
        times = visit_in_turns(
            [contenders for _, contenders in ready],
            seconds=seconds,
            visits=visits,
            min_visits=min_visits,
            on_visit=lambda index, ready=ready: on_visit(ready[index][0]),  # type: ignore[misc]
            on_failure=lambda index, error, ready=ready: on_failure(_sentence(ready[index][0], error)),  # type: ignore[misc]
        )
        for (case, contenders), timings in zip(ready, times, strict=True):
            modes = {name: contender.mode for name, contender in contenders.items()}
            with _reported(case, on_failure):
                if timings:
                    yield _row(case, timings, modes, device, roofline, bandwidth)


@contextmanager
def _reported(case: Case, on_failure: Callable[[str], None]) -> Iterator[None]:
    """Says what fails in a case instead of raising it: hours of measurement must not depend on the last peer."""
    try:
        yield
    except Exception as error:  # a compiler's, a driver's, any peer's
        on_failure(_sentence(case, error))


def _sentence(case: Case, error: Exception) -> str:
    if isinstance(error, DisagreementError):
        return str(error)
    first_line, *_ = str(error).splitlines() or [""]
    return f"{case.op}, {case.name}: {type(error).__name__}: {first_line}"


def _groups(cases: Iterable[Case]) -> Iterator[list[Case]]:
    """Consecutive cases of one operator."""
    group: list[Case] = []
    for case in cases:
        if group and (case.op != group[0].op or sum(map(_held_bytes, group)) > _HELD_BYTES):
            yield group
            group = []
        group.append(case)
    if group:
        yield group


def _held_bytes(case: Case) -> int:
    """On CUDA a case has as many sets of inputs, and of the results in its graphs, as exceed the L2 cache."""
    return case.bytes_moved * len(case.calls[OURS])


def _row(
    case: Case,
    timings: dict[str, Timing],
    modes: Mapping[str, str],
    device: torch.device,
    roofline: Roofline,
    bandwidth: float | None,
) -> dict[str, Any]:
    """A result, with the two limits of the roofline model beside it."""
    passes = [timings.pop(name) for name in [*timings] if name.startswith(_MEMORY)]
    # What is in the caches is moved faster than memory is copied; a pass over little is mostly the threads' start.
    copied_us = case.bytes_moved / (bandwidth or roofline.bytes) * 1e6
    memory_us = min([copied_us, *(one.median_us for one in passes)])
    compute_us = case.flops / roofline.flops * 1e6
    ours_us = timings[OURS].median_us
    return {
        "op": case.op,
        "case": case.name,
        **case.facts,
        "contenders": {name: {"mode": modes[name], **timing.as_dict()} for name, timing in timings.items()},
        "ratio": {name: round(timing.median_us / ours_us, 2) for name, timing in timings.items()},
        "bytes": case.bytes_moved,
        "gb_per_s": round(case.bytes_moved / ours_us / 1e3, 2),
        "memory_us": round(memory_us, 2),
        **({"memory_parts_us": passes[0].as_dict()["parts_us"]} if passes else {}),
        "memory_share": round(memory_us / ours_us, 3),
        "flops": case.flops,
        "compute_us": round(compute_us, 2),
        "bound": "memory" if memory_us >= compute_us else "compute",
        "limit_share": round(max(memory_us, compute_us) / ours_us, 3),
        "peak_extra_bytes": peak_extra_bytes(case.calls[OURS][0], device),
    }


def cases(names: Sequence[str], inputs: Inputs, choice: Choice) -> Iterator[Case]:
    for name in names:
        yield from CASES[name](inputs, choice)


def report(
    results: Sequence[Mapping[str, Any]],
    device: torch.device,
    roofline: Roofline,
    maps_source: str,
    left_out: Sequence[str],
) -> dict[str, Any]:
    """The document that --json writes and bench/tables.py reads."""
    return {
        "schema": SCHEMA,
        "kind": "ops",
        "device": device.type,
        "threads": torch.get_num_threads(),
        "maps": maps_source,
        "left_out": list(left_out),
        "roofline": {"gflops": round(roofline.flops / 1e9, 3), "gb_per_s": round(roofline.bytes / 1e9, 3)},
        "environment": environment(),
        "results": list(results),
    }


def left_out(names: Iterable[str], device: torch.device, *, quick: bool) -> list[str]:
    """Why peers of these operators are missing, a clause for each."""
    wanted = {peer for name in names for peer in PEERS[name]}
    on_cpu = sorted(wanted & {"opencv", "onnx", "onnxruntime", "openvino"})
    reasons = []
    if device.type == "cuda" and on_cpu:
        reasons.append(f"{', '.join(on_cpu)} run on the CPU")
        wanted -= {*on_cpu}
    packages = [package for package in dict.fromkeys(sum(PEERS.values(), ())) if package in wanted]
    reasons += [f"{package} is not installed" for package in packages if not _is_installed(package)]
    if "torch.compile" in wanted:
        reason = "torch.compile takes too long for a quick run" if quick else why_not_compiled(device)
        reasons += [reason] if reason else []
    return reasons


def _is_installed(package: str) -> bool:
    return package == "torch.compile" or installed_version(package) is not None


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


def _contenders(case: Case, device: torch.device) -> dict[str, Contender]:
    if device.type == "cuda":
        return {
            name: CudaContender(calls, capturable=name in case.capturable, required=name == OURS)
            for name, calls in case.calls.items()
        }
    timed: dict[str, Contender] = {name: CpuContender(calls) for name, calls in case.calls.items()}
    return timed | {_MEMORY + name: contender for name, contender in memory_passes(case.bytes_moved).items()}
