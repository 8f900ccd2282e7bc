# SPDX-License-Identifier: Apache-2.0
"""The init script of a diskless board, run by the host's bash in a fake root: programs that need a kernel or a network
record how they were called."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from waiting import eventually

import erofs_edge.boot.initramfs
import erofs_edge.diskless.start
from erofs_edge.boot.initramfs import InitConfig

INIT = Path(erofs_edge.boot.initramfs.__file__).with_name("init.sh")
DISKLESS = Path(erofs_edge.diskless.start.__file__).with_name("diskless.sh")
HASH = "12" * 32
SYSTEM = "nbd hostname=192.0.2.1 port=10809 export=system retries=1000000000 retry-delay=1 retry-exponential=no"
NBDKIT = """socket=
for word; do case $word in -U) ;; */run/nbd?) socket=$word;; esac; done
[ -z "$FAIL_NBDKIT" ] || { echo "nbdkit: error: $FAIL_NBDKIT"; exit 1; }
perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 1)' "$socket\""""
STUBS = {
    "mount": ":", "insmod": ":", "dmsetup": ': >"$ROOT/dev/mapper/root"', "mke2fs": ":", "reboot": "exit 0",
    "switch_root": "exit 0", "sync": ":", "umount": ":", "blockdev": ":", "resize2fs": ":", "ip": ":",
    "udhcpc": '[ -z "$FAIL_DHCP" ] || { echo "udhcpc: no lease, failing"; exit 1; }',
    "nbd-client": '[ -z "$FAIL_CLIENT" ] || { echo "Error: $FAIL_CLIENT"; exit 1; }',
    "nbdkit": NBDKIT.rstrip('"') + '"',
}  # fmt: skip


