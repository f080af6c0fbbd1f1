"""What belongs to the process and would end it for all mounts, or tell one app of another: each is refused, ignored or made private."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from isowsgi.shared import interpreters
from tests.apps.slices import slice_ns
from tests.conftest import DEADLINE_S, Server, running_server


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = '[mounts]\n"/" = { app = "shell", env = { NAME = "the mount\'s" } }\n"/slices" = "slices"'
    with running_server(tmp_path_factory.mktemp("shell"), config, env={"NAME": "the process'"}) as server:
        yield server


def answer(server: Server, source: str) -> Any:
    """Run source in the app's interpreter and return what it assigned to `answer`."""
    response = requests.post(server.url, data=source.encode(), timeout=DEADLINE_S)
    assert response.status_code == 200, server.log()
    return response.json()


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        ("os.fork()", "subprocess"),
        ("os.forkpty()", "subprocess"),
        ("os.execv('/bin/true', ['true'])", "subprocess"),
        ("os.execlp('true', 'true')", "subprocess"),
        ("multiprocessing.get_context('fork').Process(target=print).start()", "get_context('spawn')"),
    ],
)
def test_fork_and_exec_are_refused_with_advice(shell: Server, call: str, instead: str) -> None:
    """On 3.11 and 3.12 the child of a fork ended with "Fatal Python error", and an exec replaced the worker."""
    source = f"""
    import os, multiprocessing
    try:
        {call}
    except RuntimeError as exc:
        answer = str(exc)
    """
    assert instead in answer(shell, source)
    assert shell.output() == ""


@pytest.mark.parametrize(
    "call",
    [
        "subprocess.check_output('echo $NAME', shell=True, text=True)",
        "subprocess.check_output(['sh', '-c', 'echo $NAME'], text=True)",
        "subprocess.check_output(['/bin/sh', '-c', 'echo $NAME'], text=True)",
        "subprocess.check_output(['/bin/sh', '-c', 'echo $NAME'], text=True, close_fds=False)",
        "os.popen('echo $NAME').read()",
    ],
)
def test_child_processes_get_the_apps_environment(shell: Server, call: str) -> None:
    """From 3.13 on subprocess starts a program that is named with its folder by posix_spawn, which passed on the process' own."""
    assert answer(shell, f"import os, subprocess\nanswer = {call}") == "the mount's\n"


def test_an_app_never_gets_a_signal_handler_of_gunicorns(shell: Server) -> None:
    """It is an object of the main interpreter: calling it stopped the worker, and its reference count has two GILs."""
    source = """
    import signal
    first = signal.signal(signal.SIGTERM, print)
    answer = [
        first == signal.SIG_DFL,
        signal.getsignal(signal.SIGTERM) is print,
        signal.signal(signal.SIGTERM, signal.SIG_IGN) is print,
        signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        signal.getsignal(signal.SIGHUP) == signal.SIG_DFL,
        signal.signal(signal.SIGRTMIN + 1, print) == signal.SIG_DFL,
    ]
    """
    assert answer(shell, source) == [True] * 6
    assert shell.log().count("signal.signal(SIGTERM) has no effect") == 1


def test_an_apps_timers_do_not_end_the_worker(shell: Server) -> None:
    """Their handlers are not installed, so the signal's default action ended the process."""
    [worker] = shell.workers()
    answer(shell, "import signal\nsignal.alarm(1)\nsignal.setitimer(signal.ITIMER_REAL, 0.5)")
    answer(shell, "import time\ntime.sleep(1.2)")  # the signals would come meanwhile

    assert shell.workers() == [worker]
    for name in ("alarm", "setitimer"):
        assert f"signal.{name} has no effect" in shell.log()


def test_the_limit_on_the_digits_of_an_int_is_the_process(shell: Server) -> None:
    """On 3.11 it was off in every app, and one long number in a request could keep a thread busy for minutes."""
    assert answer(shell, "import sys\nanswer = sys.get_int_max_str_digits()") == sys.get_int_max_str_digits()


def test_threads_that_an_app_starts_are_not_daemons_unless_it_says_so(shell: Server) -> None:
    """They take after the thread that starts them, which was a daemon from 3.13 on and not before."""
    assert answer(shell, "import threading\nanswer = threading.Thread(target=print).daemon") is False


def test_a_working_directory_that_is_deleted_keeps_no_neighbour_from_loading(tmp_path: Path) -> None:
    """A temporary folder of an app's. Its neighbours were 503 from then on, and each try left an interpreter behind."""
    config = """
        [mounts]
        "/bad" = "shell"
        "/auto" = { app = "hello", lazy = true }
        "/shared" = { app = "hello", lazy = true, isolation = "shared-gil" }
        "/own" = { app = "place", lazy = true, isolation = "process" }
        "/script" = { app = "place.wsgi", lazy = true }
        """
    files = {"place.wsgi": "from hello import application\n"}
    with running_server(tmp_path, config, files=files) as server:
        source = "import os, tempfile\nwith tempfile.TemporaryDirectory() as folder: os.chdir(folder)"
        requests.post(f"{server.url}/bad", data=source.encode(), timeout=DEADLINE_S)

        assert [server.get(mount).status_code for mount in ("/shared", "/auto", "/script", "/own")] == [200] * 4
        assert server.get("/own").json()["cwd"] == str(tmp_path)
        assert "cannot load" not in server.log()


def test_who_loads_an_app_gives_way_to_requests_and_nobody_else_does(shell: Server) -> None:
    """A request waited until the slice of a neighbour's import was over, which the kernel saw at its next tick."""
    if not (ordinary := slice_ns()) or interpreters.best_isolation() != interpreters.OWN_GIL:
        pytest.skip("no long slices here")

    loading, started, serving = requests.get(f"{shell.url}/slices", timeout=DEADLINE_S).json()

    assert loading > 10 * ordinary
    assert (started, serving) == (ordinary, ordinary)
