# SPDX-License-Identifier: Apache-2.0
"""A diskless start with a program that pretends to be QEMU: it takes the boot image from TFTP's folder, or from the web
server that the boot script names, reads from our server as a board would, and says what a board says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_machine import BOARD_YAML, ROOT_HASH

from erofs_edge.boot.fdt import DeviceTree, Node, parse, string, write
from erofs_edge.diskless.start import Diskless, DisklessStart
from erofs_edge.errors import BootCheckError, DeviceRefusedError, SourceError
from erofs_edge.manifest.load import Loaded, load_board
from erofs_edge.manifest.model import Board
from erofs_edge.qemu import diskless
from erofs_edge.qemu.diskless import Wish, diskless_smoke
from erofs_edge.qemu.smoke import Observer
from erofs_edge.serve.export import FileExport
from erofs_edge.serve.server import Server
from erofs_edge.trace.files import image_root_hash
from erofs_edge.transport.nbd.connect import Connection, parse_address
from erofs_edge.trust.signer import open_signer

FAKE = """#!{python}
import http.client, json, re, sys
from pathlib import Path
here = Path({here!r})
arguments = sys.argv[1:]
if arguments == ["--version"]:
    print("QEMU emulator version 10.0.2 (Debian)")
    sys.exit()
if dump := re.search(r"dumpdtb=([^,\\n]+)", "\\n".join(arguments)):
    Path(dump[1]).write_bytes((here / "machine.dtb").read_bytes())
    sys.exit()
(here / "arguments").write_text(json.dumps(arguments))
(here / "control.dtb").write_bytes(Path(arguments[arguments.index("-dtb") + 1]).read_bytes())
script = (here / "control.dtb").read_bytes()
if web := re.search(rb"wget 10\\.0\\.2\\.2:([0-9]+)(/[a-z.]+)", script):
    for place in ("/", "/other", "/../release.json", web[2].decode()):
        server = http.client.HTTPConnection("127.0.0.1", int(web[1]))
        server.request("GET", place)
        answer = server.getresponse()
        assert answer.status == (200 if place == "/diskless.fit" else 404), place
        said = answer.read()
        server.close()
    fit = json.loads(said)
else:
    folder = Path(re.search(r"tftp=(.*)", "\\n".join(arguments))[1].replace(",,", ","))
    fit = json.loads((folder / "diskless.fit").read_bytes())
port, query = fit["port"], ""
for name, pem in fit["certificates"].items():
    (here / name).write_text(pem)
    query = f"?tls-certificates={{here}}&tls-hostname=10.0.2.2"
from erofs_edge.transport.nbd.connect import Connection, parse_address
system = Connection(parse_address(f"{{fit['scheme']}}://127.0.0.1:{{port}}/system{{query}}"))
for offset, length in ((1024, 512), (8192, 8192), (8192, 4096)):
    system.read(offset, length)
system.close()
if (here / "data").exists():
    data = Connection(parse_address(f"nbd://127.0.0.1:{{port}}/data"))
    data.write(4096, b"kept by the board")
    data.flush()
    data.close()
sys.stdout.write((here / "console").read_text())
sys.stdout.flush()
import time
time.sleep(float((here / "stay").read_text()) if (here / "stay").exists() else 0)
"""
CONSOLE = f"""
U-Boot 2025.01-3+deb13u1 (Jun 24 2026 - 09:07:15 +0000)
erofs-edge: stage u-boot slot none
   Verifying Hash Integrity ... sha256,rsa2048:dev+ OK
   Loading Device Tree to 000000007d659000, end 000000007d66509f ... OK
Starting kernel ...
erofs-edge: stage initramfs
erofs-edge: stage verity {ROOT_HASH}
erofs-edge: stage root erofs
erofs-edge: stage data
erofs-edge: stage switch-root
erofs-edge: report root=erofs dm=verity status=V roothash={ROOT_HASH} slot=none var=tmpfs:rw data=tmpfs
lab login: """


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake's folder."""
    folder = tmp_path / "fake"
    folder.mkdir()
    program = folder / "qemu-system-aarch64"
    program.write_text(FAKE.format(python=sys.executable, here=str(folder)))
    program.chmod(0o755)
    tree = DeviceTree(Node({"compatible": string("linux,dummy-virt")}, {"chosen": Node()}))
    (folder / "machine.dtb").write_bytes(write(tree))
    (folder / "console").write_text(CONSOLE)
    monkeypatch.setenv("EROFS_EDGE_QEMU", str(program))
    monkeypatch.setattr(diskless, "board_lock", lambda path, out: None)

    def build(board: Board, lock: Any, out: Path, wanted: Diskless, *_: object) -> DisklessStart:
        assert wanted.system.host == "10.0.2.2"
        pems = {name: pem.decode() for name, pem in wanted.certificates.items()}
        said = {"port": wanted.system.port, "scheme": wanted.system.scheme, "certificates": pems}
        web = wanted.boot_image
        script = f"wget {web.host}:{web.port}{web.export}" if web else "the script"
        return DisklessStart(
            json.dumps(said).encode(), diskless.FIT, script, ROOT_HASH, keeps_data=wanted.data != "memory"
        )

    monkeypatch.setattr(diskless, "build_diskless", build)
    return folder


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded[Board]:
    (tmp_path / "lab.yaml").write_text("system: lab\nsuite: trixie\npackages: []\n")
    path = tmp_path / "board.yaml"
    path.write_text(BOARD_YAML)
    return load_board(path)


