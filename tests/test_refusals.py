"""What an app's failure means is read from all that was said, not from its last line."""

from __future__ import annotations

import pytest

from isowsgi.shared.loadfailures import BROKEN, MAIN_ONLY, NO_DAEMON, NO_FORK, NO_STDLIB, ONCE, REFUSES_OWN_GIL, UNCLEAR, classify, hint

WRAPPED = """Traceback (most recent call last):
  File "numpy/__init__.py", line 1, in <module>
ImportError: {refusal}

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "app.py", line 1, in <module>
{error}
"""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("ImportError: module PIL._imaging does not support loading in subinterpreters", REFUSES_OWN_GIL),
        ("ImportError: cannot load module more than once per process", ONCE),
        ("ImportError: module 'curses' can only be loaded once per process", ONCE),
        ("ImportError: PyO3 modules do not yet support subinterpreters, see https://github.com/PyO3/pyo3/issues/576", ONCE),
        ("ImportError: Interpreter change detected - this module can only be loaded into one interpreter per process.", ONCE),
        ("TypeError: _abc_impl is set to a wrong type", ONCE),
        ("ImportError: failed to import from subinterpreter due to exception", MAIN_ONLY),
        ("RuntimeError: fork not supported for isolated subinterpreters", NO_FORK),
        ("RuntimeError: preexec_fn not supported within subinterpreters", NO_FORK),
        ("RuntimeError: an app in a subinterpreter cannot fork; use subprocess, or ...", NO_FORK),
        ("RuntimeError: daemon threads are disabled in this interpreter", NO_DAEMON),
        ("ImportError: module _datetime does not support loading in subinterpreters", NO_STDLIB),
        ("AttributeError: module 'datetime' has no attribute 'datetime_CAPI'", NO_STDLIB),
        ("SyntaxError: invalid syntax", BROKEN),
        ("IndentationError: unexpected indent", BROKEN),
        ("ModuleNotFoundError: No module named 'flask'", BROKEN),
        ("gunicorn.errors.AppImportError: Failed to find attribute 'application' in 'shop'.", BROKEN),
        ("isowsgi.inside.policy.PolicyError: [Errno 1] /blog: os.chdir('/') is refused by policy chdir = \"deny\"", BROKEN),
        ("ModuleNotFoundError: import of _asyncio halted; None in sys.modules", UNCLEAR),
        ("isowsgi.inside.loading.WarmUpError: the warm-up request '/' was answered '500 Internal Server Error'", UNCLEAR),
        ("ImportError: cannot import name 'encodings' from 'psycopg2._psycopg'", UNCLEAR),
        ("django.core.exceptions.ImproperlyConfigured: Error loading psycopg2 or psycopg module", UNCLEAR),
        ("SystemExit: 3", UNCLEAR),
    ],
)
def test_each_message_is_of_its_kind(error: str, kind: str) -> None:
    assert classify(error).kind == kind


def test_a_refusal_counts_also_where_the_package_wraps_it_in_an_error_of_its_own() -> None:
    refusal = "module numpy._core._multiarray_umath does not support loading in subinterpreters"
    failure = classify("ModuleNotFoundError: No module named 'x'", WRAPPED.format(refusal=refusal, error="ImportError: see above"))

    assert (failure.kind, failure.module) == (REFUSES_OWN_GIL, "numpy._core._multiarray_umath")
    assert failure.line == f"ImportError: {refusal}"


def test_an_app_that_prints_the_word_is_not_refused() -> None:
    assert classify("ValueError: the fork of subinterpreters is a spoon").kind == UNCLEAR


@pytest.mark.parametrize(
    ("kind", "advice"), [("MAIN_ONLY", "works in no subinterpreter"), ("ONCE", "one installed copy"), ("OWN", '"shared-gil"'), ("", "")]
)
def test_the_hint_says_what_to_do(kind: str, advice: str) -> None:
    said = {
        "MAIN_ONLY": "failed to import from subinterpreter due to exception",
        "ONCE": "cannot load module more than once per process",
        "OWN": "module x does not support loading in subinterpreters",
        "": "some other thing",
    }[kind]

    assert advice in hint(f"ImportError: {said}", "own-gil")


def test_no_one_with_a_shared_gil_is_told_to_share_it() -> None:
    assert hint("ImportError: module x does not support loading in subinterpreters", "shared-gil") == ""
