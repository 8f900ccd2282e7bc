# SPDX-License-Identifier: Apache-2.0
"""Treemaps: nested rectangles whose areas are sizes, as SVG without scripts.

The layout is the squarified one (Bruls, Huizing, van Wijk: Squarified Treemaps, 2000): siblings, largest first, are
placed in rows along the shorter side, and a row ends when another item would worsen the ratio of its rectangles' sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from erofs_edge.report.text import shown, size_text

WIDTH, HEIGHT = 1080, 560
RECTANGLES_MAX = 3_000
_DEPTH_MAX = 64
_HEADER = 14
_FRAME = "#e4e4e0"
_LETTER = 6.1
"""approximate width of a letter of 10 px"""


@dataclass(slots=True)
class Node:
    """A rectangle. `size` in bytes, including everything inside; `kind` determines the colour of one with nothing
    inside.
    """

    name: str
    size: int = 0
    kind: str = ""
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, names: list[str], size: int, kind: str) -> None:
        """Add something of a size below this node, at the end of a path of names."""
        node = self
        node.size += size
        for name in names[:_DEPTH_MAX]:
            node = node.children.setdefault(name, Node(name))
            node.size += size
        node.kind = kind


@dataclass(frozen=True, slots=True)
class _Box:
    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        return self.width * self.height


def treemap(top: Node, colours: Mapping[str, str], title: str) -> str:
    """The picture; items too small for a rectangle of their own are drawn together with their siblings, so that at most
    RECTANGLES_MAX are drawn."""
    smallest = WIDTH * HEIGHT / (8 * RECTANGLES_MAX)
    while len(parts := list(_laid(top, _Box(0, 0, WIDTH, HEIGHT), 0, "", smallest))) > RECTANGLES_MAX:
        smallest *= 1.6
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="10" '
        f'font-family="sans-serif" stroke-width=".5"><title>{shown(title)}</title>'
    )
    return "\n".join([head, *(_rectangle(part, colours) for part in parts), "</svg>"])


@dataclass(frozen=True, slots=True)
class _Part:
    """A rectangle to draw: its place, colour, name and meaning."""

    box: _Box
    node: Node
    name: str
    path: str


def _laid(node: Node, box: _Box, depth: int, path: str, smallest: float) -> Iterator[_Part]:
    """A node and its descendants, outermost first."""
    if not node.children or depth > _DEPTH_MAX:
        yield _Part(box, node, node.name, path or node.name)
        return
    inner = box
    if depth:
        headed = box.width > 40 and box.height > 3 * _HEADER
        yield _Part(box, node, node.name if headed else "", path)
        edge = 1 if box.width > 6 and box.height > 6 else 0
        top = _HEADER if headed else edge
        inner = _Box(box.x + edge, box.y + top, box.width - 2 * edge, box.height - top - edge)
    children = sorted((one for one in node.children.values() if one.size), key=lambda one: (-one.size, one.name))
    total = sum(one.size for one in children)
    scale = inner.area / total if total else 0
    large = [one for one in children if one.size * scale >= smallest]
    rest = children[len(large) :]
    if rest:
        kinds = {one.kind for one in rest}
        name = f"{len(rest)} more" if large else f"{len(rest)} small ones"
        large.append(Node(name, sum(one.size for one in rest), kinds.pop() if len(kinds) == 1 else "no content"))
        large.sort(key=lambda one: -one.size)
    for child, place in zip(large, _squarified([one.size * scale for one in large], inner), strict=True):
        below = f"{path.rstrip('/')}/{child.name}" if depth else child.name
        yield from _laid(child, place, depth + 1, below, smallest)


def _squarified(areas: list[float], box: _Box) -> list[_Box]:
    """A box for each area; areas are sorted, largest first, and fill the box."""
    placed: list[_Box] = []
    start = 0
    while start < len(areas):
        side = min(box.width, box.height)
        end, total = start + 1, areas[start]
        while end < len(areas):
            before = _longest(areas[start], areas[end - 1], total, side)
            if _longest(areas[start], areas[end], total + areas[end], side) > before:
                break
            total += areas[end]
            end += 1
        row, box = _row(areas[start:end], total, box)
        placed += row
        start = end
    return placed


def _longest(largest: float, least: float, total: float, side: float) -> float:
    """The largest ratio of sides in a row along a side: that of its largest or its smallest rectangle."""
    if total <= 0 or side <= 0:
        return 0.0
    return max(side * side * largest / (total * total), total * total / (side * side * max(least, 1e-9)))


def _row(areas: list[float], total: float, box: _Box) -> tuple[list[_Box], _Box]:
    """Boxes along the shorter side, and the remaining box."""
    placed: list[_Box] = []
    wide = box.width >= box.height
    side = box.height if wide else box.width
    thick = total / side if side > 0 else 0.0
    at = box.y if wide else box.x
    for area in areas:
        length = area / thick if thick > 0 else 0.0
        placed.append(_Box(box.x, at, thick, length) if wide else _Box(at, box.y, length, thick))
        at += length
    if wide:
        return placed, _Box(box.x + thick, box.y, max(0.0, box.width - thick), box.height)
    return placed, _Box(box.x, box.y + thick, box.width, max(0.0, box.height - thick))


def _rectangle(part: _Part, colours: Mapping[str, str]) -> str:
    box = part.box
    colour = _FRAME if part.node.children else colours.get(part.node.kind, "#bbbbbb")
    rectangle = (
        f"<g><title>{shown(part.path)}: {size_text(part.node.size)}</title>"
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" fill="{colour}"/>'
    )
    room = int((box.width - 4) / _LETTER)
    if part.name and room >= 3 and box.height >= 12:
        last = part.name.rpartition("/")[2] or part.name
        label = last if len(last) <= room else last[: room - 1] + "…"
        rectangle += f'<text x="{box.x + 2:.1f}" y="{box.y + 10.5:.1f}">{shown(label)}</text>'
    return rectangle + "</g>"
