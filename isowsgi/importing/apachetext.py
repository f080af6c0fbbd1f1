"""Reads Apache's configuration files as its core does: lines, continuations, quoted words, sections.

Packages that read them were last released in 2020 or know no sections, so this follows server/config.c and server/util.c of Apache 2.4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from isowsgi.importing.account import At, BadSource, lines_of

_WORD = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"?|'((?:[^'\\]|\\.)*)'?|(\S+))""", re.DOTALL)

# Sections within sections.
_MOST_DEPTH = 50


@dataclass(kw_only=True)
class Directive:
    """A line, or a section with what is in it.

    Attributes:
        name: in lower case.
        text: what follows the name, as written.
        at: all of its lines; of a section its first and its last.
        children: None if it is no section.
    """

    name: str
    text: str
    at: At
    children: list[Directive] | None = None
    shown: str = ""


def parse(file: str, text: str) -> tuple[list[Directive], set[int]]:
    """Return a file's directives, and the numbers of the lines that say something.

    Raises:
        BadSource: a section is not closed, or closed and not open.
    """
    top: list[Directive] = []
    stack: list[Directive] = []
    counted: set[int] = set()
    for first, last, line in _logical_lines(text):
        if not line or line.startswith("#"):
            continue
        lines = tuple(range(first, last + 1))
        counted.update(lines)
        into = top if not stack else stack[-1].children
        assert into is not None, "only sections are on the stack"
        if line.startswith("</"):
            name = line[2:].rstrip(">").strip().lower()
            if not stack or stack[-1].name != name:
                expected = f"</{stack[-1].shown}>, which {stack[-1].at} opens" if stack else "no end of a section, for none is open"
                raise BadSource(At(file, lines), f"expected {expected}, got {line!r}")
            section = stack.pop()
            section.at = At(file, section.at.lines + lines)
        elif line.startswith("<"):
            found = re.fullmatch(r"<\s*(\w+)\s*(.*?)\s*>", line, re.DOTALL)
            if found is None or len(stack) >= _MOST_DEPTH:
                raise BadSource(At(file, lines), f"expected a section as <VirtualHost *:80>, got {line!r}")
            section = Directive(name=found[1].lower(), text=found[2], at=At(file, lines), children=[], shown=found[1])
            into.append(section)
            stack.append(section)
        else:
            name, _, rest = re.sub(r"\s", " ", line, count=1).partition(" ")
            into.append(Directive(name=name.lower(), text=rest.strip(), at=At(file, lines), shown=name))
    if stack:
        raise BadSource(stack[-1].at, f"expected </{stack[-1].shown}> before the end of the file")
    return top, counted


def _logical_lines(text: str) -> list[tuple[int, int, str]]:
    """Return lines that a backslash at their end has joined, with the numbers of the first and the last."""
    logical: list[tuple[int, int, str]] = []
    parts: list[str] = []
    first = 1
    lines = lines_of(text)
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not parts:
            first = number
        if line.endswith("\\") and not line.endswith("\\\\") and number < len(lines):
            parts.append(line[:-1])
            continue
        logical.append((first, number, "".join([*parts, line]).strip()))
        parts = []
    return logical


def words(text: str) -> list[str]:
    """Split into words, as ap_getword_conf does: quotes hold white space, and a backslash a quote."""
    found = []
    for double, single, plain in _WORD.findall(text):
        found.append(plain or re.sub(r"\\([\"'\\])", r"\1", double or single))
    return found
