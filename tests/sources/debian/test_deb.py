# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources.samples import ar_bytes, control_text, deb_bytes, entry, link_groups, rows, tar_bytes

from erofs_edge.errors import SourceError
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.ar import ArMember, ar_members
from erofs_edge.sources.debian.deb import Package, parse_control, read_deb, read_debs
from erofs_edge.sources.directory import scan

FILES = [
    entry("./", kind=tarfile.DIRTYPE),
    entry("./etc/", kind=tarfile.DIRTYPE),
    entry("./etc/tiny.conf", b"[x]\n", mtime=1_700_000_000),
    entry("./usr/bin/tiny", b"#!/bin/sh\n", mode=0o4755, gid=42),
]
INFO = {
    "postinst": b"#!/bin/sh\nexit 0\n",
    "config": b"#!/bin/sh\n# \xff\n",
    "conffiles": b"/etc/tiny.conf\nremove-on-upgrade /etc/old.conf\n",
    "triggers": b"activate-noawait ldconfig\n",
    "md5sums": b"0123456789abcdef0123456789abcdef  usr/bin/tiny\n",
    "templates": b"Template: tiny/x\n",
}


def build(folder: Path, name: str, compression: str = "xz") -> Path:
    """A package of a folder (with DEBIAN/control in it) by the real tool."""
    target = folder.parent / f"{name}.deb"
    command = ["dpkg-deb", "--root-owner-group", f"-Z{compression}", "--build", folder, target]
    subprocess.run(command, check=True, capture_output=True)
    return target


def sample_root(folder: Path, name: str = "tiny", version: str = "1:2.0~rc1-3+b1") -> Path:
    root = folder / name
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN").chmod(0o755)  # dpkg-deb wants that, whatever the umask
    (root / "DEBIAN/control").write_text(control_text(name, version, Depends="a, b (>= 1)", Multi_Arch="same"))
    (root / "DEBIAN/postinst").write_text("#!/bin/sh\n")
    (root / "DEBIAN/postinst").chmod(0o755)
    (root / "DEBIAN/conffiles").write_text("/etc/x.conf\n")
    (root / "etc").mkdir()
    (root / "etc/x.conf").write_text("x")
    (root / "usr/lib/deep/er").mkdir(parents=True)
    (root / "usr/lib/big").write_bytes(os.urandom(100_000) + bytes(100_000))
    (root / "usr/lib/link").symlink_to("../lib/big")
    os.link(root / "usr/lib/big", root / "usr/lib/deep/twin")
    (root / "usr/lib/suid").write_bytes(b"s")
    (root / "usr/lib/suid").chmod(0o4755)
    (root / ("usr/lib/" + "n" * 200)).write_bytes(b"long name")
    Path(os.fsdecode(os.fsencode(root) + b"/usr/lib/\xe9")).write_bytes(b"latin")
    for path in root.rglob("*"):
        os.utime(path, ns=(0, 1_700_000_123 * 10**9), follow_symlinks=False)
    return root


@pytest.mark.parametrize("compression", ["xz", "gzip", "none", "zstd"])
def test_what_dpkg_deb_builds(tmp_path: Path, cache: Cache, compression: str) -> None:
    deb = build(sample_root(tmp_path), "tiny", compression)
    package = read_deb(deb, cache)
    assert (package.name, package.version, package.arch) == ("tiny", "1:2.0~rc1-3+b1", "arm64")
    assert package.control["Depends"] == "a, b (>= 1)"
    assert package.control["Multi-Arch"] == "same"
    assert package.control["Description"] == "a test\n of packages"
    assert package.scripts == {"postinst": b"#!/bin/sh\n"}
    assert package.conffiles == ["/etc/x.conf"]
    assert package.triggers == b""
    subprocess.run(["dpkg-deb", "-x", deb, tmp_path / "theirs"], check=True)
    theirs = scan(tmp_path / "theirs")
    ours = package.data
    assert rows(ours, directory_times=False).keys() == rows(theirs).keys()
    for path, row in rows(theirs, directory_times=False).items():
        found = rows(ours, directory_times=False)[path]
        assert found[0] == row[0]
        assert found[3:] == row[3:]
        assert found[1:3] == (0, 0)
    assert link_groups(ours) == link_groups(theirs) != []
    listed = subprocess.run(["dpkg-deb", "-c", deb], check=True, capture_output=True).stdout.count(b"\n")
    assert len(package.files) == listed
    assert package.files[:2] == ["/.", "/etc"]


