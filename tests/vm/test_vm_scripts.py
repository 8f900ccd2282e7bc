# SPDX-License-Identifier: Apache-2.0
"""Real packages in the real machine: a handful of Debian's essential ones and some of our own."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from sources.samples import control_text, deb_bytes, entry, tar_bytes

from erofs_edge.build.compare import Subject, check_reproducible, compare_ways
from erofs_edge.build.inputs import Locked
from erofs_edge.build.scripted import machine_debs, run_scripts
from erofs_edge.errors import ReproducibilityError, SourceError
from erofs_edge.manifest.load import load_lock, load_system
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.deb import read_debs
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.sources.debian.scripted.compare import read_explanations
from erofs_edge.tree import Inode

pytestmark = pytest.mark.xdist_group("vm-scripts")

ESSENTIAL = """
    base-files base-passwd coreutils dash debianutils diffutils dpkg gcc-14-base grep libacl1 libattr1 libbz2-1.0
    libc-bin libc6 libcap2 libcrypt1 libdebconfclient0 libgcc-s1 libgmp10 liblzma5 libmd0 libpcre2-8-0 libselinux1
    libssl3t64 libsystemd0 libzstd1 mawk openssl-provider-legacy sed tar zlib1g
""".split()
CAPABILITY = b"\1\0\0\2\0\4\0\0" + bytes(12)
DEMO = b"""#!/bin/sh
set -e
cd /srv/demo
tar -xf /usr/share/demo/x.tar --xattrs '--xattrs-include=*'
echo "web:x:500:500::/srv:/bin/false" >>/etc/passwd
echo "web:x:500:" >>/etc/group
echo text >file; ln file hard; ln -s file soft
chown web:web file; chmod 4750 file
mknod device c 5 1; mknod fifo p
date +%s >/var/log/demo.log
sleep 100 &
"""


@pytest.fixture(scope="module")
def parts(stock: Callable[[str], Path], repository: Path) -> tuple[dict[str, Path], object]:
    """Debian's packages of the stock locks (name → file), and the machine."""
    locks = stock("qemu-aarch64") / "locks"

    def lock(name: str, folder: str) -> Path:
        return locks / name if (locks / name).exists() else repository / folder / name

    cache = Cache()
    board, system = load_lock(lock("qemu-aarch64.lock", "boards")), load_lock(lock("edge-base.lock", "manifests"))
    (kernel,) = fetch(board.packages["kernel"], host_mirror, cache).values()
    machine = machine_debs(kernel, fetch(board.packages["initramfs"], host_mirror, cache), "board")
    wanted = [package for package in system.packages["system"] if package.name in ESSENTIAL]
    assert len(wanted) == len(ESSENTIAL), set(ESSENTIAL) - {package.name for package in wanted}
    return fetch(wanted, host_mirror, cache), machine


@pytest.fixture
def subject(
    parts: tuple[dict[str, Path], object], tmp_path: Path, cache: Cache, repository: Path
) -> Callable[..., Subject]:
    def with_package(name: str, postinst: bytes, *members: object) -> Subject:
        path = tmp_path / f"{name}.deb"
        control = control_text(name, Depends="coreutils, tar")
        path.write_bytes(deb_bytes(members, control=control, info={"postinst": postinst}))  # type: ignore[arg-type]
        debs = {**parts[0], name: path}
        loaded = load_system(_manifest(tmp_path))
        lock = load_lock(repository / "manifests/edge-base.lock")
        lock = msgspec.structs.replace(lock, users={"web": 777}, groups={"web": 778})
        return Subject(Locked(loaded, lock), debs, read_debs(debs, cache), parts[1])  # type: ignore[arg-type]

    return with_package


def _manifest(folder: Path) -> Path:
    path = folder / "m.yaml"
    path.write_text("system: m\npackages: [demo]\n")
    return path


def test_scripts_run_and_everything_that_they_make_comes_back(
    subject: Callable[..., Subject], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = tarfile.TarInfo("capable")
    x.mode, x.size = 0o755, 1
    x.pax_headers = {"SCHILY.xattr.security.capability": CAPABILITY.decode("latin1")}
    payload = tar_bytes([(x, b"x")])
    one = subject("demo", DEMO, entry("./usr/share/demo/x.tar", payload), entry("./srv/demo/", kind=tarfile.DIRTYPE))
    made = run_scripts(one.locked, one.debs, one.machine, cache, packages=one.packages)
    tree = made.tree

    def at(name: str) -> Inode:
        node = tree.get(f"srv/demo/{name}")
        assert node is not None, name
        return node

    assert at("file") is at("hard") and at("file").read() == b"text\n" and at("file").origin == "demo"
    assert (at("file").mode, at("file").uid, at("file").gid) == (stat.S_IFREG | 0o4750, 777, 778), "the lock's numbers"
    assert at("soft").target == b"file" and at("device").rdev == (5, 1) and stat.S_ISFIFO(at("fifo").mode)
    assert at("capable").xattrs == {b"security.capability": CAPABILITY}
    assert made.unpinned == [] and tree.get("var/log/demo.log") is None and tree.get("usr/sbin/policy-rc.d") is None
    monkeypatch.setenv("EROFS_EDGE_QEMU", "/nowhere")
    again = run_scripts(one.locked, one.debs, one.machine, cache, packages=one.packages)
    assert again.tree.get("srv/demo/file") is not None, "no machine is started"

    found = compare_ways(one, read_explanations(), cache)
    unexplained = {d.path for d in found if not d.why and not d.path.startswith("/srv/demo")}
    # the account that our own script makes; units that no deb-systemd-helper is there to enable
    assert unexplained <= {"/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/systemd"}


@pytest.mark.long
def test_what_differs_in_each_run_is_named_with_its_package(subject: Callable[..., Subject], cache: Cache) -> None:
    # a package's turn is told a moment after it began, on a busy machine: its file comes well after that
    script = b"#!/bin/sh\nsleep 2\ncat /proc/sys/kernel/random/uuid >/etc/dice\necho same >/etc/same\n"
    one = subject("dice", script)
    with pytest.raises(ReproducibilityError) as failure:
        check_reproducible(one, cache)
    assert failure.value.message.splitlines()[1:] == ["    /etc/dice (content), made by dice"]
    assert failure.value.exit_code == 5


def test_a_script_that_fails_is_named_with_what_it_said(subject: Callable[..., Subject], cache: Cache) -> None:
    one = subject("broken", b"#!/bin/sh\necho the moon is missing >&2\nexit 3\n")
    with pytest.raises(SourceError, match="postinst script of broken failed with exit status 3") as failure:
        run_scripts(one.locked, one.debs, one.machine, cache, packages=one.packages)
    assert "\n    the moon is missing" in failure.value.message
    assert list((cache.root / "tmp").iterdir()) == []
