"""The command's side of the control socket: whatever answers there is bounded, checked, and shown as plain text."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from isowsgi import configuration
from isowsgi.cli import client, renewals, sighup
from isowsgi.cli.answers import Told
from isowsgi.cli.main import main
from isowsgi.shared import certificates, controlmessages, frames, sockets
from tests.conftest import DEADLINE_S

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away, and only root looks into those of others")

Behaviour = Callable[[socket.socket], None]
WORKER = {"v": 1, "worker": 88, "master": 77, "config": "/isowsgi.toml", "age": 1}
ESCAPES = "/x\x1b]0;OWNED\x07\x1b[31mred\x9b2J"


def says(message: dict[str, Any]) -> Behaviour:
    return lambda sock: sock.sendall(frames.encode({**WORKER, **message}))


class Stage:
    """Folders with sockets in them that answer as they please.

    Attributes:
        config: a config file; `[control] folder` names the folder "control".
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.config = str(folder / "isowsgi.toml")
        Path(self.config).write_text('[control]\nfolder = "control"\n')
        self._stack = stack

    def put(self, behaviour: Behaviour, folder: str = "control", *, config: str | None = None, master: int = 77, owner: int = -1) -> None:
        path = self.folder / folder
        path.mkdir(0o700, exist_ok=True)
        fd = os.open(path, os.O_RDONLY)
        listener = sockets.listen(fd, sockets.socket_name(config or self.config, master, 88))
        os.close(fd)
        listener.setblocking(True)
        os.chown(path, owner, -1)
        thread = threading.Thread(target=self._serve, args=(listener, behaviour), daemon=True)
        thread.start()
        self._stack.callback(listener.close)
        self._stack.callback(thread.join)
        self._stack.callback(listener.shutdown, socket.SHUT_RDWR)

    def _serve(self, listener: socket.socket, behaviour: Behaviour) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                try:
                    sock.recv(65536)
                    behaviour(sock)
                except OSError:
                    continue  # it has had enough of us

    def run(self, *arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, [*arguments, "--config", self.config])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(tmp_path, stack)


INCIDENT = {
    "at": 1e300, "kind": "exception", "tag": ESCAPES, "generation": 1, "error": ESCAPES, "details": ESCAPES, "request": ESCAPES,
}  # fmt: skip
INSTANCE = {
    "tag": ESCAPES, "generation": 1, "state": ESCAPES, "isolation": ESCAPES, "threads": 1, "boot_s": 0.5, "requests": 1,
    "in_flight": [{"request": ESCAPES, "for_s": 1}], "error": ESCAPES,
}  # fmt: skip
STACKS = {"stacks": ESCAPES, "problem": ESCAPES}
MOUNT = {
    "mount": ESCAPES, "app": ESCAPES, "isolation": ESCAPES, "reason": ESCAPES, "group": None, "state": ESCAPES, "generation": 1,
    "reloads": 0, "stuck": 0, "retry_in_s": None, "instances": [INSTANCE], "last_error": {"at": 1e300, "kind": ESCAPES, "error": ESCAPES},
}  # fmt: skip
GROUP = {
    **dict.fromkeys(("kind", "type", "place", "request", "error", "details"), ESCAPES),
    "count": 1,
    "first": 1.5,
    "at": 1e30,
    "generation": 1,
}
ANSWERS: dict[str, dict[str, Any]] = {
    "status": {
        "python": ESCAPES,
        "up_s": 1.5,
        "rss_mib": 1,
        "at": 1.5,
        "mounts": [MOUNT],
        "certificates": [{"hosts": [ESCAPES], "path": ESCAPES, "expires": 1.5}],
    },
    "reload": {"mount": ESCAPES, "outcome": ESCAPES, "generation": 1, "text": ESCAPES},
    "stacks": {"instances": [{**INSTANCE, **STACKS}]},
    "errors": {"mount": ESCAPES, "boot": None, "requests": [INCIDENT], "groups": [GROUP]},
    "table": {
        "form": "5e884898",
        "salt": "",
        "tables": {ESCAPES: {}},
        "mounts": [{"mount": ESCAPES, "settings": {ESCAPES: ESCAPES}}],
        "certificates": [{"certificate": ESCAPES, "key": ESCAPES, "digest": ESCAPES}],
        "tls": ESCAPES,
    },
}
REQUESTS: dict[str, controlmessages.Request[Any]] = {
    "status": controlmessages.Status(),
    "reload": controlmessages.Reload(mount="/"),
    "stacks": controlmessages.Stacks(mount="/"),
    "errors": controlmessages.Errors(mount="/"),
    "table": controlmessages.Table(),
}
_COMMANDS = {"table": "plan"}


def test_a_pattern_is_not_taken_for_a_config_file() -> None:
    """`isowsgi status shop.example.com/` listed the servers of others."""
    result = CliRunner().invoke(main, ["status", "shop.example.com/"])

    assert result.exit_code == 2
    assert "there is no config file 'shop.example.com/'; this command takes one, and no pattern of a mount" in result.output


