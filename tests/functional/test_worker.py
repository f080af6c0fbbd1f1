"""gunicorn's contract: how a server starts, is reloaded and ends, by its config and by signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.bystander import again_if_disturbed
from tests.conftest import APPS, DEADLINE_S, Server, StartServer, eventually, receive_all, run_gunicorn
from tests.load import Load

# Modules in the server's own folder come first; a test may write them anew.
DEFAULTS = f"[defaults]\npythonpath = ['.', '{APPS}']\n"

TWO_MOUNTS = DEFAULTS + '[mounts]\n"/a" = "hello"\n"/b" = "hello"\n'

FIVE_MISTAKES = """
[mounts]
"/blog" = { app = "blog", threds = 4 }
"/shop" = { app = "shop", threads = 0 }
"/wiki" = { app = "wiki", isolation = "own" }
"/mail" = "mail:"
"news" = "news"
"""

# A module is rewritten faster than the clock of bytecode caches ticks.
NO_CACHE = {"PYTHONDONTWRITEBYTECODE": "1"}


def app_text(answer: str) -> str:
    """Return the source of an app that answers with one word."""
    return f"def application(environ, start_response):\n    start_response('200 OK', [])\n    return [{answer.encode()!r}]\n"


def state_of(pid: int) -> str:
    """Return the kernel's letter for a process' state: "Z" is dead and not reaped, "T" stopped; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    return state_of(pid) not in ("", "Z")


