"""The whole measurement: in each round every peer is measured in each scenario, one right after the other.

All peers run during a round's loads, idle but for the one that is measured, so that what is compared is seconds apart; what the idle
ones use counts as others' use. Each round starts its own servers. Start and memory are measured with no other peer running: they
would share pages.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import Meter, measure, warm_up
from bench.peers import PEERS, Mount, Peer
from bench.scenarios import APPS, FEW, LOADS, MOUNTS, MOUNTS_BOTH, MOUNTS_FEW, MOUNTS_LOAD, MOUNTS_MANY, flask_apps, hello_mounts
from bench.server import Failed, Server

# Seconds after the last app's first answer until memory is read: what the start left to do is done by then.
_SETTLED_S = 0.5

# Threads of each of the many mounts, and of the few they are compared with: eight of each of a thousand would only be a test of the kernel.
_THREADS_OF_MANY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    scenarios: tuple[str, ...]
    rounds: int
    seconds: int  # of each load
    threads: int
    apps: int
    mounts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Runs them.

    Attributes:
        venvs: the peers that are measured, in this order, each with the folder of its venv.
        record: called with every measurement: scenario, peer, round and the figures.
        skip: called with the name of a peer that cannot be started, and the reason.
        note: called with what else went wrong, a line each; the rest continues.
    """

    settings: Settings
    venvs: Mapping[str, Path]
    record: Callable[[dict[str, Any]], None]
    skip: Callable[[str, str], None]
    note: Callable[[str], None]

    def run(self) -> None:
        wanted = self.settings.scenarios
        peers = self._startable()
        for number in range(1, self.settings.rounds + 1):
            if any(load.name in wanted for load in LOADS):
                self._loads(number, peers)
            if APPS in wanted:
                self._apps(number, peers)
        if MOUNTS_BOTH in wanted and PEERS["isowsgi"] in peers:
            self._mounts(PEERS["isowsgi"])

    def _startable(self) -> list[Peer]:
        """Start each server once; then the first round finds programs and modules in the disk cache, too."""
        peers = []
        for peer in map(PEERS.__getitem__, self.venvs):
            try:
                with self._server(peer, MOUNTS):
                    peers.append(peer)
            except Failed as exc:
                self.skip(peer.name, str(exc))
        return peers

    def _loads(self, number: int, peers: Sequence[Peer]) -> None:
        with contextlib.ExitStack() as running:
            servers = []
            for peer in peers:
                with self._noted(number):
                    server = running.enter_context(self._server(peer, MOUNTS))
                    warm_up(server, MOUNTS)
                    servers.append(server)
            for load in LOADS:
                if load.name not in self.settings.scenarios:
                    continue
                for server in servers:
                    with self._noted(number):
                        figures = measure(server, load, self.settings.seconds)
                        self.record({"scenario": load.name, "peer": server.peer.name, "round": number, **figures})

    def _apps(self, number: int, peers: Sequence[Peer]) -> None:
        for peer in peers:
            with self._noted(number):
                few, many = (self._start_apps(peer, count) for count in (FEW, self.settings.apps))
                per_app = (many["pss_mib"] - few["pss_mib"]) / (self.settings.apps - FEW)
                figures = {"mib_per_app": per_app, "few_mib": few["pss_mib"], **many}
                self.record({"scenario": APPS, "peer": peer.name, "round": number, **figures})

    def _start_apps(self, peer: Peer, count: int) -> dict[str, float]:
        mounts, modules = flask_apps(count)
        server = self._server(peer, mounts, modules=modules)
        meter = Meter(server)
        with server:
            time.sleep(_SETTLED_S)
            meter.stop()
            return {
                "start_s": server.all_s,
                "first_s": server.first_s,
                "pss_mib": server.pss_mib(),
                "server_s": meter.server_s,
                "others_cores": meter.others_cores,
            }

    def _mounts(self, peer: Peer) -> None:
        """Start both servers once, since a thousand interpreters take their time, and ask them in turns."""
        with self._noted(0), contextlib.ExitStack() as running:
            servers = {}
            for name, count in ((MOUNTS_FEW, FEW), (MOUNTS_MANY, self.settings.mounts)):
                mounts = hello_mounts(count)
                servers[name] = running.enter_context(self._server(peer, mounts, threads=_THREADS_OF_MANY))
                warm_up(servers[name], mounts[:FEW])
            for number in range(1, self.settings.rounds + 1):
                for name, server in servers.items():
                    figures = measure(server, MOUNTS_LOAD, self.settings.seconds)
                    self.record({"scenario": name, "peer": peer.name, "round": number, "start_s": server.all_s, **figures})

    def _server(
        self, peer: Peer, mounts: Sequence[Mount], *, modules: Mapping[str, str] | None = None, threads: int | None = None
    ) -> Server:
        return Server(peer, mounts, self.venvs[peer.name], modules=modules or {}, threads=threads or self.settings.threads)

    @contextlib.contextmanager
    def _noted(self, number: int) -> Iterator[None]:
        """Turn a failure into a note; what follows the block still runs."""
        try:
            yield
        except Failed as exc:
            self.note(f"round {number}: {exc}" if number else str(exc))
