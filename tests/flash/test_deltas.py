# SPDX-License-Identifier: Apache-2.0
"""How a capable target saves traffic: digests instead of data, copies from another slot, deltas against it."""

from __future__ import annotations

import errno
import hashlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest
from sweep import quiet, started

from erofs_edge.errors import VerificationError
from erofs_edge.flash.delta import PACKED, TOGETHER, Frame, Reference, frames
from erofs_edge.flash.execute import RegionResult, flash
from erofs_edge.flash.image import Image
from erofs_edge.flash.plan import Region
from erofs_edge.flash.prepare import Prepared, Wish, prepare
from erofs_edge.flash.readback import Expected
from erofs_edge.flash.survey import Findings, survey
from erofs_edge.flash.target import Ability
from erofs_edge.simulator.disk import SimulatedDisk
from erofs_edge.simulator.images import Sizes, disk_image
from erofs_edge.simulator.target import SimulatedTarget
from erofs_edge.threads import Threads

CLEVER = Ability.READ | Ability.HASH | Ability.COPY | Ability.PATCH
LARGE = Sizes(boot=64 << 10, system=4 << 20)
BLOCKS = 900


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("images")
    return {version: disk_image(folder / f"v{version}.img", version, LARGE, BLOCKS) for version in (1, 2)}


def run(
    disk: SimulatedDisk,
    image: Path,
    abilities: Ability,
    kind: type[SimulatedTarget] = SimulatedTarget,
    **more: object,
) -> tuple[SimulatedTarget, Prepared, list[RegionResult]]:
    hash_name = str(more.pop("hash_name", "sha256"))
    there = kind(disk, abilities, hash_name=hash_name)
    prepared = prepare(image, there, Wish(**more), quiet)  # type: ignore[arg-type]
    done = flash(prepared.plan, there, quiet, found=prepared.found, known=prepared.known)
    return there, prepared, done


def holed(images: dict[int, Path]) -> SimulatedDisk:
    """v1 in slot a, nothing in slot b."""
    raw = bytearray(images[1].read_bytes())
    with Image(images[1]) as image:
        table = image.table()
    assert table is not None
    for name in ("boot_b", "system_b"):
        start, end = table.places()[name]
        raw[start:end] = bytes(end - start)
    return SimulatedDisk(raw)


@pytest.mark.parametrize("hash_name", ["sha256", "crc32"])
def test_a_target_that_hashes_is_asked_for_digests(hash_name: str, images: dict[int, Path]) -> None:
    disk = SimulatedDisk(bytearray(images[1].read_bytes()))
    there, _, _ = run(disk, images[1], Ability.READ | Ability.HASH, hash_name=hash_name)
    assert there.sent == 0
    assert there.answered < 160_000  # the slot state and the table, and a digest for each MiB
    disk.rot(Random(1), [5 << 20])
    found = run(disk, images[2], Ability.READ | Ability.HASH, hash_name=hash_name)[0]
    begun = started(disk.memory)
    assert begun is not None and begun.slot == "B"
    assert found.sent < 260_000


def test_the_first_question_is_for_whole_mebibytes(images: dict[int, Path]) -> None:
    asked: list[list[tuple[int, int]]] = []

    class Asked(SimulatedTarget):
        def digests(self, ranges: object) -> list[bytes]:
            asked.append(list(ranges))  # type: ignore[call-overload]
            return super().digests(ranges)  # type: ignore[arg-type]

    disk = SimulatedDisk(bytearray(images[1].read_bytes()))
    there = Asked(disk, Ability.READ | Ability.HASH)
    with Image(images[1]) as image:
        table = image.table()
        assert table is not None
        start, end = table.places()["system_b"]
        region = Region("system_b", start, end, ((start, start + (3 << 20)),))
        disk.memory[start + 70_000] ^= 1
        found = survey(region, image, there)
    assert found.write == [(start + 69632, start + 73728)]
    assert [len(ranges) for ranges in asked[:3]] == [3, 16, 16]