def pending_signals(pid: int) -> set[int]:
    """Return the numbers of signals that were sent to a process and have not reached it."""
    mask = re.search(r"ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    assert mask is not None, "every Linux has it"
    return {number for number in range(1, 65) if int(mask[1], 16) >> (number - 1) & 1}


def is_refused(server: Server) -> bool:
    try:
        server.connect().close()
    except OSError:
        return True
    return False


def read_answer(sock: socket.socket) -> bytes:
    """Return one answer of the app `hello` and leave the connection open."""
    answer = b""
    while not answer.endswith(b"Hello, world\n"):
        data = sock.recv(65536)
        assert data, answer
        answer += data
    return answer


def reload(server: Server, instances: int = 1) -> None:
    """Send SIGHUP; wait until so many instances serve or have failed anew, and no worker of before is left."""
    old = set(server.workers())
    settled = r"#\d+\w?: (?:serving|cannot load)"
    before = len(re.findall(settled, server.log()))
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(settled, before + instances)
    eventually(lambda: (now := set(server.workers())) and not old & now, "the end of the old workers")


# The start.


@pytest.mark.parametrize(
    ("arguments", "app", "place"),
    [
        (["-c", "conf.py"], None, "x.toml"),
        ([], 'isowsgi:config("sub/x.toml")', "sub/x.toml"),
        (["--chdir", "sub"], "x.toml", "sub/x.toml"),
    ],
    ids=["wsgi_app in a conf file", "config()", "relative to chdir"],
)
def test_the_config_file_is_named_in_several_forms(serve: StartServer, arguments: list[str], app: str | None, place: str) -> None:
    text = TWO_MOUNTS
    server = serve("", *arguments, app=app, files={place: text, "conf.py": "wsgi_app = 'x.toml'\n"}, wait_for=2)
    assert server.get("/b").status_code == 200

    (server.folder / place).write_text(text.replace('"/b"', '"/c"'))
    reload(server, 2)
    assert server.get("/c").status_code == 200


@pytest.mark.parametrize(
    "arguments",
    [
        ["isowsgi.toml"],
        ["-c", "conf.py"],
        ["isowsgi:config('isowsgi.toml')"],
        ["--check-config", "isowsgi.toml"],
        ["--check-config", "-c", "conf.py"],
        ["--check-config", "isowsgi:config('isowsgi.toml')"],
    ],
    ids=" ".join,
)
def test_five_mistakes_are_five_lines_and_nothing_starts(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "isowsgi.toml").write_text(FIVE_MISTAKES)
    (tmp_path / "conf.py").write_text("wsgi_app = 'isowsgi.toml'\n")

    ended = run_gunicorn(tmp_path, *arguments)

    assert ended.returncode == 1
    assert re.findall(r"^(?:Error: )?isowsgi\.toml: (.*)$", ended.stdout, re.MULTILINE) == [
        "mounts.\"/blog\".threds: unknown key; did you mean 'threads'?",
        'mounts."/shop".threads: must be 1 to 1024, got 0',
        "mounts.\"/wiki\".isolation: expected one of 'auto', 'own-gil', 'shared-gil', 'process', 'main', got 'own'",
        "mounts.\"/mail\": expected a name or a call with literal arguments after ':', as in create_app(debug=True), got 'mail:'",
        "mounts.news: expected '/news' (a pattern begins with a slash or a host), got 'news'",
    ]
    assert "Traceback" not in ended.stdout
    assert "Booting worker" not in ended.stdout


def test_check_config_and_print_config_accept_a_good_file(tmp_path: Path) -> None:
    (tmp_path / "isowsgi.toml").write_text(TWO_MOUNTS)

    for app in ("isowsgi.toml", 'isowsgi:config("isowsgi.toml")'):
        checked = run_gunicorn(tmp_path, "--check-config", app)
        assert (checked.returncode, checked.stdout) == (0, "")
    printed = run_gunicorn(tmp_path, "--print-config", "isowsgi.toml")
    assert printed.returncode == 0
    assert re.search(r"^worker_class += isowsgi\.Worker$", printed.stdout, re.MULTILINE)


@pytest.mark.parametrize("app", ["hello:application", "isowsgi", "isowsgi:config(1)", "nosuch.toml"])
def test_what_is_no_config_file_is_named_in_a_clear_error(tmp_path: Path, app: str) -> None:
    ended = run_gunicorn(tmp_path, app)

    (line,) = re.findall("^Error: (.*)$", ended.stdout, re.MULTILINE)
    assert app in line
    assert "expected 'isowsgi.toml' or 'isowsgi:config(" in line or "no such file" in line
    assert ended.returncode == 1
    assert "Traceback" not in ended.stdout


def test_gunicorn_ends_with_4_if_no_app_can_be_loaded_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "isowsgi.toml").write_text(DEFAULTS + '[mounts]\n"/a" = "broken"\n"/b" = "nowhere"\n')
    (tmp_path / "broken.py").write_text("raise RuntimeError('broken breaks')\n")

    ended = run_gunicorn(tmp_path, "isowsgi.toml")

    assert ended.returncode == 4
    assert 'broken.py", line 1, in <module>' in ended.stdout
    assert "/a #1: cannot load 'broken:application': RuntimeError: broken breaks" in ended.stdout
    assert "/b #1: cannot load 'nowhere:application': ModuleNotFoundError: No module named 'nowhere'" in ended.stdout
    assert "no mount could be loaded; the log says why" in ended.stdout


def test_a_worker_that_can_load_no_app_at_the_start_does_not_end_the_one_that_can(serve: StartServer) -> None:
    """A database that lets one worker in at a time, say: gunicorn ended with 4, and nobody was served."""
    source = """\
import os
from pathlib import Path

try:
    os.mkdir(Path(__file__).with_name("taken"))
except FileExistsError:
    pass
else:
    raise RuntimeError("the first one fails")
"""
    config = DEFAULTS + '[mounts]\n"/" = { app = "first", isolation = "shared-gil" }\n'
    server = serve(config, "--workers", "2", wait_for=2, files={"first.py": source + app_text("served")})

    assert "no mount could be loaded; all requests" in server.log()
    assert server.get("/").content == b"served"


