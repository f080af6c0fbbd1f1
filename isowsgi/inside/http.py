"""A request's bytes in and a response's bytes out, in as few system calls as that takes."""

from __future__ import annotations

import errno
import io
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from time import time_ns  # by its own name: each request pays for a look into a module
from typing import Any, NamedTuple

from gunicorn import SERVER
from gunicorn.http.unreader import Unreader
from gunicorn.http.wsgi import _make_early_hints_callback
from gunicorn.util import has_fileno

from isowsgi.inside.errornotes import note_failed, note_given
from isowsgi.inside.fields import BLOCKS, STATUSES, Status, check_block, check_status
from isowsgi.shared.peek import Line
from isowsgi.shared.rows import RESPONSES, ROW_WORDS

# Most bytes asked for in one recv() of a body: gunicorn's own bound, SocketUnreader.max_body_chunk.
_MAX_RECV_BYTES = 1024 * 1024

# Most bytes peeked at for the end of a chunk-size or trailer line.
_LINE_PEEK_BYTES = 8192

# A body chunk up to this size is copied behind the head, so that one system call and one packet carry both.
_JOIN_MAX_BYTES = 64 * 1024

_DONT_WAIT = int(socket.MSG_DONTWAIT)

# Most bytes per sendfile() call: the kernel's own bound, MAX_RW_COUNT, is a page less than 2 GiB.
_MAX_SENDFILE_BYTES = 1 << 30

# Most bytes of a file that one client gets in a row where others may wait for their part: nginx's default for sendfile_max_chunk.
_SHARE_BYTES = 2 << 20

# For how long a thread waits at a time for a client before it leaves the rest of a file to the sender, and in all. A quick client has a
# file sooner from a thread of its own than by turns with others: 40 files of 10 MiB for 4 clients on 2 cores took 0.20 s, by turns 0.32.
_QUICK_MS = 5
_MOST_QUICK_S = 0.05

# What follows goes into the same packet.
_MORE = int(socket.MSG_MORE)


# What a call that reads a file and sends it fails with if it is for the client: all else is for the file.
_FROM_CLIENTS = frozenset(
    {errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.ETIMEDOUT, errno.EAGAIN, errno.EHOSTUNREACH}
)


class FilePart:
    """What of a file is not sent yet; it goes out by sendfile(), without being read into this process.

    Attributes:
        left: bytes.
    """

    __slots__ = ("_fd", "_offset", "left")

    def __init__(self, fd: int, offset: int, count: int) -> None:
        self._fd = fd
        self._offset = offset
        self.left = count

    def send(self, sock_fd: int, most: int) -> int:
        """Send the next bytes; return how many.

        Raises:
            BlockingIOError: the connection takes nothing now.
            EOFError: nothing is left, or the file was cut short meanwhile.
            ClientGone, ClientStalled: there is nobody to send it to.
            OSError: of the file; the log should have it.
        """
        try:
            sent = os.sendfile(sock_fd, self._fd, self._offset, min(self.left, most)) if self.left else 0
        except BlockingIOError:
            raise
        except OSError as exc:
            if exc.errno in _FROM_CLIENTS:
                raise _client_error(exc) from exc
            raise
        if sent == 0:
            raise EOFError
        self._offset += sent
        self.left -= sent
        return sent


class ClientGone(ConnectionError):
    """The client closed the connection or reset it before it had the response."""


class ClientStalled(TimeoutError):
    """The client neither sent nor read a byte for the time that a connection may stand still."""


def _client_error(exc: OSError) -> OSError:
    """Tell a client's failure apart from an OSError of the app's own, which is a 500."""
    if isinstance(exc, (BlockingIOError, TimeoutError)):  # SO_RCVTIMEO or SO_SNDTIMEO ran out, or the timeout that bounds a drain
        return ClientStalled("the client sent nothing more in time")
    return ClientGone(str(exc))