def write(folder: Path, data: bytes, name: str = "tiny.deb") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def test_every_part_of_a_package(tmp_path: Path, cache: Cache) -> None:
    package = read_deb(write(tmp_path, deb_bytes(FILES, info=INFO)), cache)
    assert package.scripts == {"postinst": INFO["postinst"], "config": INFO["config"]}
    assert package.conffiles == ["/etc/tiny.conf"], "remove-on-upgrade names what is not there"
    assert package.triggers == INFO["triggers"]
    assert package.md5sums == {"usr/bin/tiny": "0123456789abcdef0123456789abcdef"}
    assert {name: package.info[name] for name in INFO} == INFO
    assert package.info["control"] == control_text().encode()
    assert package.files == ["/.", "/etc", "/etc/tiny.conf", "/usr/bin/tiny"]
    assert rows(package.data)[b"/usr/bin/tiny"] == (0o104755, 0, 42, 0, (0, 0), b"", {}, b"#!/bin/sh\n")
    assert package.data.get("usr/bin/tiny").origin == "tiny"
    assert package.archive == tmp_path / "tiny.deb", "an uncompressed archive stays where it is"


@pytest.mark.parametrize("suffix", ["gz", "xz", "zst", ""])
def test_a_warm_read_unpacks_nothing(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    encoders = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress, "": bytes}
    name = f"data.tar.{suffix}".removesuffix(".")
    data = deb_bytes(data=encoders[suffix](tar_bytes(FILES)), data_name=name, info=INFO)
    deb = write(tmp_path, data)
    cold = read_deb(deb, cache)
    assert cold.archive == (cache.derived_path("deb-data", hashlib.sha256(data).hexdigest()) if suffix else deb)
    with monkeypatch.context() as patch:
        for name in ("decompressed", "ar_members", "unpack_archive", "parse_members", "read_members"):
            patch.setattr(f"erofs_edge.sources.debian.deb.{name}", lambda *_, **__: pytest.fail("read again"))
        warm = read_deb(deb, Cache(cache.root))
    assert {f: getattr(warm, f) for f in Package.__slots__} == {f: getattr(cold, f) for f in Package.__slots__}
    for folder in ("deb-data", "deb-index-1") if suffix else ("deb-index-1",):
        (kept,) = (path for path in (cache.root / "derived" / folder).rglob("*") if path.is_file())
        kept.write_bytes(kept.read_bytes()[:-700] + b"?" * 700)
        assert rows(read_deb(deb, Cache(cache.root)).data) == rows(cold.data)


def test_one_cache_object_reads_a_package_once(tmp_path: Path, cache: Cache) -> None:
    data = deb_bytes(data=lzma.compress(tar_bytes(FILES)), data_name="data.tar.xz", info=INFO)
    deb = write(tmp_path, data)
    package = read_deb(deb, cache)
    assert read_deb(deb, cache) is package
    package.data.root.children[b"usr"].xattrs[b"user.mark"] = b"1"
    assert not package.data.root.children[b"usr"].xattrs, "each tree is a new one"
    package.archive.write_bytes(package.archive.read_bytes()[:-700] + b"?" * 700)
    again = read_deb(deb, cache)
    assert again is not package and rows(again.data) == rows(read_deb(deb, Cache(tmp_path / "other")).data)
    deb.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(SourceError):
        read_deb(deb, cache)


def test_many_at_once(tmp_path: Path, cache: Cache) -> None:
    debs = {}
    for i in range(20):
        name = f"package{i}"
        debs[name] = write(tmp_path, deb_bytes(FILES, control=control_text(name, f"{i}")), f"{name}.deb")
    packages = read_debs(debs, cache, jobs=4)
    assert [package.name for package in packages] == sorted(debs)
    with pytest.raises(SourceError, match=r"package3\.deb: holds the package package3, not other"):
        read_debs({**debs, "other": debs["package3"]}, cache)
    write(tmp_path, b"broken", "package7.deb")
    with pytest.raises(SourceError, match=r"package7\.deb"):
        read_debs(debs, cache)


