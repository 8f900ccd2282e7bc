# SPDX-License-Identifier: Apache-2.0
"""What the machine for maintainer scripts gets, and what of its result is kept."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest
from sources.debian.configure.made import MASTERS, text_of, tree_with
from sources.samples import control_text, deb_bytes, entry, link_groups, rows

from erofs_edge.errors import ManifestError, SourceError
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure.accounts import Ids
from erofs_edge.sources.debian.deb import Package, read_deb
from erofs_edge.sources.debian.scripted.capture import attribute
from erofs_edge.sources.debian.scripted.compare import Explanation, compare, explain, read_explanations
from erofs_edge.sources.debian.scripted.renumber import renumber
from erofs_edge.sources.debian.scripted.scrub import scrub
from erofs_edge.sources.debian.scripted.stage import preinst_order, stage, write_tar
from erofs_edge.sources.tar import read_tar
from erofs_edge.tree import BytesContent, FileTree, Inode

STATUS = "install ok unpacked"


def made(tmp_path: Path, cache: Cache, name: str, *entries: object, info: dict[str, bytes] | None = None,
         **fields: str) -> Package:  # fmt: skip
    path = tmp_path / f"{name}.deb"
    path.write_bytes(deb_bytes(entries, control=control_text(name, **fields), info=info))  # type: ignore[arg-type]
    return read_deb(path, cache)


def test_the_machine_starts_from_what_dpkg_leaves_unpacked(tmp_path: Path, cache: Cache) -> None:
    packages = [
        made(tmp_path, cache, "dpkg", entry("./usr/bin/dpkg", b"x", mode=0o755)),
        made(
            tmp_path, cache, "tar", entry("./etc/tar.conf", b"c"), entry("./usr/bin/tar", b"t"),
            info={"conffiles": b"/etc/tar.conf\n", "postinst": b"#!/bin/sh\n", "md5sums": b"",
                  "triggers": b"interest-noawait /usr/share/x\ninterest named # words\nactivate ldconfig\n"},
            Multi_Arch="same",
        ),
    ]  # fmt: skip
    tree = stage(packages)
    assert tree.get("etc/tar.conf") is None and text_of(tree, "etc/tar.conf.dpkg-new") == "c"
    status = text_of(tree, "var/lib/dpkg/status")
    assert status.count(f"Status: {STATUS}\n") == 2 and "Conffiles:\n /etc/tar.conf newconffile\n" in status
    arch = packages[1].arch
    script = tree.get(f"var/lib/dpkg/info/tar:{arch}.postinst")
    assert script is not None and stat.S_IMODE(script.mode) == 0o755
    assert text_of(tree, "var/lib/dpkg/info/dpkg.list") == "/usr/bin/dpkg\n"
    assert tree.get("var/lib/dpkg/info/dpkg.control") is None
    assert text_of(tree, "var/lib/dpkg/triggers/File") == f"/usr/share/x tar:{arch}/noawait\n"
    assert text_of(tree, "var/lib/dpkg/triggers/named") == f"tar:{arch}\n"


def test_scripts_need_dpkg_and_tar(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(SourceError, match="cannot run without tar in the system"):
        stage([made(tmp_path, cache, "dpkg")])


def test_preinst_scripts_run_after_those_that_they_depend_on() -> None:
    names = {"a": "z | y", "z": "loop (>= 1), b:any", "loop": "z", "b": "", "base-passwd": "z", "quiet": "a"}
    packages = [
        Package(n, "1", "arm64", {"Depends": d}, {} if n == "quiet" else {"preinst": b""}) for n, d in names.items()
    ]
    order = [p.name for p in preinst_order(packages)]
    assert order == ["base-passwd", "loop", "b", "z", "a"]
    assert order == [p.name for p in preinst_order(packages[::-1])]


def test_the_archive_for_the_machine_holds_everything(tmp_path: Path, cache: Cache) -> None:
    tree = FileTree()
    file = tree.add("a/" + "n" * 200, Inode(0o104755, 3, 0x7FFFFFFF, 5 * 10**9, content=BytesContent(b"x" * 1000)))
    tree.add("b", file)
    tree.add("link", Inode(stat.S_IFLNK | 0o777, target=b"t" * 150))
    tree.add("dev", Inode(stat.S_IFCHR | 0o600, rdev=(5, 300)))
    tree.add("fifo", Inode(stat.S_IFIFO | 0o640))
    tree.add("\udcff", Inode(stat.S_IFREG | 0o644))
    path = tmp_path / "in.tar"
    with path.open("wb") as out:
        write_tar(tree, out)
    back = read_tar(path, cache)
    assert rows(back) == rows(tree) and link_groups(back) == link_groups(tree)


def test_what_varies_goes_and_shipped_directories_stay() -> None:
    tree = tree_with({
        "etc/machine-id": "1", "etc/ssh/ssh_host_rsa_key": "k", "etc/ssh/sshd_config": "c", "etc/shadow-": "",
        "etc/x-": "",
        "etc/rc2.d/S01x": "->../init.d/x", "etc/a/b.dpkg-old": "", "var/cache/apt/x": "", "var/cache/own/y": "",
        "var/log/dpkg.log": "", "var/log/README": "r", "var/lib/dpkg/status": "", "tmp/x": "", "run/x/y": "",
        "usr/lib/p/__pycache__/m.pyc": "", "usr/sbin/policy-rc.d": "",
        "var/lib/systemd/deb-systemd-helper-enabled/x": "",
    })  # fmt: skip
    shipped = tree_with({"var/cache/apt/": "", "tmp/": "", "run/": "", "var/lib/dpkg/": "", "etc/rc2.d/": ""})
    scrub(tree, shipped)
    left = {path.decode() for path, inode in tree.walk() if not inode.is_dir}
    assert left == {"/etc/ssh/sshd_config", "/etc/x-", "/var/log/README"}
    assert tree.get("var/cache/apt") is not None and tree.get("var/cache/own") is None
    assert tree.get("tmp") is not None and tree.get("usr/lib/p") is not None


def acl(*entries: tuple[int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 7, number) for tag, number in entries)


def test_accounts_get_the_numbers_of_the_lock() -> None:
    tree = tree_with({
        **MASTERS,
        "etc/passwd": "root:x:0:0::/root:/bin/sh\nweb:x:999:999::/:/x\nlate:x:998:998::/:/x\nfree:x:997:0::/:/x\n",
        "etc/group": "root:x:0:\nweb:x:999:a,b\nlate:x:998:\n",
        "srv/web": "", "srv/late": "",
    })  # fmt: skip
    web, late = tree.get("srv/web"), tree.get("srv/late")
    assert web is not None and late is not None
    web.uid, web.gid, late.uid, late.gid = 999, 999, 998, 998
    web.xattrs[b"system.posix_acl_access"] = acl((0x01, 0xFFFFFFFF), (0x02, 999), (0x08, 998), (0x20, 0xFFFFFFFF))
    loose = renumber(tree, Ids({"web": 998, "gone": 997}, {"web": 998}))
    # late had the number of web, free that of a name that is gone: both get the next free one
    assert text_of(tree, "etc/passwd").split() == [
        "root:x:0:0::/root:/bin/sh", "web:x:998:998::/:/x", "late:x:996:999::/:/x", "free:x:999:0::/:/x",
    ]  # fmt: skip
    assert text_of(tree, "etc/group") == "root:x:0:\nweb:x:998:a,b\nlate:x:999:\n"
    assert (web.uid, web.gid, late.uid, late.gid) == (998, 998, 996, 999)
    wanted = acl((0x01, 0xFFFFFFFF), (0x02, 998), (0x08, 999), (0x20, 0xFFFFFFFF))
    assert web.xattrs[b"system.posix_acl_access"] == wanted
    assert loose == ["user late", "user free", "group late"]


def test_a_malformed_access_control_list(tmp_path: Path) -> None:
    tree = tree_with({"etc/passwd": "", "etc/group": "", "x": ""})
    tree.root.children[b"x"].xattrs[b"system.posix_acl_default"] = b"\1\0\0\0"
    with pytest.raises(SourceError, match="malformed access control list"):
        renumber(tree, Ids({}, {}))


def test_files_are_of_the_package_whose_scripts_ran_last_before_they_changed(tmp_path: Path) -> None:
    path = tmp_path / "out.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, ctime in (("./early", "99.5"), ("./one", "100.25"), ("./two", "101.000001"), ("./three", "300")):
            info = tarfile.TarInfo(name)
            info.pax_headers = {"ctime": ctime}
            tar.addfile(info, io.BytesIO())
    assert attribute(path, [(100.0, "a"), (101.0, "b")]) == {"/one": "a", "/two": "b", "/three": "b"}
    path.write_bytes(b"no archive" * 100)
    with pytest.raises(SourceError, match="not the archive"):
        attribute(path, [])


def test_every_kind_of_difference_is_told() -> None:
    one = tree_with(
        {"same": "s", "text": "a\nb\n", "gone/x": "", "link": "->a", "kind": "", "mode": "", "own": "", "h1": "h"}
    )
    two = tree_with(
        {"same": "s", "text": "a\nc\n", "new": "n", "link": "->b", "kind/": "", "mode": "", "own": "", "h1": "h"}
    )
    one.add("h2", one.root.children[b"h1"])
    two.add("h2", Inode(0o100644, content=BytesContent(b"h")))
    two.root.children[b"mode"].mode |= 0o4000
    two.root.children[b"own"].gid = 8
    two.root.children[b"own"].xattrs[b"user.a"] = b"\1"
    two.root.children[b"new"].origin = "pkg"
    for tree, minor in ((one, 3), (two, 4)):
        tree.add("dev", Inode(stat.S_IFCHR | 0o644, rdev=(1, minor)))
    found = {(d.path, d.kind): (d.first, d.second) for d in compare(one, two)}
    assert set(found) == {
        ("/text", "content"), ("/gone", "only-first"), ("/new", "only-second"), ("/link", "target"), ("/kind", "type"),
        ("/mode", "mode"), ("/own", "owner"), ("/own", "xattrs"), ("/h2", "links"), ("/dev", "device"),
    }  # fmt: skip
    assert found["/text", "content"] == ("line 2: b", "line 2: c")
    assert found["/mode", "mode"] == ("0644", "4644") and found["/own", "owner"] == ("0:0", "0:8")
    assert found["/gone", "only-first"] == ("directory 0755 0:0, 1 below", "")
    assert [d.package for d in compare(one, two) if d.path == "/new"] == ["pkg"]
    assert compare(one, one) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("a\nb", "a", ("line 2: b", "line 2: (end)")),
        ("x" * 150 + "a", "x" * 150 + "b", (f"line 1: …{'x' * 50}a", f"line 1: …{'x' * 50}b")),
        ("x" * 150, "x" * 151, (f"line 1: …{'x' * 50}", f"line 1: …{'x' * 51}")),
        ("a\n", "a", None),
        ("a\n", "a\r\n", None),
        ("\0a", "\0b", None),
    ],
    ids=["shorter", "far in a long line", "a long line goes on", "no newline at the end", "line ends", "no text"],
)
def test_the_first_line_that_differs_is_shown(old: str, new: str, told: tuple[str, str] | None) -> None:
    """Where no line does, sizes and hashes (`told` is None)."""
    (one,) = compare(tree_with({"f": old}), tree_with({"f": new}))
    hashes = [f"{len(text)} bytes, sha256 {sha256(text.encode()).hexdigest()[:12]}" for text in (old, new)]
    assert [one.first, one.second] == (hashes if told is None else list(told))


def test_explanations_cover_paths_and_kinds(tmp_path: Path) -> None:
    found = compare(tree_with({"a/x": "1", "b": "2"}), tree_with({"a/x": "2", "c": ""}))
    told = explain(found, [Explanation("/a/**", "because", ["content"]), Explanation("/b", "no", ["mode"]),
                           Explanation("/c", "why")])  # fmt: skip
    assert {d.path: d.why for d in told} == {"/a/x": "because", "/b": "", "/c": "why"}
    assert all(e.why and e.path.startswith("/") for e in read_explanations())
    path = tmp_path / "list.yaml"
    broken = ("- {path: /x}", "- {path: /x, why: y, kinds: [none]}", "a: [", "- {path: /x, why: y, more: 1}")
    for text in (*broken, "- {path: /x, why: 2001-99-99}", "- {path: /x, why: !!int y}", "[" * 5000):
        path.write_text(text)
        with pytest.raises(ManifestError, match="not a list of explanations") as caught:
            read_explanations(path)
        assert caught.value.where == str(path) and "`why: TEXT`" in (caught.value.hint or "")
    path.write_text("- {path: '/[z-a]', why: y}")
    with pytest.raises(ManifestError, match="bad glob") as caught:
        read_explanations(path)
    assert caught.value.where == str(path), "and not only when a machine has run the scripts"
