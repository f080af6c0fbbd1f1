"""What uWSGI makes of its files: includes, sections, `for` and `if-*`, placeholders, in the order in which uWSGI has them.

1. While a file is read: `%d`, `%n` and the like, then logic. The options that it lets through go to one list.
2. When all is read: `$(VARIABLE)`, then `@(file)`, then `%(option)` in each value of the list.

As core/uwsgi.c and core/config.c of uWSGI 2.0.30 have it; `make imports` compares with a real one.
"""

from __future__ import annotations

import glob
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from isowsgi.importing import sources, uwsgiforms
from isowsgi.importing.account import Account, At, BadSource
from isowsgi.importing.uwsgiforms import Option

_ENDS = frozenset(("end", "endfor", "endif", "end-if", "end-for"))
_INCLUDES = frozenset(("ini", "xml", "xmlconfig", "yaml", "yml", "json", "js", "include", "inherit", "config"))
_PLACEHOLDERS = frozenset(("set-placeholder", "set-ph"))

# Files within files: uWSGI has no limit and would not end.
_MOST_FILES = 200

# Passes over one value: a placeholder may lead to another.
_MOST_PASSES = 20


@dataclass(kw_only=True)
class _Logic:
    """An open `for` or `if-*`.

    Attributes:
        values: what `%(_)` is, once for each time that an option below counts.
        skipped: why none below counts; "" where some do.
    """

    values: list[str]
    at: At
    skipped: str = ""


@dataclass(kw_only=True)
class Reading:
    """One uWSGI's options.

    Attributes:
        path: the first file.
        shown: how the user named it.
    """

    path: str
    shown: str
    account: Account
    environ: Mapping[str, str]
    options: list[Option] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    _logic: _Logic | None = None
    _depth: int = 0
    _last: str = ""  # the file that was opened last, which ":section" is of, wherever that is written
    _read: set[tuple[str, str]] = field(default_factory=set)
    _elsewhere: list[tuple[str, Option]] = field(default_factory=list)

    def run(self, section: str = "uwsgi") -> list[Option]:
        """Return the options that count, with all placeholders filled in."""
        self._file(self.path, self.shown, section)
        for name, option in self._elsewhere:
            if (option.at.file, name) not in self._read:
                self.account.left(option.at, f"in section [{name}], which no line reads")
        for kind, find in (("$", self._variable), ("@", self._content), ("%", self._reference)):
            self.options = [option._replace(value=_filled(option.value, kind, find)) for option in self.options]
        return self.options

    def _file(self, path: str, shown: str, section: str, at: At | None = None) -> None:
        self._depth += 1
        if self._depth > _MOST_FILES:
            raise BadSource(at or shown, f"expected at most {_MOST_FILES} included files; does one include itself?")
        text = sources.read(path)
        self._last = path
        form = uwsgiforms.read(shown, text, section)
        self.account.open(shown, path, text, form.counted)
        for head in form.heads:
            self.account.taken(head, "a section; what is in it is told line by line")
        magic = _magic(path, section)
        for option in form.options:
            self.account.join(option.at)
            self._option(option._replace(key=_magic_of(option.key, magic), value=_magic_of(option.value, magic)))
        self._read.add((shown, section))
        self._elsewhere += form.elsewhere

    def _option(self, option: Option) -> None:
        key, _, at = option
        if key in _ENDS:
            self.account.taken(at, "the end of what is decided above")
            self._logic = None
        elif key == "else":
            self.account.left(
                at, "uWSGI 2.0 has no else: what follows counts as what is above it does, up to the end; write if-not-... instead"
            )
        elif self._logic is not None:
            self._below_logic(option)
        elif key.startswith(("if-", "ifenv", "ifexists", "ifplugin", "ifdir")) or key in _LOOPS:
            self._open_logic(option)
        else:
            self._add(option)

    def _below_logic(self, option: Option) -> None:
        logic = self._logic
        assert logic is not None, "asked before"
        if option.key.startswith("if-") or option.key in _LOOPS:
            raise BadSource(option.at, f"expected the end of {str(logic.at)!r} before another condition: uWSGI refuses one in another")
        if logic.skipped or not logic.values:
            self.account.left(option.at, f"does not count: {logic.skipped or 'the list above is empty'}")
        for value in logic.values:
            self._add(option._replace(value=option.value.replace("%(_)", value)))

    def _open_logic(self, option: Option) -> None:
        key, value, at = option
        if key in _LOOPS:
            try:
                self._logic = _Logic(values=_LOOPS[key](value), at=at)
            except BadSource as exc:
                raise BadSource(at, str(exc)) from exc
            self.account.taken(at, f"done while importing, {len(self._logic.values)} times")
            return
        verdict, value = self._holds(key, value, at)
        why = f"{key} = {option.value} {'holds' if verdict else 'does not hold'} while importing"
        self._logic = _Logic(values=[value] if verdict else [], at=at, skipped="" if verdict else why)
        self.account.changed(at, f"decided once, now: {why}. Import again with another environment or on the server if that differs")

    def _holds(self, key: str, value: str, at: At) -> tuple[bool, str]:
        """Return whether a condition holds, and what `%(_)` is below it."""
        wants = not key.startswith("if-not-")
        kind = key.removeprefix("if-not-").removeprefix("if-").removeprefix("if")
        name, equals, wanted = value.partition("=")
        if kind in ("env", "opt"):
            found = self.environ.get(name) if kind == "env" else next((each.value for each in self.options if each.key == name), None)
            holds = found is not None and (not equals or found == wanted)
            return holds == wants, found or ""
        tests: dict[str, Callable[[], bool]] = {
            "exists": lambda: os.path.exists(self._from_here(value)),
            "file": lambda: os.path.isfile(self._from_here(value)),
            "dir": lambda: os.path.isdir(self._from_here(value)),
            "directory": lambda: os.path.isdir(self._from_here(value)),
            "plugin": lambda: value.startswith("python"),
            "hostname": lambda: value == socket.gethostname(),
            "hostname-match": lambda: re.search(value, socket.gethostname()) is not None,
            "reload": lambda: False,
        }
        if kind not in tests:
            raise BadSource(at, f"expected a condition that uWSGI knows, such as if-env or if-exists, got {key!r}")
        try:
            return tests[kind]() == wants, value
        except re.error as exc:
            raise BadSource(at, f"expected a regular expression, got {value!r}: {exc}") from exc

    def _from_here(self, path: str) -> str:
        return sources.absolute(path, os.path.dirname(self.path))

    def _add(self, option: Option) -> None:
        key, value, at = option
        if key in _INCLUDES and value and not value.startswith(("http://", "sym://", "data://", "fd://", "exec://")):
            name, section = _with_section(value)
            target = self._from_here(name) if name else self._last
            shown = os.path.relpath(target, os.path.dirname(self.path))
            shown = shown if not shown.startswith("..") else target
            shown = os.path.join(os.path.dirname(self.shown), shown)
            self.account.taken(at, f"read too: {shown}" + ("" if section == "uwsgi" else f", section [{section}]"))
            logic, self._logic = self._logic, None
            self._file(target, shown, section, at)
            self._logic = logic
        elif key in _PLACEHOLDERS or (key == "set" and "=" in value):
            name, _, text = value.partition("=")
            self.account.taken(at, f"%({name}), filled in where it is used")
            self.account.hide(at)
            self.used.add(name)
            self.options.append(Option(name, text, at))
        else:
            self.options.append(option)

    def _variable(self, name: str) -> str | None:
        return self.environ.get(name)

    def _content(self, name: str) -> str | None:
        try:
            return sources.read(self._from_here(name)).strip()
        except BadSource:
            return None

    def _reference(self, expression: str) -> str | None:
        parts = expression.split(" ")
        if len(parts) == 1:
            return self._first(expression)
        total, operator = "", ""
        for part in parts:
            if part in ("++", "--"):
                total, operator = str(_number(total) + (1 if part == "++" else -1)), ""
            elif part in ("+", "-", "*", "/"):
                operator = part
            else:
                value = part if part.lstrip("-").isdigit() else self._first(part) or ""
                total, operator = _applied(total, operator, value), ""
        return total

    def _first(self, name: str) -> str | None:
        self.used.add(name)
        return next((option.value for option in self.options if option.key == name), None)


