"""The command `isowsgi`: a group of commands, each of which imports what it needs when it is called.

Exit codes: 0 all is well, 1 something was found, 2 bad usage or a faulty config file.
"""

from __future__ import annotations

import difflib
import json
import sys

import click

import isowsgi
from isowsgi import configuration
from isowsgi.cli import asking
from isowsgi.cli.apply import apply
from isowsgi.cli.commands import COMMANDS
from isowsgi.cli.export import export
from isowsgi.cli.importing import import_
from isowsgi.cli.initial import init
from isowsgi.cli.memory import memory
from isowsgi.cli.plan import plan
from isowsgi.cli.profile import profile
from isowsgi.cli.run import run
from isowsgi.cli.shell import shell
from isowsgi.configuration import certificates
from isowsgi.shared import gunicorn_parts, interpreters


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(isowsgi.__version__, prog_name="isowsgi")
def main() -> None:
    """Inspect and control the apps that gunicorn serves with isowsgi's worker."""


for command in (*COMMANDS, plan, apply, profile, memory, run, shell, import_, init, export):
    main.add_command(command)


@main.command()
@click.argument("file", required=False, type=click.Path())
@click.option("--config", "-c", metavar="FILE", help="The same as the argument.  [default: isowsgi.toml]")
@click.option("--mount", "patterns", multiple=True, metavar="PATTERN", help="Check only this mount; may be given more than once.")
@click.option("--json", "wants_json", is_flag=True, help="Print JSON for machines.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), metavar="S", help="Seconds that an app may take to load.")
def check(file: str | None, config: str | None, patterns: tuple[str, ...], wants_json: bool, timeout_s: float | None) -> None:
    """Find out which isolation each mount of FILE gets, by loading its app in throw-away processes.

    Exit code: 0 every mount has an isolation, 1 some mount has none, 2 the config file has faults.
    """
    config = asking.one_of(file, config) or "isowsgi.toml"
    loaded = _load(config, wants_json)
    if loaded.faults:
        asking.fail_by_faults(loaded.faults, wants_json, 2)
    faults, warnings = certificates.check(loaded, config)
    if faults:
        asking.fail_by_faults(faults, wants_json, 2)
    for warning in warnings:
        click.echo(warning, err=True)
    known = [mount.pattern for mount in loaded.mounts]
    for pattern in patterns:
        if pattern not in known:
            near = difflib.get_close_matches(pattern, known, 1)
            raise click.BadParameter(f"no mount {pattern!r} in {config}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if (reason := interpreters.unusable_reason() or gunicorn_parts.unfit_reason()) is not None:
        raise click.UsageError(reason)

    from rich.console import Console

    from isowsgi.isolation.check import page
    from isowsgi.isolation.check.findings import as_json
    from isowsgi.isolation.check.findings import check as run_check

    console = Console(stderr=True)
    # Redrawn on a terminal only; a log of a build gets nothing of it.
    with console.status("reading ...") as status:
        total = len(patterns or known)
        seen: list[str] = []

        def progress(pattern: str, what: str) -> None:
            if pattern not in seen:
                seen.append(pattern)
            status.update(f"{len(seen)}/{total} {pattern}: {what}")

        report = run_check(loaded, patterns=patterns, timeout_s=timeout_s, progress=progress)
    if wants_json:
        click.echo(json.dumps(as_json(report), indent=2))
    else:
        out = Console(highlight=False)
        if not out.is_terminal:
            out.width = 140  # 80, as it would be, folds the table
        page.show(report, out)
    sys.exit(0 if report.is_fine else 1)


def _load(path: str, wants_json: bool) -> configuration.Config:
    try:
        return configuration.load(path, own_gil_error=interpreters.own_gil_error())
    except configuration.ConfigError as exc:
        asking.fail_by_faults(exc.faults, wants_json, 2)
