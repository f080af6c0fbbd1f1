"""What instances told of their calls, put together: each format says the same, and nothing of it is believed unseen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest

from isowsgi.cli import calls, flamegraph, flamepicture
from isowsgi.cli.calls import Call, Frame, Malformed

SVG = "{http://www.w3.org/2000/svg}"
VIEW, QUERY = ("page", "/srv/shop/views.py", 12), ("execute", "/venv/lib/python3.14/site-packages/django/db/utils.py", 99)
REQUEST = ("GET /page", "", 0)


def told(frames: Any, nodes: Any, **changes: Any) -> str:
    return json.dumps({"samples": 3, "seconds": 1.0, "is_cut": False, "frames": frames, "nodes": nodes, **changes})


def two_instances() -> Call:
    root = Call()
    calls.add(root, told([REQUEST, VIEW, QUERY], [[-1, 0, 0], [0, 1, 1000], [1, 2, 3000]]))
    calls.add(root, told([QUERY, VIEW, REQUEST], [[-1, 2, 0], [0, 1, 0], [1, 0, 6000]]))
    return root


def test_the_same_calls_of_two_instances_are_one() -> None:
    found = {line.frame: (line.self_us, line.total_us) for line in calls.lines(two_instances())}

    assert found == {Frame(*REQUEST): (0, 10_000), Frame(*VIEW): (1000, 10_000), Frame(*QUERY): (9000, 9000)}


def test_a_recursion_counts_once() -> None:
    root = Call()
    calls.add(root, told([VIEW], [[-1, 0, 10], [0, 0, 20], [1, 0, 30]]))

    [line] = calls.lines(root)
    assert (line.self_us, line.total_us) == (60, 60)


def test_collapsed_stacks_have_a_line_for_each_stack() -> None:
    text = calls.collapsed(two_instances(), "/srv")

    assert text.splitlines() == [
        "GET /page;page (shop/views.py:12) 1000",
        "GET /page;page (shop/views.py:12);execute (django/db/utils.py:99) 9000",
    ]


def test_speedscope_gets_frames_samples_and_weights() -> None:
    """The fields that speedscope's file format names for a sampled profile. Nothing here validates them by the schema itself."""
    profile = calls.speedscope(two_instances(), "/shop", "isowsgi")
    [sampled] = profile["profiles"]

    assert set(profile) == {"$schema", "name", "exporter", "activeProfileIndex", "shared", "profiles"}
    assert set(sampled) == {"type", "name", "unit", "startValue", "endValue", "samples", "weights"}
    assert (sampled["type"], sampled["unit"], sampled["startValue"], sampled["endValue"]) == ("sampled", "microseconds", 0, 10_000)
    names = [frame["name"] for frame in profile["shared"]["frames"]]
    assert [[names[each] for each in stack] for stack in sampled["samples"]] == [["GET /page", "page"], ["GET /page", "page", "execute"]]
    assert sampled["weights"] == [1000, 9000]
    assert profile["shared"]["frames"][0] == {"name": "GET /page"}
    assert profile["shared"]["frames"][1] == {"name": "page", "file": "/srv/shop/views.py", "line": 12}


def test_a_flame_graph_has_each_call_with_all_below_it() -> None:
    tree = calls.nested(two_instances(), "/shop", "/srv")
    [request] = tree["children"]
    [view] = request["children"]

    assert (tree["value"], request["value"], view["value"], view["children"][0]["value"]) == (10_000, 10_000, 10_000, 9000)
    assert (request["kind"], view["kind"], view["children"][0]["kind"]) == ("request", "app", "library")


def test_a_flame_graph_of_deep_recursions_is_made_at_once() -> None:
    """Each prefix of each path was hashed: 8 s for as many calls as an instance tells."""
    root = Call()
    for start in range(20):
        calls.add(root, told([("f", "/srv/a.py", start)], [[depth - 1, 0, 1] for depth in range(250)]))

    tree = calls.nested(root, "/a", "")

    assert tree["value"] == 5000
    for depth in range(250):
        tree = tree["children"][0]
        assert tree["value"] == 250 - depth
    assert tree["children"] == []


