# SPDX-License-Identifier: Apache-2.0
"""The typed values that board files, manifests and locks become.

These classes are the whole vocabulary: the JSON Schemas and docs/manifests.md are made from them, unknown keys
are refused, and the docstrings here are what an editor shows. Sizes are written as 4096, 64K, 512M, 2G (powers
of 1024). Paths in a file are relative to that file; the loader makes them absolute.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from erofs_edge.manifest.encryption import Encrypt
from erofs_edge.manifest.filesystem import Erofs, Selinux
from erofs_edge.manifest.shaping import BudgetKey, Droppable, EtcPath, Network, OverlayRule, Smoke, VariableName
from erofs_edge.manifest.supply import Arch, Archive, LockedSource, Oci
from erofs_edge.manifest.verified import Verity
from erofs_edge.manifest.vulnerabilities import Vulnerability, VulnerabilityId
from erofs_edge.manifest.words import (
    SIZE_PATTERN,
    DevicePath,
    HostPath,
    Id,
    KeyUri,
    Line,
    Mode,
    Name,
    Owner,
    PackageName,
    PartitionSize,
    PasswdField,
    Sha256,
    Size,
    UnitName,
    UnixName,
)

CONTENT_WORDS = ("fit", "esp", "firmware", "slot-state", "vbmeta")

Content = Annotated[
    str,
    Meta(
        min_length=1,
        description="'fit', 'esp', 'firmware', 'slot-state', 'vbmeta', or the path of a manifest or a stock one's name",
        extra={"form": "path", "words": CONTENT_WORDS, "stock": ("manifests",)},
    ),
]


class Overlay(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Your own files, laid over the system. Owners and modes are those given here, not the host's."""

    from_: HostPath = field(name="from")
    """the directory on this machine, relative to this file"""
    to: DevicePath = "/"
    """the directory on the device that it is laid over"""
    owner: Owner = "root:root"
    """owner of all its files and directories"""
    file_mode: Mode = "0644"
    """permission bits of its files"""
    dir_mode: Mode = "0755"
    """permission bits of its directories"""
    executable: list[str] = []
    """globs below `to` of files that get mode 0755"""
    rules: list[OverlayRule] = []
    """owner, mode and attributes of single paths; if several rules match, the last one to set a value wins"""
    templates: list[str] = []
    """globs below `to` of files in which @NAME@ is replaced by the variable NAME"""


