# SPDX-License-Identifier: Apache-2.0
"""Trees on the host, and images that the reference tools make of them."""

from __future__ import annotations

import os
import random
import socket
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

UUID = "00112233-4455-6677-8899-aabbccddeeff"
EPOCH = 1_000_000_000


def text(lines: int, word: str = "sample") -> bytes:
    return b"".join(b"line %06d of the %s text\n" % (i, word.encode()) for i in range(lines))


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def contents() -> dict[str, bytes]:
    """Return file contents around every relevant boundary: blocks, pclusters, compressible or not."""
    files = {f"size-{size}": text(size // 28 + 1)[:size] for size in (0, 1, 100, 4095, 4096, 4097, 8192, 12289, 65536)}
    files |= {f"noise-{size}": noise(size, size) for size in (10, 4000, 4096, 5000, 20480, 70001)}
    files["long"] = text(40_000)
    files["mixed"] = text(6000) + noise(30_000) + text(5000, "other") + bytes(200_000) + noise(9000, 2)
    files["twin"] = files["mixed"][1000:]
    files["repeat"] = text(3000) * 3 + noise(5000, 3) + text(3000)
    files["zeros"] = bytes(1 << 20)
    return files


def make_tree(root: Path, *, special: bool = True) -> Path:
    """Make a directory with every kind of file that the user may create, times with nanoseconds, xattrs, hard links."""
    root.mkdir()
    for name, data in contents().items():
        (root / name).write_bytes(data)
    many = root / "many"
    many.mkdir()
    for i in range(400):
        (many / (f"{i:03d}-" + "n" * (i % 200))).write_bytes(b"%d" % i)
    (root / "deep/er/est").mkdir(parents=True)
    (root / "deep/er/est/leaf").write_bytes(text(300))
    raw = os.fsencode(root)
    # mkfs.erofs 1.5 stops at names of 255 bytes
    for name in (b"!before-dot", b"-dash", b"\xff\xfe not utf-8", b"x" * 254, b"new\nline"):
        with open(raw + b"/" + name, "wb") as handle:
            handle.write(name * 3)
    (root / "link").symlink_to("deep/er")
    (root / "long-link").symlink_to("t/" * 1000 + "end")
    (root / "dangling").symlink_to("/nowhere")
    (root / "deep/second-name").hardlink_to(root / "long")
    (root / "third-name").hardlink_to(root / "long")
    with (root / "sparse").open("wb") as handle:
        handle.seek(300_000)
        handle.write(text(100))
        handle.truncate(900_001)
    for i in range(5):
        os.setxattr(root / f"many/{i:03d}-{'n' * i}", "user.shared", b"the same value in several files")
    os.setxattr(root / "long", "user.k", b"v1")
    os.setxattr(root / "deep", "user.on.a.directory", b"")
    os.setxattr(root / "mixed", "user.big", noise(900, 9))
    if special:
        os.mkfifo(root / "fifo")
        with socket.socket(socket.AF_UNIX) as sock:
            fd = os.open(root, os.O_RDONLY)
            try:
                sock.bind(f"/proc/self/fd/{fd}/socket")
            finally:
                os.close(fd)
        if os.geteuid() == 0:
            os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(300, 70000))
            os.chown(root / "size-100", 70000, 1 << 20)
    (root / "size-1").chmod(0o4755)
    (root / "size-100").chmod(0o000 if os.geteuid() == 0 else 0o400)  # mkfs.erofs must be able to read it
    (root / "deep").chmod(0o1777)
    paths = sorted(raw + b"/" + os.fsencode(p.relative_to(root)) for p in root.rglob("*"))
    for number, path in enumerate(reversed([raw, *paths])):
        os.utime(path, ns=(0, (EPOCH + number) * 1_000_000_000 + number * 1001), follow_symlinks=False)
    os.utime(root / "size-1", ns=(0, -5_000_000_000 + 7))
    os.utime(root / "size-4096", ns=(0, 4_000_000_000 * 1_000_000_000))
    return root


def mkfs(tool: str, image: Path, source: Path, options: Sequence[str]) -> Path:
    """Run a mkfs.erofs; if it fails, the error has its output."""
    image.touch()  # mkfs.erofs 1.5 does not create it
    command = [tool, f"-U{UUID}", *options, str(image), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return image
