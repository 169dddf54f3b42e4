# SPDX-License-Identifier: AGPL-3.0-or-later
"""Operators and models against the clock: `fastyolo bench`."""
