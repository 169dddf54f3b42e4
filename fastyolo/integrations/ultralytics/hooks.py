# SPDX-License-Identifier: AGPL-3.0-or-later
"""Other values for names that ultralytics' functions read, and the check that they still read them.

Where ultralytics has no method to override, fastyolo replaces what a function looks up in its module. In a version that
looks it up elsewhere, the replacement would change nothing and nobody would know.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from inspect import isclass, isfunction, unwrap
from types import CodeType, ModuleType
from typing import Any


@contextmanager
def rebound(module: ModuleType, **names: Any) -> Iterator[None]:
    """Give names of a module other values for a while.

    Raises:
        ImportError: no function of the module reads one of them.
    """
    require_reads(names, module.__name__, _names_in(module))
    stock = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(stock)


def require_reads(names: Iterable[str], where: str, code: CodeType | frozenset[str]) -> None:
    """Refuse a version of ultralytics in which some code, or code that reads these names, does not read all of `names`.

    Raises:
        ImportError: it does not.
    """
    known = _names_of(code) if isinstance(code, CodeType) else code
    if missing := [name for name in names if name not in known]:
        raise ImportError(
            f"ultralytics {version('ultralytics')} does not read {', '.join(missing)} in {where}, where fastyolo "
            "replaces it; pip install 'ultralytics>=8.4.190,<8.5'."
        )


@functools.cache
def _names_in(module: ModuleType) -> frozenset[str]:
    """What the functions and methods that a module defines look up by name."""
    own = [item for item in vars(module).values() if getattr(item, "__module__", None) == module.__name__]
    own += [item for each in own if isclass(each) for item in vars(each).values()]
    functions = (unwrap(getattr(item, "__func__", item)) for item in own if callable(item))  # below their decorators
    return frozenset().union(*(_names_of(function.__code__) for function in functions if isfunction(function)))


def _names_of(code: CodeType) -> frozenset[str]:
    inner = (_names_of(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return frozenset(code.co_names).union(*inner)
