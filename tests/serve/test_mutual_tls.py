# SPDX-License-Identifier: Apache-2.0
"""Our server and nbdkit, each with a certificate, as a diskless board with TLS has them."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import wait_for

from erofs_edge.diskless.place import CERTIFICATES, Place
from erofs_edge.errors import DeviceError, DeviceRefusedError
from erofs_edge.provision.credentials import AUTHORITY, CLIENT, SERVER, make_credentials, write_credentials
from erofs_edge.serve.export import FileExport
from erofs_edge.serve.server import Server, mutual_tls
from erofs_edge.toolbox.prefix import prefix
from erofs_edge.transport.nbd.connect import Connection, parse_address

HOST = "127.0.0.1"


def test_nbdkit_as_in_the_initramfs_reads_by_tls(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    made = make_credentials(HOST)
    write_credentials(tmp_path / "server", made)
    write_credentials(tmp_path / "board", {name: made[name] for name in (AUTHORITY, *CLIENT)})
    write_credentials(tmp_path / "stranger", {AUTHORITY: made[AUTHORITY]})
    image = tmp_path / "image"
    image.write_bytes(random.Random(3).randbytes(1 << 20))
    export = FileExport(image)
    server = Server({"system": export}, tls=mutual_tls(*(tmp_path / "server" / n for n in (*SERVER, AUTHORITY))))
    port, socket = server.listen(HOST, 0), tmp_path / "s"
    words = Place("nbds", HOST, port, "system", "").arguments
    words = [word.replace(CERTIFICATES, str(tmp_path / "board")) for word in words]
    (plugin,) = (prefix() / "roots/oracles-nbd").glob(f"usr/lib/*/nbdkit/plugins/nbdkit-{words[0]}-plugin.so")
    with subprocess.Popen([oracle("nbdkit"), "-f", "-U", str(socket), str(plugin), *words[1:]]) as nbdkit:
        try:
            wait_for(nbdkit, socket)
            connection = Connection(parse_address(f"nbd+unix:///?socket={socket}"))
            assert connection.read(0, 1 << 20) == image.read_bytes()
            connection.close()
            for folder in ("", f"?tls-certificates={tmp_path / 'stranger'}"):
                uri = f"nbd{'s' * bool(folder)}://{HOST}:{port}/system{folder}"
                with pytest.raises((DeviceError, DeviceRefusedError)):
                    Connection(parse_address(uri)).read(0, 512)
        finally:
            nbdkit.kill()
            server.stop()
            export.close()
    assert export.activity.bytes_read == 1 << 20, "strangers have read nothing"
