# SPDX-License-Identifier: Apache-2.0
"""The init script, run by the host's shell in a fake root: /sys, /proc, /dev are files; programs that need a kernel
record how they were called."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import erofs_edge.boot.initramfs
from erofs_edge.boot.initramfs import Fec, InitConfig
from erofs_edge.disk import rollback, slots

SCRIPT = Path(erofs_edge.boot.initramfs.__file__).with_name("init.sh")
GROW = SCRIPT.with_name("grow.sh")
MARKER = b"erofs-edge: formatting\n"
HASH = "12" * 32
SIZE = 2 << 20
MARKED = SIZE - (1 << 20)
"""where the marker is: one MiB before the end"""
STUBS = {
    "mount": 'case "$*" in *"$FAIL_MOUNT"*) echo "mount: bad"; exit 32;; esac',
    "insmod": 'case "$*" in *broken*) exit 1;; esac',
    "dmsetup": ': >"$ROOT/dev/mapper/root"',
    "mke2fs": ":",
    "reboot": "exit 0",
    "switch_root": "exit 0",
    "sync": ":",
    "umount": ":",
    "blockdev": ":",
    "resize2fs": ":",
}


@dataclass
class Machine:
    root: Path
    fail_mount: str = "NONE"
    script: str = ""
    calls: list[str] = field(default_factory=list)

    def run(self) -> list[str]:
        """Return the console's lines; `calls` has what the programs were asked to do, in order."""
        (self.root / "log").write_text("")
        environment = {"ROOT": str(self.root), "FAIL_MOUNT": self.fail_mount, "PATH": "/nowhere"}
        done = subprocess.run(
            ["/bin/sh", str(self.root / "init")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.calls = (self.root / "log").read_text().replace(str(self.root), "").splitlines()
        return (done.stdout + done.stderr).replace(str(self.root), "").splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    root = tmp_path
    for folder in ("bin", "dev/mapper", "proc", "modules/disk", "modules/erofs", "modules/data"):
        (root / folder).mkdir(parents=True)
    for folder in ("dev", "proc", "sys", "data", "var", "etc", "run", "sbin"):
        (root / "newroot" / folder).mkdir(parents=True)
    (root / "newroot/sbin/init").touch(0o755)
    (root / "dev/zero").symlink_to("/dev/zero")
    for name in ("disk/00-virtio.ko", "disk/01-dm.ko", "erofs/00-erofs.ko", "data/00-ext4.ko"):
        (root / "modules" / name).touch()
    for name, body in STUBS.items():
        path = root / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>"$ROOT/log"\n{body}\n')
        path.chmod(0o755)
    partitions = {"vda1": "boot_a", "vda2": "system_a", "vda3": "system_b", "vda4": "data", "vdb1": "data"}
    for name, label in partitions.items():
        folder = root / "sys/block" / name[:3] / name
        folder.mkdir(parents=True)
        (folder / "partition").write_text(f"{name[3:]}\n")
        (folder / "size").write_text("4096\n")
        (folder / "uevent").write_text(f"MAJOR=254\nDEVTYPE=partition\nPARTNAME={label}\n")
        (root / "dev" / name).write_bytes(bytes(SIZE))
    # a table that ends at the end of the disk
    (root / "sys/block/vda/queue").mkdir()
    (root / "sys/block/vda/queue/logical_block_size").write_text("512\n")
    (root / "sys/block/vda/size").write_text("65536\n")
    (root / "dev/vda").write_bytes(bytes(512) + b"EFI PART".ljust(32, b"\0") + (65535).to_bytes(8, "little"))
    (root / "grow").write_text(GROW.read_text().replace("/dev/", "$ROOT/dev/"))
    (root / "repair").write_text("starts_left() { echo 3; }\n")  # tests/boot/test_repair_script.py has the real one
    (root / "rollback").write_text(SCRIPT.with_name("rollback.sh").read_text())
    (root / "proc/cmdline").write_text("console=ttyAMA0 erofs_edge.slot=b quiet\n")
    config = InitConfig(HASH, "aa", 4096, 100, 101, "system", ("a", "b"), "data", cmdline="console=ttyAMA0 quiet")
    (root / "config").write_text(config.text())
    machine = Machine(root)
    machine.script = SCRIPT.read_text()
    ours = "sys|proc|dev|newroot|config|modules|missing|bin/dmsetup|bin/mke2fs|bin/resize2fs|grow|repair|rollback"
    absolute = rf"(?<![\w$}}*/])/(?=({ours})\b)"
    machine.script = re.sub(absolute, "$ROOT/", machine.script)
    machine.script = machine.script.replace("PATH=/bin ", "PATH=$ROOT/bin:/usr/bin:/bin ").replace("sleep 0.05", ":")
    machine.script = machine.script.replace("sleep 60", "exit 1").replace("sleep 1", ":")
    machine.script = machine.script.replace("reboot -f", "reboot -f; exit 1")
    (root / "init").write_text(machine.script)
    return machine


def test_stages_in_order(machine: Machine) -> None:
    (machine.root / "dev/vda4").write_bytes(b"\0" * 1080 + b"\x53\xef" + b"x" * 4096)
    assert machine.run() == [
        "erofs-edge: stage initramfs",
        f"erofs-edge: stage verity {HASH}",
        "erofs-edge: stage root erofs",
        "erofs-edge: stage data",
    ]
    assert (machine.root / "newroot/dev/console").read_text() == "erofs-edge: stage switch-root\n"
    table = f"0 800 verity 1 /dev/vda3 /dev/vda3 4096 4096 100 101 sha256 {HASH} aa"
    assert f"dmsetup create root --readonly --table {table}" in machine.calls
    order = [call.split()[0] for call in machine.calls]
    assert order[-1] == "switch_root"
    assert machine.calls.index("insmod /modules/disk/00-virtio.ko") < machine.calls.index(
        "insmod /modules/disk/01-dm.ko"
    )
    mounts = [call for call in machine.calls if call.startswith("mount") and "/newroot" in call]
    assert mounts[:4] == [
        "mount -t erofs -o ro /dev/mapper/root /newroot",
        "mount -t ext4 -o noatime,nosuid,nodev /dev/vda4 /newroot/data",
        "mount -o bind /newroot/data/var /newroot/var",
        "mount -t overlay -o nosuid,nodev,lowerdir=/newroot/etc,upperdir=/newroot/data/etc/upper,"
        "workdir=/newroot/data/etc/work overlay /newroot/etc",
    ]
    assert "mke2fs" not in order
    assert (machine.root / "newroot/run/erofs-edge/boot").read_text() == (
        f"slot=b\nroot_hash={HASH}\nrollback_index=0\n"
    )


def test_an_older_build_than_the_minimum_does_not_start(machine: Machine) -> None:
    """Whatever the boot script let through; equal and newer builds do start."""
    (machine.root / "sys/block/vda/vda1/uevent").write_text("PARTNAME=misc\n")
    (machine.root / "dev/vda4").write_bytes(b"\0" * 1080 + b"\x53\xef" + b"x" * 4096)
    for version, starts in ((3, False), (4, True), (5, True)):
        config = InitConfig(
            HASH, "aa", 4096, 100, 101, "system", ("a", "b"), "data", cmdline="console=ttyAMA0 quiet",
            rollback_index=version, state="misc",
        )  # fmt: skip
        (machine.root / "config").write_text(config.text())
        (machine.root / "dev/vda1").write_bytes(rollback.with_minimum(bytes(slots.STATE_SIZE), 4))
        lines = machine.run()
        assert (f"erofs-edge: stage verity {HASH}" in lines) == starts
        assert ("erofs-edge: FAILED rollback: this build has version 3, the minimum is 4" in lines) != starts
        assert any(call.startswith("dmsetup") for call in machine.calls) == starts


@pytest.mark.parametrize(("left", "mends"), [("0", True), ("1", True), ("2", False), ("3", False), ("", False)])
def test_a_slot_that_has_failed_before_is_looked_through_first(machine: Machine, left: str, mends: bool) -> None:
    (machine.root / "sys/block/vda/vda1/uevent").write_text("PARTNAME=misc\n")
    (machine.root / "dev/vda4").write_bytes(b"\0" * 1080 + b"\x53\xef" + b"x" * 4096)
    config = InitConfig(
        HASH, "aa", 4096, 100, 101, "system", ("a", "b"), "data", cmdline="console=ttyAMA0 quiet", state="misc",
        fec=Fec(2, 102, 103),
    )  # fmt: skip
    (machine.root / "config").write_text(config.text())
    (machine.root / "repair").write_text(
        f'starts_left() {{ case "$*" in "b "*/dev/vda1) echo "{left}" ;; esac; }}\n'
        'mend_slot() { echo "looked through $*" >>"$ROOT/log"; }\n'
    )
    machine.run()
    looked = [call for call in machine.calls if call.startswith("looked through")]
    options = "use_fec_from_device /dev/vda3 fec_roots 2 fec_blocks 102 fec_start 103"
    assert looked == ([f"looked through {options}"] if mends else [])
    assert any(call.startswith("dmsetup create root") for call in machine.calls)


@pytest.mark.parametrize(
    ("cmdline", "device"), [("", "vda2"), ("erofs_edge.slot=a", "vda2"), ("  erofs_edge.slot=b  ", "vda3")]
)
def test_slot_of_the_command_line(machine: Machine, cmdline: str, device: str) -> None:
    (machine.root / "proc/cmdline").write_text(f"console=ttyAMA0 {cmdline} quiet\n")
    machine.run()
    assert any(f"verity 1 /dev/{device} " in call for call in machine.calls)


@pytest.mark.parametrize(
    ("policy", "fec", "options"),
    [
        ("eio", None, ""),
        ("restart", None, " 1 restart_on_corruption"),
        ("panic", None, " 1 panic_on_corruption"),
        (
            "restart",
            Fec(2, 102, 103),
            " 9 restart_on_corruption use_fec_from_device /dev/vda3 fec_roots 2 fec_blocks 102 fec_start 103",
        ),
        ("eio", Fec(24, 1, 2), " 8 use_fec_from_device /dev/vda3 fec_roots 24 fec_blocks 1 fec_start 2"),
    ],
)
def test_what_verity_does_with_bad_blocks(machine: Machine, policy: Any, fec: Fec | None, options: str) -> None:
    config = InitConfig(
        HASH,
        "aa",
        4096,
        100,
        101,
        "system",
        ("a", "b"),
        "data",
        policy,
        cmdline="console=ttyAMA0 quiet",
        fec=fec,
        rollback_index=7,
    )
    (machine.root / "config").write_text(config.text())
    assert machine.run()[-1] == "erofs-edge: stage data"
    (created,) = [call for call in machine.calls if call.startswith("dmsetup")]
    assert created.endswith(f"sha256 {HASH} aa{options}")
    assert (machine.root / "newroot/run/erofs-edge/boot").read_text().endswith("\nrollback_index=7\n")


def broken(machine: Machine, change: str) -> None:
    root = machine.root
    changes: dict[str, Callable[[], object]] = {
        "slot": lambda: (root / "proc/cmdline").write_text("console=ttyAMA0 quiet erofs_edge.slot=c\n"),
        "slot-shell": lambda: (root / "proc/cmdline").write_text("console=ttyAMA0 quiet erofs_edge.slot=$(reboot)\n"),
        "more": lambda: (root / "proc/cmdline").write_text("console=ttyAMA0 quiet erofs_edge.slot=b init=/bin/sh\n"),
        "less": lambda: (root / "proc/cmdline").write_text("console=ttyAMA0 erofs_edge.slot=b\n"),
        "no-system": lambda: (root / "sys/block/vda/vda3/uevent").write_text("PARTNAME=other\n"),
        "dmsetup": lambda: (root / "bin/dmsetup").write_text("#!/bin/sh\necho no target; exit 1\n"),
        "corrupt": lambda: (root / "bin/dmsetup").write_text("#!/bin/sh\n"),
        "erofs": lambda: setattr(machine, "fail_mount", "erofs"),
        "no-data-folder": (root / "newroot/data").rmdir,
        "data-elsewhere": lambda: (root / "sys/block/vda/vda4/uevent").write_text("PARTNAME=other\n"),
        "overlay": lambda: setattr(machine, "fail_mount", "overlay"),
        "no-init": (root / "newroot/sbin/init").unlink,
        "no-proc": lambda: setattr(machine, "fail_mount", "move"),
    }
    changes[change]()


@pytest.mark.parametrize(
    ("change", "stage", "words"),
    [
        ("more", "initramfs", "not those of this build: console=ttyAMA0 quiet init=/bin/sh"),
        ("less", "initramfs", "not those of this build: console=ttyAMA0"),
        ("slot", "verity", "there is no slot 'c'"),
        ("slot-shell", "verity", "there is no slot '$(reboot)'"),
        ("no-system", "verity", "no partition is labelled 'system_b'"),
        ("dmsetup", "verity", "no mapping of /dev/vda3: no target"),
        ("corrupt", "verity", f"/dev/vda3 does not match the root hash {HASH}"),
        ("erofs", "root", "mount: bad"),
        ("no-data-folder", "data", "no directory /data"),
        ("data-elsewhere", "data", "no partition of vda is labelled 'data'"),
        ("overlay", "data", "/etc cannot be laid over"),
        ("no-init", "switch-root", "no /sbin/init"),
        ("no-proc", "switch-root", "no directory /dev"),
    ],
)
def test_failures_say_stage_and_reason_and_restart(machine: Machine, change: str, stage: str, words: str) -> None:
    (machine.root / "modules/disk/02-broken.ko").touch()
    broken(machine, change)
    lines = [line for line in machine.run() if "FAILED" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"erofs-edge: FAILED {stage}: ")
    assert words in lines[0]
    assert "02-broken.ko" in lines[0], "what did not load is said"
    assert [call for call in machine.calls if not call.startswith("insmod")][-2:] == ["sync ", "reboot -f"]
    assert "switch_root" not in " ".join(machine.calls)


def test_blank_partition_is_formatted_and_the_marker_goes(machine: Machine) -> None:
    mount = machine.root / "bin/mount"
    mount.write_text(
        '#!/bin/sh\necho "mount $*" >>"$ROOT/log"\n'
        'case "$*" in *ext4*) grep -q mke2fs "$ROOT/log" || { echo bad; exit 1; };; esac\n'
    )
    mke2fs = machine.root / "bin/mke2fs"
    mke2fs.write_text(
        '#!/bin/sh\necho "mke2fs $*" >>"$ROOT/log"\ntail -c 1048576 "$ROOT/dev/vda4" | head -c 23 >"$ROOT/seen"\n'
    )
    assert machine.run()[-1] == "erofs-edge: stage data"
    assert next(call for call in machine.calls if call.startswith("mke2fs")).endswith("/dev/vda4 1024k")
    assert (machine.root / "seen").read_bytes() == MARKER, "the marker stands while the file system is made"
    assert (machine.root / "dev/vda4").read_bytes() == bytes(SIZE), "and is gone afterwards"


def test_interrupted_formatting_is_done_again(machine: Machine) -> None:
    half = (b"half made" * 999).ljust(MARKED, b"\0") + MARKER
    (machine.root / "dev/vda4").write_bytes(half.ljust(SIZE, b"\0"))
    assert machine.run()[-1] == "erofs-edge: stage data"
    order = [call.split()[0] for call in machine.calls]
    assert order.count("mke2fs") == 1
    assert order.index("mke2fs") < machine.calls.index("mount -t ext4 -o noatime,nosuid,nodev /dev/vda4 /newroot/data")
    assert (machine.root / "dev/vda4").read_bytes()[MARKED:] == bytes(SIZE - MARKED)


@pytest.mark.parametrize("content", [b"\0" * 5000 + b"somebody's", b"\x53\xef" * 100, bytes((1 << 20) - 1) + b"x"])
def test_what_does_not_mount_is_never_overwritten(machine: Machine, content: bytes) -> None:
    device = machine.root / "dev/vda4"
    device.write_bytes(content)
    machine.fail_mount = "ext4"
    failed = [line for line in machine.run() if "FAILED" in line]
    assert failed == [
        "erofs-edge: FAILED data: /dev/vda4 is not blank and does not mount, it is left as it is: mount: bad"
    ]
    assert device.read_bytes() == content
    assert not [call for call in machine.calls if call.startswith("mke2fs")]


def test_factory_reset_makes_the_partition_anew(machine: Machine) -> None:
    (machine.root / "newroot/data/.factory-reset").touch()
    assert "erofs-edge: factory reset" in machine.run()
    order = [call.split()[0] for call in machine.calls if "/newroot/data" in call or "mke2fs" in call]
    assert order[:4] == ["mount", "umount", "mke2fs", "mount"]


@pytest.mark.parametrize(("blocks", "resized"), [(1024, False), (512, True)])
def test_a_file_system_smaller_than_its_partition_grows(machine: Machine, blocks: int, resized: bool) -> None:
    superblock = (
        blocks.to_bytes(4, "little").rjust(8, b"\0").ljust(24, b"\0") + (0).to_bytes(32, "little") + b"\x53\xef"
    )
    (machine.root / "dev/vda4").write_bytes((bytes(1024) + superblock).ljust(SIZE, b"\0"))
    (machine.root / "sys/block/vda/vda4/size").write_text("6144\n" if resized else "4096\n")
    machine.run()
    assert ("resize2fs /dev/vda4 2048k" in machine.calls) == resized


def test_named_paths_of_etc_are_kept_and_start_as_the_system_has_them(machine: Machine) -> None:
    config = InitConfig(
        HASH,
        "aa",
        4096,
        100,
        101,
        "system",
        ("a", "b"),
        "data",
        etc=("/etc/ssh", "/etc/id"),
        cmdline="console=ttyAMA0 quiet",
    )
    (machine.root / "config").write_text(config.text())
    (machine.root / "newroot/etc/ssh").mkdir()
    (machine.root / "newroot/etc/ssh/key").write_text("stock")
    (machine.root / "newroot/etc/id").write_text("")
    assert machine.run()[-1] == "erofs-edge: stage data"
    kept = machine.root / "newroot/data/etc/bound/etc"
    assert (kept / "ssh/key").read_text() == "stock"
    assert "mount -o bind /newroot/data/etc/bound/etc/id /newroot/etc/id" in machine.calls
    assert not [call for call in machine.calls if "overlay" in call]
    (kept / "ssh/key").write_text("changed")
    machine.run()
    assert (kept / "ssh/key").read_text() == "changed"


def test_board_without_slots_and_data(machine: Machine) -> None:
    config = InitConfig(HASH, "", 4096, 100, 101, "boot_a", (), "", cmdline="console=ttyAMA0 quiet")
    (machine.root / "config").write_text(config.text())
    assert machine.run()[-1] == "erofs-edge: stage data"
    assert any("verity 1 /dev/vda1 " in call and call.endswith(f"{HASH} -") for call in machine.calls)
    assert "mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /newroot/data" in machine.calls


def test_real_mke2fs_leaves_the_marker_alone(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    """With the options of the script and the mke2fs that the initramfs carries."""
    device = tmp_path / "device"
    device.write_bytes(bytes(16 << 20) + MARKER.ljust(1 << 20, b"\0"))
    line = next(line for line in SCRIPT.read_text().splitlines() if "/bin/mke2fs -q" in line)
    options = line.split("/bin/mke2fs ")[1].split(' "$device"')[0].replace('"$DATA"', "data").split()
    subprocess.run([oracle("mke2fs"), *options, str(device), "16384k"], check=True, capture_output=True)
    assert device.read_bytes()[1080:1082] == b"\x53\xef"
    assert device.read_bytes()[16 << 20 :] == MARKER.ljust(1 << 20, b"\0")
    subprocess.run([oracle("e2fsck"), "-fn", str(device)], check=True, capture_output=True)