def test_what_the_board_read_is_counted_to_the_byte(here: Path, built: Path, loaded: Loaded[Board]) -> None:
    stages: list[str] = []
    observer = Observer(60, lambda stage: stages.append(stage.stage))
    record, trace = diskless_smoke(loaded, built, open_signer("dev:dev"), wish=Wish(trace=True), observer=observer)
    assert (record.bytes_read, record.bytes_touched, record.requests) == (512 + 8192 + 4096, 3 * 4096, 3)
    assert record.image_bytes == (built / "system.img").stat().st_size
    assert record.root_hash == ROOT_HASH
    assert stages[-2:] == ["report", "login"]
    assert trace is not None
    assert [(read.first, read.blocks) for read in trace.reads] == [(0, 1), (2, 2)]
    assert trace.root_hash == image_root_hash(built / "system.img")
    arguments = json.loads((here / "arguments").read_text())
    assert not any("virtio-blk" in word for word in arguments)
    config = parse((here / "control.dtb").read_bytes()).root.at("/config")
    assert config is not None and config.props["bootcmd"] == string("the script")
    assert not list(built.glob(".run-*"))


def test_the_boot_image_over_http(here: Path, built: Path, loaded: Loaded[Board]) -> None:
    """The web server has that file and no other; nothing is there by TFTP."""
    record, _ = diskless_smoke(loaded, built, open_signer("dev:dev"), wish=Wish(http=True), observer=Observer(60))
    assert record.requests == 3
    assert "user,id=net0" in json.loads((here / "arguments").read_text())


def test_with_tls_the_board_has_its_own_part_of_the_secrets(here: Path, built: Path, loaded: Loaded[Board]) -> None:
    refused: list[str] = []

    def serve(export: FileExport, server: Server) -> None:
        port = server.listen("127.0.0.1", 0)
        with pytest.raises(DeviceRefusedError) as caught:
            Connection(parse_address(f"nbd://127.0.0.1:{port}/system"))
        refused.append(caught.value.message)

    record, _ = diskless_smoke(
        loaded, built, open_signer("dev:dev"), wish=Wish(tls=True), serve=serve, observer=Observer(60)
    )  # fmt: skip
    assert record.bytes_read == 512 + 8192 + 4096
    assert refused and "TLS" in refused[0]
    assert {path.name for path in here.glob("*.pem")} == {"ca-cert.pem", "client-cert.pem", "client-key.pem"}
    assert not list(built.glob(".run-*"))


def test_a_disk_over_the_network_and_one_in_the_board(
    here: Path, built: Path, loaded: Loaded[Board], tmp_path: Path
) -> None:
    (here / "data").touch()
    (here / "console").write_text(CONSOLE.replace("var=tmpfs:rw data=tmpfs", "var=ext4:rw data=/dev/nbd1"))
    (tmp_path / "disk").write_bytes(bytes(4096))
    wish = Wish(data=tmp_path / "data.img", disk=tmp_path / "disk", lines=("^Starting kernel",))
    record, trace = diskless_smoke(loaded, built, open_signer("dev:dev"), wish=wish, observer=Observer(60))
    assert record.report["data"] == "/dev/nbd1"
    assert trace is None
    assert (tmp_path / "data.img").read_bytes()[4096 : 4096 + 17] == b"kept by the board"
    assert any(f"file={tmp_path / 'disk'}" in word for word in json.loads((here / "arguments").read_text()))
    with pytest.raises(SourceError):
        diskless_smoke(loaded, built, open_signer("dev:dev"), wish=Wish(data=tmp_path), observer=Observer(60))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (f"roothash={ROOT_HASH}", "roothash=00", "roothash=00 where"),
        ("dm=verity", "dm=none", "dm=none where"),
        ("sha256,rsa2048:dev+ OK", "nothing", "verified no signature"),
        ("erofs-edge: stage root erofs", "erofs-edge: FAILED root: no such device", "no such device"),
    ],
)
def test_a_start_that_is_not_what_it_must_be(
    here: Path, built: Path, loaded: Loaded[Board], old: str, new: str, reason: str
) -> None:
    (here / "console").write_text(CONSOLE.replace(old, new))
    with pytest.raises(BootCheckError, match=reason):
        diskless_smoke(loaded, built, open_signer("dev:dev"), observer=Observer(60))


@pytest.mark.parametrize(
    "words",
    [
        ("--diskless",),
        ("--diskless", "--smoke", "--slot", "a"),
        ("--trace", "x"),
        ("--tls",),
        ("--http", "--smoke"),
        ("--prefetch", "README.md", "--smoke"),
    ],
)
def test_options_that_do_not_fit(edge: str, repository: Path, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [edge, "boot", "boards/qemu-aarch64.yaml", *words], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "--diskless" in done.stderr
    assert "Traceback" not in done.stderr
