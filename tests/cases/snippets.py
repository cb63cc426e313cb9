"""The fenced blocks of a page of documentation, and how each is tried."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from zoo.cli import build_parser, main

FENCE = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)


class Block(NamedTuple):
    """What stands between two fences."""

    line: int
    language: str
    mark: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """In their order."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        language, mark, body = found.groups()
        yield Block(text.count("\n", 0, found.start()) + 2, language, mark or "", body)


def try_page(page: Path, makefile: Path) -> int:
    """Run every block of a page in the working folder, one after the other, with one set of Python names.

    ``python`` is executed, and a block that begins with a comment `# name.py` is that file. Of ``sh``, ``zoo`` commands
    run; ``make`` targets must exist. A block marked ``parsed`` needs a network, a GPU or minutes: it must compile, and
    its commands must be understood.

    Returns:
        How many blocks were tried.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    count = 0
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.language == "python":
            _python(block, where, names)
        elif block.language == "sh":
            for words in _commands(block.text):
                _command(words, block.mark == "parsed", where, makefile)
        else:
            pytest.fail(f"{where}: a block is python or sh, not {block.language}")
        count += 1
    return count


def _python(block: Block, where: str, names: dict[str, object]) -> None:
    code = compile(block.text, where, "exec")
    if file := re.match(r"# (\w+\.py)\n", block.text):
        Path(file[1]).write_text(block.text, encoding="utf-8")
    elif block.mark != "parsed":
        exec(code, names)


def _commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def _command(words: list[str], parsed: bool, where: str, makefile: Path) -> None:
    program, *arguments = words
    if program == "make":
        assert arguments[-1] in TARGET.findall(makefile.read_text()), f"{where}: no target {arguments[-1]}"
    elif program == "zoo" and parsed:
        known, rest = build_parser().parse_known_args(arguments)
        assert not rest or known.overridable, f"{where}: {rest}"
    elif program == "zoo":
        assert main(arguments) == 0, f"{where}: {shlex.join(words)}"
    else:
        assert program in ("pip", "python", "git"), f"{where}: {program} is nothing that a test can try"
