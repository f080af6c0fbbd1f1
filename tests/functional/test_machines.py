"""Hosts that change behind a balancer, each with an address of its own: what a client sees of it.

Three hosts with four mounts, HAProxy and Caddy before them on machines of their own with what `isowsgi export` writes, and clients on
another that judge every answer. `make rolling` asks each balancer for 100,000 answers while new versions are applied, host by host; a
whole run asks both at once for some hundreds.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests import balancers, machines
from tests.command import call
from tests.conftest import DEADLINE_S, ROOT, WHOLE, Server, eventually, running_server
from tests.judge import Answer, Judge, failures
from tests.machines import Machine, Network

# Answers that are asked for while new versions are applied.
ANSWERS = int(os.environ.get("ISOWSGI_ROLLING", "0"))

# For which a client waits before it asks again: in a run of a few hundred answers the tests' own clients should not be what takes the time.
PAUSE_S = 0.0 if ANSWERS else 0.1

# Which balancers are before the same hosts at once.
KINDS = [("haproxy",), ("caddy",)] if ANSWERS else [("haproxy", "caddy")]

pytestmark = [
    pytest.mark.skipif(not WHOLE and not ANSWERS, reason="for whole runs: ISOWSGI_WHOLE=1, or make rolling"),
    pytest.mark.alone,
]

MOUNTS = ("/a", "/b", "/c", "/d")

# Between two checks. lame_duck is longer than two of them take on a busy machine, so that the balancer sees who leaves before they are
# gone.
INTERVAL_S = 0.3
LAME_DUCK = "lame_duck = 3"

# As many answers in a row as leave nothing to chance: a host that a balancer takes for well gets a third of the POSTs for its broken mount,
# which nobody sends again. Of 36 of them it gets none once in two million times.
NO_CHANCE = 300

# No time limit of isowsgi's own decides here: on a machine that others used too, an apply failed as an app took more than a minute to load.
CONFIG = """
    [defaults]
    isolation = "shared-gil"
    threads = 4
    boot_timeout = 600

    [mounts]
{mounts}
    "/-" = {{ app = "isowsgi.status:application", isolation = "main" }}

    [status]
    allow = ["10.0.0.0/24"]

    [worker]
    {lame_duck}
    """

GUNICORN = ("--graceful-timeout", "60", "--keep-alive", "75", "--proxy-allow-from", "10.0.0.0/24")


class Host:
    """A machine with a gunicorn."""

    def __init__(self, folder: Path, machine: Machine, name: str, lame_duck: str, arguments: tuple[str, ...]) -> None:
        self.name = name
        self.machine = machine
        self.version = 1
        self.folder = folder
        self._lame_duck = lame_duck
        self._arguments = arguments
        self._running = ExitStack()
        self.server: Server | None = None
        folder.mkdir()

    @property
    def place(self) -> str:
        return f"{self.name}={self.machine.address}:8000"

    def _config(self) -> str:
        env = f'{{ VERSION = "{self.version}", WEB = "{self.name}" }}'
        mounts = "\n".join(f'    "{path}" = {{ app = "versioned", env = {env} }}' for path in MOUNTS)
        return CONFIG.format(mounts=mounts, lame_duck=self._lame_duck)

    def start(self) -> None:
        (self.folder / "error.log").unlink(missing_ok=True)
        bind, launcher = f"{self.machine.address}:8000", self.machine.launcher
        starting = running_server(self.folder, self._config(), *self._arguments, bind=bind, launcher=launcher, wait_for=0)
        self.server = self._running.enter_context(starting)

    def wait(self) -> None:
        assert self.server is not None
        self.server.wait_until_serving(len(MOUNTS) + 1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.server is not None:
            self.server.tell_to_stop(number)
        self._running.close()
        self.server = None

    def kill(self) -> None:
        assert self.server is not None
        for pid in [self.server.process.pid, *self.server.workers()]:
            os.kill(pid, signal.SIGKILL)

    def command(self, *arguments: str) -> None:
        done = call(self.folder, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def apply(self, version: int) -> None:
        """Apply a config file with another version of all apps."""
        file = self.folder / "isowsgi.toml"
        file.write_text(file.read_text().replace(f'VERSION = "{self.version}"', f'VERSION = "{version}"'))
        self.version = version
        self.command("apply")


class Front:
    """A balancer, and clients that ask it.

    Args:
        edit: changes what is exported.
    """

    def __init__(self, kind: str, machine: Machine, folder: Path, options: tuple[str, ...], edit: Callable[[str], str]) -> None:
        self.kind = kind
        self.target = (machine.address, 80)
        self._machine = machine
        self._folder = folder
        self._options = options
        self._edit = edit
        self._process: subprocess.Popen[bytes] | None = None
        if kind == "caddy":
            # It opens another socket when it takes up another configuration, and closes the one before: what waits there to be accepted is
            # reset, unless the kernel may give it to the other.
            machine.set("net/ipv4/tcp_migrate_req", "1")

    def balance(self, *hosts: Host) -> None:
        """Have the balancer send clients to these hosts."""
        places = ",".join(host.place for host in hosts)
        made = call(hosts[0].folder, "export", self.kind, "--servers", places, "--interval", str(INTERVAL_S), *self._options)
        assert made.returncode == 0, made.stderr
        path = balancers.written(self.kind, self._folder, self._edit(made.stdout))
        if self._process is None:
            self._process = balancers.start(self.kind, path, self._machine.launcher)
        elif self.kind == "caddy":
            balancers.reload_caddy(path, self._machine.launcher)
        else:
            self._process.send_signal(signal.SIGUSR2 if self.kind == "haproxy" else signal.SIGHUP)

    def answers(self, client: Machine) -> bool:
        """Return whether the balancer gives an answer of an app."""
        assert self._process is not None
        assert self._process.poll() is None, "the balancer ended"
        with Judge(client, self.target, MOUNTS[:1], each=1, pause_s=PAUSE_S) as judge:
            eventually(judge.count, "an answer, or a failure")
        return not all(answer.failure for answer in judge.answers())

    def end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(DEADLINE_S)


class Site:
    """Hosts, and what is before them."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        self.names = {host.name for host in hosts}
        self.fronts: dict[Front, Judge] = {}

    def balance(self, *hosts: Host) -> None:
        for front in self.fronts:
            front.balance(*hosts)

    def wait(self, holds: Callable[[Counter[Answer]], bool], what: str, count: int = 50) -> None:
        """Wait until something holds of so many answers in a row that each balancer's clients get."""
        for front, judge in self.fronts.items():
            judge.wait(holds, f"{front.kind}: {what}", count)

    @contextmanager
    def watched(self) -> Iterator[dict[str, Counter[Answer]]]:
        """Count what is answered while a block runs, by kind of balancer, in what the block is given."""
        with ExitStack() as stack:
            yield {front.kind: stack.enter_context(judge.watched()) for front, judge in self.fronts.items()}

    def count(self) -> int:
        return min(judge.count() for judge in self.fronts.values())


