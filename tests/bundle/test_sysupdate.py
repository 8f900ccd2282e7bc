# SPDX-License-Identifier: Apache-2.0
"""Transfers: Debian's systemd-sysupdate lists versions and installs the newest one from a web server to a disk."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from killed import kills_leave_nothing
from made_build import Made

from erofs_edge.bundle.sysupdate import Form, write_flat, write_transfers
from erofs_edge.cli.bundle import bundle as command
from erofs_edge.disk import gpt
from erofs_edge.disk.ddi import TYPE_ROOT, TYPE_SIGNATURE, TYPE_VERITY
from erofs_edge.errors import SourceError, UsageError, VerificationError

MIB = 1 << 20


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder behind a web server on this machine."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def sysupdate(oracle: Callable[[str], str]) -> Callable[..., str]:
    environment = os.environ | {"SYSTEMD_PULL_PATH": oracle("systemd-pull"), "SYSTEMD_LOG_LEVEL": "info"}

    def run(definitions: Path, *arguments: str) -> str:
        program = [oracle("systemd-sysupdate"), f"--definitions={definitions}", "--no-pager", "--verify=no"]
        done = subprocess.run(
            [*program, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.oracle
def test_versions_are_listed_and_an_image_is_installed(
    built: Made, tmp_path: Path, sysupdate: Callable[..., str]
) -> None:
    folder, target = tmp_path / "web", tmp_path / "machines"
    target.mkdir()
    with served(folder) as url:
        for version in ("7.9", "7.10"):
            write_transfers(built.out, folder, url=url, version=version)
        definition = folder / "sysupdate.d/50-made-system.transfer"
        definition.write_text(definition.read_text().replace("/var/lib/machines", str(target)))
        listed = json.loads(sysupdate(definition.parent, "--json=short", "list"))
        assert listed["all"] == ["7.10", "7.9"] and listed["current"] is None
        sysupdate(definition.parent, "update")
        assert (target / "made-system_7.10.raw").read_bytes() == (folder / "made-system_7.10.raw").read_bytes()
        assert (target / "made-system.raw").readlink().name == "made-system_7.10.raw"
        assert json.loads(sysupdate(definition.parent, "--json=short", "list"))["current"] == "7.10"
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=False)
    assert done.returncode == 0


@pytest.mark.oracle
def test_partitions_are_filled(built: Made, tmp_path: Path, sysupdate: Callable[..., str]) -> None:
    """A disk whose six partitions are empty; afterwards their UUIDs are the halves of the root hash."""
    kinds = (TYPE_ROOT, TYPE_VERITY, TYPE_SIGNATURE)
    parts = [
        gpt.Partition("_empty", kind["arm64"], gpt.guid_from(b"d", str(at)), (1 + at) * 2048, (2 + at) * 2048 - 1)
        for at, kind in enumerate(kinds + kinds)
    ]
    disk, size = tmp_path / "disk", 8 * MIB
    head, tail = gpt.encode(gpt.Table(gpt.guid_from(b"d", ""), size // 512, tuple(parts)))
    disk.write_bytes(head.ljust(size - len(tail), b"\0") + tail)
    with served(tmp_path / "web") as url:
        made = write_transfers(built.out, tmp_path / "web", url=url, form="partitions", version="8")
        for definition in (tmp_path / "web/sysupdate.d").iterdir():
            text = definition.read_text().replace("Path=auto", f"Path={disk}")
            for kind in ("root-verity-sig", "root-verity", "root"):
                text = text.replace(f"MatchPartitionType={kind}\n", f"MatchPartitionType={_type(kind)}\n")
            definition.write_text(text)
        sysupdate(tmp_path / "web/sysupdate.d", "update")
    data = disk.read_bytes()
    table = gpt.decode(lambda at, length: data[at : at + length], size, 512)
    names = [partition.name for partition in table.partitions]
    assert names == ["made-system_8", "made-system_8_verity", "made-system_8_verity_sig", *["_empty"] * 3]
    root = built.verity.root_hash
    assert [one.guid for one in table.partitions[:2]] == [uuid.UUID(bytes=root[:16]), uuid.UUID(bytes=root[16:])]
    for one, path in zip(table.partitions[:3], reversed(made), strict=True):
        content = path.read_bytes()
        assert data[one.first_lba * 512 :][: len(content)] == content


@pytest.mark.oracle
def test_the_folder_of_a_release_is_what_it_takes(built: Made, tmp_path: Path, sysupdate: Callable[..., str]) -> None:
    """Its SHA256SUMS names many files that systemd-sysupdate does not need."""
    target = tmp_path / "machines"
    target.mkdir()
    with served(built.out) as url:
        (image,), (definition,) = write_flat(built.out, url=url)
        names = sorted(path.name for path in built.out.iterdir())
        sums = subprocess.run(["sha256sum", *names], cwd=built.out, capture_output=True, check=True).stdout
        (built.out / "SHA256SUMS").write_bytes(sums)
        (tmp_path / "sysupdate.d").mkdir()
        text = definition.read_text().replace("/var/lib/machines", str(target))
        (tmp_path / "sysupdate.d" / definition.name).write_text(text)
        sysupdate(tmp_path / "sysupdate.d", "update")
    assert (target / image.name).read_bytes() == image.read_bytes() and image.name.startswith("made-system_7.2023")


def _type(kind: str) -> str:
    return str({"root": TYPE_ROOT, "root-verity": TYPE_VERITY, "root-verity-sig": TYPE_SIGNATURE}[kind]["arm64"])


def test_what_is_refused(built: Made, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a valid version"):
        write_transfers(built.out, tmp_path / "w", url="https://u.example", version="a_b")
    with pytest.raises(UsageError, match="not an address"):
        write_transfers(built.out, tmp_path / "w", url="https://u.example/a\nPath=x")
    (tmp_path / "w").mkdir()
    (tmp_path / "w/SHA256SUMS").write_text("x  ../y\n")
    with pytest.raises(SourceError, match="not a line of sha256sum"):
        write_transfers(built.out, tmp_path / "w", url="https://u.example")
    record = json.loads((built.out / "release.json").read_text())
    record["system"]["root_hash"] = "no hash"
    (built.out / "release.json").write_text(json.dumps(record))
    with pytest.raises(VerificationError, match=r"root hash in release\.json is damaged"):
        write_transfers(built.out, tmp_path / "other", url="https://u.example")


@pytest.mark.parametrize("form", ["image", "partitions"])
def test_a_version_is_that_of_one_system(form: Form, built: Made, another: Made, tmp_path: Path) -> None:
    web, url = tmp_path / "web", "https://u.example"
    write_transfers(built.out, web, url=url, form=form, version="1")
    write_transfers(built.out, web, url=url, form=form, version="1")
    before = {path.name: path.read_bytes() for path in web.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match="version 1 of another system is there"):
        write_transfers(another.out, web, url=url, form=form, version="1")
    assert {path.name: path.read_bytes() for path in web.iterdir() if path.is_file()} == before
    write_transfers(another.out, web, url=url, form=form, version="2")
    record = json.loads((another.out / "release.json").read_text())
    record["system"]["name"] = "made-system_1"
    (another.out / "release.json").write_text(json.dumps(record))
    write_transfers(another.out, web, url=url, form=form, version="1")
    write_transfers(built.out, web, url=url, form=form, version="1")


def test_the_command(built: Made, tmp_path: Path) -> None:
    call = ["sysupdate", str(built.out), "-o", str(tmp_path / "w"), "--url", "https://u.example/w"]
    done = CliRunner().invoke(command, call)
    assert done.exit_code == 0, done.output
    assert "made-system_7.20231114221320.raw" in done.stdout
    definition = (tmp_path / "w/sysupdate.d/50-made-system.transfer").read_text()
    assert "Path=https://u.example/w\nMatchPattern=made-system_@v.raw\n" in definition


@pytest.mark.parametrize("form", ["image", "partitions"])
def test_kills_leave_nothing_that_a_server_would_hand_out(form: str, built: Made, tmp_path: Path) -> None:
    words = ("bundle", "sysupdate", built.out, "-o", tmp_path / "web", "--url", "https://u.example", "--form", form)
    kills_leave_nothing(tmp_path / "web", *words)
