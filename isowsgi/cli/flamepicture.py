"""A profile as one SVG file: a flame graph that a page, a ticket or a document shows as a picture, with nothing to run in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

# Pixels; the letters are a fixed-width font's, whose width is 0.6 of its size.
_WIDTH, _ROW, _SIZE, _HEAD, _EDGE = 1200, 17, 11, 44, 8
_LETTER = 0.6 * _SIZE

# A bar that is narrower cannot be seen, nor what is below it.
_LEAST_WIDTH = 0.4

# The same as in the page with the viewer: the app, libraries, requests; the root has none.
_COLOURS = {"app": "#f2a35e", "library": "#b9c7d9", "request": "#a8cf8f", "": "#dddddd"}


def picture(title: str, facts: str, tree: Mapping[str, Any]) -> str:
    """Return the file.

    Args:
        facts: what was profiled, and how.
        tree: see `calls.nested`.
    """
    bars = list(_bars(tree))
    height = _HEAD + _ROW * (1 + max((depth for _, depth, _, _ in bars), default=0)) + _EDGE
    svg = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_WIDTH} {height}", role="img")
    svg.set("font-family", "ui-monospace, Menlo, Consolas, monospace")
    svg.set("font-size", str(_SIZE))
    ElementTree.SubElement(svg, "title").text = _clean(title)
    ElementTree.SubElement(svg, "desc").text = _clean(facts)
    ElementTree.SubElement(svg, "rect", width="100%", height="100%", fill="#ffffff")
    for line, (text, weight) in enumerate(((title, "bold"), (facts, "normal"))):
        head = ElementTree.SubElement(svg, "text", {"x": str(_EDGE), "y": str(16 * (line + 1)), "font-weight": weight})
        head.text = _shortened(text, _WIDTH - 2 * _EDGE)
    all_us = tree["value"] or 1
    for node, depth, x, width in bars:
        _draw(svg, node, x, _HEAD + _ROW * depth, width, all_us)
    return ElementTree.tostring(svg, encoding="unicode", xml_declaration=False) + "\n"


def _bars(tree: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], int, float, float]]:
    """Yield each node that can be seen, with its depth, left edge and width; calls of one node by name, as the viewer has them."""
    scale = (_WIDTH - 2 * _EDGE) / (tree["value"] or 1)
    waiting: list[tuple[Mapping[str, Any], int, float]] = [(tree, 0, float(_EDGE))]
    while waiting:
        node, depth, x = waiting.pop()
        width = node["value"] * scale
        if width < _LEAST_WIDTH and depth:
            continue
        yield node, depth, x, width
        for child in sorted(node["children"], key=lambda each: str(each["name"])):
            waiting.append((child, depth + 1, x))
            x += child["value"] * scale


def _draw(svg: ElementTree.Element, node: Mapping[str, Any], x: float, y: float, width: float, all_us: int) -> None:
    bar = ElementTree.SubElement(svg, "g")
    ElementTree.SubElement(bar, "title").text = _clean(f"{node['name']}: {node['value'] / 1e6:.2f} s, {100 * node['value'] / all_us:.1f} %")
    shape = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{max(width - 0.5, 0.2):.1f}", "height": str(_ROW - 1), "rx": "1"}
    ElementTree.SubElement(bar, "rect", {**shape, "fill": _COLOURS[node.get("kind", "")]})
    if text := _shortened(node["name"], width - 6):
        ElementTree.SubElement(bar, "text", {"x": f"{x + 3:.1f}", "y": f"{y + _ROW - 5:.1f}"}).text = text


def _shortened(text: str, width: float) -> str:
    """Return what of a text has room; "" for less than three letters."""
    room = int(width / _LETTER)
    text = _clean(text)
    return text if len(text) <= room else f"{text[: room - 1]}…" if room >= 3 else ""


def _clean(text: str) -> str:
    """Return a text without the characters that XML 1.0 cannot hold (section 2.2): the app names its functions and files as it likes."""
    return "".join(each if each >= " " and not "\ud800" <= each <= "\udfff" and each not in "\ufffe\uffff" else " " for each in text)
