"""What an app prints arrives as whole lines, whoever else prints at the same time."""

import io
import logging
import os
import random
import sys
import threading
import traceback
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isowsgi.inside.streams import _MAX_LINE_CHARS, LineStream, empty_stdin
from tests.conftest import examples


@pytest.fixture
def lines() -> list[str]:
    """What the stream handed on."""
    return []


@pytest.fixture
def stream(lines: list[str]) -> LineStream:
    return LineStream("<stdout>", 1, lambda text, level: lines.append(text))


def in_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_a_line_is_handed_on_when_its_end_comes(stream: LineStream, lines: list[str]) -> None:
    print("a", "b", end="", file=stream)
    stream.flush()
    assert lines == []

    print("c", file=stream)
    assert lines == ["a bc"]


def test_a_progress_bar_is_one_line_and_not_hundreds(stream: LineStream, lines: list[str]) -> None:
    for percent in range(0, 101, 20):
        stream.write(f"\r{percent} %")
        stream.flush()
    stream.write("\n")

    assert len(lines) == 1


@examples(200)
@given(st.lists(st.text(alphabet="ab\n", max_size=8)))
def test_however_a_text_is_cut_the_lines_are_the_texts(pieces: list[str]) -> None:
    lines: list[str] = []
    stream = LineStream("<stdout>", 1, lambda text, level: lines.append(text))

    lengths = [stream.write(piece) for piece in pieces]
    stream.close()

    assert lengths == [len(piece) for piece in pieces]
    text = "".join(pieces)
    assert lines == text.removesuffix("\n").split("\n") if text else lines == []


def test_threads_that_print_at_once_do_not_mix_their_lines(stream: LineStream, lines: list[str]) -> None:
    def work(name: str) -> None:
        pieces = random.Random(name)
        for number in range(300):
            line = f"{name}{number}" * pieces.randint(1, 5)
            print(*line, sep="", file=stream)  # a write for each letter

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert len(lines) == 4 * 300
    assert all(set(line) <= {line[0], *"0123456789"} for line in lines)


def test_what_a_request_left_unfinished_is_handed_on_at_its_end(stream: LineStream, lines: list[str]) -> None:
    """By the thread that served it; what another thread is about to print is none of its business."""
    in_thread(lambda: stream.write("another's"))
    stream.write("mine")

    stream.end_lines()

    assert lines == ["mine"]


def test_close_hands_on_what_every_thread_left_unfinished(stream: LineStream, lines: list[str]) -> None:
    in_thread(lambda: stream.write("another's"))
    stream.write("mine")

    stream.close()
    stream.close()

    assert sorted(lines) == ["another's", "mine"]
    with pytest.raises(ValueError, match="closed file"):
        stream.write("more")


def test_a_line_without_an_end_does_not_fill_the_memory(stream: LineStream, lines: list[str]) -> None:
    for _ in range(10):
        stream.write("x" * (_MAX_LINE_CHARS // 4))
    stream.write("x" * _MAX_LINE_CHARS * 2)
    stream.end_lines()

    assert "".join(lines) == "x" * (_MAX_LINE_CHARS // 4 * 10 + _MAX_LINE_CHARS * 2)
    assert max(map(len, lines)) <= _MAX_LINE_CHARS


def test_bytes_are_text_in_the_end(stream: LineStream, lines: list[str]) -> None:
    assert stream.buffer.write("é\n".encode()) == 3
    stream.buffer.write(b"\xff\n")
    stream.buffer.write(memoryview(b"view\n"))
    stream.write("a")
    stream.buffer.write(b"b\n")

    assert lines == ["é", "\\xff", "view", "ab"]


def test_a_text_wrapper_around_the_bytes_side_works(stream: LineStream, lines: list[str]) -> None:
    """A common idiom: `sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")`."""
    with io.TextIOWrapper(stream.buffer, encoding="utf-8", line_buffering=True) as wrapper:
        print("é", file=wrapper)

    assert lines == ["é"]


def test_only_text_is_taken_for_text(stream: LineStream) -> None:
    with pytest.raises(TypeError, match="must be str, not bytes"):
        stream.write(b"bytes")  # type: ignore[arg-type]


def test_it_answers_what_libraries_ask_a_standard_stream(stream: LineStream) -> None:
    assert (stream.fileno(), stream.buffer.fileno(), stream.isatty(), stream.writable(), stream.readable()) == (1, 1, False, True, False)
    assert (stream.name, stream.encoding, stream.errors) == ("<stdout>", "utf-8", "backslashreplace")
    stream.reconfigure(encoding="utf-8", line_buffering=True)


def test_a_stream_that_is_collected_does_not_close_the_process_descriptor(lines: list[str]) -> None:
    stream = LineStream("<stderr>", 2, lambda text, level: lines.append(text))
    del stream

    os.fstat(2)


def test_standard_input_is_at_its_end() -> None:
    """An app that reads it would otherwise wait for the terminal that started gunicorn."""
    with empty_stdin() as stdin:
        assert stdin.read() == ""


def test_what_a_log_handler_writes_is_one_entry_with_the_level_that_the_app_gave_it() -> None:
    entries: list[tuple[str, int | None]] = []
    stream = LineStream("<stderr>", 2, lambda text, level: entries.append((text, level)))
    handler = logging.StreamHandler(stream)
    try:
        raise KeyError("sku")
    except KeyError as exc:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "failed", (), (KeyError, exc, exc.__traceback__))
    handler.handle(record)
    print("a\nb", file=stream)

    text, level = entries[0]
    assert level == logging.ERROR
    assert text.startswith("failed\nTraceback (most recent call last):\n")
    assert text.endswith("KeyError: 'sku'")
    assert entries[1:] == [("a", None), ("b", None)]


def test_a_traceback_that_is_printed_line_by_line_is_one_entry(stream: LineStream, lines: list[str]) -> None:
    try:
        raise KeyError("sku")
    except KeyError:
        traceback.print_exc(file=stream)
    print("after", file=stream)

    assert [line.splitlines()[0] for line in lines] == ["Traceback (most recent call last):", "after"]
    assert lines[0].endswith("KeyError: 'sku'")


def test_a_traceback_without_an_end_is_handed_on_at_the_requests_end(stream: LineStream, lines: list[str]) -> None:
    print("Traceback (most recent call last):\n", end="", file=stream)
    assert lines == []

    stream.end_lines()
    assert lines == ["Traceback (most recent call last):"]


def test_an_entry_that_is_very_long_comes_in_pieces(stream: LineStream, lines: list[str]) -> None:
    stream.write("Traceback (most recent call last):\n" + "x" * 100_000 + "\n")

    assert max(map(len, lines)) == _MAX_LINE_CHARS
    assert sum(map(len, lines)) == 100_000 + len("Traceback (most recent call last):\n")
