# SPDX-License-Identifier: Apache-2.0
"""Sources over one another: clashes, rules for owners, pins of the lock; an image underneath."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from sources.oci.images import files as layer
from sources.oci.images import image, write_layout
from sources.samples import control_text, deb_bytes, entry, rows, tar_bytes

from erofs_edge.erofs.write import WriteOptions, write_image
from erofs_edge.errors import ErofsEdgeError, ManifestError, VerificationError
from erofs_edge.manifest.load import load_system
from erofs_edge.manifest.model import Lock
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.lock import check_lock
from erofs_edge.sources.layers import pin_sources
from erofs_edge.sources.system import system_tree
from erofs_edge.tree import FileTree

Build = Callable[..., FileTree]
DIR = tarfile.DIRTYPE


@pytest.fixture
def build(tmp_path: Path, cache: Cache) -> Build:
    """`build(text, debs=…)`: the tree of a manifest beside which `put` has put files."""

    def made(text: str, debs: dict[str, bytes] | None = None, lock: Lock | None = None) -> FileTree:
        path = tmp_path / "m.yaml"
        path.write_text(f"system: m\n{text}")
        loaded = load_system(path)
        paths = {}
        for name, data in (debs or {}).items():
            paths[name] = tmp_path / f"{name}.deb"
            paths[name].write_bytes(data)
        lock = lock or lock_of(pin_sources(loaded, cache))
        return system_tree(loaded, lock, paths, cache).tree

    return made


def lock_of(pins: object) -> Lock:
    return msgspec.structs.replace(
        Lock(name="m", suite="trixie", arch="arm64", date=86400, requested={"system": []}, packages={"system": []}),
        sources=pins,
    )


def put(folder: Path, **contents: str) -> None:
    for name, text in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def texts(tree: FileTree) -> dict[str, str]:
    return {path.decode(): inode.read().decode() for path, inode in tree.walk() if inode.is_file}


TWO = "sources:\n  - directory: a\n  - directory: b\n"


def test_directories_join_and_equal_files_are_no_clash(tmp_path: Path, build: Build) -> None:
    put(tmp_path / "a", etc__one="1", etc__same="=")
    put(tmp_path / "b", etc__two="2", etc__same="=")
    assert texts(build(TWO)) == {"/etc/one": "1", "/etc/two": "2", "/etc/same": "="}


@pytest.mark.parametrize(("rule", "text"), [("replace", "b"), ("keep", "a")])
def test_a_clash_names_both_sides_and_the_rules(tmp_path: Path, build: Build, rule: str, text: str) -> None:
    put(tmp_path / "a", etc__motd="a")
    put(tmp_path / "b", etc__motd="b")
    with pytest.raises(ManifestError, match="/etc/motd is in directory a and in directory b") as caught:
        build(TWO)
    assert caught.value.where == f"{tmp_path}/m.yaml:4:5"
    assert caught.value.hint == "`clash: replace` here lets directory b win, `clash: keep` leaves that of directory a"
    assert texts(build(TWO + f"    clash: {rule}\n")) == {"/etc/motd": text}


@pytest.mark.parametrize(("one", "two"), [("x", "x__y"), ("x__y", "x")])
@pytest.mark.parametrize("rule", ["error", "replace", "keep"])
def test_a_file_against_a_directory(tmp_path: Path, build: Build, one: str, two: str, rule: str) -> None:
    put(tmp_path / "a", **{one: "a"})
    put(tmp_path / "b", **{two: "b", "other": "b"})
    text = TWO + f"    clash: {rule}\n"
    if rule == "error":
        words = ("a directory", "a file") if "__" in one else ("a file", "a directory")
        message = f"/x is in directory a and in directory b: {words[0]} of the one, {words[1]} of the other"
        with pytest.raises(ManifestError, match=message):
            build(text)
    else:
        winner, value = (two, "b") if rule == "replace" else (one, "a")
        assert texts(build(text)) == {"/" + winner.replace("__", "/"): value, "/other": "b"}


def test_a_file_in_the_way_of_a_deep_target(tmp_path: Path, build: Build) -> None:
    put(tmp_path / "a", opt="a")
    put(tmp_path / "b", x="b")
    with pytest.raises(ManifestError, match="/opt is a file of directory a and a directory of directory b"):
        build("sources:\n  - directory: a\n  - {directory: b, to: /opt/app}\n")


def test_links_to_directories_are_followed(tmp_path: Path, build: Build) -> None:
    members = [entry("usr/bin", kind=DIR), entry("bin", kind=tarfile.SYMTYPE, linkname="usr/bin"), entry("bin/t", b"1")]
    (tmp_path / "root.tar").write_bytes(tar_bytes(members))
    put(tmp_path / "b", bin__u="2")
    tree = build("sources:\n  - tar: root.tar\n  - directory: b\n")
    assert texts(tree) == {"/usr/bin/t": "1", "/usr/bin/u": "2"}
    put(tmp_path / "b", bin__t="other")
    with pytest.raises(ManifestError, match=r"/bin/t is in tar root\.tar and in directory b"):
        build("sources:\n  - tar: root.tar\n  - directory: b\n")


def test_metadata_makes_a_clash_and_names_the_package(tmp_path: Path, build: Build) -> None:
    debs = {"tool": deb_bytes([entry("usr/bin/tool", b"x", mode=0o755)], control=control_text("tool"))}
    (tmp_path / "t.tar").write_bytes(tar_bytes([entry("usr/bin/tool", b"x", mode=0o4755)]))
    with pytest.raises(ManifestError, match=r"/usr/bin/tool is in tool and in tar t\.tar"):
        build("sources: [{tar: t.tar}]\n", debs)
    tree = build("sources: [{tar: t.tar, clash: replace}]\n", debs)
    assert tree.get("usr/bin/tool").mode == 0o104755


def test_an_image_over_an_image(tmp_path: Path, build: Build) -> None:
    write_layout(tmp_path / "one", image([layer(etc__a="1", etc__b="1")]))
    write_layout(tmp_path / "two", image([layer(etc__b="2")]))
    text = "sources:\n  - oci: {layout: one}\n  - {oci: {layout: two}, to: /srv}\n"
    assert texts(build(text)) == {"/etc/a": "1", "/etc/b": "1", "/srv/etc/b": "2"}
    with pytest.raises(ManifestError, match="/etc/b is in oci one and in oci two"):
        build("sources:\n  - oci: {layout: one}\n  - oci: {layout: two}\n")


def test_rules_give_owners_modes_and_attributes(tmp_path: Path, build: Build) -> None:
    put(tmp_path / "a", bin__tool="t", bin__lib="l", etc__conf="c")
    (tmp_path / "a/bin/link").symlink_to("tool")
    rules = """    rules:
      - {match: '/bin/*', mode: '0755'}
      - {match: /bin/tool, owner: '7:8', mode: '4750', xattrs: {security.capability: '0x01'}}
      - {match: '/etc/**', owner: 'root:9'}
