"""The command's group: each command is imported when it is called."""

from __future__ import annotations

import subprocess
import sys

import click
from click.testing import CliRunner

from isowsgi.cli.main import _Commands, main


def test_every_command_is_where_the_group_looks_for_it() -> None:
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert command.name == name
    assert main.get_command(context, "main") is None
    assert [*main.commands] == main.list_commands(context)


def test_a_slip_of_the_keyboard_is_told_what_was_meant() -> None:
    """click takes what may be meant from the group's `commands`, which was empty."""
    result = CliRunner().invoke(main, ["relod"])

    assert result.exit_code == 2
    assert "No such command 'relod'" in result.output
    if hasattr(click.exceptions, "NoSuchCommand"):  # since click 8.4
        assert "Did you mean 'reload'?" in result.output


def test_a_command_can_be_added() -> None:
    group = click.Group("isowsgi", commands=_Commands())
    group.add_command(click.Command("extra", callback=lambda: click.echo("extra is called")))

    assert CliRunner().invoke(group, ["extra"]).output == "extra is called\n"
    assert "extra" in group.list_commands(click.Context(group))


def test_a_command_imports_no_other_one() -> None:
    """Apps are served beside it, and most commands are over in less time than all of them take to import."""
    code = "import sys; from isowsgi.cli.main import main; main.get_command(None, 'apply'); print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert "isowsgi.cli.apply" in imported
    others = ["check", "commands", "errors", "export", "importing", "initial", "memory", "profile", "run", "shell", "statusview"]
    assert not {f"isowsgi.cli.{each}" for each in others} & {*imported}
    assert not {"rich", "logging", "secrets"} & {*imported}
