# SPDX-License-Identifier: Apache-2.0
"""The tree of an image made while the image is written is the one that is made afterwards."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from erofs_edge.errors import UsageError
from erofs_edge.verity.blocks import hash_blocks
from erofs_edge.verity.meanwhile import BlockDigests, Meanwhile
from erofs_edge.verity.superblock import Superblock
from erofs_edge.verity.tree import append

SHARED = """
import os, random, shutil, signal, stat, sys
from pathlib import Path
from erofs_edge.verity import tree
from erofs_edge.verity.meanwhile import Meanwhile

HERE = Path(sys.argv[1])
def compare(path, digests, salt, size=4096, algorithm="sha256"):
    assert digests is not None, "nobody has followed"
    later = HERE / "later"
    shutil.copy(path, later)
    options = dict(salt=salt, block_size=size, algorithm=algorithm)
    assert tree.append(path, digests=digests, **options) == tree.append(later, **options)
    assert path.read_bytes() == later.read_bytes()
    later.unlink()
def nothing_left():
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("no process is left")
"""

IMAGES = """
from erofs_edge.erofs.write import WriteOptions, write_image
from erofs_edge.erofs.profile import read_profile
from erofs_edge.tree import BytesContent, FileTree, Inode

chance = random.Random(5)
def files(words):
    found = FileTree()
    for name, data in {
        "a": chance.randbytes(5000), "noise": random.Random(1).randbytes(9 << 18), "text": b"words " * (1 << 18),
        "changed": words * 100000, "lib/x": bytes(range(256)) * 9000, "lib/y": b"y" * 77,
    }.items():
        found.add(name, Inode(stat.S_IFREG | 0o644, content=BytesContent(data)))
    return found
(HERE / "profile").write_text("/lib/x\\n/a\\n")
(HERE / "ranges").write_text("/noise 1048576 65536\\n/text 0 4096\\n/a\\n")
profile = read_profile(HERE / "profile")
first = HERE / "first"
lz4 = dict(compression="lz4", pcluster=65536, epoch=1, times="fixed")
for number, (options, size, algorithm) in enumerate((
    (WriteOptions(**lz4), 4096, "sha256"),
    (WriteOptions(compression="none", epoch=1, profile=profile), 16384, "sha512"),
    (WriteOptions(**lz4, fragments="all"), 1024, "sha256"),
    (WriteOptions(**lz4, profile=read_profile(HERE / "ranges")), 4096, "sha512"),
    (WriteOptions(**lz4, baseline=first), 4096, "sha256"),
    (WriteOptions(**lz4, baseline=first, profile=profile), 65536, "sha256"),
)):
    path, salt = HERE / f"image{number}", bytes([number] * 32)
    with Meanwhile(salt, size, algorithm) as meanwhile:
        info = write_image(files(b"new" * (number + 1)), path, options, meanwhile)
        digests = meanwhile.digests(info.size)
    if not number:
        shutil.copy(path, first)
    compare(path, digests, salt, size, algorithm)
nothing_left()
"""

SINK = """
from erofs_edge.erofs.output import replacing
import threading

def written(name, chance, size=4096, kill=False):
    path = HERE / name
    with Meanwhile(b"salt", size) as meanwhile:
        with replacing(path, follower=meanwhile) as sink:
            for step in range(240):
                if step % 40 == 39:
                    sink.rewind(chance.randrange(sink.position))
                elif step % 7 == 6 and sink.position:
                    sink.flush()
                    sink.write_at(chance.randrange(sink.position), chance.randbytes(3000))
                else:
                    sink.append([chance.randbytes(chance.randrange(60000))])
                if kill and step == 200:
                    os.kill(meanwhile._child, signal.SIGKILL)
            end = sink.position + chance.randrange(50000)
            sink.finish(end)
            sink.write_at(0, b"head")
            if kill == "at the end":
                os.kill(meanwhile._child, signal.SIGKILL)
        return path, meanwhile.digests(end)

for seed in range(6):
    path, digests = written(f"{seed}", random.Random(seed), [4096, 65536, 512][seed % 3])
    compare(path, digests, b"salt", [4096, 65536, 512][seed % 3])
assert written("killed", random.Random(7), kill=True)[1] is None
assert written("dead", random.Random(8), kill="at the end")[1] is None
try:
    with Meanwhile(b"salt") as meanwhile, replacing(HERE / "fails", follower=meanwhile) as sink:
        sink.append([bytes(9 << 20)])
        sink.flush()
        raise KeyError
except KeyError:
    assert not (HERE / "fails").exists()
done = threading.Event()
other = threading.Thread(target=done.wait)
other.start()
assert written("threads", random.Random(9))[1] is None, "nothing is forked beside threads"
done.set()
other.join()
nothing_left()
"""


@pytest.mark.parametrize("program", [IMAGES, SINK], ids=["images", "sink"])
def test_the_tree_is_the_one_made_afterwards(program: str, tmp_path: Path) -> None:
    """In a program of its own: where pytest runs, there are threads beside it, and nothing is forked."""
    done = subprocess.run(
        [sys.executable, "-c", SHARED + program, str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "no process is left\n"), done.stderr


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_blocks_in_any_order(algorithm: str) -> None:
    chance = random.Random(3)
    data = bytearray(chance.randbytes(50 * 1024 - 7))
    sb = Superblock(bytes(16), b"salt", 50, algorithm, 1024, 4096)
    found = BlockDigests(sb)
    found.take(40 * 1024, bytes(data[40 * 1024 :]))
    found.take(0, bytes(data[: 20 * 1024]))
    data[5000:9000] = bytes(4000)
    found.take(20 * 1024, bytes(data[20 * 1024 : 40 * 1024]))
    found.take(4 * 1024, bytes(data[4 * 1024 : 9 * 1024]))
    assert found.slots(50) == hash_blocks(bytes(data) + bytes(7), 1024, sb)
    assert found.slots(10) == hash_blocks(bytes(data[: 10 * 1024]), 1024, sb)


def test_digests_of_something_else_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(5 * 4096))
    for given in ({"digests": bytes(4 * 32), "salt": b"salt"}, {"digests": bytes(5 * 32)}):
        with pytest.raises(UsageError, match="not the digests of this image"):
            append(image, **given)  # type: ignore[arg-type]
    assert image.read_bytes() == bytes(5 * 4096)


def test_without_a_process_nothing_is_said() -> None:
    with Meanwhile(b"salt") as meanwhile:
        meanwhile.written(1 << 20)
        meanwhile.changed(0, 4096)
        assert meanwhile.digests(1 << 20) is None
