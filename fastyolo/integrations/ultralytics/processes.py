# SPDX-License-Identifier: AGPL-3.0-or-later
"""The processes of a run on several devices: how they start and end, and the folder that they share."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from torch.distributed.rendezvous import rendezvous
from ultralytics.utils import LOGGER, RANK, WORLD_SIZE
from ultralytics.utils.dist import find_free_network_port, generate_ddp_file

__all__ = ["SharedFolder", "ddp_command", "launch"]

# Seconds that processes get to end by themselves, since a terminal tells torchrun of Ctrl-C, and after SIGTERM.
_PATIENCE = 5.0, 10.0

_folders = itertools.count()


class SharedFolder:
    """Tells the other processes that torchrun started which folder the first one has chosen for the run."""

    def __init__(self) -> None:
        self._store = next(iter(rendezvous("env://", RANK, WORLD_SIZE)))[0]
        self._key = f"fastyolo/save_dir/{next(_folders)}"

    def announce(self, folder: Path) -> None:
        self._store.set(self._key, str(folder))

    def wait(self) -> str:
        return self._store.get(self._key).decode()


def ddp_command(trainer: Any) -> tuple[list[str], str]:
    """generate_ddp_command(), which would delete the folder of the run."""
    file = generate_ddp_file(trainer)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(trainer.world_size)]
    return [*launcher, "--master_port", str(find_free_network_port()), file], file


def launch(command: Sequence[str], *, check: bool) -> None:
    """subprocess.run(), except that an interrupt ends all that the command has started.

    subprocess.run() kills torchrun a quarter of a second after an interrupt. What torchrun has started runs in sessions
    of its own, and would train on unless torchrun heard of the interrupt too, and was quick.

    Raises:
        subprocess.CalledProcessError: the command failed, and `check` is set.
    """
    launcher = subprocess.Popen(command)
    try:
        status = launcher.wait()
    except BaseException:
        _end(launcher.pid)
        launcher.wait()
        raise
    if check and status:
        raise subprocess.CalledProcessError(status, command)


def _end(pid: int) -> None:
    """End a process and all that it has started, at the latest by SIGKILL."""
    try:
        first = psutil.Process(pid)
        processes = [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    LOGGER.info(f"Ending the {len(processes) - 1} processes of the run")
    _, alive = psutil.wait_procs(processes, timeout=_PATIENCE[0])
    for process in alive:
        process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=_PATIENCE[1])
    for process in alive:
        process.kill()
