"""`isowsgi apply`: one app is added, changed or removed while all others go on, in all workers or in none."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import requests

from isowsgi import configuration
from isowsgi.cli import client
from isowsgi.configuration import stored
from isowsgi.shared import controlmessages, sockets
from isowsgi.shared.controlmessages import Error
from isowsgi.shared.sockets import Place
from tests.certificates import Authority
from tests.command import call
from tests.conftest import DEADLINE_S, Server, StartServer, eventually, running_server, whole_only
from tests.load import PAUSE_S

TELLS = """
import os
import time
def application(environ, start_response):
    while environ["PATH_INFO"] == "/hangs":
        time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    said = (environ["isowsgi.mount"], environ["isowsgi.generation"], os.environ.get("KEY"), environ["wsgi.url_scheme"] and os.getpid())
    return [" ".join(map(str, said)).encode()]
"""
ONCE = (
    TELLS
    + """
os.close(os.open(os.path.join(os.path.dirname(__file__), "was-loaded"), os.O_CREAT | os.O_EXCL))  # fails in all workers but the first
"""
)
FILES = {"tells.py": TELLS, "broken.py": "raise RuntimeError('broken on purpose')\n", "once.py": ONCE}
CONFIG = """
[control]
folder = "control"
[mounts]
"/stays" = "tells"
"/changes" = { app = "tells", env = { KEY = "old" } }
"/goes" = { app = "tells", lazy = true }
"""
GOES = '"/goes" = { app = "tells", lazy = true }'
AWAKE = '"/goes" = "tells"'


def start(serve: StartServer, workers: int = 2, goes: str = GOES) -> Server:
    loaded = 3 if goes == AWAKE else 2
    return serve(CONFIG.replace(GOES, goes), "--workers", str(workers), files=FILES, wait_for=loaded * workers)


def edit(server: Server, *changes: tuple[str, str]) -> None:
    path: Path = server.folder / "isowsgi.toml"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def apply(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    return call(server.folder, "apply", *options)


def told(server: Server, path: str) -> list[str]:
    """Return the mount, its generation and KEY."""
    answer = server.get(path)
    return answer.text.split()[:3] if answer.status_code == 200 else [str(answer.status_code)]


def places(server: Server) -> list[Place]:
    """Return the workers' sockets, also if the config file is broken."""
    folder = str(server.folder / "control")
    folder_fd = sockets.open_folder(folder)
    try:
        return list(sockets.places(folder, folder_fd))
    finally:
        os.close(folder_fd)


def in_every_worker(server: Server, path: str, expected: list[str]) -> None:
    """Wait until each worker answers so, or has no such mount; connections go to any of them."""

    def agree() -> bool:
        if expected == ["404"]:
            answers = client.ask(places(server), controlmessages.Table(), DEADLINE_S)
            tables = [each.answer for each in answers if not isinstance(each.answer, Error)]
            return len(tables) == len(server.workers()) and all(path not in {mount.mount for mount in table.mounts} for table in tables)
        pids = set()
        for _ in range(100):
            said = server.get(path).text.split()
            if said[:3] != expected:
                return False
            pids.add(said[-1])
            if len(pids) == len(server.workers()):
                return True
        return False

    eventually(agree, f"{expected} from every worker")
    assert told(server, path) == expected


class Users:
    """Ask some paths all the time, each on a connection that is kept."""

    def __init__(self, server: Server, *paths: str) -> None:
        self.answered, self.lost = 0, list[str]()
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(f"{server.url}{path}",)) for path in paths]
        for thread in self._threads:
            thread.start()

    def _ask(self, url: str) -> None:
        with requests.Session() as session:
            while not self._ends.wait(PAUSE_S):
                try:
                    answer = session.get(url, timeout=DEADLINE_S)
                    self.answered += 1
                    if answer.status_code != 200:
                        self.lost.append(f"{url}: {answer.status_code}")
                except requests.RequestException as exc:
                    self.lost.append(f"{url}: {exc}")

    def __enter__(self) -> Users:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()


