"""Measure how far the mounts of one worker leave each other alone.

    python bench/isolation.py [--rounds 5] [--seconds 2] [--busy 60] [--patience 60] [--only cpu,hog] [--json FILE]

Takes about ten minutes, on the Python that runs it, over the loopback. Each scenario has a server of its own, and the scenarios take
turns; what takes minutes or cannot vary is measured in the first round only. `others` says how many cores other processes used meanwhile:
figures are medians over the calm rounds, those with others < 0.2, or over all if none was calm.

The load comes from wrk where it is installed, else from tests/load_process.py, which is slower.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gunicorn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from isowsgi.shared import interpreters  # noqa: E402
from tests.conftest import Server, eventually, running_server  # noqa: E402
from tests.load_process import LoadProcess, Result  # noqa: E402
from tests.pressure import (  # noqa: E402
    Footprint,
    PlainProcess,
    ask_and_read_nothing,
    churn,
    close_all,
    count_begun,
    count_open,
    cpu_s_over,
    plain_gain,
    raise_descriptor_limit,
    send_half_bodies,
    send_half_heads,
    wait_until_closed,
)

Figures = dict[str, float]

# Cores that others may use in a round that counts as calm.
CALM_CORES = 0.2

OTHERS = "others, cores"

KINDS = ["shared-gil"] if interpreters.own_gil_error() else ["own-gil", "shared-gil"]

_WRK = shutil.which("wrk")


class Wrk:
    """wrk with the interface of LoadProcess."""

    def __init__(self, url: str, *, connections: int, seconds: float, close: bool = False) -> None:
        script = str(Path(__file__).with_name("wrk.lua"))
        self._command = [str(_WRK), "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}", "--timeout", "60", "-s", script]
        self._command += ["-H", "Connection: close"] if close else []
        self._command.append(url)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Wrk:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def go(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)

    def result(self) -> Result:
        assert self._process is not None, "go() comes first"
        output, _ = self._process.communicate()
        figures = json.loads(output.splitlines()[-1])
        return Result(
            requests=figures["requests"],
            errors=sum(figures[kind] for kind in ("statuses", "connects", "reads", "writes", "timeouts")),
            seconds=figures["duration_us"] / 1e6,
            p50_ms=figures["p50_us"] / 1e3,
            p99_ms=figures["p99_us"] / 1e3,
            max_ms=float("nan"),  # not among what the script tells
        )


def load(url: str, *, connections: int = 2, seconds: float, close: bool = False) -> LoadProcess | Wrk:
    return (Wrk if _WRK else LoadProcess)(url, connections=connections, seconds=seconds, close=close)


def measure(*urls: str, seconds: float, close: bool = False) -> list[Result]:
    """Load some URLs at once."""
    loads = [load(url, seconds=seconds, close=close) for url in urls]
    for each in loads:
        each.go()
    results = [each.result() for each in loads]
    for each in loads:
        each.__exit__()
    return results


def latencies(label: str, result: Result) -> Figures:
    figures = {f"{label}: p50 ms": result.p50_ms, f"{label}: p99 ms": result.p99_ms, f"{label}: requests/s": result.per_second}
    return figures | ({f"{label}: errors": result.errors} if result.errors else {})


def _median(results: list[Result]) -> Result:
    """Return the result whose throughput is the middle one."""
    return sorted(results, key=lambda result: result.per_second)[len(results) // 2]


class Bench:
    def __init__(self, seconds: int, busy_s: int, patience_s: int) -> None:
        self.seconds = seconds
        self.busy_s = busy_s
        self.patience_s = patience_s  # for others to let go of the cores, before each measurement
        self.others = 0.0  # cores, during the last measurement

    @contextmanager
    def serve(self, config: str, *arguments: str, wait_for: int) -> Iterator[Server]:
        """Run a server; the block is the measurement."""
        with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), config, *arguments, wait_for=wait_for) as server:
            self._wait_for_calm()
            began, busy, own = time.monotonic(), _busy_s(), _own_s() + _cpu_s(server)
            yield server
            own = _own_s() + _cpu_s(server) - own
            self.others = max(_busy_s() - busy - own, 0.0) / (time.monotonic() - began)

    def _wait_for_calm(self) -> None:
        end = time.monotonic() + self.patience_s
        while time.monotonic() < end:
            before = _busy_s()
            time.sleep(1)
            if _busy_s() - before < CALM_CORES:
                return

    # CPU.

    def cpu(self) -> Figures:
        """Two CPU-bound mounts, 2 connections each"""
        mounts = "".join(f"'/{kind}/{name}' = {{ app = 'cpu', isolation = '{kind}' }}\n" for kind in KINDS for name in "ab")
        with self.serve(f"[mounts]\n{mounts}", wait_for=2 * len(KINDS)) as server:
            figures = {"two plain processes: gain over one": plain_gain(self.seconds)}
            for kind in KINDS:
                urls = [f"{server.url}/{kind}/{name}" for name in "ab"]
                [alone] = measure(urls[0], seconds=self.seconds)
                both = sum(result.per_second for result in measure(*urls, seconds=self.seconds))
                figures |= {f"{kind}: one mount, requests/s": alone.per_second, f"{kind}: two mounts, requests/s": both}
                figures[f"{kind}: gain"] = both / alone.per_second
        return figures

    def hog(self) -> Figures:
        """hello over 2 connections, while 4 keep another mount computing"""
        figures: Figures = {}
        for kind in KINDS:
            config = f"[defaults]\nisolation = '{kind}'\n[mounts]\n'/hog' = 'cpu'\n'/hello' = 'hello'"
            with self.serve(config, wait_for=2) as server:
                hello = f"{server.url}/hello"
                [quiet] = measure(hello, seconds=self.seconds)
                with PlainProcess(self.seconds + 1) as process:
                    process.go()
                    [beside_process] = measure(hello, seconds=self.seconds)
                with load(f"{server.url}/hog", connections=4, seconds=self.seconds + 1) as hog:  # to the end of hello's, and beyond
                    hog.go()
                    [beside_hog] = measure(hello, seconds=self.seconds)
                    hog_result = hog.result()
            figures |= latencies(f"{kind}: quiet", quiet) | latencies(f"{kind}: beside a busy process", beside_process)
            figures |= latencies(f"{kind}: beside the hog", beside_hog)
            figures[f"{kind}: p99 beside the hog / quiet"] = beside_hog.p99_ms / quiet.p99_ms
            figures[f"{kind}: the hog's requests/s"] = hog_result.per_second
        return figures

    def isolations(self) -> Figures:
        """hello over 2 connections with each isolation, in turn; then again while 4 connections keep another mount's process computing"""
        figures: Figures = {}
        kinds = [*KINDS, interpreters.PROCESS]
        mounts = "".join(f"'/{kind}' = {{ app = 'hello', isolation = '{kind}' }}\n" for kind in kinds)
        with self.serve(f"[mounts]\n'/hog' = {{ app = 'cpu', isolation = 'process' }}\n{mounts}", wait_for=len(kinds) + 1) as server:
            for close, how in ((False, "kept"), (True, "a connection each")):
                for kind in kinds:
                    [result] = measure(f"{server.url}/{kind}", seconds=self.seconds, close=close)
                    figures |= latencies(f"{kind}, {how}", result)
            for kind in kinds:
                with load(f"{server.url}/hog", connections=4, seconds=self.seconds + 1) as hog:
                    hog.go()
                    [result] = measure(f"{server.url}/{kind}", seconds=self.seconds)
                    hog.result()
                figures |= latencies(f"{kind}, beside the busy process", result)
        return figures

    def busy(self) -> Figures:
        """hello over 2 connections with a shared GIL, while another mount loops, in a request and at import; --timeout 3"""
        figures: Figures = {}
        config = """
            [defaults]
            isolation = "shared-gil"
            [mounts]
            "/hello" = "hello"
            "/loops" = "cpu:busy"
            """
        with self.serve(config, "--timeout", "3", wait_for=2) as server:
            workers = server.workers()
            with (
                LoadProcess(f"{server.url}/loops?{self.busy_s}", connections=1, seconds=0) as loop,
                LoadProcess(f"{server.url}/hello", seconds=self.busy_s - 1) as hello,
            ):
                loop.go()
                hello.go()
                result = hello.result()
                figures |= latencies("in a request", result) | {"in a request: longest gap ms": result.max_ms}
                figures["in a request: loop answered"] = loop.result().statuses.get("200", 0)
            figures["in a request: workers killed"] = len(set(workers) - set(server.workers()))
        config = f"""
            [defaults]
            isolation = "shared-gil"
            [mounts]
            "/hello" = "hello"
            "/imports" = {{ app = "busy_import", env = {{ BUSY_S = "{self.busy_s}" }} }}
            """
        with self.serve(config, "--timeout", "3", wait_for=1) as server:
            workers = server.workers()
            with LoadProcess(f"{server.url}/hello", seconds=self.busy_s - 1) as hello:
                hello.go()
                result = hello.result()
            figures |= latencies("at import", result) | {"at import: longest gap ms": result.max_ms}
            server.wait_for_log(r"/imports #1: serving")
            figures["at import: workers killed"] = len(set(workers) - set(server.workers()))
        return figures

    # Threads and clients that wait.

    def sleepers(self) -> Figures:
        """hello, while 32 requests sleep in another mount of 32 threads"""
        config = """
            [mounts]
            "/sleeps" = { app = "sleeps", threads = 32, env = { GATE = "gate" } }
            "/hello" = "hello"
            """
        with self.serve(config, wait_for=2) as server:
            [quiet] = measure(f"{server.url}/hello", seconds=self.seconds)
            with LoadProcess(f"{server.url}/sleeps", connections=32, seconds=0) as sleepers:
                sleepers.go()
                server.wait_for_log("asleep", 32)
                [asleep] = measure(f"{server.url}/hello", seconds=self.seconds)
                (server.folder / "gate").touch()
                sleepers.result()
        return latencies("quiet", quiet) | latencies("while they sleep", asleep)

    def halves(self) -> Figures:
        """A new connection for each hello, while 1,000 half-sent heads wait for a mount of 2 threads"""
        count = 1000
        head_timeout_s = 4 * self.seconds + 6
        config = f"""
            [acceptor]
            head_timeout = {head_timeout_s}
            [mounts]
            "/slow" = {{ app = "hello", threads = 2 }}
            "/other" = "hello"
            """
        with self.serve(config, "--worker-connections", "2000", wait_for=2) as server:
            [pid] = server.workers()
            same, other = f"{server.url}/slow", f"{server.url}/other"
            [quiet_same] = measure(same, seconds=self.seconds, close=True)
            [quiet_other] = measure(other, seconds=self.seconds, close=True)
            eventually(lambda: count_open(server) == 0, "all connections closed")
            before = Footprint.of(pid)
            socks = send_half_heads(server, "/slow", count)
            began = time.monotonic()
            eventually(lambda: count_open(server) == count, "all connections accepted")
            held = Footprint.of(pid)
            cpu_s = cpu_s_over(pid, 2)
            [same_mount] = measure(same, seconds=self.seconds, close=True)
            [other_mount] = measure(other, seconds=self.seconds, close=True)
            outcomes = wait_until_closed(socks, head_timeout_s + 30)
            closed_after_s = time.monotonic() - began
            close_all(socks)
        figures = latencies("same mount, quiet", quiet_same) | latencies("same mount, with the heads", same_mount)
        figures |= latencies("other mount, quiet", quiet_other) | latencies("other mount, with the heads", other_mount)
        return figures | {
            "heads answered 408": outcomes["408"],
            "heads not answered": count - outcomes["408"],
            f"seconds until the last was closed, head_timeout {head_timeout_s}": closed_after_s,
            "threads more": held.threads - before.threads,
            "memory per head, KiB": (held.rss_mib - before.rss_mib) * 1024 / count,
            "CPU time while they wait, % of a core": cpu_s / 2 * 100,
        }

    def slow(self) -> Figures:
        """hello, while 50 clients read nothing of 10 MiB from another mount of 8 threads"""
        with self.serve('[mounts]\n"/big" = { app = "big", threads = 8 }\n"/hello" = "hello"', wait_for=2) as server:
            [quiet] = measure(f"{server.url}/hello", seconds=self.seconds)
            socks = ask_and_read_nothing(server, "/big", 50)
            eventually(lambda: count_begun(socks) == 8, "all threads of the mount write")
            [pressed] = measure(f"{server.url}/hello", seconds=self.seconds)
            close_all(socks)
        return latencies("quiet", quiet) | latencies("with the clients", pressed)

    def siege(self) -> Figures:
        """hello over 2 connections, beside a mount with 2,000 half heads, 200 clients that read nothing of 10 MiB and 200 stalled bodies"""
        figures: Figures = {}
        for isolation, threads in ((KINDS[0], 4), (KINDS[0], 400), (interpreters.PROCESS, 4)):
            label = f"{isolation}, {threads} threads"
            config = f"""
                [acceptor]
                head_timeout = 600
                [mounts]
                "/siege" = {{ app = "big", isolation = "{isolation}", threads = {threads} }}
                "/hello" = "hello"
                """
            with self.serve(config, "--worker-connections", "4000", wait_for=2) as server:
                [pid] = server.workers()
                server.get("/siege")
                before = Footprint.of(pid)
                quiet, pressed = [], []
                for _ in range(3):  # in turn, so that what others do to the machine meets both
                    quiet += measure(f"{server.url}/hello", seconds=self.seconds)
                    readers = ask_and_read_nothing(server, "/siege", 200)
                    socks = [*send_half_bodies(server, "/siege", 200), *send_half_heads(server, "/siege", 2000)]
                    eventually(lambda: count_open(server) >= 2000, "the siege is laid")
                    held = Footprint.of(pid)
                    pressed += measure(f"{server.url}/hello", seconds=self.seconds)
                    close_all([*readers, *socks])
                    began = time.monotonic()
                    server.get("/siege")
                    answers_after_s = time.monotonic() - began
                    eventually(lambda: count_open(server) == 0, "all connections closed")
                after = Footprint.of(pid)
            figures |= latencies(f"{label}: quiet", _median(quiet)) | latencies(f"{label}: under siege", _median(pressed))
            ratios = [during.per_second / alone.per_second for alone, during in zip(quiet, pressed, strict=True)]
            figures |= {
                f"{label}: share of its quiet throughput": statistics.median(ratios),
                f"{label}: memory of the worker more, under siege, MiB": held.rss_mib - before.rss_mib,
                f"{label}: the attacked mount answers after, s": answers_after_s,
                f"{label}: threads more, after": after.threads - before.threads,
                f"{label}: descriptors more, after": after.descriptors - before.descriptors,
            }
        return figures

    def crowd(self) -> Figures:
        """hello over 2 connections, without and with 10,000 idle keep-alive connections on another mount"""
        figures: Figures = {}
        count = 10_000
        for isolation in (KINDS[0], interpreters.PROCESS):
            config = f'[mounts]\n"/crowd" = {{ app = "hello", isolation = "{isolation}" }}\n"/hello" = "hello"'
            with self.serve(config, "--keep-alive", "600", "--worker-connections", str(count + 100), wait_for=2) as server:
                [pid] = server.workers()
                pids = [pid, *_children_of(pid)]
                [quiet] = measure(f"{server.url}/hello", seconds=self.seconds)
                before = [Footprint.of(each) for each in pids]
                socks = []
                for _ in range(count):
                    sock = server.connect()
                    sock.sendall(b"GET /crowd HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    sock.recv(65536)
                    socks.append(sock)
                held = [Footprint.of(each) for each in pids]
                [beside] = measure(f"{server.url}/hello", seconds=self.seconds)
                cpu_s = sum(cpu_s_over(each, 2) for each in pids)
                close_all(socks)
                eventually(lambda: count_open(server) == 0, "all connections closed")
                after = [Footprint.of(each) for each in pids]
            memory_mib = sum(now.rss_mib for now in held) - sum(then.rss_mib for then in before)
            figures |= latencies(f"{isolation}: quiet", quiet) | latencies(f"{isolation}: beside the crowd", beside)
            figures |= {
                f"{isolation}: share of its quiet throughput": beside.per_second / quiet.per_second,
                f"{isolation}: memory per connection, KiB": memory_mib * 1024 / count,
                f"{isolation}: CPU time of the idle crowd, % of a core": cpu_s / 2 * 100,
                f"{isolation}: threads more, after": sum(now.threads - then.threads for now, then in zip(after, before, strict=True)),
                f"{isolation}: descriptors more, after": sum(
                    now.descriptors - then.descriptors for now, then in zip(after, before, strict=True)
                ),
            }
        return figures

    # What stays behind.

    def churn(self) -> Figures:
        """10,000 connections of every sort: kept alive, closed, half-closed, reset, left early, refused"""
        count = 10_000
        config = '[mounts]\n"/a" = { app = "hello", threads = 8 }\n"/b" = "hello"\n"/big" = "big"'
        with self.serve(config, wait_for=3) as server:
            [pid] = server.workers()

            def settled() -> Footprint:
                eventually(lambda: count_open(server) == 0, "all connections closed")
                return Footprint.of(pid)

            churn(server, 500)
            before = settled()
            began = time.monotonic()
            churn(server, count)
            took_s = time.monotonic() - began
            after = settled()
        return {
            "connections/s": count / took_s,
            "descriptors before": before.descriptors,
            "descriptors after": after.descriptors,
            "threads before": before.threads,
            "threads after": after.threads,
            "memory before, MiB": before.rss_mib,
            "memory after, MiB": after.rss_mib,
        }

    def idle(self) -> Figures:
        """20 mounts, without and with 500 idle connections on them; --keep-alive 60"""
        mounts, connections, seconds = 20, 500, 5
        config = "[mounts]\n" + "".join(f"'/m{number}' = 'hello'\n" for number in range(mounts))
        with self.serve(config, "--keep-alive", "60", wait_for=mounts) as server:
            [pid] = server.workers()
            time.sleep(1)  # until what follows a boot is over
            without_s = cpu_s_over(pid, seconds)
            socks = [server.connect() for _ in range(connections)]
            for number, sock in enumerate(socks):
                sock.sendall(f"GET /m{number % mounts} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            for sock in socks:
                sock.recv(65536)
            time.sleep(1)
            with_s = cpu_s_over(pid, seconds)
            threads = Footprint.of(pid).threads
            close_all(socks)
        return {
            "without connections: CPU time, % of a core": without_s / seconds * 100,
            "with them: CPU time, % of a core": with_s / seconds * 100,
            "threads": threads,
        }


EVERY_ROUND: list[Callable[[Bench], Figures]] = [
    Bench.cpu,
    Bench.hog,
    Bench.isolations,
    Bench.sleepers,
    Bench.halves,
    Bench.slow,
    Bench.siege,
]
FIRST_ROUND: list[Callable[[Bench], Figures]] = [Bench.busy, Bench.churn, Bench.idle, Bench.crowd]


def _busy_s() -> float:
    """Return how many seconds all cores together were busy since the system started; guests are in user, waiting for disks is not work."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _cpu_s(server: Server) -> float:
    return sum(Footprint.of(pid).cpu_s for worker in server.workers() for pid in [worker, *_children_of(worker)])


def _children_of(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def _own_s() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def print_table(title: str, rounds: list[Figures]) -> None:
    calm = [figures for figures in rounds if figures[OTHERS] < CALM_CORES]
    print(f"\n## {title}\n\n{len(calm)} of {len(rounds)} rounds were calm.\n")
    print("| figure | median | min to max |\n| --- | ---: | ---: |")
    for name in rounds[0]:
        values = [figures[name] for figures in calm or rounds if name in figures]
        span = f"{_number(min(values))} to {_number(max(values))}" if len(values) > 1 else ""
        print(f"| {name} | {_number(statistics.median(values))} | {span} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how far the mounts of one worker leave each other alone.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each load")
    parser.add_argument("--busy", type=int, default=60, help="seconds of the busy loops")
    parser.add_argument("--patience", type=int, default=60, help="seconds to wait before each measurement for others to be quiet")
    parser.add_argument("--only", default="", help="names of scenarios, with commas between them")
    parser.add_argument("--json", help="write all rounds' figures to this file")
    options = parser.parse_args()
    scenarios = {scenario.__name__: scenario for scenario in EVERY_ROUND + FIRST_ROUND}
    wanted = options.only.split(",") if options.only else list(scenarios)
    if unknown := set(wanted) - set(scenarios):
        parser.error(f"--only: expected some of {', '.join(scenarios)}, got {', '.join(sorted(unknown))!r}")
    raise_descriptor_limit(11_000)

    bench = Bench(options.seconds, options.busy, options.patience)
    rounds: dict[str, list[Figures]] = {name: [] for name in wanted}
    for number in range(options.rounds):
        for name in wanted:
            if number == 0 or scenarios[name] in EVERY_ROUND:
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
                figures = scenarios[name](bench)
                rounds[name].append(figures | {OTHERS: bench.others})

    facts = {
        "python": interpreters.version_text(),
        "gunicorn": gunicorn.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "load": "wrk" if _WRK else "tests/load_process.py",
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for name, measured in rounds.items():
        print_table(f"{name}: {scenarios[name].__doc__}", measured)
    if options.json:
        Path(options.json).write_text(json.dumps({**facts, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
