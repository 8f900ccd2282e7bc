# SPDX-License-Identifier: Apache-2.0
"""The same board built twice, with everything changed that must not matter: every output byte is the same."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1200)
LEFT_OUT = {".state.json", ".lock"}  # private notes beside the outputs: times and inode numbers


def files(out: Path) -> dict[str, str]:
    """Name → SHA-256 of every output."""
    found = {}
    for path in sorted(out.iterdir()):
        if path.is_file() and path.name not in LEFT_OUT:
            with path.open("rb") as handle:
                found[path.name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return found


def copy_backwards(source: Path, target: Path) -> None:
    """Copy the same files in the opposite order, with other times and modes."""
    for path in sorted(source.rglob("*"), reverse=True):
        place = target / path.relative_to(source)
        if path.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.readlink())
        elif path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
            place.chmod(0o600)
            os.utime(place, ns=(1, 1))


@pytest.mark.parametrize("board", ["qemu-aarch64", "rpi4"])
def test_two_builds_give_the_same_bytes(
    board: str, stock: Callable[[str], Path], repository: Path, tmp_path: Path
) -> None:
    first = stock(board)
    checkout = tmp_path / "elsewhere" / "a checkout"
    for name in ("boards", "manifests"):
        copy_backwards(repository / name, checkout / name)
    for lock in (first / "locks").glob("*.lock"):  # what the first build had to lock anew, so does this one
        shutil.copy(lock, next(checkout.rglob(lock.name)))

    from erofs_edge.sources.cache import cache_root

    cache = tmp_path / "cache"
    shutil.copytree(cache_root() / "blobs", cache / "blobs", copy_function=os.link)  # packages only: all else is cold
    out = tmp_path / "out"
    # an unmapped user namespace gives the process another uid; the child has the C locale, an odd umask and time zone
    command = ["unshare", "--user", sys.executable, "-c", "import os; assert os.getuid() == 65534"]
    other_user = subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert other_user or "CI" not in os.environ, "user namespaces are needed for the comparison with another user"
    edge = [sys.executable, "-m", "erofs_edge.cli.main"]
    command = [*edge, "build", f"boards/{board}.yaml", "-o", str(out), "--jobs", "1", "--no-cache", "--json"]
    done = subprocess.run(
        ["unshare", "--user", *command] if other_user else command,
        cwd=checkout,
        umask=0o077,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "EROFS_EDGE_CACHE": str(cache),
            "EROFS_EDGE_KEYS": str(_keys()),
            "TZ": "Pacific/Kiritimati",
            "LC_ALL": "tr_TR.UTF-8",
            "PYTHONHASHSEED": "4242",
            "USER": "somebody",
            "LOGNAME": "somebody",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert files(out) == files(first)


def _keys() -> Path:
    from erofs_edge.trust.signer import keys_directory

    return keys_directory()
