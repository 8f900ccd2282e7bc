# SPDX-License-Identifier: Apache-2.0
"""The provisioning target against a control export in memory; the provisioning system's scripts on this host."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
from memory_board import Board, Zeros

from erofs_edge.errors import DeviceError, ProtocolError
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Region
from erofs_edge.flash.provision import ZEROS, ZEROS_OLDER, ProvisionTarget, runs, shares
from erofs_edge.flash.survey import digest, survey
from erofs_edge.provision.initramfs import FOLDER
from erofs_edge.transport.nbd import control
from erofs_edge.transport.nbd.connect import Connection

Asked = Callable[..., str]


@pytest.fixture
def work(tmp_path: Path, oracle: Callable[[str], str]) -> Asked:
    """work(items…): work.sh carries out a request here, with a file as the disk; returns its answers, and 'tree'."""
    script = (FOLDER / "work.sh").read_text()
    (tmp_path / "bin").mkdir()
    for name in ("dd", "sha256sum", "b2sum", "stat", "rm", "cat", "sync", "zstd", "sh", "tr"):
        found = subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=True)
        (tmp_path / "bin" / name).symlink_to(found.stdout.strip())
    (tmp_path / "bin/gdd").symlink_to((tmp_path / "bin/dd").readlink())
    (tmp_path / "bin/veritysetup").symlink_to(oracle("veritysetup"))
    # only paths change
    script = script.replace("PATH=/bin", f"PATH={tmp_path}/bin").replace("/run/", f"{tmp_path}/")
    script = script.replace("/sys/firmware", f"{tmp_path}/firmware").replace("/sys/class", f"{tmp_path}/class")
    (tmp_path / "work.sh").write_text(script)
    (tmp_path / "data").mkdir()
    (tmp_path / "image").write_bytes(random.Random(5).randbytes(1 << 20))
    (tmp_path / "disk").write_text(f"{tmp_path}/image\n")
    (tmp_path / "size").write_text(f"{1 << 20}\n")

    def asked(*items: str, delta: bytes = b"") -> str:
        with (tmp_path / "control.me").open("w+b") as file:
            file.truncate(control.SIZE)
            os.pwrite(file.fileno(), control.request(items), 0)
            os.pwrite(file.fileno(), delta, control.DELTAS)
            subprocess.run(["/bin/sh", str(tmp_path / "work.sh"), "me"], check=True, stderr=subprocess.DEVNULL)
            raw = os.pread(file.fileno(), control.answer_bytes(items), control.ANSWERS)
            return "\n".join(control.answers(raw, items))

    return asked


def test_the_device_hashes_ranges(work: Asked, tmp_path: Path) -> None:
    data = (tmp_path / "image").read_bytes()
    assert work("hash 0 1048576", "hash 512 1024", "hash 512 1024 blake2b", "hash 512 1024 sha256").split() == [
        hashlib.sha256(data).hexdigest(),
        hashlib.sha256(data[512:1536]).hexdigest(),
        hashlib.blake2b(data[512:1536]).hexdigest(),
        hashlib.sha256(data[512:1536]).hexdigest(),
    ]


@pytest.mark.parametrize("cpus", [1, 3])
def test_what_was_hashed_before_is_not_what_the_disk_holds_now(work: Asked, tmp_path: Path, cpus: int) -> None:
    """Ranges of the same length in turn, the last ones behind the end of a disk that is shorter than its size."""
    data = (tmp_path / "image").read_bytes()
    (tmp_path / "cpus").write_text(f"{cpus}\n")
    (tmp_path / "size").write_text(f"{2 << 20}\n")
    pieces = [(at, 1 << 17) for at in range(0, 2 << 20, 1 << 17)]
    pieces += [((1 << 20) - 4096, 1 << 17), (5, 1 << 17), (5, 1 << 16)]
    want = [hashlib.blake2b(data[at : at + size]).hexdigest() for at, size in pieces]
    assert work(*(f"hash {at} {size} blake2b" for at, size in pieces)).split() == want


@pytest.mark.parametrize("cpus", [1, 3])
def test_answers_are_in_order(work: Asked, tmp_path: Path, cpus: int) -> None:
    """Several processes hash at the same time."""
    data = (tmp_path / "image").read_bytes()
    (tmp_path / "cpus").write_text(f"{cpus}\n")
    pieces = [(at, 1000 + at // 64) for at in range(0, 1 << 20, 150_000)]
    items = [f"hash {at} {size}" for at, size in pieces]
    want = [hashlib.sha256(data[at : at + size]).hexdigest() for at, size in pieces]
    said = work(*items[:4], "serial", "blocks 4096 0 81920", *items[4:]).split("\n")
    assert said == [*want[:4], "is ", "ok", *want[4:]]


@pytest.mark.parametrize("name", ["", "blake2b"])
@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize(("size", "count"), [(4096, 256), (4096, 5), (4096, 129), (4096, 50), (65536, 16), (524288, 2)])
def test_the_device_hashes_many_blocks_at_once(
    work: Asked, tmp_path: Path, size: int, count: int, cpus: int, name: str
) -> None:
    (tmp_path / "cpus").write_text(f"{cpus}\n")
    data = (tmp_path / "image").read_bytes()
    assert work(f"blocks {size} 0 {size * count} {name}") == "ok"
    width = 64 if name else 32
    start, length = control.leaves(count, width)
    with (tmp_path / "control.me").open("rb") as file:
        raw = os.pread(file.fileno(), length, start)
    assert [raw[at : at + width] for at in range(0, length, width)] == [
        digest(name or "sha256", data[at : at + size]) for at in range(0, size * count, size)
    ]
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("cpus", [1, 3])
def test_the_device_looks_for_zeros(work: Asked, tmp_path: Path, cpus: int) -> None:
    """Of any length, whatever else is there: one byte, or what compresses as well as zeros do."""
    (tmp_path / "cpus").write_text(f"{cpus}\n")
    with (tmp_path / "image").open("r+b") as file:
        for place, data in ((0, bytes(300_000)), (400_000, b"\1" * 70_000), (500_000, bytes(70_000) + b"\1")):
            file.seek(place)
            file.write(data)
    wanted = {
        (0, 300_000): "zeros",
        (1, 4096): "zeros",
        (100_000, 200_000): "zeros",
        (100_000, 200_001): "data",
        (400_000, 70_000): "data",
        (500_000, 70_000): "zeros",
        (500_000, 70_001): "data",
        (700_000, 70_000): "data",
    }
    items = [f"zeros {at} {size}" for at, size in wanted]
    for _ in range(2):
        assert work("serial", *items, "serial").split("\n") == ["is ", *wanted.values(), "is "]
    assert not list((tmp_path / "data").iterdir())


def test_what_cannot_be_read_is_not_taken_for_zeros(work: Asked, tmp_path: Path) -> None:
    """A disk that is shorter than its size, and one that is gone."""
    with (tmp_path / "image").open("r+b") as file:
        file.truncate(0)
        file.truncate(12 << 20)
    (tmp_path / "size").write_text(f"{16 << 20}\n")
    items = [
        f"zeros {at} {size}" for at, size in ((0, 12 << 20), (8 << 20, 8 << 20), (12 << 20, 1 << 20), (12 << 20, 1))
    ]
    assert work(*items).split() == ["zeros", "data", "data", "data"]
    (tmp_path / "image").unlink()
    assert work(*items).split() == ["data"] * 4


def test_parts_of_a_large_tree_are_where_the_whole_one_has_them(work: Asked, tmp_path: Path) -> None:
    """16,500 blocks: three levels above the leaves of the whole tree, two above those of a part."""
    with (tmp_path / "image").open("r+b") as file:
        file.truncate(16500 * 512)
    (tmp_path / "size").write_text(f"{16500 * 512}\n")
    (tmp_path / "cpus").write_text("2\n")
    data = (tmp_path / "image").read_bytes()
    assert work(f"blocks 512 0 {len(data)}") == "ok"
    with (tmp_path / "control.me").open("rb") as file:
        raw = os.pread(file.fileno(), 16500 * 32, control.leaves(16500, 32)[0])
    assert raw == b"".join(hashlib.sha256(data[at : at + 512]).digest() for at in range(0, len(data), 512))


def test_the_device_copies_and_patches(work: Asked, tmp_path: Path) -> None:
    before = (tmp_path / "image").read_bytes()
    assert work("copy 0 524288 4096") == "ok"
    new = before[:100_000] + b"something else" + before[100_000:200_000]
    (tmp_path / "old").write_bytes(before[: 256 << 10])
    (tmp_path / "new").write_bytes(new)
    for reference in ([f"--patch-from={tmp_path}/old"], []):
        command = ["zstd", "-q", "-f", "-3", *reference, str(tmp_path / "new"), "-o", str(tmp_path / "made")]
        subprocess.run(command, check=True)
        length = 256 << 10 if reference else 0
        delta = (tmp_path / "made").read_bytes()
        assert work(f"patch 0 {length} 600000 {len(new)} {len(delta)}", delta=delta) == "ok"
        after = (tmp_path / "image").read_bytes()
        assert after[600_000 : 600_000 + len(new)] == new
    assert after[524_288 : 524_288 + 4096] == before[:4096]
    assert after[:524_288] == before[:524_288] and len(after) == len(before)


def test_the_device_says_which_board_it_is(work: Asked, tmp_path: Path) -> None:
    def told() -> tuple[str, tuple[str, ...]]:
        return control.board(work(*control.WHO).split("\n"))

    assert told() == ("", ())
    machine = tmp_path / "class/dmi/id"
    machine.mkdir(parents=True)
    (machine / "product_name").write_text("A Machine `of` $HOME\n")
    (machine / "product_serial").write_text("0815\n")
    assert told() == ("0815", ("A Machine `of` $HOME",))
    tree = tmp_path / "firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "compatible").write_bytes(b"raspberrypi,4-model-b\0brcm,bcm2711\0")
    assert told() == ("", ("raspberrypi,4-model-b", "brcm,bcm2711"))
    (tree / "serial-number").write_bytes(b"10000000\x1babcd\0")
    (tree / "compatible").write_bytes(b"".join(b"x" * 200 + b"\0" for _ in range(20)))
    serial, names = told()
    assert serial == "10000000abcd"
    assert names == ("x" * 70,) * control.NAMES


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("hash 1048576 1", "outside"),
        ("hash -1 1", "outside"),
        ("copy 0 1048000 4096", "outside"),
        ("zeros 1048000 4096", "outside"),
        ("zeros 0 1048577", "outside"),
        ("hash 0 512 sha1", "digest"),
        ("blocks 4096 0 8192 -", "digest"),
        ("blocks 4096 0 2097152", "outside"),
        ("blocks 4096 0 4096", "size"),
        ("blocks 0 0 4096", "size"),
        ("patch 0 4096 0 4096 9", "delta"),
        ("erase everything", "unknown"),
    ],
)
def test_the_device_refuses(work: Asked, tmp_path: Path, item: str, message: str) -> None:
    before = (tmp_path / "image").read_bytes()
    with pytest.raises(DeviceError, match=message):
        work(item, delta=b"no delta!")
    assert (tmp_path / "image").read_bytes() == before


def test_answers_that_do_not_fit_are_a_breach() -> None:
    for raw in (b"", b"ok\n", b"ok\nok\n.\n", b"\n.\n" * 3, bytes(100)):
        with pytest.raises(ProtocolError):
            control.answers(raw, ["copy 0 0 0", "copy 0 0 0", "copy 0 0 0"])
    with pytest.raises(ValueError, match="lines"):
        control.request(["hash 0 1\nreboot"])


@pytest.mark.parametrize("name", ["sha256", "blake2b"])
def test_what_is_asked_of_a_board(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """One question for each run of blocks, with all single ranges in the first; zeros by ZEROS bytes. It is not asked
    for anything it does not claim to support."""
    says, by = ("erofs-edge board|is 1|.||sha3|blake2b", " blake2b") if name == "blake2b" else ("", "")
    monkeypatch.setattr(f"erofs_edge.flash.provision.{'ZEROS' if says else 'ZEROS_OLDER'}", 16 << 20)
    disk = bytearray(40 << 20)
    disk[:600_000] = random.Random(7).randbytes(600_000)
    disk[-1] = 1
    board = Board(bytes(disk), says=says)
    target = ProvisionTarget(cast("Connection", board), cast("Connection", board))
    assert target.hash_name == name
    ranges = [(at, 65536) for at in range(0, 655360, 65536)] + [(1 << 20, 4096), (3 << 20, 512)]
    ranges += [(at, 4096) for at in range(2 << 20, (2 << 20) + 40960, 4096)]
    board.asked.clear()
    board.flushed = 0
    assert target.digests(ranges) == [digest(name, bytes(disk[at : at + size])) for at, size in ranges]
    assert board.asked == [
        f"blocks 65536 0 655360{by}",
        f"hash 1048576 4096{by}",
        f"hash 3145728 512{by}",
        f"blocks 4096 2097152 40960{by}",
    ]
    assert board.flushed == 2
    board.asked.clear()
    assert list(target.data(1 << 20, 39 << 20)) == [((1 << 20) + 3 * 10223616, 40 << 20)]
    assert board.flushed == 3
    assert board.asked == [f"zeros {(1 << 20) + part * 10223616} 10223616" for part in range(4)]


def test_an_older_board_hashes_zeros() -> None:
    """No question is asked twice."""
    size, half = ZEROS_OLDER + (4 << 20) + 1, (ZEROS_OLDER >> 1) + (2 << 20) + 4096
    board = Board(bytes(size - 1) + b"\1", looks=False)
    target = ProvisionTarget(cast("Connection", board), cast("Connection", board))
    for _ in range(2):
        board.asked.clear()
        assert list(target.data(0, size)) == [(half, size)]
    assert board.asked == [f"hash 0 {half}", f"hash {half} {size - half}"]


@pytest.mark.parametrize("length", [1, 4097, 16 << 20, (16 << 20) + 1, 23015424, 472461312, 8 * ZEROS])
@pytest.mark.parametrize("most", [4 << 20, ZEROS_OLDER, ZEROS])
def test_as_much_zeros_for_each_processor(length: int, most: int) -> None:
    """Two or four are done at the same time; none gets more than its limit."""
    parts = shares(8192, length, most)
    sizes = [size for _, size in parts]
    assert parts[0][0] == 8192 and sum(sizes) == length and max(sizes) <= most
    assert all(at + size == after for (at, size), (after, _) in pairwise(parts))
    assert all(size % 4096 == 0 and size == sizes[0] for size in sizes[:-1])
    assert (len(parts) == 1) == (length <= min(most, 16 << 20))
    # on two processors: all of it takes as long as half of it, and less than three blocks
    assert sum(sizes[::2]) <= length // 2 + len(parts) * 4096 or len(parts) == 1


def test_digests_are_made_on_both_sides_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This side does not wait while the board computes."""
    content, made = random.Random(3).randbytes(1 << 20), threading.Event()
    (tmp_path / "image").write_bytes(content)

    def noticed(name: str, data: bytes | memoryview) -> bytes:
        made.set()
        return digest(name, data)

    class Slow(ProvisionTarget):
        def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
            assert made.wait(60), "ours are made only when theirs are there"
            return super().digests(ranges)

    board = Board(content)
    target = Slow(cast("Connection", board), cast("Connection", board))
    monkeypatch.setattr("erofs_edge.flash.survey.digest", noticed)
    with Image(tmp_path / "image") as image:
        assert survey(Region("image", 0, 1 << 20, ((0, 1 << 20),)), image, target).right


