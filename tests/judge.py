"""Clients that ask without a pause, each on its own connection, and judge every answer."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tests.conftest import DEADLINE_S, eventually
from tests.machines import Machine


class Answer(NamedTuple):
    """What a request got."""

    path: str
    version: str  # "" if it failed
    host: str
    client: str  # as the app knows it
    failure: str = ""


class Closed(Exception):
    """A connection that was kept open was closed, and nothing of an answer has come."""


class Judge:
    """Clients on a machine: for each path as many as `each`, the first of which sends POSTs, each on a new connection.

    A GET on a connection that turns out to be closed is sent again, once, on a new one, as every client does (RFC 9112 section 9.3.1).

    Attributes:
        resent: how many were.
    """

    def __init__(self, machine: Machine, target: tuple[str, int], paths: Sequence[str], each: int, pause_s: float) -> None:
        self.resent = 0
        self._machine = machine
        self._pause_s = pause_s
        self._target = target
        self._answers: Counter[Answer] = Counter()
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=[path, number == 0]) for path in paths for number in range(each)]

    @property
    def clients(self) -> int:
        return len(self._threads)

    def __enter__(self) -> Judge:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def count(self) -> int:
        with self._lock:
            return self._answers.total()

    def since(self, before: Counter[Answer]) -> Counter[Answer]:
        with self._lock:
            return self._answers - before

    def answers(self) -> Counter[Answer]:
        return self.since(Counter())

    def wait(self, holds: Callable[[Counter[Answer]], bool], what: str, count: int = 50) -> Counter[Answer]:
        """Wait until something holds of so many answers in a row, and return them."""

        def next_ones() -> Counter[Answer] | None:
            before = self.answers()
            eventually(lambda: self.since(before).total() >= count, f"{count} answers")
            found = self.since(before)
            return found if holds(found) else None

        return eventually(next_ones, what)

    @contextmanager
    def watched(self) -> Iterator[Counter[Answer]]:
        """Count the answers of a block, in what it is given."""
        before, counted = self.answers(), Counter[Answer]()
        yield counted
        counted.update(self.since(before))

    def _ask(self, path: str, is_post: bool) -> None:
        self._machine.enter()
        connection: Connection | None = None
        request = f"{'POST' if is_post else 'GET'} {path}/x HTTP/1.1\r\nHost: localhost\r\n"
        request += "Content-Length: 3\r\nConnection: close\r\n\r\nabc" if is_post else "\r\n"
        data = request.encode()
        while not self._is_over.wait(self._pause_s):
            try:
                try:
                    connection = connection or Connection(self._target)
                    answer = connection.exchange(data, path)
                except Closed:
                    connection = None
                    with self._lock:
                        self.resent += 1
                    connection = Connection(self._target)
                    answer = connection.exchange(data, path)
            except (OSError, Closed, ValueError) as exc:
                answer = Answer(path, "", "", "", repr(exc))
            with self._lock:
                self._answers[answer] += 1
            if connection is not None and (connection.is_last or answer.failure):
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


class Connection:
    """A connection of a client that asks one thing after the other."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.is_last = False  # whether the answer said so
        self._was_used = False
        self._socket = socket.create_connection(target, DEADLINE_S)

    def close(self) -> None:
        self._socket.close()

    def exchange(self, request: bytes, path: str) -> Answer:
        """Send a request and judge its answer.

        Raises:
            Closed: on a connection that was used before.
            OSError, ValueError: no answer, or none that is whole.
        """
        received = b""
        try:
            self._socket.sendall(request)
            received = self._socket.recv(65536)
        except ConnectionError:
            if not self._was_used:
                raise
        if not received and self._was_used:
            self.close()
            raise Closed
        while b"\r\n\r\n" not in received:
            received += self._more()
        head, _, body = received.partition(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        values = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        self.is_last = values.get("connection", "").lower() == "close"
        while len(body) < int(values["content-length"]):
            body += self._more()
        self._was_used = True
        if status.split(" ")[1] != "200":
            return Answer(path, "", "", "", status)
        told, version, host, client = body.decode().split()
        return Answer(path, version, host, client) if told == path else Answer(path, "", "", "", f"answered by {told}")

    def _more(self) -> bytes:
        received = self._socket.recv(65536)
        if not received:
            raise ValueError("the answer is not whole")
        return received


def failures(answers: Counter[Answer]) -> dict[str, int]:
    """Return how many failed, by how."""
    found: Counter[str] = Counter()
    for answer, count in answers.items():
        if answer.failure:
            found[f"{answer.path}: {answer.failure}"] += count
    return dict(found)
