# SPDX-License-Identifier: Apache-2.0
"""The page: complete, closed, the same twice, deaf to hostile names; what damage is told."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from hashlib import shake_128
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from erofs_edge.build.record import write_json
from erofs_edge.cli.report import report
from erofs_edge.erofs.regions import KINDS as REGION_KINDS
from erofs_edge.erofs.regions import Map, Region
from erofs_edge.errors import ErofsEdgeError, VerificationError
from erofs_edge.report import pictures, tables
from erofs_edge.report.facts import Facts, collect
from erofs_edge.report.kinds import KINDS, kind_of
from erofs_edge.report.page import page
from erofs_edge.report.since import SINCE
from erofs_edge.report.text import change_text, shown, size_text
from erofs_edge.report.treemap import HEIGHT, RECTANGLES_MAX, WIDTH, Node, treemap
from erofs_edge.tree import BytesContent, FileTree, Inode

Made = Callable[..., Path]
VOID = {"meta", "tr", "th", "td", "rect", "i"}
BOOT = {
    "board": "b", "root_hash": "cd" * 32, "seconds": 9.5,
    "stages": [
        {"stage": "u-boot", "title": "U-Boot", "seconds": 1.25},
        {"stage": "login", "title": "login <prompt>", "seconds": 9.5},
    ],
}  # fmt: skip


class Reader(HTMLParser):
    """Elements, attributes and text of a page; complains of what is closed and was not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_tells_all_of_a_build(make: Made, tmp_path: Path) -> None:
    out = make("out", size_budget={"partition": 1 << 20, "/usr": 30_000}, vulnerabilities={"CVE-2026-1": "no <way>"})
    (out / "forecast.json").write_text(
        json.dumps([{"root_hash": "ab" * 32, "rollback_index": 2, "blocks": 9, "blocks_written": 4,
                     "bytes_on_wire": {"patch": 2048}}])
    )  # fmt: skip
    (tmp_path / "boot.json").write_text(json.dumps(BOOT))
    facts = collect(out, tmp_path / "boot.json")
    text = page(facts, facts.after(facts))
    told = Reader(text)
    assert told.open == []
    words = " ".join(told.words)
    for name in ("summary", "size", "against", "forecast", "packages", "paths", "compression", "layout", "boot", "bill",
                 "use"):  # fmt: skip
        assert ("id", name) in told.attributes and ("href", f"#{name}") in told.attributes
    for part in ("/usr/bin/tool", "GPL-2.0-or-later", "partition system_a", "budget of /usr", "login <prompt>",
                 "no <way>", "step accounts", "manifest system.yaml:7", "patch: 2.0 KiB", "No path was added",
                 "cd" * 32, "it protects nothing"):  # fmt: skip
        assert part in words, part
    assert words.count("system_a") == 1 and "partition data" not in words
    assert "175 %" in words, "52,384 bytes of content below /usr, 30,000 are allowed"


def test_what_somebody_with_the_medium_could_change_is_told(make: Made) -> None:
    out = make("out")
    record = json.loads((out / "release.json").read_text())
    assert page(collect(out)).count('<p class="warn">') == 1, "the development key"
    for exposed, count in ((["/etc can be changed <here>", "and there"], 3), ("no list", 1), ([], 1)):
        (out / "release.json").write_text(json.dumps(record | {"exposed": exposed}))
        text = page(collect(out))
        assert text.count('<p class="warn">') == count
        assert ("/etc can be changed &lt;here&gt;" in text) == (count == 3)


def test_nothing_is_loaded_and_nothing_runs(make: Made) -> None:
    text = page(collect(make("out")))
    told = Reader(text)
    assert set(told.names) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "nav", "a", "section", "table", "tr", "th",
        "td", "p", "pre", "code", "div", "span", "i", "svg", "g", "rect", "text", "details", "summary", "small",
    }  # fmt: skip
    assert {name for name, _ in told.attributes if name.startswith("on")} == set()
    assert {value[:1] for name, value in told.attributes if name in ("href", "src")} == {"#"}
    assert "url(" not in text and "@import" not in text


def test_hostile_names_are_shown_not_obeyed(make: Made) -> None:
    text = page(collect(make("out")))
    assert "<script" not in text and "\x1b" not in text and "\u202e" not in text
    assert r"/etc/\udcff&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;\x1b[31m\u202e" in text
    assert text.encode("utf-8")


