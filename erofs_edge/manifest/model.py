# SPDX-License-Identifier: Apache-2.0
"""The typed values that board files, manifests and locks become.

These classes are the whole vocabulary: the JSON Schemas are made from them, unknown keys are refused, and
docstrings here are what an editor shows. Sizes are written as 4096, 64K, 512M, 2G (powers of 1024).
Paths in a file are relative to that file; the loader makes them absolute.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Size = Annotated[str | int, Meta(description="bytes, or with K, M, G (powers of 1024)")]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._+-]*$")]
Mode = Annotated[str | int, Meta(description="permission bits, octal as in chmod: '0755'")]


class Overlay(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Files of yours laid over the system. Owners and modes are what is said here, not the host's."""

    from_: str = field(name="from")
    to: str = "/"
    owner: str = "root:root"
    file_mode: Mode = "0644"
    dir_mode: Mode = "0755"
    executable: list[str] = []
    """globs below `to` that get 0755"""


class Source(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One more source of files: exactly one of `directory` or `tar`."""

    directory: str | None = None
    tar: str | None = None
    to: str = "/"
    sha256: str | None = None
    """of the tar: the build stops on any other"""


class User(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An account. Ids that are not given come from the lock."""

    uid: int | None = None
    gid: int | None = None
    home: str | None = None
    shell: str | None = None
    gecos: str = ""
    groups: list[str] = []
    password: str | None = None
    """as in shadow(5): a crypt(3) hash, '' for none, '*' for no login"""
    ssh_keys: list[str] = []


class Units(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """systemd units: what is enabled, disabled and masked beyond what the packages say."""

    enable: list[str] = []
    disable: list[str] = []
    mask: list[str] = []


class Entry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One path made or changed by the manifest."""

    path: str
    type: Literal["file", "directory", "symlink", "char", "block", "fifo"] = "file"
    mode: Mode | None = None
    owner: str | None = None
    text: str | None = None
    target: str | None = None
    rdev: Annotated[str, Meta(pattern=r"^\d+:\d+$")] | None = None
    xattrs: dict[str, str] = {}


class Erofs(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the file system is written; mkfs.erofs's words."""

    compression: Literal["none", "lz4", "lz4hc"] = "lz4hc"
    level: int | None = None
    pcluster: Size = "64K"
    block_size: Size = 4096


class System(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is in a system partition (manifests/NAME.yaml)."""

    system: Name
    extends: str | None = None
    description: str = ""
    suite: Name = "trixie"
    arch: Literal["arm64"] = "arm64"
    packages: list[str] = []
    sources: list[Source] = []
    overlay: list[Overlay] = []
    exclude: list[str] = []
    """globs of paths left out, '**' crosses directories"""
    keep: list[str] = []
    """globs that win over `exclude`"""
    hostname: str = "edge"
    users: dict[str, User] = {}
    groups: dict[str, int | None] = {}
    units: Units = Units()
    entries: list[Entry] = []
    erofs: Erofs = Erofs()


class Partition(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One partition, or one per slot (named NAME_a, NAME_b)."""

    size: Size
    slots: list[Name] = []
    content: str | None = None
    """'fit', 'firmware', 'slot-state', or the path of a manifest; nothing leaves it empty"""
    filesystem: Literal["ext4"] | None = None
    """made by the device at first boot, never by the build"""


class Disk(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole disk. Partitions stand in the order given."""

    table: Literal["gpt"] = "gpt"
    size: Size = "2G"
    sector: Literal[512, 4096] = 512
    hybrid_mbr: bool = False
    """also list the first FAT partition in the MBR, for boot ROMs that read no GPT"""
    partitions: dict[Name, Partition]


class PackageFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file of a Debian package, taken as it is (u-boot.bin, start4.elf)."""

    package: Name
    path: str
    to: str | None = None
    """its name on the firmware partition; default: the last component of path"""


class FirmwareText(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A small text file on the firmware partition (config.txt)."""

    to: str
    text: str


class Boot(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """From power to kernel."""

    chain: Literal["u-boot-fit"] = "u-boot-fit"
    kernel: Name = "linux-image-arm64"
    u_boot: PackageFile
    fdt: str = "control"
    """'control' hands the kernel the tree that U-Boot was given; else a .dtb of the kernel package, put in the FIT"""
    storage: Literal["virtio", "mmc"] = "virtio"
    device: int = 0
    """U-Boot's number of the device"""
    load_address: int = 0x50000000
    """where the script loads the FIT"""
    modules: list[str] = []
    """kernel modules for the initramfs, beyond those that verity and EROFS need"""
    cmdline: list[str] = []
    firmware: list[PackageFile] = []
    firmware_texts: list[FirmwareText] = []


class Verity(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The dm-verity tree."""

    hash: Literal["sha256"] = "sha256"
    block_size: Size = 4096


class Sign(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who signs. 'dev:NAME' is a development key made on first use; 'file:PATH' a PEM private key."""

    key: str = "dev:dev"


class Qemu(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The board as an emulated machine."""

    machine: str = "virt"
    cpu: str = "cortex-a72"
    memory: Size = "1G"
    smp: int = 2


class Board(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A board (boards/NAME.yaml): hardware, disk, boot chain, transports."""

    board: Name
    extends: str | None = None
    description: str = ""
    arch: Literal["arm64"] = "arm64"
    suite: Name = "trixie"
    disk: Disk
    boot: Boot
    verity: Verity = Verity()
    sign: Sign = Sign()
    flash: list[Literal["block"]] = field(default_factory=lambda: ["block"])
    qemu: Qemu | None = None


class LockedPackage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One .deb, pinned."""

    name: str
    version: str
    arch: str
    archive: str
    """which archive of the mirror: 'debian' or 'debian-security'"""
    path: str
    """below that archive: pool/main/…"""
    size: int
    sha256: str


class Lock(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """NAME.lock: every input of a manifest or board, pinned. JSON, sorted, one package a line.

    groups of `packages`: 'system' for a manifest; for a board 'kernel' (one package), 'initramfs' (busybox,
    dmsetup, e2fsprogs and their libraries) and 'firmware' (U-Boot and vendor firmware).
    """

    format: Literal[1] = 1
    name: str
    suite: str
    arch: str
    date: int
    """of the archive's release file, seconds since 1970: SOURCE_DATE_EPOCH of the build"""
    requested: dict[str, list[str]]
    """what was asked for, by group: a build stops where the manifest now asks for something else"""
    packages: dict[str, list[LockedPackage]]
    users: dict[str, int] = {}
    groups: dict[str, int] = {}
    """pinned system ids, name → id: kept by every later `lock`, so that owners on `data` never shift"""


def size_bytes(value: str | int) -> int:
    """4096, '64K', '512M', '2G' in bytes. Raises ValueError on anything else."""
    if isinstance(value, int):
        return value
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    text = value.strip().upper().removesuffix("IB").removesuffix("B")
    factor = units.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * factor


def mode_bits(value: str | int) -> int:
    """'0755' as 0o755; an int is taken as it is."""
    return value if isinstance(value, int) else int(value, 8)
