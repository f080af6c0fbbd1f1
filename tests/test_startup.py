"""The table that the log gets at the start: lines of equal columns, whatever the names hold."""

from __future__ import annotations

from typing import Any

from isowsgi.configuration import App, Config, Limits, Mount
from isowsgi.worker.startup import Row, advice, draw


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


def test_a_fork_server_is_recommended_where_it_saves_memory() -> None:
    def mounts(**settings: Any) -> list[Mount]:
        app = App(kind="module", target="shop", call="app")
        return [Mount(pattern=f"/{number}", app=app, isolation="process", **settings) for number in range(3)]

    def config(fork_server: bool) -> Config:
        return Config(path="/isowsgi.toml", mounts=(), limits=Limits(fork_server=fork_server))

    assert "3 processes of mounts were started one by one; with `fork_server = true` in [worker]" in advice(mounts(), config(False))
    assert advice(mounts()[:1], config(False)) == ""
    assert advice(mounts(preload=("flask",)), config(False)) == ""
    assert advice(mounts(), config(True)) == ""
