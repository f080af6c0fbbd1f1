"""The forms in which uWSGI reads its options: ini, XML, YAML and JSON. Each becomes a list of options with their lines.

uWSGI's ini is none of `configparser`'s: keys repeat, their order counts, and only a whole line is a comment (core/ini.c).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.parsers import expat

from isowsgi.importing.account import At, BadSource, lines_of
from isowsgi.importing.jsontext import leaves

SUFFIXES = (".ini", ".xml", ".yaml", ".yml", ".json", ".js")
_BLANK = " \t\r"


class Option(NamedTuple):
    key: str
    value: str
    at: At


class Form(NamedTuple):
    """What a file says.

    Attributes:
        options: of its section, in order.
        counted: the lines that say something, for the account.
        elsewhere: options of other sections, with their names.
        heads: lines that only open a section.
    """

    options: list[Option]
    counted: set[int]
    elsewhere: list[tuple[str, Option]]
    heads: list[At]


def read(file: str, text: str, section: str) -> Form:
    """Return the options of one section of a file.

    Raises:
        BadSource: it is not of the form that its name says.
    """
    if file.endswith(".xml"):
        return _split(list(_xml(file, text)), section)
    if file.endswith((".yaml", ".yml")):
        return _split(list(_yaml(file, text)), section)
    if file.endswith((".json", ".js")):
        return _split(list(_json(file, text)), section)
    return _ini(file, text, section)


def _split(found: list[tuple[str, Option]], section: str) -> Form:
    options = [option for name, option in found if name == section]
    elsewhere = [(name, option) for name, option in found if name != section]
    return Form(options, {line for _, option in found for line in option.at.lines}, elsewhere, [])


def _ini(file: str, text: str, wanted: str) -> Form:
    form = Form([], set(), [], [])
    section = ""
    for number, line in enumerate(lines_of(text), 1):
        line = line.strip(_BLANK)
        if not line or line[0] in ";#":
            continue
        at = At(file, (number,))
        form.counted.add(number)
        if line[0] == "[":
            if not line.endswith("]"):
                raise BadSource(at, f"expected a section's name in brackets, as [uwsgi], got {line!r}")
            section = line[1:-1]
            form.heads.append(at)
            continue
        key, _, value = line.partition("=")
        option = Option(key.rstrip(_BLANK), value.strip(_BLANK), at)
        if section == wanted:
            form.options.append(option)
        else:
            form.elsewhere.append((section, option))
    return form


def _xml(file: str, text: str) -> Iterator[tuple[str, Option]]:
    """Yield options: elements below one that is named as the section. No entity is expanded, and no other file is read."""
    found: list[tuple[str, Option]] = []
    open_elements: list[tuple[str, int]] = []
    value: list[str] = []
    parser = expat.ParserCreate()

    def start(name: str, attributes: dict[str, str]) -> None:
        open_elements.append((name, parser.CurrentLineNumber))
        value.clear()

    def end(name: str) -> None:
        _, first = open_elements.pop()
        if open_elements and name != "uwsgi":
            at = At(file, tuple(range(first, parser.CurrentLineNumber + 1)))
            found.append((open_elements[-1][0], Option(name, "".join(value).strip(), at)))
        value.clear()

    def declared(*_: Any) -> None:
        raise BadSource(At(file, (parser.CurrentLineNumber,)), "expected no entity declarations")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = value.append
    parser.EntityDeclHandler = declared
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as exc:
        raise BadSource(At(file, (exc.lineno,)), f"expected XML, got {expat.ErrorString(exc.code)}") from exc
    yield from found


def _yaml(file: str, text: str) -> Iterator[tuple[str, Option]]:
    try:
        import yaml
    except ImportError:
        raise BadSource(file, "needs PyYAML to be read; install it with: pip install 'isowsgi[import]'") from None

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)  # nodes with their lines; nothing is constructed
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = At(file, (mark.line + 1,)) if mark else file
        raise BadSource(where, f"expected YAML, got {getattr(exc, 'problem', exc)}") from exc
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise BadSource(At(file, (root.start_mark.line + 1,)), "expected a mapping with the key 'uwsgi'")
    for section, body in root.value:
        if not isinstance(body, yaml.MappingNode):
            yield "", Option(str(section.value), str(body.value), At(file, (section.start_mark.line + 1,)))
            continue
        for key, value in body.value:
            nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for node in nodes:
                at = At(file, _yaml_lines(key, node, nodes))
                if not isinstance(node, yaml.ScalarNode):
                    raise BadSource(at, f"expected a value or a list of values for {key.value!r}")
                yield str(section.value), Option(str(key.value), str(node.value), at)


def _yaml_lines(key: Any, node: Any, nodes: list[Any]) -> tuple[int, ...]:
    """Return a value's lines; the first of a list has its key's line too, if that is another."""
    first, last = node.start_mark.line, node.end_mark.line - (node.end_mark.column == 0 and node.end_mark.line > node.start_mark.line)
    lines = list(range(first + 1, last + 2))
    key_line = key.start_mark.line + 1
    if node is nodes[0] and key_line not in lines:
        lines.insert(0, key_line)
    return tuple(lines)


def _json(file: str, text: str) -> Iterator[tuple[str, Option]]:
    for path, value, at in leaves(file, text):
        names = [part for part in path if isinstance(part, str)]
        if len(names) != 2 or len(path) > 3:
            yield "", Option(".".join(map(str, path)), str(value), at)
            continue
        # uWSGI takes true for an option without a value, and knows no other booleans in JSON.
        text_of = value if isinstance(value, str) else json.dumps(value)
        yield names[0], Option(names[1], text_of, at)


def looks_like_ini(text: str) -> bool:
    return re.search(r"^[ \t]*\[uwsgi\][ \t\r]*$", text, re.MULTILINE) is not None
