"""`isowsgi import`: turn another server's configuration into a config file, and say what became of each line."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

import click

from isowsgi.cli import asking
from isowsgi.cli.answers import plain
from isowsgi.cli.newfiles import AlreadyThere, write

_TITLES = {
    "taken over": "Taken over",
    "changed in meaning": "Changed in meaning",
    "not taken": "Not taken, and what to do",
}

# Lines that set variables, or what stands for a text: their values may be secrets, and the report may go to a colleague or a log.
_SECRET = re.compile(
    r"(?i)^(.*?\benv\s*[=:>]\s*\"?(?:\w+=)?|[\"'-]?\s*set(?:-placeholder|-ph)?[\"']?\s*[=:]\s*\"?(?:[\w.-]+=)?|"
    r"\s*(?:SetEnv|SetEnvIf|SetEnvIfNoCase|Define)\s+\S+\s+|\s*SetEnvIfExpr\s+).*$"
)

# The same where the reader of the source knows that a value is in the line: what shows no name that is known by its form shows nothing.
_VALUE = re.compile(
    r"(?i)^((?:SetEnv|Define)\s+\S+\s*|"
    r"<?(?:-\s)?[\"']?(?:env(?:ironment)?|set|set-ph|set-placeholder)[\"']?\s*[=:>]\s*[\"'\[{\s]*(?:[\w.-]+(?:=|(?=[\"']\s*:)))?|"
    r"(?:-\s)?[\"']?[\w.-]+=|[\w.-]+\s*[=:]\s*|[\"'][\w.-]+[\"']\s*:\s*|<[\w.-]+>|-\s|).*$"
)


@click.command("import", short_help="Turn another server's configuration into a config file.")
@click.argument("source", type=click.Path())
@click.option("--output", "-o", metavar="FILE", type=click.Path(), help="Write the config file there, and gunicorn.conf.py beside it.")
@click.option("--from", "kind", type=click.Choice(["uwsgi", "apache", "unit"]), help="What SOURCE is of; without it, its content says.")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.option("--json", "as_json", is_flag=True, help="Print the files and the report as JSON.")
def import_(source: str, output: str | None, kind: str | None, force: bool, as_json: bool) -> None:
    """Turn the configuration of uWSGI, Apache with mod_wsgi, or NGINX Unit into one of isowsgi's.

    SOURCE is uwsgi.ini (or its XML, YAML or JSON form), an Emperor's folder of vassals, httpd.conf, a folder such as
    sites-enabled, or Unit's configuration as JSON. Nothing is loaded or asked, and SOURCE is not changed.

    The report names each line of SOURCE once: taken over, changed in meaning and how, or not taken and what to do about it.
    Without --output the files are printed, and the report goes to the standard error.

    What depends on the environment or on the files that are there is decided now: run it on the server, as the user and with
    the variables of the service.

    Exit code: 0 done, 2 SOURCE cannot be read, or a file is there already.
    """
    from isowsgi.importing import account, making

    target = output or "isowsgi.toml"
    try:
        made = making.make(source, target, kind, os.environ)
        if output is not None:
            write(made.files, force, like=made.sources)
    except (account.BadSource, AlreadyThere) as exc:
        asking.fail(plain(exc), 2)
    entries = [entry._replace(text=(_VALUE if entry.has_secret else _SECRET).sub(r"\1...", entry.text)) for entry in made.entries]
    if as_json:
        report = {"kind": made.kind, "files": made.files, "lines": account.as_json(entries)}
        click.echo(json.dumps(report | {"quiet_lines": made.quiet_lines, "proxy": made.proxy}, indent=2))
        return
    if output is None:
        for number, (name, text) in enumerate(made.files.items()):
            click.echo("" if number == 0 else f"\n# {name}:\n", nl=False)
            click.echo(text.rstrip("\n"))
    _show(account.as_json(entries), made.quiet_lines, made.proxy)
    if output is not None:
        click.echo(f"\nwritten: {', '.join(made.files)}", err=True)


def _show(lines: list[dict[str, Any]], quiet_lines: int, proxy: list[str]) -> None:
    """Print the report: a table for each of the three outcomes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=not sys.stderr.isatty())
    for outcome, title in _TITLES.items():
        members = [line for line in lines if line["outcome"] == outcome]
        console.print(Text(f"\n{title}: {len(members)} lines", style="bold"))
        if not sys.stderr.isatty():
            for line in members:
                console.print(plain(f"{line['file']}:{line['lines'][0]}: {line['text']}\n    {'; '.join(line['notes'])}"))
            continue
        table = Table(box=None, show_header=False, padding=(0, 1))
        for line in members:
            place = f"{os.path.basename(line['file'])}:{line['lines'][0]}"
            table.add_row(plain(place), Text(plain(line["text"]), style="cyan"), plain("; ".join(line["notes"])))
        console.print(table)
    console.print(f"\nBlank lines, comments and mere brackets: {quiet_lines}")
    if proxy:
        console.print("\nFor the server block of nginx:")
        for text in proxy:
            console.print(plain(f"    {text}"))
