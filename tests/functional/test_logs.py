"""What the logs say of each mount: whole lines, in the right file, slow requests with their stack, a table at the start."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import shutil
import signal
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gunicorn import glogging
from gunicorn.config import Config

from isowsgi.configuration import crossing
from isowsgi.inside.settings import Settings
from isowsgi.shared import logfiles
from isowsgi.shared.interpreters import best_isolation, can_see_stacks
from tests.apps.chatters import LINES, THREADS
from tests.conftest import APPS, DEADLINE_S, StartServer, eventually, receive_all, running_server
from tests.otherusers import needs_users


def lines_of(text: str, tag: str) -> list[str]:
    """Return what is behind a tag, in the order of the log."""
    return re.findall(rf"^\[.*?\] \[\d+\] \[\w+\] {re.escape(tag)}: (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("isolation", ["auto", "process"])
def test_syslog_and_a_handler_of_logging_handlers_hear_what_an_instance_logs(serve: StartServer, tmp_path: Path, isolation: str) -> None:
    """An instance loads `logging.config` and `logging.handlers` only for such settings."""
    addresses = [tmp_path / "syslog", tmp_path / "other"]
    with contextlib.ExitStack() as stack:
        receivers = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in addresses]
        for receiver, address in zip(receivers, addresses, strict=True):
            receiver.bind(str(address))
            receiver.settimeout(DEADLINE_S)
        handler = {"class": "logging.handlers.SysLogHandler", "address": str(addresses[1]), "socktype": int(socket.SOCK_DGRAM)}
        conf = f"""logconfig_dict = {{
            "handlers": {{"other": {handler!r}}}, "root": {{}},
            "loggers": {{"gunicorn.error": {{"level": "INFO", "handlers": ["other"], "propagate": False, "qualname": "gunicorn.error"}}}},
        }}"""
        app = "import hello\nprint('loaded')\napplication = hello.application\n"
        config = f'[mounts]\n"/" = {{ app = "speaks", isolation = "{isolation}", pythonpath = [".", "{{apps}}"] }}'
        for receiver, arguments, text in (
            (receivers[0], ["--log-syslog", "--log-syslog-to", f"unix://{addresses[0]}#dgram"], ""),
            (receivers[1], [], conf),
        ):
            server = serve(config, *arguments, wait_for=0, files={"gunicorn.conf.py": text, "speaks.py": app})
            while b"/ #1: loaded" not in receiver.recv(4096):
                pass
            assert "cannot be set up" not in server.log() + server.output()


def test_lines_of_eight_threads_in_two_mounts_stay_whole(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = "chatters"\n"/b" = "chatters"', wait_for=2)
    with ThreadPoolExecutor(2) as pool:
        assert [answer.status_code for answer in pool.map(server.get, ["/a", "/b"])] == [200, 200]

    log = server.log()
    for tag in ("/a #1", "/b #1"):
        said = sorted(line.removeprefix("WARNING:root:") for line in lines_of(log, tag) if "line " in line)
        assert said == sorted(f"line {number}.{line} {str(number) * 300}" for number in range(THREADS) for line in range(LINES))


def test_what_an_app_logs_is_one_entry_with_its_level_and_marked_lines(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = "logs"')
    server.get("/a")

    log = server.log()
    [logged] = re.findall(r"\[CRITICAL\] /a #1: no stock\n((?:  \| .*\n)+)", log)
    [printed] = re.findall(r"\[WARNING\] /a #1: Traceback \(most recent call last\):\n((?:  \| .*\n)+)", log)
    assert logged.startswith("  | Traceback (most recent call last):\n")
    assert logged.endswith("  | KeyError: 'sku'\n")
    assert printed.endswith("  | KeyError: 'sku'\n")
    assert "[WARNING] /a #1: to standard error\n" in log


def test_the_log_can_be_json_with_priorities_also_what_gunicorn_says(serve: StartServer) -> None:
    config = '[log]\nformat = "json"\npriorities = true\n[mounts]\n"/a" = "logs"\n"/p" = { app = "operated", isolation = "process" }'
    server = serve(config, wait_for=0)
    server.wait_for_log("serving, loaded", 2)
    server.learn_port()
    server.get("/a")
    server.get("/p/raise")
    server.wait_for_log("LookupError")

    lines = server.log().splitlines()
    entries = [(line[:3], json.loads(line[3:])) for line in lines if line.startswith("<")]
    assert len(lines) - len(entries) <= 3, "what gunicorn says before it has read the config file"
    [(priority, logged)] = [each for each in entries if each[1]["message"] == "no stock"]
    assert (priority, logged["level"], logged["mount"], logged["generation"]) == ("<2>", "critical", "/a", 1)
    assert (logged["stream"], logged["request"]) == ("stderr", "GET /a HTTP/1.1")
    assert logged["traceback"].endswith("KeyError: 'sku'")
    [(priority, raised)] = [each for each in entries if "Error handling request" in each[1]["message"]]
    assert (priority, raised["mount"], raised["stream"], raised["request"]) == ("<3>", "/p", "log", "GET /p/raise HTTP/1.1")
    assert "LookupError" in raised["traceback"]
    assert [entry["mount"] for _, entry in entries if entry["message"].startswith("serving")] in (["/a", "/p"], ["/p", "/a"])


def test_the_access_log_can_name_the_mount(serve: StartServer) -> None:
    server = serve(
        '[mounts]\n"/a" = "hello"\n"api.example.com/v1" = "hello"\n"/e" = "operated"',
        "--access-logfile", "access.log", "--access-logformat", "%({isowsgi.mount}e)s %({isowsgi.generation}e)s %(s)s %(r)s",
        wait_for=3,
    )  # fmt: skip
    server.get("/a/x")
    server.get("/v1/y", headers={"Host": "api.example.com"})
    server.get("/e/raise")
    server.get("/nobody")

    access = server.folder / "access.log"
    eventually(lambda: len(access.read_text().splitlines()) == 4, "four lines in the access log")
    assert sorted(line.removesuffix(" HTTP/1.1") for line in access.read_text().splitlines()) == [
        "- - 404 GET /nobody",
        "/a 1 200 GET /a/x",
        "/e 1 500 GET /e/raise",
        "api.example.com/v1 1 200 GET /v1/y",
    ]


def test_a_mount_may_have_a_log_of_its_own(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = { app = "operated", log = "a.log" }\n"/b" = "operated"', wait_for=2)
    server.get("/a/raise")
    server.get("/b/raise")

    own = (server.folder / "a.log").read_text()
    assert "/a #1: Error handling request GET /a/raise" in own
    assert "LookupError" in own
    assert "/b #1" not in own
    assert "/b #1: Error handling request GET /b/raise" in server.log()
    assert "/a #1: Error" not in server.log()
    assert "/a #1: serving" in server.log(), "what the worker says of a mount stays where all of it is"


def test_usr1_opens_a_mounts_own_log_anew(serve: StartServer) -> None:
    server = serve('[mounts]\n"/a" = { app = "chatters", log = "a.log" }')
    log = server.folder / "a.log"
    log.rename(server.folder / "a.log.1")

    server.send_signal(signal.SIGUSR1)
    eventually(log.exists, "a new file")
    server.get("/a")

    assert len(lines_of(log.read_text(), "/a #1")) == THREADS * LINES
    assert (server.folder / "a.log.1").read_text() == ""


def test_a_mounts_log_that_cannot_be_opened_leaves_its_lines_where_they_were(serve: StartServer, tmp_path: Path) -> None:
    """By a link to nowhere: root is not kept from anything by a file's mode."""
    (tmp_path / "a.log").symlink_to(tmp_path / "gone" / "a.log")
    server = serve(f'[mounts]\n"/a" = {{ app = "operated", log = "{tmp_path}/a.log" }}')
    server.get("/a/raise")

    assert "/a #1: cannot open its log" in server.log()
    assert "/a #1: Error handling request GET /a/raise" in server.log()


