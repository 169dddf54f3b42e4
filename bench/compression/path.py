# SPDX-License-Identifier: AGPL-3.0-or-later
"""A run of `fastyolo compress` as a result file: its summary, without the folders of the machine that it ran on.

python bench/compression/path.py runs/pcb --baseline "YOLOv8s, 30 epochs from random weights"
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastyolo._files import write_json
from fastyolo.compress.pipeline.summary import read

RESULTS = Path(__file__).resolve().parent.parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="DIR", type=Path, help="its folder")
    parser.add_argument("--baseline", metavar="TEXT", help="what the baseline is, if it was given: the table says so")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: bench/results/compress-DATA-DATE.json")
    arguments = parser.parse_args()
    summary = read(arguments.run)
    name = f"compress-{summary.data.name}-{summary.environment['date'][:10]}.json"
    # Latencies are of the CPU, wherever the trainings were.
    result = {**_without_folders(summary.as_dict()), "device": "cpu"}
    if arguments.baseline:
        result["baseline"] = arguments.baseline
    write_json(arguments.output or RESULTS / name, result)


def _without_folders(value: Any) -> Any:
    """Absolute paths, at any depth, as the names of what they lead to."""
    if isinstance(value, dict):
        return {name: _without_folders(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


if __name__ == "__main__":
    main()