class ExactReader(Unreader):  # type: ignore[misc] # gunicorn is not annotated
    """Feeds gunicorn's parser, and never takes a byte that lies behind the request.

    What follows may be the next request, and that may be another mount's: it must stay in the kernel's buffer, where the peeker looks.
    So a body of known length is read to its end and no further, and a chunked one line by line.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock
        self.reads = 0  # so far; a sign of progress
        self.taken = 0  # bytes of the current request's body
        self.is_waiting = False  # whether a thread waits for the client in here
        self.is_timed_out = False  # whether the watcher has ended the connection, for the client was too slow
        self._lines = 0  # whole ones since the last data of a chunk, or since the head

    def put_head(self, head: bytes) -> None:
        """Let the parser read these bytes first; nothing may be left of a request before."""
        self.buf = io.BytesIO(head)
        self._lines = 0

    def chunk(self, size_hint: int | None = None) -> bytes:
        self.reads += 1
        self.is_waiting = True
        try:
            if size_hint:
                data = self.sock.recv(min(size_hint, _MAX_RECV_BYTES))
                self._lines = 0
            else:
                data = self._take_line()
            self.taken += len(data)
            if not data and self.is_timed_out:
                raise TimeoutError
            return data
        except OSError as exc:
            raise _client_error(exc) from exc
        finally:
            self.is_waiting = False

    def _take_line(self) -> bytes:
        """Read a line of a chunked body; of trailers, which may be many, all that are there.

        gunicorn's parser looks through all trailers that it has whenever it gets more. By the line, 800 KB of short ones would cost the
        square of their number: minutes. Two lines that no data came between, the end of a chunk and a size, are behind the last chunk only.
        """
        peeked = self.sock.recv(_LINE_PEEK_BYTES, socket.MSG_PEEK)
        if self._lines < 2 or peeked.startswith(b"\r\n"):
            end = peeked.find(b"\n") + 1
        elif (last := peeked.find(b"\r\n\r\n")) >= 0:
            end = last + 4
        else:
            end = peeked.rfind(b"\n") + 1
        data = self.sock.recv(end or len(peeked))
        self._lines = self._lines + 1 if data.endswith(b"\n") else min(self._lines, 1)  # within a line: the next read ends that one alone
        return data


class _LineOf(NamedTuple):
    """What a response needs of a request line that gunicorn's parser has read."""

    is_head: bool
    version: tuple[int, int]


class _NotWatched:
    """The ending of a request that nobody watches."""

    ident = 0  # no thread's

    def claim(self) -> bool:
        return True

    hold_status = claim

    def release_status(self) -> None: ...


class Outgoing:
    """What goes to one client: bytes, and files.

    Attributes:
        sent: bytes of the body so far.
        is_sending: whether a thread is in a call that waits while the client takes nothing.
        sending_ns: for how long its thread has waited for the client to take it, or has sent a file.
        unsent: what the client has not taken of a file that was left to the sender, see `Response.write_file`.
    """

    sock: socket.socket
    sent = 0
    is_sending = False
    sending_ns = 0
    unsent: FilePart | None = None

    def _send(self, data: bytes, flags: int = _DONT_WAIT) -> None:
        """Send bytes. Nearly always the kernel has room for all of them: then nobody is waited for, and no clock is read."""
        try:
            sent = self.sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            raise _client_error(exc) from exc
        if sent != len(data):
            self._send_patiently(memoryview(data)[sent:])

    def _send_patiently(self, data: memoryview) -> None:
        self.is_sending = True
        began = time.monotonic_ns()
        try:
            self.sock.sendall(data)
        except OSError as exc:
            raise _client_error(exc) from exc
        finally:
            self.is_sending = False
            self.sending_ns += time.monotonic_ns() - began

    def _send_file(self, part: FilePart) -> None:
        """Send all of it, and wait for the client."""
        self.is_sending = True
        began = time.monotonic_ns()
        try:
            while True:
                try:
                    self.sent += part.send(self.sock.fileno(), _MAX_SENDFILE_BYTES)
                except EOFError:
                    return
                except BlockingIOError as exc:  # SO_SNDTIMEO has run out
                    raise _client_error(exc) from exc
        finally:
            self.is_sending = False
            self.sending_ns += time.monotonic_ns() - began

    def _begin_file(self, part: FilePart) -> None:
        """Send what the client takes quickly, and leave the rest."""
        fd, began = self.sock.fileno(), time.monotonic_ns()
        os.set_blocking(fd, False)
        try:
            is_whole = self.send_part(part)
            if not is_whole:
                waits = select.poll()
                waits.register(fd, select.POLLOUT)
                end = began + int(_MOST_QUICK_S * 1e9)
                while not is_whole and time.monotonic_ns() < end and waits.poll(_QUICK_MS):
                    is_whole = self.send_part(part)
                self.sending_ns += time.monotonic_ns() - began
        except BaseException:
            os.set_blocking(self.sock.fileno(), True)
            raise
        if is_whole:
            os.set_blocking(self.sock.fileno(), True)
        else:
            self.unsent = part

    def send_part(self, part: FilePart) -> bool:
        """Send a client its share of a file, or what it takes of that; return whether nothing is left. The connection must not block.

        Raises:
            ClientGone, OSError: see `FilePart.send`.
        """
        end = self.sent + _SHARE_BYTES
        try:
            while self.sent < end:
                self.sent += part.send(self.sock.fileno(), end - self.sent)
        except BlockingIOError:
            return False
        except EOFError:
            return True
        return part.left == 0


