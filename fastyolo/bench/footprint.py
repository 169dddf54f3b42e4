# SPDX-License-Identifier: AGPL-3.0-or-later
"""The most memory that a process of its own needs to load a model and to detect with it.

A process that has loaded one runtime cannot tell what another one adds, nor what its allocator has kept. So each is
measured in a process that does nothing else: `python -m fastyolo.bench.footprint` reads what to do on stdin as JSON and
writes the peak of its resident memory to stdout. That is the interpreter, the libraries, the weights and the buffers,
of memory on the host alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_RUNS = 3  # after which buffers have the size that they keep


def peak_mb(
    name: str, file: str | Path, *, imgsz: int, batch: int, threads: int, device: str, photograph: str
) -> float:
    """Megabytes of 10^6 bytes, by the high-water mark that Linux keeps of a process.

    Raises:
        RuntimeError: the process failed; the message has its last line.
    """
    task = {
        "name": name,
        "file": str(file),
        "imgsz": imgsz,
        "batch": batch,
        "threads": threads,
        "device": device,
        "photograph": photograph,
    }
    done = subprocess.run(
        [sys.executable, "-m", "fastyolo.bench.footprint"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"The memory of {name} with {file} cannot be measured ({reason}).")
    return float(done.stdout.splitlines()[-1])


def _main() -> None:
    task: dict[str, Any] = json.load(sys.stdin)
    from fastyolo.bench.runtimes import load, photograph

    image: Any = photograph(task.pop("photograph"))
    detect = load(task.pop("name"), task.pop("file"), **task)
    for _ in range(_RUNS):
        detect([image] * task["batch"])
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    print(int(kilobytes) * 1024 / 1e6)


if __name__ == "__main__":
    _main()