def test_the_medium_is_read_anew_when_somebody_wants_to_know() -> None:
    """After a flush, once, and in one request with the questions; a flush alone requests nothing."""
    disk, board = Zeros(b""), Board(bytes(1 << 20))
    target = ProvisionTarget(cast("Connection", disk), cast("Connection", board))
    board.asked.clear()
    target.flush()
    target.flush()
    assert board.asked == []
    target.digests([(0, 4096)])
    target.digests([(4096, 4096)])
    assert board.asked == ["medium", "hash 0 4096", "hash 4096 4096"]
    target.flush()
    target.read(0, 5)
    target.holds(0, bytearray(1 << 20))
    assert board.asked[3:] == ["medium"]


@pytest.mark.parametrize(
    ("text", "serial", "names", "seconds"),
    [
        ("erofs-edge board|is 47|is a|is b|is |.|unpacks 4000000 20", "47", ("a", "b"), 5e-8),
        ("erofs-edge board|is |.|unpacks 4000000 0", "", (), 0),
        ("erofs-edge board|is 1|.|unpacks 0 7", "1", (), 0),
        ("erofs-edge board|is 1|.|unpacks -4 7", "1", (), 0),
        ("erofs-edge board|is 1|.|unpacks ٤ ²", "1", (), 0),
        ("erofs-edge board|.|", "", (), None),
        ("erofs-edge board|.", "", (), None),
        ("erofs-edge board|is 1|.||blake2b", "1", (), None),
    ],
)
def test_what_a_board_says_of_itself(text: str, serial: str, names: tuple[str, ...], seconds: float | None) -> None:
    said = control.described(text)
    assert said is not None and said.digests == tuple(["blake2b"] * text.endswith("blake2b"))
    assert said[:3] == (serial, names, seconds if seconds is None else pytest.approx(seconds))
    board = Board(bytes(1 << 20), says=text)
    target = ProvisionTarget(cast("Connection", board), cast("Connection", board))
    assert (target.identity.serial, target.identity.product, board.asked) == (serial, names[0] if names else "", [])
    if seconds is not None:
        assert (target.effort.byte, board.asked) == (pytest.approx(seconds), [])


