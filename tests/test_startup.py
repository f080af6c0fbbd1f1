"""The table that the log gets at the start: lines of equal columns, whatever the names hold."""

from __future__ import annotations

from isowsgi.worker.startup import Row, draw


def row(mount: str, why: str = "configured", threads: str = "4") -> Row:
    return Row(mount, "shop:app", "serving", "own-gil", why, threads, "0.10 s", "9 MiB")


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_stand_at_the_right() -> None:
    assert draw([row("/"), row("/shop", threads="2 x 16")]) == [
        "mount  app       state    isolation  why         threads    boot  memory",
        "/      shop:app  serving  own-gil    configured        4  0.10 s   9 MiB",
        "/shop  shop:app  serving  own-gil    configured   2 x 16  0.10 s   9 MiB",
    ]


def test_a_wide_or_combined_letter_takes_the_cells_that_a_terminal_gives_it() -> None:
    heads = [line.partition("shop:app")[0] for line in draw([row("/四季"), row("/cafe\N{COMBINING ACUTE ACCENT}"), row("/ascii")])[1:]]

    assert heads == ["/四季   ", "/cafe\N{COMBINING ACUTE ACCENT}   ", "/ascii  "]


def test_a_cell_cannot_leave_its_line() -> None:
    lines = draw([row("/a", why="first\nsecond\x1b[2J\N{LINE SEPARATOR}third")])

    assert len(lines) == 2
    assert "first second [2J third" in lines[1]
