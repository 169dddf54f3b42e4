# SPDX-License-Identifier: AGPL-3.0-or-later
"""Smaller and faster models that keep the accuracy: pruning, INT8, and what each layer loses by it."""
