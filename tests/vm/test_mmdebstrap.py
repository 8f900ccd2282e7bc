# SPDX-License-Identifier: Apache-2.0
"""Packages configured by their scripts in our machine, and by mmdebstrap with the same packages.

mmdebstrap runs apt and dpkg as a Debian does, in a chroot, programs of arm64 under qemu-user (foreign.py). Both results
are freed of what varies in the same way. Every difference that is left is explained in mmdebstrap.yaml.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from erofs_edge.build.compare import ACCOUNTS, Subject, subject
from erofs_edge.build.scripted import run_scripts
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure.accounts import Ids
from erofs_edge.sources.debian.deb import Package
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.sources.debian.scripted.capture import configured_tree
from erofs_edge.sources.debian.scripted.compare import Difference, compare, explain, read_explanations
from erofs_edge.sources.tarball import read_members
from erofs_edge.toolbox.fetch import fetch_sets
from erofs_edge.toolbox.prefix import prefix
from erofs_edge.tree import BytesContent, FileTree

pytestmark = [pytest.mark.long, pytest.mark.root, pytest.mark.timeout(5400), pytest.mark.xdist_group("vm-scripts")]
LIST = Path(__file__).with_name("mmdebstrap.yaml")
SET = "mmdebstrap"
CPU = "cortex-a72"
"""without pointer authentication, each sign of which costs the emulator hundreds of instructions (ten times as long)"""


def repository_of(packages: list[Package], debs: Mapping[str, Path], folder: Path) -> None:
    """A flat repository (sources.list(5)) of exactly these packages."""
    folder.mkdir()
    stanzas = []
    for package in packages:
        name = f"{package.name}.deb"
        shutil.copyfile(debs[package.name], folder / name)
        fields = {**package.control, "Filename": f"./{name}", "Size": str((folder / name).stat().st_size)}
        fields["SHA256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        lines = (f"{key}:{'' if value.startswith(chr(10)) else ' '}{value}\n" for key, value in fields.items())
        stanzas.append("".join(lines))
    (folder / "Packages").write_text("\n".join(stanzas))


def mmdebstrap(one: Subject, folder: Path) -> Path:
    """What mmdebstrap makes of the packages, as an archive."""
    fetch_sets([SET], host_mirror, print)
    root, out = prefix() / "roots" / SET / "usr/bin", folder / "theirs.tar"
    repository_of(one.packages, one.debs, folder / "repository")
    (folder / "tmp").mkdir()
    command = [
        sys.executable, str(Path(__file__).with_name("foreign.py")), str(root / "qemu-aarch64-static"),
        "perl", str(root / "mmdebstrap"), "--mode=root", "--architectures=arm64", "--variant=essential",
        # a namespace may not make device nodes; the emulator is ours; the repository is not signed
        "--skip=check/qemu,check/signed-by,output/dev", "--format=tar",
        f"--include={','.join(package.name for package in one.packages)}",
        "", str(out), f"deb [trusted=yes] copy:{folder / 'repository'} ./",
    ]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "SOURCE_DATE_EPOCH": str(one.locked.lock.date)}
    environment["QEMU_CPU"] = CPU
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return out


def differences(one: Subject, archive: Path, cache: Cache) -> list[Difference]:
    """Ours first, mmdebstrap's second; accounts by name."""
    lock = one.locked.lock
    ours = run_scripts(one.locked, one.debs, one.machine, cache, packages=one.packages)
    members = read_members(archive, str(archive))
    theirs = configured_tree(members, archive, {}, one.packages, Ids.of(lock))
    trees = [ours.tree, theirs.tree]
    for tree in trees:
        _sort_accounts(tree)
    return explain(compare(*trees), read_explanations(LIST))


def _sort_accounts(tree: FileTree) -> None:
    for name in ACCOUNTS:
        node = tree.get(f"etc/{name}")
        assert node is not None, name
        node.content = BytesContent(b"".join(sorted(node.read().splitlines(keepends=True))))


@pytest.fixture
def edge_base(stock: Callable[[str], Path], repository: Path, tmp_path: Path) -> Subject:
    """The packages of edge-base: of the lock that a build of this run made anew, if it had to."""
    locks = stock("qemu-aarch64") / "locks"
    manifest, board = repository / "manifests/edge-base.yaml", repository / "boards/qemu-aarch64.yaml"
    if locks.exists():
        for folder in ("manifests", "boards"):
            shutil.copytree(repository / folder, tmp_path / folder)
        manifest, board = tmp_path / "manifests/edge-base.yaml", tmp_path / "boards/qemu-aarch64.yaml"
        for lock in locks.glob("*.lock"):
            for path in tmp_path.glob(f"*/{lock.name}"):
                shutil.copyfile(lock, path)
    return subject(manifest, board, Cache())


def test_scripts_make_what_mmdebstrap_makes(needs_root: None, edge_base: Subject, tmp_path: Path) -> None:
    found = differences(edge_base, mmdebstrap(edge_base, tmp_path), Cache())
    assert [(one.path, one.kind, one.first, one.second) for one in found if not one.why] == []
    reasons = {one.why for one in found}
    assert {one.why for one in read_explanations(LIST)} == reasons, "the list explains nothing that is not there"
