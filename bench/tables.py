# SPDX-License-Identifier: AGPL-3.0-or-later
"""Markdown tables from result files: python bench/tables.py [FILE...], by default every file of bench/results.

With --write, all tables go to bench/results/README.md, the picture to bench/results/shares.svg, and those that a reader
wants first replace what stands in README.md between the lines `<!-- results -->` and `<!-- /results -->`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import picture

from fastyolo._files import replacing
from fastyolo.bench import model_table
from fastyolo.compress.pipeline.summary import RUNTIMES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
OPENING, CLOSING = "<!-- results -->\n", "<!-- /results -->"

# Of the operators' inputs, those of the SPPF block of YOLOv8s and of YOLOv8n, and for eca of the level above, in both
# memory formats; all of them are in the long list.
SHORT = ("1x256x20x20", "8x256x20x20", "1x512x20x20", "8x512x20x20", "1x256x40x40", "8x256x40x40")
SHORT_BY_OPERATOR = {"dw_sppf": SHORT[:4], "sppf_pool": SHORT[:4]}

# Peers that go on where max_det would end.
UNLIMITED = ("torchvision", "opencv")

# What there is to know of the weights of some results.
WEIGHTS = {
    "yolov8n-recovered.pt": "The weights were recovered from public INT8 exports of YOLOv8n and still lie on their "
    "grid: rounding them costs nothing here, and what is lost is lost by the activations. "
}

# What is left to the long list.
LONG_KINDS = ("pruning-study", "sensitivity-study", "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--write", action="store_true", help="needs all files of bench/results, so name none")
    arguments = parser.parse_args()
    if arguments.write and arguments.files:
        parser.error("--write takes no FILE")
    files = arguments.files or sorted(RESULTS.glob("*.json"))
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if not arguments.write:
        print("\n".join(map(render, reports)), end="")
        return
    for page, text in pages(reports).items():
        with replacing(page) as temporary:
            temporary.write_text(text, encoding="utf-8")


def pages(reports: list[dict[str, Any]]) -> dict[Path, str]:
    """The pages that hold tables, and what they should say."""
    heading = (
        "# Results\n\nWritten by `python bench/tables.py --write` from the files beside this one. A + behind a commit: "
        "with changes\nthat were not committed.\n\n"
    )
    readme = ROOT / "README.md"
    before, opening, rest = readme.read_text(encoding="utf-8").partition(OPENING)
    _, closing, after = rest.partition(CLOSING)
    if not closing:
        raise SystemExit(f"{readme} has no lines {OPENING.strip()} and {CLOSING}")
    short = _with_titles([_short(report) for report in reports if report["kind"] not in LONG_KINDS])
    return {
        RESULTS / "README.md": heading + _with_titles(reports),
        RESULTS / "shares.svg": picture.draw(reports),
        readme: f"{before}{opening}{short}{closing}{after}",
    }


def _with_titles(reports: list[dict[str, Any]]) -> str:
    parts = []
    ordered = sorted(reports, key=lambda report: list(KINDS).index(report["kind"]))
    for kind, group in groupby(ordered, key=lambda report: report["kind"]):
        parts += [f"### {KINDS[kind][0]}\n", *map(render, group)]
    return "\n".join(parts)


def _short(report: dict[str, Any]) -> dict[str, Any]:
    """Of the operators' inputs and the ways to train the light model, the first that a reader wants."""
    if report["kind"] == "ops":
        return {**report, "results": [row for row in report["results"] if _is_short(row)]}
    if report["kind"] == "study":
        names = {run["variant"] for run in report["runs"]}
        return {**report, "runs": [run for run in report["runs"] if f"{run['variant']}-closed" not in names]}
    return report


def _is_short(row: dict[str, Any]) -> bool:
    inputs = row.get("inputs", SHORT[0]).removesuffix(", channels last")
    return inputs in SHORT_BY_OPERATOR.get(row["op"], SHORT)


def render(report: dict[str, Any]) -> str:
    text: str = KINDS[report["kind"]][1](report)
    return text


