# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sources.samples import control_text, deb_bytes, entry, link_groups, rows

from erofs_edge.errors import SourceError
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import Package, read_deb
from erofs_edge.sources.debian.unpack import unpack
from erofs_edge.sources.directory import scan

Make = Callable[..., Package]
DIR, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
BASE = [
    entry("./", kind=DIR, mtime=5),
    entry("./usr/lib/", kind=DIR, mode=0o750, mtime=7),
    entry("./usr/bin/", kind=DIR),
    entry("./lib", kind=LINK, linkname="usr/lib"),
    entry("./bin", kind=LINK, linkname="usr/bin"),
]


@pytest.fixture
def make(tmp_path: Path, cache: Cache) -> Make:
    def make(name: str, entries: list, version: str = "1.0", **fields: str) -> Package:
        path = tmp_path / f"{name}.deb"
        path.write_bytes(deb_bytes(entries, control=control_text(name, version, **fields)))
        return read_deb(path, cache)

    return make


def test_links_of_base_files_stand_first_whatever_the_order(make: Make) -> None:
    first = make("aaa", [entry("./lib/x/", kind=DIR), entry("./lib/x/file", b"x"), entry("./bin/tool", b"t")])
    base = make("base-files", BASE)
    for order in ([first, base], [base, first]):
        tree = unpack(order)
        assert rows(tree)[b"/lib"][5] == b"usr/lib"
        assert rows(tree)[b"/usr/lib/x/file"][7] == b"x"
        assert rows(tree)[b"/usr/bin/tool"][7] == b"t"
        assert b"/lib/x" not in rows(tree)
        assert tree.get("usr/lib/x/file").origin == "aaa"
        assert tree.get("usr/lib").origin == "base-files"


def test_a_directory_keeps_the_metadata_of_its_first_package(make: Make) -> None:
    packages = [
        make(
            "zzz", [entry("./", kind=DIR, mode=0o700), entry("./d/", kind=DIR, mode=0o777, uid=9), entry("./d/z", b"z")]
        ),
        make("base-files", BASE),
        make(
            "mmm", [entry("./", kind=DIR, mode=0o711), entry("./d/", kind=DIR, mode=0o2750, gid=8), entry("./d/m", b"")]
        ),
    ]
    tree = unpack(packages)
    assert rows(tree)[b"/"][:4] == (0o40755, 0, 0, 5 * 10**9)
    assert rows(tree)[b"/d"][:3] == (0o42750, 0, 8)
    assert rows(tree).keys() >= {b"/d/z", b"/d/m"}
    assert rows(unpack(packages[::-1])) == rows(tree)


def test_directories_and_links_to_directories(make: Make) -> None:
    base = make("base-files", BASE)
    tree = unpack([
        base,
        make("a", [entry("./lib/", kind=DIR, mode=0o700), entry("./doc/", kind=DIR, mode=0o711)]),
        make("b", [entry("./doc", kind=LINK, linkname="usr")]),
    ])  # fmt: skip
    assert rows(tree)[b"/lib"][5] == b"usr/lib", "a directory leaves a link to a directory alone"
    assert rows(tree)[b"/doc"][0] == 0o40711, "a link leaves a directory alone"


def test_hard_links_stay_inside_their_package(make: Make) -> None:
    base = make("base-files", BASE)
    tree = unpack([base, make("a", [entry("./lib/x", b"1"), entry("./y", kind=HARD, linkname="./lib/x")])])
    assert link_groups(tree) == [[b"/usr/lib/x", b"/y"]]
    with pytest.raises(SourceError, match=r"b 1\.0: /z: hard link to /lib/x, which is no earlier file"):
        unpack([base, make("a", [entry("./lib/x", b"1")]), make("b", [entry("./z", kind=HARD, linkname="lib/x")])])


def test_a_clash_names_both_packages(make: Make) -> None:
    one, two = make("one", [entry("./etc/f", b"1")], "1.2"), make("two", [entry("./etc/f", b"2")], "3.4")
    for order in ([one, two], [two, one]):
        with pytest.raises(SourceError, match=r"two 3\.4: /etc/f: is also in one, and neither") as caught:
            unpack(order)
        assert "leave two or one out" in str(caught.value.hint)