def test_a_program_changed_by_usr2_that_does_not_start_leaves_the_old_one_serving(serve: StartServer) -> None:
    server = serve(TWO_MOUNTS, wait_for=2)

    (server.folder / "isowsgi.toml").write_text(FIVE_MISTAKES)
    server.send_signal(signal.SIGUSR2)
    eventually(lambda: "unknown key" in server.output(), "the new program's complaint")

    assert server.get("/a").status_code == 200
    assert server.stop() == 0


def test_a_daemon_serves_and_ends_by_its_pidfile(serve: StartServer) -> None:
    server = serve(TWO_MOUNTS, "--daemon", "--pid", "pid", wait_for=0)
    pidfile = server.folder / "pid"
    assert server.process.wait(DEADLINE_S) == 0
    eventually(lambda: server.log().count("#1: serving") == 2, "two mounts that serve")
    master = int(pidfile.read_text())
    try:
        server.wait_until_serving(2)
        assert server.get("/a").status_code == 200
    finally:
        os.kill(master, signal.SIGTERM)
        eventually(lambda: not is_alive(master), "the end of the daemon")
    assert not pidfile.exists()


# The end.


def test_term_under_load_answers_every_request(serve: StartServer) -> None:
    server = serve(TWO_MOUNTS + '"/slow" = "slow"\n', "--graceful-timeout", "600", wait_for=3)  # longer than `stop` waits

    with Load(server.connect, ["/a", "/b"]) as load:
        eventually(lambda: load.answered > 200, "200 answers")
        in_flight = [server.ask("/slow?s=0.5") for _ in range(3)]
        server.wait_for_log("begun", 3)
        code = server.stop()
        answers = [receive_all(sock) for sock in in_flight]

    # Who connects between the last accept and the close of the listener, a few microseconds, is reset by the kernel, under gunicorn's own
    # workers too. Each of the clients can meet that once at most, as the next connection is refused.
    resets = [failure for failure in load.failures if "a new connection: ConnectionResetError" in failure]
    assert load.failures == resets
    assert len(resets) <= 1
    assert load.sent - load.answered <= len(resets)
    assert load.refused > 0  # they went on until nobody listened any more
    assert all(answer.endswith(b"done\n") for answer in answers)
    assert code == 0
    assert "Traceback" not in server.log() + server.output()


def test_connections_that_wait_to_be_accepted_when_term_comes_are_answered(serve: StartServer) -> None:
    """For the client they are connections as any other, and its request is on its way."""
    server = serve(TWO_MOUNTS, wait_for=2)
    (worker,) = server.workers()

    os.kill(worker, signal.SIGSTOP)
    try:
        eventually(lambda: state_of(worker) == "T", "the stop of the worker")
        waiting = [server.ask("/a") for _ in range(20)]
        server.send_signal(signal.SIGTERM)
        eventually(lambda: signal.SIGTERM in pending_signals(worker), "SIGTERM on its way to the worker")
    finally:
        os.kill(worker, signal.SIGCONT)

    assert all(receive_all(sock).startswith(b"HTTP/1.1 200") for sock in waiting)
    assert server.stop() == 0


