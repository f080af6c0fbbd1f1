"""What the TOML of a config file says, and in which order its faults are told."""

import re
import tomllib
from typing import Any

from isowsgi.configuration.faults import ConfigError, Place, place_text, quoted, walk
from isowsgi.shared import regularfiles


def parse(shown: str, absolute: str) -> dict[str, Any]:
    """Return what the TOML of a file says."""
    try:
        content = regularfiles.read(absolute, regularfiles.MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise ConfigError((f"{shown}: no such file, looked for {absolute!r}",)) from None
    except regularfiles.NotRegular as exc:
        raise ConfigError((f"{shown}: expected a config file, got {exc}",)) from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise ConfigError((f"{shown}: cannot read it: {(getattr(exc, 'strerror', None) or str(exc)).lower()}",)) from exc
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # some editors put a byte order mark before it
    except (ValueError, RecursionError) as exc:  # ValueError: not UTF-8, a syntax error, an int of too many digits
        raise ConfigError((f"{shown}: {_syntax_fault(exc)}{_unquoted(exc, content)}",)) from exc


def _syntax_fault(exc: Exception) -> str:
    if isinstance(exc, RecursionError):
        return "not valid TOML: nested too deeply"
    if isinstance(exc, UnicodeDecodeError):
        return f"not valid TOML: expected UTF-8, got byte {exc.object[exc.start]:#04x} at offset {exc.start}"
    text = " ".join(str(exc).split())
    found = re.fullmatch(r"(?P<what>.*) \(at (?P<where>line \d+, column \d+|end of document)\)", text)
    where, what = (found["where"] + ": ", found["what"]) if found else ("", text)
    return f"{where}not valid TOML: {what[:1].lower()}{what[1:]}"


# A key that holds what a pattern does, and TOML's bare keys do not; it may stand after a table's name, in its head.
_BARE_PATTERN = re.compile(r"\s*(\[\s*mounts\s*\.\s*)?([^\s\"'=\[\]#]*[/*][^\s\"'=\]#]*)\s*[]=]")


def _unquoted(exc: Exception, content: bytes) -> str:
    """Return what to write if a syntax fault is a pattern without its quotes, the usual one; else ""."""
    found = re.search(r"at line (\d+)", str(exc))
    lines = content.decode("utf-8", "replace").splitlines()
    if not found or int(found[1]) > len(lines) or not (bare := _BARE_PATTERN.match(lines[int(found[1]) - 1])):
        return ""
    text = quoted(bare[2])
    return f"; quote the pattern: [mounts.{text}]" if bare[1] else f"; quote the pattern: {text} = ..."


def texts_of(shown: str, data: dict[str, Any], group: ExceptionGroup[Exception]) -> tuple[str, ...]:
    """Return the faults of a file, in its order."""
    faults = sorted(walk(group), key=lambda fault: _position(data, fault[0]))
    return tuple(f"{shown}: {place_text(place)}: {text}" for place, text in faults)


def _position(data: Any, place: Place) -> list[int]:
    """Return a key that sorts faults as the file does; what is missing comes last in its table."""
    position = []
    for part in place:
        if isinstance(data, dict):
            position.append(list(data).index(part) if part in data else len(data))
            data = data.get(part)
        elif isinstance(part, int):
            position.append(part)
            data = data[part] if isinstance(data, list) and part < len(data) else None
    return position
