"""`isowsgi check`: which isolation each mount of a config file gets, found out in throw-away processes.

Exit codes: 0 all is well, 1 something was found, 2 bad usage or a faulty config file.
"""

from __future__ import annotations

import difflib
import json
import sys

import click

from isowsgi import configuration
from isowsgi.cli import asking
from isowsgi.configuration import certificates
from isowsgi.shared import gunicorn_parts, interpreters


def _paths(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not value.startswith("/") or not value.isascii() or not value.isprintable() or " " in value:
            raise click.BadParameter(f"expected a path below the mount as a browser sends it, such as '/health', got {value!r}")
    return values


@click.command()
@asking.config_file
@click.option("--mount", "patterns", multiple=True, metavar="PATTERN", help="Check only this mount; may be given more than once.")
@click.option("--json", "wants_json", is_flag=True, help="Print JSON for machines.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), metavar="S", help="Seconds that an app may take to load.")
@click.option("--lazy", "compares_lazy", is_flag=True, help="Say what lazy imports save, and whether each app works with them.")
@click.option("--url", "urls", multiple=True, metavar="PATH", callback=_paths, help="With --lazy: a path below each mount to ask for.")
def check(
    config: str,
    patterns: tuple[str, ...],
    wants_json: bool,
    timeout_s: float | None,
    compares_lazy: bool,
    urls: tuple[str, ...],
) -> None:
    """Find out which isolation each mount of FILE gets, by loading its app in throw-away processes.

    Exit code: 0 every mount has an isolation, 1 some mount has none, or does not work with the lazy imports it asks for, 2 the config file
    has faults.
    """
    lazy_paths = _lazy_paths(compares_lazy, urls)
    loaded = _load(config, wants_json)
    if loaded.faults:
        asking.fail_by_faults(loaded.faults, wants_json, 2)
    _check_certificates(loaded, config, wants_json)
    _refuse_unknown(patterns, loaded, config)
    if (reason := interpreters.unusable_reason() or gunicorn_parts.unfit_reason()) is not None:
        raise click.UsageError(reason)

    from rich.console import Console

    from isowsgi.isolation.check import page
    from isowsgi.isolation.check.findings import as_json
    from isowsgi.isolation.check.findings import check as run_check

    console = Console(stderr=True)
    # Redrawn on a terminal only; a log of a build gets nothing of it.
    with console.status("reading ...") as status:
        total = len(patterns or loaded.mounts)
        seen: list[str] = []

        def progress(pattern: str, what: str) -> None:
            if pattern not in seen:
                seen.append(pattern)
            status.update(f"{len(seen)}/{total} {pattern}: {what}")

        report = run_check(loaded, patterns=patterns, timeout_s=timeout_s, progress=progress, lazy_paths=lazy_paths)
    if wants_json:
        click.echo(json.dumps(as_json(report), indent=2))
    else:
        out = Console(highlight=False)
        if not out.is_terminal:
            out.width = 140  # 80, as it would be, folds the table
        page.show(report, out)
    sys.exit(0 if report.is_fine else 1)


def _check_certificates(loaded: configuration.Config, config: str, wants_json: bool) -> None:
    faults, warnings = certificates.check(loaded, config)
    if faults:
        asking.fail_by_faults(faults, wants_json, 2)
    for warning in warnings:
        click.echo(warning, err=True)


def _lazy_paths(compares_lazy: bool, urls: tuple[str, ...]) -> tuple[str, ...] | None:
    if urls and not compares_lazy:
        raise click.UsageError("--url is for --lazy")
    return urls if compares_lazy else None


def _refuse_unknown(patterns: tuple[str, ...], loaded: configuration.Config, config: str) -> None:
    known = [mount.pattern for mount in loaded.mounts]
    for pattern in patterns:
        if pattern not in known:
            near = difflib.get_close_matches(pattern, known, 1)
            raise click.BadParameter(f"no mount {pattern!r} in {config}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _load(path: str, wants_json: bool) -> configuration.Config:
    try:
        return configuration.load(path, own_gil_error=interpreters.own_gil_error())
    except configuration.ConfigError as exc:
        asking.fail_by_faults(exc.faults, wants_json, 2)