def test_what_is_new_changed_and_gone_is_taken_up_and_nobody_loses_a_request(serve: StartServer) -> None:
    server = start(serve, goes=AWAKE)
    workers = server.workers()
    with Users(server, "/stays", "/changes") as users, requests.Session() as kept:
        assert kept.get(f"{server.url}/stays/new").text.startswith("/stays 1 ")
        edit(server, (AWAKE, '"/stays/new" = "tells"'), ('"old"', '"new"'))

        shown = apply(server)

        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.endswith("1 new, 1 changed, 1 gone\napplied in 2 of 2 workers\n")
        in_every_worker(server, "/changes", ["/changes", "2", "new"])
        in_every_worker(server, "/goes", ["404"])
        in_every_worker(server, "/stays", ["/stays", "1", "None"])
        # The instance that has this connection is told that such a request is not its own any more.
        eventually(lambda: kept.get(f"{server.url}/stays/new").text.startswith("/stays/new 1 "))

    assert users.answered > 0
    assert users.lost == []
    assert server.workers() == workers
    server.wait_for_log("table applied, 3 mounts: new: /stays/new; changed: /changes; gone: /goes", 2)
    server.wait_for_log("/goes #1: ended", 2)
    assert apply(server).stdout == "no difference: what runs is what the config file says\n"


def test_one_app_that_cannot_be_loaded_changes_nothing(serve: StartServer) -> None:
    server = start(serve, goes=AWAKE)
    edit(server, (AWAKE, '"/goes" = "broken"'), ('"old"', '"new"'))

    shown = apply(server)

    assert shown.returncode == 1
    assert "/goes #2: RuntimeError: broken on purpose" in shown.stderr
    assert "Traceback (most recent call last):" in shown.stderr
    assert shown.stderr.endswith("isowsgi: nothing was changed: not every worker could load what is new\n")
    for path, expected in (("/goes", ["/goes", "1", "None"]), ("/changes", ["/changes", "1", "old"])):
        in_every_worker(server, path, expected)
    assert "answers 503" not in server.log()


@whole_only("takes 6 s of CPU time")
def test_to_keep_going_takes_what_can_be_loaded_in_all_workers_and_leaves_the_rest_as_it_was(serve: StartServer) -> None:
    server = start(serve, goes=AWAKE)
    edit(server, (AWAKE, '"/goes" = "broken"\n"/once" = "once"\n"/new" = "tells"'), ('"old"', '"new"'))
    expected = {
        "/goes": ["/goes", "1", "None"], "/changes": ["/changes", "2", "new"], "/once": ["404"], "/new": ["/new", "1", "None"],
        "/stays": ["/stays", "1", "None"],
    }  # fmt: skip

    shown = apply(server, "--keep-going")

    assert shown.returncode == 1
    assert "/goes #2: RuntimeError: broken on purpose" in shown.stderr
    assert shown.stderr.count("Traceback (most recent call last):") == 2
    assert "/once #1: FileExistsError" in shown.stderr, "it could be loaded in one of them"
    assert shown.stderr.endswith("isowsgi: as before, in all workers: /goes, /once\n")
    assert shown.stdout.endswith("applied in 2 of 2 workers\n")
    for path, said in expected.items():
        in_every_worker(server, path, said)

    (server.folder / "was-loaded").unlink()
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait_for_log("/changes #1: serving", 3)
    for path in ("/goes", "/once", "/new"):
        in_every_worker(server, path, expected[path])

    shown = apply(server, "--keep-going")
    assert shown.returncode == 1
    assert "1 new, 1 changed\n" in shown.stdout, "what failed is tried again"
    assert shown.stderr.endswith("isowsgi: nothing was changed: nothing that is new can be loaded\n")


