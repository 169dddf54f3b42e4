# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo inside other packages: one module or folder for each, and nothing else imports its package."""
