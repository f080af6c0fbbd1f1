"""Routing does what one sentence says: host first, then the longest prefix by whole segments."""

import string
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isowsgi.shared import routing
from isowsgi.shared.routing import Route, Router, bare_host
from tests.conftest import examples

# Few values, so that tables and requests meet; "ab" begins as "a" does, "é" is what its two bytes in UTF-8 are in WSGI text.
SEGMENTS = ["a", "b", "ab", "é".encode().decode("latin-1"), "..", "%2F"]
HOSTS = ["a.example", "b.example", "[::1]", "*.example", "*.a.example", "x.a.example"]

prefixes = st.lists(st.sampled_from(SEGMENTS), max_size=4).map(lambda segments: "".join(f"/{segment}" for segment in segments))
paths = st.one_of(
    st.lists(st.sampled_from([*SEGMENTS, ""]), max_size=6).map(lambda segments: "".join(f"/{segment}" for segment in segments)),
    st.text(alphabet="/ab*.", max_size=8),
    st.builds(str.__mul__, st.sampled_from(["/", "/a", "/a/", "a"]), st.integers(0, 40)),
)
hosts = st.sampled_from(["", "a.example", "A.Example:80", "b.example.", "B.EXAMPLE.:8080", "[::1]:1", "[::1]", "other.example", ":80", "["])
hosts = hosts | st.sampled_from(
    [*HOSTS, "X.A.Example.:80", "y.a.example", "y.x.a.example", "example", ".example", "é.example", "a b.example", "*.a.example:1"]
)
hosts = hosts | st.builds("{}.example".format, st.text(alphabet="aB-_.*é/", max_size=3) | st.sampled_from(["a" * 63, "a" * 64]))


@st.composite
def tables(draw: Any) -> list[Route]:
    """Any table; each second one has mounts with several hosts."""
    some_hosts = st.lists(st.sampled_from(["", *HOSTS]), min_size=1, max_size=draw(st.sampled_from([1, 3])), unique=True)
    taken: set[tuple[str, str, int]] = set()
    for number, (names, prefix) in enumerate(draw(st.lists(st.tuples(some_hosts, prefixes), min_size=1, max_size=8))):
        taken |= {(name, prefix, number) for name in names if all(each[:2] != (name, prefix) for each in taken)}
    return [Route(number, name, prefix) for name, prefix, number in sorted(taken)]


def specified(routes: list[Route], host: str, path: str) -> int | None:
    """What the module's first sentence says, in the plainest way."""

    def matches(prefix: str) -> bool:
        segments = prefix.split("/")
        return prefix == "" or path.split("/")[: len(segments)] == segments

    matching = [route for route in routes if takes(route.host, bare_host(host)) and matches(route.prefix)]
    if not matching:
        return None
    return max(matching, key=lambda route: (route.host != "", "*" not in route.host, len(route.prefix))).mount


def takes(pattern: str, name: str) -> bool:
    """Whether a pattern's host is the request's, or stands for it."""
    if "*" not in pattern:
        return pattern in ("", name)
    label, *rest = name.split(".")
    return ["*", *rest] == pattern.split(".") and 0 < len(label) < 64 and set(label) <= set(string.ascii_lowercase + string.digits + "-_")


@examples(500)
@given(tables(), hosts, paths)
def test_a_request_goes_to_the_longest_prefix_of_its_host_and_else_of_any_host(routes: list[Route], host: str, path: str) -> None:
    assert Router(routes).match(host, path) == specified(routes, host, path)


@examples(300)
@given(tables(), st.lists(st.tuples(hosts, paths), min_size=1, max_size=8))
def test_an_instance_that_knows_only_its_rivals_takes_its_own_requests_and_no_others(
    routes: list[Route], requests: list[tuple[str, str]]
) -> None:
    """Otherwise a kept-alive connection would be served by the wrong app, or go back and forth between two owners."""
    full = Router(routes)
    for route in routes:
        own = Router(full.rivals(route.mount))
        assert all(full.rivals(route.mount).count(each) == 1 for each in own.routes)
        for host, path in requests:
            assert (own.match(host, path) == route.mount) == (full.match(host, path) == route.mount)


def test_an_instance_does_not_keep_the_patterns_of_mounts_that_cannot_take_a_request_from_it() -> None:
    """A thousand mounts would otherwise hold a million patterns."""
    full = Router(Route(number, "", f"/app{number}") for number in range(1000))

    assert full.rivals(7) == [Route(7, "", "/app7")]


# Not in the order of the mounts' numbers. Some texts are joined when this runs, so that equal ones are not one object.
HOST, OTHER = ["".join((name, ".example")) for name in ("h", "i")]
TABLE = [
    Route(1005, "", "/a"),
    Route(1002, "", ""),
    Route(1000, "", "/a/b"),
    Route(1003, "".join(("h", ".example")), "/a"),
    Route(1001, HOST, ""),
    Route(1004, OTHER, "/a/b/c"),
    Route(1006, "", "/ab"),
    Route(1008, OTHER, "/b"),
    Route(1007, "", "".join(("/", "b"))),
]