def test_settings_that_need_no_new_app_keep_generation_connections_and_counters(serve: StartServer) -> None:
    server = serve(CONFIG + '"/child" = { app = "tells", isolation = "process" }\n', files=FILES, wait_for=3)
    before = (server.get("/changes").text, server.get("/child").text)
    log = server.log()
    with requests.Session() as kept:
        assert kept.get(f"{server.url}/stays").ok
        limits = "request_timeout = 0.3, queue = 7"
        edit(
            server,
            ('"/stays" = "tells"', '"/stays" = { app = "tells", max_age = 3600 }'),
            ('env = { KEY = "old" }', f'env = {{ KEY = "old" }}, {limits}'),
            ('isolation = "process"', f'isolation = "process", {limits}'),
        )

        shown = apply(server)

        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.startswith("~ /stays  in place\n    max_age  (default) -> 3600.0\n")
        assert [server.get(path).status_code for path in ("/changes/hangs", "/child/hangs")] == [504, 504], "the new limit counts"
        # On a busy machine any request may take longer than that.
        eventually(lambda: (server.get("/changes").text, server.get("/child").text) == before, "the same generations")
        assert kept.get(f"{server.url}/stays").ok
    server.wait_for_log("table applied, 4 mounts: in place: /stays, /changes, /child")
    assert server.log().count(": serving") == log.count(": serving")


@whole_only("workers that differ are shown by a command that is killed at the switch")
def test_a_worker_that_does_without_something_else_than_who_decided_takes_up_the_decision(serve: StartServer) -> None:
    """As if another program told each worker something else: one table serves in the end, in all of them."""
    server = start(serve)
    edit(server, (GOES, '"/new" = "tells"'), ('"old"', '"new"'))
    command = Command(server)
    assert command.prepare() == ["prepared", "prepared"]

    assert command.switch(command.places[:1], without=["/new"]) == ["applied"]
    command.switch(command.places[1:])

    in_every_worker(server, "/new", ["404"])
    in_every_worker(server, "/changes", ["/changes", "2", "new"])


def test_a_worker_that_begins_later_serves_what_was_applied_even_if_the_file_is_broken_since(serve: StartServer) -> None:
    server = start(serve)
    edit(server, ('"old"', '"new"'), (GOES + "\n", ""))
    assert apply(server).returncode == 0
    (server.folder / "isowsgi.toml").write_text("[broken")

    [victim, survivor] = server.workers()
    os.kill(victim, signal.SIGKILL)
    server.wait_for_log("/changes #1: serving", 3)

    eventually(lambda: len(set(server.workers()) - {victim, survivor}) == 1)
    eventually(lambda: {told(server, "/changes")[2] for _ in range(20)} == {"new"})
    in_every_worker(server, "/goes", ["404"])


def test_a_reload_of_gunicorn_takes_up_the_file_again(serve: StartServer) -> None:
    server = start(serve, workers=1)
    edit(server, ('"old"', '"new"'))
    assert apply(server).returncode == 0
    edit(server, ('"new"', '"newest"'))

    server.process.send_signal(signal.SIGHUP)

    in_every_worker(server, "/changes", ["/changes", "1", "newest"])
    edit(server, ('"newest"', '"last"'))
    assert apply(server).returncode == 0
    in_every_worker(server, "/changes", ["/changes", "2", "last"])


def test_what_only_sighup_can_apply_is_named_and_or_reload_sends_it(serve: StartServer) -> None:
    conf = "graceful_timeout = 5\n"
    server = serve(CONFIG, "--config", "conf.py", files={**FILES, "conf.py": conf}, wait_for=2)
    [worker] = server.workers()
    assert apply(server, "--or-reload").stdout == "no difference: what runs is what the config file says\n"
    (server.folder / "conf.py").write_text(conf + "graceful_timeout = 6\n")
    edit(server, ('"old"', '"new"'))

    shown = apply(server)

    assert (shown.returncode, shown.stderr) == (
        1, "gunicorn's own settings file has changed, which only SIGHUP applies: isowsgi apply --or-reload\n",
    )  # fmt: skip
    assert told(server, "/changes") == ["/changes", "2", "new"]
    assert server.workers() == [worker]
    assert apply(server).returncode == 1, "it still is not applied"

    (server.folder / "conf.py").write_text("graceful_timeout = (\n")
    shown = apply(server, "--or-reload")
    assert shown.returncode == 1
    assert f"nothing was changed: gunicorn would end at SIGHUP: {server.folder}/conf.py: line 1: '(' was never closed" in shown.stderr
    (server.folder / "conf.py").write_text(conf + "graceful_timeout = 6\n")

    shown = apply(server, "--or-reload", "--master", str(server.process.pid))

    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"~ {server.folder}/conf.py  needs SIGHUP to gunicorn\n" in shown.stdout
    assert f"sent SIGHUP to gunicorn {server.process.pid}: " in shown.stdout
    eventually(lambda: server.workers() not in ([], [worker]) and len(server.workers()) == 1)
    in_every_worker(server, "/changes", ["/changes", "1", "new"])
    edit(server, ("[control]", "[control]\nenabled = false"))
    assert apply(server).returncode == 1
    [worker] = server.workers()
    assert "sent SIGHUP" in apply(server, "--or-reload").stdout
    server.wait_for_log("/changes #1: serving", 3)
    eventually(lambda: places(server) == [] and server.workers() not in ([], [worker]))

    shown = apply(server, "--or-reload", "--master", str(server.process.pid))

    assert (shown.returncode, shown.stdout.count("sent SIGHUP")) == (0, 1), "it is gunicorn, although no worker can be asked"
    server.wait_for_log("/changes #1: serving", 4)


