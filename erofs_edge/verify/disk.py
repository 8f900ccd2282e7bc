# SPDX-License-Identifier: Apache-2.0
"""A whole disk, or an image of one: partition table → FIT, EFI programs or vbmeta → root hash → tree → file system."""

from __future__ import annotations

import functools
import hashlib
from functools import partial

from erofs_edge.boot.contents import init_values
from erofs_edge.boot.fdt import HEADER as FDT_HEADER
from erofs_edge.boot.fdt import MAGIC as FDT_MAGIC
from erofs_edge.boot.fit import FIRMWARE_DIGEST, verify_fit
from erofs_edge.disk import gpt, rollback, slots
from erofs_edge.disk.fat_read import Volume
from erofs_edge.errors import ErofsEdgeError, FormatError, VerificationError, place_within
from erofs_edge.trust import avb
from erofs_edge.trust.key import PublicKey, rsa_key
from erofs_edge.verify.checks import Check
from erofs_edge.verify.discoverable import verify_discoverable
from erofs_edge.verify.esp import is_esp, verify_esp
from erofs_edge.verify.firmware import verify_firmware
from erofs_edge.verify.system import check_file_system, check_tree
from erofs_edge.verify.walk import FIT_MAX, Part, Walk, verity_of
from erofs_edge.verity.blocks import Source, read_exactly
from erofs_edge.verity.superblock import Superblock

BLANK = 1 << 20
"""bytes at the start of a partition that are zero if nothing was ever written to it"""


def find_table(fd: Source, size: int, name: str | None = None) -> gpt.Table | None:
    """The GUID partition table of a disk; None if neither copy exists. Raises FormatError for a damaged one, naming the
    disk if it has a `name`."""
    try:
        return gpt.find(lambda offset, length: read_exactly(fd, length, offset), size)
    except FormatError as error:
        if name is not None:
            place_within(error, name)
        raise


def verify_disk(fd: Source, table: gpt.Table, walk: Walk) -> None:
    """Check every partition of a disk. What no signature covers fails, except blank partitions and state."""
    _check_table(fd, table, walk)
    parts = [
        Part(p.name, p.first_lba * table.sector_size, (p.last_lba - p.first_lba + 1) * table.sector_size)
        for p in table.partitions
    ]
    walk.minimum = max((found for part in parts if (found := _minimum(walk, part)) is not None), default=None)
    signed = set[str]()
    for part in parts:
        magic = walk.read(part, 0, 4)
        if magic == FDT_MAGIC.to_bytes(4, "big"):
            signed.add(part.name)
            verify_fit_slot(walk, part, parts)
        elif magic == avb.MAGIC and part.name in (avb.MAIN, f"{avb.MAIN}_{part.slot}"):
            signed.add(part.name)
            verify_vbmeta_slot(walk, part, parts, walk.read(part, 0, avb.SIZE_MAX))
        elif is_esp(functools.partial(walk.read, part), part.size):
            signed.add(part.name)
            for one in verify_esp(functools.partial(walk.read, part), part.size, part.name, walk.key, walk.verdict):
                if _root_hash_named(walk, one.what, one.values):
                    _verify_started(walk, one.what, one.slot, one.values, parts)
    signed |= verify_discoverable(walk, table, parts)
    walk.covered |= signed
    if walk.firmware:
        _verify_firmware(walk, [part for part in parts if part.name not in signed])
    if table.hybrid is not None and (listed := parts[table.hybrid].name) not in walk.covered:
        with walk.verdict.check("MBR", "partitions that are signed"):
            raise VerificationError(f"a boot ROM is told to start from '{listed}', which is not signed")
    for part in parts:
        if part.name not in walk.covered:
            _uncovered(walk, part)
    if not signed:
        # with only blank partitions and state everything would pass and nothing would be proved
        with walk.verdict.check("disk", f"key '{walk.key.name}'"):
            raise VerificationError("nothing on this disk is signed: no FIT, EFI program, vbmeta or root hash")