@pytest.mark.parametrize("command", sorted(ANSWERS))
@pytest.mark.parametrize("is_ok", [True, False])
def test_no_terminal_obeys_what_a_worker_says(stage: Stage, command: str, is_ok: bool) -> None:
    failure = {"ok": False, "error": {"kind": "mount", "text": ESCAPES, "traceback": ESCAPES}}
    stage.put(says({"ok": True, **ANSWERS[command]} if is_ok else failure))

    Path(stage.config).write_text('[control]\nfolder = "control"\n[mounts]\n"/" = "app"\n')

    _, output = stage.run(_COMMANDS.get(command, command), *([] if command in ("status", "table") else ["/"]))

    assert "\\x1b]0;OWNED\\x07" in output
    assert not {char for char in output if not char.isprintable()} - {"\n"}


def test_no_terminal_obeys_the_names_of_config_files_that_are_served_instead(stage: Stage) -> None:
    stage.put(says({"ok": False, "config": ESCAPES, "error": {"kind": "mount", "text": "no mount"}}), config="/another.toml")

    code, output = stage.run("status")

    assert code == 2
    assert "\\x1b]0;OWNED\\x07" in output
    assert "\x1b" not in output


def drips(sock: socket.socket) -> None:
    sock.sendall(struct.pack("!I", 1000))
    while True:
        sock.sendall(b" ")
        time.sleep(0.01)


def test_who_sends_a_byte_now_and_then_does_not_hold_the_command(stage: Stage) -> None:
    """The time limit was one for each byte. After it the worker was asked for what differs from the config file, for 10 s more."""
    asked = []

    def drips_each_time(sock: socket.socket) -> None:
        sock.sendall(struct.pack("!I", 1000))  # fails for who only looks whether somebody listens
        asked.append(sock)
        drips(sock)

    stage.put(drips_each_time)

    began = time.monotonic()
    code, output = stage.run("reload", "/", "--timeout", "0.3")

    assert (code, "no answer within 0.3 s" in output) == (1, True)
    assert time.monotonic() - began < DEADLINE_S
    assert len(asked) == 1


def test_the_time_limit_is_one_for_all_workers_together(stage: Stage) -> None:
    for number in range(5):
        stage.put(drips, master=number)
    workers = client.find(stage.config, None)

    began = time.monotonic()
    answers = client.ask(workers, controlmessages.Status(), 0.2)

    assert [told.answer.kind for told in answers if isinstance(told.answer, controlmessages.Error)] == ["timeout"] * 5
    assert time.monotonic() - began < DEADLINE_S


