"""The fast path takes nothing that gunicorn would refuse and reads nothing differently; ordinary requests it does take.

Both sides get the same bytes, settings and addresses, and everything that comes of it is compared (`tests.differential`). The golden
requests are in tests/requests; tests/fuzz goes on from them for as long as one likes.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from isowsgi.inside.http import ExactReader
from isowsgi.inside.plainrequest import _MAX_SHARED, PlainReader, PlainSettings
from isowsgi.shared.peek import _PLAIN_LINE, Line, Peeker
from isowsgi.shared.routing import Route, Router
from tests.conftest import examples, sample
from tests.differential import PEERS, PREFIXES, READS, SERVERS, SETTINGS, Disagreement, Place, Wire, compare, configs

REQUESTS = Path(__file__).parent / "requests"
GOLDEN = sorted(REQUESTS.glob("*.http"))
CLIENTS = sorted((REQUESTS / "clients").glob("*.http"))

# Whatever a golden connection asks for.
ALL_READ = ["all"] * 4


# Golden requests.


def test_golden_requests_are_taken_left_or_refused_as_their_names_say() -> None:
    """In one test: six hundred of their own would cost more than what they do."""
    kinds = {}
    for path in GOLDEN:
        first = compare(path.read_bytes(), Place(), ALL_READ)[0]
        kinds[path.stem] = "refused" if first.refusal else "taken" if first.is_plain else "left"

    assert [(name, kind) for name, kind in kinds.items() if name.partition("-")[0] != kind] == []


def test_there_are_golden_requests_of_each_kind() -> None:
    kinds = [path.stem.partition("-")[0] for path in GOLDEN]

    assert min(kinds.count(kind) for kind in ("taken", "left", "refused")) >= 20


# One axis after the other.
PLACES = [
    *(Place(peer=peer) for peer in PEERS),
    *(Place(server=server, peer="") for server in SERVERS),
    *(Place(prefix=prefix) for prefix in sorted(set(PREFIXES))),
    *(Place(settings={name: value}) for name in SETTINGS for value in SETTINGS[name]),
    *(
        Place(settings={name: value}, peer="")
        for name in ("header_map", "secure_scheme_headers", "forwarder_headers")
        for value in SETTINGS[name]
    ),
    Place(settings={"forwarded_allow_ips": "2001:db8::/32,fe80::1", "header_map": "refuse"}, peer=("2001:db8::7", 1, 0, 0)),
]


@pytest.mark.parametrize("read", READS)
def test_golden_requests_are_read_alike_in_every_place(read: str) -> None:
    corpus = [path.read_bytes() for path in [*GOLDEN, *CLIENTS[::4]]]
    for number, place in enumerate(PLACES if read == "all" else [Place(), Place(peer="", server="/run/x.sock")]):
        for data in sample(corpus[number % 4 :], 4):  # other ones in each place
            compare(data, place, [read] * 4, step=7)


def test_the_fast_path_takes_what_clients_send_in_everyday_use() -> None:
    """So that a change which turns it off in silence is noticed: every test of what it reads would still pass."""
    left = [path.stem for path in CLIENTS if not compare(path.read_bytes(), Place())[0].is_plain]

    assert len(CLIENTS) >= 50
    assert len(left) <= len(CLIENTS) * 0.05, f"left to gunicorn's parser: {left}"


def test_the_fast_path_takes_what_clients_send_with_any_settings_that_do_not_forbid_it() -> None:
    """0 is gunicorn's word for no limit."""
    settings = {"limit_request_line": 0, "limit_request_fields": 0, "limit_request_field_size": 0, "header_map": "refuse", "workers": 3}
    place = Place(peer="", server="/run/isowsgi.sock", settings=settings)
    left = [path.stem for path in CLIENTS if not compare(path.read_bytes(), place)[0].is_plain]

    assert len(left) <= len(CLIENTS) * 0.05, f"left to gunicorn's parser: {left}"


# Any requests.


def mostly(usual: list[Any], odd: list[Any]) -> st.SearchStrategy[Any]:
    """Draw something odd one time in thirty: most heads shall have one fault or none, as the first hides the others."""
    return st.integers(0, 29).flatmap(lambda number: st.sampled_from(odd if number == 19 else usual))