def subject(server: Server) -> str:
    """Return whose certificate a client gets who comes now."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as sock, context.wrap_socket(sock) as tls:
        found = tls.getpeercert(binary_form=True)
    assert found is not None
    return next(name for name in ("first", "second", "third") if name.encode() in found)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_a_renewed_certificate_is_taken_up_and_no_app_is_touched(serve: StartServer, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pairs = {name: authority.sign("server", f"/CN={name}", name) for name in ("first", "second", "third")}
    used = tmp_path / "used.pem", tmp_path / "used.key"

    def renew(certificate: str, key: str) -> None:
        for path, source in zip(used, (pairs[certificate][0], pairs[key][1]), strict=True):
            shutil.copy(source, path)

    def all_serve(server: Server, name: str) -> None:
        eventually(lambda: {subject(server) for _ in range(8)} == {name}, f"{name} from all workers")

    renew("first", "first")
    server = serve(CONFIG, "--workers", "2", "--certfile", str(used[0]), "--keyfile", str(used[1]), files=FILES, wait_for=4)
    boots = server.log().count(": serving")
    assert apply(server).stdout == "no difference: what runs is what the config file says\n"
    renew("second", "second")

    shown = apply(server)

    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == f"~ certificate {used[0]}  in place\n1 changed\napplied in 2 of 2 workers\n"
    all_serve(server, "second")
    renew("third", "second")
    edit(server, (GOES + "\n", ""))

    shown = apply(server)

    assert shown.returncode == 1
    assert f"{used[0]}: renewed, but it cannot be used with its key {used[1]}: " in shown.stderr
    assert shown.stdout.endswith("1 gone\napplied in 2 of 2 workers\n"), "the rest is applied"
    assert server.log().count(": serving") == boots

    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait_for_log(": serving", boots + 2)
    eventually(lambda: len(server.workers()) == 2)
    all_serve(server, "second")
    renew("third", "third")
    server.process.send_signal(signal.SIGHUP)
    all_serve(server, "third")
    renew("first", "first")
    assert apply(server).returncode == 0
    all_serve(server, "first")
    renew("third", "third")
    server.process.send_signal(signal.SIGHUP)
    all_serve(server, "third")  # SIGHUP takes back what was applied, although the master had read the same before


class Command:
    """What `isowsgi apply` says to the workers, step by step."""

    def __init__(self, server: Server) -> None:
        self.places = client.find(str(server.folder / "isowsgi.toml"), None)
        self.serial = secrets.token_hex(8)
        self._config = stored.plain(configuration.load(server.folder / "isowsgi.toml"))

    def prepare(self, places: list[Any] | None = None) -> list[str]:
        return self._ask(controlmessages.Prepare(serial=self.serial, config=self._config), places)

    def switch(self, places: list[Any] | None = None, without: Sequence[str] = ()) -> list[str]:
        return self._ask(controlmessages.Switch(serial=self.serial, without=list(without)), places)

    def drop(self) -> list[str]:
        return self._ask(controlmessages.Drop(serial=self.serial), None)

    def _ask(self, request: Any, places: list[Any] | None) -> list[str]:
        answers = client.ask(self.places if places is None else places, request, DEADLINE_S)
        return [each.answer.kind if isinstance(each.answer, Error) else each.answer.outcome for each in answers]


@pytest.fixture
def server(serve: StartServer) -> Server:
    server = start(serve)
    edit(server, ('"old"', '"new"'), (GOES + "\n", ""))
    return server


def test_a_command_that_is_killed_at_the_switch_leaves_no_half_table(server: Server) -> None:
    command = Command(server)
    assert command.prepare() == ["prepared", "prepared"]

    assert command.switch(command.places[:1]) == ["applied"]

    in_every_worker(server, "/changes", ["/changes", "2", "new"])
    in_every_worker(server, "/goes", ["404"])
    assert command.switch() == ["applied", "applied"], "saying so again does no harm"


@whole_only("workers that differ are shown by a command that is killed at the switch")
def test_a_worker_that_was_never_asked_follows_the_others(server: Server) -> None:
    command = Command(server)
    assert command.prepare(command.places[:1]) == ["prepared"]
    assert command.switch(command.places[:1]) == ["applied"]

    in_every_worker(server, "/changes", ["/changes", "2", "new"])
    in_every_worker(server, "/goes", ["404"])


def test_of_two_who_apply_at_the_same_time_one_is_told_to_try_again(server: Server) -> None:
    first, second = Command(server), Command(server)
    assert first.prepare() == ["prepared", "prepared"]
    assert second.prepare() == ["busy", "busy"]
    assert second.switch() == ["not-prepared", "not-prepared"]
    assert first.drop() == ["dropped", "dropped"]
    assert told(server, "/changes") == ["/changes", "1", "old"]

    assert second.prepare(second.places[:1]) == ["prepared"]
    assert first.prepare(first.places[1:]) == ["prepared"]
    assert second.switch(second.places[:1]) == ["applied"]
    assert first.switch(first.places[1:]) in (["outvoted"], ["not-prepared"]), "or it has followed already"
    in_every_worker(server, "/changes", ["/changes", "2", "new"])


def test_what_only_a_new_worker_can_do_is_said(server: Server) -> None:
    edit(server, ("[mounts]", '[mounts]\n"/main" = { app = "tells", isolation = "main" }'))

    shown = apply(server)

    assert shown.returncode == 1
    assert "/main: only a new worker can load an app in the main interpreter; send SIGHUP to gunicorn to apply this file" in shown.stderr
    assert told(server, "/changes") == ["/changes", "1", "old"]


SITES = 'include = "sites.d/*.toml"\n[defaults]\npythonpath = ["."]\n' + CONFIG
SITE = '[defaults]\npythonpath = [".."]\n[mounts]\n"/site" = "tells"\n'


def test_a_file_of_its_own_for_a_site_comes_breaks_and_goes(serve: StartServer, tmp_path: Path) -> None:
    server = serve(SITES, files={**FILES, "sites.d/.keep": ""}, wait_for=2)
    site = server.folder / "sites.d/site.toml"
    site.write_text(SITE)
    assert apply(server).returncode == 0
    assert told(server, "/site") == ["/site", "1", "None"]

    site.write_text(SITE.replace("[mounts]", "[mounts"))
    edit(server, ('"old"', '"new"'))
    shown = apply(server)

    assert shown.returncode == 1
    assert f"{site}: line 3, column 8: not valid TOML" in shown.stderr
    assert told(server, "/site") == ["/site", "1", "None"], "as it was"
    assert told(server, "/changes") == ["/changes", "2", "new"], "the others are applied"

    site.write_text(SITE.replace("tells", "tells:nothing_such") + '"/more" = { app = "tells", odd = 1 }\n')
    assert apply(server).returncode == 1
    assert told(server, "/site") == ["/site", "1", "None"]
    assert told(server, "/more") == ["503"]

    site.unlink()
    assert apply(server).returncode == 0
    assert told(server, "/site") == ["404"]
    assert told(server, "/more") == ["404"]


def test_a_start_with_a_faulty_site_serves_the_others(serve: StartServer) -> None:
    server = serve(SITES, files={**FILES, "sites.d/site.toml": SITE.replace('"tells"', '{ app = "tells", odd = 1 }')}, wait_for=2)

    assert told(server, "/site") == ["503"]
    assert told(server, "/stays") == ["/stays", "1", "None"]
    server.wait_for_log('/site: its config file has a fault, so it answers 503: sites.d/site.toml: mounts."/site".odd: unknown key')


def test_the_patterns_of_a_file_that_is_no_toml_outlive_a_restart(tmp_path: Path) -> None:
    """The site's requests went to the mount that matches next."""
    sites = SITES + '"/" = "tells"\n'
    files, env = {**FILES, "sites.d/.keep": ""}, {"ISOWSGI_CACHE_DIR": str(tmp_path / "cache")}
    with running_server(tmp_path, sites, files=files, env=env, wait_for=3) as server:
        (server.folder / "sites.d/site.toml").write_text(SITE)
        assert apply(server).returncode == 0
        assert told(server, "/site") == ["/site", "1", "None"]
    server.log_path.unlink()
    with running_server(
        tmp_path, sites, files={**files, "sites.d/site.toml": SITE.replace("[mounts]", "[mounts")}, env=env, wait_for=3
    ) as server:
        assert told(server, "/site") == ["503"]
        assert told(server, "/elsewhere")[0] == "/"
        server.wait_for_log("/site: its config file has a fault, so it answers 503: sites.d/site.toml: line 3")


