# SPDX-License-Identifier: Apache-2.0
"""Our device tree for QEMU's virt machine, compared with the one that QEMU makes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from erofs_edge.boot.fdt import Node, parse
from erofs_edge.boot.virt import virt_tree
from erofs_edge.errors import ManifestError

OURS_ALONE = re.compile(r"/virtio_mmio@.*|/chosen/(rng|kaslr)-seed")
"""what QEMU's tree has and ours omits"""
REFERENCES = ("interrupt-parent", "clocks", "msi-map", "interrupt-map", "cpu", "phandle")
"""properties with phandles, whose numeric values are arbitrary"""


def flat(node: Node, path: str = "") -> dict[str, bytes]:
    """Return path of each property → value; an empty node counts as a property."""
    found = {f"{path}/{name}": value for name, value in node.props.items()} or {f"{path}/": b""}
    for name, child in node.children.items():
        found |= flat(child, f"{path}/{name}")
    return found


def without_phandles(root: Node) -> dict[str, bytes]:
    """Return the properties, with each phandle replaced by the path of its node."""
    props = flat(root)
    names = {value: path.removesuffix("/phandle") for path, value in props.items() if path.endswith("/phandle")}
    for path, value in props.items():
        if path.rpartition("/")[2] in REFERENCES:
            words = [value[at : at + 4] for at in range(0, len(value), 4)]
            props[path] = b" ".join(names.get(word, word.hex()).encode() for word in words)
    return props


@pytest.mark.parametrize(
    ("cpu", "megabytes", "cpus"), [("cortex-a72", 1024, 2), ("cortex-a53", 3072, 1), ("cortex-a57", 512, 8)]
)
def test_it_is_that_of_qemu(cpu: str, megabytes: int, cpus: int, tmp_path: Path, oracle: Callable[[str], str]) -> None:
    bios, dump = tmp_path / "bios", tmp_path / "virt.dtb"
    bios.write_bytes(bytes(4096))
    command = [
        oracle("qemu-system-aarch64"), "-no-user-config", "-nodefaults", "-display", "none",
        "-machine", f"virt,dumpdtb={dump}", "-cpu", cpu, "-m", f"{megabytes}M", "-smp", str(cpus), "-bios", str(bios),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    theirs = without_phandles(parse(dump.read_bytes()).root)
    ours = without_phandles(parse(virt_tree(cpu=cpu, memory=megabytes << 20, cpus=cpus)).root)
    assert {path: value for path, value in theirs.items() if not OURS_ALONE.match(path)} == ours


def test_what_it_cannot_describe_is_refused() -> None:
    for cpu, cpus in (("max", 2), ("cortex-a72", 9), ("cortex-a72", 0)):
        with pytest.raises(ManifestError, match=f"{cpus} processors {cpu}"):
            virt_tree(cpu=cpu, memory=1 << 30, cpus=cpus)