def test_on_term_idle_connections_are_closed_and_late_requests_told_to_close(serve: StartServer) -> None:
    config = TWO_MOUNTS + '"/sleeps" = { app = "sleeps", env = { GATE = "gate" } }\n'
    server = serve(config, "--keep-alive", "60", wait_for=3)
    idle, late = server.ask("/a", "keep-alive"), server.ask("/a", "keep-alive")
    assert b"Connection: keep-alive" in read_answer(idle)
    assert b"Connection: keep-alive" in read_answer(late)
    server.ask("/sleeps")
    server.wait_for_log("asleep")

    server.send_signal(signal.SIGTERM)
    eventually(lambda: is_refused(server), "the end of the listeners")
    late.sendall(b"GET /b HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert b"Connection: close" in receive_all(late)
    (server.folder / "gate").touch()
    assert receive_all(idle) == b""
    assert server.stop() == 0


@pytest.mark.alone  # an app's exit functions have 0.75 s
@again_if_disturbed
def test_a_request_longer_than_graceful_timeout_is_cut_and_the_worker_ends_by_itself(serve: StartServer) -> None:
    """The other mounts' exit functions still have their time."""
    server = serve(
        DEFAULTS + '[mounts]\n"/slow" = "slow"\n"/exits" = { app = "exits", env = { EXIT_FILE = "exited" } }\n',
        "--graceful-timeout",
        "2",
        wait_for=2,
    )
    stuck = server.ask("/slow?s=600")
    server.wait_for_log("begun")

    assert server.stop() == 0

    assert receive_all(stuck) == b""
    assert "/slow #1: did not end in time" in server.log()
    assert "SIGKILL" not in server.log()
    assert (server.folder / "exited").exists()


@pytest.mark.alone  # gunicorn's master kills 2 s after it said so
@again_if_disturbed
def test_exit_functions_run_and_the_end_is_quick_and_clean(serve: StartServer) -> None:
    """SIGINT goes to the whole process group, as a terminal's Ctrl-C does: the worker gets it twice."""
    config = DEFAULTS + '[mounts]\n"/slow" = "slow"\n"/exits" = { app = "exits", env = { EXIT_FILE = "exited" } }\n'
    servers = {number: serve(config, launcher=["setsid"], wait_for=0) for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)}
    for server in servers.values():
        server.wait_until_serving(2)

    for number, server in servers.items():
        assert server.get("/exits").status_code == 200
        if number != signal.SIGTERM:
            server.ask("/slow?s=600")
            server.wait_for_log("begun")

    for number, server in servers.items():  # most of their ends is waiting, so they end side by side
        if number == signal.SIGINT:
            os.killpg(server.process.pid, number)
        else:
            server.send_signal(number)

    for server in servers.values():
        assert server.process.wait(DEADLINE_S) == 0
        assert (server.folder / "exited").read_text() == "exit function ran\n"
        assert "Traceback" not in server.log() + server.output()
        assert "SIGKILL" not in server.log()


@pytest.mark.alone  # gunicorn's master kills 2 s after it said so
@again_if_disturbed
def test_an_interrupt_ends_a_graceful_stop_that_takes_too_long(serve: StartServer) -> None:
    server = serve(DEFAULTS + '[mounts]\n"/slow" = "slow"\n', "--graceful-timeout", "600")  # longer than `stop` waits
    server.ask("/slow?s=600")
    server.wait_for_log("begun")

    server.send_signal(signal.SIGTERM)
    eventually(lambda: is_refused(server), "the end of the listeners")
    assert server.stop(signal.SIGINT) == 0

    assert "SIGKILL" not in server.log()


@pytest.mark.alone  # the exit functions of all apps together have 0.8 s
@again_if_disturbed
def test_a_second_quit_signal_does_not_cut_the_exit_functions_short(serve: StartServer) -> None:
    """On Ctrl-C a worker gets SIGINT from the terminal and SIGQUIT from its master, in any order and at any distance."""
    server = serve(
        DEFAULTS + '[mounts]\n"/" = { app = "exits", env = { EXIT_FILE = "exited", EXIT_DELAY_S = "0.4" } }\n',
    )
    (worker,) = server.workers()

    os.kill(worker, signal.SIGINT)
    time.sleep(0.25)  # it is about to run the exit functions by now; whether or not, the claim holds
    server.send_signal(signal.SIGQUIT)

    assert server.process.wait(DEADLINE_S) == 0
    assert (server.folder / "exited").read_text() == "exit function ran\n"


def test_a_request_that_waits_for_its_mount_to_boot_when_term_comes_is_answered(serve: StartServer) -> None:
    config = DEFAULTS + '[mounts]\n"/a" = "hello"\n"/gated" = { app = "gated", env = { GATE = "open" } }\n'
    server = serve(config, "--keep-alive", "60")
    waiting = server.ask("/gated", "keep-alive")
    server.wait_for_log("waiting at the gate")
    assert server.get("/a").status_code == 200  # behind the other, so that one has been accepted

    server.send_signal(signal.SIGTERM)
    eventually(lambda: is_refused(server), "the end of the listeners")
    (server.folder / "open").touch()

    answer = receive_all(waiting)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"Connection: close" in answer
    assert server.stop() == 0


