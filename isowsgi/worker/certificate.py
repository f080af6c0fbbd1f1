"""The certificate that a worker serves with: gunicorn's master has read it, and an operator may have applied a renewed one since.

On the acceptor's thread; nothing here waits.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from isowsgi.master import tlscontext
from isowsgi.shared import certificates
from isowsgi.shared.applied import Applied
from isowsgi.shared.certificates import Files, Pair


class Certificate:
    """One worker's.

    Args:
        cfg: gunicorn's settings.
        files: where it is.
        digest: of the one that the master has read.
        reading: the number of that reading; a renewed one counts only as long as it replaces this.
        on_renewed: takes another TLS context for connections from then on.
        log: gunicorn's logger.

    Attributes:
        applied: the renewed one, as it is told to other workers; None: the master's serves.
    """

    def __init__(self, cfg: Any, files: Files, digest: str, reading: int, on_renewed: Callable[[ssl.SSLContext], None], log: Any) -> None:
        self._cfg = cfg
        self.files = files
        self.name = certificates.name_of(files.certificate)
        self._reading = reading
        self._on_renewed = on_renewed
        self._log = log
        self.digest = digest  # of the one that serves
        self.applied: dict[str, Any] | None = None
        self._prepared: tuple[Pair, ssl.SSLContext] | None = None  # the one that was looked at last

    def told(self, pair: Pair) -> dict[str, Any]:
        """Return a renewed pair as it is told to other workers."""
        return {"certificate": pair.certificate, "key": pair.key, "instead_of": self._reading}

    def fault(self, pair: Pair) -> str:
        """Say why a pair cannot serve, or return ""; what was made of one that can is kept until it is taken."""
        try:
            self._prepared = pair, self._make_context(pair)
        except (tlscontext.ContextError, OSError, ValueError) as exc:
            return str(exc)
        return ""

    def take(self, table: Applied) -> bool:
        """Serve with the certificate that was applied with a table, if that replaces the master's; return whether that went well."""
        facts = table.certificate
        if not isinstance(facts, dict) or facts == self.applied or facts.get("instead_of") != self._reading:
            return True
        try:
            pair = Pair(str(facts["certificate"]), str(facts["key"]))
            prepared, context = self._prepared or (None, None)
            if context is None or prepared != pair:
                context = self._make_context(pair)
        except (tlscontext.ContextError, OSError, ValueError, KeyError) as exc:
            self._log.error("the renewed certificate cannot be used; keeping the one before it: %s", exc)
            return False
        self._on_renewed(context)
        self.digest, self.applied, self._prepared = pair.digest, facts, None
        self._log.info("serving with the renewed certificate %s", self.files.certificate)
        return True

    def _make_context(self, pair: Pair) -> ssl.SSLContext:
        if certificates.is_encrypted(pair):
            raise ValueError("its key has a passphrase, which nobody could type here; use SIGHUP")
        return tlscontext.renewed(self._cfg, pair)