@pytest.mark.parametrize(
    ("number", "rivals"),
    [
        (2, [5, 2, 0, 3, 1, 4, 6, 8, 7]),  # the root of any host: whatever there is
        (5, [5, 0, 3, 1, 4]),  # below it, and of a host: the same, below or above
        (0, [0, 3, 1, 4]),
        (6, [1, 6]),  # "/a" is no segment of "/ab"
        (7, [1, 8, 7]),
        (1, [3, 1]),  # of a host: only below it, of that host
        (3, [3]),
        (4, [4]),
    ],
)
def test_the_rivals_of_a_mount_are_those_that_may_win_a_request_that_its_pattern_takes(number: int, rivals: list[int]) -> None:
    """One too few would let an instance serve a neighbour's request; one too many only costs memory."""
    found = Router(TABLE).rivals(1000 + number)

    assert [route.mount - 1000 for route in found] == rivals


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/blog", 1),
        ("/blog/", 1),
        ("/blog/1", 1),
        ("/blog//new", 1),
        ("/blogs", 0),
        ("//blog", 0),
        ("/Blog", 0),
        ("/blog/new", 2),
        ("/blog/new/", 2),
        ("/blog/new.html", 1),  # "." and "-" sort before "/"
        ("/blog/new-1", 1),
        ("/blog/../x", 1),
        ("*", 0),
        ("", 0),
    ],
)
def test_prefixes_match_whole_segments_of_the_path_as_it_is(path: str, mount: int) -> None:
    router = Router([Route(0, "", ""), Route(1, "", "/blog"), Route(2, "", "/blog/new")])

    assert router.match("", path) == mount


@pytest.mark.parametrize("path", ["/", "*", "", "/blogs", "/blo"])
def test_what_no_pattern_takes_has_no_mount(path: str) -> None:
    assert Router([Route(0, "", "/blog")]).match("any.example", path) is None


def test_a_pattern_with_a_host_wins_over_a_longer_one_without() -> None:
    router = Router([Route(0, "", "/a/b/c"), Route(1, "api.example", "/a")])

    assert router.match("api.example", "/a/b/c") == 1
    assert router.match("api.example", "/b") is None
    assert router.match("www.example", "/a/b/c") == 0


def test_a_wildcard_takes_one_label_and_gives_way_to_the_host_itself() -> None:
    router = Router([Route(0, "", ""), Route(1, "*.example", "/a"), Route(2, "shop.example", "/a/b"), Route(3, "*.shop.example", "")])

    found = [
        router.match(host, "/a/b") for host in ("www.example", "shop.example", "a.shop.example", "a.b.example", "example", "*.example")
    ]

    assert found == [1, 2, 3, 0, 0, 0]
    assert router.match("shop.example", "/a") == 1, "where the host's own patterns do not match, the wildcard follows"
    assert router.match("shop.example", "/") == 0


def test_of_two_routes_that_are_the_same_the_first_counts() -> None:
    """A table of which a part stays as it was may have a host twice; then one mount has it, for the instances too."""
    router = Router([Route(0, "", ""), Route(1, "a.example", ""), Route(2, "b.example", ""), Route(2, "a.example", "")])

    assert router.match("a.example", "/") == 1
    assert router.rivals(2) == [Route(2, "b.example", "")]


def test_no_more_is_done_for_a_host_among_ten_thousand() -> None:
    few = Router([Route(0, "", ""), Route(1, "*.example", "/a"), Route(2, "h1.example", "/a")])
    many = Router([*few.routes, *(Route(2 + number, f"h{number}.example", "/a") for number in range(2, 10_000))])

    for host in ("h1.example", "h9.other", "a." * 30_000 + "example"):
        steps = [lines_run(lambda router=router, host=host: router.match(host, "/a")) for router in (few, many)]  # type: ignore[misc]
        assert steps[0] == steps[1] < 30


def test_a_host_without_a_matching_prefix_falls_back_to_the_patterns_of_any_host() -> None:
    router = Router([Route(0, "", ""), Route(1, "api.example", "/v1")])

    assert router.match("api.example", "/v2") == 0


@pytest.mark.parametrize(
    ("host", "bare"),
    [
        ("example.com", "example.com"),
        ("Example.COM:8080", "example.com"),
        ("example.com.", "example.com"),
        ("example.com.:80", "example.com"),
        ("example.com:", "example.com"),
        ("[::1]", "[::1]"),
        ("[FE80::1]:443", "[fe80::1]"),
        ("[::1", ""),
        (":80", ""),
        ("", ""),
        (".", ""),
    ],
)
def test_a_host_is_compared_without_case_port_and_the_dot_of_the_root(host: str, bare: str) -> None:
    assert bare_host(host) == bare


def lines_run(function: Callable[[], object]) -> int:
    """Count the lines of routing.py that a call runs."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != routing.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("unit", ["/", "/a", "/blog", "a", "/blog/new/"])
def test_a_hostile_path_costs_no_more_steps_than_the_longest_pattern(unit: str) -> None:
    """One step a segment of a path of 64 KiB would be 64 thousand steps and as many copies of it, on the acceptor's only thread."""
    router = Router([Route(0, "", ""), Route(1, "", "/blog"), Route(2, "", "/blog/new"), Route(3, "a.example", "/x")])
    longest = len("/blog/new")

    steps = lines_run(lambda: router.match("a.example", unit * (64 * 1024 // len(unit))))

    # A few lines for each of the two tables, and four for each place where the longest pattern may be cut.
    assert steps < 30 + 2 * 4 * longest
