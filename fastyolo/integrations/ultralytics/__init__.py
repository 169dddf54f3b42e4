# SPDX-License-Identifier: AGPL-3.0-or-later
"""fastyolo inside ultralytics: the only folder that imports it, and light until one of its modules is asked for."""
