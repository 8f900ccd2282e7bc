# SPDX-License-Identifier: Apache-2.0
"""Boot a built board in QEMU without a disk: our server supplies the system, TFTP the boot image, and reads are
counted.

QEMU's user network has its own DHCP and TFTP servers, and this machine is its gateway. With HTTP, U-Boot gets the FIT
from a web server here instead. UEFI firmware boots from the network by itself, as there is nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from erofs_edge.diskless.place import Place, parse_boot_image
from erofs_edge.diskless.start import FIT, READAHEAD, Diskless, DisklessStart, board_lock, build_diskless
from erofs_edge.errors import CapacityError, UsageError
from erofs_edge.manifest.load import Loaded
from erofs_edge.manifest.model import Board
from erofs_edge.provision.credentials import AUTHORITY, CLIENT, SERVER, make_credentials, write_credentials
from erofs_edge.qemu.built import Built, load_built, run_folder
from erofs_edge.qemu.console import Console
from erofs_edge.qemu.machine import Emulator, control_tree, dump_tree, find_qemu, machine_arguments, qemu_of
from erofs_edge.qemu.run import failure
from erofs_edge.qemu.smoke import Observer, StageTime
from erofs_edge.qemu.stages import TITLES, UEFI_TITLES
from erofs_edge.qemu.uefi import firmware_arguments, flash_images
from erofs_edge.qemu.verdict import Expected, Watch
from erofs_edge.qemu.web import serve_file
from erofs_edge.serve.export import BLOCK, FileExport
from erofs_edge.serve.server import Context, Server, mutual_tls
from erofs_edge.sources.cache import Cache
from erofs_edge.toolbox.emulator import escaped
from erofs_edge.trace.files import trace_of
from erofs_edge.trace.record import Trace
from erofs_edge.trust.signer import Signer

GATEWAY = "10.0.2.2"
"""this machine, as QEMU's user network shows it to the guest"""
SYSTEM, DATA = "system", "data"
DATA_SIZE = 256 << 20


@dataclass(frozen=True, slots=True)
class DisklessRecord:
    """A diskless boot that went as expected, and what was read from the server until it was proved. Sizes in bytes.

    bytes_touched  of all blocks (4096 bytes) of which anything was read; each counts once
    first_reads    runs of blocks that had not been read before, if recorded
    seconds        since QEMU was started
    """

    board: str
    root_hash: str
    qemu: str
    seconds: float
    image_bytes: int
    bytes_read: int
    bytes_touched: int
    requests: int
    first_reads: int
    fit_bytes: int
    stages: list[StageTime]
    report: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wish:
    """Options of a diskless boot.

    prefetch   runs of blocks that the board fetches ahead, see `Diskless`
    data       a file that serves as the board's writable disk, over the network; created with DATA_SIZE bytes if
               missing; None keeps /data in memory
    trace      record what is first read
    disk       a local disk of the board, where it keeps the system. None for no disk
    lines      regular expressions for further lines that the console must show
    port       port of this machine that the board is told; None for the server's own, else that of something in between
    readahead  KiB
    tls        server and board authenticate each other by certificates made for this one start
    system     where else the board gets its system: nothing of that is counted. None for our server
    certificates  for that: ca-cert.pem, and client-cert.pem and client-key.pem if its server requires them
    http       U-Boot gets the boot image from a web server here instead of by TFTP
    """

    prefetch: tuple[tuple[int, int], ...] = ()
    data: Path | None = None
    trace: bool = False
    disk: Path | None = None
    lines: tuple[str, ...] = ()
    port: int | None = None
    readahead: int | None = None
    tls: bool = False
    system: Place | None = None
    certificates: Mapping[str, bytes] = field(default_factory=dict)
    http: bool = False


def diskless_smoke(
    board: Loaded[Board],
    out: Path,
    signer: Signer,
    *,
    wish: Wish = Wish(),
    serve: Callable[[FileExport, Server], None] = lambda export, server: None,
    observer: Observer | None = None,
) -> tuple[DisklessRecord, Trace | None]:
    """Boot the build in `out` diskless until the guest has reported and shows a login prompt.

    signer  signs the FIT; its key must be that of the build
    serve   called with the export and its server before the machine starts

    Raises BootCheckError with the failed stage and the last console lines, ToolError without a usable QEMU, and as
    `build_diskless` does.
    """
    built, emulator = load_built(out), find_qemu()
    export = FileExport(out / "system.img", description=f"{board.value.board} {built.root_hash}")
    export.activity.record = wish.trace
    exports = {SYSTEM: export, **({DATA: _disk(wish.data)} if wish.data else {})}
    with run_folder(out) as folder:
        certificates, context = _secrets(folder / "tls") if wish.tls else (wish.certificates, None)
        server = Server(exports, tls=context)
        try:
            port = wish.port or server.listen("127.0.0.1", 0)
            serve(export, server)
            with serve_file(folder / FIT) if wish.http else nullcontext() as web:
                start = _start(board, out, signer, wish, port, web, certificates)
                (folder / start.name).write_bytes(start.image)
                command = _command(board.value, built, emulator, folder, start, wish)
                record = _watched(board.value, start, command, emulator, export, wish.lines, observer or Observer())
        finally:
            server.stop()
            for one in exports.values():
                one.close()
    return record, _trace(export, record) if wish.trace else None