@pytest.mark.parametrize(("answer", "seconds"), [("unpacks 4000000 20", 5e-8), ("error unknown", 0.0), ("", 0.0)])
def test_a_board_is_asked_once_how_long_it_unpacks(
    monkeypatch: pytest.MonkeyPatch, answer: str, seconds: float
) -> None:
    """When somebody needs it; an older board has no answer. Its time does not count as that of a question."""
    board = Board(bytes(1 << 20), says="erofs-edge board|is 1|.")
    real = board._answer
    monkeypatch.setattr(board, "_answer", lambda name, *rest: answer if name == "unpacks" else real(name, *rest))
    target = ProvisionTarget(cast("Connection", board), cast("Connection", board))
    assert board.asked == []
    for _ in range(2):
        assert (target.effort.request, target.effort.byte) == (0.0, pytest.approx(seconds))
    assert board.asked == ["unpacks"]


@pytest.mark.parametrize("text", ["", "a disk", "erofs-edge board|is 1|is a", "erofs-edge boards|is 1|."])
def test_a_board_that_says_nothing_of_itself_is_asked(text: str) -> None:
    assert control.described(text) is None
    board = Board(bytes(1 << 20), says=text)
    ProvisionTarget(cast("Connection", board), cast("Connection", board))
    assert board.asked == control.WHO


def test_runs_of_ranges_are_asked_for_together() -> None:
    blocks = [(at, 4096) for at in range(0, 40960, 4096)]
    assert runs(blocks) == [(4096, 0, 10)]
    assert runs([*blocks[:3], *blocks[5:7], (1 << 20, 1 << 20), (2 << 20, 1 << 20)]) == [
        (4096, 0, 3), (4096, 20480, 2), (1 << 20, 1 << 20, 1), (1 << 20, 2 << 20, 1),
    ]  # fmt: skip
    long = [(at, 65536) for at in range(0, 3 * control.SPAN_MAX, 65536)]
    assert [count for _, _, count in runs(long)] == [control.SPAN_MAX // 65536] * 3
