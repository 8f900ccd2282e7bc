# SPDX-License-Identifier: Apache-2.0
"""The tables of the page: sizes and budgets, changes, packages with their licences and files."""

from __future__ import annotations

from collections.abc import Iterator

from erofs_edge.report.facts import PACKAGE, Facts, File
from erofs_edge.report.since import Since
from erofs_edge.report.text import change_text, shown, size_text

LARGEST = 25
CHANGES = 200
PATHS_MAX = 1_000_000
"""characters of all file lists together; contents.json has the rest"""


def sizes(facts: Facts) -> list[str]:
    """The build's files, then the usage of partitions and budgets."""
    rows = ['<table><tr><th>file<th class="n">size<th>SHA-256</tr>']
    for name, one in facts.release["files"].items():
        digest = f"<code>{shown(one.get('sha256', ''))}</code>"
        rows.append(f'<tr><td class="w">{shown(name)}<td class="n">{_size(one.get("size"))}<td class="w">{digest}</tr>')
    rows.append("</table>")
    limits = list(_limits(facts))
    if limits:
        rows.append('<table><tr><th>limit<th class="n">used<th class="n">of<th></tr>')
        for what, used, limit in limits:
            share = min(1.0, used / limit) if limit else 1.0
            colour = "#c0392b" if used > limit else "#4f9d69" if share < 0.9 else "#d9a441"
            rows.append(
                f'<tr><td>{shown(what)}<td class="n">{size_text(used)}<td class="n">{size_text(limit)}<td>'
                f'<div class="box"><div style="width:{100 * share:.1f}%;background:{colour}"></div></div> '
                f"{100 * used / limit if limit else 100:.0f} %</tr>"
            )
        rows.append("</table>")
    return rows


def _limits(facts: Facts) -> Iterator[tuple[str, int, int]]:
    """(what, bytes used, bytes available)."""
    system = facts.release["system"]
    partition, slots = system.get("partition"), system.get("slots")
    names = {partition, *(f"{partition}_{slot}" for slot in (slots if isinstance(slots, list) else []))}
    found = facts.release["partitions"]
    for name in sorted(found, key=str):
        size = found[name].get("size") if isinstance(found[name], dict) else None
        if name in names and isinstance(size, int):
            yield f"partition {name}", facts.map.size, size
    budgets = facts.contents.get("size_budget")
    for path, limit in (budgets if isinstance(budgets, dict) else {}).items():
        if isinstance(limit, int):
            used = facts.map.size if path == "partition" else facts.below(path)
            yield f"budget of {'the image' if path == 'partition' else path}", used, limit


def largest(facts: Facts) -> list[str]:
    """The files that take most of the image."""
    rows = ['<table><tr><th>file<th>from<th class="n">in the image<th class="n">content</tr>']
    for one in sorted(facts.files, key=lambda one: (-one.stored, one.path))[:LARGEST]:
        rows.append(
            f'<tr><td class="w">{shown(one.path)}<td>{shown(one.origin)}<td class="n">{size_text(one.stored)}'
            f'<td class="n">{size_text(one.size)}</tr>'
        )
    return [*rows, "</table>"]


def changes(old: Since, new: Facts) -> list[str]:
    """Changes of sizes, packages and files since an earlier build."""
    rows = ['<table><tr><th>file<th class="n">before<th class="n">now<th class="n">change</tr>']
    for name, file in new.release["files"].items():
        before, now = old.files.get(name), file.get("size")
        change = change_text(before, now) if before is not None and isinstance(now, int) else "new"
        rows.append(
            f'<tr><td>{shown(name)}<td class="n">{_size(before)}<td class="n">{_size(now)}<td class="n">{change}</tr>'
        )
    rows.append("</table>")
    was, is_ = old.stored, new.stored()
    versions = old.versions, new.versions()
    moved = [
        (abs(is_.get(name, 0) - was.get(name, 0)), name)
        for name in {*was, *is_}
        if was.get(name) != is_.get(name) or versions[0].get(name) != versions[1].get(name)
    ]
    moved.sort(key=lambda item: (-item[0], item[1]))
    rows.append('<table><tr><th>from<th>before<th>now<th class="n">change in the image</tr>')
    for _, name in moved[:CHANGES]:
        one, other = (
            found.get(name) or ("there" if name in sizes else "")
            for found, sizes in zip(versions, (was, is_), strict=True)
        )
        rows.append(
            f"<tr><td>{shown(name)}<td>{shown(one)}<td>{shown(other)}"
            f'<td class="n">{change_text(was.get(name, 0), is_.get(name, 0))}</tr>'
        )
    rows.append("</table>")
    if len(moved) > CHANGES:
        rows.append(f"<p>{len(moved) - CHANGES} more.</p>")
    return [*rows, *_paths(old)]


