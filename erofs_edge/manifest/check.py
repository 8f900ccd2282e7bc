# SPDX-License-Identifier: Apache-2.0
"""Rules for boards and manifests beyond the types and patterns of model.py.

Each check calls `fail(pointer, message, hint)`, which raises ManifestError at the pointer's position.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from erofs_edge.globs import glob_regex
from erofs_edge.manifest.check_supply import check_layers, check_supply
from erofs_edge.manifest.filesystem import Erofs
from erofs_edge.manifest.model import (
    CONTENT_WORDS,
    Board,
    Boot,
    Entry,
    Partition,
    System,
    User,
    size_bytes,
)

Fail = Callable[..., NoReturn]

PARTITION_UNIT = 4096
"""bytes: partition sizes are multiples of this, the larger of the two sector sizes"""
GPT_NAME = 36
"""maximum length of a partition name, in UTF-16 code units (UEFI 2.10, table 5-6)"""
MAX_PCLUSTER = 1 << 20
"""bytes: Z_EROFS_PCLUSTER_MAX_SIZE of the kernel"""
LEVELS = {"lz4hc": range(1, 13), "zstd": range(1, 23), "deflate": range(1, 13), "lzma": {*range(10), *range(100, 110)}}
CRYPT = re.compile(r"!*(\*|\$[^:\s]+\$[^:\s]*|_[./0-9A-Za-z]{19}|[./0-9A-Za-z]{13})?")
"""crypt(5): locked, empty, `$id$…`, and the two old forms"""
SSH_KEY = re.compile(
    r"(.* )?(webauthn-)?(sk-)?(ssh-(ed25519|rsa|dss)|ecdsa-sha2-nistp\d+)(-cert-v01)?(@openssh\.com)?"
    r" +AAAA[A-Za-z0-9+/]*=*( .*)?"
)
"""a line of authorized_keys, with any options before the key"""
BLOCK_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


def check_board(board: Board, fail: Fail) -> None:
    """Check the partitions and the boot chain, each alone and against the others."""
    _check_names(board, fail)
    _check_sizes(board, fail)
    for name, partition in board.disk.partitions.items():
        _check_content(f"disk.partitions.{name}", partition, fail)
    _check_roles(board, fail)
    if size_bytes(board.verity.block_size) not in BLOCK_SIZES[: BLOCK_SIZES.index(4096) + 1]:
        fail("verity.block_size", '"block_size" must be 512, 1024, 2048 or 4096: the kernel maps no larger ones')
    _check_u_boot(board.boot, fail)
    if board.boot.signed_image and not any(one.content == "firmware" for one in board.disk.partitions.values()):
        fail("boot.signed_image", '"signed_image" needs a partition with the content "firmware"')
    for kind, names in (
        ("firmware", [file.to or Path(file.path).name for file in board.boot.firmware]),
        ("firmware_texts", [text.to for text in board.boot.firmware_texts]),
    ):
        for index, name in enumerate(names):
            if not name or name.startswith("/") or ".." in name.split("/"):
                fail(f"boot.{kind}.{index}.to", f'"{name}" is not a name on the firmware partition')


def check_system(system: System, fail: Fail) -> None:
    """Check that named files exist, and values that depend on one another."""
    for index, overlay in enumerate(system.overlay):
        if not os.path.isdir(overlay.from_):
            fail(f"overlay.{index}.from", f"no such directory: {overlay.from_}")
    check_supply(system, fail)
    check_layers(system, fail)
    for index, entry in enumerate(system.entries):
        _check_entry(f"entries.{index}", entry, fail)
    for name, user in system.users.items():
        _check_user(f"users.{name}", user, fail)
    for unit in system.units.mask:
        if unit in system.units.enable:
            fail(f"units.enable.{system.units.enable.index(unit)}", f'"{unit}" is masked too: it cannot be enabled')
    _check_erofs(system.erofs, fail)


def _check_u_boot(boot: Boot, fail: Fail) -> None:
    """Check the boot loader: a file of a package, or a U-Boot built here, which only starts verified FITs."""
    u_boot = boot.u_boot
    if boot.chain == "uefi-uki":
        if boot.uefi is None:
            fail("boot.chain", '"uefi-uki" needs a "uefi" section', "boards/generic-uefi-arm64.yaml has one")
        if boot.kernel_compression != "none":
            fail("boot.kernel_compression", "UEFI firmware starts no compressed kernel", "kernel_compression: none")
        return
    if boot.uefi is not None:
        fail("boot.uefi", f'"uefi" means nothing for the chain "{boot.chain}"')
    if u_boot.build is None and (u_boot.package is None or u_boot.path is None):
        fail("boot.u_boot", '"u_boot" needs a package and a path in it, or "build"')
    if u_boot.build is not None and (u_boot.package is not None or u_boot.path is not None):
        fail(
            "boot.u_boot",
            '"u_boot" is either a file of a package or a "build", not both',
            "where the base names a package, take it away: {build: …, package: null, path: null}",
        )
    if u_boot.build is not None and boot.chain != "u-boot-fit":
        fail("boot.chain", f'a U-Boot that we build starts signed FITs only, not "{boot.chain}"', "chain: u-boot-fit")


def _check_names(board: Board, fail: Fail) -> None:
    """Check that names on disk are unique and fit the table, and that all slotted partitions have the same two
    slots."""
    taken: dict[str, str] = {}
    slots: list[str] = []
    if not board.disk.partitions:
        fail("disk.partitions", "no partitions")
    for name, partition in board.disk.partitions.items():
        pointer = f"disk.partitions.{name}"
        if partition.slots and len(set(partition.slots)) != 2:
            fail(f"{pointer}.slots", '"slots" must name two different slots, as in [a, b]')
        slots = slots or partition.slots
        if partition.slots and partition.slots != slots:
            fail(f"{pointer}.slots", f'"slots" must be [{", ".join(slots)}], as in the other partitions')
        for real in [f"{name}_{slot}" for slot in partition.slots] or [name]:
            if len(real) > GPT_NAME:
                fail(pointer, f'"{real}" is longer than the {GPT_NAME} characters that the partition table holds')
            if real in taken:
                fail(pointer, f'the disk would have two partitions "{real}"', f'the other is "{taken[real]}"')
            taken[real] = name


def _check_sizes(board: Board, fail: Fail) -> None:
    """Check that sizes are whole blocks and fit the disk, and that only the last partition takes the rest."""
    total = 0
    last = list(board.disk.partitions)[-1]
    for name, partition in board.disk.partitions.items():
        pointer = f"disk.partitions.{name}.size"
        if partition.size == "rest":
            if name != last:
                fail(pointer, f'"rest" is for the last partition, and "{last}" comes after this one')
            if partition.slots:
                fail(pointer, 'a partition with slots cannot take the "rest"', "give it a size")
            continue
        _multiple(pointer, partition.size, PARTITION_UNIT, fail)
        total += size_bytes(partition.size) * (len(partition.slots) or 1)
    _multiple("disk.size", board.disk.size, PARTITION_UNIT, fail)
    if total >= size_bytes(board.disk.size):
        over = total - size_bytes(board.disk.size)
        fail(
            "disk.size",
            f"the partitions need {total >> 20} MiB, the disk has {size_bytes(board.disk.size) >> 20} MiB",
            f"raise disk.size by at least {(over >> 20) + 2}M, or make partitions smaller",
        )


def _check_encrypt(pointer: str, partition: Partition, fail: Fail) -> None:
    encrypt = partition.encrypt
    if encrypt is None:
        return
    if partition.filesystem is None:
        fail(pointer, "only a partition with a `filesystem` is encrypted")
    if (encrypt.key == "file") != (encrypt.partition is not None):
        fail(f"{pointer}.key", "the key 'file' needs the `partition` that has it, 'tpm2' has none")
    if encrypt.pcrs and encrypt.key != "tpm2":
        fail(f"{pointer}.pcrs", "a TPM has PCRs, a file has none")


def _check_content(pointer: str, partition: Partition, fail: Fail) -> None:
    _check_encrypt(f"{pointer}.encrypt", partition, fail)
    content = partition.content
    if content is None:
        return
    if partition.filesystem is not None:
        fail(f"{pointer}.filesystem", 'a partition with "content" gets no "filesystem"')
    if content == "slot-state" and partition.slots:
        fail(f"{pointer}.slots", "the slot state is one for all slots")
    if content not in CONTENT_WORDS and not os.path.isfile(content):
        fail(f"{pointer}.content", f"no such manifest: {content}", f"or one of {', '.join(CONTENT_WORDS)}")


def _check_roles(board: Board, fail: Fail) -> None:
    """Check that the boot chain has each partition that it needs, once."""
    partitions = board.disk.partitions
    by_content: dict[str, list[str]] = {word: [] for word in (*CONTENT_WORDS, "manifest")}
    for name, partition in partitions.items():
        if partition.content is not None:
            by_content[partition.content if partition.content in CONTENT_WORDS else "manifest"].append(name)
    _check_vbmeta(by_content, fail)
    for word in CONTENT_WORDS:
        if len(by_content[word]) > 1 and word != "vbmeta":
            fail(f"disk.partitions.{by_content[word][1]}.content", f'a second partition with "{word}"')
    kernel = "esp" if board.boot.chain == "uefi-uki" else "fit"
    if not by_content[kernel]:
        fail("disk.partitions", "no partition holds the kernel", f'one needs "content: {kernel}"')
    for name in by_content["esp"]:
        if kernel != "esp" or partitions[name].slots:
            fail(f"disk.partitions.{name}", "an EFI system partition holds both slots, and needs the chain uefi-uki")
    if kernel == "esp" and by_content["fit"]:
        fail(f"disk.partitions.{by_content['fit'][0]}.content", "the chain uefi-uki reads no FIT")
    if not by_content["manifest"]:
        fail("disk.partitions", "no partition holds a system", 'one needs "content: PATH" of a manifest')
    slotted = [name for name, partition in partitions.items() if partition.slots]
    if slotted and not by_content["slot-state"]:
        fail(
            f"disk.partitions.{slotted[0]}.slots",
            "slots need a place for their state",
            "add a partition as in: misc: {size: 1M, content: slot-state}",
        )
    if (board.boot.firmware or board.boot.firmware_texts) and not by_content["firmware"]:
        fail("boot.firmware" if board.boot.firmware else "boot.firmware_texts", 'no partition has "content: firmware"')


def _check_vbmeta(by_content: dict[str, list[str]], fail: Fail) -> None:
    """Allow `vbmeta`, and `vbmeta_NAME` for the content of partition NAME: boot loaders look for these names."""
    described = [f"vbmeta_{name}" for name in (*by_content["fit"], *by_content["manifest"])]
    names = by_content["vbmeta"]
    for name in names:
        pointer = f"disk.partitions.{name}.content"
        if name != "vbmeta" and name not in described:
            fail(
                pointer, f'a partition with "vbmeta" has one of the names vbmeta, {", ".join(described)}, not "{name}"'
            )
        if "vbmeta" not in names:
            fail(
                pointer,
                f'nothing names the key of "{name}"',
                "add a partition as in: vbmeta: {size: 1M, content: vbmeta}",
            )


def _check_user(pointer: str, user: User, fail: Fail) -> None:
    """Refuse what would silently lock the user out: programs skip passwords and keys that they cannot parse."""
    if user.password is not None and not CRYPT.fullmatch(user.password):
        fail(
            f"{pointer}.password",
            '"password" is no hash of a password',
            "openssl passwd -6 makes one; '*' lets nobody in by password",
        )
    for index, key in enumerate(user.ssh_keys):
        if "PRIVATE KEY" in key:
            fail(
                f"{pointer}.ssh_keys.{index}",
                "this is a private key",
                "the public one is in the file that ends with .pub",
            )
        if not SSH_KEY.fullmatch(key.strip()):
            fail(
                f"{pointer}.ssh_keys.{index}",
                "not a public key of ssh",
                "one line as in ~/.ssh/id_ed25519.pub: ssh-ed25519 AAAA…",
            )


def _check_entry(pointer: str, entry: Entry, fail: Fail) -> None:
    needs = {"symlink": "target", "char": "rdev", "block": "rdev"}
    allowed = {"file": "text", **needs}.get(entry.type)
    for key in ("text", "target", "rdev"):
        if getattr(entry, key) is not None and key != allowed:
            fail(f"{pointer}.{key}", f'"{key}" means nothing for a {entry.type}')
    if entry.type in needs and getattr(entry, needs[entry.type]) is None:
        fail(pointer, f'a {entry.type} needs "{needs[entry.type]}"')
    if entry.type == "symlink" and entry.mode is not None:
        fail(f"{pointer}.mode", "a symlink has no mode")


def _check_erofs(erofs: Erofs, fail: Fail) -> None:
    block = size_bytes(erofs.block_size)
    if block not in BLOCK_SIZES:
        fail("erofs.block_size", '"block_size" must be a power of two from 512 to 64K')
    _multiple("erofs.pcluster", erofs.pcluster, block, fail)
    if size_bytes(erofs.pcluster) > MAX_PCLUSTER:
        fail("erofs.pcluster", '"pcluster" must be at most 1M: the kernel reads no larger ones')
    if erofs.packed_pcluster is not None:
        _multiple("erofs.packed_pcluster", erofs.packed_pcluster, block, fail)
        if size_bytes(erofs.packed_pcluster) > MAX_PCLUSTER:
            fail("erofs.packed_pcluster", '"packed_pcluster" must be at most 1M: the kernel reads no larger ones')
        if erofs.fragments == "none":
            fail("erofs.packed_pcluster", '"packed_pcluster" needs fragments')
    if erofs.compression == "none" and (erofs.ztailpacking or erofs.fragments != "none"):
        name = "ztailpacking" if erofs.ztailpacking else "fragments"
        fail(f"erofs.{name}", f'"{name}" works on compressed files only')
    _level("erofs", erofs.compression, erofs.level, fail)
    for i, rule in enumerate(erofs.rules):
        _level(f"erofs.rules.{i}", rule.compression, rule.level, fail)
        if rule.pcluster is not None:
            _multiple(f"erofs.rules.{i}.pcluster", rule.pcluster, block, fail)
        try:
            glob_regex(rule.match)
        except ValueError as error:
            fail(f"erofs.rules.{i}.match", f"bad glob {rule.match!r}: {error}")


def _level(pointer: str, compression: str, level: int | None, fail: Fail) -> None:
    if level is None or level in LEVELS.get(compression, ()):
        return
    if compression not in LEVELS:
        fail(f"{pointer}.level", f'"level" belongs to {", ".join(LEVELS)}; {compression} has none')
    else:
        fail(f"{pointer}.level", f'"level" {level} is none of {compression}')


def _multiple(pointer: str, size: str | int, unit: int, fail: Fail) -> None:
    if size_bytes(size) % unit:
        fail(pointer, f'"{pointer.rsplit(".", 1)[-1]}" must be a multiple of {unit} bytes, not {size}')
