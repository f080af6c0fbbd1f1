"""The certificates that a worker serves with: gunicorn's master has read them, and an operator may have applied others since.

Gunicorn's own settings name one, for all hosts that have none of their own; the config file's `[[tls]]` tables the others. If the former
do not, the first table's is for other hosts too.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from isowsgi.configuration.certificates import files_of
from isowsgi.configuration.values import Certificate
from isowsgi.master import tlscontext
from isowsgi.master.tlscontext import Reading, Ready
from isowsgi.shared import certificates
from isowsgi.shared.applied import Applied
from isowsgi.shared.certificates import Files, Pair, Told, name_of
from isowsgi.shared.controlmessages import RenewedCertificate
from isowsgi.worker.tlshosts import Hosts


class Certificates:
    """One worker's.

    Args:
        cfg: gunicorn's settings.
        reading: what the master has read.
        hosts: choose among them, connection by connection.
        log: gunicorn's logger.

    Attributes:
        on_renewed: takes another TLS context for connections from then on.
        own: gunicorn's own, if its settings say where that is.
        applied: the renewed ones, as they are told to other workers; None: the master's serve.
    """

    def __init__(self, cfg: Any, reading: Reading, hosts: Hosts, log: Any) -> None:
        self._cfg = cfg
        self._reading = reading
        self._hosts = hosts
        self._log = log
        self.on_renewed: Callable[[ssl.SSLContext], None] = lambda context: None
        self.own = reading.files
        self.has_own = reading.own is not None
        self.applied: dict[str, Any] | None = None
        self.context = reading.own
        self._ready: dict[Files, Ready] = dict(reading.ready)
        self._tables: tuple[Certificate, ...] = ()
        self._made: dict[tuple[Files, Pair], Ready] = {}  # of renewed ones: those that serve, and those that were looked at last

    def told(self) -> list[Told]:
        """Return what people and monitors are told."""
        found = [Told((), self.own.certificate, self._expiry(self.own))] if self.own is not None else []
        return found + [Told(each.hosts, each.certificate, self._expiry(files_of(each))) for each in self._tables]

    def digest(self, files: Files) -> str:
        """Return the digest of the certificate that serves for one of the files; "" if none does."""
        found = self._ready.get(files)
        return found.digest if found is not None else ""

    def _expiry(self, files: Files) -> float | None:
        found = self._ready.get(files)
        return found.expires if found is not None else None

    # Renewed ones, as they are told to other workers: which reading they follow, and the pairs with their files.

    def look_at(
        self, renewed: Sequence[RenewedCertificate], tables: Sequence[Certificate], without: Collection[str]
    ) -> tuple[dict[str, Any] | None, list[str], list[Files]]:
        """Make contexts of renewed pairs.

        Args:
            tables: of the config that they come with.
            without: names of certificates that stay as they are.

        Returns:
            what other workers are told, the pairs that were applied before included; why some stay as they are, and which these are.
        """
        wanted = {*([] if self.own is None else [self.own]), *map(files_of, tables)}
        pairs = {files: pair for files, pair in self._pairs(self.applied).items() if files in wanted}
        faults: list[str] = []
        stay: list[Files] = []
        for each in renewed:
            files, pair = Files(each.path, each.key_path), Pair(each.certificate, each.key)
            if files == Files("", "") and self.own is not None:  # by a command that knows of gunicorn's own only
                files = self.own
            if files not in wanted or name_of(files.certificate) in without:
                continue
            try:
                self._make(files, pair)
                pairs[files] = pair
            except (tlscontext.ContextError, OSError, ValueError) as exc:
                faults.append(f"the renewed certificate {files.certificate} cannot be used: {exc}")
                stay.append(files)
        return self._facts(pairs), faults, stay

    def missing(self, facts: dict[str, Any] | None, tables: Sequence[Certificate]) -> list[Files]:
        """Return the files of tables for which there is no certificate, neither among the renewed ones nor of the master's."""
        pairs = self._pairs(facts)
        return [files for files in map(files_of, tables) if files not in pairs and files not in self._reading.ready]

    def without(self, facts: dict[str, Any] | None, names: Collection[str]) -> dict[str, Any] | None:
        """Return what other workers are told, if those of some names stay as they are."""
        before = self._pairs(self.applied)
        pairs = {files: pair for files, pair in self._pairs(facts).items() if name_of(files.certificate) not in names}
        return self._facts(pairs | {files: pair for files, pair in before.items() if name_of(files.certificate) in names})

    def take(self, table: Applied, tables: tuple[Certificate, ...]) -> bool:
        """Serve with what was applied with a table, as far as that replaces the master's; return whether that went well.

        Args:
            tables: of the config that is served from now on.
        """
        pairs = self._pairs(table.certificates)
        ready = {files: found for files, found in self._reading.ready.items() if files == self.own}
        is_whole = True
        for files in dict.fromkeys([*ready, *map(files_of, tables)]):
            try:
                found = self._make(files, pairs[files]) if files in pairs else self._reading.ready[files]
            except (tlscontext.ContextError, OSError, ValueError, KeyError) as exc:
                is_whole = False
                self._log.error("certificate %s cannot be used; keeping the one before it, if there is one: %s", files.certificate, exc)
                kept = self._ready.get(files)
                if kept is None:
                    continue
                found = kept
            ready[files] = found
        self._tell(ready)
        self._ready, self._tables, self.applied = ready, tables, self._facts(pairs)
        self._made = {key: found for key, found in self._made.items() if ready.get(key[0]) is found}
        self._serve()
        return is_whole

    def _serve(self) -> None:
        usable = [(self._ready[files_of(each)], each.hosts) for each in self._tables if files_of(each) in self._ready]
        by_host = {host: found.context for found, hosts in usable for host in hosts}
        self._hosts.set(by_host)
        if self.own is not None:
            self.context = self._ready[self.own].context
        elif self._reading.own is None:
            self.context = next(iter(by_host.values()), self.context or next(iter(self._reading.ready.values())).context)
        assert self.context is not None, "else there is no TLS"
        self._hosts.attach(self.context)
        self.on_renewed(self.context)

    def _tell(self, ready: Mapping[Files, Ready]) -> None:
        for files, found in ready.items():
            if files in self._ready and self._ready[files].digest != found.digest:
                self._log.info("serving with the renewed certificate %s", files.certificate)

    def _make(self, files: Files, pair: Pair) -> Ready:
        made = self._made.get((files, pair))
        if made is None:
            if certificates.is_encrypted(pair):
                raise ValueError("its key has a passphrase, which nobody could type here; use SIGHUP")
            context = tlscontext.renewed(self._cfg, pair)
            facts = certificates.facts_of(pair)
            made = self._made[files, pair] = Ready(context, pair.digest, facts and facts.expires)
        return made

    def _facts(self, pairs: Mapping[Files, Pair]) -> dict[str, Any] | None:
        if not pairs:
            return None
        return {"instead_of": self._reading.number, "pairs": [[*files, *pair] for files, pair in pairs.items()]}

    def _pairs(self, facts: Any) -> dict[Files, Pair]:
        """Return the pairs of what another worker may have told; none if they are for another reading of the master's, or are none."""
        try:
            if facts is None or facts["instead_of"] != self._reading.number:
                return {}
            return {Files(str(a), str(b)): Pair(str(c), str(d)) for a, b, c, d in facts["pairs"]}
        except (TypeError, KeyError, ValueError):
            return {}
