"""Messages between the worker and its instances: each comes back as it was, and whatever else comes is refused in one way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import isowsgi
from isowsgi.shared import messages, wire
from isowsgi.shared.calltree import CallTree
from isowsgi.shared.containment import MAX_ERROR_CHARS
from isowsgi.shared.messages import (
    MAX_PACKET_BYTES,
    Broken,
    Closed,
    Descriptors,
    Drain,
    Failed,
    Ready,
    Reopen,
    Stacks,
    TellStacks,
    shortened,
)
from isowsgi.shared.routing import Route
from isowsgi.shared.wire import MessageError
from tests.conftest import examples
from tests.orders import any_order

ORDERS = sorted(messages._ORDERS)
REPORTS = sorted(messages._REPORTS)

# A value of each type that a field of an order or report has.
SAMPLES: dict[str, Any] = {
    "int": 2**40,
    "float": 0.25,
    "bool": True,
    "str": 'quote " letter é byte \udc80 line \n',
    "str | None": None,
    "list[str]": ["/srv/a.py"],
    "list[isowsgi.shared.routing.Route]": [Route(0, "", "/caf\xe9"), Route(1, "a.example", "")],
    "dict[str, list[int]]": {"/srv/etree.so": [1, 2**40]},
    "list[tuple[str, str]]": [("lxml.etree", "/srv/etree.so")],
    "list[tuple[str, str, str]]": [("lxml.etree", "/srv/etree.so", "ImportError")],
}


def sample(name: str) -> Any:
    kind: Any = {**messages._ORDERS, **messages._REPORTS}[name]
    names = {field: str(each).removeprefix("<class '").removesuffix("'>") for field, each in kind.fields.items()}
    return kind(**{field: SAMPLES[each] for field, each in names.items()})


def is_refused(packet: bytes) -> str:
    """Return why a packet is no report."""
    with pytest.raises(MessageError) as refused:
        messages.decode_report(packet)
    return str(refused.value)


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_comes_back_as_it_was(name: str) -> None:
    assert messages.decode_order(messages.encode(sample(name))) == sample(name)


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_comes_back_as_it_was(name: str) -> None:
    assert messages.decode_report(messages.encode(sample(name))) == sample(name)


def test_a_boot_order_comes_back_as_it_was() -> None:
    order = any_order(fds=Descriptors(board=3, channel=4), extensions={"/srv/a.so": [1, 2]}, env={"A": "\udc80"})

    assert messages.read_boot_order(json.loads(messages.encode(order).decode("utf-8", "surrogatepass"))) == order
    assert order.fds is not None
    assert order.fds.known() == [3, 4]


@pytest.mark.parametrize("name", ["é", "\udc80", "\ud83d\ude00", "\U0001f600\ud83d", 'quote " line \n \x00'])
def test_a_value_is_the_same_json_as_a_text_and_as_bytes(name: str) -> None:
    """A surrogate stays one, and two of them do not become a letter."""
    tree = CallTree(samples=1, seconds=0.5, is_cut=False, frames=[(name, name, 1)], nodes=[(-1, 0, 3)])

    assert wire.text(tree) == wire.encode(wire.plain(tree)).decode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    ("packet", "says"),
    [
        (b"", "expected JSON"),
        (b"\xff", "expected JSON"),
        (b"[" * 10_000, "expected JSON"),
        (b"1" * 10_000, "expected JSON"),
        (b"null", "expected a JSON object"),
        (b"{}", "expected one of"),
        (b'{"is": ["Ready"]}', "expected one of"),
        (b'{"is": "Drain"}', "expected one of"),  # an order
        (b'{"is": "Closed"}', "odd: threads"),
        (b'{"is": "Closed", "threads": 0, "more": 1}', "odd: more"),
        (b'{"is": "Closed", "threads": "0"}', "Closed.threads: expected int"),
        (b'{"is": "Closed", "threads": true}', "Closed.threads: expected int"),
        (b'{"is": "Closed", "threads": 1e3}', "Closed.threads: expected int"),
        (b'{"is": "Closed", "threads": 9223372036854775808}', "Closed.threads: expected int"),
        (b'{"is": "Closed", "threads": 0}{}', "after it"),
        (b'{"is": "Ready", "boot_s": NaN, "objects": 1, "extensions": [], "refused": []}', "Ready.boot_s: expected float"),
        (b'{"is": "Ready", "boot_s": 1, "objects": 1, "extensions": [["a"]], "refused": []}', "expected an array of 2"),
        (b'{"is": "Ready", "boot_s": 1, "objects": 1, "extensions": {}, "refused": []}', "expected an array"),
        (b'{"is": "Files", "files": [1]}', "Files.files: expected str"),
    ],
)
def test_what_is_no_report_is_refused_with_a_reason(packet: bytes, says: str) -> None:
    assert says in is_refused(packet)


def test_a_packet_that_was_cut_is_refused() -> None:
    """A sender may have a larger buffer than this side's."""
    assert "at most" in is_refused(b" " * (MAX_PACKET_BYTES + 1))


@examples(300)
@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))
)
def test_no_value_of_a_field_is_taken_that_is_not_of_its_type(value: Any) -> None:
    try:
        report = messages.decode_report(json.dumps({"is": "Broken", "thread": "", "error": value, "traceback": ""}).encode())
    except MessageError:
        assert not isinstance(value, str)
    else:
        assert isinstance(report, Broken)
        assert isinstance(report.error, str)


def test_a_boot_order_of_another_release_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process imports what is installed when it starts, the worker what was when that did."""
    order = json.loads(messages.encode(any_order()))
    monkeypatch.setattr(isowsgi, "__version__", "99")

    with pytest.raises(MessageError, match=r"the worker runs isowsgi .*, but 99 is installed now; restart gunicorn"):
        messages.read_boot_order(order)


@pytest.mark.parametrize("facts", [None, [], {}, {"is": "BootOrder", "release": isowsgi.__version__}])
def test_what_is_no_boot_order_is_refused(facts: Any) -> None:
    with pytest.raises(MessageError):
        messages.read_boot_order(facts)


def test_a_message_is_frozen_and_changed_by_a_copy() -> None:
    order = any_order()
    copy = order.replace(serving=order.serving.replace(threads=9))

    assert (copy.serving.threads, order.serving.threads == 9, copy == order) == (9, False, False)
    with pytest.raises(AttributeError):
        order.tag = "/x #1"  # type: ignore[misc]
    with pytest.raises(TypeError, match="unknown \\['colour'\\]"):
        order.replace(colour="red")
    with pytest.raises(TypeError, match="missing \\['ask'\\]"):
        TellStacks()  # type: ignore[call-arg]


def test_messages_without_facts_differ() -> None:
    assert Drain() == Drain()
    assert Drain() != Reopen()
    assert Drain()


def test_a_shortened_report_keeps_what_counts() -> None:
    failed = Failed(error="x", traceback="t" * 1000, unknown_extension="/a.so", extensions=[("a", "b")])

    assert shortened(failed) == Failed(error="x", traceback="", unknown_extension="/a.so")
    shorter = shortened(Failed(error="x" * 300_000, traceback=""))
    assert isinstance(shorter, Failed)
    assert len(shorter.error) == MAX_ERROR_CHARS
    assert shortened(Closed(threads=3)) == Closed(threads=3)
    assert shortened(Stacks(ask=1, text="x", is_last=True)) == Stacks(ask=1, text="", is_last=True)
    ready = shortened(Ready(boot_s=1.0, objects=1, extensions=[("a", "b")], refused=[]))
    assert isinstance(ready, Ready)
    assert ready.extensions == []
