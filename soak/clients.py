"""The load: clients of all sorts, a thread each, that check every answer they get.

The rule of the account: who has sent a byte of a request must get its whole and right answer. One exception, as HTTP clients have it
(RFC 9112 section 9.3.1): if a connection that has had answers is closed and not a byte of the next one came, the request is sent again on
another connection; that is told too, and `verdict` judges whether the server had a right to close.
"""

from __future__ import annotations

import abc
import hashlib
import itertools
import random
import threading
import time
import traceback
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from soak.apps import content
from soak.wire import Broken, Connection, Head

KIB, MIB = 1024, 1024 * 1024

# A mount that sleeps when nobody asks is asked for so long, then left alone for as long.
LAZY_S = 10.0

# How long after a reload was said to be done an answer of the generation before is still in order: it drains meanwhile, and on a busy
# machine that takes a while to begin.
STALE_S = 5.0


class Arrivals:
    """Which generation of a mount serves in a worker, and since when, as the reloads have it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int], tuple[list[float], list[int]]] = {}

    def add(self, mount: str, worker: int, generation: int, at: float) -> None:
        with self._lock:
            times, generations = self._known.setdefault((mount, worker), ([], []))
            times.append(at)
            generations.append(generation)

    def oldest_allowed(self, mount: str, worker: int, sent_at: float, born_at: float) -> int:
        """Return the oldest generation that may answer a request.

        Args:
            born_at: when the one that did was loaded. It is none of those that came before, which may be of an earlier worker with the
                same process id.
        """
        with self._lock:
            times, generations = self._known.get((mount, worker), ([], []))
            before = bisect_right(times, sent_at - STALE_S)
            return generations[before - 1] if before and times[before - 1] > born_at else 0


class Account:
    """What came of every request; for all threads.

    Args:
        tell: takes what is not an ordinary answer.
    """

    def __init__(self, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self.tell = tell
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._quick_s: defaultdict[str, list[float]] = defaultdict(list)  # by phase
        self.phase = ""
        self._stalls: list[tuple[float, float]] = []  # end and length

    def note_stall(self, until: float, seconds: float) -> None:
        """Note that this process was kept from running."""
        with self._lock:
            self._stalls.append((until, seconds))

    def stalled_s(self, since: float, until: float) -> float:
        """Return for how long this process was kept from running between two moments."""
        with self._lock:
            return sum(seconds for end, seconds in self._stalls if since < end and end - seconds < until)

    def longest_stall_s(self) -> float:
        with self._lock:
            return round(max((seconds for _, seconds in self._stalls), default=0.0), 2)

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self._counts[what] += number

    def note_quick(self, seconds: float, phase: str) -> None:
        """Note how long a small request took that was sent in one piece, and in which phase it was sent."""
        with self._lock:
            self._quick_s[phase].append(seconds)

    def rename_phase(self, old: str, new: str) -> None:
        """Count what was noted in one phase with another one."""
        with self._lock:
            self._quick_s[new] += self._quick_s.pop(old, [])

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def latencies(self) -> dict[str, float]:
        """Return what small requests took, in all phases together."""
        with self._lock:
            return _quantiles(list(itertools.chain.from_iterable(self._quick_s.values())))

    def latencies_by_phase(self) -> dict[str, dict[str, float]]:
        with self._lock:
            return {phase: {"count": len(found), **_quantiles(found)} for phase, found in self._quick_s.items()}


def _quantiles(seconds: list[float]) -> dict[str, float]:
    found = sorted(seconds)
    return {name: round(found[int((len(found) - 1) * share)] * 1000, 2) for name, share in _SHARES.items()} if found else {}


_SHARES = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all clients have in common."""

    address: tuple[str, int]
    mounts: Sequence[str]
    processes: Sequence[str]  # those of them that live in processes
    lazy: Sequence[str]  # those that sleep when nobody asks
    account: Account
    arrivals: Arrivals
    stop: threading.Event