class Response(Outgoing):
    """A response on its way to the client: checks and framing as gunicorn's own class has them, head and first chunk in one send.

    Attributes:
        status, headers, sent: as gunicorn's access log reads them.
        headers_sent: whether the client has a status already.
        dropped: bytes of a body that the app gave with a status that has none.
        board: the words of the thread's row.
        is_taken_over: whether the app has its client's connection to itself, see `takeover`.
        ending: the request's, see `ending.Ending`, once it has one.
        timing: returns a Server-Timing field for the head; None: it has none of ours.
    """

    # Most stay as they are here; set in the class, they cost a request nothing.
    _request: Any = None
    board = memoryview(bytearray(8 * ROW_WORDS)).cast("q")  # nobody's
    ending: Any = _NotWatched()
    status: str | None = None
    headers_sent = False
    dropped = 0
    response_length: int | None = None
    chunked = False
    upgrade = False
    must_close = False
    is_taken_over = False
    timing: Callable[[], bytes] | None = None
    _lines = b"\r\n"  # of the head, for `headers`, and the empty one
    _pairs: tuple[tuple[str, str], ...] = ()
    _omits_body = False
    is_5xx = False  # whether that is what the app wants the client to get
    _word = RESPONSES  # where a response with its status is counted

    def __init__(self, request: Any, sock: socket.socket, cfg: Any) -> None:
        self._request = request
        self.sock = sock
        self.cfg = cfg
        self.body: Any = getattr(request, "body", None)
        self._line: Line | _LineOf = _LineOf(request.method == "HEAD", request.version)

    @property
    def req(self) -> Any:
        """The request, under gunicorn's name."""
        if self._request is None:
            self._request = self._make_request()
        return self._request

    def _make_request(self) -> Any:
        raise AssertionError("it was given one")

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The fields that the app has given, under gunicorn's name."""
        return [*self._pairs]

    @property
    def status_code(self) -> int:
        """The status as a number, under gunicorn's name: loggers of users read it."""
        return int(self.status.split(None, 1)[0]) if self.status else 0

    def force_close(self) -> None:
        self.must_close = True

    def should_close(self) -> bool:
        if self.must_close or (self._request is not None and self._request.should_close()):
            return True
        # Without a length the end of the connection is the end of the body.
        return self.response_length is None and not self.chunked and not self._omits_body

    @property
    def truncated(self) -> bool:
        """Whether the app gave fewer bytes than its Content-Length promised."""
        return self.response_length is not None and self.sent < self.response_length and not self._omits_body

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        """PEP 3333's callable."""
        if exc_info:
            try:
                if self.is_taken_over:
                    return self.write
                note_given(exc_info)
                if self.headers_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # no cycle through the traceback
        elif self.status is not None:
            if self.is_taken_over:
                return self.write
            raise AssertionError("start_response was called twice without exc_info")
        # If any of it is bad, nothing changes: a first call's stands.
        known = STATUSES.get(status) or check_status(status)
        headers = tuple(headers)
        try:
            block = BLOCKS.get(headers)
        except TypeError:  # one of them is a list
            block = None
        block = block or check_block(headers)
        if self.status is not None:
            self._omits_body = self.chunked = False
        self._pairs, self._lines, self.response_length, self.upgrade = block
        self.status = status
        self._word, is_special, _, _ = known
        if is_special or self.response_length is None or self._line.is_head:
            self._frame(known)
        return self.write

    def _frame(self, known: Status) -> None:
        """Say how the end of the body is known, and whether there is one, where its length does not say it all."""
        if known.word == RESPONSES + 5:
            self.is_5xx = True
            note_failed(self.ending.ident)
        self._omits_body = known.omits_body or self._line.is_head
        if known.has_no_length and self.response_length is not None:
            self._pairs, self._lines, self.response_length, _ = check_block(
                tuple(pair for pair in self._pairs if pair[0].lower() != "content-length")
            )
        self.chunked = self.response_length is None and not self._omits_body and self._line.version > (1, 0)

    def write(self, data: bytes) -> None:
        """Send a chunk of the body, and the head before the first."""
        if not isinstance(data, bytes):
            raise TypeError(f"{data!r} is not a byte string")
        size, length = len(data), self.response_length
        if not size:
            return  # PEP 3333: the head goes out with the first byte of the body, not before
        if self._omits_body:
            self._drop(data)
            return
        if size == length and size <= _JOIN_MAX_BYTES and not self.headers_sent:  # all of it, as most apps give it
            head = self._head()
            self.sent = size
            self._send(head + data)
            return
        if length is not None and size > length - self.sent:
            data = data[: length - self.sent]
            if not data:
                return
            size = len(data)
        framed = b"%X\r\n%b\r\n" % (size, data) if self.chunked else data
        if not self.headers_sent:
            head = self._head()
            if size <= _JOIN_MAX_BYTES:
                framed = head + framed
            else:
                self._send(head)
        self.sent += size
        self._send(framed)

    def give_way(self) -> None:
        """Say that the app has taken the connection over: whatever it gives from here on is not sent."""
        self.is_taken_over = self.headers_sent = self.must_close = True
        self.response_length, self.chunked = None, False
        self._omits_body = True
        if self.status is None:
            self.status = "101 Switching Protocols"
            self.board[RESPONSES + 1] += 1

    def close(self) -> None:
        """Send what the app's silence means: the head of an empty response, the end of a chunked one."""
        if not self.headers_sent:
            self._send(self._head() + (b"0\r\n\r\n" if self.chunked else b""))
        elif self.chunked:
            self._send(b"0\r\n\r\n")

    def write_file(self, wrapper: Any, may_leave: bool = False) -> None:
        """Send a `wsgi.file_wrapper`, by sendfile() where that can be done.

        Args:
            may_leave: whether what the client does not take at once is left, as `unsent`. The connection does not block from then on.
        """
        if self._omits_body:
            return  # nothing of the file need be read for that; `close` sends the head
        if not self._sendfile(wrapper, may_leave):
            for chunk in wrapper:
                self.write(chunk)

    def send_early_hints(self, fields: Any) -> None:
        """`wsgi.early_hints`: send a 103 response before the final one; without effect for HTTP/1.0 and after the head."""
        if self.headers_sent:
            return
        if not self.ending.hold_status():
            raise ClientGone("the request has timed out")
        try:
            _make_early_hints_callback(self.req, self.sock, self)(fields)
        except OSError as exc:
            raise _client_error(exc) from exc
        finally:
            self.ending.release_status()

    def _sendfile(self, wrapper: Any, may_leave: bool) -> bool:
        """Send a file without reading it into this process; False when that cannot be done and nothing was sent.

        `socket.sendfile`, which gunicorn goes through, waits for a client that does not read without any limit.
        """
        if not self.cfg.sendfile or self.headers_sent or not has_fileno(wrapper.filelike):
            return False  # after write() the file is only a part of the body
        fd = wrapper.filelike.fileno()
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:  # files in /proc are regular, and say 0 whatever they hold
            return False
        # A buffered reader may have read ahead of what the app took from it, so the descriptor's own offset is not the app's.
        offset = wrapper.filelike.tell() if hasattr(wrapper.filelike, "tell") else os.lseek(fd, 0, os.SEEK_CUR)
        count = max(status.st_size - offset, 0)
        if self.response_length is not None:
            count = min(count, self.response_length)
        framed = self.chunked and count > 0
        if count:
            os.pread(fd, 1, offset)  # what cannot be read, as it is open for writing only, is the app's mistake: while there is no head yet
        self._send(self._head() + (b"%X\r\n" % count if framed else b""), _DONT_WAIT | _MORE if count else _DONT_WAIT)
        part = FilePart(fd, offset, count)
        if may_leave and not framed:
            self._begin_file(part)
            return True
        self._send_file(part)
        if framed:
            if self.sent < count:
                raise OSError(f"the file shrank while it was sent: {self.sent} of {count} bytes; the response cannot be completed")
            self._send(b"\r\n")
        return True

    def _drop(self, data: bytes) -> None:
        if not self.headers_sent:
            self._send(self._head())
        if not self._line.is_head:  # frameworks answer HEAD by their GET view
            self.dropped += len(data)

    def _head(self) -> bytes:
        if self.status is None:
            raise AssertionError("the app returned without calling start_response")
        if not self.ending.claim():
            raise ClientGone("the request has timed out")
        self.headers_sent = True
        self.board[self._word] += 1  # by no verb of the row: each request would pay for the call
        # What needs no question: most requests ask for nothing that is not known, and most responses have a length.
        if (self.response_length is None or self._request is not None) and self.should_close():
            self.must_close = True  # decided with this head, which says so
        now = time_ns() // 1_000_000_000
        second, heads = _heads
        key = self._line.version, self.status, self.upgrade, self.must_close, self.chunked
        start = (heads.get(key) if second == now else None) or _head_start(now, key)
        if self.timing is not None:
            start += self.timing()
        return start + self._lines