@dataclass
class Machine:
    root: Path
    calls: list[str] = field(default_factory=list)

    def config(self, **values: str) -> None:
        config = InitConfig(HASH, "aa", 4096, 100, 101, "system", (), "", cmdline="console=ttyAMA0")
        more = {"SYSTEM_FILTERS": "--filter=retry", "SYSTEM_FROM": SYSTEM, "DATA_FROM": "", "READAHEAD": "32"} | values
        text = config.text() + "".join(f"{name}='{value}'\n" for name, value in more.items())
        (self.root / "config").write_text(text)

    def run(self, **environment: str) -> list[str]:
        """Return the console's lines; `calls` has what the programs were asked to do, in order."""
        (self.root / "log").write_text("")
        done = subprocess.run(
            ["/bin/bash", str(self.root / "init")],
            env={"ROOT": str(self.root), "PATH": "/nowhere", **environment},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        self.calls = (self.root / "log").read_text().replace(str(self.root), "").splitlines()
        return (done.stdout + done.stderr).replace(str(self.root), "").splitlines()


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    root = tmp_path_factory.mktemp("m")  # a socket's path is short
    for folder in ("bin", "run", "dev/mapper", "proc", "modules/disk", "modules/erofs", "modules/data"):
        (root / folder).mkdir(parents=True)
    for folder in ("dev", "proc", "sys", "data", "var", "etc", "run", "sbin"):
        (root / "newroot" / folder).mkdir(parents=True)
    (root / "newroot/sbin/init").touch(0o755)
    (root / "dev/zero").symlink_to("/dev/zero")
    for number in range(4):
        (root / f"dev/nbd{number}").write_bytes(bytes(2 << 20))
        (root / f"sys/block/nbd{number}").mkdir(parents=True)
        (root / f"sys/block/nbd{number}/size").write_text("4096\n")
    (root / "sys/block/dm-0/queue").mkdir(parents=True)
    for name in ("lo", "eth0"):
        (root / "sys/class/net" / name).mkdir(parents=True)
        (root / "sys/class/net" / name / "address").write_text("52:54:00:12:34:56\n")
    for name, body in STUBS.items():
        path = root / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>"$ROOT/log"\n{body}\n')
        path.chmod(0o755)
    (root / "proc/cmdline").write_text("console=ttyAMA0\n")
    ours = r"sys|proc|dev|newroot|config|modules|missing|prefetch|diskless|grow|tls|keep|run|ahead"
    ours += r"|bin/(?:dmsetup|mke2fs|resize2fs|nbdkit|nbd-client|leased|busybox)"
    for name, source in (("init", INIT), ("diskless", DISKLESS), ("grow", INIT.with_name("grow.sh"))):
        script = re.sub(rf"(?<![\w$}}*/])/(?=({ours})\b)", "$ROOT/", source.read_text())
        script = script.replace("PATH=/bin ", "PATH=$ROOT/bin:/usr/bin:/bin ").replace("exec -a @nbdkit", "exec")
        script = re.sub(r"\bsleep (?:0\.25|1)$", ":", script, flags=re.MULTILINE).replace("sleep 60", "exit 1")
        (root / name).write_text(script.replace("reboot -f", "reboot -f; exit 1"))
    machine = Machine(root)
    machine.config()
    return machine


def test_the_system_comes_over_the_network(machine: Machine) -> None:
    assert machine.run() == [
        "erofs-edge: stage initramfs",
        f"erofs-edge: stage verity {HASH}",
        "erofs-edge: stage root erofs",
        "erofs-edge: stage data",
    ]
    calls = machine.calls
    assert "udhcpc -f -n -q -t 5 -T 1 -i eth0 -s /bin/leased" in calls
    assert f"nbdkit -f -U /run/nbd0 --filter=retry {SYSTEM}" in calls
    assert "nbd-client -unix /run/nbd0 /dev/nbd0 -N  -b 4096 -C 1" in calls
    table = f"0 800 verity 1 /dev/nbd0 /dev/nbd0 4096 4096 100 101 sha256 {HASH} aa"
    assert f"dmsetup create root --readonly --table {table}" in calls
    assert "mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /newroot/data" in calls
    order = [call.split()[0] for call in calls]
    assert order.index("udhcpc") < order.index("nbdkit") < order.index("nbd-client") < order.index("dmsetup")
    assert order[-1] == "switch_root"
    network = (machine.root / "newroot/run/systemd/network/10-diskless.network").read_text()
    assert network == "[Match]\nMACAddress=52:54:00:12:34:56\n[Network]\nDHCP=ipv4\nKeepConfiguration=yes\n"
    assert (machine.root / "sys/block/dm-0/queue/read_ahead_kb").read_text() == "32\n"


def test_the_data_comes_over_the_network_too_and_is_formatted_when_blank(machine: Machine) -> None:
    machine.config(DATA="data", DATA_FROM="nbd hostname=192.0.2.1 port=1 export=data/", DATA_ID="mac")
    assert machine.run()[-1] == "erofs-edge: stage data"
    retry = "retries=1000000000 retry-delay=1 retry-exponential=no"
    assert (
        f"nbdkit -f -U /run/nbd1 --filter=retry nbd hostname=192.0.2.1 port=1 export=data/52-54-00-12-34-56 {retry}"
        in machine.calls
    )
    assert "mount -t ext4 -o noatime,nosuid,nodev /dev/nbd1 /newroot/data" in machine.calls


def _with_disk(machine: Machine, state: bytes) -> Path:
    """Add a disk whose system partition has this state in its last 4 KiB."""
    machine.config(KEEP="system_a")
    folder = machine.root / "sys/block/vda/vda3"
    folder.mkdir(parents=True)
    (folder / "partition").write_text("3\n")
    (folder / "size").write_text("4096\n")
    (folder / "uevent").write_text("DEVTYPE=partition\nPARTNAME=system_a\n")
    for name in ("keep", "keep.service"):
        (machine.root / name).write_text(DISKLESS.with_name({"keep": "keep.sh"}.get(name, name)).read_text())
    device = machine.root / "dev/vda3"
    device.write_bytes(bytes((4096 - 8) * 512) + state.ljust(4096, b"\0"))
    return device


def _state(device: Path) -> bytes:
    return device.read_bytes()[-4096:].rstrip(b"\0")


@pytest.mark.parametrize(
    "state", [b"", b"erofs-edge blank\n", f"erofs-edge installing {HASH} 8\n".encode(),
              f"erofs-edge installed {HASH} 2\n".encode(), f"erofs-edge installed {'34' * 32} 0\n".encode()]
)  # fmt: skip
def test_a_copy_that_is_not_whole_not_this_one_or_fails_to_start_is_not_used(machine: Machine, state: bytes) -> None:
    device = _with_disk(machine, state)
    machine.run()
    assert any(call.startswith("nbdkit") for call in machine.calls)
    assert any("verity 1 /dev/nbd0 /dev/nbd0" in call for call in machine.calls)
    assert _state(device) == state
    unit = (machine.root / "newroot/run/systemd/system/erofs-edge-keep.service").read_text()
    assert unit.replace(str(machine.root), "").endswith("\nExecStart=/bin/sh /run/erofs-edge/keep install\n")
    values = (machine.root / "newroot/run/erofs-edge/keep.values").read_text().replace(str(machine.root), "")
    assert values == f"KEPT='/dev/vda3'\nMARK='4088'\nROOT_HASH='{HASH}'\n"
    assert (machine.root / "newroot/run/systemd/system/multi-user.target.wants/erofs-edge-keep.service").exists()


def test_a_whole_copy_starts_without_the_network_and_each_attempt_is_counted(machine: Machine) -> None:
    device = _with_disk(machine, f"erofs-edge installed {HASH} 0\n".encode())
    lines = machine.run()
    assert "erofs-edge: the system is the one that is installed on /dev/vda3" in lines
    assert lines[-1] == "erofs-edge: stage data"
    assert not any(call.startswith(("nbdkit", "udhcpc")) for call in machine.calls)
    assert any("verity 1 /dev/vda3 /dev/vda3" in call for call in machine.calls)
    assert _state(device) == f"erofs-edge installed {HASH} 1\n".encode()
    unit = (machine.root / "newroot/run/systemd/system/erofs-edge-keep.service").read_text()
    assert unit.endswith("keep worked\n")


@pytest.mark.parametrize("fault", ["", "verity", "cut"])
def test_a_copy_is_made_and_proved_before_it_counts(tmp_path: Path, fault: str) -> None:
    """The script in the running system, with files as devices and a fake dmsetup that succeeds or fails."""
    source, target = tmp_path / "nbd0", tmp_path / "vda3"
    content = random.Random(4).randbytes((3 << 20) + 8192)
    source.write_bytes(content)
    target.write_bytes(bytes(5 << 20))
    mark = (5 << 20) // 512 - 8
    stubs = {
        "dmsetup": 'echo "dmsetup $*" >>"$ROOT/log"\n'
        '[ "$1" != table ] || echo "0 8 verity 1 43:0 43:0 4096 4096 1 2 sha256 '
        f'{HASH} aa 1 restart_on_corruption"\nrm -f "$ROOT/kept"; [ "$FAULT" = verity ] || : >"$ROOT/kept"',
        "blockdev": f"echo {len(content)}",
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "values").write_text(f"KEPT='{target}'\nMARK='{mark}'\nROOT_HASH='{HASH}'\n")
    script = DISKLESS.with_name("keep.sh").read_text()
    for old, new in (
        ("/run/erofs-edge/keep.values", tmp_path / "values"), ("/dev/nbd0", source),
        ("/dev/console", tmp_path / "said"), ("/dev/mapper/kept", tmp_path / "kept"), (" iflag=direct", ""),
    ):  # fmt: skip
        script = script.replace(old, str(new))
    if fault == "cut":  # an earlier attempt has come to the second MiB: what is there is not copied again
        with target.open("r+b") as file:
            file.write(b"kept before")
            file.seek(mark * 512)
            file.write(f"erofs-edge installing {HASH} 1\n".encode())
    done = subprocess.run(
        ["/bin/sh", "-c", script, "keep", "install"], check=False, capture_output=True, text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "ROOT": str(tmp_path), "FAULT": fault},
    )  # fmt: skip
    copied = target.read_bytes()[: len(content)]
    if fault == "verity":
        assert done.returncode == 1
        assert _state(target) == b"erofs-edge blank\n"
        assert "could not be installed" in (tmp_path / "said").read_text()
        return
    assert done.returncode == 0, done.stderr
    assert copied == (b"kept before" + bytes((1 << 20) - 11) if fault else content[: 1 << 20]) + content[1 << 20 :]
    assert _state(target) == f"erofs-edge installed {HASH} 0\n".encode()
    table = f"0 8 verity 1 {target} {target} 4096 4096 1 2 sha256 {HASH} aa"
    assert f"dmsetup create kept --readonly --table {table}\n" in (tmp_path / "log").read_text()


