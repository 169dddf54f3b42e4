# SPDX-License-Identifier: AGPL-3.0-or-later
"""What tells that a network was pruned."""

from __future__ import annotations


class PruningNote(str):
    """What a network's YAML says of its pruning.

    A checkpoint of a pruned network may hold no module of fastyolo's, and ultralytics' trainer would then build the
    network from its YAML as it was before. Reading this class imports fastyolo, with which that is refused.
    """

    __slots__ = ()
