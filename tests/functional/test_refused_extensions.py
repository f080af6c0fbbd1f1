"""An extension module that refuses an interpreter: the log says so, and what to do."""

from __future__ import annotations

import pytest

from isowsgi.shared import interpreters
from tests.conftest import StartServer

# As numpy, PyO3, Cython and mypyc, and CPython say it.
NUMPY = "cannot load module more than once per process"
PYO3 = "PyO3 modules do not yet support subinterpreters, see https://github.com/PyO3/pyo3/issues/576"
CYTHON = "Interpreter change detected - this module can only be loaded into one interpreter per process."
OWN_GIL = "module orjson.orjson does not support loading in subinterpreters"
MAIN_ONLY = "failed to import from subinterpreter due to exception"


def test_the_log_says_what_to_do_also_where_a_package_wraps_the_refusal(serve: StartServer) -> None:
    refusals = {"/numpy": NUMPY, "/pyo3": PYO3, "/cython": CYTHON, "/main": MAIN_ONLY}
    mounts = "\n".join(
        f"'{pattern}' = {{ app = 'refused', isolation = 'shared-gil', env = {{ REFUSAL = '{text}' }} }}"
        for pattern, text in refusals.items()
    )
    server = serve(f"[mounts]\n{mounts}\n'/' = 'hello'")
    server.wait_for_log(r"#1: cannot load", len(refusals))

    for pattern in ("/numpy", "/pyo3", "/cython"):
        assert (
            f"{pattern} #1: cannot load 'refused:application': ImportError: cannot import a required dependency; one installed copy"
            in server.log()
        )
    assert "/main #1: cannot load 'refused:application': ImportError: cannot import a required dependency; an extension" in server.log()


@pytest.mark.skipif(interpreters.own_gil_error() is not None, reason="needs an own GIL")
def test_shared_gil_is_advised_where_an_own_gil_is_refused(serve: StartServer) -> None:
    server = serve(
        f"""
        [mounts]
        "/own" = {{ app = "refused", isolation = "own-gil", env = {{ REFUSAL = "{OWN_GIL}" }} }}
        "/" = "hello"
        """
    )
    server.wait_for_log('/own #1: cannot load .*; set isolation = "shared-gil" for this mount')
