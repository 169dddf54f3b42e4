# SPDX-License-Identifier: AGPL-3.0-or-later
"""What this process may use of the machine."""

from __future__ import annotations

import os


def cores() -> int:
    """Those that this process may run on, which a container or taskset can limit."""
    return len(os.sched_getaffinity(0))