@pytest.mark.parametrize(
    ("abilities", "verify", "made"),
    [(Ability.READ, True, True), (Ability.READ, False, False), (Ability.READ | Ability.HASH, True, False)],
)
def test_digests_are_made_where_they_are_compared(
    abilities: Ability, verify: bool, made: bool, images: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a target reads back is compared with digests of what was written; data that the target hashes itself, or
    that nobody reads back, is not hashed here."""
    remembered: list[int] = []
    plain = Expected.remember

    def remember(self: Expected, pool: Threads, offset: int, data: bytes) -> None:
        remembered.append(offset)
        plain(self, pool, offset, data)

    monkeypatch.setattr(Expected, "remember", remember)
    there = SimulatedTarget(holed(images), abilities)
    prepared = prepare(images[2], there, Wish(full=True, slot="b"), quiet)
    flash(prepared.plan, there, quiet, verify=verify, found=prepared.found)
    assert bool(remembered) == made
    begun = started(there.disk.memory)
    assert begun is not None and begun.slot == "B"


class Blake2b(SimulatedTarget):
    """Hashes like the provisioning system."""

    @property
    def hash_name(self) -> str:
        return "blake2b"

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return [hashlib.blake2b(self.disk.memory[at : at + size]).digest() for at, size in ranges]


@pytest.mark.parametrize("kind", [SimulatedTarget, Blake2b])
@pytest.mark.parametrize("baseline", [False, True])
def test_blocks_of_another_slot_are_copied(
    baseline: bool, kind: type[SimulatedTarget], images: dict[int, Path]
) -> None:
    disk = holed(images)
    more = {"baseline": images[1]} if baseline else {}
    there, prepared, done = run(disk, images[2], Ability.READ | Ability.HASH | Ability.COPY, kind, **more)
    new = sum(found.write_bytes for found in prepared.todo.values())
    assert there.copied == sum(result.copied for result in done) > BLOCKS * 4096 * 0.9
    assert there.sent < new + 100_000
    begun = started(disk.memory)
    assert begun is not None and begun.slot == "B"


def test_a_target_with_checksums_alone_copies_what_an_image_here_proves(images: dict[int, Path]) -> None:
    """Such as a U-Boot console: crc32 cannot tell single blocks apart reliably, but can show that a slot has an
    image."""
    abilities = Ability.READ | Ability.HASH | Ability.COPY
    assert run(holed(images), images[2], abilities, hash_name="crc32")[0].copied == 0
    there, _, _ = run(holed(images), images[2], abilities, hash_name="crc32", baseline=images[1])
    assert there.copied > BLOCKS * 4096 * 0.9
    begun = started(there.disk.memory)
    assert begun is not None and begun.slot == "B"


def test_copies_are_found_wherever_they_are(images: dict[int, Path], tmp_path: Path) -> None:
    """An image in which all blocks have moved by one."""
    disk = holed(images)
    moved = tmp_path / "moved.img"
    raw = bytearray(images[1].read_bytes())
    with Image(images[1]) as image:
        table = image.table()
    assert table is not None
    start, _ = table.places()["system_a"]
    raw[start : start + BLOCKS * 4096] = raw[start + 4096 : start + BLOCKS * 4096] + b"\x01" * 4096
    moved.write_bytes(raw)
    there, _, _ = run(disk, moved, Ability.READ | Ability.HASH | Ability.COPY)
    assert there.copied >= (BLOCKS - 1) * 4096


def test_deltas_against_another_slot(images: dict[int, Path]) -> None:
    disk = holed(images)
    there, prepared, done = run(disk, images[2], CLEVER, baseline=images[1])
    assert prepared.known
    new = 3 * 4096 + (60 << 10)  # blocks that exist nowhere, and the boot image
    assert there.sent < new + 4 * (16 << 10) + 4 * (4 << 10) + 40_000
    assert sum(result.written for result in done) >= BLOCKS * 4096
    begun = started(disk.memory)
    assert begun is not None and begun.slot == "B"


def test_a_delta_writes_only_blocks_that_differ(images: dict[int, Path]) -> None:
    disk = SimulatedDisk(bytearray(images[1].read_bytes()))
    there, prepared, done = run(disk, images[2], CLEVER, baseline=images[1])
    wrong = sum(found.write_bytes for found in prepared.todo.values())
    assert there.patched <= wrong == sum(result.written for result in done)


class Asked(SimulatedTarget):
    """Records the requests."""

    def digests(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.asked = [*getattr(self, "asked", []), *ranges]
        return super().digests(ranges)


@pytest.mark.parametrize(("rotten", "smaller"), [(False, 0), (True, 32)])
def test_a_slot_that_holds_the_older_image_is_asked_for_whole_mebibytes(
    rotten: bool, smaller: int, images: dict[int, Path]
) -> None:
    """The differences follow from the two local images; smaller pieces are requested where the slot has something
    else."""
    found = []
    with Image(images[1]) as image:
        table = image.table()
    assert table is not None
    start, _ = table.places()["system_b"]
    for baseline in (None, images[1]):
        raw = bytearray(images[1].read_bytes())
        if rotten:
            raw[start + (1 << 20) + 5] ^= 1
        there = Asked(SimulatedDisk(raw), Ability.READ | Ability.HASH | Ability.PATCH)
        prepared = prepare(images[2], there, Wish(baseline=baseline), quiet)
        assert prepared.plan.update is not None and prepared.plan.update.slot == "B"
        found.append(prepared.todo)
    assert found[0] == found[1]
    assert sum(findings.write_bytes for findings in found[0].values()) >= (3 + rotten) * 4096
    small = [at for at, size in there.asked if size in (64 << 10, 4096) and at >= table.places()["system_a"][0]]
    assert len(small) == smaller, "of the slot that runs none either"


def test_a_baseline_that_no_slot_holds(images: dict[int, Path]) -> None:
    disk = holed(images)
    disk.rot(Random(1), [2 << 20])
    _, prepared, _ = run(disk, images[2], CLEVER, baseline=images[1])
    assert not prepared.known
    begun = started(disk.memory)
    assert begun is not None and begun.slot == "B"


def test_without_a_baseline_what_is_sent_is_packed(tmp_path: Path) -> None:
    """A target that can decompress gets compressed data."""
    images = [disk_image(tmp_path / f"v{n}.img", n, LARGE, BLOCKS) for n in (1, 2)]
    with Image(images[1]) as image:
        table = image.table()
    assert table is not None
    start, _ = table.places()["system_a"]
    with images[1].open("r+b") as file:
        file.seek(start)
        file.write(b"the same again " * 100_000)
    there, _, done = run(SimulatedDisk(bytearray(images[0].read_bytes())), images[1], CLEVER)
    assert sum(result.written for result in done) > 1_400_000
    assert there.sent < 300_000


def test_what_a_lying_target_makes_is_found_out(images: dict[int, Path]) -> None:
    """The digests show a copy or delta that went wrong on the device, and the slot stays closed."""

    class Sloppy(SimulatedTarget):
        def copy(self, source: int, offset: int, length: int) -> None:
            super().copy(source, offset, length - 1)

        def patch(self, source: int, source_length: int, offset: int, length: int, delta: bytes) -> None:
            super().patch(source, source_length, offset, length, delta)
            self.disk.memory[offset] ^= 1

    for abilities in (CLEVER, CLEVER & ~Ability.PATCH):
        there = Sloppy(holed(images), abilities)
        prepared = prepare(images[2], there, Wish(baseline=images[1]), quiet)
        with pytest.raises(VerificationError):
            flash(prepared.plan, there, quiet, found=prepared.found, known=prepared.known)
        begun = started(there.disk.memory)
        assert begun is not None and begun.slot == "A"


def test_a_target_that_answers_nonsense_keeps_nothing(images: dict[int, Path]) -> None:
    """Digests of the wrong number or size prove nothing: everything is sent, and then the proof fails."""

    class Mad(SimulatedTarget):
        def digests(self, ranges: object) -> list[bytes]:
            return [b"x"] * 7

    there = Mad(holed(images), Ability.READ | Ability.HASH | Ability.COPY)
    prepared = prepare(images[2], there, Wish(slot="b"), quiet)
    assert sum(found.write_bytes for found in prepared.todo.values()) == sum(
        region.data_bytes for region in prepared.plan.contents
    )
    with pytest.raises(VerificationError):
        flash(prepared.plan, there, quiet, found=prepared.found, known=prepared.known)


def test_what_packs_and_what_does_not_take_turns(tmp_path: Path) -> None:
    """Sent in the order of the image, and all of it arrives; too little for any measurement of which way is faster."""
    random, sent = Random(8), list[tuple[str, int]]()
    parts = [random.randbytes(PACKED) if number % 3 == 1 else bytes([number + 1]) * PACKED for number in range(4)]
    (tmp_path / "image").write_bytes(b"".join(parts))

    class Told(SimulatedTarget):
        def write(self, offset: int, data: bytes | memoryview) -> int:
            sent.append(("plain", offset // PACKED))
            return super().write(offset, data)

        def patch(self, source: int, source_length: int, offset: int, length: int, delta: bytes) -> None:
            sent.append(("packed", offset // PACKED))
            super().patch(source, source_length, offset, length, delta)

    there = Told(SimulatedDisk.of_size(4 * PACKED), CLEVER)
    prepared = prepare(tmp_path / "image", there, Wish(full=True), quiet)
    (done,) = flash(prepared.plan, there, quiet, found=prepared.found)
    assert bytes(there.disk.memory) == b"".join(parts)
    assert sent == [("packed", 0), ("plain", 1), ("packed", 2)]
    assert done.written == done.verified == 4 * PACKED


def test_a_delta_that_does_not_unpack() -> None:
    there = SimulatedTarget(SimulatedDisk.of_size(1 << 20), CLEVER)
    for delta in (b"", b"nonsense", bytes(100)):
        with pytest.raises(OSError) as caught:
            there.patch(0, 4096, 8192, 4096, delta)
        assert caught.value.errno == errno.EBADMSG


@pytest.mark.oracle
def test_a_frame_is_what_zstd_makes(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    """Debian's `zstd -d --patch-from` decompresses it: what a device needs is in every distribution."""
    random = Random(4)
    old = random.randbytes(3 << 20)
    new = old[1_000_001:] + random.randbytes(5000) + old[:1_000_001]
    path = tmp_path / "new"
    path.write_bytes(new)
    with Image(path) as image:
        region = Region("r", 0, len(new), ((0, len(new)),))
        (frame,) = frames(region, Findings([(0, len(new))]), image, Reference(0, old))
    assert isinstance(frame, Frame)
    assert len(frame.data) < 12_000
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "delta.zst").write_bytes(frame.data)
    command = [oracle("zstd"), "-d", "--long=31", f"--patch-from={tmp_path / 'old'}", "-o", tmp_path / "out"]
    subprocess.run([*map(str, command), str(tmp_path / "delta.zst")], check=True, capture_output=True)
    assert (tmp_path / "out").read_bytes() == new


