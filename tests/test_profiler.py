"""Profiles from the inside: what threads do is added up by call, within bounds, and nothing is left afterwards."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from django.template import Context, Engine

from isowsgi.inside import profiler, templates
from isowsgi.inside.profiler import LineTable, Profiler, Tree, clock_of
from isowsgi.shared import wire
from isowsgi.shared.calltree import CallTree
from isowsgi.shared.messages import Profile
from tests.conftest import eventually

ORDER = Profile(ask=7, mount=0, seconds=10.0, rate=100, cpu=False, by_request=False)


@contextmanager
def waiting_thread(call: Callable[[Callable[[], None]], object]) -> Iterator[int]:
    """Have a thread call a function that calls what it is given, and stay there; the block has the thread's number."""
    is_there, may_go = threading.Event(), threading.Event()

    def stay() -> None:
        is_there.set()
        may_go.wait()

    thread = threading.Thread(target=call, args=(stay,))
    thread.start()
    is_there.wait()
    try:
        yield thread.ident or 0
    finally:
        may_go.set()
        thread.join()


def job(ident: int, line: str = "GET /shop/1?page=2 HTTP/1.1", mount: int = 0, is_taken: bool = False, cpu: list[int] | None = None) -> Any:
    """A serving thread inside a request.

    Args:
        cpu: what its CPU clock shows, one look after the other, in nanoseconds.
    """
    connection = SimpleNamespace(gateway=SimpleNamespace(mount=mount), is_taken=is_taken)
    return SimpleNamespace(
        ident=ident, connection=connection, row=SimpleNamespace(line=lambda: line), cpu_ns=lambda: cpu.pop(0) if cpu else 0
    )


def sampled(jobs: list[Any], order: Profile = ORDER, passed: tuple[float, ...] = (0.5,)) -> CallTree:
    """Return the profile of jobs, with samples so long after one another."""
    told: list[tuple[int, str]] = []
    taker = Profiler(lambda: jobs, lambda ask, text: told.append((ask, text)), isolation="main")
    now = 100.0
    taker.start(order, now)
    for each in passed:
        now += each
        taker.take(now)
    taker.finish(now)
    [(ask, text)] = told
    assert (ask, taker.next_at) == (order.ask, math.inf)
    return wire.read(json.loads(text), CallTree)


def paths(tree: CallTree) -> dict[tuple[str, ...], int]:
    """Return the time of each path of functions."""
    found: dict[tuple[str, ...], int] = {}
    names: list[tuple[str, ...]] = []
    for parent, frame, time_us in tree.nodes:
        names.append((names[parent] if parent >= 0 else ()) + (tree.frames[frame][0],))
        if time_us:
            found[names[-1]] = found.get(names[-1], 0) + time_us
    return found


def outer(stay: Callable[[], None]) -> None:
    inner(stay)


def inner(stay: Callable[[], None]) -> None:
    stay()


def test_the_time_between_two_samples_counts_for_where_a_request_is() -> None:
    with waiting_thread(outer) as ident:
        tree = sampled([job(ident)], passed=(0.5, 0.25))

    [(path, time_us)] = paths(tree).items()
    assert path[path.index("outer") :][:2] == ("outer", "inner")
    assert time_us == 750_000
    assert (tree.samples, tree.seconds, tree.is_cut) == (2, 0.75, False)
    files = {name: (file, line) for name, file, line in tree.frames}
    assert files["inner"] == (__file__, inner.__code__.co_firstlineno + 1)


def test_what_starts_a_thread_and_what_serves_is_left_out() -> None:
    with waiting_thread(outer) as ident:
        [path] = paths(sampled([job(ident)]))

    assert path[0] == "outer"


def test_by_request_each_has_its_method_and_path() -> None:
    with waiting_thread(outer) as one, waiting_thread(outer) as two:
        tree = sampled([job(one), job(two, "POST /buy HTTP/1.1")], ORDER.replace(by_request=True))

    assert {path[:2] for path in paths(tree)} == {("GET /shop/1", "outer"), ("POST /buy", "outer")}


def test_requests_are_told_apart_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "MOST_REQUESTS", 1)
    with waiting_thread(outer) as ident:
        tree = sampled([job(ident), job(ident, "GET /2 HTTP/1.1"), job(ident, "GET /3 HTTP/1.1")], ORDER.replace(by_request=True))

    assert {path[0]: time for path, time in paths(tree).items()} == {"GET /shop/1": 500_000, "(other requests)": 1_000_000}


def test_idle_threads_and_another_mounts_requests_are_left_out() -> None:
    with waiting_thread(outer) as ident:
        idle = SimpleNamespace(ident=ident, connection=None, cpu_ns=lambda: 0)
        tree = sampled([idle, job(ident, mount=1)])

    assert tree.nodes == []


