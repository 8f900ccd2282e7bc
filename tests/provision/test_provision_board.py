# SPDX-License-Identifier: Apache-2.0
"""Flashing by way of the provisioning system asks the board which one it is: the real nbdkit with the real scripts,
whose places alone are changed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from waiting import wait_for

from erofs_edge.cli.main import cli
from erofs_edge.provision.initramfs import APPLETS, FOLDER
from erofs_edge.simulator.images import disk_image
from erofs_edge.transport.nbd import control

PLUGINS = {"disk": ("file", "file={0}/image"), "control": ("sh", "{0}/control.sh")}


@contextmanager
def board(oracle: Callable[[str], str], place: Path, size: int) -> Iterator[str]:
    """A board with a blank disk of some bytes, and a folder 'firmware' for its device tree; its address."""
    folder = place / "bin"
    folder.mkdir()
    for name in {*APPLETS, "zstd"} & {"dd", "sha256sum", "stat", "rm", "cat", "sync", "tr", "sh", "zstd"}:
        found = subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=True)
        (folder / name).symlink_to(found.stdout.strip())
    (folder / "veritysetup").symlink_to(oracle("veritysetup"))
    for name in ("control", "work"):
        script = (
            (FOLDER / f"{name}.sh").read_text().replace("/run/", f"{place}/").replace("/bin/work", f"{place}/work.sh")
        )
        script = script.replace("PATH=/bin", f"PATH={folder}").replace("/proc/sys/vm", str(place))
        (place / f"{name}.sh").write_text(re.sub("/sys/(firmware|class)", rf"{place}/\1", script))
        (place / f"{name}.sh").chmod(0o755)
    (place / "image").write_bytes(bytes(size))
    (place / "disk").write_text(f"{place}/image\n")
    (place / "size").write_text(f"{size}\n")
    (place / "control").touch()
    with (place / "control").open("r+b") as file:
        file.truncate(control.SIZE)
    sockets = place / "sockets"
    sockets.mkdir()
    nbdkit = oracle("nbdkit")
    with ExitStack() as stack:
        for name, (plugin, argument) in PLUGINS.items():
            (path,) = Path(nbdkit).parent.parent.glob(
                f"roots/oracles-nbd/usr/lib/*/nbdkit/plugins/nbdkit-{plugin}-plugin.so"
            )
            command = [nbdkit, "-f", "-U", str(sockets / name), str(path), argument.format(place)]
            server = stack.enter_context(subprocess.Popen(command))
            stack.callback(server.terminate)
            wait_for(server, sockets / name)
        yield f"provision+unix://{sockets}"


def is_a(place: Path, *names: str, serial: str = "") -> None:
    """Let the board's device tree say so."""
    tree = place / "firmware/devicetree/base"
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "compatible").write_bytes(b"".join(name.encode() + b"\0" for name in names))
    if serial:
        (tree / "serial-number").write_bytes(serial.encode() + b"\0")


def flash(out: Path, address: str, *options: str) -> Result:
    return CliRunner().invoke(cli, ["flash", str(out), "--to", address, "--yes", *options])


@pytest.mark.oracle
def test_the_wrong_board_is_refused(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    image = disk_image(out / "disk.img", 1)
    (out / "release.json").write_text(json.dumps({"format": 1, "product": ["lab", "edge,lab-2"]}))
    with board(oracle, tmp_path, image.stat().st_size) as address:
        silent = flash(out, address)
        assert (silent.exit_code, "does not say which board it is" in silent.stderr) == (7, True), silent.stderr
        is_a(tmp_path, "edge,kiosk", "edge,any", serial="4711")
        for option in ("--plan", "--verify-only", "--repair", "--resume", "--yes"):
            refused = flash(out, address, option)
            assert refused.exit_code == 7
            assert "it says 'edge,kiosk' and 'edge,any', not 'lab' or 'edge,lab-2'" in refused.stderr
        is_a(tmp_path, "edge,lab-2-rev-b", "edge,lab-2", serial="4711")
        other = flash(out, address, "--serial", "4712")
        assert (other.exit_code, "serial number 4711, not 4712" in other.stderr) == (7, True), other.stderr
        assert not any((tmp_path / "image").read_bytes())
        right = flash(out, address, "--serial", "4711")
        assert right.exit_code == 0, right.stderr
    assert (tmp_path / "image").read_bytes() == image.read_bytes()