def test_workers_leave_when_their_master_was_killed(serve: StartServer) -> None:
    server = serve(TWO_MOUNTS, "--workers", "2", wait_for=4)
    workers = server.workers()

    server.process.kill()
    server.process.wait()

    eventually(lambda: not any(is_alive(pid) for pid in workers), "the end of the workers")
    assert len(re.findall("Parent changed", server.log())) == 2


def test_a_mount_that_never_finishes_its_import_keeps_nobody_from_serving_or_stopping(serve: StartServer) -> None:
    config = DEFAULTS + '[mounts]\n"/a" = "hello"\n"/never" = { app = "gated", env = { GATE = "never" } }\n'
    for workers in ("1", "2"):
        server = serve(config, "--workers", workers, "--graceful-timeout", "600", wait_for=int(workers))
        server.wait_for_log("waiting at the gate", int(workers))

        assert server.get("/a").status_code == 200
        assert server.stop() == 0  # it waits less than graceful_timeout


# Reload, and other changes of the set of workers.


@pytest.mark.parametrize("workers", [1, 2])
def test_hup_under_load_fails_no_request(serve: StartServer, workers: int) -> None:
    server = serve(TWO_MOUNTS, "--workers", str(workers), wait_for=2 * workers)

    with (
        Load(server.connect, ["/a", "/b"], clients=3) as kept_alive,
        Load(server.connect, ["/a", "/b"], clients=2, keep_alive=False) as fresh,
    ):
        reload(server, 2 * workers)
        reload(server, 2 * workers)
        server.send_signal(signal.SIGHUP)  # and on top of each other, while workers still load their apps
        server.wait_for_log("Hang up", 3)
        reload(server, 2 * workers)
        after = kept_alive.answered + fresh.answered
        eventually(lambda: kept_alive.answered + fresh.answered > after + 100, "100 more answers")

    assert kept_alive.failures == []
    assert fresh.failures == []
    assert kept_alive.refused == fresh.refused == 0
    assert "SIGKILL" not in server.log()


def test_hup_brings_new_mounts_settings_and_code_into_force(serve: StartServer) -> None:
    server = serve(
        DEFAULTS + '[mounts]\n"/a" = "version"\n"/place" = "place"\n',
        env=NO_CACHE,
        files={"version.py": app_text("first"), "gunicorn.conf.py": "threads = 2\nraw_env = ['COLOUR=red']\n"},
        wait_for=2,
    )
    assert server.get("/a").text == "first"
    place = server.get("/place").json()
    assert (place["threads"], place["env"]["COLOUR"]) == (2, "red")

    (server.folder / "version.py").write_text(app_text("second"))
    (server.folder / "gunicorn.conf.py").write_text("threads = 3\nraw_env = ['COLOUR=blue']\n")
    (server.folder / "isowsgi.toml").write_text(DEFAULTS + '[mounts]\n"/b" = "version"\n"/place" = "place"\n')
    reload(server, 2)

    assert server.get("/a").status_code == 404
    assert server.get("/b").text == "second"
    place = server.get("/place").json()
    assert (place["threads"], place["env"]["COLOUR"]) == (3, "blue")


def test_a_broken_config_file_on_hup_keeps_the_last_good_one(serve: StartServer) -> None:
    server = serve(TWO_MOUNTS, wait_for=2)

    (server.folder / "isowsgi.toml").write_text(FIVE_MISTAKES)
    reload(server, 2)

    faults = re.findall(r"^\[[^]]+\] \[\d+\] \[ERROR\] (.*isowsgi\.toml: .*)$", server.log(), re.MULTILINE)
    assert len(faults) == 5
    assert "keeping the previous mounts" in server.log()
    assert server.get("/a").status_code == server.get("/b").status_code == 200

    (server.folder / "isowsgi.toml").write_text(DEFAULTS + '[mounts]\n"/c" = "hello"\n')
    reload(server)

    assert server.get("/c").status_code == 200
    assert server.get("/a").status_code == 404