@pytest.mark.parametrize("path", ["/spin", "/sleep"])
def test_a_slow_request_is_logged_once_with_its_stack_while_it_runs(serve: StartServer, path: str) -> None:
    server = serve('[mounts]\n"/a" = { app = "operated", slow_request = 0.5, env = { GATE = "gate" } }')
    server.get("/a")
    with server.ask(f"/a{path}") as slow:
        server.wait_for_log(rf"/a #1: slow request, \d\.\d s so far: GET /a{path} HTTP/1.1")
        # A second would come within a quarter of a second of the first: three looks of the thread that watches.
        end = time.monotonic() + 0.8
        eventually(lambda: time.monotonic() > end)
        (server.folder / "gate").touch()
        assert receive_all(slow).endswith(b"ok")

    # Where others compute, the first request, to `/a`, may be a slow one too.
    assert len(re.findall(rf"slow request, .* GET /a{path} ", server.log())) == 1
    assert "operated.py" in server.log() or not can_see_stacks(best_isolation())


def test_statsd_hears_of_each_request_without_an_access_log(serve: StartServer) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(DEADLINE_S)
        config = '[mounts]\n"/" = "hello"\n"/p" = { app = "hello", isolation = "process" }'
        server = serve(config, "--statsd-host", f"127.0.0.1:{statsd.getsockname()[1]}", wait_for=2)
        for path in ("/", "/p"):
            assert server.get(path).status_code == 200
            heard = b""
            while b"gunicorn.request.status.200:" not in heard:
                heard += statsd.recv(65536)


