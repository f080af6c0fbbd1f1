"""Where a redirect leads: to what the operator wrote, whatever a client sends."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isowsgi.configuration import checks
from isowsgi.configuration.faults import Fault
from isowsgi.inside.httpsonly import HttpsOnly
from isowsgi.shared.redirects import location
from tests.conftest import examples


@pytest.mark.parametrize(
    ("target", "prefix", "path", "query", "expected"),
    [
        ("https://www.example.com{path}", 0, "/a%2Fb/%C3%A9", "x=1&y=%20", "https://www.example.com/a%2Fb/%C3%A9?x=1&y=%20"),
        ("https://www.example.com/new{path}", 4, "/%6fld/x", "", "https://www.example.com/new/x"),
        ("https://www.example.com/new{path}?from=old", 4, "/old", "x", "https://www.example.com/new?from=old&x"),
        ("/new{path}", 4, "/old//evil.example/", "", "/new//evil.example/"),
        ("/new{path}", 4, "/old%2F/x", "", "/new//x"),
        ("https://www.example.com{path}", 0, "*", "", "https://www.example.com"),
        (
            "https://www.example.com{path}",
            0,
            '/\r\nSet-Cookie: a\\"<>',
            "a\r\nb",
            "https://www.example.com/%0D%0ASet-Cookie:%20a%5C%22%3C%3E?a%0D%0Ab",
        ),
        ("https://www.example.com/", 0, "/a", "x", "https://www.example.com/?x"),
    ],
)
def test_a_redirect_keeps_what_follows_the_prefix_as_it_was_written(target: str, prefix: int, path: str, query: str, expected: str) -> None:
    assert location(target, prefix, path, query) == expected


@examples(300)
@given(
    st.sampled_from(["https://www.example.com{path}", "https://www.example.com/a{path}?b", "/new{path}", "http://[::1]:80/x"]),
    st.sampled_from(["", "/old", "/é"]),
    st.text(alphabet=st.characters(max_codepoint=255), max_size=12) | st.text(alphabet="/\\@:%2fF.?#e\r\n", max_size=12),
    st.text(alphabet=st.characters(max_codepoint=255), max_size=12),
)
def test_nothing_that_a_client_sends_chooses_the_host_or_ends_the_line(target: str, prefix: str, rest: str, query: str) -> None:
    found = location(target, len(prefix.encode()), prefix.encode().decode("latin-1") + "/" + rest, query)

    assert found.isascii()
    assert found.isprintable()
    assert " " not in found
    assert urlsplit(found)[:2] == urlsplit(target.replace("{path}", ""))[:2]
    if "{path}" in target:
        assert unquote_to_bytes(urlsplit(found).path).endswith(unquote_to_bytes(b"/" + rest.encode("latin-1")))


@pytest.mark.parametrize(
    "target",
    [
        *("", "{path}", "/{path}", "//{path}", "//evil", "https://{path}", "https://www.example.com@{path}", "www.example.com{path}"),
        *(
            "https://a b/",
            "https://www.example.com{host}",
            "https://www.example.com{path}{path}",
            "https://a/#x{path}",
            "https://a/?x={path}",
        ),
        *(
            "ftp://a/",
            "/a\n",
            "javascript:alert(1)//{path}",
            "/\\evil.example{path}",
            "https://www.example.com.{path",
            "https://exämple.com/",
        ),
        *("https:///{path}",),
    ],
)
def test_a_target_that_would_let_a_client_choose_is_refused(target: str) -> None:
    with pytest.raises(Fault):
        checks.redirect(target)


@pytest.mark.parametrize(
    "target", ["https://www.example.com{path}", "http://[::1]:8000/a{path}?b=c", "/", "/new", "/new{path}", "https://a"]
)
def test_a_target_with_a_host_of_its_own_or_a_path_is_taken(target: str) -> None:
    assert checks.redirect(target) == target


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HTTP_HOST": "a.example:8000", "RAW_URI": "/x%2F?y#z"}, ("301 Moved Permanently", "https://a.example/x%2F?y")),
        ({"HTTP_HOST": "[::1]:80", "RAW_URI": "//evil.example/"}, ("301 Moved Permanently", "https://[::1]//evil.example/")),
        ({"HTTP_HOST": "a.example", "RAW_URI": "http://b.example/x?y"}, ("301 Moved Permanently", "https://a.example/x?y")),
        ({"HTTP_HOST": "a.example", "RAW_URI": "/x", "REQUEST_METHOD": "POST"}, ("308 Permanent Redirect", "https://a.example/x")),
        ({"HTTP_HOST": "a.example/evil", "RAW_URI": "/"}, ("400 Bad Request", None)),
        ({"HTTP_HOST": "user@a.example", "RAW_URI": "/"}, ("400 Bad Request", None)),
        ({"RAW_URI": "/"}, ("400 Bad Request", None)),
        ({"HTTP_HOST": "a.example", "RAW_URI": "/", "wsgi.url_scheme": "https"}, ("200 OK", None)),
        ({"HTTP_HOST": "localhost", "RAW_URI": "/", "gunicorn.socket": None}, ("200 OK", None)),
    ],
)
def test_an_app_that_is_for_https_only_is_not_called_without(environ: dict[str, Any], expected: tuple[str, str | None]) -> None:
    answers: list[tuple[str, str | None]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return []

    def start_response(status: str, fields: list[tuple[str, str]]) -> None:
        answers.append((status, dict(fields).get("Location")))

    HttpsOnly(app)({"wsgi.url_scheme": "http", "gunicorn.socket": object(), "REQUEST_METHOD": "GET", **environ}, start_response)

    assert answers == [expected]
