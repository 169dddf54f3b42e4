# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is done already in the folder of a run, so that the same command goes on where it stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastyolo import _files

FILE = "state.json"

CONTENT = "content of "  # a file of the user's, which can change under the same name
_DIGESTS = (f"{CONTENT}light", f"{CONTENT}model", "data", "weights")  # arguments whose values say nothing to a reader

Result = dict[str, Any]


@dataclass
class Record:
    """A piece of work.

    Attributes:
        arguments: what the user asked of it.
        inputs: digests of what it was made from.
        seconds: spent on it, without what a kill cut off and without work of other records within it.
        result: in JSON's types; None while it is not finished. Its entry "files" names what was written, relative to
            the folder of the run; without one of these, the work is done again.
    """

    arguments: dict[str, Any]
    inputs: dict[str, str]
    seconds: float = 0.0
    result: Result | None = None

    def holds(self, folder: Path) -> bool:
        """Whether the work is done, and what it wrote is still there."""
        return self.result is not None and all((folder / file).exists() for file in self.result["files"])

    def is_whole_below(self, folder: Path, name: str) -> bool:
        """Whether nothing is missing of what it wrote below that name."""
        files = self.result["files"] if self.result else []
        return all((folder / file).exists() for file in files if file.startswith(f"{name}/"))


class State:
    """The records of a run.

    Args:
        folder: of the run: new, empty, or that of a run before.

    Raises:
        ValueError: the folder holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / FILE
        self._nested = 0.0  # seconds of work within the work that is being done
        self._records: dict[str, Record] = {}
        if self._file.exists():
            try:
                kept = json.loads(self._file.read_text(encoding="utf-8"))
                self._records = {name: Record(**record) for name, record in kept.items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise self._foreign() from error
        elif _files.holds_files(folder):
            raise self._foreign()

    def _foreign(self) -> ValueError:
        return ValueError(
            f"save_dir must be new, empty or the folder of a run of fastyolo compress, and {self.folder} holds "
            f"something else; choose another folder."
        )

    def relative(self, path: Path) -> str:
        """A path in the folder of the run relative to it; another one as it is."""
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)

    def check(self, name: str, arguments: Mapping[str, Any], remarks: Mapping[str, str]) -> None:
        """Refuse other arguments for what is done or has cost a training already.

        Args:
            remarks: by argument, what else there is to say where it is another.

        Raises:
            ValueError: with the names of the arguments and their values before and now.
        """
        record, place = self._records.get(name), self.folder / name
        if record is None or not (record.holds(self.folder) or any(place.rglob("weights/*.pt"))):
            return
        if changed := _changed(record.arguments, arguments):
            values = ", ".join(_change(key, record.arguments.get(key), arguments.get(key)) for key in changed)
            remark = "".join(f" {remarks[key]}" for key in changed if key in remarks)
            raise ValueError(
                f"save_dir must be the folder of a run with the same arguments, and in {self.folder} the stage "
                f"{name!r} has other values of {values}; choose another folder, repeat these, or delete {place} to "
                f"have the stage done again.{remark}"
            )

    def once(
        self,
        name: str,
        work: Callable[[], Result],
        *,
        arguments: Mapping[str, Any],
        inputs: Mapping[str, str],
        before: Callable[[bool], None] = lambda again: None,
    ) -> Record:
        """The record of a piece of work, which is done unless it was done before from the same inputs.

        What was begun with these inputs goes on in the folder of that name, also where only files outside of it are
        gone; what was made from others is deleted there.

        Args:
            work: returns the result.
            before: called if there is something to do, with whether it was done before, from other inputs.
        """
        wanted = Record(dict(arguments), dict(inputs))
        record = self._records.get(name)
        same = record is not None and not _changed(record.arguments, arguments) and record.inputs == wanted.inputs
        if record and same:
            record.arguments |= wanted.arguments  # the content of a file that was not known before
        if record and same and record.holds(self.folder):
            self._write()
            return record
        before(record is not None and record.result is not None)
        if not (record and same and record.is_whole_below(self.folder, name)):
            record = wanted
            if (place := self.folder / name).exists():
                shutil.rmtree(place)
        record.result = None
        self._records[name] = record
        self._write()
        start, outer, self._nested = time.monotonic(), self._nested, 0.0
        try:
            record.result = work()
        finally:
            spent = time.monotonic() - start
            record.seconds += spent - self._nested
            self._nested = outer + spent
            self._write()
        return record

    def seconds(self, name: str) -> float:
        """Spent on a piece of work, over all sessions; 0 if there is no record of it."""
        record = self._records.get(name)
        return record.seconds if record else 0.0

    def _write(self) -> None:
        _files.write_json(self._file, {name: asdict(record) for name, record in self._records.items()})


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of arguments with other values. A file's content that is known of one side alone may be the same."""
    known = {key for key in before.keys() | now.keys() if not key.startswith(CONTENT) or (key in before and key in now)}
    return sorted(key for key in known if before.get(key) != now.get(key))


def _change(name: str, before: Any, now: Any) -> str:
    return name if name in _DIGESTS else f"{name} ({_plain(before)}, not {_plain(now)})"


def _plain(value: Any) -> str:
    """A JSON value for readers."""
    if isinstance(value, list):
        return " and ".join(map(str, value)) or "nothing"
    return "unset" if value is None else str(value)