@contextmanager
def site(
    kinds: tuple[str, ...],
    tmp_path: Path,
    lame_ducks: tuple[str, str, str] = (LAME_DUCK, LAME_DUCK, LAME_DUCK),
    edit: Callable[[str], str] = str,
    sends_proxy: bool = False,
) -> Iterator[Site]:
    """Run three hosts, balancers before the first two of them, and clients that ask.

    Args:
        lame_ducks: what each host has in its [worker].
        edit: changes what is exported.
        sends_proxy: whether the balancers tell hosts the client by the PROXY protocol.
    """
    for kind in kinds:
        balancers.program(kind)
    if reason := machines.why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        hosts = []
        arguments = (*GUNICORN, *["--proxy-protocol=auto"][:sends_proxy])
        for number, lame_duck in enumerate(lame_ducks, 1):
            name = f"web{number}"
            hosts.append(Host(tmp_path / name, network.machine(name, 10 + number), name, lame_duck, arguments))
            stack.callback(hosts[-1].stop, signal.SIGQUIT)
            hosts[-1].start()
        for host in hosts:
            host.wait()
        client = network.machine("client", 9)
        found = Site(hosts)
        for number, kind in enumerate(kinds, 2):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isowsgi-")))
            front = Front(kind, network.machine(kind, number), folder, ("--proxy-protocol",) if sends_proxy else (), edit)
            stack.callback(front.end)
            front.balance(*hosts[:2])
            eventually(partial(front.answers, client), kind)
            found.fronts[front] = stack.enter_context(Judge(client, front.target, MOUNTS, each=2, pause_s=PAUSE_S))
        yield found


def hosts_of(answers: Counter[Answer], path: str = "") -> set[str]:
    return {answer.host for answer in answers if not answer.failure and path in ("", answer.path)}


def all_by(names: set[str]) -> Callable[[Counter[Answer]], bool]:
    """Return whether each mount is answered by these hosts."""
    return lambda answers: all(hosts_of(answers, path) == names for path in MOUNTS)


def all_in(version: int) -> Callable[[Counter[Answer]], bool]:
    """Return whether all that is answered is of a version."""
    return lambda answers: {answer.version for answer in answers if not answer.failure} == {str(version)}


def without(name: str, *paths: str) -> Callable[[Counter[Answer]], bool]:
    """Return whether a host is asked for some mounts no more: it answers nothing of them, and nothing of them fails."""
    return lambda answers: not any(answer.host == name or answer.failure for answer in answers if answer.path in paths)


