"""Two real servers side by side: the same bytes, cut in the same way, to gunicorn's gthread worker and to isowsgi.

    python tests/conformance.py           # whole, byte by byte, and cut in two at every byte, each cut at one of the four places in turn
    python tests/conformance.py everywhere    # each cut at each of the four places; takes five minutes
    python tests/conformance.py whole     # whole, and byte by byte
    ISOWSGI_ISOLATION=process python tests/conformance.py whole    # with isowsgi's apps in a process, or in main

Compared is all that a client can see: every byte of the answers but for the date, and what becomes of the connection. The app shows its
environ and the body (tests/apps/shows.py). Differences must be those that tests/requests/differences.toml lists, no more and no fewer.
tests/functional/test_conformance.py runs the quick part.
"""

from __future__ import annotations

import difflib
import re
import select
import socket
import sys
import tempfile
import threading
import time
import tomllib
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.apps.shows import PREFIX
from tests.conftest import APPS, DEADLINE_S, ISOLATION, Server, running_server

REQUESTS = Path(__file__).parent / "requests"
DIFFERENCES = REQUESTS / "differences.toml"

# gunicorn's settings, as a conf file. The first is what most people have.
SETTINGS: Mapping[str, str] = {
    "default": "",
    "strict": (
        "limit_request_line = 60\nlimit_request_fields = 4\nlimit_request_field_size = 100\n"
        "header_map = 'refuse'\nforwarded_allow_ips = ''\n"
    ),
    "lenient": (
        "limit_request_line = 0\npermit_obsolete_folding = True\nstrip_header_spaces = True\npermit_unconventional_http_method = True\n"
        "permit_unconventional_http_version = True\ncasefold_http_method = True\nheader_map = 'dangerous'\nforwarder_headers = '*'\n"
    ),
}

# Where a request may arrive.
PLACES = ("root, TCP", "root, Unix", "prefix, TCP", "prefix, Unix")

# Connections open at once to one server. Each may hold a thread of it, as half a head does in gunicorn and half a body in both.
_BATCH = 200
_THREADS = 450

# Sent behind the request when all answers to that should have come: who answers it has kept the connection.
_PROBE = b"GET /probe HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n"

# Once this is answered, on connections of its own, the server has seen what was sent on others before. isowsgi's acceptor looks at
# connections in the order in which they had something to say, if they are accepted already: hence one that is opened some barriers
# ahead. gunicorn's threads are woken in any order, but a new connection has to go through more hands than bytes on an old one: hence
# another. It costs two requests for any number of connections, and no time.
_AHEAD = 3
_BARRIER = b"GET /barrier HTTP/1.1\r\nHost: barrier\r\nConnection: close\r\n\r\n"

# Bytes that are sent one by one at most. On a Unix socket each write takes some 800 bytes of the sender's buffer until it is read
# (docs/reference/http.md), so a head can come in some 250.
_MAX_SINGLES = {"TCP": 1 << 20, "Unix": 200}

# Disagreements that are shown in full for each of SETTINGS; all of them are counted.
_MAX_SHOWN = 50

# Within a run of one byte all cuts are alike but those near its ends.
_RUN = 8

