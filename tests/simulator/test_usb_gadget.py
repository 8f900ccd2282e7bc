# SPDX-License-Identifier: Apache-2.0
"""Fastboot over a USB that the kernel has: pyusb and libusb on one end, FunctionFS on the other, dummy_hcd in between.

A machine of amd64 with Debian's kernel, because hardly any host has the module. Its files are the host's, read only, so
that the Python, the pyusb and the programs that run there are those that run here (usb_rig.py).
"""

from __future__ import annotations

import json
import platform
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import usb_rig

from erofs_edge.boot.cpio import write_cpio
from erofs_edge.boot.initramfs import compress
from erofs_edge.boot.modules import KernelModules
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.sources.directory import scan
from erofs_edge.toolbox.fetch import fetch_sets
from erofs_edge.toolbox.prefix import prefix
from erofs_edge.tree import BytesContent, FileTree, Inode

SET = "usb-machine"
MODULES = ["virtio_pci", "9p", "9pnet_virtio", "dummy_hcd", "libcomposite", "usb_f_fs"]
GADGET, FUNCTION = "/sys/kernel/config/usb_gadget/edge", "/dev/edge-ffs"
INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in /modules/*.ko; do insmod $module || echo "told: {{\\"module\\": \\"$module\\"}}"; done
mount -t configfs configfs /sys/kernel/config
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 host /newroot
for kind in dev proc sys; do mount -o bind /$kind /newroot/$kind; done
mount -o bind /sys/kernel/config /newroot/sys/kernel/config
mount -t tmpfs run /newroot/run
mkdir -p {GADGET}/strings/0x409 {GADGET}/configs/c.1 {GADGET}/functions/ffs.edge {FUNCTION}
cd {GADGET}
echo 0x18d1 >idVendor
echo 0x4ee0 >idProduct
echo {usb_rig.SERIAL} >strings/0x409/serialnumber
ln -s functions/ffs.edge configs/c.1/
mount -t functionfs edge {FUNCTION}
mount -o bind {FUNCTION} /newroot{FUNCTION}
cd /
. /words
inside() {{ env -i PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/run TMPDIR=/run LC_ALL=C.UTF-8 PYTHONPATH="$TESTS" \\
    EROFS_EDGE_PREFIX="$PREFIX" XDG_CACHE_HOME=/run PYTHONDONTWRITEBYTECODE=1 chroot /newroot "$PYTHON" "$RIG" "$@"; }}
inside device {FUNCTION} &
turns=3000
until [ -e {FUNCTION}/ep2 ] || [ $turns = 0 ]; do sleep 0.2; turns=$((turns - 1)); done
echo dummy_udc.0 >{GADGET}/UDC
inside host {GADGET} "$GOOGLE" 2>&1
reboot -f
"""


def initramfs(kernel: KernelModules, busybox: bytes, words: dict[str, str]) -> bytes:
    """busybox, the modules in their order, INIT, and in /words what this host has where."""
    files = FileTree()
    for name in ("bin", "dev", "modules", "newroot", "proc", "sys"):
        files.directory(name)

    def add(path: str, data: bytes, mode: int = 0o755) -> None:
        files.add(path, Inode(stat.S_IFREG | mode, content=BytesContent(data)))

    files.add("dev/console", Inode(stat.S_IFCHR | 0o600, rdev=(5, 1)))
    add("bin/busybox", busybox)
    add("init", INIT.encode())
    add("words", "".join(f"{name}='{value}'\n" for name, value in words.items()).encode())
    for number, module in enumerate(kernel.closure(kernel.select(MODULES))):
        add(f"modules/{number:02}-{module.name}.ko", module.data)
    return compress(write_cpio(files, epoch=0))


def command(root: Path, folder: Path, words: dict[str, str]) -> list[str]:
    """QEMU's, with the host's files as a share that cannot be written."""
    tree = FileTree()
    modules = scan(root / "usr/lib/modules")
    tree.directory("usr/lib")
    tree.add("usr/lib/modules", modules.root)
    made = folder / "initramfs"
    made.write_bytes(initramfs(KernelModules(tree), (root / "usr/bin/busybox").read_bytes(), words))
    (vmlinuz,) = (root / "boot").glob("vmlinuz-*")
    return [
        str(prefix() / "bin/qemu-system-x86_64"), "-no-user-config", "-nodefaults", "-display", "none",
        "-monitor", "none", "-nic", "none", "-no-reboot", "-machine", "q35", "-accel", "tcg,thread=multi",
        "-cpu", "max", "-smp", "2", "-m", "1G", "-kernel", str(vmlinuz), "-initrd", str(made),
        "-append", "console=ttyS0 panic=-1 quiet",
        "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
        "-serial", f"file:{folder / 'console.txt'}",
    ]  # fmt: skip


@pytest.mark.skipif(platform.machine() != "x86_64", reason="programs of this host run in a machine of amd64")
@pytest.mark.long
@pytest.mark.qemu
@pytest.mark.timeout(1500)
@pytest.mark.xdist_group("qemu")
def test_both_clients_over_a_real_usb(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    fetch_sets([SET], host_mirror, print)
    here = Path(__file__).parent
    words = {
        "PYTHON": sys.executable,
        "RIG": str(here / "usb_rig.py"),
        "TESTS": str(here),
        "PREFIX": str(prefix()),
        "GOOGLE": oracle("fastboot"),
    }
    machine = command(prefix() / "roots" / SET, tmp_path, words)
    done = subprocess.run(machine, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=1400)
    console = (tmp_path / "console.txt").read_text(errors="replace")
    lines = [json.loads(line) for line in re.findall(r"^told: (\{.*\})\s*$", console, re.M)]
    assert {"done": "host"} in lines, f"{console[-4000:]}\n{done.stderr}"
    told = {name: value for line in lines for name, value in line.items()}
    assert told["whole"]["bytes_written"] > 0, told["whole"]
    assert told["variables"] == told["theirs"], "both clients are told the same"
    assert told["variables"]["version"] == "0.4"
    held = ""
    for line in lines:
        held = line["held"] if line.get("name") == "data" else held
        if "flash" in line:  # ours, then Google's
            assert (line["flash"], held) == (0, line["sha256"]), line
    assert told["fetched"], told
    assert [len(times) for times in told["seconds"].values()] == [3, 3], told["seconds"]
    assert "another program is using the device" in told["second"]
    assert f"there are: usb:{usb_rig.SERIAL}" in told["other"]
    assert "the device was unplugged" in told["unplugged"]
