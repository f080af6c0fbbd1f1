"""A mount's policy: what its app does to the process is logged with its stack, or refused, and nothing else is touched."""

from __future__ import annotations

import itertools
import os
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from isowsgi.inside.policy import MAX_PLACES
from isowsgi.shared import interpreters, policies
from tests.bystander import again_if_disturbed
from tests.conftest import DEADLINE_S, Server, StartServer, eventually, receive_all, running_server

# A use of each word that changes nothing where it is allowed, with what is told of it. In an interpreter `IN_PROCESS` are refused anyway.
CALLS = [
    ("chdir", "os.chdir(os.getcwd())", r"os\.chdir\('/.*'\)"),
    ("chdir", "os.fchdir(os.open('.', os.O_RDONLY))", r"os\.chdir\(\d+\)"),
    ("umask", "os.umask(0o22)", r"os\.umask\(18\)"),
    ("setlocale", "locale.setlocale(locale.LC_MONETARY, 'C')", r"locale\.setlocale\(\d, 'C'\)"),
    ("setlocale", "locale.textdomain('messages')", r"locale\.textdomain\('messages'\)"),
    ("tzset", "time.tzset()", r"time\.tzset\(\)"),
    ("nice", "os.nice(0)", r"os\.nice\(0\)"),
    ("nice", "os.setpriority(os.PRIO_PROCESS, 0, 0)", r"os\.setpriority\(0, \.\.\.\)"),
    ("setrlimit", "resource.setrlimit(4, resource.getrlimit(4))", r"resource\.setrlimit\(4, \(.*\)\)"),
    ("setrlimit", "resource.prlimit(0, 4, resource.getrlimit(4))", r"resource\.prlimit\(0, 4, \(.*\)\)"),
    ("ids", "os.setegid(os.getegid())", r"os\.setegid\(\d+\)"),
    ("kill", "os.kill(os.getpid(), signal.SIGURG)", r"os\.kill\(\d+, .*\)"),
    ("kill", "signal.raise_signal(signal.SIGURG)", r"signal\.raise_signal\(.*\)"),
    ("kill", "signal.pthread_kill(threading.get_ident(), signal.SIGURG)", r"signal\.pthread_kill\(\d+, .*\)"),
    ("subprocess", "subprocess.run(['true', 'a secret'])", r"subprocess\.Popen\('true', \.\.\.\)"),
    ("subprocess", "os.posix_spawn('/bin/true', ['true', 'a secret'], {})", r"os\.posix_spawn\(.*/bin/true'?, \.\.\.\)"),
    ("subprocess", "os.system('true a secret')", r"(os\.system\(\.\.\.\)|subprocess\.Popen\('/bin/sh', \.\.\.\))"),
    ("subprocess", "spawnv_passfds(b'/bin/true', [b'true', b'a secret'], [])", r"_posixsubprocess\.fork_exec\(\.\.\.\)"),
    ("ctypes", "ctypes.CDLL('libc.so.6')", r"ctypes\.dlopen\('libc\.so\.6'\)"),
    ("ctypes", "ctypes.CDLL(None).getpid()", r"ctypes\.dlsym\('getpid'\)"),
    ("bind", "socket.socket().bind(('127.0.0.1', 0))", r"socket\.bind\(\('127\.0\.0\.1', 0\)\)"),
    ("syslog", "syslog.setlogmask(0xff)", r"syslog\.setlogmask\(255\)"),
    ("setswitchinterval", "sys.setswitchinterval(sys.getswitchinterval())", r"sys\.setswitchinterval\(0\.005\)"),
]
IN_PROCESS = [
    ("fork", "os.fork() or os._exit(0)", r"os\.fork\(\)"),
    ("exec", "os.execv('/none', ['/none'])", r"os\.exec\('/none', \.\.\.\)"),
]
TO_BE_DENIED = [
    ("chdir", "os.chdir('/')", r"os\.chdir\('/'\)"),
    ("umask", "os.umask(0o35)", r"os\.umask\(29\)"),
    ("setlocale", "locale.setlocale(locale.LC_MONETARY, 'C.UTF-8')", r"locale\.setlocale\(\d, 'C\.UTF-8'\)"),
    ("setrlimit", "resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))", r"resource\.setrlimit\(\d+, \(500, 500\)\)"),
    ("kill", "os.kill(os.getpid(), signal.SIGKILL)", r"os\.kill\(\d+, .*\)"),
    ("kill", "os.kill(os.getppid(), signal.SIGTERM)", r"os\.kill\(\d+, .*\)"),
    ("kill", "os.killpg(os.getpgrp(), signal.SIGTERM)", r"os\.killpg\(\d+, .*\)"),
    ("kill", "os.kill(0, signal.SIGTERM)", r"os\.kill\(0, .*\)"),
    ("exit", "os._exit(3)", r"os\._exit\(3\)"),
    ("exit", "os.abort()", r"os\.abort\(\)"),
    ("setswitchinterval", "sys.setswitchinterval(0.5)", r"sys\.setswitchinterval\(0\.5\)"),
]

