"""Which certificate a client gets: by the host that it asks for when it begins with TLS (server name indication, RFC 6066).

OpenSSL asks, in the relay's thread, once for each handshake. Only the certificate is another then: client verification, ciphers and
versions stay those of the context that the connection began with, and all contexts are made by the same settings.
"""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Mapping
from typing import Any

from isowsgi.shared.containment import Containment
from isowsgi.shared.routing import WILDCARD

# Of the relay's thread.
THREAD = "isowsgi-tls"


class Hosts:
    """See the module's text. `set` and `attach` are for the acceptor's thread.

    Args:
        containment: where mistakes end; of the relay's thread alone.
    """

    def __init__(self, containment: Containment) -> None:
        self._containment = containment
        self._contexts: Mapping[str, ssl.SSLContext] = {}

    def set(self, contexts: Mapping[str, ssl.SSLContext]) -> None:
        """Serve with these from now on.

        Args:
            contexts: by host, lower case; a wildcard's begins with "*.".
        """
        self._contexts = contexts

    def attach(self, context: ssl.SSLContext) -> None:
        """Have clients choose that begin with a context, which is also what they get if they ask for no host that is known here."""
        if self._contexts:
            _say_nothing_of_names_that_are_not_ascii()
            context.sni_callback = self._choose

    def context_for(self, name: str | None) -> ssl.SSLContext | None:
        """Return what a client gets that asks for a host, None if there is nothing for that host: a host in full goes before a wildcard.

        Args:
            name: as the client wrote it; other than ASCII comes as A-labels ("xn--...").
        """
        if name is None:
            return None
        host = name.lower().removesuffix(".")
        contexts = self._contexts
        found = contexts.get(host)
        if found is not None:
            return found
        label, _, domain = host.partition(".")
        return contexts.get(WILDCARD + domain) if label and domain else None

    def _choose(self, tls: Any, name: str | None, context: ssl.SSLContext) -> int | None:
        try:
            if (found := self.context_for(name)) is not None and found is not context:
                tls.context = found
        except Exception:
            self._containment.failed("certificate by host")
            return ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR
        return None


def _say_nothing_of_names_that_are_not_ascii() -> None:
    """Keep `ssl` from writing a traceback to stderr for each client whose host is not ASCII; its handshake fails in any case."""
    before = sys.unraisablehook
    if getattr(before, "__module__", "") == __name__:
        return

    def hook(said: Any) -> None:
        if not (said.exc_type is UnicodeDecodeError and threading.current_thread().name == THREAD):
            before(said)

    sys.unraisablehook = hook