def test_what_is_fetched_ahead_is_read_in_its_order(machine: Machine) -> None:
    """By a program, and from two separate devices, which still exist after the change of the root."""
    (machine.root / "prefetch").write_text("5 64\n90 1\n7 2\n400 3\n")
    (machine.root / "dev/null").symlink_to("/dev/null")
    busybox = machine.root / "bin/busybox"
    # the root changes during the first read: programs and devices disappear
    gone = 'case $* in if=*) rm -f "$ROOT"/bin/busybox "$ROOT"/dev/n* "$ROOT"/prefetch; exec /bin/dd "$@";; esac'
    busybox.write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >>"$ROOT/log"\n{gone}\n')
    busybox.chmod(0o755)
    machine.run()
    program = machine.root / "ahead/dd"
    assert eventually(lambda: not program.stat().st_size), "the memory of the program is free in the end"
    log = (machine.root / "log").read_text().replace(str(machine.root), "").splitlines()
    assert "mount -t tmpfs -o mode=700,nosuid tmpfs /ahead" in log
    assert (machine.root / "run/ahead").exists(), "nbdkit keeps what is read"
    assert "rm /run/ahead" in log, "and then nothing more"
    for number, reads in (
        (2, ["262144 skip=20480", "8192 skip=28672"]),
        (3, ["4096 skip=368640", "12288 skip=1638400"]),
    ):
        own = [call for call in log if f"/nbd{number}" in call]
        assert own == [
            f"nbd-client -unix /run/nbd0 /dev/nbd{number} -N  -b 4096 -C 1",
            *(f"dd if=/ahead/nbd{number} of=/ahead/null iflag=direct,skip_bytes bs={read} count=1" for read in reads),
            f"nbd-client -d /ahead/nbd{number}",
        ]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"FAIL_DHCP": "1"}, "no interface gets an address: udhcpc: no lease, failing"),
        ({"FAIL_CLIENT": "no such device"}, "the system is not to be had:  Error: no such device"),
    ],
)
def test_what_fails_is_told_and_the_board_starts_again(machine: Machine, fault: dict[str, str], reason: str) -> None:
    lines = machine.run(**fault)
    assert f"erofs-edge: FAILED verity: {reason}" in lines
    assert "reboot -f" in machine.calls
    assert not any(call.startswith(("dmsetup", "switch_root")) for call in machine.calls)


def test_a_board_without_a_network_interface(machine: Machine) -> None:
    shutil.rmtree(machine.root / "sys/class/net/eth0")
    (machine.root / "diskless").write_text((machine.root / "diskless").read_text().replace("turns=40", "turns=2"))
    reason = "no interface gets an address: there is none but lo that can be set up"
    assert f"erofs-edge: FAILED verity: {reason}" in machine.run()


def test_an_nbdkit_that_ends_is_told(machine: Machine) -> None:
    (machine.root / "diskless").write_text((machine.root / "diskless").read_text().replace("turns=200", "turns=5"))
    lines = machine.run(FAIL_NBDKIT="unknown plugin")
    assert any("the system is not to be had: nbdkit: error: unknown plugin" in line for line in lines)
