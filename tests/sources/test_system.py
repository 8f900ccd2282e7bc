# SPDX-License-Identifier: Apache-2.0
"""A whole system partition from small packages, a manifest file and a lock."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sources.debian.configure.made import GROUP, PASSWD, link_of, text_of
from sources.samples import control_text, deb_bytes, entry, rows, tar_bytes

from erofs_edge.errors import ManifestError
from erofs_edge.manifest.load import load_system
from erofs_edge.manifest.model import Lock
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.layers import pin_sources
from erofs_edge.sources.system import SystemTree, system_tree

DIR, LINK = tarfile.DIRTYPE, tarfile.SYMTYPE
PACKAGES = {
    "base-files": [
        *(entry(f"./{name}/", kind=DIR) for name in ("usr", "usr/bin", "usr/share", "var", "etc")),
        entry("./", kind=DIR),
        entry("./root/", kind=DIR, mode=0o700),
        entry("./tmp/", kind=DIR, mode=0o1777),
        entry("./bin", kind=LINK, linkname="usr/bin"),
        entry("./usr/share/base-files/profile", b"profile\n"),
    ],
    "base-passwd": [
        entry("./usr/share/base-passwd/passwd.master", PASSWD.encode()),
        entry("./usr/share/base-passwd/group.master", GROUP.encode()),
    ],
    "tool": [
        entry("./usr/bin/tool", b"tool", mode=0o755),
        entry("./usr/share/doc/tool/copyright", b"free"),
        entry("./usr/share/doc/tool/changelog", b"news"),
        entry("./usr/share/man/man1/tool.1", b"manual"),
        entry("./usr/lib/systemd/system/tool.service", b"[Install]\nWantedBy=multi-user.target\n"),
        entry("./usr/lib/sysusers.d/tool.conf", b"u tool - Tool /var/lib/tool\n"),
        entry("./var/lib/tool/state", b"state", uid=0, gid=0, mode=0o600),
    ],
}
SCRIPTS = {
    "base-files": {"postinst": b"new"},
    "tool": {"postinst": b"update-alternatives --install /usr/bin/t t /usr/bin/tool 1 \\\n"
                         b" --slave /usr/share/man/man1/t.1 t.1 /usr/share/man/man1/tool.1\n"},
}  # fmt: skip
Build = Callable[..., SystemTree]


@pytest.fixture
def build(tmp_path: Path, cache: Cache) -> Build:
    debs = {}
    for name, members in PACKAGES.items():
        debs[name] = tmp_path / f"{name}.deb"
        debs[name].write_bytes(deb_bytes(members, control=control_text(name), info=SCRIPTS.get(name)))

    def build(text: str, *, packages: bool = True, **lock: object) -> SystemTree:
        path = tmp_path / "m.yaml"
        path.write_text("system: m\n" + text)
        pins = {"users": {"tool": 950}, "groups": {"tool": 950}} | lock
        loaded = load_system(path)
        pins["sources"] = pin_sources(loaded, cache)
        made = Lock(name="m", suite="trixie", arch="arm64", date=86400, requested={}, packages={}, **pins)
        return system_tree(loaded, made, debs if packages else {}, cache)

    return build


def rights(built: SystemTree, path: str) -> tuple[int, int, int]:
    node = built.tree.get(path)
    assert node is not None, path
    return stat.S_IMODE(node.mode), node.uid, node.gid


def test_packages_are_configured_and_var_moves(build: Build) -> None:
    built = build("exclude: [/usr/share/man/**, '/usr/share/doc/*/**']\nkeep: ['/usr/share/doc/*/copyright']\n")
    tree = built.tree
    assert text_of(tree, "etc/profile") == "profile\n"
    assert [note.package for note in built.report.changed] == ["base-files"]
    assert built.report.unknown == []
    assert text_of(tree, "usr/share/doc/tool/copyright") == "free"
    assert tree.get("usr/share/doc/tool/changelog") is None
    assert link_of(tree, "etc/alternatives/t") == "/usr/bin/tool" and tree.get("etc/alternatives/t.1") is None
    assert tree.get("var").children == {}
    lines = text_of(tree, "usr/lib/tmpfiles.d/erofs-edge-var.conf").splitlines()
    assert "C /var/lib/tool/state 0600 0 0 -" in lines
    assert "L /var/lib/dpkg - - - - ../../usr/lib/sysimage/dpkg" in lines
    assert text_of(tree, "usr/share/factory/var/lib/tool/state") == "state"
    listed = text_of(tree, "usr/lib/sysimage/dpkg/info/tool.list").splitlines()
    assert "/usr/bin/tool" in listed and "/usr/share/man/man1/tool.1" not in listed


def test_globs_that_leave_out_or_keep_nothing_are_told_with_their_place(build: Build, tmp_path: Path) -> None:
    built = build("exclude:\n  - /usr/share/man/**\n  - /usr/share/mann/**\nkeep: [/none]\n")
    place = tmp_path / "m.yaml"
    assert built.report.unmatched == [f"{place}:4:5: /usr/share/mann/**", f"{place}:5:8: /none"]


def test_overlay_lands_behind_links_and_leaves_directories_as_they_are(build: Build, tmp_path: Path) -> None:
    for name, text in (("root/.ssh/config", "ssh"), ("bin/mine", "#!"), ("etc/profile", "mine\n"), ("tmp/x", "x"),
                       ("etc/sysusers.d/app.conf", "u app 800 - -\n")):  # fmt: skip
        path = tmp_path / "over" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o777)
    built = build(
        "overlay:\n  - {from: over, owner: 'app:tool', file_mode: '0640', dir_mode: '0750', executable: [/bin/*]}\n"
    )
    assert rights(built, "root") == (0o700, 0, 0) and rights(built, "tmp") == (0o1777, 0, 0)
    assert rights(built, "root/.ssh") == (0o750, 800, 950)
    assert rights(built, "root/.ssh/config") == (0o640, 800, 950)
    assert rights(built, "usr/bin/mine") == (0o755, 800, 950)
    assert text_of(built.tree, "etc/profile") == "mine\n"
    assert link_of(built.tree, "bin") == "usr/bin"
    assert "app:x:800:800" in text_of(built.tree, "etc/passwd")


def test_sources_lie_between_packages_and_overlay(build: Build, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/one").write_text("directory")
    (tmp_path / "dir/two").write_text("directory")
    (tmp_path / "x.tar").write_bytes(
        tar_bytes([entry("./", kind=DIR, mode=0o711), entry("./two", b"tar", uid=70, mode=0o600)])
    )
    (tmp_path / "over/opt/app").mkdir(parents=True)
    (tmp_path / "over/opt/app/three").write_text("overlay")
    built = build(
        "sources:\n  - {directory: dir, to: /opt/app}\n  - {tar: x.tar, to: /opt/app, clash: replace}\n"
        "overlay: [{from: over}]\n"
    )
    assert {n: text_of(built.tree, f"opt/app/{n}") for n in ("one", "two", "three")} == {
        "one": "directory", "two": "tar", "three": "overlay",
    }  # fmt: skip
    assert rights(built, "opt/app/two") == (0o600, 70, 0) and rights(built, "opt/app") == (0o755, 0, 0)


def test_entries_make_and_change_paths(build: Build) -> None:
    built = build(
        "entries:\n"
        "  - {path: /etc/motd, text: 'hello', mode: '0600', owner: 'root:mail'}\n"
        "  - {path: /usr/bin/tool, mode: '4750', owner: 'tool:tool',\n"
        "     xattrs: {security.capability: '0x0100', user.a: b}}\n"
        "  - {path: /root, type: directory, mode: '0710'}\n"
        "  - {path: /srv/made, type: directory}\n"
        "  - {path: /etc/link, type: symlink, target: motd}\n"
        "  - {path: /opt/null, type: char, rdev: '1:3', mode: '0666'}\n"
        "  - {path: /opt/pipe, type: fifo}\n"
        '  - {path: /etc/systemd/system/own.service, text: "[Install]\\nWantedBy=multi-user.target\\n"}\n'
        "units: {enable: [own.service, tool.service]}\n"
    )
    tree = built.tree
    assert text_of(tree, "etc/motd") == "hello" and rights(built, "etc/motd") == (0o600, 0, 8)
    assert rights(built, "usr/bin/tool") == (0o4750, 950, 950)
    assert tree.get("usr/bin/tool").xattrs == {b"security.capability": b"\x01\x00", b"user.a": b"b"}
    assert text_of(tree, "usr/bin/tool") == "tool"
    assert rights(built, "root") == (0o710, 0, 0) and rights(built, "srv/made") == (0o755, 0, 0)
    assert link_of(tree, "etc/link") == "motd"
    null, pipe = tree.get("opt/null"), tree.get("opt/pipe")
    assert (stat.S_IFMT(null.mode), null.rdev, stat.S_IMODE(null.mode)) == (stat.S_IFCHR, (1, 3), 0o666)
    assert stat.S_ISFIFO(pipe.mode)
    wants = "etc/systemd/system/multi-user.target.wants"
    assert link_of(tree, f"{wants}/own.service") == "/etc/systemd/system/own.service"
    assert link_of(tree, f"{wants}/tool.service") == "/usr/lib/systemd/system/tool.service"


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("entries:\n  - {path: /etc/none, mode: '0600'}\n", "3:6", "nothing at /etc/none to change"),
        ("entries:\n  - {path: /usr, mode: '0600'}\n", "3:6", "/usr is not a regular file"),
        ("entries:\n  - {path: /usr, text: x}\n", "3:6", "would replace a directory"),
        ("entries:\n  - {path: /etc/x, text: x, owner: 'nobody2:root'}\n", "3:", "no user 'nobody2'"),
        ("entries:\n  - {path: /usr/bin/tool, xattrs: {user.a: 0xz}}\n", "3:", "bad value '0xz'"),
        ("overlay:\n  - {from: over, owner: 'root:nogroup2'}\n", "3:", "no group 'nogroup2'"),
        ("overlay:\n  - {from: over, to: /usr/bin/tool}\n", "3:5", "would replace the file /usr/bin/tool of tool"),
        ("units:\n  enable:\n    - tol.service\n", "4:7", "no unit 'tol.service'"),
        ("users:\n  anna: {uid: 950}\n", "3:", "would both have id 950"),
        ("exclude:\n  - /[z-a]\n", "3:5", "bad glob"),
    ],
)
def test_what_the_manifest_says_wrongly_has_its_position(
    build: Build, tmp_path: Path, text: str, where: str, message: str
) -> None:
    (tmp_path / "over/sub").mkdir(parents=True)
    (tmp_path / "over/sub/file").write_text("x")
    with pytest.raises(ManifestError, match=message.replace("[", r"\[")) as caught:
        build(text)
    assert f"m.yaml:{where}" in (caught.value.where or "")


def test_globs_of_an_overlay_that_match_nothing_are_told_with_their_place(build: Build, tmp_path: Path) -> None:
    (tmp_path / "over/usr/bin").mkdir(parents=True)
    (tmp_path / "over/usr/bin/probe").write_text("x")
    globs = "executable: [/usr/bin/*, /usr/bin/prob], templates: [/etc/issue]"
    built = build(f"overlay: [{{from: over, {globs}}}]\n")
    place = tmp_path / "m.yaml"
    assert built.report.unmatched == [f"{place}:2:49: /usr/bin/prob", f"{place}:2:77: /etc/issue"]


def test_a_login_shell_that_is_not_there_stops_the_build(build: Build, tmp_path: Path) -> None:
    build("users: {anna: {uid: 1234, shell: /usr/sbin/nologin}}\n")
    with pytest.raises(ManifestError, match="no /bin/zsh in the system") as caught:
        build("users: {anna: {uid: 1234, shell: /bin/zsh}}\n")
    assert "m.yaml:2:27" in str(caught.value.where)
    by_default = "users: {root: {password: ''}}\n"
    with pytest.raises(ManifestError, match="no /bin/bash in the system"):
        build(by_default)
    (tmp_path / "over/bin").mkdir(parents=True)
    (tmp_path / "over/bin/bash").write_text("#!")
    build(f"overlay: [{{from: over}}]\n{by_default}")
    with pytest.raises(ManifestError, match="no /bin/bash in the system"):
        build(f"overlay: [{{from: over}}]\nexclude: [/usr/bin/bash]\n{by_default}")


def test_a_user_that_the_lock_lacks_stops_the_build(build: Build) -> None:
    with pytest.raises(ManifestError, match="user 'tool' has no id in the lock"):
        build("", users={}, groups={})


def test_a_system_of_sources_alone_is_taken_as_it_is(build: Build, tmp_path: Path) -> None:
    members = [entry("./", kind=DIR), entry("./etc/passwd", b"root:x:0:0::/root:/bin/sh\n"), entry("./var/lib/a", b"a")]
    (tmp_path / "root.tar").write_bytes(tar_bytes(members))
    built = build("sources: [{tar: root.tar}]\n", packages=False)
    assert [path.decode() for path, _ in built.tree.walk()] == [
        "/",
        "/etc",
        "/etc/passwd",
        "/var",
        "/var/lib",
        "/var/lib/a",
    ]


def test_two_builds_are_equal(build: Build) -> None:
    text = "users: {anna: {uid: 1234, password: '$6$a$b', shell: /usr/sbin/nologin}}\n"
    assert rows(build(text).tree) == rows(build(text).tree)


def test_the_stock_manifest_loads(repository: Path) -> None:
    loaded = load_system(repository / "manifests/edge-base.yaml")
    assert "systemd" in loaded.value.packages and "dmsetup" in loaded.value.packages
    assert loaded.value.users["root"].password.startswith("$6$")


def test_a_script_that_nobody_knows_is_refused(tmp_path: Path, cache: Cache) -> None:
    deb, path = tmp_path / "odd.deb", tmp_path / "m.yaml"
    deb.write_bytes(deb_bytes(control=control_text("odd"), info={"postinst": b"#!/bin/sh\nmkdir /srv/odd\n"}))
    lock = Lock(name="m", suite="trixie", arch="arm64", date=86400, requested={}, packages={})
    path.write_text("system: m\npackages: [odd]\n")
    with pytest.raises(
        ManifestError, match=r"effects of these maintainer scripts are unknown: odd 1\.0: postinst$"
    ) as failure:
        system_tree(load_system(path), lock, {"odd": deb}, cache)
    assert failure.value.where == f"{path}:2:1"
    assert "configure: scripts" in str(failure.value.hint) and "harmless_scripts" in str(failure.value.hint)
    path.write_text("system: m\npackages: [odd]\nharmless_scripts: [odd]\n")
    built = system_tree(load_system(path), lock, {"odd": deb}, cache)
    assert [note.package for note in built.report.unknown] == ["odd"], "it is still named"
