"""`isowsgi init`: propose a config file for a folder of projects."""

from __future__ import annotations

import os

import click

from isowsgi.cli import asking
from isowsgi.cli.answers import plain
from isowsgi.cli.newfiles import AlreadyThere, write


@click.command("init", short_help="Propose a config file for a folder of projects.")
@click.argument("folder", default=".", type=click.Path())
@click.option("--yes", is_flag=True, help="Write it to FOLDER/isowsgi.toml, if there is none.")
def init(folder: str, yes: bool) -> None:
    """Look at a folder of projects and print a config file with a mount for each.

    Found are Django projects (manage.py and wsgi.py), Flask and other apps by `app`, `application` and `create_app`, .wsgi
    scripts, and what a Procfile or a uwsgi.ini names; with the venv that lies beside each. Files are read and never run.

    Exit code: 0 done, 2 there is no project, or isowsgi.toml is there already.
    """
    from isowsgi.importing import account, making, projects, writing

    target = os.path.join(folder, "isowsgi.toml")
    try:
        draft = projects.propose(folder)
        making.settle(draft, account.Account(), folder)
        text = writing.config_file(draft, "Proposed by isowsgi init; the patterns are a guess, after the folders' names.")
        if yes:
            write({target: text}, force=False, advice="look at it, and at what is printed without --yes")
    except (account.BadSource, AlreadyThere) as exc:
        asking.fail(plain(exc), 2)
    click.echo(f"written: {target}" if yes else text.rstrip("\n"))
    click.echo(f"\ncheck it with: isowsgi check {target}", err=True)
