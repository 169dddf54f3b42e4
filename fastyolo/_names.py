# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names of classes as keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names of classes 0, 1, ..., with their numbers where several have one name: person (0), car, person (2)."""
    counts = Counter(names)
    numbered = [name if counts[name] == 1 else f"{name} ({label})" for label, name in enumerate(names)]
    # A name may look like a numbered one.
    return numbered if len({*numbered}) == len(names) else [f"{name} ({label})" for label, name in enumerate(names)]