@pytest.mark.oracle
def test_frames_that_follow_each_other_go_as_one(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    """If there is nothing to refer to: not across data sent uncompressed, and no more than a board's memory takes."""
    random, window = Random(5), PACKED
    text = b"".join(random.choice((b"one ", b"two ")) * 1024 for _ in range(window // 4096))
    count = TOGETHER // window + 2
    new = text * count + random.randbytes(window) + text
    path = tmp_path / "new"
    path.write_bytes(new)
    with Image(path) as image:
        region = Region("r", 0, len(new), ((0, len(new)),))
        found = list(frames(region, Findings([(0, len(new))]), image, None))
    ranges = [piece for piece in found if not isinstance(piece, Frame)]
    packed = [piece for piece in found if isinstance(piece, Frame)]
    assert ranges == [(count * window, (count + 1) * window)]
    assert [(piece.start, piece.length) for piece in packed] == [
        (0, TOGETHER), (TOGETHER, 2 * window), ((count + 1) * window, window)
    ]  # fmt: skip
    assert all(piece.wrong == piece.length for piece in packed)
    there = SimulatedTarget(SimulatedDisk.of_size(len(new)), CLEVER)
    for piece in packed:
        (tmp_path / "delta.zst").write_bytes(piece.data)
        command = [oracle("zstd"), "-q", "-d", "-c", "--long=31", str(tmp_path / "delta.zst")]
        unpacked = subprocess.run(command, check=True, capture_output=True).stdout
        assert unpacked == new[piece.start : piece.start + piece.length]
        there.patch(0, 0, piece.start, piece.length, piece.data)
        assert there.disk.read(piece.start, piece.length) == unpacked
