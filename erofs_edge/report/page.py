# SPDX-License-Identifier: Apache-2.0
"""The page as one text: no script, nothing to load. A function of the records and the image."""

from __future__ import annotations

from pathlib import Path

from erofs_edge.report import pictures, tables
from erofs_edge.report.facts import Facts
from erofs_edge.report.since import Since
from erofs_edge.report.text import shown, size_text
from erofs_edge.writing import beside

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1b1b1b; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.w { overflow-wrap: anywhere; }
pre { margin: .3rem 0; padding: .5rem; background: #f5f5f3; overflow-x: auto; font-size: 13px; }
svg { width: 100%; height: auto; border: 1px solid #ddd; }
g rect { stroke: #fff; }
nav a { margin-right: 1rem; white-space: nowrap; }
.key { display: inline-block; margin-right: 1rem; }
.key i { display: inline-block; width: .9em; height: .9em; margin-right: .3em; border: 1px solid #888; }
.bar { height: 7px; margin: 2px 0; }
.box { display: inline-block; width: 160px; height: 10px; border: 1px solid #999; }
.box div { height: 100%; }
.warn { color: #a02020; }
@media (prefers-color-scheme: dark) {
  body { background: #161616; color: #e8e8e8; } pre { background: #222; } th, td { border-color: #383838; }
  a { color: #8ab4f8; } .warn { color: #f09090; }
}
"""


def page(facts: Facts, against: Since | None = None) -> str:
    """The page; everything from the inputs is escaped. `against` replaces the last release in the comparison."""
    board, system = facts.release["board"], facts.release["system"].get("name", "")
    sections = [("summary", "Summary", _summary(facts)), ("size", "Size", tables.sizes(facts))]
    before, which = (against, "build") if against is not None else (facts.since, "last release")
    if before is not None:
        title = f"Changes since the {which} {shown(before.root_hash[:16])}…"
        sections.append(("against", title, tables.changes(before, facts)))
    if facts.forecast:
        sections.append(("forecast", "Updates", tables.forecast(facts)))
    sections += [
        ("packages", "Contents by package", [*pictures.legend(), pictures.by_package(facts)]),
        ("paths", "Contents by path", [pictures.by_path(facts), *tables.largest(facts)]),
        ("compression", "Compression by kind of file", pictures.kinds(facts)),
        ("layout", "Layout of the image", [pictures.layout(facts)]),
    ]
    drawn = pictures.boot(facts.boot) if facts.boot is not None else ""
    if drawn:
        sections.append(("boot", "Boot", [drawn]))
    sections.append(("bill", "Packages and licences", tables.packages(facts)))
    sections.append(("use", "Verify, flash, boot", _use(facts)))
    links = "\n".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{shown(board)}: {shown(system)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{shown(board)}: {shown(system)}</h1><nav>{links}</nav>",
    ]
    for name, title, body in sections:
        lines += [f'<section id="{name}"><h2>{title}</h2>', *body, "</section>"]
    return "\n".join([*lines, "</body></html>", ""])


def write_page(facts: Facts, out: Path, against: Since | None = None) -> None:
    """Write the page beside its name, then rename it."""
    with beside(out, "the page") as temporary:
        temporary.write_text(page(facts, against), encoding="utf-8")


def _summary(facts: Facts) -> list[str]:
    release = facts.release
    sign, boot, tool = (release.get(name) or {} for name in ("sign", "boot", "erofs_edge"))
    content = sum(one.size for one in facts.files)
    regular = sum(1 for one in facts.files if one.kind != "no content")
    image = facts.map.image_size
    rows = [
        ("board", f"{release['board']} ({release.get('arch', '')})"),
        ("system", f"{release['system'].get('name', '')}, {facts.contents.get('suite', '')}"),
        ("root hash", release["system"]["root_hash"]),
        ("kernel", boot.get("kernel", "")),
        ("signed by", f"{sign.get('name', '')}, rollback index {sign.get('rollback_index', '')}"),
        ("packages", len(facts.contents["packages"])),
        ("paths", f"{len(facts.files)}, {regular} of them files with content"),
        ("content", size_text(content)),
        ("image", f"{size_text(image)}{f', {image / content:.2f} of the content' if content else ''}"),
        ("with hash tree and parity", size_text(facts.map.size)),
        ("made by", f"erofs-edge {tool.get('version', '')}"),
    ]
    warning = (
        '<p class="warn">Signed with a development key: it protects nothing.</p>' if sign.get("development") else ""
    )
    exposed = release.get("exposed")
    notes = [f'<p class="warn">{shown(one)}</p>' for one in (exposed if isinstance(exposed, list) else [])]
    return [
        warning,
        *notes,
        "<table>",
        *(f'<tr><th>{name}<td class="w">{shown(value)}</tr>' for name, value in rows),
        "</table>",
    ]


def _use(facts: Facts) -> list[str]:
    board = shown(facts.release["board"])
    keyed = "sign.pub.pem" in facts.release["files"]
    commands = [
        ("Verify everything that the key vouches for; take the public key from a source that you trust",
         "erofs-edge verify FOLDER --key PUBLIC-KEY"),
        ("Write a card or a disk; on one that has the board's slots, only blocks that differ, to the spare slot",
         "erofs-edge flash FOLDER --to /dev/sdX --plan\nerofs-edge flash FOLDER --to /dev/sdX"),
        ("Test that it boots, in an emulator", f"erofs-edge boot {board} -o FOLDER --smoke"),
        ("Rebuild it, if this is a release", "erofs-edge rebuild FOLDER"),
    ]  # fmt: skip
    lines = [f"<p>{text}:</p><pre>{command}</pre>" for text, command in commands]
    if keyed:
        lines.append(
            "<p>The folder has the public key as <code>sign.pub.pem</code>,"
            " but a key from there does not prove who signed.</p>"
        )
    return lines