def test_a_reload_lives_with_apps_that_break_and_the_next_one_heals_them(serve: StartServer) -> None:
    """Even if all of them break, and although more workers start than there were: a worker that exits with 4 would stop gunicorn."""
    config = DEFAULTS + '[mounts]\n"/a" = "first"\n"/b" = "second"\n'
    good = {"first.py": app_text("first"), "second.py": app_text("second"), "gunicorn.conf.py": "workers = 1\n"}
    server = serve(config, env=NO_CACHE, files=good, wait_for=2)

    (server.folder / "first.py").write_text("raise RuntimeError('first breaks')\n")
    reload(server, 2)
    assert server.get("/a").status_code == 503
    assert server.get("/b").text == "second"

    (server.folder / "second.py").write_text("import nowhere\n")
    (server.folder / "gunicorn.conf.py").write_text("workers = 4\n")
    reload(server, 8)
    assert server.get("/a").status_code == server.get("/b").status_code == 503
    assert "RuntimeError: first breaks" in server.log()
    assert "No module named 'nowhere'" in server.log()

    for name, text in good.items():
        (server.folder / name).write_text(text)
    reload(server, 2)
    assert server.get("/a").text == "first"
    assert server.get("/b").text == "second"


def test_refused_settings_on_hup_are_named_and_the_server_stays_up(serve: StartServer) -> None:
    """What could not be passed on to the apps' interpreters ended the worker with exit code 3, and so all of gunicorn."""
    server = serve(TWO_MOUNTS, files={"gunicorn.conf.py": "timeout = 30\n"}, wait_for=2)

    (server.folder / "gunicorn.conf.py").write_text("protocol = 'uwsgi'\nsecure_scheme_headers = {'X-FORWARDED-PROTO': {'https'}}\n")
    reload(server, 2)

    assert "gunicorn setting protocol: refused" in server.log()
    assert "gunicorn setting secure_scheme_headers['X-FORWARDED-PROTO']: must be text" in server.log()
    assert server.get("/a").status_code == 200


def test_ttin_and_ttou_change_the_number_of_workers(serve: StartServer) -> None:
    server = serve(TWO_MOUNTS, wait_for=2)

    server.send_signal(signal.SIGTTIN)
    server.wait_for_log("#1: serving", 4)
    assert len(server.workers()) == 2

    server.send_signal(signal.SIGTTOU)
    eventually(lambda: len(server.workers()) == 1, "the end of one worker")
    assert server.get("/a").status_code == 200


def test_usr2_and_term_to_the_old_master_change_the_program_without_a_failed_request(serve: StartServer) -> None:
    server = serve(TWO_MOUNTS, "--pid", "pid", wait_for=2)
    new_master = 0
    try:
        with (
            Load(server.connect, ["/a", "/b"], clients=3) as kept_alive,
            Load(server.connect, ["/a", "/b"], clients=2, keep_alive=False) as fresh,
        ):
            server.send_signal(signal.SIGUSR2)
            server.wait_for_log("#1: serving", 4)
            new_master = int((server.folder / "pid.2").read_text())
            assert server.stop() == 0

            eventually(lambda: "promoted" in server.log(), "the promotion of the new master")
            after = kept_alive.answered + fresh.answered
            eventually(lambda: kept_alive.answered + fresh.answered > after + 100, "100 more answers")

        assert kept_alive.failures == []
        assert fresh.failures == []
        assert kept_alive.refused == fresh.refused == 0
        assert int((server.folder / "pid").read_text()) == new_master
    finally:
        if new_master:
            os.kill(new_master, signal.SIGTERM)
            eventually(lambda: not is_alive(new_master), "the end of the new master")