class Body:
    """An answer's body as it should be.

    Attributes:
        fault: what is wrong with what came so far; "" if nothing is.
    """

    def __init__(self, expected: Iterable[bytes]) -> None:
        self.fault = ""
        self._expected = iter(expected)
        self._rest = b""
        self._length = 0

    def take(self, data: bytes) -> None:
        while data and not self.fault:
            self._rest = self._rest or next(self._expected, b"")
            count = min(len(data), len(self._rest))
            if data[:count] != self._rest[:count]:
                self.fault = f"the body differs within {count} bytes from byte {self._length}: {data[:60]!r}"
            elif not count:
                self.fault = f"the body continues after its {self._length} bytes: {data[:60]!r}"
            self._length += count
            data, self._rest = data[count:], self._rest[count:]

    def end(self) -> str:
        if not self.fault and (self._rest or next(self._expected, b"")):
            self.fault = f"the body ends after {self._length} bytes"
        return self.fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request, and what is to come of it.

    Attributes:
        head: without the body.
        body: pieces to send behind it, framed as they are to be sent.
        answer: pieces of the answer's body; None: it is `content.small`.
    """

    mount: str
    token: str
    head: bytes
    body: Callable[[], Iterable[bytes]] | None = None
    answer: Callable[[], Iterable[bytes]] | None = None

    def sent_body(self) -> Iterable[bytes]:
        return self.body() if self.body else ()

    def expected(self) -> Iterable[bytes]:
        return self.answer() if self.answer else [content.small(self.mount, self.token)]


_numbers = itertools.count(1)


class Client(abc.ABC):
    """A client that does the same thing over and over.

    Args:
        pause_s: between two turns, on average.
    """

    kind = ""
    favours_processes = False  # with requests that last, so that a kill of a process finds some in flight

    def __init__(self, shared: Shared, pause_s: float, seed: int) -> None:
        self._shared = shared
        self._account = shared.account
        self._pause_s = pause_s
        self._random = random.Random(seed)
        self._connection: Connection | None = None

    def run(self) -> None:
        """Do it until the end of the load."""
        try:
            while not self._shared.stop.is_set():
                self.turn()
                self._shared.stop.wait(self._random.uniform(0.5, 1.5) * self._pause_s)
        except Exception:
            self._account.tell({"event": "mistake", "kind": self.kind, "traceback": traceback.format_exc()})
        finally:
            self.leave()

    @abc.abstractmethod
    def turn(self) -> None:
        """Ask once, in the way of its kind."""

    # Requests.

    def mount(self) -> str:
        """Return a mount to ask, at random."""
        if self.favours_processes and self._random.random() < 0.5:
            return self._random.choice(self._shared.processes)
        is_lazy_time = int(time.monotonic() / LAZY_S) % 2 == 0
        return self._random.choice([mount for mount in self._shared.mounts if is_lazy_time or mount not in self._shared.lazy])

    def seed(self) -> int:
        return self._random.randrange(1_000_000)

    def request(self, method: str, path: str, fields: str = "", **bodies: Callable[[], Iterable[bytes]]) -> Request:
        mount = self.mount()
        token = f"{self.kind}-{next(_numbers)}"
        head = f"{method} {mount}{path} HTTP/1.1\r\nHost: soak\r\nSoak-Token: {token}\r\n{fields}\r\n".encode()
        return Request(mount=mount, token=token, head=head, **bodies)

    def small(self, fields: str = "") -> Request:
        return self.request("GET", "/small", fields)

    def give(self, length: int) -> Request:
        seed = self.seed()
        return self.request("GET", f"/give?seed={seed}&length={length}", answer=lambda: content.pieces(seed, length))

    def stream(self, length: int, pause_ms: int) -> Request:
        seed = self.seed()
        return self.request("GET", f"/stream?seed={seed}&length={length}&pause_ms={pause_ms}", answer=lambda: content.pieces(seed, length))

    def take(self, length: int, *, chunked: bool, piece: int = content.PIECE) -> Request:
        seed = self.seed()
        return self.request(
            "POST",
            "/take",
            framing(length, chunked),
            body=lambda: framed(content.pieces(seed, length, piece), chunked),
            answer=lambda: [content.digest_text(length, hashlib.sha256(b"".join(content.pieces(seed, length))).hexdigest())],
        )

    def echo(self, length: int, *, chunked: bool) -> Request:
        seed = self.seed()
        return self.request(
            "POST",
            "/echo",
            framing(length, chunked),
            body=lambda: framed(content.pieces(seed, length), chunked),
            answer=lambda: content.pieces(seed, length),
        )

    # Exchanges.

    def ask(self, request: Request) -> bool:
        """Have a request answered, on the connection that is open or another; False if that failed, which is told."""
        for _ in range(5):
            connection = self.connect(request)
            if connection is None:
                return False
            try:
                self.exchange(connection, request)
            except Broken as exc:
                if self.break_off(connection, request, exc):
                    continue
                return False
            return True
        return False

    def connect(self, request: Request) -> Connection | None:
        """Return the open connection, or a new one; None if there is none to have, which is told."""
        connection = self._connection
        if connection is not None and connection.has_news():
            # Closed while nothing was asked on it: no request is lost by that.
            connection.begin_request()
            self._tell("closed-idle", connection, request, how="closed")
            self.leave()
        if self._connection is None:
            try:
                self._connection = self.open()
            except Broken as exc:
                self._account.count(f"{self.kind}: sent")
                self._fail(request, {"how": exc.how, "detail": str(exc), "sent_at": time.monotonic(), "port": 0})
                return None
            self._account.count("connections")
        return self._connection

    def open(self) -> Connection:
        return Connection(self._shared.address)

    def leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def exchange(self, connection: Connection, request: Request) -> None:
        """Send a request and read its answer; raises Broken."""
        self._account.count(f"{self.kind}: sent")
        connection.begin_request()
        self.send(connection, request)
        self.receive(connection, request)

    def send(self, connection: Connection, request: Request) -> None:
        """Send a request; if the server stops reading, the answer says why, or its absence."""
        if connection.send(request.head):
            for piece in request.sent_body():
                if not connection.send(piece):
                    break
                self._account.count("bytes sent", len(piece))

    def receive(self, connection: Connection, request: Request) -> None:
        """Read an answer and judge it; raises Broken."""
        head = connection.head()
        body = Body(request.expected() if head.status == 200 else [])
        connection.body(head, body.take if head.status == 200 else _ignore)
        if head.status != 200:
            self._fail(request, self._facts(connection) | {"how": "status", "status": head.status, "detail": str(head.fields)})
            self.leave()
        elif fault := self._fault(connection, request, head) or body.end():
            self._fail(request, self._facts(connection) | {"how": "wrong", "detail": fault})
            self.leave()
        else:
            self._account.count(f"{self.kind}: answered")
            if head.says_close:
                self.leave()

    def break_off(self, connection: Connection, request: Request, broken: Broken) -> bool:
        """Give up a connection that broke; True if the request is to be sent again."""
        self.leave()
        facts = self._facts(connection) | {"how": broken.how, "got": broken.got, "detail": str(broken)}
        if broken.how in ("reset", "closed") and not broken.got and connection.answers:
            self._tell("retried", connection, request, how=broken.how)
            self._account.count(f"{self.kind}: retried")
            return True
        self._fail(request, facts)
        return False

    def _fault(self, connection: Connection, request: Request, head: Head) -> str:
        """Say what is wrong with where an answer came from; "" if nothing is."""
        fields = head.fields
        mount = request.mount
        if not (fields.get("soak-mount") == fields.get("soak-path") == mount):
            return f"expected an answer of {mount}, got {fields}"
        if fields["soak-token"] != request.token:
            return f"expected the answer to {request.token}, got the one to {fields['soak-token']}"
        generation, worker = int(fields["soak-generation"]), int(fields["soak-worker"])
        if connection.worker not in (0, worker):
            return f"the connection went from worker {connection.worker} to {worker}"
        connection.worker = worker
        newest = connection.generations.get(mount, 0)
        if generation < newest:
            return f"{mount}: generation {generation} after {newest} on the same connection"
        connection.generations[mount] = generation
        born_at = int(fields["soak-born"]) / 1e9
        if generation < (oldest := self._shared.arrivals.oldest_allowed(mount, worker, connection.asked_at, born_at)):
            return f"{mount}: generation {generation} of worker {worker}, {STALE_S:g} s after {oldest} was said to serve"
        return ""

    def idle_s(self, connection: Connection) -> float:
        """Return for how long the connection may have been idle, as the server sees it, before the current request came."""
        stalled_s = self._account.stalled_s(connection.asked_before, connection.asked_at)
        return connection.asked_at - self.done_at(connection) + stalled_s

    def done_at(self, connection: Connection) -> float:
        """Return when the server may have been done with the last answer."""
        return connection.answered_at

    def _facts(self, connection: Connection) -> dict[str, Any]:
        return {
            "port": connection.port,
            "opened_at": connection.opened_at,
            "sent_at": connection.asked_at,
            "answers": connection.answers,
            "idle_s": round(self.idle_s(connection), 3),
            "worker": connection.worker,
            "got": 0,
        }

    def _fail(self, request: Request, facts: Mapping[str, Any]) -> None:
        self._account.count(f"{self.kind}: failed")
        about = {"kind": self.kind, "mount": request.mount, "token": request.token, "at": time.monotonic()}
        self._account.tell({"event": "failed", **about, "has_body": request.body is not None, **facts})

    def _tell(self, event: str, connection: Connection, request: Request, **more: Any) -> None:
        about = {"kind": self.kind, "mount": request.mount, "token": request.token, "at": time.monotonic()}
        self._account.tell({"event": event, **about, **self._facts(connection), **more})


class KeepsAlive(Client):
    """Asks one mount after another on a connection, for as long as the server lets it; now and then it says nothing for seconds."""

    kind = "keep-alive"

    def turn(self) -> None:
        began, phase = time.monotonic(), self._account.phase
        if self.ask(self.small()):
            self._account.note_quick(time.monotonic() - began, phase)
        if self._random.random() < 0.01:
            self._shared.stop.wait(self._random.uniform(1.0, 8.0))


class Closes(Client):
    """Has a connection for each request and wants it closed."""

    kind = "close"

    def turn(self) -> None:
        self.ask(self.small("Connection: close\r\n"))
        self.leave()


class ClosesItsHalf(Client):
    """Ends its side of the connection behind each request."""

    kind = "half-close"

    def turn(self) -> None:
        self.ask(self.small())
        self.leave()

    def send(self, connection: Connection, request: Request) -> None:
        super().send(connection, request)
        connection.end_sending()


class Pipelines(Client):
    """Sends some requests at once, each for another mount."""

    kind = "pipelined"

    def turn(self) -> None:
        requests = [self.small() for _ in range(self._random.randint(2, 8))]
        connection = self.connect(requests[0])
        if connection is None:
            return
        self._account.count(f"{self.kind}: sent", len(requests))
        connection.begin_request()
        connection.send(b"".join(request.head for request in requests))
        for number, request in enumerate(requests):
            connection.begin_answer()
            try:
                self.receive(connection, request)
            except Broken as exc:
                for lost in requests[number:]:
                    self.break_off(connection, lost, exc if lost is request else Broken(exc.how, 0))
                return
            if self._connection is None:  # that was the last answer on it; what was sent behind is not looked at by anybody
                self._account.count(f"{self.kind}: behind a close", len(requests) - number - 1)
                return


class Downloads(Client):
    kind = "download"

    def turn(self) -> None:
        self.ask(self.give(self._random.randint(1, 4 * MIB)))


class Streams(Client):
    """Reads a response in chunks that come one by one."""

    kind = "stream"
    favours_processes = True

    def turn(self) -> None:
        self.ask(self.stream(self._random.randint(1, 512 * KIB), pause_ms=self._random.choice([0, 20, 100])))


class Uploads(Client):
    kind = "upload"

    def turn(self) -> None:
        self.ask(self.take(self._random.randint(1, 4 * MIB), chunked=False))


class UploadsChunks(Client):
    kind = "chunked upload"

    def turn(self) -> None:
        self.ask(self.take(self._random.randint(1, MIB), chunked=True, piece=self._random.choice([100, 5_000, 65_536, 200_000]) + 1))


class Echoes(Client):
    """Sends a big body and reads a big body at the same time."""

    kind = "echo"

    def turn(self) -> None:
        self.ask(self.echo(self._random.randint(1, 2 * MIB), chunked=self._random.random() < 0.5))

    def exchange(self, connection: Connection, request: Request) -> None:
        self._account.count(f"{self.kind}: sent")
        connection.begin_request()
        sender = threading.Thread(target=self.send, args=(connection, request))
        sender.start()
        try:
            self.receive(connection, request)
        except Broken:
            connection.end_sending()  # else the sender could wait for ever
            raise
        finally:
            sender.join()


class SendsSlowly(Client):
    """Sends a head, and a body, in pieces with pauses."""

    kind = "slow sender"
    favours_processes = True

    def turn(self) -> None:
        if self._random.random() < 0.5:
            self.ask(self.small())
        else:
            self.ask(self.take(20_000, chunked=self._random.random() < 0.5, piece=4_001))

    def send(self, connection: Connection, request: Request) -> None:
        step = len(request.head) // 4 + 1
        slices = (request.head[at : at + step] for at in range(0, len(request.head), step))
        for piece in itertools.chain(slices, request.sent_body()):
            if not connection.send(piece):
                return
            self._shared.stop.wait(self._random.uniform(0.1, 0.8))


class ReadsSlowly(Client):
    """Reads a big response in small pieces with pauses, through a small buffer, so that the server's thread has to wait."""

    kind = "slow reader"
    favours_processes = True

    def open(self) -> Connection:
        return Connection(self._shared.address, receive_buffer=16 * KIB)

    def turn(self) -> None:
        self.ask(self.give(self._random.randint(1, MIB)))

    def receive(self, connection: Connection, request: Request) -> None:
        super().receive(connection, self._slowed(request))

    def done_at(self, connection: Connection) -> float:
        return connection.headed_at  # the rest may all have been in the kernel's buffers by then

    def _slowed(self, request: Request) -> Request:
        def answer() -> Iterator[bytes]:
            for piece in request.expected():
                self._shared.stop.wait(0.2)
                yield piece

        return replace(request, answer=answer)


