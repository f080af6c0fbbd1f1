"""isowsgi's own answers: each is one whole HTTP response that closes its connection."""

from __future__ import annotations

import http.client
import io

import pytest

from isowsgi.shared import answers


class _Socket:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def parse(data: bytes) -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(_Socket(data))  # type: ignore[arg-type] # all that it uses
    response.begin()
    return response


STATUSES = sorted(value for name, value in vars(answers).items() if name.isupper() and isinstance(value, str))


@pytest.mark.parametrize("status", STATUSES)
def test_every_answer_is_a_whole_response_that_closes(status: str) -> None:
    for data in (answers.plain(status), answers.page(status, "a < b")[0]):
        response = parse(data)

        assert f"{response.status} {response.reason}" == status
        assert response.getheader("Connection") == "close"
        assert response.getheader("Retry-After") is None
        body = response.read()
        assert len(body) == int(response.getheader("Content-Length") or -1)
        assert data.endswith(b"\r\n\r\n" + body)


def test_a_page_shows_its_text_as_text_and_tells_its_length() -> None:
    """What stands there may come from a request."""
    data, length = answers.page(answers.NOT_FOUND, "<script>", answers.RETRY_SOON_S)

    response = parse(data)
    assert response.getheader("Retry-After") == "5"
    body = response.read()
    assert len(body) == length
    assert b"<script>" not in body