@pytest.mark.parametrize("is_taken", [False, True])
def test_time_on_a_processor_is_that_of_the_threads_clock(is_taken: bool) -> None:
    """A websocket's thread waits for days: of what an app has taken over, only that time counts."""
    with waiting_thread(outer) as ident:
        tree = sampled([job(ident, is_taken=is_taken, cpu=[5_000, 105_000, 105_000])], ORDER.replace(cpu=not is_taken), passed=(0.5, 0.5))

    assert list(paths(tree).values()) == [100]


def test_a_thread_of_the_apps_own_counts_while_it_uses_a_processor() -> None:
    ends = threading.Event()

    def work() -> None:
        while not ends.is_set():
            sum(range(1000))

    told: list[str] = []
    taker = Profiler(list, lambda ask, text: told.append(text), isolation="shared-gil")
    with waiting_thread(outer):
        thread = threading.Thread(target=work)
        thread.start()
        try:
            taker.start(ORDER, 0.0)
            before = now = clock_of(thread.native_id) or 0
            while now - before < 2_000_000:
                now = clock_of(thread.native_id) or 0
            taker.take(1.0)
        finally:
            ends.set()
            thread.join()
        taker.finish(1.0)

    found = paths(wire.read(json.loads(told[0]), CallTree))
    assert any(path[0].endswith("work") for path in found)
    assert not any("outer" in path for path in found)


def test_the_clock_of_a_thread_that_has_ended_is_none() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()

    eventually(lambda: clock_of(thread.native_id) is None, "the end of the thread itself")  # join returns a moment before, on 3.11
    assert clock_of(None) is None
    assert clock_of("7") is None
    assert (clock_of(threading.get_native_id()) or 0) > 0


def test_what_does_not_fit_counts_for_what_called_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "MOST_NODES", 1)
    tree = Tree()
    for function in (inner, waiting_thread):
        tree.add([(function.__code__, 2), (outer.__code__, 2)], 10)
    told = tree.told(2, 1.0, 10_000)

    assert told.is_cut
    assert paths(told) == {("outer",): 20}


def test_what_is_more_than_is_told_counts_for_what_called_it() -> None:
    tree = Tree()
    for offset in range(0, 200, 2):
        tree.add([(inner.__code__, offset), (outer.__code__, 2)], 10)
    told = tree.told(100, 1.0, 500)

    assert told.is_cut
    assert len(wire.encode(wire.plain(told))) < 800
    assert sum(time_us for _, _, time_us in told.nodes) == 1000


def test_each_line_of_a_large_function_is_found_quickly() -> None:
    """Its table was looked through for each place: 2 s for 1,000 places, in which the control thread counts as stuck."""
    names: dict[str, Any] = {}
    exec("def large():\n" + "\n".join(f"    value = {number}" for number in range(3000)), names)
    code = names["large"].__code__
    looks = []

    class Code:
        co_firstlineno = code.co_firstlineno

        def co_lines(self) -> Any:
            looks.append(1)
            return code.co_lines()

    table = LineTable(Code())

    expected = {offset: line or 1 for start, end, line in code.co_lines() for offset in range(start, end, 2)}
    assert {offset: table.line(offset) for offset in expected} == expected
    assert (table.line(-1), table.line(10**9)) == (1, 1)
    assert len(looks) == 1


def test_a_sample_that_raises_ends_the_profile() -> None:
    """The next one was due at once: the control thread took a whole core and the app's GIL until the worker ended it."""
    told: list[tuple[int, str]] = []
    jobs = iter([[], MemoryError()])

    def next_jobs() -> Any:
        found = next(jobs)
        if isinstance(found, Exception):
            raise found
        return found

    taker = Profiler(next_jobs, lambda *answer: told.append(answer), isolation="main")
    taker.start(ORDER, 100.0)
    with pytest.raises(MemoryError):
        taker.take(100.5)

    assert (told, taker.next_at) == ([(7, "")], math.inf)


class Named(threading.Thread):
    """A thread of the app's whose name is its code, as is the way to it."""

    def __getattribute__(self, name: str) -> Any:
        if threading.current_thread() is threading.main_thread() and name in ("_name", "_native_id"):
            raise SystemExit
        return super().__getattribute__(name)


def test_what_a_thread_of_the_apps_says_of_itself_is_not_asked() -> None:
    """The control thread ran it, which may wait for nothing of the app's."""
    may_go = threading.Event()
    thread = Named(target=may_go.wait)
    thread.start()
    try:
        taker = Profiler(list, lambda *answer: None, isolation="own-gil")
        taker.start(ORDER, 100.0)
        taker.take(100.5)
        taker.drop(ORDER.ask)
    finally:
        may_go.set()
        thread.join()