def _check_table(fd: Source, table: gpt.Table, walk: Walk) -> None:
    """Check that the table is the same at both ends of the disk that it was made for, and names each partition once. If
    the image was written to a larger disk, there must be no table after that end that would be used if the first were
    damaged."""
    with walk.verdict.check("partition table", "its checksums, both copies"):

        def read(offset: int, length: int) -> bytes:
            return read_exactly(fd, length, offset)

        own = table._replace(sectors=gpt.sectors_told(read, table))
        if own.sectors < table.sectors and gpt.at_end(read, table):
            raise FormatError("the end of the disk holds another partition table")
        head, tail = gpt.encode(own)
        size = own.sectors * own.sector_size
        if read_exactly(fd, len(head), 0) != head or read_exactly(fd, len(tail), size - len(tail)) != tail:
            raise FormatError("the two copies of the partition table differ, or hold more than a table")
        names = [partition.name for partition in table.partitions]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            # partitions are found by name: which of two a device uses is unpredictable
            raise FormatError(f"two partitions have the name '{twice[0]}'")


def verify_fit_slot(walk: Walk, part: Part, parts: list[Part]) -> None:
    """Verify a FIT, and the system partition that its initramfs opens."""
    values = verify_fit_alone(walk, part)
    if values:
        _verify_started(walk, part.name, part.slot, values, parts)


def _verify_started(walk: Walk, holder: str, slot: str, values: dict[str, str], parts: list[Part]) -> None:
    """Verify the version of what starts a slot, and the system partition that its initramfs opens."""
    if values.get("DATA"):  # on a board that keeps no data, every partition must be signed, even a nameless one
        walk.data.add(values["DATA"])
    if walk.minimum is not None:
        with walk.verdict.check(f"{holder}: version", f"minimum {walk.minimum} of this disk"):
            version = values.get("ROLLBACK_INDEX", "0")
            if not version.isdecimal() or int(version) < walk.minimum:
                raise VerificationError(f"version {version[:20]} is older than the minimum of {walk.minimum}")
    sb, first, root_hash = verity_of(values)
    name = values.get("SYSTEM", "") + (f"_{slot}" if values.get("SLOTS") else "")
    system = next((p for p in parts if p.name == name), None)
    if system is None:
        with walk.verdict.check(name, "the partition table"):
            raise FormatError(f"the initramfs of {holder} opens '{name}', which is not there")
        return
    _check_system(walk, system, sb, first, root_hash, f"root hash of {holder}")


def verify_fit_alone(walk: Walk, part: Part) -> dict[str, str]:
    """Verify a FIT; return the values that its initramfs boots with, none if something is wrong."""
    values, named = dict[str, str](), ""
    with walk.verdict.check(f"{part.name}: FIT", f"key '{walk.key.name}'") as row:
        fit = read_fit(walk, part)
        row.digest = hashlib.sha256(fit).hexdigest()
        if row.digest not in walk.fits:
            root = verify_fit(fit, rsa_key(walk.key, "a FIT"))
            firmware = root.props.get(FIRMWARE_DIGEST, b"").rstrip(b"\0").decode("ascii", "replace")
            walk.fits[row.digest] = init_values(root), firmware
        values, named = walk.fits[row.digest]
    if not row.ok:
        return {}
    if named:
        walk.firmware[named] = part.name
    return values if _root_hash_named(walk, part.name, values) else {}


def _root_hash_named(walk: Walk, holder: str, values: dict[str, str]) -> bool:
    """Whether an initramfs says which tree it opens, as a row of its own."""
    with walk.verdict.check(f"{holder}: root hash", "its initramfs", values.get("ROOT_HASH")) as row:
        verity_of(values)
    return row.ok


