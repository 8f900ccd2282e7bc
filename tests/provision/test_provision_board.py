# SPDX-License-Identifier: Apache-2.0
"""Flashing by way of the provisioning system asks the board which one it is: the real nbdkit with the real scripts,
whose places alone are changed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from waiting import eventually, wait_for

from erofs_edge.cli.main import cli
from erofs_edge.errors import DeviceError
from erofs_edge.flash.provision import open_provisioned
from erofs_edge.provision.initramfs import APPLETS, FOLDER
from erofs_edge.simulator.images import disk_image
from erofs_edge.transport.nbd import control
from erofs_edge.transport.nbd.connect import Connection, parse_address

PLUGINS = {"disk": ("file", "file={0}/image"), "control": ("sh", "{0}/control.sh")}


@contextmanager
def board(oracle: Callable[[str], str], place: Path, size: int, *, says: bool = False) -> Iterator[str]:
    """A board with a blank disk of some bytes, and a folder 'firmware' for its device tree; its address.

    says  with the description and the filters that init.sh gives nbdkit; without, an older board that has to be asked
    """
    folder = place / "bin"
    folder.mkdir()
    for name in {*APPLETS, "zstd"} & {"dd", "sha256sum", "stat", "rm", "cat", "sync", "tr", "sh", "zstd"} | {"b2sum"}:
        found = subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=True)
        (folder / name).symlink_to(found.stdout.strip())
    (folder / "gdd").symlink_to((folder / "dd").readlink())
    (folder / "veritysetup").symlink_to(oracle("veritysetup"))
    for name in ("control", "work", "unpacks"):
        script = (FOLDER / f"{name}.sh").read_text().replace("/run/", f"{place}/")
        script = script.replace("/bin/work", f"{place}/work.sh").replace("/bin/unpacks", f"{place}/unpacks.sh")
        script = script.replace("/bin/busybox", f"{place}/work.sh")
        script = script.replace("PATH=/bin", f"PATH={folder}").replace("/proc/sys/vm", str(place))
        (place / f"{name}.sh").write_text(re.sub("/sys/(firmware|class)", rf"{place}/\1", script))
        (place / f"{name}.sh").chmod(0o755)
    (place / "data").mkdir()
    (place / "image").write_bytes(bytes(size))
    (place / "disk").write_text(f"{place}/image\n")
    (place / "size").write_text(f"{size}\n")
    sockets = place / "sockets"
    sockets.mkdir()
    nbdkit = oracle("nbdkit")
    with ExitStack() as stack:
        for name, (plugin, argument) in PLUGINS.items():
            (path,) = Path(nbdkit).parent.parent.glob(
                f"roots/oracles-nbd/usr/lib/*/nbdkit/plugins/nbdkit-{plugin}-plugin.so"
            )
            filters, more = options(place, path.parent.parent / "filters", name) if says else ([], [])
            command = [nbdkit, "-f", "-U", str(sockets / name), *filters, str(path), argument.format(place), *more]
            server = stack.enter_context(subprocess.Popen(command))
            stack.callback(server.terminate)
            wait_for(server, sockets / name)
        yield f"provision+unix://{sockets}"


def options(place: Path, folder: Path, name: str) -> tuple[list[str], list[str]]:
    """Filters, and what follows the plugin's own argument, of one of the two exports: as init.sh has them."""
    script = (FOLDER / "init.sh").read_text()
    assert '--filter=exportname file "$disk" "exportdesc=fixed:$said" &' in script
    assert "$filters sh /bin/control multi-conn-mode=disable default-export=c &" in script
    names = ["exportname"]
    if name == "disk":
        more = [f"exportdesc=fixed:{described(place)}"]
    else:
        names += script.partition("for name in exportname")[2].partition(";")[0].split()
        more = ["multi-conn-mode=disable", "default-export=c"]
    return [f"--filter={folder}/nbdkit-{name}-filter.so" for name in names], more


def described(place: Path) -> str:
    """What init.sh has the disk's export say, made by it."""
    lines = (FOLDER / "init.sh").read_text().split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("# what a host need not ask for"))
    end = next(number for number, line in enumerate(lines) if line.startswith("rm -f /run/control.who"))
    script = "\n".join(["set -e", f"PATH={place}/bin", *lines[start : end + 1], 'echo "$said"'])
    script = script.replace("/run/", f"{place}/").replace("/bin/work", f"{place}/work.sh")
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert not (place / "control.who").exists()
    return done.stdout.removesuffix("\n")


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
        assert (silent.exit_code, "does not say whether it is" in silent.stderr) == (7, True), silent.stderr
        is_a(tmp_path, "edge,kiosk", "edge,any", serial="4711")
        for option in ("--plan", "--verify-only", "--repair", "--resume", "--yes"):
            refused = flash(out, address, option)
            assert refused.exit_code == 7
            assert "the device says 'edge,kiosk' and 'edge,any', not 'lab' or 'edge,lab-2'" in refused.stderr
        is_a(tmp_path, "edge,lab-2-rev-b", "edge,lab-2", serial="4711")
        other = flash(out, address, "--serial", "4712")
        assert (other.exit_code, "serial number 4711, not 4712" in other.stderr) == (7, True), other.stderr
        assert not any((tmp_path / "image").read_bytes())
        right = flash(out, address, "--serial", "4711")
        assert right.exit_code == 0, right.stderr
    assert (tmp_path / "image").read_bytes() == image.read_bytes()