def lost(seen: dict[str, Counter[Answer]]) -> dict[str, dict[str, int]]:
    """Return what failed, by kind of balancer."""
    return {kind: found for kind, answers in seen.items() if (found := failures(answers))}


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_nothing_is_lost_while_hosts_change(kinds: tuple[str, ...], tmp_path: Path) -> None:
    with site(kinds, tmp_path) as behind:
        web1, web2, web3 = behind.hosts
        steps = {}

        with behind.watched() as steps["added"]:
            behind.balance(*behind.hosts)
            behind.wait(all_by(behind.names), "the host that was added answers")
        assert lost(steps["added"]) == {}

        version = 1
        with behind.watched() as steps["applied"]:
            while version == 1 or behind.count() < ANSWERS:
                version += 1
                for host in behind.hosts:
                    host.apply(version)
                behind.wait(all_in(version), "the new version alone")
        assert lost(steps["applied"]) == {}

        with behind.watched() as steps["restarted"]:
            for host in behind.hosts if ANSWERS else behind.hosts[:1]:
                host.stop()
                host.start()
                host.wait()
                behind.wait(all_by(behind.names), f"{host.name} answers again")
        assert lost(steps["restarted"]) == {}

        # /a is broken on a host: what is lost is lost before the balancer knows.
        with behind.watched() as steps["breaking"]:
            web1.command("stop", "/a")
            behind.wait(without(web1.name, "/a"), "/a of the host is asked for no more", NO_CHANCE)
        with behind.watched() as steps["broken"]:
            behind.wait(lambda answers: hosts_of(answers, "/b") == behind.names, "the host's other mounts are served there")
        assert lost(steps["broken"]) == {}
        assert web1.name not in set().union(*(hosts_of(answers, "/a") for answers in steps["broken"].values()))
        web1.command("start", "/a")
        behind.wait(all_by(behind.names), "the mount is back")

        with behind.watched() as steps["killed"]:
            web3.kill()
            behind.wait(without(web3.name, *MOUNTS), "the host is asked no more", NO_CHANCE)
        for judge, answers in zip(behind.fronts.values(), steps["killed"].values(), strict=True):
            assert sum(failures(answers).values()) <= judge.clients, "what was in flight there"

        with behind.watched() as steps["taken out"]:
            behind.balance(web1, web2)
            web3.stop()
            behind.wait(all_by({web1.name, web2.name}), "the rest")
        assert lost(steps["taken out"]) == {}

        print(f"\n{version - 1} versions; resent by clients: {[judge.resent for judge in behind.fronts.values()]}")
        for name, seen in steps.items():
            print(f"  {name}: {', '.join(f'{kind} {found.total()}' for kind, found in seen.items())} answers, failed: {lost(seen) or 0}")


def test_what_a_run_that_was_killed_left_behind_is_removed_by_the_next() -> None:
    if reason := machines.why_not():
        pytest.skip(reason)
    ends_early = (
        "import os; from tests.machines import Network; network = Network().__enter__(); "
        "print(network.machine('left', 1).namespace, flush=True); os._exit(1)"
    )
    namespace = subprocess.run([sys.executable, "-c", ends_early], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    # `ip` would end with it if the namespace were gone by then.
    with subprocess.Popen(["ip", "netns", "exec", namespace, "sleep", "1000"]) as left:
        try:
            eventually(lambda: left.pid in machines.pids_inside(namespace), "it runs there")

            with Network() as network:
                own = network.machine("own", 1).namespace
                assert Path("/run/netns", own).exists()

            assert left.wait(DEADLINE_S) == -signal.SIGKILL
        finally:
            left.kill()
    assert [path.name for path in Path("/run/netns").glob(f"{namespace.partition('-')[0]}-*")] == []


def without_retries(text: str) -> str:
    """Have a balancer send no request a second time."""
    text = re.sub(r"(?m)^    (option redispatch|retry-on|http-request disable-l7-retry) .*\n", "", text)
    return re.sub("retries 3", "retries 0", re.sub("lb_try_duration 5s", "lb_try_duration 0s", text))


@pytest.mark.skipif(not ANSWERS, reason="for make rolling")
@pytest.mark.parametrize("kind", ["haproxy", "caddy"])
def test_without_lame_duck_a_host_that_stops_fails_requests_that_no_balancer_sends_again(kind: str, tmp_path: Path) -> None:
    """And with it there is nothing that would have to be sent again. HAProxy tells the client's address here, the other way round."""
    is_haproxy = kind == "haproxy"
    with site((kind,), tmp_path, (LAME_DUCK, "", LAME_DUCK), without_retries, sends_proxy=is_haproxy) as behind:
        web1, web2, web3 = behind.hosts
        [judge] = behind.fronts.values()
        behind.balance(*behind.hosts)
        seen = judge.wait(all_by(behind.names), "all of them")
        assert {answer.client for answer in seen} == {"10.0.0.9" if is_haproxy else "10.0.0.2"}

        with judge.watched() as told:
            web1.stop()
            judge.wait(all_by({web2.name, web3.name}), "those that are left")
        assert failures(told) == {}

        with judge.watched() as untold:
            web2.stop()
            judge.wait(all_by({web3.name}), "the last one")
        print(f"\n{kind}, nothing is sent again: {told.total()} answers while a host stops with lame_duck, failed: {failures(told) or 0}")
        print(f"  {untold.total()} answers while one stops without, failed: {failures(untold)}")
        assert failures(untold)
