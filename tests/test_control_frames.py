"""The control protocol's frames: whatever bytes come, the decoder returns one object, waits for more, or says what is wrong."""

from __future__ import annotations

import itertools
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isowsgi.shared.frames import Decoder, FrameError, encode
from tests.conftest import examples

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


def framed(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


@given(message=st.dictionaries(st.text(), JSON), cuts=st.lists(st.integers(0, 200), max_size=5))
@examples(100)
def test_what_is_encoded_is_decoded_however_it_is_cut(message: dict[str, object], cuts: list[int]) -> None:
    data, decoder = encode(message), Decoder(1024 * 1024)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    answers = [decoder.feed(data[start:end]) for start, end in itertools.pairwise(places)]

    assert answers[-1] == message
    assert all(answer is None for answer in answers[:-1])


@given(pieces=st.lists(st.binary(max_size=100), max_size=10))
@examples(300)
def test_any_bytes_are_a_message_a_beginning_or_a_fault(pieces: list[bytes]) -> None:
    decoder = Decoder(64)
    for piece in pieces:
        try:
            answer = decoder.feed(piece)
        except FrameError:
            return
        assert answer is None or isinstance(answer, dict)


@given(body=st.binary(max_size=60))
@examples(300)
def test_a_whole_frame_is_an_object_or_a_fault(body: bytes) -> None:
    try:
        assert isinstance(Decoder(64).feed(framed(body)), dict)
    except FrameError:
        return


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"1", b"{", b"\xff", b"[" * 60_000, b'{"v": ' + b"1" * 5000 + b"}", b"null"],
    ids=["empty", "a list", "a number", "half", "no UTF-8", "nested", "a long number", "null"],
)
def test_what_is_no_json_object_is_a_fault(body: bytes) -> None:
    with pytest.raises(FrameError):
        Decoder(64 * 1024).feed(framed(body))


def test_a_frame_that_is_too_long_is_refused_by_its_length_alone() -> None:
    with pytest.raises(FrameError, match="at most 64 bytes, got one of 65"):
        Decoder(64).feed(struct.pack("!I", 65))


def test_bytes_behind_a_frame_are_a_fault() -> None:
    with pytest.raises(FrameError, match="bytes after it"):
        Decoder(64).feed(framed(json.dumps({"v": 1}).encode()) + b"x")
