"""The command `isowsgi`: a group of commands, each of which is imported when it is called, and imports what it needs then.

Exit codes: 0 all is well, 1 something was found, 2 bad usage or a faulty config file.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping

import click

import isowsgi

# Where each command is: a module of this package, and its name there. Apps are served beside a command, so it imports no other one; what
# that saves: docs/explanation/performance.md.
_PLACES = {
    "apply": ("apply", "apply"),
    "check": ("check", "check"),
    "errors": ("errors", "errors"),
    "export": ("export", "export"),
    "import": ("importing", "import_"),
    "init": ("initial", "init"),
    "memory": ("memory", "memory"),
    "plan": ("plan", "plan"),
    "profile": ("profile", "profile"),
    "reload": ("commands", "reload"),
    "run": ("run", "run"),
    "shell": ("shell", "shell"),
    "stacks": ("commands", "stacks"),
    "start": ("commands", "start"),
    "status": ("commands", "status"),
    "stop": ("commands", "stop"),
}


class _Commands(MutableMapping[str, click.Command]):
    """All commands by name; each is imported when it is looked up."""

    def __init__(self) -> None:
        self._found: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._found:
            module, function = _PLACES[name]
            command = getattr(importlib.import_module(f"isowsgi.cli.{module}"), function)
            assert isinstance(command, click.Command), f"{function} of {module} is a command"
            self._found[name] = command
        return self._found[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._found[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError("the commands are fixed")

    def __iter__(self) -> Iterator[str]:
        return iter({**_PLACES, **self._found})

    def __len__(self) -> int:
        return len({**_PLACES, **self._found})


@click.group(commands=_Commands(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(isowsgi.__version__, prog_name="isowsgi")
def main() -> None:
    """Inspect and control the apps that gunicorn serves with isowsgi's worker."""
