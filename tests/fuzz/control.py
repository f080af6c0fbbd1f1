"""Target: the control socket, from frame to command: a real `ControlServer` on a real Unix socket, deployments with made-up instances.

Oracle: docs/reference/control-protocol.md. Whoever sends a whole frame gets one answer of the kinds listed there, and never hears of a
mistake in isowsgi; who does not is waited for, holds nobody up and leaves nothing behind; a proper client is answered at any time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
import socket
import struct
import tempfile
import time
import traceback
from collections.abc import Sequence
from typing import Any
from unittest import mock

from isowsgi.configuration import App, Config, Mount, stored
from isowsgi.instances.lifecycle import ENDS, State
from isowsgi.shared import controlmessages, frames
from isowsgi.shared.applied import LastApplied
from isowsgi.shared.containment import Containment
from isowsgi.shared.messages import Census, Closed, Counted, Failed, Profile, Profiled, Ready, Report, Stacks, TellStacks
from isowsgi.shared.rows import INTERNAL_ERRORS
from isowsgi.worker.control import commands, growth, profiling
from isowsgi.worker.control.applying import Applying
from isowsgi.worker.control.server import MAX_CLIENTS, ControlServer
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.livetable import LiveTable
from isowsgi.worker.table import Table
from tests.fakes import FakeInstance, FakeSurroundings

_PATTERNS = ["/", "/shop", "/shop/admin", "/caf\xe9", "api.example.com/v1"]


def _config(*patterns: str) -> Config:
    app = App(kind="module", target="m", call="app")
    # Not "auto": a failure would begin a trial, and nobody makes one here.
    mounts = (Mount(number=number, pattern=pattern, app=app, isolation="own-gil") for number, pattern in enumerate(patterns))
    return Config(path="/srv/isowsgi.toml", mounts=tuple(mounts))


_REQUESTS: dict[str, controlmessages.Request[Any]] = {
    "status": controlmessages.Status(),
    "reload": controlmessages.Reload(mount="/"),
    "stop": controlmessages.Stop(mount="/"),
    "start": controlmessages.Start(mount="/"),
    "stacks": controlmessages.Stacks(mount="/"),
    "profile": controlmessages.Profile(mount="/", seconds=1e-6),
    "memory": controlmessages.Memory(mount="/", seconds=1e-6),
    "shell": controlmessages.Shell(mount="/", serial="s"),
    "shellline": controlmessages.ShellLine(serial="s", source="1"),
    "errors": controlmessages.Errors(mount="/"),
    "table": controlmessages.Table(),
    "prepare": controlmessages.Prepare(serial="s", config=stored.plain(_config("/", "/new"))),
    "switch": controlmessages.Switch(serial="s"),
    "drop": controlmessages.Drop(serial="s"),
}
_COMMANDS = [*_REQUESTS]

# What an answer may say went wrong; docs/reference/control-protocol.md, but for "mistake".
_KINDS = frozenset((
    *("forbidden", "busy", "timeout", "malformed", "version", "command", "mount", "unknown-mount"),
    *("quarantined", "stopped", "started", "failed", "stopping", "unchangeable", "outvoted", "not-prepared"),
    *("not-serving", "unsafe", "no-session"),
))  # fmt: skip

# A profile that takes longer is refused here: its answer would be waited for.
_LIMITS = (
    (profiling, {"MOST_SECONDS": 1e-5, "GRACE_S": 0.0}),
    (growth, {"MOST_SECONDS": 1e-5, "COUNT_S": 0.0}),
)

# Connections that were left open with half a request.
_MOST_LOITERERS = MAX_CLIENTS - 4

# Turns of the loop in which a request is to be answered: none needs more than its instances' boots, which take a turn here.
_MOST_TURNS = 20

# Every so many cases a proper client asks, and descriptors are counted.
_PROPER_EVERY = 16
_COUNT_EVERY = 1000

_VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 1.0, 1e308, 10**400, [], {}, [1], {"v": 1}, [[[]]]),
    *("", "1", "x", "status", "/", "/shop", "/shop/", "/SHOP", "/shopp", "\ud800", "\0", "x" * 300, "/" + "é" * 50),
]
_PIECES = [
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u", b"\\ud800", b"\xff", b"\0", b" "),
    *(b"NaN", b"1e999", b"-", b"null", b'"v"', b'"do"'),
]


# What an instance answers to an order.
_ANSWERS: dict[type[TellStacks | Profile | Census], tuple[type[Stacks | Profiled | Counted], str]] = {
    TellStacks: (Stacks, "a stack\udc80"),
    Profile: (Profiled, "{}"),
    Census: (Counted, "{}"),
}


class _Supervisor:
    """What the errands need of one."""

    def __init__(self) -> None:
        self._fails = random.Random(1)
        self._around = FakeSurroundings()
        self._around.log = logging.getLogger("isowsgi-fuzz")
        self._around.log.addHandler(logging.NullHandler())
        self._around.log.propagate = False
        self._on_answer: Any = None
        config = _config(*_PATTERNS)
        self._around.board.set_mounts(_PATTERNS)
        self.live = LiveTable(config, self._around.board, self._around.containment, self._make, lambda deployment: None, lambda table: None)
        for deployment in self.deployments:
            deployment.start(time.monotonic())

    def publish(self) -> None:
        """Nobody reads it."""

    def certificates(self) -> list[Any]:
        return []

    def _make(self, members: Sequence[Mount]) -> Deployment:
        return Deployment(members, self._around, isolation="own-gil", is_quarantined=members[0].pattern == "/shop/admin")

    @property
    def table(self) -> Table:
        return self.live.table

    @property
    def deployments(self) -> list[Deployment]:
        return self.live.table.deployments

    def hear_answers(self, on_answer: Any) -> None:
        self._on_answer = on_answer

    def turn(self) -> None:
        """Let what was begun happen."""
        self.live.tick()
        for deployment in self.live.all():
            for instance in deployment.slots.all():
                assert isinstance(instance, FakeInstance)
                for order in instance.asked:
                    answer, text = _ANSWERS[type(order)]
                    self._on_answer(instance, answer(ask=order.ask, text=text, is_last=True))
                instance.asked.clear()
                if instance.state is State.BOOTING and self._fails.random() < 0.1:
                    self._says(deployment, instance, Failed(error="E", traceback="NameError: T"))
                elif instance.state is State.BOOTING:
                    self._says(deployment, instance, Ready(boot_s=0.25, objects=0, extensions=[], refused=[]))
                elif instance.state not in ENDS and instance.stopped:
                    self._says(deployment, instance, Closed(threads=0))

    def _says(self, deployment: Deployment, instance: FakeInstance, report: Report) -> None:
        instance.said.append(report)
        deployment.reports.read(instance, time.monotonic())


class _Log:
    """Keeps what an exception of isowsgi's own is logged with."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []

    def error(self, message: str, *args: object) -> None:
        self.mistakes.append(traceback.format_exc())

    def info(self, message: str, *args: object) -> None: ...

    def warning(self, message: str, *args: object) -> None:
        raise AssertionError(message % args)


