# SPDX-License-Identifier: Apache-2.0
"""A trace as a picture (SVG): the image in rows, coloured by the time of the first read. Equal traces give equal
bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from erofs_edge.trace.record import Trace

ROWS, COLUMNS = 48, 1024
STEPS = ("#3b0f70", "#641a80", "#8c2981", "#b73779", "#de4968", "#f7705c", "#fe9f6d", "#fecf92")
"""colours from the first read to the last"""
COLD = "#eeeeee"
_ROW, _GAP, _LEFT, _TOP, _RIGHT = 14, 3, 110, 64, 24


def heat_map(trace: Trace, title: str) -> str:
    """The picture as text, ending with a newline. A cell has the colour of its earliest block."""
    blocks = max(-(-trace.image_bytes // trace.block_size), 1)
    cell = -(-blocks // (ROWS * COLUMNS))  # blocks of a cell
    columns = min(COLUMNS, blocks)
    rows = -(-blocks // (cell * columns))
    top = _TOP + rows * (_ROW + _GAP) + 16
    width, height = _LEFT + COLUMNS + _RIGHT, top + 40
    name = escape("".join(c if c.isprintable() else "?" for c in title))
    told = f"{trace.blocks} of {blocks} blocks in {trace.requests} requests, {trace.seconds:.2f} s"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{name}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="26" font-size="16" font-weight="bold">{name}</text>',
        f'<text x="{_LEFT}" y="46" fill="#444444">{told}; a row is {cell * columns * trace.block_size} bytes</text>',
    ]
    scale = COLUMNS / columns
    cells = _cells(trace, cell)
    for row in range(rows):
        y = _TOP + row * (_ROW + _GAP)
        lines.append(
            f'<text x="{_LEFT - 8}" y="{y + _ROW - 3}" text-anchor="end" fill="#444444" font-family="monospace" '
            f'font-size="11">{row * cell * columns * trace.block_size:#x}</text>'
        )
        end = min(-(-blocks // cell), (row + 1) * columns)
        for first, last, colour in _runs(cells, row * columns, end):
            x = _LEFT + (first - row * columns) * scale
            lines.append(
                f'<rect x="{x:g}" y="{y}" width="{(last - first) * scale:g}" height="{_ROW}" fill="{colour}"/>'
            )
    lines += _legend(top)
    return "\n".join([*lines, "</svg>", ""])


def _cells(trace: Trace, cell: int) -> dict[int, str]:
    """Number of a cell → its colour, for those that were read."""
    found: dict[int, str] = {}
    for rank, read in enumerate(trace.reads):
        colour = STEPS[rank * len(STEPS) // len(trace.reads)]
        for number in range(read.first // cell, (read.first + read.blocks - 1) // cell + 1):
            found.setdefault(number, colour)
    return found


def _runs(cells: dict[int, str], start: int, end: int) -> Iterator[tuple[int, int, str]]:
    first, colour = start, cells.get(start, COLD)
    for number in range(start + 1, end):
        here = cells.get(number, COLD)
        if here != colour:
            yield first, number, colour
            first, colour = number, here
    if start < end:
        yield first, end, colour


def _legend(top: int) -> Iterator[str]:
    x = _LEFT
    for label, colours in (("first read", STEPS), ("never read", (COLD,))):
        yield f'<text x="{x}" y="{top + 12}">{label}</text>'
        for number, colour in enumerate(colours):
            yield f'<rect x="{x + 76 + 20 * number}" y="{top}" width="20" height="14" fill="{colour}"/>'
        x += 76 + 20 * len(colours) + 90
    yield f'<text x="{_LEFT + 76 + 20 * len(STEPS) + 8}" y="{top + 12}">read last</text>'