# A second, and heads as they begin in it: with a Date field (RFC 9110 section 5.6.7).
_heads: tuple[int, dict[tuple[Any, ...], bytes]] = (0, {})


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(seconds: float) -> str:
    """Return a time since the epoch as the Date field has it (RFC 9110 section 5.6.7); `email.utils` goes through `datetime` for it."""
    at = time.gmtime(seconds)
    day, month = _DAYS[at.tm_wday], _MONTHS[at.tm_mon - 1]
    return f"{day}, {at.tm_mday:02d} {month} {at.tm_year:04d} {at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d} GMT"


def _head_start(now: int, key: tuple[Any, ...]) -> bytes:
    """Return a head up to the fields that server and app do not always say the same in, and remember it for this second.

    Args:
        now: seconds since the epoch.
        key: the request's version, the status line's end, whether the connection is upgraded or closed, and whether the body is chunked.
    """
    global _heads
    second, heads = _heads
    if second != now:
        heads = {}
        _heads = (now, heads)  # one assignment: threads see the old pair or the new one
    (major, minor), status, upgrade, must_close, is_chunked = key
    connection = "upgrade" if upgrade else "close" if must_close else "keep-alive"
    framing = "Transfer-Encoding: chunked\r\n" if is_chunked else ""
    text = f"HTTP/{major}.{minor} {status}\r\nServer: {SERVER}\r\nDate: {http_date(now)}\r\n"
    head = heads[key] = f"{text}Connection: {connection}\r\n{framing}".encode("latin-1")
    return head
