"""Which certificate a client gets: by the host that it asks for, whatever it writes."""

from __future__ import annotations

import ssl
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isowsgi.shared.containment import Containment
from isowsgi.shared.rows import INTERNAL_ERRORS
from isowsgi.worker.tlshosts import THREAD, Hosts
from tests.conftest import examples


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, text: str, *args: object) -> None:
        self.lines.append(text % args if args else text)


def hosts(*names: str) -> Hosts:
    """Return what chooses among contexts that are their hosts' names."""
    found = Hosts(Containment(Log(), memoryview(bytearray((INTERNAL_ERRORS + 1) * 8)).cast("q")))
    contexts: dict[str, Any] = {name: name for name in names}
    found.set(contexts)
    return found


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("shop.example.com", "shop.example.com"),
        ("SHOP.Example.COM", "shop.example.com"),
        ("shop.example.com.", "shop.example.com"),
        ("www.example.com", "*.example.com"),
        ("a.b.example.com", None),  # a wildcard stands for one label
        ("example.com", None),
        (".example.com", None),
        ("*.example.com", "*.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("com", None),
        ("", None),
        (".", None),
        (None, None),
        ("x" * 70000, None),
    ],
)
def test_a_host_in_full_goes_before_a_wildcard_of_one_label(asked: str | None, expected: str | None) -> None:
    found: Any = hosts("shop.example.com", "*.example.com", "xn--bcher-kva.example").context_for(asked)

    assert found == expected


_LABEL = st.sampled_from(["a", "b", "www", "xn--bcher-kva", "x1"])
_HOST = st.lists(_LABEL, min_size=1, max_size=4).map(".".join)
_NAME = st.one_of(_HOST, _HOST.map(lambda host: f"*.{host}"))


@given(st.sets(_NAME, max_size=6), st.one_of(_HOST, st.text(st.characters(codec="ascii"), max_size=20)), st.integers(0, 63), st.booleans())
@examples(300)
def test_no_client_gets_the_certificate_of_a_host_that_it_has_not_asked_for(names: set[str], host: str, capitals: int, dot: bool) -> None:
    asked = "".join(char.upper() if capitals >> place % 6 & 1 else char for place, char in enumerate(host)) + "." * dot
    plain = asked.lower().removesuffix(".")

    found: Any = hosts(*names).context_for(asked)

    first, dotted, rest = plain.partition(".")
    wildcard = f"*.{rest}" if first and dotted else None
    assert found == (plain if plain in names else wildcard if wildcard in names else None)


def test_a_mistake_costs_the_connection_and_is_counted_and_logged() -> None:
    log, words = Log(), memoryview(bytearray((INTERNAL_ERRORS + 1) * 8)).cast("q")
    found = Hosts(Containment(log, words))
    found.set({"a.example": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)})
    context = SimpleNamespace(sni_callback=None)
    with_hook = sys.unraisablehook
    try:
        found.attach(context)  # type: ignore[arg-type]
        choose: Any = context.sni_callback

        assert choose(None, "a.example", context) == ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR
        assert choose(SimpleNamespace(), None, context) is None
        assert words[INTERNAL_ERRORS] == 1
        assert log.lines[0].startswith("certificate by host")
    finally:
        sys.unraisablehook = with_hook


def test_only_what_clients_cause_in_the_relays_thread_is_kept_off_stderr() -> None:
    """Each client whose host is not ASCII wrote a traceback to stderr."""
    told: list[str] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda said: told.append(threading.current_thread().name)
    try:
        found = hosts("a.example")
        for _ in range(3):
            found.attach(SimpleNamespace(sni_callback=None))  # type: ignore[arg-type]
        undecodable = SimpleNamespace(exc_type=UnicodeDecodeError)
        for name, said in ((THREAD, undecodable), (THREAD, SimpleNamespace(exc_type=ValueError)), ("other", undecodable)):
            thread = threading.Thread(target=sys.unraisablehook, args=(said,), name=name)
            thread.start()
            thread.join()
    finally:
        sys.unraisablehook = before

    assert told == [THREAD, "other"]


def test_without_hosts_no_client_is_asked_which_it_wants() -> None:
    context: Any = SimpleNamespace(sni_callback=None)

    hosts().attach(context)

    assert context.sni_callback is None
