"""Write docs/reference/cli.md from the commands' own help; with --check, only tell whether it is stale."""

import sys

import click
import pages

PAGE = pages.ROOT / "docs" / "reference" / "cli.md"

# Run from a checkout, the page is drawn from that checkout, whichever isowsgi is installed.
sys.path.insert(0, str(pages.ROOT))

from isowsgi.cli.main import main as group  # noqa: E402 -- see the line above

HEAD = """\
<!-- Written by tools/cli_page.py from the commands' own help; do not edit here. -->

# The command isowsgi

`python -m isowsgi` is the same. [How to use it](../howto/operate.md).

| exit code | means; `check` and `plan` have their own, below |
|---|---|
| 0 | done |
| 1 | it was tried and failed, in at least one worker, or a worker did not answer |
| 2 | bad input, an unknown mount, or no running gunicorn serves that config file |
"""

# As wide as a terminal; click would ask the one that this is run in.
WIDTH = 80


def page() -> str:
    parts = [HEAD, _block(group, "isowsgi")]
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, "it is in the list"
        parts += [f"\n## isowsgi {name}\n", _block(command, f"isowsgi {name}")]
        if isinstance(command, click.Group):
            parts += [_block(each, f"isowsgi {name} {each.name}") for _, each in sorted(command.commands.items())]
    return "".join(parts)


def _block(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH, **command.context_settings)
    return f"\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    sys.exit(pages.run(__doc__, PAGE, page, __file__))
