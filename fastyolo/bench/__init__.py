# SPDX-License-Identifier: AGPL-3.0-or-later
"""The operators against the clock: `fastyolo bench ops`."""
