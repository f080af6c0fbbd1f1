"""Has the hostile apps play their tricks, in random order, while the good mounts are under load; what they answer is nobody's concern."""

from __future__ import annotations

import http.client
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from isowsgi.cli import client
from isowsgi.shared import controlmessages
from soak.site import Site

# Tricks at a time, and how long each pauses at most before the next: some ten a second and more would be a load and no trick.
_PLAYERS = 2
_MOST_PAUSE_S = 0.4

# How long an answer is waited for; the longest trick takes seven seconds and is cut off before.
_ANSWER_S = 5.0

# Every so-many-th play a mount is reloaded, whatever it is doing.
_RELOAD_EVERY = 6


class Mischief:
    """Plays on threads of its own until `stop`.

    Args:
        scarce: takes since and until when an app was asked to take all descriptors, and the process that answered; 0: not known.
        on_mistake: takes the text of an exception of ours.
    """

    def __init__(self, site: Site, seed: int, scarce: list[list[float]], on_mistake: Callable[[str], None]) -> None:
        self.plays: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self._scarce = scarce
        self._site = site
        self._mounts = list(site.hostile)
        self._on_mistake = on_mistake
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(random.Random(seed + each),)) for each in range(_PLAYERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _guarded(self, chance: random.Random) -> None:
        try:
            self._play_all(chance)
        except Exception as exc:
            self._on_mistake(f"{type(exc).__name__} in the making of mischief: {exc}")

    def _play_all(self, chance: random.Random) -> None:
        bag: list[str] = []
        while not self._stop.wait(chance.random() * _MOST_PAUSE_S):
            if not bag:
                bag = chance.sample(self._mounts, len(self._mounts))
            mount = bag.pop()
            self._play(mount)
            if chance.randrange(_RELOAD_EVERY) == 0:
                self._reload(mount)

    def _play(self, mount: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._site.port, timeout=_ANSWER_S)
        self.plays[mount] += 1
        span = [time.monotonic(), math.inf, 0]
        if mount.endswith("/descriptors"):
            self._scarce.append(span)
        try:
            connection.request("GET", f"{mount}/play")
            answer = connection.getresponse()
            span[2] = int(answer.getheader("Soak-Worker", "0"))
            self.outcomes[str(answer.status)] += 1
        except (OSError, http.client.HTTPException) as exc:
            self.outcomes[type(exc).__name__] += 1
        finally:
            span[1] = time.monotonic()
            connection.close()

    def _reload(self, mount: str) -> None:
        try:
            places = client.find(str(self._site.config), None)
        except client.NobodyServes:
            return
        client.ask(places, controlmessages.Reload(mount=mount), _ANSWER_S)
