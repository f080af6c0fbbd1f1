"""Reads JSON with the line of each value. What is valid says the standard library's reader; this one adds the places.

NGINX Unit allows comments, `//` and `/* */`, where JSON has white space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from isowsgi.importing.account import At, BadSource

Path = tuple[str | int, ...]

_STRING = r'"(?:[^"\\]|\\.)*"'
_COMMENT = re.compile(rf"({_STRING})|//[^\n]*|/\*.*?\*/", re.DOTALL)
_TOKEN = re.compile(rf"({_STRING})|([\[\]{{}}:,])|([^\s\[\]{{}}:,\"]+)|(\n)", re.DOTALL)


def parse(file: str, text: str) -> Any:
    """Return what a file says.

    Raises:
        BadSource: with the line.
    """
    try:
        return json.loads(without_comments(text))
    except json.JSONDecodeError as exc:
        raise BadSource(At(file, (exc.lineno,)), f"expected JSON, got a fault in column {exc.colno}: {exc.msg.lower()}") from exc
    except RecursionError:
        raise BadSource(file, "expected JSON, got one that is nested too deeply") from None


def without_comments(text: str) -> str:
    """Return a text with spaces in place of its comments."""
    return _COMMENT.sub(lambda found: found[1] or re.sub(r"[^\n]", " ", found[0]), text)


def leaves(file: str, text: str) -> Iterator[tuple[Path, Any, At]]:
    """Yield each value that is no object or list, and each empty one, with its path and line.

    Raises:
        BadSource: it is no JSON.
    """
    whole = parse(file, text)
    for path, kind, at in places(file, text):
        value = whole
        for part in path:
            value = value[part]
        if kind == "value" or not value:
            yield path, value, at


def places(file: str, text: str) -> Iterator[tuple[Path, str, At]]:
    """Yield the path of each value ("value") and of each object or list ("open"), with the line of its key, or its own.

    Raises:
        BadSource: it is no JSON.
    """
    parse(file, text)
    path: list[str | int] = []
    stack: list[str] = []
    line, key_line = 1, 0
    key: str | None = None
    expects_key = False
    for string, mark, word, feed in _TOKEN.findall(without_comments(text)):
        if feed:
            line += 1
        elif mark in ("{", "["):
            yield tuple(path), "open", At(file, (key_line or line,))
            stack.append(mark)
            path.append(0 if mark == "[" else "")
            expects_key, key_line = mark == "{", 0
        elif mark in ("}", "]"):
            stack.pop()
            path.pop()
            key_line = 0
        elif mark == ",":
            last = path[-1]
            if isinstance(last, int):
                path[-1] = last + 1
            expects_key, key_line = stack[-1] == "{", 0
        elif string and expects_key:
            key, key_line, expects_key = json.loads(string), line, False
            path[-1] = key
        elif string or word:
            yield tuple(path), "value", At(file, (key_line or line,)) if key_line in (0, line) else At(file, (key_line, line))
            key_line = 0


def counted(text: str) -> set[int]:
    """Return the numbers of the lines that have more than brackets and commas."""
    lines = without_comments(text).split("\n")
    return {number for number, line in enumerate(lines, 1) if line.strip(" \t\r{}[]:,")}
