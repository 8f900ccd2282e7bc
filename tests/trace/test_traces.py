# SPDX-License-Identifier: Apache-2.0
"""Traces: what a server saw of reads, as a file, a report, a picture, and a layout."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.profile import Use, is_path, profile_text, read_profile
from erofs_edge.erofs.read import Image
from erofs_edge.erofs.write import write_image
from erofs_edge.errors import FormatError, SourceError, VerificationError
from erofs_edge.serve.export import BLOCK, Activity, FileExport
from erofs_edge.serve.server import Server
from erofs_edge.trace.files import files_of, image_root_hash, trace_of
from erofs_edge.trace.heat import heat_map
from erofs_edge.trace.record import (
    FileUse,
    Trace,
    decode,
    encode,
    make_trace,
    read_trace,
    read_uses,
    write_trace,
)
from erofs_edge.trace.report import report
from erofs_edge.transport.nbd.connect import Connection, parse_address
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.verity.tree import append

NAMES = [b"alpha", b"beta", b"gamma \xff 7", b"delta"]


def _tree() -> FileTree:
    tree = FileTree()
    tree.directory("d")
    for number, name in enumerate(NAMES):
        content = b"".join(b"%d %d\n" % (number, line * line) for line in range(20_000))
        tree.add(b"d/" + name, Inode(stat.S_IFREG | 0o644, content=BytesContent(content)))
    return tree


@pytest.fixture
def image(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "system.img"
    write_image(_tree(), path, WriteOptions(compression="lz4", pcluster=16384, epoch=0))
    return path, append(path).root_hash.hex()


def _block_of(path: Path, name: bytes) -> int:
    """A block in the middle of a file."""
    with Image(path) as image:
        inode = next(inode for found, inode in image.walk() if found == b"d/" + name)
        extents = list(image.extents(inode))
        return extents[len(extents) // 2].address // BLOCK


def test_a_server_records_the_first_reads_in_their_order(image: tuple[Path, str]) -> None:
    path, root_hash = image
    blocks = [_block_of(path, name) for name in (NAMES[3], NAMES[0], NAMES[2])]
    export = FileExport(path)
    export.activity.record = True
    server = Server({"system": export})
    port = server.listen("127.0.0.1", 0)
    connection = Connection(parse_address(f"nbd://127.0.0.1:{port}/system"))
    for block in [*blocks, blocks[0]]:  # the last one for a second time
        connection.read(block * BLOCK, BLOCK)
    connection.close()
    server.stop()
    seen = export.activity
    trace = trace_of(path, seen.touches, block_size=BLOCK, requests=seen.requests, bytes_read=seen.bytes_read)
    export.close()
    assert [(read.first, read.blocks) for read in trace.reads] == [(block, 1) for block in blocks]
    assert (trace.root_hash, trace.requests, trace.bytes_read) == (root_hash, 4, 4 * BLOCK)
    assert [use.path for use in trace.files] == ["/d/delta", "/d/alpha", "/d/gamma \\377\\0407"]
    assert [use.path for use in trace.uses()] == [b"/d/delta", b"/d/alpha", b"/d/gamma \xff 7"]
    assert all(use.length for use in trace.files)


def test_a_read_over_known_and_unknown_blocks_leaves_only_the_new_ones() -> None:
    activity = Activity(100 * BLOCK, record=True)
    for offset, length in ((10, 2), (8, 8), (0, 100)):
        activity.note(offset * BLOCK, length * BLOCK)
    runs = [(first, count) for _, first, count in activity.touches]
    assert runs == [(10, 2), (8, 2), (12, 4), (0, 8), (16, 84)]
    times = [at for at, _, _ in activity.touches]
    assert times == sorted(times)
    assert activity.bytes_touched == 100 * BLOCK
    quiet = Activity(100 * BLOCK)
    quiet.note(0, BLOCK)
    assert not quiet.touches


def _trace(reads: list[tuple[int, int, int]], **more: object) -> Trace:
    values = {"root_hash": "ab", "image_bytes": 1000 * BLOCK, "block_size": BLOCK, "requests": 3, "bytes_read": 9}
    return make_trace(reads, **{**values, **more})  # type: ignore[arg-type]


def test_the_file_byte_by_byte(tmp_path: Path) -> None:
    trace = _trace([(5_000, 7, 2), (9_500_000, 1, 1)], files=[FileUse("/a", 0, 0), FileUse("/b\\012", 4096, 9)])
    write_trace(trace, tmp_path / "t")
    assert (tmp_path / "t").read_text() == (
        '{\n "kind": "erofs-edge trace",\n "format": 1,\n "root_hash": "ab",\n "image_bytes": 4096000,\n'
        ' "block_size": 4096,\n "requests": 3,\n "bytes_read": 9,\n "reads": [\n  [0,7,2],\n  [9495,1,1]\n ],\n'
        ' "files": [\n  ["/a",0,0],\n  ["/b\\\\012",4096,9]\n ]\n}\n'
    )
    assert read_trace(tmp_path / "t") == trace
    assert trace.uses() == (Use(b"/a"), Use(b"/b\n", 4096, 4105))
    assert list(tmp_path.iterdir()) == [tmp_path / "t"]


@given(
    st.lists(st.tuples(st.integers(0, 1 << 60), st.integers(0, 900), st.integers(1, 100)), max_size=30),
    st.integers(0, 8),
    st.integers(1, 200),
)
def test_runs_hold_all_that_was_touched(reads: list[tuple[int, int, int]], merge: int, longest: int) -> None:
    trace = decode(encode(_trace(sorted(reads))), "x")
    assert trace == _trace(sorted(reads))
    runs = trace.runs(merge=merge, longest=longest)
    fetched = [block for first, count in runs for block in range(first, first + count)]
    touched = {block for _, first, count in reads for block in range(first, first + count)}
    assert touched <= set(fetched)
    assert len(fetched) == len(set(fetched))
    assert all(count <= longest for _, count in runs)
    assert len(fetched) <= len(touched) + merge * max(len(runs) * longest, 0)
    # the first run has the first read
    if trace.reads:
        first = trace.reads[0].first
        assert any(start <= first < start + count for start, count in runs[:1])


def test_a_run_never_reaches_beyond_the_whole_blocks_of_the_image() -> None:
    assert _trace([(0, 998, 2)], image_bytes=999 * BLOCK + 5).runs() == ((998, 1),)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"kind": "x"}', '{"format": 2}', "\xff" * 9, "[" * 100_000,
        '"reads": [[0, 1, 0]]', '"reads": [[0, -1, 1]]', '"reads": [[0, 1, 5000]]', '"reads": [[-1, 0, 1]]',
        '"files": [["relative", 0, 1]]', '"files": [["/x", -1, 1]]', '"block_size": 0, "reads": [[0, 0, 1]]',
        '"more": 1',
    ],
)  # fmt: skip
def test_hostile_traces(text: str) -> None:
    good = json.loads(encode(_trace([(0, 1, 1)])))
    if text.startswith('"'):
        text = json.dumps({**good, **json.loads("{" + text + "}")})
    with pytest.raises(FormatError):
        decode(text.encode("latin-1"), "there")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"files": [["/etc/../../x", 0, 0]]}, "/etc/../../x"),
        ({"files": [["/a\\000b", 0, 0]]}, "impossible file"),
        ({"block_size": 3}, "blocks of 3 bytes"),
        ({"block_size": 0}, "blocks of 0 bytes"),
    ],
)
def test_a_trace_that_could_not_be_of_an_image(changed: dict[str, object], words: str) -> None:
    whole = json.loads(encode(_trace([(0, 0, 1)])))
    with pytest.raises(FormatError, match=re.escape(words)) as refused:
        decode(json.dumps(whole | changed).encode(), "a.trace")
    assert refused.value.where == "a.trace"


def test_a_path_that_no_tree_has_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("/bin/x\n/etc/../x 0 5\n")
    with pytest.raises(SourceError, match=r"no file has the path /etc/\.\./x") as refused:
        read_profile(tmp_path / "profile")
    assert refused.value.where == f"{tmp_path}/profile:2"


def test_a_trace_of_another_image_is_refused(image: tuple[Path, str], tmp_path: Path, edge: str) -> None:
    path, root_hash = image
    assert image_root_hash(path) == root_hash
    write_trace(_trace([(0, 0, 1)], root_hash="00" * 32), tmp_path / "t")
    with pytest.raises(VerificationError, match="root hash 0000.*this one has " + root_hash):
        read_trace(tmp_path / "t").belongs_to(root_hash)
    done = subprocess.run(
        [edge, "trace", "report", str(tmp_path / "t"), "--image", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "this one has" in done.stderr
    assert "hint" in done.stderr


def test_an_image_without_a_tree_has_no_root_hash(tmp_path: Path) -> None:
    path = tmp_path / "plain.img"
    write_image(_tree(), path, WriteOptions(compression="none", epoch=0))
    with pytest.raises(FormatError):
        image_root_hash(path)
    size = path.stat().st_size
    append(path)
    with path.open("r+b") as file:
        file.truncate(size + 4096)  # the superblock alone
    with pytest.raises(FormatError, match="cut off"):
        image_root_hash(path)


def test_a_trace_lays_the_next_image_out(image: tuple[Path, str], tmp_path: Path) -> None:
    """What was read comes to the front, in its order; the same trace gives the same bytes, its gaps do not matter."""
    path, _ = image
    touches = [(n * 10**9, _block_of(path, name), 1) for n, name in enumerate((NAMES[3], NAMES[1]))]
    outputs = []
    for scale in (1, 1000):
        scaled = [(at // scale, first, count) for at, first, count in touches]
        trace = trace_of(path, scaled, block_size=BLOCK, requests=2, bytes_read=2 * BLOCK)
        file = tmp_path / f"trace{scale}"
        write_trace(trace, file)
        made = tmp_path / f"laid{scale}.img"
        options = WriteOptions(compression="lz4", pcluster=16384, epoch=0, profile=read_uses(file))
        write_image(_tree(), made, options)
        outputs.append(made.read_bytes())
    assert outputs[0] == outputs[1] != path.read_bytes()
    with Image(tmp_path / "laid1.img") as laid:
        (delta,) = [inode for found, inode in laid.walk() if found == b"d/delta"]
        (beta,) = [inode for found, inode in laid.walk() if found == b"d/beta"]
        used = {use.path: use for use in trace.uses()}
        places = []
        for inode, name in ((delta, b"/d/delta"), (beta, b"/d/beta")):
            extents = [
                e
                for e in laid.extents(inode)
                if e.start < (used[name].end or 0) and used[name].start < e.start + e.length
            ]
            places += [extent.address for extent in extents]
        rest = [e.address for inode in (delta, beta) for e in laid.extents(inode) if e.address not in places]
        assert places == sorted(places)
        assert max(places) < min(rest)


def test_the_profile_of_a_trace_is_the_trace(image: tuple[Path, str], tmp_path: Path, edge: str) -> None:
    path, _ = image
    touches = [(0, _block_of(path, NAMES[2]), 2), (1, 0, 1)]
    trace = trace_of(path, touches, block_size=BLOCK, requests=2, bytes_read=3 * BLOCK)
    write_trace(trace, tmp_path / "t")
    subprocess.run([edge, "trace", "profile", str(tmp_path / "t"), "-o", str(tmp_path / "p")], check=True)
    assert read_profile(tmp_path / "p") == trace.uses() == read_uses(tmp_path / "t") == read_uses(tmp_path / "p")
    with pytest.raises(SourceError):
        read_uses(tmp_path / "none")
    with pytest.raises(FormatError, match="names no files"):
        _trace([]).uses()


PATHS = st.binary(min_size=1, max_size=12).filter(lambda name: is_path(b"/" + name))


@given(st.lists(st.tuples(PATHS, st.integers(0, 99), st.integers(0, 99)), max_size=5))
def test_any_path_survives_a_profile(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[bytes, int, int]]
) -> None:
    uses = tuple(dict.fromkeys(Use(b"/" + name, a if n else 0, a + n if n else None) for name, a, n in rows))
    path = tmp_path_factory.getbasetemp() / "any-profile"
    path.write_text(profile_text(uses))
    assert read_profile(path) == uses


def test_report(image: tuple[Path, str]) -> None:
    path, _ = image
    first = _block_of(path, NAMES[1])
    touches = [(0, first, 1), (2 * 10**9, 0, 1), (2 * 10**9 + 1000, first + 1, 1)]
    trace = trace_of(path, touches, block_size=BLOCK, requests=4, bytes_read=4 * BLOCK)
    with Image(path) as opened:
        made = report(trace, opened)
    assert (made.touched_bytes, made.runs, made.runs_sorted) == (3 * BLOCK, 3, 2)
    assert made.order_broken == 0.5
    assert made.amplification == 4 / 3
    assert [(gap.seconds, gap.block) for gap in made.gaps] == [(2.0, 0), (0.000001, first + 1)]
    assert sum(made.kinds.values()) == 3 * BLOCK
    assert made.kinds["lz4 data"] > BLOCK
    assert report(_trace([])).touched_bytes == 0
    # the last block may be shorter
    assert report(_trace([(0, 999, 1)], image_bytes=999 * BLOCK + 10)).touched_bytes == 10


def test_heat_map(tmp_path: Path, edge: str) -> None:
    trace = _trace([(0, 10, 5), (1, 500, 1), (2, 900, 100)])
    picture = heat_map(trace, "a <b> & c")
    assert picture == heat_map(trace, "a <b> & c")
    root = ET.fromstring(picture)
    rectangles = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(rectangles) > 6
    assert max(float(node.get("x", 0)) + float(node.get("width", 0)) for node in rectangles) <= float(
        root.get("width", 0)
    )
    assert heat_map(_trace([], image_bytes=0), "empty").endswith("</svg>\n")
    write_trace(trace, tmp_path / "t")
    done = subprocess.run(
        [edge, "trace", "report", str(tmp_path / "t"), "--svg", str(tmp_path / "t.svg"), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["touched_bytes"] == 106 * BLOCK
    assert ET.parse(tmp_path / "t.svg").getroot().tag.endswith("svg")
    table = subprocess.run([edge, "trace", "report", str(tmp_path / "t")], capture_output=True, text=True, check=True)
    assert "touched          424 KiB" in table.stdout


def test_files_that_lie_beside_their_inodes_are_not_named(tmp_path: Path) -> None:
    tree = FileTree()
    for number in range(20):
        tree.add(b"small%d" % number, Inode(stat.S_IFREG | 0o644, content=BytesContent(b"x" * 50)))
    path = tmp_path / "small.img"
    write_image(tree, path, WriteOptions(compression="none", epoch=0))
    with Image(path) as opened:
        assert files_of(opened, [(0, path.stat().st_size // BLOCK)], BLOCK) == ()


def test_serve_writes_a_trace(image: tuple[Path, str], tmp_path: Path, edge: str, oracle: Callable[[str], str]) -> None:
    path, root_hash = image
    out = tmp_path / "trace"
    server = subprocess.Popen(
        [edge, "serve", str(path), "--port", "0", "--socket", str(tmp_path / "s"), "--trace", str(out), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stderr is not None
    assert "nbd+unix" in server.stderr.readline()
    uri = f"nbd+unix:///?socket={tmp_path / 's'}"
    subprocess.run([oracle("nbdcopy"), uri, str(tmp_path / "copy")], check=True)
    server.terminate()
    stdout, _ = server.communicate(timeout=60)
    trace = read_trace(out)
    assert trace.root_hash == root_hash
    assert trace.blocks * BLOCK == path.stat().st_size
    assert json.loads(stdout)["exports"][0]["bytes_read"] == trace.bytes_read
    refused = subprocess.run(
        [edge, "serve", str(tmp_path / "trace"), "--port", "0", "--trace", str(out)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    # told before anything is served: what was recorded until then would be lost
    refused = subprocess.run(
        [edge, "serve", str(path), "--port", "0", "--trace", str(tmp_path / "none/t")], capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "mkdir -p" in refused.stderr and "nbd://" not in refused.stderr