OCTETS = [bytes([octet]) for octet in range(256)]
TOKEN_CHARS = [char.encode() for char in "!#$%&'*+-.^_`|~09AZaz"]
NAMES = [
    *(b"Host", b"host", b"Content-Type", b"CONTENT-TYPE", b"Content-Length", b"content-length", b"Connection", b"CONNECTION", b"Cookie"),
    *(b"X-Forwarded-Proto", b"x-forwarded-proto", b"X-Forwarded-Ssl", b"X-Forwarded-Protocol", b"X-Forwarded-For", b"X-A", b"x-a", b"Te"),
    *(b"Accept", b"Upgrade", b"Script-Name", b"Remote-User", b"HTTP-HOST", b"Referer", b"Keep-Alive", b"Proxy-Connection"),
]
ODD_NAMES = [
    *(b"Expect", b"Transfer-Encoding", b"X_A", b"SCRIPT_NAME", b"script_name", b"PATH_INFO", b"X_Forwarded_Proto", b"Content_Length"),
    *(b"", b" Host", b"\tX", b"X ", b"X\t", b"X Y", b"X:Y", b"Content-Length\xdf", b"Ho\xb2t", b"X\x00", b"X\r", b"X\n", b"(X)", b'"X"'),
]
VALUES = [
    *(
        b"a",
        b"",
        b"example.com",
        b"example.com:8080",
        b"[::1]:80",
        b"a:b:c",
        b"text/plain",
        b"0",
        b"1",
        b"2",
        b"3",
        b"5",
        b"007",
        b"9" * 18,
    ),
    *(b"close", b"Close", b"CLOSE", b"keep-alive", b"Keep-Alive", b"keep-alive, te", b"close, te", b"upgrade", b"Upgrade, HTTP2-Settings"),
    *(
        b"https",
        b"http",
        b"HTTPS",
        b"ssl",
        b"on",
        b"off",
        b"a=b; c=d",
        b"a,b",
        b"192.0.2.1, 192.0.2.2",
        b"trailers",
        b"*/*",
        b"\tb\tc",
        b"X: y",
    ),
    *(b"\xe4\xf6", b"\x80\x85\xa0\xff", b"\xa0x\xa0", b"x \t "),
]
ODD_VALUES = [
    *(b"\xb2", b"1\xb9", b"+1", b"-1", b"1_0", b"0x1", b"1.0", b"1 1", b"1,1", b"9" * 19, b"9" * 30, b"9" * 5000),
    *(b"100-continue", b"100-Continue", b"chunked", b"gzip, chunked", b"identity", b"xchunked", b"\x0bclose", b"close\x0c"),
    *(b"a\rb", b"a\nb", b"a\x00b", b"a\x7f", b"a\x1fb", b"a\r\n b", b"a\r\n\tb", b"a\nContent-Length: 3", b"\r", b"a\r\r"),
]
PATH_PIECES = [
    *(b"/", b"a", b"b", b"/a", b"/a/b", b"/%C3%A9", b"/%c3%a9/", b"%2F", b"%61", b"..", b"/./", b"//", b";v=1", b":", b"@", b"=", b"&"),
    *(
        b"?",
        b"?a=b&c=d",
        b"?/?",
        b"%",
        b"%zz",
        b"%00",
        b"%0d%0a",
        b"[",
        b"]",
        b"[::1]",
        b"\\",
        b"|",
        b"^",
        b"`",
        b'"',
        b"<>",
        b"{}",
        b"~",
        b"*",
    ),
]
ODD_PIECES = [b"#", b"#?", b" ", b"\t", b"\x00", b"\x7f", b"\x80", b"\xc3\xa9", b"\r", b"\n", b"\x0b"]