_DATE = re.compile(rb"\r\nDate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT(?=\r\n)")
_STATUSES = re.compile(rb"^HTTP/\d\.\d (\d{3})", re.MULTILINE)  # gunicorn answers in the version that was asked in
_CLOSES = b"\r\nConnection: close\r\n"
_ASKED_AGAIN = b'"RAW_URI": "/probe"'
_LENGTH_OF_PAGE = re.compile(rb"Content-Length: \d+(?=\r\n\r\n<html>)")
_WORDS = re.compile(rb"(</p></h1>\n).*(\n  </body>)", re.DOTALL)
_TARGET = re.compile(rb"^([^ \r\n]+ (?:[A-Za-z]+://[^/? \r\n]*)?)/(?=[^\r\n]* HTTP/)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How one connection is used.

    Attributes:
        name: of the request.
        cut: how it is cut in pieces, for people.
        pieces: each is sent when the server has seen those before.
        asks_again: whether another request follows before the client says that nothing more comes.
    """

    name: str
    cut: str
    pieces: tuple[bytes, ...]
    asks_again: bool = True

    @property
    def is_whole(self) -> bool:
        return len(self.pieces) == 1

    def __str__(self) -> str:
        return f"{self.name}, {self.cut}{', and another request' if self.asks_again else ''}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a connection.

    Attributes:
        answers: all bytes that came, without what no two servers have in common.
        fate: how it ended: "closed", or "reset", or "open": not at all.
        was_asked_again: whether our other request was sent.
    """

    answers: bytes
    fate: str
    was_asked_again: bool = True

    @property
    def summary(self) -> str:
        """Statuses and fate: "200 200 kept", "400 closed". The status of the answer to our other request is left out."""
        statuses = [status.decode() for status in _STATUSES.findall(self.answers)]
        if self.fate == "closed" and _ASKED_AGAIN in self.last_answer:
            return " ".join([*statuses[:-1], "kept"])
        return " ".join([*statuses, self.fate])

    def is_as_listed(self, summary: str) -> bool:
        """Whether that is the summary; a client that says that nothing more comes is closed, whatever would have become of it."""
        return self.summary == (summary if self.was_asked_again else summary.replace("kept", "closed"))

    @property
    def last_answer(self) -> bytes:
        starts = [match.start() for match in _STATUSES.finditer(self.answers)]
        return self.answers[starts[-1] :] if starts else b""

    def without_words(self) -> Outcome:
        """Leave out what a page of gunicorn's parser says beside the status: which fault it finds first depends on where packets end."""
        return replace(self, answers=_WORDS.sub(rb"\1\2", _LENGTH_OF_PAGE.sub(b"Content-Length: (any)", self.answers)))


# What is sent.


def corpus() -> dict[str, bytes]:
    """Return all golden requests by name, and some that are too long for a file."""
    requests = {str(path.relative_to(REQUESTS).with_suffix("")): path.read_bytes() for path in sorted(REQUESTS.rglob("*.http"))}
    line = b"GET / HTTP/1.1\r\nHost: example.com\r\n"
    requests["head-of-sixty-thousand-bytes"] = line + (b"X-A: " + b"a" * 7995 + b"\r\n") * 7 + b"\r\n"
    requests["head-of-seventy-thousand-bytes"] = line + (b"X-A: " + b"a" * 7995 + b"\r\n") * 9 + b"\r\n"
    requests["body-of-three-hundred-thousand-bytes"] = (
        b"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 300000\r\n\r\n" + b"a" * 300_000
    )
    requests["chunk-extension-of-nine-thousand-bytes"] = (
        b"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n3;" + b"a" * 9000 + b"\r\nabc\r\n0\r\n\r\n"
    )
    return requests


def under_prefix(data: bytes) -> bytes:
    """Put the mount's prefix before each path of a request's lines; what has none stays as it is."""
    return _TARGET.sub(rb"\1" + PREFIX.encode() + b"/", data)


def whole(name: str, data: bytes) -> list[Sending]:
    return [
        *(Sending(name=name, cut="whole", pieces=(data,), asks_again=asks) for asks in (True, False)),
        Sending(name=name, cut="whole, in one with another request", pieces=(data + _PROBE,), asks_again=False),
    ]


def byte_by_byte(name: str, data: bytes, most: int) -> Sending:
    cuts = _cuts(data)
    if len(cuts) > most:
        cuts = cuts[: most // 2] + cuts[-most // 2 :]
    return Sending(
        name=name, cut="byte by byte", pieces=tuple(data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True))
    )


def cut_in_two(name: str, data: bytes) -> Iterator[Sending]:
    for cut in _cuts(data):
        yield Sending(name=name, cut=f"cut at {cut}", pieces=(data[:cut], data[cut:]))


def _cuts(data: bytes) -> list[int]:
    return [
        cut
        for cut in range(1, len(data))
        if cut < _RUN or len(data) - cut < _RUN or data[cut - _RUN : cut + _RUN] != data[cut : cut + 1] * 2 * _RUN
    ]


# A client.


class _Talk:
    """One connection."""

    def __init__(self, sock: socket.socket, pieces: Sequence[bytes], asks_again: bool) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.port = str(sock.getsockname()[1]).encode() if sock.family == socket.AF_INET else b""
        self.pieces = pieces
        self.asks_again = asks_again
        self.received = bytearray()
        self.fate = ""
        self.unsent = b""
        self._ends = False

    def send(self, data: bytes) -> None:
        """Send what fits, and the rest when `flush` is called."""
        self.unsent += data
        self.flush()

    def end_sending(self) -> None:
        """Say that nothing more comes, once all is sent."""
        self._ends = True
        self.flush()

    def flush(self) -> None:
        try:
            while self.unsent and not self.fate:
                self.unsent = self.unsent[self.sock.send(self.unsent, socket.MSG_DONTWAIT) :]
            if self._ends and not self.fate:
                self.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:  # reset, or closed; what came before can be read
            self.unsent = b""
            self.read()
            self.end("reset")

    def read(self) -> None:
        """Take what has come."""
        while not self.fate:
            try:
                data = self.sock.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionResetError:
                self.end("reset")
                return
            if not data:
                self.end("closed")
            self.received += data

    def end(self, fate: str) -> None:
        """Note what became of it, once, and close it at once: gunicorn's main thread waits for that."""
        if not self.fate:
            self.fate = fate
            self.sock.close()


class Visitor:
    """Makes connections to one address of a server, many at a time, and compares nothing."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        self._address = address
        self._port = str(address[1]).encode() if isinstance(address, tuple) else b""
        self._epoll = select.epoll()
        self._talks: dict[int, _Talk] = {}
        self._ahead = deque(self._open((), asks_again=False) for _ in range(_AHEAD))

    def visit(self, sendings: Sequence[Sending]) -> list[Outcome]:
        """Return what becomes of each connection."""
        outcomes = []
        for start in range(0, len(sendings), _BATCH):
            talks = [self._open(sending.pieces, sending.asks_again) for sending in sendings[start : start + _BATCH]]
            self._converse(talks)
            outcomes += [self._outcome(talk) for talk in talks]
        return outcomes

    def close(self) -> None:
        for talk in self._ahead:
            talk.end("")
        self._epoll.close()

    def _converse(self, talks: list[_Talk]) -> None:
        for number in range(max(len(talk.pieces) for talk in talks)):
            for talk in talks:
                if not talk.fate and number < len(talk.pieces):
                    talk.send(talk.pieces[number])
            self._pass_barrier()
        for talk in talks:
            if not talk.fate and talk.asks_again:
                talk.send(_PROBE)
        self._pass_barrier()
        for talk in talks:
            if not talk.fate:
                talk.end_sending()
        self._attend(talks)
        for talk in talks:
            talk.end("open")

    def _open(self, pieces: Sequence[bytes], asks_again: bool) -> _Talk:
        sock = socket.socket(socket.AF_INET if isinstance(self._address, tuple) else socket.AF_UNIX)
        sock.connect(self._address)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        talk = self._talks[sock.fileno()] = _Talk(sock, pieces, asks_again)
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        return talk

    def _pass_barrier(self) -> None:
        self._ahead.append(self._open((), asks_again=False))
        for talk in (self._ahead.popleft(), self._open((), asks_again=False)):
            talk.send(_BARRIER)
            self._attend([talk])
            assert talk.fate == "closed", f"the server does not answer a plain request any more: {bytes(talk.received)!r}"

    def _attend(self, awaited: list[_Talk]) -> None:
        """Read from all connections until these have ended, or time is over."""
        limit = time.monotonic() + DEADLINE_S
        left = {talk.fd for talk in awaited if not talk.fate}
        while left and time.monotonic() < limit:
            for fd, _ in self._epoll.poll(1.0):
                talk = self._talks[fd]
                talk.read()
                talk.flush()
                if talk.fate:
                    left.discard(fd)

    def _outcome(self, talk: _Talk) -> Outcome:
        answers = _DATE.sub(b"\r\nDate: (now)", bytes(talk.received))
        for key, port in ((b"REMOTE_PORT", talk.port), (b"SERVER_PORT", self._port)):
            if port:
                answers = answers.replace(b'"%b": "%b"' % (key, port), b'"%b": "(its port)"' % key)
        return Outcome(answers, talk.fate, talk.asks_again or talk.pieces[-1].endswith(_PROBE))


# Two servers.


class Pair:
    """A gunicorn with its threaded worker and one with isowsgi's, with the same settings and the same app at `/` and `/mounted`.

    Args:
        isowsgis_settings: if isowsgi shall have others, to see that it shows.
    """

    def __init__(self, stack: ExitStack, folder: Path, settings: str, isowsgis_settings: str | None = None) -> None:
        self._gthread = self._start(stack, folder / "gthread", settings, "-k", "gthread", app="shows:dispatched")
        self._isowsgi = self._start(stack, folder / "isowsgi", settings if isowsgis_settings is None else isowsgis_settings)
        self._gthread.wait_for_log("Listening at")
        self._gthread.learn_port()
        self._isowsgi.wait_until_serving(1 if ISOLATION == "main" else 2)

    @staticmethod
    def _start(stack: ExitStack, folder: Path, settings: str, *arguments: str, app: str = "isowsgi.toml") -> Server:
        folder.mkdir()
        config = (
            f"[defaults]\nthreads = {_THREADS}\nqueue = 1000\n[acceptor]\nhead_timeout = 60\n"
            f"[mounts]\n'/' = 'shows:application'\n'{PREFIX}' = 'shows:application'\n"
        )
        conf = f"{settings}threads = {_THREADS}\nkeepalive = 60\npythonpath = {str(APPS)!r}\nbind = ['127.0.0.1:0', 'unix:web.sock']\n"
        files = {"gunicorn.conf.py": conf}
        return stack.enter_context(running_server(folder, config, *arguments, app=app, bind=None, wait_for=0, files=files))

    def compare(self, place: str, sendings: Sequence[Sending]) -> list[tuple[Sending, Outcome, Outcome]]:
        """Return what becomes of each connection here, isowsgi's first."""
        outcomes: dict[str, list[Outcome]] = {}
        failures: list[BaseException] = []

        def visit(key: str, server: Server) -> None:
            try:
                address = (server.host, server.port) if place.endswith("TCP") else str(server.folder / "web.sock")
                with closing(Visitor(address)) as visitor:
                    outcomes[key] = visitor.visit(sendings)
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=visit, args=pair) for pair in (("ours", self._isowsgi), ("theirs", self._gthread))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for failure in failures:
            raise failure
        return list(zip(sendings, outcomes["ours"], [mended(theirs) for theirs in outcomes["theirs"]], strict=True))


