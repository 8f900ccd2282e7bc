# SPDX-License-Identifier: Apache-2.0
"""A build's output folder made by hand, and a program that pretends to be QEMU."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from erofs_edge.boot.fdt import DeviceTree, Node, string, write
from erofs_edge.boot.fit import Image, build_fit
from erofs_edge.boot.initramfs import compress
from erofs_edge.disk import rollback, slots
from erofs_edge.disk.layout import plan_disk, write_disk
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.write import write_image
from erofs_edge.manifest.model import Board, Boot, Disk, Partition, Qemu, UBoot
from erofs_edge.manifest.verified import Verity
from erofs_edge.tree import BytesContent, FileTree, Inode
from erofs_edge.trust.signer import KeySigner, public_key_pem
from erofs_edge.verity.fec import Places, write_parity
from erofs_edge.verity.tree import append

ROOT_HASH = "d47b0f0a57c52bda6b5d2c548d0390cdf0f33446fa374beac7326eadb6a4f58c"
BOARD = Board(
    board="lab",
    disk=Disk(
        size="16M",
        partitions={
            "boot": Partition(size="1M", slots=["a", "b"], content="fit"),
            "system": Partition(size="1M", slots=["a", "b"], content="/lab.yaml"),
            "misc": Partition(size="1M", content="slot-state"),
            "data": Partition(size="rest", filesystem="ext4"),
        },
    ),
    boot=Boot(u_boot=UBoot(package="u-boot-qemu", path="/u-boot.bin"), cmdline=["console=ttyAMA0"]),
    verity=Verity(fec_roots=2),
    qemu=Qemu(),
)

BOARD_YAML = """
board: lab
disk:
  size: 16M
  partitions:
    boot: {size: 1M, slots: [a, b], content: fit}
    system: {size: 1M, slots: [a, b], content: lab.yaml}
    misc: {size: 1M, content: slot-state}
    data: {size: rest, filesystem: ext4}
boot:
  u_boot: {package: u-boot-qemu, path: /u-boot.bin}
  cmdline: [console=ttyAMA0]
qemu: {}
"""

FAKE = """#!{python} -SE
import json, os, re, signal, sys, time
here = {here!r}
plan = json.load(open(here + "/plan.json"))
arguments = sys.argv[1:]
with open(here + "/calls", "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
if arguments == ["--version"]:
    print(plan["version"])
    sys.exit(plan.get("version_code", 0))
dump = re.search(r"dumpdtb=([^,\\n]+)", "\\n".join(arguments))
if dump:
    if plan.get("dump", True):
        open(dump[1], "wb").write(open(here + "/machine.dtb", "rb").read())
    sys.exit(plan.get("dump_code", 0))
def end(*_):
    open(here + "/terminated", "w").close()
    os._exit(0)
signal.signal(signal.SIGTERM, end)
disk = re.search(r"file=([^,\\n]+)", "\\n".join(arguments))[1]
open(here + "/disk-seen", "wb").write(open(disk, "rb").read())
sys.stderr.write(plan.get("complaint", ""))
sys.stderr.flush()
serial = re.search(r"^file:(.+)$", "\\n".join(arguments), re.MULTILINE)
if serial:
    open(serial[1], "w").write(plan.get("serial", ""))
for piece in plan["console"]:
    if isinstance(piece, str):
        sys.stdout.write(piece)
        sys.stdout.flush()
    else:
        time.sleep(piece)
open(here + "/finished", "w").close()
sys.exit(plan.get("code", 0))
"""


class FakeQemu:
    """Set what it does with `plan`; `calls` are the arguments that it was started with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "qemu-system-aarch64"
        self.program.write_text(FAKE.format(python=sys.executable, here=str(folder)))
        self.program.chmod(0o755)
        (folder / "machine.dtb").write_bytes(
            write(DeviceTree(Node({"compatible": string("linux,dummy-virt")}, {"chosen": Node()})))
        )
        self.plan()

    def plan(
        self, *console: str | float, version: str = "QEMU emulator version 10.0.2 (Debian)", **more: object
    ) -> None:
        (self.folder / "plan.json").write_text(json.dumps({"console": console, "version": version} | more))

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def finished(self) -> bool:
        return (self.folder / "finished").exists()

    @property
    def terminated(self) -> bool:
        """Whether a machine was asked to end, as opposed to killed: QEMU then flushes, and restores the terminal."""
        return (self.folder / "terminated").exists()

    @property
    def disk_seen(self) -> bytes:
        """The disk image as the machine found it."""
        return (self.folder / "disk-seen").read_bytes()


def make_system(path: Path) -> bytes:
    """A small system with /sbin/init and another program, its hash tree of two levels and its parity; the root hash."""
    tree = FileTree()
    for folder in ("usr", "usr/bin", "usr/sbin"):
        tree.directory(folder)
    tree.add("sbin", Inode(stat.S_IFLNK | 0o777, target=b"usr/sbin"))
    content = b"".join(b"%07d\n" % number for number in range(1 << 16))
    tree.add("usr/sbin/init", Inode(stat.S_IFREG | 0o755, content=BytesContent(content)))
    tree.add("usr/bin/systemd-cgls", Inode(stat.S_IFREG | 0o755, content=BytesContent(content[:-65537:-1])))
    write_image(tree, path, WriteOptions(compression="none", epoch=0))
    info = append(path)
    write_parity(Places(path, path, roots=2, fec_offset=info.size), info.superblock)
    return info.root_hash


def make_build(out: Path, key: RSAPrivateKey) -> Path:
    out.mkdir()
    signer = KeySigner("dev", key)
    images = {
        "kernel": Image("kernel_noload", b"k" * 5000, "kernel"),
        "ramdisk": Image("ramdisk", compress(f"ROOT_HASH='{ROOT_HASH}'\n".encode() * 20), "ramdisk"),
    }
    (out / "boot.fit").write_bytes(build_fit(images, description="lab", epoch=0, signer=signer))
    (out / "system.root").write_bytes(make_system(out / "system.img"))
    (out / "state").write_bytes(rollback.with_minimum(slots.encode_state(slots.initial(["a", "b"])), 0))
    contents = {
        f"{name}_{slot}": out / file for name, file in (("boot", "boot.fit"), ("system", "system.img")) for slot in "ab"
    }
    write_disk(plan_disk(BOARD, contents | {"misc": out / "state"}, b"seed"), out / "disk.img")
    (out / "u-boot.bin").write_bytes(b"U-Boot")
    (out / "sign.pub.pem").write_bytes(public_key_pem(signer))
    release = {"format": 1, "sign": {"name": "dev"}, "system": {"root_hash": ROOT_HASH}}
    (out / "release.json").write_text(json.dumps(release))
    return out
