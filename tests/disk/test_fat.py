# SPDX-License-Identifier: Apache-2.0
"""FAT volumes: fsck.fat finds no fault, mtools reads everything back, and two builds are equal."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erofs_edge.disk.fat import build_fat, plan_geometry
from erofs_edge.disk.fat_names import aliases, check_label, check_name, long_entries
from erofs_edge.errors import CapacityError, FormatError, SourceError

MIB = 1 << 20
EPOCH = 1_700_000_001
Oracle = Callable[[str], str]

FILES: dict[str, bytes] = {
    "start4.elf": bytes(range(256)) * 5000,
    "config.txt": b"arm_64bit=1\n",
    "KERNEL8.IMG": b"x",
    "bcm2711-rpi-4-b.dtb": b"\xd0\x0d\xfe\xed" * 9000,
    "overlays/a long name of an overlay.dtbo": b"y" * 4096,
    "overlays/sub/deep/αβγ.txt": b"z",
    "empty": b"",
    "a.b.c.d": b"dots",
    ".hidden": b"h",
    "long name 1.txt": b"1",
    "long name 2.txt": b"2",
    "LONGNA~1.TXT": b"3",
    "thirteen chars": b"",
    "x" * 255: b"longest",
} | {f"many/file number {i}.x": b"%d" % i for i in range(300)}

GEOMETRIES = [
    (3 * MIB, 512, 16, 512),
    (16 * MIB, 512, 16, 2048),
    (40 * MIB, 512, 32, 512),
    (64 * MIB, 512, 32, 512),
    (256 * MIB, 512, 32, 2048),
    (20 << 30, 512, 32, 4096),
    (64 * MIB, 4096, 16, 4096),
    (300 * MIB, 4096, 32, 4096),
]


def build(out: Path, files: Mapping[str, Path | bytes] = FILES, size: int = 64 * MIB, sector: int = 512) -> Path:
    build_fat(files, out, size=size, label="firmware", serial=0x1234ABCD, epoch=EPOCH, sector=sector)
    return out


def mtools(tool: str, image: Path, *arguments: str) -> bytes:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    done = subprocess.run([tool, "-i", image, *arguments], capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def fsck(oracle: Oracle, image: Path) -> None:
    done = subprocess.run([oracle("fsck.fat"), "-n", image], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if not line.startswith("fsck.fat")]
    assert len(lines) == 1, done.stdout  # the count of files and clusters, and no complaint


@pytest.mark.oracle
@pytest.mark.parametrize(("size", "sector", "bits", "cluster"), GEOMETRIES)
def test_checked_and_read_back(size: int, sector: int, bits: int, cluster: int, oracle: Oracle, tmp_path: Path) -> None:
    geometry = plan_geometry(size, sector)
    assert (geometry.bits, geometry.cluster) == (bits, cluster)
    assert geometry.data_start % max(4096, cluster) == 0
    image = build(tmp_path / "fat", size=size, sector=sector)
    assert image.stat().st_size == size
    assert image.stat().st_blocks * 512 < 4 * MIB  # sparse
    fsck(oracle, image)
    listing = mtools(oracle("mdir"), image, "-/", "-b", "::").decode()
    assert sorted(line.removeprefix("::/") for line in listing.splitlines() if not line.endswith("/")) == sorted(FILES)
    for name in ("start4.elf", "overlays/a long name of an overlay.dtbo", "many/file number 299.x", "x" * 255):
        assert mtools(oracle("mtype"), image, f"::{name}") == FILES[name]
    assert b"2023-11-14  22:13" in mtools(oracle("mdir"), image, "::config.txt")
    head = mtools(oracle("mdir"), image, "::config.txt")
    assert b"FIRMWARE" in head
    assert b"1234-ABCD" in head


@pytest.mark.oracle
def test_everything_comes_back(oracle: Oracle, tmp_path: Path) -> None:
    image = build(tmp_path / "fat")
    (tmp_path / "back").mkdir()
    mtools(oracle("mcopy"), image, "-s", "-m", "::", str(tmp_path / "back"))
    found = {str(p.relative_to(tmp_path / "back")): p for p in (tmp_path / "back").rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == FILES
    assert {int(path.stat().st_mtime) for path in found.values()} == {EPOCH - 1}  # FAT has steps of two seconds


NAME = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(
    lambda name: not set(name) & set('"*/:<>?\\|') and name[-1] not in ". " and name[0] != " "
)


@pytest.mark.oracle
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    files=st.dictionaries(NAME, st.binary(max_size=3000), max_size=30),
    folder=NAME,
    size=st.sampled_from([4, 40]),
)
def test_any_files(files: dict[str, bytes], folder: str, size: int, oracle: Oracle, tmp_path: Path) -> None:
    unique = {name.upper(): name for name in files}
    tree = {f"{folder}/{name}": files[name] for name in unique.values()}
    image = build(tmp_path / "fat", tree, size * MIB)
    fsck(oracle, image)
    listing = mtools(oracle("mdir"), image, "-/", "-b", "::").decode()
    assert len([line for line in listing.splitlines() if not line.endswith("/")]) == len(tree)


@pytest.mark.root
def test_the_kernel_mounts_it(needs_root: None, tmp_path: Path) -> None:
    if "\tvfat\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no vfat")
    image, mount = build(tmp_path / "fat"), tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["mount", "-t", "vfat", "-o", "loop,ro,utf8,tz=UTC", image, mount], check=True)
    try:
        found = {str(p.relative_to(mount)): p.read_bytes() for p in mount.rglob("*") if p.is_file()}
    finally:
        subprocess.run(["umount", mount], check=True)
    assert found == FILES


def test_bytes_depend_on_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled = dict(reversed(FILES.items()))
    on_disk: dict[str, Path | bytes] = {}
    for number, (name, content) in enumerate(shuffled.items()):
        path = tmp_path / f"source{number}"
        path.write_bytes(content)
        on_disk[name] = path
    first = build(tmp_path / "first").read_bytes()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert build(tmp_path / "second", on_disk).read_bytes() == first
    assert hashlib.sha256(first).hexdigest() == "bad239662f74a875d984a06d0170fde5dfca203cb4549ccc51f5215bf0693163"


def test_golden_boot_sector(tmp_path: Path) -> None:
    raw = build(tmp_path / "fat", {"A": b"a"}).read_bytes()
    assert raw[:36].hex() == "eb58904d5357494e342e3100020126000200000000f80000200040000000000000000200"
    assert raw[6 * 512 : 8 * 512] == raw[:512] + raw[512:1024]
    assert raw[512:516] + raw[996:1000] == b"RRaArrAa"


def test_short_names() -> None:
    made = aliases(["README", "CONFIG.TXT", "LONG NAME.TXT", "LONGNAME1.TXT", ".PROFILE", "A.B.C", "É", "LONGNA~1.TXT"])
    assert made["CONFIG.TXT"] == b"CONFIG  TXT"
    assert made["README"] == b"README     "
    assert made["LONGNA~1.TXT"] == b"LONGNA~1TXT"
    assert made["LONG NAME.TXT"] == b"LONGNA~2TXT"
    assert made["LONGNAME1.TXT"] == b"LONGNA~3TXT"
    assert made[".PROFILE"] == b"PROFIL~1   "
    assert made["A.B.C"] == b"AB~1    C  "
    assert len(set(made.values())) == len(made)


def test_many_aliases_stay_unique() -> None:
    keys = [f"SAME LONG START {i}.BIN" for i in range(2000)]
    assert len(set(aliases(keys).values())) == 2000


def test_long_entries_golden() -> None:
    [entry] = long_entries("config.txt", b"CONFIG  TXT")
    assert entry[0] == 0x41
    assert entry[11:14] == bytes([0x0F, 0, 0x39])
    assert entry[1:11].decode("utf-16-le") == "confi"
    assert entry[28:32] == b"\xff\xff\xff\xff"
    assert not long_entries("CONFIG.TXT", b"CONFIG  TXT")


@pytest.mark.parametrize("name", ["", "a:b", "a*", "tab\t", "end.", "end ", "x" * 256, "\udc80", ".", ".."])
def test_names_that_fat_cannot_hold(name: str) -> None:
    with pytest.raises(FormatError):
        check_name(name, "path")


@pytest.mark.parametrize("label", ["", "twelve chars", "dot.ted", "ü"])
def test_labels_that_fat_cannot_hold(label: str) -> None:
    with pytest.raises(FormatError):
        check_label(label)


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "fat"
    with pytest.raises(FormatError, match="same"):
        build(out, {"a": b"", "A": b""})
    with pytest.raises(FormatError, match="directory"):
        build(out, {"a": b"", "a/b": b""})
    with pytest.raises(SourceError):
        build(out, {"a": tmp_path / "missing"})
    with pytest.raises(CapacityError, match="more") as caught:
        build(out, {"big": bytes(4 * MIB), "small": b"x"}, 4 * MIB)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("largest: big (4194304 bytes)")
    with pytest.raises(CapacityError):
        build(out, {}, MIB)
    with pytest.raises(CapacityError, match="names"):
        build(out, {f"{i}": b"" for i in range(520)}, 4 * MIB)  # FAT16's root directory has 512
    assert os.listdir(tmp_path) == []


@pytest.mark.oracle
def test_a_full_volume(oracle: Oracle, tmp_path: Path) -> None:
    geometry = plan_geometry(4 * MIB)
    room = geometry.clusters * geometry.cluster
    fsck(oracle, build(tmp_path / "fat", {"A": bytes(room)}, 4 * MIB))
    with pytest.raises(CapacityError):
        build(tmp_path / "fat", {"A": bytes(room + 1)}, 4 * MIB)


def test_a_file_that_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(1000))

    def shrink(*arguments: object) -> bytes:
        os.truncate(source, 10)
        return b""

    monkeypatch.setattr("erofs_edge.disk.fat._boot_sector", lambda *_: shrink() or bytes(512))
    with pytest.raises(SourceError, match="changed"):
        build(tmp_path / "fat", {"A": source})
    assert os.listdir(tmp_path) == ["source"]