def mended(theirs: Outcome) -> Outcome:
    """Put a carriage return where gunicorn's error pages lack it from Python 3.14 on; see isowsgi.shared.errorpage."""
    return replace(theirs, answers=theirs.answers.replace(b"\r\n\n<html>", b"\r\n\r\n<html>"))


@contextmanager
def running_pair(folder: Path, settings: str = "default", isowsgis_settings: str | None = None) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stack, folder, SETTINGS[settings], isowsgis_settings)


# The comparison.


class Listed:
    """The deliberate differences, with some settings.

    Args:
        differences: as differences.toml has them.
        settings: a key of SETTINGS.
    """

    def __init__(self, differences: Iterable[Mapping[str, Any]], settings: str) -> None:
        self.by_request: dict[str, Mapping[str, Any]] = {}
        for difference in differences:
            if settings in difference.get("settings", SETTINGS):
                self.by_request |= dict.fromkeys(difference["requests"], difference)

    def covers(self, sending: Sending) -> bool:
        """Tell whether a connection can be judged."""
        return sending.is_whole or not self.by_request.get(sending.name, {}).get("only_whole")

    def judge(self, name: str, ours: Outcome, theirs: Outcome) -> bool:
        """Tell whether two outcomes are as they should be: alike, or different as it is listed."""
        difference = self.by_request.get(name)
        if difference is not None:
            return ours.is_as_listed(difference["isowsgi"]) and theirs.is_as_listed(difference["gunicorn"])
        ours = ours.without_words()
        if ours.fate == "reset" and _CLOSES in ours.last_answer:
            # isowsgi closes at once when an answer says so and its request was read to the end. Our other request came after that.
            ours = replace(ours, fate="closed")
        return ours == theirs.without_words()