class Vanishes(Client):
    """Leaves at any moment, in peace or by a reset. It gets no answer, and wants none."""

    kind = "vanishing"

    def turn(self) -> None:
        kinds: list[Callable[[], Request]] = [
            self.small,
            lambda: self.give(2 * MIB),
            lambda: self.stream(256 * KIB, 50),
            lambda: self.take(MIB, chunked=False),
        ]
        request = self._random.choice(kinds)()
        if (connection := self.connect(request)) is None:
            return
        self._connection = None
        stage = self._random.choice(["nothing", "head", "body", "answer", "middle"])
        try:
            if stage == "head":
                connection.send(request.head[: self._random.randrange(len(request.head))])
            elif stage != "nothing":
                connection.send(request.head)
                connection.send(next(iter(request.sent_body()), b""))
            if stage == "middle" and request.body is None:
                connection.head()
        except Broken:
            pass  # whatever becomes of it
        if self._random.random() < 0.5:
            connection.reset()
        else:
            connection.close()
        self._account.count("vanished")


def framing(length: int, chunked: bool) -> str:
    return "Transfer-Encoding: chunked\r\n" if chunked else f"Content-Length: {length}\r\n"


def framed(pieces: Iterable[bytes], chunked: bool) -> Iterator[bytes]:
    """Yield a body as it is to be sent."""
    if not chunked:
        yield from pieces
        return
    for piece in pieces:
        yield b"%X\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def _ignore(data: bytes) -> None:
    return


