"""The command `isowsgi`: a group of commands, each of which is imported when it is called, and imports what it needs then.

Exit codes: 0 all is well, 1 something was found, 2 bad usage or a faulty config file.
"""

from __future__ import annotations

import importlib

import click

import isowsgi

# Where each command is: a module of this package, and its name there. All of them together are half of what a command costs at its start,
# and apps are served beside it.
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


class _Commands(click.Group):
    """A group that imports a command when it is asked for it; its help asks for all of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _PLACES:
            return None
        module, name = _PLACES[cmd_name]
        command = getattr(importlib.import_module(f"isowsgi.cli.{module}"), name)
        assert isinstance(command, click.Command), f"{name} of {module} is a command"
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(isowsgi.__version__, prog_name="isowsgi")
def main() -> None:
    """Inspect and control the apps that gunicorn serves with isowsgi's worker."""
