# SPDX-License-Identifier: Apache-2.0
"""Hash trees: the same bytes as veritysetup, whatever the size, and images that no failure changes."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erofs_edge.errors import CapacityError, FormatError, UsageError
from erofs_edge.verity import blocks, tree
from erofs_edge.verity.tree import Superblock, VerityInfo, append, find_superblock, format_tree, root_hash, verify

UUID = bytes.fromhex("123456789abc4def8123456789abcdef")
SALT = bytes.fromhex("00112233445566778899aabbccddeeff")
Oracle = Callable[[str], str]


def pattern(blocks: int, block_size: int = 4096) -> bytes:
    """Blocks that differ from each other."""
    return b"".join(bytes([i % 251]) * (block_size - 4) + i.to_bytes(4, "little") for i in range(blocks))


def golden_image(path: Path) -> Path:
    path.write_bytes(b"".join(bytes([i % 251]) * 4096 for i in range(300)))
    return path


# root hash and sha256 of the hash device, from veritysetup 2.7.5 with SALT and UUID
GOLDEN = {
    ("sha256", 4096, 4096, SALT): (
        "34efb1c790862926819599c64e019b1f309a8ded49f01176757e55b0d8fe0f6f",
        "a404710948910e2075a96674dc915ddea13418d90a70b2c61cd558c64b037915",
    ),
    ("sha512", 4096, 4096, SALT): (
        "8492ff8d143b2a30626d8be52b86684c68ee87b098ce795559fe87222c6683c3"
        "179737d60333c58e95cac75a0c8e6dc992c984bfd44152e907f0a197c97e9ef4",
        "76b7eabcc6c9bce54f9e166fc7c13fdbabeb5bf4d1472855c063cd6523062693",
    ),
    ("sha256", 1024, 2048, b""): (
        "ea070242121fc355efe7e89e2fd572b855156ed89e934784cc5ddcca79f835f8",
        "5ba508409a4161704bf98ac11eb61ee03e862e64d0edf4a8311cce8064fc225f",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case: tuple[str, int, int, bytes], tmp_path: Path) -> None:
    algorithm, block_size, hash_block_size, salt = case
    image, tree = golden_image(tmp_path / "image"), tmp_path / "tree"
    info = format_tree(
        image, tree, uuid=UUID, salt=salt, block_size=block_size, hash_block_size=hash_block_size, algorithm=algorithm
    )
    assert (info.root_hash.hex(), hashlib.sha256(tree.read_bytes()).hexdigest()) == GOLDEN[case]
    assert info.size == tree.stat().st_size


def test_golden_superblock() -> None:
    raw = Superblock(UUID, SALT, 300).pack()
    assert len(raw) == 512
    assert raw[:64] == b"verity\0\0\x01\0\0\0\x01\0\0\0" + UUID + b"sha256".ljust(32, b"\0")
    assert raw[64:88] == bytes.fromhex("00100000 00100000 2c01000000000000 1000 000000000000")
    assert raw[88:104] == SALT
    assert not any(raw[104:])


def reference_root(data: bytes, salt: bytes, block_size: int) -> bytes:
    """The definition, word for word: hash all blocks, hash blocks of hashes, until one is left."""
    level = [hashlib.sha256(salt + data[i : i + block_size]).digest() for i in range(0, len(data), block_size)]
    while len(level) > 1:
        joined = b"".join(level)
        padded = joined.ljust(-(-len(joined) // block_size) * block_size, b"\0")
        level = [hashlib.sha256(salt + padded[i : i + block_size]).digest() for i in range(0, len(padded), block_size)]
    return level[0]


@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 16384, 16385])
def test_sizes_at_level_borders(count: int, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(pattern(count, 512))
    info = append(image, uuid=UUID, salt=SALT, block_size=512)
    assert info.root_hash == reference_root(pattern(count, 512), SALT, 512)
    assert (info.hash_offset, info.hash_start_block) == (count * 512, count + 1)
    assert info.size == image.stat().st_size
    assert find_superblock(image) == info.hash_offset
    assert verify(image, info).ok


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 200_000),
    bits=st.sampled_from([9, 10, 12, 16]),
    salt=st.binary(max_size=256),
    seed=st.integers(0, 255),
)
def test_any_size_and_salt(tmp_path: Path, size: int, bits: int, salt: bytes, seed: int) -> None:
    data = bytes((i * 7 + seed) & 0xFF for i in range(997)) * (size // 997 + 1)
    data = data[:size]
    image = tmp_path / "image"
    image.write_bytes(data)
    info = append(image, uuid=UUID, salt=salt, block_size=1 << bits)
    padded = data.ljust(info.data_blocks << bits, b"\0")
    assert image.read_bytes()[: len(padded)] == padded
    assert info.root_hash == reference_root(padded, salt, 1 << bits)
    assert info.root_hash == root_hash(info.superblock, lambda o, n: padded[o : o + n])
    assert verify(image, info.root_hash).ok


@pytest.mark.oracle
@pytest.mark.parametrize("sizes", [(4096, 4096), (1024, 1024), (512, 4096), (4096, 1024), (65536, 65536)])
@pytest.mark.parametrize("count", [1, 3, 300])
def test_veritysetup_accepts_ours(sizes: tuple[int, int], count: int, oracle: Oracle, tmp_path: Path) -> None:
    data, hashes = sizes
    separate, appended = tmp_path / "image", tmp_path / "appended"
    for path in (separate, appended):
        path.write_bytes(pattern(count, data))
    beside = format_tree(separate, tmp_path / "tree", block_size=data, hash_block_size=hashes)
    inside = append(appended, block_size=data, hash_block_size=hashes)
    assert beside.root_hash == inside.root_hash
    tool = oracle("veritysetup")
    _run(tool, "verify", separate, tmp_path / "tree", beside.root_hash.hex())
    _run(tool, "verify", appended, appended, inside.root_hash.hex(), f"--hash-offset={inside.hash_offset}")


@pytest.mark.oracle
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("count", [1, 130])
def test_ours_accepts_veritysetups(algorithm: str, count: int, oracle: Oracle, tmp_path: Path) -> None:
    image, tree = tmp_path / "image", tmp_path / "tree"
    image.write_bytes(pattern(count))
    tool = oracle("veritysetup")
    root = _root(_run(tool, "format", f"--hash={algorithm}", image, tree))
    assert verify(image, root, hash_device=tree).ok
    offset = f"--hash-offset={count * 4096}"
    root = _root(_run(tool, "format", f"--hash={algorithm}", f"--data-blocks={count}", offset, image, image))
    assert find_superblock(image) == count * 4096
    assert verify(image, root).ok
    assert not verify(image, bytes(len(root))).ok


def test_uuid_and_salt_come_from_the_content(tmp_path: Path) -> None:
    def made(data: bytes, name: str, **more: int) -> VerityInfo:
        path = tmp_path / name
        path.write_bytes(data)
        return append(path, **more)  # type: ignore[arg-type]

    first, again, other = made(b"a" * 5000, "x", jobs=1), made(b"a" * 5000, "y", jobs=3), made(b"b" * 5000, "z")
    assert first == again
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert first.salt != other.salt
    assert first.uuid != other.uuid
    mib = 1 << 20
    large = made(bytes(3 * mib), "large")
    assert made(bytes(mib) + b"x" + bytes(2 * mib - 1), "middle").root_hash != large.root_hash
    for changed in (b"x" + bytes(3 * mib - 1), bytes(3 * mib - 1) + b"x", bytes(3 * mib + 1)):
        assert made(changed, "changed").salt != large.salt
    assert (first.uuid[6] >> 4, first.uuid[8] >> 6) == (8, 2)


def test_order_survives_many_slices_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SLICE", 8192)
    image = tmp_path / "image"
    image.write_bytes(pattern(500))
    assert append(image, uuid=UUID, salt=SALT, jobs=7).root_hash == reference_root(pattern(500), SALT, 4096)


def test_progress_reaches_its_total(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(10_000))
    seen: list[tuple[int, int]] = []
    append(image, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] >= seen[-1][1] == 10_000


def test_refuses_a_second_tree(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))
    append(image)
    before = image.read_bytes()
    with pytest.raises(UsageError, match="already") as caught:
        append(image)
    assert caught.value.hint is not None
    assert "truncate -s 8192" in caught.value.hint
    assert image.read_bytes() == before


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device"), ValueError()])
def test_failure_leaves_the_image_as_it_was(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(pattern(3) + b"tail")

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr("erofs_edge.verity.tree.write_exactly", fail)
    with pytest.raises(CapacityError if isinstance(failure, OSError) else type(failure)):
        append(image)
    assert image.read_bytes() == pattern(3) + b"tail"
    assert os.listdir(tmp_path) == ["image"]


@pytest.mark.parametrize("size", [4096, 12_388, 600_000])
def test_a_killed_append_is_undone_by_the_next(size: int, tmp_path: Path) -> None:
    image, clean = tmp_path / "image", tmp_path / "clean"
    clean.write_bytes(pattern(150)[:size])
    append(clean)
    for killed_at in range(12):
        image.write_bytes(pattern(150)[:size])
        if (child := os.fork()) == 0:
            _append_and_die(image, killed_at)
        finished = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (find_superblock(image) is not None) == finished
        if not finished:
            append(image)
        assert image.read_bytes() == clean.read_bytes()
        if finished:
            break
    assert killed_at >= 3


def _append_and_die(image: Path, at_call: int) -> None:
    """append(), as if killed before its write or truncation number `at_call`; never returns."""
    calls = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal calls
            if calls == at_call:
                os._exit(9)
            calls += 1
            return real(*arguments)

        return call

    tree.write_exactly = counted(tree.write_exactly)  # type: ignore[assignment]
    os.ftruncate = counted(os.ftruncate)
    append(image)
    os._exit(0)


@pytest.mark.parametrize("hash_offset", [0, 512])
def test_failed_separate_tree_leaves_nothing(hash_offset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, tree = tmp_path / "image", tmp_path / "tree"
    image.write_bytes(pattern(3))
    tree.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("erofs_edge.verity.tree.write_exactly", fail)
    with pytest.raises(CapacityError, match="no space left for the verity tree"):
        format_tree(image, tree, hash_offset=hash_offset)
    assert sorted(os.listdir(tmp_path)) == ["image", "tree"]
    assert tree.read_bytes() == b"old"


def test_separate_tree_behind_something_else(tmp_path: Path) -> None:
    image, tree = tmp_path / "image", tmp_path / "tree"
    image.write_bytes(pattern(200))
    tree.write_bytes(b"\xff" * 40_000)
    info = format_tree(image, tree, hash_offset=8192)
    assert tree.read_bytes()[:8192] == b"\xff" * 8192
    assert verify(image, info, hash_device=tree).ok
    assert verify(image, info.root_hash, hash_device=tree, hash_offset=8192).ok
    assert info.hash_start_block == 3
    assert info.root_hash == reference_root(pattern(200), info.salt, 4096)  # what was there is not in it


def test_nonsense_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(5000))
    for options in ({"block_size": 1000}, {"block_size": 1 << 20}, {"hash_block_size": 3}, {"salt": bytes(257)}):
        with pytest.raises(UsageError):
            append(image, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="inside"):
        append(image, hash_offset=4096)
    with pytest.raises(UsageError, match="512"):
        append(image, hash_offset=8193)
    with pytest.raises(UsageError, match="whole number"):
        format_tree(image, tmp_path / "tree")
    image.write_bytes(bytes(4096))
    with pytest.raises(UsageError, match="append the tree"):
        format_tree(image, image)
    image.write_bytes(b"")
    with pytest.raises(FormatError):
        append(image)
    assert image.read_bytes() == b""


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _root(output: str) -> bytes:
    line = next(line for line in output.splitlines() if line.startswith("Root hash"))
    return bytes.fromhex(line.split(":")[1].strip())
