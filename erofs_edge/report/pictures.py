# SPDX-License-Identifier: Apache-2.0
"""The pictures of the page: the system by package and by path, the layout of the image, the duration of a boot."""

from __future__ import annotations

from typing import Any

from erofs_edge.erofs.picture import svg
from erofs_edge.erofs.regions import Map, Region
from erofs_edge.report.facts import PACKAGE, Facts
from erofs_edge.report.kinds import KINDS
from erofs_edge.report.text import shown, size_text
from erofs_edge.report.treemap import Node, treemap

COLOURS = dict(
    zip(
        KINDS,
        (
            "#e8a33d", "#7fb2e5", "#b79ad9", "#8fd0c0", "#f0d25c", "#9ccb7c", "#d9c7a7",
            "#e6a6c1", "#c9d66b", "#e08a6d", "#b0b8c4", "#c8c8c8", "#dddddd", "#f2f2f2",
        ),
        strict=True,
    )
)  # fmt: skip
"""Light ones: the text on them is black."""
LAYOUT_MAX = 600_000
"""maximum characters of the layout picture"""
STAGES_MAX = 64
_ROW, _LEFT, _WIDTH = 20, 190, 1080


def legend() -> list[str]:
    """The colours of both treemaps."""
    spans = (f'<span class="key"><i style="background:{COLOURS[kind]}"></i>{shown(kind)}</span>' for kind in KINDS)
    return ["<p>", *spans, "</p>"]


def by_package(facts: Facts) -> str:
    """Bytes of the image by origin, then by file."""
    top = Node("system.img")
    for one in facts.files:
        if one.stored:
            top.add([one.origin.removeprefix(PACKAGE), one.path], one.stored, one.kind)
    _rest(top, facts)
    return treemap(top, COLOURS, "bytes of the image by package")


def by_path(facts: Facts) -> str:
    """Bytes of the image by folder; a folder's own bytes are shown as '.'."""
    top = Node("system.img")
    folders = {one.path.rpartition("/")[0] for one in facts.files}
    for one in facts.files:
        if one.stored:
            names = one.path.strip("/").split("/")
            top.add([*names, "."] if one.path in folders else names, one.stored, one.kind)
    _rest(top, facts)
    return treemap(top, COLOURS, "bytes of the image by path")


def _rest(top: Node, facts: Facts) -> None:
    for kind, size in facts.rest.items():
        top.add(["(no file's)", f"({kind})"], size, "of no file")


def layout(facts: Facts) -> str:
    """The map of the image; if it would take more than LAYOUT_MAX characters, small regions are merged with those
    before them."""
    drawn, smallest = facts.map, facts.map.block_size
    while len(text := svg(drawn, "system.img")) > LAYOUT_MAX and smallest < drawn.size:
        drawn, smallest = _coarser(facts.map, smallest), smallest * 4
    return text


def _coarser(drawn: Map, smallest: int) -> Map:
    regions: list[Region] = []
    for region in drawn.regions:
        if regions and region.end - region.start < smallest:
            regions[-1] = regions[-1]._replace(end=region.end)
        else:
            regions.append(region)
    return Map(drawn.size, drawn.image_size, drawn.block_size, regions)


def boot(record: dict[str, Any]) -> str:
    """The stages of a boot as bars over time, '' if the record has none that can be drawn."""
    stages = record.get("stages")
    found = [
        (str(one.get("title", "")), float(one["seconds"]))
        for one in (stages if isinstance(stages, list) else [])[:STAGES_MAX]
        if isinstance(one, dict) and isinstance(one.get("seconds"), int | float) and 0 <= one["seconds"] < 1e6
    ]
    total = max((seconds for _, seconds in found), default=0.0)
    if not total:
        return ""
    height = len(found) * _ROW + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" font-size="12" '
        f'font-family="sans-serif"><title>stages of the boot</title>'
    ]
    before = 0.0
    scale = (_WIDTH - _LEFT - 130) / total
    for number, (title, seconds) in enumerate(found):
        y, start = number * _ROW, min(before, seconds)
        lines.append(
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end" fill="currentColor">{shown(title)}</text>'
            f'<rect x="{_LEFT + start * scale:.1f}" y="{y + 3}" width="{max(1.0, (seconds - start) * scale):.1f}" '
            f'height="14" fill="#7fb2e5"/><text x="{_LEFT + seconds * scale + 6:.1f}" y="{y + 14}" '
            f'fill="currentColor">{seconds:.2f} s (+{seconds - start:.2f})</text>'
        )
        before = seconds
    return "\n".join([*lines, "</svg>"])


def kinds(facts: Facts) -> list[str]:
    """How well each kind of file compresses, as a table with bars."""
    head = "".join(f'<th class="n">{name}' for name in ("files", "content", "in the image", "ratio"))
    rows = [f"<table><tr><th>kind{head}<th></tr>"]
    found = list(facts.by_kind())
    largest = max((max(size, stored) for _, _, size, stored in found), default=1) or 1
    for kind, count, size, stored in found:
        ratio = f"{stored / size:.2f}" if size else ""
        bars = "".join(
            f'<div class="bar" style="width:{200 * number / largest:.1f}px;background:{colour}"></div>'
            for number, colour in ((size, "#ccccc8"), (stored, COLOURS[kind]))
        )
        rows.append(
            f'<tr><td>{shown(kind)}<td class="n">{count or ""}<td class="n">{size_text(size) if size else ""}'
            f'<td class="n">{size_text(stored)}<td class="n">{ratio}<td>{bars}</tr>'
        )
    return [*rows, "</table>"]
