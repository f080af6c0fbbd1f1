"""Peeking finds the mount that gunicorn's own reading of a head leads to, and refuses what gunicorn would."""

from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import (
    ConfigurationProblem,
    InvalidHeader,
    InvalidHTTPVersion,
    InvalidRequestLine,
    InvalidRequestMethod,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ObsoleteFolding,
    ParseException,
)
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from hypothesis import event, example, given
from hypothesis import strategies as st

from isowsgi.configuration.crossing import snapshot
from isowsgi.inside.settings import Settings
from isowsgi.shared.peek import INCOMPLETE, PEEK_MAX_BYTES, Look, Peeker, Refused
from isowsgi.shared.routing import Route, Router
from tests.conftest import examples


def settings(**changed: Any) -> Settings:
    """Return gunicorn's settings, some not at their default, as an interpreter has them."""
    cfg = Config()
    for name, value in changed.items():
        cfg.set(name, value)
    return Settings(snapshot(cfg))


DEFAULT = settings()
ROUTER = Router(
    [
        Route(0, "", ""),
        Route(1, "", "/a"),
        Route(2, "", "/a/b"),
        Route(3, "a.example", "/a"),
        Route(4, "b.example", ""),
        Route(5, "b.example", "/\xc3\xa9"),
        Route(6, "[::1]", "/b"),
    ]
)

TRUSTED = ("127.0.0.1", 50000)
UNTRUSTED = ("192.0.2.1", 50000)
UNIX = ""


class OnlyGunicorn(Peeker):
    """Reads every head by gunicorn's parser."""

    def __init__(self, router: Router, cfg: Any, script_name: str = "") -> None:
        super().__init__(router, cfg, script_name)
        self._plain_fields = False


class NeverGunicorn(Peeker):
    """Fails for a head that is not recognised as an ordinary one."""

    def parse(self, data: bytes, peer: Any) -> Request:
        raise AssertionError(f"gunicorn's parser was asked about {data!r}")


# Heads made to provoke a second opinion: mostly right, each with a chance of something that two readers may read in two ways.