def test_the_same_build_gives_the_same_page(make: Made, tmp_path: Path) -> None:
    out = make("out")
    pages = []
    for name in ("one.html", "two.html"):
        done = CliRunner().invoke(report, [str(out), "-o", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    assert not list(tmp_path.glob(".*"))
    assert str(tmp_path).encode() not in pages[0], "no folder of the machine"


def test_every_byte_of_the_image_is_somebodys(make: Made) -> None:
    facts = collect(make("out"))
    assert sum(one.stored for one in facts.files) + sum(facts.rest.values()) == facts.map.size
    assert sum(stored for _, _, _, stored in facts.by_kind()) == facts.map.size
    files = {one.path: one for one in facts.files}
    assert files["/usr/bin/tool"].size == 20_000 and 0 < files["/usr/bin/tool"].stored < 2_000
    assert files["/usr/bin/tool"].kind == "programs" and files["/usr/lib/libx.so.1"].kind == "libraries"
    assert files["/usr/lib/libx.so"].kind == "no content"


def test_names_of_one_inode_count_once(make: Made) -> None:
    tree = FileTree(Inode(stat.S_IFDIR | 0o755, origin="tool"))
    inode = Inode(stat.S_IFREG | 0o755, content=BytesContent(b"abc" * 4000), origin="tool")
    tree.add("usr/bin/a", inode)
    tree.add("usr/bin/b", inode)
    facts = collect(make("out", tree))
    assert [one.size for one in facts.files if one.path.startswith("/usr/bin/")] == [12_000, 0]
    assert facts.below("/usr") == 12_000 and facts.below("/usr/bin/b") == 0 and facts.below("/us") == 0


def test_what_has_changed(make: Made, tmp_path: Path) -> None:
    tree = FileTree(Inode(stat.S_IFDIR | 0o755, origin="tool"))
    tree.add(
        "usr/bin/tool", Inode(stat.S_IFREG | 0o755, content=BytesContent(shake_128(b"").digest(40_000)), origin="tool")
    )
    tree.add("usr/bin/new", Inode(stat.S_IFREG | 0o755, content=BytesContent(b"new"), origin="tool"))
    old, new = make("old"), make("new", tree, tool="1.1")
    text = page(collect(new), collect(new).after(collect(old)))
    words = re.sub(r"\s+", " ", " ".join(Reader(text).words))
    assert "1 paths added /usr/bin/new" in words
    assert "paths removed" in words and "/usr/lib/libx.so.1" in words
    assert re.search(r"tool 1\.0 1\.1 \+[\d.]+ KiB", words), "the version and the bytes of a package"
    write_json(new / SINCE, collect(new).after(collect(old)).record())
    assert page(collect(new)) == text.replace("Changes since the build", "Changes since the last release"), (
        "what a release keeps"
    )
    other = make("other", board="c")
    done = CliRunner().invoke(report, [str(new), "--against", str(other), "-o", str(tmp_path / "x.html")])
    assert isinstance(done.exception, ErofsEdgeError) and "of board 'c', not of 'b'" in str(done.exception)
    assert not (tmp_path / "x.html").exists()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(report, arguments)


def test_the_command(make: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = make("out")
    before = sorted(path.name for path in out.iterdir())
    record = json.loads(run(str(out), "--json").stdout)
    assert record["file"] == "report.html" and record["files"] == 15
    assert (tmp_path / "report.html").stat().st_size == record["size"]
    assert sorted(path.name for path in out.iterdir()) == before, "a release stays what was signed"
    assert "paths  15" in run(str(out), "--against", str(out)).stdout


@pytest.mark.parametrize(
    ("name", "text", "error", "match"),
    [
        ("release.json", "{", ErofsEdgeError, "release"),
        ("release.json", '{"format": 1}', VerificationError, "damaged"),
        ("release.json", '{"format":1,"board":[],"system":{"root_hash":""},"files":{},"partitions":{}}',
         VerificationError, "wrong type"),
        ("contents.json", '{"format": 1, "packages": {"a": 1}, "paths": {}}', VerificationError, "wrong type"),
        ("contents.json", '{"format": 1, "packages": {}, "paths": {"x": 1}}', VerificationError, "damaged"),
        ("contents.json", '{"format": 1, "packages": {}, "paths": {}}', VerificationError, "another build"),
        ("contents.json", None, ErofsEdgeError, "no contents.json"),
        ("system.img", None, ErofsEdgeError, "no system image"),
        ("forecast.json", "{}", VerificationError, "not the kind of record"),
        ("since.json", "[]", VerificationError, "not the kind of record"),
        ("since.json", "{}", VerificationError, r"since\.json is damaged"),
        ("since.json", '{"root_hash":"","files":{"a":"b"},"stored":{},"versions":{},"added":[],"removed":[],'
         '"added_count":0,"removed_count":0}', VerificationError, "wrong type"),
        ("boot.json", "[]", VerificationError, "not the kind of record"),
        ("boot.json", "[", VerificationError, "cannot be read"),
        ("boot.json", '{"root_hash": "ab"}', ErofsEdgeError, "another build"),
    ],
)  # fmt: skip
def test_damage_is_told(make: Made, name: str, text: str | None, error: type[ErofsEdgeError], match: str) -> None:
    out = make("out")
    if text is None:
        (out / name).unlink()
    else:
        (out / name).write_text(text)
    with pytest.raises(error, match=match):
        collect(out, out / name if name == "boot.json" else None)


@pytest.mark.parametrize(
    "stages",
    [None, 3, [], [None], [{"title": "x"}], [{"seconds": -1}], [{"seconds": float("nan")}], [{"seconds": 1e99}]],
)
def test_a_boot_without_stages_is_left_out(make: Made, stages: object) -> None:
    assert pictures.boot({"stages": stages}) == ""
    facts = collect(make("out"))
    with_boot = Facts(facts.release, facts.contents, facts.files, facts.rest, facts.map, [], {"stages": stages})
    assert 'id="boot"' not in page(with_boot)


def areas(text: str) -> list[tuple[float, float, float, float]]:
    found = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', text)
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in found]


def test_areas_are_sizes_and_fill_the_picture() -> None:
    top = Node("top")
    for number in range(40):
        top.add([f"n{number:02}"], (number + 1) * 1000, "programs")
    boxes = areas(treemap(top, {}, "t"))
    assert len(boxes) == 40
    total = sum(range(1, 41))
    expected = sorted(WIDTH * HEIGHT * (n + 1) / total for n in range(40))
    for box, area in zip(sorted(b[2] * b[3] for b in boxes), expected, strict=True):
        assert abs(box - area) < 0.002 * area + 60, "coordinates have one decimal"
    assert all(x + w <= WIDTH + 0.2 and y + h <= HEIGHT + 0.2 for x, y, w, h in boxes)
    for one in range(40):
        for x, y, w, h in boxes[one + 1 :]:
            a, b, c, d = boxes[one]
            assert min(a + c, x + w) - max(a, x) < 0.2 or min(b + d, y + h) - max(b, y) < 0.2, "two overlap"
    assert max(max(w / h, h / w) for _, _, w, h in boxes) < 4


def test_the_picture_stays_small() -> None:
    top = Node("top")
    for number in range(50_000):
        top.add([f"d{number % 300}", f"f{number}"], 4096, "libraries")
    text = treemap(top, pictures.COLOURS, "t")
    assert len(areas(text)) <= RECTANGLES_MAX and "167 small ones: 668 KiB" in text
    deep = Node("top")
    deep.add(["x"] * 5000, 10, "libraries")
    assert len(treemap(deep, {}, "t")) < 100_000
    assert areas(treemap(Node("top"), {}, "empty")) == [(0.0, 0.0, WIDTH, HEIGHT)]


def test_the_layout_stays_small(make: Made) -> None:
    facts = collect(make("out"))
    kinds = REGION_KINDS[2:8]
    size, step = 8192 * 48 * 1024, 96 << 10
    regions = [Region(n, n + step, kinds[n // step % 6], f"/{n}" * 40) for n in range(0, size, step)]
    large = Facts(facts.release, facts.contents, [], {}, Map(size, size, 4096, regions))
    assert len(pictures.layout(large)) <= pictures.LAYOUT_MAX


def test_lists_of_files_end_somewhere(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PATHS_MAX", 60)
    words = " ".join(Reader("\n".join(tables.packages(collect(make("out"))))).words)
    assert "/usr/lib/\n  libx.so\n" in words and "… 3 more are in contents.json" in words


@pytest.mark.parametrize(
    ("path", "mode", "kind"),
    [
        ("/usr/bin/tool", 0o755, "programs"),
        ("/usr/lib/aarch64-linux-gnu/libc.so.6", 0o755, "libraries"),
        ("/usr/lib/modules/6.12/kernel/a.ko.xz", 0o644, "kernel modules"),
        ("/usr/lib/firmware/x.bin", 0o644, "firmware"),
        ("/usr/lib/python3/a.py", 0o644, "scripts and bytecode"),
        ("/etc/passwd", 0o644, "configuration"),
        ("/usr/lib/systemd/system/a.service", 0o644, "configuration"),
        ("/usr/share/doc/a/changelog.gz", 0o644, "documentation"),
        ("/usr/share/locale/de/LC_MESSAGES/a.mo", 0o644, "translations"),
        ("/var/lib/dpkg/status", 0o644, "package records"),
        ("/usr/lib/x/helper", 0o755, "programs"),
        ("/opt/data", 0o644, "other data"),
    ],
)
def test_kinds(path: str, mode: int, kind: str) -> None:
    assert kind_of(path, stat.S_IFREG | mode, 1) == kind
    assert kind_of(path, stat.S_IFDIR | mode, 1) == kind_of(path, stat.S_IFREG | mode, 0) == "no content"
    assert kind in KINDS


def test_words() -> None:
    assert [size_text(n) for n in (0, 1023, 1024, 10_000_000, 1 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "9.5 MiB",
        "1.0 GiB",
    ]
    assert [change_text(1, n) for n in (1, 0, 2049)] == ["same", "-1 B", "+2.0 KiB"]
    assert shown("a\n<") == "a\\n&lt;"
