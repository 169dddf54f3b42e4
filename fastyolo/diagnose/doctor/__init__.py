# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is wrong with a data set: see `dataset.examine`, and `fastyolo doctor`."""