def test_files_that_come_change_and_go_are_applied_by_themselves(serve: StartServer) -> None:
    """By one worker for all, whichever lives."""
    watched = SITES.replace("[control]", "[control]\nwatch = true")
    server = serve(watched, "--workers", "2", files={**FILES, "sites.d/.keep": ""}, wait_for=4)
    site = server.folder / "sites.d/site.toml"

    site.write_text(SITE)
    in_every_worker(server, "/site", ["/site", "1", "None"])
    server.wait_for_log("the changed config files were applied:\n.*/site")

    site.write_text(SITE.replace('"tells"', '"broken"'))
    server.wait_for_log(
        r"the changed config files were not applied, or not wholly; exit code 1:\n(?:.*\n)*?.*RuntimeError: broken on purpose"
    )
    assert told(server, "/site") == ["/site", "1", "None"]

    for victim in server.workers():
        os.kill(victim, signal.SIGKILL)
        server.wait_for_log(rf"{victim}.*SIGKILL")
        eventually(lambda: len(server.workers()) == 2)
    site.unlink()
    in_every_worker(server, "/site", ["404"])


def test_an_app_that_ends_its_process_at_import_costs_one_worker_once(serve: StartServer) -> None:
    """It ended all workers; and with `watch` each one that came after them."""
    server = serve(SITES, "--workers", "2", files={**FILES, "sites.d/.keep": "", "deadly.py": "import os\nos._exit(7)\n"}, wait_for=4)
    workers = server.workers()
    (server.folder / "sites.d/site.toml").write_text(SITE.replace('"tells"', '"deadly"'))

    assert apply(server).returncode == 1
    server.wait_for_log("died while loading /site; it will be loaded in a trial process first")

    def workers_now() -> list[int] | None:
        """Return the workers once the successor of the dead one can be asked."""
        pids = sorted(place.worker for place in places(server))
        return pids if len(pids) == 2 and len({*workers} & {*pids}) == 1 else None

    now = eventually(workers_now)
    shown = apply(server)

    assert shown.returncode == 1
    assert sorted(server.workers()) == now, "the newest one tried it in another process"


def test_a_forged_table_does_not_make_root_open_a_log(serve: StartServer, tmp_path: Path) -> None:
    """What only workers say is not what root's file says: a later worker opens no log for it before it has given up root."""
    server = start(serve, workers=1)
    log = tmp_path / "forged.log"
    edit(server, (GOES, f'"/goes" = {{ app = "tells", lazy = true, log = "{log}" }}'))
    command = Command(server)
    assert (command.prepare(), command.switch()) == (["prepared"], ["applied"])

    [worker] = server.workers()
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: server.workers() not in ([], [worker]))
    server.wait_for_log("/changes #1: serving", 2)

    assert not log.exists()
