"""How `instances.judge` and a request's own thread agree on the request's end, by two words of its scoreboard row.

The two sides share memory and nothing else: no GIL, no lock, not even a process. And the interpreter may wake up at any moment. Each
side has a word that it alone writes, and looks at the other's after it has written its own:

- the request's thread writes that it answers (ANSWERED), or that it has ended (BUSY), and then looks whether it is judged (JUDGED);
- the judge writes that it asks, waits until what the thread may have written meanwhile can be seen, then looks, and then decides.

So either the thread has seen the question, and waits for the decision, or the judge sees what the thread has done, and spares it. A thread
that nobody has ever judged pays for one comparison. The request is named by its number in the row, which only grows.
"""

from __future__ import annotations

import time

from isowsgi.shared.rows import ANSWERED, BUSY, BY_WATCHER, JUDGED, REQUESTS

# What the judge says of a request: the lowest bits of JUDGED, below the request's number.
_ASKED, _SPARED, _CUT = 1, 2, 3
_SHIFT = 2
_MOST = (1 << 63) - 1

# How long the judge waits for what a thread wrote to become visible. A store leaves a processor's buffer within microseconds; a thread
# that is put aside between its two steps has its stores seen, too.
_SETTLE_S = 0.001

# How often, and how many times, a thread that is judged looks for the decision: it comes in a few milliseconds. After a second the judge
# must have ended; the connection is then nobody's to write to.
_PAUSE_S = 0.001
_MOST_PAUSES = 1000


def is_cut(words: memoryview) -> bool:
    """Return whether the current request was cut off from outside; waits for the decision if that is asked just now.

    By the request's own interpreter, after it has written what it did. To be called only if `words[JUDGED]` is not 0.
    """
    number = words[REQUESTS] << _SHIFT
    for _ in range(_MOST_PAUSES):
        if words[JUDGED] != number | _ASKED:
            break
        time.sleep(_PAUSE_S)
    return words[JUDGED] in (number | _CUT, number | _ASKED)


def _said(number: int, what: int) -> int:
    """Return what the judge writes of a request; a process may have written any number, and a word has room for 63 bits."""
    return (number << _SHIFT & _MOST) | what


class Question:
    """Whether one request may be cut off; asked by the judge, who must decide it soon.

    Args:
        words: of the row in which the request is being served.
        number: the request's, as it was when it was found to be overdue: the next one is not.
    """

    def __init__(self, words: memoryview, number: int) -> None:
        self._words = words
        self._number = number
        self.key = words[BUSY]  # of another one's connection perhaps, but then nothing is done with it
        words[JUDGED] = _said(number, _ASKED)

    @staticmethod
    def settle() -> None:
        """Wait until what threads did before they could see the questions is visible; once for all that were asked."""
        time.sleep(_SETTLE_S)

    def is_in_flight(self) -> bool:
        """Return whether the request still has the connection."""
        # In this order: a request's thread writes the number first.
        key, number = self._words[BUSY], self._words[REQUESTS]
        return key == self.key != 0 and number == self._number

    def answered(self) -> int:
        """Return who has given the client its status; see ANSWERED."""
        return self._words[ANSWERED]

    def decide(self, is_cut: bool) -> None:
        """Say what was decided, after it is done: then the thread continues, and the connection may be another's."""
        self._words[JUDGED] = _said(self._number, _CUT if is_cut else _SPARED)


def was_cut(words: memoryview) -> bool:
    """Return whether the current request of a row is cut off already; by the judge."""
    return words[JUDGED] == words[REQUESTS] << _SHIFT | _CUT


def has_status(words: memoryview) -> bool:
    """Return whether the current request's client was given a status; asked once its interpreter has ended, or by the judge."""
    return words[ANSWERED] != 0 or was_cut(words)


def was_timed_out_inside(words: memoryview) -> bool:
    """Return whether the request's own interpreter has timed it out."""
    return words[ANSWERED] == BY_WATCHER