"""
    tree = build("sources:\n  - directory: a\n    to: /opt\n" + rules)
    found = {path: (stat.S_IMODE(row[0]), row[1], row[2], row[6]) for path, row in rows(tree).items()}
    assert found[b"/opt/bin/tool"] == (0o4750, 7, 8, {b"security.capability": b"\1"})
    assert found[b"/opt/bin/lib"] == (0o755, 0, 0, {})
    assert found[b"/opt/bin/link"] == (0o777, 0, 0, {})
    assert found[b"/opt/etc/conf"] == (0o644, 0, 9, {})
    with pytest.raises(ManifestError, match="no path of the source matches '/nowhere'") as caught:
        build("sources:\n  - directory: a\n    rules: [{match: /nowhere, mode: '0600'}]\n")
    assert caught.value.where == f"{tmp_path}/m.yaml:4:14"


@pytest.mark.parametrize("kind", ["directory", "tar", "layout", "base"])
def test_the_lock_pins_every_source(tmp_path: Path, build: Build, cache: Cache, kind: str) -> None:
    texts_of = {
        "directory": "sources: [{directory: a}]\n", "tar": "sources: [{tar: a.tar}]\n",
        "layout": "sources: [{oci: {layout: a}}]\n", "base": "base: a.img\n",
    }  # fmt: skip

    def make(text: str) -> None:
        if kind == "directory":
            put(tmp_path / "a", file=text)
        elif kind == "tar":
            (tmp_path / "a.tar").write_bytes(tar_bytes([entry("file", text.encode())]))
        elif kind == "layout":
            one = image([layer(file=text)])
            folder = write_layout(tmp_path / f"a{text}", one)
            (tmp_path / "a").unlink(missing_ok=True)
            (tmp_path / "a").symlink_to(folder)
        else:
            put(tmp_path / f"tree{text}", file=text)
            write_image(FileTree(build_tree(text)), tmp_path / "a.img", WriteOptions())

    make("1")
    text = texts_of[kind]
    (tmp_path / "m.yaml").write_text(f"system: m\n{text}")
    lock = lock_of(pin_sources(load_system(tmp_path / "m.yaml"), cache))
    assert [pin.kind for pin in lock.sources] == ["oci" if kind == "layout" else kind]
    assert texts(build(text, lock=lock)) == {"/file": "1"}
    make("2")
    with pytest.raises(VerificationError, match="is not what the lock pins") as caught:
        build(text, lock=lock)
    assert caught.value.where in ("a", "a.tar", "a.img")
    assert "erofs-edge lock" in (caught.value.hint or "")


def build_tree(text: str):  # type: ignore[no-untyped-def]
    from erofs_edge.tree import BytesContent, Inode

    tree = FileTree()
    tree.add("file", Inode(0o100644, content=BytesContent(text.encode())))
    return tree.root


def test_a_lock_of_other_sources(tmp_path: Path, build: Build, cache: Cache) -> None:
    put(tmp_path / "a", x="1")
    put(tmp_path / "b", y="1")
    (tmp_path / "m.yaml").write_text("system: m\nsources: [{directory: a}]\n")
    loaded = load_system(tmp_path / "m.yaml")
    lock = lock_of(pin_sources(loaded, cache))
    check_lock(lock, loaded)
    (tmp_path / "m.yaml").write_text(f"system: m\n{TWO}")
    with pytest.raises(ManifestError, match="the lock pins other sources: a") as caught:
        check_lock(lock, load_system(tmp_path / "m.yaml"))
    assert caught.value.where == f"{tmp_path}/m.yaml:2:1"
    with pytest.raises(ManifestError, match="the lock pins other sources"):
        build(TWO, lock=lock)


PASSWD = "root:x:0:0:root:/root:/bin/sh\nold:x:900:900::/:/bin/false\n"


def base_image(tmp_path: Path) -> Path:
    members = [
        entry("./", kind=DIR), entry("etc/passwd", PASSWD.encode()), entry("etc/group", b"root:x:0:\nold:x:900:\n"),
        entry("etc/motd", b"base"), entry("usr/bin/tool", b"base", mode=0o755), entry("usr/bin/mine", b"base", uid=900),
        entry("usr/lib/sysimage/dpkg/status", b"Package: old\nVersion: 1\n\nPackage: tool\nVersion: 0\n"),
    ]  # fmt: skip
    (tmp_path / "base.tar").write_bytes(tar_bytes(members))
    from erofs_edge.sources.tar import read_tar

    out = tmp_path / "out"
    out.mkdir()
    write_image(read_tar(tmp_path / "base.tar", Cache(tmp_path / "c")), out / "system.img", WriteOptions())
    return out


def test_an_image_underneath_gives_way_to_all(tmp_path: Path, build: Build) -> None:
    base_image(tmp_path)
    debs = {"tool": deb_bytes([entry("usr/bin/tool", b"package", mode=0o755)], control=control_text("tool"))}
    put(tmp_path / "a", etc__motd="source")
    tree = build("base: out\nsources: [{directory: a}]\nusers: {new: {uid: 950, gid: 950}}\n", debs)
    found = texts(tree)
    assert (found["/usr/bin/tool"], found["/usr/bin/mine"], found["/etc/motd"]) == ("package", "base", "source")
    assert tree.get("usr/bin/mine").uid == 900
    lines = found["/etc/passwd"].splitlines()
    assert [line.split(":")[0] for line in lines] == ["root", "old", "new"], "the base's accounts stay"
    stanzas = found["/usr/lib/sysimage/dpkg/status"].split("\n\n")
    assert [s.splitlines()[0] for s in stanzas if s.strip()] == ["Package: old", "Package: tool"]
    assert "Version: 1.0" in stanzas[1], "the package of this manifest"


def test_bases_that_are_none(tmp_path: Path, build: Build) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ErofsEdgeError, match=r"empty: no system\.img in this folder"):
        build("base: empty\n")
    (tmp_path / "x.img").write_bytes(b"x" * 8192)
    with pytest.raises(ErofsEdgeError, match="not an EROFS image"):
        build("base: x.img\n")
    with pytest.raises(ManifestError, match=r"no such image: .*/none\.img"):
        build("base: none.img\n")