def read_fit(walk: Walk, part: Part) -> bytes:
    """Read the whole FIT at the start of a partition. Raises FormatError if it is longer than the partition."""
    size = int.from_bytes(walk.read(part, 4, 4), "big")
    if not FDT_HEADER.size <= size <= min(part.size, FIT_MAX):
        raise FormatError(f"a FIT of {size} bytes in {part.size}", where=part.name)
    return walk.read(part, 0, size)


def verify_vbmeta_slot(walk: Walk, part: Part, parts: list[Part], raw: bytes, *, chained: bool = False) -> None:
    """Verify a vbmeta image and each partition that it describes. `chained`: another vbmeta refers to it; chains do
    not nest.
    """
    meta = avb.VBMeta()
    with walk.verdict.check(f"{part.name}: vbmeta", f"key '{walk.key.name}'", hashlib.sha256(raw).hexdigest()):
        meta = avb.verify_vbmeta(raw, walk.key, walk.minimum or 0)
        if chained and any(isinstance(descriptor, avb.Chain) for descriptor in meta.descriptors):
            meta = avb.VBMeta()
            raise VerificationError("a chain in what a chain leads to, which libavb refuses")
    for descriptor in meta.descriptors:
        if not isinstance(descriptor, avb.Hashtree | avb.Hash | avb.Chain):
            continue
        names = (descriptor.partition, f"{descriptor.partition}_{part.slot}")
        target = next((p for p in parts if p.name in names), None)
        if target is None:
            with walk.verdict.check(descriptor.partition, f"vbmeta of {part.name}"):
                raise FormatError(f"there is no partition '{descriptor.partition}'")
            continue
        walk.covered.add(target.name)
        if isinstance(descriptor, avb.Hashtree):
            _check_hashtree(walk, target, descriptor, part.name)
        elif isinstance(descriptor, avb.Hash):
            _check_hash(walk, target, descriptor, part.name)
        else:
            verify_chained(walk, target, parts, descriptor)


def verify_chained(walk: Walk, part: Part, parts: list[Part], chain: avb.Chain) -> None:
    """Verify a partition with its own vbmeta, by the key that the chain names."""
    key, raw = walk.key, b""
    with walk.verdict.check(f"{part.name}: chain", "the public key in vbmeta"):
        key = avb.decode_key(chain.public_key, part.name)
        # like libavb: in a partition for vbmeta only, it starts at the first byte
        at_start = chain.partition.startswith(avb.MAIN)
        raw = walk.read(part, 0, avb.SIZE_MAX) if at_start else footer_vbmeta(walk, part)
    if raw and isinstance(key, PublicKey):
        # a chained partition has its own version counter, in its own location
        outer = walk.key, walk.minimum
        walk.key, walk.minimum = key, None
        verify_vbmeta_slot(walk, part, parts, raw, chained=True)
        walk.key, walk.minimum = outer


def footer_vbmeta(walk: Walk, part: Part) -> bytes:
    """The vbmeta that a partition's footer points to. Raises FormatError if there is none."""
    footer = avb.parse_footer(walk.read(part, part.size - avb.FOOTER_SIZE, avb.FOOTER_SIZE), part.size)
    if footer is None:
        raise FormatError("no AVB footer", where=part.name)
    return walk.read(part, footer.vbmeta_offset, footer.vbmeta_size)