def test_a_table_at_the_start_says_what_serves_where(serve: StartServer) -> None:
    config = """
        [mounts]
        "/a" = "hello"
        "/long/er" = { app = "hello:environ", threads = 2, instances = 2, isolation = "shared-gil" }
        "/lazy" = { app = "hello", lazy = true }
        "/bad" = "crashes_on_import"
    """
    server = serve(config, "--workers", "2", wait_for=6)
    server.wait_for_log("the worker grew by")

    lines = [line for line in server.log().splitlines() if re.search(r"\[INFO\] (mount|/\S+) +\S+ +(state|serving|lazy|failed) ", line)]
    table = [line.partition("[INFO] ")[2] for line in lines]
    assert [line.split()[0] for line in table] == ["mount", "/a", "/long/er", "/lazy", "/bad"], "once, not once for each worker"
    assert len({line.index(word) for line, word in zip(table, ["app", "hello:", "hello:", "hello:", "crashes"], strict=True)}) == 1
    assert re.fullmatch(rf"/a +hello:application +serving +{best_isolation()} +auto.* +4 +\d\.\d\d s +\d+ MiB", table[1])
    assert re.fullmatch(r"/long/er +hello:environ +serving +shared-gil +configured +2 x 2 +\d\.\d\d s +\d+ MiB", table[2])
    assert re.fullmatch(rf"/lazy +hello:application +lazy +{best_isolation()} +auto.* +4 +- +-", table[3])
    assert re.fullmatch(rf"/bad +crashes_on_import:application +failed +{best_isolation()} +auto.* +4 +- +-", table[4])


@needs_users
def test_logs_that_root_opened_are_written_by_the_user_that_gunicorn_becomes(tmp_path: Path) -> None:
    """Also after SIGUSR1. No app was served any more then: each interpreter opened the files by itself, as a user who may not."""
    logs, site = tmp_path / "logs", Path(tempfile.mkdtemp(prefix="isowsgi-logs-"))
    logs.mkdir(0o700)
    config = f"""
        [mounts]
        "/a" = "operated"
        "/own" = {{ app = "operated", isolation = "process" }}
        "/a-log" = {{ app = "operated", log = "{logs}/a.log" }}
        "/own-log" = {{ app = "operated", isolation = "process", log = "{logs}/own.log" }}
        [control]
        enabled = false
    """
    arguments = ["--user", "nobody", "--group", str(grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name), "--umask", "027"]
    arguments += ("--error-logfile", f"{logs}/error.log", "--access-logfile", f"{logs}/access.log")
    cache = Path(tempfile.mkdtemp(prefix="isowsgi-logs-"))
    os.chown(cache, pwd.getpwnam("nobody").pw_uid, -1)
    try:
        site.chmod(0o755)
        shutil.copy(APPS / "operated.py", site)
        arguments += ("--pythonpath", str(site))
        with running_server(site, config, *arguments, wait_for=0, env={"ISOWSGI_CACHE_DIR": str(cache)}) as server:
            server.log_path = logs / "error.log"
            server.wait_until_serving(4)
            [worker] = server.workers()
            for name in ("error.log", "access.log", "a.log", "own.log"):
                (logs / name).rename(logs / f"{name}.1")
            server.send_signal(signal.SIGUSR1)
            server.wait_until_serving(4)

            assert server.workers() != [worker]
            assert "cannot reopen the logs as uid" in (logs / "error.log.1").read_text()
            for mount in ("/a", "/own", "/a-log", "/own-log"):
                server.get(f"{mount}/raise")
            eventually(lambda: (logs / "access.log").read_text().count("/raise HTTP/1.1") == 4, "four lines of the access log")
            for name, mount in (("a.log", "/a-log"), ("own.log", "/own-log")):
                assert f"{mount} #1: Error handling request" in (logs / name).read_text()
            assert all(f"{mount} #1: Error handling request" in server.log() for mount in ("/a", "/own"))
            assert "did not end in time" not in (logs / "error.log.1").read_text()
    finally:
        shutil.rmtree(site)
        shutil.rmtree(cache)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may open what others may not")
