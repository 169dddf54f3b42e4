# SPDX-License-Identifier: AGPL-3.0-or-later
"""Removes each barrier and each bounds check of the kernels in turn: do the tests notice?

    python tests/simt/mutate.py [--list] [--only REGEX]

Run by hand: a mutant takes the time of a build and of the tests up to the first failure.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import simt

BARRIER = re.compile(r"__sync(threads|warp)\([^;]*\);")
# clang-format puts spaces around comparisons, and none around the brackets of templates.
COMPARISON = re.compile(r" (<|<=|>=) ")
SELECTION = re.compile(r"\b(inside|\w+(?:\(\))? < [\w.]+(?: / \w+)?) \? ")
FLAG = re.compile(r"(const bool (?:inside|alive)) = [^;]* < [^;]*;")


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    kind: str
    before: str
    text: str
    """The whole mutated file."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.kind}: {self.before}"


def device_code(text: str) -> Iterator[range]:
    """The top-level definitions that run on the device."""
    begin = 0
    for end in re.finditer(r"^}", text, re.MULTILINE):
        if re.search(r"__(device|global)__", text[begin : end.start()]):
            yield range(begin, end.start())
        begin = end.end()


def conditions(text: str) -> Iterator[tuple[int, int]]:
    """What stands between the brackets of each `if`."""
    for match in re.finditer(r"\bif (constexpr )?\(", text):
        depth, end = 1, match.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if not match[1]:
            yield match.end(), end - 1


def edits(text: str) -> Iterator[tuple[str, int, int, str]]:
    """Kind, begin, end, replacement."""
    for match in BARRIER.finditer(text):
        yield "barrier", *match.span(), ";"
    for begin, end in conditions(text):
        if COMPARISON.search(text, begin, end):
            leaves = re.match(r"\) (return|continue|break)\b", text[end:])
            yield ("early exit", begin, end, "false") if leaves else ("guard", begin, end, "true")
    for match in SELECTION.finditer(text):
        yield "selection", *match.span(), "true ? "
    for match in FLAG.finditer(text):
        yield "flag", *match.span(), f"{match[1]} = true;"


def mutants(kernels: Path) -> Iterator[Mutant]:
    for path in sorted([*kernels.glob("*.cu"), *kernels.glob("*.cuh")]):
        text = path.read_text()
        chunks = list(device_code(text))
        for kind, begin, end, replacement in edits(text):
            line_begin = text.rfind("\n", 0, begin) + 1
            if "//" in text[line_begin:begin] or not any(begin in chunk for chunk in chunks):
                continue
            before = " ".join(text[begin:end].split())
            mutated = text[:begin] + replacement + text[end:]
            yield Mutant(path.name, text.count("\n", 0, begin) + 1, kind, before, mutated)


def verdict(mutant: Mutant, work: Path) -> str:
    kernels = work / "kernels"
    target = kernels / mutant.file
    original = target.read_text()
    target.write_text(mutant.text)
    ops = [target.stem] if target.stem in simt.OPS else simt.OPS  # a source is of one operator, a header of several
    try:
        for build in simt.BUILDS:
            simt.build(work / "build", kernels, build)
            process = simt.run_tests(build, work / "build", "-x", "--tb=line", ops=ops)
            try:
                output, _ = process.communicate(timeout=900)
            except subprocess.TimeoutExpired:
                process.kill()
                return f"killed by {build}: it does not end"
            if process.returncode:
                if reason := re.search(r"simt: (.*)|AddressSanitizer: (\S+)|runtime error: (.*)", output):
                    return f"killed by {build}: {reason.group()}"
                if process.returncode < 0:
                    return f"killed by {build}: signal {-process.returncode}"
                if not re.search(r"\d+ failed", output):
                    raise RuntimeError(f"the tests did not run:\n{output}")
                return f"killed by {build}: wrong results"
        return "SURVIVED"
    finally:
        target.write_text(original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="only say what would be mutated")
    parser.add_argument("--only", default="", help="mutants whose description matches this regular expression")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shutil.copytree(simt.KERNELS, work / "kernels")
        chosen = [mutant for mutant in mutants(work / "kernels") if re.search(arguments.only, str(mutant))]
        killed = 0
        for mutant in chosen:
            result = "" if arguments.list else verdict(mutant, work)
            killed += result.startswith("killed")
            print(f"{mutant}\n    {result}".rstrip(), flush=True)
        print(f"{len(chosen)} mutants" + ("" if arguments.list else f", {killed} killed"))


if __name__ == "__main__":
    main()
