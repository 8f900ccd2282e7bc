# SPDX-License-Identifier: Apache-2.0
"""Configure a set of packages by its own scripts, once: the result is cached under the packages' hashes.

The key covers every package, the machine's kernel, busybox and first process, and the time on its clock. The host, its
speed, and whether it emulates, do not influence the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import msgspec

from erofs_edge.boot.modules import KernelModules
from erofs_edge.errors import SourceError, ToolError, UsageError
from erofs_edge.sources.cache import Cache, file_digest
from erofs_edge.sources.debian.deb import Package, read_deb
from erofs_edge.sources.debian.scripted.capture import attribute
from erofs_edge.sources.debian.scripted.stage import preinst_order, stage, write_tar
from erofs_edge.sources.tarball import Member, read_members
from erofs_edge.toolbox.emulator import find_qemu, start
from erofs_edge.vm.machine import GUEST, arguments, initramfs, kind_of, memory_for
from erofs_edge.vm.transcript import Transcript

INDEX, DATA = "configured-index-1", "configured-data"
VARIABLE = "EROFS_EDGE_SCRIPT_TIMEOUT"
PATIENCE = 600.0
TOTAL = 2700.0
"""seconds for all packages together, below the age at which the cache treats a file as abandoned"""
ROOM = 2 << 30
"""bytes that scripts may add"""
PIECE = 64 << 10
LONGEST_LINE = 64 << 10
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine is made of: .deb files of the kernel and of busybox-static, the architecture, the clock (seconds
    since 1970)."""

    arch: str
    kernel: Path
    busybox: Path
    epoch: int


class Configured(msgspec.Struct, array_like=True):
    """The machine's result. `makers`: absolute path → the package whose scripts changed it last."""

    sha256: str
    members: list[Member]
    makers: dict[str, str]


def patience() -> float:
    """Seconds that one package's scripts may take: EROFS_EDGE_SCRIPT_TIMEOUT, or ten minutes. Raises UsageError."""
    text = os.environ.get(VARIABLE)
    try:
        seconds = float(text) if text else PATIENCE
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= TOTAL:
        raise UsageError(f"{VARIABLE} is {text!r}", hint=f"a number of seconds, at most {TOTAL:.0f}")
    return seconds


def cache_key(debs: Mapping[str, Path], machine: Machine, cache: Cache) -> str:
    """SHA-256, in hex, of everything that the result depends on."""
    parts = [INDEX, machine.arch, machine.epoch, cache.digest(machine.kernel), cache.digest(machine.busybox)]
    parts += [hashlib.sha256(GUEST.read_bytes()).hexdigest()]
    parts += [[name, cache.digest(path)] for name, path in sorted(debs.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def configure_packages(
    debs: Mapping[str, Path],
    packages: Sequence[Package],
    machine: Machine,
    cache: Cache,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
) -> tuple[Configured, Path]:
    """Run the packages' scripts and return the result, with the archive that contains the files. `packages` are those
    in `debs`.

    fresh     run the machine even if the result is cached, and keep the old one
    progress  called with (packages configured so far, all packages)

    Raises SourceError naming the package whose script fails or hangs, with its output; ToolError if QEMU is missing or
    the machine fails.
    """
    key = cache_key(debs, machine, cache)
    archive = cache.derived_path(DATA, key if not fresh else f"{key}-again")
    known = None if fresh else cache.load_record(INDEX, key, Configured)
    if known is not None and cache.proved(archive, known.sha256) is not None:
        return known, archive
    with cache.writing(archive) as out:
        transcript = _run(packages, machine, cache, out, progress or (lambda done, total: None))
        made = _taken(Path(out.name), transcript)
    if not fresh:
        cache.store_record(INDEX, key, made)
    return made, archive


def _taken(archive: Path, transcript: Transcript) -> Configured:
    """Read what the machine wrote, and cut off the rest of the disk."""
    members = read_members(archive, "what the machine for maintainer scripts made")
    with archive.open("r+b") as file:
        stored = max((m.start + -(-_stored(m) // 512) * 512 for m in members if _stored(m)), default=0)
        if not stored:
            raise SourceError("the machine for maintainer scripts sent back no files")
        # headers may follow the last content: keep everything up to the end marker
        end = stored
        file.seek(end)
        while (block := file.read(512)) and any(block):
            end += 512
        file.truncate(end + 1024)
    return Configured(file_digest(archive), members, attribute(archive, transcript.moments))


def _stored(member: Member) -> int:
    return member.size if member.extents is None else sum(length for _, length in member.extents)


def _run(packages: Sequence[Package], machine: Machine, cache: Cache, out: BinaryIO, progress: Progress) -> Transcript:
    kind, limit, emulator = kind_of(machine.arch), patience(), find_qemu()
    tree = stage(packages)
    kernel_tree = read_deb(machine.kernel, cache).data
    kernel = KernelModules(kernel_tree)
    image = kernel_tree.get(f"boot/vmlinuz-{kernel.version}", follow=True)
    if image is None or not image.is_file:
        raise SourceError(f"the kernel package has no boot/vmlinuz-{kernel.version}", where=str(machine.kernel))
    busybox = read_deb(machine.busybox, cache).data
    memory = memory_for(tree)
    folder = Path(out.name).parent
    out.truncate(memory + ROOM)
    with _temporary(folder) as disk, _temporary(folder) as vmlinuz, _temporary(folder) as initrd:
        write_tar(tree, disk)
        vmlinuz.write(image.read())
        initrd.write(initramfs(kernel, busybox, preinst_order(packages), epoch=machine.epoch))
        for file in (disk, vmlinuz, initrd):
            file.flush()
        command = arguments(
            kind,
            kernel=Path(vmlinuz.name),
            initramfs=Path(initrd.name),
            disks={"input": Path(disk.name), "output": Path(out.name)},
            memory=memory,
            epoch=machine.epoch,
        )
        transcript = Transcript()
        with tempfile.TemporaryFile() as complaints:
            _follow([str(emulator.program), *command], complaints, transcript, limit, progress, len(packages))
            complaints.seek(0)
            said = complaints.read(2000).decode(errors="replace").strip()
    if not transcript.result and said:
        raise ToolError(f"QEMU ended: {said}", where=str(emulator.program))
    transcript.check()
    return transcript


def _temporary(folder: Path) -> IO[bytes]:
    return tempfile.NamedTemporaryFile(dir=folder)


def _follow(
    command: list[str], complaints: IO[bytes], transcript: Transcript, limit: float, progress: Progress, total: int
) -> None:
    """Run QEMU until it ends. Raises the error from `hung` if a package takes longer than `limit` seconds, or all of
    them TOTAL seconds.
    """
    qemu = start(command, complaints)
    assert qemu.stdout is not None  # noqa: S101  asked for with PIPE
    last = began = time.monotonic()
    rest = b""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(qemu.stdout, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                if now - last > limit or now - began > TOTAL:
                    raise transcript.hung(now - last if now - last > limit else now - began)
                if not selector.select(min(last + limit, began + TOTAL) - now + 0.01):
                    continue
                data = qemu.stdout.read(PIECE)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[-LONGEST_LINE:]
                for line in lines:
                    if transcript.see(line.decode(errors="replace").rstrip("\r")):
                        last = time.monotonic()
                        progress(len(transcript.seen), total)
    finally:
        qemu.kill()
        qemu.wait()
        qemu.stdout.close()
