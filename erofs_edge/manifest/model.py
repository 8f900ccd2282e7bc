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
    """Files of yours laid over the system. Owners and modes are what is said here, not the host's."""

    from_: HostPath = field(name="from")
    """the directory on this machine, relative to this file"""
    to: DevicePath = "/"
    """the directory on the device that it is laid over"""
    owner: Owner = "root:root"
    """who owns every file and directory of it"""
    file_mode: Mode = "0644"
    """permission bits of its files"""
    dir_mode: Mode = "0755"
    """permission bits of its directories"""
    executable: list[str] = []
    """globs below `to` that get 0755"""
    rules: list[OverlayRule] = []
    """owner, mode and attributes of single paths; of several rules that match, the last one that says it counts"""
    templates: list[str] = []
    """globs below `to` of files in which @NAME@ is replaced by the variable NAME"""


class Source(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One more source of files: exactly one of `directory`, `tar` or `oci`. The lock pins its content."""

    directory: HostPath | None = None
    """a directory on this machine, relative to this file; owners and modes are what `rules` say, else root's"""
    tar: HostPath | None = None
    """a tar archive, relative to this file; owners, modes and devices are the archive's"""
    oci: Oci | None = None
    """a container image: its layers, one over the other"""
    to: DevicePath = "/"
    """where on the device it is unpacked"""
    sha256: Sha256 | None = None
    """of the tar: the build stops on any other"""
    rules: list[OverlayRule] = []
    """owner, mode and attributes of single paths; of several rules that match, the last one that says it counts"""
    clash: Literal["error", "replace", "keep"] = "error"
    """where packages or an earlier source have another file: stop, let this source win, or let the earlier one"""


class User(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An account. Ids that are not given come from the lock."""

    uid: Id | None = None
    """the user's number; not given: the lock's"""
    gid: Id | None = None
    """the number of its own group; not given: the lock's"""
    home: DevicePath | None = None
    """the home directory; not given: what the packages say, else /home/NAME for who can log in"""
    shell: DevicePath | None = None
    """the login shell; not given: what the packages say, else /bin/bash for who has a password or a key"""
    gecos: PasswdField = ""
    """the full name, as in passwd(5)"""
    groups: list[UnixName] = []
    """groups that the user is also a member of"""
    password: PasswdField | None = None
    """as in shadow(5): a crypt(3) hash, '' for none, '*' for no login"""
    ssh_keys: list[Line] = []
    """public keys that let the user in by ssh, one an item"""


class Units(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """systemd units: what is enabled, disabled and masked beyond what the packages say."""

    enable: list[UnitName] = []
    """units that start at boot"""
    disable: list[UnitName] = []
    """units that do not start by themselves, whatever the presets say"""
    mask: list[UnitName] = []
    """units that cannot start at all"""


class Entry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One path made or changed by the manifest."""

    path: DevicePath
    """where on the device"""
    type: Literal["file", "directory", "symlink", "char", "block", "fifo"] = "file"
    """what stands there"""
    mode: Mode | None = None
    """permission bits; not given: as it is, else 0644 for files and 0755 for directories"""
    owner: Owner | None = None
    """not given: as it is, else root:root"""
    text: str | None = None
    """content of a file; not given: as it is"""
    target: str | None = None
    """where a symlink points"""
    rdev: Annotated[str, Meta(pattern=r"^\d+:\d+$", extra={"says": "a device number as major:minor"})] | None = None
    """number of a char or block device, as major:minor"""
    xattrs: dict[str, str] = {}
    """extended attributes by full name (user.x, security.capability)"""


class System(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is in a system partition (manifests/NAME.yaml)."""

    system: Name
    """the name of the system"""
    kind: Literal["system", "sysext", "confext", "portable", "app"] = "system"
    """'system' is for a partition of a board. The others are images of their own with hash tree and signature: 'sysext'
    and 'confext' add to /usr, /opt and /etc of a running system, 'portable' and 'app' bring a root of their own"""
    host: HostPath | None = None
    """of a sysext or confext: the manifest of the system that it goes over, whose packages it leaves out"""
    extends: HostPath | None = None
    """a manifest that this one builds on, relative to this file, or a stock one's name: maps join, lists are replaced,
    `packages+` appends"""
    description: str = ""
    """for people"""
    suite: Name = "trixie"
    """the Debian release that the packages come from"""
    components: list[Name] = field(default_factory=lambda: ["main", "non-free-firmware"])
    """of that release"""
    arch: Arch = "arm64"
    """the architecture, in Debian's words"""
    base: HostPath | None = None
    """an image that all else is laid over: an EROFS file, or the output folder of a build"""
    layers: list[HostPath] = []
    """manifests of other kinds whose images come with this system, relative to this file: a sysext or confext is merged
    at each start, a newer image of that name and signer on the device goes first"""
    packages: list[PackageName] = []
    """Debian packages; what they depend on comes with them"""
    configure: Literal["declarative", "scripts"] = "declarative"
    """how packages are configured: by what is known of their maintainer scripts, or by running these in QEMU"""
    harmless_scripts: list[PackageName] = []
    """packages whose maintainer scripts are not known and may be left out, where `configure` is 'declarative'"""
    debs: list[HostPath] = []
    """package files (.deb) on this machine, relative to this file; what they depend on comes with them"""
    archives: dict[Name, Archive] = {}
    """further archives that packages come from, by a name of yours"""
    sources: list[Source] = []
    """further files, laid over the packages in the order given"""
    overlay: list[Overlay] = []
    """files of yours, laid over everything else in the order given"""
    exclude: list[str] = []
    """globs of paths left out, '**' crosses directories"""
    keep: list[str] = []
    """globs that win over `exclude`"""
    drop: list[Droppable] = []
    """kinds of files left out: man and info pages, translations, lintian's; of 'doc' the copyright files stay"""
    locales: list[Line] = []
    """languages whose translations stay, as in de, pt_BR, where `drop` names 'locale'"""
    firmware: list[str] | None = None
    """globs below /usr/lib/firmware: of the files there only these stay, and what links among them lead to"""
    modules: list[str] = []
    """kernel modules that this system needs of any board, beyond its `system_modules`: names or globs like there"""
    variables: dict[VariableName, Line] = {}
    """for `templates` of overlays, beside HOSTNAME, SYSTEM, SUITE, ARCH, BOARD and COMPATIBLE"""
    hostname: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?$",
            extra={"says": "a host name: letters, digits and -, at most 64"},
        ),
    ] = "edge"
    """the machine's name in /etc/hostname"""
    network: Network | None = None
    """addresses of the interfaces, for networkd or NetworkManager; nothing: what packages and overlay say"""
    signer_certificate: list[DevicePath] = []
    """files that get the certificate (PEM) of the key that signs the build, for programs that take updates by it"""
    writable_etc: list[EtcPath] = []
    """files and directories of /etc that the device may change and keeps; nothing: all of /etc has a writable layer"""
    users: dict[UnixName, User] = {}
    """accounts by name, made or changed"""
    groups: dict[UnixName, Id | None] = {}
    """groups by name with their number; no number: the lock's"""
    units: Units = Units()
    """systemd units enabled, disabled, masked"""
    entries: list[Entry] = []
    """single paths made or changed, after everything else"""
    selinux: Selinux | None = None
    """labels of everything in the partition, kernel modules included"""
    erofs: Erofs = Erofs()
    """how the file system is written"""
    vulnerabilities: dict[VulnerabilityId, Vulnerability] = {}
    """what you say of known vulnerabilities (VEX), by their names; reports repeat it"""
    size_budget: dict[BudgetKey, Size] = {}
    """the most that may be: 'partition' is the image with its hash tree, a path the files below it, uncompressed"""
    smoke: Smoke = Smoke()
    """what a test boot must see of this system"""


class Partition(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One partition, or one per slot (named NAME_a, NAME_b)."""

    size: PartitionSize
    """bytes, or with K, M, G; 'rest' (the last partition only) is what the disk has left"""
    slots: list[Name] = []
    """two slots, as in [a, b]: the partition exists twice, one is active"""
    content: Content | None = None
    """'fit', 'esp', 'firmware', 'slot-state', 'vbmeta', or a manifest's path or a stock one's name; nothing leaves it
    empty"""
    filesystem: Literal["ext4"] | None = None
    """made by the device at first boot, never by the build"""
    encrypt: Encrypt | None = None
    """the partition is encrypted, where it has a `filesystem`"""


class Disk(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole disk. Partitions stand in the order given."""

    table: Literal["gpt"] = "gpt"
    """the partition table"""
    size: Size = "2G"
    """of the whole disk image; the image is sparse"""
    sector: Literal[512, 4096] = 512
    """bytes of a logical sector of the device"""
    hybrid_mbr: bool = False
    """also list the first FAT partition in the MBR, for boot ROMs that read no GPT"""
    partitions: dict[Name, Partition]
    """by name, in the order on disk"""


class PackageFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file of a Debian package, taken as it is (u-boot.bin, start4.elf)."""

    package: PackageName
    """the package; the board's lock pins it"""
    path: DevicePath
    """of the file in the package"""
    to: str | None = None
    """its name on the firmware partition; default: the last component of path"""


class UBoot(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The boot loader: a file of a Debian package (`package` and `path`), or a locked one that we compile (`build`)."""

    build: Literal["qemu_arm64", "rpi_arm64"] | None = None
    """compile a locked U-Boot for this kind of board from Debian's source: the key and the boot script are inside, no
    prompt, nothing that starts what is not signed; the only one that `build --release` takes"""
    package: PackageName | None = None
    """the package; the board's lock pins it"""
    path: DevicePath | None = None
    """of the file in the package"""
    to: str | None = None
    """its name on the firmware partition; default: the last component of path, or u-boot.bin"""


class Uefi(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a board with UEFI firmware starts from, all from Debian packages; the lock pins them."""

    loader: PackageFile
    """systemd-boot, which is signed and chooses between the slots"""
    stub: PackageFile
    """systemd's stub, which kernel, initramfs and arguments are joined with to one signed file"""
    code: PackageFile
    """firmware of the emulated machine, with secure boot"""
    variables: PackageFile
    """its blank variables, which get the key"""


class FirmwareText(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A small text file on the firmware partition (config.txt)."""

    to: str
    """its name on the firmware partition"""
    text: str
    """its content"""


class Boot(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """From power to kernel."""

    chain: Literal["u-boot-fit", "u-boot-booti", "uefi-uki"] = "u-boot-fit"
    """'u-boot-fit': U-Boot verifies and starts a signed FIT; 'u-boot-booti': for a U-Boot built without FIT, which
    takes kernel, initramfs and device tree out of it unverified; 'uefi-uki': UEFI firmware verifies and starts
    systemd-boot and a signed unified kernel image for each slot"""
    kernel: PackageName = "linux-image-arm64"
    """the kernel's package"""
    u_boot: UBoot = UBoot()
    """the boot loader, where it is U-Boot"""
    uefi: Uefi | None = None
    """what UEFI firmware starts, of the chain uefi-uki"""
    fdt: str = "control"
    """'control' hands the kernel the tree that U-Boot was given; else a .dtb of the kernel package, put in the FIT"""
    storage: Literal["virtio", "mmc"] = "virtio"
    """U-Boot's kind of device that the disk is"""
    device: Annotated[int, Meta(ge=0)] = 0
    """U-Boot's number of the device"""
    load_address: Annotated[int, Meta(ge=0)] = 0x50000000
    """where the script loads the FIT"""
    modules: list[str] = []
    """kernel modules for the initramfs, beyond those that verity and EROFS need"""
    system_modules: list[str] = []
    """kernel modules in the system partition: names, or globs of paths below kernel/ as in 'net/netfilter/*'"""
    system_firmware: Literal["all", "modules"] = "all"
    """of the firmware in the system partition: 'modules' leaves what modules there or the manifest's `firmware` name"""
    kernel_compression: Literal["none", "lz4"] = "none"
    """of the kernel in the FIT: 'none' is run where it is loaded, 'lz4' is less to load from a slow medium"""
    cmdline: list[Line] = []
    """arguments of the kernel, one an item; the root and its verity mapping are not among them"""
    firmware: list[PackageFile] = []
    """files of packages on the firmware partition"""
    firmware_texts: list[FirmwareText] = []
    """small text files on the firmware partition"""
    signed_image: bool = False
    """Raspberry Pi 4: put the firmware's files into boot.img and its signature into boot.sig, for an EEPROM with
    SIGNED_BOOT=1; the key must be RSA-2048"""


class Sign(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who signs: 'dev:NAME' is a development key made on first use, 'file:PATH' a PEM private key, 'pkcs11:…' a key in
    a token, 'command:…' a program, 'offline:…' a key elsewhere."""

    key: KeyUri = "dev:dev"
    """dev:NAME, file:PATH relative to this file, pkcs11:…, command:… or offline:…"""
    rollback_index: Annotated[int, Meta(ge=0, le=999_999_999)] = 0
    """the version of the build: once a device has run one and found it good, it starts none with a lower number"""


class Qemu(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The board as an emulated machine."""

    machine: str = "virt"
    """QEMU's -machine"""
    cpu: str = "cortex-a72"
    """QEMU's -cpu"""
    memory: Size = "1G"
    """of the machine"""
    smp: Annotated[int, Meta(ge=1)] = 2
    """processors"""


class Board(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A board (boards/NAME.yaml): hardware, disk, boot chain, transports."""

    board: Name
    """the name of the board"""
    extends: HostPath | None = None
    """a board file to build on, relative to this one, or a stock board's: maps join, lists do not, `cmdline+` adds"""
    description: str = ""
    """for people"""
    arch: Literal["arm64"] = "arm64"
    """the architecture, in Debian's words"""
    suite: Name = "trixie"
    """the Debian release that kernel, initramfs and firmware come from"""
    disk: Disk
    """the disk and its partitions"""
    boot: Boot
    """from power to kernel"""
    verity: Verity = Verity()
    """the hash tree that every block is checked with"""
    sign: Sign = Sign()
    """who signs the FIT"""
    flash: list[Literal["block"]] = field(default_factory=lambda: ["block"])
    """how the board can be written"""
    product: list[Line] = field(default_factory=list)
    """what the board may answer (fastboot's `product`, U-Boot's `board`, `compatible` of its device tree); `flash`
    refuses any other; none: all do"""
    qemu: Qemu | None = None
    """the board as an emulated machine, where QEMU has one that is like it"""


class LockedPackage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One .deb, pinned."""

    name: PackageName
    """of the package"""
    version: Line
    """Debian's full version"""
    arch: Name
    """the architecture that the .deb names"""
    archive: Name
    """'debian' or 'debian-security' of the mirror, 'local' for a file of `debs`, else a name of `archives`"""
    path: Annotated[
        str,
        Meta(pattern=r"^(?!(.*/)?\.\.(/|$))[A-Za-z0-9][^\x00-\x20]*$", extra={"says": "a path below the archive"}),
    ]
    """below that archive: pool/main/…"""
    size: Annotated[int, Meta(ge=0)]
    """of the .deb in bytes"""
    sha256: Sha256
    """of the .deb"""


class Lock(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """NAME.lock: every input of a manifest or board, pinned. JSON, sorted, one package a line.

    groups of `packages`: 'system' for a manifest; for a board 'kernel' (one package), 'initramfs' (busybox,
    dmsetup, e2fsprogs and their libraries) and 'firmware' (U-Boot and vendor firmware).
    """

    format: Literal[1] = 1
    """version of this format"""
    name: Name
    """of the manifest or board"""
    suite: Name
    """the Debian release"""
    arch: Name
    """the architecture, in Debian's words"""
    date: Annotated[int, Meta(ge=0)]
    """of the archive's release file, seconds since 1970: SOURCE_DATE_EPOCH of the build"""
    requested: dict[str, list[str]]
    """what was asked for, by group: a build stops where the manifest now asks for something else"""
    packages: dict[str, list[LockedPackage]]
    """by group: every .deb, sorted by name"""
    sources: list[LockedSource] = []
    """base and sources in the manifest's order"""
    users: dict[str, Id] = {}
    """pinned ids of system users, name → uid"""
    groups: dict[str, Id] = {}
    """pinned system ids, name → id: kept by every later `lock`, so that owners on `data` never shift"""


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