def _applied(total: str, operator: str, value: str) -> str:
    left, right = _number(total), _number(value)
    if operator == "+":
        return str(left + right)
    if operator == "-":
        return str(left - right)
    if operator == "*":
        return str(left * right)
    if operator == "/":
        return str(int(left / right) if right else 0)
    return total + value


def _number(text: str) -> int:
    """Return what strtoll does of a text: the number that it begins with, else 0."""
    found = re.match(r"\s*[-+]?\d{1,18}", text)
    return int(found[0]) if found else 0


def _filled(value: str, kind: str, find: Callable[[str], str | None]) -> str:
    pattern = re.compile(rf"{re.escape(kind)}\(([^()]*)\)")
    for _ in range(_MOST_PASSES):
        new = pattern.sub(lambda found: found[0] if (answer := find(found[1])) is None else answer, value)
        if new == value or len(new) > 65536:  # what refers to itself grows
            break
        value = new
    return value


def _with_section(value: str) -> tuple[str, str]:
    name, colon, section = value.rpartition(":")
    return (name, section or "uwsgi") if colon else (value, "uwsgi")


def _magic(path: str, section: str) -> dict[str, str]:
    """Return what `%n` and its like are in a file; those that only a running uWSGI knows are left as they are."""
    folder, name = os.path.split(path)
    stem, dot, extension = name.rpartition(".")
    magic = {
        "p": path, "s": name, "d": folder.rstrip("/") + "/", "c": os.path.basename(folder), "n": stem if dot else name,
        "e": extension if dot else "", "o": path, "v": folder, "h": socket.gethostname(), "k": str(os.cpu_count() or 1),
        "x": section, "%": "%", "(": "%(",
    }  # fmt: skip
    magic |= {letter.upper(): magic[letter] for letter in "psdcnox"}
    return magic | {str(number): part for number, part in enumerate(folder.strip("/").split("/")[:10])}


def _magic_of(text: str, magic: Mapping[str, str]) -> str:
    return re.sub(r"%(.)", lambda found: magic.get(found[1], found[0]), text)


_LOOPS: dict[str, Callable[[str], list[str]]] = {
    "for": lambda value: value.split(),
    "for-glob": lambda value: sorted(glob.glob(value)) or [value],
    "for-readline": lambda value: sources.read(value).split("\n")[:-1],
    "for-times": lambda value: [str(number) for number in range(1, min(_number(value), 10_000) + 1)],
}