names = st.one_of(mostly(NAMES, ODD_NAMES), mostly(NAMES, ODD_NAMES), st.lists(mostly(TOKEN_CHARS, OCTETS), max_size=6).map(b"".join))
values = st.one_of(
    mostly(VALUES, ODD_VALUES), mostly(VALUES, ODD_VALUES), st.lists(mostly(OCTETS[32:127], OCTETS), max_size=6).map(b"".join)
)
any_fields = st.builds(
    lambda name, colon, value, end: name + colon + value + end,
    names,
    mostly([b": ", b":", b":\t", b": \t "], [b"", b" : ", b" :", b"\t:", b"::", b":\r\n "]),
    values,
    mostly([b"\r\n"], [b" \t\r\n", b"\n", b"\r", b"\r\r\n", b"\r\n\r\n", b""]),
)
likely_fields = st.sampled_from(
    [
        *(b"Host: a\r\n", b"Host: example.com:8080 \r\n", b"host:\r\n", b"Host: [::1]:80\r\n"),
        *(b"Content-Length: 3\r\n", b"Content-Length:0\r\n", b"content-length: 5\r\n", b"Content-Length: 00002\r\n"),
        *(b"Connection: close\r\n", b"Connection: Keep-Alive\r\n", b"connection: keep-alive, te\r\n", b"Connection: upgrade\r\n"),
        *(b"X-Forwarded-Proto: https\r\n", b"X-Forwarded-Ssl:on\r\n", b"X-FORWARDED-PROTOCOL: https\r\n", b"X-Forwarded-Proto: HTTPS\r\n"),
        *(b"Cookie: a=b\r\n", b"cookie:\r\n", b"X-Forwarded-For: 192.0.2.1\r\n", b"x-forwarded-for:\r\n", b"Content-Type: a/b\r\n"),
    ]
)
fields = st.one_of(likely_fields, any_fields)
targets = st.one_of(
    st.lists(mostly(PATH_PIECES, ODD_PIECES), max_size=5).map(lambda pieces: b"/" + b"".join(pieces)),
    st.lists(mostly(PATH_PIECES, ODD_PIECES), max_size=5).map(lambda pieces: b"/a" + b"".join(pieces)),
    mostly(
        [b"/", b"/a", b"/a/b?c=d"], [b"*", b"", b"//a", b"http://example.com/a", b"example.com:80", b"a", b"/" + b"a" * 4081, b"?", b"#"]
    ),
)
lines = st.builds(
    lambda before, method, blank1, target, blank2, version, end: before + method + blank1 + target + blank2 + version + end,
    mostly([b""], [b"\r\n", b"\n", b" "]),
    mostly(
        [b"GET", b"POST", b"HEAD", b"OPTIONS", b"ABC", b"A" * 20],
        [b"CONNECT", b"get", b"GE", b"A" * 21, b"M-SEARCH", b"G#T", b"G_T", b"GET1", b"G\xc9T", b"G\xb2T", b""],
    ),
    mostly([b" "], [b"  ", b"\t", b""]),
    targets,
    mostly([b" "], [b"  ", b"\t", b"", b"\xa0"]),
    mostly(
        [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"],
        [b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.1 ", b"http/1.1", b"HTTP/1.\xb9", b"HTTP/1.", b""],
    ),
    mostly([b"\r\n"], [b"\n", b"\r", b"\r\r\n", b" \r\n"]),
)
heads = st.builds(lambda line, block: line + b"".join(block) + b"\r\n", lines, st.lists(fields, max_size=6))
# The same fields again, with a line of their own: what a kept-alive connection carries.
heads_alike = st.builds(
    lambda first, second, block, body: first + b"".join(block) + b"\r\n" + body + second + b"".join(block) + b"\r\n",
    lines,
    lines,
    st.lists(fields, max_size=4),
    mostly([b"", b"", b"a", b"ab", b"abc", b"abcde"], [b"\r\n", b"\n", b"1\r\na\r\n0\r\n\r\n"]),
)
connections = st.one_of(
    heads,
    heads_alike,
    st.builds(lambda first, body, second: first + body + second, heads, st.binary(max_size=6), heads),
)


@st.composite
def places(draw: Any) -> Place:
    """Half of all have gunicorn's default settings."""
    names = draw(st.lists(st.sampled_from(sorted(SETTINGS)), max_size=3, unique=True)) if draw(st.booleans()) else []
    return Place(
        peer=draw(st.sampled_from(PEERS)),
        server=draw(st.sampled_from(SERVERS)),
        prefix=draw(st.sampled_from(PREFIXES)),
        settings={name: draw(st.sampled_from(SETTINGS[name])) for name in names},
    )


@examples(400)
@given(connections, places(), st.lists(st.sampled_from(sorted(READS)), min_size=3, max_size=3), st.sampled_from([None, 1, 5]))
def test_what_the_fast_path_takes_gunicorn_takes_and_reads_alike(data: bytes, place: Place, reads: list[str], step: int | None) -> None:
    """And where gunicorn's parser reads in an instance, fed head by head, it reads as it does in gunicorn."""
    for reading in compare(data, place, reads, step):
        event(reading.refusal.__name__ if reading.refusal else "taken" if reading.is_plain else "left to gunicorn")


# Limits, at their edges.


@pytest.mark.parametrize("limit", [0, 14, 15, 100, 4094, 8190, 8191, 20000])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_a_request_line_may_be_as_long_as_gunicorn_takes(limit: int, excess: int) -> None:
    """Above 8190 gunicorn means 8190; the fast path once took what was set."""
    length = max((min(limit, 8190) or 8190) + excess, 14)
    data = b"GET /" + b"a" * (length - 14) + b" HTTP/1.1\r\nHost: a\r\n\r\n"

    reading = compare(data, Place(settings={"limit_request_line": limit}))[0]

    assert reading.is_plain == (length <= min(limit, 8190) or not limit)


@pytest.mark.parametrize("limit", [0, 1, 2, 100, 32768, 40000])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_there_may_be_as_many_fields_as_gunicorn_takes(limit: int, excess: int) -> None:
    count = max(min(limit or 100, 2000) + excess, 0)
    data = b"GET / HTTP/1.1\r\n" + b"a:\r\n" * count + b"\r\n"

    reading = compare(data, Place(settings={"limit_request_fields": limit}))[0]

    assert reading.is_plain == (count <= limit or not limit)


@pytest.mark.parametrize("limit", [0, 10, 100, 8190, 20000])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_a_field_may_be_as_long_as_gunicorn_takes(limit: int, excess: int) -> None:
    """The fast path counts all of them together, and leaves more than one may have to gunicorn."""
    length = (limit or 8190) + excess
    data = b"GET / HTTP/1.1\r\nX: " + b"a" * (length - 5) + b"\r\n\r\n"

    reading = compare(data, Place(settings={"limit_request_field_size": limit}))[0]

    assert bool(reading.refusal) == (excess == 1)


def test_a_limit_that_no_request_keeps_refuses_them_and_does_no_more() -> None:
    """The reader tried the settings with a request of its own once, and a connection could not even be made."""
    compare(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Place(settings={"limit_request_line": 5}))


# What went wrong before, or would be easy to get wrong.


@pytest.mark.parametrize("value", [b" " * 60_000 + b"\x00", b"\t" * 60_000 + b"\x7f", b"a" * 60_000 + b"\x00", b" \t" * 30_000 + b"\n"])
@pytest.mark.parametrize("limit", [8190, 1 << 20])
def test_the_time_to_read_a_field_grows_with_its_length_only(value: bytes, limit: int) -> None:
    """Blanks before a control character took the square of their number: one head of 64 KiB kept a thread busy for a minute."""
    began = time.process_time()

    compare(b"GET / HTTP/1.1\r\nHost: a\r\nX:" + value + b"\r\n\r\n", Place(settings={"limit_request_field_size": limit}))

    assert time.process_time() - began < 2


@pytest.mark.parametrize("count", [100, 10_000])
def test_the_time_to_read_many_fields_grows_with_their_number_only(count: int) -> None:
    block = b"".join(b"a%d: b\r\n" % (number % 10) for number in range(count * 6 // 10))
    began = time.process_time()

    compare(
        b"GET / HTTP/1.1\r\n" + block[:60_000] + b"\r\n\r\n",
        Place(settings={"limit_request_fields": 0, "limit_request_field_size": 1 << 20}),
    )

    assert time.process_time() - began < 2


@pytest.mark.parametrize("server", ["/run/example.com:8000.sock", "a:b:c", b"\0abstract"])
def test_a_unix_sockets_name_with_a_colon_is_server_name_and_port_as_in_gunicorn(server: Any) -> None:
    """The fast path had the Host field for all Unix sockets, so its answer and the long way's differed between two requests."""
    fast, slow = (
        compare(b"GET / HTTP/1.1\r\nHost: example.net:81\r\n" + field + b"\r\n", Place(peer="", server=server))[0]
        for field in (b"", b"Expect: 100-continue\r\n")
    )

    assert (fast.is_plain, slow.is_plain) == (True, False)
    assert fast.environ["SERVER_NAME"] == slow.environ["SERVER_NAME"]
    assert fast.environ["SERVER_PORT"] == slow.environ["SERVER_PORT"]


def test_what_an_app_does_to_its_environ_stays_its_own() -> None:
    """What the fields say is kept for the next request with the same ones."""
    reader, head = reader_and_head(b"GET /a HTTP/1.1\r\nHost: a\r\nCookie: b=c\r\n\r\n")
    *_, first = read(reader, head)
    first["HTTP_COOKIE"] = "changed"
    first["isowsgi.test"] = "added"
    del first["HTTP_HOST"]

    *_, second = read(reader, head)

    assert (second["HTTP_COOKIE"], second["HTTP_HOST"]) == ("b=c", "a")
    assert "isowsgi.test" not in second


def test_a_block_of_fields_that_was_read_stays_read_only_until_another_one_comes() -> None:
    reader, head = reader_and_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    other = b"GET / HTTP/1.1\r\nHost: b\r\n\r\n"
    strange = b"GET / HTTP/1.1\r\nHost: b\r\nHost: b\r\n\r\n"
    large = b"GET / HTTP/1.1\r\nHost: c\r\nX: " + b"x" * 4000 + b"\r\n\r\n"

    hosts = []
    for data in (head, head, other, strange, strange, head, large, large, head, other):
        taken = read(reader, data)
        hosts.append(taken and taken[2]["HTTP_HOST"])

    assert hosts == ["a", "a", "b", None, None, "a", "c", "c", "a", "b"]


def test_what_a_block_of_fields_says_is_kept_for_other_connections_but_no_secret() -> None:
    _, cfg = configs({})
    settings = PlainSettings(cfg, 0)

    def once(fields: bytes, host: str = "192.0.2.1") -> Any:
        reader = PlainReader({"SERVER_NAME": "a"}, settings, ExactReader(Wire(b"")), (host, 1))  # type: ignore[arg-type]
        return read(reader, b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")

    first, second = once(b"X-B: c\r\n"), once(b"X-B: c\r\n")
    assert first[0].pairs is second[0].pairs
    assert first[2] is not second[2]
    for secret in (b"Cookie: a=b\r\n", b"Authorization: Basic x\r\n"):
        assert once(secret)[0].pairs is not once(secret)[0].pairs
    forwarded = b"X-Forwarded-Proto: https\r\n"  # only from who may say so
    schemes = [once(forwarded, host)[2]["wsgi.url_scheme"] for host in ("192.0.2.1", "127.0.0.1", "192.0.2.1", "127.0.0.1")]
    assert schemes == ["http", "https", "http", "https"]
    for number in range(3 * _MAX_SHARED):
        once(b"X-B: %d\r\n" % number)
    assert len(settings._blocks) <= _MAX_SHARED


@pytest.mark.parametrize("name", [b"X_A", b"SCRIPT_NAME", b"_"])
def test_a_name_with_an_underscore_is_left_to_gunicorns_policy(name: bytes) -> None:
    """The peeker keeps such heads from the fast path already, since a trusted proxy's SCRIPT_NAME changes where they go."""
    reader, head = reader_and_head(b"GET / HTTP/1.1\r\nHost: a\r\n" + name + b": b\r\n\r\n")

    assert read(reader, head) is None


@pytest.mark.parametrize("setting", ["permit_obsolete_folding", "strip_header_spaces"])
def test_settings_that_change_how_fields_are_read_switch_the_fast_path_off(setting: str) -> None:
    assert not compare(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Place(settings={setting: True}))[0].is_plain


def test_a_script_name_in_the_servers_environment_switches_the_fast_path_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_NAME", "/outer")
    _, cfg = configs({})
    peeker = Peeker(Router([Route(0, "", "")]), cfg, os.environ["SCRIPT_NAME"])

    assert peeker.look(b"GET /outer/a HTTP/1.1\r\nHost: a\r\n\r\n", "").line is None


def test_the_comparison_sees_what_differs() -> None:
    """Each of these is a difference that someone would feel: here gunicorn's side gets the other request."""
    data = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nX-A: b\r\n\r\nab"
    for place, other in [
        (Place(), Place(peer=("192.0.2.7", 50000))),
        (Place(), Place(server=("127.0.0.1", 8001))),
        (Place(), Place(settings={"certfile": "certificate.pem"})),
        (Place(), Place(settings={"workers": 3})),
        (Place(), Place(settings={"limit_request_fields": 1})),
        (Place(), Place(settings={"secure_scheme_headers": {"X-A": "b"}})),
    ]:
        with pytest.raises(Disagreement):
            compare(data, place, gunicorns_place=other)


def reader_and_head(head: bytes) -> tuple[PlainReader, bytes]:
    _, cfg = configs({})
    base = {"SERVER_NAME": "a", "SERVER_PORT": "1"}
    return PlainReader(base, PlainSettings(cfg, 0), ExactReader(Wire(b"")), ("127.0.0.1", 1)), head  # type: ignore[arg-type]


def read(reader: PlainReader, data: bytes) -> Any:
    match = _PLAIN_LINE.match(data)
    assert match is not None
    line, length = Line(match, Router([])), data.index(b"\r\n\r\n") + 4
    return reader.read(line, data[line.end - 1 : length] == reader.block, data, length)
