# SPDX-License-Identifier: AGPL-3.0-or-later
"""A function is called with a module as soon as that is imported, whoever imports it, whenever."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from fastyolo._post_import import _Loader, when_imported

NAME = "a_module_of_this_test"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes the module's source; nothing of it stays behind."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, NAME, raising=False)

    def write(source: str) -> None:
        (tmp_path / f"{NAME}.py").write_text(source)
        importlib.invalidate_caches()

    return write


@pytest.fixture
def calls() -> list[ModuleType]:
    return []


def test_before_the_import(write, calls):
    write("value = 1\n")
    when_imported(NAME, calls.append)
    assert calls == []
    module = importlib.import_module(NAME)
    assert calls == [module]
    importlib.import_module(NAME)
    assert calls == [module]
    assert inspect.getsource(module) == "value = 1\n"
    assert module.__loader__ is module.__spec__.loader
    assert not isinstance(module.__loader__, _Loader)


def test_after_the_import(write, calls):
    write("value = 1\n")
    module = importlib.import_module(NAME)
    when_imported(NAME, calls.append)
    assert calls == [module]


def test_the_importer_gets_the_changed_module(write):
    write("value = 1\n")
    when_imported(NAME, lambda module: setattr(module, "value", 2))
    assert importlib.import_module(NAME).value == 2
    assert importlib.reload(sys.modules[NAME]).value == 2


def test_an_import_that_fails_may_be_repeated(write, calls):
    write("raise RuntimeError('not yet')")
    when_imported(NAME, calls.append)
    with pytest.raises(RuntimeError, match="not yet"):
        importlib.import_module(NAME)
    write("value = 'longer than before'")
    assert calls == []
    module = importlib.import_module(NAME)
    assert calls == [module]


def test_a_call_that_fails_fails_the_import(write):
    write("value = 1\n")
    when_imported(NAME, lambda module: module.missing)
    with pytest.raises(AttributeError, match="missing"):
        importlib.import_module(NAME)
    assert NAME not in sys.modules


def test_a_module_that_does_not_exist_is_not_found(write, calls):
    when_imported(NAME, calls.append)
    with pytest.raises(ModuleNotFoundError, match=NAME):
        importlib.import_module(NAME)


def test_several_functions(write, calls):
    write("value = 1\n")
    for _ in range(2):
        when_imported(NAME, calls.append)
    module = importlib.import_module(NAME)
    assert calls == [module, module]


def test_an_import_under_way_in_another_thread_is_waited_for(write):
    write("import threading\ngo_on = threading.Event()\ngo_on.wait(60)\nvalue = 1")
    importing = threading.Thread(target=importlib.import_module, args=(NAME,))
    importing.start()
    while not hasattr(sys.modules.get(NAME), "go_on"):
        pass
    values: list[int] = []
    waiting = threading.Thread(target=when_imported, args=(NAME, lambda module: values.append(module.value)))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    sys.modules[NAME].go_on.set()
    for thread in (importing, waiting):
        thread.join(60)
    assert values == [1]