class Source(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A source of further files: exactly one of `directory`, `tar` or `oci`. The lock pins its content."""

    directory: HostPath | None = None
    """a directory on this machine, relative to this file; owners and modes are set by `rules`, else root's"""
    tar: HostPath | None = None
    """a tar archive, relative to this file; it brings its own owners, modes and devices"""
    oci: Oci | None = None
    """a container image: its layers, laid over one another"""
    to: DevicePath = "/"
    """where on the device it is unpacked"""
    sha256: Sha256 | None = None
    """hash of the tar: the build stops on any other"""
    rules: list[OverlayRule] = []
    """owner, mode and attributes of single paths; if several rules match, the last one to set a value wins"""
    clash: Literal["error", "replace", "keep"] = "error"
    """if packages or an earlier source have a different file at the same path: stop, let this source win, or keep
    the earlier file"""


class User(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An account. The lock supplies ids that are not given."""

    uid: Id | None = None
    """the user's number; default: the lock's"""
    gid: Id | None = None
    """the number of the user's own group; default: the lock's"""
    home: DevicePath | None = None
    """the home directory; default: as in the packages, else /home/NAME for users who can log in"""
    shell: DevicePath | None = None
    """the login shell; default: as in the packages, else /bin/bash for users with a password or key"""
    gecos: PasswdField = ""
    """the full name, as in passwd(5)"""
    groups: list[UnixName] = []
    """further groups of the user"""
    password: PasswdField | None = None
    """as in shadow(5): a crypt(3) hash, '' for no password, '*' for no login by password"""
    ssh_keys: list[Line] = []
    """public keys with which the user may log in by ssh, one per item"""


class Units(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """systemd units to enable, disable or mask, in addition to what the packages say."""

    enable: list[UnitName] = []
    """units that start at boot"""
    disable: list[UnitName] = []
    """units that do not start by themselves, whatever the presets say"""
    mask: list[UnitName] = []
    """units that cannot start at all"""


class Entry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A path that the manifest makes or changes."""

    path: DevicePath
    """path on the device"""
    type: Literal["file", "directory", "symlink", "char", "block", "fifo"] = "file"
    """what the path is"""
    mode: Mode | None = None
    """permission bits; default: unchanged, or 0644 for new files and 0755 for new directories"""
    owner: Owner | None = None
    """default: unchanged, or root:root for new paths"""
    text: str | None = None
    """content of a file; default: unchanged"""
    target: str | None = None
    """target of a symlink"""
    rdev: Annotated[str, Meta(pattern=r"^\d+:\d+$", extra={"says": "a device number as major:minor"})] | None = None
    """number of a char or block device, as major:minor"""
    xattrs: dict[str, str] = {}
    """extended attributes by full name (user.x, security.capability)"""


class System(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of a system partition (manifests/NAME.yaml)."""

    system: Name
    """the name of the system"""
    kind: Literal["system", "sysext", "confext", "portable", "app"] = "system"
    """'system' is for a board's partition. The others are separate images with hash tree and signature: 'sysext'
    and 'confext' add to /usr, /opt and /etc of a running system, 'portable' and 'app' bring a root of their own"""
    host: HostPath | None = None
    """for a sysext or confext: the manifest of the system that it is laid over, whose packages it leaves out"""
    extends: HostPath | None = None
    """a manifest to build on: a path relative to this file, or a stock one's name. Maps are merged, lists are
    replaced, `packages+` appends"""
    description: str = ""
    """for people"""
    suite: Name = "trixie"
    """the Debian release that the packages come from"""
    components: list[Name] = field(default_factory=lambda: ["main", "non-free-firmware"])
    """components of that release"""
    arch: Arch = "arm64"
    """the architecture, in Debian's words"""
    base: HostPath | None = None
    """an image that everything else is laid over: an EROFS file, or the output folder of a build"""
    layers: list[HostPath] = []
    """manifests of other kinds whose images are included in this system, relative to this file: a sysext or confext
    is merged at each boot, unless the device has a newer image with the same name and signer"""
    packages: list[PackageName] = []
    """Debian packages; their dependencies are added"""
    configure: Literal["declarative", "scripts"] = "declarative"
    """how packages are configured: by the known effects of their maintainer scripts, or by running the scripts in
    QEMU"""
    harmless_scripts: list[PackageName] = []
    """packages whose maintainer scripts are unknown and may be ignored, if `configure` is 'declarative'"""
    debs: list[HostPath] = []
    """package files (.deb) on this machine, relative to this file; their dependencies are added"""
    archives: dict[Name, Archive] = {}
    """further package archives, by a name that you choose"""
    sources: list[Source] = []
    """further files, laid over the packages in the order given"""
    overlay: list[Overlay] = []
    """your own files, laid over everything else in the order given"""
    exclude: list[str] = []
    """globs of paths to leave out; '**' crosses directories"""
    keep: list[str] = []
    """globs that take precedence over `exclude`"""
    drop: list[Droppable] = []
    """kinds of files to leave out: man and info pages, translations, lintian's files; 'doc' keeps the copyright
    files"""
    locales: list[Line] = []
    """languages whose translations are kept, such as de or pt_BR, if `drop` lists 'locale'"""
    firmware: list[str] | None = None
    """globs below /usr/lib/firmware: only matching files, and what links among them point to, are kept there"""
    modules: list[str] = []
    """kernel modules that this system needs on any board, in addition to the board's `system_modules`: names or
    globs as there"""
    variables: dict[VariableName, Line] = {}
    """variables for `templates` of overlays, in addition to HOSTNAME, SYSTEM, SUITE, ARCH, BOARD and COMPATIBLE"""
    hostname: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?$",
            extra={"says": "a host name: letters, digits and -, at most 64"},
        ),
    ] = "edge"
    """the machine's name in /etc/hostname"""
    network: Network | None = None
    """addresses of the interfaces, for networkd or NetworkManager; not given: as packages and overlay have it"""
    signer_certificate: list[DevicePath] = []
    """files to which the certificate (PEM) of the build's key is written, for programs that verify updates with it"""
    writable_etc: list[EtcPath] = []
    """files and directories of /etc that the device may change and keeps; empty: all of /etc has a writable layer"""
    users: dict[UnixName, User] = {}
    """accounts to make or change, by name"""
    groups: dict[UnixName, Id | None] = {}
    """groups and their numbers, by name; no number: the lock's"""
    units: Units = Units()
    """systemd units to enable, disable or mask"""
    entries: list[Entry] = []
    """single paths to make or change, after everything else"""
    selinux: Selinux | None = None
    """labels of everything in the partition, kernel modules included"""
    erofs: Erofs = Erofs()
    """how the file system is written"""
    vulnerabilities: dict[VulnerabilityId, Vulnerability] = {}
    """your statements about known vulnerabilities (VEX), by identifier; reports repeat them"""
    size_budget: dict[BudgetKey, Size] = {}
    """upper limits: 'partition' is the image with its hash tree, a path means the files below it, uncompressed"""
    smoke: Smoke = Smoke()
    """what a test boot of this system must see"""


class Partition(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One partition, or one per slot (named NAME_a, NAME_b)."""

    size: PartitionSize
    """bytes, or with K, M, G; 'rest' (last partition only) takes what is left of the disk"""
    slots: list[Name] = []
    """two slots, as in [a, b]: the partition exists twice, and one of the two is active"""
    content: Content | None = None
    """'fit', 'esp', 'firmware', 'slot-state', 'vbmeta', or a manifest: its path, or a stock one's name. Not given:
    left empty"""
    filesystem: Literal["ext4"] | None = None
    """created by the device at first boot, never by the build"""
    encrypt: Encrypt | None = None
    """encrypt the partition; it must have a `filesystem`"""


class Disk(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole disk. Partitions are placed in the order given."""

    table: Literal["gpt"] = "gpt"
    """the partition table"""
    size: Size = "2G"
    """size of the whole disk image, which is sparse"""
    sector: Literal[512, 4096] = 512
    """size of a logical sector of the device, in bytes"""
    hybrid_mbr: bool = False
    """also list the first FAT partition in the MBR, for boot ROMs that cannot read GPT"""
    partitions: dict[Name, Partition]
    """the partitions by name, in their order on disk"""


class PackageFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file from a Debian package, used as it is (u-boot.bin, start4.elf)."""

    package: PackageName
    """the package; the board's lock pins it"""
    path: DevicePath
    """path of the file in the package"""
    to: str | None = None
    """name on the firmware partition; default: the last component of path"""


class UBoot(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The boot loader: a file from a Debian package (`package` and `path`), or a locked one that the build compiles
    (`build`)."""

    build: Literal["qemu_arm64", "rpi_arm64"] | None = None
    """compile a locked U-Boot for this kind of board from Debian's source: key and boot script are inside, there is
    no prompt, and nothing unsigned starts; `build --release` accepts no other"""
    package: PackageName | None = None
    """the package; the board's lock pins it"""
    path: DevicePath | None = None
    """path of the file in the package"""
    to: str | None = None
    """name on the firmware partition; default: the last component of path, or u-boot.bin"""


class Uefi(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a board with UEFI firmware boots with, all from Debian packages pinned by the lock."""

    loader: PackageFile
    """systemd-boot, which the build signs; it chooses between the slots"""
    stub: PackageFile
    """systemd's stub, joined with kernel, initramfs and arguments into one signed file"""
    code: PackageFile
    """firmware of the emulated machine, with secure boot"""
    variables: PackageFile
    """that firmware's empty variable store, to which the key is added"""


class FirmwareText(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A small text file on the firmware partition (config.txt)."""

    to: str
    """name on the firmware partition"""
    text: str
    """its content"""


class Boot(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """From power-on to the kernel."""

    chain: Literal["u-boot-fit", "u-boot-booti", "uefi-uki"] = "u-boot-fit"
    """'u-boot-fit': U-Boot verifies and starts a signed FIT; 'u-boot-booti': for a U-Boot built without FIT, which
    starts kernel, initramfs and device tree from the FIT unverified; 'uefi-uki': UEFI firmware verifies and starts
    systemd-boot and a signed unified kernel image for each slot"""
    kernel: PackageName = "linux-image-arm64"
    """the kernel's package"""
    u_boot: UBoot = UBoot()
    """the boot loader, if it is U-Boot"""
    uefi: Uefi | None = None
    """for the chain uefi-uki: what UEFI firmware starts"""
    fdt: str = "control"
    """'control' passes the kernel U-Boot's own device tree; otherwise a .dtb of the kernel package, which is put
    into the FIT"""
    storage: Literal["virtio", "mmc"] = "virtio"
    """the kind of U-Boot device that the disk is"""
    device: Annotated[int, Meta(ge=0)] = 0
    """U-Boot's number for that device"""
    load_address: Annotated[int, Meta(ge=0)] = 0x50000000
    """the address to which the script loads the FIT"""
    modules: list[str] = []
    """kernel modules for the initramfs, in addition to those needed for verity and EROFS"""
    system_modules: list[str] = []
    """kernel modules in the system partition: names, or path globs below kernel/ such as 'net/netfilter/*'"""
    system_firmware: Literal["all", "modules"] = "all"
    """'modules' keeps, of the firmware in the system partition, only what the modules there or the manifest's
    `firmware` name"""
    kernel_compression: Literal["none", "lz4"] = "none"
    """of the kernel in the FIT: 'none' runs it where it is loaded, 'lz4' means less to load from a slow medium"""
    cmdline: list[Line] = []
    """kernel arguments, one per item; the root and its verity mapping are not among them"""
    firmware: list[PackageFile] = []
    """files from packages for the firmware partition"""
    firmware_texts: list[FirmwareText] = []
    """small text files for the firmware partition"""
    signed_image: bool = False
    """Raspberry Pi 4: put the firmware's files into boot.img and its signature into boot.sig, for an EEPROM with
    SIGNED_BOOT=1; the key must be RSA-2048"""


class Sign(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The key that signs: 'dev:NAME' is a development key created on first use, 'file:PATH' a PEM private key,
    'pkcs11:…' a key in a token, 'command:…' a program, 'offline:…' a key elsewhere."""

    key: KeyUri = "dev:dev"
    """dev:NAME, file:PATH relative to this file, pkcs11:…, command:… or offline:…"""
    rollback_index: Annotated[int, Meta(ge=0, le=999_999_999)] = 0
    """the version of the build: once a device has run a version and found it good, it boots none with a lower number"""


class Qemu(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The board as an emulated machine."""

    machine: str = "virt"
    """QEMU's -machine"""
    cpu: str = "cortex-a72"
    """QEMU's -cpu"""
    memory: Size = "1G"
    """memory of the machine"""
    smp: Annotated[int, Meta(ge=1)] = 2
    """number of processors"""


class Board(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A board (boards/NAME.yaml): hardware, disk, boot chain, transports."""

    board: Name
    """the name of the board"""
    extends: HostPath | None = None
    """a board file to build on: a path relative to this file, or a stock board's name. Maps are merged, lists are
    replaced, `cmdline+` appends"""
    description: str = ""
    """for people"""
    arch: Literal["arm64"] = "arm64"
    """the architecture, in Debian's words"""
    suite: Name = "trixie"
    """the Debian release that kernel, initramfs and firmware come from"""
    disk: Disk
    """the disk and its partitions"""
    boot: Boot
    """the boot chain, from power-on to kernel"""
    verity: Verity = Verity()
    """the hash tree that every block is checked against"""
    sign: Sign = Sign()
    """the key that signs the build"""
    flash: list[Literal["block"]] = field(default_factory=lambda: ["block"])
    """how the board can be written"""
    product: list[Line] = field(default_factory=list)
    """names that the board may report (fastboot's `product`, U-Boot's `board`, `compatible` of its device tree);
    `flash` refuses a board that reports another. Empty: any board"""
    qemu: Qemu | None = None
    """the board as an emulated machine, if QEMU has a similar one"""


class LockedPackage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A pinned .deb."""

    name: PackageName
    """name of the package"""
    version: Line
    """Debian's full version"""
    arch: Name
    """the architecture that the .deb names"""
    archive: Name
    """'debian' or 'debian-security' of the mirror, 'local' for a file of `debs`, else a name in `archives`"""
    path: Annotated[
        str,
        Meta(pattern=r"^(?!(.*/)?\.\.(/|$))[A-Za-z0-9][^\x00-\x20]*$", extra={"says": "a path below the archive"}),
    ]
    """path below that archive: pool/main/…"""
    size: Annotated[int, Meta(ge=0)]
    """size of the .deb in bytes"""
    sha256: Sha256
    """hash of the .deb"""


class Lock(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """NAME.lock: every input of a manifest or board, pinned. Sorted JSON, one package per line. Groups of
    `packages`: 'system' for a manifest; for a board 'kernel' (one package), 'initramfs' (busybox, dmsetup,
    e2fsprogs and their libraries) and 'firmware' (U-Boot and vendor firmware)."""

    format: Literal[1] = 1
    """version of this format"""
    name: Name
    """name of the manifest or board"""
    suite: Name
    """the Debian release"""
    arch: Name
    """the architecture, in Debian's words"""
    date: Annotated[int, Meta(ge=0)]
    """date of the archive's release file, seconds since 1970: SOURCE_DATE_EPOCH of the build"""
    requested: dict[str, list[str]]
    """what was requested, by group: a build stops if the manifest now requests something else"""
    packages: dict[str, list[LockedPackage]]
    """every .deb, by group, sorted by name"""
    sources: list[LockedSource] = []
    """base and sources, in the manifest's order"""
    users: dict[str, Id] = {}
    """pinned ids of system users, name → uid"""
    groups: dict[str, Id] = {}
    """pinned system ids, name → id: kept by every later `lock`, so that owners on `data` never change"""


def size_bytes(value: str | int) -> int:
    """4096, '64K', '512M', '2G' in bytes (also '64KiB', '64kb'). Raises ValueError on anything else."""
    if isinstance(value, int):
        return value
    if not re.fullmatch(SIZE_PATTERN, value, re.ASCII):
        raise ValueError(f"not a size: {value!r}")
    digits = value.rstrip("KkMmGgIiBb")
    unit = value[len(digits) : len(digits) + 1].upper()
    return int(digits) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


def mode_bits(value: str | int) -> int:
    """'0755' as 0o755; an int is taken as it is."""
    return value if isinstance(value, int) else int(value, 8)