class ControlTarget:
    name = "control"

    def __init__(self, rng: random.Random) -> None:
        self._undo = contextlib.ExitStack()
        for module, limits in _LIMITS:
            for name, value in limits.items():
                self._undo.enter_context(mock.patch.object(module, name, value))
        self._folder = tempfile.mkdtemp(prefix="isowsgi-fuzz-")
        self._supervisor = _Supervisor()
        self._log = _Log()
        containment = Containment(self._log, memoryview(bytearray(8 * (INTERNAL_ERRORS + 1))).cast("q"))
        # The supervisor is no real one, and nothing else decides on a table.
        self._applying = Applying(self._supervisor.live, LastApplied(), 1, "", self._log)
        begin = commands.Commands(self._supervisor, self._applying).begin  # type: ignore[arg-type]
        self._desk = ControlServer(begin, commands.this_worker("/srv/isowsgi.toml", 1), self._log, containment)
        path = self._desk.open([self._folder], "fuzz.sock")
        assert path is not None
        self._path = path
        self._loiterers: list[socket.socket] = []
        self._checked = 0
        self._descriptors = 0

    # Cases: {"pieces": what is sent, one after the other; "end": what the client does then}.

    def draw(self, rng: random.Random) -> dict[str, Any]:
        body = json.dumps(any_message(rng)).encode()
        if rng.random() < 0.3:
            body = _changed(body, rng)
        length = len(body)
        if rng.random() < 0.15:
            length = rng.choice((0, 1, length - 1, length + 1, 65_536, 65_537, 2**31, 2**32 - 1, rng.randrange(2**32))) % 2**32
        data = struct.pack("!I", length) + body
        if rng.random() < 0.1:
            data += rng.choice((data, b"\0", rng.randbytes(5)))
        if rng.random() < 0.002:
            data = struct.pack("!I", 65_536) + rng.choice((b"[", b'{"a":', b" ", b'"', b"\\", b"1", b"\xff")) * 65_536
            data = data[: 65_536 + rng.choice((0, 3, 4, 4, 4, 5))]
        return {"pieces": _split(data, rng), "end": any_end(rng)}

    def change(self, case: dict[str, Any], rng: random.Random) -> dict[str, Any]:
        data = b"".join(case["pieces"])
        body = _changed(data[4:], rng)
        length = data[:4] if rng.random() < 0.1 else struct.pack("!I", len(body))
        return {"pieces": _split(length + body, rng), "end": any_end(rng)}

    def check(self, case: dict[str, Any]) -> list[str]:
        kind = self._try(case)
        self._checked += 1
        if self._checked % _PROPER_EVERY == 0:
            answer = self._converse([controlmessages.encode_request(controlmessages.Status())], "wait")
            assert answer, "a proper client was not answered"
            assert _read(answer).get("ok") is True, f"a proper client was refused: {answer[:300]!r}"
        if self._checked % _COUNT_EVERY == 0:
            self._leave_all()
            now = len(os.listdir("/proc/self/fd"))
            assert now <= (self._descriptors or now), f"{now} descriptors, {self._descriptors} before"
            self._descriptors = now
        return [kind]

    def close(self) -> None:
        self._undo.close()
        self._leave_all()
        self._desk.close()
        shutil.rmtree(self._folder)

    def _try(self, case: dict[str, Any]) -> str:
        data = b"".join(case["pieces"])
        answer = self._converse(case["pieces"], case["end"])
        assert not self._log.mistakes, self._log.mistakes[0]
        if case["end"] not in ("wait", "shut"):
            return "left"
        if answer is None:
            length = int.from_bytes(data[:4])
            assert len(data) < 4 or (length <= frames.MAX_REQUEST_BYTES and len(data) < 4 + length), "a whole frame was not answered"
            return "waited for"
        if not answer:
            assert case["end"] == "shut", "it was closed without an answer"
            return "left"
        message = _read(answer)
        assert (message["v"], type(message["ok"]), message["worker"]) == (1, bool, os.getpid()), message
        # The command understands what the worker says, whatever it was asked.
        request = _REQUESTS[json.loads(data[4 : 4 + int.from_bytes(data[:4])])["do"]] if message["ok"] else controlmessages.Status()
        worker, understood = controlmessages.decode_answer(message, request)
        assert worker is not None, understood
        if message["ok"]:
            return "done"
        error = message["error"]
        assert error["kind"] in _KINDS, error
        assert isinstance(error["text"], str), error
        return str(error["kind"])

    def _converse(self, pieces: list[bytes], end: str) -> bytes | None:
        """Send pieces and return all that came until the worker closed; None if it waits for more, or nobody looked."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        sock.connect(self._path)
        for piece in pieces:
            if not self._send(sock, piece):
                break
        if end == "loiter":
            self._loiterers.append(sock)
            if len(self._loiterers) > _MOST_LOITERERS:
                self._loiterers.pop(0).close()
            self._turn()
            return None
        if end == "shut":
            sock.shutdown(socket.SHUT_WR)
        answer = self._answer(sock) if end in ("wait", "shut") else None
        sock.close()
        self._turn()
        return answer

    def _send(self, sock: socket.socket, data: bytes) -> bool:
        """Send while the worker reads; False if it has closed."""
        while data:
            try:
                data = data[sock.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                return False
            self._turn()
        return True

    def _answer(self, sock: socket.socket) -> bytes | None:
        chunks: list[bytes] = []
        for _ in range(_MOST_TURNS):
            try:
                while chunk := sock.recv(1 << 20):
                    chunks.append(chunk)
                return b"".join(chunks)
            except BlockingIOError:
                self._turn()
            except ConnectionResetError:
                return b"".join(chunks)
        assert not chunks, "half an answer"
        return None

    def _turn(self) -> None:
        self._desk.turn()
        self._supervisor.turn()
        self._desk.tick()

    def _leave_all(self) -> None:
        while self._loiterers:
            self._loiterers.pop().close()
        for _ in range(_MOST_TURNS):
            self._turn()
        waiting = self._desk.wait_s()
        assert waiting == float("inf"), "a client that has gone is still known"


def any_message(rng: random.Random) -> Any:
    if rng.random() < 0.05:
        return rng.choice(_VALUES)
    message: dict[str, Any] = {"v": 1, "do": rng.choice(_COMMANDS), "mount": rng.choice(_PATTERNS)}
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        message[rng.choice(("v", "do", "mount", "mount", "x", ""))] = rng.choice(_VALUES)
    if rng.random() < 0.2:
        message.pop(rng.choice(("v", "do", "mount")), None)
    return message


def any_end(rng: random.Random) -> str:
    return rng.choice(("wait", "wait", "wait", "wait", "shut", "close", "loiter"))


def _changed(body: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(body))
    end = start + rng.choice((0, 0, 1, 2, 8))
    return body[:start] + rng.choice(_PIECES) * rng.choice((1, 1, 1, 2, 100)) + body[end:]


def _split(data: bytes, rng: random.Random) -> list[bytes]:
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.choice((0, 0, 0, 1, 2, 5))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


def _read(answer: bytes) -> dict[str, Any]:
    """Return the one frame that an answer is."""
    assert len(answer) >= 4, answer
    assert int.from_bytes(answer[:4]) == len(answer) - 4, f"expected one frame, got {answer[:100]!r}"
    message: dict[str, Any] = json.loads(answer[4:])
    return message