def test_of_many_workers_some_are_asked_at_a_time_and_their_answers_are_in_order(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MOST_AT_A_TIME", 2)
    for number in range(5):
        stage.put(lambda sock: None, master=number)
    workers = client.find(stage.config, None)

    assert [told.place for told in client.ask(workers, controlmessages.Status(), DEADLINE_S)] == workers


def test_a_mistake_of_ours_is_told_and_not_taken_for_an_answer(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.put(lambda sock: None)
    monkeypatch.setattr(client, "_exchange", lambda *args: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        client.ask(client.find(stage.config, None), controlmessages.Status(), DEADLINE_S)


def test_an_answer_that_is_too_long_is_not_read(stage: Stage) -> None:
    stage.put(lambda sock: sock.sendall(struct.pack("!I", frames.MAX_ANSWER_BYTES + 1)))

    code, output = stage.run("status")

    assert (code, f"at most {frames.MAX_ANSWER_BYTES} bytes" in output) == (1, True)


@pytest.mark.parametrize("answer", [{}, {"ok": False}, {"ok": False, "error": "no"}, {"ok": 1}, {"ok": True}])
def test_an_answer_that_says_nothing_is_malformed(stage: Stage, answer: dict[str, Any]) -> None:
    stage.put(says(answer))

    code, output = stage.run("status")

    assert (code, "malformed answer to 'status': " in output) == (1, True)


@pytest.fixture
def homes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Have the folders of all users in the stage's own."""
    Path(stage.config).write_text("")
    monkeypatch.setattr(sockets, "RUN_FOLDER", str(stage.folder / "run"))
    monkeypatch.setattr(sockets, "TEMP_FOLDER", str(stage.folder / "isowsgi-{uid}"))
    return stage


@needs_root
def test_root_takes_a_folder_in_tmp_only_from_the_user_in_its_name(homes: Stage) -> None:
    """Anybody can make /tmp/isowsgi-0: he was one of the workers of any config file then, and root believed what he said."""
    homes.put(says({"ok": True, **ANSWERS["reload"]}), "isowsgi-4242", owner=1234)

    code, output = homes.run("reload", "/")

    assert (code, "no running gunicorn serves" in output, "OWNED" in output) == (2, True, False)


@needs_root
def test_a_socket_on_which_another_listens_than_the_folders_owner_is_not_believed(homes: Stage) -> None:
    homes.put(says({"ok": True, **ANSWERS["reload"]}), "isowsgi-1234", owner=1234)

    code, output = homes.run("reload", "/")

    assert (code, "another user answers at" in output, "OWNED" in output) == (1, True, False)


@needs_root
def test_root_is_told_when_several_users_say_that_they_serve_a_config_file(homes: Stage) -> None:
    for uid in (0, 1234):
        homes.put(says({"ok": True, **ANSWERS["reload"]}), f"isowsgi-{uid}", master=100 + uid, owner=uid)

    code, output = homes.run("reload", "/")

    assert (code, "several users claim to serve" in output) == (2, True)
    assert "gunicorn 100 of root, gunicorn 1334 of uid 1234" in output


@contextmanager
def bystander(uid: int = -1) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that SIGHUP would end; not Python, which may lie where another user may not look."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, user=None if uid == -1 else uid) as process:
        yield process
        process.kill()


def place(master: int, owner: int) -> sockets.Place:
    return sockets.Place("/nowhere", owner, "name", "config", master, worker=os.getpid())


@pytest.mark.parametrize("master", ["-1", "0"])
def test_a_group_of_processes_is_no_master(stage: Stage, master: str) -> None:
    code, output = stage.run("apply", "--or-reload", "--master", master)

    assert (code, "is not in the range" in output) == (2, True)


def test_sighup_goes_to_no_process_that_is_no_gunicorn_of_ours(stage: Stage) -> None:
    """A wrong process id got it, if no worker was found."""
    Path(stage.config).write_text('[control]\nfolder = "control"\n[mounts]\n"/" = "app"\n')
    with bystander() as process:
        code, output = stage.run("apply", "--or-reload", "--master", str(process.pid))

        assert (code, f"process {process.pid} is no running gunicorn with isowsgi's worker" in output) == (1, True)
        assert process.poll() is None


def test_sighup_goes_to_no_gunicorn_whose_workers_serve_another_file(stage: Stage) -> None:
    Path(stage.config).write_text('[control]\nfolder = "control"\n[mounts]\n"/" = "app"\n')
    with bystander() as process:
        stage.put(says({"ok": True, **ANSWERS["errors"]}), config="/another.toml", master=process.pid)

        code, output = stage.run("apply", "--or-reload", "--master", str(process.pid))

        assert (code, "no running gunicorn serves" in output, "SIGHUP" in output) == (2, True, False)
        assert process.poll() is None


@needs_root
def test_root_signals_a_users_own_process_and_nobody_elses_on_a_workers_word() -> None:
    with bystander(1234) as users, bystander() as roots:
        assert client.may_signal(place(users.pid, owner=1234))
        assert not client.may_signal(place(roots.pid, owner=1234)), "whose memory is not ours"
        assert not client.may_signal(place(users.pid, owner=4321))


@needs_root
def test_of_several_gunicorns_none_is_signalled_if_one_must_not_be(capsys: pytest.CaptureFixture[str]) -> None:
    """The first was signalled, and then the command said that nothing was changed."""
    with bystander(1234) as users, bystander() as roots:
        with pytest.raises(SystemExit):
            sighup.send([place(users.pid, owner=1234), place(roots.pid, owner=1234)], [])

        assert capsys.readouterr().err == f"isowsgi: nothing was changed: process {roots.pid} is no gunicorn of uid 1234's\n"
        assert (users.poll(), roots.poll()) == (None, None)


def test_each_gunicorn_is_told_of_its_own_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that serve the same config file: one was given the key of the other."""
    monkeypatch.setattr(certificates, "fault_of", lambda pair: "")
    (tmp_path / "isowsgi.toml").write_text('[mounts]\n"/" = "a:app"')
    wanted = configuration.load(tmp_path / "isowsgi.toml")
    answers = []
    for master in (1, 2):
        for file in (tmp_path / f"{master}.pem", tmp_path / f"{master}.key"):
            file.write_text(file.name)
        files = controlmessages.CertificateFiles(certificate=f"{tmp_path}/{master}.pem", key=f"{tmp_path}/{master}.key", digest="old")
        table = controlmessages.ServedTable(salt="", tables={}, mounts=[], certificate=files)
        answers.append(Told(place(master, os.geteuid()), None, table))

    found = renewals.renewals(answers, wanted)

    assert {master: [each.pair and each.pair.key for each in of] for master, of in found.items()} == {1: ["1.key"], 2: ["2.key"]}
    shown = renewals.with_certificates(found, [(told.place, []) for told in answers])
    assert [[each.name for each in differences] for _, differences in shown] == [
        [f"certificate {tmp_path}/1.pem"], [f"certificate {tmp_path}/2.pem"],
    ]  # fmt: skip


def test_a_fifo_for_a_config_file_or_a_pid_file_holds_nobody(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    assert sockets.configured_folder(str(fifo)) is None
    with pytest.raises(client.NobodyServes, match="expected the process id"):
        client.find(None, str(fifo))
