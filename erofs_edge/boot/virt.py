# SPDX-License-Identifier: Apache-2.0
"""The device tree of QEMU's machine `virt`, for a U-Boot that contains its own.

Addresses and interrupts are those of QEMU's hw/arm/virt.c, which keeps them from version to version; a test compares
the tree with the one that QEMU makes. It omits the 32 empty virtio-mmio slots, because our disks are on PCI, and the
seeds, which cannot be constants.
"""

from __future__ import annotations

import struct

from erofs_edge.boot.fdt import DeviceTree, Node, cells, string, write
from erofs_edge.errors import ManifestError

CLOCK, GIC, MSI, FIRST_CPU = 0x8001, 0x8002, 0x8003, 0x8010
"""phandles"""
UART = "/pl011@9000000"
RAM = 0x4000_0000
GIC_CPUS = 8
"""the maximum of a GIC version 2"""
SPI, PPI = 0, 1
EDGE, HIGH, LOW = 1, 4, 8


def virt_tree(*, cpu: str, memory: int, cpus: int) -> bytes:
    """The tree of `-machine virt -cpu CPU -m MEMORY -smp CPUS`; memory in bytes.

    Raises ManifestError for a processor or a number of them that the tree cannot describe.
    """
    if not cpu.startswith(("cortex-", "neoverse-")) or not 1 <= cpus <= GIC_CPUS:
        raise ManifestError(
            f"no device tree is known for QEMU's virt with {cpus} processors {cpu}",
            hint=f"qemu: {{cpu: cortex-a72, smp: 1 to {GIC_CPUS}}}, or Debian's U-Boot, which takes the tree from QEMU",
        )
    root = Node(
        {
            "interrupt-parent": cells(GIC),
            "dma-coherent": b"",
            "model": string("linux,dummy-virt"),
            "#size-cells": cells(2),
            "#address-cells": cells(2),
            "compatible": string("linux,dummy-virt"),
        }
    )
    root.children = {
        "psci": _psci(),
        f"memory@{RAM:x}": Node({"reg": _wide(RAM, memory), "device_type": string("memory")}),
        "platform-bus@c000000": _platform_bus(),
        "fw-cfg@9020000": Node(
            {"dma-coherent": b"", "reg": _wide(0x9020000, 0x18), "compatible": string("qemu,fw-cfg-mmio")}
        ),
        "pcie@10000000": _pcie(),
        "pl031@9010000": _primecell("pl031", 0x9010000, 2, "apb_pclk"),
        "pl011@9000000": _primecell("pl011", 0x9000000, 1, "uartclk", "apb_pclk"),
        "pmu": Node({"interrupts": _private(cpus, 7), "compatible": string("arm,armv8-pmuv3")}),
        "intc@8000000": _gic(),
        "flash@0": Node(
            {
                "bank-width": cells(4),
                "reg": _wide(0, 0x4000000, 0x4000000, 0x4000000),
                "compatible": string("cfi-flash"),
            }
        ),
        "cpus": _cpus(cpu, cpus),
        "timer": Node(
            {
                "interrupts": _private(cpus, 13, 14, 11, 10),
                "always-on": b"",
                "compatible": string("arm,armv8-timer") + string("arm,armv7-timer"),
            }
        ),
        "apb-pclk": Node(
            {
                "phandle": cells(CLOCK),
                "clock-output-names": string("clk24mhz"),
                "clock-frequency": cells(24_000_000),
                "#clock-cells": cells(0),
                "compatible": string("fixed-clock"),
            }
        ),
        "aliases": Node({"serial0": string(UART)}),
        "chosen": Node({"stdout-path": string(UART)}),
    }
    return write(DeviceTree(root))


def _wide(*numbers: int) -> bytes:
    """Encode addresses and sizes of two cells each."""
    return struct.pack(f">{len(numbers)}Q", *numbers)


def _private(cpus: int, *interrupts: int) -> bytes:
    """Per-processor interrupts; the processor mask is in bits 8 to 15 (GICv2)."""
    flags = ((1 << cpus) - 1) << 8 | HIGH
    return b"".join(cells(PPI, number, flags) for number in interrupts)