def _paths(old: Since) -> list[str]:
    rows = []
    for word, names, count in (("added", old.added, old.added_count), ("removed", old.removed, old.removed_count)):
        text = "\n".join(shown(name) for name in names)
        more = f"\n… and {count - len(names)} more" if count > len(names) else ""
        if count:
            rows.append(f"<details><summary>{count} paths {word}</summary><pre>{text}{more}</pre></details>")
    return rows or ["<p>No path was added or removed.</p>"]


def packages(facts: Facts) -> list[str]:
    """The bill of materials for people: packages, then what belongs to no package; each with its files, collapsed."""
    files = facts.by_origin()
    room = PATHS_MAX
    rows = [
        '<table><tr><th>package<th>version<th>source<th>licences<th>for<th class="n">files<th class="n">content'
        '<th class="n">in the image</tr>'
    ]
    for name, one in facts.contents["packages"].items():
        own = files.pop(PACKAGE + name, [])
        listed, room = _listed(own, room)
        rows.append(
            f'<tr><td class="w">{shown(name)}{listed}<td class="w">{shown(one.get("version", ""))}'
            f'<td class="w">{shown(one.get("source", ""))}<td class="w">{shown(_words(one.get("licenses")))}'
            f"<td>{shown(_words(one.get('in')))}{_sums(own)}</tr>"
        )
    rows.append("</table>")
    rows.append('<table><tr><th>from no package<th class="n">files<th class="n">content<th class="n">in the image</tr>')
    for origin, own in files.items():
        listed, room = _listed(own, room)
        rows.append(f'<tr><td class="w">{shown(origin)}{listed}{_sums(own)}</tr>')
    return [*rows, "</table>", *_vulnerabilities(facts)]


def _listed(own: list[File], room: int) -> tuple[str, int]:
    """The paths by folder, collapsed, as long as there is room; and the room that is left."""
    if not own:
        return "", room
    lines: list[str] = []
    folder = ""
    for number, one in enumerate(own):
        above, _, name = one.path.rpartition("/")
        new = [f"{shown(above)}/"] if above != folder or not lines else []
        new.append(f"  {shown(name)}")
        room -= sum(map(len, new)) + len(new)
        if room < 0:
            lines.append(f"… {len(own) - number} more are in contents.json")
            break
        lines += new
        folder = above
    text = "\n".join(lines)
    return f"<details><summary>files</summary><pre>{text}</pre></details>", room


def _sums(own: list[File]) -> str:
    size, stored = sum(one.size for one in own), sum(one.stored for one in own)
    return f'<td class="n">{len(own)}<td class="n">{size_text(size)}<td class="n">{size_text(stored)}'


def _vulnerabilities(facts: Facts) -> list[str]:
    notes = facts.contents.get("vulnerabilities")
    if not isinstance(notes, dict) or not notes:
        return []
    rows = [f"<tr><td>{shown(name)}<td>{shown(text)}</tr>" for name, text in notes.items()]
    return ["<h3>Statements about vulnerabilities</h3><table>", *rows, "</table>"]


def forecast(facts: Facts) -> list[str]:
    """The cost of an update for those who have an earlier release."""
    rows = ['<table><tr><th>installed<th class="n">blocks to write<th>bytes to send</tr>']
    for one in facts.forecast:
        if not isinstance(one, dict):
            continue
        wire = one.get("bytes_on_wire")
        ways = "; ".join(f"{way}: {_size(size)}" for way, size in wire.items()) if isinstance(wire, dict) else ""
        blocks = f"{one.get('blocks_written', '')} of {one.get('blocks', '')}"
        installed = f"{str(one.get('root_hash', ''))[:16]} (rollback index {one.get('rollback_index', '')})"
        rows.append(f'<tr><td>{shown(installed)}<td class="n">{shown(blocks)}<td>{shown(ways)}</tr>')
    return [*rows, "</table>"]


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else ""


def _size(value: object) -> str:
    return size_text(value) if isinstance(value, int) else ""