def test_root_opens_a_mounts_log_only_where_nobody_else_can_have_put_something(tmp_path: Path) -> None:
    """Else a user would have root append the lines of his app to any file."""
    safe, shared, sticky = tmp_path / "safe", tmp_path / "shared", tmp_path / "sticky"
    for folder, mode in ((safe, 0o755), (shared, 0o775), (sticky, 0o1777)):
        folder.mkdir()
        folder.chmod(mode)
    (sticky / "link").symlink_to(safe)
    os.lchown(sticky / "link", 65534, -1)
    (safe / "link.log").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(safe / "fifo.log")
    (tmp_path / "loop").symlink_to("loop")
    names = ("safe/a.log", "shared/a.log", "sticky/a.log", "sticky/link/b.log", "safe/link.log", "safe/fifo.log", "no/a.log", "loop/a.log")
    held = os.listdir("/proc/self/fd")

    opened = logfiles.open_as_root(str(tmp_path / name) for name in names)

    assert [*opened] == [str(safe / "a.log")]
    assert sorted(os.listdir(safe)) == ["a.log", "fifo.log", "link.log"]
    assert os.listdir(shared) + os.listdir(sticky) == ["link"]
    os.close(opened[str(safe / "a.log")])
    assert os.listdir("/proc/self/fd") == held


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may open what others may not")
def test_root_follows_no_link_that_another_user_could_turn_elsewhere(tmp_path: Path) -> None:
    """Root's link into a user's folder, where the user puts a link to a folder that is root's alone: root made a file there."""
    safe, home = tmp_path / "safe", tmp_path / "home"
    safe.mkdir(0o755)
    home.mkdir(0o755)
    (tmp_path / "into").symlink_to(home / "logs")
    (tmp_path / "good").symlink_to(f"{safe}/../safe/./")
    (home / "logs").symlink_to(safe)
    os.chown(home, 65534, -1)
    opened = logfiles.open_as_root(str(tmp_path / name / f"{name}.log") for name in ("into", "good"))

    assert os.listdir(safe) == ["good.log"]
    for fd in opened.values():
        os.close(fd)


def test_a_logger_that_cannot_be_had_costs_no_mount(tmp_path: Path) -> None:
    """What fails is told once, and gunicorn's own logger takes over."""

    def refuses(cfg: object) -> None:
        raise FileNotFoundError("no syslog here")

    cfg = Settings({**crossing.snapshot(Config()), "errorlog": str(tmp_path / "none" / "error.log")})
    with open(tmp_path / "handed", "wb") as file:
        logger, problems = logfiles.make_logger(refuses, glogging.Logger, cfg, {cfg.errorlog: file.fileno()})
        logger.error("a line")
    for handler in (*logger.error_log.handlers, *logger.access_log.handlers):
        handler.close()
    [problem] = problems
    assert "no syslog here" in problem
    assert "a line" in (tmp_path / "handed").read_text()
    assert cfg.errorlog == str(tmp_path / "none" / "error.log")

    cfg = Settings({**crossing.snapshot(Config()), "accesslog": str(tmp_path / "none" / "access.log")})
    logger, [problem] = logfiles.make_logger(glogging.Logger, glogging.Logger, cfg, {})
    assert problem == f"cannot open '{tmp_path}/none/access.log', so its lines go to standard output"
