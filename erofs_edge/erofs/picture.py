# SPDX-License-Identifier: Apache-2.0
"""A map of an image as SVG: rows of equal length, one colour per kind, names shown on hover.

The same map gives the same bytes. At most ROWS * COLUMNS cells are drawn, whatever the image's size; a cell has the
colour of the kind that takes up most of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from erofs_edge.erofs.regions import KINDS, Map, Region

ROWS, COLUMNS = 48, 1024
_ROW_HEIGHT, _ROW_GAP = 14, 3
_LEFT, _TOP, _RIGHT = 110, 64, 24
_LEGEND_COLUMNS, _LEGEND_ROW = 3, 20
_COLOURS = dict(
    zip(
        KINDS,
        (
            "#b0b0b0", "#000000", "#0072b2", "#56b4e9", "#7b3294", "#e69f00", "#f0e442",
            "#8c564b", "#d55e00", "#009e73", "#66c2a5", "#1b7837", "#006d6f", "#cc79a7", "#4d4dff",
            "#eeeeee", "#a50026", "#d9d9d9",
        ),
        strict=True,
    )
)  # fmt: skip


class _Run(NamedTuple):
    """Cells [first, end) of one colour. `region` is the largest of their regions, `regions` their number."""

    first: int
    end: int
    kind: str
    region: Region
    regions: int


def svg(drawn: Map, title: str) -> str:
    """Return the picture as text, ending with a newline."""
    cell = max(1, -(-drawn.size // (ROWS * COLUMNS)))
    if drawn.size <= COLUMNS * drawn.block_size:  # a small image: one row for a few blocks
        cell = max(1, -(-drawn.size // (COLUMNS * max(1, min(ROWS, drawn.size // (4 * drawn.block_size))))))
    rows = -(-drawn.size // (cell * COLUMNS))
    totals = drawn.totals()
    legend_top = _TOP + rows * (_ROW_HEIGHT + _ROW_GAP) + 28
    height = legend_top + -(-len(totals) // _LEGEND_COLUMNS) * _LEGEND_ROW + 12
    width = _LEFT + COLUMNS + _RIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f"<title>{_text(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="26" font-size="16" font-weight="bold">{_text(title)}</text>',
        f'<text x="{_LEFT}" y="46" fill="#444444">{_size(drawn.size)}, blocks of {_size(drawn.block_size)}; '
        f"a row is {_size(cell * COLUMNS)}, a pixel {_size(cell)}</text>",
    ]
    for row in range(rows):
        y = _TOP + row * (_ROW_HEIGHT + _ROW_GAP)
        lines.append(
            f'<text x="{_LEFT - 8}" y="{y + _ROW_HEIGHT - 3}" text-anchor="end" fill="#444444" '
            f'font-family="monospace" font-size="11">{row * cell * COLUMNS:#x}</text>'
        )
    lines += [_rectangle(part, cell) for run in _runs(drawn, cell) for part in _by_row(run)]
    lines += _legend(totals, drawn.size, legend_top)
    return "\n".join([*lines, "</svg>", ""])


def _runs(drawn: Map, cell: int) -> Iterator[_Run]:
    """Yield runs of neighbouring cells of the same kind. Small regions may not win a cell."""
    current: _Run | None = None
    for run in _cells(drawn.regions, cell):
        if current is not None and current.kind == run.kind and current.end == run.first:
            larger = max(current.region, run.region, key=lambda item: item.end - item.start)
            current = _Run(current.first, run.end, run.kind, larger, current.regions + run.regions)
            continue
        if current is not None:
            yield current
        current = run
    if current is not None:
        yield current


def _cells(regions: list[Region], cell: int) -> Iterator[_Run]:
    """Yield cells with the largest region of the winning kind and the number of regions of that kind that start here.
    Cells filled by a single region come together."""
    sums: dict[str, int] = {}
    best: dict[str, tuple[int, Region]] = {}
    started: dict[str, int] = {}
    number = 0
    for region in regions:
        position = region.start
        while position < region.end:
            if position // cell != number:
                if sums:
                    yield _winner(number, sums, best, started)
                    sums, best, started = {}, {}, {}
                number = position // cell
            starts = int(position == region.start)
            whole = 0 if position % cell else (region.end - position) // cell
            if whole:
                yield _Run(number, number + whole, region.kind, region, starts)
                position += whole * cell
                continue
            size = min(region.end, (number + 1) * cell) - position
            started[region.kind] = started.get(region.kind, 0) + starts
            sums[region.kind] = sums.get(region.kind, 0) + size
            if size > best.get(region.kind, (0, region))[0]:
                best[region.kind] = size, region
            position += size
    if sums:
        yield _winner(number, sums, best, started)


def _winner(number: int, sums: dict[str, int], best: dict[str, tuple[int, Region]], started: dict[str, int]) -> _Run:
    kind = max(sums, key=lambda kind: (sums[kind], kind))
    return _Run(number, number + 1, kind, best[kind][1], started[kind])


def _by_row(run: _Run) -> Iterator[_Run]:
    first = run.first
    while first < run.end:
        end = min(run.end, (first // COLUMNS + 1) * COLUMNS)
        yield run._replace(first=first, end=end)
        first = end


def _rectangle(run: _Run, cell: int) -> str:
    row, column = divmod(run.first, COLUMNS)
    y = _TOP + row * (_ROW_HEIGHT + _ROW_GAP)
    label = f": {run.region.label}" if run.region.label else ""
    more = f" and {run.regions - 1} more" if label and run.regions > 1 else ""
    hover = f"{run.kind}{label}{more} ({run.region.start:#x} to {run.region.end:#x})"
    return (
        f'<rect x="{_LEFT + column}" y="{y}" width="{run.end - run.first}" height="{_ROW_HEIGHT}" '
        f'fill="{_COLOURS[run.kind]}"><title>{_text(hover)}</title></rect>'
    )


def _legend(totals: dict[str, int], size: int, top: int) -> Iterator[str]:
    step = COLUMNS // _LEGEND_COLUMNS
    for number, (kind, total) in enumerate(totals.items()):
        row, column = divmod(number, _LEGEND_COLUMNS)
        x, y = _LEFT + column * step, top + row * _LEGEND_ROW
        yield f'<rect x="{x}" y="{y}" width="14" height="14" fill="{_COLOURS[kind]}" stroke="#666666"/>'
        yield f'<text x="{x + 22}" y="{y + 12}">{kind}: {_size(total)} ({total / size:.1%})</text>'


def _text(text: str) -> str:
    """Escape text for XML, visibly so for what XML cannot hold (control characters, names that are not UTF-8)."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escape(shown.encode("utf-8", "backslashreplace").decode())


def _size(size: int) -> str:
    """Format a number of bytes with a binary unit."""
    if size < 1024:
        return f"{size} bytes"
    unit = min((size.bit_length() - 1) // 10, 3)
    return f"{size / (1 << 10 * unit):.4g} {' KMG'[unit]}iB"
