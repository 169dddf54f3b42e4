# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo inside other packages: one module for each, and each is the only file that imports its package."""
