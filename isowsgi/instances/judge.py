"""The judge outside: cuts requests off whose interpreter stands still, control thread and all, as C code holds its own GIL."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from isowsgi.shared import answers, interpreters
from isowsgi.shared.judgement import Question, was_cut, was_timed_out_inside
from isowsgi.shared.progress import delivered
from isowsgi.shared.rows import BEAT, BUSY, BUSY_SINCE, PROGRESS_AT, REQUESTS, RESPONSES, TIMEOUTS, Row

# A control thread looks at its instance's requests four times a second while there are any; it has stopped if it did not for so long.
_LOST_BEAT_MS = 2000

TIMED_OUT = answers.plain(answers.TIMED_OUT)


class Judge:
    """Goes by progress, as `inside.deadlines` does: by what was noted there last, and by what the kernel says of the client since.

    Args:
        isolation: of the instance.
        control_words: of the instance's control row.
        thread_rows: of its threads.
        connection_of: returns a connection that the instance has, by its key on the scoreboard; None if it no longer has it.
        mount_of: returns the number of a row's mount.
        counters_of: returns the words in which is counted what is done for a row's mount.

    Attributes:
        cuts: what was cut off since it was looked at last, by the mount's number and the request's line; who looks empties it.
    """

    def __init__(
        self,
        isolation: str,
        control_words: memoryview,
        thread_rows: Sequence[Row],
        connection_of: Callable[[int], socket.socket | None],
        mount_of: Callable[[Row], int],
        counters_of: Callable[[Row], memoryview],
    ) -> None:
        # Who calls this under a shared GIL would have it: there the control thread is late at most.
        self._is_needed = isolation not in (interpreters.SHARED_GIL, interpreters.MAIN)
        self._connection_of = connection_of
        self._mount_of = mount_of
        self._counters_of = counters_of
        self._control_words = control_words
        self._rows = thread_rows
        self.cuts: list[tuple[int, str]] = []
        self._seen: dict[int, tuple[int, int, int]] = {}  # by place in rows: the request, what its client took, when that last changed

    def cut_off(self, older_than_s: float, now: float) -> bool:
        """Answer requests without progress for too long; return whether there are any that nobody inside can see to.

        Args:
            older_than_s: how long one may go without progress.
            now: monotonic seconds.
        """
        now_ms = int(now * 1000)
        if not self._is_needed or self._beats(now_ms):
            self._seen.clear()
            return False
        limit_ms = older_than_s * 1000 + _LOST_BEAT_MS
        busy = [(place, row, row.words[REQUESTS]) for place, row in enumerate(self._rows) if row.words[BUSY]]
        overdue = [
            (row, number)
            for place, row, number in busy
            if was_cut(row.words) or self._still_ms(place, row.words, number, now_ms) > limit_ms
        ]
        open_ones = [(row, number) for row, number in overdue if not (was_cut(row.words) or was_timed_out_inside(row.words))]
        is_any = len(open_ones) < len(overdue)
        questions = [(row, Question(row.words, number)) for row, number in open_ones]
        if questions:
            Question.settle()
        for row, question in questions:
            is_cut = False
            try:
                if question.is_in_flight() and not was_timed_out_inside(row.words) and not self._beats(now_ms):
                    is_cut = is_any = True
                    self._cut(row, question)
            finally:
                question.decide(is_cut)
        return is_any

    def _beats(self, now_ms: int) -> bool:
        return now_ms - self._control_words[BEAT] < _LOST_BEAT_MS

    def _still_ms(self, place: int, words: memoryview, number: int, now_ms: int) -> int:
        """Return for how long a request has made no progress."""
        taken = self._delivered(words[BUSY])
        seen = self._seen.get(place)
        if seen is None or seen[0] != number:
            seen = number, taken, max(words[BUSY_SINCE], words[PROGRESS_AT])
        elif seen[1] != taken:
            seen = number, taken, now_ms
        self._seen[place] = seen
        return now_ms - seen[2]

    def _delivered(self, key: int) -> int:
        """Return what changes with every byte that a client takes."""
        sock = self._connection_of(key)
        if sock is None:
            return 0
        with sock:
            return delivered(sock)

    def _cut(self, row: Row, question: Question) -> None:
        answered = question.answered()
        self.cuts.append((self._mount_of(row), row.line()))
        counters = self._counters_of(row)
        counters[TIMEOUTS] += 1
        counters[RESPONSES + 5] += not answered
        if (sock := self._connection_of(question.key)) is not None:
            cut(sock, b"" if answered else TIMED_OUT)


def cut(sock: socket.socket, answer: bytes) -> None:
    """Answer a client whose connection belongs to an instance that cannot run, and shut the connection down.

    Args:
        sock: a descriptor of it for this; closed.
    """
    with sock:
        try:
            if answer:
                sock.send(answer, socket.MSG_DONTWAIT)
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # the client is gone
            return
