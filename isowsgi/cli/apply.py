"""`isowsgi apply`: have all workers serve what the config file says now, without a restart."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from isowsgi import configuration
from isowsgi.cli import asking, client, sighup
from isowsgi.cli.answers import Told, for_people, plain
from isowsgi.cli.comparison import Compared, compare, conf_files, read_as_served, with_conf_file
from isowsgi.cli.plan import show
from isowsgi.cli.renewals import Renewal, Renewals, faults_of, renewals, warnings_of, with_certificates
from isowsgi.configuration import partial, stored
from isowsgi.configuration.costs import Cost
from isowsgi.shared import controlmessages
from isowsgi.shared.controlmessages import Error, NotLoaded, Prepare, RenewedCertificate, ServedTable, TableOutcome
from isowsgi.shared.sockets import Place

# Answers to the switch after which a worker may have switched all the same.
_UNKNOWN = ("timeout", "gone", "malformed", "mistake")


@click.command(short_help="Apply the changed config file.")
@asking.where
@asking.master
@click.option("--keep-going", is_flag=True, help="Apply what can be loaded; leave the other mounts as they are.")
@click.option("--or-reload", is_flag=True, help="Send SIGHUP to gunicorn instead if something differs that only SIGHUP can apply.")
@asking.timeout
def apply(config: str | None, pidfile: str | None, master: int | None, keep_going: bool, or_reload: bool, timeout: float) -> None:
    """Apply what differs in the config file in all workers, while everything else keeps serving.

    Every worker first loads what is new; then all workers switch to the new table. If anything cannot be loaded, nothing
    changes, the reason is shown, and the exit code is 1.

    With --keep-going, a mount that some worker cannot load stays as it was in all of them, and the rest is applied; the exit
    code is 1 then too.

    With --or-reload, SIGHUP is sent instead if the file has no faults and what differs includes what only SIGHUP can apply:
    gunicorn's own settings file, [control], an app in the main interpreter. SIGHUP loads every app again.

    Without it, what only SIGHUP can apply is named, and the exit code is 1.
    """
    try:
        places = client.find(config, pidfile, master)
    except client.NobodyServes as exc:
        _without_workers(config, exc, master if or_reload else None)
    answers = client.ask(places, controlmessages.Table(), asking.TIMEOUT_S)
    if any(isinstance(told.answer, Error) for told in answers):
        _tell(answers)
        asking.fail("nothing was changed: not every worker answered", 1)
    wanted = _read(config, answers)
    renewed = renewals(answers, wanted)
    faults = [*wanted.faults, *faults_of(renewed)]
    for text in [*faults, *warnings_of(renewed)]:
        click.echo(text, err=True)
    by_worker = with_certificates(renewed, compare(answers, wanted))
    everything = with_conf_file(answers, by_worker)
    show(everything)
    if or_reload and any(each.cost is Cost.SIGHUP for _, found in everything for each in found):
        sighup.send(places, {file.path for file in conf_files(answers).values()})
        sys.exit(1 if faults else 0)
    if is_left := everything != by_worker:
        click.echo("gunicorn's own settings file has changed, which only SIGHUP applies: isowsgi apply --or-reload", err=True)
    if not any(found for _, found in by_worker):
        sys.exit(1 if faults or is_left else 0)
    request = Prepare(serial=os.urandom(8).hex(), config=stored.plain(wanted), hold_s=timeout + 2 * asking.TIMEOUT_S, keep_going=keep_going)
    _carry_out(answers, request, renewed, timeout, by_worker)
    if faults:
        asking.fail("what has faults stays as it was", 1)
    sys.exit(1 if is_left else 0)


def _without_workers(config: str | None, why: client.NobodyServes, master: int | None) -> NoReturn:
    """End, where no worker can be asked; a master, if one is named, is sent SIGHUP."""
    wanted = _read(config, [])  # ends with its faults, if it has any
    if master is None or not why.is_silent:
        asking.fail(str(why), 2)
    click.echo(f"isowsgi: {why}", err=True)
    sighup.send_unseen(master)
    sys.exit(1 if wanted.faults else 0)


def _carry_out(answers: Sequence[Told[ServedTable]], request: Prepare, renewed: Renewals, timeout_s: float, by_worker: Compared) -> None:
    """Have all workers take up a config; ends with 1 if they do not, or not all of it."""
    # One worker first: an app that ends its process at import would end all of them. The newest, for it knows which app did before.
    places = [told.place for told in sorted(answers, key=lambda told: told.worker.age if told.worker else 0, reverse=True)]
    try:
        stays = _prepare([(place, _with_its(renewed.get(place.master, []), request)) for place in places], timeout_s)
        if all(each.name in stays for _, found in by_worker for each in found):
            asking.fail("nothing was changed: nothing that is new can be loaded", 1)
    except BaseException:  # Ctrl-C too
        client.ask(places, controlmessages.Drop(serial=request.serial), asking.TIMEOUT_S)
        raise
    _switch(places, request.serial, stays)
    if stays:
        asking.fail(f"as before, in all workers: {', '.join(map(plain, stays))}", 1)


def _read(config: str | None, answers: Sequence[Told[Any]]) -> configuration.Config:
    try:
        return read_as_served(config, answers)
    except configuration.ConfigError as exc:
        click.echo(str(exc), err=True)
        asking.fail("nothing was changed: the config file has faults", 1)
    except FileNotFoundError:
        asking.fail("the working directory was deleted; give the config file's absolute path with --config", 2)


def _with_its(renewed: Sequence[Renewal], request: Prepare) -> Prepare:
    """Return the request for the workers of one gunicorn: a key is told to nobody else."""
    own: RenewedCertificate | None = None
    named = []
    for each in renewed:
        if each.pair is not None and each.is_own:
            own = RenewedCertificate(certificate=each.pair.certificate, key=each.pair.key)
        elif each.pair is not None:
            facts = {"path": each.files.certificate, "key_path": each.files.key}
            named.append(RenewedCertificate(certificate=each.pair.certificate, key=each.pair.key, **facts))
    without = [*request.without, *([partial.TLS] if any(each.is_new and each.fault for each in renewed) else [])]
    return request.replace(certificate=own, certificates=named, without=without)


def _prepare(requests: Sequence[tuple[Place, Prepare]], timeout_s: float) -> list[str]:
    """Have all workers load what is new; return what has to stay as it is, because some worker could not load it."""
    prepared = client.ask_each(requests[:1], timeout_s)
    stays = _stays(prepared)
    if not isinstance(prepared[0].answer, Error):
        others = [(place, request.replace(without=[*request.without, *stays])) for place, request in requests[1:]]
        prepared += client.ask_each(others, timeout_s)
    _tell_not_loaded(prepared)
    if any(isinstance(told.answer, Error) for told in prepared):
        _tell(prepared)
        asking.fail("nothing was changed: not every worker could load what is new", 1)
    return _stays(prepared)


def _stays(prepared: Sequence[Told[TableOutcome]]) -> list[str]:
    return sorted({name for told in prepared if not isinstance(told.answer, Error) for name in told.answer.stays})


def _switch(places: Sequence[Place], serial: str, stays: list[str]) -> None:
    """Have all workers serve the new table; the first that does decides for all."""
    told = client.ask(places, controlmessages.Switch(serial=serial, without=stays), asking.TIMEOUT_S)
    _tell(told)
    switched = sum(not isinstance(each.answer, Error) for each in told)
    if not switched:
        client.ask(places, controlmessages.Drop(serial=serial), asking.TIMEOUT_S)
        if any(isinstance(each.answer, Error) and each.answer.kind in _UNKNOWN for each in told):
            asking.fail("it is not known whether the table was applied: isowsgi plan tells", 1)
        asking.fail("nothing was changed: no worker could switch", 1)
    click.echo(f"applied in {switched} of {len(told)} workers")
    if switched < len(told):
        click.echo("the others, or those in their place, follow within seconds")


def _tell(answers: Sequence[Told[Any]]) -> None:
    """Print each error once: a faulty app fails in every worker alike."""
    seen = set()
    for told in for_people(answers):
        if isinstance(told.answer, Error) and (what := (told.answer.kind, told.answer.text)) not in seen:
            seen.add(what)
            asking.print_error(told)


def _tell_not_loaded(prepared: Sequence[Told[TableOutcome]]) -> None:
    seen: list[NotLoaded] = []
    for told in for_people(prepared):
        for failed in [] if isinstance(told.answer, Error) else told.answer.failed:
            if failed not in seen:
                seen.append(failed)
                asking.print_error(Told(told.place, told.worker, Error(kind="failed", text=failed.text, traceback=failed.traceback)))