def mostly(usual: list[bytes], odd: list[bytes]) -> st.SearchStrategy[bytes]:
    """Return the usual 19 times in 20: a head with three oddities is refused for the first, and shows nothing of the others."""
    return st.sampled_from(usual * (19 * len(odd) // len(usual) + 1) + odd)


PATH_PIECES = [b"a", b"b", b"/", b"/a", b"/b", b"//", b"%2F", b"%2f", b"%61", b"%C3%A9", b".", b"..", b"/../", b"?", b"=", b"&", b";", b":"]
ODD_PIECES = [
    b"#",
    b"%",
    b"%zz",
    b"%00",
    b"\t",
    b"\x80",
    b"\xc3\xa9",
    b"\n",
    b"\r",
    b"\x00",
    b"\x7f",
    b"[",
    b"]",
    b"@",
    b"\\",
    b"_",
    b"|",
    b'"',
]

path_texts = st.lists(mostly(PATH_PIECES, ODD_PIECES), max_size=6).map(b"".join)
authorities = st.sampled_from(
    [
        b"a.example",
        b"A.Example:80",
        b"a.example:8080",
        b"b.example.",
        b"[::1]",
        b"[::1]:80",
        b"user@a.example",
        b"",
        b"a.example:x",
        b"[::1",
    ]
)
targets = st.one_of(
    path_texts.map(lambda text: b"/" + text),
    path_texts.map(lambda text: b"/" + text),
    path_texts.map(lambda text: b"/a" + text),
    path_texts,
    st.tuples(st.sampled_from([b"http://", b"https://", b"HTTP://", b"x:"]), authorities, path_texts).map(b"".join),
    st.sampled_from([b"*", b"a.example:80", b"", b"a://b", b"/*", b"a:b://c", b"http:/a", b"//a.example/a"]),
)
lines = st.builds(
    lambda start, method, space1, target, space2, version, end: start + method + space1 + target + space2 + version + end,
    mostly([b""], [b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" "]),
    mostly(
        [b"GET", b"POST", b"HEAD", b"OPTIONS"], [b"CONNECT", b"get", b"GE", b"A" * 20, b"A" * 21, b"G#T", b"G-T", b"G_T", b"G\xc9T", b""]
    ),
    mostly([b" "], [b"  ", b"\t", b""]),
    targets,
    mostly([b" "], [b"  ", b"\t", b"", b" /a "]),
    mostly([b"HTTP/1.1", b"HTTP/1.0"], [b"HTTP/1.2", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1", b"HTTP/1.10", b"HTTP/\xb9.1", b""]),
    mostly([b"\r\n"], [b"\n", b"\r", b"\r\r\n", b"\n\r\n", b"\x0b\r\n"]),
)
hosts = mostly(
    [b"a.example", b"A.EXAMPLE", b"a.example:80", b"b.example.", b"[::1]:8000", b"other.example"],
    [
        b"",
        b"a.example, b.example",
        b"a.example b.example",
        b"\ta.example\t ",
        b"a.ex\xe4mple",
        b"a.example\x00",
        b"b.example\rHost: a.example",
    ],
)
host_fields = st.builds(
    lambda name, colon, value: name + colon + value,
    mostly([b"Host", b"host", b"HOST"], [b"Hos_t", b"H\x80st", b"X-Host", b"Hos", b"\tHost", b" Host", b"H\xf6st"]),
    mostly([b": ", b":", b":\t"], [b" : ", b" ", b"::", b"\t:"]),
    hosts,
)
FIELDS = [
    b"Accept: */*",
    b"X-Script_Name: /a",
    b"Script-Name: /a",
    b"SCRIPT_NAME: /a",
    b"script_name: /a",
    b"SCRIPT_NAME: ",
    b"SCRIPT_NAME: /b",
    b"SCRIPT_NAME: a",
    b"X-Forwarded-Proto: https",
    b"X_Forwarded_Proto: http",
    b"Content-Length: 3",
    b"Transfer-Encoding: chunked",
    b"Connection: keep-alive, Host",
    b"Cookie: a_b=c",
    b"Expect: 100-continue",
    b"Referer: http://b.example/b",
]
ODD_FIELDS = [
    b"Content-Length: -1",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: unheard-of",
    b"X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http",
    b" folded",
    b"\tHost: b.example",
    b"no colon",
    b": no name",
    b"X: a\nHost: b.example",
    b"X: a\rHost: b.example",
    b"X: a\x00b",
    b"X: \x80\xff",
    b"X\x80: a",
    b"Expect: a miracle",
    b"Content-Length: \xb2",
]
fields = st.one_of(host_fields, host_fields, mostly(FIELDS, ODD_FIELDS))
heads = st.builds(
    lambda line, fields, end: line + b"\r\n".join(fields) + (b"\r\n" if fields else b"") + end,
    lines,
    st.lists(fields, max_size=4),
    mostly([b"\r\n"], [b"\r\nGET /b HTTP/1.1\r\nHost: b.example\r\n\r\n", b"\r\nabc"]),
)
cfgs = st.sampled_from(
    [
        DEFAULT,
        DEFAULT,
        DEFAULT,
        settings(header_map="dangerous"),
        settings(header_map="refuse"),
        settings(forwarded_allow_ips="*"),
        settings(forwarder_headers="*"),
        settings(permit_obsolete_folding=True),
        settings(strip_header_spaces=True),
        settings(casefold_http_method=True, permit_unconventional_http_method=True, permit_unconventional_http_version=True),
        settings(limit_request_line=20, limit_request_fields=2, limit_request_field_size=30),
        settings(limit_request_line=0),
    ]
)
peers = st.sampled_from([TRUSTED, UNTRUSTED, UNIX])
script_names = mostly([b""], [b"/a"]).map(bytes.decode)


def outcome(peeker: Peeker, data: bytes, peer: Any) -> tuple[int, int | None] | type[Exception]:
    """Return a look's length and mount, or the type of the refusal; anything else that is raised fails the test."""
    try:
        look = peeker.look(data, peer)
    except (ParseException, Refused) as exc:
        return type(exc)
    return look.length, look.mount


@examples(1000)
@given(heads, cfgs, peers, script_names)
@example(b"CONNECT /a HTTP/1.1\r\n\r\n", DEFAULT, TRUSTED, "")
@example(b"GET //a.example/a HTTP/1.1\r\n\r\n", DEFAULT, TRUSTED, "")
@example(b"GET /a#b HTTP/1.1\r\n\r\n", DEFAULT, TRUSTED, "")
@example(b"GET /a?b#c HTTP/1.1\r\nHost: a.example\r\n\r\n", DEFAULT, TRUSTED, "")
@example(b"GET /a/b HTTP/1.1\r\nSCRIPT_NAME: /a\r\n\r\n", DEFAULT, TRUSTED, "")
@example(b"GET /a/b HTTP/1.1\r\nSCRIPT_NAME: /a\r\n\r\n", DEFAULT, UNTRUSTED, "")
@example(b"GET /a HTTP/1.1\r\nX: y\r\n Host: b.example\r\n\r\n", settings(permit_obsolete_folding=True), TRUSTED, "")
@example(b"GET /a HTTP/1.1\r\nHost : a.example\r\n\r\n", settings(strip_header_spaces=True), TRUSTED, "")
@example(b"\r\n\r\n", DEFAULT, TRUSTED, "")
def test_the_fast_way_finds_the_mount_that_gunicorns_parser_leads_to(head: bytes, cfg: Settings, peer: Any, script_name: str) -> None:
    """Where gunicorn refuses, the fast way may let the head pass: the instance reads it by gunicorn's rules too and answers that."""
    fast = outcome(Peeker(ROUTER, cfg, script_name), head, peer)
    slow = outcome(OnlyGunicorn(ROUTER, cfg, script_name), head, peer)

    event("refused" if isinstance(slow, type) else "unfinished" if not slow[0] else "accepted")
    if isinstance(slow, tuple) or slow is Refused:
        assert fast == slow
    else:
        assert fast == slow or (isinstance(fast, tuple) and fast[0] == head.index(b"\r\n\r\n") + 4)


@examples(500)
@given(heads, cfgs, peers, script_names)
def test_the_host_of_a_head_is_the_one_that_gunicorns_parser_finds(head: bytes, cfg: Settings, peer: Any, script_name: str) -> None:
    """It names the tenant whose app gets the request. Of a head that one of the two refuses there is nothing to compare."""
    found = []
    for peeker in (Peeker(ROUTER, cfg, script_name), OnlyGunicorn(ROUTER, cfg, script_name)):
        try:
            look = peeker.look(head, peer)
            found.append(peeker.host(head[: look.length], look.line, peer) if look.length else None)
        except (ParseException, Refused):
            return

    assert found[0] == found[1]


@examples(500)
@given(heads, cfgs, peers, st.data())
@example(b"A\r\n", DEFAULT, TRUSTED, None)
@example(b"GET / HTTP/1.1\nHost: a", DEFAULT, TRUSTED, None)
@example(b"\r", DEFAULT, TRUSTED, None)
def test_an_unfinished_head_is_refused_exactly_when_gunicorn_refuses_it(head: bytes, cfg: Settings, peer: Any, cut: Any) -> None:
    """A client whose request line is wrong learns it at once, not at the deadline; one that is only slow is waited for."""
    length = cut.draw(st.integers(1, len(head))) if cut else len(head)
    data = head[:length]
    if b"\r\n\r\n" in data:
        return
    try:
        Request(cfg, IterUnreader([data]), peer, 2)
    except NoMoreData:
        gunicorns: Any = INCOMPLETE[:2]
    except ParseException as exc:
        gunicorns = type(exc)
    event(str(gunicorns))

    assert outcome(Peeker(ROUTER, cfg), data, peer) == gunicorns


@examples(300)
@given(heads, cfgs, peers)
def test_a_head_that_gunicorn_takes_is_not_refused_before_it_is_complete(head: bytes, cfg: Settings, peer: Any) -> None:
    """However it is cut into packets, and whether its line was checked before or not."""
    if not isinstance(outcome(OnlyGunicorn(ROUTER, cfg), head, peer), tuple):
        return
    peeker = Peeker(ROUTER, cfg)
    for length in range(head.find(b"\r\n\r\n") + 4):
        assert peeker.look(head[:length], peer, first_look=True) is INCOMPLETE
        assert peeker.look(head[:length], peer, first_look=False) is INCOMPLETE


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a.example\r\n\r\n",
        b"POST /a/b?x=%20&y=[1] HTTP/1.1\r\nHost: a.example:8000\r\nContent-Length: 3\r\n\r\nabc",
        b"DELETE /%C3%A9/..;v=1/@:x HTTP/1.1\r\nhost: b.example\r\nCookie: a_b=c; d=e\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n",
    ],
)
def test_an_ordinary_head_is_read_without_gunicorns_parser(head: bytes) -> None:
    """Which takes some 20 times as long, and every request is looked at once more than it is served."""
    assert NeverGunicorn(ROUTER, DEFAULT).look(head, TRUSTED).length == head.index(b"\r\n\r\n") + 4


@pytest.mark.parametrize(
    ("head", "mount"),
    [
        (b"GET /a/x HTTP/1.1\r\nHost: other.example\r\n\r\n", 1),
        (b"GET /%61/%62 HTTP/1.1\r\n\r\n", 2),
        (b"GET /a%2Fb HTTP/1.1\r\n\r\n", 2),
        (b"GET /a%252Fb HTTP/1.1\r\n\r\n", 0),
        (b"GET /a/b HTTP/1.1\r\nHost: A.example:80\r\n\r\n", 3),
        (b"GET /a/b HTTP/1.1\r\nX-Host: a.example\r\n\r\n", 2),
        (b"GET /\xc3\xa9".replace(b"\xc3\xa9", b"%C3%A9") + b" HTTP/1.1\r\nHost: b.example\r\n\r\n", 5),
        (b"GET /b?/a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 6),
        (b"GET http://a.example/a HTTP/1.1\r\nHost: a.example\r\n\r\n", 3),
        (b"GET http://a.example HTTP/1.1\r\nHost: a.example:80\r\n\r\n", 0),
        (b"OPTIONS * HTTP/1.1\r\nHost: b.example\r\n\r\n", 4),
        (b"GET //a HTTP/1.1\r\n\r\n", 0),
        (b"GET /x/../a HTTP/1.1\r\n\r\n", 0),
        (b"\r\nGET /a HTTP/1.1\r\n\r\n", 1),
    ],
)
def test_the_mount_is_that_of_the_decoded_path_and_the_host(head: bytes, mount: int) -> None:
    assert Peeker(ROUTER, DEFAULT).look(head, TRUSTED)[:2] == (len(head), mount)


def test_a_path_that_no_mount_has_gives_none() -> None:
    head = b"GET /b HTTP/1.1\r\n\r\n"

    assert Peeker(Router([Route(0, "", "/a")]), DEFAULT).look(head, TRUSTED)[:2] == (len(head), None)


def test_the_length_is_that_of_the_first_request_alone() -> None:
    first = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"

    assert Peeker(ROUTER, DEFAULT).look(first + b"GET /b HTTP/1.1\r\n\r\n", TRUSTED).length == len(first)


def test_a_trusted_proxys_script_name_is_taken_from_the_path_and_anyone_elses_is_not() -> None:
    head = b"GET /outer/a HTTP/1.1\r\nSCRIPT_NAME: /outer\r\n\r\n"
    peeker = Peeker(ROUTER, DEFAULT)

    assert peeker.look(head, TRUSTED).mount == 1
    assert peeker.look(head, UNIX).mount == 1
    assert peeker.look(head, UNTRUSTED).mount == 0


def test_a_path_outside_of_the_servers_own_script_name_is_refused_as_by_gunicorn() -> None:
    peeker = Peeker(ROUTER, DEFAULT, "/outer")

    assert peeker.look(b"GET /outer/a HTTP/1.1\r\n\r\n", TRUSTED).mount == 1
    with pytest.raises(ConfigurationProblem):
        peeker.look(b"GET /a HTTP/1.1\r\n\r\n", TRUSTED)


@pytest.mark.parametrize("target", [b"a.example:443", b"/", b"/a", b"http://a.example/"])
def test_connect_is_refused_in_all_its_forms(target: bytes) -> None:
    """To serve it would be a promise to forward bytes; the form with a path went to the app once, as the fast way took it."""
    with pytest.raises(Refused) as caught:
        Peeker(ROUTER, DEFAULT).look(b"CONNECT " + target + b" HTTP/1.1\r\nHost: a.example\r\n\r\n", TRUSTED)

    assert caught.value.status == "501 Not Implemented"


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (b"http://a.example/a", b"b.example"),
        (b"http://a.example:81/a", b"a.example"),
        (b"https://a.example/a", b"a.example:80"),
        (b"http://b.example@a.example/", b"a.example"),
        (b"http://[::1]:81/", b"[::1]:82"),
    ],
)
def test_a_request_that_names_two_hosts_is_refused(target: bytes, host: bytes) -> None:
    with pytest.raises(Refused) as caught:
        Peeker(ROUTER, DEFAULT).look(b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n", TRUSTED)

    assert caught.value.status == "400 Bad Request"


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (b"http://A.example/a", b"a.EXAMPLE"),
        (b"http://a.example:80/a", b"a.example"),
        (b"https://a.example/a", b"a.example:443"),
        (b"http://a.example./a", b"a.example:"),
        (b"http://[::1]/", b"[::1]:80"),
        (b"http://a.example/a", b""),
    ],
)
def test_two_spellings_of_one_host_are_not_two_hosts(target: bytes, host: bytes) -> None:
    head = b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"

    assert Peeker(ROUTER, DEFAULT).look(head, TRUSTED).length == len(head)


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"NONSENSE\r\n", InvalidRequestLine),
        (b"A\r\n", InvalidRequestLine),
        (b"GET / HTTP/3.0\r\n", InvalidHTTPVersion),
        (b"get / HTTP/1.1\r\n", InvalidRequestMethod),
        (b"GET / HTTP/1.1\n", InvalidRequestLine),
        (b"GET / HTTP/1.1\r\nHost: a\nX: y", InvalidHeader),
        (b"GET /" + b"a" * 5000, LimitRequestLine),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", InvalidRequestLine),  # a TLS hello, by chance with a line end
    ],
)
def test_a_head_that_can_never_become_good_is_refused_before_it_is_complete(data: bytes, refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        Peeker(ROUTER, DEFAULT).look(data, TRUSTED)


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nX: \xff\r\n y\r\n\r\n", InvalidHeader),
        (b"GET // HTTP/1.1\r\nX: y\r\n z\r\n\r\n", ObsoleteFolding),
    ],
)
def test_what_gunicorn_refuses_of_a_complete_head_is_refused_in_its_words(data: bytes, refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        OnlyGunicorn(ROUTER, DEFAULT).look(data, TRUSTED)


@pytest.mark.parametrize("limit", [0, 100_000])
def test_a_request_line_is_never_longer_than_gunicorn_takes_by_any_settings(limit: int) -> None:
    """0 is gunicorn's word for no limit; then what can be peeked at is the limit. Above 8190 gunicorn means 8190."""
    line = b"GET /" + b"a" * 8300
    peeker = Peeker(ROUTER, settings(limit_request_line=limit))

    if limit:
        with pytest.raises(LimitRequestLine):
            peeker.look(line, TRUSTED)
    else:
        assert peeker.look(line, TRUSTED) is INCOMPLETE


def test_a_head_that_does_not_fit_into_what_can_be_peeked_at_is_refused() -> None:
    head = b"GET / HTTP/1.1\r\nX: " + b"y" * PEEK_MAX_BYTES
    peeker = Peeker(ROUTER, DEFAULT)

    assert peeker.look(head[: PEEK_MAX_BYTES - 1], TRUSTED, first_look=False) is INCOMPLETE
    with pytest.raises(LimitRequestHeaders):
        peeker.look(head[:PEEK_MAX_BYTES], TRUSTED, first_look=False)


def test_a_head_of_just_the_size_that_can_be_peeked_at_is_found() -> None:
    start = b"GET /a HTTP/1.1\r\n"
    field = b"X: " + b"y" * 1000 + b"\r\n"
    count = (PEEK_MAX_BYTES - len(start) - 2) // len(field)
    rest = PEEK_MAX_BYTES - len(start) - 2 - count * len(field)
    head = start + b"Y:" + b"z" * (rest - 4) + b"\r\n" + field * count + b"\r\n"
    assert len(head) == PEEK_MAX_BYTES

    assert Peeker(ROUTER, DEFAULT).look(head, TRUSTED)[:2] == (PEEK_MAX_BYTES, 1)


def test_nothing_yet_is_not_refused() -> None:
    assert Peeker(ROUTER, DEFAULT).look(b"", TRUSTED) is INCOMPLETE
    assert isinstance(INCOMPLETE, Look)