def _secrets(folder: Path) -> tuple[dict[str, bytes], Context]:
    """The certificates for the board and for the server, each requiring the other's. The files are in `folder` until
    the server has read its own."""
    made = make_credentials(GATEWAY)
    write_credentials(folder, made)
    context = mutual_tls(*(folder / name for name in (*SERVER, AUTHORITY)))
    for name in made:
        (folder / name).unlink()
    return {name: made[name] for name in (AUTHORITY, *CLIENT)}, context


def _disk(path: Path) -> FileExport:
    if not path.exists():
        try:
            with path.open("xb") as file:
                file.truncate(DATA_SIZE)
        except OSError as error:
            raise CapacityError(f"cannot make a disk: {error.strerror}", where=str(path)) from error
    return FileExport(path, writable=True)


def _trace(export: FileExport, record: DisklessRecord) -> Trace:
    """What was read until the boot was proved; later reads are not part of a boot and are not counted."""
    return trace_of(
        export.path,
        export.activity.touches[: record.first_reads],
        block_size=BLOCK,
        requests=record.requests,
        bytes_read=record.bytes_read,
    )


def _start(
    board: Loaded[Board],
    out: Path,
    signer: Signer,
    wish: Wish,
    port: int,
    web: int | None,
    certificates: Mapping[str, bytes],
) -> DisklessStart:
    """`port` of the blocks, `web` of the boot image if that comes over HTTP."""
    scheme = "nbds" if wish.tls else "nbd"

    def place(export: str) -> Place:
        return Place(scheme, GATEWAY, port, export, f"{scheme}://{GATEWAY}:{port}/{export}")

    wanted = Diskless(
        wish.system or place(SYSTEM),
        place(DATA) if wish.data else "memory",
        wish.prefetch,
        keep=wish.disk is not None,
        certificates=certificates,
        readahead=wish.readahead or READAHEAD,
        boot_image=parse_boot_image(f"http://{GATEWAY}:{web}/{FIT}") if web is not None else None,
    )
    return build_diskless(board.value, board_lock(board.path, out), out, wanted, signer, Cache())


def _command(
    board: Board, built: Built, emulator: Emulator, folder: Path, start: DisklessStart, wish: Wish
) -> list[str]:
    """QEMU without a disk, or with one that U-Boot ignores: it has the key and a script that boots from the network.
    UEFI firmware has the variables of the build, with the keys."""
    if board.boot.u_boot.build is not None:
        raise UsageError(
            f"board '{board.board}' has a U-Boot with its own script", hint="use a board without boot.u_boot.build"
        )
    qemu, disk = qemu_of(board), wish.disk
    tftp = "" if wish.http else f",tftp={escaped(folder)}"
    if board.boot.uefi is not None:
        tftp += f",bootfile={start.name}"
        # this firmware's network stack waits for a source of random numbers
        machine = [*firmware_arguments(qemu, *flash_images(built.u_boot, folder)), "-device", "virtio-rng-pci"]
    else:
        control = folder / "control.dtb"
        control.write_bytes(control_tree(dump_tree(emulator, qemu, built.u_boot), built.key, start.script))
        machine = [*machine_arguments(qemu, built.u_boot), "-dtb", str(control)]
    return [
        str(emulator.program), *machine,
        "-netdev", f"user,id=net0{tftp}",
        "-device", "virtio-net-pci,netdev=net0,romfile=",
        *(["-drive", f"if=none,id=disk0,format=raw,file={escaped(disk)}"] if disk else []),
        *(["-device", "virtio-blk-pci,drive=disk0"] if disk else []),
        "-serial", "stdio", "-monitor", "none", "-no-reboot",
    ]  # fmt: skip


def _watched(
    board: Board,
    start: DisklessStart,
    command: list[str],
    emulator: Emulator,
    export: FileExport,
    lines: tuple[str, ...],
    observer: Observer,
) -> DisklessRecord:
    expected = Expected(start.root_hash, "none", "ext4" if start.keeps_data else "tmpfs")
    titles = TITLES if board.boot.uefi is None else UEFI_TITLES
    watch, console = Watch(expected, lines=set(lines), titles=titles), Console(lines)
    verdict, passed = observer.follow(command, watch, console)
    if not verdict.ok:
        raise failure(
            f"the board did not boot diskless: stage '{titles[verdict.stage]}'", verdict, console, observer.log
        )
    activity = export.activity
    return DisklessRecord(
        board=board.board,
        root_hash=start.root_hash,
        qemu=emulator.version_text,
        seconds=max(stage.seconds for stage in passed),
        image_bytes=export.offer.size,
        bytes_read=activity.bytes_read,
        bytes_touched=activity.bytes_touched,
        requests=activity.requests,
        first_reads=len(activity.touches),
        fit_bytes=len(start.image),
        stages=passed,
        report=watch.report or {},
    )
