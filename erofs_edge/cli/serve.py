# SPDX-License-Identifier: Apache-2.0
"""``erofs-edge serve``: serve a built board's images, or any files, over NBD."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from erofs_edge.cli.built import built, said
from erofs_edge.cli.output import emit_json, json_option, note, size_text, table
from erofs_edge.cli.to_file import check_output
from erofs_edge.errors import SourceError, UsageError

if TYPE_CHECKING:
    import ssl

    from erofs_edge.registry.export import RegistryExport
    from erofs_edge.serve.export import Export, FileExport

IMAGES = {"disk": "disk.img", "system": "system.img"}
OCI = "oci:"
DEVICE_DISK = "256M"
SECTOR = 512
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _without_port(ctx: click.Context, param: click.Parameter, value: str) -> str:
    host, _, port = value.rpartition(":")
    if host and ":" not in host and port.isdigit():
        raise UsageError(f"--bind {value}: give the address without a port", hint=f"--port {port}")
    return value


@click.command()
@click.argument("what", metavar="BOARD|OUTDIR|IMAGE|oci:REFERENCE")
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="The folder in which BOARD was built.  [default: out/BOARD]")  # fmt: skip
@click.option("--bind", default="127.0.0.1", show_default=True, metavar="ADDRESS", callback=_without_port,
              help="The address to listen on.")  # fmt: skip
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=10809,
    show_default=True,
    help="The TCP port to listen on; 0 picks a free one.",
)
@click.option(
    "--socket", type=click.Path(path_type=Path), metavar="FILE", help="Listen on this Unix socket instead of TCP."
)
@click.option(
    "--tls-certificate", "certificate", type=FILE, metavar="PEM", help="Require TLS, with this server certificate."
)
@click.option("--tls-key", "key", type=FILE, metavar="PEM", help="The private key of the certificate.")
@click.option("--writable", is_flag=True, help="Let clients write to the files.")
@click.option(
    "--devices", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
    help="Give each device that asks for data/NAME a writable disk, kept in FOLDER.",
)  # fmt: skip
@click.option(
    "--device-disk", metavar="SIZE|FILE",
    help="With --devices, what each disk starts as: empty, of this size; or copy-on-write over this file.  "
    "[default: 256M]",
)  # fmt: skip
@click.option("--trace", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="On exit, write a trace of what was read, in order.")  # fmt: skip
@json_option
def serve(
    *,
    what: str,
    out: Path | None,
    bind: str,
    port: int,
    socket: Path | None,
    certificate: Path | None,
    key: Path | None,
    writable: bool,
    devices: Path | None,
    device_disk: str | None,
    trace: Path | None,
    as_json: bool,
) -> None:
    """Serve images over NBD (network block device) until interrupted, then show what was read.

    A build is exported as "disk" and "system", a single IMAGE under the empty name; read-only unless --writable. An
    image in a registry (see `push`) is fetched as it is read.

    \b
    Example:
      erofs-edge serve qemu-aarch64 --bind 0.0.0.0
    """
    from erofs_edge.serve.server import Server

    _refuse_alone(key=key, certificate=certificate, device_disk=device_disk, devices=devices)
    exports: dict[str, FileExport | RegistryExport] = {}
    if what.startswith(OCI):
        exports |= _from_registry(what.removeprefix(OCI), writable=writable)
    else:
        from erofs_edge.serve.export import FileExport

        exports |= {name: FileExport(path, writable=writable) for name, path in _files(Path(what), out).items()}
    if trace:
        check_output(trace)
    traced = _traced(exports) if trace else None
    given = _with_devices(exports, devices, device_disk or DEVICE_DISK) if devices else exports
    server = Server(given, tls=_tls(certificate, key) if certificate else None, say=note)
    if socket:
        server.listen_unix(socket)
    else:
        port = server.listen(bind, port)
    try:
        for name in exports:
            note(_uri("nbds" if certificate else "nbd", name, bind, port, socket))
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        for export in exports.values():
            if not export.direct:
                export.close()  # a read that waits for a registry would delay the end
        server.stop()
        if socket:
            socket.unlink(missing_ok=True)
        if trace and traced:
            _write_trace(trace, traced)
        _report(exports, as_json=as_json)


def _refuse_alone(*, key: Path | None, certificate: Path | None, device_disk: str | None, devices: Path | None) -> None:
    """Raises UsageError for an option that has no effect without another one."""
    if key and not certificate:
        raise UsageError("--tls-key needs --tls-certificate")
    if device_disk and not devices:
        raise UsageError("--device-disk needs --devices", hint="--devices FOLDER: where the disks are kept")


def _uri(scheme: str, name: str, host: str, port: int, socket: Path | None) -> str:
    """Return the address by which a client reaches the export."""
    if socket:
        return f"{scheme}+unix:///{quote(name)}?socket={quote(str(socket))}"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{quote(name)}"


def _traced(exports: Mapping[str, Export]) -> Export:
    """Return the export whose first reads are recorded: the system, or the single image. Raises UsageError if there is
    none."""
    from erofs_edge.trace.files import image_root_hash

    export = exports.get("system") or exports.get("")
    if export is None or not export.direct:
        raise UsageError("--trace is for the image of a system", hint="serve a build, or its system.img")
    image_root_hash(export.path)
    export.activity.record = True
    return export


def _write_trace(path: Path, export: Export) -> None:
    from erofs_edge.serve.export import BLOCK
    from erofs_edge.trace.files import trace_of
    from erofs_edge.trace.record import write_trace

    seen = export.activity
    made = trace_of(
        export.path, seen.touches, block_size=BLOCK, requests=seen.requests, bytes_read=seen.bytes_read
    )  # fmt: skip
    write_trace(made, path)
    note(f"{path}: {made.blocks} blocks, {len(made.files)} parts of files")


def _with_devices(exports: Mapping[str, Export], folder: Path, disk: str) -> Mapping[str, Export]:
    from erofs_edge.manifest.model import size_bytes
    from erofs_edge.serve.devices import Devices

    base: Path | int = Path(disk)
    if not Path(disk).is_file():
        try:
            base = size_bytes(disk)
        except (ValueError, KeyError):
            raise UsageError(f"--device-disk {disk}: neither a size nor a file", hint="for example 256M") from None
        if not base or base % SECTOR:
            raise UsageError(f"--device-disk {disk}: a disk has whole sectors of {SECTOR} bytes, at least one")
    return Devices(exports, folder, base)


def _from_registry(reference: str, *, writable: bool) -> dict[str, RegistryExport]:
    """Return export name → what is in the registry."""
    from erofs_edge.registry.export import exports_of
    from erofs_edge.registry.pull import find
    from erofs_edge.registry.remote import open_remote
    from erofs_edge.sources.cache import Cache
    from erofs_edge.sources.oci.reference import parse_reference

    if writable:
        raise UsageError("--writable is not possible for an image in a registry")
    remote = open_remote(parse_reference(reference))
    return exports_of(find(remote, "arm64"), remote, Cache(), say=note)


def _files(what: Path, out: Path | None) -> dict[str, Path]:
    """Return export name → file. `what` may also be the name of a stock board."""
    if not what.exists():
        from erofs_edge.manifest.stock import locate, stock_names

        what = locate(what, ("boards",))
        if not what.exists():
            known = f"a build's folder, an image, oci:REFERENCE, or a stock board: {', '.join(stock_names('boards'))}"
            raise UsageError(f"no such file, folder or board: {what}", hint=known)
    if what.is_file() and what.suffix not in {".yaml", ".yml"}:
        return {"": what}
    folder, hint = what, None
    if not what.is_dir():
        folder = built(what, out)[1]
        hint = f"erofs-edge build {said(what)}" + (f" -o {out}" if out else "")
    files = {name: folder / file for name, file in IMAGES.items() if (folder / file).is_file()}
    if not files:
        raise SourceError("no build here", where=str(folder), hint=hint or "erofs-edge build BOARD")
    return files


def _tls(certificate: Path, key: Path | None) -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        hint = None if key else "--tls-key PEM: the key, where it is in a file of its own"
        raise SourceError("not a certificate with its private key", where=str(certificate), hint=hint) from error
    return context


def _report(exports: Mapping[str, Export], *, as_json: bool) -> None:
    if as_json:
        records = [
            {
                "name": name,
                "path": export.path,
                "image_bytes": export.offer.size,
                "requests": export.activity.requests,
                "bytes_read": export.activity.bytes_read,
                "bytes_touched": export.activity.bytes_touched,
                **_fetched(export),
            }
            for name, export in exports.items()
        ]
        emit_json({"exports": records})
        return
    table(
        [
            (
                name or "(unnamed)",
                size_text(export.offer.size),
                export.activity.requests,
                size_text(export.activity.bytes_read),
                size_text(export.activity.bytes_touched),
                *map(size_text, _fetched(export).values()),
            )
            for name, export in exports.items()
        ],
        header=("export", "size", "requests", "read", "touched", "fetched"),
    )


def _fetched(export: Export) -> dict[str, int]:
    """Describe what came from a registry."""
    file = getattr(export, "file", None)
    return {} if file is None else {"bytes_fetched": file.fetched_bytes}