def load_differences() -> list[dict[str, Any]]:
    differences: list[dict[str, Any]] = tomllib.loads(DIFFERENCES.read_text(encoding="utf-8"))["difference"]
    return differences


def sendings_for(place: str, requests: Mapping[str, bytes], cuts: str) -> list[Sending]:
    """Return the connections to make at a place.

    Args:
        cuts: some of "whole", "byte by byte", "in two".
    """
    sendings: list[Sending] = []
    for name, data in requests.items():
        data = under_prefix(data) if place.startswith("prefix") else data
        if "whole" in cuts:
            sendings += whole(name, data)
        if "byte by byte" in cuts and len(data) > 1:
            sendings.append(byte_by_byte(name, data, _MAX_SINGLES[place.split()[-1]]))
        if "in two" in cuts:
            sendings += cut_in_two(name, data)
    # Those in about as many pieces together: a batch takes as many steps as its longest.
    return sorted(sendings, key=lambda sending: len(sending.pieces))


def share_of(sendings: Iterable[Sending], number: int, count: int) -> list[Sending]:
    """Return those of requests cut in two that one of `count` places gets; all places together cut each byte off from the one before."""
    assert len(PREFIX) % count == 0, "a byte behind a prefix is counted as without"
    return [sending for sending in sendings if len(sending.pieces[0]) % count == number]


