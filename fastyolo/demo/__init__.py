# SPDX-License-Identifier: AGPL-3.0-or-later
"""A small generated data set, on which `fastyolo demo` shows what `fastyolo compress` does before there is any data."""