GOOD = [
    ("debian-binary", b"2.0\n"),
    ("control.tar", tar_bytes([entry("./control", control_text().encode())])),
    ("data.tar", tar_bytes(FILES)),
]
HOSTILE = {
    "empty": (b"", "not a Debian package"),
    "no ar": (b"PK\3\4" * 100, r"no ar magic"),
    "nothing inside": (ar_bytes([]), "first member is not debian-binary"),
    "other order": (ar_bytes([GOOD[1], GOOD[0], GOOD[2]]), "first member is not debian-binary"),
    "swapped": (ar_bytes([GOOD[0], GOOD[2], GOOD[1]]), "member 'data.tar' stands where control.tar belongs"),
    "format 3": (ar_bytes([("debian-binary", b"3.0\n"), *GOOD[1:]]), "not a Debian package of format 2.0"),
    "long format": (ar_bytes([("debian-binary", b"2." * 99), *GOOD[1:]]), "not a Debian package of format 2.0"),
    "no data": (ar_bytes(GOOD[:2]), "1 archives inside"),
    "more data": (ar_bytes([*GOOD, ("data.tar", b"")]), "3 archives inside"),
    "odd compression": (ar_bytes([*GOOD[:2], ("data.tar.lzma", b"")]), "'data.tar.lzma' stands where data.tar"),
    "size without end": (ar_bytes(GOOD)[:-3000], "truncated: member 'data.tar' needs 3000 bytes more"),
    "header cut": (ar_bytes(GOOD) + b"x" * 30, "damaged ar header"),
    "header end": (ar_bytes(GOOD).replace(b"`\n", b"'\n", 1), r"offset 0x8: damaged ar header"),
    "size of letters": (ar_bytes(GOOD).replace(b"4         `", b"0x4       `", 1), "damaged size"),
    "too many members": (ar_bytes([GOOD[0], *([("_x", b"")] * 70), *GOOD[1:]]), "damaged ar header"),
    "damaged data": (deb_bytes(data=lzma.compress(bytes(9999))[:-20], data_name="data.tar.xz"), "data.tar.xz: damaged"),
    "damaged control": (ar_bytes([GOOD[0], ("control.tar.gz", b"\x1f\x8b" + b"x" * 40), GOOD[2]]), "tar.gz: damaged"),
    "no control": (ar_bytes([GOOD[0], ("control.tar", tar_bytes([entry("./x")])), GOOD[2]]), "has no control file"),
    "control is a link": (
        ar_bytes([GOOD[0], ("control.tar", tar_bytes([entry("control", kind=b"2", linkname="/etc/passwd")])), GOOD[2]]),
        "has no control file",
    ),
    "no name": (deb_bytes(control="Version: 1\n"), "no usable field Package"),
    "odd name": (deb_bytes(control=control_text("../x")), "no usable field Package"),
    "odd version": (deb_bytes(control=control_text("tiny", "1/../2")), "no usable field Version"),
    "no architecture": (deb_bytes(control="Package: tiny\nVersion: 1\n"), "no usable field Architecture"),
    "no field": (deb_bytes(control=control_text() + "???\n"), "line 7 of the control file is no field"),
    "climbing name": (deb_bytes([entry("../x", b"1")]), "data.tar.*'../x': its name climbs out"),
    "absolute name": (deb_bytes([entry("/x", b"1")]), "data.tar.*'/x': its name is absolute"),
    "cut data": (deb_bytes(data=tar_bytes(FILES)[:1500]), "data.tar.*truncated"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=list(HOSTILE))
def test_malformed_packages(tmp_path: Path, cache: Cache, data: bytes, message: str) -> None:
    deb = write(tmp_path, data)
    with pytest.raises(SourceError, match=message) as caught:
        read_deb(deb, cache)
    assert str(deb) in str(caught.value)
    assert [path for path in cache.root.rglob("*") if path.is_file()] == []


def test_a_bomb_in_the_control_archive(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erofs_edge.sources.debian.deb.MAX_CONTROL", 1 << 20)
    for name, encode in (("control.tar.xz", lambda data: lzma.compress(data, preset=0)), ("control.tar", bytes)):
        bomb = encode(tar_bytes([entry("./control", bytes(3 << 20))]))
        with pytest.raises(SourceError, match=r"control\.tar.* holds more than 1 MiB"):
            read_deb(write(tmp_path, ar_bytes([GOOD[0], (name, bomb), GOOD[2]])), cache)


def test_a_missing_package(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(SourceError, match=r"none\.deb: cannot read: No such file"):
        read_deb(tmp_path / "none.deb", cache)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_damage_anywhere_is_an_error_or_another_package(tmp_path: Path, cache: Cache, data: st.DataObject) -> None:
    broken = bytearray(deb_bytes(FILES, info=INFO))
    if data.draw(st.booleans()):
        del broken[data.draw(st.integers(0, len(broken) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4)) if broken else 0):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    deb = write(tmp_path, bytes(broken))
    with contextlib.suppress(SourceError):
        rows(read_deb(deb, cache).data)


def test_ar_members(tmp_path: Path) -> None:
    path = write(tmp_path, ar_bytes([("odd/", b"123"), ("sixteen-letters!", b""), ("last", b"45")]))
    assert ar_members(path) == [ArMember("odd", 68, 3), ArMember("sixteen-letters!", 132, 0), ArMember("last", 192, 2)]


def test_control_fields() -> None:
    text = "Package: a1\nVersion: 1\nArchitecture:all\nEmpty:\nConffiles:\n /etc/a b\n\t/c\nX-y: : z \n"
    fields = parse_control(text, "w")
    assert fields["Conffiles"] == "\n /etc/a b\n\t/c"
    assert (fields["Architecture"], fields["Empty"], fields["X-y"]) == ("all", "", ": z")