# How many of each, and seconds between their turns: some 250 requests/s in all, which leaves most of two cores to the server.
CROWD: Sequence[tuple[type[Client], int, float]] = (
    (KeepsAlive, 6, 0.06),
    (Closes, 3, 0.06),
    (ClosesItsHalf, 1, 0.2),
    (Pipelines, 2, 0.25),
    (Downloads, 2, 0.6),
    (Streams, 6, 0.3),
    (Uploads, 2, 0.6),
    (UploadsChunks, 2, 0.6),
    (Echoes, 1, 0.6),
    (SendsSlowly, 5, 0.5),
    (ReadsSlowly, 4, 0.5),
    (Vanishes, 2, 0.25),
)


def crowd(shared: Shared, seed: int) -> list[Client]:
    """Return all clients of a load."""
    return _clients(shared, seed, CROWD)


# Small requests only, some 160 a second: what else happens must show in how long they take.
LIGHT: Sequence[tuple[type[Client], int, float]] = ((KeepsAlive, 6, 0.05), (Closes, 1, 0.05), (Pipelines, 1, 0.25))


def light(shared: Shared, seed: int) -> list[Client]:
    """Return the clients of a light load."""
    return _clients(shared, seed, LIGHT)


def _clients(shared: Shared, seed: int, kinds: Sequence[tuple[type[Client], int, float]]) -> list[Client]:
    seeds = itertools.count(seed * 1000)
    return [kind(shared, pause_s, next(seeds)) for kind, count, pause_s in kinds for _ in range(count)]