def _check_hashtree(walk: Walk, part: Part, tree: avb.Hashtree, holder: str) -> None:
    with walk.verdict.check(f"{part.name}: tree", f"vbmeta of {holder}", tree.root_digest.hex()):
        size = tree.data_block_size
        if tree.image_size % max(size, 1) or tree.tree_offset % max(tree.hash_block_size, 1):
            raise FormatError("the hashtree descriptor is not aligned to its blocks")
        sb = Superblock(bytes(16), tree.salt, tree.image_size // size, tree.algorithm, size, tree.hash_block_size)
        if max(tree.image_size, tree.tree_offset + tree.tree_size) > part.size:
            raise FormatError("the hashtree descriptor leaves the partition")
        levels = sb.levels_from(tree.tree_offset // tree.hash_block_size)
        check_tree(walk.fd, part.start, sb, levels, tree.root_digest, jobs=walk.jobs)
    _check_fs_once(walk, part, tree.image_size, tree.root_digest)


def _check_hash(walk: Walk, part: Part, hashed: avb.Hash, holder: str) -> None:
    with walk.verdict.check(f"{part.name}: digest", f"vbmeta of {holder}", hashed.digest.hex()):
        if hashed.image_size > min(part.size, FIT_MAX):
            raise FormatError("the hash descriptor leaves the partition")
        data = hashed.salt + walk.read(part, 0, hashed.image_size)
        if hashlib.new(hashed.algorithm, data).digest() != hashed.digest:
            raise VerificationError("the content does not match its digest")


def _check_system(walk: Walk, part: Part, sb: Superblock, first: int, root_hash: bytes, against: str) -> None:
    walk.covered.add(part.name)
    with walk.verdict.check(f"{part.name}: tree", against, root_hash.hex()) as row:
        if part.name in walk.equal and walk.tree == (sb, first, root_hash):
            return  # the same bytes, with the file system in them, were checked before
        levels = sb.levels_from(first)
        if max([sb.data_size, *((level.start + level.count) * sb.hash_block_size for level in levels)]) > part.size:
            raise FormatError("data and tree do not fit into the partition")
        check_tree(walk.fd, part.start, sb, levels, root_hash, jobs=walk.jobs)
    if row.ok:
        _check_fs_once(walk, part, sb.data_size, root_hash)


def _check_fs_once(walk: Walk, part: Part, size: int, root_hash: bytes) -> None:
    if walk.verdict.checks[-1].ok and root_hash not in walk.proved:
        walk.proved.add(root_hash)
        check_file_system(walk.fd, part.start, size, walk.verdict, f"{part.name}: file system", jobs=walk.jobs)


def _verify_firmware(walk: Walk, parts: list[Part]) -> None:
    """Check what begins like a volume that a boot ROM reads against the digests of the firmware's files in the signed
    FITs.

    There must be such a volume, and none that is damaged or of an unsupported kind: a ROM may be less strict.
    """
    found = False
    for part in parts:
        if walk.read(part, 510, 2) != b"\x55\xaa":
            continue
        found = True
        walk.covered.add(part.name)
        volume = None
        with walk.verdict.check(f"{part.name}: volume", "FAT's rules"):
            volume = Volume(partial(walk.read, part), part.size)
        if volume is not None:
            walk.verdict.checks.pop()  # its files get their own row
            verify_firmware(part.name, volume, walk.firmware, walk.key, walk.verdict)
    if not found:
        with walk.verdict.check("firmware", f"the FIT in {', '.join(sorted(set(walk.firmware.values())))}"):
            raise VerificationError("no partition holds the firmware's files that the signed FIT names")


def _minimum(walk: Walk, part: Part) -> int | None:
    """The minimum version recorded in the slot state of a partition; None without state or record."""
    raw = walk.read(part, 0, rollback.OFFSETS[-1] + rollback.SIZE)
    try:
        slots.decode_state(raw)
    except ErofsEdgeError:
        return None
    return rollback.decode(raw)


def _uncovered(walk: Walk, part: Part) -> None:
    """What no signature covers: state and blank partitions are reported, anything else fails."""
    start = walk.read(part, 0, BLANK)
    if not any(start):
        walk.verdict.checks.append(Check(part.name, "blank: nothing to check"))
    elif part.name in walk.data:
        walk.verdict.checks.append(Check(part.name, "writable data: never trusted, not checked"))
    else:
        try:
            slots.decode_state(start)
        except ErofsEdgeError:
            with walk.verdict.check(part.name, f"key '{walk.key.name}'"):
                raise VerificationError("no signature covers this partition") from None
        else:
            walk.verdict.checks.append(Check(part.name, "slot state: chooses between signed slots, not signed"))