def _psci() -> Node:
    """Calls that start and stop processors. The old function numbers are for the oldest version (0.1)."""
    compatible = string("arm,psci-1.0") + string("arm,psci-0.2") + string("arm,psci")
    calls = {"migrate": 0xC4000005, "cpu_on": 0xC4000003, "cpu_off": 0x84000002, "cpu_suspend": 0xC4000001}
    return Node(
        {name: cells(call) for name, call in calls.items()} | {"method": string("hvc"), "compatible": compatible}
    )


def _platform_bus() -> Node:
    return Node(
        {
            "interrupt-parent": cells(GIC),
            "ranges": cells(0, 0, 0xC000000, 0x2000000),
            "#address-cells": cells(1),
            "#size-cells": cells(1),
            "compatible": string("qemu,platform") + string("simple-bus"),
        }
    )


def _primecell(kind: str, address: int, interrupt: int, *clocks: str) -> Node:
    return Node(
        {
            "clock-names": b"".join(map(string, clocks)),
            "clocks": cells(*[CLOCK] * len(clocks)),
            "interrupts": cells(SPI, interrupt, HIGH),
            "reg": _wide(address, 0x1000),
            "compatible": string(f"arm,{kind}") + string("arm,primecell"),
        }
    )


def _pcie() -> Node:
    """An ECAM host bridge; the four interrupt pins of a device go to interrupts 3 to 6, rotated by its number."""
    lines = b"".join(
        cells(device << 11, 0, 0, pin + 1, GIC, 0, 0, SPI, 3 + (device + pin) % 4, HIGH)
        for device in range(4)
        for pin in range(4)
    )
    io = cells(0x1000000, 0, 0, 0, 0x3EFF0000, 0, 0x10000)
    low = cells(0x2000000, 0, 0x10000000, 0, 0x10000000, 0, 0x2EFF0000)
    high = cells(0x3000000, 0x80, 0, 0x80, 0, 0x80, 0)
    return Node(
        {
            "interrupt-map-mask": cells(3 << 11, 0, 0, 7),
            "interrupt-map": lines,
            "#interrupt-cells": cells(1),
            "ranges": io + low + high,
            "reg": _wide(0x40_1000_0000, 0x1000_0000),
            "msi-map": cells(0, MSI, 0, 0x10000),
            "dma-coherent": b"",
            "bus-range": cells(0, 0xFF),
            "linux,pci-domain": cells(0),
            "#size-cells": cells(2),
            "#address-cells": cells(3),
            "device_type": string("pci"),
            "compatible": string("pci-host-ecam-generic"),
        }
    )


def _gic() -> Node:
    frame = Node(
        {
            "phandle": cells(MSI),
            "reg": _wide(0x8020000, 0x1000),
            "msi-controller": b"",
            "compatible": string("arm,gic-v2m-frame"),
        }
    )
    return Node(
        {
            "phandle": cells(GIC),
            "reg": _wide(0x8000000, 0x10000, 0x8010000, 0x10000),
            "compatible": string("arm,cortex-a15-gic"),
            "ranges": b"",
            "#size-cells": cells(2),
            "#address-cells": cells(2),
            "interrupt-controller": b"",
            "#interrupt-cells": cells(3),
        },
        {"v2m@8020000": frame},
    )


def _cpus(cpu: str, count: int) -> Node:
    cores = {f"core{number}": Node({"cpu": cells(FIRST_CPU + number)}) for number in range(count)}
    node = Node({"#size-cells": cells(0), "#address-cells": cells(1)})
    node.children["cpu-map"] = Node(children={"socket0": Node(children={"cluster0": Node(children=cores)})})
    for number in range(count):
        props = {"phandle": cells(FIRST_CPU + number), "reg": cells(number)}
        if count > 1:
            props["enable-method"] = string("psci")
        node.children[f"cpu@{number}"] = Node(
            props | {"compatible": string(f"arm,{cpu}"), "device_type": string("cpu")}
        )
    return node
