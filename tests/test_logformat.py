"""How the lines of the error log look."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime
from typing import Any

import pytest
from gunicorn.glogging import Logger

from isowsgi.shared import logformat


def record(message: str, *args: object, level: int = logging.INFO, exc_info: Any = None, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("gunicorn.error", level, "", 0, message, args, exc_info)
    vars(made).update(more)
    return made


def as_json(made: logging.LogRecord, request: str = "") -> dict[str, Any]:
    text = logformat.JsonFormatter(False, lambda: request).format(made)
    assert "\n" not in text
    facts: dict[str, Any] = json.loads(text)
    return facts


def test_lines_after_the_first_one_of_an_entry_are_marked() -> None:
    first, *rest = logformat.TextFormatter().format(record("%s: %s", "/a #1", "failed\nTraceback\n  File")).split("\n")

    assert first.endswith(" [INFO] /a #1: failed")
    assert rest == ["  | Traceback", "  |   File"]


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.CRITICAL, "<2>"),
        (logging.ERROR, "<3>"),
        (logging.WARNING, "<4>"),
        (logging.INFO, "<6>"),
        (logging.DEBUG, "<7>"),
        (25, "<6>"),
    ],
)
def test_journald_is_told_the_priority_of_each_line(level: int, priority: str) -> None:
    """It takes each line for an entry of its own."""
    lines = logformat.TextFormatter(True).format(record("a\nb", level=level)).split("\n")
    assert [line[:3] for line in lines] == [priority, priority]
    assert logformat.JsonFormatter(True, str).format(record("a", level=level)).startswith(f"{priority}{{")


def test_json_has_mount_generation_request_and_traceback_of_an_instances_line() -> None:
    try:
        raise KeyError("sku")
    except KeyError:
        exc_info = sys.exc_info()
    facts = as_json(
        record("%s: " + "Error handling request %s", "/a b #12c", "/x", level=logging.ERROR, exc_info=exc_info), "GET /x HTTP/1.1"
    )

    assert (facts["mount"], facts["generation"], facts["level"], facts["stream"]) == ("/a b", 12, "error", "log")
    assert (facts["request"], facts["message"]) == ("GET /x HTTP/1.1", "Error handling request /x")
    assert facts["traceback"].startswith("Traceback (most recent call last):\n")
    assert facts["traceback"].endswith("KeyError: 'sku'")


def test_an_entry_that_an_app_makes_by_gunicorns_log_is_its_mounts() -> None:
    made = record("hello", stack_info="Stack (most recent call last):\n  File")
    facts = json.loads(logformat.JsonFormatter(False, str, "/a #12").format(made))

    assert (facts["mount"], facts["generation"]) == ("/a", 12)
    assert facts["message"] == "hello\nStack (most recent call last):\n  File"


def test_json_finds_the_traceback_in_what_an_app_wrote() -> None:
    text = "Exception on / [GET]\nTraceback (most recent call last):\n  File\nKeyError: 'sku'"
    facts = as_json(record("%s: %s", "/a #1", text, stream="stderr"))

    assert (facts["message"], facts["stream"]) == ("Exception on / [GET]", "stderr")
    assert facts["traceback"] == "Traceback (most recent call last):\n  File\nKeyError: 'sku'"


@pytest.mark.parametrize("made", [record("a"), record("%s: b", 7), record("%s: b", "no tag"), record("100 %")])
def test_json_has_no_mount_where_a_line_is_about_none(made: logging.LogRecord) -> None:
    facts = as_json(made)

    assert facts.keys() == {"time", "level", "pid", "stream", "message"}
    assert facts["message"] == made.getMessage()


def test_what_would_break_a_line_is_escaped_and_a_long_one_is_cut() -> None:
    facts = as_json(record("%s: %s", "/a #1", "\udcff\u2028\r\x1b" + "x" * 100_000))

    assert facts["message"].startswith("\udcff\u2028\r\x1b")
    assert len(facts["message"]) < 20_000
    assert facts["cut"] is True


# journald's LineMax=.
LINE_MAX_BYTES = 48 * 1024


@pytest.mark.parametrize("character", ["x", "я", "\U0001f600", "\udcff"])
def test_no_line_is_longer_than_journald_takes_in_one_piece(character: str) -> None:
    text = f"begin {character * 90_000}\nTraceback (most recent call last):\n{character * 90_000} end"
    made = record("%s: %s", f"/{character * 400} #1", text)
    in_json = logformat.JsonFormatter(True, lambda: character * 8000).format(made)
    lines = logformat.TextFormatter(True).format(made).split("\n")

    assert max(len(line.encode(errors="backslashreplace")) for line in [in_json, *lines]) < LINE_MAX_BYTES
    assert all(line.startswith("<6>") for line in lines)
    assert "".join(line.removeprefix("<6>").removeprefix("  | ") for line in lines).count(character) >= 180_000
    assert json.loads(in_json.removeprefix("<6>"))["traceback"].endswith(" end")


def test_what_an_app_writes_is_no_entry_of_its_own_for_journald_or_a_terminal() -> None:
    line = logformat.TextFormatter(True).format(record("%s: %s", "/a #1", "x\0<0>forged\rforged\x9b\x7f\ta\r\nb \x1b[31mred"))

    assert line.endswith("/a #1: x\\x00<0>forged\\x0dforged\\x9b\\x7f\ta\n<6>  | b \x1b[31mred")


def test_a_time_is_one_of_rfc_3339() -> None:
    written = as_json(record("a"))["time"]
    assert datetime.fromisoformat(written).utcoffset() is not None
    assert written[-3] == ":"


class Unspeakable:
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    "more",
    [{"stream": sys.stdout}, {"stream": "mine"}, {"levelname": 7}, {"process": object()}, {"msecs": None}, {"levelname": Unspeakable()}],
)
def test_whatever_an_app_puts_into_a_record_an_object_is_written(more: dict[str, Any]) -> None:
    facts = as_json(record("a", **more))

    assert facts["stream"] == "log"
    assert facts["message"]


def test_a_handler_of_the_users_keeps_its_form() -> None:
    own, gunicorns = logging.StreamHandler(), logging.StreamHandler()
    own.setFormatter(logging.Formatter("%(message)s"))
    gunicorns.setFormatter(logging.Formatter(Logger.error_fmt, Logger.datefmt))
    logger = logging.Logger("gunicorn.error")
    logger.handlers = [own, gunicorns]

    logformat.apply([logger], "json", False)
    logformat.apply([logger], "text", True)

    assert type(own.formatter) is logging.Formatter
    assert isinstance(gunicorns.formatter, logformat.TextFormatter)
