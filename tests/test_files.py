# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files that are whole or not there, whoever else writes them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from fastyolo._files import replacing


def test_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path, barrier = tmp_path / "file", Barrier(2)

    def write(letter: bytes) -> None:
        with replacing(path) as temporary, temporary.open("wb") as file:
            for _ in range(100):
                file.write(1000 * letter)
                file.flush()
                barrier.wait(10)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [b"A", b"B"]))
    assert path.read_bytes() in (100_000 * b"A", 100_000 * b"B")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("letter", ["a", "\U0001f600"])
def test_names_may_be_as_long_as_the_file_system_takes(tmp_path: Path, letter: str) -> None:
    path = tmp_path / (letter * (255 // len(letter.encode())))
    with replacing(path) as temporary:
        temporary.write_text("whole")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