def test_where_reading_stacks_may_crash_nothing_is_sampled() -> None:
    """A new generation may be in another isolation than the one for which the command was allowed."""
    told: list[tuple[int, str]] = []
    taker = Profiler(list, lambda *answer: told.append(answer), isolation="own-gil", is_safe=lambda: False)
    taker.start(ORDER, 100.0)

    assert (told, taker.next_at) == ([(7, "")], math.inf)


def test_what_was_sampled_until_reading_stacks_was_no_longer_safe_is_told() -> None:
    """The first app with an own GIL was loaded meanwhile."""
    told: list[tuple[int, str]] = []
    safe = [True, True, False]
    taker = Profiler(list, lambda *answer: told.append(answer), isolation="shared-gil", is_safe=lambda: safe.pop(0))
    taker.start(ORDER, 100.0)
    taker.take(100.5)
    taker.take(101.0)

    [(ask, text)] = told
    assert (ask, json.loads(text)["samples"], taker.next_at) == (7, 1, math.inf)


def test_a_deep_recursion_is_sampled_from_its_innermost_frames() -> None:
    def dive(stay: Callable[[], None], depth: int = 400) -> None:
        if depth:
            dive(stay, depth - 1)
        else:
            inner(stay)

    with waiting_thread(dive) as ident:
        tree = sampled([job(ident)])

    [path] = paths(tree)
    assert len(path) == profiler.MOST_FRAMES
    assert "inner" in path


def test_the_switch_interval_is_shorter_meanwhile_and_as_before_afterwards() -> None:
    before = sys.getswitchinterval()
    taker = Profiler(list, lambda ask, text: None, isolation="own-gil")
    try:
        taker.start(ORDER, 0.0)
        assert sys.getswitchinterval() < before
        taker.start(ORDER.replace(ask=8), 1.0)  # another one takes its place
        taker.drop(7)  # its asker has gone long since
        assert sys.getswitchinterval() < before
        taker.drop(8)
        assert (sys.getswitchinterval(), taker.next_at) == (before, math.inf)
    finally:
        sys.setswitchinterval(before)


def test_a_profile_ends_by_itself() -> None:
    told: list[int] = []
    taker = Profiler(list, lambda ask, text: told.append(ask), isolation="main")
    taker.start(ORDER, 100.0)
    for now in (105.0, 110.0, 110.1):
        taker.take(now)

    assert (told, taker.next_at) == ([7], math.inf)


def test_the_line_of_a_django_template_is_told(tmp_path: Any) -> None:
    (tmp_path / "shop.html").write_text("<h1>\n{% if yes %}\n<p>{{ stay }}</p>\n{% endif %}")
    template = Engine(dirs=[str(tmp_path)]).get_template("shop.html")

    with waiting_thread(lambda stay: template.render(Context({"stay": stay, "yes": True}))) as ident:
        tree = sampled([job(ident)])

    place = str(tmp_path / "shop.html")
    lines = [frame for frame in tree.frames if frame[1] == place]
    assert lines == [("{% if yes %}", place, 2), ("{{ stay }}", place, 3)]
    [path] = paths(tree)
    assert path.index("{% if yes %}") < path.index("IfNode.render") < path.index("{{ stay }}") < path.index("VariableNode.render")


def test_the_line_of_a_jinja_template_is_told(tmp_path: Any) -> None:
    jinja2 = pytest.importorskip("jinja2")
    (tmp_path / "shop.html").write_text("<h1>\n\n\n\n<p>{{ stay() }}</p>\n")
    template = jinja2.Environment(loader=jinja2.FileSystemLoader(str(tmp_path))).get_template("shop.html")

    with waiting_thread(lambda stay: template.render(stay=stay)) as ident:
        tree = sampled([job(ident)])

    place = str(tmp_path / "shop.html")
    assert ("root", place, 5) in tree.frames


class Odd:
    """Has what a template's node has, and none of it as it should be."""

    def __getattr__(self, name: str) -> Any:
        raise SystemExit("the app's code was called")

    def __init__(self, **facts: Any) -> None:
        self.__dict__.update(facts)


def test_what_is_no_node_of_a_template_has_no_line() -> None:
    origin, kind = Odd(name=3), Odd()
    unhashable = Odd(token=Odd(contents="x", lineno=1, token_type=Odd(_value_=[])), origin=Odd(name="x"))
    for node in (None, 7, Odd(), Odd(token=Odd()), Odd(token=Odd(contents=1, lineno="x", token_type=kind), origin=origin), unhashable):
        assert templates.django_line(SimpleNamespace(f_locals={"self": node})) is None


@pytest.mark.parametrize(
    "names", [{}, {"debug_info": "1=2"}, {"blocks": 1, "root": 1, "debug_info": "x"}, {"blocks": 1, "root": 1, "debug_info": 7}]
)
def test_what_is_no_compiled_template_has_no_table(names: dict[str, Any]) -> None:
    assert templates.jinja_lines(names) is None