def render_ops(report: dict[str, Any]) -> str:
    left_out = "".join(f"; {reason}" for reason in report["left_out"])
    parts = [f"{_machine(report)}; {report['maps']}{left_out}.\n"]
    by_inputs = [row for row in report["results"] if "inputs" in row]
    if single := [row for row in report["results"] if "inputs" not in row]:
        parts.append(_table_of_rows(single))
    if by_inputs:
        parts.append(_table_of_inputs(by_inputs))
    return "\n".join(parts)


def _table_of_rows(rows: list[dict[str, Any]]) -> str:
    lines = ["| | fastyolo | peer | ratio | GB/s | of the machine's limit |", "|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        times = {name: timing["median_us"] for name, timing in row["contenders"].items()}
        ours = times.pop("fastyolo")
        limit = "max_det" in row["case"]
        peers = "<br>".join(
            f"{name}{' without max_det' if limit and name in UNLIMITED else ''} {_time(time)}"
            for name, time in times.items()
        )
        ratios = "<br>".join(_ratio(row["ratio"][name]) for name in times)
        cells = (
            f"`{row['op']}` {row['case']}",
            _time(ours),
            peers or "-",
            ratios or "-",
            f"{row['gb_per_s']:.1f}",
            f"{_limit_share(row):.0%} {row.get('bound', 'memory')}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _table_of_inputs(rows: list[dict[str, Any]]) -> str:
    """A line for each operator and inputs, a column for each dtype and direction."""
    columns = list(dict.fromkeys((row["dtype"], row["pass"]) for row in rows))
    lines = [
        "Time, and how many times as long the fastest of the peers takes; for `eca` also the time in copies of x; and "
        "the share of the machine's limit, which is that of the memory unless it says compute.",
        "",
        f"| | {' | '.join(f'{dtype}, {direction}' for dtype, direction in columns)} |",
        f"|---|{'--:|' * len(columns)}",
    ]
    for (op, inputs), group in groupby(rows, key=lambda row: (row["op"], row["inputs"])):
        cells = {(row["dtype"], row["pass"]): _time_and_ratios(row) for row in group}
        lines.append(f"| `{op}` {inputs} | {' | '.join(cells.get(column, '-') for column in columns)} |")
    return "\n".join(lines) + "\n"


def _time_and_ratios(row: dict[str, Any]) -> str:
    copy = row["ratio"].get("copy")
    peers = {name: ratio for name, ratio in row["ratio"].items() if name not in ("fastyolo", "copy")}
    fastest = min(peers, key=peers.__getitem__)
    copies = f", {1 / copy:.1f} copies" if copy else ""
    time = _time(row["contenders"]["fastyolo"]["median_us"])
    bound = " compute" if row.get("bound") == "compute" else ""
    return f"{time}, {_ratio(peers[fastest])} ({fastest}){copies}, {_limit_share(row):.0%}{bound}"


def _ratio(value: float) -> str:
    """No more digits than it has."""
    return f"{value:.1f}" if value < 30 else f"{float(f'{value:.2g}'):,.0f}"


def _limit_share(row: dict[str, Any]) -> float:
    """Files from before the roofline was measured know the limit of the memory alone."""
    share: float = row.get("limit_share", row["memory_share"])
    return share


def render_accuracy(report: dict[str, Any]) -> str:
    lines = [f"{_machine(report)}; {report['weights']} on {report['images']} images of {report['data']}.", ""]
    lines += ["| | mAP50-95 | mAP50 |", "|---|--:|--:|"]
    for run in report["validation"]:
        for name in ("ultralytics", "fastyolo"):
            accuracy = run[name]
            rect = f"rect={run['rect']}"
            lines.append(f"| {name}, {rect} | {accuracy['mAP50-95']:.5f} | {accuracy['mAP50']:.5f} |")
    lines += ["", "| detections of ultralytics | number | differing | explained by |", "|---|--:|--:|---|"]
    lines += [
        f"| conf {run['conf']:g}, {'multi-label' if run['multi_label'] else 'best class'}, {run['peer']} "
        f"| {run['detections']:,} | {run['differing']} | {', '.join(_explanations(run)) or '-'} |"
        for run in report["detections"]
    ]
    return "\n".join(lines) + "\n"


def _explanations(run: dict[str, Any]) -> Iterator[str]:
    if run["rounded_pairs"]:
        yield f"{run['rounded_pairs']} pairs that its class offsets round across the IoU threshold"
    if run["close_pairs"]:
        yield f"{run['close_pairs']} pairs with an IoU within 1e-5 of it"
    if run["close_scores"]:
        yield f"{run['close_scores']} scores within 1e-5 of the threshold"
    if run["unexplained"]:
        yield f"nothing: {run['unexplained']}"


def render_models(report: dict[str, Any]) -> str:
    """A line for each model: its costs, those of the YOLOv8 that it takes the place of, and the share."""
    runtimes = report["runtimes"]
    versions = ", ".join(f"{name} {version}" for name, version in runtimes.items())
    side = report["imgsz"]
    lines = [
        f"{_machine(report)}; {versions}; one image of {side} x {side} pixels, {report['clock']}. Of these, "
        "yolov8s-fast alone has been trained; p45 has no level of stride 8, and does not see small objects.",
        "",
        f"| | in place of | M parameters | GFLOPs | {' | '.join(f'ms in {name}' for name in runtimes)} |",
        f"|---|---|{'--:|' * (2 + len(runtimes))}",
    ]
    for row in report["results"]:
        ours, peer = row["models"].values()
        costs = [(facts["parameters"] / 1e6, facts["gflops"]) for facts in (ours, peer)]
        times = [[facts["latency"][name]["median_us"] / 1e3 for name in runtimes] for facts in (ours, peer)]
        pairs = [*zip(*costs, strict=True), *zip(*times, strict=True)]
        digits = [2, 1, *(1 for _ in runtimes)]
        cells = [
            f"{mine:.{n}f} of {other:.{n}f}, {mine / other:.0%}" for n, (mine, other) in zip(digits, pairs, strict=True)
        ]
        lines.append(f"| {' | '.join([*row['models'], *cells])} |")
    return "\n".join(lines) + "\n"


def render_model(report: dict[str, Any]) -> str:
    """A line for each input size, batch, number of threads and runtime of the models."""
    headers, lines = model_table.table(report)
    versions = ", ".join(f"{name} {version}" for name, version in report["runtimes"].items() if version)
    head = f"{_machine(report)}; {versions}; {model_table.setting(report)}. {model_table.explanation(report)}"
    return f"{head}\n\n{model_table.markdown(headers, lines)}"


def render_runtime(report: dict[str, Any]) -> str:
    """A line for each way of running the same images."""
    ratios = report["ratio_to_ultralytics"]
    side = report["imgsz"]
    lines = [
        f"{_machine(report)}; onnxruntime {report['onnxruntime']}; {report['weights']} at {side} x {side} pixels, "
        f"{report['images']} photographs from their files to boxes.",
        "",
        "| | images/s | times ultralytics' |",
        "|---|--:|--:|",
        *(f"| {name} | {rate:.1f} | {ratios[name]:.2f} |" for name, rate in report["images_per_second"].items()),
    ]
    return "\n".join(lines) + "\n"


def render_compress(report: dict[str, Any]) -> str:
    """A line for each model on the way, beside the baseline."""
    settings, data, versions = report["settings"], report["data"], report["environment"]["versions"]
    stages = [stage for stage in report["stages"] if stage["files"]]
    runtimes = [name for name in RUNTIMES if any(name in picture.latencies(stage) for stage in stages)]
    epochs = ", ".join(f"{stage['name']} {stage['epochs']}" for stage in stages if stage["epochs"])
    minutes = sum(stage["seconds"] for stage in report["stages"]) / 60
    lines = [
        f"{_machine(report)}; {', '.join(f'{name} {versions[name]}' for name in runtimes)}; {data['name']}, "
        f"{data['train_images']:,} images to train on and {data['val_images']:,} to measure on, at "
        f"{settings['imgsz']} pixels; {_origin(report)}epochs: {epochs}; {minutes:.0f} minutes altogether. "
        "Milliseconds of the network for one image, of the stage's file for that runtime; in brackets, the share of "
        f"the baseline's, and the change of its accuracy. {_verdict(report)}",
        "",
        "| | M parameters | GFLOPs | MB | "
        + " | ".join(f"ms in {name}" for name in runtimes)
        + " | mAP50 | mAP50-95 |",
        f"|---|{'--:|' * (5 + len(runtimes))}",
    ]
    for stage in stages:
        pairs = [(stage["parameters"], stages[0]["parameters"], 1e6, 2), (stage["flops"], stages[0]["flops"], 1e9, 2)]
        pairs.append((stage["files"][0]["bytes"], stages[0]["files"][0]["bytes"], 1e6, 2))
        times, first = picture.latencies(stage), picture.latencies(stages[0])
        pairs += [(times[name]["median_ms"], first[name]["median_ms"], 1, 1) for name in runtimes]
        cells = [f"{value / unit:.{digits}f} ({value / whole:.0%})" for value, whole, unit, digits in pairs]
        accuracy, reference = (of["files"][0]["accuracy"] for of in (stage, stages[0]))
        cells += [f"{accuracy[key]:.4f} ({accuracy[key] - reference[key]:+.4f})" for key in ("map50", "map50_95")]
        lines.append(f"| {stage['title']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _origin(report: dict[str, Any]) -> str:
    """Of a baseline that was given, which the run does not know; whoever keeps its result writes it there."""
    return f"baseline: {report['baseline']}; " if "baseline" in report else ""


def _verdict(report: dict[str, Any]) -> str:
    files = [file for stage in report["stages"] for file in stage["files"] if file.get("verification")]
    departing = [file["path"] for file in files if file["verification"]["verdict"] != "agrees"]
    if not files:
        return "Not verified."
    if departing:
        return f"Of {len(files)} files, {', '.join(departing)} departed from the checkpoint by more than allowed."
    return f"All {len(files)} files agree with their checkpoints (`fastyolo verify`)."


def render_accelerate(report: dict[str, Any]) -> str:
    """A line for each number of images and threshold."""
    lines = [
        f"{_machine(report)}; `predict` of {report['weights']} on {report['images']} photographs, letterboxed to "
        f"{report['imgsz']} pixels: all but reading the files.",
        "",
        "| | ultralytics | accelerated | times as fast |",
        "|---|--:|--:|--:|",
    ]
    for row in report["results"]:
        stock, ours = (_time(row["contenders"][name]["median_us"]) for name in ("ultralytics", "fastyolo"))
        lines.append(f"| batch {row['batch']}, conf {row['conf']:g} | {stock} | {ours} | {row['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def render_study(report: dict[str, Any]) -> str:
    """A line for each variant: the means over its seeds, and from the least to the greatest where there are several."""
    recipe, small = report["recipe"], report["small"]
    origins = "; ".join(dict.fromkeys(_machine({**report, **run}) for run in report["runs"]))
    lines = [
        f"{origins}; {report['data']}, from scratch, {recipe['epochs']} epochs at {recipe['imgsz']} pixels, "
        f"batch {recipe['batch']}, {recipe['amp']}. Recall: of objects under {small['pixels']}² pixels, at IoU "
        f"{small['iou']:g} and a score of {small['score']:g}. close_geometry: the last 5 epochs with images as in "
        "deployment.",
        "",
        "| | seeds | mAP50 | mAP50-95 | recall of small objects |",
        "|---|--:|--:|--:|--:|",
    ]
    for label in dict.fromkeys(run["label"] for run in report["runs"]):
        runs = [run for run in report["runs"] if run["label"] == label]
        cells = [_mean_and_range([run[metric] for run in runs]) for metric in ("mAP50", "mAP50-95", "small_recall")]
        lines.append(f"| {label} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def render_ptq(report: dict[str, Any]) -> str:
    """A line for each way of choosing the ranges, and for a graph that is quantised everywhere."""
    halves = " and ".join(map(str, report["images"]))
    head = (
        f"{_machine(report)}; {_runtimes(report)}; {report['weights']} at {report['imgsz']} pixels on "
        f"{report['data']}: calibrated on one half ({halves} images), measured on the other, both ways averaged; in "
        f"brackets the change, and that of each half: differences of a hundredth are chance. "
        f"{WEIGHTS.get(report['weights'], '')}"
        "Peers on the same images: what ultralytics exports with quantize=8, to ONNX by ONNX Runtime's quantize_static "
        "and to OpenVINO by NNCF; and naive, quantize_static with everything quantised, boxes and scores too, which "
        f"then have one scale. {_FOR_RUNTIMES}"
    )
    reference = report["variants"]["float32"]
    where = {f"{metric} in {runtime}": (runtime, metric) for runtime in reference["accuracy"] for metric in _METRICS}
    rows = {
        name: [
            _changes(found["accuracy"][runtime], reference["accuracy"][runtime], metric)
            if runtime in found["accuracy"]
            else "-"
            for runtime, metric in where.values()
        ]
        for name, found in report["variants"].items()
    }
    return _quantised(head, report, where, rows)


def render_qat(report: dict[str, Any]) -> str:
    """Float32, calibrated, trained."""
    training = report["training"]
    head = (
        f"{_machine(report)}; {_runtimes(report)}; {report['model']} at {report['imgsz']} pixels on {report['data']}; "
        f"QAT of {training['epochs']} epochs at a learning rate of {training['lr0']:g}. {_FOR_RUNTIMES}"
    )
    reference = report["variants"]["float32"]
    rows = {
        name: [_changes(found, reference, metric) for metric in _METRICS] for name, found in report["variants"].items()
    }
    return _quantised(head, report, _METRICS, rows)


_METRICS = ("mAP50", "mAP50-95")

# Else a reader would take the times in ONNX Runtime for what INT8 comes to there.
_FOR_RUNTIMES = (
    "The files are those for TensorRT and OpenVINO, except target-onnxruntime, which `--target onnxruntime` makes: "
    "ONNX Runtime is slow with the others on x86."
)


def _quantised(
    head: str, report: dict[str, Any], accuracies: Collection[str], rows: Mapping[str, Sequence[str]]
) -> str:
    """A line for each variant: its accuracies, its size and its speed."""
    runtimes = list(report["variants"]["float32"]["speed_up"])
    columns = [*accuracies, "of the size", *(f"times as fast in {name}" for name in runtimes)]
    lines = [head, "", f"| | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for name, found in report["variants"].items():
        cells = [*rows[name], f"{found['share_of_float32']:.1%}"]
        cells += [f"{found['speed_up'][runtime]:.2f}" if runtime in found["speed_up"] else "-" for runtime in runtimes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _changes(found: dict[str, Any], reference: dict[str, Any], metric: str) -> str:
    """A value and its change, and those of the halves, if there are any."""
    pairs = [(found, reference), *zip(found.get("halves", ()), reference.get("halves", ()), strict=True)]
    whole, *halves = (f"{after[metric] - before[metric]:+.4f}" for after, before in pairs)
    changes = f"{whole}: {', '.join(halves)}" if halves and found is not reference else whole
    return f"{found[metric]:.4f} ({changes})"


def render_sensitivity(report: dict[str, Any]) -> str:
    """A line for each number of parts that are kept in float."""
    lines = [
        f"{_machine(report)}; {_runtimes(report)}; {report['weights']} at {report['imgsz']} pixels on "
        f"{report['data']}, calibrator {report['calibrator']}: parts ranked on one half of the images, mAP measured "
        f"on the other, both ways averaged; changes are against float32. {WEIGHTS.get(report['weights'], '')}".strip(),
        "",
        "| `--keep-float` | parts | signal to noise, dB | MB | mAP50 | mAP50-95 |",
        "|---|---|--:|--:|--:|--:|",
    ]
    whole = [half["int8"]["snr"] for half in report["halves"]]
    for row in report["kept"]:
        names = "; ".join(dict.fromkeys(", ".join(names) for names in row["names"])) or "-"
        levels = [after for _, after in row["snr"]] if row["count"] else whole
        cells = (
            f"auto:{row['count']}" if row["count"] else "nothing",
            names,
            ", ".join(f"{level:.1f}" for level in levels),
            f"{row['bytes'] / 1e6:.2f}",
            *(f"{row[metric]:.4f} ({row[f'{metric}_change']:+.4f})" for metric in ("mAP50", "mAP50-95")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def render_pruning(report: dict[str, Any]) -> str:
    """A line for each model and share of its FLOPs."""
    choice = f"{report['choice']['importance']}, {report['choice']['ranking']}"
    trained = ""
    if "data" in report:
        trained = (
            f"; accuracy on {report['data']}: unpruned (YOLOv8n after {report['stock_epochs']} epochs on it), pruned, "
            f"and trained for {report['recipe']['epochs']} epochs then"
        )
        if any(row.get("sparsity") for rows in report["models"].values() for row in rows):
            trained += " (sparsity: the first half of them before, with that weight of the L1 term; by gamma, global)"
    lines = [
        f"{_machine(report)}; onnxruntime {report['onnxruntime']}; one image of {report['imgsz']} x {report['imgsz']} "
        f"pixels; channels chosen by {choice}{trained}.",
        "",
        "| | FLOPs removed | parameters | ms in onnxruntime | latency fall to FLOPs | mAP50 | mAP50-95 |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, rows in report["models"].items():
        for row in rows:
            before, after, latency = row["before"], row["after"], row["latency"]
            stages = row.get("accuracy")
            cells = (
                f"{1 - after['flops'] / before['flops']:.1%}",
                f"{after['parameters'] / 1e6:.2f} of {before['parameters'] / 1e6:.2f} M",
                f"{latency['pruned_ms']:.1f} of {latency['unpruned_ms']:.1f}",
                f"{latency['fall_per_flops']:.2f}",
                *(
                    " → ".join(f"{stages[stage][metric]:.3f}" for stage in ("unpruned", "pruned", "trained"))
                    if stages
                    else "-"
                    for metric in ("mAP50", "mAP50-95")
                ),
            )
            label = f"{name}, sparsity {row['sparsity']:g}" if row.get("sparsity") else name
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _runtimes(report: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in report["runtimes"].items())


def _mean_and_range(values: list[float | None]) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.4f}"
    return f"{mean} ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else mean


def _machine(report: dict[str, Any]) -> str:
    environment = report["environment"]
    versions = environment["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "ultralytics") if versions[name])
    if report["device"] == "cuda":
        machine = environment["gpus"][0]["model"]
    else:
        machine = f"{environment['cpu']['model']}, {environment['cpu']['isa']}, {report['threads']} thread"
        machine += "s" * (report["threads"] != 1)
    return f"{machine}; {packages}; {environment['date'][:10]}, commit {environment['commit']}"


def _time(microseconds: float) -> str:
    return f"{microseconds / 1000:,.2f} ms" if microseconds >= 1000 else f"{microseconds:.0f} µs"


# In the order of the page.
KINDS = {
    "compress": ("The whole path", render_compress),
    "accuracy": ("Agreement with ultralytics", render_accuracy),
    "accelerate": ("Whole predictions", render_accelerate),
    "study": ("Accuracy of the light model", render_study),
    "models": ("Cost of the light model", render_models),
    "pruning-study": ("Pruning", render_pruning),
    "ptq": ("INT8 after training (PTQ)", render_ptq),
    "qat": ("Training for INT8 (QAT)", render_qat),
    "sensitivity-study": ("Parts in float", render_sensitivity),
    "model": ("Runtimes and input sizes", render_model),
    "runtime": ("Runtime without torch", render_runtime),
    "ops": ("Operators", render_ops),
}

if __name__ == "__main__":
    main()