def test_no_format_has_what_a_terminal_obeys() -> None:
    root = Call()
    calls.add(root, told([("\x1b]0;owned\x07" + "x" * 5000, "/srv/\x9b.py", 1)], [[-1, 0, 10]]))

    text = calls.collapsed(root, "") + json.dumps(calls.speedscope(root, "/a", "x"), ensure_ascii=False)
    assert "owned\\x07" in text
    assert len(text) < 2000
    assert not {"\x1b", "\x07", "\x9b"} & set(text)


def test_no_name_of_an_apps_gets_out_of_the_page() -> None:
    root = Call()
    calls.add(root, told([("</script><script>alert(1)", "@title@", 1)], [[-1, 0, 10]]))
    page = flamegraph.page("<b>", "a & b", calls.nested(root, "<i>", ""), flamegraph.table("t", ("x",), [("<td>",)]))

    assert "<script>alert" not in page
    assert page.count("</script>") == 3
    assert "<h1>&lt;b&gt;</h1>" in page
    assert "&lt;td&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "src=" not in page


DEEP = [[number - 1, 0, 1] for number in range(1000)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{" * 100_000,
        told([VIEW], [[0, 0, 1]]),
        told([VIEW], [[-2, 0, 1]]),
        told([VIEW], [[-1, 1, 1]]),
        told([VIEW], [[-1, 0, -1]]),
        told([VIEW], [[-1, 0]]),
        told([["f", "g"]], []),
        told([VIEW], DEEP),
        told([VIEW], [], samples="many"),
    ],
)
def test_what_is_no_profile_is_refused_whole(text: str) -> None:
    root = Call()
    with pytest.raises(Malformed):
        calls.add(root, text)

    assert root == Call()


@pytest.mark.parametrize(
    ("file", "is_apps", "shown"),
    [
        ("/srv/shop/views.py", True, "shop/views.py:3"),
        ("/srv/shop/lib/python3.14/site-packages/django/x.py", False, "django/x.py:3"),
        ("/usr/lib/python3.14/json/decoder.py", False, "json/decoder.py:3"),
        ("/usr/lib/python3/dist-packages/flask/app.py", False, "flask/app.py:3"),
        ("<frozen importlib._bootstrap>", False, "<frozen importlib._bootstrap>:3"),
        ("/elsewhere/templates/a.html", True, "/elsewhere/templates/a.html:3"),
    ],
)
def test_the_apps_own_lines_are_told_from_libraries(file: str, is_apps: bool, shown: str) -> None:
    frame = Frame("f", file, 3)

    assert (frame.is_apps, frame.place("/srv")) == (is_apps, shown)


def test_the_picture_has_a_bar_for_each_call_as_wide_as_its_time_below_the_one_that_made_it() -> None:
    svg = ElementTree.fromstring(flamepicture.picture("profile /shop", "10 s", calls.nested(two_instances(), "/shop", "/srv")))

    bars = {}
    for group in svg.iter(f"{SVG}g"):
        name, shape = group.findtext(f"{SVG}title"), group.find(f"{SVG}rect")
        assert name is not None
        assert shape is not None
        bars[name.rpartition(": ")[0]] = {key: float(shape.attrib[key]) for key in ("x", "y", "width")}
    root = bars["/shop"]
    assert root["width"] == 1183.5
    for name, bar in bars.items():
        assert name == "/shop" or bar["y"] > root["y"]
        assert root["x"] <= bar["x"]
        assert bar["x"] + bar["width"] <= root["x"] + root["width"] + 0.1
    assert len(bars) == len(list(_nodes(calls.nested(two_instances(), "/shop", "/srv"))))


def test_a_picture_is_xml_whatever_an_app_calls_its_functions() -> None:
    tree = {"name": "<script>&\x00\ud800\ufffe", "value": 1, "children": []}
    picture = flamepicture.picture("\x1b[31m", "]]>", tree)

    assert next(ElementTree.fromstring(picture).iter(f"{SVG}g")).findtext(f"{SVG}title") == "<script>&   : 0.00 s, 100.0 %"


def test_a_picture_of_nothing_has_one_bar() -> None:
    picture = flamepicture.picture("profile /shop", "", calls.nested(Call(), "/shop", ""))

    assert len(list(ElementTree.fromstring(picture).iter(f"{SVG}g"))) == 1


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node["children"]:
        yield from _nodes(child)
