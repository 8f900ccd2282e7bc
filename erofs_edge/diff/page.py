# SPDX-License-Identifier: Apache-2.0
"""A comparison as one self-contained page, readable without JavaScript."""

from __future__ import annotations

from html import escape
from pathlib import Path

from erofs_edge.diff.report import Change, Report
from erofs_edge.writing import beside

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1b1b1b; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
td.n, th.n { text-align: right; }
td.w { overflow-wrap: anywhere; }
pre { margin: .3rem 0; padding: .5rem; background: #f5f5f3; overflow-x: auto; font-size: 13px; }
.old { color: #a02020; } .new { color: #1d6f2b; } .why { color: #555; }
@media (prefers-color-scheme: dark) {
  body { background: #161616; color: #e8e8e8; } pre { background: #222; } th, td { border-color: #383838; }
  .old { color: #f09090; } .new { color: #90d8a0; } .why { color: #aaa; }
}
"""


def page(report: Report) -> str:
    """The page as text; everything from the inputs is escaped."""
    verdict = "equal" if report.equal else f"{len(report.changes)} changes"
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{_text(report.old)} → {_text(report.new)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(report.old)} → {_text(report.new)}</h1><p><strong>{verdict}</strong></p>",
        "<ul>",
        *(f"<li>{_text(sentence)}</li>" for sentence in report.summary),
        "</ul>",
    ]
    if report.packages:
        lines.append('<h2>Packages</h2><table><tr><th>package<th class="n">files<th class="n">blocks</tr>')
        lines += [
            f'<tr><td>{_text(p.text)}<td class="n">{p.files}<td class="n">{p.blocks}</tr>' for p in report.packages
        ]
        lines.append("</table>")
    layers: dict[str, list[Change]] = {}
    for change in report.changes:
        layers.setdefault(change.layer, []).append(change)
    for layer, changes in layers.items():
        lines.append(f"<h2>{_text(layer)} ({len(changes)})</h2><table>")
        lines += [_row(change) for change in changes]
        lines.append("</table>")
    return "\n".join([*lines, "</body></html>", ""])


def write_page(report: Report, out: Path) -> None:
    """Write the page beside its name, then rename it."""
    with beside(out, "the page") as temporary:
        temporary.write_text(page(report), encoding="utf-8")


def _row(change: Change) -> str:
    detail = "\n".join(change.detail)
    folded = f"<details><summary>detail</summary><pre>{_text(detail)}</pre></details>" if detail else ""
    return (
        f'<tr><td class="w">{_text(change.where)}<td>{_text(change.what)}'
        f'<td class="w"><span class="old">{_text(change.old or "")}</span> <span class="new">{_text(change.new or "")}'
        f'</span> <span class="why">{_text(change.why)}</span>{folded}</tr>'
    )


def _text(text: str) -> str:
    """Escaped text; bytes of names that are not UTF-8 stay visible."""
    return escape(text.encode("utf-8", "backslashreplace").decode())
