# SPDX-License-Identifier: AGPL-3.0-or-later
"""README's picture, an SVG of the result files: time and size as a share of what fastyolo takes the place of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from fastyolo.bench.runtimes import LABELS as RUNTIMES

WIDTH, LABELS, VALUES = 860, 340, 150  # of the picture, of the names on the left, of the figures on the right
ROW, BAR = 24, 14

_KEPT = "that is kept"  # what is better the more there is of it

# A name, the share, and the two figures that it is of.
Row = tuple[str, float, str]
Group = tuple[str, list[Row]]


def draw(reports: Sequence[Mapping[str, Any]]) -> str:
    """The picture as text; a group without a result file is left out."""
    made = (_post_processing(reports), _light(reports), _smaller(reports), _whole_path(reports))
    groups = [group for group in made if group[1]]
    y, body = 10, []
    for title, rows in groups:
        y += ROW + 8
        body.append(f'<text x="20" y="{y}" class="title">{escape(title)}</text>')
        for name, share, figures in rows:
            y += ROW
            body += _bar(y, name, share, figures)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 24}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">\n'
        "<title>Time and size, as a share of what fastyolo takes the place of</title>\n"
        "<style>.title { font-weight: 600; } text { fill: #1a1f24; } .all { fill: #d0d7de; } .ours { fill: #0b62a4; }"
        " .kept { fill: #2f7d4f; }"
        " .figures { fill: #55606b; font-size: 12px; }</style>\n"
        f'<rect width="{WIDTH}" height="{y + 24}" rx="8" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _bar(y: int, name: str, share: float, figures: str) -> Iterator[str]:
    full = WIDTH - LABELS - VALUES - 40
    yield f'<text x="36" y="{y}">{escape(name)}</text>'
    yield f'<rect class="all" x="{LABELS}" y="{y - BAR + 2}" width="{full}" height="{BAR}" rx="2"/>'
    width = min(max(full * share, 1), full)
    kind = "kept" if _KEPT in name else "ours"
    yield f'<rect class="{kind}" x="{LABELS}" y="{y - BAR + 2}" width="{width:.1f}" height="{BAR}" rx="2"/>'
    yield f'<text x="{LABELS + full + 10}" y="{y}">{share:.0%}</text>'
    yield f'<text x="{WIDTH - 20}" y="{y}" class="figures" text-anchor="end">{escape(figures)}</text>'


def _post_processing(reports: Sequence[Mapping[str, Any]]) -> Group:
    cases = {
        ("decode_nms", "batch 1, conf 0.25, best class"): ("one image", "ultralytics"),
        ("decode_nms", "batch 32, conf 0.001, multi-label"): ("32 images, conf 0.001", "ultralytics"),
        ("batched_nms", "30,000 boxes, 80 classes"): ("NMS of 30,000 boxes", "openvino"),
    }
    rows = []
    for row in _rows_of(reports, "ops"):
        if (row["op"], row["case"]) in cases:
            name, peer = cases[row["op"], row["case"]]
            ours, theirs = (row["contenders"][who]["median_us"] / 1e3 for who in ("fastyolo", peer))
            rows.append((f"{name}, against {RUNTIMES.get(peer, peer)}", ours / theirs, _of(ours, theirs, "ms")))
    return "From the head's outputs to boxes, time", rows


def _light(reports: Sequence[Mapping[str, Any]]) -> Group:
    rows = []
    for row in _rows_of(reports, "models"):
        (light, ours), (stock, theirs) = row["models"].items()
        if "-p" not in light:
            times = [model["latency"]["onnxruntime"]["median_us"] / 1e3 for model in (ours, theirs)]
            rows.append((f"{light} for {stock}", times[0] / times[1], _of(*times, "ms")))
    return "The light model in ONNX Runtime, time (one thread)", rows


def _smaller(reports: Sequence[Mapping[str, Any]]) -> Group:
    rows = []
    for report in reports:
        if report["kind"] == "pruning-study" and "data" in report:
            pruned = report["models"]["yolov8n"][-1]
            times = (pruned["latency"]["pruned_ms"], pruned["latency"]["unpruned_ms"])
            removed = 1 - pruned["after"]["flops"] / pruned["before"]["flops"]
            rows.append((f"without {removed:.0%} of its FLOPs, time", times[0] / times[1], _of(*times, "ms")))
            found = tuple(pruned["accuracy"][stage]["mAP50"] for stage in ("trained", "unpruned"))
            rows.append((f"mAP50 {_KEPT}, {report['data']}", found[0] / found[1], _of(*found, "")))
    for report in reports:
        if report["kind"] == "ptq":
            ours, theirs = (report["variants"][name] for name in ("percentile", "float32"))
            times = tuple(one["milliseconds"]["openvino"] for one in (ours, theirs))
            rows.append(("INT8 in OpenVINO, time", times[0] / times[1], _of(*times, "ms")))
            found = tuple(one["accuracy"]["openvino"]["mAP50-95"] for one in (ours, theirs))
            rows.append((f"mAP50-95 {_KEPT}, {report['data']}", found[0] / found[1], _of(*found, "")))
            sizes = tuple(one["bytes"] / 1e6 for one in (ours, theirs))
            rows.append(("INT8, size of the file", sizes[0] / sizes[1], _of(*sizes, "MB")))
    return "YOLOv8n, pruned and quantised", rows


def _whole_path(reports: Sequence[Mapping[str, Any]]) -> Group:
    rows, title = [], ""
    for report in reports:
        if report["kind"] == "compress":
            light = report["settings"]["light"].removesuffix(".yaml")
            title = f"fastyolo compress on {report['data']['name']}: the baseline to {light}, pruned, in INT8"
            first, last = ([stage for stage in report["stages"] if stage["files"]][index] for index in (0, -1))
            times = tuple(latencies(stage)["openvino"]["median_ms"] for stage in (last, first))
            rows.append(("time in OpenVINO", times[0] / times[1], _of(*times, "ms")))
            times = tuple(latencies(stage)["onnxruntime"]["median_ms"] for stage in (last, first))
            rows.append(("time in ONNX Runtime", times[0] / times[1], _of(*times, "ms")))
            sizes = tuple(stage["files"][0]["bytes"] / 1e6 for stage in (last, first))
            rows.append(("size of the file", sizes[0] / sizes[1], _of(*sizes, "MB")))
            for key, name in (("map50", "mAP50"), ("map50_95", "mAP50-95")):
                found = tuple(stage["files"][0]["accuracy"][key] for stage in (last, first))
                rows.append((f"{name} {_KEPT}", found[0] / found[1], _of(*found, "")))
    return title, rows


def latencies(stage: Mapping[str, Any]) -> dict[str, Any]:
    """By runtime, of the first file of a stage of fastyolo compress that is made for it."""
    return {name: latency for file in reversed(stage["files"]) for name, latency in file["latency"].items()}


def _rows_of(reports: Sequence[Mapping[str, Any]], kind: str) -> Iterator[Mapping[str, Any]]:
    for report in reports:
        if report["kind"] == kind and report["device"] == "cpu":
            yield from report["results"]


def _of(ours: float, theirs: float, unit: str) -> str:
    return f"{ours:.3g} of {theirs:.3g} {unit}".strip() if theirs < 1000 else f"{ours:,.0f} of {theirs:,.0f} {unit}"
