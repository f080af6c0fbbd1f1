"""`isowsgi plan`: how the config file on disk differs from the one that runs.

Exit codes, for scripts: 0 no difference, 2 a difference, 1 the file has faults or a worker did not answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import click

from isowsgi import configuration
from isowsgi.cli import asking, client
from isowsgi.cli.answers import plain
from isowsgi.cli.comparison import compare, late_limits, other_releases, read, read_as_served, with_conf_file
from isowsgi.cli.renewals import faults_of, renewals, warnings_of, with_certificates
from isowsgi.configuration import costs
from isowsgi.configuration.costs import Cost
from isowsgi.configuration.differences import Difference, Setting
from isowsgi.shared import controlmessages
from isowsgi.shared.sockets import Place

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_STYLES = {"+": "green", "-": "red", "~": "yellow"}

# Columns below which nothing is good to read, and nothing is folded to.
_LEAST_WIDTH = 20


@click.command(short_help="Show how the config file differs from what runs.")
@asking.where
@click.option("--instead", metavar="FILE", help="Compare this file, as if it were there instead of the config file.")
@asking.as_json
def plan(config: str | None, pidfile: str | None, instead: str | None, as_json: bool) -> None:
    """Show how the config file on disk differs from the one that runs; nothing is changed.

    + is a new mount, - one that is gone, ~ one with other settings; each with what applying it costs. Values of env are
    compared, but not shown.

    With --instead, a file that is not in its place yet is compared. Put it into the folder of the config file: relative paths
    in it are relative to its own.

    Exit code: 0 no difference, 2 a difference, 1 the config file has faults, or no answer from a worker.
    """
    try:
        places = client.find(config, pidfile)
    except client.NobodyServes as exc:
        _fail_by_faults(config, as_json)
        asking.fail(str(exc), 1)
    answers = client.ask(places, controlmessages.Table(), asking.TIMEOUT_S)
    try:
        wanted = read_as_served(config, answers) if instead is None else read(instead)
    except configuration.ConfigError as exc:
        asking.fail_by_faults(exc.faults, as_json, 1)
    for fault in wanted.faults:
        click.echo(fault, err=True)
    renewed = renewals(answers, wanted)
    unusable = faults_of(renewed)
    for text in [*unusable, *warnings_of(renewed), *late_limits(answers, wanted), *other_releases(answers)]:
        click.echo(text, err=True)
    by_worker = with_certificates(renewed, with_conf_file(answers, compare(answers, wanted)))
    if as_json:
        click.echo(json.dumps({"workers": [{"pid": place.worker, "differences": _plain(found)} for place, found in by_worker]}, indent=2))
    else:
        show(by_worker)
        if any(found for _, found in by_worker):
            needs_sighup = any(each.cost is Cost.SIGHUP for _, found in by_worker for each in found)
            first = "" if instead is None else "put it in place of the config file, then "
            click.echo(f"To apply: {first}isowsgi apply{' --or-reload' if needs_sighup else ''}")
    for line in asking.silent(answers):
        click.echo(plain(line), err=True)
    if len(by_worker) < len(answers) or wanted.faults or unusable:
        sys.exit(1)
    sys.exit(2 if any(found for _, found in by_worker) else 0)


def _fail_by_faults(config: str | None, as_json: bool) -> None:
    """Show the file's faults, if it has any: who cannot read it does not know where the workers' sockets are, either."""
    try:
        read_as_served(config, [])
    except configuration.ConfigError as exc:
        asking.fail_by_faults(exc.faults, as_json, 1)
    except FileNotFoundError:
        return


def _plain(found: list[Difference]) -> list[dict[str, Any]]:
    """Return differences for JSON, without the digests that stand for secrets."""
    shown = [attrs.evolve(each, settings=tuple(map(_masked, each.settings))) for each in found]
    return [{**attrs.asdict(each), "cost": each.cost.value} for each in shown]


def _masked(setting: Setting) -> Setting:
    if not setting.is_secret:
        return setting
    return attrs.evolve(setting, old=None if setting.old is None else "(not shown)", new=None if setting.new is None else "(not shown)")


def show(by_worker: Sequence[tuple[Place, list[Difference]]]) -> None:
    """Print each difference once, with the workers that have it where not all do."""
    groups: dict[tuple[Any, ...], tuple[list[Difference], list[Place]]] = {}
    for place, found in by_worker:
        # Digests are salted by each worker.
        groups.setdefault(tuple(str(_plain([each])) for each in found), (found, []))[1].append(place)
    for found, places in groups.values():
        if len(groups) > 1:
            click.echo(f"{'worker' if len(places) == 1 else 'workers'} {', '.join(str(place.worker) for place in places)}:")
        if not found:
            click.echo(controlmessages.NO_DIFFERENCE)
            continue
        if asking.is_for_files():
            click.echo("\n".join(line for each in found for line in plain_lines(each)))
        else:
            console = asking.console()
            for line in (line for each in found for line in lines(each, console)):
                console.print(line, soft_wrap=True)
        click.echo(_count(found))


def _count(found: list[Difference]) -> str:
    words = {"+": "new", "~": "changed", "-": "gone"}
    counts = {word: sum(each.sign == sign for each in found) for sign, word in words.items()}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def plain_lines(difference: Difference) -> Iterator[str]:
    """Yield what is printed of a difference to no terminal: one line for each setting, however long."""
    yield f"{difference.sign} {plain(difference.name)}  {_cost_of(difference)}"
    for name, values in _settings_of(difference):
        yield f"{name}{' -> '.join(values)}".rstrip()


def _cost_of(difference: Difference) -> str:
    return plain(costs.text_of(difference.cost, difference.sign, difference.name, difference.group))


def _settings_of(difference: Difference) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each setting, as wide as the others, and its values."""
    width = max((len(setting.name) for setting in difference.settings), default=0)
    for setting in map(_masked, difference.settings):
        yield f"    {plain(setting.name).ljust(width)}  ", _change(difference.sign, setting)


def lines(difference: Difference, console: Console) -> Iterator[Text]:
    """Yield what is printed of a difference; what is longer than a line is folded below its own beginning, so that signs stay in front."""
    from rich.cells import cell_len
    from rich.text import Text

    head = Text(plain(difference.name), style=_STYLES[difference.sign]).append(f"  {_cost_of(difference)}", style="dim")
    yield from _folded(Text(f"{difference.sign} ", style=_STYLES[difference.sign]), head, console)
    for before, values in _settings_of(difference):
        name = Text(before)
        is_short = cell_len(" -> ".join(values)) <= console.width - len(name)
        for number, value in enumerate([" -> ".join(values)] if is_short else values):
            yield from _folded(Text("-> ".rjust(len(name) + 3)) if number else name, Text(value), console)


def _folded(before: Text, text: Text, console: Console) -> Iterator[Text]:
    """Yield the lines of a text that stands behind another one."""
    from rich.text import Text

    width = max(console.width, _LEAST_WIDTH)
    indent = min(len(before), width // 2)
    for number, line in enumerate(text.wrap(console, width - indent)):
        line.rstrip()
        yield Text.assemble(before if not number else " " * indent, line)


def _change(sign: str, setting: Setting) -> list[str]:
    """Return the new value, or the old one and the new one, or in one word what became of a secret."""
    old, new = ("(default)" if value is None else plain(value) for value in (setting.old, setting.new))
    if setting.is_secret:
        return ["added" if setting.old is None else "removed" if setting.new is None else "changed"]
    return [new] if sign == "+" else [old, new]
