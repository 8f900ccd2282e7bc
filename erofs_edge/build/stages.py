# SPDX-License-Identifier: Apache-2.0
"""The stages of a build, one function each: they take plain values and leave files in a work folder and plain
values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from erofs_edge.boot.assemble import (
    BootOutputs,
    Start,
    build_boot,
    build_start,
    init_config,
    kernel_of,
    system_modules,
    vmlinuz,
    wanted_firmware,
)
from erofs_edge.boot.uefi import UefiOutputs, UefiParts, build_uefi
from erofs_edge.boot.vbmeta import Vbmeta
from erofs_edge.build.beside import beside
from erofs_edge.build.inputs import Inputs
from erofs_edge.build.loader import compiled_loader, signed_image
from erofs_edge.build.salt import salt_of
from erofs_edge.build.scripted import machine_debs, run_scripts
from erofs_edge.build.signing import CERTIFICATE, ROOT_HASH_SIGNATURE
from erofs_edge.build.vbmeta import expected_vbmeta, vbmeta_names
from erofs_edge.disk import rollback, slots
from erofs_edge.disk.fat import build_fat
from erofs_edge.disk.layout import DiskLayout, partition_names, plan_disk, write_disk
from erofs_edge.erofs.cache import CompressionCache
from erofs_edge.erofs.gate import parse_kernel
from erofs_edge.erofs.info import ErofsInfo
from erofs_edge.erofs.kernel_config import check_config, parse_config
from erofs_edge.erofs.options import WriteOptions
from erofs_edge.erofs.rules import CompressionRule
from erofs_edge.erofs.write import write_image
from erofs_edge.errors import ManifestError, UsageError
from erofs_edge.manifest.filesystem import CompressionRule as ManifestRule
from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.model import LockedPackage, System, size_bytes
from erofs_edge.sources.base import image_of
from erofs_edge.sources.budget import check_image, check_paths
from erofs_edge.sources.cache import Cache
from erofs_edge.sources.debian.configure import Report
from erofs_edge.sources.debian.deb import read_ahead, trees_of
from erofs_edge.sources.debian.fetch import fetch
from erofs_edge.sources.debian.mirror import host_mirror
from erofs_edge.sources.debian.supply import fetch_locked
from erofs_edge.sources.dropped import firmware_of_modules
from erofs_edge.sources.file_contexts import apply_file_contexts, read_file_contexts
from erofs_edge.sources.system import system_tree
from erofs_edge.trace.record import read_uses
from erofs_edge.tree import FileTree
from erofs_edge.trust.certificate import load_certificate
from erofs_edge.trust.offline import SignaturesMissingError
from erofs_edge.trust.signer import Signer
from erofs_edge.verity.fec import Layout, Places, new_layout, write_parity
from erofs_edge.verity.meanwhile import Meanwhile
from erofs_edge.verity.tree import VerityInfo, append

LARGEST = 5
Progress = Callable[[int, int], None]
Compose = Callable[[FileTree], None]
Step = Callable[[str], AbstractContextManager[Progress]]
"""step("file system") announces a stage; inside it, progress(done, total) is called with bytes"""


def quiet(_label: str) -> AbstractContextManager[Progress]:
    """A Step that reports nothing."""
    return nullcontext(lambda done, total: None)


@dataclass(frozen=True, slots=True)
class Bench:
    """What all stages of one build share.

    work    the folder in which outputs are made
    cache   packages, and what was made from them
    signer  of everything that is signed
    step    announces each stage
    jobs    number of threads (never changes a byte); None: one more than the number of processors
    compression_cache  False: compress everything anew
    """

    work: Path
    cache: Cache
    signer: Signer
    step: Step
    jobs: int | None = None
    compression_cache: bool = True


@dataclass(frozen=True, slots=True)
class Debs:
    """The .deb of the kernel; and package name → .deb for the others, by purpose."""

    system: dict[str, Path]
    kernel: Path
    initramfs: dict[str, Path]
    firmware: dict[str, Path]

    def by_group(self, inputs: Inputs) -> dict[str, dict[str, Path]]:
        """Group of the locks → package name → .deb."""
        (kernel,) = inputs.lock.packages["kernel"]
        groups = {"system": self.system, "kernel": {kernel.name: self.kernel}}
        return groups | {"initramfs": self.initramfs, "firmware": self.firmware}


@dataclass(frozen=True, slots=True)
class SystemImage:
    """The content of a system partition: EROFS, its hash tree, and (from `parity_meanwhile`) the parity of both."""

    path: Path
    tree: FileTree
    erofs: ErofsInfo
    verity: VerityInfo
    fec: Layout | None
    report: Report


@dataclass(frozen=True, slots=True)
class Made:
    """Everything that was made."""

    system: SystemImage
    boot: BootOutputs | UefiOutputs
    layout: DiskLayout


def fetch_debs(inputs: Inputs, cache: Cache, step: Step) -> Debs:
    """Every package that the locks name, fetched unless cached, with all hashes checked."""
    system, loaded = inputs.system.lock.packages["system"], inputs.system.loaded
    wanted: dict[str, LockedPackage] = {p.sha256: p for group in inputs.lock.packages.values() for p in group}
    wanted |= {p.sha256: p for p in system}
    with step("packages") as progress:
        fetch_locked(wanted.values(), loaded, host_mirror, cache, progress)
        found = {name: fetch(packages, host_mirror, cache) for name, packages in inputs.lock.packages.items()}
        (kernel,) = found["kernel"].values()
        of_system = fetch_locked(system, loaded, host_mirror, cache)
        read_ahead({kernel, *found["initramfs"].values(), *of_system.values()}, cache)
    return Debs(of_system, kernel, found["initramfs"], found["firmware"])


def make_system(inputs: Inputs, debs: Debs, bench: Bench, compose: Compose = lambda tree: None) -> SystemImage:
    """Make system.img: the manifest's tree and the board's kernel modules as EROFS, with dm-verity and parity appended.

    compose  puts the images of the manifest's layers into the tree
    """
    locked, cache, step = inputs.system, bench.cache, bench.step
    options = erofs_options(inputs)
    scripted = None
    if locked.loaded.value.configure == "scripts" and debs.system:
        machine = machine_debs(debs.kernel, debs.initramfs, str(inputs.board.path))
        with step("maintainer scripts"):
            scripted = run_scripts(locked, debs.system, machine, cache)
    with step("system tree"):
        made = system_tree(locked.loaded, locked.lock, debs.system, cache, scripted)
        modules = [*inputs.board.value.boot.system_modules, *locked.loaded.value.modules]
        modules += ["loop"] if locked.loaded.value.layers else []
        compose(made.tree)
        made.tree.merge(system_modules(modules, debs.kernel, cache, epoch=inputs.epoch))
        if inputs.board.value.boot.system_firmware == "modules":
            wanted = wanted_firmware(modules, debs.kernel, cache)
            firmware_of_modules(made.tree, wanted, locked.loaded.value.firmware or ())
        if (selinux := locked.loaded.value.selinux) is not None:
            apply_file_contexts(made.tree, read_file_contexts(Path(selinux.file_contexts)))
    made.report.unmatched += check_paths(locked.loaded, made.tree)
    check_kernel_config(inputs, options, made.tree, kernel_of(debs.kernel, cache).tree)
    path, salt = bench.work / "system.img", salt_of(inputs)
    block_size = size_bytes(inputs.board.value.verity.block_size)
    with Meanwhile(salt, block_size) as meanwhile:
        with step("file system") as progress, CompressionCache(cache.root / "compressed") as compressed:
            used = compressed if bench.compression_cache else None
            options = options.replaced(jobs=bench.jobs, cache=used, progress=progress)
            info = write_image(made.tree, path, options, meanwhile)
        with step("verity"):
            verity = append(path, block_size=block_size, salt=salt, digests=meanwhile.digests(info.size))
    fec = None
    if roots := inputs.board.value.verity.fec_roots:
        fec = new_layout(verity.superblock, verity.hash_offset, verity.size, roots, verity.size)
    check_image(locked.loaded, made.tree, verity.size + (fec.parity_size if fec else 0))
    return SystemImage(path, made.tree, info, verity, fec, made.report)


@contextmanager
def parity_meanwhile(system: SystemImage, bench: Bench) -> Iterator[None]:
    """Append the parity of a system image while the block runs; it is complete when the block has ended without
    error.
    """
    if (fec := system.fec) is None:
        yield
        return
    tree, path = system.verity, system.path
    places = Places(path, path, hash_offset=tree.hash_offset, fec_offset=fec.offset, roots=fec.roots)
    work = partial(write_parity, places, tree.superblock, jobs=bench.jobs)
    with beside(work) as written:
        yield
        with bench.step("error correction"):
            written()


def _rule(rule: ManifestRule) -> CompressionRule:
    return CompressionRule(
        match=rule.match,
        compression=rule.compression,
        level=rule.level,
        pcluster=size_bytes(rule.pcluster) if rule.pcluster is not None else None,
        dictionary=size_bytes(rule.dictionary) if rule.dictionary is not None else None,
    )


def erofs_options(inputs: Inputs) -> WriteOptions:
    """The manifest's file system options, for the board's kernel (by its package's version).

    Raises ManifestError if that kernel cannot mount it, or for contradictory values.
    """
    (kernel,) = inputs.lock.packages["kernel"]
    return write_options(inputs.system.loaded, inputs.epoch, kernel.version)


def check_kernel_config(inputs: Inputs, options: WriteOptions, tree: FileTree, kernel: FileTree) -> None:
    """Raises ManifestError if the configuration in the kernel's package leaves out what the image needs.

    Not checked for kernels whose packages have no /boot/config-VERSION.
    """
    boot = kernel.get("boot")
    texts = [node.content for name, node in (boot.children.items() if boot else ()) if name.startswith(b"config-")]
    attributes = {name for _, inode in tree.walk() for name in inode.xattrs}
    for content in texts:
        config = parse_config(content.read(0, content.size).decode("utf-8", "replace")) if content else {}
        try:
            check_config(options.features, attributes, config, inputs.board.value.board, options.block_size)
        except UsageError as error:
            raise ManifestError(error.message, where=inputs.system.loaded.position("erofs"), hint=error.hint) from error


def write_options(loaded: Loaded[System], epoch: int, kernel: str | None) -> WriteOptions:
    """As `erofs_options`; `kernel` is a version, None for any."""
    erofs = loaded.value.erofs
    try:
        return WriteOptions(
            block_size=size_bytes(erofs.block_size),
            compression=erofs.compression,
            level=erofs.level,
            pcluster=size_bytes(erofs.pcluster) if erofs.compression != "none" or erofs.rules else None,
            dictionary=size_bytes(erofs.dictionary) if erofs.dictionary is not None else None,
            rules=tuple(map(_rule, erofs.rules)),
            dedupe=erofs.dedupe,
            ztailpacking=erofs.ztailpacking,
            fragments=erofs.fragments,
            packed_pcluster=size_bytes(erofs.packed_pcluster) if erofs.packed_pcluster is not None else None,
            chunk_size=size_bytes(erofs.chunksize) if erofs.chunksize is not None else None,
            epoch=epoch,
            times="fixed",
            baseline=image_of(Path(erofs.baseline)) if erofs.baseline is not None else None,
            profile=read_uses(Path(erofs.profile)) if erofs.profile is not None else (),
            kernel=parse_kernel(kernel) if kernel is not None else None,
        )
    except UsageError as error:
        raise ManifestError(error.message, where=loaded.position("erofs"), hint=error.hint) from error


def make_boot(inputs: Inputs, debs: Debs, system: SystemImage, bench: Bench) -> BootOutputs | UefiOutputs:
    """Make boot.fit with the root hash inside, signed; u-boot.bin; the files of the firmware partition. Or, with UEFI
    firmware, systemd-boot and a kernel image per slot, and the emulated machine's firmware."""
    if inputs.board.value.boot.uefi is not None:
        with bench.step("boot images"):
            return _make_uefi(inputs, debs, system, bench)
    u_boot = None
    if inputs.board.value.boot.u_boot.build is not None:
        with bench.step("boot loader"):
            u_boot = compiled_loader(inputs.board.value, bench.cache)
    with bench.step("boot image"):
        boot = build_boot(
            inputs.board.value,
            _make_start(inputs, debs, system, bench),
            trees_of(debs.firmware, bench.cache),
            epoch=inputs.epoch,
            signer=bench.signer,
            program=u_boot.image if u_boot else None,
            pack=partial(signed_image, work=bench.work, signer=bench.signer, epoch=inputs.epoch)
            if inputs.board.value.boot.signed_image
            else dict,
        )
        (bench.work / "boot.fit").write_bytes(boot.fit)
        (bench.work / "u-boot.bin").write_bytes(boot.u_boot)
    return boot


def _make_start(inputs: Inputs, debs: Debs, system: SystemImage, bench: Bench, signature: bytes = b"") -> Start:
    board = inputs.board.value
    config = replace(
        init_config(board, system.verity, system.fec),
        etc=tuple(inputs.system.loaded.value.writable_etc),
        signature=signature,
        vbmeta=_vbmeta(inputs, system, bench),
    )
    return build_start(
        board,
        config,
        kernel_deb=debs.kernel,
        initramfs_debs=debs.initramfs,
        epoch=inputs.epoch,
        cache=bench.cache,
    )


def _vbmeta(inputs: Inputs, system: SystemImage, bench: Bench) -> Vbmeta | None:
    """What the initramfs checks of the board's vbmeta partitions. Raises SignaturesMissingError as long as the
    certificate that carries the key into the kernel has not been signed."""
    board, certificate = inputs.board.value, bench.work / CERTIFICATE
    if not vbmeta_names(board):
        return None
    if not certificate.exists():
        raise SignaturesMissingError(
            "the certificate, which goes into the boot image, is not signed yet", where=CERTIFICATE
        )
    loaded = load_certificate(certificate.read_bytes(), bench.signer.name)
    return expected_vbmeta(board, inputs.partition, system.verity, bench.signer, loaded)


def _make_uefi(inputs: Inputs, debs: Debs, system: SystemImage, bench: Bench) -> UefiOutputs:
    board, signature = inputs.board.value, bench.work / ROOT_HASH_SIGNATURE
    if not signature.exists():
        raise SignaturesMissingError(
            "the signature of the root hash, which goes into the kernel images, is missing", where=signature.name
        )
    start = _make_start(inputs, debs, system, bench, signature.read_bytes())
    boot = build_uefi(
        board,
        trees_of(debs.firmware, bench.cache),
        UefiParts(
            vmlinuz(start.tree, start.version),
            start.version,
            start.initramfs,
            inputs.system.loaded.value.system,
            board.disk.partitions[inputs.partition].slots,
        ),
        signer=bench.signer,
        certificate=load_certificate((bench.work / CERTIFICATE).read_bytes(), bench.signer.name),
        epoch=inputs.epoch,
    )
    for name, data in boot.outputs().items():
        (bench.work / name).write_bytes(data)
    return boot


def make_disk(inputs: Inputs, system: SystemImage, boot: BootOutputs | UefiOutputs, bench: Bench) -> DiskLayout:
    """Make disk.img: every partition in its place, the same content in all slots, slot state fresh."""
    board, work = inputs.board.value, bench.work
    seed = hashlib.sha256(b"erofs-edge disk" + board.board.encode() + system.verity.root_hash).digest()
    contents: dict[str, Path] = {}
    with bench.step("disk image") as progress:
        for name, partition in board.disk.partitions.items():
            if partition.content is None:
                continue
            path = work / ("system.img" if name == inputs.partition else "boot.fit")
            if partition.content == "vbmeta":
                path = work / f"{name}.img"
            elif partition.content == "slot-state":
                path = work / "slots.bin"
                state = slots.encode_state(slots.initial(board.disk.partitions[inputs.partition].slots))
                path.write_bytes(rollback.with_minimum(state, 0))
            elif partition.content in ("firmware", "esp"):
                path = work / f"{partition.content}.img"
                build_fat(
                    boot.firmware_files or {},
                    path,
                    size=size_bytes(partition.size),
                    label=partition.content.upper(),
                    serial=int.from_bytes(seed[:4], "little"),
                    epoch=inputs.epoch,
                    sector=board.disk.sector,
                )
            contents |= dict.fromkeys(partition_names(name, partition), path)
        layout = plan_disk(
            board, contents, seed, position=inputs.board.position, largest=lambda name: _largest(name, inputs, system)
        )
        write_disk(layout, work / "disk.img", progress)
    return layout


def _largest(name: str, inputs: Inputs, system: SystemImage) -> list[tuple[str, int]]:
    """The largest files of a system partition, for the message that it is too full."""
    if name.rpartition("_")[0] != inputs.partition and name != inputs.partition:
        return []
    sizes = [(path.decode(errors="replace"), inode.size) for path, inode in system.tree.walk() if inode.is_file]
    return sorted(sizes, key=lambda item: (-item[1], item[0]))[:LARGEST]