class Comparison:
    """Sends requests to both servers, and gathers what differs and should not, and what should differ and does not.

    Attributes:
        faults: a text for each.
        connections: made so far, to both servers together.
    """

    def __init__(self, pair: Pair, settings: str, requests: Mapping[str, bytes]) -> None:
        self.faults: list[str] = []
        self.connections = 0
        self._pair = pair
        self._listed = Listed(load_differences(), settings)
        self._requests = requests
        self._words: dict[str, set[bytes]] = defaultdict(set)
        self._our_words: list[tuple[str, str, set[bytes]]] = []

    def run(self, cuts: str, places: Sequence[str] = PLACES, *, in_turn: bool = False) -> None:
        """Send all requests.

        Args:
            in_turn: whether each cut of a request in two is made at one of the places only, the next cut at the next place.
        """
        for number, place in enumerate(places):
            sendings = sendings_for(place, self._requests, cuts)
            if in_turn:
                sendings = share_of(sendings, number, len(places))
            sendings = [sending for sending in sendings if self._listed.covers(sending)]
            for sending, ours, theirs in self._pair.compare(place, sendings):
                self.connections += 2
                if not self._listed.judge(sending.name, ours, theirs):
                    self.faults.append(_told(place, sending, ours, theirs, self._listed.by_request.get(sending.name)))
                elif sending.name not in self._listed.by_request:
                    self._words[sending.name] |= _pages(theirs)
                    self._our_words.append((sending.name, f"{sending}, {place}", _pages(ours)))

    def compare_words(self) -> None:
        """Add a fault for each refusal by gunicorn's parser in words that gunicorn never uses for that request.

        Which of several faults it finds, and so its words, depends on where packets end. So `run` must have cut in many ways before.
        """
        for name, told, words in self._our_words:
            if not words <= self._words[name]:
                self.faults.append(f"{told}: isowsgi says {words}, gunicorn {self._words[name]}")


def _pages(outcome: Outcome) -> set[bytes]:
    return {match[0] for match in _WORDS.finditer(outcome.answers)}


def _told(place: str, sending: Sending, ours: Outcome, theirs: Outcome, difference: Mapping[str, Any] | None) -> str:
    expected = f"\n  listed: isowsgi {difference['isowsgi']}, gunicorn {difference['gunicorn']}" if difference else ""
    lines = [
        line
        for line in difflib.unified_diff(_lines(theirs), _lines(ours), "gunicorn", "isowsgi", lineterm="", n=0)
        if not line.startswith("@@")
    ]
    shown = "".join(f"\n  {line[:300]}" for line in lines[:20])
    return f"{sending}, {place}: isowsgi {ours.summary}, gunicorn {theirs.summary}{expected}{shown}"


def _lines(outcome: Outcome) -> list[str]:
    return [repr(line)[2:-1] for line in outcome.answers.splitlines(keepends=True)]


def main(arguments: list[str]) -> int:
    cuts = ["whole, byte by byte"] if arguments[:1] == ["whole"] else ["whole, byte by byte", "in two"]
    is_in_turn = arguments[:1] != ["everywhere"]
    requests = corpus()
    connections = faults = 0
    began = time.monotonic()
    for settings in SETTINGS:
        with tempfile.TemporaryDirectory() as folder, running_pair(Path(folder), settings) as pair:
            comparison = Comparison(pair, settings, requests)
            if settings == "default":
                for cut in cuts:
                    comparison.run(cut, in_turn=is_in_turn and cut == "in two")
                comparison.compare_words()
            else:
                comparison.run("whole")
        print(f"{settings} settings: {comparison.connections} connections, {time.monotonic() - began:.0f} s so far", flush=True)
        print("".join(f"{fault}\n" for fault in comparison.faults[:_MAX_SHOWN]), end="", flush=True)
        connections += comparison.connections
        faults += len(comparison.faults)
    print(f"{len(requests)} requests, {connections} connections, {faults} disagreements, {time.monotonic() - began:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
