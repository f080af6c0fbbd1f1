"""The command `isowsgi`: a group of commands that live in modules of their own."""

from __future__ import annotations

import click

from isowsgi import __version__
from isowsgi.operate.commands import COMMANDS


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="isowsgi")
def main() -> None:
    """Look after the apps that a gunicorn with isowsgi's worker serves."""


for command in COMMANDS:
    main.add_command(command)
