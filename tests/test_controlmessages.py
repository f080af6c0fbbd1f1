"""Requests and answers of the control socket: each comes back as it was, and whatever else comes is refused in one place on each side."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isowsgi.shared import controlmessages
from isowsgi.shared.controlmessages import Error, Outcome, Refusal, Reload, Request, Status, Worker
from isowsgi.shared.frames import MAX_ANSWER_BYTES, Decoder
from tests.conftest import examples
from tests.test_client import ANSWERS, REQUESTS, WORKER

WHO = Worker(worker=88, master=77, config="/srv/caf\udc80/isowsgi.toml", age=1)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


def read(frame: bytes) -> dict[str, Any]:
    message = Decoder(MAX_ANSWER_BYTES).feed(frame)
    assert message is not None
    return message


def refusal(message: dict[str, Any]) -> Error:
    with pytest.raises(Refusal) as refused:
        controlmessages.decode_request(message)
    error: Error = refused.value.error
    return error


@pytest.mark.parametrize(
    "request_", [*REQUESTS.values(), Status(mount="/caf\udc80"), controlmessages.Stop(mount=""), controlmessages.Start(mount="/")], ids=repr
)
def test_a_request_comes_back_as_it_was(request_: Request[Any]) -> None:
    assert controlmessages.decode_request(read(controlmessages.encode_request(request_))) == request_


@pytest.mark.parametrize("command", sorted(ANSWERS))
def test_an_answer_comes_back_as_it_was(command: str) -> None:
    worker, answer = controlmessages.decode_answer({**WORKER, "ok": True, **ANSWERS[command]}, REQUESTS[command])
    assert worker is not None

    message = read(controlmessages.encode_answer(worker, answer))

    assert message == {**WORKER, "ok": True, **ANSWERS[command]}
    assert controlmessages.decode_answer(message, REQUESTS[command]) == (worker, answer)


def test_an_error_comes_back_as_it_was_without_what_it_does_not_say() -> None:
    error = Error(kind="unknown-mount", text="no mount", near=[])

    message = read(controlmessages.encode_answer(WHO, error))

    assert (message["ok"], message["error"]) == (False, {"kind": "unknown-mount", "text": "no mount", "near": []})
    assert controlmessages.decode_answer(message, Status()) == (WHO, error)


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        ({"do": "status"}, "version", "expected \"v\": 1, got 'None'"),
        ({"v": [[]], "do": "status"}, "version", "got an array"),
        (
            {"v": 1},
            "command",
            "expected one of status, reload, stop, start, stacks, profile, memory, shell, shellline, errors, allerrors, table, prepare",
        ),
        ({"v": 1, "do": ["status"]}, "command", "got an array"),
        ({"v": 1, "do": "Status"}, "command", "got 'Status'"),
        ({"v": 1, "do": "reload"}, "mount", "expected a pattern as \"mount\", got 'None'"),
        ({"v": 1, "do": "profile", "mount": "/shop", "seconds": "ten"}, "malformed", "seconds"),
        ({"v": 1, "do": "shell", "mount": "/shop"}, "malformed", "serial"),
        ({"v": 1, "do": "status", "mount": 7}, "mount", "got '7'"),
    ],
)
def test_what_is_no_request_is_refused_with_what_was_expected(message: dict[str, Any], kind: str, text: str) -> None:
    error = refusal(message)

    assert (error.kind, text in error.text) == (kind, True), error


def test_a_request_with_an_object_as_deep_as_json_allows_is_refused() -> None:
    """Its text did not fit the stack: that was a mistake of isowsgi's then, with a traceback in the log."""
    deep = json.loads('{"v": 1, "do": "stop", "mount": ' + "[" * 900 + "]" * 900 + "}")

    assert refusal(deep).text == 'expected a pattern as "mount", got an array'


def test_what_a_later_release_adds_is_ignored_on_both_sides() -> None:
    assert controlmessages.decode_request({"v": 1, "do": "reload", "mount": "/", "force": True}) == Reload(mount="/")

    message = {**WORKER, "host": "h", "ok": True, **ANSWERS["reload"], "cpu_s": 1.5}

    assert isinstance(controlmessages.decode_answer(message, Reload(mount="/"))[1], Outcome)


@given(data=st.data(), command=st.sampled_from(sorted(ANSWERS)))
@examples(200)
def test_an_answer_with_a_part_that_does_not_fit_is_malformed(data: st.DataObject, command: str) -> None:
    """`isowsgi status` ended with a traceback of its own."""
    message = json.loads(json.dumps({**WORKER, "ok": True, **ANSWERS[command]}))
    key = data.draw(st.sampled_from(sorted(ANSWERS[command].keys() - {"boot", "up_s", "rss_mib"})))
    fits = (int, float) if type(message[key]) is float else (type(message[key]),)
    message[key] = data.draw(JSON.filter(lambda value: type(value) not in fits))

    worker, answer = controlmessages.decode_answer(message, REQUESTS[command])

    assert (worker, answer.kind if isinstance(answer, Error) else answer) == (None, "malformed")
    if isinstance(answer, Error) and key not in ("mounts", "instances", "requests"):
        assert f".{key}: expected" in answer.text


@pytest.mark.parametrize("answer", [{}, WORKER, {**WORKER, "ok": False}, {**WORKER, "ok": False, "error": "no"}, {**WORKER, "ok": 1}])
def test_an_answer_that_says_nothing_is_malformed(answer: dict[str, Any]) -> None:
    _, said = controlmessages.decode_answer(answer, Status())

    assert isinstance(said, Error)
    assert (said.kind, said.text.startswith("malformed answer to 'status': ")) == ("malformed", True)
