# SPDX-License-Identifier: AGPL-3.0-or-later
"""Functions that run once a module is imported, as PEP 369 has them.

wrapt's `when_imported` does the same, but to import wrapt takes 40 ms, most of what `import fastyolo` may take.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast


def when_imported(name: str, call: Callable[[ModuleType], None]) -> None:
    """Pass the module `name` to `call`: now if it is imported, or else whenever it is, before its importer gets it.

    An exception in `call` becomes one of the import.
    """
    if name in sys.modules:
        call(importlib.import_module(name))  # waits where another thread is in the middle of it
    else:
        sys.meta_path.insert(0, _Finder(name, call))


class _Finder:
    """Asks the finders behind it, and has the loader that they name call back."""

    def __init__(self, name: str, call: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._call = call

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = cast(Any, _Loader(spec.loader, self._call))
                return spec
        return None


class _Loader:
    def __init__(self, loader: Any, call: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # what else a loader can do

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._call(module)