IMPORTS = (
    "import ctypes, locale, os, resource, signal, socket, subprocess, sys, syslog, threading, time\n"
    "from multiprocessing.util import spawnv_passfds\n"
    "from isowsgi.inside.policy import PolicyError\n"
)

# What the process has one of, and its neighbours would notice.
STATE = """
import locale, os, resource, sys
[umask] = [line for line in open("/proc/self/status") if line.startswith("Umask")]
answer = [os.getpid(), os.getcwd(), umask, locale.setlocale(locale.LC_ALL), resource.getrlimit(resource.RLIMIT_NOFILE)]
answer += [os.getresgid(), sys.getswitchinterval()]
"""

# Each call stands in a line of its own, for a line is logged once.
LINES = itertools.count(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = """
        [mounts]
        "/warn" = { app = "shell", policy = "warn" }
        "/deny" = { app = "shell", policy = "deny" }
        "/own/warn" = { app = "shell", policy = "warn", isolation = "process" }
        "/own/deny" = { app = "shell", policy = "deny", isolation = "process" }
        "/free" = "shell"
        "/places" = { app = "shell", policy = { umask = "deny" }, lazy = true }
        "/starts" = { app = "shell", policy = { kill = "deny" }, lazy = true }
        "/group" = { app = "shell", policy = { chdir = "deny" }, group = "g", lazy = true }
        "/group/other" = { app = "shell", group = "g" }

        [mounts."/forks"]
        app = "shell"
        isolation = "process"
        lazy = true
        policy = { chdir = "deny", umask = "deny", exit = "deny", exec = "deny", ids = "deny" }
        """
    with running_server(tmp_path_factory.mktemp("policy"), config, wait_for=5) as server:
        yield server


def run(server: Server, mount: str, source: str, line: int = 0) -> Any:
    """Run source in a mount's app, so that its first line has at least a certain number."""
    text = "\n" * (line - IMPORTS.count("\n") - 1) + IMPORTS + textwrap.dedent(source)
    response = requests.post(server.url + mount, data=text.encode(), timeout=DEADLINE_S)
    assert response.status_code == 200, server.log()
    return response.json()


def hits(server: Server, mount: str = "") -> list[str]:
    """Return what policies were hit, as the log has it, by a mount or by any."""
    return re.findall(rf"{re.escape(mount)} #\d+: .* policy (\w+) = ", server.log())


def logged(server: Server, mount: str, word: str, line: int) -> list[str]:
    """Return what the log says of a line of a request's code: the call and what became of it."""
    stack = rf'\n(?:  .*\n)*  \|   File "<the request\'s body>", line {line}, in <module>\n'
    return re.findall(rf"\[WARNING\] {mount} #1: (.*): policy {word} = .*(?={stack})", server.log())


def each(*cases: tuple[str, str, str, str]) -> pytest.MarkDecorator:
    """Run a test for each mount, word, call, and expression of what is told of it."""
    return pytest.mark.parametrize(("mount", "word", "call", "told"), cases, ids=[f"{mount}: {call}" for mount, _, call, _ in cases])


@each(*[("/warn", *call) for call in CALLS], *[("/own/warn", *call) for call in [*CALLS, *IN_PROCESS]])
def test_a_call_that_is_warned_of_is_made_and_logged_once_with_its_stack(
    server: Server, mount: str, word: str, call: str, told: str
) -> None:
    line = next(LINES)
    source = f"try: {call}\nexcept FileNotFoundError: pass"

    run(server, mount, source, line)
    run(server, mount, source, line)

    server.wait_for_log(rf"{mount} #1: {told} is called: policy {word} = \"warn\"\n")
    [entry] = logged(server, mount, word, line)
    assert re.fullmatch(f"{told} is called", entry)
    assert "a secret" not in server.log()


@each(*[("/deny", *call) for call in [*CALLS, *TO_BE_DENIED]], *[("/own/deny", *call) for call in [*CALLS, *IN_PROCESS, *TO_BE_DENIED]])
def test_a_call_that_is_denied_is_an_error_in_the_app_and_changes_nothing(
    server: Server, mount: str, word: str, call: str, told: str
) -> None:
    looks = [(neighbour, run(server, neighbour, STATE)) for neighbour in ("/free", "/own/deny")]
    line = next(LINES)
    source = f"""
        try: {call}
        except PolicyError as exc: answer = [str(exc), exc.errno, isinstance(exc, PermissionError)]
        """

    [text, errno, is_permission_error] = run(server, mount, source, line)

    assert re.fullmatch(rf'\[Errno 1\] {mount}: {told} is refused by policy {word} = "deny"; set it to "warn" or "allow" in .*', text)
    assert (errno, is_permission_error) == (1, True)
    [entry] = logged(server, mount, word, line + 1)
    assert re.fullmatch(f"{told} is refused", entry)
    assert looks == [(neighbour, run(server, neighbour, STATE)) for neighbour in ("/free", "/own/deny")]


@pytest.mark.skipif(interpreters.VERSION < (3, 14), reason="InterpreterPoolExecutor is new in 3.14")
@pytest.mark.parametrize("mount", ["/deny", "/own/deny"])
def test_a_mount_with_a_denied_word_makes_no_interpreters(server: Server, mount: str) -> None:
    """Nothing is judged in them: a function that the app was denied changed the process' folder from there."""
    source = """
        from concurrent.futures import InterpreterPoolExecutor
        answer = [os.getcwd()]
        try:
            with InterpreterPoolExecutor(1) as pool:
                pool.submit(os.chdir, "/").result()
        except Exception as exc:
            answer += [type(exc).__name__]
        answer += [os.getcwd()]
        """

    before, _, after = run(server, mount, source)

    assert after == before


def test_every_word_is_tried_here() -> None:
    tried = {word for word, _, _ in [*CALLS, *IN_PROCESS, *TO_BE_DENIED]}

    assert tried == set(policies.WORDS) == {*policies.EVENTS.values(), *policies.FUNCTIONS.values()}


def test_a_neighbours_calls_are_its_own(server: Server) -> None:
    """Audit hooks belong to the interpreter that added them."""
    run(server, "/free", "os.chdir(os.getcwd())\nos.umask(0o22)\nsubprocess.run(['true'])\nctypes.CDLL(None).getpid()")

    assert "/free #1: os" not in server.log()
    assert "/free #1: subprocess" not in server.log()


@pytest.mark.parametrize("mount", ["/deny", "/own/deny"])
def test_what_asks_and_changes_nothing_is_let_through(server: Server, mount: str) -> None:
    source = """
        answer = [locale.setlocale(locale.LC_ALL), resource.prlimit(0, resource.RLIMIT_NOFILE)[0] > 0, os.getpriority(os.PRIO_PROCESS, 0)]
        os.kill(os.getpid(), 0)
        """
    assert run(server, mount, source)[1:] == [True, os.getpriority(os.PRIO_PROCESS, 0)]


def test_the_app_cannot_take_its_policy_back(server: Server) -> None:
    source = """
        import importlib
        sys.addaudithook(lambda *args: None)
        importlib.reload(os)
        importlib.reload(signal)
        for name in [name for name in sys.modules if name.startswith("isowsgi")]:
            del sys.modules[name]
        for attempt in (lambda: os.chdir("/"), lambda: os.umask(0), lambda: signal.raise_signal(signal.SIGTERM)):
            try:
                attempt()
            except PermissionError:
                answer = (answer or 0) + 1
        """
    assert run(server, "/deny", source) == 3


def test_calls_of_many_threads_in_one_line_are_logged_once(server: Server) -> None:
    source = """
        barrier = threading.Barrier(8)
        def work():
            barrier.wait()
            os.umask(0o22)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        """
    line = next(LINES) + 1000
    run(server, "/warn", source, line)

    assert len(re.findall(rf"line {line + 4}, in work\n", server.log())) == 1


def test_a_function_without_a_frame_of_the_apps_is_judged_too(server: Server) -> None:
    run(server, "/warn", "thread = threading.Thread(target=os.umask, args=(0o22,), name='no frame')\nthread.start()\nthread.join()")

    server.wait_for_log(r'/warn #1: os\.umask\(18\) is called: policy umask = "warn"\n  \|   File ".*threading\.py"')


FRAMELESS = """
import atexit, functools, os, threading, weakref
class Thing:
    pass
class Body(list):
    pass
def application(environ, start_response):
    start_response("200 OK", [])
    how = environ["PATH_INFO"][1:]
    if how == "close":
        body = Body()
        body.close = functools.partial(os.chdir, "/")
        return body
    if how == "finalizer":
        environ["test.thing"] = thing = Thing()
        weakref.finalize(thing, os.chdir, "/")
    if how == "atexit":
        atexit.register(os.chdir, "/")
        threading._register_atexit(os.chdir, "/")
    return []
"""


@pytest.mark.parametrize("isolation", ["auto", "process"])
def test_what_isowsgi_calls_for_the_app_is_the_apps_doing(serve: StartServer, isolation: str) -> None:
    """Functions in C have no frame: what called them was isowsgi, on behalf of `close`, a finalizer, or the end of the interpreter."""
    config = f'''
        [mounts]
        "/bad" = {{ app = "bad", policy = "deny", isolation = "{isolation}", pythonpath = "." }}
        "/good" = "shell"
        [defaults]
        pythonpath = "{{apps}}"
        touch = "touched"
        '''
    server = serve(config, files={"bad.py": FRAMELESS}, wait_for=2)
    before = run(server, "/good", STATE)
    refused = r"/bad #1: os\.chdir\('/'\) is refused: policy chdir"

    for number, how in enumerate(("close", "finalizer"), 1):
        requests.get(f"{server.url}/bad/{how}", timeout=DEADLINE_S)
        server.wait_for_log(refused, number)
    requests.get(f"{server.url}/bad/atexit", timeout=DEADLINE_S)
    (server.folder / "touched").touch()
    server.wait_for_log("/bad #1: ended")

    server.wait_for_log(refused, 4)
    assert run(server, "/good", STATE) == before


def test_an_app_with_many_such_lines_fills_neither_memory_nor_log(server: Server) -> None:
    lines = "try: os.umask(0)\nexcept PermissionError: answer = (answer or 0) + 1\n" * (MAX_PLACES + 50)

    assert run(server, "/places", lines) == MAX_PLACES + 50
    assert run(server, "/places", lines) == MAX_PLACES + 50

    assert hits(server, "/places") == ["umask"] * MAX_PLACES
    assert server.log().count(f"/places #1: its policy applied at {MAX_PLACES} places in the code; further places are not logged") == 1


def test_signals_to_processes_that_the_app_started_are_its_own_affair(server: Server) -> None:
    source = """
        process = subprocess.Popen(["sleep", "60"], start_new_session=True)
        process.send_signal(signal.SIGTERM)
        answer = [process.wait()]
        process = subprocess.Popen(["sleep", "60"], start_new_session=True)
        os.kill(process.pid, signal.SIGKILL)
        answer.append(process.wait())
        """
    assert run(server, "/starts", source) == [-15, -9]
    assert not hits(server, "/starts")


def test_what_a_forked_child_does_is_not_judged(server: Server) -> None:
    """It is a process of its own: a daemon-to-be may change its folder and mask, and must be able to leave."""
    source = """
        pid = os.fork()
        if not pid:
            try:
                os.chdir("/"); os.umask(0); os.setsid()
                os.execv("/bin/true", ["true"])
            finally:
                os._exit(7)
        answer = os.waitpid(pid, 0)[1]
        """
    assert run(server, "/forks", source) == 0
    assert not hits(server, "/forks")


@again_if_disturbed
def test_what_isowsgi_does_itself_is_not_judged(serve: StartServer) -> None:
    """It interrupts a request by ctypes, and a process of an app leaves by os._exit."""
    server = serve(
        """
        [defaults]
        policy = "deny"
        request_timeout = 0.5
        touch = "touched"
        [mounts]
        "/a" = "housed"
        "/b" = { app = "housed", isolation = "process" }
        """,
        wait_for=2,
    )
    spinning = [server.ask(f"{mount}/spin") for mount in ("/a", "/b")]
    assert all(receive_all(client).startswith(b"HTTP/1.1 504 ") for client in spinning)
    assert [server.get(mount).json()["generation"] for mount in ("/a", "/b")] == [1, 1]
    for generation in (2, 3):  # a hook goes with its interpreter
        (server.folder / "touched").touch()
        os.utime(server.folder / "touched", (generation, generation))
        server.wait_for_log(rf"/[ab] #{generation}: serving", 2)
        server.wait_for_log(rf"/[ab] #{generation - 1}: ended", 2)
    assert [server.get(mount).json()["generation"] for mount in ("/a", "/b")] == [3, 3]
    assert server.stop() == 0
    assert not hits(server)
    assert "Traceback" not in server.log() + server.output()


def test_the_status_page_lives_with_a_policy(serve: StartServer) -> None:
    server = serve('[defaults]\npolicy = "deny"\n[mounts]\n"/" = { app = "isowsgi.status:application", isolation = "process" }\n')

    assert [server.get(path).status_code for path in ("/", "/status.json", "/metrics", "/live")] == [200] * 4
    assert not hits(server)


def test_an_app_that_does_it_when_it_is_loaded_fails_alone_and_is_not_tried_elsewhere(serve: StartServer) -> None:
    code = "import os\nfrom hello import application\nos.chdir('/')\n"
    server = serve(
        """
        [defaults]
        pythonpath = [".", "{apps}"]
        [mounts]
        "/moves" = { app = "moves", policy = { chdir = "deny" } }
        "/" = "housed"
        """,
        files={"moves.py": code},
    )
    server.wait_for_log(r"/moves #1: cannot load 'moves:application': .*PolicyError: .*os\.chdir\('/'\) is refused by policy chdir")

    assert server.get("/moves").status_code == 503
    assert server.get("/").status_code == 200
    assert "testing which isolation it supports" not in server.log()


def test_an_error_that_the_app_swallows_is_in_the_log(server: Server) -> None:
    run(server, "/group/other", "try: os.chdir('/')\nexcept OSError: pass")

    server.wait_for_log(
        r'g #1: os\.chdir\(\'/\'\) is refused: policy chdir = "deny"\n  \|   File ".*shell\.py", line \d+, in application\n'
    )


def test_a_warning_of_leaving_is_in_the_log_before_the_process_is_gone(server: Server) -> None:
    text = IMPORTS + "os._exit(7)"
    assert requests.post(f"{server.url}/own/warn", data=text, timeout=DEADLINE_S).status_code == 502

    server.wait_for_log(r'/own/warn #1: os\._exit\(7\) is called: policy exit = "warn"')
    eventually(lambda: requests.get(f"{server.url}/own/warn", timeout=DEADLINE_S).status_code == 200, "the next process")