@pytest.mark.oracle
def test_one_host_at_a_time_writes(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    """The second one is told who is there, and may look; who is gone, however, is forgotten."""
    out = tmp_path / "out"
    out.mkdir()
    image = disk_image(out / "disk.img", 1)
    with board(oracle, tmp_path, image.stat().st_size) as address:
        is_a(tmp_path, "lab")
        assert flash(out, address).exit_code == 0
        control_at = parse_address(f"nbd+unix:///?socket={tmp_path}/sockets/control")
        other = Connection(control_at)
        assert ask(other, "hold somebody@elsewhere:7") == ["ok"]
        assert ask(other, "hold somebody@elsewhere:7") == ["ok"], "as often as it likes"
        new = disk_image(tmp_path / "new.img", 2)
        before = (tmp_path / "image").read_bytes()
        for words in (("flash", new, "--to", address, "--yes"), ("slots", "activate", address, "b")):
            refused = CliRunner().invoke(cli, [str(word) for word in words])
            assert (refused.exit_code, refused.stdout) == (7, "")
            assert "another host is writing to this board: somebody@elsewhere:7" in refused.stderr
        # while the other one's request waits, this one's questions and answers are its own
        other.write(0, control.request(["hash 0 512", "serial"]))
        assert flash(out, address, "--verify-only").exit_code == 0
        other.flush()
        asked = ["hash 0 512", "serial"]
        answered = control.answers(other.read(control.ANSWERS, control.answer_bytes(asked)), asked)
        assert answered[0] == hashlib.sha256(before[:512]).hexdigest()
        third = Connection(control_at)
        with pytest.raises(DeviceError, match="cannot copy: held"):
            ask(third, "copy 0 4096 512")
        assert ask(third, "hold third") == ["held somebody@elsewhere:7"]
        third.close()
        assert (tmp_path / "image").read_bytes() == before
        other._wire.close()  # without a good-bye
        assert eventually(lambda: not (tmp_path / "holder").exists())
        assert CliRunner().invoke(cli, ["flash", str(new), "--to", address, "--yes"]).exit_code == 0
        assert eventually(lambda: not list(tmp_path.glob("control.[0-9]*")))


@pytest.mark.oracle
def test_a_board_that_says_what_it_is_need_not_be_asked(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    """It comes with the connection; how long it unpacks is asked for by who wants to know. The filters change nothing
    else."""
    is_a(tmp_path, "edge,one|two", "edge,lab-2", serial="4711")
    image = disk_image(tmp_path / "disk.img", 1)
    with board(oracle, tmp_path, image.stat().st_size, says=True) as address:
        target = open_provisioned(address)
        try:
            identity = target.identity
            assert (identity.serial, identity.product, identity.names) == ("4711", "edge,one_two", ("edge,lab-2",))
            assert not (tmp_path / "answers").exists(), "nothing was asked"
            assert target.hash_name == "blake2b"
            assert (target.effort.request, target.effort.byte >= 0) == (0, True)
            target.claim()
            assert target.effort.request > 0
            assert not [path for name in ("packed", "twice", "sample", "out") for path in tmp_path.glob(f"{name}.*")]
        finally:
            target.close()
        assert flash(image, address).exit_code == 0
    assert (tmp_path / "image").read_bytes() == image.read_bytes()


@pytest.mark.oracle
def test_a_board_reads_what_it_is_once(tmp_path: Path, oracle: Callable[[str], str]) -> None:
    """Nine questions are two files: each program more is noticed at the start of an emulated board."""
    is_a(tmp_path, "edge,one", "edge,two", serial="4711")
    with board(oracle, tmp_path, 1 << 20) as address:
        reader = tmp_path / "bin/tr"
        real = reader.resolve()
        reader.unlink()
        reader.write_text(f'#!/bin/sh\necho x >> {tmp_path}/reads\nexec {real} "$@"\n')
        reader.chmod(0o755)
        target = open_provisioned(address)
        identity = target.identity
        target.close()
    assert (identity.serial, identity.product, identity.names) == ("4711", "edge,one", ("edge,two",))
    assert (tmp_path / "reads").read_text() == "x\n" * 2


@pytest.mark.oracle
def test_a_board_that_waits_for_others_does_not_take_itself_for_slow(
    tmp_path: Path, oracle: Callable[[str], str]
) -> None:
    """What the processor had to do counts where the clock says more: here a second is slept."""
    with board(oracle, tmp_path, 1 << 20):
        packer = tmp_path / "bin/zstd"
        real, sleep = packer.resolve(), shutil.which("sleep")
        packer.unlink()
        packer.write_text(
            f'#!/bin/sh\ncase " $* " in *" -d "*) {sleep} 1; echo x >> {tmp_path}/slept ;; esac\nexec {real} "$@"\n'
        )
        packer.chmod(0o755)
        commands = Connection(parse_address(f"nbd+unix:///?socket={tmp_path}/sockets/control"))
        (said,) = ask(commands, "unpacks")
        commands.close()
    size, hundredths = map(int, said.split()[-2:])
    assert size == 2 * (tmp_path / "work.sh").stat().st_size and hundredths < 50
    assert (tmp_path / "slept").read_text().startswith("x\n")


def ask(connection: Connection, *items: str) -> list[str]:
    """Answers of the control export."""
    connection.write(0, control.request(items))
    connection.flush()
    return control.answers(connection.read(control.ANSWERS, control.answer_bytes(items)), items)


def test_who_it_is_for_is_one_word() -> None:
    assert control.name_of_holder("lab", "bench-3.local", 17) == "lab@bench-3.local:17"
    assert control.name_of_holder("ü x\n", "", 1) == "x@somewhere:1"
    assert len(control.name_of_holder("x" * 99, "y" * 99, 1 << 22)) < 70
    assert (control.holder("ok"), control.holder("held a@b:1"), control.holder("held")) == ("", "a@b:1", "?")