def test_a_clash_through_the_links_of_base_files(make: Make) -> None:
    with pytest.raises(SourceError, match=r"two 1\.0: /lib/f: is also in one"):
        unpack([
            make("base-files", BASE), make("one", [entry("./usr/lib/f", b"1")]), make("two", [entry("./lib/f", b"2")]),
        ])  # fmt: skip


@pytest.mark.parametrize(
    ("replaces_of_one", "replaces_of_two", "winner"),
    [
        ("two", "", "one"),
        ("", "one", "two"),
        ("two (<< 2)", "", "one"),
        ("", "x, one (= 1.0), y", "two"),
        ("two", "one", "two"),
        ("two (<< 1.0)", "", None),
        ("", "one (>> 1.0)", None),
        ("other", "twoo", None),
    ],
)
def test_replaces(make: Make, replaces_of_one: str, replaces_of_two: str, winner: str | None) -> None:
    packages = [
        make("one", [entry("./f", b"one")], Replaces=replaces_of_one or "none"),
        make("two", [entry("./f", b"two")], Replaces=replaces_of_two or "none"),
    ]
    if winner is None:
        with pytest.raises(SourceError, match="/f: is also in one"):
            unpack(packages)
        return
    tree = unpack(packages)
    assert rows(tree)[b"/f"][7] == winner.encode()
    assert tree.get("f").origin == winner


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("./usr/lib", b"file")], r"bad 1\.0: /usr/lib: would replace a directory of base-files"),
        ([entry("./file/x", b"1")], r"/file/x: /file is no directory"),
        ([entry("./file", kind=DIR)], r"/file: is also in a"),
        ([entry("./loop/x", b"1")], r"/loop is no directory"),
        ([entry("./own", b"1"), entry("./own", b"2")], r"/own: is in the package twice"),
        ([entry("./", kind=LINK, linkname="x")], r"the root is no directory"),
    ],
)
def test_what_cannot_be(make: Make, entries: list, message: str) -> None:
    base = make("base-files", BASE)
    first = make("a", [entry("./file", b"f"), entry("./loop", kind=LINK, linkname="loop")])
    with pytest.raises(SourceError, match=message):
        unpack([base, first, make("bad", entries)])


def test_a_package_comes_once(make: Make) -> None:
    with pytest.raises(SourceError, match="these packages are listed twice: a"):
        unpack([make("a", []), make("b", []), make("a", [])])


def test_the_same_as_dpkg_on_packages_that_it_built(tmp_path: Path, cache: Cache) -> None:
    """Six packages with shared directories, links into /usr, hard links: `dpkg-deb -x` of one after the other."""
    packages = []
    for number, name in enumerate(["base-files", "p1", "p2", "p3", "p4", "p5"]):
        root = tmp_path / "src" / name
        (root / "DEBIAN").mkdir(parents=True)
        (root / "DEBIAN").chmod(0o755)  # dpkg-deb wants that, whatever the umask
        (root / "DEBIAN/control").write_text(control_text(name))
        (root / "usr/bin").mkdir(parents=True)
        (root / "usr/share/doc" / name).mkdir(parents=True)
        (root / "usr/share/doc" / name / "copyright").write_bytes(os.urandom(3000 * number))
        if number == 0:
            (root / "bin").symlink_to("usr/bin")
        else:
            (root / "usr/bin" / name).write_bytes(b"#!" + os.urandom(20_000))
            (root / "usr/bin" / name).chmod(0o2755 if number == 2 else 0o755)
            os.link(root / "usr/bin" / name, root / f"usr/bin/{name}-twin")
            (root / f"usr/bin/{name}-link").symlink_to(f"/bin/{name}")
        deb = tmp_path / f"{name}.deb"
        command = ["dpkg-deb", "--root-owner-group", f"-Z{['xz', 'gzip', 'none'][number % 3]}", "-b", root, deb]
        subprocess.run(command, check=True, capture_output=True)
        subprocess.run(["dpkg-deb", "-x", deb, tmp_path / "theirs"], check=True)
        packages.append(read_deb(deb, cache))
    ours, theirs = unpack(packages), scan(tmp_path / "theirs")

    def without_owners(found: dict) -> dict:
        return {path: (row[0], *row[3:]) for path, row in found.items()}

    assert without_owners(rows(ours, directory_times=False)) == without_owners(rows(theirs, directory_times=False))
    assert link_groups(ours) == link_groups(theirs)
    assert len(link_groups(ours)) == 5
    assert {row[1:3] for row in rows(ours).values()} == {(0, 0)}
