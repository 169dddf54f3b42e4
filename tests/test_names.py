# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names of classes as keys."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fastyolo._names import distinct_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), []),
        (("person", "car"), ["person", "car"]),
        (("person", "car", "person"), ["person (0)", "car", "person (2)"]),
        (("person", "person", "person (0)"), ["person (0)", "person (1)", "person (0) (2)"]),
    ],
)
def test_a_key_for_each_class(names: Sequence[str], expected: list[str]) -> None:
    assert distinct_names(names) == expected
