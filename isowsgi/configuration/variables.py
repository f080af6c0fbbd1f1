"""Checks of environment variables, and of the files that they come from."""

from __future__ import annotations

import io
from typing import Any

from isowsgi.configuration.checks import typed
from isowsgi.configuration.faults import Fault, spelt, wrong_type
from isowsgi.configuration.places import path_of
from isowsgi.shared import regularfiles

# Largest env_file; all variables of a process must fit into its stack's quarter (execve(2)), 2 MiB by default.
_MAX_ENV_BYTES = 2 * 1024 * 1024


def env_name(value: Any) -> str:
    if not value or "=" in value or "\0" in value:
        raise Fault("expected a name that is not empty and holds no '=' and no NUL")
    if value == "SCRIPT_NAME":
        raise Fault("remove it: the mount's pattern says it")
    return typed(str, value)


def env_value(value: Any) -> str:
    if not isinstance(value, (str, list, dict)):
        raise Fault(f'{wrong_type("a string", value)}; write it in quotes: "{spelt(value)}"')
    if "\0" in typed(str, value):
        raise Fault("expected a string without NUL")
    return typed(str, value)


def env_file(value: Any, *, folder: str) -> dict[str, str]:
    """Read a file of NAME=value lines as python-dotenv does, but for two things.

    `${NAME}` stays as written: it would be filled from the environment of gunicorn, which is not the app's, and passwords hold `$`.
    A line that does not parse, or that holds a name alone, is a fault: python-dotenv logs a warning and leaves it out.
    """
    path, shown = path_of(value, folder)
    try:
        text = regularfiles.read(path, _MAX_ENV_BYTES).decode("utf-8-sig")  # some editors put a byte order mark before it
    except UnicodeDecodeError as exc:
        raise Fault(f"expected UTF-8, got byte {exc.object[exc.start]:#04x} in {shown}") from exc
    except regularfiles.NotRegular as exc:
        raise Fault(f"expected a readable file, got {exc}: {shown}") from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise Fault(f"expected a readable file, got {shown}") from exc
    from dotenv.parser import parse_stream  # late: few files name an env_file, and it is one of many that a command would import

    faults, env = [], {}
    for binding in parse_stream(io.StringIO(text, newline=None)):
        source = binding.original.string
        if binding.key is None and not binding.error:
            continue  # a comment or an empty line
        try:
            if binding.key is None or binding.value is None:
                raise Fault(f"expected NAME=value, got {spelt(source.strip())}")
            env[env_name(binding.key)] = env_value(binding.value)
        except Fault as fault:
            line = binding.original.line + source[: len(source) - len(source.lstrip())].count("\n")
            name = f"{binding.key}: " if binding.value is not None else ""
            faults.append(Fault(f"{value!r}, line {line}: {name}{fault}"))
    if faults:
        raise ExceptionGroup("env_file", faults)
    return env
